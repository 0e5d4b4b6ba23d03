"""Task suites as one Stable-Baselines3 `VecEnv`.

    envs = conal_rl.envs.make("mt10", envs_per_task=2, seed=0)

Every suite keeps the same contract:

- Env `k` of a task has the index `task * envs_per_task + k`. `envs.tasks` holds the tasks' names.
- Observations are float32. They are padded with zeros to the longest task's length, and the task's
  one-hot follows.
- All tasks share one Box of actions. Rewards are the envs' own and are not scaled.
- At the end of an episode `info` has `episode` (return, length, time), `terminal_observation` and
  `TimeLimit.truncated`. It has `is_success` if the suite defines success.
- A NaN or inf in an observation or reward raises `ObservationError`.
- The same seed gives the same rollout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym

from conal_rl.config.checks import require_seed, whole
from conal_rl.config.values import quoted
from conal_rl.envs.suggest import bare_name, did_you_mean
from conal_rl.envs.vec_env import Suite, SuiteVecEnv, Task, TaskVecEnv
from conal_rl.errors import ConfigError, SuiteError

__all__ = ["SuiteVecEnv", "TaskVecEnv", "make", "suite_of"]


def make(
    suite: str | Sequence[str],
    envs_per_task: int = 1,
    seed: int = 0,
    engine: Literal["native", "official"] = "native",
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    monitor_dir: str | os.PathLike[str] | None = None,
) -> SuiteVecEnv:
    """Return all envs of a suite as one vector env.

    Args:
        suite: A suite in one of four forms.
            `"mt10"`, `"mt25"`, `"mt50"` and `"mt1:TASK"` are Meta-World's suites.
            A sequence of Meta-World v3 task names is a suite too. `"module:Class"` in it names the
            user's own subclass of a Meta-World env, which needs the official engine.
            `"cartpole"` has seven CartPole variants, and the action's sign chooses the push. In
            `"cartpole:proportional"` the action scales the force.
            A sequence of gymnasium env IDs may include `"module:Env-v0"`. These envs need 1-D Box
            observations and the same 1-D Box of actions.
        envs_per_task: The number of envs of each task. An official Meta-World env takes 36 MB.
            With the native engine only a task's first env takes 36 MB, and each further env takes
            4 KB.
        seed: Seed of every env's random stream and of Meta-World's goals, in [0, 2**32).
        engine: The engine for Meta-World's envs. `"native"` is compiled and uses threads.
            `"official"` is Meta-World's own code, which steps one env after the other. Both give
            the same numbers. If a task is a user's subclass, the official engine steps the whole
            suite. The setting does not affect other suites.
        render_mode: What `render` of every env gives, as in `gymnasium.make`. Give `"rgb_array"`
            for images, as SB3's `VecVideoRecorder` needs them. Meta-World's camera is then the
            benchmark's. The native engine always has images.
        env_kwargs: Arguments that `gymnasium.make` gives to every env, for a list of env IDs. Other
            suites take only `render_mode` in it.
        monitor_dir: A folder for SB3's monitor files, one for every env. An env begins its file
            again, and open files cannot be copied or pickled.

    Raises:
        ConfigError: The envs need more memory than the machine has.
        SuiteError: An argument is wrong. The message says in one line which, and what to do.
    """
    envs_per_task = _require_arguments(suite, engine, envs_per_task, seed)
    suite = suite if isinstance(suite, str) else tuple(suite)
    kwargs = _require_dict(env_kwargs)
    render_mode = kwargs.pop("render_mode", render_mode)
    if render_mode not in (None, "rgb_array") and (engine == "native" and _is_published(suite)):
        raise SuiteError(
            f"render_mode: got {render_mode!r}, expected 'rgb_array', because the native engine "
            "has only images. Give engine='official'"
        )
    if engine == "native" and _is_published(suite):
        from conal_rl.envs.native.sb3_env import NativeVecEnv

        _require_no_kwargs(kwargs, suite)
        return NativeVecEnv(suite, envs_per_task, seed, monitor_dir=monitor_dir)
    tasks = _tasks(suite, seed, render_mode, kwargs)
    return TaskVecEnv(suite, tasks, envs_per_task, seed, monitor_dir)


def _require_arguments(suite: Any, engine: str, envs_per_task: int, seed: int) -> int:
    """Return `envs_per_task` as an int, which may be numpy's."""
    if engine not in ("native", "official"):
        raise SuiteError(
            f"engine: got {engine!r}, expected 'native' or 'official'. Give one of them"
        )
    try:
        envs_per_task = whole("envs_per_task", envs_per_task)
        require_seed("seed", seed)  # the range of the numpy stream that draws Meta-World's goals
    except ConfigError as error:
        raise SuiteError(str(error)) from error
    words = [suite] if isinstance(suite, str) else suite
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise SuiteError(
            f"suite: got {quoted(suite)}, expected the name of a suite or a list of tasks. "
            "Give one of them"
        )
    return envs_per_task


