"""Routing of rows to tasks, actions and log-probabilities, and what twin critics share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conal_rl.agents.policies import CONAL, ConalPolicy, TaskNetwork, to_task_major
from conal_rl.config import AgentConfig
from conal_rl.core import ConalProStage, Tree
from conal_rl.core.conal_pro import StageNetwork
from conal_rl.core.linear_stack import LinearStack
from tests.helpers.sb3 import twin
from tests.helpers.toy import (
    FEATURES,
    make_agent,
    make_env,
    random_rows,
    same_tensors,
    tasks_named,
)

TREES: dict[str, Tree | None] = {
    "search": None,
    "shared": Tree.shared(tasks_named(3), 2),
    "independent": Tree.independent(tasks_named(3), 2),
    "branched": Tree.from_branch_points([3, 1, 2], 2, tasks_named(3)),
}
TARGETS = (-0.5, 0.0, 0.5)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_rows_are_sorted_by_task_and_keep_their_order(task: list[int]) -> None:
    rows = torch.from_numpy(random_rows(task, tasks=4))
    features, found, place = to_task_major(rows, 4)
    assert found.tolist() == task
    counts = [task.count(t) for t in range(4)]
    assert features.shape == (4, max(counts), FEATURES)
    assert torch.equal(features[found, place], rows[:, :FEATURES])
    for t, count in enumerate(counts):
        assert place[found == t].tolist() == list(range(count))  # the rows keep their order
        assert not features[t, count:].any()


@pytest.mark.parametrize("tree", TREES)
def test_predict_of_many_rows_is_that_of_each(tree: str) -> None:
    agent = make_agent(TREES[tree], TARGETS)

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.randoms())
    @settings(max_examples=10, deadline=None)
    def check(task: list[int], random: Any) -> None:
        rows = random_rows(task)
        actions, _ = agent.predict(rows, deterministic=True)
        assert actions.shape == (len(task), 1)
        for row, action in zip(rows, actions, strict=True):
            single, _ = agent.predict(row, deterministic=True)  # an observation without batch
            assert single.shape == (1,)
            np.testing.assert_allclose(single, action, atol=1e-5)
        order = random.sample(range(len(task)), len(task))
        shuffled, _ = agent.predict(rows[order], deterministic=True)
        np.testing.assert_allclose(shuffled, actions[order], atol=1e-5)

    check()


def test_tasks_have_heads_of_their_own() -> None:
    agent = make_agent(TREES["shared"], TARGETS)
    rows = random_rows([0, 1, 2])
    before, _ = agent.predict(rows, deterministic=True)
    with torch.no_grad():
        agent.actor.head.bias[1] += 1
    after, _ = agent.predict(rows, deterministic=True)
    assert [bool(changed) for changed in (before != after)[:, 0]] == [False, True, False]


def test_actions_are_scaled_to_the_action_space() -> None:
    env = make_env(TARGETS, bounds=(-2.0, 4.0))
    agent = make_agent(TREES["branched"], env=env)
    rows = random_rows([2, 0, 1, 1])
    with torch.no_grad():
        inside = agent.policy._predict(torch.from_numpy(rows), deterministic=True).numpy()
        agent.actor.head.bias[:, :, 0] += torch.tensor([[30.0], [-30.0], [0.0]])
        actions, _ = agent.predict(rows, deterministic=True)
    assert actions[1] == 4
    assert actions[2] == actions[3] == -2
    np.testing.assert_allclose(actions[0], 1 + 3 * inside[0], rtol=1e-5)
    sampled, _ = agent.predict(np.repeat(rows, 50, axis=0))
    assert (sampled >= -2).all() and (sampled <= 4).all()


def test_samples_equal_those_of_sb3s_actor() -> None:
    env = make_env((0.5,), actions=2)
    agent = make_agent(Tree.shared(env.tasks, 2), env=env, layer_norm=False)
    sac = twin(agent)
    rows = random_rows([0] * 40, tasks=1)
    torch.manual_seed(0)
    actions, log_prob = agent.actor.sample(torch.from_numpy(rows[None, :, :FEATURES]))
    torch.manual_seed(0)
    expected, expected_log_prob = sac.actor.action_log_prob(torch.from_numpy(rows))
    torch.testing.assert_close(actions[0], expected)
    torch.testing.assert_close(log_prob[0], expected_log_prob)
    for deterministic in (True, False):
        torch.manual_seed(1)
        mine, _ = agent.predict(rows, deterministic=deterministic)
        torch.manual_seed(1)
        theirs, _ = sac.predict(rows, deterministic=deterministic)
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_q_values_equal_those_of_sb3s_critics() -> None:
    env = make_env((0.5,), actions=2)
    agent = make_agent(Tree.shared(env.tasks, 2), env=env, layer_norm=False)
    sac = twin(agent)
    rows = torch.from_numpy(random_rows([0] * 40, tasks=1))
    actions = torch.rand(40, 2)
    for mine, theirs in ((agent.critic, sac.critic), (agent.critic_target, sac.critic_target)):
        values = mine.values(rows[None, :, :FEATURES], actions[None])
        assert values.shape == (2, 1, 40)
        for value, expected in zip(values, theirs(rows, actions), strict=True):
            torch.testing.assert_close(value[0], expected[:, 0])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("critic", ["mse", "hl_gauss"])
def test_critics_share_gates_and_nothing_else(tree: str, critic: str) -> None:
    agent = make_agent(TREES[tree], TARGETS, critic=critic, critic_bins=11)
    features, actions = torch.randn(3, 5, FEATURES), torch.rand(3, 5, 1)
    values = agent.critic.values(features, actions)
    assert values.shape == (2, 3, 5)
    assert not torch.isclose(values[0], values[1]).any()
    weights = agent.critic.weights()
    for member in range(2):
        gradients = torch.autograd.grad(values[member].sum(), weights, retain_graph=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            mine, other = gradient.tensor_split(2)[:: 1 if member == 0 else -1]
            assert not other.any()  # the modules of member 1, then those of member 2
            assert weight.shape[0] % 2 == 0
            assert mine.any() or tree != "search"
    gates = agent.critic.gates
    assert (gates is None) == (tree != "search")
    if gates is not None:
        assert gates.shape == (3, 3)
        for member in range(2):
            (gradient,) = torch.autograd.grad(values[member].sum(), gates, retain_graph=True)
            assert gradient.any()


def test_targets_begin_as_the_critics_and_never_learn() -> None:
    policy = make_agent(TREES["search"], TARGETS).policy
    mine, target = policy.critic.state_dict(), policy.critic_target.state_dict()
    assert all(torch.equal(mine[name], target[name]) for name in mine)
    assert not any(p.requires_grad for p in policy.critic_target.parameters())
    optimised = {id(p) for g in policy.critic.optimizer.param_groups for p in g["params"]}
    assert optimised == {id(p) for p in policy.critic.weights()}
    for mode in (True, False):
        policy.set_training_mode(mode)
        networks = (policy, policy.actor, policy.critic, policy.critic_target)
        assert all(module.training is mode for network in networks for module in network.children())


def test_wrong_settings_are_refused() -> None:
    env = make_env(TARGETS)

    def build(**settings: Any) -> ConalPolicy:
        space: Any = env.observation_space
        actions: Any = env.action_space
        return ConalPolicy(space, actions, lambda _: 1e-3, tasks=env.tasks, **settings)

    with pytest.raises(ValueError, match="use_sde"):
        build(use_sde=True)
    three = Tree.shared(env.tasks, 3)
    with pytest.raises(ValueError, match=r"^chain: got 2 "):
        build(actor_tree=three, critic_tree=three, settings=AgentConfig(widths=(4, 4)))
    with pytest.raises(ValueError, match="tree"):
        make_agent(Tree.shared(["a", "b", "c"], 2), TARGETS)


def test_a_stage_inherits_what_the_stage_before_learnt() -> None:
    """All tasks join in the actor, whose tree is settled; in the critics, only the first does."""
    before = make_agent(ConalProStage.first(3), TARGETS, actor_averaging=1.0)
    gates = {"actor": [[9.0, -1e9]] * 3, "critic": [[9.0, -1e9], [-1e9, 9.0], [-1e9, 9.0]]}
    policy = before.policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.5)
        before.log_ent_coef.fill_(0.3)  # type: ignore[union-attr]
        for network in networks(policy):
            name = "actor" if network in (policy.actor, policy.actor_average) else "critic"
            network.gates.copy_(torch.tensor(gates[name]))  # type: ignore[union-attr]
    structures = before.next_stage()
    assert structures == (Tree.shared(tasks_named(3), 2), ConalProStage(2, (3, None, None)))
    after = make_agent(structures, TARGETS, actor_averaging=1.0, seed=5)
    after.inherit_from(before)
    assert after.log_ent_coef.tolist() == pytest.approx([0.3] * 3)  # type: ignore[union-attr]
    x = torch.randn(3, 7, FEATURES)
    for old, new in zip(networks(policy)[:2], networks(after.policy)[:2], strict=True):
        torch.testing.assert_close(new(x), old(x))
    for old, new in zip(networks(policy)[2:], networks(after.policy)[2:], strict=True):
        assert torch.equal(old.head.weight, new.head.weight)
        theirs, mine = ([layer.weight for layer in joint_layers(net)] for net in (old, new))
        assert torch.equal(theirs[0], mine[0])  # the trunk
        # The settled task's branch was the trunk's end; of the others' joint branch it is module 1.
        assert torch.equal(theirs[1], mine[1][[0, 2]])
        assert not torch.isclose(theirs[1], mine[1][[1, 3]]).all()


@pytest.mark.slow
def test_a_tree_inherits_loss_weights_and_largest_returns() -> None:
    given: dict[str, Any] = {"weighting": "uncertainty", "normalize_returns": True}
    before = make_agent(CONAL, **given)
    before.learn(100)
    after = make_agent(Tree.shared(tasks_named(2), 2), **given)
    after.inherit_from(before)
    assert before._n_updates
    assert (before.largest_returns > 0).all()
    np.testing.assert_array_equal(after.largest_returns, before.largest_returns)
    largest = after.replay_buffer.largest_returns
    assert largest is not None
    assert largest.largest is after.largest_returns
    theirs = before.update.loss_weights.state_dict()
    assert any(tensor.any() for tensor in theirs.values())
    assert same_tensors(after.update.loss_weights.state_dict(), theirs)


def networks(policy: ConalPolicy) -> list[TaskNetwork]:
    """The actor, its average, the critics and their targets."""
    found = [policy.actor, policy.actor_average, policy.critic, policy.critic_target]
    return [network for network in found if network is not None]


def joint_layers(network: TaskNetwork) -> list[LinearStack]:
    assert isinstance(network.encoder, StageNetwork)
    return [layer for layer in network.encoder.joint.layers if isinstance(layer, LinearStack)]
