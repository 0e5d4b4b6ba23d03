"""Learning to Branch: partially-specific modules, each of which chooses its parent.

Guo, Lee, Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020: every layer has
several copies of its module; a copy chooses its parent among the copies one layer up, and a task
its copy of the last layer, by Gumbel-softmax. Copies of the first layer read the input. With
conflict noticing it is CoNAL's ablation without purely-specific modules.

Where we deviate: the choices step on validation data, as CoNAL's gates do, so that the methods
differ in their search spaces alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, captures, is_one_input
from conal_rl.core.search_network import SearchNetwork
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import typed


@dataclass(frozen=True)
class LTBSearch:
    """What makes a `LTBNetwork`: so many copies of each layer's module.

    Raises:
        ValueError: fewer than two copies leave nothing to choose.
    """

    copies: int
    method: ClassVar[str] = "ltb"

    def __post_init__(self) -> None:
        if self.copies < 2:
            raise ValueError(f"a choice needs two copies or more, not {self.copies}")

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> "LTBNetwork":
        """The search space over a chain of modules."""
        return LTBNetwork(tasks, chain, self.copies, replicas)


class LTBNetwork(SearchNetwork):
    """All copies of all layers, run for all tasks.

    Attributes:
        gates: `(choice, copy)`; choices are the copies of layers `2..P-1`, layer by layer, then
            the tasks.
        Others: as `SearchNetwork`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        chain: Sequence[LayerFactory],
        copies: int,
        replicas: int = 1,
    ):
        parents = [
            f"layer {n} copy {c + 1}" for n in range(2, len(chain) + 1) for c in range(copies)
        ]
        super().__init__(tasks, chain, [*parents, *tasks], copies, replicas)
        self.copies = copies
        # (replica, copy, task): every row is one task on one copy.
        index = tuple(c for c in range(replicas * copies) for _ in tasks)
        self.layers = nn.ModuleList(make(index) for make in chain)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        rows = self._rows(x)
        # What is one input for all tasks goes through every copy once, where nothing captures.
        once = is_one_input(x, rows) and not any(captures(layer) for layer in self.shared_layers())
        x = x[:1].expand(self.replicas, *x.shape[1:]) if once else x.expand(rows, *x.shape[1:])
        x = x.unflatten(0, (self.replicas, -1))
        gates, first = self.gate_weights(), self.copies * (len(self.layers) - 1)
        parents = gates[:first].view(-1, self.copies, self.copies)  # of copies in layers 2..P-1
        ways = torch.stack([x] * self.copies, dim=1)  # (replica, copy, task, batch, ...)
        for depth, layer in enumerate(self.layers):
            if depth > 0:
                ways = torch.einsum("cp,rpt...->rct...", parents[depth - 1], ways)
            ways = layer(ways.flatten(0, 2), by_module=once).unflatten(0, ways.shape[:3])
        ways = ways.expand(-1, -1, len(self.tasks), *ways.shape[3:])
        return torch.einsum("tp,rpt...->rt...", gates[first:], ways).flatten(0, 1)

    def shared_layers(self) -> list[Layer]:
        """All layers: any copy may be run by several tasks."""
        return typed(self.layers) if len(self.tasks) > 1 else []

    def tree(self) -> Tree:
        """The tree of the strongest gates."""
        return Tree.from_labels(self.tasks, self._copies_of_tasks())

    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """See `SearchNetwork`."""
        copies = self._copies_of_tasks()[layer]
        stack = typed(self.layers)[layer]
        return [(stack, r * self.copies + copy) for r in range(self.replicas) for copy in copies]

    def _copies_of_tasks(self) -> list[list[int]]:
        """The copy that each task runs by the strongest gates, `(layer, task)`."""
        chosen, depth = self.strongest(), len(self.layers)
        copies = [chosen[(depth - 1) * self.copies :]]
        for layer in range(depth - 1, 0, -1):
            parents = chosen[(layer - 1) * self.copies : layer * self.copies]
            copies.insert(0, [parents[copy] for copy in copies[0]])
        return copies
