"""Files and folders that appear whole or not at all, and readers that take only regular files."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conal_rl.errors import CheckpointError, ConalError

_DRAFT = f".draft-{zlib.crc32(platform.node().encode()):08x}-"
_COUNT = itertools.count()
_SWAPPING = threading.Lock()
_IN_PLACE = (errno.EBUSY, errno.EXDEV)
"""Errors of a rename onto a mount point, whose content can still be written."""


# Writing


@contextmanager
def draft_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; after the block, the file there becomes the content of `path`.

    A regular file is replaced in one step and keeps its mode. A link is followed. A pipe or a
    device is written to. If the block fails, `path` is unchanged. A draft that a killed process
    left is removed by the next draft in the same folder. The draft has the suffix of `path`,
    because some writers choose a format by it. An OSError names `path`.
    """
    target = _replaceable(path)
    if target is None:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / f"draft{path.suffix}"
            yield draft
            _write_into(path, draft)
        return
    with new_draft(target) as draft:
        try:
            yield draft
            with contextlib.suppress(FileNotFoundError):
                os.chmod(draft, stat.S_IMODE(target.stat().st_mode))
            sync(draft)
            try:
                os.replace(draft, target)
            except OSError as error:
                if error.errno not in _IN_PLACE:
                    raise
                _write_into(target, draft)
        except OSError as error:
            if error.filename == str(draft):
                error.filename = str(path)
            raise


@contextmanager
def new_draft(target: Path) -> Iterator[Path]:
    """Yield a new path next to `target`; a file that is still there after the block is removed."""
    _remove_abandoned(target.parent)
    draft = target.parent / _draft_name(target.suffix)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into; after the block, it replaces `path`.

    A mount point, the working folder and a folder in a read-only one keep their place; their files
    are replaced. If the block fails, `path` is unchanged. What a killed process left is removed by
    the next call; `whole_folder` finds the old folder until then.
    """
    path = Path(os.path.realpath(path))
    old = _old(path)
    swaps = _may_be_renamed(path)
    parent = path.parent if swaps else path
    parent.mkdir(parents=True, exist_ok=True)
    if old.is_dir() and not path.exists():
        os.rename(old, path)
    _remove_abandoned(parent)
    draft = parent / _draft_name("")
    draft.mkdir()
    try:
        yield draft
        for file in draft.iterdir():
            sync(file)
        if not (swaps and _swap(draft, path, old)):
            others = {file for file in path.iterdir() if file.name != draft.name}
            drafts = {path / file.name: file for file in draft.iterdir()}
            replace_files(drafts)
            for file in others - drafts.keys():
                file.unlink()
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def whole_folder(path: Path) -> Path:
    """Return `path`, or the old folder if a process was killed while `draft_folder` replaced it."""
    old = _old(Path(os.path.realpath(path)))
    return old if old.is_dir() and not path.exists() else path


def replace_files(drafts: Mapping[Path, Path]) -> None:
    """Move drafts to their places: all of them, or none if one cannot be moved.

    Args:
        drafts: for each place, the file that shall be there. It is in the same file system.
    """
    before: dict[Path, Path] = {}
    begun: list[Path] = []
    with contextlib.ExitStack() as stack:
        for place, draft in drafts.items():
            if place.exists():
                before[place] = stack.enter_context(new_draft(place))
                shutil.copy2(place, before[place])
                shutil.copymode(place, draft)
        try:
            for place, draft in drafts.items():
                begun.append(place)
                os.replace(draft, place)
        except BaseException:
            for place in begun:
                if place in before:
                    os.replace(before[place], place)
                else:
                    place.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, so that a rename never precedes them."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `path` so that readers see the old content or the new one, and both are whole."""
    with draft_file(path) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON to `path`, as `atomic_write` does."""
    atomic_write(path, json.dumps(content, indent=indent) + "\n")


# Reading


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        OSError: it cannot be read, or it is a pipe, a device or a folder. None of them is waited
            for.
    """
    waits_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | waits_not)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, kind, str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8, with every line end as a newline.

    Raises:
        OSError: see `open_regular`.
        ValueError: it is not UTF-8.
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        return file.read()


def read_json(path: Path, problem: type[ConalError] = CheckpointError) -> Any:
    """Return what a JSON file holds.

    Raises:
        ConalError: of the class `problem`, in one line, if the file is missing or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise problem(
            f"{path}: got {error.strerror}, expected a readable file. Check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise problem(f"{path}: got {error}, expected JSON. Restore the file") from error


# Places


def user_path(text: str) -> Path:
    """Return the path that a user typed; `~` is the home folder."""
    return Path(os.path.expanduser(text))


def _draft_name(suffix: str) -> str:
    """Return the name of a draft: its machine, its process and a token that nobody else has."""
    token = f"{os.getpid()}-{next(_COUNT)}{secrets.token_hex(4)}"
    return f"{_DRAFT}{token}{suffix if len(suffix) <= 16 else ''}"


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove_abandoned(folder: Path) -> None:
    """Remove the drafts of processes that have ended on this machine."""
    for draft in folder.glob(f"{_DRAFT}*"):
        process = re.match(r"\d+", draft.name.removeprefix(_DRAFT))
        if process is None or _alive(int(process[0])):
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "posix":  # there os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _replaceable(path: Path) -> Path | None:
    """Return the regular file to replace, or to make; None if `path` can only be written to."""
    if _stream(path) is not None:
        return None
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except OSError:
        return target  # the write says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return None
    in_place = stat.S_ISREG(mode) and not os.access(target.parent, os.W_OK)
    return None if in_place else target


def _stream(path: Path) -> int | None:
    """Return the number of this process's stream that `path` leads to, such as /dev/stdout."""
    here = os.path.abspath(path)
    for _ in range(40):
        if own := re.fullmatch(rf"(?:/dev|/proc/(?:self|{os.getpid()}))/fd/(\d+)", here):
            return int(own[1])
        if not os.path.islink(here):
            break
        here = os.path.abspath(os.path.join(os.path.dirname(here), os.readlink(here)))
    return None


def _write_into(path: Path, draft: Path) -> None:
    """Write the bytes of a draft to what is at `path`, without a new file."""
    stream = _stream(path)
    sys.stdout.flush()
    opened = os.open(path, os.O_WRONLY | os.O_TRUNC) if stream is None else os.dup(stream)
    with os.fdopen(opened, "wb") as file:
        file.write(draft.read_bytes())


def _may_be_renamed(path: Path) -> bool:
    """Return whether the folder can give its place to a new one."""
    with contextlib.suppress(OSError):  # the working folder may be gone
        working = Path(os.path.realpath(os.getcwd()))
        if path in (working, *working.parents):
            return False
    if not path.exists():
        return True
    return not os.path.ismount(path) and os.access(path.parent, os.W_OK)


def _swap(draft: Path, path: Path, old: Path) -> bool:
    """Put the folder `draft` in the place of `path`; False if `path` is a mount point."""
    with _SWAPPING:
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            try:
                os.rename(path, old)
            except OSError as error:
                if error.errno in _IN_PLACE:
                    return False
                raise
        try:
            os.rename(draft, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    return True
