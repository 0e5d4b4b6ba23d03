"""The CartPole variants: their physics equals the textbook, and each one can be solved."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from conal_rl.envs import make
from conal_rl.envs.cartpole import SUITES, VARIANTS, ContinuousCartPole


def textbook_step(
    state: Any, force: float, gravity: float, masscart: float, masspole: float, half_length: float
) -> list[float]:
    """Return the state after 0.02 s: Barto, Sutton & Anderson (1983), no friction, Euler step."""
    x, x_dot, theta, theta_dot = state
    sin, cos, mass = math.sin(theta), math.cos(theta), masscart + masspole
    push = (-force - masspole * half_length * theta_dot**2 * sin) / mass
    theta_acc = (gravity * sin + cos * push) / (half_length * (4 / 3 - masspole * cos**2 / mass))
    x_acc = (force + masspole * half_length * (theta_dot**2 * sin - theta_acc * cos)) / mass
    return [x + 0.02 * x_dot, x_dot + 0.02 * x_acc,
            theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc]  # fmt: skip


# The constants stand here a second time, so that nobody changes a task by accident.
CONSTANTS = {
    "standard": (10.0, 9.8, 1.0, 0.1, 0.5),
    "long_pole": (10.0, 9.8, 1.0, 0.1, 1.0),
    "heavy_pole": (10.0, 9.8, 1.0, 1.0, 0.5),
    "heavy_cart": (10.0, 9.8, 4.0, 0.1, 0.5),
    "moon_gravity": (10.0, 1.62, 1.0, 0.1, 0.5),
    "weak_push": (4.0, 9.8, 1.0, 0.1, 0.5),
    "reversed": (-10.0, 9.8, 1.0, 0.1, 0.5),
}


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_physics_equals_the_textbook(name: str, proportional: bool) -> None:
    strength, *constants = CONSTANTS[name]
    env: Any = ContinuousCartPole(VARIANTS[name], proportional)
    rng = np.random.default_rng(0)
    for _ in range(50):
        env.reset()
        state = rng.uniform(-1, 1, 4) * [2.0, 2.0, 0.2, 2.0]
        env.unwrapped.state = state
        action = rng.uniform(-1.5, 1.5, 1).astype(np.float32)
        push = np.clip(action[0], -1, 1) if proportional else np.sign(action[0])
        obs, reward, *_ = env.step(action)
        expected = textbook_step(state, strength * push, *constants)
        np.testing.assert_allclose(obs, expected, rtol=1e-5, atol=1e-6)
        assert reward == 1.0


def test_standard_equals_cartpole_v1() -> None:
    ours = ContinuousCartPole(VARIANTS["standard"])
    official: Any = gym.make("CartPole-v1")
    np.testing.assert_array_equal(ours.reset(seed=3)[0], official.reset(seed=3)[0])
    for push in [1, 1, 0, 1, 0, 0, 0, 1] * 3:
        mine = ours.step(np.array([0.3 if push else -0.3], np.float32))
        theirs = official.step(push)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
        if theirs[2]:
            break


@pytest.mark.parametrize("proportional", [False, True])
def test_reversed_mirrors_standard(proportional: bool) -> None:
    standard = ContinuousCartPole(VARIANTS["standard"], proportional)
    reverse = ContinuousCartPole(VARIANTS["reversed"], proportional)
    np.testing.assert_array_equal(standard.reset(seed=1)[0], reverse.reset(seed=1)[0])
    rng = np.random.default_rng(1)
    for _ in range(8):  # too few for the pole to fall
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        np.testing.assert_array_equal(standard.step(action)[0], reverse.step(-action)[0])


@pytest.mark.parametrize("suite", SUITES)
def test_linear_feedback_solves_every_task(suite: Any) -> None:
    """One hand-written controller balances all tasks, with opposite pushes on `reversed`."""
    envs: Any = make(suite, envs_per_task=3, seed=0)
    assert envs.tasks == tuple(CONSTANTS)
    force = np.repeat([constants[0] for constants in CONSTANTS.values()], 3)
    gains = np.array([1.0, 3.0, 60.0, 15.0])  # N per m, m/s, rad, rad/s
    obs = envs.reset()
    for step in range(1, 501):
        actions = np.clip(obs[:, :4] @ gains / force, -1, 1)
        obs, rewards, dones, infos = envs.step(actions[:, None].astype(np.float32))
        np.testing.assert_array_equal(rewards, 1.0)
        assert dones.all() if step == 500 else not dones.any()
    for info in infos:
        assert info["TimeLimit.truncated"] is True
        assert info["is_success"] is True
        assert (info["episode"]["r"], info["episode"]["l"]) == (500.0, 500)


def test_a_fall_terminates_without_success() -> None:
    envs: Any = make("cartpole", seed=0)
    envs.reset()
    fallen: dict[int, dict[str, Any]] = {}
    for _ in range(150):
        _, _, dones, infos = envs.step(np.ones((7, 1), np.float32))
        fallen |= {int(i): infos[i] for i in np.flatnonzero(dones)}
    assert sorted(fallen) == list(range(7))
    for i, info in fallen.items():
        assert info["TimeLimit.truncated"] is False
        assert info["is_success"] is False
        assert info["terminal_observation"].shape == (4 + 7,)
        assert info["terminal_observation"][4 + i] == 1.0
