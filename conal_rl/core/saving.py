"""Parts of checkpoints: trees and search spaces as JSON types, optimisers as named tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from conal_rl.core import BranchingSpace, ConalSpace, ProStage, ReconSpace, Space, Structure, Tree

_SPACES: dict[str, Callable[..., Space]] = {
    space.method: space for space in (ConalSpace, ProStage, BranchingSpace, ReconSpace)
}


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
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
