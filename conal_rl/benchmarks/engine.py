"""Env steps per second of every engine for Meta-World, and the limit that MuJoCo sets.

All peers play whole episodes of random actions, with their resets.

The limit is a compiled loop over `mj_step` and `mj_forward` with its own `mjData` for every env. It
has as many threads as the native engine, and they take the envs in turn. It computes no
observations and no rewards, it copies no states, and its threads do not wait for each other.
"""

from __future__ import annotations

import importlib.util
import re
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, Literal, NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt
from metaworld.policies import ENV_POLICY_MAP
from numba import njit
from rich.table import Table

from conal_rl.benchmarks import say
from conal_rl.envs.metaworld import HORIZON, official_vector_env, suite_tasks
from conal_rl.envs.native import physics
from conal_rl.envs.native.engine import OBSERVATION, Engine
from conal_rl.envs.native.episodes import GoalStream
from conal_rl.envs.native.physics import Floats, Integers
from conal_rl.envs.native.sb3_env import NativeVecEnv
from conal_rl.envs.native.vectors import clip, floats
from conal_rl.evaluation import evaluate_policy

Rate = Callable[[float], float]
"""A function that steps a peer's envs for the given seconds and returns env steps per second."""


class Peer(NamedTuple):
    """One engine that steps a suite."""

    name: str
    rate: Rate
    close: Callable[[], object]


