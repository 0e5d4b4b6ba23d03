"""`Episodes`: goals, horizon, success and automatic resets on top of the engine's steps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from conal_rl.device import require_memory, usable_cores
from conal_rl.envs.metaworld import (
    HORIZON,
    NUM_GOALS,
    Camera,
    draw_goals,
    env_class,
    is_published,
)
from conal_rl.envs.native import require_exact
from conal_rl.envs.native.engine import Engine
from conal_rl.envs.native.physics import Floats, Integers
from conal_rl.envs.vec_env import EnvState, require_actions
from conal_rl.errors import ObservationError, SuiteError

TaskSelect = Literal["random", "pseudorandom"]
Flags = npt.NDArray[np.bool_]
FLOAT32_MAX = float(np.finfo(np.float32).max)
LEAST_BYTES = 3_500
"""An env takes at least as much memory: its row of the engine's arrays, and its random stream."""


class Ended(NamedTuple):
    """The episodes that ended in a step, one row each."""

    envs: Integers  # (ended,): their numbers
    observations: Floats  # (ended, 39): the last observations
    returns: Floats  # (ended,), undiscounted
    lengths: Integers  # (ended,), steps
    solved: Flags  # (ended,): success at any step
    warnings: Integers  # (ended,): warnings of MuJoCo, for example of an unstable simulation


class Step(NamedTuple):
    """The result of a step. After the end of an episode the observation is the next one's first."""

    observations: Floats  # (env, 39)
    rewards: Floats  # (env,)
    terminated: Flags  # (env,)
    truncated: Flags  # (env,)
    successes: Flags  # (env,)
    ended: Ended


class GoalStream:
    """The goals of one env's resets, in metaworld's two ways and with its random draws.

    Args:
        seed: Seed of the random draws.
        select: As `task_select` of `Episodes`.
    """

    def __init__(self, seed: int, select: TaskSelect) -> None:
        if select not in get_args(TaskSelect):
            known = " or ".join(get_args(TaskSelect))
            raise ValueError(f"task_select: got {select!r}, expected {known}")
        self._select = select
        self._random, _ = seeding.np_random(seed)
        self._order = list(range(NUM_GOALS))
        self._turn = -1

    def draw(self) -> int:
        """Return the number of the next reset's goal."""
        if self._select == "random":
            return int(self._random.choice(NUM_GOALS))
        self._turn = (self._turn + 1) % NUM_GOALS
        if self._turn == 0:
            self._random.shuffle(self._order)
        return self._order[self._turn]

    def state(self) -> list[Any]:
        """Return the stream's state, in JSON types."""
        return [self._random.bit_generator.state, list(self._order), self._turn]

    def restore(self, state: list[Any]) -> None:
        """Continue from a state that `state` returned."""
        self._random.bit_generator.state, order, self._turn = state
        self._order = list(order)


