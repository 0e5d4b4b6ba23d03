"""Meta-World's own scripted policies behind SB3's `predict`: experts that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

FEATURES = 39


class ScriptedPolicy:
    """Routes each row by its one-hot to the scripted policy of that task.

    Args:
        tasks: Meta-World task names, in the order of the one-hot.
        noise: standard deviation of Gaussian noise on the actions, drawn from `seed`; the same
            sequence of calls after construction gives the same actions.
    """

    def __init__(self, tasks: Sequence[str], noise: float = 0.0, seed: int = 0):
        experts: dict[str, Any] = ENV_POLICY_MAP
        self.experts = [experts[task]() for task in tasks]
        self.noise = noise
        self.generator = np.random.default_rng(seed)

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[np.float32], Any]:
        """Actions (rows, 4) in [-1, 1] for observations (rows, 39 + tasks)."""
        features, one_hot = observation[:, :FEATURES], observation[:, FEATURES:]
        assert one_hot.shape[1] == len(self.experts)
        assert (one_hot.sum(axis=1) == 1).all()
        actions = np.stack(
            [
                self.experts[task].get_action(row.astype(np.float64))
                for row, task in zip(features, one_hot.argmax(axis=1), strict=True)
            ]
        )
        actions += self.noise * self.generator.standard_normal(actions.shape)
        return np.clip(actions, -1, 1).astype(np.float32), None
