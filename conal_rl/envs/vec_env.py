"""`TaskVecEnv`: one Stable-Baselines3 `VecEnv` that steps envs of several tasks in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from conal_rl.device import require_memory
from conal_rl.errors import ConalError, ObservationError, SuiteError, of_user_code

_LARGEST = float(np.finfo(np.float32).max)
Suite = str | tuple[str, ...]
Observation = npt.NDArray[np.float32]  # (obs_dim + num_tasks,)


class Task(NamedTuple):
    """One task of a suite."""

    name: str
    build: Callable[[], gym.Env[Any, Any]]  # makes a new env of this task
    least_bytes: int = 4_000  # memory that an env takes at least


class TaskEnv(gym.Wrapper[Observation, npt.NDArray[Any], Any, Any]):
    """One env as the agent sees it.

    It pads the observation with zeros to `obs_dim` and appends the one-hot of `task`.

    At the end of an episode `info["is_success"]` is the env's own. If the env does not give it, it
    says whether `info["success"]` was true at any step. If the env does not give that either, it
    says whether the return reached the `reward_threshold` of the env's gymnasium spec. After an
    env has reported success or failure once, an episode without a report counts as failed.

    Raises:
        ObservationError: An observation or reward is not finite numbers of the right shape, or a
            success, terminated or truncated is neither a boolean nor 0 or 1. It never reaches a
            replay buffer.
        SuiteError: The env's own code fails.
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
        self._solved: bool | None = None  # None: the env has never reported success or failure
        self._threshold = env.spec.reward_threshold if env.spec else None
        self._begin()

    def _begin(self) -> None:
        self._step = 0
        self._return = 0.0
        self._solved = None if self._solved is None else False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, as the class says."""
        self._begin()
        try:
            answer: Any = self.env.reset(seed=seed, options=options)
        except ConalError:
            raise
        except Exception as error:  # the env's own code may raise anything
            if isinstance(error, TypeError) and "keyword argument" in str(error):
                problem = (
                    f"reset: got {error}, expected that it takes seed and options. Correct the env"
                )
            else:
                problem = f"reset: got {of_user_code(error)}, expected no error. Correct the env"
            raise SuiteError(f"{self._where}: {problem}") from error
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
            raise ObservationError(
                f"{self._where}: reset: got {_short(answer)}, expected an observation and an "
                "info. Correct the env"
            )
        return self._observation(answer[0]), dict(answer[1])

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step, as the class says."""
        self._step += 1
        try:
            answer: Any = self.env.step(action)
        except ConalError:
            raise
        except Exception as error:  # the env's own code may raise anything
            raise SuiteError(
                f"{self._where}: step: got {of_user_code(error)} at step {self._step} of the "
                "episode, expected no error. Correct the env"
            ) from error
        fits = isinstance(answer, tuple) and len(answer) == 5 and isinstance(answer[4], Mapping)
        if not fits:
            raise ObservationError(
                f"{self._where}: step: got {_short(answer)}, expected an observation, a "
                "reward, terminated, truncated and an info. Correct the env"
            )
        obs, given, terminated, truncated, own_info = answer
        info = dict(own_info)  # a copy, because the env may return the same object again
        reward = self._reward(given)
        self._return += reward
        terminated = self._truth("terminated", terminated)
        truncated = self._truth("truncated", truncated)
        for key in {"success", "is_success"} & info.keys():
            info[key] = self._truth(f"info[{key!r}]", info[key])
        if "success" in info or "is_success" in info:
            self._solved = self._solved or info.get("success", False)
        if (terminated or truncated) and "is_success" not in info:
            if self._solved is not None:
                info["is_success"] = self._solved
            elif self._threshold is not None:
                info["is_success"] = self._return >= self._threshold
        return self._observation(obs), reward, terminated, truncated, info

    def _reward(self, given: Any) -> float:
        number = given if isinstance(given, float) else _item(given)
        if number is None or np.ndim(given):
            raise ObservationError(
                f"{self._where}: reward: got {_short(given)} at step {self._step} of the "
                "episode, expected a number. Correct the env"
            )
        reward = float(number)
        if not -_LARGEST <= reward <= _LARGEST:
            raise self._error("reward", reward)
        return reward

    def _truth(self, what: str, given: Any) -> bool:
        """Return a boolean, or a number 0 or 1, or an array of one of these, as a boolean."""
        if isinstance(given, bool):
            return given
        number = _item(given)
        if number is None or number not in (0, 1):
            raise ObservationError(
                f"{self._where}: {what}: got {_short(given)} at step {self._step} of the "
                "episode, expected true or false. Correct the env"
            )
        return bool(number)

    def _observation(self, given: Any) -> Observation:
        try:
            obs = np.asarray(given)
            problem = None if obs.dtype.kind in "biuf" else f"values of the type {obs.dtype}"
        except Exception:  # ragged lists, tensors with gradients, objects of any class
            problem = _short(given)
        if problem is None and obs.shape != (self._length,):
            problem = f"the shape {obs.shape}"
        if problem is not None:
            raise ObservationError(
                f"{self._where}: observation: got {problem} at step {self._step} of the episode, "
                f"expected numbers of the shape ({self._length},) of its space. Correct the env"
            )
        out: Observation = self._empty.copy()
        with np.errstate(over="ignore"):  # a number too large for float32 becomes inf
            out[: self._length] = obs
        if not np.isfinite(out).all():
            worst = obs[~np.isfinite(out[: self._length])][0]
            raise self._error("observation", float(worst))
        return out

    def _error(self, what: str, value: float) -> ObservationError:
        got = "NaN or inf"
        if np.isfinite(value):
            got = f"{value:g}, which is too large for single precision,"
        return ObservationError(
            f"{self._where}: {what}: got {got} at step {self._step} of the episode, expected "
            "finite numbers. Correct the env"
        )


