"""Replay for many tasks: one ring per task, sampled equally, with separate validation data."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

SMALLEST_RETURN = 1e-3
"""Smallest divisor of a task's rewards: smaller returns are not scaled up further."""


class TaskBatch(NamedTuple):
    """Transitions, task-major; observations without the one-hot task ID."""

    observations: Tensor  # (task, batch, feature)
    actions: Tensor  # (task, batch, action), scaled to [-1, 1]
    next_observations: Tensor  # (task, batch, feature)
    rewards: Tensor  # (task, batch)
    dones: Tensor  # (task, batch), 1 if the episode terminated; truncation is not termination
    discounts: Tensor | None = (
        None  # (task, batch), discount of the next value; None: the agent's gamma
    )


class Ring:
    """One ring of transitions per task in one tensor `(task, capacity, width)`."""

    def __init__(self, tasks: int, capacity: int, width: int, device: torch.device):
        self.data = torch.zeros(tasks, capacity, width, device=device, dtype=torch.float32)
        self.added = np.zeros(tasks, dtype=np.int64)
        self.move(device)

    def move(self, device: torch.device) -> None:
        """Move the transitions to a different device."""
        self.data = self.data.to(device)
        # The sizes are on the device, so that `sample` never waits.
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._held = torch.from_numpy(self.sizes).unsqueeze(1).to(device, exact)
        self._first = torch.arange(len(self.added), device=device).unsqueeze(1) * self.capacity

    @property
    def capacity(self) -> int:
        """Number of transitions per task that fit."""
        return self.data.shape[1]

    @property
    def sizes(self) -> np.ndarray:
        """Number of stored transitions, `(task,)`."""
        return np.minimum(self.added, self.capacity)

    def add(self, task: np.ndarray, rows: Tensor) -> None:
        """Append `rows` `(n, width)` to the rings of their tasks `(n,)`, in order."""
        tasks = len(self.added)
        rank = (np.eye(tasks, dtype=np.int64)[task].cumsum(0) - 1)[np.arange(len(task)), task]
        place = task * self.capacity + (self.added[task] + rank) % self.capacity
        device = self.data.device
        flat = self.data.view(-1, self.data.shape[-1])
        flat.index_copy_(0, torch.from_numpy(place).to(device), rows.to(device))
        self.count(self.added + np.bincount(task, minlength=tasks))

    def count(self, added: np.ndarray) -> None:
        """Set the number of transitions ever added to each task's ring, `(task,)`."""
        before = self.sizes
        self.added[:] = added
        if (self.sizes != before).any():
            self._held.copy_(torch.from_numpy(self.sizes).unsqueeze(1))

    def sample(self, batch: int) -> Tensor:
        """Return uniform draws with replacement for each task, `(task, batch, width)`."""
        held = self._held
        draw = torch.rand(len(held), batch, device=held.device, dtype=held.dtype)
        slot = torch.minimum(draw * held, held - 1).long()  # a product may be rounded up
        flat = self.data.view(-1, self.data.shape[-1])
        return flat.index_select(0, (self._first + slot).flatten()).view(len(held), batch, -1)


