"""The bi-level steps, and whether the search finds out which tasks can share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conal_rl.core import (
    ConalProStage,
    ConalSearch,
    ConflictNoticing,
    LTBSearch,
    Rule,
    Search,
    SearchNetwork,
    Supernet,
    Tree,
    TreeNetwork,
    derive,
    linear_chain,
)
from conal_rl.core.bilevel import apply_gradients, decay_specific, gate_step, weight_step
from conal_rl.core.linear_stack import LinearStack
from tests.helpers.tiers import first_quick


class Regression:
    """A supernet with a head per task, an optimiser for each level, and data made on demand.

    Args:
        targets: maps inputs `(task, batch, feature)` to targets `(task, batch, 1)`.
        same_readout: every task reads the encoder's output through the same fixed head, so two
            tasks with one encoder are one function.
    """

    def __init__(
        self,
        targets: Callable[[Tensor], Tensor],
        rule: Rule,
        tasks: int,
        features: int,
        lr: float = 0.02,
        same_readout: bool = False,
    ):
        width = 8
        self.targets, self.tasks, self.features = targets, tasks, features
        self.net = Supernet(
            [f"task-{i}" for i in range(tasks)],
            linear_chain(features, [width, width], layer_norm=True),
        )
        self.head = LinearStack(range(tasks), width, 1, activation=False)
        if same_readout:
            signs = torch.tensor([1.0, -1.0]).repeat(width // 2).view(width, 1)
            with torch.no_grad():
                self.head.weight.copy_(2 / width**0.5 * signs)
                self.head.bias.zero_()
        heads = [] if same_readout else list(self.head.parameters())
        self.weights = torch.optim.Adam([*self.net.weights(), *heads], lr=lr, fused=True)
        self.gates = torch.optim.Adam([self.net.gates], lr=0.05)
        self.noticing = ConflictNoticing(self.net.shared_layers(), rule)

    def losses(self, batch: int, noise: float, same_inputs: bool) -> Tensor:
        x = torch.randn(1 if same_inputs else self.tasks, batch, self.features)
        x = x.expand(self.tasks, -1, -1)
        y = self.targets(x) + noise * torch.randn(self.tasks, batch, 1)
        return ((self.head(self.net(x)) - y) ** 2).mean(dim=(1, 2))

    def search(
        self, steps: int, batch: int, noise: float, same_inputs: bool = False
    ) -> tuple[float, float]:
        """Mean branch point over the tasks, and the mean loss over the last tenth of the steps."""
        late = []
        for step in range(steps):
            validation = self.losses(batch, noise, same_inputs).sum()
            gate_step(validation, [self.net.gates], self.gates)
            with self.noticing.capture():
                losses = self.losses(batch, noise, same_inputs)
            weight_step(losses, self.weights, self.noticing)
            if step >= steps * 0.9:
                late.append(losses.detach().mean())
        points = derive(self.net.gates, self.net.tasks).branch_points()
        return sum(points) / len(points), float(torch.stack(late).mean())


def random_functions(count: int, features: int) -> Callable[[Tensor], Tensor]:
    """So many random two-layer functions, `(1 or count, batch, feature)` to `(count, batch, 1)`."""
    first = 1.5 * torch.randn(count, features, 16) / features**0.5
    bias = 0.5 * torch.randn(count, 1, 16)
    second = 2.1 * torch.randn(count, 16, 16) / 4
    last = torch.randn(count, 16, 1)

    def function(x: Tensor) -> Tensor:
        return ((x @ first + bias).tanh() @ second).tanh() @ last

    y = function(torch.randn(1, 4096, features))
    mean, scale = y.mean(dim=1, keepdim=True), y.std(dim=1, keepdim=True)
    return lambda x: (function(x) - mean) / scale


def opposite(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Six tasks that want the function and its negative in turn."""
    return lambda x: torch.tensor([1.0, -1.0]).repeat(3).view(6, 1, 1) * function(x)


