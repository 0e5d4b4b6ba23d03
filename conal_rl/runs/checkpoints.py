"""Checkpoints: safetensors and JSON, so that loading one runs no code.

A checkpoint appears under its name only when it is complete. Its manifest holds the length and the
SHA-256 of every file.
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
from conal_rl.files import draft_folder, read_json

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
    """Write `checkpoints/step-NNNNNNNNN` in a run's folder and return its path.

    A complete checkpoint is never replaced: a step that is saved again gets a name that ends in
        `.1`.

    Args:
        folder: the folder of the run.
        step: the step of the whole run.
        tensors: tensors by group and name. A group becomes one safetensors file, named after it;
            the name has letters, digits, `_` and `-`.
        state: JSON types with text keys; becomes state.json.
        keep: number of the newest checkpoints that stay, this one included.

    Raises:
        CheckpointError: the disk refuses. The older checkpoints are unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    parent = folder / "checkpoints"
    older = checkpoints_of(folder)
    again = [_order(path)[1] + 1 for path in older if _order(path)[0] == step]
    final = parent / (f"step-{step:09d}" + (f".{max(again)}" if again else ""))
    try:
        parent.mkdir(exist_ok=True)
        for abandoned in parent.glob(".*"):  # a process died while it wrote or removed this one
            shutil.rmtree(abandoned, ignore_errors=True)
        with draft_folder(final) as draft:
            for group, named in tensors.items():
                # A contiguous tensor, such as replay data, is written without a copy.
                contiguous = {name: tensor.contiguous() for name, tensor in named.items()}
                save_file(contiguous, draft / _file_of(group))
            (draft / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in sorted(draft.iterdir())
            }
            # No newline at the end: a manifest that lost its last byte must not parse.
            (draft / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final}: got {error}, expected a writable folder. Free some space"
        ) from error
    for path in older[: max(0, len(older) + 1 - keep)]:
        doomed = path.with_name(f".removing-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    return final


def load_checkpoint(
    folder: Path, groups: Collection[str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return a checkpoint's tensors by group, on the CPU, and its state.

    Args:
        folder: the folder of a checkpoint, or of a run, whose newest checkpoint is loaded.
        groups: the tensor groups to read and check. None: all.

    Raises:
        CheckpointError: a file is missing or has changed; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if re.match(r"step-\d", folder.name) or (folder / _MANIFEST).is_file():
        checkpoint = folder
    else:
        complete = checkpoints_of(folder)
        if not complete:
            raise CheckpointError(
                f"{folder / 'checkpoints'}: got no complete checkpoint, expected one. "
                "Give a different run"
            )
        checkpoint = complete[-1]
    files = _read_manifest(checkpoint)
    wanted = sorted(set(files) - {_STATE} if groups is None else map(_file_of, groups))
    for name in (_STATE, *wanted):
        if name not in files:
            raise CheckpointError(
                f"{checkpoint / name}: got no such file in the manifest, expected one. "
                "Use a different checkpoint"
            )
        _check(checkpoint / name, files[name])
    try:
        tensors = {Path(name).stem: load_file(checkpoint / name) for name in wanted}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint}: got {error}, expected readable files. Check their permissions"
        ) from error
    return tensors, read_json(checkpoint / _STATE)


def _file_of(group: str) -> str:
    return f"{group}.safetensors"


def _order(checkpoint: Path) -> tuple[int, int]:
    step, _, attempt = checkpoint.name.removeprefix("step-").partition(".")
    return int(step), int(attempt or 0)


def newest_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 without one."""
    return max((_order(path)[0] for path in checkpoints_of(folder)), default=0)


def checkpoints_of(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    paths = (folder / "checkpoints").glob("step-*")
    return sorted((p for p in paths if re.fullmatch(r"step-\d+(\.\d+)?", p.name)), key=_order)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Return the length and the SHA-256 of every file of a checkpoint."""
    path = checkpoint / _MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no file, expected the manifest of a complete checkpoint. "
            "Use a different checkpoint"
        )
    manifest = read_json(path)
    try:
        files = manifest["files"]
        plain = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: got a damaged file, expected a checkpoint's manifest. "
            "Use a different checkpoint"
        ) from error
    for name in plain:
        # A name in a manifest must not lead out of the checkpoint.
        if name != _STATE and not re.fullmatch(r"[\w-]+\.safetensors", name):
            raise CheckpointError(
                f"{path}: got {name!r}, expected the name of a checkpoint's file. "
                "Use a different checkpoint"
            )
    return plain


def _check(path: Path, written: tuple[int, str]) -> None:
    """Raise CheckpointError if a file differs from what the manifest says."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no file, expected one of the checkpoint. Use a different checkpoint"
        )
    size = path.stat().st_size
    if size != written[0]:
        raise CheckpointError(
            f"{path}: got {size} bytes, expected {written[0]}. Use a different checkpoint"
        )
    if _sha256(path) != written[1]:
        raise CheckpointError(
            f"{path}: got different bytes (SHA-256), expected those that were written. "
            "Use a different checkpoint"
        )