class NStepReturns:
    """Joins consecutive transitions of every environment into transitions of `n` steps.

    As in SB3's `NStepReplayBuffer`, rewards are discounted sums and the next observation comes from
    the last step. At the end of an episode, open transitions are completed with fewer steps.
    """

    def __init__(self, n: int, gamma: float):
        self.n, self.gamma = n, gamma
        self.clear()

    def clear(self) -> None:
        """Forget open transitions, because the environments begin new episodes."""
        self.open = np.zeros((self.n - 1, 0, 0), dtype=np.float32)  # (n - 1, env, column)
        self.used = np.zeros(
            (self.n - 1, 0), dtype=bool
        )  # (n - 1, env), whether the transition is in use

    def extend(
        self, rows: np.ndarray, start: int, done: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take a transition of every environment, `(env, column)`.

        Args:
            rows: columns from `start` on: next observation, reward, terminated.
            done: `(env,)`, whether the episode ended.

        Returns:
            Completed transitions `(row, column + 1)`, with the discount in the last column, and
            the environment of each, `(row,)`.
        """
        rows = np.column_stack([rows, np.full(len(rows), self.gamma, dtype=np.float32)])
        if not self.open.size:
            self.open = np.zeros((self.n - 1, *rows.shape), dtype=np.float32)
            self.used = np.zeros((self.n - 1, len(rows)), dtype=bool)
        reward, discount = self.open[..., -3].copy(), self.open[..., -1].copy()
        self.open[..., start:] = rows[:, start:]
        self.open[..., -3] = reward + discount * rows[:, -3]
        self.open[..., -1] = discount * self.gamma
        candidates = np.concatenate([self.open, rows[None]])
        used = np.concatenate([self.used, np.ones((1, len(rows)), dtype=bool)])
        complete = used & done
        complete[0] = used[0]
        self.open, self.used = candidates[1:], (used & ~complete)[1:]
        return candidates[complete], np.nonzero(complete)[1]


class LargestReturns:
    """The largest magnitude so far of each task's discounted sum of rewards.

    Source: Nauman et al., "Bigger, Regularized, Categorical" (2025), who divide by the largest
    return.
    """

    def __init__(self, tasks: int, gamma: float):
        self.gamma = gamma
        self.largest = np.zeros(tasks, dtype=np.float32)  # (task,)
        self.clear()

    def clear(self) -> None:
        """Forget the running sums, because the environments begin new episodes."""
        self.running = np.zeros(1)  # (env,), sums since the start of the episodes

    def add(self, task: np.ndarray, reward: np.ndarray, done: np.ndarray) -> None:
        """Take a step of every environment, `(env,)` each."""
        running = self.gamma * self.running + np.asarray(reward, dtype=np.float64)
        np.maximum.at(self.largest, task, np.abs(running))
        self.running = np.where(done, 0.0, running)


class TaskReplayBuffer(ReplayBuffer):
    """SB3's replay interface over one ring per task.

    A fixed share of whole episodes goes to a second ring, the validation data of the gates. The
    one-hot at the end of an observation names its task, so that any order of environments works.
    Each environment keeps its task.

    Args:
        buffer_size: transitions per task.
        num_tasks: length of the one-hot tail.
        validation_share: share of each task's episodes that go to the validation ring.
        n_steps, gamma: number of env steps in a stored transition, and their discount.
        normalize_returns: divide each task's sampled rewards by its `LargestReturns`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        num_tasks: int = 1,
        validation_share: float = 0.0,
        n_steps: int = 1,
        gamma: float = 0.99,
        normalize_returns: bool = False,
    ):
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        assert isinstance(observation_space, spaces.Box)
        self.num_tasks = num_tasks
        self.validation_share = validation_share
        self.returns = NStepReturns(n_steps, gamma) if n_steps > 1 else None
        self.largest_returns = LargestReturns(num_tasks, gamma) if normalize_returns else None
        self.features = observation_space.shape[0] - num_tasks
        width = 2 * self.features + self.action_dim + 2 + (n_steps > 1)
        kept = max(1, round(buffer_size * validation_share)) if validation_share else 0
        if kept and kept >= buffer_size:
            raise ValueError(
                f"buffer_size: got {buffer_size}, expected more. Validation gets all of its "
                "transitions; raise buffer_size or lower validation_share"
            )
        self.training = Ring(num_tasks, buffer_size - kept, width, self.device)
        self.validation = Ring(num_tasks, max(1, kept), width, self.device)
        self.handle_timeout_termination = True
        # Per task, the begun episodes, and how many of them are for validation.
        self._episodes = np.zeros(num_tasks, dtype=np.int64)
        self._validation_episodes = np.zeros(num_tasks, dtype=np.int64)
        self._validating: np.ndarray | None = None  # (env,)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment, `(env, ...)`."""
        task = obs[:, -self.num_tasks :].argmax(axis=1)
        if self._validating is None:
            self._validating = np.array([self._begin_episode(t) for t in task])
            for sums in (self.returns, self.largest_returns):
                if sums is not None:
                    sums.clear()
        if self.largest_returns is not None:
            self.largest_returns.add(task, reward, done)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        row = np.concatenate(
            [
                obs[:, : -self.num_tasks],
                action.reshape(len(obs), -1),
                next_obs[:, : -self.num_tasks],
                reward[:, None],
                (done & ~truncated)[:, None],
            ],
            axis=1,
            dtype=np.float32,
        )
        source = np.arange(len(row))
        if self.returns is not None:
            row, source = self.returns.extend(row, self.features + self.action_dim, done)
        validating = self._validating[source]
        for ring, chosen in ((self.training, ~validating), (self.validation, validating)):
            if chosen.any():
                ring.add(task[source[chosen]], torch.from_numpy(row[chosen]))
        for env in np.flatnonzero(done):
            self._validating[env] = self._begin_episode(task[env])

    def _begin_episode(self, task: int) -> bool:
        """Return whether the next episode of `task` is for validation; a fixed share is."""
        self._episodes[task] += 1
        due = self._validation_episodes[task] < self.validation_share * self._episodes[task]
        self._validation_episodes[task] += due
        return bool(due)

    def begun_episodes(self) -> list[bool]:
        """Return whether the current episode of each environment is for validation."""
        return [] if self._validating is None else self._validating.tolist()

    def continue_episodes(self, validating: list[bool]) -> None:
        """Let environments continue the episodes of `begun_episodes` after `restore`."""
        self._validating = np.array(validating) if validating else None

    def cut_episodes(self) -> None:
        """Let every environment begin a new episode after a reset; stored transitions stay."""
        self._validating = None

    def reset(self) -> None:
        """Forget all transitions and episodes."""
        super().reset()
        for ring in (self.training, self.validation):
            ring.count(np.zeros_like(ring.added))
        self._episodes[:] = self._validation_episodes[:] = 0
        self.cut_episodes()

    def move(self, device: torch.device) -> None:
        """Move all transitions to a device."""
        self.device = device
        for ring in (self.training, self.validation):
            ring.move(device)

    @property
    def full(self) -> bool:
        """Whether all rings are full."""
        rings = (self.training, self.validation) if self.validation_share else (self.training,)
        return all(bool((ring.sizes == ring.capacity).all()) for ring in rings)

    @full.setter
    def full(self, value: bool) -> None:
        pass  # SB3's `reset` sets it, but the rings know it

    @property
    def pos(self) -> int:
        """Transitions ever added to the task with fewest, modulo `buffer_size`."""
        return int((self.training.added + self.validation.added).min()) % self.buffer_size

    @pos.setter
    def pos(self, value: int) -> None:
        pass

    def size(self) -> int:
        """Return the number of all stored transitions, for training and validation."""
        return int(self.training.sizes.sum() + self.validation.sizes.sum())

    def ready(self) -> bool:
        """Return whether every task can be sampled."""
        held = self.validation_share == 0 or self.validation.sizes.min() > 0
        return bool(self.training.sizes.min() > 0 and held)

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> TaskBatch:
        """Draw `batch_size` training transitions of every task; `env` scales their rewards."""
        return self._split(self.training.sample(batch_size), env)

    def sample_validation(self, batch_size: int, env: VecNormalize | None = None) -> TaskBatch:
        """Draw `batch_size` validation transitions of every task, like `sample`."""
        return self._split(self.validation.sample(batch_size), env)

    def _split(self, rows: Tensor, env: VecNormalize | None = None) -> TaskBatch:
        sizes = [self.features, self.action_dim, self.features]
        obs, action, next_obs, scalars = rows.split([*sizes, rows.shape[-1] - sum(sizes)], dim=-1)
        batch = TaskBatch(obs, action, next_obs, *scalars.unbind(dim=-1))
        if env is not None and env.norm_reward:
            returns = self.returns
            # SB3 clips before it sums n steps. A sum of rewards within the limits is the same.
            steps = 1.0 if returns is None else sum(returns.gamma**i for i in range(returns.n))
            scale, limit = float(np.sqrt(env.ret_rms.var + env.epsilon)), steps * env.clip_reward
            return batch._replace(rewards=(batch.rewards / scale).clamp(-limit, limit))
        if self.largest_returns is None:
            return batch
        largest = torch.from_numpy(self.largest_returns.largest).to(rows.device).unsqueeze(1)
        return batch._replace(rewards=batch.rewards / largest.clamp(min=SMALLEST_RETURN))

    def inherit_from(self, other: "TaskReplayBuffer") -> None:
        """Copy the transitions of a different buffer of the same tasks, spaces and `n_steps`.

        Validation episodes stay separate if this buffer has a validation share too. Otherwise they
        join the training data.
        """
        apart = self.validation if self.validation_share else self.training
        if self.validation_share and other.validation_share:
            self._episodes[:] = other._episodes
            self._validation_episodes[:] = other._validation_episodes
        if self.largest_returns is not None and other.largest_returns is not None:
            self.largest_returns.largest[:] = other.largest_returns.largest
        for ring, target in ((other.training, self.training), (other.validation, apart)):
            for task, size in enumerate(ring.sizes):
                order = (np.arange(size) + ring.added[task] - size) % ring.capacity
                for part in np.array_split(order, max(1, size // 10_000)):
                    rows = ring.data[task, torch.from_numpy(part).to(ring.data.device)]
                    target.add(np.full(len(part), task), rows)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state for a checkpoint: the filled parts of the rings, and the counters."""
        tensors = {
            f"{name}.{task}": ring.data[task, :size]
            for name, ring in (("training", self.training), ("validation", self.validation))
            for task, size in enumerate(ring.sizes)
            if size
        }
        if self.returns is not None and self.returns.open.size:
            tensors["returns.open"] = torch.from_numpy(self.returns.open)
            tensors["returns.used"] = torch.from_numpy(self.returns.used)
        counters: dict[str, Any] = {
            "training_added": self.training.added.tolist(),
            "validation_added": self.validation.added.tolist(),
            "episodes": self._episodes.tolist(),
            "validation_episodes": self._validation_episodes.tolist(),
        }
        if self.largest_returns is not None:
            counters["largest_returns"] = self.largest_returns.largest.tolist()
            counters["running_returns"] = self.largest_returns.running.tolist()
        return tensors, counters

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Load what `state` returned; open episodes are cut.

        Raises:
            ValueError: a full ring has a different size, the returns have a different number of
                steps, or only one of the two buffers normalises the returns.
        """
        for name, ring in (("training", self.training), ("validation", self.validation)):
            ring.count(np.array(counters[f"{name}_added"]))
            for task, size in enumerate(ring.sizes):
                rows = tensors.get(f"{name}.{task}", ring.data[task, :0])
                if len(rows) != size:
                    raise ValueError(
                        f"buffer_size: got {len(rows)} {name} transitions, expected {size}: "
                        f"{ring.capacity} of its transitions are for {name}. Give the size that it "
                        "was filled with"
                    )
                ring.data[task, :size] = rows
        if self.returns is not None and "returns.open" in tensors:
            if len(tensors["returns.open"]) != self.returns.n - 1:
                steps = len(tensors["returns.open"]) + 1
                raise ValueError(f"n_steps: got returns of {steps}, expected {self.returns.n}")
            self.returns.open = tensors["returns.open"].numpy()
            self.returns.used = tensors["returns.used"].numpy()
        if (self.largest_returns is not None) != ("largest_returns" in counters):
            raise ValueError(
                "normalize_returns: got a value that the replay was not filled with, expected the "
                "same value. Load it into an agent with the settings that it was filled with"
            )
        if self.largest_returns is not None:
            self.largest_returns.largest[:] = counters["largest_returns"]
            self.largest_returns.running = np.array(counters["running_returns"])
        self._episodes[:] = counters["episodes"]
        self._validation_episodes[:] = counters["validation_episodes"]
        self.cut_episodes()


def require_replay(
    replay: object,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    num_tasks: int,
    validation_share: float,
    n_steps: int,
    gamma: float,
    normalize_returns: bool,
) -> TaskReplayBuffer:
    """Return `replay` if it fits an agent; the arguments are those of its `TaskReplayBuffer`.

    Raises:
        ValueError: it is something else, or it was filled with different settings.
    """
    if not isinstance(replay, TaskReplayBuffer):
        raise ValueError(
            f"replay buffer: got a {type(replay).__name__}, expected the replay of a ConalSAC. "
            "Give a file of save_replay_buffer"
        )
    assert observation_space.shape is not None
    returns = replay.returns
    for name, theirs, ours in (
        ("tasks", replay.num_tasks, num_tasks),
        ("observations", replay.features, observation_space.shape[0] - num_tasks),
        ("actions", replay.action_dim, get_action_dim(action_space)),
        ("n_steps", 1 if returns is None else returns.n, n_steps),
        ("gamma", gamma if returns is None else returns.gamma, gamma),
        ("normalize_returns", replay.largest_returns is not None, normalize_returns),
        ("validation_share", replay.validation_share, validation_share),
    ):
        if theirs != ours:
            raise ValueError(
                f"replay buffer: got {name} {theirs}, expected {ours}. "
                "Load it into an agent with the settings that it was filled with"
            )
    return replay
