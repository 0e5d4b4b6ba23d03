"""The search space of CoNAL: a trunk, purely-specific modules per task, and gates (figure 1a)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, LinearStack
from conal_rl.core.search_network import SearchNetwork, strongest
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import typed


class Supernet(SearchNetwork):
    """All branch points at once, mixed by gates: `z_i = sum_p softmax(alpha_i)_p z_i^(p)`.

    The chain has `P - 1` modules. At branch point `p` (1..P) task `i` leaves the trunk after
    module `p - 1` and goes through its own modules `p..P-1`; point `P` stays to the end. Each
    task owns one set of purely-specific modules, which the paths from different points share.

    Attributes:
        gates: alpha, `(task, P)`.
        Others: as `SearchNetwork`.
    """

    def __init__(self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1):
        super().__init__(tasks, chain, tasks, len(chain) + 1, replicas)
        rows = range(replicas * len(self.tasks))
        trunk_of = tuple(row // len(self.tasks) for row in rows)
        self.trunk = nn.ModuleList(make(trunk_of) for make in chain)
        self.specific = nn.ModuleList(make(tuple(rows)) for make in chain)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        paths = self.paths(x)
        gates = self.gate_weights().repeat(self.replicas, 1)
        return torch.einsum("rp,rp...->r...", gates, paths)

    def paths(self, x: Tensor) -> Tensor:
        """The outputs of all branch points, `(row, P, batch, ...)`.

        In layer `p` a task's own module takes the `p` paths that are on it, the one just leaving
        the trunk included: `P (P - 1) / 2` module runs per task in all. Linear layers take them in
        one product, other modules one after another, as batch norm must not mix them.
        """
        rows = self._rows(x)
        if self.replicas > 1:
            x = x.expand(rows, *x.shape[1:])
        batch = x.shape[1]
        trunk, own = x, None
        for shared, specific in zip(self.trunk, self.specific, strict=True):
            leaving = trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)
            own = leaving if own is None else torch.cat([own, leaving], dim=1)
            if isinstance(specific, LinearStack):
                own = specific(own.flatten(1, 2)).unflatten(1, (-1, batch))
            else:
                own = torch.stack([specific(path) for path in own.unbind(1)], dim=1)
            trunk = shared(trunk)
        assert own is not None
        return torch.cat([own, trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)], dim=1)

    def specific_weights(self) -> list[nn.Parameter]:
        """The parameters of the tasks' own modules."""
        return list(self.specific.parameters())

    def shared_layers(self) -> list[Layer]:
        """The trunk, from input to output; its modules are the ones tasks can conflict on."""
        return typed(self.trunk) if len(self.tasks) > 1 else []

    def tree(self) -> Tree:
        """See `derive`."""
        return derive(self.gates, self.tasks)

    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """See `SearchNetwork`."""
        tasks, points = len(self.tasks), self.strongest()
        trunk, specific = typed(self.trunk)[layer], typed(self.specific)[layer]
        return [
            (trunk, row // tasks) if points[row % tasks] > layer else (specific, row)
            for row in range(self.replicas * tasks)
        ]


@dataclass(frozen=True)
class ConalSearch:
    """What makes a `Supernet`."""

    method: ClassVar[str] = "conal"

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> Supernet:
        """The search space over a chain of modules."""
        return Supernet(tasks, chain, replicas)


def derive(gates: Tensor, tasks: Sequence[str]) -> Tree:
    """The tree of the strongest gates, `p_i = argmax_p alpha_i`; the earliest point wins a tie.

    Args:
        gates: alpha, `(task, P)`.

    Raises:
        ValueError: a gate is NaN or infinite, or the rows are not the tasks.
    """
    if gates.ndim != 2 or len(gates) != len(tasks):
        raise ValueError(f"expected gates of {len(tasks)} tasks, got {tuple(gates.shape)}")
    points = [point + 1 for point in strongest(gates)]
    return Tree.from_branch_points(points, depth=gates.shape[1] - 1, tasks=tuple(tasks))
