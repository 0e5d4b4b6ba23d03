"""Files and folders that are written whole or not at all, and files that are not files."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conal_rl.errors import CheckpointError
from conal_rl.files import (
    atomic_write,
    draft_file,
    draft_files,
    draft_folder,
    is_writable,
    read_bytes,
    read_json,
    read_rows,
    read_text,
    restore_folder,
    user_path,
    write_json,
    write_together,
)


def killed(work: Callable[[], object]) -> None:
    """Do some work in a different process, which must die by SIGKILL in it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, whose call of this number, from 1, kills the process."""
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == number else function(*arguments, **options)

    return counted


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# One file


def test_atomic_write_replaces_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_text() == "new"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "half")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_its_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(path, "new")
    assert caught.value.filename == str(path)

    def refused(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source), None, str(target))

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(PermissionError) as caught_late:
        atomic_write(tmp_path / "file", "new")
    assert str(caught_late.value) == f"[Errno 13] Permission denied: '{tmp_path / 'file'}'"


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        atomic_write(path, "new")
        assert mode(path) == 0o640
        path.chmod(0o604)
        atomic_write(path, "newer")
    finally:
        os.umask(before)
    assert mode(path) == 0o604


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 1234)
    atomic_write(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(there: bool, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to("far/target")
    atomic_write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        atomic_write(tmp_path / "a", "new")


def test_a_draft_keeps_its_place_if_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with draft_file(Path("file")) as draft:
        draft.write_text("new")
        os.chdir("elsewhere")
    assert (tmp_path / "file").read_text() == "new"


def test_drafts_of_one_path_are_separate(tmp_path: Path) -> None:
    """As two threads of a process make them."""
    path = tmp_path / "file.csv"
    with draft_file(path) as first:
        with draft_file(path) as second:
            assert first != second
            assert first.name == second.name == "file.csv"
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_draft_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def work() -> None:
        with draft_file(path) as draft:
            draft.write_text("half")
            die()

    killed(work)
    assert [entry.name.startswith(".conal_rl-") for entry in tmp_path.iterdir()] == [True]
    atomic_write(tmp_path / "other", "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


def test_a_file_that_is_mounted_takes_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a container's volume cannot be replaced."""

    def busy(source: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy", str(source), None, str(target))

    path = tmp_path / "file"
    path.write_text("a longer old text")
    monkeypatch.setattr("os.replace", busy)
    atomic_write(path, "new")
    assert path.read_text() == "new"


# Several files


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_files_are_replaced_or_none(
    number: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, linked = (tmp_path / name for name in ("old", "new", "linked"))
    old.write_text("old")
    (tmp_path / "target").write_text("target")
    linked.symlink_to("target")
    replace, calls = os.replace, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr("os.replace", failing)
        write_together({old: "1", new: "2", linked: "3"})
    assert (old.read_text(), new.exists(), linked.read_text()) == ("old", False, "target")
    write_together({old: "1", new: "2", linked: "3"})
    assert [path.read_text() for path in (old, new, linked)] == ["1", "2", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "new", "old", "target"]


def test_files_without_hard_links_come_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        write_together({tmp_path / "a": "new", tmp_path / "b": "new"})
    assert (tmp_path / "a").read_text() == "old"


# Folders


def test_a_draft_replaces_nothing_if_its_block_fails(tmp_path: Path) -> None:
    file, folder = tmp_path / "video.mp4", tmp_path / "model"
    write_json(file, {"old": 1})
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), draft_file(file) as draft:
        assert draft.name == "video.mp4"
        draft.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), draft_folder(folder) as draft:
        (draft / "file").touch()
        raise KeyboardInterrupt
    assert read_json(file) == {"old": 1}
    assert set(tmp_path.rglob("*")) == {file, folder, folder / "inner"}


