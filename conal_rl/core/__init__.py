"""The method: trees, the networks they shape, search spaces, conflict noticing, the search.

Imports torch (and, in `weighting`, torchjd) alone; knows neither reinforcement learning nor any
data set.
"""

from conal_rl.core.branching import BranchingSpace
from conal_rl.core.conflict import ConflictNoticing
from conal_rl.core.layers import linear_chain, module_chain
from conal_rl.core.network import TreeNetwork
from conal_rl.core.progressive import ProStage
from conal_rl.core.recon import ReconSpace, recon
from conal_rl.core.space import SearchSpace
from conal_rl.core.supernet import ConalSpace, Supernet, derive
from conal_rl.core.tree import Tree
from conal_rl.names import Rule

Space = ConalSpace | ProStage | BranchingSpace | ReconSpace
"""What a search looks for a tree in."""
Structure = Tree | Space
"""What a network is shaped by, decided or not."""

__all__ = [
    "BranchingSpace",
    "ConalSpace",
    "ConflictNoticing",
    "ProStage",
    "ReconSpace",
    "Rule",
    "SearchSpace",
    "Space",
    "Structure",
    "Supernet",
    "Tree",
    "TreeNetwork",
    "derive",
    "linear_chain",
    "module_chain",
    "recon",
]
