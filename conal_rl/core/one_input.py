"""Per-row gradients of arbitrary modules that run once, as all rows have the same input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from conal_rl.core.layers import ModuleStack

SECOND_PASS = "a second forward pass of this layer in one capture()"


def gradients_of(
    y: Tensor, wanted: Sequence[Tensor], grad_y: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The gradients of `wanted`, of a pass that is kept for others; 0 where there is none."""
    learning = [tensor for tensor in wanted if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(
            y, learning, grad_y, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(found) if t.requires_grad else torch.zeros_like(t) for t in wanted)


class _Way(NamedTuple):
    """The modules that a row runs one after another, and what comes out of the last of them."""

    modules: list[nn.Module]
    y: Tensor  # (batch, ...)

    def vjp(self, grad_y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of `inputs`, then of all parameters on the way; 0 where one is frozen."""
        parameters = [p for module in self.modules for p in module.parameters()]
        return gradients_of(self.y, [*inputs, *parameters], grad_y)


class _OneInput(torch.autograd.Function):
    """Leading layers of a tree on an input that all rows share: every module runs once.

    The backward pass is cut here. It brings every row's own gradient of the output, and each goes
    through the modules of its row alone, so that nothing outside of these layers runs once per
    row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (row, batch, ...), the same in all rows
        layers: Sequence[ModuleStack],
        *parameters: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            own = x[0].detach().requires_grad_(ctx.needs_input_grad[0])
            ways = _ways(layers, own)
        ctx.own, ctx.ways = own, ways
        ctx.captured = [layer.captured for layer in layers]
        if all(way is ways[0] for way in ways):
            return ways[0].y.detach().expand(len(x), *ways[0].y.shape)
        return torch.stack([way.y.detach() for way in ways])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [ctx.own] if ctx.needs_input_grad[0] else []
        rows = [way.vjp(grad_y, inputs) for way, grad_y in zip(ctx.ways, grads[0], strict=True)]
        found = iter([torch.stack(gradients) for gradients in zip(*rows, strict=True)])
        grad_x = next(found) if inputs else None
        for captured, module in zip(ctx.captured, ctx.ways[0].modules, strict=True):
            captured[:] = [next(found) for _ in module.parameters()]
        return grad_x, *[None] * (len(ctx.needs_input_grad) - 1)


def _ways(layers: Sequence[ModuleStack], x: Tensor) -> list[_Way]:
    """Every row's way through layers of a tree, `(row,)`, from one input `(batch, ...)`."""
    ways = [_Way([], x)] * len(layers[0].index)
    for layer in layers:
        first = [layer.index.index(number) for number in range(layer.count)]
        longer = [
            # A copy for each, as a module may work in place.
            _Way([*ways[row].modules, module], module(ways[row].y.clone()))
            for row, module in zip(first, layer.modules_, strict=True)
        ]
        ways = [longer[number] for number in layer.index]
    return ways


def capture_one_input(layers: Sequence[ModuleStack], x: Tensor) -> Tensor:
    """Run every module of a tree's leading layers once, and leave `row_gradients` in each layer.

    Args:
        layers: the rows of a module share all modules before it.
        x: one input for all rows, `(1, batch, ...)` or expanded to `(row, batch, ...)`.

    Returns:
        `(row, batch, ...)`.
    """
    for layer in layers:
        if layer.captured is not None:
            raise RuntimeError(SECOND_PASS)
        layer.captured = []
    x = x.expand(len(layers[0].index), *x.shape[1:])
    parameters = [p for layer in layers for p in layer.parameters()]
    y: Tensor = _OneInput.apply(x, layers, *parameters)  # type: ignore[no-untyped-call]
    return y
