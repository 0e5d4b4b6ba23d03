"""Loss weights and aggregations in the agent: what a critic's step does to the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from conal_rl.agents import ConalSAC, TaskBatch
from conal_rl.core import Tree, bilevel
from conal_rl.core import weighting as ways
from conal_rl.errors import ConfigError, ExtraError
from tests.helpers.toy import make_agent, make_env, random_batch, tasks_named

TARGETS = (-0.5, 0.0, 0.5)
SHARED = Tree.shared(tasks_named(3), 2)


def critic_gradients(agent: ConalSAC, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The gradients of the critics as they reach the optimiser in one update."""
    found: dict[str, Tensor] = {}

    def noted(optimizer: Any, *_: Any) -> None:
        if optimizer is agent.critic.optimizer:
            named = agent.critic.named_parameters()
            found.update({n: p.grad.clone() for n, p in named if p.grad is not None})
        optimizer.zero_grad()

    monkeypatch.setattr(bilevel, "apply_gradients", noted)
    torch.manual_seed(3)
    agent.update.step_weights(random_batch(3, 16, seed=1))
    return found


def losses_per_critic(agent: ConalSAC, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """`(critic, task)`, on the same batch and noise."""
    kept: list[Tensor] = []

    def noted(batch: TaskBatch, target: Tensor) -> Tensor:
        outputs = agent.critic.outputs(batch.observations, batch.actions)
        kept.append(0.5 * (outputs.squeeze(-1) - target).square().mean(dim=2))
        return kept[0].sum(dim=0)

    monkeypatch.setattr(agent.update.losses, "of_critics", noted)
    monkeypatch.setattr(agent.learners["critic"], "step", lambda *_: None)
    torch.manual_seed(3)
    agent.update.step_weights(random_batch(3, 16, seed=1))
    return kept[0]


@pytest.mark.parametrize(
    "name, aggregator", [("mgda", aggregation.MGDA()), ("aligned_mtl", aggregation.AlignedMTL())]
)
def test_each_critics_trunk_is_aggregated_as_torchjd_does(
    name: str, aggregator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = critic_gradients(make_agent(SHARED, TARGETS, weighting=name), monkeypatch)
    agent = make_agent(SHARED, TARGETS)  # of the same seed
    losses = losses_per_critic(agent, monkeypatch)
    named = dict(agent.critic.encoder.named_parameters())
    for critic in range(2):
        by_task = [
            torch.autograd.grad(loss, list(named.values()), retain_graph=True)
            for loss in losses[critic]
        ]
        jacobian = torch.stack([torch.cat([g[critic].flatten() for g in row]) for row in by_task])
        expected = 3 * aggregator(jacobian)  # aggregations are scaled to the size of a sum
        ours = torch.cat([found[f"encoder.{n}"][critic].flatten() for n in named])
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    heads = torch.autograd.grad(losses.sum(), list(agent.critic.head.parameters()))
    for (parameter, _), gradient in zip(agent.critic.head.named_parameters(), heads, strict=True):
        torch.testing.assert_close(found[f"head.{parameter}"], gradient)


def test_random_weights_are_one_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With independent networks, each task's gradient is its plain one, weighted."""
    tree = Tree.independent(tasks_named(3), 2)
    weighted = critic_gradients(make_agent(tree, TARGETS, weighting="random"), monkeypatch)
    plain = critic_gradients(make_agent(tree, TARGETS), monkeypatch)
    head = weighted["head.weight"].unflatten(0, (2, 3)), plain["head.weight"].unflatten(0, (2, 3))
    share = (head[0] * head[1]).sum(dim=(0, 2, 3)) / head[1].square().sum(dim=(0, 2, 3))
    assert float(share.sum()) == pytest.approx(1, abs=1e-4)
    assert (share > 0).all() and float(share.max() - share.min()) > 1e-3


def test_uncertainty_weights_are_learnt_only_for_the_critics() -> None:
    agent = make_agent(SHARED, TARGETS, weighting="uncertainty")
    learnt = list(agent.learners["critic"].loss_weights.parameters())
    assert sum(p.numel() for p in learnt) == 3
    assert not list(agent.learners["actor"].loss_weights.parameters())
    before = [p.detach().clone() for p in learnt]
    agent.update.step_weights(random_batch(3, 16))
    assert all((p != old).all() for p, old in zip(learnt, before, strict=True))


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", [*ways.LOSS_WEIGHTS, *ways.AGGREGATIONS])
def test_every_weighting_trains_and_searches(name: str) -> None:
    if name == "nash_mtl":
        pytest.importorskip("ecos", reason="ecos has no build for Python 3.13")
    for tree in (SHARED, None):
        agent = make_agent(tree, TARGETS, weighting=name)
        before = [p.detach().clone() for p in agent.critic.weights()]
        for seed in range(3):
            agent.update.step_weights(random_batch(3, 8, seed=seed))
        assert all(p.isfinite().all() for p in agent.policy.parameters())
        assert not all(torch.equal(p, q) for p, q in zip(agent.critic.weights(), before))


def test_one_task_has_nothing_to_aggregate() -> None:
    agent = make_agent(Tree.shared(tasks_named(1), 2), (0.5,), weighting="mgda")
    agent.update.step_weights(random_batch(1, 8))


def test_what_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"agent\.weighting: got 'fair'"):
        make_agent(SHARED, TARGETS, weighting="fair")
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"cagrad needs cvxpy and clarabel.*\[aggregation\]"):
        make_agent(SHARED, env=make_env(TARGETS), weighting="cagrad")
