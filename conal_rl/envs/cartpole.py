"""Variants of gymnasium's CartPole-v1: a small multi-task suite that trains in minutes.

The physics is gymnasium's own, and a variant changes its constants. The variant `reversed` turns
every push around, so its gradients must conflict with the gradients of the other tasks.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box

from conal_rl.envs.vec_env import Task

SUITES = ("cartpole", "cartpole:proportional")


class Variant(NamedTuple):
    """Constants of one CartPole. The defaults are the constants of CartPole-v1."""

    gravity: float = 9.8  # m/s^2
    masscart: float = 1.0  # kg
    masspole: float = 0.1  # kg
    length: float = 0.5  # half the pole's length, m
    force: float = 10.0  # of the action 1, N; a negative force pushes to the left


VARIANTS = {
    "standard": Variant(),
    "long_pole": Variant(length=1.0),
    "heavy_pole": Variant(masspole=1.0),
    "heavy_cart": Variant(masscart=4.0),
    "moon_gravity": Variant(gravity=1.62),
    "weak_push": Variant(force=4.0),
    "reversed": Variant(force=-10.0),
}


class ContinuousCartPole(gym.ActionWrapper[Any, npt.NDArray[np.float32], int]):
    """CartPole-v1 with the constants of `variant` and one continuous action in [-1, 1].

    The action's sign chooses one of the two pushes. The action 0 pushes like -1. If `proportional`
    is true, the force is the action times `variant.force`. Episodes are truncated after 500 steps.
    """

    def __init__(
        self, variant: Variant, proportional: bool = False, render_mode: str | None = None
    ) -> None:
        super().__init__(gym.make("CartPole-v1", disable_env_checker=True, render_mode=render_mode))
        self.action_space = Box(-1.0, 1.0, (1,), dtype=np.float32)
        assert isinstance(self.unwrapped, CartPoleEnv)
        self._cartpole = self.unwrapped
        self._force = variant.force
        self._proportional = proportional
        self._cartpole.gravity = variant.gravity
        self._cartpole.masscart = variant.masscart
        self._cartpole.masspole = variant.masspole
        self._cartpole.length = variant.length
        # CartPoleEnv derives these two only once, in its constructor.
        self._cartpole.total_mass = variant.masscart + variant.masspole
        self._cartpole.polemass_length = variant.masspole * variant.length

    def action(self, action: npt.NDArray[np.float32]) -> int:
        """Return CartPole's push to the right, after the action `(1,)` has set its signed force."""
        push = float(np.clip(action[0], -1.0, 1.0))
        if not self._proportional:
            push = 1.0 if push > 0 else -1.0
        self._cartpole.force_mag = self._force * push
        return 1


def tasks(suite: str, render_mode: str | None = None) -> list[Task]:
    """Return the variants as tasks. `suite` is one of `SUITES`."""
    proportional = suite == "cartpole:proportional"
    return [
        Task(name, partial(ContinuousCartPole, variant, proportional, render_mode))
        for name, variant in VARIANTS.items()
    ]
