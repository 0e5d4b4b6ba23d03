"""Stacked linear layers: any index, any order of rows, their gradients, and what they refuse."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.rows import RowOrder, row_blocks
from tests.helpers.reference import randomize, run_module


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.booleans(), st.data())
def test_a_layer_and_its_gradients_equal_loops(
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
        remaining = [g for g, leaf in zip(gradients, leaves, strict=True) if leaf is not frozen]
        torch.testing.assert_close(
            torch.autograd.grad(layer(x), learning, cotangent), tuple(remaining)
        )
        frozen.requires_grad_(True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.data())
def test_rows_in_any_order_have_the_same_gradients(
    labels: list[int], norm: bool, data: st.DataObject
) -> None:
    index = [sorted(set(labels)).index(label) for label in labels]
    rows = data.draw(st.permutations(range(len(index))))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = LinearStack(index, 3, 4, layer_norm=norm)
    randomize(layer)
    in_order = row_blocks([index[row] for row in rows])
    assert layer.arrange(rows) == len(row_blocks(index)) - len(in_order)
    order = RowOrder(torch.tensor(rows), torch.tensor(rows).argsort())
    x = torch.randn(len(index), 2, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    ordered = order.unsort(layer(order.sort(x), order=order))
    torch.testing.assert_close(ordered, y)
    cotangent = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(ordered, leaves, cotangent), torch.autograd.grad(y, leaves, cotangent)
    )

    in_order_of_index = []
    for given_order in (None, order):
        with layer.capture():
            z = layer(x) if given_order is None else order.unsort(layer(order.sort(x), order=order))
        z.backward(cotangent)
        in_order_of_index.append([gradient.clone() for gradient in layer.row_gradients()])
    torch.testing.assert_close(*in_order_of_index)


def test_rows_that_do_not_fit_are_refused() -> None:
    layer = LinearStack([0, 0, 1], 3, 4)
    with pytest.raises(ValueError, match=r"^x: .*2, 5, 3.* 3 "):
        layer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"^x: .*3, 5, 3.* 2 "):
        layer.run_modules(torch.zeros(3, 5, 3))


def test_a_layer_of_one_module_takes_any_number_of_rows() -> None:
    layer = LinearStack([0, 0], 3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(layer(x)[3:], layer(x[3:]))


def test_row_gradients_need_a_capture_and_start_as_zero() -> None:
    layer = LinearStack([0, 0], 3, 4, layer_norm=True)
    with pytest.raises(RuntimeError, match=r"^losses: "):
        layer.row_gradients()
    with layer.capture():
        layer(torch.randn(2, 5, 3))
    assert [tuple(g.shape) for g in layer.row_gradients()] == [(2, 3, 4), *[(2, 1, 4)] * 3]
    assert not any(g.any() for g in layer.row_gradients())


@pytest.mark.parametrize("capturing", [False, True])
def test_half_precision_computes_the_products_and_nothing_else(capturing: bool) -> None:
    """Under autocast, outputs and gradients are those of single precision to bfloat16's 8 bits."""
    torch.manual_seed(0)
    index = [0, 0, 1, 2, 2]
    layer = LinearStack(index, 16, 12, layer_norm=True)
    x = torch.randn(5, 8, 16, requires_grad=True)
    cotangent = torch.randn(5, 8, 12)
    results = {}
    for half in (False, True):
        layer.zero_grad()
        x.grad = None
        with (
            layer.capture() if capturing else nullcontext(),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            y = layer(x)
        y.backward(cotangent)
        gradients = layer.row_gradients() if capturing else [p.grad for p in layer.parameters()]
        results[half] = [y.detach(), x.grad, *[g.clone() for g in gradients if g is not None]]
        assert all(tensor.dtype == torch.float32 for tensor in results[half])
    assert not torch.equal(results[False][0], results[True][0])
    for single, half_ in zip(results[False], results[True], strict=True):
        assert (single - half_).norm() < 0.02 * single.norm()
