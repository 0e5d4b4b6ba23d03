"""Envs neither read nor change what the whole process shares."""

from __future__ import annotations

import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import gymnasium as gym
import metaworld
import mujoco
import numpy as np
import pytest
import torch
from metaworld.envs import SawyerReachEnvV3
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.testing import assert_array_equal

from conal_rl import ConalSAC, Tree, evaluate_policy
from conal_rl.envs import make
from conal_rl.envs.metaworld import _goals, env_class, official_vector_env, tasks

PAIR = ("reach-v3", "push-v3")
OWNERS = (np.random, random, torch.random)
"""Modules with a global stream. A module's functions that make a stream of their own stay."""
OWN = ("default_rng", "SeedSequence", "Generator", "RandomState", "Random", "SystemRandom")


@pytest.fixture
def no_global_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every function on a global random stream fails."""

    def forbidden(name: str) -> Callable[..., Any]:
        def fails(*_: Any, **__: Any) -> Any:
            pytest.fail(f"{name} was called")

        return fails

    with monkeypatch.context() as patch:
        for owner in OWNERS:
            for name, value in vars(owner).items():
                if isinstance(value, type) or not callable(value):
                    continue
                if not name.startswith("_") and name not in OWN:
                    patch.setattr(owner, name, forbidden(f"{owner.__name__}.{name}"))
        yield


class Still:
    """A policy that never moves."""

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, None]:
        return np.zeros((len(observation), 4), np.float32), None


@pytest.mark.usefixtures("no_global_stream")
@pytest.mark.parametrize("engine", ["native", "official"])
def test_envs_use_no_global_stream(engine: Any) -> None:
    envs = make(PAIR, envs_per_task=2, seed=987, engine=engine)
    envs.reset()
    for _ in range(3):
        envs.step(np.zeros((4, 4), np.float32))
    envs.seed(5)
    envs.reset()
    envs.close()


@pytest.mark.slow
@pytest.mark.usefixtures("no_global_stream")
@pytest.mark.parametrize("engine", ["native", "official"])
def test_evaluation_uses_no_global_stream(engine: Any) -> None:
    evaluate_policy(Still(), PAIR, episodes=1, seed=654, engine=engine)


@pytest.mark.usefixtures("no_global_stream")
def test_other_suites_use_no_global_stream() -> None:
    for suite in ("cartpole", ("Pendulum-v1",)):
        envs = make(suite, seed=3)
        envs.reset()
        envs.step(np.zeros((envs.num_envs, 1), np.float32))
        envs.close()


def state_of_the_process() -> dict[str, Any]:
    """Return what all code of a process shares, except for random streams."""
    classes = [SawyerXYZEnv, SawyerReachEnvV3, gym.Env, gym.Wrapper, gym.vector.VectorEnv]
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "numpy's errors": np.geterr(),
        "numpy's print options": np.get_printoptions(),
        "filters of warnings": list(warnings.filters),
        "torch's type": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mujoco": [getattr(mujoco, f"get_mjcb_{name}")() for name in ("control", "passive")],
        "search path": list(sys.path),
        "hooks": (sys.excepthook, threading.excepthook, sys.gettrace()),
        "classes": {cls: dict(vars(cls)) for cls in classes},
    }


def rollout(suite: Any, engine: Any, seed: int = 41) -> list[Any]:
    """Return the observations and the rewards of some steps of envs that are made for them."""
    envs: Any = make(suite, 2, seed, engine)
    answers = [envs.reset()]
    shape = 3, envs.num_envs, envs.action_space.shape[0]
    for row in np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32):
        answers += envs.step(row)[:2]
    envs.close()
    return answers


SUITES = pytest.mark.parametrize(
    ("suite", "engine"),
    [
        (("reach-v3",), "native"),
        (("reach-v3",), "official"),
        ("cartpole", "official"),
        (("Pendulum-v1",), "official"),
    ],
)


@SUITES
def test_envs_leave_the_process_as_it_was(suite: Any, engine: Any) -> None:
    make(suite, seed=0, engine=engine).close()  # imports what it needs
    before = state_of_the_process()
    rollout(suite, engine)
    assert state_of_the_process() == before


@SUITES
def test_envs_are_the_same_in_a_strict_process(suite: Any, engine: Any) -> None:
    """Underflow raises, warnings are errors, and torch's default is double precision."""
    expected = rollout(suite, engine)
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            strict = rollout(suite, engine)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(strict, expected, strict=True):
        assert_array_equal(ours, theirs)


