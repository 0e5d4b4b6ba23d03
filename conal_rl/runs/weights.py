"""Networks on disk and parts of checkpoints: safetensors and JSON, so that loading runs no code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
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
from conal_rl.runs.files import read_json, sync

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
"""What tensors and descriptions raise that do not belong to a network."""


def reason(error: Exception) -> str:
    """One line; torch's errors name the first parameter at fault in their second."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def is_finite(network: nn.Module) -> bool:
    """Whether every weight is."""
    return all(bool(weight.isfinite().all()) for weight in network.parameters())


def require_finite(network: nn.Module, updates: int) -> None:
    """Raise ConalError where a weight is not: a diverged one must not replace a checkpoint."""
    if not is_finite(network):
        raise diverged("a weight is not finite", updates)


def structure_to_json(structure: Structure) -> dict[str, Any]:
    """A tree or a search space as JSON types."""
    if isinstance(structure, Tree):
        return json.loads(structure.to_json())
    return {"space": structure.method, **dataclasses.asdict(structure)}


def structure_from_json(data: Any) -> Structure:
    """Inverse of `structure_to_json`.

    Raises:
        TreeError, LookupError, TypeError, ValueError: the data describe no tree or space.
    """
    if "space" not in data:
        return Tree.from_json(json.dumps(data))
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name != "space"
    }
    return _SPACES[data["space"]](**fields)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers (Adam's moments), by parameter and name."""
    return {
        f"{index}.{key}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for key, tensor in slots.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, on an optimiser of the same parameters.

    Raises:
        ValueError: the tensors are those of other parameters.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        slots.setdefault(int(index), {})[key] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, own in slots.items():
        for tensor in own.values():  # torch takes any, and a fused step runs past their ends
            shape = parameters[number].shape if number < len(parameters) else None
            if tensor.dim() and tensor.shape != shape:
                raise ValueError(f"an optimiser's moments are of shape {tuple(tensor.shape)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def write_model(folder: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `model.json` and `model.safetensors` as `folder`, replacing such a folder.

    Raises:
        CheckpointError: something else is there, or the disk refuses; what was there is as it was.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and all(map(_may_go, folder.iterdir()))):
        raise CheckpointError(
            f"{folder}: there is something else than a model; name a new folder for its weights"
        )
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        save_file({n: t.contiguous() for n, t in weights.items()}, draft / _WEIGHTS)
        digest = hashlib.sha256((draft / _WEIGHTS).read_bytes()).hexdigest()
        text = json.dumps({**about, "sha256": digest}, indent=2) + "\n"
        (draft / _JSON).write_text(text, encoding="utf-8")
        shutil.copymode(draft / _JSON, draft / _WEIGHTS)  # safetensors' own is the owner's alone
        for path in draft.iterdir():
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _may_go(path: Path) -> bool:
    """Whether it is a model's file, or what desktops and network drives leave behind."""
    litter = (".DS_Store", "Thumbs.db", "desktop.ini")
    return path.name in (_JSON, _WEIGHTS, *litter) or path.name.startswith(".nfs")


def read_model(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """What `write_model` was given, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if (folder / "model" / _JSON).is_file():
        raise CheckpointError(f"{folder}: a run's folder; its weights are in {folder / 'model'}")
    about = read_json(folder / _JSON)
    try:
        data = (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    digest = about.get("sha256") if isinstance(about, dict) else None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{folder / _WEIGHTS}: damaged, or of another network (SHA-256)")
    return about, load(data)
