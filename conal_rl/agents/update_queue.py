"""The schedule of updates: one by one, or as captured graphs while the environments step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from conal_rl.agents.graphs import GraphCache, prepare_optimizer
from conal_rl.agents.replay import TaskReplayBuffer
from conal_rl.agents.update import SACUpdate
from conal_rl.envs.vec_env import SuiteVecEnv


class UpdateQueue:
    """Pending updates, and their captured graphs.

    Without graphs an update runs at once. With graphs, updates within `learn` are pending until
    the environments begin a step; the device then works at the same time. An update learns from
    the replay as it was before that step.

    Args:
        update: the function that does one update.
        device: the device of the networks.

    Attributes:
        pending: number of pending updates.
        graphs: captured graphs; None if nothing is captured.
    """

    def __init__(self, update: SACUpdate, device: torch.device):
        self.update = update
        captures = update.captures and device.type == "cuda"
        self.graphs = GraphCache(device) if captures else None
        self.pending = 0
        self._device = device
        self._learning = False
        self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_learning": False}  # `learn` is not copied

    @property
    def waits(self) -> bool:
        """Whether updates are pending until the environments step."""
        return self.graphs is not None and self._learning

    @contextmanager
    def learning(self, env: object, finish: Callable[[], None]) -> Iterator[None]:
        """Keep updates pending in this context; `finish` does them while `env` steps."""
        self._learning = True
        if isinstance(env, SuiteVecEnv):
            env.on_step_started = finish
        try:
            yield
        finally:
            self._learning = False
            if isinstance(env, SuiteVecEnv):
                env.on_step_started = None

    def take(self) -> int:
        """Return the number of pending updates, and set it to 0."""
        pending, self.pending = self.pending, 0
        return pending

    def run(
        self,
        replay: TaskReplayBuffer,
        batch_size: int,
        number: int,
        env: VecNormalize | None = None,
    ) -> dict[str, Tensor]:
        """Do the update of this `number`, which counts from 0; return scalars for the log.

        An `env` scales the rewards. Its scale changes, so that such an update is not captured. It
        then draws weights from scratch if a reset is due, and averages the actor.
        """
        metrics = self._compute(replay, batch_size, number, env)
        policy, done = self.update.policy, number + 1
        resets = () if policy.searching else self.update.settings.reset_at
        if done in resets:
            self.update.reset_weights()
            self.forget()
        last_reset = max(at for at in (0, *resets) if at <= done)
        policy.average_actor(max(1, done - last_reset))
        return metrics

    def _compute(
        self, replay: TaskReplayBuffer, batch_size: int, number: int, env: VecNormalize | None
    ) -> dict[str, Tensor]:
        parts = self.update.parts_due(number)
        if self.graphs is None or env is not None:
            return self.update(replay, batch_size, parts, env)
        stepping = self.update.noticing.items()
        noticing = [one for n, one in stepping if one.layers and (parts.actor or n != "actor")]
        rings = replay.training, replay.validation
        places = [
            ring.data.data_ptr() for ring in rings
        ]  # because a different replay may be loaded
        kind = "update", batch_size, parts, *places, *(one.studying for one in noticing)

        def count() -> None:
            for one in noticing:
                one.count_step()

        update = partial(self.update, replay, batch_size, parts)
        metrics = self.graphs.run(kind, update, replayed=count)
        assert isinstance(metrics, dict)
        return metrics

    def act(self, observation: Tensor) -> Tensor:
        """Return stochastic actions `(row, action)` in [-1, 1] of a captured graph.

        The rows `(row, feature + task)` come from the agent's environments: every call has the same
        number of rows of the same tasks.
        """
        assert self.graphs is not None
        policy = self.update.policy
        policy.set_training_mode(False)
        rows_per_task = observation[:, -len(policy.tasks) :].sum(dim=0)
        max_rows_per_task = int(rows_per_task.max())
        kind = "actions", len(observation), max_rows_per_task
        act = partial(policy.sample_actions, max_rows_per_task=max_rows_per_task)
        actions = self.graphs.run(kind, act, observation)
        assert isinstance(actions, Tensor)
        return actions

    def prepare(self) -> None:
        """Adapt the optimisers to capture, or to its absence; captured graphs are dropped."""
        self._learning_rate: float | None = None
        for optimizer in self.update.optimizers():
            prepare_optimizer(optimizer, self._device if self.graphs is not None else None)
        self.forget()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of all optimisers except the gates'."""
        if self.graphs is not None and learning_rate == self._learning_rate:
            return  # it is on the device already
        self._learning_rate = learning_rate
        self.update.set_learning_rate(learning_rate)

    def forget(self) -> None:
        """Capture from scratch, because tensors have been replaced."""
        if self.graphs is not None:
            self.graphs.forget()
