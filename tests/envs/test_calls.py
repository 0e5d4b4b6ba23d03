"""Calls of envs from threads, after an interrupt, after a fork and after `close`."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from conal_rl import ConalSAC, Tree
from conal_rl.envs import make
from conal_rl.envs.native.engine import Engine
from conal_rl.envs.native.episodes import Episodes
from conal_rl.envs.native.gymnasium_env import MetaWorldEnv, MetaWorldVectorEnv
from conal_rl.envs.native.sb3_env import NativeVecEnv
from conal_rl.errors import CallError, SuiteError
from tests.helpers.forks import assert_works_in_a_fork

PAIR = ("reach-v3", "push-v3")
ZEROS = np.zeros((2, 4), dtype=np.float32)


@pytest.mark.parametrize("suite", ["cartpole", ("Pendulum-v1", "Pendulum-v1")])
def test_other_suites_refuse_steps_outside_of_episodes(suite: Any) -> None:
    envs = make(suite, seed=0)
    actions = np.zeros((envs.num_envs, 1), dtype=np.float32)
    with pytest.raises(CallError, match=r"step: .* Call reset"):
        envs.step(actions)
    envs.reset()
    envs.step(actions)
    envs.close()
    envs.close()
    for call in (envs.reset, lambda: envs.step(actions)):
        with pytest.raises(CallError, match="closed envs"):
            call()


# Interrupts


class Watched:
    """Replaces `Engine._take_snapshot`: it is slow, and notes if two work on one env."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.overlaps = threading.Event(), 0
        own, active = Engine._take_snapshot, set[int]()

        def slow(engine: Engine, task: int, goal: int) -> Any:
            self.overlaps += task in active
            active.add(task)
            self.began.set()
            time.sleep(0.1)
            snapshot = own(engine, task, goal)
            active.discard(task)
            return snapshot

        monkeypatch.setattr(Engine, "_take_snapshot", slow)

    def interrupt(self, call: Callable[[], object]) -> None:
        """Call, and interrupt the call while it takes a snapshot."""
        self.began.clear()

        def interrupt() -> None:
            self.began.wait()
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
            time.sleep(1.0)
        thread.join()


def test_an_interrupted_reset_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no goal, and no thread keeps the envs that a new call uses."""
    fresh = make(PAIR, seed=1)
    expected = [fresh.reset() for _ in range(2)]
    fresh.close()
    envs = make(PAIR, seed=1)
    watched = Watched(monkeypatch)
    for row in expected:
        watched.interrupt(envs.reset)
        assert not envs.in_episode
        with pytest.raises(CallError, match=r"step: .*interrupted.* Call reset"):
            envs.step(ZEROS)
        np.testing.assert_array_equal(envs.reset(), row)
    envs.step(ZEROS)
    watched.interrupt(envs.reset)
    envs.close()
    assert watched.overlaps == 0


def test_an_interrupted_end_of_an_episode_needs_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: Any = make(PAIR, seed=1)
    expected = [fresh.reset() for _ in range(2)][1]
    fresh.close()
    envs: Any = make(PAIR, seed=1)
    envs.reset()
    envs.episodes.lengths[:] = 499
    watched = Watched(monkeypatch)
    watched.interrupt(lambda: envs.step(ZEROS))
    for call in (lambda: envs.step(ZEROS), envs.step_wait, envs.state):
        with pytest.raises(CallError, match="Call reset"):
            call()
    np.testing.assert_array_equal(envs.reset(), expected)
    assert not envs.step(ZEROS)[2].any()
    envs.close()
    assert watched.overlaps == 0


ATTEMPTS = """
import signal, sys
import numpy as np
from conal_rl.envs import make
from conal_rl.errors import CallError

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
random = np.random.default_rng(1)
env = make("mt10", seed=0)
expected = None
for attempt in range(60):
    env.seed(7)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.1))
    try:
        env.reset()
        while True:
            env.step(np.zeros((10, 4), dtype=np.float32))
    except (KeyboardInterrupt, CallError):
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    env.seed(7)
    observations = env.reset()
    expected = observations if expected is None else expected
    np.testing.assert_array_equal(observations, expected)
    for _ in range(3):
        env.step(np.zeros((10, 4), dtype=np.float32))
    if attempt % 20 == 19:
        env.close()
        env = make("mt10", seed=0)
