"""Success per task of a policy, by Meta-World's official protocol where the suite is Meta-World's.

The official protocol is `metaworld.evaluation.evaluation` on the official vector env: deterministic
actions, 50 episodes per task, each of a task's 50 goals once, an episode ends (and counts) at its
first success. That function is called, not restated; see `_EpisodeRecorder` for the one shortcut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Protocol, cast

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.evaluation import evaluation as official_evaluation
from numpy.typing import NDArray
from rich.table import Table

from conal_rl import envs as conal_envs
from conal_rl.config.checks import require_seed
from conal_rl.envs.metaworld import (
    Camera,
    is_metaworld,
    is_published,
    official_vector_env,
    require_display,
    suite_tasks,
)
from conal_rl.envs.vec_env import require_actions
from conal_rl.errors import ConfigError, ObservationError, SuiteError, other_tasks

Engine = Literal["official", "native"]
Interval = tuple[float, float]
Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes wanted) over all tasks, after every episode that counts."""

ENDLESS = 100_000
"""Steps of an env after which evaluation no longer waits for its episode to end."""
_Z95 = NormalDist().inv_cdf(0.975)


class Policy(Protocol):
    """Anything that acts as an SB3 algorithm does."""

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """Actions (rows, action dim) for float32 observations (rows, features + one-hot)."""
        ...


def wilson(rate: float, episodes: float) -> Interval:
    """95% Wilson score interval of a success rate over `episodes` (Wilson 1927).

    It stays inside [0, 1] and has a width at rates of 0 and 1. `episodes` need not be whole.
    """
    shrink = 1 + _Z95**2 / episodes
    centre = (rate + _Z95**2 / (2 * episodes)) / shrink
    half = _Z95 * sqrt(rate * (1 - rate) / episodes + _Z95**2 / (4 * episodes**2)) / shrink
    # At rates 0 and 1 one end is the rate itself; rounding must not move it past it.
    return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)


def mean_interval(rates: Sequence[float], episodes: int) -> Interval:
    """95% interval of the mean of several tasks' success rates, each over as many `episodes`.

    A Wilson interval at the effective sample size of a stratified sample (Korn & Graubard 1998;
    Franco et al. 2019): T tasks x n episodes, divided by the share of the variance that is left
    when the split into tasks is fixed. For one task it is `wilson`. A bootstrap over episodes was
    tried and rejected: it has width 0 when every task is at 0 or 1, and with true rates of 0.99 and
    n = 10 it covered the true mean in 64% of the cases; this one covers 91 to 100%.
    """
    # Counts shrunk by half an episode (Jeffreys), so that tasks at 0 or 1 keep some variance.
    shrunk = (np.asarray(rates) * episodes + 0.5) / (episodes + 1)
    within, total = np.mean(shrunk * (1 - shrunk)), shrunk.mean() * (1 - shrunk.mean())
    return wilson(float(np.mean(rates)), len(rates) * episodes * float(total / within))


