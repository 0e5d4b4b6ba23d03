"""A learner's gates and conflicts, which explain its tree, for logs and reports."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from conal_rl.core import SearchNetwork, Tree
from conal_rl.core.learner import Learner


def gate_weights(learner: Learner) -> dict[str, list[float]]:
    """Return the softmax of each choice's gates, by the choice's name; empty without gates."""
    if not isinstance(learner.encoder, SearchNetwork):
        return {}
    weights = learner.encoder.gates.softmax(dim=1).tolist()
    return dict(zip(learner.encoder.choices, weights, strict=True))


def log_scalars(learner: Learner, name: str) -> dict[str, float]:
    """Return gates and conflicts for a log, by tag; `name` is the network's.

    The tags begin with `tree_`, so that TensorBoard shows them below returns and success.
    """
    scalars = {
        f"tree_gates_{name}/{choice}/{option}": weight
        for choice, row in gate_weights(learner).items()
        for option, weight in enumerate(row, start=1)
    }
    if learner.noticing is None:
        return scalars
    numbers = _layer_numbers(learner)
    for layer, share in zip(numbers, learner.noticing.recently_negative(), strict=False):
        scalars[f"tree_conflicts_{name}/negative/{layer}"] = share
    statistics = learner.noticing.statistics()
    if statistics is None:
        return scalars
    for rule, held in statistics.module_held.items():
        shares = statistics.of_layers(held).tolist()
        for layer, share in zip(numbers, shares, strict=True):
            scalars[f"tree_held_{name}/{rule}/{layer}"] = share
    return scalars


def findings(learner: Learner) -> dict[str, Any]:
    """Return gates and conflicts as JSON types.

    Conflicts are `(layer, task)` and `(layer, task, task)`, means over the members of an ensemble.
    `layers` has the numbers, from 1, of the layers with a shared module.
    """
    report: dict[str, Any] = {"gates": gate_weights(learner)}
    noticing = learner.noticing
    statistics = noticing.statistics() if noticing else None
    if noticing is None or statistics is None:
        return report
    tasks = len(learner.tasks)

    def rounded(values: Tensor) -> Any:
        return values.numpy().round(4).tolist()

    return report | {
        "rule": noticing.rule,
        "layers": _layer_numbers(learner),
        "module_held": {
            rule: rounded(statistics.of_layers(held))
            for rule, held in statistics.module_held.items()
        },
        "task_dropped": {
            rule: rounded(held.unflatten(1, (-1, tasks)).mean(dim=1))
            for rule, held in statistics.held.items()
        },
        "mean_cosine": rounded(statistics.of_tasks(statistics.cosine, tasks)),
        "negative_share": rounded(statistics.of_tasks(statistics.negative, tasks)),
    }


def _layer_numbers(learner: Learner) -> list[int]:
    """Return the numbers of the layers with a shared module, from 1."""
    tree, tasks = learner.structure, len(learner.tasks)
    if not isinstance(tree, Tree):
        return list(range(1, len(learner.encoder.shared_layers()) + 1))
    # A tree that Recon or its user made may have modules of one task before a shared layer.
    return [layer + 1 for layer in range(tree.depth) if len(tree.groups(layer)) < tasks]