class Episodes:
    """Episodes of 500 steps in all envs of Meta-World tasks.

    Env `k` of a task has the index `task * envs_per_task + k`.

    Args:
        names: Tasks, as `conal_rl.envs.metaworld.suite_tasks` returns them.
        envs_per_task: At least 1.
        seed: Chooses the 50 goals of each task, as `seed` of metaworld's benchmarks does.
        task_select: `"random"` draws a goal with replacement at each reset. `"pseudorandom"` takes
            the next of the shuffled goals.
        terminate_on_success: Whether an episode ends at its first success, as in metaworld's
            evaluation.
        threads: The number of threads, at least 1. None takes all cores that this process may use.

    Raises:
        ConfigError: The envs need more memory than the machine has.
        ValueError: `envs_per_task` or `threads` is below 1, or `task_select` is unknown.
        SuiteError: A task is a user's own, or the native engine is not exact for the installed
            versions of metaworld and mujoco.
    """

    def __init__(
        self,
        names: Sequence[str],
        envs_per_task: int,
        seed: int,
        task_select: TaskSelect = "random",
        terminate_on_success: bool = False,
        threads: int | None = None,
    ) -> None:
        require_exact()
        if not is_published(names):
            raise SuiteError(
                f"native engine: got the tasks {', '.join(names)}, expected only Meta-World's "
                "own tasks. Use conal_rl.envs.make, which takes the official engine for subclasses"
            )
        if envs_per_task < 1:
            raise ValueError(f"envs_per_task: got {envs_per_task}, expected at least 1")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: got {threads}, expected at least 1")
        require_memory("envs_per_task", envs_per_task, len(names) * envs_per_task * LEAST_BYTES)
        self.names = tuple(names)
        self.terminate_on_success = terminate_on_success
        self._task_select: TaskSelect = task_select
        threads = threads or usable_cores()
        with ThreadPoolExecutor(threads) as pool:  # compiling a model takes 0.2 s
            official = list(pool.map(lambda name: env_class(name)(), self.names))
        goals = draw_goals(dict(zip(self.names, official, strict=True)), seed)
        by_task = [goals[i : i + NUM_GOALS] for i in range(0, len(goals), NUM_GOALS)]
        self.engine = Engine(official, by_task, envs_per_task, threads)
        self.num_envs = self.engine.num_envs
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.returns = np.zeros(self.num_envs)
        self.solved = np.zeros(self.num_envs, dtype=np.bool_)
        self._streams: list[GoalStream] = []
        self._cameras: dict[int, Camera] = {}  # by the id of their MuJoCo data
        self._nobody = self._ended(np.arange(0))

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Seed each env's stream of goals from the next reset. None keeps the env's stream.

        Raises:
            ValueError: The number of seeds differs from the number of envs.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"seeds: got {len(seeds)}, expected {self.num_envs}, one for each env")
        streams = self._streams or [GoalStream(0, self._task_select)] * self.num_envs
        self.set_streams(
            [
                stream if seed is None else GoalStream(int(seed), self._task_select)
                for stream, seed in zip(streams, seeds, strict=True)
            ]
        )

    def set_streams(self, streams: Sequence[GoalStream]) -> None:
        """Replace the streams that draw the goals of each env's next resets."""
        self._streams = list(streams)

    def reset(self) -> Floats:
        """Begin an episode in every env, and return the observations. Call `seed` before."""
        self._begin(np.arange(self.num_envs))
        return self.engine.rows.observations.copy()

    def _begin(self, envs: Integers) -> None:
        goals = np.array([self._streams[i].draw() for i in envs.tolist()], dtype=np.int64)
        self.engine.reset(envs, goals)
        self.lengths[envs], self.returns[envs], self.solved[envs] = 0, 0.0, False
        self.engine.rows.warnings[envs] = 0

    def start(self, actions: npt.NDArray[np.floating[Any]]) -> None:
        """Begin a step with actions `(env, 4)`, float32 or float64. Threads continue it.

        Raises:
            ObservationError: The actions have the wrong shape, or a NaN or inf.
        """
        require_actions(actions, self.names, self.engine.envs_per_task, 4)
        self.engine.start(actions)

    def finish(self) -> Step:
        """Wait for the step and return it. An env whose episode has ended is reset.

        Raises:
            ObservationError: An observation or a reward has a NaN or inf.
        """
        self.engine.wait()
        rows = self.engine.rows
        self.lengths += 1
        self._check_finite()
        self.returns += rows.rewards
        self.solved |= rows.successes
        terminated = rows.successes & self.terminate_on_success
        truncated = self.lengths >= HORIZON
        outcome = rows.rewards.copy(), terminated, truncated, rows.successes.copy()
        over = terminated | truncated
        if not over.any():
            return Step(rows.observations.copy(), *outcome, self._nobody)
        ended = self._ended(np.flatnonzero(over))
        self._begin(ended.envs)
        return Step(rows.observations.copy(), *outcome, ended)

    def _ended(self, envs: Integers) -> Ended:
        return Ended(
            envs,
            self.engine.rows.observations[envs],
            self.returns[envs],
            self.lengths[envs],
            self.solved[envs],
            self.engine.rows.warnings[envs],
        )

    def _check_finite(self) -> None:
        rows = self.engine.rows
        observations, rewards = np.abs(rows.observations), np.abs(rows.rewards)
        # A number too large for float32 counts as inf. A comparison with NaN is false.
        if observations.max() < FLOAT32_MAX and rewards.max() < FLOAT32_MAX:
            return
        fine = np.all(observations < FLOAT32_MAX, axis=1)
        i = int(np.flatnonzero(~(fine & (rewards < FLOAT32_MAX)))[0])
        what = "reward" if fine[i] else "observation"
        task, k = divmod(i, self.engine.envs_per_task)
        raise ObservationError(
            f"task {self.names[task]!r}, env {k} of the task: {what}: got NaN or inf at step "
            f"{self.lengths[i]} of the episode, expected finite numbers. MuJoCo has warned "
            f"{rows.warnings[i]} times in this episode. A warning means an unstable simulation"
        )

    def state(self) -> EnvState | None:
        """Return the state of the episodes, or None if a task runs its own code."""
        if self.engine.interprets:
            return None
        return EnvState(
            {name: array.copy() for name, array in self._arrays().items()},
            [stream.state() for stream in self._streams],
        )

    def restore(self, state: EnvState) -> Floats:
        """Resume the episodes of a state and return their observations.

        Raises:
            ValueError: The tasks or the number of envs differ from those of `state`.
        """
        arrays = self._arrays()
        expected = {name: array.shape for name, array in arrays.items()}
        given = {name: array.shape for name, array in state.arrays.items()}
        if given != expected:
            raise ValueError(f"state: got arrays of the shapes {given}, expected {expected}")
        for name, array in arrays.items():
            array[:] = state.arrays[name]
        self.seed([0] * self.num_envs)
        for stream, stream_state in zip(self._streams, state.streams, strict=True):
            stream.restore(stream_state)
        return self.engine.rows.observations.copy()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        counts = {"lengths": self.lengths, "returns": self.returns, "solved": self.solved}
        return counts | self.engine.rows._asdict()

    @property
    def warnings(self) -> Integers:
        """Number of MuJoCo's warnings in each env's episode, for example of an unstable state.

        MuJoCo then resets its state and the episode continues, in the official env too.
        """
        return self.engine.rows.warnings

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """Return the benchmark camera's image of env `i`, upright, `(480, 480, 3)`.

        Raises:
            ConalError: MuJoCo cannot render.
        """
        model, data = self.engine.show(i)
        if id(data) not in self._cameras:  # several envs share one model and its data
            self._cameras[id(data)] = Camera(model, data)
        return self._cameras[id(data)].image()

    def close(self) -> None:
        """Stop the threads and free the cameras."""
        self.engine.close()
        for camera in self._cameras.values():
            camera.close()
        self._cameras = {}
