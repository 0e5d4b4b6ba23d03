"""Files and folders that are written whole or not at all, and what is read."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conal_rl.errors import CheckpointError
from conal_rl.files import (
    atomic_write,
    draft_file,
    draft_folder,
    new_draft,
    read_json,
    replace_files,
    whole_folder,
    write_json,
)


def test_atomic_write_replaces_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_text() == "new"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "half")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_its_draft(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(path, "new")
    assert caught.value.filename == str(path)


def test_a_draft_replaces_nothing_if_its_block_fails(tmp_path: Path) -> None:
    file, folder = tmp_path / "video.mp4", tmp_path / "model"
    write_json(file, {"old": 1})
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), draft_file(file) as draft:
        assert (draft.parent, draft.suffix) == (tmp_path, ".mp4")
        draft.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), draft_folder(folder) as draft:
        (draft / "file").touch()
        raise KeyboardInterrupt
    assert read_json(file) == {"old": 1}
    assert set(tmp_path.rglob("*")) == {file, folder, folder / "inner"}


def abandoned(folder: Path, name: str) -> Path:
    """A path in `folder` that a killed process has left; it is named like a draft."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with new_draft(folder / name) as draft:
        return folder / draft.name.replace(f"-{os.getpid()}-", f"-{process.pid}-")


def test_a_draft_folder_replaces_all_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for name in ("first", "second"):
        folder.parent.mkdir(exist_ok=True)
        for left in (folder.parent / ".model.old", abandoned(folder.parent, "")):
            (left / "part").mkdir(parents=True)
        abandoned(folder.parent, "file.json").touch()
        with draft_folder(folder) as draft:
            (draft / name).write_text(name)
        assert [path.name for path in folder.iterdir()] == [name]
        assert list(folder.parent.iterdir()) == [folder]


def test_the_old_folder_is_found_if_a_process_died_in_between(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "file").touch()
    assert (whole_folder(folder) / "file").exists()
    with pytest.raises(KeyboardInterrupt), draft_folder(folder):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]
    assert whole_folder(folder) == folder


def test_the_working_folder_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path.stat().st_ino
    for names in (("one", "two"), ("two", "three")):
        with draft_folder(Path(".")) as draft:
            for name in names:
                (draft / name).write_text(" ".join(names))
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
            names, " ".join(names)
        )
    assert tmp_path.stat().st_ino == place


def test_a_mount_point_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming a mount point fails with EBUSY; bind mounts look like folders."""
    rename = os.rename

    def busy(old: Any, new: Any) -> None:
        if Path(old) == tmp_path / "volume":
            raise OSError(errno.EBUSY, "Device or resource busy", str(old))
        rename(old, new)

    (tmp_path / "volume").mkdir()
    monkeypatch.setattr("os.rename", busy)
    with draft_folder(tmp_path / "volume") as draft:
        (draft / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["volume", "file"]


def test_links_are_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    for text in ("made", "replaced"):
        atomic_write(link, text)
        assert link.is_symlink() and real.read_text() == text
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "folder")
    with draft_folder(tmp_path / "way") as draft:
        (draft / "file").touch()
    assert (tmp_path / "way").is_symlink() and (tmp_path / "folder" / "file").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    atomic_write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    replace_files({path: written(tmp_path / "draft", "newer")})
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (mode, "newer")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_pipes_are_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        text = threads.submit((tmp_path / "pipe").read_text)
        atomic_write(tmp_path / "pipe", "through")
        assert text.result(timeout=10) == "through"
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_streams_are_written_to(tmp_path: Path) -> None:
    """A link to a stream, with stdout in a file that other text goes to as well."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = "from conal_rl.files import *; print(1); atomic_write(Path('link'), 'two\\n'); print(3)"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_text() == "1\ntwo\n3\n"
    assert (tmp_path / "link").is_symlink()


def test_devices_stay_devices() -> None:
    atomic_write(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()


def test_threads_may_write_one_file(tmp_path: Path) -> None:
    texts = [str(number) * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: atomic_write(tmp_path / "file", text), texts * 10))
    assert (tmp_path / "file").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_files_are_replaced_together_or_not_at_all(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, last = (tmp_path / name for name in ("old", "new", "last"))
    for path in (old, last):
        path.write_text("before")
    drafts = {
        place: written(tmp_path / f"{place.name}.draft", "after") for place in (old, new, last)
    }
    replace, calls = os.replace, iter(range(10))

    def fail_once(source: Any, place: Any) -> None:
        if next(calls) == fails:
            raise OSError(errno.EIO, "Input/output error", str(place))
        replace(source, place)

    monkeypatch.setattr("os.replace", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        replace_files(drafts)
    assert (old.read_text(), last.read_text(), new.exists()) == ("before", "before", False)
    assert {path.suffix for path in tmp_path.iterdir()} <= {"", ".draft"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".draft-")]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(CheckpointError, match=rf"^{path}: got .*, expected a readable file\. "):
        read_json(path)
