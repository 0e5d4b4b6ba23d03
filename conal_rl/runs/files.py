"""Files and folders that appear whole or not at all, and JSON whose errors take one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conal_rl.errors import CheckpointError, ConalError


@contextmanager
def draft_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; after the block, the file there replaces `path` in one step.

    If the block fails or the process dies, `path` is unchanged. The draft is next to `path`
    and has its suffix, because some writers choose a format by it. An OSError names `path`.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
    except OSError as error:
        if error.filename == str(draft):
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into; after the block, it replaces `path`.

    If the block fails, `path` is unchanged. If the process dies, `.NAME.draft` or `.NAME.old` may
    stay next to it, and the next call removes them.
    """
    draft, old = (path.with_name(f".{path.name}.{kind}") for kind in ("draft", "old"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for file in draft.iterdir():
            sync(file)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        os.rename(draft, path)
        sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


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


def read_json(path: Path, problem: type[ConalError] = CheckpointError) -> Any:
    """Return what a JSON file holds.

    Raises:
        ConalError: of the class `problem`, in one line, if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise problem(
            f"{path}: got {error.strerror}, expected a readable file. Check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise problem(f"{path}: got {error}, expected JSON. Restore the file") from error
