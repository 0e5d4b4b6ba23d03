"""Learning to Branch against loops over tasks and copies, trees by hand, what the search finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conal_rl.core import LTBSearch, Tree, linear_chain
from conal_rl.core.ltb import LTBNetwork
from tests.helpers.reference import (
    IN,
    Signs,
    branching_outputs,
    check_task_gradients,
    make_chain,
    make_input,
    randomize,
    run_module,
    tree_outputs,
)

KINDS = ["plain", "norm", "conv"]


def make_network(
    kind: str, tasks: int, depth: int, copies: int, replicas: int = 1, seed: int = 0
) -> LTBNetwork:
    torch.manual_seed(seed)
    names = [f"task-{i}" for i in range(tasks)]
    network = LTBSearch(copies).network(names, make_chain(kind, depth), replicas)
    randomize(network)
    return network


def choose(network: LTBNetwork, chosen: list[int], strength: float = 1000.0) -> None:
    """Gates that are (nearly) one-hot: the parent, from 0, of each choice."""
    with torch.no_grad():
        network.gates.zero_()
        network.gates[range(len(chosen)), chosen] = strength


shapes = {
    "kind": st.sampled_from(KINDS),
    "tasks": st.integers(1, 4),
    "depth": st.integers(1, 3),
    "copies": st.integers(2, 3),
    "replicas": st.integers(1, 2),
    "seed": st.integers(0, 99),
    "one_input": st.booleans(),
}


# Against loops


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_every_copy_gets_the_mixture_of_the_layer_before(
    kind: str, tasks: int, depth: int, copies: int, replicas: int, seed: int, one_input: bool
) -> None:
    network = make_network(kind, tasks, depth, copies, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * tasks, 2)
    torch.testing.assert_close(network(x), torch.stack(branching_outputs(network, x)))


@settings(max_examples=15, deadline=None)
@given(**shapes)
def test_gradients_equal_those_of_the_reference(
    kind: str, tasks: int, depth: int, copies: int, replicas: int, seed: int, one_input: bool
) -> None:
    network = make_network(kind, tasks, depth, copies, replicas, seed)
    x = make_input(kind, 1 if one_input else replicas * tasks, 2)
    weights = torch.randn_like(network(x))
    parameters = list(network.parameters())
    found = torch.autograd.grad((network(x) * weights).sum(), parameters)
    outputs = torch.stack(branching_outputs(network, x))
    torch.testing.assert_close(found, torch.autograd.grad((outputs * weights).sum(), parameters))


@settings(max_examples=40, deadline=None)
@given(**shapes, data=st.data())
def test_one_hot_gates_equal_the_derived_network(
    kind: str,
    tasks: int,
    depth: int,
    copies: int,
    replicas: int,
    seed: int,
    one_input: bool,
    data: st.DataObject,
) -> None:
    network = make_network(kind, tasks, depth, copies, replicas, seed)
    size = len(network.choices)
    choose(network, data.draw(st.lists(st.integers(0, copies - 1), min_size=size, max_size=size)))
    derived = network.derive()
    assert derived.tree == network.tree().replicate(replicas)
    x = make_input(kind, 1 if one_input else replicas * tasks, 2)
    expected = network(x)
    torch.testing.assert_close(derived(x), expected)
    torch.testing.assert_close(torch.stack(tree_outputs(derived, x)), expected)


@pytest.mark.parametrize("one_input", [False, True], ids=["inputs", "one input"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("tasks, depth", [(3, 2), (2, 3), (3, 1)])
def test_captured_gradients_are_those_of_one_pass_per_task(
    tasks: int, depth: int, kind: str, replicas: int, one_input: bool
) -> None:
    network = make_network(kind, tasks, depth, 2, replicas)
    assert network.shared_layers() == list(network.layers)
    x = make_input(kind, 1 if one_input else replicas * tasks, 3)
    check_task_gradients(network, x, tasks, lambda: branching_outputs(network, x))


# Gumbel-softmax gates


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_gumbel_gates_sample_one_path_for_each_task(kind: str) -> None:
    tasks, depth, copies = 3, 3, 3
    network = make_network(kind, tasks, depth, copies, replicas=2)
    network.gumbel_temperature = 1.0
    x = make_input(kind, 2 * tasks, 2)
    for seed in range(4):
        torch.manual_seed(seed)
        weights = network.gate_weights()
        assert sorted(weights.unique().tolist()) == [0, 1]
        assert (weights.sum(dim=1) == 1).all()
        chosen = weights.argmax(dim=1).tolist()
        torch.manual_seed(seed)
        found = network(x)
        for row in range(2 * tasks):
            replica, task = divmod(row, tasks)
            third = chosen[2 * copies + task]
            second = chosen[copies + third]
            first = chosen[second]
            h = x[row]
            for layer, copy in zip(network.layers, (first, second, third)):
                h = run_module(layer, replica * copies + copy, h)
            torch.testing.assert_close(found[row], h)
    assert torch.equal(network.eval().gate_weights(), network.gates.softmax(dim=1))


def test_a_sampled_choice_has_the_soft_gradient() -> None:
    network = make_network("norm", 2, 2, 2)
    network.gumbel_temperature = 1.0
    network(make_input("norm", 2, 3)).square().sum().backward()
    assert network.gates.grad is not None
    of_tasks = network.gates.grad[2:]
    assert (of_tasks != 0).all()
    torch.testing.assert_close(of_tasks.sum(dim=1), torch.zeros_like(of_tasks[:, 0]))


# Trees by hand


def test_choices_are_copies_of_later_layers_then_tasks() -> None:
    network = LTBSearch(2).network(["reach", "push"], linear_chain(IN, [4] * 3))
    assert network.choices == (
        "layer 2 copy 1",
        "layer 2 copy 2",
        "layer 3 copy 1",
        "layer 3 copy 2",
        "reach",
        "push",
    )
    assert torch.equal(network.gates, torch.ones(6, 2))


def test_the_tree_follows_the_parents() -> None:
    """Five tasks, three layers of three copies.

    a and d take copy 3 of layer 3, b and e copy 1, c copy 2. Copies 1 and 3 of layer 3 take copy 2
    of layer 2, copy 2 takes copy 1. Copies 1 and 2 of layer 2 take copies 3 and 1 of layer 1;
    copy 3 is not in use, with any parent.
    """
    network = LTBSearch(3).network("abcde", linear_chain(IN, [4] * 3))
    for unused in range(3):
        choose(network, [2, 0, unused, 1, 0, 1, 2, 0, 1, 2, 0])
        groups = [[["a", "b", "d", "e"], ["c"]]] * 2 + [[["a", "d"], ["b", "e"], ["c"]]]
        assert network.tree() == Tree.from_groups("abcde", groups)
    # Now copy 2 of layer 3 takes copy 3 of layer 2, which comes from the same copy of layer 1.
    choose(network, [2, 0, 0, 1, 2, 1, 2, 0, 1, 2, 0])
    groups[0] = [["a", "b", "c", "d", "e"]]
    assert network.tree() == Tree.from_groups("abcde", groups)


def test_all_tasks_share_the_first_copies_at_the_start() -> None:
    network = LTBSearch(3).network("abc", linear_chain(IN, [4, 4]))
    assert network.tree() == Tree.shared("abc", 2)


def test_one_layer_is_a_choice_of_each_task() -> None:
    network = LTBSearch(2).network("abc", linear_chain(IN, [4]))
    assert network.choices == ("a", "b", "c")
    choose(network, [1, 0, 1])
    assert network.tree() == Tree.from_groups("abc", [[["a", "c"], ["b"]]])


def test_one_task_shares_with_nobody() -> None:
    network = make_network("norm", 1, 2, 2, replicas=2)
    assert network.shared_layers() == []
    assert network.tree() == Tree.independent(["task-0"], 2)


def test_the_search_space_is_so_many_encoders() -> None:
    network = LTBSearch(3).network("abcde", linear_chain(7, [5, 4]), replicas=2)
    encoder = (7 * 5 + 5) + (5 * 4 + 4)
    assert sum(p.numel() for p in network.weights()) == 2 * 3 * encoder


# Errors


@pytest.mark.parametrize("copies", [1, 0, -2])
def test_fewer_than_two_copies_are_refused(copies: int) -> None:
    with pytest.raises(ValueError, match=rf"^copies: got {copies}, "):
        LTBSearch(copies)


@pytest.mark.parametrize("replicas, rows", [(1, 2), (1, 4), (2, 3), (2, 2)])
def test_wrong_rows_are_refused(replicas: int, rows: int) -> None:
    network = LTBSearch(2).network("abc", linear_chain(IN, [4, 4]), replicas)
    with pytest.raises(ValueError, match=rf"^x: got .{rows}, .* {3 * replicas} "):
        network(torch.zeros(rows, 5, IN))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gates_that_are_not_finite_are_refused(value: float) -> None:
    network = make_network("plain", 2, 2, 2)
    with torch.no_grad():
        network.gates[1, 0] = value
    for decide in (network.tree, network.derive):
        with pytest.raises(ValueError, match=r"^gates: "):
            decide()


# What the search finds


def search(problem: Signs) -> Tree:
    network = LTBSearch(3).network("abcd", problem.chain())
    problem.search(network, steps=100)
    return network.tree()


@pytest.mark.parametrize("seed", range(3))
def test_equal_tasks_share_and_opposite_tasks_part(seed: int) -> None:
    """Of equal tasks one may stray, as it loses next to nothing."""
    assert max(map(len, search(Signs([1.0, 1.0, 1.0, 1.0], seed)).groups(-1))) >= 3
    opposite = search(Signs([1.0, -1.0, 1.0, -1.0], seed))
    assert opposite.groups(-1) == (("a", "c"), ("b", "d"))
