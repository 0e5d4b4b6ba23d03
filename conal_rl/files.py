"""Files and folders that appear whole or not at all, and reading that never waits.

Everything that this package writes goes through a draft. The draft is in a hidden folder
`.conal_rl-*` next to its place, which is locked while its process lives. If the process dies, the
next draft in the same place finishes or removes what it has left.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from conal_rl.errors import CheckpointError, ConalError

DRAFTS = ".conal_rl-"
"""How the names of the hidden folders of drafts begin."""
PIPE_SECONDS = 10.0
"""Seconds that a pipe may be without a reader before it is given up."""
_READY, _KEPT = "ready", ".kept-"


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a user named; `~` is the home folder, also behind `--option=`."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # no user has this name
        return path


# Reading


def require_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file or a link to one; nothing is opened.

    To read a pipe would wait for its writer, and to read /dev/zero would never end.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise OSError(errno.EINVAL, f"{kind} instead of a file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also for a folder, a pipe or a device."""
    require_regular(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    r"""Return the text of a UTF-8 file, with `\n` at the end of each line and without a BOM.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: the file is not UTF-8.
    """
    text = read_bytes(path).decode("utf-8").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file by column. Raises as `read_text`, or csv.Error."""
    return list(csv.DictReader(io.StringIO(read_text(path))))


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


# Writing


def atomic_write(path: Path, data: bytes | str, through: bool = False) -> None:
    """Write `path` so that readers see the old content or the new one, and both are whole.

    Text becomes UTF-8. `through` is that of `draft_file`.
    """
    with draft_file(path, through) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, content: Any, indent: int | None = 2, through: bool = False) -> None:
    """Write JSON to `path`, as `atomic_write` does."""
    atomic_write(path, json.dumps(content, indent=indent) + "\n", through)


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """Write several files, as `draft_files` does: all of them or none."""
    with draft_files(*files) as drafts:
        for draft, data in zip(drafts, files.values(), strict=True):
            draft.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def draft_file(path: Path, through: bool = False) -> Iterator[Path]:
    """Yield a path to write to; after the block, the file there replaces `path` in one step.

    Args:
        path: the place of the file; of a link, the file that it leads to. If the block fails or
            the process dies, it is unchanged. An OSError names it. A file that was there keeps its
            mode. The draft has the same name, because some writers choose a format by it.
        through: a user has named `path` for output. A pipe or a device, such as /dev/stdout, then
            receives the file's content. Without it they are refused, as in `draft_files`.
    """
    target = _behind_links(path)
    if not through or _can_be_replaced(target):
        with draft_files(path) as (draft,):
            yield draft
        return
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        yield draft
        with _naming(path, target):
            _pour(draft, target)


@contextmanager
def draft_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield a path to write to for each path; after the block, all of them are replaced, or none.

    A replacement that fails or is interrupted puts back what was there. Only a process that dies
    among the replacements leaves some files old and some new.

    Raises:
        OSError: the disk refuses, or a path is a folder, a pipe or a device.
    """
    with ExitStack() as stack:
        moves: dict[Path, Path] = {}
        fresh: dict[Path, int] = {}
        for path in paths:
            target = _behind_links(path)
            stack.enter_context(_naming(path, target))
            if os.path.lexists(target):
                require_regular(target)
            private = stack.enter_context(_private(target.parent, path))
            stack.enter_context(_naming(path, private))
            draft = private / target.name
            moves[draft], fresh[draft] = target, _fresh_mode(private)
        yield list(moves)
        for draft, target in moves.items():
            _sync(draft)
            _keep_mode(draft, target, fresh[draft])
        _replace(moves)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into; after the block, `path` has these files.

    A new folder appears in one step. In a folder that exists, the new files replace those of the
    same names, all of them or none, and other files stay. It may therefore be a mount point, the
    working folder, or a folder whose parent cannot be written. If the process dies among the
    replacements, the next `draft_folder` or `restore_folder` continues them.

    Raises:
        OSError: the disk refuses; `path` is unchanged.
    """
    path = path.resolve()
    restore_folder(path)
    there = path.is_dir()
    if not there:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _private(path if there else path.parent, path) as private, _naming(path, private):
        draft = private / "draft"
        draft.mkdir()
        yield draft
        for file in draft.iterdir():
            _sync(file)
            _keep_mode(file, path / file.name, _fresh_mode(private))
        if there or not _appears(draft, path):
            _fill(path, draft)
    for left in _left_by_old_versions(path):
        shutil.rmtree(left, ignore_errors=True)


def _appears(draft: Path, path: Path) -> bool:
    """Make a draft the new folder `path`; return False if a different thread has just made it."""
    try:
        os.rename(draft, path)
    except OSError:
        if path.is_dir():
            return False
        raise
    _sync(path.parent)
    return True


def _fill(folder: Path, draft: Path) -> None:
    """Move the files of a draft into a folder, all of them or none."""
    with _private(folder, folder) as private:
        turn = _lock(folder, wait=True)
        try:
            ready = private / _READY
            os.rename(draft, ready)  # from here on, a later process would continue
            _replace({file: folder / file.name for file in ready.iterdir()})
            _sync(folder)
        finally:
            if turn is not None:
                os.close(turn)


def restore_folder(path: Path) -> None:
    """Finish what a process began that died while it wrote the folder `path`.

    Version 0.1.0 moved the older folder away before the newer one came. The newer one now comes, or
    the older one comes back.
    """
    path = path.resolve()
    old, draft = _left_by_old_versions(path)
    with suppress(OSError):  # a folder that may only be read stays as it is
        if old.is_dir() and not path.exists():
            os.rename(draft if draft.is_dir() else old, path)  # the draft was whole by then
        _finish_dead(path)


def _left_by_old_versions(path: Path) -> tuple[Path, Path]:
    return path.parent / f".{path.name}.old", path.parent / f".{path.name}.draft"


# Places


def _behind_links(path: Path) -> Path:
    """Return the place that a link leads to; a link to a file that a process has open stays."""
    path = path.absolute()  # the working folder may change while a draft is written
    for _ in range(40):
        if not path.is_symlink():
            return path
        folder = path.parent.resolve()
        if re.fullmatch(r"/proc/.+/fd", str(folder)):  # /dev/stdout leads here
            return folder / path.name
        path = folder / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_writable(path: Path) -> bool:
    """Return whether `draft_file` may write `path`, a file that a user has named for output."""
    target = _behind_links(path)
    there = os.path.lexists(target)
    return not target.is_dir() and os.access(target if there else target.parent, os.W_OK)


def _can_be_replaced(target: Path) -> bool:
    """Return whether a new file may take the place of `target`, which `_behind_links` returned."""
    if not os.path.lexists(target):
        return True
    regular = target.is_file() and not target.is_symlink()
    return regular and os.access(target.parent, os.W_OK)


def _pour(draft: Path, target: Path) -> None:
    """Write a file's content into a pipe, a device, or a file that cannot be replaced."""
    place: Path | int = target
    if target.is_fifo():
        place = _opened_pipe(target)
    elif target.parent == Path(f"/proc/{os.getpid()}/fd"):  # its position is that of our own stream
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        place = os.dup(int(target.name))
    with draft.open("rb") as source, open(place, "ab" if target.is_symlink() else "wb") as sink:
        shutil.copyfileobj(source, sink)


def _opened_pipe(path: Path) -> int:
    """Open a pipe for writing, and wait a little for a reader: without one it would be for ever."""
    end = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise OSError(errno.ENXIO, "a pipe that nobody reads", str(path)) from error
            time.sleep(0.02)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


@contextmanager
def _naming(path: Path, inner: Path) -> Iterator[None]:
    """Let an OSError about the place `inner`, or a file in it, name `path` instead."""
    try:
        yield
    except OSError as error:
        named = error.filename
        ours = isinstance(named, str) and Path(named).is_relative_to(inner)
        if ours or (named is None and error.errno is not None):
            error.filename = str(path)
            del error.filename2  # with None, the message would name it too
        raise


# Drafts


@contextmanager
def _private(parent: Path, path: Path) -> Iterator[Path]:
    """Make a hidden folder in `parent` for drafts of `path`. It is locked, and later removed."""
    _finish_dead(parent)
    try:
        folder, lock = _new_locked(parent)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _new_locked(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=DRAFTS, dir=parent))
        with suppress(FileNotFoundError):
            lock = _lock(folder, wait=True)
            if folder.is_dir():  # no process has taken it for a dead one's before it was locked
                return folder, lock
            if lock is not None:
                os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder until the descriptor is closed; None if a process has it, or it cannot be."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # it is locked, or a network file system cannot lock folders
        os.close(descriptor)
        return None
    return descriptor


