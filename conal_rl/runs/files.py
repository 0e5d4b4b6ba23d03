"""Files written whole or not at all, and JSON read in one line of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from conal_rl.errors import CheckpointError, ConalError


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `path` so that it holds the old or the new content whole, also if the process dies."""
    content = data.encode() if isinstance(data, str) else data
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path, problem: type[ConalError] = CheckpointError) -> Any:
    """What a JSON file holds; raises `problem`, in one line, where it cannot be read as such."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise problem(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise problem(f"{path}: is not JSON: {error}") from error


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk, so that a rename never precedes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
