"""One update: against SB3's SAC, against agents of one task, and what the search may touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from conal_rl.agents import ConalSAC, TaskBatch
from conal_rl.agents import update as update_module
from conal_rl.config import AgentConfig
from conal_rl.core import (
    ConalProStage,
    ConalSearch,
    LTBSearch,
    SearchNetwork,
    Structure,
    Tree,
    linear_stack,
)
from conal_rl.core import learner as learner_module
from conal_rl.core.bilevel import gate_step
from conal_rl.core.linear_stack import LinearStack
from conal_rl.errors import ConalError, ConfigError
from conal_rl.runs.experiment import require_compiler
from tests.helpers.sb3 import differences, twin
from tests.helpers.toy import (
    FEATURES,
    make_agent,
    make_env,
    random_batch,
    same_tensors,
    tasks_named,
)

TARGETS = (-0.5, 0.0, 0.5)
TASKS = tasks_named(3)


def feed(
    agent: ConalSAC,
    monkeypatch: pytest.MonkeyPatch,
    batches: Iterator[TaskBatch],
    validation: Iterator[TaskBatch] | None = None,
) -> None:
    """Let the agent's replay hand out `batches` (for validation too, unless given)."""
    replay = agent.replay_buffer
    held_out = batches if validation is None else validation
    monkeypatch.setattr(replay, "ready", lambda: True)
    monkeypatch.setattr(replay, "sample", lambda *_, **__: next(batches))
    monkeypatch.setattr(replay, "sample_validation", lambda *_: next(held_out))


def batches_of(tasks: int, seeds: range = range(8), actions: int = 1) -> list[TaskBatch]:
    return [random_batch(tasks, 16, actions, seed) for seed in seeds]


def as_sb3(batch: TaskBatch) -> ReplayBufferSamples:
    """A one-task batch as SB3's replay gives it, observations with their one-hot."""

    def observed(features: Tensor) -> Tensor:
        return torch.cat([features[0], torch.ones(features.shape[1], 1)], dim=1)

    return ReplayBufferSamples(
        observed(batch.observations),
        batch.actions[0],
        observed(batch.next_observations),
        batch.dones[0].unsqueeze(1),
        batch.rewards[0].unsqueeze(1),
    )


@pytest.mark.parametrize("ent_coef", [0.2, "auto", "auto_0.3"])
@pytest.mark.parametrize("actions", [1, 2])
@pytest.mark.parametrize("tree", ["shared", "independent"])
def test_an_update_is_that_of_sb3s_sac(
    ent_coef: Any, actions: int, tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env((0.5,), actions=actions)
    shape = getattr(Tree, tree)(env.tasks, 2)
    agent = make_agent(
        shape, env=env, layer_norm=False, ent_coef=ent_coef, learning_rate=3e-3, tau=0.1, gamma=0.9
    )
    sac = twin(agent)
    sac.set_logger(configure(None, []))
    assert max(differences(agent, sac).values()) == 0
    before = [p.clone() for p in agent.policy.parameters()]
    batches = batches_of(1, actions=actions)
    feed(agent, monkeypatch, iter(batches))
    theirs = iter(batches)
    monkeypatch.setattr(sac.replay_buffer, "sample", lambda *_, **__: as_sb3(next(theirs)))
    for update in range(3):
        torch.manual_seed(update)
        agent.train(gradient_steps=1, batch_size=16)
        torch.manual_seed(update)
        sac.train(gradient_steps=1, batch_size=16)
        # A step of Adam moves a weight by up to 3e-3.
        assert max(differences(agent, sac).values()) < 2e-6
        assert_same_log(agent, sac)
    assert not any(torch.equal(p, q) for p, q in zip(agent.policy.parameters(), before))
    assert agent._n_updates == sac._n_updates == 3
    torch.manual_seed(9)
    agent.train(gradient_steps=2, batch_size=16)
    torch.manual_seed(9)
    sac.train(gradient_steps=2, batch_size=16)
    assert max(differences(agent, sac).values()) < 5e-6
    assert_same_log(agent, sac)


def assert_same_log(agent: ConalSAC, sac: SAC) -> None:
    """All that SB3's `train` leaves in the logger is in ours, with the same value."""
    theirs, mine = sac.logger.name_to_value, agent.logger.name_to_value
    names = {"train/n_updates", "train/critic_loss", "train/actor_loss", "train/ent_coef"}
    names |= {"train/ent_coef_loss"} if sac.ent_coef_optimizer is not None else set()
    assert names <= theirs.keys() <= mine.keys()
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, abs=1e-5), name