def _require_dict(env_kwargs: Any) -> dict[str, Any]:
    if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
        raise SuiteError(f"env_kwargs: got {env_kwargs!r}, expected a dict of arguments. Give one")
    return dict(env_kwargs or {})


def _require_no_kwargs(kwargs: Mapping[str, Any], suite: Suite) -> None:
    if kwargs:
        raise SuiteError(
            f"env_kwargs: got {', '.join(map(str, kwargs))} for {suite}, expected no arguments, "
            "because only envs of gymnasium's IDs take them. Leave them out"
        )


def _is_published(suite: Suite) -> bool:
    from conal_rl.envs import cartpole

    if suite in cartpole.SUITES or not suite:
        return False
    from conal_rl.envs import metaworld  # it imports MuJoCo

    return metaworld.is_published(suite)


def _tasks(
    suite: Suite, seed: int, render_mode: str | None, kwargs: Mapping[str, Any]
) -> list[Task]:
    # metaworld is imported late, because it imports MuJoCo.
    from conal_rl.envs import cartpole

    if suite in cartpole.SUITES:
        _require_no_kwargs(kwargs, suite)
        return cartpole.tasks(str(suite), render_mode)

    from conal_rl.envs import gym_tasks, metaworld

    if not suite:
        raise SuiteError("suite: got an empty list of tasks, expected at least one. Name a task")
    if metaworld.is_metaworld(suite):
        _require_no_kwargs(kwargs, suite)
        return metaworld.tasks(suite, seed, render_mode)
    suites = [*metaworld.BENCHMARKS, *cartpole.SUITES]
    if isinstance(suite, str):
        bare = bare_name(suite)
        in_yaml = "" if bare in suites or bare == "mt1" else f" (in YAML [{suite}])"
        if bare == "mt1" or bare in metaworld.TASK_NAMES:
            bare = f"mt1:{'reach-v3' if bare == 'mt1' else bare}"
        close = did_you_mean(bare, [*suites, *(f"mt1:{task}" for task in metaworld.TASK_NAMES)])
        raise SuiteError(
            f"suite: got {suite!r}, expected mt10, mt25, mt50, mt1:TASK, cartpole, "
            f"cartpole:proportional or a list of tasks{in_yaml}{close}"
        )
    for name in suite:
        bare = name if name in cartpole.SUITES else bare_name(name)
        if bare in metaworld.BENCHMARKS or name in cartpole.SUITES:
            raise SuiteError(
                f"suite: got {name!r} in a list of tasks, expected a task. Give the suite {bare!r} "
                "without a list"
            )
    return gym_tasks.tasks(suite, metaworld.TASK_NAMES, render_mode, kwargs)


def suite_of(tasks: Sequence[str]) -> Suite:
    """Return the suite with these tasks, for an agent whose suite is not known.

    CartPole's variants are those of `"cartpole"`, which pushes with a constant force.
    """
    from conal_rl.envs import cartpole, metaworld

    named = {**metaworld.BENCHMARKS, "cartpole": tuple(cartpole.VARIANTS)}
    for suite, of_suite in named.items():
        if tuple(tasks) == of_suite:
            return suite
    return tuple(re.sub(r"#\d+$", "", task) for task in tasks)  # an ID that is given twice


_NATIVE = "conal_rl.envs.native.gymnasium_env"
for _suite in ("mt10", "mt25", "mt50"):
    gym.register(
        f"conal_rl/{_suite.upper()}-v3",
        vector_entry_point=f"{_NATIVE}:MetaWorldVectorEnv",
        kwargs={"suite": _suite},
    )
gym.register("conal_rl/MT1-v3", entry_point=f"{_NATIVE}:MetaWorldEnv")
