"""The engine for gymnasium: a vector env of a suite, and an env of one task.

import conal_rl.envs  # registers them
envs = gymnasium.make_vec("conal_rl/MT10-v3", envs_per_task=4)
env = gymnasium.make("conal_rl/MT1-v3", task="reach-v3")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space

from conal_rl.device import require_memory
from conal_rl.envs.metaworld import env_class, suite_tasks
from conal_rl.envs.native.engine import OBSERVATION
from conal_rl.envs.native.episodes import LEAST_BYTES, Ended, Episodes, Flags, TaskSelect
from conal_rl.envs.native.physics import Floats
from conal_rl.envs.vec_env import Suite, stream_seeds

_METADATA = {"render_modes": ["rgb_array"], "render_fps": 80}


def _observations(num_tasks: int) -> Box:
    # The space has no bounds: the observation of a reset may leave the official bounds.
    low, high = (np.full(OBSERVATION + num_tasks, bound) for bound in (-np.inf, np.inf))
    low[OBSERVATION:], high[OBSERVATION:] = 0.0, 1.0
    return Box(low, high, dtype=np.float64)


class MetaWorldVectorEnv(gym.vector.VectorEnv[Floats, npt.NDArray[Any], Any]):
    """A vector env of a suite, in float64. Episodes are reset in the same step.

    Env `k` of a task has the index `task * envs_per_task + k`. It behaves like
    `gymnasium.make_vec("Meta-World/MT10", use_one_hot=True)`, except that `reset` obeys its seed.

    Args:
        suite: As in `conal_rl.envs.make`.
        num_envs: The number of all envs, a multiple of the number of tasks. The default 1 of
            `make_vec` means one env per task.
        envs_per_task: At least 1. None divides `num_envs` among the tasks.
        seed: Seed of the goals and of all env streams.
        use_one_hot: Whether observations end in the task's one-hot.
        task_select, terminate_on_success, threads: As in `Episodes`.
        render_mode: `"rgb_array"` or None.

    Raises:
        ConfigError: The envs need more memory than the machine has.
        ValueError: `num_envs` is not a multiple of the number of tasks.
        SuiteError: As in `conal_rl.envs.metaworld.suite_tasks`.
    """

    metadata = _METADATA | {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(
        self,
        suite: Suite,
        num_envs: int = 1,
        envs_per_task: int | None = None,
        seed: int = 0,
        use_one_hot: bool = True,
        task_select: TaskSelect = "random",
        terminate_on_success: bool = False,
        threads: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.tasks = suite_tasks(suite)
        per_task = envs_per_task
        if per_task is None:
            per_task = max(1, num_envs // len(self.tasks))
        if num_envs not in (1, per_task * len(self.tasks)):
            raise ValueError(
                f"num_envs: got {num_envs}, expected a multiple of the {len(self.tasks)} tasks of "
                f"{suite}. Give such a number, or only envs_per_task"
            )
        if envs_per_task is None:
            require_memory("num_envs", num_envs, num_envs * LEAST_BYTES)
        self.render_mode = render_mode
        self.episodes = Episodes(
            self.tasks, per_task, seed, task_select, terminate_on_success, threads
        )
        self.num_envs = self.episodes.num_envs
        one_hot = np.eye(len(self.tasks)) if use_one_hot else np.zeros((len(self.tasks), 0))
        self._one_hot = one_hot.repeat(per_task, axis=0)
        self.single_observation_space = _observations(one_hot.shape[1])
        self.single_action_space = Box(-1.0, 1.0, (4,), dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.episodes.seed(stream_seeds(seed, len(self.tasks), per_task))

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode in every env. A seed also starts the streams of goals again.

        Raises:
            ValueError: The number of seeds differs from the number of envs, or there are options.
        """
        if options:
            raise ValueError(f"options: got {', '.join(options)}, expected no options")
        if isinstance(seed, int | np.integer):
            per_task = self.num_envs // len(self.tasks)
            self.episodes.seed(stream_seeds(int(seed), len(self.tasks), per_task))
        elif seed is not None:
            self.episodes.seed(seed)
        return self._with_one_hot(self.episodes.reset(), slice(None)), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Floats, Floats, Flags, Flags, dict[str, Any]]:
        """Step all envs. The info has gymnasium's `final_obs` and `final_info`."""
        self.episodes.start(np.asarray(actions))
        step = self.episodes.finish()
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        info: dict[str, Any] = {
            "success": step.successes.astype(np.float64),
            "_success": everywhere,
        }
        ended = step.ended
        if len(ended.envs):
            info |= self._final(step.successes, ended)
        observations = self._with_one_hot(step.observations, slice(None))
        return observations, step.rewards, step.terminated, step.truncated, info

    def _final(self, successes: Flags, ended: Ended) -> dict[str, Any]:
        envs = ended.envs
        has_ended = np.zeros(self.num_envs, dtype=np.bool_)
        has_ended[envs] = True
        observations = np.full(self.num_envs, None, dtype=object)
        observations[envs] = list(self._with_one_hot(ended.observations, envs))
        episode = {"r": np.zeros(self.num_envs), "l": np.zeros(self.num_envs, dtype=np.int64)}
        episode["r"][envs], episode["l"][envs] = ended.returns, ended.lengths
        final = {
            "success": np.where(has_ended, successes, 0.0),
            "_success": has_ended,
            "episode": episode | {"_r": has_ended, "_l": has_ended},
            "_episode": has_ended,
        }
        return {
            "final_obs": observations,
            "_final_obs": has_ended,
            "final_info": final,
            "_final_info": has_ended,
        }

    def _with_one_hot(self, raw: Floats, envs: Any) -> Floats:
        return np.hstack([raw, self._one_hot[envs]])

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute once for every env, as `metaworld.evaluation.evaluation` needs it."""
        if name == "task_name":  # metaworld names a task by its class
            per_task = self.num_envs // len(self.tasks)
            return tuple(env_class(task).__name__ for task in self.tasks for _ in range(per_task))
        if name == "terminate_on_success":
            return (self.episodes.terminate_on_success,) * self.num_envs
        return (getattr(self, name),) * self.num_envs

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """Call metaworld's `toggle_terminate_on_success` for all envs at once."""
        if name != "toggle_terminate_on_success":
            raise AttributeError(f"call: got {name!r}, expected 'toggle_terminate_on_success'")
        (self.episodes.terminate_on_success,) = args
        return (None,) * self.num_envs

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Return the benchmark camera's upright image of every env, if `render_mode` is set."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.episodes.image(i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads and free the cameras."""
        self.episodes.close()


