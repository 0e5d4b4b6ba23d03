"""The method: trees, the networks they shape, the search space, conflict noticing, the search.

Imports torch alone; knows neither reinforcement learning nor any data set.
"""

from conal_rl.core.conflict import ConflictNoticing, Rule
from conal_rl.core.layers import linear_chain, module_chain
from conal_rl.core.network import TreeNetwork
from conal_rl.core.supernet import Supernet, derive
from conal_rl.core.tree import Tree

__all__ = [
    "ConflictNoticing",
    "Rule",
    "Supernet",
    "Tree",
    "TreeNetwork",
    "derive",
    "linear_chain",
    "module_chain",
]
