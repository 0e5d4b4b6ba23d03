"""Checks of `ConalSAC`'s trees, tasks, environments and observations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from conal_rl.core import ReconSearch, Search, Structure, Tree
from conal_rl.errors import ObservationError, other_tasks


def structures_of(
    tree: Any, space: Structure, tasks: tuple[str, ...]
) -> tuple[Structure, Structure]:
    """Return the structures of actor and critics: `tree`, with `space` for each None.

    Raises:
        TypeError: one is neither a tree nor a search space.
        ValueError: one does not fit the tasks.
    """
    pair = tree if isinstance(tree, tuple) else (tree, tree)
    if len(pair) != 2:
        raise ValueError(
            f"tree: got {len(pair)} trees, expected the actor's and the critics'. Give two"
        )
    actor, critic = (space if each is None else each for each in pair)
    for each in (actor, critic):
        require_tree(each, tasks)
    return actor, critic


def require_tree(tree: Any, tasks: tuple[str, ...]) -> None:
    """Check a structure against the tasks.

    Raises:
        TypeError: it is neither a tree nor a search space.
        ValueError: it does not fit the tasks.
    """
    if not isinstance(tree, Tree | Search):
        raise TypeError(
            f"tree: got {tree!r}, expected a Tree, a search space, None, or a tuple of two. "
            "Give, for example, Tree.shared(tasks, depth)"
        )
    if isinstance(tree, Tree) and tree.tasks != tasks:
        raise ValueError(
            f"tree: got a tree of the tasks {tree.tasks}, expected {tasks}. "
            "Give a tree of the env's tasks"
        )
    if len(tasks) == 1 and not isinstance(tree, Tree | ReconSearch):
        raise ValueError(
            f"tree: got a search for the single task {tasks[0]}, expected a tree. "
            "Give tree=Tree.shared(tasks, depth)"
        )


def task_names(tasks: Sequence[str] | None, env: Any) -> tuple[str, ...]:
    """Return the names that are given, otherwise the env's.

    Raises:
        ValueError: names or the env are missing.
        TreeError: a name is not a word, or two are the same.
    """
    if env is None:
        raise ValueError("env: got None, expected a VecEnv. Give one, such as make('mt10')")
    names = tasks if tasks is not None else getattr(env, "tasks", None)
    if names is None:
        raise ValueError(
            "tasks: got None and an environment without task names, expected names. Give "
            "tasks=[...], in the order of the one-hot at the end of its observations"
        )
    is_list = isinstance(names, Sequence) and not isinstance(names, str | bytes)
    if not is_list or not names:
        raise ValueError(f"tasks: got {names!r}, expected a list of names. Give a list")
    return Tree.shared(names, depth=1).tasks


def require_tasks(tasks: tuple[str, ...], env: Any) -> None:
    """Raise ValueError if an env has different tasks, or its observations are too short for them.

    Spaces do not tell tasks apart: without this check a task could get the head of a different one.
    """
    tasks_of_env = getattr(env, "tasks", None)
    if tasks_of_env is not None and tuple(tasks_of_env) != tasks:
        raise ValueError(other_tasks("the environment", tasks_of_env, tasks))
    if unwrap_vec_normalize(env) is not None:
        raise ValueError(
            "env: got a VecNormalize, which changes the one-hot task ID, expected an env without "
            "it. Give the env that it wraps"
        )
    shape = getattr(getattr(env, "observation_space", None), "shape", None)
    if shape is not None and shape[-1] <= len(tasks):
        raise ValueError(
            f"env: got observations of {shape[-1]} numbers, expected features and the one-hot of "
            f"{len(tasks)} tasks. Append the one-hot, or make the env with conal_rl.envs.make"
        )


def require_task_ids(observation: Any, num_tasks: int) -> None:
    """Raise ObservationError unless each row `(..., feature + task)` ends in a task's one-hot."""
    if not isinstance(observation, np.ndarray) or not observation.ndim:
        return  # SB3 raises the error
    ids = observation[..., -num_tasks:]
    one_hot = (np.count_nonzero(ids, axis=-1) == 1) & (ids.max(axis=-1) == 1)
    if not one_hot.all():
        wrong = ids.reshape(-1, ids.shape[-1])[int(np.argmin(one_hot.ravel()))]
        raise ObservationError(
            f"observation: got the end {wrong.tolist()}, expected the one-hot of one of "
            f"{num_tasks} tasks. "
            "Append the one-hot"
        )
