"""How one network learns: its optimisers, its rule on gradients, and its weights of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

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
    recon_tree,
)
from conal_rl.core.bilevel import decay_specific, gate_step, weight_step
from conal_rl.core.conal_pro import StageNetwork
from conal_rl.core.encoder import Encoder
from conal_rl.core.gradients import GradientRule
from conal_rl.core.optimizers import optimizer_tensors, restore_optimizer
from conal_rl.errors import ConalError

OptimizerMaker = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class LearnerSettings:
    """How a network learns, for data of any kind.

    Attributes:
        rule, margin, smoothing: see `conal_rl.core.ConflictNoticing`.
        hold: notice conflicts on a fixed tree too, not only in a search.
        weighting: `equal`, `random` or `uncertainty` weights of the tasks' losses, or one of
            `conal_rl.core.weighting.AGGREGATIONS`. An aggregation works on the shared
            modules of a fixed tree, except if conflicts are noticed on them.
        specific_decay: decay of `conal_rl.core.bilevel.decay_specific`; 0: no decay.
        gate_learning_rate: learning rate of the gates' Adam.
        gumbel_temperature: temperature of Gumbel gates `(start, end)`; None for the softmax.
    """

    rule: Rule
    margin: float = 0.0
    smoothing: float = 0.0
    hold: bool = False
    weighting: str = "equal"
    specific_decay: float = 0.0
    gate_learning_rate: float = 1e-3
    gumbel_temperature: tuple[float, float] | None = None


class Total(nn.Module):
    """The sum of the tasks' losses, the objective of plain multi-task training."""

    def forward(self, losses: Tensor) -> Tensor:
        """A scalar from `(task,)`."""
        return losses.sum()


