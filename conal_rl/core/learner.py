"""How one network learns: what the tasks' losses and gradients go through in a weight step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conal_rl.core import (
    ConalProStage,
    ConflictNoticing,
    LTBSearch,
    ReconSearch,
    Rule,
    SearchNetwork,
    Structure,
    Tree,
    TreeNetwork,
    recon_tree,
)
from conal_rl.core.bilevel import weight_step
from conal_rl.core.conal_pro import StageNetwork
from conal_rl.core.gradients import GradientRule
from conal_rl.errors import ConalError


class ConflictSettings(NamedTuple):
    """Arguments of `conal_rl.core.ConflictNoticing`."""

    rule: Rule
    margin: float
    smoothing: float
    study_every: int = 10


class Total(nn.Module):
    """The sum of the tasks' losses: what plain multi-task training minimises."""

    def forward(self, losses: Tensor) -> Tensor:
        """A scalar from `(task,)`."""
        return losses.sum()


class Learner:
    """Weight steps of an encoder and of the heads that share its optimiser.

    Conflicts are noticed during a search, and on a fixed tree if `hold`; an aggregation works on
    what a fixed tree shares, unless conflicts are noticed there.

    Args:
        encoder: the network of `structure`.
        optimizer: of all weights but the gates.
        structure: the encoder's tree or search space.
        tasks: their names.
        conflicts: how conflicts are noticed.
        hold: notice them also on a fixed tree.
        weighting: `equal`, `random` or `uncertainty` weights of the tasks' losses, or one of
            `conal_rl.core.weighting.AGGREGATIONS`.
        likelihoods: whether losses may be taken for negative log-likelihoods, as uncertainty
            weights do; an actor's are none, and stay equal.
        scaler: scales losses up, and gradients down again, in half precision.

    Raises:
        ExtraError: the weighting needs a package that is not installed.
        ValueError: no such weighting, or a rule that the search space has no use for.
    """

    def __init__(
        self,
        encoder: TreeNetwork | SearchNetwork,
        optimizer: torch.optim.Optimizer,
        structure: Structure,
        tasks: tuple[str, ...],
        conflicts: ConflictSettings,
        hold: bool = False,
        weighting: str = "equal",
        likelihoods: bool = True,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.encoder, self.optimizer, self.scaler = encoder, optimizer, scaler
        self.tasks = tasks
        self.structure = structure
        self.noticing: ConflictNoticing | None = None
        self.rule: GradientRule | None = None
        self.loss_weights: nn.Module = Total()
        shared = encoder.shared_layers()
        # Of a tree that Recon or its user made, others may come before a shared layer.
        self._numbers = (
            [n for n in range(1, structure.depth + 1) if len(structure.groups(n - 1)) < len(tasks)]
            if isinstance(structure, Tree)
            else list(range(1, len(shared) + 1))
        )
        if isinstance(structure, ReconSearch):  # which counts the conflicts of plain training
            conflicts = conflicts._replace(rule="none", study_every=1)
        if isinstance(structure, LTBSearch) and conflicts.rule == "and_deeper":
            raise ValueError(
                "and_deeper holds all modules behind a conflict, and in a branching space these "
                "are all copies of all later layers: take another rule"
            )
        if hold or not isinstance(structure, Tree):
            self.rule = self.noticing = ConflictNoticing(shared, *conflicts)
        if weighting == "equal":
            return
        from conal_rl.core import weighting as ways  # not above: solvers take a second

        if weighting in ways.AGGREGATIONS:
            ways.require_solvers(weighting)  # also for the trees that come after a search
            self.rule = self.rule or ways.Aggregation(shared, weighting)
        elif weighting not in ways.LOSS_WEIGHTS:
            known = ", ".join([*ways.LOSS_WEIGHTS, *ways.AGGREGATIONS])
            raise ValueError(f"unknown weighting {weighting!r}; there are {known}")
        elif weighting == "random" or likelihoods:
            device = optimizer.param_groups[0]["params"][0].device
            self.loss_weights = ways.loss_weights(weighting, len(tasks)).to(device)
            if learnt := list(self.loss_weights.parameters()):
                optimizer.add_param_group({"params": learnt, "weight_decay": 0.0})

    def capture(self) -> AbstractContextManager[None]:
        """The forward pass of the losses belongs into this context."""
        return nullcontext() if self.rule is None else self.rule.capture()

    def step(self, losses: Tensor, max_norm: float | None) -> None:
        """One step of the optimiser, down the tasks' losses `(task,)`."""
        weight_step(losses, self.optimizer, self.rule, max_norm, self.loss_weights, self.scaler)

    def tree(self) -> Tree:
        """The fixed tree; in a search, that of the strongest gates or of the conflicts so far.

        Raises:
            ConalError: the gates are not finite, or no conflicts have been counted.
        """
        if isinstance(self.encoder, SearchNetwork):
            with _no_tree():
                return self.encoder.tree()
        if not isinstance(self.structure, ReconSearch):
            assert isinstance(self.structure, Tree)
            return self.structure
        if len(self.tasks) == 1:
            return Tree.independent(self.tasks, len(self.encoder.layers))
        statistics = self.noticing.statistics() if self.noticing else None
        if statistics is None:
            raise ConalError("no tree can be derived: no conflicts have been counted")
        counts = (statistics.conflicting * statistics.counted).sum(dim=(1, 2))
        return recon_tree(self.tasks, counts.tolist(), self.structure.specific)

    def next_stage(self) -> ConalProStage | None:
        """CoNAL-Pro's next stage by the strongest gates, if there is one to come.

        Raises:
            ConalError: the gates are not finite.
        """
        if not isinstance(self.encoder, StageNetwork):
            return None
        with _no_tree():
            return self.encoder.next_stage()

    def gate_weights(self) -> dict[str, list[float]]:
        """The softmax of each choice's gates, by the choice's name; empty where there are none."""
        if not isinstance(self.encoder, SearchNetwork):
            return {}
        weights = self.encoder.gates.softmax(dim=1).tolist()
        return dict(zip(self.encoder.choices, weights, strict=True))

    def scalars(self, name: str) -> dict[str, float]:
        """Gates and conflicts for a log, by tag; `name` is that of the network."""
        found = {
            f"gates_{name}/{choice}/{option}": weight
            for choice, row in self.gate_weights().items()
            for option, weight in enumerate(row, start=1)
        }
        if self.noticing is None:
            return found
        for layer, share in zip(self._numbers, self.noticing.recently_negative(), strict=False):
            found[f"conflicts_{name}/negative/{layer}"] = share
        statistics = self.noticing.statistics()
        if statistics is None:
            return found
        for rule, held in statistics.module_held.items():
            shares = statistics.of_layers(held).tolist()
            for layer, share in zip(self._numbers, shares, strict=True):
                found[f"held_{name}/{rule}/{layer}"] = share
        return found

    def report(self) -> dict[str, Any]:
        """Gates and conflicts as JSON types: why the tree is what it is.

        Conflicts are `(layer, task)` and `(layer, task, task)`, means over an ensemble's members;
        `layers` has the numbers of these layers, which are those with a shared module, from 1.
        """
        report: dict[str, Any] = {"gates": self.gate_weights()}
        statistics = self.noticing.statistics() if self.noticing else None
        if self.noticing is None or statistics is None:
            return report
        tasks = len(self.tasks)

        def rounded(values: Tensor) -> Any:
            return values.numpy().round(4).tolist()

        return report | {
            "rule": self.noticing.rule,
            "layers": self._numbers,
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


@contextmanager
def _no_tree() -> Iterator[None]:
    """What is wrong with gates, as users are told of it."""
    try:
        yield
    except ValueError as error:
        raise ConalError(f"no tree can be derived: {error}") from error
