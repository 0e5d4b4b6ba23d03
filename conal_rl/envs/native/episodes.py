"""`Episodes`: goals, horizon, success and automatic resets on top of the engine's steps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from conal_rl.device import usable_cores
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


class Ended(NamedTuple):
    """The episodes that a step has ended, one row each."""

    envs: Integers  # (ended,)
    observations: Floats  # (ended, 39), the last
    returns: Floats  # (ended,), undiscounted
    lengths: Integers  # (ended,), steps
    solved: Flags  # (ended,): success at any step
    warnings: Integers  # (ended,): of MuJoCo, for instance of an unstable simulation


class Step(NamedTuple):
    """What a step of all envs gave; where an episode ended, the observation is the next one's."""

    observations: Floats  # (env, 39)
    rewards: Floats  # (env,)
    terminated: Flags  # (env,)
    truncated: Flags  # (env,)
    successes: Flags  # (env,)
    ended: Ended


class GoalStream:
    """Which goal each reset of one env takes: metaworld's two ways, with their random draws."""

    def __init__(self, seed: int, select: TaskSelect) -> None:
        if select not in get_args(TaskSelect):
            known = " or ".join(get_args(TaskSelect))
            raise ValueError(f"task_select is {known}, not {select!r}")
        self._select = select
        self._random, _ = seeding.np_random(seed)
        self._order = list(range(NUM_GOALS))
        self._turn = -1

    def draw(self) -> int:
        """The number of the next reset's goal."""
        if self._select == "random":
            return int(self._random.choice(NUM_GOALS))
        self._turn = (self._turn + 1) % NUM_GOALS
        if self._turn == 0:
            self._random.shuffle(self._order)
        return self._order[self._turn]

    def state(self) -> list[Any]:
        """All of it, as JSON types."""
        return [self._random.bit_generator.state, list(self._order), self._turn]

    def restore(self, state: list[Any]) -> None:
        """Inverse of `state`."""
        self._random.bit_generator.state, order, self._turn = state
        self._order = list(order)


