"""The interface of all searches' networks: gates over options, and the tree of the strongest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core.layers import Layer, LayerFactory
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork, copy_layers


class SearchNetwork(nn.Module, ABC):
    """Encoders of all tasks for every way of sharing, and gates that mix them.

    Rows are member-major: row `r` is task `r % tasks` of member `r // tasks`. The `replicas`
    members of an ensemble (twin critics) have separate weights and share the gates.

    Args:
        tasks: task names.
        chain: one layer factory per module.
        choices: the name of each decision, one for each row of gates.
        options: number of options of each choice.
        replicas: number of members of the ensemble.

    Attributes:
        gates: alpha, `(choice, option)`, all ones at the start.
        gumbel_temperature: if set, training forward passes draw straight-through Gumbel-softmax
            gates at this temperature instead of the softmax.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        chain: Sequence[LayerFactory],
        choices: Sequence[str],
        options: int,
        replicas: int = 1,
    ):
        super().__init__()
        self.tasks = tuple(tasks)
        self.replicas = replicas
        self.choices = tuple(choices)
        self._chain = list(chain)
        self.gates = nn.Parameter(torch.ones(len(self.choices), options, dtype=torch.float32))
        self.gumbel_temperature: float | None = None

    def gate_weights(self) -> Tensor:
        """The mixing weights of the options, `(choice, option)`, each row summing to one."""
        if self.training and self.gumbel_temperature is not None:
            return F.gumbel_softmax(self.gates, tau=self.gumbel_temperature, hard=True)
        return self.gates.softmax(dim=1)

    def weights(self) -> list[nn.Parameter]:
        """Every parameter except the gates."""
        return [p for p in self.parameters() if p is not self.gates]

    def specific_weights(self) -> list[nn.Parameter]:
        """The parameters of purely-specific modules; empty if the search has no such modules."""
        return []

    @abstractmethod
    def shared_layers(self) -> list[Layer]:
        """The layers with modules that several tasks run, from input to output."""

    def strongest(self) -> list[int]:
        """Return the strongest option of each choice; the first one wins a tie.

        Raises:
            ValueError: a gate is NaN or infinite.
        """
        return strongest(self.gates)

    @abstractmethod
    def tree(self) -> Tree:
        """The tree of the strongest gates.

        Raises:
            ValueError: a gate is NaN or infinite.
        """

    @abstractmethod
    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """The layer and module of this network that each row runs in `layer` of `tree()`.

        Args:
            layer: from 0.

        Returns:
            `(row,)`.
        """

    def derive(self) -> TreeNetwork:
        """The network of the strongest gates with the weights learnt so far.

        If the gates are one-hot, it computes the same as this network.
        """
        tree = self.tree()
        if self.replicas > 1:
            tree = tree.replicate(self.replicas)
        network = TreeNetwork(tree, self._chain).to(self.gates)
        copy_layers(network, [self.modules_of(layer) for layer in range(tree.depth)])
        return network

    def _rows(self, x: Tensor) -> int:
        rows = self.replicas * len(self.tasks)
        if len(x) not in (1, rows):
            raise ValueError(f"x: got {tuple(x.shape)}, expected {rows} rows first")
        return rows


def strongest(gates: Tensor) -> list[int]:
    """Return the index of the largest gate in each row `(choice, option)`; the first wins a tie.

    Raises:
        ValueError: a gate is NaN or infinite.
    """
    if not torch.isfinite(gates).all():
        raise ValueError("gates: got NaN or infinity, expected finite numbers: the search diverged")
    return gates.argmax(dim=1).tolist()