def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussian noise of a constant, so that batches of any shape draw the same."""
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self, *_: self.mean + 0.7 * self.stddev
    )


@torch.no_grad()
def copy_task(single: ConalSAC, agent: ConalSAC, task: int) -> None:
    """Fill a one-task agent from the task's own modules; it has one column of task ID, not T."""
    for parameter, value in zip(single.policy.parameters(), task_parameters(agent, task)):
        parameter.copy_(value)


def task_parameters(agent: ConalSAC, task: int) -> list[Tensor]:
    """The policy's parameters as the one-task agent of `task` has them."""
    found = []
    tasks = len(agent.tasks)
    for network in (agent.actor, agent.critic, agent.critic_target):
        for name, parameter in network.named_parameters():
            value = parameter.detach()[task::tasks]
            if name == "encoder.layers.0.weight":
                rest, task_id = value[:, :-tasks], value[:, -tasks:]
                value = torch.cat([rest, task_id[:, task : task + 1]], dim=1)
            found.append(value)
    return found


@pytest.mark.parametrize("critic", ["mse", "hl_gauss"])
@pytest.mark.parametrize("critic_reduce", ["min", "mean"])
def test_independent_tasks_learn_as_in_separate_runs(
    critic: str, critic_reduce: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_noise(monkeypatch)
    settings: dict[str, Any] = {
        "critic": critic,
        "critic_reduce": critic_reduce,
        "critic_range": (-3.0, 3.0),
        "reward_scale": 0.5,
        "learning_rate": 3e-3,
        "tau": 0.1,
    }
    agent = make_agent(Tree.independent(TASKS, 2), TARGETS, **settings)
    batches = batches_of(3)
    feed(agent, monkeypatch, iter(batches))
    singles = []
    for task in range(3):
        single = make_agent(Tree.independent(TASKS[:1], 2), TARGETS[:1], seed=task, **settings)
        copy_task(single, agent, task)
        # Without discounts, the last field.
        of_one = [TaskBatch(*(x[task : task + 1] for x in batch[:5])) for batch in batches]
        feed(single, monkeypatch, iter(of_one))
        singles.append(single)
    agent.train(gradient_steps=4, batch_size=16)
    for task, single in enumerate(singles):
        single.train(gradient_steps=4, batch_size=16)
        for mine, theirs in zip(task_parameters(agent, task), single.policy.parameters()):
            torch.testing.assert_close(mine, theirs.detach(), atol=1e-5, rtol=0)
        assert agent.log_ent_coef is not None and single.log_ent_coef is not None
        torch.testing.assert_close(agent.log_ent_coef[task : task + 1], single.log_ent_coef)


def test_a_shared_tree_sums_the_tasks_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noticing conflicts by the rule `none` changes nothing; a different rule does."""
    fixed_noise(monkeypatch)
    tree = Tree.shared(TASKS, 2)
    rules = ("ignore", "none", "any_pair")
    agents = [make_agent(tree, TARGETS, conflict_rule=rule) for rule in rules]
    for agent in agents[1:]:
        agent.policy.load_state_dict(agents[0].policy.state_dict())
    for agent in agents:
        feed(agent, monkeypatch, iter(batches_of(3)))
        agent.train(gradient_steps=3, batch_size=16)
    plain, watched, held = (agent.policy.state_dict() for agent in agents)
    for name, value in plain.items():
        torch.testing.assert_close(watched[name], value, atol=1e-5, rtol=0)
    assert any(not torch.equal(held[name], value) for name, value in plain.items())


@pytest.mark.parametrize("terminates, value", [(False, 2.0), (True, 1.0)])
@pytest.mark.slow
def test_bootstraps_through_truncation_only(terminates: bool, value: float) -> None:
    """A reward of 1 at each step, episodes of one step, gamma 1/2: worth 2 if they continue."""
    env = make_env([None], length=1, terminates=terminates)
    agent = make_agent(
        Tree.shared(env.tasks, 2), env=env, gamma=0.5, ent_coef=0.0, tau=0.2, learning_rate=1e-2
    )
    agent.learn(170)
    batch = agent.replay_buffer.sample(64)
    with torch.no_grad():
        q = agent.critic.values(batch.observations, batch.actions)
    assert q.mean().item() == pytest.approx(value, abs=0.1)


def test_td_target_equals_one_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_noise(monkeypatch)
    agent = make_agent(
        Tree.shared(TASKS, 2), TARGETS, reward_scale=0.1, gamma=0.9, critic_reduce="min"
    )
    batch = random_batch(3, 16)
    temperature = torch.tensor([0.0, 0.5, 2.0])
    with torch.no_grad():
        actions, log_prob = agent.actor.sample(batch.next_observations)
        q = agent.critic_target.values(batch.next_observations, actions).amin(dim=0)
        soft = q - temperature.view(3, 1) * log_prob
        target = agent.update.losses.target(batch, temperature)
    over = batch.dones.bool()
    assert over.any() and not over.all()
    torch.testing.assert_close(target[over], 0.1 * batch.rewards[over])
    torch.testing.assert_close(target[~over], (0.1 * batch.rewards + 0.9 * soft)[~over])


def test_temperatures_move_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(Tree.independent(TASKS, 2), TARGETS, ent_coef="auto_0.5", learning_rate=1e-3)
    with torch.no_grad():
        agent.actor.head.bias[0, 0, 1] = -0.5  # wide: more entropy than the target
        agent.actor.head.bias[1, 0, 1] = -5.0  # narrow
        agent.actor.head.bias[2, 0, 1] = -5.0
    feed(agent, monkeypatch, cycle(batches_of(3)))
    agent.train(gradient_steps=5, batch_size=16)
    assert agent.log_ent_coef is not None
    wide, narrow, also_narrow = agent.log_ent_coef.detach().exp().tolist()
    assert wide < 0.5 < narrow
    assert narrow == pytest.approx(also_narrow, rel=1e-3)


# The search


Change = dict[str, set[str]]


def parts(agent: ConalSAC) -> dict[str, list[Tensor]]:
    assert agent.critic_target.gates is not None
    assert agent.log_ent_coef is not None
    return {
        "actor weights": list(agent.actor.weights()),
        "critic weights": list(agent.critic.weights()),
        "target weights": list(agent.critic_target.weights()),
        "actor gates": [agent.gates["actor"]],
        "critic gates": [agent.gates["critic"]],
        "target gates": [agent.critic_target.gates],
        "temperatures": [agent.log_ent_coef],
    }


def changed_by(agent: ConalSAC, action: Callable[[], Any]) -> set[str]:
    before = {name: [t.detach().clone() for t in group] for name, group in parts(agent).items()}
    action()
    return {
        name
        for name, group in parts(agent).items()
        if not all(torch.equal(t, old) for t, old in zip(group, before[name]))
    }


@pytest.mark.parametrize("gumbel", [False, True])
def test_steps_touch_only_their_own_parameters(
    gumbel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(None, TARGETS, gumbel=gumbel, gate_learning_rate=0.01)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    steps: list[tuple[str, set[str]]] = []
    for module, name in (
        (learner_module, "gate_step"),
        (learner_module, "weight_step"),
        (update_module, "apply_gradients"),
    ):
        step = getattr(module, name)

        def spied(*args: Any, name: str = name, step: Any = step) -> None:
            steps.append((name, changed_by(agent, lambda: step(*args))))

        monkeypatch.setattr(module, name, spied)
    for _ in range(3):
        steps.clear()
        agent.train(gradient_steps=1, batch_size=16)
        assert steps == [
            ("apply_gradients", {"temperatures"}),
            ("weight_step", {"critic weights"}),
            ("weight_step", {"actor weights"}),
            ("gate_step", {"critic gates"}),
            ("gate_step", {"actor gates"}),
        ]
        assert all(p.grad is None for p in agent.policy.parameters())
        assert agent.critic.gates is not None and agent.critic_target.gates is not None
        assert torch.equal(agent.critic.gates, agent.critic_target.gates)


def test_gates_follow_the_gradient_of_the_validation_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SAC's losses on the validation batch, written out per task, and Adam's first step."""
    fixed_noise(monkeypatch)
    agent = make_agent(
        None, TARGETS, gate_learning_rate=0.01, critic_reduce="min", reward_scale=0.5, gamma=0.9
    )
    batch = random_batch(3, 16, seed=5)
    feed(agent, monkeypatch, iter(batches_of(3)), iter([batch]))
    expected: dict[str, Tensor] = {}

    def reference(*batches: TaskBatch) -> dict[str, Tensor]:
        assert agent.log_ent_coef is not None
        temperature = agent.log_ent_coef.detach().exp().view(3, 1)
        with torch.no_grad():
            actions, log_prob = agent.actor.sample(batch.next_observations)
            after = agent.critic_target.values(batch.next_observations, actions).amin(dim=0)
            goal = 0.5 * batch.rewards
            goal = goal + 0.9 * (1 - batch.dones) * (after - temperature * log_prob)
        q = agent.critic.values(batch.observations, batch.actions)
        critic_loss = sum(
            0.5 * (q[c, t] - goal[t]).square().mean() for c in (0, 1) for t in range(3)
        )
        actions, log_prob = agent.actor.sample(batch.observations)
        value = agent.critic.values(batch.observations, actions).amin(dim=0)
        actor_loss = (temperature * log_prob - value).mean(dim=1).sum()
        for name, loss in (("critic", critic_loss), ("actor", actor_loss)):
            assert isinstance(loss, Tensor)
            (expected[name],) = torch.autograd.grad(loss, agent.gates[name])
        return step(*batches)

    step = agent.update.step_gates
    monkeypatch.setattr(agent.update, "step_gates", reference)
    seen: list[Tensor] = []

    def spied(loss: Tensor, gates: list[nn.Parameter], *optimizer: Any) -> None:
        seen.extend(torch.autograd.grad(loss, gates, retain_graph=True))
        gate_step(loss, gates, *optimizer)

    monkeypatch.setattr(learner_module, "gate_step", spied)
    agent.train(gradient_steps=1, batch_size=16)
    for gradient, name in zip(seen, ("critic", "actor"), strict=True):
        torch.testing.assert_close(gradient, expected[name])
        moved = agent.gates[name].detach() - 1
        torch.testing.assert_close(moved, -0.01 * gradient.sign(), atol=1e-4, rtol=0)


def test_validation_data_reaches_only_the_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other validation data the weights take the same step, the gates a different one."""
    states = []
    for seed in (1, 2):
        agent = make_agent(None, TARGETS, gate_learning_rate=0.01)
        feed(agent, monkeypatch, iter(batches_of(3)), iter([random_batch(3, 16, seed=100 * seed)]))
        torch.manual_seed(0)
        agent.train(gradient_steps=1, batch_size=16)
        states.append(agent.policy.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value) == ("gates" not in name)


def test_the_actor_moves_every_third_update(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(None, TARGETS, actor_every=3)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    moved = [changed_by(agent, lambda: agent.train(1, 16)) for _ in range(7)]
    for name in ("actor weights", "temperatures"):
        assert [name in names for names in moved] == [True, False, False, True, False, False, True]
    assert all("critic weights" in names for names in moved)


@pytest.mark.slow
@pytest.mark.parametrize("tree", ["shared", "mixed"])
def test_compiled_updates_are_the_same(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, where products go through nothing that a compiler cannot follow."""
    try:
        require_compiler(torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))
    mixed = Tree(TASKS, ((0, 1, 0), (0, 1, 2)))
    shape = mixed if tree == "mixed" else getattr(Tree, tree)(TASKS, 2)
    settings: dict[str, Any] = {"critic": "hl_gauss", "actor_averaging": 1.0}
    agents = [make_agent(shape, TARGETS, compile=on, **settings) for on in (False, True)]
    apply: Any = linear_stack._stacked_linear
    eager: list[bool] = []

    def counted(*arguments: Any) -> Any:
        eager.append(True)
        return apply(*arguments)

    for agent in agents:
        feed(agent, monkeypatch, iter(batches_of(3)))
        eager.clear()
        with monkeypatch.context() as patch:
            patch.setattr(linear_stack, "_stacked_linear", counted)
            for update in range(3):
                torch.manual_seed(update)
                agent.train(1, 16)
        assert bool(eager) != agent.settings.compile
    plain, compiled = (agent.policy.state_dict() for agent in agents)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=0)


