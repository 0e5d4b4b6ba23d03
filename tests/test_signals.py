"""Signals and streams of the commands: what ends them, and what must not."""

from __future__ import annotations

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conal_rl.benchmarks import engine, forking, study
from conal_rl.cli import exit_status
from conal_rl.errors import ConalError
from conal_rl.signals import StopRequest, handled
from conal_rl.streams import announced, can_redraw

ROOT = Path(__file__).parents[1]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run code that may use this package; a quick one, because it imports little."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, text=True, cwd=ROOT, timeout=60, **options)


# Signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """The test must leave the handlers of signals as they were."""
    before = [signal.getsignal(number) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == before


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.usefixtures("handlers")
def test_a_signal_is_the_exit_status(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fails_after_it() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ImportError("changed by the package that was being imported") from None

    def mentions_it() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ConalError("changed by this package") from None

    for run in (lambda: signal.raise_signal(number), fails_after_it, mentions_it):
        assert exit_status(run) == 128 + number
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_is_sent_twice_interrupts_once() -> None:
    """`timeout` sends SIGTERM to its command, and then to all of its process group."""
    ended = []

    def run() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ended.append("cleaned up")

    assert exit_status(run) == 128 + signal.SIGTERM
    assert ended == ["cleaned up"]


@pytest.mark.usefixtures("handlers")
def test_only_a_later_ctrl_c_interrupts_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    with stop.watching():
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGHUP
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sighup_stays_ignored() -> None:
    """As `nohup` asks."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(lambda number: pytest.fail(f"{number} was handled")):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("handlers")
def test_a_thread_handles_no_signals() -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(exit_status(lambda: 3)))
    thread.start()
    thread.join()
    assert statuses == [3]


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.usefixtures("handlers")
def test_a_forked_worker_leaves_ctrl_c_to_its_parent(number: int) -> None:
    with handled(lambda number: os._exit(9)):
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(7)
        _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == (7 if number == signal.SIGINT else -number)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_while_packages_are_imported(number: int, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "conal_rl.train", "cartpole"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert not (tmp_path / "runs").exists()


# Drivers of other processes


WAITS = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    Path("stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path("started").touch()
time.sleep(60)
"""


def interrupt_when(ready: Callable[[], bool]) -> None:
    """Send this process Ctrl-C once something is so."""

    def wait() -> None:
        while not ready():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_an_interrupted_driver_stops_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("waits.py").write_text(WAITS)
    interrupt_when(Path("started").exists)
    with pytest.raises(KeyboardInterrupt):
        study.run_all(lambda name: study.start("waits", [], name), ["first", "second"], jobs=1)
    assert Path("stopped").exists()
    assert capfd.readouterr().err.splitlines() == [
        "first: starts",
        "The runs stop and write checkpoints. The same command resumes them.",
    ]


def test_an_interrupted_driver_waits_for_its_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        def stop(*_: object) -> None:
            (tmp_path / "stopped").touch()
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        (tmp_path / "started").touch()
        time.sleep(60)
        os._exit(1)

    monkeypatch.setattr(forking, "_train", train)
    interrupt_when((tmp_path / "started").exists)
    with pytest.raises(KeyboardInterrupt):
        forking.train_in_fork(tmp_path, [], "log")
    assert (tmp_path / "stopped").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_interrupted_env_processes_are_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The interrupted step has taken the answers of some envs; nothing may wait for these."""
    from multiprocessing.connection import Connection

    suite: Any = ("reach-v3", "push-v3")
    peer = engine._official(suite, "async")
    recv, calls = Connection.recv, 0

    def interrupted(connection: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return recv(connection)

    monkeypatch.setattr(Connection, "recv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer.rate(1.0)
    peer.close()
    assert capfd.readouterr().err == ""


# Streams


PRINTS = """
import sys
from conal_rl.cli import exit_status
def run():
    for number in range(3):
        print("out", number, flush=True)
        print("err", number, file=sys.stderr)
    open("/dev/null").close()
    return 7
sys.exit(exit_status(run))
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_ends_no_command(stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = python(PRINTS, **streams | {stream: writer})
    os.close(writer)
    assert done.returncode == 7
    other = done.stderr if stream == "stdout" else done.stdout
    assert other.splitlines() == [f"{'err' if stream == 'stdout' else 'out'} {n}" for n in range(3)]


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", ">&- 2>&-", "2>/dev/full"])
def test_a_closed_stream_ends_no_command(redirection: str, tmp_path: Path) -> None:
    """Nor does a file that the command opens take the number of the stream."""
    code = PRINTS.replace('open("/dev/null").close()', 'assert open("/dev/null").fileno() > 2')
    (tmp_path / "prints.py").write_text(code)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {tmp_path / 'prints.py'} {redirection}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert ("err" in done.stderr) == (redirection == ">&-")


def test_a_full_disk_under_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = python(PRINTS, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: [Errno 28] {os.strerror(errno.ENOSPC)}"]


def test_letters_that_stdout_lacks_are_replaced() -> None:
    code = PRINTS.replace('print("out", number', 'print("Tür ├", number')
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python(code, capture_output=True, env=environment)
    assert done.returncode == 7
    assert done.stdout.splitlines() == [f"T?r ? {number}" for number in range(3)]


@pytest.mark.parametrize(
    "words", ["train", "evaluate", "report", "benchmark", "benchmark mt10", "report success"]
)
def test_help_into_a_pipe_that_is_closed(words: str) -> None:
    """As in `--help | head -1`."""
    command, *rest = words.split()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", f"conal_rl.{command}", *rest, "--help"],
        stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (True, {"TERM": "dumb", "FORCE_COLOR": "1"}, False),
    ],
)
def test_bars_need_a_terminal_that_can_redraw(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as screen:
        console = Console(file=screen if terminal else io.StringIO(), _environ=os.environ)
        assert can_redraw(console) == expected
    os.close(ours)


class _Listening:
    """A stream that notes what it gets, and when."""

    def __init__(self) -> None:
        self.text, self.came = "", threading.Event()

    def write(self, text: str) -> None:
        self.text += text
        self.came.set()

    def flush(self) -> None: ...


def test_only_a_long_block_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Listening()
    monkeypatch.setattr(sys, "stderr", stream)
    with announced("It is short.", 1e5):
        pass
    assert not stream.text
    with announced("It takes long.", 0.0):
        assert stream.came.wait(60)
    assert stream.text.startswith("It takes long.")
