"""The method: trees, the networks they shape, searches for them, and conflict noticing.

It imports only torch (and torchjd in `weighting`), and knows no reinforcement learning and no data
set.
"""

from conal_rl.core.conal import ConalSearch, Supernet, derive
from conal_rl.core.conal_pro import ConalProStage
from conal_rl.core.conflict import ConflictNoticing
from conal_rl.core.linear_stack import linear_chain
from conal_rl.core.ltb import LTBSearch
from conal_rl.core.module_stack import module_chain
from conal_rl.core.recon import ReconSearch, recon_tree
from conal_rl.core.search_network import SearchNetwork
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork
from conal_rl.literals import Rule

Search = ConalSearch | ConalProStage | LTBSearch | ReconSearch
"""A search for a tree; it makes the network that is searched."""
Structure = Tree | Search
"""The shape of a network: a tree, or the search for a tree."""

__all__ = [
    "ConalProStage",
    "ConalSearch",
    "ConflictNoticing",
    "LTBSearch",
    "ReconSearch",
    "Rule",
    "Search",
    "SearchNetwork",
    "Structure",
    "Supernet",
    "Tree",
    "TreeNetwork",
    "derive",
    "linear_chain",
    "module_chain",
    "recon_tree",
]
