"""Layers of any `nn.Module`: convolutions, residual blocks, transformer layers.

If all rows have a shared input, every module runs forward once. The backward pass is cut at the
output of such layers. From there it runs once per row, only through that row's modules, and keeps
every row's own gradients. On a CPU this is cheaper than vmap: see
`python -m conal_rl.benchmark conflict`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, gradients_of
from conal_rl.core.rows import RowOrder, is_one_input


class ModuleStack(Layer):
    """One `nn.Module` object for each module of the layer.

    It captures if all rows have the same input. Otherwise row gradients take a backward pass per
    task.
    """

    captured: list[Tensor] | None  # what `row_gradients` returns; empty before the backward pass

    def __init__(self, index: Sequence[int], factory: Callable[[], nn.Module]):
        super().__init__(index)
        self.modules_ = nn.ModuleList(factory() for _ in range(self.count))

    def forward(self, x: Tensor, order: RowOrder | None = None, equal_rows: bool = False) -> Tensor:
        """Map `(row, batch, ...)` to `(row, batch, ...)`, as `Layer.forward`.

        The rows of a module run together in one batch, even if they are equal.

        Raises:
            ValueError: an `order` is given.
            RuntimeError: a second forward pass in one `capture`.
        """
        if order is not None:
            raise ValueError(
                "order: got a RowOrder, expected None, because only linear layers take one. "
                "Leave it out"
            )
        if self.count == 1 and self.captures and is_one_input(x, len(self.index)):
            return _capture_one_input([self], x)
        if self.count == 1:
            return self.modules_[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        outputs: dict[int, Tensor] = {}
        for module, rows in zip(self.modules_, self.rows_of_modules(), strict=True):
            y = module(x[rows].flatten(0, 1)).unflatten(0, (len(rows), x.shape[1]))
            outputs |= dict(zip(rows, y, strict=True))
        return torch.stack([outputs[row] for row in range(len(self.index))])

    def run_modules(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        # Each gets a copy, because a module may work in place.
        return torch.stack([module(x[n].clone()) for n, module in enumerate(self.modules_)])

    def needs_pass_per_task(self) -> bool:
        """See `Layer`: true if the rows had different inputs."""
        return self.captured is None

    def row_gradients(self) -> list[Tensor]:
        """See `Layer`."""
        if self.captured is None:
            raise RuntimeError(
                "row_gradients: got rows with different inputs or no capture(), expected one "
                "captured input for all rows. Take a backward pass per task"
            )
        if not self.captured:  # no loss depends on this layer
            return [p.new_zeros(len(self.index), *p.shape) for p in self.parameters()]
        return self.captured

    def module_parameters(self, module: int) -> list[Tensor]:
        """See `Layer`."""
        return list(self.modules_[module].parameters())

    def copy_module(self, module: int, source: Layer, source_module: int) -> None:
        """See `Layer`.

        Raises:
            TypeError: the source is a different kind of layer.
        """
        if not isinstance(source, ModuleStack):
            raise TypeError(f"source: got {type(source).__name__}, expected ModuleStack")
        self.modules_[module].load_state_dict(source.modules_[source_module].state_dict())

    def _assign_gradient(self, number: int, gradient: Tensor) -> None:
        for module, part in zip(self.modules_, gradient, strict=True):
            parameter = list(module.parameters())[number]
            if parameter.requires_grad:
                parameter.grad = part

    def assign_module_gradients(self, module: int, gradients: Sequence[Tensor]) -> None:
        """See `Layer`."""
        for parameter, gradient in zip(self.modules_[module].parameters(), gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad = gradient


def module_chain(factories: Sequence[Callable[[], nn.Module]]) -> list[LayerFactory]:
    """Return a chain of any modules; each function makes a new module."""
    return [partial(ModuleStack, factory=factory) for factory in factories]


def run_leading_modules(layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, int]:
    """Run the leading layers of a tree that capture modules, on one input for all rows.

    Args:
        layers: from input to output; the rows of a module share all modules before it.
        x: one input for all rows, expanded to `(row, batch, ...)`.

    Returns:
        The output `(row, batch, ...)`, and the number of layers that have run. The caller runs the
        remaining layers on the output.
    """
    leading: list[ModuleStack] = []
    for layer in layers:
        if not isinstance(layer, ModuleStack) or not layer.captures:
            break
        leading.append(layer)
    return (_capture_one_input(leading, x) if leading else x), len(leading)


def _capture_one_input(layers: Sequence[ModuleStack], x: Tensor) -> Tensor:
    """Run every module of leading layers once, and leave `row_gradients` in each layer.

    Args:
        layers: as in `run_leading_modules`.
        x: one input for all rows, `(1, batch, ...)` or expanded to `(row, batch, ...)`.

    Returns:
        `(row, batch, ...)`.
    """
    for layer in layers:
        layer._check_first_pass()
        layer.captured = []
    x = x.expand(len(layers[0].index), *x.shape[1:])
    parameters = [p for layer in layers for p in layer.parameters()]
    return _one_input(x, layers, *parameters)


class _OneInput(torch.autograd.Function):
    """Leading layers of a tree on an input that all rows share: every module runs once.

    The backward pass is cut here and brings every row's own gradient of the output. Each gradient
    then goes back only through the modules of its row. So only these layers run once per row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (row, batch, ...), the same in all rows
        layers: Sequence[ModuleStack],
        *parameters: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            start = x[0].detach().requires_grad_(ctx.needs_input_grad[0])
            paths = _paths(layers, start)
        ctx.start, ctx.paths = start, paths
        ctx.captured = [layer.captured for layer in layers]
        if all(path is paths[0] for path in paths):
            return paths[0].y.detach().expand(len(x), *paths[0].y.shape)
        return torch.stack([path.y.detach() for path in paths])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [ctx.start] if ctx.needs_input_grad[0] else []
        by_row = [
            path.vjp(grad_y, inputs) for path, grad_y in zip(ctx.paths, grads[0], strict=True)
        ]
        # The order of `vjp`: the input first, then layer by layer, parameter by parameter.
        stacked = iter([torch.stack(rows) for rows in zip(*by_row, strict=True)])
        grad_x = next(stacked) if inputs else None
        for captured, module in zip(ctx.captured, ctx.paths[0].modules, strict=True):
            captured[:] = [next(stacked) for _ in module.parameters()]
        return grad_x, *[None] * (len(ctx.needs_input_grad) - 1)


_one_input: Callable[..., Tensor] = _OneInput.apply


class _Path(NamedTuple):
    """The modules that a row runs in sequence, and the output of the last one."""

    modules: list[nn.Module]
    y: Tensor  # (batch, ...)

    def vjp(self, grad_y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of `inputs`, then of all parameters on the path; 0 for frozen ones."""
        parameters = [p for module in self.modules for p in module.parameters()]
        return gradients_of(self.y, [*inputs, *parameters], grad_y)


def _paths(layers: Sequence[ModuleStack], x: Tensor) -> list[_Path]:
    """Every row's path through layers of a tree, `(row,)`, from one input `(batch, ...)`.

    Rows that have run the same modules so far have the same `_Path` object.
    """
    paths = [_Path([], x)] * len(layers[0].index)
    for layer in layers:
        first_rows = [layer.index.index(module) for module in range(layer.count)]
        by_module = [
            # Each gets a copy, because a module may work in place.
            _Path([*paths[row].modules, module], module(paths[row].y.clone()))
            for row, module in zip(first_rows, layer.modules_, strict=True)
        ]
        paths = [by_module[module] for module in layer.index]
    return paths