class TinyReward(gym.Env[Any, Any]):
    """A user's env, whose numbers are too small for float32."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.full(2, 1e-60), {}

    def step(self, action: Any) -> Any:
        return np.full(2, 1e-60), 1e-60, False, False, {}


def test_tiny_numbers_are_zero_in_a_strict_process() -> None:
    gym.register("TinyReward-v0", entry_point=lambda **_: TinyReward())
    try:
        envs: Any = make(["TinyReward-v0"])
        with np.errstate(all="raise"):
            assert not envs.reset()[:, :2].any()
            observations, rewards, _, _ = envs.step(np.zeros((1, 1), np.float32))
        assert not observations[:, :2].any() and not rewards.any()
    finally:
        del gym.registry["TinyReward-v0"]


def test_tiny_numbers_of_the_engine_are_zero() -> None:
    envs: Any = make(("reach-v3",), seed=0)
    envs.reset()
    state = envs.state()
    state.arrays["observations"][:] = 1e-60
    with np.errstate(all="raise"):
        assert not envs.restore(state)[:, :39].any()
    with np.errstate(all="warn"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not envs.restore(state)[:, :39].any()
    envs.close()


class Watches(SawyerReachEnvV3):
    """A user's env that looks at Meta-World's class at every reset."""

    seen: ClassVar[set[Any]] = set()

    def reset_model(self) -> Any:
        self.seen.add(vars(SawyerXYZEnv)["_reset_hand"])
        return super().reset_model()


def test_no_class_changes_while_goals_are_drawn() -> None:
    own = vars(SawyerXYZEnv)["_reset_hand"]
    make([f"{__name__}:Watches", "window-close-v3"], seed=77).close()
    assert Watches.seen == {own}


def test_a_seed_of_none_uses_no_global_stream() -> None:
    envs = make(("reach-v3",), seed=0)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    assert envs.seed() != envs.seed()
    assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], before)  # noqa: NPY002
    envs.close()


@pytest.mark.parametrize("seed", [0, 7])
def test_goals_are_those_of_the_global_stream(seed: int) -> None:
    """Metaworld's benchmarks draw them after `numpy.random.seed`."""
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    ours = _goals(("door-open-v3",), seed)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert_array_equal(after["state"]["key"], before["state"]["key"])
    official = cast(Any, metaworld).MT1("door-open-v3", seed=seed).train_tasks
    assert [goal.data for goal in ours] == [goal.data for goal in official]


def test_envs_made_at_once_equal_envs_made_in_turn() -> None:
    """Two threads make different envs, while a third looks at Metaworld's class."""
    names = ("reach-v3", "push-v3", "button-press-v3", "plate-slide-v3")
    in_turn = [_goals((name,), 321) for name in names]
    _goals.cache_clear()
    own, seen, done = SawyerXYZEnv._reset_hand, set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(SawyerXYZEnv._reset_hand)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            at_once = list(pool.map(lambda name: _goals((name,), 321), names))
    finally:
        done.set()
        watcher.join()
    assert at_once == in_turn
    assert seen == {own}


def test_drawing_goals_leaves_no_trace_in_an_env() -> None:
    envs = official_vector_env(("reach-v3",), 11)
    env: Any = envs.envs[0].unwrapped  # type: ignore[union-attr]
    new: Any = env_class("reach-v3")()
    assert "_reset_hand" not in vars(env)
    assert env.seeded_rand_vec == new.seeded_rand_vec
    assert type(env.np_random) is np.random.Generator
    envs.close()


class Fails(SawyerReachEnvV3):
    """A user's env whose reset fails while its goals are drawn."""

    made: ClassVar[list[Any]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made.append(self)

    def reset_model(self) -> Any:
        raise RuntimeError("no")


def test_an_env_that_fails_changes_no_class() -> None:
    own = SawyerXYZEnv._reset_hand
    with pytest.raises(Exception, match="no"):
        tasks([f"{__name__}:Fails"], 0)
    assert SawyerXYZEnv._reset_hand is own
    (env,) = Fails.made
    assert "_reset_hand" not in vars(env)


@pytest.fixture
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double_precision")
def test_torchs_default_type_changes_no_agent(tmp_path: Path) -> None:
    envs = make(("Pendulum-v1", "Pendulum-v1"), seed=0)
    tree = Tree.shared(envs.tasks, 2)
    agent = ConalSAC(env=envs, tree=tree, widths=(8, 8), learning_starts=10, batch_size=4)
    agent.learn(60)
    assert torch.get_default_dtype() == torch.float64
    kinds = {parameter.dtype for parameter in agent.policy.parameters()}
    assert kinds == {torch.float32}
    agent.save(tmp_path / "agent.zip")
    observation: Any = envs.reset()
    again = ConalSAC.load(tmp_path / "agent.zip")
    action, loaded = (a.predict(observation, deterministic=True)[0] for a in (agent, again))
    assert_array_equal(action, loaded)


def test_env_spaces_come_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    gym.logger.min_level = gym.logger.WARN
    official_vector_env(("reach-v3", "push-v3"), 11).close()
    assert not [w for w in recwarn if "precision lowered" in str(w.message)]
