"""Task suites as one Stable-Baselines3 `VecEnv`.

    envs = conal_rl.envs.make("mt10", envs_per_task=2, seed=0)

The contract, whatever the suite:

- env `task * envs_per_task + k`: all envs of task 0 first; `envs.tasks` holds the names;
- observations are float32, zero-padded to the longest task's, the task's one-hot at the end;
- all tasks share one Box of actions; rewards are the envs' own, not scaled;
- at the end of an episode `info` has `episode` (return, length, time), `terminal_observation`,
  `TimeLimit.truncated` and, where the suite defines success, `is_success`;
- a NaN or inf in an observation or reward raises `ObservationError`;
- the same seed gives the same rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import gymnasium as gym

from conal_rl.envs.suggest import did_you_mean
from conal_rl.envs.vec_env import Suite, SuiteVecEnv, Task, TaskVecEnv
from conal_rl.errors import SuiteError

__all__ = ["SuiteVecEnv", "TaskVecEnv", "make"]


def make(
    suite: str | Sequence[str],
    envs_per_task: int = 1,
    seed: int = 0,
    engine: Literal["native", "official"] = "native",
) -> SuiteVecEnv:
    """Make all envs of a suite.

    Args:
        suite: One of
            `"mt10"`, `"mt25"`, `"mt50"`, `"mt1:TASK"` or a sequence of Meta-World v3 task names,
            among them `"module:Class"` for a subclass of a Meta-World env, with which all of the
            suite's envs are official ones;
            `"cartpole"` (seven CartPole variants; the action's sign chooses the push) or
            `"cartpole:proportional"` (the action scales the force);
            a sequence of gymnasium env IDs, `"module:Env-v0"` included, with 1-D Box observations
            and the same 1-D Box of actions.
        envs_per_task: How many envs of each task. An official Meta-World env holds a MuJoCo model
            of 36 MB, a native one beyond a task's first takes 4 KB.
        seed: Seed of every env's random stream and of Meta-World's goals, in [0, 2**32).
        engine: What steps Meta-World's envs: `"native"`, compiled and in threads, or `"official"`,
            as published, one after the other; both give the same numbers. Other suites are always
            stepped one after the other.

    Raises:
        SuiteError: In one line, what is wrong with the arguments and what to do.
    """
    if engine not in ("native", "official"):
        raise SuiteError(f"unknown engine {engine!r}; there are: native, official")
    if envs_per_task < 1:
        raise SuiteError(f"envs_per_task is {envs_per_task}; it must be at least 1")
    if not 0 <= seed < 2**32:  # the range of the numpy stream that draws Meta-World's goals
        raise SuiteError(f"seed is {seed}; it must be at least 0 and below 2**32")
    suite = suite if isinstance(suite, str) else tuple(suite)
    if engine == "native" and _is_published(suite):
        from conal_rl.envs.native.sb3_env import NativeVecEnv

        return NativeVecEnv(suite, envs_per_task, seed)
    return TaskVecEnv(suite, _tasks(suite, seed), envs_per_task, seed)


def _is_published(suite: Suite) -> bool:
    from conal_rl.envs import cartpole

    if suite in cartpole.SUITES or not suite:
        return False
    from conal_rl.envs import metaworld  # brings MuJoCo with it

    return metaworld.is_published(suite)


def _tasks(suite: Suite, seed: int) -> list[Task]:
    # Imported here: metaworld brings MuJoCo with it.
    from conal_rl.envs import cartpole

    if suite in cartpole.SUITES:
        return cartpole.tasks(str(suite))

    from conal_rl.envs import gym_tasks, metaworld

    if not suite:
        raise SuiteError("the list of tasks is empty; name at least one")
    if metaworld.is_metaworld(suite):
        return metaworld.tasks(suite, seed)
    if isinstance(suite, str):
        close = did_you_mean(suite, [*metaworld.BENCHMARKS, *cartpole.SUITES])
        raise SuiteError(
            f"unknown suite {suite!r}; there are mt10, mt25, mt50, mt1:TASK, cartpole, "
            f"cartpole:proportional, or a list of tasks, in YAML [{suite}]{close}"
        )
    return gym_tasks.tasks(suite, other_names=metaworld.TASK_NAMES)


_NATIVE = "conal_rl.envs.native.gymnasium_env"
for _suite in ("mt10", "mt25", "mt50"):
    gym.register(
        f"conal_rl/{_suite.upper()}-v3",
        vector_entry_point=f"{_NATIVE}:MetaWorldVectorEnv",
        kwargs={"suite": _suite},
    )
gym.register("conal_rl/MT1-v3", entry_point=f"{_NATIVE}:MetaWorldEnv")