def measure(
    suite: str, envs_per_task: int, rounds: int, seconds: float, threads: int | None
) -> Table:
    """Return a table of all peers on one suite. Rates are the median over the rounds.

    The native engine and the limit take turns. Each other peer runs by itself, because
    some peers keep cores busy while they wait. The official vector envs have one env per
    task, because more envs change their memory and not their rate.

    Args:
        suite: A Meta-World suite.
        envs_per_task: Envs per task of the native engine.
        rounds: The number of rounds.
        seconds: The time of each peer in each round.
        threads: Threads of the native engine. None takes all cores.

    Raises:
        SuiteError: The suite is unknown, or the native engine is not exact for the installed
            versions of metaworld and mujoco.
    """
    tasks = suite_tasks(suite)
    named = f"{suite}, {envs_per_task} envs per task"
    say(f"{named}, native engine")
    began = time.perf_counter()
    native = NativeVecEnv(suite, envs_per_task, threads=threads)
    native.reset()
    native.step(np.zeros((native.num_envs, 4), dtype=np.float32))
    ready = time.perf_counter() - began
    engine = native.episodes.engine
    groups: dict[str, Callable[[], list[Peer]]] = {
        "official sync": lambda: [_official(suite, "sync")],
        "official async": lambda: [_official(suite, "async")],
    }
    if importlib.util.find_spec("envpool"):
        groups["EnvPool"] = lambda: [_envpool(tasks, envs_per_task)]
    groups["native and limit"] = lambda: [
        _limit(engine),
        Peer("native", _native(native), native.close),
    ]
    rates = _rates(named, groups, rounds, seconds)
    table = Table(
        title=f"{named}, {engine.threads} threads",
        caption=f"The native engine starts in {ready:.1f} s. A task's first env takes "
        f"{engine.bytes_per_worker / 1e6:.0f} MB, and each further one "
        f"{engine.bytes_per_env / 1e3:.1f} kB.",
    )
    for column in ("engine", "steps/s", "native is"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    ours = median(rates["native"])
    for name, values in rates.items():
        table.add_row(name, f"{median(values):,.0f}", f"{ours / median(values):.2f} x")
    return table


def _rates(
    named: str, groups: dict[str, Callable[[], list[Peer]]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return the rates of every peer; the peers of a group take turns."""
    rates: dict[str, list[float]] = {}
    for group, make in groups.items():
        say(f"{named}, {group}")
        peers = make()
        try:
            for _ in range(rounds):
                for peer in peers:
                    rates.setdefault(peer.name, []).append(peer.rate(seconds))
        finally:
            for peer in peers:
                peer.close()
    return rates


def _random_actions(envs: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (HORIZON, envs, 4)).astype(np.float32)


def _per_second(episode: Callable[[], object], envs: int, seconds: float) -> float:
    """Return the env steps per second of whole episodes, played for about `seconds`."""
    began, played = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        episode()
        played += 1
    return played * HORIZON * envs / (time.perf_counter() - began)


class _FirstGoal(GoalStream):
    def draw(self) -> int:
        return 0


def _native(env: NativeVecEnv) -> Rate:
    """Return the rate of the native engine on the episodes that the limit plays too."""
    actions = _random_actions(env.num_envs)
    env.episodes.set_streams([_FirstGoal(0, "random")] * env.num_envs)
    env.reset()

    def episode() -> None:
        for row in actions:
            env.step(row)

    return lambda seconds: _per_second(episode, env.num_envs, seconds)


def _official(suite: str, strategy: Literal["sync", "async"]) -> Peer:
    envs = official_vector_env(suite, 0, strategy)
    actions = _random_actions(envs.num_envs)
    envs.reset()

    def episode() -> None:
        for row in actions:
            envs.step(row)

    def close() -> None:
        with warnings.catch_warnings():  # of a step that Ctrl-C interrupts
            warnings.simplefilter("ignore")
            envs.close(terminate=True)  # or it would wait for answers that the step has taken

    return Peer(
        f"official {strategy}",
        lambda seconds: _per_second(episode, envs.num_envs, seconds),
        close,
    )


def _envpool(tasks: Sequence[str], envs_per_task: int) -> Peer:
    """Return EnvPool's Meta-World, of a different MuJoCo. Each task has a pool, and all step."""
    import envpool

    known = {_words(name): name for name in envpool.list_all_envs() if "MetaWorld/" in name}
    pools = [
        envpool.make_gymnasium(known[_words(f"MetaWorld/{task}")], num_envs=envs_per_task)
        for task in tasks
    ]
    actions = _random_actions(envs_per_task).astype(np.float64)
    ids = np.arange(envs_per_task, dtype=np.int32)
    for pool in pools:
        pool.reset()

    def episode() -> None:
        for row in actions:
            for pool in pools:
                pool.send(row, ids)
            for pool in pools:
                pool.recv()

    envs = len(pools) * envs_per_task
    return Peer(
        f"EnvPool {envpool.__version__}",
        lambda seconds: _per_second(episode, envs, seconds),
        lambda: [pool.close() for pool in pools],
    )


def _words(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def _limit(engine: Engine) -> Peer:
    """Return the bare MuJoCo loop, which starts from the native engine's first goals."""
    engine.reset(np.arange(engine.num_envs), np.zeros(engine.num_envs, dtype=np.int64))
    starts = engine.rows.states.copy()
    actions = _random_actions(engine.num_envs)
    moves = np.clip(actions[..., :3], -1, 1).astype(np.float64) * 0.01
    efforts = actions[..., 3].astype(np.float64)
    memory, places, limits = [], [], []
    for worker, (first, end) in enumerate(engine.workers.ranges.tolist()):
        for i in range(first, end):
            model, _ = engine.show(i)
            if i == first:  # all envs of a worker have the same goal
                copy = model.__copy__()
            data = mujoco.MjData(copy)
            memory.append((copy, data))
            ctrl, position, rotation = data.ctrl, data.mocap_pos, data.mocap_quat
            addresses = [array.ctypes.data for array in (ctrl, position, rotation)]
            places.append([copy._address, data._address, *addresses])
            limits.append(engine.workers.limits[worker])
    turns = np.zeros(1 + len(memory), dtype=np.int64)
    args = np.array(places), np.array(limits), moves, efforts, turns
    pool = ThreadPoolExecutor(engine.threads)

    def episode() -> None:
        for i, (model, data) in enumerate(memory):
            size = mujoco.mj_stateSize(model, physics.STATE)
            mujoco.mj_setState(model, data, starts[i, :size], physics.STATE)
        turns[:] = 0
        for thread in [pool.submit(_bare_loop, *args) for _ in range(engine.threads)]:
            thread.result()

    turns[0] = moves.shape[0] * moves.shape[1]
    _bare_loop(*args)  # this call compiles it
    return Peer(
        "limit: mj_step, mj_forward",
        lambda seconds: _per_second(episode, engine.num_envs, seconds),
        pool.shutdown,
    )


@njit(nogil=True)
def _bare_loop(
    places: Integers, limits: Floats, moves: Floats, efforts: Floats, turns: Integers
) -> None:
    """Step envs in turn. `turns` counts all steps that were taken, then those of each env."""
    steps, envs = efforts.shape
    while True:
        t, i = divmod(physics.take(turns.ctypes.data), envs)
        if t >= steps:
            return
        while physics.look(turns[1 + i :].ctypes.data) < t:
            pass  # a different thread has not finished this env's last step
        model, data = places[i, 0], places[i, 1]
        ctrl, position, rotation = floats(places[i, 2]), floats(places[i, 3]), floats(places[i, 4])
        for axis in range(3):
            moved = position[axis] + moves[t, i, axis]
            position[axis] = clip(moved, limits[i, 0, axis], limits[i, 1, axis])
        rotation[0], rotation[1], rotation[2], rotation[3] = 1.0, 0.0, 1.0, 0.0
        ctrl[0], ctrl[1] = efforts[t, i], -efforts[t, i]
        for _ in range(5):
            physics.mj_step(model, data)
        physics.mj_forward(model, data)
        physics.take(turns[1 + i :].ctypes.data)


class _Scripted:
    """Meta-World's scripted policies, one per task, as the agent of an evaluation."""

    def __init__(self, tasks: Sequence[str]) -> None:
        policies: Any = ENV_POLICY_MAP
        self._policies = [policies[task]() for task in tasks]

    def predict(
        self, observation: npt.NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[npt.NDArray[Any], None]:
        rows = observation[:, :OBSERVATION].astype(np.float64)
        actions = [policy.get_action(row) for policy, row in zip(self._policies, rows, strict=True)]
        return np.clip(actions, -1, 1).astype(np.float32), None


def compare_evaluations(suite: str, episodes: int) -> Table:
    """Return a table of the same evaluation on both engines, with the episodes that agree."""
    policy = _Scripted(suite_tasks(suite))
    seconds, results = {}, {}
    for engine in ("official", "native"):
        say(f"{suite}, evaluation, {engine} engine")
        began = time.perf_counter()
        results[engine] = evaluate_policy(policy, suite, episodes, 0, engine)
        seconds[engine] = time.perf_counter() - began
    table = Table(
        title=f"{suite}: scripted policies by the official protocol, {episodes} episodes per task",
        caption=", ".join(f"{engine} {spent:.0f} s" for engine, spent in seconds.items()),
    )
    for column in ("task", "official", "native", "equal episodes"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, official in results["official"].episodes.items():
        native = results["native"].episodes[task]
        equal = sum(a == b for a, b in zip(official, native, strict=True))
        rates = (f"{sum(e) / episodes:.1%}" for e in (official, native))
        table.add_row(task, *rates, f"{equal} of {episodes}")
    return table
