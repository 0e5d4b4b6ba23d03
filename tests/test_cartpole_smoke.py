"""A small form of `python -m conal_rl.train cartpole`: it must learn, in at most a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conal_rl.evaluation import evaluate_policy
from conal_rl.train import main


class RandomPushes:
    """Pushes left and right at random."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, None]:
        return self.generator.uniform(-1, 1, (len(observation), 1)).astype(np.float32), None


@pytest.mark.slow
def test_every_variant_is_learnt(tmp_path: Path) -> None:
    budget = ["--total-steps", "36000", "--search.steps", "5000", "--evaluation.episodes", "10"]
    assert main(["cartpole", "--out", str(tmp_path / "run"), *budget]) == 0

    learnt = json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]
    chance = evaluate_policy(RandomPushes(), "cartpole", episodes=50, seed=7).returns
    assert learnt.keys() == chance.keys()
    assert {task for task in learnt if learnt[task] < 2 * chance[task]} == set()
    assert np.mean(list(learnt.values())) > 100
