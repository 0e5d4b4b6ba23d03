"""Trees and settings of small agents, and when two agents are the same."""

from __future__ import annotations

from typing import Any

import torch

from conal_rl.agents import ConalSAC
from conal_rl.core import Tree
from tests.helpers.toy import same_tensors, tasks_named

TASKS = tasks_named(2)
TREES = {
    "search": None,
    "shared": Tree.shared(TASKS, 2),
    "pair": (Tree.independent(TASKS, 2), Tree.from_branch_points([2, 2], 2, TASKS)),
}
SEARCH: dict[str, Any] = {"validation_share": 0.3, "learning_starts": 20, "train_freq": 4}


def optimizers(agent: ConalSAC) -> list[Any]:
    states = [optimizer.state_dict() for optimizer in agent.update.optimizers()]
    return [[dict(slots) for slots in state["state"].values()] for state in states]


def assert_same_agent(one: ConalSAC, two: ConalSAC) -> None:
    assert same_tensors(one.policy.state_dict(), two.policy.state_dict())
    assert one.log_ent_coef is not None and two.log_ent_coef is not None
    assert torch.equal(one.log_ent_coef, two.log_ent_coef)
    for mine, theirs in zip(optimizers(one), optimizers(two), strict=True):
        assert len(mine) == len(theirs) > 0
        assert all(same_tensors(a, b) for a, b in zip(mine, theirs, strict=True))
