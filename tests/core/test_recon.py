"""Recon: which layers become task-specific, and networks in which tasks meet again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conal_rl.core import ReconSearch, Tree, TreeNetwork, linear_chain, recon_tree
from conal_rl.core.tree_network import parameter_count
from tests.helpers.reference import (
    IN,
    check_task_gradients,
    make_chain,
    make_input,
    randomize,
    tree_outputs,
)

KINDS = ["plain", "norm", "conv"]


@st.composite
def structures(draw: st.DrawFn, min_tasks: int = 1) -> Tree:
    """What Recon makes of any counts: some layers shared by all, the others not at all."""
    conflicts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    tasks = [f"task-{i}" for i in range(draw(st.integers(min_tasks, 4)))]
    return recon_tree(tasks, conflicts, draw(st.integers(1, len(conflicts))))


# Which layers


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(1, 5), st.data())
def test_the_layers_of_most_conflicts_are_each_tasks_own(
    conflicts: list[int], tasks: int, data: st.DataObject
) -> None:
    """A layer is specific if fewer than K have more conflicts, or as many and come before it."""
    specific = data.draw(st.integers(1, len(conflicts)))
    names = [f"task-{i}" for i in range(tasks)]
    tree = recon_tree(names, conflicts, specific)
    assert (tree.tasks, tree.depth) == (tuple(names), len(conflicts))
    parted = [len(tree.groups(layer)) > 1 for layer in range(tree.depth)]
    assert tree.rejoining == (sorted(parted) != parted)
    own = 0
    for layer, count in enumerate(conflicts):
        ahead = 0
        for other, its_count in enumerate(conflicts):
            if its_count > count or (its_count == count and other < layer):
                ahead += 1
        together = (tuple(names),)
        assert tree.groups(layer) == (tuple((n,) for n in names) if ahead < specific else together)
        own += ahead < specific
    assert own == specific


def test_layers_equal_those_chosen_by_hand() -> None:
    shared, own = [["a", "b", "c"]], [["a"], ["b"], ["c"]]

    def expected(*layers: list[list[str]]) -> Tree:
        return Tree.from_groups("abc", layers, may_rejoin=True)

    conflicts = [5.0, 9.0, 0.0, 7.0]
    assert recon_tree("abc", conflicts, 1) == expected(shared, own, shared, shared)
    assert recon_tree("abc", conflicts, 2) == expected(shared, own, shared, own)
    assert recon_tree("abc", conflicts, 3) == expected(own, own, shared, own)
    assert recon_tree("abc", conflicts, 4) == Tree.independent("abc", 4)
    assert recon_tree("abc", [0.0, 1.0, 2.0], 2) == Tree.from_branch_points([2, 2, 2], 3, "abc")
    assert recon_tree("abc", [2.0, 3.0, 3.0, 2.0], 1) == expected(shared, own, shared, shared)
    assert recon_tree("abc", [2.0, 3.0, 3.0, 2.0], 3) == expected(own, own, own, shared)
    assert recon_tree("abc", [0.0] * 4, 2) == expected(own, own, shared, shared)


# Networks


@pytest.mark.parametrize("replicas", [1, 2])
def test_conflicts_are_counted_with_everything_shared(replicas: int) -> None:
    network = ReconSearch(2).network("abc", linear_chain(IN, [4, 4]), replicas)
    assert network.tree == Tree.shared("abc", 2).replicate(replicas)
    assert network.shared_layers() == list(network.layers)


@settings(max_examples=40, deadline=None)
@given(structures(), st.sampled_from(KINDS), st.integers(1, 2), st.booleans(), st.integers(0, 99))
def test_each_task_runs_through_its_modules(
    tree: Tree, kind: str, copies: int, one_input: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    tree = tree.replicate(copies)
    network = TreeNetwork(tree, make_chain(kind, tree.depth))
    randomize(network)
    x = make_input(kind, 1 if one_input else tree.num_tasks, 2)
    expected = torch.stack(tree_outputs(network, x))
    torch.testing.assert_close(network(x), expected)
    if one_input:
        torch.testing.assert_close(network(x.expand(tree.num_tasks, *x.shape[1:])), expected)


@pytest.mark.parametrize("one_input", [False, True], ids=["inputs", "one input"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("kind", ["norm", "conv"])
@pytest.mark.parametrize("conflicts", [[0, 1, 0], [1, 0, 0], [0, 0, 1]], ids=str)
def test_captured_gradients_are_those_of_one_pass_per_task(
    conflicts: list[int], kind: str, replicas: int, one_input: bool
) -> None:
    torch.manual_seed(0)
    tree = recon_tree("abc", conflicts, 1).replicate(replicas)
    network = TreeNetwork(tree, make_chain(kind, 3))
    randomize(network)
    assert len(network.shared_layers()) == 2
    x = make_input(kind, 1 if one_input else tree.num_tasks, 3)
    check_task_gradients(network, x, 3, lambda: tree_outputs(network, x))


def test_parameters_are_one_module_or_one_for_each_task() -> None:
    tree = recon_tree("abcd", [0, 2, 1], 1)
    network = TreeNetwork(tree, linear_chain(7, [5, 4, 6]))
    assert tree.modules == (1, 4, 1)
    assert parameter_count(network) == (7 * 5 + 5) + 4 * (5 * 4 + 4) + (4 * 6 + 6)


# Drawings


def test_text_of_a_recon_tree_equals_one_by_hand() -> None:
    assert str(recon_tree(["reach", "push"], [0, 2, 1], 1)) == (
        "2 tasks, 3 layers, 4 modules\n"
        "layer 1: shared by reach, push\n"
        "layer 2: separate: reach, push\n"
        "layer 3: shared by reach, push"
    )


@given(structures())
def test_text_has_a_line_for_every_layer(tree: Tree) -> None:
    assume(tree.rejoining)
    lines = str(tree).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"layer {number}" for number in range(1, tree.depth + 1)
    ]
    for line in lines[1:]:
        assert [line.count(name) for name in tree.tasks] == [1] * tree.num_tasks


# Errors


@pytest.mark.parametrize("specific", [0, -1])
def test_some_layers_must_become_specific(specific: int) -> None:
    with pytest.raises(ValueError, match=rf"^specific: got {specific}, "):
        ReconSearch(specific)


def test_more_specific_layers_than_there_are_layers_are_refused() -> None:
    chain = linear_chain(IN, [4, 4])
    assert ReconSearch(2).network("ab", chain).tree.depth == 2
    with pytest.raises(ValueError, match=r"^specific: got 3, "):
        ReconSearch(3).network("ab", chain)