def test_a_reset_draws_all_weights_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are drawn again, as far from where they were as a different agent's."""
    tree = Tree.shared(TASKS, 2)
    one, other = (make_agent(tree, TARGETS, actor_averaging=1.0, reset_at=at) for at in ((), (2,)))
    for agent in (one, other):
        feed(agent, monkeypatch, iter(batches_of(3)))
        torch.manual_seed(0)
        agent.train(2, 16)
    assert other.log_ent_coef is not None and one.log_ent_coef is not None
    assert torch.equal(other.log_ent_coef, one.log_ent_coef)
    before, after = dict(one.policy.named_parameters()), dict(other.policy.named_parameters())
    for name, value in before.items():
        drawn = name.endswith(".weight")
        assert not drawn or (after[name] - value).norm() > value.norm(), name
    pairs = ((other.critic_target, other.critic), (other.policy.actor_average, other.actor))
    for copied, network in pairs:
        assert copied is not None and same_tensors(copied.state_dict(), network.state_dict())
    assert not other.actor.optimizer.state and not other.critic.optimizer.state
    other.train(1, 16)
    for network in (other.actor, other.critic):
        assert {int(state["step"]) for state in network.optimizer.state.values()} == {1}
    assert other.policy.actor_average is not None  # which begins with the first update after
    averaged = other.policy.actor_average.weights()
    assert all(map(torch.equal, averaged, other.actor.weights()))


