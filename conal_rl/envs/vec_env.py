"""`TaskVecEnv`: envs of several tasks, stepped in turn, as one Stable-Baselines3 `VecEnv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from conal_rl.errors import ConalError, ObservationError, SuiteError, of_user_code

Suite = str | tuple[str, ...]
Observation = npt.NDArray[np.float32]  # (obs_dim + num_tasks,)


class Task(NamedTuple):
    """One task of a suite."""

    name: str
    build: Callable[[], gym.Env[Any, Any]]  # makes a new env of this task


class TaskEnv(gym.Wrapper[Observation, npt.NDArray[Any], Any, Any]):
    """One env as the agent sees it.

    Pads the observation with zeros to `obs_dim`, appends the one-hot of `task`, and raises
    `ObservationError` on a NaN or inf, or on an observation of another length than its space's,
    before it can reach a replay buffer; `SuiteError` where the env's own code fails.

    `info["is_success"]` at the end of an episode is the env's own. Where it has none, it says
    whether `info["success"]` was true at any step, or else whether the return reached the
    `reward_threshold` of the env's gymnasium spec. Once an env has spoken of success, an episode
    of which it says nothing counts as failed; those before were judged by the threshold.
    """

    def __init__(
        self, env: gym.Env[Any, Any], name: str, index: int, task: int, num_tasks: int, obs_dim: int
    ) -> None:
        super().__init__(env)
        low = np.full(obs_dim + num_tasks, -np.inf, dtype=np.float32)
        low[obs_dim:] = 0.0
        high = np.full(obs_dim + num_tasks, np.inf, dtype=np.float32)
        high[obs_dim:] = 1.0
        self.observation_space = Box(low, high)
        self._empty = np.zeros(obs_dim + num_tasks, dtype=np.float32)
        self._empty[obs_dim + task] = 1.0
        self._where = f"task {name!r}, env {index} of the task"
        assert env.observation_space.shape is not None
        (self._length,) = env.observation_space.shape
        self._solved: bool | None = None  # None: the env has never spoken of success
        self._threshold = env.spec.reward_threshold if env.spec else None
        self._begin()

    def _begin(self) -> None:
        self._step = 0
        self._return = 0.0
        self._solved = None if self._solved is None else False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class."""
        self._begin()
        try:
            answer: Any = self.env.reset(seed=seed, options=options)
        except ConalError:
            raise
        except Exception as error:  # whatever the env's own code raises
            if isinstance(error, TypeError) and "keyword argument" in str(error):
                told = f"its reset does not take seed and options: {error}; mend the env"
            else:
                told = f"its reset fails: {of_user_code(error)}"
            raise SuiteError(f"{self._where}: {told}") from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ObservationError(
                f"{self._where}: its reset does not return an observation and an info; mend the env"
            )
        return self._observation(answer[0]), answer[1]

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step; see the class."""
        self._step += 1
        try:
            answer: Any = self.env.step(action)
        except ConalError:
            raise
        except Exception as error:  # whatever the env's own code raises
            raise SuiteError(
                f"{self._where}: its step {self._step} of the episode fails: {of_user_code(error)}"
            ) from error
        fits = isinstance(answer, tuple) and len(answer) == 5 and isinstance(answer[4], Mapping)
        if not fits:
            raise ObservationError(
                f"{self._where}: its step does not return an observation, a reward, terminated, "
                "truncated and an info; mend the env"
            )
        obs, given, terminated, truncated, own_info = answer
        info = dict(own_info)  # the env may keep its own, and return it again
        if np.ndim(cast(Any, given)) or not isinstance(given, SupportsFloat):
            raise ObservationError(
                f"{self._where}: the reward at step {self._step} of the episode is {given!r:.60}, "
                "expected a number; mend the env"
            )
        reward = float(given)
        if not math.isfinite(reward):
            raise self._error("reward")
        self._return += reward
        for key in {"success", "is_success"} & info.keys():
            if np.size(info[key]) != 1:
                raise ObservationError(
                    f"{self._where}: info[{key!r}] at step {self._step} of the episode is "
                    f"{info[key]!r:.60}, expected true or false; mend the env"
                )
        if "success" in info or "is_success" in info:
            self._solved = bool(self._solved or info.get("success"))
        if (terminated or truncated) and "is_success" not in info:
            if self._solved is not None:
                info["is_success"] = self._solved
            elif self._threshold is not None:
                info["is_success"] = self._return >= self._threshold
        return self._observation(obs), reward, terminated, truncated, info

    def _observation(self, obs: npt.NDArray[Any]) -> Observation:
        if np.shape(obs) != (self._length,):
            raise ObservationError(
                f"{self._where}: an observation of shape {np.shape(obs)} at step {self._step} of "
                f"the episode, but its space is of ({self._length},); mend the env"
            )
        out: Observation = self._empty.copy()
        with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is caught below
            out[: len(obs)] = obs
        if not np.isfinite(out).all():
            raise self._error("observation")
        return out

    def _error(self, what: str) -> ObservationError:
        return ObservationError(
            f"{self._where}: the {what} is NaN or inf at step {self._step} of the episode; "
            "mend the env"
        )


def stream_seeds(seed: int, num_tasks: int, envs_per_task: int) -> Sequence[int]:
    """A seed for every env of a suite; an env's depends on its own place alone."""
    return [
        int(np.random.SeedSequence([seed, task, k]).generate_state(1)[0])
        for task in range(num_tasks)
        for k in range(envs_per_task)
    ]


