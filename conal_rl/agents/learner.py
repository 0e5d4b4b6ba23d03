"""How one network of the agent learns: what the tasks' losses and gradients go through."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from torch import Tensor, nn

from conal_rl.agents.policies import TaskActor, TaskCritics
from conal_rl.core import (
    ConflictNoticing,
    ProStage,
    ReconSpace,
    Rule,
    SearchSpace,
    Structure,
    Tree,
    recon,
)
from conal_rl.core.gradients import GradientRule
from conal_rl.core.progressive import StageNetwork
from conal_rl.core.search import weight_step


class ConflictSettings(NamedTuple):
    """Arguments of `conal_rl.core.ConflictNoticing`."""

    rule: Rule
    margin: float
    smoothing: float


class Total(nn.Module):
    """The sum of the tasks' losses: what plain multi-task training minimises."""

    def forward(self, losses: Tensor) -> Tensor:
        """A scalar from `(task,)`."""
        return losses.sum()


class Learner:
    """Weight steps of the actor or of the critics.

    Conflicts are noticed during a search, and on a fixed tree if `hold`; an aggregation works on
    what a fixed tree shares, unless conflicts are noticed there.

    Args:
        network: the actor or the critics, with their optimiser.
        structure: the network's tree or search space.
        conflicts: how conflicts are noticed.
        hold: notice them also on a fixed tree.
        weighting: see `ConalSAC`.
    """

    def __init__(
        self,
        network: TaskActor | TaskCritics,
        structure: Structure,
        conflicts: ConflictSettings,
        hold: bool,
        weighting: str,
    ):
        self.network = network
        self.structure = structure
        self.noticing: ConflictNoticing | None = None
        self.rule: GradientRule | None = None
        self.loss_weights: nn.Module = Total()
        shared = network.encoder.shared_layers()
        if hold or not isinstance(structure, Tree):
            self.rule = self.noticing = ConflictNoticing(shared, *conflicts)
        if weighting == "equal":
            return
        from conal_rl.core import weighting as ways  # not above: solvers take a second

        if weighting in ways.AGGREGATIONS:
            self.rule = self.rule or ways.Aggregation(shared, weighting)
        elif weighting not in ways.LOSS_WEIGHTS:
            known = ", ".join([*ways.LOSS_WEIGHTS, *ways.AGGREGATIONS])
            raise ValueError(f"unknown weighting {weighting!r}; there are {known}")
        elif weighting == "random" or isinstance(network, TaskCritics):
            # Uncertainty weights take losses for likelihoods, which an actor's are not.
            weights = ways.loss_weights(weighting, len(network.tasks))
            weights = weights.to(network.task_id.device)
            if learnt := list(weights.parameters()):
                network.optimizer.add_param_group({"params": learnt})
            self.loss_weights = weights

    def capture(self) -> AbstractContextManager[None]:
        """The forward pass of the losses belongs into this context."""
        return nullcontext() if self.rule is None else self.rule.capture()

    def step(self, losses: Tensor, max_norm: float | None) -> None:
        """One step of the network's optimiser, down the tasks' losses `(task,)`."""
        weight_step(losses, self.network.optimizer, self.rule, max_norm, self.loss_weights)

    def tree(self) -> Tree:
        """The fixed tree; in a search, that of the strongest gates or of the conflicts so far.

        Raises:
            ValueError: the gates are not finite, or no conflicts have been counted.
        """
        if isinstance(self.network.encoder, SearchSpace):
            return self.network.encoder.tree()
        if not isinstance(self.structure, ReconSpace):
            assert isinstance(self.structure, Tree)
            return self.structure
        statistics = self.noticing.statistics() if self.noticing else None
        if statistics is None:
            raise ValueError("no conflicts have been counted, as there was no update")
        counts = (statistics.conflicting * statistics.counted).sum(dim=(1, 2))
        return recon(self.network.tasks, counts.tolist(), self.structure.specific)

    def next_stage(self) -> ProStage | None:
        """CoNAL-Pro's next stage by the strongest gates, if there is one to come."""
        encoder = self.network.encoder
        return encoder.next_stage() if isinstance(encoder, StageNetwork) else None

    def gate_weights(self) -> dict[str, list[float]]:
        """The softmax of each choice's gates; empty where there are none."""
        encoder = self.network.encoder
        if not isinstance(encoder, SearchSpace):
            return {}
        return dict(zip(encoder.choices, encoder.gates.softmax(dim=1).tolist(), strict=True))
