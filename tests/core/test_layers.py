"""Stacked linear layers: any index of rows to modules, their gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conal_rl.core.layers import LinearStack, ModuleStack, RowOrder, row_blocks
from tests.helpers.reference import randomize, run_module


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_blocks_cover_every_row_once_in_order(index: list[int]) -> None:
    blocks = row_blocks(index)
    covered = [
        (block.start + number * block.run + row, block.first + number * block.step)
        for block in blocks
        for number in range(block.size)
        for row in range(block.run)
    ]
    assert covered == list(enumerate(index))


@pytest.mark.parametrize(
    ("index", "count"),
    [
        ([0] * 5, 1),
        ([0, 1, 2], 1),
        ([0, 0, 1, 1], 1),
        ([0, 0, 0, 1, 2], 2),
        ([0, 1, 0], 2),
        ([1, 4, 7], 1),
        ([0, 0, 3, 3, 1, 2], 2),
    ],
)
def test_blocks_are_few(index: list[int], count: int) -> None:
    assert len(row_blocks(index)) == count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.booleans(), st.data())
def test_a_layer_and_its_gradients_in_loops(
    labels: list[int], norm: bool, activation: bool, data: st.DataObject
) -> None:
    index = [sorted(set(labels)).index(label) for label in labels]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = LinearStack(index, 3, 4, layer_norm=norm, activation=activation)
    randomize(layer)
    x = torch.randn(len(index), 2, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    expected = torch.stack([run_module(layer, m, x[row]) for row, m in enumerate(index)])
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    gradients = torch.autograd.grad(expected, leaves, cotangent)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, cotangent), gradients)
    for frozen in layer.parameters():
        frozen.requires_grad_(False)
        learning = [leaf for leaf in leaves if leaf is not frozen]
        found = torch.autograd.grad(layer(x), learning, cotangent)
        expected_ones = [g for g, leaf in zip(gradients, leaves, strict=True) if leaf is not frozen]
        torch.testing.assert_close(found, tuple(expected_ones))
        frozen.requires_grad_(True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.data())
def test_rows_in_any_order_and_their_gradients(
    labels: list[int], norm: bool, data: st.DataObject
) -> None:
    index = [sorted(set(labels)).index(label) for label in labels]
    rows = data.draw(st.permutations(range(len(index))))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = LinearStack(index, 3, 4, layer_norm=norm)
    randomize(layer)
    assert layer.arrange(rows) == len(row_blocks([index[row] for row in rows]))
    order = RowOrder(torch.tensor(rows), torch.tensor(rows).argsort())
    x = torch.randn(len(index), 2, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    found = order.unsort(layer(order.sort(x), order=order))
    torch.testing.assert_close(found, y)
    cotangent = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(y, leaves, cotangent)
    )

    layer.capturing = True
    in_order_of_index = []
    for taken in (None, order):
        layer.captured = None
        z = layer(x) if taken is None else taken.unsort(layer(taken.sort(x), order=taken))
        z.backward(cotangent)
        in_order_of_index.append([gradient.clone() for gradient in layer.row_gradients()])
    torch.testing.assert_close(*in_order_of_index)


def test_rows_that_do_not_fit_are_refused() -> None:
    layer = LinearStack([0, 0, 1], 3, 4)
    with pytest.raises(ValueError, match="expected 3 rows"):
        layer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="expected 2 rows"):
        layer(torch.zeros(3, 5, 3), by_module=True)


def test_a_layer_of_one_module_takes_any_number_of_rows() -> None:
    layer = LinearStack([0, 0], 3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(layer(x)[3:], layer(x[3:]))


def test_row_gradients_need_a_capture_and_are_zero_where_no_loss_depends() -> None:
    layer = LinearStack([0, 0], 3, 4, layer_norm=True)
    with pytest.raises(RuntimeError, match="outside of capture"):
        layer.row_gradients()
    layer.capturing = True
    layer(torch.randn(2, 5, 3))
    assert [tuple(g.shape) for g in layer.row_gradients()] == [(2, 3, 4), *[(2, 1, 4)] * 3]
    assert not any(g.any() for g in layer.row_gradients())


@pytest.mark.parametrize("rows", [1, 3])
def test_a_module_that_captures_runs_once_on_one_input_and_leaves_row_gradients(rows: int) -> None:
    torch.manual_seed(0)
    layer = ModuleStack([0, 0, 0], lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    randomize(layer)
    x = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    cotangents = torch.randn(3, 6, 5, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    expected = [torch.autograd.grad(layer(x), leaves, own[None]) for own in cotangents]
    batches = layer.modules_[0][1].num_batches_tracked  # type: ignore[index]
    before = int(batches)

    layer.capturing = True
    y = layer(x.expand(rows, -1, -1))
    layer.capturing = False
    torch.testing.assert_close(y, layer(x).expand(3, -1, -1))
    y.backward(cotangents)
    assert int(batches) == before + 2  # once captured, once here
    torch.testing.assert_close(x.grad, sum(own[0] for own in expected))
    for number, found in enumerate(layer.row_gradients(), start=1):
        torch.testing.assert_close(found, torch.stack([own[number] for own in expected]))
    assert all(p.grad is None for p in layer.parameters())


def test_modules_capture_neither_own_inputs_nor_without_gradients_nor_twice() -> None:
    layer = ModuleStack([0, 0], lambda: nn.Linear(4, 5))
    with pytest.raises(RuntimeError, match="outside of capture"):
        layer.row_gradients()
    layer.capturing = True
    x = torch.randn(2, 6, 4)
    layer(x)
    with torch.no_grad():
        layer(x[:1])
    assert layer.captured is None
    layer(x[:1])
    assert [tuple(g.shape) for g in layer.row_gradients()] == [(2, 5, 4), (2, 5)]
    assert not any(g.any() for g in layer.row_gradients())
    with pytest.raises(RuntimeError, match="a second forward pass"):
        layer(x[:1])


@pytest.mark.parametrize("capturing", [False, True])
def test_half_precision_computes_the_products_and_nothing_else(capturing: bool) -> None:
    """Under autocast, outputs and gradients are those of single precision to bfloat16's 8 bits."""
    torch.manual_seed(0)
    index = [0, 0, 1, 2, 2]
    layer = LinearStack(index, 16, 12, layer_norm=True)
    x = torch.randn(5, 8, 16, requires_grad=True)
    cotangent = torch.randn(5, 8, 12)
    found = {}
    for half in (False, True):
        layer.zero_grad()
        x.grad, layer.capturing, layer.captured = None, capturing, None
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        y.backward(cotangent)
        own = layer.row_gradients() if capturing else [p.grad for p in layer.parameters()]
        found[half] = [y.detach(), x.grad, *[g.clone() for g in own if g is not None]]
        assert all(tensor.dtype == torch.float32 for tensor in found[half])
    assert not torch.equal(found[False][0], found[True][0])
    for single, half_ in zip(found[False], found[True], strict=True):
        assert (single - half_).norm() < 0.02 * single.norm()