# What the search finds. P = 3 here: point 1 is an encoder of one's own, point 3 the whole trunk.
# Ties go to point 1, so tasks that share have learnt to.


def noisy_regression(functions: int, rule: Rule, seed: int) -> Regression:
    """Eight tasks over so many functions; their trunk is too narrow for eight."""
    torch.manual_seed(seed)
    return Regression(random_functions(functions, 8), rule, tasks=8, features=8)


@pytest.mark.parametrize("seed", first_quick(range(4)))
@pytest.mark.slow
def test_equal_tasks_stay_on_the_trunk_and_others_leave_it(seed: int) -> None:
    """Equal tasks learn from eight times the noisy samples where they share."""
    points = {}
    for functions in (1, 8):
        problem = noisy_regression(functions, "consensus", seed)
        points[functions], loss = problem.search(240, batch=32, noise=1.0)
        assert loss < 1.5  # of which 1 is noise; a constant would reach 2
    assert points[1] > 2 and points[8] < 1.8


def test_any_pair_holds_the_trunk_of_many_equal_tasks_by_noise() -> None:
    """Why there are other rules: one of 28 pairs disagrees by chance in nearly every step."""
    problem = noisy_regression(1, "any_pair", seed=0)
    point, _ = problem.search(150, batch=32, noise=1.0)
    statistics = problem.noticing.statistics()
    assert statistics is not None
    assert (statistics.module_held["any_pair"] > 0.9).all()
    assert point < 1.5


@pytest.mark.parametrize("seed", first_quick(range(4)))
@pytest.mark.slow
def test_noticing_drives_tasks_in_conflict_off_the_trunk(seed: int) -> None:
    """Three tasks want y, three want -y, through the same read-out: they cannot share to the end.

    Without noticing some of them still share the first layer; held still by their conflicts, it
    serves them no more.
    """
    points: dict[Rule, float] = {}
    rules: tuple[Rule, ...] = ("none", "any_pair")
    for rule in rules:
        torch.manual_seed(seed)
        targets = opposite(random_functions(1, 4))
        problem = Regression(targets, rule, tasks=6, features=4, lr=0.01, same_readout=True)
        points[rule], loss = problem.search(150, batch=32, noise=0.1, same_inputs=True)
        assert loss < 0.5
        to_the_end = problem.net.gates.argmax(dim=1) == 2
        assert not (to_the_end[0::2].any() and to_the_end[1::2].any())
        statistics = problem.noticing.statistics()
        assert statistics is not None
        assert (statistics.module_held["any_pair"][1] > 0.9).all()
    assert points["any_pair"] < points["none"]
    assert points["any_pair"] < 1.9


# The two steps touch their own level only


