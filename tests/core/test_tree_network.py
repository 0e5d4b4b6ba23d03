"""TreeNetwork against one plain network per task, for any tree."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conal_rl.core import (
    ConalProStage,
    ConflictNoticing,
    LTBSearch,
    Tree,
    TreeNetwork,
    linear_chain,
    module_chain,
)
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.module_stack import ModuleStack
from conal_rl.core.tree_network import copy_layers, parameter_count
from tests.helpers.reference import IN, make_chain, make_input, randomize, tree_outputs
from tests.helpers.strategies import trees

KINDS = ["plain", "norm", "conv"]
NAMES = ["a", "b", "c"]


def make_network(tree: Tree, kind: str, seed: int) -> TreeNetwork:
    torch.manual_seed(seed)
    network = TreeNetwork(tree, make_chain(kind, tree.depth))
    randomize(network)
    return network


@settings(max_examples=40, deadline=None)
@given(
    trees(max_tasks=5, max_depth=4),
    st.sampled_from(KINDS),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_tree_runs_each_task_through_its_modules(
    tree: Tree, kind: str, copies: int, batch: int, one_input: bool, seed: int
) -> None:
    tree = tree.replicate(copies)
    network = make_network(tree, kind, seed)
    x = make_input(kind, 1 if one_input else tree.num_tasks, batch)
    expected = torch.stack(tree_outputs(network, x))
    torch.testing.assert_close(network(x), expected)
    if one_input:
        torch.testing.assert_close(network(x.expand(tree.num_tasks, *x.shape[1:])), expected)


@settings(max_examples=15, deadline=None)
@given(trees(max_tasks=5, max_depth=3), st.sampled_from(KINDS), st.booleans())
def test_gradients_of_any_tree_equal_the_reference(tree: Tree, kind: str, one_input: bool) -> None:
    network = make_network(tree, kind, 0)
    x = make_input(kind, 1 if one_input else tree.num_tasks, 2)
    weights = torch.randn_like(network(x))
    parameters = list(network.parameters())
    found = torch.autograd.grad((network(x) * weights).sum(), parameters)
    outputs = torch.stack(tree_outputs(network, x))
    torch.testing.assert_close(found, torch.autograd.grad((outputs * weights).sum(), parameters))


def plain_mlp(network: TreeNetwork, task: int) -> nn.Sequential:
    """`torch.nn` modules with the weights that the network has for a task."""
    modules: list[nn.Module] = []
    for layer in network.layers:
        assert isinstance(layer, LinearStack)
        module = layer.index[task]
        linear = nn.Linear(*layer.weight.shape[1:])
        linear.load_state_dict(
            {"weight": layer.weight[module].T, "bias": layer.bias[module].squeeze(0)}
        )
        norm = nn.LayerNorm(layer.weight.shape[2])
        norm.load_state_dict(
            {"weight": layer.gain[module].squeeze(0), "bias": layer.shift[module].squeeze(0)}
        )
        modules += [linear, norm, nn.ReLU()]
    return nn.Sequential(*modules)


def test_hps_is_one_mlp_and_stl_is_one_per_task() -> None:
    x = make_input("norm", 3, 5).float()
    for tree, mlps in ((Tree.shared(NAMES, 3), 1), (Tree.independent(NAMES, 3), 3)):
        network = make_network(tree, "norm", 1).float()
        plain = [plain_mlp(network, task) for task in range(3)][:mlps]
        expected = [(plain * 3)[task](x[task]) for task in range(3)]
        torch.testing.assert_close(network(x), torch.stack(expected))
        assert parameter_count(network) == sum(map(parameter_count, plain))


def test_parameter_count_is_one_module_per_group() -> None:
    tree = Tree.from_branch_points([3, 4, 4, 1], 3)  # 2, 2, 3 modules
    network = TreeNetwork(tree, linear_chain(7, [5, 4, 6], layer_norm=True))
    layers = [7 * 5 + 3 * 5, 5 * 4 + 3 * 4, 4 * 6 + 3 * 6]
    assert parameter_count(network) == sum(n * m for n, m in zip(tree.modules, layers))
    assert tree.modules == (2, 2, 3)


def test_a_module_starts_as_torch_starts_a_linear_layer() -> None:
    layer = LinearStack((0, 1, 1), 16, 200, layer_norm=True)
    for values in (layer.weight, layer.bias):
        assert 0.24 < values.abs().max() <= 0.25  # uniform in +-1/sqrt(16)
        assert abs(values.mean()) < 0.05
    assert (layer.gain == 1).all() and (layer.shift == 0).all()
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert parameter_count(layer) == 2 * parameter_count(
        nn.Sequential(nn.Linear(16, 200), nn.LayerNorm(200))
    )


@settings(max_examples=15, deadline=None)
@given(trees(max_tasks=5, max_depth=3), st.sampled_from(KINDS))
def test_copied_layers_compute_the_same(tree: Tree, kind: str) -> None:
    source = make_network(tree, kind, 2)
    target = make_network(Tree.independent(tree.tasks, tree.depth), kind, 3)
    copy_layers(
        target,
        [
            [(layer, module) for module in modules]
            for layer, modules in zip(source.layers, tree.layers)
        ],
    )
    x = make_input(kind, tree.num_tasks, 2)
    torch.testing.assert_close(target(x), source(x))
    with torch.no_grad():  # a copy, not a view
        for parameter in source.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in target.parameters())


def test_shared_layers_are_those_with_a_module_of_several_tasks() -> None:
    chain = linear_chain(IN, [4, 4, 4])
    tree = Tree.from_branch_points([2, 3, 3, 1], 3)
    network = TreeNetwork(tree, chain)
    assert network.shared_layers() == list(network.layers[:2])
    assert TreeNetwork(Tree.shared(NAMES, 3), chain).shared_layers()
    assert not TreeNetwork(Tree.independent(NAMES, 3), chain).shared_layers()
    assert not TreeNetwork(Tree.shared(["a"], 3).replicate(2), chain).shared_layers()


def test_tasks_on_the_trunk_run_in_one_product_in_any_order() -> None:
    tree = Tree.from_branch_points([4, 3, 4, 4, 2, 4, 3, 4, 1, 3], 3)
    network = TreeNetwork(tree, linear_chain(IN, [4, 4, 4]))
    assert network.order is not None
    assert network.order.tolist() == [0, 2, 3, 5, 7, 1, 6, 9, 4, 8]
    for layer, rows in zip(network.layers, (9, 8, 5), strict=True):
        assert isinstance(layer, LinearStack)
        trunk, *own = layer.blocks_in_order
        assert (trunk.num_modules, trunk.rows_per_module) == (1, rows)
        assert sum(block.num_modules for block in own) == 10 - rows
        assert len(own) <= 2


@pytest.mark.parametrize("copies", [1, 2])
def test_rows_keep_their_order_if_no_other_is_better(copies: int) -> None:
    chain = linear_chain(IN, [4, 4])
    for tree in (Tree.shared(NAMES, 2), Tree.independent(NAMES, 2)):
        assert TreeNetwork(tree.replicate(copies), chain).order is None
    mixed = Tree.from_branch_points([3, 3, 1, 3], 2)
    assert TreeNetwork(mixed, chain).order is not None
    assert TreeNetwork(mixed, make_chain("conv", 2)).order is None


class CountRuns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += len(x)
        return x


def test_one_input_for_all_runs_each_module_once() -> None:
    tree = Tree.from_branch_points([3, 4, 4, 1], 3)
    network = TreeNetwork(tree, [lambda index: ModuleStack(index, CountRuns)] * 3)
    network(torch.zeros(1, 5, 2))
    runs = [[m.runs for m in layer.modules_] for layer in network.layers]  # type: ignore[union-attr]
    assert runs == [[5] * n for n in tree.modules]


def test_a_chain_of_a_different_length_is_refused() -> None:
    for widths in ([4, 4], [4] * 4):
        with pytest.raises(ValueError, match=rf"^chain: got {len(widths)} "):
            TreeNetwork(Tree.shared(NAMES, 3), linear_chain(IN, widths))


@pytest.mark.parametrize("rows", [2, 4])
def test_wrong_rows_are_refused(rows: int) -> None:
    network = TreeNetwork(Tree.shared(NAMES, 2), linear_chain(IN, [4, 4]))
    with pytest.raises(ValueError, match=rf"^x: got .{rows}, "):
        network(torch.zeros(rows, 5, IN))


def test_one_task_runs_through_any_tree() -> None:
    network = make_network(Tree.shared(["only"], 2), "norm", 0)
    x = make_input("norm", 1, 3)
    torch.testing.assert_close(network(x), torch.stack(tree_outputs(network, x)))


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(
    "tree",
    [
        Tree.shared("abc", 2),
        Tree.independent("abc", 2),
        Tree.from_branch_points([3, 2, 2], 2, "abc"),
        Tree.from_labels("abc", [[0, 0, 1], [0, 0, 1]]),
    ],
    ids=["shared", "independent", "late", "groups"],
)
def test_modules_in_place_do_not_change_their_siblings_inputs(tree: Tree, captured: bool) -> None:
    chain = module_chain(
        [
            lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(IN, 4)),
            lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(4, 2)),
        ]
    )
    network = TreeNetwork(tree, chain).double()
    x = make_input("plain", 1, 3)
    by_row, at_once = (
        _outputs_and_gradients(network, x.repeat(rows, 1, 1), captured) for rows in (3, 1)
    )
    for expected, found in zip(by_row, at_once, strict=True):
        torch.testing.assert_close(found, expected)


def _outputs_and_gradients(
    network: TreeNetwork, x: Tensor, captured: bool
) -> tuple[Tensor, list[Tensor | None]]:
    network.zero_grad()
    x = x.clone()
    before = x.clone()
    noticing = ConflictNoticing(network.shared_layers(), "none")
    with noticing.capture() if captured else nullcontext():
        outputs = network(x)
    if captured:
        noticing.backward(outputs.square().sum(dim=(1, 2)))
    else:
        outputs.square().sum().backward()
    if len(x) == 1 < len(outputs):
        assert torch.equal(x, before)
    return outputs.detach(), [p.grad for p in network.parameters()]


def test_one_input_goes_through_what_is_shared_once() -> None:
    """In a stage of CoNAL-Pro up to where tasks part, and through the copies of LTB."""
    chain: list[Any] = [lambda index: ModuleStack(index, CountRuns)] * 3
    x = torch.zeros(1, 5, 2)

    def runs(layers: nn.ModuleList) -> list[list[int]]:
        return [[m.runs for m in layer.modules_] for layer in layers]  # type: ignore[union-attr]

    stage = ConalProStage(2, (4, None, None, 4)).network("abcd", chain)
    stage(x)
    assert runs(stage.joint.layers) == [[5], [5], [10, 10]]
    copies = LTBSearch(2).network("abcd", chain)
    copies(x)
    assert runs(copies.layers) == [[5, 5]] * 3
