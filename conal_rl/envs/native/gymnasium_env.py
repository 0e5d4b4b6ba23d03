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

from conal_rl.envs.metaworld import env_class, suite_tasks
from conal_rl.envs.native.engine import OBSERVATION
from conal_rl.envs.native.episodes import Ended, Episodes, Flags, TaskSelect
from conal_rl.envs.native.physics import Floats
from conal_rl.envs.vec_env import Suite, stream_seeds

_METADATA = {"render_modes": ["rgb_array"], "render_fps": 80}


def _observations(num_tasks: int) -> Box:
    # Unbounded, unlike the official space, which the observation of a reset may leave.
    low, high = (np.full(OBSERVATION + num_tasks, bound) for bound in (-np.inf, np.inf))
    low[OBSERVATION:], high[OBSERVATION:] = 0.0, 1.0
    return Box(low, high, dtype=np.float64)


class MetaWorldVectorEnv(gym.vector.VectorEnv[Floats, npt.NDArray[Any], Any]):
    """Envs `task * envs_per_task + k` of a suite, in float64, episodes reset in the same step.

    As `gymnasium.make_vec("Meta-World/MT10", use_one_hot=True)` and its like, but that `reset`
    obeys its seed.

    Args:
        suite: As in `conal_rl.envs.make`.
        num_envs: Of `make_vec`, which gives 1 when nothing was said: a multiple of the tasks is
            divided among them.
        envs_per_task: At least 1.
        seed: Of goals and of all env streams.
        use_one_hot: Whether observations end in the task's one-hot.
        task_select, terminate_on_success, threads: As in `Episodes`.
        render_mode: `"rgb_array"` or None.

    Raises:
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
                f"num_envs is {num_envs}, but {suite} has {len(self.tasks)} tasks; "
                "give a multiple of that, or envs_per_task"
            )
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
        """Begin an episode in every env; a seed begins their streams of goals anew.

        Raises:
            ValueError: another number of seeds than of envs, or options, of which there are none.
        """
        if options:
            raise ValueError(f"reset has no options here, not {', '.join(options)}")
        if isinstance(seed, int | np.integer):
            per_task = self.num_envs // len(self.tasks)
            self.episodes.seed(stream_seeds(int(seed), len(self.tasks), per_task))
        elif seed is not None:
            self.episodes.seed(seed)
        return self._with_one_hot(self.episodes.reset(), slice(None)), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Floats, Floats, Flags, Flags, dict[str, Any]]:
        """Step all envs; `final_obs` and `final_info` as gymnasium's vector envs give them."""
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
        which = np.zeros(self.num_envs, dtype=np.bool_)
        which[envs] = True
        observations = np.full(self.num_envs, None, dtype=object)
        observations[envs] = list(self._with_one_hot(ended.observations, envs))
        episode = {"r": np.zeros(self.num_envs), "l": np.zeros(self.num_envs, dtype=np.int64)}
        episode["r"][envs], episode["l"][envs] = ended.returns, ended.lengths
        final = {
            "success": np.where(which, successes, 0.0),
            "_success": which,
            "episode": episode | {"_r": which, "_l": which},
            "_episode": which,
        }
        return {
            "final_obs": observations,
            "_final_obs": which,
            "final_info": final,
            "_final_info": which,
        }

    def _with_one_hot(self, raw: Floats, envs: Any) -> Floats:
        return np.hstack([raw, self._one_hot[envs]])

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every env, as `metaworld.evaluation.evaluation` asks for them."""
        if name == "task_name":  # metaworld's own name of a task is that of its class
            per_task = self.num_envs // len(self.tasks)
            return tuple(env_class(task).__name__ for task in self.tasks for _ in range(per_task))
        if name == "terminate_on_success":
            return (self.episodes.terminate_on_success,) * self.num_envs
        return (getattr(self, name),) * self.num_envs

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """Metaworld's `toggle_terminate_on_success`, for all envs at once."""
        if name != "toggle_terminate_on_success":
            raise AttributeError(f"the native engine has no {name}")
        (self.episodes.terminate_on_success,) = args
        return (None,) * self.num_envs

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """What the benchmark's camera sees of every env, upright."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.episodes.image(i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads and free the cameras."""
        self.episodes.close()


class MetaWorldEnv(gym.Env[Floats, npt.NDArray[Any]]):
    """One task: a vector env of one, without automatic resets.

    Args:
        task: Its name, `"reach-v3"`.
        render_mode: `"rgb_array"` or None.
        options: As of `MetaWorldVectorEnv`. Without a `seed` here or at `reset`, goals are drawn in
            another order by every env.
    """

    metadata = _METADATA

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        self._seeded = "seed" in options
        self._begun: Floats | None = None  # of the episode after one that has just ended
        options = {"use_one_hot": False, "threads": 1} | options
        self._envs = MetaWorldVectorEnv(f"mt1:{task}", render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode; a seed begins the stream of goals anew."""
        super().reset(seed=seed)
        begun, self._begun = self._begun, None
        if begun is not None and seed is None and not options:
            return begun, {}  # another reset would leave this one's goal out
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**32))
        self._seeded = True
        observations, _ = self._envs.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Take one step; after a terminated or truncated one, `reset`."""
        observations, rewards, terminated, truncated, info = self._envs.step(action[None])
        ended = "final_obs" in info
        observation = info["final_obs"][0] if ended else observations[0]
        self._begun = observations[0] if ended else None
        success = {"success": float(info["success"][0])}
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), success

    def render(self) -> Any:
        """What the benchmark's camera sees, upright."""
        images = self._envs.render()
        return None if images is None else images[0]

    def close(self) -> None:
        """Stop the threads and free the camera."""
        self._envs.close()