def require_actions(
    actions: npt.NDArray[Any], tasks: Sequence[str], envs_per_task: int, size: int
) -> None:
    """Raise ObservationError unless actions are finite numbers `(env, size)`."""
    shape = len(tasks) * envs_per_task, size
    if np.shape(actions) != shape:
        raise ObservationError(
            f"got actions of shape {np.shape(actions)}, expected {shape}: a row for every env"
        )
    if not np.isfinite(actions).all():
        i = int(np.argwhere(~np.isfinite(actions))[0, 0])
        task, k = divmod(i, envs_per_task)
        raise ObservationError(
            f"task {tasks[task]!r}, env {k} of the task: its action is NaN or inf: "
            f"{np.asarray(actions)[i].tolist()}"
        )


class EnvState(NamedTuple):
    """Where all episodes of a suite stand, for a checkpoint."""

    arrays: dict[str, npt.NDArray[Any]]
    streams: list[Any]  # the random stream of every env, as JSON types


class SuiteVecEnv(VecEnv):
    """What the `VecEnv` of a suite has, whatever steps it.

    Attributes:
        on_step_started: called in every `step`, once the environments have begun it.
    """

    suite: Suite
    tasks: tuple[str, ...]
    num_tasks: int
    envs_per_task: int
    on_step_started: Callable[[], object] | None = None

    def step(self, actions: npt.NDArray[Any]) -> VecEnvStepReturn:
        """As SB3's, with `meanwhile` in between."""
        self.step_async(actions)
        try:
            if self.on_step_started is not None:
                self.on_step_started()
        finally:  # a step that has begun must end
            result = self.step_wait()
        return result

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed all envs from their next reset on, and the action space from now on.

        Args:
            seed: At least 0; drawn from numpy's global stream when None, as in SB3.

        Returns:
            The seed of every env.
        """
        if seed is None:
            seed = int(np.random.randint(2**32, dtype=np.uint32))  # noqa: NPY002
        self._seeds = [*stream_seeds(seed, self.num_tasks, self.envs_per_task)]
        self.action_space.seed(seed)
        return self._seeds

    def standing(self) -> EnvState | None:
        """Where the episodes stand; None where they cannot be left and gone on with."""
        return None

    def resume(self, standing: EnvState) -> Observation:
        """Go on exactly from where `standing()` of an env made alike was; its observations.

        Raises:
            ValueError: `standing` is of other tasks, or of another number of envs.
        """
        raise ValueError("these envs can only begin new episodes")


class TaskVecEnv(SuiteVecEnv, DummyVecEnv):
    """All envs of a suite, stepped one after the other; env `task * envs_per_task + k`.

    Observations are float32 `(num_tasks * envs_per_task, obs_dim + num_tasks)`, the task's one-hot
    last; rewards are the envs' own. Every env has its own random stream, derived from
    `(seed, task, k)`, so the same seed gives the same rollout for the same actions.

    Args:
        suite: The suite's name or its tasks, kept as an attribute.
        tasks: The tasks, in the order of the one-hot.
        envs_per_task: How many envs of each task, at least 1.
        seed: Seed of all env streams, at least 0. `seed()` sets it anew for the next reset.

    Raises:
        SuiteError: The tasks' spaces do not fit together, or an env cannot be made.
    """

    def __init__(
        self, suite: Suite, tasks: Sequence[Task], envs_per_task: int = 1, seed: int = 0
    ) -> None:
        self.suite = suite
        self.tasks = tuple(task.name for task in tasks)
        self.num_tasks = len(tasks)
        self.envs_per_task = envs_per_task

        first = [task.build() for task in tasks]  # the spaces of all are needed to wrap any
        obs_dim = _common_obs_dim(self.tasks, first)
        # One action space for all: SB3 samples from it and sends float32.
        space = first[0].action_space
        assert isinstance(space, Box)
        action_space = Box(space.low.astype(np.float32), space.high.astype(np.float32))

        def wrap(index: int, k: int) -> gym.Env[Any, Any]:
            task = tasks[index]
            base = first[index] if k == 0 else task.build()
            env = TaskEnv(base, task.name, k, index, len(tasks), obs_dim)
            env.action_space = action_space
            return Monitor(env)

        super().__init__(
            [partial(wrap, i, k) for i in range(len(tasks)) for k in range(envs_per_task)]
        )
        self.seed(seed)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """As SB3's.

        Raises:
            ObservationError: the actions are of another shape, NaN or inf.
        """
        require_actions(
            actions,
            self.tasks,
            self.envs_per_task,
            self.action_space.shape[0],  # type: ignore[index]
        )
        super().step_async(actions)


def _common_obs_dim(names: Sequence[str], envs: Sequence[gym.Env[Any, Any]]) -> int:
    for name, env in zip(names, envs, strict=True):
        if not isinstance(env.action_space, Box):
            raise SuiteError(
                f"task {name!r} has the action space {env.action_space}; tasks need a Box: "
                "wrap the env so that a continuous action selects one of its actions"
            )
        actions = env.action_space
        if len(actions.shape) != 1 or not actions.is_bounded() or actions.dtype.kind != "f":
            raise SuiteError(
                f"task {name!r} has the action space {actions}; tasks need a 1-D Box of finite "
                "bounds and floating-point numbers: wrap the env, for instance in gymnasium's "
                "RescaleAction or TransformAction"
            )
        obs = env.observation_space
        if not isinstance(obs, Box) or len(obs.shape) != 1:
            raise SuiteError(
                f"task {name!r} has the observation space {obs}; tasks need a 1-D Box: "
                "wrap the env, for instance in gymnasium's FlattenObservation"
            )
        if not _same_actions(env.action_space, envs[0].action_space):
            raise SuiteError(
                f"tasks {names[0]!r} and {name!r} have the action spaces {envs[0].action_space} "
                f"and {env.action_space}; all tasks of a suite need the same shape and bounds: "
                "wrap them, for instance in gymnasium's RescaleAction"
            )
    return max(env.observation_space.shape[0] for env in envs)  # type: ignore[index]


def _same_actions(a: Box, b: gym.Space[Any]) -> bool:
    return (
        isinstance(b, Box)
        and a.shape == b.shape
        and np.allclose(a.low, b.low)
        and np.allclose(a.high, b.high)
    )