@dataclass(frozen=True)
class Evaluation:
    """Outcome of evaluating one policy on every task of a suite.

    The intervals say how far the rates would carry to other goals and initial states; they do not
    cover training seeds. A task that defines no success has the rate None and no episodes list.
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
        """Mean rate over the tasks that define success; None if none does."""
        rates = [rate for rate in self.success.values() if rate is not None]
        return float(np.mean(rates)) if rates else None

    @property
    def ci95(self) -> Interval | None:
        """95% interval of `mean_success`; see `mean_interval`."""
        rates = [rate for rate in self.success.values() if rate is not None]
        return mean_interval(rates, self.episodes_per_task) if rates else None

    def to_json(self) -> dict[str, Any]:
        """Everything, as types that `json.dump` takes."""
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
        """A row per task with rate, Wilson interval and return, and one for their means."""
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
    """Evaluate `policy` with deterministic actions over `episodes` episodes of every task.

    Meta-World's tasks follow the official protocol (module docstring), for which `episodes` is 50;
    both engines play the same episodes. Everything else runs on `conal_rl.envs.make`: full
    episodes, success as `info["is_success"]` at their end says, a fixed number of episodes from
    each env, so that short episodes are not favoured (as in SB3's `evaluate_policy`). So do
    subclasses of Meta-World's envs, which its protocol does not know; their goals are drawn with
    replacement.

    Raises:
        ConfigError: `episodes` below 1, `seed` below 0, or an unknown engine.
        SuiteError: unknown suite, or one that the engine does not have.
        ObservationError: the policy has `tasks` that are not the suite's, or takes other
            observations, or its actions are NaN or of another shape.
    """
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, not {episodes}")
    require_seed("seed", seed)
    if engine not in ("official", "native"):
        raise ConfigError(f"unknown engine {engine!r}: choose official or native")
    if engine == "native" and not is_published(suite):
        raise SuiteError("the native engine has Meta-World's own tasks alone; evaluate without it")
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
"""Per task: success of each episode (None where undefined), and the mean return."""


class _EpisodeRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Notes each episode's success; once it has enough of them, stands still.

    The official loop steps all tasks until the slowest has its episodes and ignores what the others
    do meanwhile. Not simulating those leaves its result as it is and spares up to 90% of the steps.
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
    """The native counterpart of `official_vector_env`, noting each episode's success."""
    from conal_rl.envs.native.gymnasium_env import MetaWorldVectorEnv

    class Recorder(MetaWorldVectorEnv):
        successes: Sequence[list[bool]]  # of each task, those that count

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
    """A `Policy` as `metaworld.evaluation.Agent`."""

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
        _check_fits(policy, tasks, envs.single_observation_space)
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
    # Several envs share a policy's batch; official Meta-World envs are too large, 36 MB each.
    per_task = 1 if is_metaworld(suite) else min(episodes, 10)
    envs = conal_envs.make(suite, envs_per_task=per_task, seed=seed, engine="official")
    targets = np.tile([(episodes + k) // per_task for k in range(per_task)], len(envs.tasks))
    done_counts = np.zeros_like(targets)
    returns: dict[str, list[float]] = {task: [] for task in envs.tasks}
    successes: dict[str, list[bool | None]] = {task: [] for task in envs.tasks}
    count = _counter(progress, int(targets.sum()))
    steps = np.zeros_like(targets)  # of the episodes under way
    try:
        _check_fits(policy, envs.tasks, envs.observation_space)
        observations = cast(NDArray[np.float32], envs.reset())
        while (done_counts < targets).any():
            actions, _ = policy.predict(observations, deterministic=True)
            observations, _, dones, infos = cast(Any, envs.step(actions))
            steps = np.where(dones, 0, steps + 1)
            endless = (steps >= ENDLESS) & (done_counts < targets)
            if endless.any():
                task = envs.tasks[int(endless.argmax()) // per_task]
                raise SuiteError(
                    f"{task}: an episode has not ended in {ENDLESS:,} steps; give the env a time "
                    "limit (max_episode_steps)"
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
        # Where a task speaks of success at all, an episode of which it says nothing has failed.
        task: None if all(said is None for said in own) else list(map(bool, own))
        for task, own in successes.items()
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


def _check_fits(policy: Policy, tasks: Sequence[str], space: gym.Space[Any]) -> None:
    own: Sequence[str] | None = getattr(policy, "tasks", None)
    if own is not None and tuple(own) != tuple(tasks):
        raise ObservationError(other_tasks("the suite", tasks, own))
    expected: gym.Space[Any] | None = getattr(policy, "observation_space", None)
    if expected is not None and expected.shape != space.shape:
        raise ObservationError(
            f"the policy takes observations of shape {expected.shape}, the suite has {space.shape}"
        )


VIDEO_STRIDE = 4
"""Meta-World steps per frame: 4 x 12.5 ms makes 20 frames per second of real time."""
VIDEO_TRIES = 10
"""Episodes of which the first that is solved is filmed."""


def prepare_videos(suite: str | Sequence[str], directory: Path) -> None:
    """Refuse what `record_videos` would, and make its folder.

    Raises:
        SuiteError: not a Meta-World suite.
        ConalError: no display has been named to render with.
        ConfigError: the folder cannot be made.
    """
    if not is_metaworld(suite):
        raise SuiteError(f"videos are made of Meta-World suites only, not of {suite!r}")
    require_display()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}") from error


def record_videos(
    policy: Policy, suite: str | Sequence[str], seed: int, directory: Path
) -> list[Path]:
    """Film an evaluation episode of every task of a Meta-World suite, up to its success.

    It is the first of ten that succeeds, or the tenth where none does. Writes `TASK.mp4` where
    imageio-ffmpeg is installed and `TASK.gif` elsewhere, and returns the paths in suite order.

    Raises:
        ConalError: as `prepare_videos`, or MuJoCo finds no OpenGL to render with.
    """
    prepare_videos(suite, directory)
    suffix = ".mp4" if find_spec("imageio_ffmpeg") else ".gif"
    timing = {"fps": 20} if suffix == ".mp4" else {"duration": 50, "loop": 0}  # 50 ms, for ever
    paths = []
    envs = cast(gym.vector.SyncVectorEnv, official_vector_env(suite, seed))
    try:
        _check_fits(policy, suite_tasks(suite), envs.single_observation_space)
        envs.call("toggle_terminate_on_success", True)
        for task, env in zip(suite_tasks(suite), envs.envs, strict=True):
            paths.append(directory / f"{task}{suffix}")
            for _ in range(VIDEO_TRIES):
                frames, solved = _film(policy, env)
                if solved:
                    break
            draft = paths[-1].with_name(f".draft-{paths[-1].name}")  # of a process that may die
            imageio.mimsave(draft, cast(Any, frames), **cast(Any, timing))
            os.replace(draft, paths[-1])
    finally:
        envs.close()
    return paths


def _film(policy: Policy, env: gym.Env[Any, Any]) -> tuple[list[NDArray[np.uint8]], bool]:
    """The images of an episode, and whether it succeeded, with which it ends."""
    mujoco_env = cast(MujocoEnv, env.unwrapped)
    camera = Camera(mujoco_env.model, mujoco_env.data)
    try:
        observation, _ = env.reset()
        frames = [camera.image()]
        step, ended = 0, False
        while not ended:
            row = observation[None].astype(np.float32)
            action, _ = policy.predict(row, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action[0])
            step, ended = step + 1, bool(terminated or truncated)
            if ended or step % VIDEO_STRIDE == 0:
                frames.append(camera.image())
    finally:
        camera.close()
    return frames, bool(terminated)
