"""Success per task of a policy; on Meta-World's suites, by its official protocol.

The protocol is `metaworld.evaluation.evaluation` on the official vector env. Actions are
deterministic. Each task has 50 episodes, one for each of its 50 goals. An episode ends, and counts,
at its first success. That function is called, not written again; `_EpisodeRecorder` has the one
shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import gymnasium as gym
import numpy as np
from metaworld.evaluation import evaluation as official_evaluation
from numpy.typing import NDArray
from rich.table import Table

from conal_rl import envs as conal_envs
from conal_rl.config.checks import require_seed, whole
from conal_rl.envs.metaworld import (
    is_metaworld,
    is_published,
    official_vector_env,
    suite_tasks,
)
from conal_rl.envs.vec_env import require_actions
from conal_rl.errors import ConfigError, ObservationError, SuiteError, other_tasks
from conal_rl.evaluation.intervals import Interval, mean_interval, wilson

Engine = Literal["official", "native"]
Progress = Callable[[int, int], None]
"""Takes (episodes done, episodes wanted) over all tasks, after every episode that counts."""

ENDLESS = 100_000
"""Steps of an env after which evaluation no longer waits for its episode to end."""


class Policy(Protocol):
    """Anything that acts as an SB3 algorithm does."""

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """Return actions (rows, action dim) for float32 observations (rows, features + one-hot)."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Outcome of evaluating one policy on every task of a suite.

    The intervals cover other goals and initial states, but not other training seeds. A task that
    does not define success has the rate None and no episodes list.
    """

    suite: str
    engine: Engine
    seed: int
    episodes_per_task: int
    success: dict[str, float | None]
    """Share of successful episodes per task, in the suite's order."""
    returns: dict[str, float]
    """Mean undiscounted return per task; by the official protocol, episodes end at success."""
    episodes: dict[str, list[bool]]
    """Success of each episode, per task that defines success."""

    @property
    def mean_success(self) -> float | None:
        """Mean rate over the tasks that define success; None without such a task."""
        rates = [rate for rate in self.success.values() if rate is not None]
        return float(np.mean(rates)) if rates else None

    @property
    def ci95(self) -> Interval | None:
        """95% interval of `mean_success`; see `mean_interval`."""
        rates = [rate for rate in self.success.values() if rate is not None]
        return mean_interval(rates, self.episodes_per_task) if rates else None

    def to_json(self) -> dict[str, Any]:
        """Return everything, as types that `json.dump` takes."""
        return {
            "suite": self.suite,
            "engine": self.engine,
            "seed": self.seed,
            "episodes_per_task": self.episodes_per_task,
            "success": self.success,
            "mean_success": self.mean_success,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "returns": self.returns,
            "episodes": self.episodes,
        }

    def table(self) -> Table:
        """Return a row per task with rate, Wilson interval and return, and a row of means."""
        title = f"{self.suite}: {self.episodes_per_task} episodes per task, seed {self.seed}"
        table = Table(title=title)
        for column in ("task", "success", "95% interval", "mean return"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for task, rate in self.success.items():
            interval = None if rate is None else wilson(rate, self.episodes_per_task)
            table.add_row(task, *_cells(rate, interval), f"{self.returns[task]:.1f}")
        table.add_section()
        mean_return = float(np.mean(list(self.returns.values())))
        known = sum(rate is not None for rate in self.success.values())
        of = "" if known in (0, len(self.success)) else f" (success: of {known} tasks)"
        table.add_row(f"mean{of}", *_cells(self.mean_success, self.ci95), f"{mean_return:.1f}")
        return table


def _cells(rate: float | None, interval: Interval | None) -> tuple[str, str]:
    if rate is None or interval is None:
        return "-", "-"
    return f"{rate:.1%}", f"{interval[0]:.1%} to {interval[1]:.1%}"


def evaluate_policy(
    policy: Policy,
    suite: str | Sequence[str],
    episodes: int = 50,
    seed: int = 0,
    engine: Engine = "official",
    progress: Progress | None = None,
) -> Evaluation:
    """Return the success of `policy` with deterministic actions on every task of `suite`.

    Meta-World's own tasks follow the official protocol (see the module), whose `episodes` is 50.
    Both engines then play the same episodes. All other tasks run on `conal_rl.envs.make`, with
    whole episodes and the success that `info["is_success"]` says at their end. Each env gives a
    fixed number of episodes, so that short ones are not favoured (as in SB3's `evaluate_policy`).
    The other tasks include subclasses of Meta-World's envs; their goals are drawn with replacement.

    Args:
        policy: acts as an SB3 algorithm does.
        suite: what `conal_rl.envs.make` takes.
        episodes: episodes per task.
        seed: seed of the goals and of the envs.
        engine: what steps Meta-World's own tasks.
        progress: takes how many episodes are done.

    Raises:
        ConfigError: `episodes` is below 1, `seed` is below 0, or the engine is unknown.
        TypeError: the policy lacks `predict`.
        SuiteError: the suite is unknown, or the engine lacks it.
        ObservationError: the policy has `tasks` that differ from the suite's, or takes different
            observations, or its actions are NaN or of a different shape.
    """
    if not callable(getattr(policy, "predict", None)):
        raise TypeError(
            f"policy: got {type(policy).__name__}, expected an agent with predict. Give one, such "
            "as load_run(RUN)"
        )
    episodes = whole("episodes", episodes)
    seed = whole("seed", seed, 0)
    require_seed("seed", seed)
    if engine not in ("official", "native"):
        raise ConfigError(f"engine: got {engine!r}, expected official or native. Give one of them")
    if engine == "native" and not is_published(suite):
        raise SuiteError(
            "engine: got 'native', expected 'official', because native has only Meta-World's own "
            "tasks. "
            "Give official"
        )
    if is_published(suite):
        outcomes, returns = _evaluate_officially(policy, suite, episodes, seed, engine, progress)
    else:
        outcomes, returns = _evaluate_vec_env(policy, suite, episodes, seed, progress)
    return Evaluation(
        suite=suite if isinstance(suite, str) else ",".join(suite),
        engine=engine,
        seed=seed,
        episodes_per_task=episodes,
        success={task: None if o is None else sum(o) / episodes for task, o in outcomes.items()},
        returns=returns,
        episodes={task: o for task, o in outcomes.items() if o is not None},
    )


Outcomes = tuple[dict[str, list[bool] | None], dict[str, float]]
"""Per task: success of each episode (None if undefined), and the mean return."""


class _EpisodeRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Notes each episode's success, and stops stepping its env once it has enough of them.

    The official loop steps all tasks until the slowest has its episodes, and ignores the further
    episodes of the others. Leaving those out spares up to 90% of the steps and changes no result.
    """

    def __init__(self, env: gym.Env[Any, Any], episodes: int, on_episode: Callable[[], None]):
        super().__init__(env)
        self.wanted = episodes
        self.on_episode = on_episode
        self.successes: list[bool] = []
        self.observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        info: dict[str, Any] = {}
        if len(self.successes) < self.wanted:
            self.observation, info = super().reset(seed=seed, options=options)
        return self.observation, info

    def step(self, action: Any) -> Any:
        if len(self.successes) == self.wanted:
            return self.observation, 0.0, False, False, {}
        self.observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            self.successes.append(bool(info["success"]))
            self.on_episode()
        return self.observation, reward, terminated, truncated, info


def _native_vector_env(
    suite: str | Sequence[str], seed: int, episodes: int, on_episode: Callable[[], None]
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Return what `official_vector_env` does, on the native engine; it notes each success."""
    from conal_rl.envs.native.gymnasium_env import MetaWorldVectorEnv

    class Recorder(MetaWorldVectorEnv):
        successes: Sequence[list[bool]]  # of each task's episodes that count

        def step(self, actions: NDArray[Any]) -> Any:
            result = super().step(actions)
            info = result[-1]
            for i in np.flatnonzero(info.get("_final_info", ())).tolist():
                if len(self.successes[i]) < episodes:
                    self.successes[i].append(bool(info["final_info"]["success"][i]))
                    on_episode()
            return result

    envs = Recorder(
        suite if isinstance(suite, str) else tuple(suite), seed=seed, task_select="pseudorandom"
    )
    envs.successes = [[] for _ in envs.tasks]
    envs.episodes.seed([seed] * len(envs.tasks))
    return envs


class _OfficialAgent:
    """Gives a `Policy` the interface of `metaworld.evaluation.Agent`."""

    def __init__(self, policy: Policy, tasks: Sequence[str]):
        self.policy, self.tasks = policy, tasks

    def eval_action(self, observations: NDArray[np.float64]) -> NDArray[Any]:
        actions, _ = self.policy.predict(observations.astype(np.float32), deterministic=True)
        require_actions(actions, self.tasks, envs_per_task=1, size=4)
        return actions

    def reset(self, env_mask: NDArray[np.bool_]) -> None:
        pass


def _evaluate_officially(
    policy: Policy,
    suite: str | Sequence[str],
    episodes: int,
    seed: int,
    engine: Engine,
    progress: Progress | None,
) -> Outcomes:
    tasks = suite_tasks(suite)
    count = _counter(progress, len(tasks) * episodes)
    envs: Any
    if engine == "native":
        envs = _native_vector_env(suite, seed, episodes, count)
        successes = envs.successes
    else:
        envs = official_vector_env(suite, seed)
        envs.envs = [_EpisodeRecorder(env, episodes, count) for env in envs.envs]
        successes = [env.successes for env in envs.envs]
    try:
        require_fit(policy, tasks, envs.single_observation_space)
        _, _, success, returns = official_evaluation(_OfficialAgent(policy, tasks), envs, episodes)
    finally:
        envs.close()
    outcomes = dict(zip(tasks, successes, strict=True))
    assert success == {task: sum(o) / episodes for task, o in outcomes.items()}
    return outcomes, {task: float(np.mean(returns[task])) for task in tasks}


def _evaluate_vec_env(
    policy: Policy,
    suite: str | Sequence[str],
    episodes: int,
    seed: int,
    progress: Progress | None,
) -> Outcomes:
    # Several envs share a policy's batch. Official Meta-World envs are too large: 36 MB each.
    per_task = 1 if is_metaworld(suite) else min(episodes, 10)
    envs = conal_envs.make(suite, envs_per_task=per_task, seed=seed, engine="official")
    targets = np.tile([(episodes + k) // per_task for k in range(per_task)], len(envs.tasks))
    done_counts = np.zeros_like(targets)
    returns: dict[str, list[float]] = {task: [] for task in envs.tasks}
    successes: dict[str, list[bool | None]] = {task: [] for task in envs.tasks}
    count = _counter(progress, int(targets.sum()))
    steps = np.zeros_like(targets)  # of the current episodes
    try:
        require_fit(policy, envs.tasks, envs.observation_space)
        observations = cast(NDArray[np.float32], envs.reset())
        while (done_counts < targets).any():
            actions, _ = policy.predict(observations, deterministic=True)
            observations, _, dones, infos = cast(Any, envs.step(actions))
            steps = np.where(dones, 0, steps + 1)
            endless = (steps >= ENDLESS) & (done_counts < targets)
            if endless.any():
                task = envs.tasks[int(endless.argmax()) // per_task]
                raise SuiteError(
                    f"{task}: got an episode of over {ENDLESS:,} steps, expected an end. Give the "
                    "env a time limit (max_episode_steps)"
                )
            for i in np.flatnonzero(dones & (done_counts < targets)):
                done_counts[i] += 1
                task = envs.tasks[i // per_task]
                returns[task].append(float(infos[i]["episode"]["r"]))
                successes[task].append(infos[i].get("is_success"))
                count()
    finally:
        envs.close()
    outcomes = {
        # If a task ever reports success, an episode without a report has failed.
        task: None if all(success is None for success in reported) else list(map(bool, reported))
        for task, reported in successes.items()
    }
    return outcomes, {task: float(np.mean(r)) for task, r in returns.items()}


def _counter(progress: Progress | None, wanted: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, wanted)

    return count


def require_fit(policy: Policy, tasks: Sequence[str], space: gym.Space[Any]) -> None:
    """Raise ObservationError if a policy has different tasks or observations.

    Args:
        policy: the policy; its `tasks` and `observation_space` are checked if it has them.
        tasks: the tasks of the suite, in order.
        space: the space of the suite's observations.
    """
    policy_tasks: Sequence[str] | None = getattr(policy, "tasks", None)
    if policy_tasks is not None and tuple(policy_tasks) != tuple(tasks):
        raise ObservationError(other_tasks("the suite", tasks, policy_tasks))
    expected: gym.Space[Any] | None = getattr(policy, "observation_space", None)
    if expected is not None and expected.shape != space.shape:
        raise ObservationError(
            f"observations: got the shape {space.shape} from the suite, expected {expected.shape}, "
            "which the policy takes. "
            "Give the suite of its training"
        )
