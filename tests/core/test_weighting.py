"""Loss weights and aggregations: against TorchJD's own on Jacobians made with a pass per task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation
from torchjd.autojac import backward, jac_to_grad

from conal_rl.core import ConflictNoticing, Rule, Tree, TreeNetwork, linear_chain
from conal_rl.core import weighting as weighting_module
from conal_rl.core.bilevel import weight_step
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.weighting import (
    AGGREGATIONS,
    Aggregation,
    ConflictNoticingAggregator,
    ConflictNoticingWeighting,
    loss_weights,
    segments,
)
from conal_rl.errors import ConalError, ExtraError
from conal_rl.literals import AggregationName
from tests.helpers.conflict_problem import GROUPED, MIXED, Problem
from tests.helpers.reference import flat, module_slice, row_gradients
from tests.helpers.refusals import refused

# TorchJD's aggregator for so many tasks, and whether it is scaled by their number.
TORCHJD: dict[AggregationName, tuple[Callable[[int], Any], bool]] = {
    "pcgrad": (lambda _: aggregation.PCGrad(), False),
    "cagrad": (lambda _: aggregation.CAGrad(c=0.5), True),
    "gradvac": (lambda _: aggregation.GradVac(), False),
    "mgda": (lambda _: aggregation.MGDA(), True),
    "imtl_g": (lambda _: aggregation.IMTLG(), True),
    "nash_mtl": (lambda tasks: aggregation.NashMTL(n_tasks=tasks), False),
    "aligned_mtl": (lambda _: aggregation.AlignedMTL(), True),
    "upgrad": (lambda _: aggregation.UPGrad(), True),
}


def skip_without_solver(name: str) -> None:
    if name == "nash_mtl":
        pytest.importorskip("ecos", reason="ecos has no build for Python 3.13")


def test_every_aggregation_is_compared() -> None:
    assert {*TORCHJD, "graddrop"} == set(AGGREGATIONS)


def test_segments_are_what_the_same_tasks_share() -> None:
    # Layer 1: {a, b, e} and {c, d}; layer 2: {a, b}, {c, d}, {e}; in layer 3 only {c, d} share.
    network = TreeNetwork(Tree.from_labels("abcde", ["aaccA", "aaccB", "xyccz"]), chain(3))
    assert segments(network.shared_layers()) == {(0, 1): [0, 1], (2, 3): [0, 1, 2]}
    twins = TreeNetwork(Tree.shared("ab", 2).replicate(2), chain(2))
    assert segments(twins.shared_layers()) == {(0, 1): [0, 1], (2, 3): [0, 1]}
    assert segments(TreeNetwork(Tree.independent("ab", 2), chain(2)).shared_layers()) == {}


def chain(depth: int) -> Any:
    return linear_chain(3, [4] * depth)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("tree", [MIXED, GROUPED], ids=["mixed", "grouped"])
@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.slow
def test_segments_are_aggregated_as_torchjd_does(
    name: AggregationName, tree: Tree, kind: str
) -> None:
    skip_without_solver(name)
    problem = Problem.make(tree, kind, copies=2)
    shared = problem.encoder.shared_layers()
    rows = row_gradients(problem.losses_in_loops(), shared)
    plain = gradients_of(problem)
    aggregate = Aggregation(shared, name)
    with aggregate.capture():
        losses = problem.losses()
    torch.manual_seed(0)
    aggregate.backward(losses)

    torch.manual_seed(0)  # some methods shuffle tasks
    expected: dict[tuple[int, int], dict[str, Tensor]] = {}
    for users, layers in segments(shared).items():
        make, scaled = TORCHJD[name]
        vectors = [[value for n in layers for value in flat(rows[n][r])] for r in users]
        jacobian = torch.tensor(vectors, dtype=torch.float64)
        vector = make(len(users))(jacobian) * (len(users) if scaled else 1)
        for n in layers:
            own = {}
            for key, gradient in rows[n][users[0]].items():
                part, vector = vector.split([gradient.numel(), vector.numel() - gradient.numel()])
                own[key] = part.view_as(gradient)
            expected[n, shared[n].index[users[0]]] = own
        assert vector.numel() == 0
    assert len({n for n, _ in expected}) >= 2
    check_gradients(problem, expected, plain)


def gradients_of(problem: Problem) -> dict[str, Tensor]:
    named = dict(problem.network().named_parameters())
    found = torch.autograd.grad(problem.losses().sum(), list(named.values()))
    return dict(zip(named, found))


def check_gradients(
    problem: Problem, expected: dict[tuple[int, int], dict[str, Tensor]], plain: dict[str, Tensor]
) -> None:
    """Shared modules have the expected gradients, all other parameters those of the sum."""
    shared = problem.encoder.shared_layers()
    watched = {id(p) for layer in shared for p in layer.parameters()}
    for name, parameter in problem.network().named_parameters():
        assert parameter.grad is not None, name
        if id(parameter) not in watched:
            torch.testing.assert_close(parameter.grad, plain[name])
    prefixes = {id(p): name for name, p in problem.network().named_parameters()}
    for n, layer in enumerate(shared):
        found = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
        whole = {key: plain[prefixes[id(p)]] for key, p in layer.named_parameters()}
        for module in range(layer.count):
            wanted = expected.get((n, module), module_slice(layer, module, whole))
            for key, gradient in module_slice(layer, module, found).items():
                # Methods that solve a problem stop at some tolerance.
                torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_graddrop_keeps_one_sign_of_every_coordinate(kind: str) -> None:
    problem = Problem.make(MIXED, kind)
    shared = problem.encoder.shared_layers()
    rows = row_gradients(problem.losses_in_loops(), shared)
    plain = gradients_of(problem)
    draws: list[dict[tuple[int, int], dict[str, Tensor]]] = []
    for seed in range(40):
        aggregate = Aggregation(shared, "graddrop")
        with aggregate.capture():
            losses = problem.losses()
        torch.manual_seed(seed)
        problem.network().zero_grad()
        aggregate.backward(losses)
        draws.append({})
        for n, layer in enumerate(shared):
            found = {k: p.grad.clone() for k, p in layer.named_parameters() if p.grad is not None}
            for module in range(layer.count):
                draws[-1][n, module] = module_slice(layer, module, found)
        check_gradients(problem, draws[-1], plain)
    for n, layer in enumerate(shared):
        for module in range(layer.count):
            users = [r for r, used in enumerate(layer.index) if used == module]
            for key in draws[0][n, module]:
                own = torch.stack([rows[n][r][key] for r in users])
                up, down = own.clamp(min=0).sum(0), own.clamp(max=0).sum(0)
                kept = torch.stack([draw[n, module][key] for draw in draws])
                is_up, is_down = (kept - up).abs() < 1e-9, (kept - down).abs() < 1e-9
                assert (is_up | is_down).all()
                # The share of draws that keep the positive ones is their share of the whole.
                purity = up / (up - down).clamp(min=1e-12)
                torch.testing.assert_close(
                    is_up.double().mean(0)[up - down > 0], purity[up - down > 0], rtol=0, atol=0.35
                )


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", sorted({*AGGREGATIONS} - {"nash_mtl", "cagrad"}))
def test_tasks_that_agree_make_their_sum(name: AggregationName) -> None:
    network = TreeNetwork(Tree.shared("abc", 2), linear_chain(3, [4, 4])).double()
    aggregate = Aggregation(network.shared_layers(), name)
    x = torch.randn(1, 5, 3, dtype=torch.float64).expand(3, 5, 3)
    with aggregate.capture():
        losses = network(x).square().sum(dim=(1, 2))
    aggregate.backward(losses)
    found = [p.grad for p in network.parameters()]
    network.zero_grad()
    network(x).square().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in network.parameters()], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, float("nan")])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_vanishing_gradients_and_nan_pass_through(name: AggregationName, scale: float) -> None:
    skip_without_solver(name)
    torch.manual_seed(0)
    network = TreeNetwork(Tree.shared("ab", 1), linear_chain(3, [4]))
    aggregate = Aggregation(network.shared_layers(), name)
    with aggregate.capture():
        losses = network(torch.ones(2, 5, 3)).sum(dim=(1, 2)) * scale
    aggregate.backward(losses)
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isnan().any() if scale else not parameter.grad.any()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", sorted({*AGGREGATIONS} - {"nash_mtl", "gradvac"}))
def test_a_task_without_a_label_leaves_the_others_as_they_are(name: AggregationName) -> None:
    skip_without_solver(name)
    torch.manual_seed(0)
    network = TreeNetwork(Tree.shared("abc", 2), linear_chain(3, [16, 16])).double()
    others = TreeNetwork(Tree.shared("ab", 2), linear_chain(3, [16, 16])).double()
    others.load_state_dict(network.state_dict())
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    found = []
    for encoder, tasks, labelled in ((network, 3, [1.0, 1.0, 0.0]), (others, 2, [1.0, 1.0])):
        aggregate = Aggregation(encoder.shared_layers(), name)
        with aggregate.capture():
            losses = encoder(x[:tasks]).square().sum(dim=(1, 2)) * torch.tensor(labelled)
        torch.manual_seed(1)
        aggregate.backward(losses)
        found.append([parameter.grad for parameter in encoder.parameters()])
    assert any(grad is not None and grad.any() for grad in found[1])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", sorted({*AGGREGATIONS} - {"nash_mtl"}))
def test_gradients_of_any_size_are_aggregated_alike(name: AggregationName, scale: float) -> None:
    """TorchJD's own weights are 0, or the mean, where a Jacobian's norm is below 0.01."""
    problem = Problem.make(MIXED, "norm")
    found = []
    for factor in (1.0, scale):
        aggregate = Aggregation(problem.encoder.shared_layers(), name)
        with aggregate.capture():
            losses = problem.losses() * factor
        torch.manual_seed(0)
        aggregate.backward(losses)
        grads = [p.grad for p in problem.encoder.parameters()]
        found.append([grad / factor for grad in grads if grad is not None])
        problem.network().zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)


# Loss weights


@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("rule", ["none", "any_pair"])
def test_weighted_losses_reach_every_gradient(rule: Rule, kind: str) -> None:
    problem = Problem.make(3, kind)
    parameters = list(problem.network().parameters())
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    before = [p.detach().clone() for p in parameters]
    shares = torch.tensor([0.2, 3.0, 0.5], dtype=torch.float64)
    plain = problem.losses()
    noticing = ConflictNoticing(problem.encoder.shared_layers(), rule, margin=0.999)
    expected = torch.autograd.grad((shares * plain).sum(), parameters)
    with noticing.capture():
        losses = problem.losses()
    weight_step(losses, optimizer, noticing, combine=lambda own: (shares * own).sum())
    for parameter, old, gradient in zip(parameters, before, expected):
        torch.testing.assert_close(parameter.detach(), old - gradient)


def test_random_weights_are_a_softmax_drawn_each_time() -> None:
    combine = loss_weights("random", 3)
    torch.manual_seed(0)
    found = [combine(torch.eye(3)[0]) for _ in range(2)]
    torch.manual_seed(0)
    expected = [torch.randn(3).softmax(0)[0] for _ in range(2)]
    torch.testing.assert_close(found, expected)
    assert loss_weights("equal", 3)(torch.tensor([1.0, 2.0, 4.0])) == 7


def test_uncertainty_weights_settle_at_their_optimum() -> None:
    # exp(-s) L / 2 + s / 2 is least at s = log L, where each task's share is 1 / (2 L).
    combine = loss_weights("uncertainty", 2)
    losses = torch.tensor([0.5, 4.0])
    optimizer = torch.optim.Adam(combine.parameters(), lr=0.05)
    for _ in range(500):
        weight_step(losses.clone().requires_grad_(), optimizer, combine=combine)
    (log_variance,) = combine.parameters()
    torch.testing.assert_close(log_variance.detach(), losses.log(), atol=1e-3, rtol=0)


# TorchJD users


@pytest.mark.parametrize("rule", ["any_pair", "conflicting_tasks", "consensus", "none"])
def test_the_aggregator_equals_conflict_noticing(rule: Rule) -> None:
    dropped = 0
    for seed in range(8):
        torch.manual_seed(seed)
        network = TreeNetwork(Tree.shared("abc", 1), linear_chain(3, [4]))
        x, goal = torch.randn(3, 5, 3), torch.randn(3, 5, 4)
        noticing = ConflictNoticing(network.shared_layers(), rule, margin=0.1)
        with noticing.capture():
            losses = (network(x) - goal).square().mean(dim=(1, 2))
        held = noticing.backward(losses)
        dropped += int(held.sum())
        expected = [p.grad for p in network.parameters()]
        network.zero_grad()
        losses = (network(x) - goal).square().mean(dim=(1, 2))
        backward(list(losses), parallel_chunk_size=1)
        jac_to_grad(network.parameters(), ConflictNoticingAggregator(rule, margin=0.1))
        torch.testing.assert_close([p.grad for p in network.parameters()], expected)
    assert (dropped > 0) == (rule != "none")


def test_rules_without_a_meaning_for_one_jacobian_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^rule: got 'and_deeper'"):
        ConflictNoticingAggregator("and_deeper")
    with pytest.raises(ValueError, match=r"^rule: got 'sometimes'"):
        ConflictNoticingAggregator("sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [-0.5, 1.0, 2.0, float("nan")])
def test_a_margin_out_of_its_range_is_refused(margin: float) -> None:
    for make in (
        lambda: ConflictNoticing([], margin=margin),
        lambda: ConflictNoticingAggregator("any_pair", margin),
        lambda: ConflictNoticingWeighting("any_pair", margin),
    ):
        with refused(ValueError, f"margin: got {margin}"):
            make()


def test_the_aggregators_repr_names_its_arguments() -> None:
    made = ConflictNoticingAggregator("consensus", 0.5)
    assert repr(made) == "ConflictNoticingAggregator(rule='consensus', margin=0.5)"
    expected = "ConflictNoticingWeighting(rule='consensus', margin=0.5)"
    assert repr(made.gramian_weighting) == expected


# Errors


@pytest.mark.parametrize(
    ("name", "solver"), [("cagrad", "clarabel"), ("nash_mtl", "ecos"), ("upgrad", "quadprog")]
)
def test_a_missing_solver_is_named(
    name: AggregationName, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighting_module, "find_spec", lambda package: None)
    with pytest.raises(ExtraError, match=rf"{name} needs .*{solver}.*\.\[aggregation\]") as e:
        Aggregation([], name)
    assert isinstance(e.value, ImportError) and isinstance(e.value, ConalError)
    Aggregation([], "pcgrad")  # needs none


def test_losses_must_be_captured() -> None:
    layer = LinearStack([0, 0], 3, 4)
    with pytest.raises(RuntimeError, match=r"^losses: "):
        Aggregation([layer], "mgda").backward(layer(torch.ones(2, 1, 3)).sum(dim=(1, 2)))
    assert isinstance(layer, nn.Module)
