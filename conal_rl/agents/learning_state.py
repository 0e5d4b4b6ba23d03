"""All that learning changes in an agent, as the tensors and JSON types of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from conal_rl.agents.arguments import MissingSettings
from conal_rl.agents.episode_stats import RecentEpisodes
from conal_rl.agents.model_files import describe
from conal_rl.agents.replay import TaskReplayBuffer
from conal_rl.agents.update_queue import UpdateQueue
from conal_rl.errors import CheckpointError
from conal_rl.runs.weights import optimizer_tensors, reason, restore_optimizer

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by group and name."""


class LearningState(NamedTuple):
    """The parts of an agent that learning changes, and the random streams that it draws from.

    Attributes:
        algorithm: SB3's counters, and the action space, which draws the first actions.
        replay: transitions.
        queue: updates that wait; networks, optimisers, temperatures, loss weights, conflicts.
        recent: the last episodes.
    """

    algorithm: OffPolicyAlgorithm
    replay: TaskReplayBuffer
    queue: UpdateQueue
    recent: RecentEpisodes

    def save(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the tensors by group, and the rest as JSON types."""
        algorithm, update = self.algorithm, self.queue.update
        replay, replay_counters = self.replay.state()
        groups: Tensors = {"policy": dict(update.policy.state_dict()), "replay": replay}
        groups["random"] = {"torch": torch.get_rng_state()}
        if algorithm.device.type == "cuda":
            groups["random"]["cuda"] = torch.cuda.get_rng_state(algorithm.device)
        if update.temperatures.log is not None:
            groups["temperature"] = {"log": update.temperatures.log.detach()}
        state: dict[str, Any] = {
            "model": describe(update.policy, algorithm.num_timesteps),
            "steps": algorithm.num_timesteps,
            "updates": algorithm._n_updates,
            "put_off": self.queue.pending,
            "progress_left": algorithm._current_progress_remaining,
            "episodes": algorithm._episode_num,
            "replay": replay_counters,
            "numpy_random": np.random.get_state(legacy=False),  # noqa: NPY002 - SB3's stream
            "actions_random": algorithm.action_space.np_random.bit_generator.state,
            "recent": self.recent.state(),
            "noticing": {},
        }
        state["numpy_random"]["state"]["key"] = state["numpy_random"]["state"]["key"].tolist()
        for name, optimizer in update.optimizers().items():
            groups[f"optimizer_{name}"] = optimizer_tensors(optimizer)
        for name, noticing in update.noticing.items():
            groups[f"conflict_{name}"], state["noticing"][name] = noticing.state()
        for name, learner in update.learners.items():
            groups[f"loss_weights_{name}"] = learner.loss_weights.state_dict()
        return groups, state

    def restore(self, groups: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Load what `save` returned for an agent that was built alike.

        Raises:
            CheckpointError: it was of an agent with different tasks, trees or sizes.
        """
        algorithm, update = self.algorithm, self.queue.update
        with checkpoint_that_fits():
            update.policy.load_state_dict(groups["policy"])
            self.replay.restore(groups["replay"], state["replay"])
            if update.temperatures.log is not None:
                with torch.no_grad():
                    update.temperatures.log.copy_(groups["temperature"]["log"])
            for name, optimizer in update.optimizers().items():
                restore_optimizer(optimizer, groups[f"optimizer_{name}"])
            for name, noticing in update.noticing.items():
                noticing.restore(groups[f"conflict_{name}"], state["noticing"][name])
            for name, learner in update.learners.items():
                learner.loss_weights.load_state_dict(groups[f"loss_weights_{name}"])
            self.recent.restore(state["recent"])
            algorithm.num_timesteps = state["steps"]
            algorithm._n_updates = state["updates"]
            self.queue.pending = state.get("put_off", 0)
            # SB3 sets it after a step of the envs, but updates that wait come before.
            algorithm._current_progress_remaining = state.get("progress_left", 1.0)
            algorithm._episode_num = state["episodes"]
            torch.set_rng_state(groups["random"]["torch"])
            if algorithm.device.type == "cuda" and "cuda" in groups["random"]:
                torch.cuda.set_rng_state(groups["random"]["cuda"], algorithm.device)
            np.random.set_state(state["numpy_random"])  # noqa: NPY002
            algorithm.action_space.np_random.bit_generator.state = state["actions_random"]
        self.queue.forget()


@contextmanager
def checkpoint_that_fits() -> Iterator[None]:
    """Turn what a checkpoint of a different agent raises in this context into CheckpointError."""
    try:
        yield
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise CheckpointError(f"the checkpoint does not fit this config: {cause}") from error


@contextmanager
def zip_of_this_version(path: object) -> Iterator[None]:
    """Turn what a zip file of a different version raises in this context into CheckpointError."""
    try:
        yield
    except (AttributeError, ImportError, MissingSettings) as error:
        raise CheckpointError(
            f"{path}: got a zip file of a different version of conal_rl ({reason(error)}), "
            "expected one with settings. Load it with the version that saved it, and export it "
            "with save_weights"
        ) from error
