"""Meta-World v3 (metaworld 3.1.1): suites for training, and its own vector env for evaluation.

This module handles every quirk of metaworld:

- `SawyerXYZEnv.reset` ignores its seed. Only `seed()` has an effect, and resets draw from its
  stream.
- An episode never terminates by itself, and 500 steps truncate it. A task may be solved at one
  step and unsolved at the next, so success means "at any step".
- Goals come from numpy's global stream, task after task. The goals of a task therefore depend on
  the tasks before it in the suite.
- `gym.make_vec("Meta-World/custom-mt-envs")` ignores seed 0, and `Meta-World/MT10` leaves out the
  one-hot. This module calls `metaworld._init_each_env`, the function below both.
- Corner cameras are mounted upside down.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, SupportsFloat, cast
from unittest import mock

import gymnasium as gym
import metaworld
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv, MujocoRenderer
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT25_V3, MT50_V3
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task as Goal  # metaworld calls an env with one goal a task

from conal_rl.envs.suggest import bare_name, did_you_mean
from conal_rl.envs.vec_env import Suite, Task
from conal_rl.errors import ConalError, SuiteError, of_user_code

HORIZON = 500
NUM_GOALS = 50
TASK_NAMES = tuple(ALL_V3_ENVIRONMENTS)
BENCHMARKS = {"mt10": tuple(MT10_V3), "mt25": tuple(MT25_V3), "mt50": tuple(MT50_V3)}


def is_metaworld(suite: str | Sequence[str]) -> bool:
    """Return whether `suite` has a Meta-World task. `suite_tasks` checks the other ones."""
    if isinstance(suite, str):
        return suite in BENCHMARKS or suite.startswith("mt1:")
    return any(_find_class(name) is not None for name in suite)


def is_published(suite: str | Sequence[str]) -> bool:
    """Return whether `suite` has only Meta-World's own tasks, without a user's subclass.

    Raises:
        SuiteError: As in `suite_tasks`.
    """
    return is_metaworld(suite) and set(suite_tasks(suite)) <= set(TASK_NAMES)


def _find_class(name: str) -> type[SawyerXYZEnv] | None:
    """Return the env class of a task's name, or None if the name is not a Meta-World task.

    The name is Meta-World's, or `module:Class` for a user's subclass.

    Raises:
        SuiteError: `name` looks like a subclass, but it is not one.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute.isidentifier():  # gymnasium's IDs end in -v0
        return ALL_V3_ENVIRONMENTS.get(name)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # the user's own code may raise anything
        raise SuiteError(
            f"task {name!r}: got {of_user_code(error)}, expected a module {module} that loads. "
            "Correct the module"
        ) from error
    cls = getattr(imported, attribute, None)
    if isinstance(cls, type) and issubclass(cls, SawyerXYZEnv):
        return cls
    if attribute in gym.registry:  # an ID without a version
        return None
    if cls is None:
        classes = [key for key, value in vars(imported).items() if isinstance(value, type)]
        close = did_you_mean(attribute, classes)
        raise SuiteError(
            f"task {name!r}: got {attribute}, expected a name that {module} defines{close}"
        )
    raise SuiteError(
        f"task {name!r}: got {attribute}, expected a subclass of a Meta-World env. "
        f"Name a gymnasium env by its registered ID, such as {module}:{attribute}-v0"
    )


@contextmanager
def _users_code(name: str) -> Iterator[None]:
    # Only the code of a user's subclass may fail here. Meta-World's own tasks do not.
    try:
        yield
    except Exception as error:  # the user's own code may raise anything
        if name in TASK_NAMES or isinstance(error, ConalError):
            raise
        raise SuiteError(
            f"task {name!r}: got {of_user_code(error)}, expected an env that can be made. "
            "Correct the env"
        ) from error


def env_class(name: str) -> type[SawyerXYZEnv]:
    """Return the env class of a task that `suite_tasks` has accepted."""
    cls = _find_class(name)
    assert cls is not None, name
    return cls