"""


@pytest.mark.slow
def test_calls_after_interrupts_at_any_moment_are_right() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", ATTEMPTS])
    assert ran.returncode == 0


def test_learning_continues_after_an_interrupted_step(monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = make("cartpole", seed=0)
    tree = Tree.shared(envs.tasks, 2)
    agent = ConalSAC(env=envs, tree=tree, widths=(8, 8), learning_starts=30, batch_size=4)
    left = [5]

    def interrupted(action: Any, own: Any = envs.envs[3].step) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return own(action)

    monkeypatch.setattr(envs.envs[3], "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(140)
    assert not envs.in_episode
    agent.learn(140, reset_num_timesteps=False)
    assert agent.num_timesteps == 28 + 140


# Errors in the middle of a call


class Picky(gym.Env[Any, Any]):
    """A user's env with a code of its own in `step` and `close`."""

    observation_space, action_space = Box(-1, 1, (2,)), Box(-1, 1, (1,))
    on_step: Callable[[], object] = staticmethod(lambda: None)
    on_close: Callable[[], object] = staticmethod(lambda: None)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        type(self).on_step()
        return np.zeros(2, dtype=np.float32), 0.0, False, False, {}

    def close(self) -> None:
        type(self).on_close()


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Any:
    gym.register("Picky-v0", entry_point=lambda **_: Picky())
    monkeypatch.setattr(Picky, "on_step", staticmethod(lambda: None))
    monkeypatch.setattr(Picky, "on_close", staticmethod(lambda: None))
    yield make(["Picky-v0", "Picky-v0"])
    del gym.registry["Picky-v0"]


def failing() -> None:
    raise OSError("the simulator has gone")


def test_envs_need_a_reset_after_a_step_that_failed(picky: Any) -> None:
    """One env has stepped and the other one has not."""
    actions = np.zeros((2, 1), dtype=np.float32)
    picky.reset()
    Picky.on_step = staticmethod(failing)
    with pytest.raises(SuiteError, match="simulator has gone"):
        picky.step(actions)
    Picky.on_step = staticmethod(lambda: None)
    for call in (picky.step_wait, lambda: picky.step(actions), picky.get_images):
        with pytest.raises(CallError, match="Call reset"):
            call()
    picky.reset()
    picky.step(actions)
    picky.close()


def test_a_call_from_inside_a_call_is_refused(picky: Any) -> None:
    """A signal's handler can make one too. It would otherwise wait for itself."""
    picky.reset()
    Picky.on_step = staticmethod(picky.reset)
    with pytest.raises(CallError, match=r"reset: .*inside a running call"):
        picky.step(np.zeros((2, 1), dtype=np.float32))
    picky.close()


def test_every_env_is_closed_if_one_fails_to_close(picky: Any) -> None:
    closed = []

    def close() -> None:
        closed.append(1)
        failing()

    picky.reset()
    Picky.on_close = staticmethod(close)
    with pytest.raises(OSError, match="simulator"):
        picky.close()
    picky.close()
    assert len(closed) == 2


def test_a_refused_state_changes_nothing() -> None:
    envs: Any = make("mt1:reach-v3", seed=3)
    first = envs.reset()
    state = envs.state()
    damaged = state._replace(streams=[[{"bit_generator": "MT19937"}, [], 0]])
    with pytest.raises((KeyError, TypeError, ValueError)):
        envs.restore(damaged)
    assert envs.in_episode
    np.testing.assert_array_equal(envs.restore(state), first)
    envs.close()


# Threads


@pytest.mark.parametrize("engine", ["native", "official"])
def test_calls_from_several_threads_are_right_or_refused(engine: Any) -> None:
    envs: Any = make(PAIR, seed=2, engine=engine)
    expected = envs.reset()
    refused: list[CallError] = []

    def call(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(40):
            try:
                if random.random() < 0.2:
                    envs.reset()
                else:
                    envs.step(random.uniform(-1, 1, (2, 4)).astype(np.float32))
            except CallError as error:
                refused.append(error)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))
    envs.seed(2)
    np.testing.assert_array_equal(envs.reset(), expected)
    envs.close()
    assert all("step" in str(error) for error in refused)


