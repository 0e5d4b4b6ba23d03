"""One update of soft actor-critic: temperatures, critics, actor, gates, targets.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), algorithm 1, for all tasks
at once and with a temperature for each. The steps of the weights are `Learner`s', where conflicts
are noticed; those of the gates are down the same losses on validation episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from conal_rl.agents import losses
from conal_rl.agents.critic_losses import HLGauss
from conal_rl.agents.losses import SACLosses
from conal_rl.agents.policies import ConalPolicy
from conal_rl.agents.replay import TaskBatch, TaskReplayBuffer
from conal_rl.core.bilevel import apply_gradients, gate_step
from conal_rl.core.learner import ConflictSettings, Learner

CLAMPED = "clamped_targets"


class Settings(losses.Settings, Protocol):
    """What an agent may change while it learns, beside what its losses ask for.

    Attributes:
        target_entropy: of every task's policy; no longer `auto`.
        tau: share of the critics that their targets take over.
        max_grad_norm: clip for actor and critics, None for none.
        actor_every, gate_every, target_update_interval: updates of the critics for each one.
    """

    target_entropy: str | float
    tau: float
    max_grad_norm: float | None
    actor_every: int
    gate_every: int
    target_update_interval: int


class Parts(NamedTuple):
    """What an update does beside the critics' step."""

    actor: bool
    gates: bool
    targets: bool


class Temperatures:
    """One per task, learnt where there is an optimiser.

    Args:
        fixed: `(task,)`, or
        log: logarithms of those that are learnt, `(task,)`.
        optimizer: of `log`.
    """

    def __init__(
        self, fixed: Tensor | None, log: Tensor | None, optimizer: torch.optim.Optimizer | None
    ):
        self._fixed, self._log, self._optimizer = fixed, log, optimizer

    def values(self) -> Tensor:
        """As they are now, `(task,)`."""
        if self._fixed is not None:
            return self._fixed
        assert self._log is not None
        return self._log.detach().exp()

    def step(self, log_prob: Tensor, target_entropy: float) -> None:
        """Step towards the target entropy, given the log-probabilities `(task, batch)`."""
        if self._log is None or self._optimizer is None:
            return
        gap = log_prob.detach().mean(dim=1) + target_entropy
        (-(self._log * gap).sum()).backward()
        apply_gradients(self._optimizer)


class SACUpdate:
    """Changes what it is given: a policy's weights, its gates and temperatures.

    Args:
        policy: its actor, critics and target critics.
        learners: of the `actor` and the `critic`.
        gates: of these two, where they have some.
        gate_optimizer: of all gates.
        temperatures: of the tasks.
        settings: read anew in every update.
    """

    def __init__(
        self,
        policy: ConalPolicy,
        learners: Mapping[str, Learner],
        gates: Mapping[str, nn.Parameter],
        gate_optimizer: torch.optim.Optimizer | None,
        temperatures: Temperatures,
        settings: Settings,
    ):
        self.policy, self.learners, self.temperatures = policy, learners, temperatures
        self.gates, self.gate_optimizer = gates, gate_optimizer
        self.losses = SACLosses(policy.actor, policy.critic, policy.critic_target, settings)
        self.settings = settings

    def parts_due(self, number: int) -> Parts:
        """What belongs to the update of this `number`, which counts from 0."""

        def due(every: int) -> bool:
            return number % every == 0

        gates = bool(self.gates) and due(self.settings.gate_every)
        targets = due(self.settings.target_update_interval)
        return Parts(due(self.settings.actor_every), gates, targets)

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
            What SB3 logs under `train/`, scalars `()` on the device.
        """
        temperature = self.temperatures.values()
        actor, critic = self.policy.actor, self.policy.critic
        if acting:
            with self.learners["actor"].capture():
                actions, log_prob = actor.sample(batch.observations)
            self.temperatures.step(log_prob, float(self.settings.target_entropy))

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
        """Step all gates at once, down the losses of validation transitions.

        Target critics copy their critics'.

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
    policy: ConalPolicy, conflicts: ConflictSettings, hold: bool, weighting: str
) -> dict[str, Learner]:
    """Those of a policy's actor and critics, by `Learner`'s arguments."""
    return {
        name: Learner(
            network.encoder,
            network.optimizer,
            structure,
            policy.tasks,
            conflicts,
            hold,
            weighting,
            likelihoods=name == "critic",
        )
        for name, network, structure in (
            ("actor", policy.actor, policy.actor_tree),
            ("critic", policy.critic, policy.critic_tree),
        )
    }