def test_a_search_is_not_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(None, TARGETS, reset_at=(2,))
    feed(agent, monkeypatch, iter(batches_of(3)))
    agent.train(2, 16)
    assert agent.actor.optimizer.state and agent.critic.optimizer.state


def test_a_reset_keeps_the_gates() -> None:
    policy = make_agent(None, TARGETS).policy
    with torch.no_grad():
        for gates in (policy.actor.gates, policy.critic.gates):
            assert gates is not None
            gates.normal_()
    before = {name: value.clone() for name, value in policy.named_parameters()}
    policy.reset_weights()
    for name, value in policy.named_parameters():
        drawn = name.endswith(".weight")
        assert not drawn or not torch.equal(value, before[name])
        assert "gates" not in name or torch.equal(value, before[name])


def test_normalised_actor_losses_ignore_the_scale_of_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values and temperature a hundred times as large leave the actor's loss as it is."""
    agent = make_agent(Tree.independent(TASKS, 2), TARGETS, normalize_actor_loss=True)
    batch = random_batch(3, 16)
    actions, log_prob = agent.actor.sample(batch.observations)
    values = agent.critic.values
    losses = []
    for scale in (1.0, 100.0):
        scales = torch.tensor([scale, 1.0, 1.0])
        monkeypatch.setattr(
            agent.critic, "values", lambda *x, by=scales: values(*x) * by.view(3, 1)
        )
        losses.append(agent.update.losses.of_actor(batch, actions, log_prob, 0.1 * scales))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("critics", [1, 3])
