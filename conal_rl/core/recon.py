"""Recon: layers on which tasks conflict often become task-specific.

Train with everything shared. Count for each layer the pairs of tasks and steps with a cosine below
S. Make the K layers of the highest counts task-specific, and train again.

Source: Shi et al., "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning",
ICLR 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from conal_rl.core.layers import LayerFactory
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork


@dataclass(frozen=True)
class ReconSearch:
    """Makes a network in which everything is shared, and conflicts are counted.

    Attributes:
        specific: number of layers that become task-specific (K).

    Raises:
        ValueError: fewer than one layer.
    """

    specific: int
    method: ClassVar[str] = "recon"

    def __post_init__(self) -> None:
        if self.specific < 1:
            raise ValueError(f"specific: got {self.specific}, expected 1 or more layers")

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> TreeNetwork:
        """Return the network in which conflicts are counted: hard parameter sharing, no gates.

        Raises:
            ValueError: the chain has fewer than K modules.
        """
        if self.specific > len(chain):
            raise ValueError(
                f"specific: got {self.specific}, expected at most {len(chain)}, the chain's length"
            )
        return TreeNetwork(Tree.shared(tasks, len(chain)).replicate(replicas), chain)


def recon_tree(tasks: Sequence[str], conflicts: Sequence[float], specific: int) -> Tree:
    """Return the tree in which the layers with most conflicts are task-specific.

    All other layers stay shared by all tasks, even after a task-specific layer. So tasks may share
    again.

    Args:
        tasks: the names of the tasks.
        conflicts: number of conflicts on each layer, `(layer,)`. If counts are equal, the earlier
            layer becomes task-specific.
        specific: number of layers that become task-specific (K).
    """
    most = sorted(range(len(conflicts)), key=lambda layer: -conflicts[layer])[:specific]
    layers = [
        range(len(tasks)) if layer in most else [0] * len(tasks) for layer in range(len(conflicts))
    ]
    return Tree.from_labels(tasks, layers, may_rejoin=True)
