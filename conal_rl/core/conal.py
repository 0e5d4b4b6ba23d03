"""The search of CoNAL: a trunk, purely-specific modules per task, and gates (figure 1a).

Source: Yue, Zhang, Liang, "Learning Conflict-Noticed Architecture for Multi-Task Learning", AAAI
2023. Conflict noticing, the other half of CoNAL, is in `conflict.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, LayerList
from conal_rl.core.search_network import SearchNetwork, strongest
from conal_rl.core.tree import Tree


class Supernet(SearchNetwork):
    """All branch points at once, mixed by gates: `z_i = sum_p softmax(alpha_i)_p z_i^(p)`.

    The chain has `P - 1` modules. At branch point `p` (1..P) task `i` leaves the trunk after
    module `p - 1` and goes through its own modules `p..P-1`. At point `P` it stays on the trunk to
    the end. A task has one set of purely-specific modules, shared by its paths from all points.

    Attributes:
        gates: alpha, `(task, P)`.
        Others: see `SearchNetwork`.
    """

    def __init__(self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1):
        super().__init__(tasks, chain, tasks, len(chain) + 1, replicas)
        rows = range(replicas * len(self.tasks))
        trunk_of = tuple(row // len(self.tasks) for row in rows)
        self.trunk = LayerList(make(trunk_of) for make in chain)
        self.specific = LayerList(make(tuple(rows)) for make in chain)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        paths = self.paths(x)
        gates = self.gate_weights().repeat(self.replicas, 1)
        return torch.einsum("rp,rp...->r...", gates, paths)  # each row: sum_p alpha_p z^(p)

    def paths(self, x: Tensor) -> Tensor:
        """Return the outputs of all branch points, `(row, P, batch, ...)`.

        Layer `p` of a task's own modules runs the `p` paths from the points 1..p; the path from
        point `p` has just left the trunk. These are `P (P - 1) / 2` module runs per task:

            layer          1    2    3
            own modules    1    1    1      the numbers are branch points;
                                2    2      path 4 = P stays on the trunk
                                     3
        """
        rows = self._rows(x)
        if self.replicas > 1:
            x = x.expand(rows, *x.shape[1:])
        trunk = x
        paths: Tensor | None = None  # the paths that have left the trunk, `(row, path, batch, ...)`
        for shared, specific in zip(self.trunk, self.specific, strict=True):
            leaving = trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)
            paths = leaving if paths is None else torch.cat([paths, leaving], dim=1)
            paths = specific.run_paths(paths)
            trunk = shared(trunk)
        assert paths is not None
        return torch.cat([paths, trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)], dim=1)

    def specific_weights(self) -> list[nn.Parameter]:
        """The parameters of the tasks' own modules."""
        return list(self.specific.parameters())

    def shared_layers(self) -> list[Layer]:
        """The trunk, from input to output; tasks can conflict on its modules."""
        return list(self.trunk) if len(self.tasks) > 1 else []

    def tree(self) -> Tree:
        """See `derive`."""
        return derive(self.gates, self.tasks)

    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """See `SearchNetwork`."""
        tasks, points = len(self.tasks), self.strongest()
        trunk, specific = self.trunk[layer], self.specific[layer]
        return [
            (trunk, row // tasks) if points[row % tasks] > layer else (specific, row)
            for row in range(self.replicas * tasks)
        ]


@dataclass(frozen=True)
class ConalSearch:
    """Makes a `Supernet`."""

    method: ClassVar[str] = "conal"

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> Supernet:
        """The network of the search, over a chain of modules."""
        return Supernet(tasks, chain, replicas)


def derive(gates: Tensor, tasks: Sequence[str]) -> Tree:
    """Return the tree of the strongest gates, `p_i = argmax_p alpha_i`; the first wins a tie.

    Args:
        gates: alpha, `(task, P)`.
        tasks: the names of the tasks.

    Raises:
        ValueError: a gate is NaN or infinite, or the number of rows is not that of tasks.
    """
    if gates.ndim != 2 or len(gates) != len(tasks):
        raise ValueError(f"gates: got {tuple(gates.shape)}, expected a row for {len(tasks)} tasks")
    points = [point + 1 for point in strongest(gates)]
    return Tree.from_branch_points(points, depth=gates.shape[1] - 1, tasks=tuple(tasks))