def test_a_folder_gets_the_files_of_its_draft(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with draft_folder(folder) as draft:
            for name in ("a", "b"):
                (draft / name).write_text(content)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "a": content,
            "b": content,
        }
        assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_exists_is_filled_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point cannot be renamed, and the working folder must not be."""
    folder = tmp_path / "volume"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before, parents = folder.stat(), os.stat(tmp_path)
    for _ in range(2):
        with draft_folder(Path(".")) as draft:
            (draft / "file").write_text("new")
        assert Path("file").read_text() == "new"
        assert folder.stat().st_ino == before.st_ino
        assert os.stat(tmp_path).st_mtime_ns == parents.st_mtime_ns
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_is_filled_wholly_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "b").mkdir(parents=True)
    for name in ("a", "c"):
        (folder / name).write_text("old")
    with pytest.raises(OSError), draft_folder(folder) as draft:
        for name in "abc":
            (draft / name).write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]
    assert {(folder / name).read_text() for name in ("a", "c")} == {"old"}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("action", ["read", "write"])
def test_what_a_dead_process_began_is_finished(action: str, number: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def fill(content: str) -> None:
        with draft_folder(folder) as draft:
            for name in "abc":
                (draft / name).write_text(content)

    def work() -> None:
        setattr(os, "replace", dies_at(number, os.replace))  # noqa: B010 - in this process only
        fill("new")

    fill("old")
    killed(work)
    if action == "read":
        restore_folder(folder)
    else:
        with pytest.raises(KeyboardInterrupt), draft_folder(folder):
            raise KeyboardInterrupt
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]
    assert {path.read_text() for path in folder.iterdir()} == {"new"}


@pytest.mark.parametrize(
    ("left", "expected"), [({"old"}, "old"), ({"old", "draft"}, "draft"), ({"draft"}, None)]
)
def test_a_folder_that_version_0_1_0_lost_comes_back(
    left: set[str], expected: str | None, tmp_path: Path
) -> None:
    """It died between two renames; before the first one, its draft may be incomplete."""
    folder = tmp_path / "model"
    for name in left:
        (tmp_path / f".model.{name}").mkdir()
        (tmp_path / f".model.{name}" / "file").write_text(name)
    restore_folder(folder)
    assert folder.exists() == (expected is not None)
    if expected is not None:
        assert (folder / "file").read_text() == expected
    with draft_folder(folder) as draft:
        (draft / "file").write_text("new")
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_threads_that_make_one_folder_leave_a_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    threads, failed = 4, list[Exception]()
    together = threading.Barrier(threads)

    def make(content: str) -> None:
        try:
            for _ in range(5):
                together.wait()
                with draft_folder(folder) as draft:
                    for name in "ab":
                        (draft / name).write_text(content)
        except Exception as error:
            failed.append(error)
            together.abort()

    workers = [threading.Thread(target=make, args=(str(n),)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    assert len({(folder / name).read_text() for name in "ab"}) == 1
    assert list(tmp_path.iterdir()) == [folder]


# Pipes and devices


@pytest.fixture(params=["pipe", "device"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A link to a pipe without a writer, or to a device that never ends."""
    path = tmp_path / "special"
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(tmp_path / "pipe" if request.param == "pipe" else "/dev/zero")
    return path


def test_special_files_are_not_read(special: Path) -> None:
    for read in (read_bytes, read_text, read_rows):
        with pytest.raises(OSError, match=r"a (pipe|device)") as caught:
            read(special)
        assert caught.value.filename == str(special)
    with pytest.raises(CheckpointError, match=f"^{special}: got a "):
        read_json(special)


def test_special_files_are_not_replaced(special: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a (pipe|device)") as caught:
        atomic_write(special, "new")
    assert caught.value.filename == str(special)
    with pytest.raises(OSError, match=r"a (pipe|device)"), draft_files(tmp_path / "file", special):
        pass
    assert not special.resolve().is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"special", "pipe"}


def test_a_pipe_that_a_user_names_receives_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_json(tmp_path / "link", {"a": 1}, through=True)
        content, _ = reader.communicate()
    assert json.loads(content) == {"a": 1}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_pipe_that_nobody_reads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conal_rl.files.PIPE_SECONDS", 0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody reads") as caught:
        atomic_write(tmp_path / "pipe", "new", through=True)
    assert caught.value.filename == str(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_device_that_a_user_names_receives_the_content(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "link").symlink_to(os.ttyname(theirs))
    before = os.stat(theirs).st_rdev
    assert is_writable(tmp_path / "link")
    atomic_write(tmp_path / "link", "new\n", through=True)
    assert os.read(ours, 100) == b"new\r\n"
    assert os.stat(os.ttyname(theirs)).st_rdev == before
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("into", ["file", "pipe"])
def test_stdout_by_its_path_keeps_its_order(into: str, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from conal_rl.files import atomic_write\n"
        "print('before')\natomic_write(Path('/dev/stdout'), 'written\\n', True)\nprint('after')"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    if into == "file":
        with (tmp_path / "out").open("w") as out:
            subprocess.run(command, stdout=out, check=True, cwd=root)
        printed = (tmp_path / "out").read_text()
    else:
        printed = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=root
        ).stdout
    assert printed.split() == ["before", "written", "after"]


def test_a_file_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself can be: a user has named it for output."""
    path = tmp_path / "file"
    path.write_text("a longer old text")
    access = os.access
    monkeypatch.setattr("os.access", lambda p, m: Path(p) != tmp_path and access(p, m))
    before = path.stat().st_ino
    atomic_write(path, "new", through=True)
    assert (path.read_text(), path.stat().st_ino) == ("new", before)
    assert not is_writable(tmp_path / "new") and not is_writable(tmp_path)


# Names and text


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/run") == Path("/home/somebody/run")
    assert user_path("~no-such-user/run") == Path("~no-such-user/run")
    assert user_path("run~") == Path("run~")


def test_lines_end_in_one_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("ä\r\nb\rc\n".encode())
    assert read_text(tmp_path / "file") == "ä\nb\nc\n"


def test_a_bom_is_not_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1,\r\n2]")
    assert read_text(path) == "[1,\n2]" and read_json(path) == [1, 2]
