"""Checks of `ConalSAC`'s trees, tasks, environments, observations and sizes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from conal_rl.config.values import quoted
from conal_rl.core import ConalProStage, ReconSearch, Search, Structure, Tree
from conal_rl.device import require_memory
from conal_rl.errors import ConfigError, ObservationError, TreeError, of_user_code, other_tasks
from conal_rl.runs.structures import require_copies_to_fit


def structures_of(
    tree: Any, space: Structure, tasks: tuple[str, ...], layers: int
) -> tuple[Structure, Structure]:
    """Return the structures of actor and critics: `tree`, with `space` for each None.

    Raises:
        TypeError: one is neither a tree nor a search space.
        ValueError: one does not fit the tasks, or the number of hidden layers.
    """
    pair = tree if isinstance(tree, tuple) else (tree, tree)
    if len(pair) != 2:
        raise ValueError(
            f"tree: got {len(pair)} trees, expected the actor's and the critics'. Give two"
        )
    actor, critic = (space if each is None else each for each in pair)
    for each in (actor, critic):
        require_tree(each, tasks, layers)
    return actor, critic


def require_tree(tree: Any, tasks: tuple[str, ...], layers: int) -> None:
    """Check a structure against the tasks and the number of hidden layers.

    Raises:
        TypeError: it is neither a tree nor a search space.
        ValueError: it does not fit them.
    """
    if not isinstance(tree, Tree | Search):
        raise TypeError(
            f"tree: got {quoted(tree)}, expected a Tree, a search space, None, or a tuple of two. "
            "Give, for example, Tree.shared(tasks, depth)"
        )
    if isinstance(tree, Tree) and tree.tasks != tasks:
        raise ValueError(
            f"tree: got a tree of the tasks {tree.tasks}, expected {tasks}. "
            "Give a tree of the env's tasks"
        )
    if isinstance(tree, Tree) and tree.depth != layers:
        raise ValueError(
            f"tree: got a tree of {tree.depth} layers, expected {layers}, the number of widths. "
            "Give widths for its layers"
        )
    if isinstance(tree, ReconSearch) and tree.specific > layers:
        raise ValueError(
            f"tree: got a search for {tree.specific} specific_layers, expected at most {layers}, "
            "the number of widths. Lower specific_layers"
        )
    if isinstance(tree, ConalProStage) and len(tree.settled) != len(tasks):
        raise ValueError(
            f"tree: got a stage of {len(tree.settled)} tasks, expected {len(tasks)}. "
            "Give ConalProStage.first(len(tasks))"
        )
    if len(tasks) == 1 and not isinstance(tree, Tree | ReconSearch):
        raise ValueError(
            f"tree: got a search for the single task {tasks[0]}, expected a tree. "
            "Give tree=Tree.shared(tasks, depth)"
        )


def task_names(tasks: Sequence[str] | None, env: Any) -> tuple[str, ...]:
    """Return the names that are given, otherwise the env's.

    Raises:
        ValueError: names or the env are missing, a name is not a word, or two are the same.
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
        raise ValueError(f"tasks: got {quoted(names)}, expected a list of names. Give a list")
    try:
        return Tree.shared(names, depth=1).tasks
    except TreeError as error:
        raise ConfigError(str(error)) from error


def require_env(env: Any) -> GymEnv | None:
    """Return an env, which may be given by its name; None stays None.

    Raises:
        TypeError: it is not an env.
        ConfigError: the name cannot be made, or the spaces are not one-dimensional.
    """
    if env is None:
        return None
    if isinstance(env, str):
        try:
            env = gym.make(env)
        except Exception as error:  # the env's own code may raise anything
            raise ConfigError(
                f"env: got {quoted(env)}, which fails ({of_user_code(error)}), expected a VecEnv. "
                "Give one, such as make('mt10')"
            ) from error
    if not isinstance(env, VecEnv | gym.Env):
        raise TypeError(
            f"env: got {quoted(env)}, expected a VecEnv. Give one, such as make('mt10')"
        )
    seen, actions = env.observation_space, env.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        raise ConfigError(
            f"env: got the observation space {quoted(seen)}, expected a 1-D Box. Wrap the env, "
            "for example in gymnasium's FlattenObservation"
        )
    if not isinstance(actions, Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise ConfigError(
            f"env: got the action space {quoted(actions)}, expected a 1-D Box with finite bounds. "
            "Wrap the env, for example in gymnasium's RescaleAction or TransformAction"
        )
    return env


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


def require_sizes_to_fit(agent: Any) -> None:
    """Raise ConfigError if the replay, a batch or the networks of an agent exceed all memory.

    The estimates count less than is needed: the networks as if one tree were shared, without
    optimisers.
    """
    settings, tasks = agent.settings, len(agent.tasks)
    features, actions = agent.observation_space.shape[0] - tasks, agent.action_space.shape[0]
    transition = 2 * features + actions + 2
    layers = sum(a * b for a, b in pairwise((features + tasks, *settings.widths)))
    outputs = settings.critic_bins if settings.critic == "hl_gauss" else 1
    heads = tasks * settings.widths[-1] * outputs
    activations = settings.critics * sum(settings.widths) // 2  # in half precision
    numbers = {
        "buffer_size": settings.buffer_size * tasks * transition,
        "n_steps": (settings.n_steps - 1) * agent.n_envs * transition,
        "widths": layers,
        "critic_bins": heads,
        "critics": 2 * settings.critics * (layers + heads),
        "batch_size": settings.batch_size * tasks * (transition + activations),
    }
    for name, number in numbers.items():
        require_memory(f"agent.{name}", getattr(settings, name), 4 * number, agent.device)
    for structure in agent.structures:
        require_copies_to_fit(structure, settings.depth, agent.device)
