"""The native engine equals the official envs at every step, within 1e-9."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from metaworld.policies import ENV_POLICY_MAP

from conal_rl.envs.metaworld import BENCHMARKS, NUM_GOALS, _goals, env_class
from conal_rl.envs.native.engine import Engine

TOLERANCE = 1e-9
PER_TASK = 2
SEED = 7
REST = [name for name in BENCHMARKS["mt50"] if name not in BENCHMARKS["mt10"]]
Array = npt.NDArray[Any]


class Both:
    """Native and official envs of some tasks. Every reset and every step compares them."""

    def __init__(self, names: tuple[str, ...], per_task: int = PER_TASK, threads: int = 2) -> None:
        goals = _goals(names, SEED)
        self.names, self.per_task = names, per_task
        self.goals = [[goal for goal in goals if goal.env_name == name] for name in names]
        self.engine = Engine([env_class(n)() for n in names], self.goals, per_task, threads)
        self.official: list[Any] = [env_class(n)() for n in names for _ in range(per_task)]
        self.observations = np.zeros((len(self.official), 39))
        self.solved = np.zeros(len(self.official), dtype=bool)

    def reset(self, envs: Array, goals: Array) -> None:
        self.engine.reset(envs, goals)
        for i, goal in zip(envs, goals):
            self.official[i].set_task(self.goals[i // self.per_task][goal])
            self.observations[i] = self.official[i].reset()[0]
        self.solved[envs] = False
        self.compare("observation", self.observations, self.engine.rows.observations)

    def step(self, actions: Array) -> None:
        self.engine.start(actions)
        self.engine.wait()
        rewards, successes = np.zeros(len(actions)), np.zeros(len(actions), dtype=bool)
        for i, env in enumerate(self.official):
            self.observations[i], rewards[i], _, truncated, info = env.step(actions[i])
            successes[i] = info["success"]
            assert truncated == (env.curr_path_length == 500)
        self.solved |= successes
        rows = self.engine.rows
        self.compare("observation", self.observations, rows.observations)
        self.compare("reward", rewards[:, None], rows.rewards[:, None])
        np.testing.assert_array_equal(successes, rows.successes)

    def compare(self, what: str, official: Array, native: Array) -> None:
        apart = np.abs(official - native).max(axis=1)
        i = int(apart.argmax())
        assert apart[i] <= TOLERANCE, f"{what} of {self.names[i // self.per_task]}: {apart[i]}"


class Actions:
    """Actions of one kind for all envs, float32 or float64."""

    def __init__(self, kind: str, both: Both, dtype: Any) -> None:
        self.kind, self.both, self.dtype = kind, both, dtype
        self.rng = np.random.default_rng(1)
        policies: Any = ENV_POLICY_MAP
        self.policies = [policies[n]() for n in both.names for _ in range(both.per_task)]
        self.turn = 0

    def next(self) -> Array:
        n, self.turn = len(self.both.official), self.turn + 1
        if self.kind == "random":
            actions = self.rng.uniform(-1, 1, (n, 4))
        elif self.kind == "scripted":
            pairs = zip(self.policies, self.both.observations)
            actions = np.array([policy.get_action(row) for policy, row in pairs])
            actions += self.rng.normal(0, 0.1, actions.shape)
        elif self.kind == "out of bounds":
            actions = self.rng.uniform(-5, 5, (n, 4))
        elif self.kind == "constant":
            actions = np.tile([0.3, 1.0, -1.0, 1.0], (n, 1))
        else:  # alternating
            actions = np.full((n, 4), 1.0 if self.turn % 2 else -1.0)
        return actions.astype(self.dtype)


@pytest.fixture(scope="module")
def mt10() -> Both:
    return Both(BENCHMARKS["mt10"])


KINDS = [
    *((kind, np.float32) for kind in ("random", "scripted", "out of bounds")),
    *((kind, np.float64) for kind in ("random", "scripted", "constant", "alternating")),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_episodes_of_mt10_equal_the_official_episodes(mt10: Both, kind: str, dtype: Any) -> None:
    # Every kind and precision has different goals, after the episodes of the last one.
    rng = np.random.default_rng(KINDS.index((kind, dtype)))
    n = len(mt10.official)
    mt10.reset(np.arange(n), rng.integers(NUM_GOALS, size=n))
    actions = Actions(kind, mt10, dtype)
    whole = (kind, dtype) in (("scripted", np.float32), ("random", np.float64))
    for _ in range(500 if whole else 120):
        mt10.step(actions.next())
    if kind == "scripted" and whole:  # the comparison then includes grasps, lifts and successes
        assert mt10.solved.mean() > 0.8


@pytest.mark.slow
def test_every_goal_of_mt10_gives_the_official_numbers(mt10: Both) -> None:
    actions = Actions("random", mt10, np.float32)
    n = len(mt10.official)
    for goal in range(0, NUM_GOALS, 2):
        mt10.reset(np.arange(n), np.tile([goal, goal + 1], n // 2))
        mt10.step(actions.next())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_resets_between_steps_of_other_envs_are_exact(mt10: Both) -> None:
    """Envs of a worker are at different steps and have different goals."""
    rng = np.random.default_rng(3)
    n = len(mt10.official)
    mt10.reset(np.arange(n), rng.integers(NUM_GOALS, size=n))
    actions = Actions("scripted", mt10, np.float32)
    for _ in range(60):
        some = np.flatnonzero(rng.random(n) < 0.05)
        mt10.reset(some, rng.integers(NUM_GOALS, size=len(some)))
        mt10.step(actions.next())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("part", range(4))
def test_the_other_forty_tasks_equal_the_official_ones(part: int) -> None:
    both = Both(tuple(REST[part::4]), per_task=1)
    n, rng = len(both.official), np.random.default_rng(part)
    for kind, dtype, steps in (("scripted", np.float32, 150), ("random", np.float64, 30)):
        both.reset(np.arange(n), rng.integers(NUM_GOALS, size=n))
        actions = Actions(kind, both, dtype)
        for _ in range(steps):
            both.step(actions.next())
    both.engine.close()


@pytest.mark.parametrize(("per_task", "threads"), [(1, 1), (3, 1), (3, 4)])
def test_any_number_of_envs_and_threads_is_exact(per_task: int, threads: int) -> None:
    """If there are more threads than tasks, a task has several workers."""
    both = Both(("push-v3", "peg-insert-side-v3"), per_task, threads)
    n = len(both.official)
    both.reset(np.arange(n), np.arange(n))
    actions = Actions("random", both, np.float32)
    for _ in range(20):
        both.step(actions.next())
    both.engine.close()