# Forks


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fork_in_the_middle_of_a_step_begins_with_a_reset(threads: int) -> None:
    envs = NativeVecEnv(PAIR, 2, seed=1, threads=threads)
    first = envs.reset()
    actions = np.full((4, 4), 0.5, dtype=np.float32)
    second = envs.step(actions)[0]
    envs.seed(1)

    def child() -> None:
        with pytest.raises(CallError, match=r"step_wait: .* Call reset"):
            envs.step_wait()
        np.testing.assert_array_equal(envs.reset(), first)
        np.testing.assert_array_equal(envs.step(actions)[0], second)
        for _ in range(5):
            envs.reset()  # with goals that no process has met
        envs.close()

    envs.step_async(actions)
    assert_works_in_a_fork(child)
    envs.step_wait()
    np.testing.assert_array_equal(envs.reset(), first)
    envs.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fork_between_two_steps_continues(threads: int) -> None:
    envs = NativeVecEnv(PAIR, 2, seed=1, threads=threads)
    envs.reset()
    actions = np.full((4, 4), 0.5, dtype=np.float32)
    envs.step(actions)
    expected = copy.deepcopy(envs).step(actions)[0]

    def child() -> None:
        np.testing.assert_array_equal(envs.step(actions)[0], expected)

    assert_works_in_a_fork(child)
    np.testing.assert_array_equal(envs.step(actions)[0], expected)
    envs.close()
    assert_works_in_a_fork(envs.close)


# gymnasium


def test_the_vector_env_refuses_steps_outside_of_an_episode() -> None:
    envs = MetaWorldVectorEnv("mt1:reach-v3", seed=0)
    with pytest.raises(CallError, match="Call reset"):
        envs.step(ZEROS[:1])
    first, _ = envs.reset(seed=4)
    envs.step(ZEROS[:1])
    copied = pickle.loads(pickle.dumps(envs))
    for a, b in zip(envs.step(ZEROS[:1])[:4], copied.step(ZEROS[:1])[:4], strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    np.testing.assert_array_equal(envs.reset(seed=4)[0], first)
    envs.close()
    envs.close()
    for call in (envs.reset, lambda: envs.step(ZEROS[:1])):
        with pytest.raises(CallError, match="closed envs"):
            call()
    copied.close()


def test_an_env_refuses_steps_after_the_end_of_an_episode() -> None:
    env = MetaWorldEnv("reach-v3", seed=0, task_select="pseudorandom")
    first, _ = env.reset()
    env._envs.episodes.lengths[:] = 499
    *_, truncated, _ = env.step(np.zeros(4))
    assert truncated
    copied = copy.deepcopy(env)
    for ended in (env, copied):
        for _ in range(2):
            with pytest.raises(CallError, match="Call reset"):
                ended.step(np.zeros(4))
        with pytest.raises(ValueError, match="options"):
            ended.reset(options={"anything": 1})
    second, third = env.reset()[0], env.reset()[0]
    assert len({tuple(o[36:39]) for o in (first, second, third)}) == 3
    np.testing.assert_array_equal(copied.reset()[0], second)
    np.testing.assert_array_equal(copied.reset()[0], third)
    for open_env in (env, copied):
        open_env.close()


def test_a_suite_with_a_tasks_own_code_is_not_copied() -> None:
    envs = make(["stick-push-v3"], seed=0)
    with pytest.raises(CallError, match=r"copy: got stick-push-v3, .*Make new envs"):
        copy.deepcopy(envs)
    envs.reset()
    envs.close()


def test_a_copy_writes_no_monitor_files(tmp_path: Path) -> None:
    envs: Any = make(("reach-v3",), seed=0, monitor_dir=tmp_path)
    envs.reset()
    copied = copy.deepcopy(envs)
    for either in (copied, envs):
        either.episodes.lengths[:] = 499
        assert either.step(ZEROS[:1])[2].all()
        either.close()
    [file] = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 3  # two of the header, and one episode


def test_episodes_without_a_seed_can_be_reset() -> None:
    episodes = Episodes(["reach-v3"], 2, seed=0)
    assert episodes.reset().shape == (2, 39)
    episodes.close()
