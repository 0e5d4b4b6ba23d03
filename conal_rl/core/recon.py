"""Recon: layers on which tasks conflict often become task-specific.

Shi et al., "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning", ICLR
2023, algorithm 1: train with everything shared, count for each layer the pairs of tasks and steps
with a cosine below S, make the K layers of the highest counts task-specific, train again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from conal_rl.core.layers import LayerFactory
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork


@dataclass(frozen=True)
class ReconSearch:
    """Everything shared, while conflicts are counted: `specific` layers (K) will be task-specific.

    Raises:
        ValueError: no layer.
    """

    specific: int
    method: ClassVar[str] = "recon"

    def __post_init__(self) -> None:
        if self.specific < 1:
            raise ValueError(f"K counts the layers to make task-specific, from 1: {self.specific}")

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> TreeNetwork:
        """The network to count in, which has no gates: hard parameter sharing.

        Raises:
            ValueError: the chain has fewer than K modules.
        """
        if self.specific > len(chain):
            raise ValueError(f"K is {self.specific}, but there are {len(chain)} layers")
        return TreeNetwork(Tree.shared(tasks, len(chain)).replicate(replicas), chain)


def recon(tasks: Sequence[str], conflicts: Sequence[float], specific: int) -> Tree:
    """The tree in which the `specific` layers with most conflicts are each task's own.

    The others stay shared by all, also behind task-specific ones, so that tasks may meet again.

    Args:
        conflicts: how often tasks conflicted on each layer, `(layer,)`; of equal ones the earlier
            layer is made task-specific.
    """
    most = sorted(range(len(conflicts)), key=lambda layer: -conflicts[layer])[:specific]
    layers = [
        range(len(tasks)) if layer in most else [0] * len(tasks) for layer in range(len(conflicts))
    ]
    return Tree.from_labels(tasks, layers, may_rejoin=True)
