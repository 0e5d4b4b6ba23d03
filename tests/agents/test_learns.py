"""Learns the best actions of tasks that want different ones, however the networks share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conal_rl.agents import ConalSAC
from conal_rl.core import Tree
from tests.helpers.tiers import first_quick
from tests.helpers.toy import make_agent, make_env, random_rows, tasks_named

TARGETS = (-0.5, 0.0, 0.5)
TASKS = tasks_named(3)
TREES = {
    "shared": Tree.shared(TASKS, 2),
    "independent": Tree.independent(TASKS, 2),
    "search": None,
}


def train(tree: Tree | None, steps: int, **settings: Any) -> ConalSAC:
    """Train on one-step episodes, so that Q is the reward."""
    env = make_env(TARGETS, envs_per_task=4, length=1, terminates=True)
    learning: dict[str, Any] = {
        "learning_rate": 5e-3,
        "ent_coef": 0.1,
        "batch_size": 32,
        "learning_starts": 40,
        "validation_share": 0.2,
        "rule": "consensus",
    }
    agent = make_agent(tree, env=env, widths=(16, 16), **learning | settings)
    agent.learn(steps)
    return agent


def distances(agent: ConalSAC) -> np.ndarray[Any, Any]:
    """How far the actions are from the best ones, `(task,)`, the worst over some observations."""
    tasks = [task for task in range(3) for _ in range(20)]
    rows = random_rows(tasks)
    rows[:, 0] = 0  # the step of the episode
    actions, _ = agent.predict(rows.clip(-1, 1), deterministic=True)
    return np.abs(actions.reshape(3, 20) - np.array(TARGETS)[:, None]).max(axis=1)


@pytest.mark.parametrize("tree", first_quick(TREES))
def test_agents_of_every_tree_find_each_tasks_best_action(tree: str) -> None:
    # An actor that does not tell tasks apart would be 0.5 off.
    assert (distances(train(TREES[tree], 1_000 if TREES[tree] is None else 1_800)) < 0.25).all()


@pytest.mark.slow
def test_an_agent_with_hl_gauss_finds_the_best_actions() -> None:
    agent = train(
        TREES["shared"],
        1_800,
        critic="hl_gauss",
        critic_range=(-3.0, 0.5),
        critic_bins=51,
        ent_coef="auto_0.1",
        target_entropy=-3.0,
    )
    assert (distances(agent) < 0.25).all()
