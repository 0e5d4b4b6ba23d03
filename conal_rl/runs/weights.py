"""Networks on disk: safetensors and JSON, so that loading one runs no code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from conal_rl.core import (
    ConalProStage,
    ConalSearch,
    LTBSearch,
    ReconSearch,
    Search,
    Structure,
    Tree,
)
from conal_rl.errors import CheckpointError, TreeError, diverged
from conal_rl.files import (
    DRAFTS,
    draft_folder,
    read_bytes,
    read_json,
    restore_folder,
    user_path,
)

_JSON, _WEIGHTS = "model.json", "model.safetensors"
_SPACES: dict[str, Callable[..., Search]] = {
    space.method: space for space in (ConalSearch, ConalProStage, LTBSearch, ReconSearch)
}

UNFIT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TreeError,
    TypeError,
    ValueError,
)
"""Errors that tensors and descriptions of a different network raise."""


def reason(error: Exception) -> str:
    """Return an error's text in one line; torch's second line names the parameter."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def is_finite(network: nn.Module) -> bool:
    """Return whether every weight of the network is finite."""
    return all(bool(weight.isfinite().all()) for weight in network.parameters())


def require_finite(network: nn.Module, updates: int) -> None:
    """Raise ConalError if a weight is not finite, so that it never replaces a sound checkpoint."""
    if not is_finite(network):
        raise diverged("a weight is not finite", updates)


def structure_to_json(structure: Structure) -> dict[str, Any]:
    """Return a tree or a search space as JSON types."""
    if isinstance(structure, Tree):
        return json.loads(structure.to_json())
    return {"space": structure.method, **dataclasses.asdict(structure)}


def structure_from_json(data: Any) -> Structure:
    """Return the tree or the search space that `structure_to_json` described.

    Raises:
        TreeError, LookupError, TypeError, ValueError: the data describe neither.
    """
    if "space" not in data:
        return Tree.from_json(json.dumps(data))
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name != "space"
    }
    return _SPACES[data["space"]](**fields)


def write_model(folder: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `model.json` and `model.safetensors` into `folder`; an older model is replaced.

    Raises:
        CheckpointError: `folder` holds other files, or the disk refuses. It is unchanged.
    """
    folder = user_path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and all(map(_may_go, folder.iterdir()))):
        raise CheckpointError(
            f"{folder}: got other files in it, expected a model or no folder. Give a new folder"
        )
    try:
        with draft_folder(folder) as draft:
            save_file({n: t.contiguous() for n, t in weights.items()}, draft / _WEIGHTS)
            digest = hashlib.sha256((draft / _WEIGHTS).read_bytes()).hexdigest()
            text = json.dumps({**about, "sha256": digest}, indent=2) + "\n"
            (draft / _JSON).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: got {error}, expected a writable folder. Give a different folder"
        ) from error


def _may_go(path: Path) -> bool:
    """Return whether a file is of a model, a draft, or litter of a desktop or a disk."""
    litter = (".DS_Store", "Thumbs.db", "desktop.ini", "lost+found")
    return path.name in (_JSON, _WEIGHTS, *litter) or path.name.startswith((".nfs", DRAFTS))


def read_model(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return what `write_model` was given, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if (folder / "model" / _JSON).is_file():
        raise CheckpointError(
            f"{folder}: got a run's folder, expected one of weights. Give {folder / 'model'}"
        )
    folder = user_path(folder)
    restore_folder(folder)
    about = read_json(folder / _JSON)
    try:
        data = read_bytes(folder / _WEIGHTS)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: got {error.strerror}, expected a readable file. Check the path"
        ) from error
    digest = about.get("sha256") if isinstance(about, dict) else None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: got different bytes (SHA-256), expected those of model.json. "
            "Restore both files"
        )
    return about, load(data)
