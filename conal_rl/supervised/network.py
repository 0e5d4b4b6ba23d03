"""The network of all tasks: an encoder that a tree or a search shapes, and a head per task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from conal_rl.core import SearchNetwork, Structure, Tree, TreeNetwork
from conal_rl.core.conal_pro import inherit_weights
from conal_rl.device import has_bfloat16
from conal_rl.supervised.data.common import Batch
from conal_rl.supervised.decoders import Heads
from conal_rl.supervised.problem import Problem


class MultiTaskNetwork(nn.Module):
    """Predictions of every task from `(1 | task, batch, ...)`.

    Args:
        problem: whose tasks and chain of modules.
        structure: the encoder's tree, or what it is searched in.
    """

    encoder: TreeNetwork | SearchNetwork

    def __init__(self, problem: Problem, structure: Structure):
        super().__init__()
        tasks = tuple(problem.tasks)
        if isinstance(structure, Tree):
            self.encoder = TreeNetwork(structure, problem.chain)
        else:
            self.encoder = structure.network(tasks, problem.chain)
        self.heads = Heads({name: task.head() for name, task in problem.tasks.items()})
        problem.prepare(self)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Each task's prediction `(batch, ...)`."""
        return self.heads(self.encoder(inputs))

    @property
    def gates(self) -> nn.Parameter | None:
        """The gates of a search."""
        return self.encoder.gates if isinstance(self.encoder, SearchNetwork) else None

    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the gates."""
        return [p for p in self.parameters() if p is not self.gates]

    @torch.no_grad()
    def inherit_from(self, before: MultiTaskNetwork) -> None:
        """Take over what a search, or a stage of it, has learnt and this network still needs."""
        self.heads.load_state_dict(before.heads.state_dict())
        inherit_weights(self.encoder, before.encoder)


def task_losses(problem: Problem, predictions: dict[str, Tensor], batch: Batch) -> Tensor:
    """Weighted loss of each task, `(task,)`, in single precision."""
    targets, masks = batch.targets, batch.masks
    losses = [
        task.weight * task.loss(predictions[name].float(), targets[name], mask=masks[name])
        for name, task in problem.tasks.items()
    ]
    return torch.stack(losses)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Half precision where it is safe: float16 on CUDA, whose gradients want scaling, or bfloat16.

    None where bfloat16 would be slower than single precision. May be entered again and again.
    """
    if device.type == "cuda":
        return torch.autocast(device.type, torch.float16, enabled=enabled)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bfloat16(device))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    inputs = batch.inputs.to(device, non_blocking=True)
    return Batch(inputs, moved(batch.targets), moved(batch.masks))


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within, batch norm normalises by its batch as in training, but remembers nothing of it.

    The gates' step sees validation batches, of which weights and their statistics must not learn.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
