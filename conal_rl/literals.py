"""Names of methods and rules. The configs use them too, and they must not import torch."""

from typing import Literal

Rule = Literal["any_pair", "conflicting_tasks", "and_deeper", "consensus", "none"]
"""The gradients that a shared module drops in a conflict: `conal_rl.core.conflict.held_rows`."""

LossWeights = Literal["equal", "random", "uncertainty"]
"""How the tasks' losses are weighted: `conal_rl.core.weighting.loss_weights`."""

Precision = Literal["single", "bfloat16", "float16"]
"""The precision of a run's matrix multiplications: `conal_rl.device.choose_precision`."""

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
