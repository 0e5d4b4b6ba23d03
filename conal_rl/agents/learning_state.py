"""The state of learning of an agent, as the tensors and JSON types of a checkpoint."""

from __future__ import annotations

from collections import deque
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
from conal_rl.core.learner import Learner
from conal_rl.core.optimizers import optimizer_tensors, restore_optimizer
from conal_rl.errors import CheckpointError
from conal_rl.runs.weights import reason

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by group and name."""

_GROUPS = {
    "optimizer_weights": "optimizer_{}",
    "loss_weights": "loss_weights_{}",
    "conflict": "conflict_{}",
}
"""A learner's groups, and their names in the agent's checkpoint."""
_GATES = "optimizer_gates"
"""The group of an agent's checkpoint with the gates of all networks, numbered from 0."""


class LearningState(NamedTuple):
    """The parts of an agent that learning changes, and its random streams.

    Attributes:
        algorithm: SB3's counters, and the action space, which draws the first actions.
        replay: transitions.
        queue: pending updates, networks, optimisers, temperatures, loss weights, conflicts.
        recent: the last episodes.
    """

    algorithm: OffPolicyAlgorithm
    replay: TaskReplayBuffer
    queue: UpdateQueue
    recent: RecentEpisodes

    @classmethod
    def of(cls, agent: Any) -> LearningState:
        """Return the parts of a `ConalSAC`."""
        return cls(agent, agent.replay_buffer, agent.queue, agent.recent)

    def counted(self) -> dict[str, Any]:
        """Return the counts of conflicts and the last episodes, for SB3's zip file."""
        counted: dict[str, Any] = {"recent": self.recent.state()}
        for name, noticing in self.queue.update.noticing.items():
            tensors, counters = noticing.state()
            counted[name] = {n: t.cpu() for n, t in tensors.items()}, counters
        return counted

    def restore_counted(self, counted: Mapping[str, Any]) -> None:
        """Load what `counted` returned; a part that is missing stays."""
        self.recent.restore(counted.get("recent", {}))
        for name, noticing in self.queue.update.noticing.items():
            if name in counted:
                noticing.restore(*counted[name])

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
        if update.temperatures.optimizer is not None:
            groups["optimizer_temperature"] = optimizer_tensors(update.temperatures.optimizer)
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
            "last_episodes": [
                [float(episode["r"]), int(episode["l"])]
                for episode in algorithm.ep_info_buffer or ()
            ],
        }
        state["numpy_random"]["state"]["key"] = state["numpy_random"]["state"]["key"].tolist()
        learnt, state["noticing"] = _learners_state(update.learners)
        return groups | learnt, state

    def restore(self, groups: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Load what `save` returned for an agent with equal settings.

        Raises:
            CheckpointError: the agent had different tasks, trees or sizes.
        """
        algorithm, update = self.algorithm, self.queue.update
        with checkpoint_that_fits():
            update.policy.load_state_dict(groups["policy"])
            self.replay.restore(groups["replay"], state["replay"])
            if update.temperatures.log is not None:
                with torch.no_grad():
                    update.temperatures.log.copy_(groups["temperature"]["log"])
            if update.temperatures.optimizer is not None:
                restore_optimizer(update.temperatures.optimizer, groups["optimizer_temperature"])
            _restore_learners(update.learners, groups, state["noticing"])
            self.recent.restore(state["recent"])
            last = [{"r": total, "l": steps} for total, steps in state.get("last_episodes", ())]
            # Both exist, or SB3 makes both again.
            algorithm.ep_info_buffer = deque(last, maxlen=algorithm._stats_window_size)
            algorithm.ep_success_buffer = deque(maxlen=algorithm._stats_window_size)
            algorithm.num_timesteps = state["steps"]
            algorithm._n_updates = state["updates"]
            self.queue.pending = state.get("put_off", 0)
            # SB3 sets it after a step of the envs, but pending updates come before.
            algorithm._current_progress_remaining = state.get("progress_left", 1.0)
            algorithm._episode_num = state["episodes"]
            torch.set_rng_state(groups["random"]["torch"])
            if algorithm.device.type == "cuda" and "cuda" in groups["random"]:
                torch.cuda.set_rng_state(groups["random"]["cuda"], algorithm.device)
            np.random.set_state(state["numpy_random"])  # noqa: NPY002
            algorithm.action_space.np_random.bit_generator.state = state["actions_random"]
        self.queue.forget()


def _learners_state(learners: Mapping[str, Learner]) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors of all learners by group, and their counts of conflicts by name."""
    groups: Tensors = {}
    noticing: dict[str, Any] = {}
    for name, learner in learners.items():
        tensors, counters = learner.state()
        groups |= {here.format(name): tensors[g] for g, here in _GROUPS.items() if g in tensors}
        if learner.gates is not None:
            first, number = "0.", _number_of_gates(name, learners)
            moments = {number + key.removeprefix(first): t for key, t in tensors[_GATES].items()}
            groups[_GATES] = groups.get(_GATES, {}) | moments
        if "noticing" in counters:
            noticing[name] = counters["noticing"]
    return groups, noticing


def _restore_learners(
    learners: Mapping[str, Learner],
    groups: Mapping[str, dict[str, Tensor]],
    noticing: Mapping[str, Any],
) -> None:
    for name, learner in learners.items():
        named = {group: pattern.format(name) for group, pattern in _GROUPS.items()}
        tensors = {group: groups[there] for group, there in named.items() if there in groups}
        if learner.gates is not None:
            first, number = "0.", _number_of_gates(name, learners)
            moments = {key: t for key, t in groups[_GATES].items() if key.startswith(number)}
            tensors[_GATES] = {first + key.removeprefix(number): t for key, t in moments.items()}
        learner.restore(tensors, {"noticing": noticing.get(name)})


def _number_of_gates(name: str, learners: Mapping[str, Learner]) -> str:
    """Return the number of a network's gates among those of all networks, such as `1.`"""
    gated = [each for each, learner in learners.items() if learner.gates is not None]
    return f"{gated.index(name)}."


@contextmanager
def checkpoint_that_fits() -> Iterator[None]:
    """Raise CheckpointError for any error of a different agent's checkpoint in this context."""
    try:
        yield
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise CheckpointError(
            f"checkpoint: got a different agent ({cause}), expected one that fits the config. "
            "Start a new run"
        ) from error


@contextmanager
def zip_of_this_version(path: object) -> Iterator[None]:
    """Raise CheckpointError for any error of a different version's zip file in this context."""
    try:
        yield
    except (AttributeError, ImportError, MissingSettings) as error:
        if isinstance(error, AttributeError) and "Can't get attribute" not in str(error):
            raise  # not from unpickling a class that has a different name now
        raise CheckpointError(
            f"{path}: got a zip file of a different version of conal_rl, or of a different "
            f"algorithm ({reason(error)}), expected one of this ConalSAC. Load it with the version "
            "that saved it, and export it with save_weights"
        ) from error