def suite_tasks(suite: str | Sequence[str]) -> tuple[str, ...]:
    """Return the task names of a Meta-World suite in the order of the one-hot.

    Raises:
        SuiteError: `suite` is not a Meta-World suite, or a task is unknown or listed twice.
    """
    if isinstance(suite, str) and suite in BENCHMARKS:
        return BENCHMARKS[suite]
    if isinstance(suite, str):
        if not suite.startswith("mt1:"):
            raise SuiteError(
                f"suite: got {suite!r}, expected mt10, mt25, mt50 or mt1:TASK. Give one of them"
            )
        names: tuple[str, ...] = (suite.removeprefix("mt1:"),)
    else:
        names = tuple(suite)
    if not names:
        raise SuiteError("suite: got an empty list of tasks, expected at least one. Name a task")
    for i, name in enumerate(names):
        if _find_class(name) is None:
            mixed = "" if len(names) == 1 else " because the other tasks are Meta-World's"
            meant = bare_name(name) if bare_name(name) in TASK_NAMES else name
            raise SuiteError(
                f"suite: got the task {name!r}, expected a Meta-World v3 task{mixed}"
                f"{did_you_mean(meant, TASK_NAMES)}"
            )
        if name in names[:i]:
            raise SuiteError(
                f"suite: got {name!r} twice, expected each Meta-World task once. "
                "Leave out one of them"
            )
    return names


def tasks(suite: str | Sequence[str], seed: int, render_mode: str | None = None) -> list[Task]:
    """Return the suite's tasks. Each reset of their envs draws one of the 50 official goals.

    Images of the `render_mode` "rgb_array" are those of `Camera`.

    Raises:
        SuiteError: As in `suite_tasks`.
    """
    names = suite_tasks(suite)
    goals = _goals(names, seed)
    return [
        Task(
            name,
            partial(_build, name, [g for g in goals if g.env_name == name], render_mode),
            least_bytes=10_000_000,
        )
        for name in names
    ]


def official_vector_env(
    suite_or_tasks: Suite | Sequence[str],
    seed: int,
    vector_strategy: Literal["sync", "async"] = "sync",
) -> gym.vector.SyncVectorEnv[Any, Any] | gym.vector.AsyncVectorEnv[Any, Any]:
    """Return metaworld's own vector env, as `metaworld.evaluation.evaluation` needs it.

    It has one env per task, the one-hot, episodes of 500 steps and automatic resets in the same
    step. Each reset takes the next of the 50 goals in shuffled order. The first 50 episodes of a
    task visit each goal once, so every evaluation needs a new vector env.

    Args:
        suite_or_tasks: A Meta-World suite as in `conal_rl.envs.make`.
        seed: Chooses the goals, like `seed` of metaworld's benchmarks, and their order.
        vector_strategy: `"async"` runs each env in its own process.

    Raises:
        SuiteError: As in `suite_tasks`.
    """
    names = suite_tasks(suite_or_tasks)
    options: dict[str, Any] = dict(
        seed=seed, use_one_hot=True, task_select="pseudorandom", max_episode_steps=HORIZON
    )
    same_step = gym.vector.AutoresetMode.SAME_STEP
    envs: gym.vector.SyncVectorEnv[Any, Any] | gym.vector.AsyncVectorEnv[Any, Any]
    with _without_precision_warnings():
        if isinstance(suite_or_tasks, str) and suite_or_tasks in BENCHMARKS:
            envs = metaworld.make_mt_envs(  # type: ignore[assignment]
                suite_or_tasks.upper(),
                vector_strategy=vector_strategy,
                autoreset_mode=same_step,
                **options,
            )
        else:
            goals = _goals(names, seed)
            builders = [
                partial(
                    metaworld._init_each_env,
                    env_cls=env_class(name),
                    tasks=[goal for goal in goals if goal.env_name == name],
                    env_id=i,
                    num_tasks=len(names),
                    **options,
                )
                for i, name in enumerate(names)
            ]
            vector = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}
            envs = vector[vector_strategy](builders, autoreset_mode=same_step)
    envs.call("toggle_sample_tasks_on_reset", True)
    return envs


