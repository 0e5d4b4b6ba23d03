"""Supernet against a double loop over tasks and branch points, and against what it derives."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conal_rl.core import Supernet, Tree, derive, linear_chain, module_chain
from conal_rl.core.tree_network import parameter_count
from tests.helpers.reference import (
    IN,
    make_chain,
    make_input,
    randomize,
    supernet_outputs,
    tree_outputs,
)

KINDS = ["plain", "norm", "conv"]


def make_supernet(kind: str, tasks: int, depth: int, replicas: int = 1, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    names = [f"task-{i}" for i in range(tasks)]
    supernet = Supernet(names, make_chain(kind, depth), replicas)
    randomize(supernet)
    return supernet


shapes = {
    "kind": st.sampled_from(KINDS),
    "tasks": st.integers(1, 4),
    "depth": st.integers(1, 4),
    "replicas": st.integers(1, 2),
    "seed": st.integers(0, 99),
}


@settings(max_examples=40, deadline=None)
@given(**shapes, batch=st.integers(1, 3), one_input=st.booleans())
def test_output_is_the_mixture_over_branch_points(
    kind: str, tasks: int, depth: int, replicas: int, seed: int, batch: int, one_input: bool
) -> None:
    supernet = make_supernet(kind, tasks, depth, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * tasks, batch)
    torch.testing.assert_close(supernet(x), torch.stack(supernet_outputs(supernet, x)))


@settings(max_examples=15, deadline=None)
@given(**shapes, one_input=st.booleans())
def test_gradients_equal_those_of_the_reference(
    kind: str, tasks: int, depth: int, replicas: int, seed: int, one_input: bool
) -> None:
    supernet = make_supernet(kind, tasks, depth, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * tasks, 2)
    weights = torch.randn_like(supernet(x))
    parameters = list(supernet.parameters())
    found = torch.autograd.grad((supernet(x) * weights).sum(), parameters)
    outputs = torch.stack(supernet_outputs(supernet, x))
    torch.testing.assert_close(found, torch.autograd.grad((outputs * weights).sum(), parameters))


def choose(supernet: Supernet, points: list[int]) -> None:
    with torch.no_grad():
        supernet.gates.zero_()
        supernet.gates[range(len(points)), [p - 1 for p in points]] = 1000.0


@settings(max_examples=40, deadline=None)
@given(**shapes, one_input=st.booleans(), data=st.data())
def test_one_hot_gates_equal_the_derived_network(
    kind: str,
    tasks: int,
    depth: int,
    replicas: int,
    seed: int,
    one_input: bool,
    data: st.DataObject,
) -> None:
    supernet = make_supernet(kind, tasks, depth, replicas, seed)
    points = data.draw(st.lists(st.integers(1, depth + 1), min_size=tasks, max_size=tasks))
    choose(supernet, points)
    tree = Tree.from_branch_points(points, depth)
    assert derive(supernet.gates, supernet.tasks) == tree
    network = supernet.derive()
    assert network.tree == (tree.replicate(2) if replicas == 2 else tree)
    x = make_input(kind, 1 if one_input else replicas * tasks, 2)
    expected = supernet(x)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(torch.stack(tree_outputs(network, x)), expected)


def test_batch_norm_sees_one_path_at_a_time() -> None:
    """In training, with the statistics of its batch, as the derived network has them."""
    torch.manual_seed(0)
    sizes = [(IN, 4), (4, 4), (4, 4)]
    chain = module_chain(
        [partial(lambda i, o: nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o)), *s) for s in sizes]
    )
    supernet = Supernet("abcd", chain)
    randomize(supernet)
    choose(supernet, [1, 2, 3, 4])
    x = make_input("plain", 1, 6)
    torch.testing.assert_close(supernet(x), supernet.derive()(x))


def test_a_derived_network_has_own_weights_of_the_same_dtype() -> None:
    supernet = make_supernet("norm", 3, 2)
    network = supernet.derive()
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    before = [p.clone() for p in network.parameters()]
    with torch.no_grad():
        for weight in supernet.weights():
            weight.zero_()
    assert all(map(torch.equal, before, network.parameters()))


def test_the_supernet_has_a_trunk_and_modules_of_each_task() -> None:
    supernet = Supernet("abc", linear_chain(7, [5, 4], layer_norm=True), replicas=2)
    encoder = (7 * 5 + 3 * 5) + (5 * 4 + 3 * 4)
    assert sum(p.numel() for p in supernet.weights()) == 2 * (1 + 3) * encoder
    assert parameter_count(supernet) == 2 * (1 + 3) * encoder + 3 * 3
    assert all(weight is not supernet.gates for weight in supernet.weights())
    assert torch.equal(supernet.gates, torch.ones(3, 3))
    torch.testing.assert_close(supernet.gate_weights(), torch.full((3, 3), 1 / 3))


# Gumbel-softmax gates


def tempered_softmax(gates: Tensor, temperature: float, seed: int) -> Tensor:
    torch.manual_seed(seed)
    gumbel = -torch.empty_like(gates).exponential_().log()
    return ((gates + gumbel) / temperature).softmax(dim=1)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gumbel_gates_are_one_hot_with_the_soft_gradient(temperature: float) -> None:
    supernet = make_supernet("plain", 4, 3)
    supernet.gumbel_temperature = temperature
    x, weights = make_input("plain", 4, 2), None
    paths = supernet.paths(x).detach()
    for seed in range(5):
        torch.manual_seed(seed)
        output = supernet(x)
        soft = tempered_softmax(supernet.gates, temperature, seed)
        chosen = soft.argmax(dim=1)
        torch.testing.assert_close(output, paths[range(4), chosen])
        weights = torch.randn_like(output)
        (found,) = torch.autograd.grad((output * weights).sum(), supernet.gates)
        mixture = torch.einsum("rp,rp...->r...", soft, paths)
        (expected,) = torch.autograd.grad((mixture * weights).sum(), supernet.gates)
        torch.testing.assert_close(found, expected)


def test_gumbel_draws_follow_the_softmax_and_stop_in_evaluation() -> None:
    supernet = make_supernet("plain", 2, 2)
    supernet.gumbel_temperature = 1.0
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([supernet.gate_weights() for _ in range(4000)])
    assert ((draws == 0) | (draws - 1).abs().lt(1e-12)).all()
    expected = supernet.gates.softmax(dim=1)
    torch.testing.assert_close(draws.mean(dim=0), expected, atol=0.03, rtol=0)
    assert torch.equal(supernet.eval().gate_weights(), expected)


def test_an_ensembles_members_draw_the_same_gates() -> None:
    supernet = make_supernet("plain", 3, 3, replicas=2)
    supernet.gumbel_temperature = 1.0
    x = make_input("plain", 6, 2)
    distance = (supernet(x).unsqueeze(1) - supernet.paths(x)).abs().amax(dim=(2, 3))  # (row, P)
    chosen = distance.argmin(dim=1)
    assert torch.equal(chosen[:3], chosen[3:])


# Derivation and errors


def test_the_earliest_point_wins_a_tie() -> None:
    assert derive(torch.ones(3, 4), "abc") == Tree.independent("abc", 3)
    gates = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
    assert derive(gates, "ab") == Tree.from_branch_points([2, 1], 2, "ab")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gates_that_are_not_finite_are_refused(value: float) -> None:
    supernet = make_supernet("plain", 2, 2)
    with torch.no_grad():
        supernet.gates[1, 0] = value
    for function in (supernet.derive, lambda: derive(supernet.gates, supernet.tasks)):
        with pytest.raises(ValueError, match=r"^gates: "):
            function()


def test_gates_of_other_tasks_are_refused() -> None:
    for gates in (torch.ones(3, 4), torch.ones(4)):
        with pytest.raises(ValueError, match=r"^gates: "):
            derive(gates, "ab")


@pytest.mark.parametrize("replicas, rows", [(1, 2), (1, 4), (2, 3), (2, 2)])
def test_wrong_rows_are_refused(replicas: int, rows: int) -> None:
    supernet = Supernet("abc", linear_chain(IN, [4, 4]), replicas)
    with pytest.raises(ValueError, match=rf"^x: got .{rows}, .* {3 * replicas} "):
        supernet(torch.zeros(rows, 5, IN))


def test_one_task_shares_no_layers() -> None:
    supernet = make_supernet("norm", 1, 2)
    assert supernet.shared_layers() == []
    x = make_input("norm", 1, 3)
    torch.testing.assert_close(supernet(x), torch.stack(supernet_outputs(supernet, x)))
    assert supernet.derive().tree == Tree.independent(["task-0"], 2)
