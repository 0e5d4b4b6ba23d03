"""The search space of CoNAL: a trunk, purely-specific modules per task, and gates (figure 1a)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core.layers import Layer, LayerFactory
from conal_rl.core.network import TreeNetwork, capturing, copy_layers, typed
from conal_rl.core.tree import Tree


class Supernet(nn.Module):
    """All branch points at once, mixed by gates: `z_i = sum_p softmax(alpha_i)_p z_i^(p)`.

    The chain has `P - 1` modules. At branch point `p` (1..P) task `i` leaves the trunk after
    module `p - 1` and goes through its own modules `p..P-1`; point `P` stays to the end. Each
    task owns one set of purely-specific modules, which the paths from different points share.

    Args:
        tasks: task names.
        chain: one layer factory per module.
        replicas: members of an ensemble (twin critics) with weights of their own that share the
            gates. Rows are member-major: `(replica * task, batch, ...)`.

    Attributes:
        gates: alpha, `(task, P)`, all ones at the start.
        gumbel_temperature: if set, training forward passes draw straight-through Gumbel-softmax
            gates at this temperature instead of the softmax.
    """

    def __init__(self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1):
        super().__init__()
        self.tasks = tuple(tasks)
        self.replicas = replicas
        rows = range(replicas * len(self.tasks))
        trunk_of = tuple(row // len(self.tasks) for row in rows)
        self._chain = list(chain)
        self.trunk = nn.ModuleList(make(trunk_of) for make in chain)
        self.specific = nn.ModuleList(make(tuple(rows)) for make in chain)
        self.gates = nn.Parameter(torch.ones(len(self.tasks), len(chain) + 1))
        self.gumbel_temperature: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        paths = self.paths(x)
        gates = self.gate_weights().repeat(self.replicas, 1)
        return torch.einsum("rp,rp...->r...", gates, paths)

    def paths(self, x: Tensor) -> Tensor:
        """The outputs of all branch points, `(row, P, batch, ...)`.

        In layer `p` a task's own module takes the `p` paths that are on it, the one just leaving
        the trunk included, in one product: `P (P - 1) / 2` module runs per task in all.
        """
        rows = self.replicas * len(self.tasks)
        if len(x) not in (1, rows):
            raise ValueError(f"expected {rows} rows, got input {tuple(x.shape)}")
        if self.replicas > 1 or capturing(self.trunk):
            x = x.expand(rows, *x.shape[1:])
        batch = x.shape[1]
        trunk, own = x, None
        for shared, specific in zip(self.trunk, self.specific, strict=True):
            leaving = trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)
            own = leaving if own is None else torch.cat([own, leaving], dim=1)
            own = specific(own.flatten(1, 2)).unflatten(1, (-1, batch))
            trunk = shared(trunk)
        assert own is not None
        return torch.cat([own, trunk.expand(rows, *trunk.shape[1:]).unsqueeze(1)], dim=1)

    def gate_weights(self) -> Tensor:
        """The mixing weights of the branch points, `(task, P)`, each row summing to one."""
        if self.training and self.gumbel_temperature is not None:
            return F.gumbel_softmax(self.gates, tau=self.gumbel_temperature, hard=True)
        return self.gates.softmax(dim=1)

    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the gates."""
        return [*self.trunk.parameters(), *self.specific.parameters()]

    def shared_layers(self) -> list[Layer]:
        """The trunk, from input to output; its modules are the ones tasks can conflict on."""
        return typed(self.trunk) if len(self.tasks) > 1 else []

    def derive(self) -> TreeNetwork:
        """The network of the strongest gates with the weights learnt so far.

        With gates that are one-hot it computes what the supernet computes.
        """
        tree = derive(self.gates, self.tasks)
        points = self.gates.argmax(dim=1).tolist()
        if self.replicas > 1:
            tree = tree.replicate(self.replicas)
        network = TreeNetwork(tree, self._chain).to(self.gates)
        tasks = len(self.tasks)
        sources = [
            [
                (trunk, row // tasks) if points[row % tasks] > layer else (specific, row)
                for row in range(self.replicas * tasks)
            ]
            for layer, (trunk, specific) in enumerate(
                zip(typed(self.trunk), typed(self.specific), strict=True)
            )
        ]
        copy_layers(network, sources)
        return network


def derive(gates: Tensor, tasks: Sequence[str]) -> Tree:
    """The tree of the strongest gates, `p_i = argmax_p alpha_i`; the earliest point wins a tie.

    Args:
        gates: alpha, `(task, P)`.

    Raises:
        ValueError: a gate is NaN, or the rows are not the tasks.
    """
    if gates.ndim != 2 or len(gates) != len(tasks):
        raise ValueError(f"expected gates of {len(tasks)} tasks, got {tuple(gates.shape)}")
    if not torch.isfinite(gates).all():
        raise ValueError("the gates hold NaN or infinity: the search diverged")
    points = [point + 1 for point in gates.argmax(dim=1).tolist()]
    return Tree.from_branch_points(points, depth=gates.shape[1] - 1, tasks=tuple(tasks))