def test_any_number_of_critics_can_be_trained(
    critics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS, critics=critics, critic="hl_gauss")
    batch = random_batch(3, 16)
    assert agent.critic.values(batch.observations, batch.actions).shape == (critics, 3, 16)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    before = agent.critic.values(batch.observations, batch.actions).detach()
    assert before.abs().max() < 1  # they begin at about 0
    agent.train(1, 16)
    after = agent.critic.values(batch.observations, batch.actions)
    assert ((after - before).abs().amax(dim=(1, 2)) > 0).all()


def test_n_step_targets_have_each_transitions_discount() -> None:
    """The discount of what is bootstrapped comes with each transition."""
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS, gamma=0.9, critic_reduce="min")
    one = random_batch(3, 16)
    several = one._replace(discounts=torch.full((3, 16), 0.9**3))
    temperature = torch.ones(3)
    torch.manual_seed(0)
    first = agent.update.losses.target(one, temperature) - one.rewards
    torch.manual_seed(0)
    discounted = agent.update.losses.target(several, temperature) - one.rewards
    torch.testing.assert_close(discounted, first * 0.81)


def test_gates_move_every_third_update(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(None, TARGETS, gate_every=3)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    moved = []
    for _ in range(7):
        moved.append("actor gates" in changed_by(agent, lambda: agent.train(1, 16)))
    assert moved == [True, False, False, True, False, False, True]


def test_critics_may_be_fixed_while_the_actor_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree.from_branch_points([1, 3, 3], 2, TASKS)
    agent = make_agent((None, tree), TARGETS, gate_learning_rate=0.01)
    assert agent.searching and set(agent.gates) == {"actor"}
    assert set(agent.noticing) == {"actor", "critic"}  # a settled network notices until the end
    feed(agent, monkeypatch, cycle(batches_of(3)))
    agent.train(gradient_steps=3, batch_size=16)
    actor, critic = agent.derive()
    assert critic == tree
    assert actor == Tree.from_branch_points(
        (agent.gates["actor"].argmax(dim=1) + 1).tolist(), 2, TASKS
    )


def test_actor_and_critic_may_have_different_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, critic = (Tree.from_branch_points(points, 2, TASKS) for points in ([3, 3, 1], [2, 2, 3]))
    agent = make_agent((actor, critic), TARGETS)
    assert not agent.searching
    assert agent.derive() == (actor, critic)

    def modules(network: nn.Module) -> list[tuple[int, ...]]:
        return [m.index for m in network.modules() if isinstance(m, LinearStack)]

    assert modules(agent.actor)[:2] == [(0, 0, 1), (0, 0, 1)]
    assert modules(agent.critic)[:2] == [(0, 0, 0, 1, 1, 1), (0, 1, 2, 3, 4, 5)]
    feed(agent, monkeypatch, iter(batches_of(3)))
    before = agent.policy.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    agent.train(gradient_steps=2, batch_size=16)
    assert not any(torch.equal(v, before[n]) for n, v in agent.policy.state_dict().items())


def test_gumbel_temperature_falls_over_learn() -> None:
    falls: dict[str, Any] = {"gumbel": True, "temperature": (1.0, 0.2)}
    agent = make_agent(None, **falls, validation_share=0.5, train_freq=4)
    temperatures = []

    def note(*_: Any) -> bool:
        temperatures.append(agent.actor.encoder.gumbel_temperature)
        return True

    agent.learn(200, callback=note)
    noted = [float(t) for t in temperatures if t is not None]  # type: ignore[arg-type]
    assert noted == sorted(noted, reverse=True)
    assert 0.7 < noted[0] <= 1
    assert noted[-1] == pytest.approx(0.2, abs=0.05)


def test_gumbel_temperature_falls_in_every_stage() -> None:
    """The second stage goes from half of the steps so far to their end."""
    stage = ConalProStage(2, (None, None))
    for trees in ((stage, Tree.shared(TASKS[:2], 2)), (Tree.shared(TASKS[:2], 2), stage)):
        agent = make_agent(trees, gumbel=True, temperature=(1.0, 0.2))
        for left, expected in ((0.5, 1.0), (0.25, 0.6), (0.0, 0.2)):
            agent.update.anneal_gates(left)
            networks = (agent.actor, agent.critic, agent.critic_target)
            found = [n.encoder.gumbel_temperature for n in networks if n.gates is not None]
            assert found == pytest.approx([expected] * (1 if trees[0] is stage else 2))


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    clip = nn.utils.clip_grad_norm_

    def spied(weights: list[nn.Parameter], max_norm: float) -> Tensor:
        clip(weights, max_norm)
        gradients = [w.grad.norm() for w in weights if w.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return torch.tensor(0.0)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spied)
    agent = make_agent(None, TARGETS, max_grad_norm=1e-3)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    agent.train(gradient_steps=2, batch_size=16)
    assert norms == pytest.approx([1e-3] * 4, rel=1e-3)  # actor and critic, twice


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_deterministic_actions_are_those_of_the_averaged_actor(
    eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS, actor_averaging=eta, learning_rate=0.1)
    feed(agent, monkeypatch, cycle(batches_of(3)))
    actors = []
    for _ in range(5):
        agent.train(gradient_steps=1, batch_size=16)
        actors.append([p.detach().clone() for p in agent.actor.parameters()])
    rows = torch.hstack([torch.randn(6, FEATURES), torch.eye(3).repeat(2, 1)]).numpy()
    found, _ = agent.predict(rows, deterministic=True)
    newest = agent.policy.actor_average
    agent.policy.actor_average = None
    last, _ = agent.predict(rows, deterministic=True)
    assert abs(found - last).max() > 1e-3
    # The sum of t^(eta) with rising factorials for powers: exact for whole eta (Shamir & Zhang).
    shares = torch.tensor(
        [torch.tensor([float(t + k) for k in range(int(eta))] or [1.0]).prod() for t in range(1, 6)]
    )
    shares = shares / shares.sum()
    with torch.no_grad():
        for number, parameter in enumerate(agent.actor.parameters()):
            parameter.copy_(sum(s * actor[number] for s, actor in zip(shares, actors, strict=True)))
    expected, _ = agent.predict(rows, deterministic=True)
    assert abs(found - expected).max() < 1e-5
    assert newest is not None and not any(p.requires_grad for p in newest.parameters())


def test_waits_until_every_task_has_data() -> None:
    agent = make_agent(None, validation_share=0.5)
    state = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(2 * 5)  # the first episode of each task goes to validation
    agent.train(gradient_steps=3, batch_size=8)
    assert agent._n_updates == 0
    assert same_tensors(agent.policy.state_dict(), state)
    agent.learn(2 * 5, reset_num_timesteps=False)
    agent.train(gradient_steps=3, batch_size=8)
    assert agent._n_updates == 3


def test_divergence_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS)
    agent._setup_learn(1)
    broken = random_batch(3, 16)
    broken.rewards[1, 0] = torch.inf
    feed(agent, monkeypatch, iter([broken]))
    agent.train(gradient_steps=1, batch_size=16)
    with pytest.raises(ConalError, match="diverged"):
        agent.dump_logs()
    searching = make_agent(None, TARGETS)
    with torch.no_grad():
        searching.gates["actor"][0, 0] = torch.nan
    with pytest.raises(ConalError, match=r"^tree: "):
        searching.derive()


