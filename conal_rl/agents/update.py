"""One update of soft actor-critic: temperatures, critics, actor, gates, targets.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), algorithm 1, for all tasks
at once and with one temperature per task. `Learner`s step the weights and notice conflicts. Gate
steps minimise the same losses on validation episodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from conal_rl.agents.critic_losses import HLGauss
from conal_rl.agents.losses import SACLosses
from conal_rl.agents.policies import ConalPolicy, TaskActor, TaskCritics
from conal_rl.agents.replay import TaskBatch, TaskReplayBuffer
from conal_rl.config import AgentConfig, SearchConfig
from conal_rl.core import ConflictNoticing, SearchNetwork, Structure, Tree
from conal_rl.core.bilevel import apply_gradients, decay_specific, gate_step
from conal_rl.core.learner import ConflictSettings, Learner
from conal_rl.errors import ConalError

CLAMPED = "clamped_targets"


class Parts(NamedTuple):
    """The parts of an update besides the critics' step."""

    actor: bool
    gates: bool
    targets: bool


class Temperatures:
    """One entropy temperature per task, learnt or fixed.

    Args:
        tasks: number of tasks.
        target_entropy: of every task's policy, in nats.
        fixed: the temperature `()` of every task; None if they are learnt.
        log: logarithm `(1,)` of the learnt temperatures at the start; None if they are fixed.
        learning_rate: of the optimiser of learnt temperatures.

    Attributes:
        log: logarithms of learnt temperatures, `(task,)`; None if they are fixed.
        optimizer: of `log`; None if they are fixed.
    """

    def __init__(
        self,
        tasks: int,
        target_entropy: float,
        fixed: Tensor | None,
        log: Tensor | None,
        learning_rate: float,
    ):
        self._target_entropy = target_entropy
        self._fixed = None if fixed is None else fixed.expand(tasks)
        self.log = None if log is None else log.detach().repeat(tasks).requires_grad_(True)
        self.optimizer = (
            None if self.log is None else torch.optim.Adam([self.log], lr=learning_rate)
        )

    def values(self) -> Tensor:
        """The current temperatures, `(task,)`."""
        if self._fixed is not None:
            return self._fixed
        assert self.log is not None
        return self.log.detach().exp()

    def step(self, log_prob: Tensor) -> None:
        """Step towards the target entropy, given log-probabilities `(task, batch)`."""
        if self.log is None or self.optimizer is None:
            return
        gap = log_prob.detach().mean(dim=1) + self._target_entropy
        (-(self.log * gap).sum()).backward()
        apply_gradients(self.optimizer)


