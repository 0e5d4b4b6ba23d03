"""Multi-task environments whose best policy is known, and agents small enough for seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from conal_rl.agents import ConalSAC
from conal_rl.agents.replay import TaskBatch
from conal_rl.core import Structure
from conal_rl.envs import TaskVecEnv
from conal_rl.envs.vec_env import Task

FEATURES = 3


class Target(gym.Env[Any, Any]):
    """Rewards `-(action - target)^2` (a constant 1 where `target` is None).

    Observes the step of the episode and noise. An episode ends after `length` steps: truncated, or
    terminated with `terminates`. From step `broken_at` of the env's life on, it observes NaN; its
    step `fails_at` of that life fails.
    """

    def __init__(
        self,
        target: float | None = 0.5,
        length: int = 5,
        terminates: bool = False,
        bounds: tuple[float, float] = (-1.0, 1.0),
        actions: int = 1,
        broken_at: int | None = None,
        fails_at: int | None = None,
    ) -> None:
        self.observation_space = Box(-np.inf, np.inf, (FEATURES,), np.float64)
        self.action_space = Box(*bounds, (actions,), np.float32)
        self.target, self.length, self.terminates = target, length, terminates
        self.broken_at, self.fails_at, self.life = broken_at, fails_at, 0

    def _observe(self) -> NDArray[np.float64]:
        noise = self.np_random.uniform(-1, 1, FEATURES - 1)
        broken = self.broken_at is not None and self.life >= self.broken_at
        return np.array([np.nan if broken else self.steps, *noise])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.life += 1
        if self.fails_at == self.life:
            raise KeyError("door")
        reward = 1.0 if self.target is None else -float(((action - self.target) ** 2).sum())
        over = self.steps == self.length
        return self._observe(), reward, over and self.terminates, over and not self.terminates, {}


class Strict(Target):
    """Refuses actions out of its bounds."""

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return super().step(action)


def _register(env_id: str, env: type[Target] = Target, **settings: Any) -> None:
    gym.register(
        env_id,
        f"{__name__}:{env.__name__}",
        reward_threshold=-0.1,
        disable_env_checker=True,
        kwargs=settings,
    )


_register("Left-v0", target=-0.5)
_register("Right-v0", target=0.5)
_register("Target-v0", target=0.0)
_register("Broken-v0", broken_at=40)
_register("BrokenAtOnce-v0", broken_at=0)
_register("FailsAtOnce-v0", fails_at=1)
_register("Endless-v0", length=10**9)
_register("Strict-v0", Strict, target=0.75, bounds=(0.5, 1.0))


def tasks_named(count: int) -> tuple[str, ...]:
    return tuple(f"task-{i}" for i in range(count))


def make_env(
    targets: Sequence[float | None], envs_per_task: int = 1, seed: int = 0, **settings: Any
) -> TaskVecEnv:
    """A `Target` for every target, named task-0, task-1, ..."""
    tasks = [
        Task(name, partial(Target, target, **settings))
        for name, target in zip(tasks_named(len(targets)), targets, strict=True)
    ]
    return TaskVecEnv("toy", tasks, envs_per_task, seed)


def make_agent(
    tree: Structure | tuple[Structure | None, Structure | None] | None,
    targets: Sequence[float | None] = (-0.5, 0.5),
    env: VecEnv | None = None,
    widths: Sequence[int] = (8, 8),
    **settings: Any,
) -> ConalSAC:
    """A small agent on `make_env(targets)`, plain SAC unless `settings` say otherwise."""
    defaults: dict[str, Any] = {
        "critic": "mse",
        "reward_scale": 1.0,
        "critic_reduce": "min",
        "rule": "any_pair",
        "gate_learning_rate": 3e-4,
        "batch_size": 8,
        "buffer_size": 500,
        "learning_starts": 10,
        "seed": 0,
        "device": "cpu",
    }
    given = {**defaults, "widths": widths, **settings}
    agent = ConalSAC(env=env or make_env(targets), tree=tree, **given)
    agent.set_logger(configure(None, []))  # `train` logs, also without `learn` before it
    return agent


def random_batch(tasks: int, batch: int, actions: int = 1, seed: int = 0) -> TaskBatch:
    """Transitions of which half are terminal."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(tasks, batch, *size, generator=draw)

    return TaskBatch(
        observations=normal(FEATURES),
        actions=normal(actions).tanh(),
        next_observations=normal(FEATURES),
        rewards=normal(),
        dones=(normal() > 0).float(),
    )


def one_hot(rows: NDArray[np.float32], task: Sequence[int], tasks: int) -> NDArray[np.float32]:
    """Observations `(row, feature + task)` from features `(row, feature)` and tasks `(row,)`."""
    return np.concatenate([rows, np.eye(tasks)[list(task)]], axis=1, dtype=np.float32)


def random_rows(task: list[int], tasks: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """Observations of random features, one for each entry of `task`."""
    features = np.random.default_rng(seed).normal(size=(len(task), FEATURES))
    return one_hot(features.astype(np.float32), task, tasks)


def same_tensors(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two state dicts hold bitwise the same tensors under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
