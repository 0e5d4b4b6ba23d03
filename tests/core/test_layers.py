"""What both kinds of layers do: paths, modules, their parameters, weighted sums of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from conal_rl.core.layers import Layer
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.module_stack import ModuleStack
from tests.helpers.reference import module_slice, randomize


def make_layer(kind: str, index: Sequence[int]) -> Layer:
    torch.manual_seed(0)
    layer = (
        LinearStack(index, 3, 4, layer_norm=True)
        if kind == "linear"
        else ModuleStack(index, lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))
    )
    randomize(layer)
    return layer


def row_values(layer: Layer) -> list[torch.Tensor]:
    """Any numbers in the shape of row gradients."""
    return [
        torch.randn(len(layer.index), *p.shape, dtype=p.dtype) for p in layer.module_parameters(0)
    ]


KINDS = pytest.mark.parametrize("kind", ["linear", "modules"])
INDEX = (0, 1, 0, 2, 1)


@KINDS
def test_paths_run_as_if_in_sequence(kind: str) -> None:
    layer = make_layer(kind, INDEX)
    x = torch.randn(5, 2, 6, 3, dtype=torch.float64)
    expected = torch.stack([layer(x[:, path]) for path in range(2)], dim=1)
    torch.testing.assert_close(layer.run_paths(x), expected)


@KINDS
def test_modules_run_as_a_layer_with_a_row_for_each(kind: str) -> None:
    layer, by_row = make_layer(kind, INDEX), make_layer(kind, range(3))
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(layer.run_modules(x), by_row(x))


@KINDS
def test_the_parameters_of_a_module_are_its_slice(kind: str) -> None:
    layer = make_layer(kind, INDEX)
    named: dict[str, torch.Tensor] = dict(layer.named_parameters())
    for module in range(3):
        expected = module_slice(layer, module, named)
        found = layer.module_parameters(module)
        assert len(found) == len(expected) == 4
        assert all(map(torch.equal, found, expected.values()))


@KINDS
def test_a_copied_module_is_equal_and_the_others_stay(kind: str) -> None:
    source, target = make_layer(kind, [0, 1]), make_layer(kind, INDEX)
    randomize(source)
    before = [[p.detach().clone() for p in target.module_parameters(m)] for m in range(3)]
    target.copy_module(2, source, 1)
    for expected, module in ((before[0], 0), (before[1], 1), (source.module_parameters(1), 2)):
        assert all(map(torch.equal, target.module_parameters(module), expected))
    assert not torch.equal(target.module_parameters(2)[0], before[2][0])


@KINDS
def test_gradients_are_weighted_sums_over_the_rows_of_a_module(kind: str) -> None:
    layer = make_layer(kind, INDEX)
    rows = row_values(layer)
    weights = torch.rand(5, dtype=torch.float64)
    frozen = next(layer.parameters())
    frozen.requires_grad_(False)
    layer.assign_gradients(rows, weights)
    assert frozen.grad is None
    left = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    for module in range(3):
        users = [row for row, used in enumerate(INDEX) if used == module]
        expected = [sum(weights[row] * g[row] for row in users) for g in rows]
        found = list(module_slice(layer, module, left).values())
        torch.testing.assert_close(found, expected[-len(found) :])
    assert len(module_slice(layer, 2, left)) == (3 if kind == "linear" else 4)


@KINDS
def test_the_gradients_of_one_module_are_replaced(kind: str) -> None:
    layer = make_layer(kind, INDEX)
    rows = row_values(layer)
    layer.assign_gradients(rows, torch.ones(5, dtype=torch.float64))
    replaced = [gradient[0] for gradient in rows]
    layer.assign_module_gradients(1, replaced)
    left = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert all(map(torch.equal, module_slice(layer, 1, left).values(), replaced))
    untouched = next(iter(module_slice(layer, 0, left).values()))
    torch.testing.assert_close(untouched, rows[0][[0, 2]].sum(dim=0))


@KINDS
def test_capture_ends_with_its_context_and_release_forgets(kind: str) -> None:
    layer = make_layer(kind, [0, 0])
    x = torch.randn(1, 6, 3, dtype=torch.float64).expand(2, -1, -1)
    with layer.capture():
        inside = layer.captures
        with torch.no_grad():
            without_gradients = layer.captures
        layer(x)
    assert (inside, without_gradients, layer.captures) == (True, False, False)
    assert not layer.needs_pass_per_task()
    layer.release()
    assert layer.captured is None


@KINDS
def test_an_error_ends_the_capture(kind: str) -> None:
    layer = make_layer(kind, [0, 0])
    with pytest.raises(ZeroDivisionError), layer.capture():
        raise ZeroDivisionError
    assert not layer.captures