class SACUpdate:
    """One update of a policy's weights, its gates and its temperatures.

    Args:
        policy: the actor, the critics and the target critics.
        temperatures: of the tasks.
        settings: read in every update, so that they may change between updates.
        search: how conflicts are noticed and gates step.
        targets_every: number of critic updates per step of the target critics.

    Attributes:
        learners: of the `actor` and the `critic`.
        gates: of the networks that have gates, by the same names.
        gate_optimizer: of all gates; None if no network has gates.
        captures: whether each update runs the same kernels, so that they can be captured.
    """

    def __init__(
        self,
        policy: ConalPolicy,
        temperatures: Temperatures,
        settings: AgentConfig,
        search: SearchConfig,
        targets_every: int = 1,
    ):
        self.policy, self.temperatures = policy, temperatures
        self._gates_every, self._targets_every = search.gate_every, targets_every
        networks: dict[str, TaskActor | TaskCritics]
        networks = {"actor": policy.actor, "critic": policy.critic}
        for network in networks.values():
            if search.specific_decay and isinstance(network.encoder, SearchNetwork):
                specific = network.encoder.specific_weights()
                decay_specific(network.optimizer, specific, search.specific_decay)
        self.gates = {n: net.gates for n, net in networks.items() if net.gates is not None}
        self.gate_optimizer = (
            torch.optim.Adam(self.gates.values(), lr=search.gate_learning_rate)
            if self.gates
            else None
        )
        self.learners = make_learners(policy, settings, search)
        self.losses = SACLosses(policy.actor, policy.critic, policy.critic_target, settings)
        if settings.compile:
            self._compile()
        rules = [learner.rule for learner in self.learners.values()]
        self.captures = (
            settings.cuda_graphs
            and not settings.normalize_returns
            and not (search.gumbel_temperature is not None and self.gates)
            and all(rule is None or isinstance(rule, ConflictNoticing) for rule in rules)
        )

    def _compile(self) -> None:
        torch.compiler.reset()  # it compiles a function only for a few networks
        if self.learners["actor"].rule is None:
            self.policy.actor.compile_training()
        if self.learners["critic"].rule is None:
            self.policy.critic.compile_training()
            self.policy.critic_target.compile_training()

    @property
    def noticing(self) -> dict[str, ConflictNoticing]:
        """The conflict noticing of the networks that have one, by `actor` and `critic`."""
        return {
            name: learner.noticing
            for name, learner in self.learners.items()
            if learner.noticing is not None
        }

    @property
    def loss_weights(self) -> nn.ModuleDict:
        """The weights of the tasks' losses in actor and critics."""
        return nn.ModuleDict({n: learner.loss_weights for n, learner in self.learners.items()})

    def derive(self) -> tuple[Tree, Tree]:
        """Return the trees of actor and critics, by the strongest gates or by the conflicts.

        Raises:
            ConalError: the gates have not moved or are not finite, or no conflicts were counted.
        """
        if self.gates and all(bool((g == g[:, :1]).all()) for g in self.gates.values()):
            raise ConalError("no tree can be derived: the gates have not moved, as with no update")
        return self.learners["actor"].tree(), self.learners["critic"].tree()

    def next_stage(self) -> tuple[Structure, Structure] | None:
        """Return CoNAL-Pro's next stage by the strongest gates; None after the last one.

        If only actor or critics are settled, their tree comes with the other's stage.

        Raises:
            ConalError: the gates are not finite.
        """
        actor, critic = self.learners["actor"], self.learners["critic"]
        stages = actor.next_stage(), critic.next_stage()
        if not any(stages):
            return None
        return stages[0] or actor.tree(), stages[1] or critic.tree()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return all optimisers by name."""
        named = {
            "actor": self.policy.actor.optimizer,
            "critic": self.policy.critic.optimizer,
            "temperature": self.temperatures.optimizer,
            "gates": self.gate_optimizer,
        }
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    @property
    def settings(self) -> AgentConfig:
        """The settings of the next update; the losses have the same."""
        return self.losses.settings

    @settings.setter
    def settings(self, settings: AgentConfig) -> None:
        self.losses.settings = settings

    def parts_due(self, number: int) -> Parts:
        """Return the parts of the update of this `number`, which counts from 0."""

        def due(every: int) -> bool:
            return number % every == 0

        gates = bool(self.gates) and due(self._gates_every)
        return Parts(due(self.settings.actor_every), gates, due(self._targets_every))

    def __call__(
        self, replay: TaskReplayBuffer, batch_size: int, parts: Parts
    ) -> dict[str, Tensor]:
        """Learn from `batch_size` transitions of every task; returns scalars for the log."""
        self.policy.set_training_mode(True)
        metrics = self.step_weights(replay.sample(batch_size), parts.actor)
        if parts.gates:
            metrics |= self.step_gates(replay.sample_validation(batch_size))
        if parts.targets:
            self.step_targets()
        return metrics

    def step_weights(self, batch: TaskBatch, acting: bool = True) -> dict[str, Tensor]:
        """Step the critics and, if `acting`, the temperatures before and the actor after them.

        Returns:
            Scalars `()` on the device for the log, by their names under `train/`.
        """
        temperature = self.temperatures.values()
        actor, critic = self.policy.actor, self.policy.critic
        if acting:
            with self.learners["actor"].capture():
                actions, log_prob = actor.sample(batch.observations)
            self.temperatures.step(log_prob)

        target = self.losses.target(batch, temperature)
        with self.learners["critic"].capture():
            critic_losses = self.losses.of_critics(batch, target)
        self.learners["critic"].step(critic_losses, self.settings.max_grad_norm)
        metrics = {"critic_loss": critic_losses.detach().mean(), "target_q": target.mean()}
        if isinstance(critic.value_loss, HLGauss):
            metrics[CLAMPED] = critic.value_loss.outside(target).float().mean()
        if acting:
            actor_losses = self.losses.of_actor(batch, actions, log_prob, temperature)
            self.learners["actor"].step(actor_losses, self.settings.max_grad_norm)
            metrics |= {
                "actor_loss": actor_losses.detach().mean(),
                "ent_coef": temperature.mean(),
                "entropy": -log_prob.detach().mean(),
            }
        return metrics

    def step_gates(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Step all gates together, down the losses of validation transitions.

        The target critics copy the critics' gates.

        Returns:
            `gate_loss`, a scalar `()` on the device.
        """
        assert self.gate_optimizer is not None
        temperature = self.temperatures.values()
        loss = torch.zeros((), device=temperature.device)
        if "critic" in self.gates:
            target = self.losses.target(batch, temperature)
            loss = loss + self.losses.of_critics(batch, target).sum()
        if "actor" in self.gates:
            actions, log_prob = self.policy.actor.sample(batch.observations)
            loss = loss + self.losses.of_actor(batch, actions, log_prob, temperature).sum()
        gate_step(loss, list(self.gates.values()), self.gate_optimizer)
        if "critic" in self.gates:
            with torch.no_grad():
                self.policy.critic_target.gates.copy_(self.gates["critic"])  # type: ignore[union-attr]
        return {"gate_loss": loss.detach()}

    @torch.no_grad()
    def step_targets(self) -> None:
        """Polyak averaging of the critics' weights."""
        targets, critics = self.policy.critic_target.weights(), self.policy.critic.weights()
        torch._foreach_lerp_(targets, critics, self.settings.tau)


def make_learners(
    policy: ConalPolicy, settings: AgentConfig, search: SearchConfig
) -> dict[str, Learner]:
    """Return the learners of a policy's actor and critics."""
    searching = policy.searching
    rule = search.noticing_rule if searching else settings.rule_of_fixed_trees
    return {
        name: Learner(
            network.encoder,
            network.optimizer,
            structure,
            policy.tasks,
            ConflictSettings(rule, search.margin, search.smoothing),
            # In a search, also of a network that CoNAL-Pro has settled before the other.
            searching or settings.conflict_rule != "ignore",
            settings.weighting,
            likelihoods=name == "critic",
        )
        for name, network, structure in (
            ("actor", policy.actor, policy.actor_tree),
            ("critic", policy.critic, policy.critic_tree),
        )
    }