@pytest.mark.parametrize("structure", [ConalSearch(), LTBSearch(2), ConalProStage.first(3)])
def test_nothing_is_derived_from_gates_that_have_not_moved(structure: Structure) -> None:
    agent = make_agent(structure, TARGETS)
    with pytest.raises(ConalError, match=r"^tree: "):
        agent.derive()


def test_features_come_before_the_one_hot() -> None:
    agent = make_agent(None, TARGETS)
    agent.learn(60)
    batch = agent.replay_buffer.sample(40)
    assert batch.observations.shape == (3, 40, FEATURES)
    assert list(islice(batch.observations[..., 0].unique(), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name, value",
    [
        ("reward_scale", 3.0),
        ("critic_reduce", "mean"),
        ("normalize_actor_loss", True),
        ("max_grad_norm", 1e-3),
    ],
)
def test_settings_may_change_while_it_learns(name: str, value: Any) -> None:
    learnt = []
    for changed in (True, False):
        agent = make_agent(Tree.shared(TASKS, 2), TARGETS)
        if changed:
            agent.settings = dataclasses.replace(agent.settings, **{name: value})
            assert getattr(agent.settings, name) == value
        torch.manual_seed(0)
        agent.update.step_weights(random_batch(3, 16))
        agent.update.step_weights(random_batch(3, 16))
        learnt.append(agent.policy.state_dict())
    assert not same_tensors(*learnt)


@pytest.mark.parametrize(
    "name, value",
    [("widths", (4, 4)), ("gamma", 0.5), ("weighting", "uncertainty"), ("n_steps", 3)],
)
def test_settings_read_only_once_are_refused_later(name: str, value: Any) -> None:
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS)
    before = agent.settings
    with pytest.raises(ConfigError, match=rf"agent\.{name}"):
        agent.settings = dataclasses.replace(agent.settings, **{name: value})
    assert agent.settings == before


