"""Random sequences of calls: both engines give the same answers and the same errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conal_rl.envs import make
from conal_rl.errors import CallError, ConalError
from tests.helpers.forks import assert_works_in_a_fork

SEEDS = st.integers(0, 2)  # few, because the goals of a seed are drawn once
ACTIONS = st.integers(0, 2**16)  # the seed of random actions
THREADS = st.booleans()  # whether a call comes from a different thread


def outcome(call: Callable[[], Any], thread: bool = False) -> Any:
    """Return the answer of a call, or its error."""
    try:
        if thread:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(call).result()
        return call()
    except (ConalError, KeyboardInterrupt) as error:
        return error


def assert_equal(native: Any, official: Any) -> None:
    """Compare two answers or errors, except for times and infos that the engine lacks."""
    if isinstance(official, BaseException):
        assert (type(native), str(native)) == (type(official), str(official))
    elif isinstance(official, np.ndarray):
        np.testing.assert_array_equal(native, official)
    elif isinstance(official, tuple):  # a step
        np.testing.assert_array_equal(native[0], official[0])
        np.testing.assert_allclose(native[1], official[1], rtol=1e-6)
        np.testing.assert_array_equal(native[2], official[2])
        for ours, theirs in zip(native[3], official[3], strict=True):
            assert {"episode", "terminal_observation"} & ours.keys() <= theirs.keys()
            assert ours["success"] == theirs["success"]
            if "episode" in theirs:
                assert ours["episode"]["l"] == theirs["episode"]["l"]
                assert ours["episode"]["r"] == pytest.approx(theirs["episode"]["r"])
                last = "terminal_observation"
                np.testing.assert_array_equal(ours[last], theirs[last])
                assert ours["is_success"] == theirs["is_success"]
    else:
        assert native == official


class CallOrder(RuleBasedStateMachine):
    """Two engines with the same seed. Every call goes to both."""

    suite: tuple[str, ...] = ("reach-v3", "push-v3")

    @initialize(seed=SEEDS)
    def made(self, seed: int) -> None:
        self.both: list[Any] = [
            make(self.suite, 1, seed, engine) for engine in ("native", "official")
        ]

    def teardown(self) -> None:
        for envs in getattr(self, "both", ()):
            envs.close()
        self.both = []  # hypothesis keeps this object

    def call(self, call: Callable[[Any], Any], thread: bool = False) -> Any:
        native, official = (outcome(partial(call, envs), thread) for envs in self.both)
        assert_equal(native, official)
        return native

    def step_both(self, actions: Any, thread: bool = False) -> Any:
        return self.call(lambda envs: envs.step(actions), thread)

    def actions(self, seed: int, steps: int) -> Any:
        shape = steps, len(self.suite), 4
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)

    @property
    def in_episode(self) -> bool:
        answers = {envs.in_episode for envs in self.both}
        assert len(answers) == 1
        return answers.pop()

    @rule(thread=THREADS)
    def reset(self, thread: bool) -> None:
        self.call(lambda envs: envs.reset(), thread)

    @rule(seed=SEEDS, options=st.booleans())
    def reset_with_seed_and_options(self, seed: int, options: bool) -> None:
        self.call(lambda envs: envs.seed(seed))
        if options:
            self.call(lambda envs: envs.set_options({"anything": 1}))
        self.call(lambda envs: envs.reset())

    @rule(seed=SEEDS)
    def seed(self, seed: int) -> None:
        self.call(lambda envs: envs.seed(seed))

    @rule(seed=ACTIONS, steps=st.sampled_from([1, 1, 1, 3]), thread=THREADS)
    def step(self, seed: int, steps: int, thread: bool) -> None:
        for row in self.actions(seed, steps):
            self.step_both(row, thread)

    @rule(seed=ACTIONS, kind=st.sampled_from(["list", "double", "nan", "shape", "large"]))
    def step_with_other_actions(self, seed: int, kind: str) -> None:
        [actions] = self.actions(seed, 1)
        given: Any = {
            "list": list(actions),
            "double": actions.astype(np.float64),
            "nan": actions * np.nan,
            "shape": actions[:, :3],
            "large": 100 * actions,
        }[kind]
        self.call(lambda envs: envs.step(given))

    @rule(seed=ACTIONS, thread=THREADS)
    def step_async(self, seed: int, thread: bool) -> None:
        [actions] = self.actions(seed, 1)
        self.call(lambda envs: envs.step_async(actions), thread)
        actions[:] = 0.0  # the envs have a copy

    @rule(thread=THREADS)
    def step_wait(self, thread: bool) -> None:
        self.call(lambda envs: envs.step_wait(), thread)

    @rule()
    def step_that_is_interrupted(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        for envs in self.both:
            envs.on_step_started = interrupt
        [actions] = self.actions(0, 1)
        self.call(lambda envs: envs.step(actions))
        for envs in self.both:
            envs.on_step_started = None

    @precondition(lambda self: self.in_episode)
    @rule()
    def step_to_the_next_episode(self) -> None:
        for row in self.actions(1, 500):
            if self.step_both(row)[2].all():
                return
        raise AssertionError("the episode has not ended")

    @precondition(lambda self: not self.in_episode)
    @rule()
    def call_outside_of_an_episode(self) -> None:
        assert isinstance(self.call(lambda envs: envs.get_images()), CallError)
        assert isinstance(outcome(self.both[0].state), CallError)

    @rule(pickled=st.booleans())
    def copy(self, pickled: bool) -> None:
        native = self.both[0]
        copied = outcome(
            lambda: pickle.loads(pickle.dumps(native)) if pickled else copy.deepcopy(native)
        )
        if not isinstance(copied, CallError):
            self.both[0] = copied
            native.close()
        for how in (copy.deepcopy, pickle.dumps):
            assert isinstance(outcome(partial(how, self.both[1])), CallError)

    @precondition(lambda self: self.in_episode)
    @rule(seed=ACTIONS, steps=st.integers(1, 4), pause=st.booleans())
    def step_and_restore(self, seed: int, steps: int, pause: bool) -> None:
        native, rows = self.both[0], self.actions(seed, steps)
        state = native.state()
        for row in rows:
            self.step_both(row)
        native.reset()
        if pause:
            native.step_async(rows[0])
        native.restore(state)
        self.both[1]._reset_seeds()  # `restore` drops a seed that waits for a reset
        for row in rows:
            native.step(row)

    @rule(seed=ACTIONS)
    def call_in_a_fork(self, seed: int) -> None:
        """The child calls both, and this process continues as if nothing had been."""
        rows = self.actions(seed, 3)

        def child() -> None:
            self.call(lambda envs: envs.step_wait())
            self.call(lambda envs: envs.step(rows[0]))
            self.call(lambda envs: envs.reset())
            for row in rows:
                self.step_both(row)

        assert_works_in_a_fork(child)

    @rule()
    def close(self) -> None:
        self.call(lambda envs: envs.close())


class CallOrderOfOneTask(CallOrder):
    suite = ("reach-v3",)


def run(machine: type[CallOrder], examples: int, steps: int, fixed: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            derandomize=fixed,
        ),
    )


def test_calls_in_any_order_give_the_official_answers() -> None:
    run(CallOrderOfOneTask, examples=3, steps=20, fixed=True)


@pytest.mark.slow
def test_long_orders_of_calls_give_the_official_answers() -> None:
    run(CallOrder, examples=12, steps=50, fixed=False)
