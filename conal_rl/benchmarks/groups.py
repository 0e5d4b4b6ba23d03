"""A test of the searches on tasks with known groups. Each group has a different function.

Tasks of a group have the same random function, and each task has a few noisy samples of it, so
sharing helps. Tasks of different groups have independent functions. All tasks read the encoder's
output through one fixed head. Two tasks that share the whole encoder therefore compute the same
function, and no head can correct a wrong tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from conal_rl.benchmarks import say
from conal_rl.cli import seed_ranges
from conal_rl.core import (
    ConalProStage,
    ConalSearch,
    LTBSearch,
    Rule,
    Search,
    SearchNetwork,
    Tree,
    linear_chain,
)
from conal_rl.core.conal_pro import inherit_weights
from conal_rl.core.learner import Learner, LearnerSettings

GROUPS = (3, 3, 3)  # tasks in each
FEATURES, WIDTH, DEPTH = 6, 12, 3
SAMPLES, NOISE, BATCH = 256, 0.5, 64  # of each task: samples for training, and for the gates
STEPS = 1800  # steps of the weights and of the gates, over all stages
WEIGHT_RATE, GATE_RATE = 0.02, 0.05
SPECIFIC_DECAY = 1.0  # weight decay of purely-specific modules
TEMPERATURE = (2.0, 0.3)  # Gumbel-softmax temperature at the start and the end of a stage

Batch = tuple[Tensor, Tensor]


class Method(NamedTuple):
    """A search, which is a row of the table."""

    space: Callable[[int], Search]
    rule: Rule


METHODS = {
    "CoNAL-Pro": Method(ConalProStage.first, "consensus"),
    "CoNAL-Pro, no noticing": Method(ConalProStage.first, "none"),
    "CoNAL": Method(lambda tasks: ConalSearch(), "consensus"),
    "LTB": Method(lambda tasks: LTBSearch(4), "none"),
}


def measure(seeds: Sequence[int], steps: int = STEPS) -> Table:
    """Return a table of the methods, on one family of tasks per seed."""
    truth = [group for group, size in enumerate(GROUPS) for _ in range(size)]
    table = Table(
        title=f"{len(truth)} tasks in {len(GROUPS)} groups, seeds {seed_ranges(seeds)}",
        caption="Rand: mean over the seeds of the adjusted Rand index of the last layer's groups. "
        "It is 1 for the true groups, and 0 on average for random groups.",
    )
    for column in ("method", "recovered", "Rand", "lowest", "groups of the last seed"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, method in METHODS.items():
        say(name)
        trees = [search(Family(seed), method, steps) for seed in seeds]
        indices = [rand_index(tree.layers[-1], truth) for tree in trees]
        table.add_row(
            name,
            f"{sum(index == 1 for index in indices)} of {len(seeds)}",
            f"{sum(indices) / len(indices):.2f}",
            f"{min(indices):.2f}",
            " ".join(map(str, trees[-1].layers[-1])),
        )
    return table


class Family:
    """Nine tasks in three groups, with training and validation samples of each.

    Args:
        seed: Seed of the functions, the samples and all later random draws.
    """

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        group = [g for g, size in enumerate(GROUPS) for _ in range(size)]
        self.tasks = tuple(f"{'abc'[g]}{number}" for number, g in enumerate(group))
        function = _random_functions(len(GROUPS))

        def draw() -> Batch:
            x = torch.randn(len(group), SAMPLES, FEATURES)
            y = torch.stack([function(row)[g] for row, g in zip(x, group, strict=True)])
            return x, y + NOISE * torch.randn_like(y)

        self._training, self._validation = draw(), draw()

    def training(self) -> Batch:
        """Return inputs `(task, batch, feature)` and targets `(task, batch, 1)`."""
        return _sample(self._training)

    def validation(self) -> Batch:
        """Return inputs and targets from the samples that only the gates use."""
        return _sample(self._validation)


def _sample(data: Batch) -> Batch:
    x, y = data
    rows = torch.randint(SAMPLES, (len(x), BATCH, 1))
    return x.gather(1, rows.expand(-1, -1, FEATURES)), y.gather(1, rows)


def _random_functions(count: int) -> Callable[[Tensor], Tensor]:
    """Return `count` functions of unit scale: `(sample, feature)` to `(function, sample, 1)`."""
    first = 1.5 * torch.randn(count, FEATURES, 16) / FEATURES**0.5
    bias = 0.5 * torch.randn(count, 1, 16)
    second = 2.1 * torch.randn(count, 16, 16) / 4
    last = torch.randn(count, 16, 1)

    def function(x: Tensor) -> Tensor:
        return ((x @ first + bias).tanh() @ second).tanh() @ last

    y = function(torch.randn(4096, FEATURES))
    mean, scale = y.mean(dim=1, keepdim=True), y.std(dim=1, keepdim=True)
    return lambda x: (function(x) - mean) / scale


def search(family: Family, method: Method, steps: int = STEPS) -> Tree:
    """Return the tree that a method finds. All its stages together take `steps` steps."""
    space = method.space(len(family.tasks))
    stages = DEPTH if isinstance(space, ConalProStage) else 1
    learner = _make_learner(space, family, method.rule)
    _search_with(learner, family, steps // stages)
    while (stage := learner.next_stage()) is not None:
        before = learner.encoder
        learner = _make_learner(stage, family, method.rule)
        inherit_weights(learner.encoder, before)
        _search_with(learner, family, steps // stages)
    return learner.tree()


def _make_learner(space: Search, family: Family, rule: Rule) -> Learner:
    network = space.network(family.tasks, linear_chain(FEATURES, [WIDTH] * DEPTH, layer_norm=True))
    assert isinstance(network, SearchNetwork)
    settings = LearnerSettings(rule, specific_decay=SPECIFIC_DECAY, gate_learning_rate=GATE_RATE)
    adam = partial(torch.optim.Adam, lr=WEIGHT_RATE, fused=True)
    return Learner(network, network.weights(), space, family.tasks, adam, settings)


def _search_with(learner: Learner, family: Family, steps: int) -> None:
    network = learner.encoder
    assert isinstance(network, SearchNetwork)
    signs = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2).view(WIDTH, 1)
    head = 2 / WIDTH**0.5 * signs

    def losses(batch: Batch) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(network(x) @ head, y, reduction="none").mean(dim=(1, 2))

    start, end = TEMPERATURE
    for step in range(steps):
        network.gumbel_temperature = start + (end - start) * step / steps
        learner.step_gates(losses(family.validation()))
        with learner.capture():
            captured = losses(family.training())
        learner.step(captured)


def rand_index(groups: Sequence[int], truth: Sequence[int]) -> float:
    """Return Hubert and Arabie's adjusted Rand index (1985) of two partitions, given by labels."""
    pairs = list(combinations(range(len(truth)), 2))
    together = [(groups[i] == groups[j], truth[i] == truth[j]) for i, j in pairs]
    both = sum(a and b for a, b in together)
    ours, theirs = (sum(pair[side] for pair in together) for side in (0, 1))
    chance, highest = ours * theirs / len(pairs), (ours + theirs) / 2
    return 1.0 if highest == chance else (both - chance) / (highest - chance)
