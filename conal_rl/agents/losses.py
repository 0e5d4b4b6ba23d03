"""The losses of soft actor-critic, for all tasks at once.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018). Deviations: any number of
critics, whose mean may stand for their minimum; a loss on the critics' outputs that need not be
squared error; actor losses that do not depend on the scale of a task's values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from conal_rl.agents.policies import TaskActor, TaskCritics
from conal_rl.agents.replay import TaskBatch


class Settings(Protocol):
    """What an agent may change while it learns.

    Attributes:
        gamma: discount, where a batch has none of its own.
        reward_scale: factor on rewards.
        critic_reduce: `min` of the critics (SAC), or their `mean`.
        normalize_actor_loss: divide each task's actor loss by the mean magnitude of its values in
            the batch (Fujimoto and Gu, "A Minimalist Approach to Offline RL", NeurIPS 2021,
            equation 5).
    """

    gamma: float
    reward_scale: float
    critic_reduce: str
    normalize_actor_loss: bool


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """The module's parameters are constants in here; those that are frozen stay it afterwards."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class SACLosses:
    """Targets and losses of an actor and its critics. Temperatures are `(task,)`."""

    def __init__(
        self,
        actor: TaskActor,
        critic: TaskCritics,
        critic_target: TaskCritics,
        settings: Settings,
    ):
        self._actor, self._critic, self._critic_target = actor, critic, critic_target
        self._settings = settings

    @torch.no_grad()
    def target(self, batch: TaskBatch, temperature: Tensor) -> Tensor:
        """Soft TD target `(task, batch)`; truncated episodes bootstrap, terminated ones do not."""
        actions, log_prob = self._actor.sample(batch.next_observations)
        value = self._reduce(self._critic_target.values(batch.next_observations, actions))
        value = value - temperature.unsqueeze(1) * log_prob
        discount = self._settings.gamma if batch.discounts is None else batch.discounts
        rewards = self._settings.reward_scale * batch.rewards
        return rewards + (1 - batch.dones) * discount * value

    def of_critics(self, batch: TaskBatch, target: Tensor) -> Tensor:
        """Per task, summed over critics: `(task,)`."""
        outputs = self._critic.outputs(batch.observations, batch.actions)
        return self._critic.value_loss.loss(outputs, target).mean(dim=2).sum(dim=0)

    def of_actor(
        self, batch: TaskBatch, actions: Tensor, log_prob: Tensor, temperature: Tensor
    ) -> Tensor:
        """Per task, of the actor's own `actions`: `(task,)`. Critics' parameters take no part."""
        with without_gradients(self._critic):
            value = self._reduce(self._critic.values(batch.observations, actions))
        losses = (temperature.unsqueeze(1) * log_prob - value).mean(dim=1)
        if self._settings.normalize_actor_loss:
            losses = losses / value.detach().abs().mean(dim=1).clamp(min=1e-4)
        return losses

    def _reduce(self, values: Tensor) -> Tensor:
        if self._settings.critic_reduce == "min":
            return values.amin(dim=0)
        return values.mean(dim=0)
