"""Every task's own gradients where all tasks see one input, against a pass of autograd for each."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from conal_rl.core import ConflictNoticing, Tree, TreeNetwork, linear_chain, module_chain
from conal_rl.core.bilevel import weight_step
from conal_rl.core.gradients import TaskGradients
from conal_rl.core.layers import LayerFactory
from conal_rl.core.linear_stack import LinearStack, gram_at_once
from tests.helpers.reference import IN, make_chain, make_input, randomize, row_gradients

BATCH = 4
TREES = {
    "shared": Tree.shared("abcd", 3),
    "mixed": Tree.from_branch_points([3, 4, 4, 1, 3], 3),
    "grouped": Tree.from_labels("abcde", ["aabba", "aabbc", "xybbc"]),
    "separate": Tree.from_branch_points([1, 1, 2, 2], 3),
    "rejoining": Tree.from_labels("abc", ["aab", "aab", "abb"], True),
}
KINDS = ["plain", "norm", "conv", "batch norm", "modules, then linear"]


def batch_norm(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.Tanh())


def chain_of(kind: str) -> list[LayerFactory]:
    sizes = [(IN, 4), (4, 6), (6, 5)]
    modules = module_chain([partial(batch_norm, *size) for size in sizes])
    if kind == "batch norm":
        return modules
    if kind == "modules, then linear":
        return [*modules[:2], *linear_chain(6, [5])]
    return make_chain(kind, 3)


def make(tree: Tree, kind: str) -> tuple[TreeNetwork, nn.Module, Tensor]:
    """A network, heads, and one input for all."""
    torch.manual_seed(0)
    network = TreeNetwork(tree, chain_of(kind))
    x = make_input(kind, 1, BATCH)
    randomize(network)
    with torch.no_grad():
        width = network.eval()(x).shape[2]
    network.train()
    heads = LinearStack(range(tree.num_tasks), width, 2, activation=False)
    randomize(heads)
    return network, heads, x


def losses_of(encoding: Tensor, heads: nn.Module, tasks: int) -> Tensor:
    if encoding.ndim == 5:
        encoding = encoding.mean(dim=(3, 4))
    rows: Tensor = heads(encoding).square().mean(dim=(1, 2))
    return rows.view(-1, tasks).sum(dim=0)


@pytest.mark.parametrize("given", ["one row", "expanded"])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TREES)
def test_gradients_are_those_of_a_pass_for_each_task(
    name: str, kind: str, copies: int, given: str
) -> None:
    tasks = TREES[name].num_tasks
    network, heads, x = make(TREES[name].replicate(copies), kind)
    if given == "expanded":
        x = x.expand(copies * tasks, *x.shape[1:])
    shared = network.shared_layers()
    plain = losses_of(network(x), heads, tasks)
    everything = [*network.parameters(), *heads.parameters()]
    whole = torch.autograd.grad(plain.sum(), everything, retain_graph=True)
    expected = row_gradients(list(plain), shared)

    own = TaskGradients(shared)
    with own.capture():
        losses = losses_of(network(x), heads, tasks)
    torch.testing.assert_close(losses, plain)
    found = own.backward(losses)
    for layer_found, layer_expected in zip(found, expected, strict=True):
        for row, named in enumerate(layer_expected):
            for gradients, gradient in zip(layer_found, named.values(), strict=True):
                torch.testing.assert_close(gradients[row], gradient)
    watched = {id(p) for layer in shared for p in layer.parameters()}
    for parameter, gradient in zip(everything, whole, strict=True):
        if id(parameter) not in watched:
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_a_weighted_total_weighs_the_gradients(kind: str) -> None:
    network, heads, x = make(TREES["mixed"], kind)
    own = TaskGradients(network.shared_layers())
    weights = torch.rand(5, dtype=torch.float64)
    with own.capture():
        losses = losses_of(network(x), heads, 5)
    equal = [[g.clone() for g in layer] for layer in own.backward(losses)]
    with own.capture():
        losses = losses_of(network(x), heads, 5)
    weighted = own.backward(losses, total=losses @ weights)
    for one, other in zip(equal, weighted, strict=True):
        for before, after in zip(one, other, strict=True):
            torch.testing.assert_close(after.flatten(1), before.flatten(1) * weights[:, None])


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_modules_have_no_gradients_and_the_others_theirs(kind: str, rows: int) -> None:
    """The first layer, as of a pretrained stem, and a bias of the second."""
    network, heads, x = make(TREES["mixed"], kind)
    x = x.expand(rows, *x.shape[1:]).clone()
    frozen = [*network.layers[0].parameters(), list(network.layers[1].parameters())[1]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    learning = [p for p in [*network.parameters(), *heads.parameters()] if p.requires_grad]
    plain = losses_of(network(x), heads, 5)
    expected = torch.autograd.grad(plain.sum(), learning)
    noticing = ConflictNoticing(network.shared_layers(), "none")
    with noticing.capture():
        losses = losses_of(network(x), heads, 5)
    optimizer = torch.optim.SGD([*network.parameters(), *heads.parameters()], lr=1.0)
    before = [p.detach().clone() for p in learning]
    kept = [p.detach().clone() for p in frozen]
    weight_step(losses, optimizer, noticing)
    torch.testing.assert_close([b - p for b, p in zip(before, learning)], list(expected))
    assert all(map(torch.equal, kept, frozen))


@pytest.mark.parametrize("rows", [1, 5])
def test_half_precision_changes_gradients_only_a_little(rows: int) -> None:
    """A module's output is in half precision, a linear layer's gradients in single."""
    network, heads, x = make(TREES["mixed"], "modules, then linear")
    x = x.expand(rows, *x.shape[1:]).clone()
    for module in (network, heads):
        module.float()
    found = []
    for half in (False, True):
        own = TaskGradients(network.shared_layers())
        with own.capture(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = losses_of(network(x.float()), heads, 5)
        found.append(torch.cat([g.flatten() for layer in own.backward(losses) for g in layer]))
    assert not torch.equal(*found)
    assert (found[0] - found[1]).norm() < 0.2 * found[0].norm()


def test_modules_run_once_and_backwards_once_per_task() -> None:
    tree = TREES["mixed"]
    network, heads, x = make(tree, "batch norm")
    forward, backward = {}, {}
    for depth, layer in enumerate(network.layers):
        for number, module in enumerate(layer.modules_):  # type: ignore[arg-type]
            place = depth, number
            forward[place] = backward[place] = 0

            def ran_back(_: Tensor, place: tuple[int, int] = place) -> None:
                backward[place] += 1

            def ran(
                _: nn.Module, inputs: object, y: Tensor, place: tuple[int, int] = place
            ) -> None:
                forward[place] += 1
                y.register_hook(partial(ran_back, place=place))

            module.register_forward_hook(ran)
    own = TaskGradients(network.shared_layers())
    with own.capture():
        losses = losses_of(network(x), heads, tree.num_tasks)
    own.backward(losses)
    assert set(forward.values()) == {1}
    assert backward == {
        (depth, number): layer.count(number)
        for depth, layer in enumerate(tree.layers)
        for number in set(layer)
    }
    batches = [v for name, v in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert batches == [1] * sum(tree.modules)


def test_the_input_gets_its_gradient() -> None:
    for kind in ("norm", "conv"):
        network, heads, x = make(TREES["grouped"], kind)
        x.requires_grad_()
        (expected,) = torch.autograd.grad(losses_of(network(x), heads, 5).sum(), x)
        own = TaskGradients(network.shared_layers())
        with own.capture():
            losses = losses_of(network(x), heads, 5)
        own.backward(losses)
        torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("index", [(0, 0, 0), (0, 1, 0, 2, 1), (0, 1, 2)])
def test_inner_products_at_once_are_those_by_module(index: tuple[int, ...]) -> None:
    layer = LinearStack(index, 3, 2)
    gradients = [torch.randn(len(index), *p.shape[1:]) for p in layer.parameters()]
    torch.testing.assert_close(gram_at_once(layer.rows, gradients), layer.gram(gradients))
