"""The network of all tasks: an encoder built from a tree or a search, and one head per task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from conal_rl.config import SupervisedConfig
from conal_rl.core import Structure, Tree
from conal_rl.core.conal_pro import inherit_weights
from conal_rl.core.encoder import EncoderNetwork, make_encoder
from conal_rl.errors import TreeError
from conal_rl.files import user_path
from conal_rl.literals import Precision
from conal_rl.supervised.data.common import Batch
from conal_rl.supervised.decoders import Heads
from conal_rl.supervised.problem import Problem


class MultiTaskNetwork(EncoderNetwork):
    """Maps inputs `(1 | task, batch, ...)` to the predictions of every task.

    Args:
        problem: its tasks and its chain of modules are used.
        structure: the encoder's tree, or the search space of the tree.
    """

    def __init__(self, problem: Problem, structure: Structure):
        super().__init__()
        self.encoder = make_encoder(structure, tuple(problem.tasks), problem.chain)
        self.heads = Heads({name: task.head() for name, task in problem.tasks.items()})
        problem.prepare(self)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's prediction `(batch, ...)`."""
        return self.heads(self.encoder(inputs))

    @torch.no_grad()
    def inherit_from(self, before: MultiTaskNetwork) -> None:
        """Copy the weights that this network shares with `before`, a search or a stage of it."""
        self.heads.load_state_dict(before.heads.state_dict())
        inherit_weights(self.encoder, before.encoder)


def task_losses(problem: Problem, predictions: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the weighted loss of each task, `(task,)`, in single precision."""
    targets, masks = batch.targets, batch.masks
    losses = [
        task.weight * task.loss(predictions[name].float(), targets[name], mask=masks[name])
        for name, task in problem.tasks.items()
    ]
    return torch.stack(losses)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context that computes matrix multiplications in this precision.

    Gradients of float16 need scaling. The context can be entered repeatedly.
    """
    half = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision != "single")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a different device."""

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    inputs = batch.inputs.to(device, non_blocking=True)
    return Batch(inputs, moved(batch.targets), moved(batch.masks))


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside this context, batch norm uses the batch's statistics but does not update its own.

    The gates are trained on validation batches. These batches must not change the weights or the
    running statistics.
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


def fixed_tree(config: SupervisedConfig, tasks: tuple[str, ...]) -> Tree | None:
    """Return the tree that `agent.tree` names, or None for a search.

    Raises:
        TreeError: the file cannot be read, or its tree does not fit.
    """
    depth = config.agent.depth
    if config.agent.tree == "search":
        return None
    if config.agent.tree == "shared":
        return Tree.shared(tasks, depth)
    if config.agent.tree == "independent":
        return Tree.independent(tasks, depth)
    path = user_path(config.agent.tree)
    tree = Tree.load(path)
    try:
        return tree.check(tasks, depth)
    except TreeError as error:
        raise TreeError(f"{path}: {error}. Use a tree of this data set and encoder") from error
