"""The structure that a search begins with, and how networks learn, as a config says."""

from __future__ import annotations

import torch

from conal_rl.config import LearnerConfig, SearchConfig
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Search, Structure
from conal_rl.core.learner import LearnerSettings
from conal_rl.device import require_memory


def first_structure(search: SearchConfig, num_tasks: int) -> Search:
    """Return the structure that the search begins with; conal_pro's is its first stage."""
    if search.method == "ltb" or not search.purely_specific:
        return LTBSearch(search.copies)
    if search.method == "conal_pro":
        return ConalProStage.first(num_tasks)
    if search.method == "recon":
        return ReconSearch(search.specific_layers)
    return ConalSearch()


def require_copies_to_fit(structure: Structure, depth: int, device: torch.device) -> None:
    """Raise ConfigError if the gates of a search between copies exceed all memory."""
    if isinstance(structure, LTBSearch):
        gates = structure.copies * (1 + structure.copies * (depth - 1))
        require_memory("search.copies", structure.copies, 4 * gates, device)


def learner_settings(
    agent: LearnerConfig, search: SearchConfig, searching: bool
) -> LearnerSettings:
    """Return how the networks of a run learn; `searching`: at least one tree is still searched."""
    return LearnerSettings(
        rule=search.noticing_rule if searching else agent.rule_of_fixed_trees,
        margin=search.margin,
        smoothing=search.smoothing,
        # In a search, also of a network that CoNAL-Pro has settled before the other.
        hold=searching or agent.conflict_rule != "ignore",
        weighting=agent.weighting,
        specific_decay=search.specific_decay,
        gate_learning_rate=search.gate_learning_rate,
        gumbel_temperature=search.gumbel_temperature,
    )
