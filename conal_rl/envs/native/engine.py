"""`Engine`: many Meta-World envs at the speed of MuJoCo, with the numbers of the official envs.

A reset copies a snapshot: the state of an env after the official reset. This state depends only on
the goal. The official code makes the snapshot when a goal is drawn for the first time.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task as Goal

from conal_rl.envs.calls import renew_after_fork
from conal_rl.envs.native import physics, tasks
from conal_rl.envs.native.physics import (
    DONE,
    NEXT,
    STATE,
    STOPPED,
    Envs,
    Floats,
    Integers,
    Workers,
)
from conal_rl.streams import announced

OBSERVATION = 39
STEPS_PER_TIMING = 500
"""Every `STEPS_PER_TIMING * threads` steps one step is timed, and only one thread works in it.

The timed steps therefore cost 0.2% with any number of threads.
"""
COMPILES = (
    "The Meta-World engine is being prepared. The first time on a machine, it is compiled, which "
    "can take a minute or two."
)
"""What a first step says if it takes long."""
PATIENCE = 20_000
"""How often a helper thread looks for the next step before it sleeps: about 0.1 ms."""


class Snapshot(NamedTuple):
    """An env right after the official reset to one goal."""

    state: Floats
    body_pos: Floats
    site_pos: Floats
    observation: Floats  # (39,)
    previous: Floats  # (18,)
    start: Floats  # (START_SIZE,); zeros if the reward is not compiled
    attributes: dict[str, Any]  # of the env; empty if the reward is compiled


class Engine:
    """Env `k` of a task is row `task * envs_per_task + k` of every array, in float64.

    Args:
        envs: An official env of each task. Nothing else may use them: the engine resets them, and
            its workers use their model and data.
        goals: The goals of each task.
        envs_per_task: At least 1.
        threads: At least 1.
    """

    def __init__(
        self,
        envs: Sequence[SawyerXYZEnv],
        goals: Sequence[Sequence[Goal]],
        envs_per_task: int,
        threads: int,
    ) -> None:
        self.goals = goals
        self.envs_per_task = envs_per_task
        self.num_envs = len(envs) * envs_per_task
        self.threads = threads
        self._official = list(envs)
        for env, goals_of_task in zip(envs, goals, strict=True):
            env.set_task(goals_of_task[0])
        self._compiled = np.array([type(env) in tasks.COMPILED for env in envs])
        self._make_workers()
        self._make_rows()
        self._slots: dict[int, SawyerXYZEnv] = {}  # by env, if the task's own code runs
        self._stop: Any = None  # ends the helpers
        self._snapshots: dict[tuple[int, int], Snapshot] = {}
        self._steps, self._timing = 0, False
        self._without_threads()
        renew_after_fork(self)

    # Threads.

    def _without_threads(self) -> None:
        self._actions: npt.NDArray[Any] | None = None  # of the step that has begun
        self._shared = False  # whether helpers may still work on it
        self._jobs: list[Future[None]] = []  # for snapshots; some may not have ended
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="metaworld")
        self._helpers: list[threading.Event] = []
        self._control = np.zeros(physics.CONTROL_SIZE, dtype=np.int64)
        self._control[[NEXT, DONE]] = len(self._order)  # all workers count as taken and done
        self._alone = np.zeros_like(self._control)  # of steps without helpers

    def _start_helpers(self) -> None:
        helpers = [threading.Event() for _ in range(self.threads - 1)]
        self._stop = weakref.finalize(self, _stop, helpers, self._control)
        for wake in helpers:
            # The threads get only the memory that they step. They do not refer to the engine, so
            # that it can be freed.
            args = wake, self._memory, self.workers, self.rows, self._order, self._control
            threading.Thread(target=_help, args=args, name="metaworld", daemon=True).start()
        self._helpers = helpers

    def after_fork(self) -> None:
        """Begin again without threads, because those of its parent are not in a forked process."""
        if self._stop is not None:
            self._stop.detach()
        self._stop = None
        self._without_threads()
        for model, data in self._memory:
            mujoco.mj_resetData(model, data)  # a thread may have been in the middle of a step

    def settle(self) -> None:
        """Wait until no thread works, after a call that was interrupted. Its step is dropped."""
        self._actions = None
        if self._shared:
            physics.step(self.workers, self.rows, self._order, self._control, 0)
            self._shared = False
        while self._jobs:
            if not self._jobs[-1].cancel():
                self._jobs[-1].exception()  # waits
            self._jobs.pop()

    # Memory.

    def _make_workers(self) -> None:
        """Make at least one worker per task, and two per thread if memory allows it.

        With two workers per thread all threads end at about the same time. A worker takes memory,
        so a task has at most one further worker for every two further envs. A task without
        compiled code has only one worker.
        """
        self._memory: list[tuple[mujoco.MjModel, mujoco.MjData]] = []
        self._task: list[int] = []  # of each worker
        ranges: list[tuple[int, int]] = []
        for task, env in enumerate(self._official):
            several = self.threads > 1 and self._compiled[task]
            wanted = math.ceil(2 * self.threads / len(self._official)) if several else 1
            wanted = min(wanted, 1 + (self.envs_per_task - 1) // 2)
            first = task * self.envs_per_task
            for k, numbers in enumerate(np.array_split(range(self.envs_per_task), wanted)):
                model = env.model if k == 0 else env.model.__copy__()
                self._memory.append((model, env.data if k == 0 else mujoco.MjData(model)))
                self._task.append(task)
                ranges.append((first + int(numbers[0]), first + int(numbers[-1]) + 1))

        envs = [self._official[task] for task in self._task]  # of each worker
        specs = [tasks.COMPILED.get(type(env)) for env in envs]
        spaces = [env.sawyer_observation_space for env in envs]
        self.workers = Workers(
            places=np.array(
                [tasks.places(e, *memory) for e, memory in zip(envs, self._memory, strict=True)]
            ),
            rewards=np.array([spec.reward if spec else -1 for spec in specs]),
            rotations=np.array([tasks.rotation_kind(spec) if spec else 0 for spec in specs]),
            frame_skips=np.array([env.frame_skip for env in envs]),
            sizes=np.array([_sizes(model) for model, _ in self._memory]),
            limits=np.array([(env.mocap_low, env.mocap_high) for env in envs], dtype=np.float64),
            offsets=np.array([spec.offset if spec else (0.0, 0.0, 0.0) for spec in specs]),
            bounds=np.array([(space.low, space.high) for space in spaces], dtype=np.float64),
            ranges=np.array(ranges, dtype=np.int64),
        )
        in_order = np.arange(len(self._task), dtype=np.int64)
        compiled = self._compiled[self._task]
        self._order, self._interpreted = in_order[compiled], in_order[~compiled].tolist()

    def _make_rows(self) -> None:
        state, body, site = self.workers.sizes.max(axis=0)
        n = self.num_envs
        self.rows = Envs(
            states=np.zeros((n, state)),
            body_pos=np.zeros((n, body)),
            site_pos=np.zeros((n, site)),
            starts=np.zeros((n, physics.START_SIZE)),
            previous=np.zeros((n, 18)),
            moves=np.zeros((n, 3)),
            efforts=np.zeros(n),
            observations=np.zeros((n, OBSERVATION)),
            rewards=np.zeros(n),
            successes=np.zeros(n, dtype=np.bool_),
            warnings=np.zeros(n, dtype=np.int64),
        )
        self._scales = np.repeat([e.action_scale for e in self._official], self.envs_per_task)
        self._single_scales = self._scales.astype(np.float32).astype(np.float64)

    def interpreted(self, names: Sequence[str]) -> list[str]:
        """Return the names of the tasks that run their own observation and reward code."""
        return [name for name, yes in zip(names, self._compiled, strict=True) if not yes]

    @property
    def interprets(self) -> bool:
        """Whether any task runs its own observation and reward code instead of compiled code."""
        return bool(self._interpreted)

    @property
    def bytes_per_env(self) -> int:
        """Memory of each further env of a task in bytes, with its share of further workers."""
        firsts, rows = len(self._official), sum(array.nbytes for array in self.rows)
        workers = (len(self._memory) - firsts) * self.bytes_per_worker
        return rows // self.num_envs + workers // max(1, self.num_envs - firsts)

    @property
    def bytes_per_worker(self) -> int:
        """Mean memory of a task's first env in bytes: its model and its data."""
        sizes = [mujoco.mj_sizeModel(m) + d.nbuffer + d.narena for m, d in self._memory]
        return sum(sizes) // len(sizes)

    # Steps.

    def start(self, actions: npt.NDArray[np.floating[Any]]) -> None:
        """Begin a step of all envs with actions `(env, 4)`, float32 or float64.

        All threads except the calling one begin to work, and `wait` ends the step. The engine
        computes in the precision of its actions, as the official env does.
        """
        assert self._actions is None, "start() again before wait()"
        assert actions.shape == (self.num_envs, 4), actions.shape
        single = actions.dtype == np.float32
        self._actions = actions.astype(np.float32 if single else np.float64)  # a copy
        scales = self._single_scales if single else self._scales
        self._steps += 1
        # The second step is the first to be timed, because the first step is slow.
        self._timing = self.threads > 1 and self._steps % (STEPS_PER_TIMING * self.threads) == 2
        control = self._alone if self._timing else self._control
        if self.threads > 1 and not self._helpers:
            self._start_helpers()
        self._shared = not self._timing
        physics.begin(self.rows, self._actions.astype(np.float64), scales, single, control)
        if not self._timing:
            for wake in self._helpers:
                wake.set()

    def wait(self) -> None:
        """End the step. `rows` then holds its observations, rewards and successes."""
        assert self._actions is not None, "wait() without start()"
        actions, self._actions = self._actions, None
        try:
            for worker in self._interpreted:
                for i in range(*self.workers.ranges[worker]):
                    self._step_interpreted(worker, i, actions[i])
        finally:
            if self._timing:
                self._time_workers()
            else:
                first = self._steps == 1
                with announced(COMPILES) if first else nullcontext():
                    physics.step(self.workers, self.rows, self._order, self._control, 0)
                self._shared = False

    def _time_workers(self) -> None:
        """Time each worker's step in this thread, and put the slowest workers first from now on.

        A slow worker that begins last keeps one thread busy while the others wait.
        """
        seconds = []
        for k in range(len(self._order)):
            self._alone[[NEXT, DONE]] = 0
            began = time.perf_counter()
            physics.step(self.workers, self.rows, self._order[k : k + 1], self._alone, 0)
            seconds.append(time.perf_counter() - began)
        self._order[:] = self._order[np.argsort(seconds)[::-1]]

    def _step_interpreted(self, worker: int, i: int, action: npt.NDArray[Any]) -> None:
        """Step env `i` with compiled physics, then the task's own observation and reward."""
        slot = self._slots[i]
        physics.simulate(self.workers, self.rows, worker, i)
        slot.curr_path_length += 1
        low, high = self.workers.bounds[worker]
        observation = np.clip(slot._get_obs(), low, high)
        slot._last_stable_obs = observation
        reward, info = slot.evaluate_state(observation, action)
        self.rows.observations[i] = observation
        self.rows.rewards[i] = float(reward)
        self.rows.successes[i] = bool(info["success"])

    # Resets.

    def reset(self, envs: Integers, goals: Integers) -> None:
        """Reset `envs` to `goals`, which are indices into the goals of their tasks."""
        assert self._actions is None, "reset() before wait()"
        wanted = list(zip((envs // self.envs_per_task).tolist(), goals.tolist(), strict=True))
        new: dict[int, set[int]] = {}
        for task, goal in wanted:
            if (task, goal) not in self._snapshots:
                new.setdefault(task, set()).add(goal)
        for item in new.items():
            job: Future[None] = Future()
            self._jobs.append(job)  # before it begins, so that no interrupt loses it
            self._pool.submit(self._take_snapshots, job, *item)
        for job in self._jobs:
            job.result()
        self._jobs.clear()
        for i, key in zip(envs.tolist(), wanted, strict=True):
            self._put(self._snapshots[key], i)

    def _take_snapshots(self, job: Future[None], task: int, goals: set[int]) -> None:
        if not job.set_running_or_notify_cancel():
            return
        try:
            for goal in goals:
                self._snapshots[task, goal] = self._take_snapshot(task, goal)
        except BaseException as error:
            job.set_exception(error)
        else:
            job.set_result(None)

    def _take_snapshot(self, task: int, goal: int) -> Snapshot:
        env = self._official[task]
        env.set_task(self.goals[task][goal])
        observation, _ = env.reset()
        state = np.zeros(self.workers.sizes[self._task.index(task), 0])
        mujoco.mj_getState(env.model, env.data, state, STATE)
        compiled = self._compiled[task]
        return Snapshot(
            state,
            env.model.body_pos.flatten(),
            env.model.site_pos.flatten(),
            observation,
            env._prev_obs.copy(),
            tasks.start(env) if compiled else np.zeros(physics.START_SIZE),
            {} if compiled else _copied(vars(env)),
        )

    def _put(self, snapshot: Snapshot, i: int) -> None:
        rows = self.rows
        rows.states[i, : len(snapshot.state)] = snapshot.state
        rows.body_pos[i, : len(snapshot.body_pos)] = snapshot.body_pos
        rows.site_pos[i, : len(snapshot.site_pos)] = snapshot.site_pos
        rows.observations[i] = snapshot.observation
        rows.previous[i] = snapshot.previous
        rows.starts[i] = snapshot.start
        if snapshot.attributes:
            env = self._official[i // self.envs_per_task]
            slot = object.__new__(type(env))
            vars(slot).update(_copied(snapshot.attributes))
            self._slots[i] = slot

    def show(self, i: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return a model and data that hold env `i`, until the next step or reset."""
        assert self._actions is None, "show() before wait()"
        ranges = self.workers.ranges
        worker = int(np.flatnonzero((ranges[:, 0] <= i) & (i < ranges[:, 1]))[0])
        (model, data), (state, body, site) = self._memory[worker], self.workers.sizes[worker]
        model.body_pos[:] = self.rows.body_pos[i, :body].reshape(-1, 3)
        model.site_pos[:] = self.rows.site_pos[i, :site].reshape(-1, 3)
        mujoco.mj_setState(model, data, self.rows.states[i, :state], STATE)
        mujoco.mj_forward(model, data)
        return model, data

    def close(self) -> None:
        """Stop the threads."""
        self.settle()
        if self._stop is not None:
            self._stop()
        self._pool.shutdown()


def _help(
    wake: threading.Event,
    memory: Sequence[tuple[mujoco.MjModel, mujoco.MjData]],
    workers: Workers,
    rows: Envs,
    order: Integers,
    control: Integers,
) -> None:
    """Run a helper thread: each step wakes it, and it takes workers until none is left."""
    while True:
        wake.wait()
        wake.clear()
        if control[STOPPED]:
            return
        physics.step(workers, rows, order, control, PATIENCE)
        assert memory  # keeps it alive: `workers` has only its addresses


def _stop(helpers: Sequence[threading.Event], control: Integers) -> None:
    control[STOPPED] = 1
    for wake in helpers:
        wake.set()


def _sizes(model: mujoco.MjModel) -> tuple[int, int, int]:
    return mujoco.mj_stateSize(model, STATE), model.body_pos.size, model.site_pos.size


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with copies of arrays. Views of MuJoCo's memory stay views."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) and not _is_view(value) else value
        for name, value in attributes.items()
    }


def _is_view(array: npt.NDArray[Any]) -> bool:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None
