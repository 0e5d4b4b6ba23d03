"""`TaskVecEnv`: one Stable-Baselines3 `VecEnv` that steps envs of several tasks in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from conal_rl.device import require_memory
from conal_rl.envs.calls import Calls
from conal_rl.envs.task_env import Observation, TaskEnv, short
from conal_rl.errors import ObservationError, SuiteError

Suite = str | tuple[str, ...]


class Task(NamedTuple):
    """One task of a suite."""

    name: str
    build: Callable[[], gym.Env[Any, Any]]  # makes a new env of this task
    least_bytes: int = 4_000  # memory that an env takes at least


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

    @property
    def in_episode(self) -> bool:
        """Whether a step may begin. It may not before `reset` and after a call that failed."""
        raise NotImplementedError

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
            seed: At least 0. None draws a seed from the operating system.

        Returns:
            The seed of every env.
        """
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
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
        monitor_dir: As in `conal_rl.envs.make`.

    Raises:
        ConfigError: The envs need more memory than the machine has.
        SuiteError: The tasks' spaces do not fit together, or an env cannot be made.
    """

    def __init__(
        self,
        suite: Suite,
        tasks: Sequence[Task],
        envs_per_task: int = 1,
        seed: int = 0,
        monitor_dir: str | os.PathLike[str] | None = None,
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
            return Monitor(env, monitor_file(monitor_dir, index * envs_per_task + k))

        self._calls = Calls()
        super().__init__(
            [partial(wrap, i, k) for i in range(len(tasks)) for k in range(envs_per_task)]
        )
        self.seed(seed)

    @property
    def in_episode(self) -> bool:
        """As in `SuiteVecEnv`."""
        return self._calls.state == "ready"

    def reset(self) -> Observation:
        """Begin an episode in every env, and return the observations. A begun step is dropped.

        Raises:
            CallError: The envs are closed.
        """
        with self._calls.turn("reset"):
            self._calls.begin_reset()
            observations = cast(Observation, super().reset())
            self._calls.state = "ready"
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions of the next step, as SB3 does.

        Raises:
            ObservationError: The actions have the wrong shape, or a NaN or inf.
            CallError: The envs are not in an episode, or a step has begun already.
        """
        with self._calls.turn("step"):
            self._calls.require("step", "ready")
            require_actions(
                actions,
                self.tasks,
                self.envs_per_task,
                self.action_space.shape[0],  # type: ignore[index]
            )
            super().step_async(np.array(actions))
            self._calls.state = "stepping"

    def step_wait(self) -> VecEnvStepReturn:
        """Step the envs. An env whose episode has ended is reset.

        Raises:
            CallError: No step has begun.
        """
        with self._calls.turn("step_wait"):
            self._calls.begin("step_wait", "stepping")
            result = super().step_wait()
            self._calls.state = "ready"
        return result

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """Return an image of every env, if `render_mode` is `"rgb_array"`.

        Raises:
            CallError: The envs are not between two steps of an episode.
        """
        with self._calls.turn("render"):
            self._calls.require("render", "ready")
            return super().get_images()

    def close(self) -> None:
        """Close every env, also if closing one of them fails. Closed envs may be closed again."""
        with self._calls.turn("close"):
            if self._calls.state == "closed":
                return
            self._calls.state = "closed"
            with ExitStack() as closing:
                for env in reversed(self.envs):
                    closing.callback(env.close)


def monitor_file(folder: str | os.PathLike[str] | None, env: int) -> str | None:
    """Return the path of an env's monitor file for SB3, which appends `.monitor.csv`.

    Raises:
        SuiteError: The folder cannot be made.
    """
    if folder is None:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, TypeError) as error:
        raise SuiteError(
            f"monitor_dir: got {folder!r}, which cannot be made ({error}), expected a folder. "
            "Give a different path"
        ) from error
    return os.path.join(folder, str(env))


def _common_obs_dim(names: Sequence[str], envs: Sequence[gym.Env[Any, Any]]) -> int:
    for name, env in zip(names, envs, strict=True):
        if not isinstance(env.action_space, Box):
            raise SuiteError(
                f"task {name!r}: action space: got {short(env.action_space)}, expected a Box. "
                "Wrap the env so that a continuous action selects one of its actions"
            )
        actions = env.action_space
        if len(actions.shape) != 1 or not actions.is_bounded() or actions.dtype.kind != "f":
            raise SuiteError(
                f"task {name!r}: action space: got {short(actions)}, expected a 1-D Box of "
                "floating-point numbers with finite bounds. Wrap the env, for example in "
                "gymnasium's RescaleAction or TransformAction"
            )
        if not _has_width(actions):
            raise SuiteError(
                f"task {name!r}: action space: got {short(actions)}, expected bounds whose "
                "difference is above 0, and not too large for single precision. Correct the env"
            )
        obs = env.observation_space
        if not isinstance(obs, Box) or len(obs.shape) != 1:
            raise SuiteError(
                f"task {name!r}: observation space: got {short(obs)}, expected a 1-D Box. "
                "Wrap the env, for example in gymnasium's FlattenObservation"
            )
        if not _same_actions(env.action_space, envs[0].action_space):
            raise SuiteError(
                f"task {name!r}: action space: got {short(env.action_space)}, expected "
                f"{short(envs[0].action_space)} as for task {names[0]!r}. "
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
