"""The losses of soft actor-critic, for all tasks at once.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018). Deviations: any number of
critics, combined by their minimum or their mean; a choice of loss for the critics' outputs; actor
losses that may be divided by the mean magnitude of a task's values in the batch (Fujimoto & Gu, "A
Minimalist Approach to Offline RL", NeurIPS 2021, equation 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from conal_rl.agents.policies import TaskActor, TaskCritics
from conal_rl.agents.replay import TaskBatch
from conal_rl.config import AgentConfig


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Make the module's parameters constants in this context; frozen ones stay frozen after it."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class SACLosses:
    """Targets and losses of an actor and its critics. Temperatures are `(task,)`.

    Attributes:
        settings: the agent's settings. Every call reads them, so that they may change.
    """

    def __init__(
        self,
        actor: TaskActor,
        critic: TaskCritics,
        critic_target: TaskCritics,
        settings: AgentConfig,
    ):
        self._actor, self._critic, self._critic_target = actor, critic, critic_target
        self.settings = settings

    @torch.no_grad()
    def target(self, batch: TaskBatch, temperature: Tensor) -> Tensor:
        """Soft TD target `(task, batch)`; it bootstraps except if an episode terminated."""
        actions, log_prob = self._actor.sample(batch.next_observations)
        value = self._reduce(self._critic_target.values(batch.next_observations, actions))
        value = value - temperature.unsqueeze(1) * log_prob
        discount = self.settings.gamma if batch.discounts is None else batch.discounts
        rewards = self.settings.reward_scale * batch.rewards
        return rewards + (1 - batch.dones) * discount * value

    def of_critics(self, batch: TaskBatch, target: Tensor) -> Tensor:
        """Loss per task, summed over critics: `(task,)`."""
        outputs = self._critic.outputs(batch.observations, batch.actions)
        return self._critic.value_loss.loss(outputs, target).mean(dim=2).sum(dim=0)

    def of_actor(
        self, batch: TaskBatch, actions: Tensor, log_prob: Tensor, temperature: Tensor
    ) -> Tensor:
        """Loss per task `(task,)` of the actor's actions; critics' parameters are constants."""
        with without_gradients(self._critic):
            value = self._reduce(self._critic.values(batch.observations, actions))
        losses = (temperature.unsqueeze(1) * log_prob - value).mean(dim=1)
        if self.settings.normalize_actor_loss:
            losses = losses / value.detach().abs().mean(dim=1).clamp(min=1e-4)
        return losses

    def _reduce(self, values: Tensor) -> Tensor:
        if self.settings.critic_reduce == "min":
            return values.amin(dim=0)
        return values.mean(dim=0)
