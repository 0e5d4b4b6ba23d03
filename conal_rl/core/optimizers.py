"""Torch's optimisers: their learning rate, and their state in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate, in place if it is on a device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimiser (Adam's moments), by parameter and name."""
    return {
        f"{index}.{key}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for key, tensor in slots.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimiser of the same parameters from what `optimizer_tensors` returned.

    Raises:
        ValueError: the tensors belong to different parameters.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        slots.setdefault(int(index), {})[key] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, moments in slots.items():
        for (
            tensor
        ) in moments.values():  # torch takes any shape, and a fused step then writes out of bounds
            shape = parameters[number].shape if number < len(parameters) else None
            if tensor.dim() and tensor.shape != shape:
                raise ValueError(f"optimiser: got moments {tuple(tensor.shape)}, expected {shape}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