class Learner:
    """Steps of an encoder's gates, and of the weights of the encoder and its heads.

    Args:
        encoder: the encoder of `structure`.
        weights: all parameters of the network except the gates.
        structure: the encoder's tree or search.
        tasks: the names of the tasks.
        make_optimizer: makes the optimiser of the weights.
        settings: how the network learns.
        likelihoods: whether the losses are negative log-likelihoods, which uncertainty weights
            need. An actor's losses are not; their weights then stay equal.
        scales: scale losses up and gradients down, because float16 would lose small gradients.

    Attributes:
        optimizer: the optimiser of the weights and of learnt loss weights.
        gate_optimizer: the gates' Adam; None without gates.
        scaler, gate_scaler: the scalers of both; None if losses are not scaled.
        rule: changes the gradients of shared modules; None: they are not changed.
        noticing: the rule, if it is conflict noticing.
        loss_weights: makes one loss of the tasks' losses.

    Raises:
        ExtraError: the weighting needs a package that is not installed.
        ValueError: the weighting is unknown, or the search cannot follow the rule.
    """

    def __init__(
        self,
        encoder: Encoder,
        weights: Sequence[nn.Parameter],
        structure: Structure,
        tasks: tuple[str, ...],
        make_optimizer: OptimizerMaker,
        settings: LearnerSettings,
        likelihoods: bool = True,
        scales: bool = False,
    ):
        self.encoder, self.structure, self.tasks = encoder, structure, tasks
        self.settings = settings
        self.optimizer = make_optimizer(weights)
        self.gates: nn.Parameter | None = None
        self.gate_optimizer: torch.optim.Optimizer | None = None
        if isinstance(encoder, SearchNetwork):
            self.gates = encoder.gates
            self.gate_optimizer = torch.optim.Adam([self.gates], lr=settings.gate_learning_rate)
            if settings.specific_decay:
                specific = encoder.specific_weights()
                decay_specific(self.optimizer, specific, settings.specific_decay)
        self.scaler, self.gate_scaler = (
            torch.amp.GradScaler(weights[0].device.type) if scales else None for _ in range(2)
        )
        self.noticing = self._conflict_noticing()
        self.rule: GradientRule | None = self.noticing
        self.loss_weights: nn.Module = Total()
        if settings.weighting != "equal":
            self._weigh(settings.weighting, likelihoods)

    def _conflict_noticing(self) -> ConflictNoticing | None:
        settings, shared = self.settings, self.encoder.shared_layers()
        if isinstance(self.structure, ReconSearch):  # it counts the conflicts of plain training
            return ConflictNoticing(
                shared, "none", settings.margin, settings.smoothing, study_every=1
            )
        if isinstance(self.structure, LTBSearch) and settings.rule == "and_deeper":
            raise ValueError(
                "rule: got 'and_deeper', expected a different rule with LTBSearch. It would hold "
                "all copies in all layers behind a conflict"
            )
        if isinstance(self.structure, Tree) and not settings.hold:
            return None
        return ConflictNoticing(shared, settings.rule, settings.margin, settings.smoothing)

    def _weigh(self, weighting: str, likelihoods: bool) -> None:
        from conal_rl.core import weighting as ways  # imported here because solvers take a second

        if weighting in ways.AGGREGATIONS:
            ways.require_solvers(weighting)  # in a search too, for the derived trees
            self.rule = self.rule or ways.Aggregation(self.encoder.shared_layers(), weighting)
        elif weighting not in ways.LOSS_WEIGHTS:
            known = ", ".join([*ways.LOSS_WEIGHTS, *ways.AGGREGATIONS])
            raise ValueError(f"weighting: got {weighting!r}, expected one of {known}")
        elif weighting == "random" or likelihoods:
            device = self.optimizer.param_groups[0]["params"][0].device
            self.loss_weights = ways.loss_weights(weighting, len(self.tasks)).to(device)
            if learnt := list(self.loss_weights.parameters()):
                self.optimizer.add_param_group({"params": learnt, "weight_decay": 0.0})

    # Steps.

    def capture(self) -> AbstractContextManager[None]:
        """Return the context in which the training losses must be computed."""
        return nullcontext() if self.rule is None else self.rule.capture()

    def step(self, losses: Tensor, max_norm: float | None = None) -> None:
        """Step the weights down the training losses `(task,)`; gradients are clipped to a norm."""
        weight_step(losses, self.optimizer, self.rule, max_norm, self.loss_weights, self.scaler)

    def step_gates(self, losses: Tensor) -> None:
        """Step the gates down the sum of the validation losses `(task,)`."""
        assert self.gates is not None and self.gate_optimizer is not None
        gate_step(losses.sum(), [self.gates], self.gate_optimizer, self.gate_scaler)

    def anneal(self, left: float) -> None:
        """Set the temperature of Gumbel gates.

        Args:
            left: the remaining share of the search, or of a stage, from 1 to 0.
        """
        temperature = self.settings.gumbel_temperature
        if temperature is not None and isinstance(self.encoder, SearchNetwork):
            start, end = temperature
            self.encoder.gumbel_temperature = end + (start - end) * left

    # In a checkpoint.

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers by `weights` and, with gates, `gates`."""
        named = {"weights": self.optimizer, "gates": self.gate_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    def _scalers(self) -> dict[str, torch.amp.GradScaler]:
        named = {"weights": self.scaler, "gates": self.gate_scaler}
        return {name: scaler for name, scaler in named.items() if scaler is not None}

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return the state of learning without weights and gates: tensors by group, JSON types.

        The memory of an aggregation is not part of it.
        """
        tensors = {f"optimizer_{n}": optimizer_tensors(o) for n, o in self.optimizers().items()}
        tensors["loss_weights"] = dict(self.loss_weights.state_dict())
        counters: dict[str, Any] = {
            "scalers": {n: s.state_dict() for n, s in self._scalers().items()}
        }
        if self.noticing is not None:
            tensors["conflict"], counters["noticing"] = self.noticing.state()
        return tensors, counters

    def restore(
        self, tensors: Mapping[str, dict[str, Tensor]], counters: Mapping[str, Any]
    ) -> None:
        """Resume from the `state` of a learner with equal arguments.

        Raises:
            KeyError: a group is missing.
            ValueError, RuntimeError: tensors belong to different parameters.
        """
        self.loss_weights.load_state_dict(tensors["loss_weights"])
        for name, optimizer in self.optimizers().items():
            restore_optimizer(optimizer, tensors[f"optimizer_{name}"])
        for name, scaler in self._scalers().items():
            if state := counters["scalers"].get(name):  # missing if the run began without float16
                scaler.load_state_dict(state)
        if self.noticing is not None:
            self.noticing.restore(tensors["conflict"], counters["noticing"])

    # The end of a search or of a stage.

    def tree(self) -> Tree:
        """Return the fixed tree; in a search, the tree of the strongest gates or of the conflicts.

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
            raise ConalError(
                "tree: got no counted conflicts, expected some to derive it from. Search for longer"
            )
        counts = (statistics.conflicting * statistics.counted).sum(dim=(1, 2))
        return recon_tree(self.tasks, counts.tolist(), self.structure.specific)

    def next_stage(self) -> ConalProStage | None:
        """Return CoNAL-Pro's next stage by the strongest gates; None after the last one.

        Raises:
            ConalError: the gates are not finite.
        """
        if not isinstance(self.encoder, StageNetwork):
            return None
        with _no_tree():
            return self.encoder.next_stage()


@contextmanager
def _no_tree() -> Iterator[None]:
    """Raise ConalError for an error of the gates in this context."""
    try:
        yield
    except ValueError as error:
        raise ConalError(f"tree: {error}") from error