class MetaWorldEnv(gym.Env[Floats, npt.NDArray[Any]]):
    """An env of one task. It wraps a vector env of one env, without its automatic resets.

    Args:
        task: The task's name, such as `"reach-v3"`.
        render_mode: `"rgb_array"` or None.
        options: Arguments of `MetaWorldVectorEnv`. Without a `seed` here or at `reset`, every env
            draws the goals in a different order.
    """

    metadata = _METADATA

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        self._seeded = "seed" in options
        self._begun: Floats | None = None  # first observation of the episode that has just begun
        options = {"use_one_hot": False, "threads": 1} | options
        self._envs = MetaWorldVectorEnv(f"mt1:{task}", render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode. A seed also starts the stream of goals again."""
        super().reset(seed=seed)
        begun, self._begun = self._begun, None
        if begun is not None and seed is None and not options:
            return begun, {}  # a second reset would skip this episode's goal
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**32))
        self._seeded = True
        observations, _ = self._envs.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Take one step. Call `reset` after a terminated or truncated one."""
        observations, rewards, terminated, truncated, info = self._envs.step(action[None])
        ended = "final_obs" in info
        observation = info["final_obs"][0] if ended else observations[0]
        self._begun = observations[0] if ended else None
        success = {"success": float(info["success"][0])}
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), success

    def render(self) -> Any:
        """Return the benchmark camera's upright image, if `render_mode` is set."""
        images = self._envs.render()
        return None if images is None else images[0]

    def close(self) -> None:
        """Stop the threads and free the camera."""
        self._envs.close()
