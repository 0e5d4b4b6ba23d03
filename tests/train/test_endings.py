"""What may fail or break around a run, and must not end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.logger import Logger

from conal_rl import train
from conal_rl.runs import progress
from conal_rl.runs.progress import Session
from conal_rl.signals import StopRequest
from tests.helpers.toy_runs import ROOT, copied, evaluation, state


def test_a_run_in_a_thread(toy: str, tmp_path: Path) -> None:
    """Of a web app or a scheduler: it has no handlers of signals."""
    statuses: list[int] = []

    def run() -> None:
        options = ["--agent.tree", "shared", "--total-steps", "80", "--out", str(tmp_path / "run")]
        statuses.append(train.main([toy, *options]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert statuses == [0]
    assert evaluation(tmp_path / "run")["steps"] == 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_final_evaluation(
    number: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished, tmp_path)
    monkeypatch.setattr(
        "conal_rl.evaluation.evaluate_policy", lambda *_, **__: signal.raise_signal(number)
    )
    assert train.main(["--resume", str(run)]) == 128 + number
    assert f"python -m conal_rl.train --resume {run}" in capsys.readouterr().err


def test_a_table_that_cannot_be_printed_loses_no_evaluation(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path)
    before = evaluation(run)
    (run / "evaluation.json").unlink()
    printed = Console.print

    def fails(console: Console, *given: Any, **options: Any) -> None:
        if given and isinstance(given[0], Table):
            raise OSError(28, "No space left on device")
        printed(console, *given, **options)

    monkeypatch.setattr(Console, "print", fails)
    assert train.main(["--resume", str(run)]) == 2
    assert evaluation(run)["returns"] == before["returns"]


@pytest.mark.parametrize(
    ("save_seconds", "saves"), [(600.0, [50, 660, 1270]), (20.0, [30, 60, 90, 120])]
)
def test_the_first_checkpoint_comes_within_a_minute(
    save_seconds: float, saves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = SimpleNamespace(now=0), list[int]()
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    session = Session(
        phase="train",
        step=0,
        until=100,
        total=100,
        logger=Logger(None, []),
        stop=StopRequest(),
        elapsed=lambda: 0.0,
        seconds_left=lambda: 1e9,
        save=lambda: saved.append(clock.now),
        save_seconds=save_seconds,
    )
    for clock.now in range(0, 1300, 10):
        session.save_if_due()
    session.display.close()
    assert saved[: len(saves)] == saves


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["2>&1 | head -1", "2>&-", ">&-"])
def test_a_run_needs_no_reader(ending: str, toy: str, tmp_path: Path) -> None:
    """`tee` may die, and a daemon may have no streams."""
    command = f"{sys.executable} -m conal_rl.train {toy} --out run"
    subprocess.run(
        ["bash", "-c", f"({command}; echo $? >status) {ending}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "status").read_text() == "0\n"
    assert evaluation(tmp_path / "run")["steps"] == state(tmp_path / "run")["agent"]["steps"] == 320