def test_changed_settings_survive_saving(tmp_path: Path) -> None:
    """A loaded agent continues like the saved one, in whichever way its settings were changed."""
    agent = make_agent(Tree.shared(TASKS, 2), TARGETS)
    agent.settings = dataclasses.replace(agent.settings, batch_size=7, tau=0.5)
    agent.learning_rate, agent.learning_starts = 0.1, 33
    assert (agent.batch_size, agent.tau) == (7, 0.5)
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip")
    assert (loaded.batch_size, loaded.tau) == (7, 0.5)
    assert (loaded.learning_rate, loaded.learning_starts) == (0.1, 33)


def test_values_that_are_not_settings_are_refused() -> None:
    env = make_env(TARGETS)
    wrong: dict[str, Any] = {"settings": {}, "search": []}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=name):
            ConalSAC(env=env, **{name: value})
    for name, value in (("settings", AgentConfig()), ("tasks", TASKS), ("actor_tree", None)):
        with pytest.raises(ConfigError, match=name):
            ConalSAC(env=env, policy_kwargs={name: value})


def test_only_the_search_decays_specific_modules() -> None:
    tree = Tree.shared(tasks_named(3), 2)
    for given, groups in ((None, 2), (tree, 1)):
        agent = make_agent(given, TARGETS, specific_decay=0.5)
        for network in (agent.actor, agent.critic):
            found = network.optimizer.param_groups
            assert len(found) == groups
            if isinstance(network.encoder, SearchNetwork):
                own = {id(p) for p in network.encoder.specific_weights()}
                assert {id(p) for p in found[1]["params"]} == own
                assert [group["weight_decay"] for group in found] == [0, 0.5]
            assert sum(len(group["params"]) for group in found) == len(list(network.weights()))
        agent.update.step_weights(random_batch(3, 8))
