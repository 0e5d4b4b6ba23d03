"""Checkpoints: safetensors and JSON, so that loading one runs no code.

Each appears under its name only when it is complete. Its manifest holds the length and the SHA-256
of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conal_rl.errors import CheckpointError
from conal_rl.runs.files import read_json, sync

if TYPE_CHECKING:
    from torch import Tensor

_MANIFEST = "manifest.json"
_STATE = "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 1,
) -> Path:
    """Write `checkpoints/step-NNNNNNNNN` in a run's folder; return its path.

    Each group in `tensors` becomes one safetensors file, so its name is letters, digits, `_`, `-`;
    `state` (JSON types, text keys) becomes state.json. All but the newest `keep` checkpoints are
    removed once the new one is complete. A step saved twice gets `.1` behind its name, since a
    complete checkpoint is never replaced. Raises CheckpointError where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    parent = folder / "checkpoints"
    draft = parent / f".saving-step-{step:09d}"
    try:
        parent.mkdir(exist_ok=True)
        for abandoned in parent.glob(".*ing-*"):  # by a process that died in here
            shutil.rmtree(abandoned)
        draft.mkdir()
        for group, named in tensors.items():
            # A tensor that is contiguous, as replay data is, goes to the file without a copy.
            save_file({name: t.contiguous() for name, t in named.items()}, draft / _file_of(group))
        (draft / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in draft.glob("*.safetensors"):  # whose own mode is the owner's alone
            shutil.copymode(draft / _STATE, path)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(draft.iterdir())
        }
        # No newline at the end: a manifest that lost its last byte must not parse.
        (draft / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
        for path in draft.iterdir():
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"{draft}: cannot be written: {error}") from error

    older = checkpoints_of(folder)
    again = [_order(path)[1] + 1 for path in older if _order(path)[0] == step]
    final = parent / (f"step-{step:09d}" + (f".{max(again)}" if again else ""))
    os.rename(draft, final)
    sync(parent)
    for path in older[: max(0, len(older) + 1 - keep)]:
        doomed = path.with_name(f".removing-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    return final


def load_checkpoint(
    folder: Path, groups: Collection[str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return tensors, on the CPU, and state of a run's newest checkpoint, or of that in `folder`.

    `groups` names the tensor groups wanted; None: all. Others are neither read nor checked.
    Raises CheckpointError, naming the file, where one is missing or not as it was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if re.match(r"step-\d", folder.name) or (folder / _MANIFEST).is_file():
        checkpoint = folder
    else:
        complete = checkpoints_of(folder)
        if not complete:
            raise CheckpointError(f"{folder / 'checkpoints'}: no complete checkpoint")
        checkpoint = complete[-1]
    files = _read_manifest(checkpoint)
    wanted = sorted(set(files) - {_STATE} if groups is None else map(_file_of, groups))
    for name in (_STATE, *wanted):
        if name not in files:
            raise CheckpointError(f"{checkpoint / name}: not part of this checkpoint")
        _check(checkpoint / name, files[name])
    try:
        tensors = {Path(name).stem: load_file(checkpoint / name) for name in wanted}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot be read: {error}") from error
    return tensors, read_json(checkpoint / _STATE)


def _file_of(group: str) -> str:
    return f"{group}.safetensors"


def _order(checkpoint: Path) -> tuple[int, int]:
    step, _, attempt = checkpoint.name.removeprefix("step-").partition(".")
    return int(step), int(attempt or 0)


def checkpoints_of(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((p for p in found if re.fullmatch(r"step-\d+(\.\d+)?", p.name)), key=_order)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Return length and SHA-256 of each of the checkpoint's files."""
    path = checkpoint / _MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, the checkpoint is not complete")
    manifest = read_json(path)
    try:
        files = manifest["files"]
        plain = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, not a checkpoint's manifest") from error
    for name in plain:
        # A name from a stranger's manifest must not lead out of the checkpoint.
        if name != _STATE and not re.fullmatch(r"[\w-]+\.safetensors", name):
            raise CheckpointError(f"{path}: damaged, {name!r} is no checkpoint file")
    return plain


def _check(path: Path, written: tuple[int, str]) -> None:
    """Raise CheckpointError where a file is not as the manifest says it was written."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    size = path.stat().st_size
    if size != written[0]:
        raise CheckpointError(f"{path}: has {size} bytes, not the {written[0]} written")
    if _sha256(path) != written[1]:
        raise CheckpointError(f"{path}: altered since it was written")