def _finish_dead(folder: Path) -> None:
    """Continue or remove what processes that died have left in `folder`."""
    for left in folder.glob(f"{DRAFTS}*"):
        with suppress(OSError):  # it belongs to a different user
            lock = _lock(left, wait=False)
            if lock is None:
                continue
            try:
                for file in (left / _READY).glob("*"):
                    if not file.name.startswith(_KEPT):
                        os.replace(file, folder / file.name)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def _fresh_mode(private: Path) -> int:
    """Return the mode that the umask gives to new files; to ask for the umask would set it."""
    probe = private / ".mode"
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)


def _keep_mode(draft: Path, target: Path, fresh: int) -> None:
    """Give a draft the mode and the owner of the file that it replaces, or the mode `fresh`."""
    there = target.stat() if target.exists() else None
    if there is not None:
        with suppress(OSError):  # only root may give files away
            os.chown(draft, there.st_uid, there.st_gid)
    with suppress(OSError):  # some file systems have no modes
        draft.chmod(fresh if there is None else stat.S_IMODE(there.st_mode))


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, so that a rename never precedes them."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(moves: Mapping[Path, Path]) -> None:
    """Move each draft to its place; if one of several cannot move, put back what was there."""
    if len(moves) == 1:
        _move(*next(iter(moves.items())))
        return
    begun: dict[Path, Path | None] = {}  # each place, and a second name of the file before
    try:
        for number, (draft, target) in enumerate(moves.items()):
            kept = draft.with_name(f"{_KEPT}{number}") if os.path.lexists(target) else None
            if kept is not None:
                _keep(target, kept)
            begun[target] = kept
            _move(draft, target)
    except BaseException:
        for target, kept in reversed(begun.items()):
            with suppress(OSError):  # the others still come back
                if kept is None:
                    target.unlink(missing_ok=True)
                else:
                    os.replace(kept, target)
        raise


def _keep(target: Path, kept: Path) -> None:
    try:
        os.link(target, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):  # some file systems have no links
        shutil.copy2(target, kept, follow_symlinks=False)


def _move(draft: Path, target: Path) -> None:
    try:
        os.replace(draft, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _pour(draft, target)  # a file that is mounted takes only content
