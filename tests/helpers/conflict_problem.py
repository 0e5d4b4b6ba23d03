"""Regressions on one encoder whose per-task gradients are known from loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conal_rl.core import Supernet, Tree, TreeNetwork
from conal_rl.core.linear_stack import LinearStack
from tests.helpers.reference import (
    make_chain,
    make_input,
    randomize,
    run_module,
    supernet_outputs,
    task_losses,
    tree_outputs,
)


@dataclass
class Problem:
    """An encoder, a head per row, and data: `tasks` regressions with random targets."""

    encoder: Supernet | TreeNetwork
    head: LinearStack
    x: Tensor
    targets: Tensor  # (task, batch, 2)

    @classmethod
    def make(
        cls, tree: Tree | int, kind: str, copies: int = 1, seed: int = 0, depth: int = 3
    ) -> Problem:
        """On a tree, or on the supernet of so many tasks."""
        torch.manual_seed(seed)
        encoder: Supernet | TreeNetwork
        if isinstance(tree, Tree):
            tasks, depth = tree.num_tasks, tree.depth
            encoder = TreeNetwork(tree.replicate(copies), make_chain(kind, depth))
        else:
            tasks = tree
            encoder = Supernet([f"task-{i}" for i in range(tasks)], make_chain(kind, depth), copies)
        randomize(encoder)
        x = make_input(kind, tasks, 3).repeat(copies, *[1] * (4 if kind == "conv" else 2))
        with torch.no_grad():
            width = encoder(x).shape[2]
        head = LinearStack(range(copies * tasks), width, 2, activation=False)
        randomize(head)
        return cls(encoder, head, x, torch.randn(tasks, 3, 2, dtype=torch.float64))

    def losses(self) -> Tensor:
        features = self.encoder(self.x)
        if features.ndim == 5:
            features = features.mean(dim=(3, 4))
        return torch.stack(task_losses(self.head(features).unbind(), self.targets))

    def losses_in_loops(self) -> list[Tensor]:
        """The same from the raw weights, one task at a time."""
        if isinstance(self.encoder, Supernet):
            features = supernet_outputs(self.encoder, self.x)
        else:
            features = tree_outputs(self.encoder, self.x)
        features = [h.mean(dim=(2, 3)) if h.ndim == 4 else h for h in features]
        outputs = [run_module(self.head, row, h) for row, h in enumerate(features)]
        return task_losses(outputs, self.targets)

    def network(self) -> nn.Module:
        return nn.ModuleList([self.encoder, self.head])


MIXED = Tree.from_branch_points([3, 4, 4, 1, 3], 3)
GROUPED = Tree.from_labels("abcde", ["aabba", "aabbc", "xybbc"])