def small_problem(
    tasks: int = 3,
) -> tuple[Supernet, LinearStack, torch.optim.Optimizer, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    net = Supernet([f"task-{i}" for i in range(tasks)], linear_chain(4, [5, 5], layer_norm=True))
    head = LinearStack(range(tasks), 5, 2, activation=False)
    weights = torch.optim.AdamW([*net.weights(), *head.parameters()], lr=0.1, weight_decay=0.1)
    gates = torch.optim.AdamW([net.gates], lr=0.1, weight_decay=0.1)
    return net, head, weights, gates, torch.randn(tasks, 6, 4)


def snapshot(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [t.clone() for p in parameters for t in (p.detach(), p.grad) if t is not None]


def leave_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_a_gate_step_does_not_touch_weights_or_gradients() -> None:
    net, head, _, gates, x = small_problem()
    others = [*net.weights(), *head.parameters()]
    leave_gradients(others)
    before, alpha = snapshot(others), net.gates.detach().clone()
    gate_step(head(net(x)).square().mean(), [net.gates], gates)
    assert equal(snapshot(others), before)
    assert (net.gates != alpha).all() and net.gates.grad is None


@pytest.mark.parametrize("rule", [None, "none", "any_pair"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_weight_step_does_not_touch_gates_or_gradients(tasks: int, rule: Rule | None) -> None:
    net, head, weights, _, x = small_problem(tasks)
    leave_gradients([net.gates])
    before = snapshot([net.gates])
    others = [*net.weights(), *head.parameters()]
    values = [p.detach().clone() for p in others]
    noticing = None
    if rule is None:
        losses = head(net(x)).square().mean(dim=(1, 2))
    else:
        noticing = ConflictNoticing(net.shared_layers(), rule)
        with noticing.capture():
            losses = head(net(x)).square().mean(dim=(1, 2))
    weight_step(losses, weights, noticing)
    assert equal(snapshot([net.gates]), before)
    assert all(p.grad is None for p in others)
    moved = {id(p) for p, value in zip(others, values) if (p != value).any()}
    held = {id(p) for p in net.trunk.parameters()} if noticing and noticing.layers else set()
    assert {id(p) for p in others} - held <= moved


def test_steps_follow_their_own_loss() -> None:
    net, head, _, _, x = small_problem()
    weights = torch.optim.SGD([*net.weights(), *head.parameters()], lr=0.5)
    gates = torch.optim.SGD([net.gates], lr=0.25)
    losses = head(net(x)).square().mean(dim=(1, 2))
    (slope,) = torch.autograd.grad(losses.sum(), [net.gates], retain_graph=True)
    expected = net.gates.detach() - 0.25 * slope
    gate_step(losses.sum(), [net.gates], gates)
    torch.testing.assert_close(net.gates.detach(), expected)
    losses = head(net(x)).square().mean(dim=(1, 2))
    slopes = torch.autograd.grad(losses.sum(), net.weights(), retain_graph=True)
    expected_weights = [w.detach() - 0.5 * g for w, g in zip(net.weights(), slopes)]
    weight_step(losses, weights)
    torch.testing.assert_close([w.detach() for w in net.weights()], expected_weights)


def test_a_held_module_stays_and_the_others_move() -> None:
    torch.manual_seed(0)
    network = TreeNetwork(Tree.shared("ab", 2), linear_chain(4, [5, 5]))
    head = LinearStack((0, 1), 5, 1, activation=False)
    with torch.no_grad():
        head.weight[1] = -head.weight[0]  # opposite gradients in all that is shared
    parameters = [*network.parameters(), *head.parameters()]
    before = [p.detach().clone() for p in parameters]
    noticing = ConflictNoticing(network.shared_layers())
    x = torch.randn(1, 6, 4).expand(2, -1, -1)
    with noticing.capture():
        losses = head(network(x)).sum(dim=(1, 2))
    weight_step(losses, torch.optim.Adam(parameters, lr=0.1), noticing)
    moved = [bool((p != value).any()) for p, value in zip(parameters, before)]
    assert moved == [False] * 4 + [True] * 2


def test_gradients_are_clipped_by_their_global_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for max_norm, scale in ((None, 1.0), (26.0, 1.0), (6.5, 0.5)):
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        parameters[0].grad = torch.tensor([3.0, 4.0])
        parameters[1].grad = torch.tensor([12.0])  # the norm of all three is 13
        apply_gradients(optimizer, max_norm)
        values = torch.cat([p.detach() for p in parameters])
        torch.testing.assert_close(values, -scale * torch.tensor([3.0, 4.0, 12.0]))
        assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize("space", [ConalSearch(), ConalProStage.first(3), LTBSearch(2)])
def test_only_purely_specific_modules_decay(space: Search) -> None:
    """With gradients of zero AdamW's step is the decay: a factor of 1 - rate * decay."""
    network = space.network(["a", "b", "c"], linear_chain(4, [8, 8, 8], layer_norm=True))
    assert isinstance(network, SearchNetwork)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam([p for n, p in network.named_parameters() if n != "gates"], lr=0.1)
    decay_specific(optimizer, network.specific_weights(), 0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = [name for name in before if name.startswith("specific.")]
    assert bool(decayed) != isinstance(space, LTBSearch)
    for name, parameter in network.named_parameters():
        factor = 0.95 if name in decayed else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
