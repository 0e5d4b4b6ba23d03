"""The structure that a config's search begins with."""

from __future__ import annotations

from conal_rl.config import SearchConfig
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Search


def first_structure(search: SearchConfig, num_tasks: int) -> Search:
    """Return the structure that the search begins with; conal_pro's is its first stage."""
    if search.method == "ltb" or not search.purely_specific:
        return LTBSearch(search.copies)
    if search.method == "conal_pro":
        return ConalProStage.first(num_tasks)
    if search.method == "recon":
        return ReconSearch(search.specific_layers)
    return ConalSearch()
