"""The method: trees, the networks they shape, search spaces, conflict noticing, the search.

Imports torch (and, in `weighting`, torchjd) alone; knows neither reinforcement learning nor any
data set.
"""

from conal_rl.core.conal import ConalSearch, Supernet, derive
from conal_rl.core.conal_pro import ConalProStage
from conal_rl.core.conflict import ConflictNoticing
from conal_rl.core.layers import linear_chain, module_chain
from conal_rl.core.ltb import LTBSearch
from conal_rl.core.recon import ReconSearch, recon
from conal_rl.core.search_network import SearchNetwork
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork
from conal_rl.literals import Rule

Space = ConalSearch | ConalProStage | LTBSearch | ReconSearch
"""What a search looks for a tree in."""
Structure = Tree | Space
"""What a network is shaped by, decided or not."""

__all__ = [
    "ConalProStage",
    "ConalSearch",
    "ConflictNoticing",
    "LTBSearch",
    "ReconSearch",
    "Rule",
    "SearchNetwork",
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