def _item(value: Any) -> float | None:
    """Return a real number, or that of an array of one; None for anything else."""
    try:
        array = np.asarray(value)
    except Exception:  # tensors with gradients, objects of any class
        return None
    return array.item() if array.size == 1 and array.dtype.kind in "biuf" else None


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:60]  # one line, also of an array


def stream_seeds(seed: int, num_tasks: int, envs_per_task: int) -> Sequence[int]:
    """Return a seed for every env. It depends only on `seed`, the task and the env's number."""
    return [
        int(np.random.SeedSequence([seed, task, k]).generate_state(1)[0])
        for task in range(num_tasks)
        for k in range(envs_per_task)
    ]


def require_actions(
    actions: npt.NDArray[Any], tasks: Sequence[str], envs_per_task: int, size: int
) -> None:
    """Check that actions are finite numbers `(env, size)`.

    Raises:
        ObservationError: The shape is wrong, or an action has a NaN or inf.
    """
    shape = len(tasks) * envs_per_task, size
    if np.shape(actions) != shape:
        raise ObservationError(
            f"actions: got an array of shape {np.shape(actions)}, expected {shape}, "
            "a row for every env. Correct the policy"
        )
    if not np.isfinite(actions).all():
        i = int(np.argwhere(~np.isfinite(actions))[0, 0])
        task, k = divmod(i, envs_per_task)
        raise ObservationError(
            f"task {tasks[task]!r}, env {k} of the task: action: got NaN or inf in "
            f"{np.asarray(actions)[i].tolist()}, expected finite numbers. Correct the policy"
        )


class EnvState(NamedTuple):
    """The state of all episodes of a suite, for a checkpoint."""

    arrays: dict[str, npt.NDArray[Any]]
    streams: list[Any]  # the state of every env's random stream, in JSON types


