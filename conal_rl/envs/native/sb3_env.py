"""`NativeVecEnv`: the engine as a Stable-Baselines3 `VecEnv`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from conal_rl.envs.metaworld import suite_tasks
from conal_rl.envs.native.engine import OBSERVATION
from conal_rl.envs.native.episodes import Episodes
from conal_rl.envs.native.physics import Floats
from conal_rl.envs.task_env import Observation
from conal_rl.envs.vec_env import EnvState, Suite, SuiteVecEnv, monitor_file


class NativeVecEnv(SuiteVecEnv):
    """All envs of a Meta-World suite. It keeps the contract of `conal_rl.envs`.

    The same seed draws the same goals as with the official engine. The same actions then give the
    same observations, rewards and successes. `step_async` returns immediately, and threads continue
    the step until `step_wait`. `success` is the only one of metaworld's infos.

    Args:
        suite: As in `conal_rl.envs.make`.
        envs_per_task: At least 1.
        seed: Seed of the goals and of all env streams. `seed()` changes the streams' seed for the
            next reset.
        threads: As in `Episodes`.
        monitor_dir: As in `conal_rl.envs.make`.

    Raises:
        SuiteError: As in `conal_rl.envs.metaworld.suite_tasks`.
    """

    def __init__(
        self,
        suite: Suite,
        envs_per_task: int = 1,
        seed: int = 0,
        threads: int | None = None,
        monitor_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.suite = suite
        self.tasks = suite_tasks(suite)
        self.num_tasks = len(self.tasks)
        self.envs_per_task = envs_per_task
        self.render_mode = "rgb_array"
        self.episodes = Episodes(self.tasks, envs_per_task, seed, threads=threads)
        low = np.full(OBSERVATION + self.num_tasks, -np.inf, dtype=np.float32)
        high = np.full(OBSERVATION + self.num_tasks, np.inf, dtype=np.float32)
        low[OBSERVATION:], high[OBSERVATION:] = 0.0, 1.0
        one_hot = np.eye(self.num_tasks, dtype=np.float32).repeat(envs_per_task, axis=0)
        self._empty = np.hstack([np.zeros((len(one_hot), OBSERVATION), np.float32), one_hot])
        self._began = time.monotonic()
        actions = Box(-1.0, 1.0, (4,), dtype=np.float32)
        super().__init__(self.episodes.num_envs, Box(low, high), actions)
        self.seed(seed)
        self._monitors = self._open_monitors(monitor_dir)

    def _open_monitors(self, folder: str | os.PathLike[str] | None) -> list[ResultsWriter]:
        files = [monitor_file(folder, env) for env in range(self.num_envs)]
        tasks = [task for task in self.tasks for _ in range(self.envs_per_task)]
        header = {"t_start": time.time()}
        return [
            ResultsWriter(file, header | {"env_id": task})
            for file, task in zip(files, tasks, strict=True)
            if file is not None
        ]

    @property
    def in_episode(self) -> bool:
        """As in `SuiteVecEnv`."""
        return self.episodes.calls.state == "ready"

    def reset(self) -> Observation:
        """Begin an episode in every env, and return the observations `(env, 39 + tasks)`."""
        if any(seed is not None for seed in self._seeds):
            self.episodes.seed([seed for seed in self._seeds if seed is not None])
        self._reset_seeds()
        self._reset_options()
        return self._observations(self.episodes.reset(), slice(None))

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Begin a step with actions `(env, 4)`."""
        self.episodes.start(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and return its observations, rewards, dones and infos."""
        step = self.episodes.finish()
        infos: list[dict[str, Any]] = [
            {"success": s} for s in step.successes.astype(float).tolist()
        ]
        ended = step.ended
        if len(ended.envs):
            last = self._observations(ended.observations, ended.envs)
            seconds = round(time.monotonic() - self._began, 6)
            for row, i in enumerate(ended.envs.tolist()):
                infos[i] |= {
                    "terminal_observation": last[row],
                    "TimeLimit.truncated": bool(step.truncated[i] and not step.terminated[i]),
                    "is_success": bool(ended.solved[row]),
                    "mujoco_warnings": int(ended.warnings[row]),
                    "episode": {
                        "r": round(float(ended.returns[row]), 6),
                        "l": int(ended.lengths[row]),
                        "t": seconds,
                    },
                }
                if self._monitors:
                    self._monitors[i].write_row(infos[i]["episode"])
        observations = self._observations(step.observations, slice(None))
        rewards = np.empty(self.num_envs, dtype=np.float32)
        _round(step.rewards, rewards)
        return observations, rewards, step.terminated | step.truncated, infos

    def state(self) -> EnvState | None:
        """Return the state of the episodes, or None if a task runs its own code."""
        return self.episodes.state()

    def restore(self, state: EnvState) -> Observation:
        """Resume the episodes of a state, as in `SuiteVecEnv`."""
        self._reset_seeds()
        return self._observations(self.episodes.restore(state), slice(None))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs. A copy writes no files for `Monitor`."""
        return vars(self) | {"_monitors": []}

    def _observations(self, raw: Floats, envs: Any) -> Observation:
        out: Observation = self._empty[envs].copy()
        _round(raw, out[:, :OBSERVATION])
        return out

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """Return the benchmark camera's upright image of every env.

        Raises:
            ConalError: MuJoCo cannot render.
        """
        return [self.episodes.image(i) for i in range(self.num_envs)]

    def close(self) -> None:
        """Stop the threads and free the cameras."""
        self.episodes.close()
        for monitor in self._monitors:
            monitor.close()

    # The engine does not have env objects. These methods use this object for every env.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object, once for every env in `indices`."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of this object. `indices` must name all envs."""
        self._for_all(indices)
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of this object. `indices` must name all envs."""
        self._for_all(indices)
        return [getattr(self, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return true only for SB3's `Monitor`, because every env reports its episodes like it."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _for_all(self, indices: VecEnvIndices) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise NotImplementedError(
                "indices: got some of the envs, expected all of them: the native engine has no "
                'env objects. Use engine="official"'
            )


def _round(numbers: Floats, out: npt.NDArray[np.float32]) -> None:
    try:
        out[:] = numbers
    except (FloatingPointError, RuntimeWarning):  # the process asks numpy to raise or to warn
        with np.errstate(all="ignore"):  # a tiny number becomes 0
            out[:] = numbers
