"""Conflict noticing: per-task gradients, the rules, what reaches the parameters, the statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conal_rl.core import ConflictNoticing, Rule, Supernet, Tree, TreeNetwork, linear_chain
from conal_rl.core.conflict import RULES, ConflictStatistics, held_rows
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.module_stack import ModuleStack
from tests.helpers.conflict_problem import GROUPED, MIXED, Problem
from tests.helpers.reference import (
    Vector,
    cosine,
    flat,
    held_by_rule,
    margin_is_clear,
    module_slice,
    randomize,
    row_gradients,
)
from tests.helpers.strategies import trees

SEARCH_SPACES: list[Tree | int] = [MIXED, GROUPED, Tree.shared("abc", 2), 3]


# Per-task gradients out of one backward pass


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "norm"])
@pytest.mark.parametrize("tree", SEARCH_SPACES, ids=["mixed", "grouped", "shared", "supernet"])
def test_captured_gradients_are_those_of_one_pass_per_task(
    tree: Tree | int, kind: str, copies: int
) -> None:
    problem = Problem.make(tree, kind, copies)
    shared = problem.encoder.shared_layers()
    expected = row_gradients(problem.losses_in_loops(), shared)
    noticing = ConflictNoticing(shared)
    plain = problem.losses()
    with noticing.capture():
        losses = problem.losses()
    torch.testing.assert_close(losses, plain)
    losses.sum().backward()
    assert len(shared) >= 2
    for layer, rows in zip(shared, expected):
        for row, gradients in enumerate(rows):
            found = layer.row_gradients()
            assert len(found) == len(gradients) == (4 if kind == "norm" else 2)
            for own, gradient in zip(found, gradients.values()):
                torch.testing.assert_close(own[row], gradient)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("tree", [MIXED, 3], ids=["tree", "supernet"])
def test_captured_gradients_are_finite_differences(tree: Tree | int, copies: int) -> None:
    problem = Problem.make(tree, "norm", copies, seed=1)
    shared = problem.encoder.shared_layers()
    with ConflictNoticing(shared).capture():
        losses = problem.losses()
    losses.sum().backward()
    step = 1e-6
    for layer in shared:
        for row, module in enumerate(layer.index):
            task = row % len(losses)
            for parameter, gradients in zip(layer.parameters(), layer.row_gradients()):
                entry = int(torch.randint(gradients[row].numel(), ()))
                weights = parameter.data[module].view(-1)
                values = []
                for sign in (1, -1):
                    weights[entry] += sign * step
                    with torch.no_grad():
                        values.append(problem.losses_in_loops()[task])
                    weights[entry] -= sign * step
                slope = (values[0] - values[1]) / (2 * step)
                found = gradients[row].view(-1)[entry]
                torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


# The rules


def gram_and_same(gradients: Sequence[Sequence[Vector]], tree: Tree) -> tuple[Tensor, Tensor]:
    g = torch.tensor(gradients, dtype=torch.float64)
    same = [
        [[i != j and layer[i] == layer[j] for j in range(len(layer))] for i in range(len(layer))]
        for layer in tree.layers
    ]
    return g @ g.mT, torch.tensor(same)


@settings(max_examples=150, deadline=None)
@given(trees(), st.integers(1, 2), st.sampled_from(RULES), st.data())
def test_rules_are_their_statement_in_loops(
    tree: Tree, copies: int, rule: Rule, data: st.DataObject
) -> None:
    tree = tree.replicate(copies)
    # Small whole numbers: inner products are exact, and zeros and ties are common.
    vector = st.lists(st.integers(-2, 2).map(float), min_size=3, max_size=3)
    rows = st.lists(vector, min_size=tree.num_tasks, max_size=tree.num_tasks)
    gradients = data.draw(st.lists(rows, min_size=tree.depth, max_size=tree.depth))
    margin = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    assume(margin == 0 or margin_is_clear(gradients, tree.layers, margin))
    held = held_rows(*gram_and_same(gradients, tree), rule, margin)
    assert held.tolist() == held_by_rule(gradients, tree.layers, rule, margin)


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("any_pair", [[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
        ("conflicting_tasks", [[0, 0, 0], [1, 1, 0], [0, 0, 0]]),
        ("and_deeper", [[0, 0, 0], [1, 1, 1], [1, 1, 1]]),
        ("consensus", [[0, 0, 0], [1, 0, 0], [0, 0, 0]]),
        ("none", [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_rules_drop_the_expected_tasks(rule: Rule, expected: list[list[int]]) -> None:
    """In layer 2 tasks 1 and 2 conflict, and task 3 sides with task 2."""
    agree = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    gradients = [agree, [[-1.0, 1.0], [2.0, 1.0], [1.0, 1.0]], agree]
    gram, same = gram_and_same(gradients, Tree.shared("abc", 3))
    assert held_rows(gram, same, rule).int().tolist() == expected


def test_a_vanishing_gradient_conflicts_with_nothing() -> None:
    tree = Tree.shared("abc", 1)
    for others in ([[1.0], [1.0]], [[0.0], [0.0]], [[1.0], [0.0]]):
        gram, same = gram_and_same([[[0.0], *others]], tree)
        for rule in RULES:
            assert not held_rows(gram, same, rule).any()
    gram, same = gram_and_same([[[0.0], [1.0], [-1.0]]], tree)
    assert held_rows(gram, same, "conflicting_tasks").tolist() == [[False, True, True]]


def test_tasks_on_different_modules_do_not_conflict() -> None:
    gradients = [[[1.0], [-1.0]]] * 2
    gram, same = gram_and_same(gradients, Tree.from_labels("ab", ["xx", "xy"]))
    for rule in set(RULES) - {"none"}:
        held = held_rows(gram, same, rule)
        assert held.any(dim=1).tolist() == [True, False]


def test_a_conflict_is_a_cosine_below_the_margin() -> None:
    gradients = [[[1.0, 0.0], [-3.0, 4.0]]]  # cosine -0.6
    gram, same = gram_and_same(gradients, Tree.shared("ab", 1))
    for rule in set(RULES) - {"none"}:
        assert held_rows(gram, same, rule, 0.59).all()
        assert not held_rows(gram, same, rule, 0.61).any()


# What is left in the parameters' gradients


def check_backward(
    problem: Problem, rule: Rule, margin: float, inputs: Sequence[Tensor] | None = None
) -> Tensor:
    shared = problem.encoder.shared_layers()
    layers = [layer.index for layer in shared]
    losses = problem.losses_in_loops()
    rows = row_gradients(losses, shared)
    network = problem.network()
    plain = dict(
        zip(
            (name for name, _ in network.named_parameters()),
            torch.autograd.grad(sum(losses), list(network.parameters())),  # type: ignore[arg-type]
        )
    )
    vectors = [[flat(gradients) for gradients in layer] for layer in rows]
    held = held_by_rule(vectors, layers, rule, margin)

    noticing = ConflictNoticing(shared, rule, margin)
    with noticing.capture():
        captured = problem.losses()
    found = noticing.backward(captured, inputs)
    assert found.tolist() == held

    watched = {id(p) for layer in shared for p in layer.parameters()}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if id(parameter) not in watched:
            torch.testing.assert_close(parameter.grad, plain[name])
    for number, layer in enumerate(shared):
        grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        for module in range(layer.count):
            users = [r for r, used in enumerate(layers[number]) if used == module]
            kept = [rows[number][r] for r in users if not held[number][r]]
            for name, gradient in module_slice(layer, module, grads).items():
                total = sum((g[name] for g in kept), torch.zeros_like(gradient))
                torch.testing.assert_close(gradient, total)
    return found


@settings(max_examples=60, deadline=None)
@given(
    trees(max_tasks=5, max_depth=3, min_tasks=2),
    st.sampled_from(["plain", "norm", "conv"]),
    st.integers(1, 2),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 99),
)
def test_backward_on_trees_equals_the_reference(
    tree: Tree, kind: str, copies: int, rule: Rule, margin: float, seed: int
) -> None:
    problem = Problem.make(tree, kind, copies, seed)
    assume(problem.encoder.shared_layers())
    check_backward(problem, rule, margin)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5),
    st.sampled_from(["plain", "norm", "conv"]),
    st.integers(1, 2),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 99),
)
def test_backward_on_the_supernet_equals_the_reference(
    tasks: int, kind: str, copies: int, rule: Rule, margin: float, seed: int
) -> None:
    check_backward(Problem.make(tasks, kind, copies, seed, depth=2), rule, margin)


@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
def test_backward_drops_some_and_keeps_some(rule: Rule, kind: str) -> None:
    """So that the tests above are not about gradients that never conflict, or always do."""
    held = [check_backward(Problem.make(3, kind, seed=s, depth=2), rule, 0.0) for s in range(6)]
    assert 0 < torch.stack(held).double().mean() < 1


@pytest.mark.parametrize("given_inputs", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("tree", SEARCH_SPACES, ids=["mixed", "grouped", "shared", "supernet"])
def test_backward_on_a_shared_input_equals_the_reference(
    tree: Tree | int, kind: str, copies: int, given_inputs: bool
) -> None:
    problem = Problem.make(tree, kind, copies, seed=1)
    problem.x = problem.x[:1]
    inputs = list(problem.network().parameters()) if given_inputs else None
    for rule in RULES:
        check_backward(problem, rule, 0.0, inputs)
        problem.network().zero_grad()


def test_only_trunks_run_backwards_per_task_on_one_input() -> None:
    problem = Problem.make(3, "conv")
    problem.x = problem.x[:1].requires_grad_()  # or the hooks warn
    supernet = problem.encoder
    assert isinstance(supernet, Supernet)
    runs = {"trunk": 0, "specific": 0}

    def count(name: str, module: nn.Module) -> None:
        def ran(*_: object) -> None:
            runs[name] += 1

        module.register_full_backward_hook(ran)

    for name, layers in (("trunk", supernet.trunk), ("specific", supernet.specific)):
        for module in layers.modules():
            if isinstance(module, nn.Conv2d):
                count(name, module)
    noticing = ConflictNoticing(supernet.shared_layers())
    with noticing.capture():
        losses = problem.losses()
    noticing.backward(losses)
    # Layers times tasks; of their own modules, once for each path that is on them.
    assert runs == {"trunk": 3 * 3, "specific": (1 + 2 + 3) * 3}


@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("tree", [MIXED, 3], ids=["tree", "supernet"])
def test_rule_none_is_plain_backpropagation(tree: Tree | int, kind: str) -> None:
    problem = Problem.make(tree, kind, 2)
    noticing = ConflictNoticing(problem.encoder.shared_layers(), "none")
    with noticing.capture():
        losses = problem.losses()
    assert not noticing.backward(losses).any()
    found = [p.grad for p in problem.network().parameters()]
    problem.network().zero_grad()
    problem.losses().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in problem.network().parameters()])


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_only_the_inputs_receive_gradients(kind: str) -> None:
    problem = Problem.make(3, kind)
    assert isinstance(problem.encoder, Supernet)
    noticing = ConflictNoticing(problem.encoder.shared_layers())
    with noticing.capture():
        losses = problem.losses()
    weights = problem.encoder.weights()
    noticing.backward(losses, inputs=weights)
    assert all(weight.grad is not None for weight in weights)
    assert problem.encoder.gates.grad is None
    assert all(p.grad is None for p in problem.head.parameters())


def test_capturing_ends_with_the_context_and_frees_gradients() -> None:
    problem = Problem.make(MIXED, "norm")
    shared = problem.encoder.shared_layers()
    noticing = ConflictNoticing(shared)
    with noticing.capture():
        losses = problem.losses()
    problem.losses()
    noticing.backward(losses)
    assert all(layer.captured is None for layer in shared)
    with pytest.raises(ZeroDivisionError), noticing.capture():
        raise ZeroDivisionError
    assert not any(layer.captures for layer in shared)


def test_without_shared_layers_nothing_is_dropped() -> None:
    encoders: list[Tree | int] = [
        Tree.independent("abc", 2),
        Tree.shared(["only"], 2).replicate(2),
        1,
    ]
    for encoder in encoders:
        problem = Problem.make(encoder, "norm")
        assert problem.encoder.shared_layers() == []
        noticing = ConflictNoticing([])
        with noticing.capture():
            losses = problem.losses()
        assert noticing.backward(losses).numel() == 0
        found = [p.grad for p in problem.network().parameters()]
        problem.network().zero_grad()
        problem.losses().sum().backward()
        torch.testing.assert_close(found, [p.grad for p in problem.network().parameters()])
        assert noticing.statistics() is None


# Over several steps: gradients chosen by hand


class Given:
    """Two watched layers of one module each, whose per-task gradients are the given vectors."""

    def __init__(self, rule: Rule = "any_pair", tasks: int = 2, **options: float | int):
        self.layers = [ModuleStack([0] * tasks, Slope), ModuleStack([0] * tasks, Slope)]
        self.noticing = ConflictNoticing(self.layers, rule, **options)  # type: ignore[arg-type]

    def step(self, *gradients: list[list[float]]) -> list[list[bool]]:
        """One backward pass with these gradients, [layer][task]."""
        x = torch.ones(len(gradients[0]), 1, 1)
        losses = torch.zeros(len(x))
        for layer, rows in zip(self.layers, gradients):
            losses = losses + (layer(x).flatten(1) * torch.tensor(rows)).sum(dim=1)
        return self.noticing.backward(losses).tolist()

    def statistics(self) -> ConflictStatistics:
        statistics = self.noticing.statistics()
        assert statistics is not None
        return statistics


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.slope


CALM = [[1.0, 0.0], [1.0, 0.0]]


def test_smoothing_decides_on_the_mean_of_inner_products() -> None:
    # Inner products 4, -6, -1. With decay 0.5 the running mean is 4, -1, -1; with 0.9 it is
    # 4, 3, 2.6; without smoothing only the current step decides.
    steps = [
        [[2.0, 0.0], [2.0, 0.0]],
        [[2.0, 1.0], [-3.0, 0.0]],
        [[1.0, 0.0], [-1.0, 5.0]],
    ]
    for smoothing, expected in (
        (0.0, [False, True, True]),
        (0.5, [False, True, True]),
        (0.9, [False, False, False]),
    ):
        given_ = Given(smoothing=smoothing, study_every=1)
        held = [given_.step(step, CALM) for step in steps]
        assert held == [[[now, now], [False, False]] for now in expected]
    # The cosine's norms are smoothed too: with decay 0.5, after two steps, the mean of the inner
    # products is -1, of the squared norms (4 + 5) / 2 and (4 + 9) / 2.
    cosine_now = -1 / (4.5 * 6.5) ** 0.5
    for margin, expected_now in ((0.18, True), (0.19, False)):
        given_ = Given(smoothing=0.5, margin=margin)
        given_.step(steps[0], CALM)
        assert -0.19 < cosine_now < -0.18
        assert given_.step(steps[1], CALM)[0][0] is expected_now


def test_smoothing_remembers_tasks_that_skip_a_step() -> None:
    """As under sampled gates: the third task opposes two, who do not run the module this time."""
    together = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    unopposed = [[0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]
    for smoothing, remembers in ((0.0, False), (0.9, True)):
        given_ = Given("consensus", tasks=3, smoothing=smoothing)
        assert given_.step(together, together)[0] == [False, False, True]
        assert given_.step(unopposed, unopposed)[0] == [False, False, remembers]


def test_smoothing_recovers_from_a_conflict_that_is_over() -> None:
    given_ = Given(smoothing=0.5)
    assert given_.step([[1.0, 0.0], [-8.0, 0.0]], CALM)[0] == [True, True]
    held = [given_.step([[1.0, 0.0], [1.0, 0.0]], CALM)[0][0] for _ in range(4)]
    assert held == [True, True, True, False]  # -3.5, -1.25, -0.125, 0.4375


def test_statistics_are_shares_of_steps() -> None:
    tasks = [[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [2.0, 1.0], [-1.0, 1.0]]]
    given_ = Given("conflicting_tasks", tasks=3, study_every=1)
    assert given_.noticing.statistics() is None
    given_.step(tasks[0], tasks[0])
    given_.step(tasks[0], tasks[1])  # tasks 1-3: cosine -1/sqrt 2; 2-3: -1/sqrt 10; 1-2: 2/sqrt 5
    given_.step(tasks[0], tasks[0])
    given_.step(tasks[0], [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # 1-2: -1; task 3 vanishes
    found = given_.statistics()
    assert found.steps == 4
    assert found.held["none"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert found.held["any_pair"].tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]
    assert found.held["and_deeper"].tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]
    assert found.held["conflicting_tasks"].tolist() == [[0, 0, 0], [0.5, 0.5, 0.25]]
    # Step 2: the others' mean is (0.5, 1), (0, 0.5), (1.5, 0.5): only task 3 opposes it.
    assert found.held["consensus"].tolist() == [[0, 0, 0], [0.25, 0.25, 0.25]]
    for rule in set(RULES) - {"none"}:
        assert found.module_held[rule].tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]
    # A pair is counted if both have a gradient; in the last step task 3 lacks one.
    assert found.counted[1].tolist() == [[0, 4, 3], [4, 0, 3], [3, 3, 0]]
    third = 1 / 3
    negative = torch.tensor([[0, 0.25, third], [0.25, 0, third], [third, third, 0]])
    torch.testing.assert_close(found.negative[1], negative)
    torch.testing.assert_close(found.conflicting, found.negative)  # the margin is 0
    assert not found.negative[0].any()
    torch.testing.assert_close(found.cosine[0], 1 - torch.eye(3))
    upper = [(1 + 0.8**0.5) / 4, (2 - 0.5**0.5) / 3, (2 - 0.1**0.5) / 3]
    torch.testing.assert_close(
        found.cosine[1][tuple(torch.triu_indices(3, 3, 1))], torch.tensor(upper)
    )
    torch.testing.assert_close(found.cosine[1], found.cosine[1].T)


def test_statistics_say_if_any_task_of_a_module_was_held() -> None:
    # Consensus drops only task 3, from the module that tasks 1 and 2 run too.
    given_ = Given("consensus", tasks=3, study_every=1)
    given_.step([[1.0, 0.0], [2.0, 1.0], [-1.0, 1.0]], [[1.0, 0.0]] * 3)
    found = given_.statistics()
    assert found.held["consensus"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert found.module_held["consensus"].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_statistics_study_every_few_steps() -> None:
    given_ = Given(study_every=3)
    conflict = [[1.0, 0.0], [-1.0, 0.0]]
    for gradients in (CALM, conflict, conflict, conflict, conflict):  # steps 1 and 4 are studied
        given_.step(CALM, gradients)
    found = given_.statistics()
    assert found.held["any_pair"].tolist() == [[0, 0], [0.5, 0.5]]
    assert found.negative[1].tolist() == [[0, 0.5], [0.5, 0]]


def test_restored_noticing_equals_the_uninterrupted_one() -> None:
    torch.manual_seed(0)
    steps = torch.randn(8, 2, 3, 2).tolist()
    one = Given("conflicting_tasks", tasks=3, smoothing=0.8, study_every=3)
    held = [one.step(*step) for step in steps]
    other = Given("conflicting_tasks", tasks=3, smoothing=0.8, study_every=3)
    for step in steps[:5]:
        other.step(*step)
    state = other.noticing.state()
    other = Given("conflicting_tasks", tasks=3, smoothing=0.8, study_every=3)
    other.noticing.restore(*state)
    assert [other.step(*step) for step in steps[5:]] == held[5:]
    torch.testing.assert_close(vars(other.statistics()), vars(one.statistics()))


@settings(max_examples=20, deadline=None)
@given(trees(max_tasks=4, max_depth=3, min_tasks=2), st.integers(0, 99), st.data())
def test_statistics_on_trees_equal_the_reference(
    tree: Tree, seed: int, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["norm", "conv"]))
    copies = data.draw(st.integers(1, 2))
    problem = Problem.make(tree, kind, copies, seed)
    shared = problem.encoder.shared_layers()
    assume(shared)
    layers = [layer.index for layer in shared]
    noticing = ConflictNoticing(shared, study_every=1)
    steps = []
    for _ in range(2):
        rows = row_gradients(problem.losses_in_loops(), shared)
        steps.append([[flat(gradients) for gradients in layer] for layer in rows])
        with noticing.capture():
            losses = problem.losses()
        noticing.backward(losses)
        randomize(problem.network())
    found = noticing.statistics()
    assert found is not None
    for number, layer in enumerate(layers):
        for i, module in enumerate(layer):
            users = [j for j in range(len(layer)) if layer[j] == module]
            for j in users:
                pair = [
                    cosine(vectors[number][i], vectors[number][j])
                    for vectors in steps
                    if i != j and any(vectors[number][i]) and any(vectors[number][j])
                ]
                seen = max(len(pair), 1)
                assert found.counted[number, i, j] == len(pair)
                assert found.cosine[number, i, j] == pytest.approx(sum(pair) / seen)
                assert found.negative[number, i, j] == sum(c < 0 for c in pair) / seen
            for rule in RULES:
                held = [held_by_rule(vectors, layers, rule)[number] for vectors in steps]
                assert found.held[rule][number, i] == sum(step[i] for step in held) / 2
                share = sum(any(step[j] for j in users) for step in held) / 2
                assert found.module_held[rule][number, i] == share


# Errors


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^rule: got 'some_pair', .*any_pair"):
        ConflictNoticing([], "some_pair")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^rule: got 'pair'"):
        held_rows(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).bool(), "pair")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"margin": -0.1}, {"margin": 1.0}, {"smoothing": 1.0}, {"smoothing": -0.1}]
)
def test_margin_and_smoothing_out_of_range_are_refused(options: dict[str, float]) -> None:
    ((field, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{field}: got {value}, "):
        ConflictNoticing([], **options)  # type: ignore[arg-type]


def test_losses_must_be_captured_once() -> None:
    network = TreeNetwork(Tree.shared("ab", 2), linear_chain(3, [4, 4]))
    noticing = ConflictNoticing(network.shared_layers())
    x = torch.randn(2, 5, 3)
    with pytest.raises(RuntimeError, match=r"^losses: "):
        noticing.backward(network(x).sum(dim=(1, 2)))
    with noticing.capture(), pytest.raises(RuntimeError, match=r"^capture: "):
        network(x)
        network(x)
    with noticing.capture():  # what was left over does no harm
        losses = network(x).sum(dim=(1, 2))
    noticing.backward(losses)


@pytest.mark.parametrize("rule", ["any_pair", "conflicting_tasks", "and_deeper", "consensus"])
@pytest.mark.parametrize("norm", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_opposite_gradients_of_any_size_conflict(rule: Rule, norm: float) -> None:
    """In single precision, which holds their squares but no products of these."""
    gram = norm**2 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    same = ~torch.eye(2, dtype=torch.bool)[None]
    assert held_rows(gram, same, rule).all()
    assert not held_rows(gram.abs(), same, rule).any()


def test_shares_of_a_layer_are_over_the_tasks_that_share_it() -> None:
    """Two of ten tasks disagree on a module; the others run modules of their own."""
    torch.manual_seed(0)
    tree = Tree.from_branch_points([2, 2, *[1] * 8], 1)
    network = TreeNetwork(tree, linear_chain(3, [4]))
    noticing = ConflictNoticing(network.shared_layers())
    signs = torch.tensor([1.0, -1.0, *[1.0] * 8])
    for _ in range(2):
        with noticing.capture():
            losses = signs * network(torch.ones(10, 5, 3)).sum(dim=(1, 2))
        noticing.backward(losses)
    statistics = noticing.statistics()
    assert statistics is not None
    assert statistics.of_layers(statistics.module_held["any_pair"]).tolist() == [1.0]
    assert statistics.of_layers(statistics.module_held["none"]).tolist() == [0.0]


def test_an_overflow_forgets_nothing() -> None:
    layer = LinearStack((0, 0), 1, 1)
    noticing = ConflictNoticing([layer], smoothing=0.9)
    opposed = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    noticing._notice(opposed.clone())
    noticing._notice(torch.full((1, 2, 2), torch.inf))
    assert noticing._notice(torch.eye(2).unsqueeze(0)).all()  # still held by what was
    assert noticing._gram is not None and noticing._gram[0, 0, 1] < -0.5
