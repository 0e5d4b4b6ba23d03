"""A list of gymnasium env IDs as a suite. Users add their own tasks in this way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from conal_rl.envs.suggest import bare_name, did_you_mean
from conal_rl.envs.vec_env import Task
from conal_rl.errors import SuiteError, of_user_code


def tasks(
    env_ids: Sequence[str],
    other_names: Sequence[str] = (),
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> list[Task]:
    """Return one task per env ID.

    An ID that is given several times makes several tasks, named `ID`, `ID#2` and so on.
    `Task.build` raises `SuiteError` if gymnasium cannot make the env.

    Args:
        env_ids: IDs that `gymnasium.make` knows, `"module:Env-v0"` included.
        other_names: Further names that an error may suggest for a mistyped ID.
        render_mode: As in `gymnasium.make`. None keeps what the env was registered with.
        env_kwargs: Further arguments of `gymnasium.make`.
    """
    given = dict(env_kwargs or {}) | ({} if render_mode is None else {"render_mode": render_mode})
    tasks_of_ids = []
    seen: Counter[str] = Counter()
    for env_id in env_ids:
        seen[env_id] += 1
        name = env_id if seen[env_id] == 1 else f"{env_id}#{seen[env_id]}"
        tasks_of_ids.append(Task(name, partial(_build, env_id, other_names, given)))
    return tasks_of_ids


def _build(env_id: str, other_names: Sequence[str], given: Mapping[str, Any]) -> gym.Env[Any, Any]:
    if (bare := bare_name(env_id)) in other_names:
        raise SuiteError(
            f"suite: got the task {env_id!r}, expected a gymnasium env ID or a Meta-World task"
            f"{did_you_mean(bare, other_names)}"
        )
    try:
        return gym.make(env_id, **given)
    except gym.error.UnregisteredEnv as error:
        close = did_you_mean(env_id.rpartition(":")[2], [*gym.registry, *other_names])
        raise SuiteError(
            f"suite: got the task {env_id!r}, expected a gymnasium env ID or a Meta-World task"
            f"{close}"
        ) from error
    except (gym.error.Error, ImportError) as error:  # for example, the env's package is missing
        raise SuiteError(
            f"task {env_id!r}: got {error}, expected an env that gymnasium can make. "
            "Try gymnasium.make"
        ) from error
    except Exception as error:  # the env's own code may raise anything
        unknown = [name for name in given if f"argument '{name}'" in str(error)]
        if unknown and isinstance(error, TypeError):
            raise SuiteError(
                f"task {env_id!r}: got no argument {unknown[0]}, expected an __init__ that takes "
                "it. Add it, or leave it out"
            ) from error
        raise SuiteError(
            f"task {env_id!r}: got {of_user_code(error)}, expected an env that gymnasium can make. "
            "Try gymnasium.make"
        ) from error
