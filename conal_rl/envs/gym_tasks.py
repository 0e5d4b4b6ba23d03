"""Any list of gymnasium env IDs as a suite: how users bring their own tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from conal_rl.envs.suggest import did_you_mean
from conal_rl.envs.vec_env import Task
from conal_rl.errors import SuiteError, of_user_code


def tasks(env_ids: Sequence[str], other_names: Sequence[str] = ()) -> list[Task]:
    """Return one task per env ID, which may be `"module:Env-v0"` as in `gymnasium.make`.

    An ID given more than once is a task each time, named `ID`, `ID#2`, ... Building a task raises
    `SuiteError` when gymnasium cannot make its env.

    Args:
        env_ids: IDs that `gymnasium.make` knows.
        other_names: Names that are no env IDs but that a mistyped one may have meant.
    """
    found = []
    seen: Counter[str] = Counter()
    for env_id in env_ids:
        seen[env_id] += 1
        name = env_id if seen[env_id] == 1 else f"{env_id}#{seen[env_id]}"
        found.append(Task(name, partial(_build, env_id, other_names)))
    return found


def _build(env_id: str, other_names: Sequence[str]) -> gym.Env[Any, Any]:
    try:
        return gym.make(env_id)
    except gym.error.UnregisteredEnv as error:
        close = did_you_mean(env_id.rpartition(":")[2], [*gym.registry, *other_names])
        raise SuiteError(
            f"unknown task {env_id!r}{close or '; give gymnasium env IDs or Meta-World tasks'}"
        ) from error
    except (gym.error.Error, ImportError) as error:  # e.g. a package of the env is missing
        raise SuiteError(f"gymnasium cannot make {env_id!r}: {error}") from error
    except Exception as error:  # whatever the env's own code raises
        raise SuiteError(f"gymnasium cannot make {env_id!r}: {of_user_code(error)}") from error
