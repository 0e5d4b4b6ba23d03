"""Checks of `ConalSAC`'s trees, tasks, environments, observations and sizes."""

import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from conal_rl.agents.replay import TaskReplayBuffer
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


def require_tasks(tasks: tuple[str, ...], env: Any, normalize_returns: bool) -> None:
    """Check an env against an agent's tasks, and whether it scales what the agent scales itself.

    Spaces do not tell tasks apart: without this check a task could get the head of a different one.

    Raises:
        ValueError: the env has different tasks, its observations are too short for them, or its
            `VecNormalize` changes the one-hot or the agent's unit of rewards.
    """
    tasks_of_env = getattr(env, "tasks", None)
    if tasks_of_env is not None and tuple(tasks_of_env) != tasks:
        raise ValueError(other_tasks("the environment", tasks_of_env, tasks))
    normalize = unwrap_vec_normalize(env)
    if normalize is not None and normalize.norm_obs:
        raise ValueError(
            "env: got a VecNormalize of observations, which changes the one-hot task ID, expected "
            "norm_obs=False. Normalize observations in each env, before the one-hot"
        )
    if normalize is not None and normalize.norm_reward and normalize_returns:
        raise ValueError(
            "normalize_returns: got True and a VecNormalize of rewards, expected one of them. "
            "Leave out one"
        )
    shape = getattr(getattr(env, "observation_space", None), "shape", None)
    if shape is not None and shape[-1] <= len(tasks):
        raise ValueError(
            f"env: got observations of {shape[-1]} numbers, expected features and the one-hot of "
            f"{len(tasks)} tasks. Append the one-hot, or make the env with conal_rl.envs.make"
        )


def in_episode(env: Any) -> bool:
    """Return false if envs of `conal_rl.envs.make` need a reset, as after an interrupted step."""
    return bool(getattr(env, "in_episode", True))


def as_observations(observation: Any, size: int, num_tasks: int) -> np.ndarray:
    """Return observations as float32, from an array, a list or a tensor of any device.

    Args:
        observation: `(size,)` or `(row, size)`, where `size` counts features and tasks.
        size: numbers of an observation.
        num_tasks: length of the one-hot at its end.

    Raises:
        ObservationError: they are of a different kind or shape, or one does not end in a one-hot.
    """
    if isinstance(observation, Tensor):
        observation = observation.detach().float().cpu().numpy()
    try:
        rows = np.asarray(observation, dtype=np.float32)
    except (TypeError, ValueError):
        raise ObservationError(
            f"observation: got {quoted(observation)}, expected numbers. Give an array of the shape "
            f"({size},) or (row, {size})"
        ) from None
    if rows.ndim not in (1, 2) or rows.shape[-1] != size:
        raise ObservationError(
            f"observation: got the shape {rows.shape}, expected ({size},) or (row, {size}), "
            f"features and the one-hot of {num_tasks} tasks. Give one observation or one per row"
        )
    require_task_ids(rows, num_tasks)
    return rows


def require_task_ids(observation: np.ndarray, num_tasks: int) -> None:
    """Raise ObservationError unless each row `(..., feature + task)` ends in a task's one-hot."""
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


def require_every_task(
    observations: np.ndarray, tasks: tuple[str, ...], replay: TaskReplayBuffer
) -> None:
    """Raise ValueError for tasks without an env `(env, feature + task)` and without transitions.

    No update could be done, because each one learns from all tasks.
    """
    here = observations[:, -len(tasks) :].any(axis=0) | (replay.training.sizes > 0)
    if not here.all():
        raise ValueError(
            f"env: got no environment of {_named(tasks, ~here)}, expected one for each of the "
            f"{len(tasks)} tasks. Add it, or leave the task out"
        )


PATIENCE = 2_000
"""Steps of each env after which `learn` warns that it lacks the data for an update."""


def is_time_to_warn(steps: int, train_freq: Any) -> bool:
    """Return whether each env's `steps` reach `PATIENCE` in this round of SB3's `train_freq`."""
    return PATIENCE <= steps < PATIENCE + train_freq.frequency


def warn_of_missing_data(tasks: tuple[str, ...], replay: TaskReplayBuffer) -> None:
    """Warn that no update is done, because tasks lack training or validation transitions."""
    missing = [
        f"{kind} transitions of {_named(tasks, ring.sizes == 0)}"
        for kind, ring in (("training", replay.training), ("validation", replay.validation))
        if ring.sizes.min() == 0 and (ring is replay.training or replay.validation_share)
    ]
    warnings.warn(
        f"replay: got no {' and no '.join(missing)}, expected some of every task. Nothing has been "
        "learnt yet. Give the envs a time limit, for example gymnasium's TimeLimit, or train for "
        "longer",
        stacklevel=3,
    )


def warn_of_uneven_episodes(observations: np.ndarray, tasks: tuple[str, ...]) -> None:
    """Warn if SB3's `evaluate_policy` calls, and gives some tasks fewer episodes than others.

    It shares `n_eval_episodes` out over all envs, here `(env, feature + task)`, and gives the first
    ones less. Only its own frame knows the number.
    """
    frame = sys._getframe(1)
    while frame.f_code is not evaluate_policy.__code__:
        if frame.f_back is None:
            return
        frame = frame.f_back
    episodes: int | None = frame.f_locals.get("n_eval_episodes")
    if episodes is None or observations.ndim != 2:
        return
    envs = len(observations)
    ids = observations[:, -len(tasks) :].astype(np.int64)  # (env, task)
    of_tasks = np.array([(episodes + i) // envs for i in range(envs)]) @ ids
    present = ids.any(axis=0)
    if np.ptp(of_tasks[present]):
        left_out = present & (of_tasks == 0)
        fewer = present & (of_tasks < of_tasks.max())
        share = (
            f"no episode to {_named(tasks, left_out)}"
            if left_out.any()
            else f"fewer episodes to {_named(tasks, fewer)} than to other tasks"
        )
        warnings.warn(
            f"n_eval_episodes: got {episodes} for {envs} envs together, which gives {share}, "
            f"expected a multiple of {envs}. Give {-(-episodes // envs) * envs}",
            stacklevel=2,
        )


def _named(tasks: tuple[str, ...], chosen: np.ndarray) -> str:
    """Return the names of the chosen tasks `(task,)`, in a sentence."""
    return ", ".join(task for task, is_chosen in zip(tasks, chosen, strict=True) if is_chosen)
