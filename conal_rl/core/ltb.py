"""Learning to Branch: partially-specific modules that choose their parents.

Every layer has several copies of its module. A copy chooses its parent among the copies of the
layer before, and a task chooses its copy of the last layer, by Gumbel-softmax. Copies of the first
layer read the input. With conflict noticing it is CoNAL's ablation without purely-specific modules.

Our deviation: the choices learn from validation data, like CoNAL's gates. So the methods differ
only in their search spaces.

Source: Guo, Lee, Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from conal_rl.core.layers import Layer, LayerFactory, LayerList
from conal_rl.core.rows import is_one_input
from conal_rl.core.search_network import SearchNetwork
from conal_rl.core.tree import Tree


@dataclass(frozen=True)
class LTBSearch:
    """Makes an `LTBNetwork`.

    Attributes:
        copies: number of copies of each layer's module.

    Raises:
        ValueError: fewer than two copies, so that nothing can be chosen.
    """

    copies: int
    method: ClassVar[str] = "ltb"

    def __post_init__(self) -> None:
        if self.copies < 2:
            raise ValueError(f"copies: got {self.copies}, expected 2 or more")

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> LTBNetwork:
        """The network of the search, over a chain of modules."""
        return LTBNetwork(tasks, chain, self.copies, replicas)


class LTBNetwork(SearchNetwork):
    """All copies of all layers, run for all tasks.

    Attributes:
        gates: `(choice, copy)`; choices are the copies of layers `2..P-1`, layer by layer, then
            the tasks.
        Others: see `SearchNetwork`.
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
        # A layer's rows are (replica, copy, task): every row is one task on one copy.
        index = tuple(c for c in range(replicas * copies) for _ in tasks)
        self.layers = LayerList(make(index) for make in chain)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        rows = self._rows(x)
        # One input for all tasks goes through every copy once, unless a layer captures.
        once = is_one_input(x, rows) and not any(layer.captures for layer in self.shared_layers())
        x = x[:1].expand(self.replicas, *x.shape[1:]) if once else x.expand(rows, *x.shape[1:])
        x = x.unflatten(0, (self.replicas, -1))
        gates, first = self.gate_weights(), self.copies * (len(self.layers) - 1)
        parents = gates[:first].view(-1, self.copies, self.copies)  # of copies in layers 2..P-1
        # (replica, copy, task, batch, ...); with one input for all there is one "task".
        outputs = torch.stack([x] * self.copies, dim=1)
        for depth, layer in enumerate(self.layers):
            if depth > 0:  # copy c sums its parents p, weighted by its gates
                outputs = torch.einsum("cp,rpt...->rct...", parents[depth - 1], outputs)
            run = layer.run_modules if once else layer
            outputs = run(outputs.flatten(0, 2)).unflatten(0, outputs.shape[:3])
        outputs = outputs.expand(-1, -1, len(self.tasks), *outputs.shape[3:])
        # Task t sums the copies p of the last layer, weighted by its gates.
        return torch.einsum("tp,rpt...->rt...", gates[first:], outputs).flatten(0, 1)

    def shared_layers(self) -> list[Layer]:
        """All layers: any copy may be run by several tasks."""
        return list(self.layers) if len(self.tasks) > 1 else []

    def tree(self) -> Tree:
        """The tree of the strongest gates."""
        return Tree.from_labels(self.tasks, self._copies_of_tasks())

    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """See `SearchNetwork`."""
        copies = self._copies_of_tasks()[layer]
        return [
            (self.layers[layer], replica * self.copies + copy)
            for replica in range(self.replicas)
            for copy in copies
        ]

    def _copies_of_tasks(self) -> list[list[int]]:
        """The copy that each task runs by the strongest gates, `(layer, task)`."""
        chosen, depth = self.strongest(), len(self.layers)
        copies = [chosen[(depth - 1) * self.copies :]]
        for layer in range(depth - 1, 0, -1):
            parents = chosen[(layer - 1) * self.copies : layer * self.copies]
            copies.insert(0, [parents[copy] for copy in copies[0]])
        return copies