class Episodes:
    """Envs `task * envs_per_task + k` of Meta-World tasks, 500 steps an episode.

    Args:
        names: Tasks, as `conal_rl.envs.metaworld.suite_tasks` gives them.
        envs_per_task: At least 1.
        seed: Chooses the 50 goals of each task, as `seed` of metaworld's benchmarks does.
        task_select: Each reset draws a goal with replacement (`"random"`), or takes the next of
            the shuffled goals (`"pseudorandom"`).
        terminate_on_success: Whether an episode ends at its first success, as in metaworld's
            evaluation.
        threads: That step, at least 1; the cores that this process may use when None.

    Raises:
        ValueError: `envs_per_task` or `threads` is below 1.
        SuiteError: A task is a user's own, whose code the engine cannot know, or metaworld and
            mujoco are not those that it is exact for.
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
                f"the native engine has Meta-World's own tasks alone, not {', '.join(names)}; "
                "conal_rl.envs.make runs subclasses of theirs on the official one"
            )
        if envs_per_task < 1 or (threads is not None and threads < 1):
            raise ValueError(
                f"envs_per_task is {envs_per_task}, threads {threads}; both must be at least 1"
            )
        self.names = tuple(names)
        self.terminate_on_success = terminate_on_success
        self._task_select: TaskSelect = task_select
        threads = threads or usable_cores()
        with ThreadPoolExecutor(threads) as pool:  # compiling a model takes 0.2 s
            official = list(pool.map(lambda name: env_class(name)(), self.names))
        goals = draw_goals(dict(zip(self.names, official, strict=True)), seed)
        own = [goals[i : i + NUM_GOALS] for i in range(0, len(goals), NUM_GOALS)]
        self.engine = Engine(official, own, envs_per_task, threads)
        self.num_envs = self.engine.num_envs
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.returns = np.zeros(self.num_envs)
        self.solved = np.zeros(self.num_envs, dtype=np.bool_)
        self._streams: list[GoalStream] = []
        self._cameras: dict[int, Camera] = {}  # by the id of the data that they see
        self._nobody = self._ended(np.arange(0))

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Seed each env's stream of goals from the next reset on; with None, it goes on.

        Raises:
            ValueError: another number of seeds.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} envs")
        streams = self._streams or [GoalStream(0, self._task_select)] * self.num_envs
        self.set_streams(
            [
                stream if seed is None else GoalStream(int(seed), self._task_select)
                for stream, seed in zip(streams, seeds, strict=True)
            ]
        )

    def set_streams(self, streams: Sequence[GoalStream]) -> None:
        """Have the goals of each env's next resets drawn by other streams."""
        self._streams = list(streams)

    def reset(self) -> Floats:
        """Begin an episode in every env; `seed` first."""
        self._begin(np.arange(self.num_envs))
        return self.engine.rows.observations.copy()

    def _begin(self, envs: Integers) -> None:
        goals = np.array([self._streams[i].draw() for i in envs.tolist()], dtype=np.int64)
        self.engine.reset(envs, goals)
        self.lengths[envs], self.returns[envs], self.solved[envs] = 0, 0.0, False
        self.engine.rows.warnings[envs] = 0

    def start(self, actions: npt.NDArray[np.floating[Any]]) -> None:
        """Begin a step with actions `(env, 4)`, float32 or float64; threads go on with it.

        Raises:
            ObservationError: the actions are of another shape, NaN or inf.
        """
        require_actions(actions, self.names, self.engine.envs_per_task, 4)
        self.engine.start(actions)

    def finish(self) -> Step:
        """The step's outcome, once it is there; envs whose episode has ended are reset.

        Raises:
            ObservationError: an observation or a reward is NaN or infinite.
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
        # Too large for float32 is as bad as inf; and NaN is not less than anything.
        if observations.max() < FLOAT32_MAX and rewards.max() < FLOAT32_MAX:
            return
        fine = np.all(observations < FLOAT32_MAX, axis=1)
        i = int(np.flatnonzero(~(fine & (rewards < FLOAT32_MAX)))[0])
        what = "reward" if fine[i] else "observation"
        task, k = divmod(i, self.engine.envs_per_task)
        raise ObservationError(
            f"task {self.names[task]!r}, env {k} of the task: the {what} is NaN or inf at step "
            f"{self.lengths[i]} of the episode, in which MuJoCo has warned "
            f"{rows.warnings[i]} times: its simulation is unstable, if it has"
        )

    def standing(self) -> EnvState | None:
        """Where the episodes stand; None where a task runs code of its own."""
        if self.engine.interprets:
            return None
        return EnvState(
            {name: array.copy() for name, array in self._arrays().items()},
            [stream.state() for stream in self._streams],
        )

    def resume(self, standing: EnvState) -> Floats:
        """Go on where `standing` was; returns the observations there.

        Raises:
            ValueError: It is of other tasks, or of another number of envs.
        """
        own = self._arrays()
        if {n: a.shape for n, a in own.items()} != {n: a.shape for n, a in standing.arrays.items()}:
            raise ValueError("the episodes are of other tasks, or of another number of envs")
        for name, array in own.items():
            array[:] = standing.arrays[name]
        self.seed([0] * self.num_envs)
        for stream, state in zip(self._streams, standing.streams, strict=True):
            stream.restore(state)
        return self.engine.rows.observations.copy()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        own = {"lengths": self.lengths, "returns": self.returns, "solved": self.solved}
        return own | self.engine.rows._asdict()

    @property
    def warnings(self) -> Integers:
        """How often MuJoCo has warned in each env's episode, for instance that it is unstable.

        It then resets its state by itself and the episode goes on, in the official env as here.
        """
        return self.engine.rows.warnings

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """What the benchmark's camera sees of env `i`, upright.

        Raises:
            ConalError: MuJoCo finds no OpenGL to render with.
        """
        model, data = self.engine.show(i)
        if id(data) not in self._cameras:  # envs take turns on a model and data
            self._cameras[id(data)] = Camera(model, data)
        return self._cameras[id(data)].image()

    def close(self) -> None:
        """Stop the threads and free the cameras."""
        self.engine.close()
        for camera in self._cameras.values():
            camera.close()
        self._cameras = {}