class SuiteVecEnv(VecEnv):
    """The `VecEnv` of a suite, for both engines.

    Attributes:
        suite: The suite's name or its tasks, as `conal_rl.envs.make` takes it.
        tasks: Names of the tasks, in the order of the one-hot.
        num_tasks: The number of tasks.
        envs_per_task: The number of envs of each task.
        on_step_started: A function that every `step` calls after the envs have begun the step.
    """

    suite: Suite
    tasks: tuple[str, ...]
    num_tasks: int
    envs_per_task: int
    on_step_started: Callable[[], object] | None = None

    def step(self, actions: npt.NDArray[Any]) -> VecEnvStepReturn:
        """Step all envs as in SB3, and call `on_step_started` while they step."""
        self.step_async(actions)
        try:
            if self.on_step_started is not None:
                self.on_step_started()
        finally:  # a step that has begun must end, also after an error
            result = self.step_wait()
        return result

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the action space now, and all envs from their next reset.

        Args:
            seed: At least 0. None draws a seed from numpy's global stream, as in SB3.

        Returns:
            The seed of every env.
        """
        if seed is None:
            seed = int(np.random.randint(2**32, dtype=np.uint32))  # noqa: NPY002
        self._seeds = [*stream_seeds(seed, self.num_tasks, self.envs_per_task)]
        self.action_space.seed(seed)
        return self._seeds

    def state(self) -> EnvState | None:
        """Return the state of the episodes, or None if these envs cannot resume an episode."""
        return None

    def restore(self, state: EnvState) -> Observation:
        """Resume the episodes of a state and return their observations.

        Raises:
            ValueError: The tasks or the number of envs differ from those of `state`, or these envs
                cannot resume an episode.
        """
        raise ValueError(
            "state: got a state, expected none, because these envs can only begin new episodes"
        )


class TaskVecEnv(SuiteVecEnv, DummyVecEnv):
    """All envs of a suite, stepped one after the other. It keeps the contract of `conal_rl.envs`.

    Observations have the shape `(num_tasks * envs_per_task, obs_dim + num_tasks)`. Every env has
    its own random stream, which depends on `(seed, task, k)`.

    Args:
        suite: The suite's name or its tasks. It is only kept as an attribute.
        tasks: The tasks, in the order of the one-hot.
        envs_per_task: The number of envs of each task, at least 1.
        seed: Seed of all env streams, at least 0. `seed()` changes it for the next reset.

    Raises:
        ConfigError: The envs need more memory than the machine has.
        SuiteError: The tasks' spaces do not fit together, or an env cannot be made.
    """

    def __init__(
        self, suite: Suite, tasks: Sequence[Task], envs_per_task: int = 1, seed: int = 0
    ) -> None:
        self.suite = suite
        self.tasks = tuple(task.name for task in tasks)
        self.num_tasks = len(tasks)
        self.envs_per_task = envs_per_task
        needed = envs_per_task * sum(task.least_bytes for task in tasks)
        require_memory("envs_per_task", envs_per_task, needed)

        first = [task.build() for task in tasks]  # wrapping one env needs the spaces of all
        obs_dim = _common_obs_dim(self.tasks, first)
        # All envs share one action space, in float32: SB3 samples from it.
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
        """Keep the actions of the next step, as SB3 does.

        Raises:
            ObservationError: The actions have the wrong shape, or a NaN or inf.
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
                f"task {name!r}: action space: got {_short(env.action_space)}, expected a Box. "
                "Wrap the env so that a continuous action selects one of its actions"
            )
        actions = env.action_space
        if len(actions.shape) != 1 or not actions.is_bounded() or actions.dtype.kind != "f":
            raise SuiteError(
                f"task {name!r}: action space: got {_short(actions)}, expected a 1-D Box of "
                "floating-point numbers with finite bounds. Wrap the env, for example in "
                "gymnasium's RescaleAction or TransformAction"
            )
        if not _has_width(actions):
            raise SuiteError(
                f"task {name!r}: action space: got {_short(actions)}, expected bounds whose "
                "difference is above 0, and not too large for single precision. Correct the env"
            )
        obs = env.observation_space
        if not isinstance(obs, Box) or len(obs.shape) != 1:
            raise SuiteError(
                f"task {name!r}: observation space: got {_short(obs)}, expected a 1-D Box. "
                "Wrap the env, for example in gymnasium's FlattenObservation"
            )
        if not _same_actions(env.action_space, envs[0].action_space):
            raise SuiteError(
                f"task {name!r}: action space: got {_short(env.action_space)}, expected "
                f"{_short(envs[0].action_space)} as for task {names[0]!r}. "
                "Wrap one of the envs, for example in gymnasium's RescaleAction"
            )
    return max(env.observation_space.shape[0] for env in envs)  # type: ignore[index]


def _has_width(actions: Box) -> bool:
    with np.errstate(over="ignore"):  # a bound or a width may be too large for float32
        width = actions.high.astype(np.float32) - actions.low.astype(np.float32)
    return width.size > 0 and bool(np.all((width > 0) & np.isfinite(width)))


def _same_actions(a: Box, b: gym.Space[Any]) -> bool:
    if not isinstance(b, Box) or a.shape != b.shape:
        return False
    # -0.1 in float32 and -0.1 in float64 are the same bound.
    kind = min(a.dtype, b.dtype, key=lambda dtype: np.dtype(dtype).itemsize)
    ends = ((a.low, b.low), (a.high, b.high))
    return all(np.array_equal(x.astype(kind), y.astype(kind)) for x, y in ends)
