"""Names of methods and rules, for the core and for configs, which do not import torch."""

from typing import Literal

Rule = Literal["any_pair", "conflicting_tasks", "and_deeper", "consensus", "none"]
"""What is held in a shared module where tasks conflict: `conal_rl.core.conflict.held_rows`."""

LossWeights = Literal["equal", "random", "uncertainty"]
"""How the tasks' losses are weighted: `conal_rl.core.weighting.loss_weights`."""

AggregationName = Literal[
    "pcgrad",
    "cagrad",
    "gradvac",
    "mgda",
    "imtl_g",
    "nash_mtl",
    "aligned_mtl",
    "graddrop",
    "upgrad",
]
"""How the tasks' gradients are aggregated: `conal_rl.core.weighting.Aggregation`."""