class _Episodes(gym.Wrapper[Any, Any, Any, Any]):
    # This wrapper obeys the seed of reset, and puts "solved at any step" into info["is_success"].
    # Its images are the benchmark camera's, upright.

    _camera: Camera | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        self._solved = False
        return self.env.reset(options=options)

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._solved = self._solved or bool(info["success"])
        if terminated or truncated:
            info["is_success"] = self._solved
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        if self.render_mode != "rgb_array":
            return super().render()
        if self._camera is None:
            env = cast(MujocoEnv, self.unwrapped)
            self._camera = Camera(env.model, env.data)
        return self._camera.image()

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        super().close()


def _build(name: str, goals: list[Goal], render_mode: str | None) -> gym.Env[Any, Any]:
    with _without_precision_warnings(), _users_code(name):
        return _Episodes(
            metaworld._init_each_env(
                env_cls=env_class(name),
                tasks=goals,
                max_episode_steps=HORIZON,
                task_select="random",
                reward_function_version="v2",
                render_mode=cast(Any, render_mode),
            )
        )


@lru_cache(maxsize=8)
def _goals(names: tuple[str, ...], seed: int) -> tuple[Goal, ...]:
    envs = {}
    for name in names:
        with _users_code(name):
            envs[name] = env_class(name)()
    return tuple(draw_goals(envs, seed))


def draw_goals(envs: Mapping[str, SawyerXYZEnv], seed: int) -> list[Goal]:
    """Return 50 goals for each env, task after task, as metaworld's benchmarks draw them.

    The benchmarks reset each env 50 times, and they simulate how the hand moves back to its start.
    That takes nearly all of the time, and no goal depends on it, so here the hand stays.
    tests/envs/test_metaworld.py compares the goals of MT10. The goals of all 50 tasks were compared
    once.

    Args:
        envs: An env of each task, by the task's name.
        seed: As `seed` of metaworld's benchmarks.
    """

    def hand_stays(env: SawyerXYZEnv, steps: int = 50) -> None:
        mujoco.mj_forward(env.model, env.data)  # some tasks read positions directly afterwards
        env.init_tcp = env.tcp_center

    goals = []
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with mock.patch.object(SawyerXYZEnv, "_reset_hand", hand_stays):
            for name, env in envs.items():
                env._freeze_rand_vec, env._set_task_called = False, True
                for _ in range(NUM_GOALS):
                    with _users_code(name):
                        env.reset()
                    goal = {"rand_vec": env._last_rand_vec, "env_cls": type(env)}
                    goals.append(metaworld._encode_task(name, goal | metaworld._MT_OVERRIDE))
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return goals


def require_display() -> None:
    """Check that MuJoCo has a display or an OpenGL backend to render with.

    Raises:
        ConalError: This is Linux, and no environment variable names one.
    """
    named = {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.platform == "linux" and not named:
        raise ConalError(
            "MUJOCO_GL: got no value and no display, expected egl or osmesa. Set MUJOCO_GL=egl"
        )


CAMERA_SIZE = 480
"""Width and height of the camera's images, in pixels."""


class Camera:
    """The benchmark's camera for one MuJoCo model and its data.

    Raises:
        ConalError: As in `require_display`.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        require_display()
        self._renderer = MujocoRenderer(
            model, data, width=CAMERA_SIZE, height=CAMERA_SIZE, camera_name="corner2"
        )

    def image(self) -> npt.NDArray[np.uint8]:
        """Return the camera's image, upright, `(480, 480, 3)`.

        Raises:
            ConalError: MuJoCo cannot render because it does not find OpenGL.
        """
        try:
            image: Any = self._renderer.render("rgb_array")
        except Exception as error:  # each OpenGL library fails differently, even by AttributeError
            backend = os.environ.get("MUJOCO_GL", "unset")
            raise ConalError(
                f"MUJOCO_GL: got {backend}, which cannot render here, expected a backend that can. "
                "Try egl or osmesa"
            ) from error
        # The image is upside down. A half turn corrects it; a flip would also swap left and right.
        return np.ascontiguousarray(image[::-1, ::-1])

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()  # type: ignore[no-untyped-call]


@contextmanager
def _without_precision_warnings() -> Iterator[None]:
    # metaworld's OneHotWrapper builds a float32 Box from float64 bounds, and gymnasium warns.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered")
        yield
