"""What `ConalSAC` refuses: arguments, trees and envs at fault, each named in one line."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conal_rl.core import ReconSearch, Search, Tree
from conal_rl.errors import ObservationError, other_tasks

_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("batch_size", "buffer_size", "n_steps"), lambda value: value >= 1, "at least 1"),
    (
        ("gate_every", "actor_every", "target_update_interval"),
        lambda value: value >= 1,
        "at least 1",
    ),
    (("learning_starts", "specific_decay"), lambda value: value >= 0, "at least 0"),
    (("reward_scale", "gate_learning_rate"), lambda value: value > 0, "above 0"),
    (("max_grad_norm",), lambda value: value is None or value > 0, "None or above 0"),
    (("critic_reduce",), lambda value: value in ("min", "mean"), "min or mean"),
    (("gamma",), lambda value: 0 <= value <= 1, "between 0 and 1"),
    (("tau",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
    (
        ("gumbel_temperature",),
        lambda value: value is None or (len(value) == 2 and 0 < value[1] <= value[0]),
        "None or two numbers above 0, the higher first",
    ),
)
"""Arguments, whether a value of theirs will do, and what to say where it does not."""


def require_ranges(agent: Any) -> None:
    """Raise ValueError where an attribute of the agent is out of its range."""
    for names, fits, allowed in _RANGES:
        for name in names:
            value = getattr(agent, name)
            if not fits(value):
                raise ValueError(f"{name} is {allowed}, not {value!r}")


def require_tree(tree: Any, tasks: tuple[str, ...]) -> None:
    """Raise TypeError where it is none, ValueError where it is not one for the tasks."""
    if not isinstance(tree, Tree | Search):
        raise TypeError(
            f"a tree is a Tree, such as Tree.shared(tasks, depth), or a search space, "
            f"not {tree!r}; a pair of them is a tuple"
        )
    if isinstance(tree, Tree) and tree.tasks != tasks:
        raise ValueError(f"the tree's tasks {tree.tasks} are not the agent's {tasks}")
    if len(tasks) == 1 and not isinstance(tree, Tree | ReconSearch):
        raise ValueError(
            f"{tasks[0]} is the only task and has nobody to share with: there is no tree to "
            "search; give tree=Tree.shared(tasks, depth)"
        )


def task_names(tasks: Sequence[str] | None, env: Any) -> tuple[str, ...]:
    """Those given, or the env's own.

    Raises:
        ValueError: there are none, or no env.
        TreeError: one is no name, or two are the same.
    """
    if env is None:
        raise ValueError("a ConalSAC needs an env, such as conal_rl.envs.make('mt10')")
    names = tasks if tasks is not None else getattr(env, "tasks", None)
    if names is None:
        raise ValueError(
            "this environment does not name its tasks: pass tasks=[...], in the order of the "
            "one-hot tail of its observations, or make it with conal_rl.envs.make"
        )
    if isinstance(names, str) or not names:
        raise ValueError(f"tasks are a list of names, not {names!r}")
    return Tree.shared(names, depth=1).tasks


def require_tasks(tasks: tuple[str, ...], env: Any) -> None:
    """Raise ValueError where an env's tasks are others, or its observations have no room for them.

    Envs of other tasks may have the same spaces: heads would be exchanged in silence.
    """
    there = getattr(env, "tasks", None)
    if there is not None and tuple(there) != tasks:
        raise ValueError(other_tasks("the environment", there, tasks))
    shape = getattr(getattr(env, "observation_space", None), "shape", None)
    if shape is not None and shape[-1] <= len(tasks):
        raise ValueError(
            f"observations of {shape[-1]} numbers cannot end in the one-hot of {len(tasks)} tasks"
        )


def require_task_ids(observation: Any, num_tasks: int) -> None:
    """Raise ObservationError unless each row `(..., feature + task)` ends in a task's one-hot."""
    if not isinstance(observation, np.ndarray) or not observation.ndim:
        return  # SB3 says what is wrong
    ids = observation[..., -num_tasks:]
    one_hot = (np.count_nonzero(ids, axis=-1) == 1) & (ids.max(axis=-1) == 1)
    if not one_hot.all():
        wrong = ids.reshape(-1, ids.shape[-1])[int(np.argmin(one_hot.ravel()))]
        raise ObservationError(
            f"an observation ends in {wrong.tolist()}, not in the one-hot of one of "
            f"{num_tasks} tasks"
        )
