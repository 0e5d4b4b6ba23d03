"""Layers of any modules: when they capture every row's own gradients, and when they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.module_stack import ModuleStack
from conal_rl.core.rows import RowOrder
from tests.helpers.reference import randomize


@pytest.mark.parametrize("rows", [1, 3])
def test_a_capture_of_one_input_runs_a_module_once(rows: int) -> None:
    torch.manual_seed(0)
    layer = ModuleStack([0, 0, 0], lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    randomize(layer)
    x = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    cotangents = torch.randn(3, 6, 5, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    expected = [torch.autograd.grad(layer(x), leaves, row[None]) for row in cotangents]
    batches = layer.modules_[0][1].num_batches_tracked  # type: ignore[index]
    before = int(batches)

    with layer.capture():
        y = layer(x.expand(rows, -1, -1))
    torch.testing.assert_close(y, layer(x).expand(3, -1, -1))
    y.backward(cotangents)
    assert int(batches) == before + 2  # once captured, once here
    torch.testing.assert_close(x.grad, sum(row[0] for row in expected))
    for number, gradient in enumerate(layer.row_gradients(), start=1):
        torch.testing.assert_close(gradient, torch.stack([row[number] for row in expected]))
    assert all(p.grad is None for p in layer.parameters())


def test_module_captures_need_one_input_and_a_gradient() -> None:
    layer = ModuleStack([0, 0], lambda: nn.Linear(4, 5))
    with pytest.raises(RuntimeError, match=r"^row_gradients: "):
        layer.row_gradients()
    x = torch.randn(2, 6, 4)
    with layer.capture():
        layer(x)
        with torch.no_grad():
            layer(x[:1])
        assert layer.needs_pass_per_task()
        layer(x[:1])
        assert not layer.needs_pass_per_task()
        assert [tuple(g.shape) for g in layer.row_gradients()] == [(2, 5, 4), (2, 5)]
        assert not any(g.any() for g in layer.row_gradients())
        with pytest.raises(RuntimeError, match=r"^capture: "):
            layer(x[:1])


def test_modules_run_rows_in_no_other_order() -> None:
    layer = ModuleStack([0, 1], lambda: nn.Linear(4, 5))
    assert layer.arrange([1, 0]) is None
    order = RowOrder(torch.tensor([1, 0]), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"^order: "):
        layer(torch.randn(2, 6, 4), order=order)


def test_a_module_is_copied_only_from_its_own_kind() -> None:
    layer = ModuleStack([0], lambda: nn.Linear(4, 5))
    with pytest.raises(TypeError, match=r"^source: .*LinearStack"):
        layer.copy_module(0, LinearStack([0], 4, 5), 0)
