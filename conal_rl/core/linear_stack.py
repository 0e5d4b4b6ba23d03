"""The layers of MLPs: linear (+ layer norm) (+ ReLU), stacked, in batched products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core.layers import Layer, LayerFactory
from conal_rl.core.rows import Block, RowOrder, is_one_input, row_blocks


class LinearStack(Layer):
    """Linear (+ layer norm) (+ ReLU), with the weights of all modules stacked.

    Parameters are stacked along the first dimension: weight `(module, in, out)`, bias, gain and
    shift `(module, 1, out)`. Rows run in one batched product per block of rows.

    It captures any input: the backward pass of training also gives every row's own gradients. So
    per-task gradients of shared modules need no second pass.
    """

    rows: Tensor
    captured: _RowGradients | None

    def __init__(
        self,
        index: Sequence[int],
        in_features: int,
        out_features: int,
        layer_norm: bool = False,
        activation: bool = True,
    ):
        super().__init__(index)
        self.activation = activation
        single = partial(torch.empty, dtype=torch.float32)
        bound = in_features**-0.5  # torch.nn.Linear's initialisation, per module
        self.weight = nn.Parameter(
            single(self.count, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(single(self.count, 1, out_features).uniform_(-bound, bound))
        if layer_norm:
            self.gain = nn.Parameter(single(self.count, 1, out_features).fill_(1.0))
            self.shift = nn.Parameter(single(self.count, 1, out_features).zero_())
        self.layer_norm = layer_norm
        self.register_buffer("rows", torch.tensor(self.index), persistent=False)
        self.blocks_in_order = self.blocks
        self._row_weights = single(0)  # kept from step to step, because new memory is slow

    def forward(self, x: Tensor, order: RowOrder | None = None, equal_rows: bool = False) -> Tensor:
        """Map `(row, batch, in)` to `(row, batch, out)`, as `Layer.forward`.

        With `equal_rows` each module's product is made once, for one of its rows. `row_gradients`
        are in the order of the index, even if the rows have a different `order`.

        Raises:
            ValueError: the number of rows does not fit.
            RuntimeError: a second forward pass in one `capture`.
        """
        if self.captures and is_one_input(x, len(self.index)):
            x, equal_rows = x.expand(len(self.index), *x.shape[1:]), True
        if self.count == 1 and len(x) != len(self.index):
            rows = self.rows.new_zeros(len(x))
            return self._run(x, [Block(0, 0, 1, len(x))], rows, equal_rows=equal_rows)
        blocks = self.blocks if order is None else self.blocks_in_order
        captured = self._start_capture(order) if self.captures else None
        return self._run(x, blocks, self.rows, captured, order, equal_rows)

    def run_modules(self, x: Tensor) -> Tensor:
        """Map `(module, batch, in)` to `(module, batch, out)`; nothing is captured.

        Raises:
            ValueError: the number of modules does not fit.
        """
        every = torch.arange(self.count, device=x.device)
        return self._run(x, [Block(0, 0, self.count, 1)], every)

    def run_paths(self, x: Tensor) -> Tensor:
        """Map `(row, path, batch, in)` to `(row, path, batch, out)`, all paths in one product."""
        return self(x.flatten(1, 2)).unflatten(1, x.shape[1:3])

    def _run(
        self,
        x: Tensor,
        blocks: list[Block],
        rows: Tensor,  # (row,) the module of each row, in the order of the index
        captured: _RowGradients | None = None,
        order: RowOrder | None = None,
        equal_rows: bool = False,
    ) -> Tensor:
        if len(x) != len(rows):
            raise ValueError(f"x: got {tuple(x.shape)}, expected {len(rows)} rows first")
        y = _linear(x, self.weight, self.bias, blocks, captured, equal_rows)
        if self.layer_norm:
            rows = rows if order is None else order.sort(rows)
            gain, shift = self.gain.index_select(0, rows), self.shift.index_select(0, rows)
            if captured is not None:
                captured.norm = gain, shift
                for row_copies in captured.norm:
                    if row_copies.requires_grad:
                        row_copies.retain_grad()
            y = torch.addcmul(shift, F.layer_norm(y, y.shape[-1:]), gain)
        return F.relu(y, inplace=True) if self.activation else y

    def arrange(self, order: Sequence[int]) -> int:
        """See `Layer`."""
        self.blocks_in_order = row_blocks([self.index[row] for row in order])
        return len(self.blocks) - len(self.blocks_in_order)

    def _start_capture(self, order: RowOrder | None) -> _RowGradients:
        self._check_first_pass()
        shape = (len(self.index), *self.weight.shape[1:])
        buffer, weight = self._row_weights, self.weight
        if (buffer.shape, buffer.dtype, buffer.device) != (shape, weight.dtype, weight.device):
            self._row_weights = weight.new_empty(shape)
        self.captured = _RowGradients(self._row_weights, order)
        return self.captured

    def _require_captured(self) -> _RowGradients:
        if self.captured is None:
            raise RuntimeError(
                "losses: got a forward pass outside of capture(), expected one inside. "
                "Compute them within `with ...capture():`"
            )
        return self.captured

    def needs_pass_per_task(self) -> bool:
        """See `Layer`: never, because any input is captured."""
        self._require_captured()
        return False

    def row_gradients(self) -> list[Tensor]:
        """See `Layer`."""
        captured = self._require_captured()
        if captured.bias is None:  # no loss depends on this layer
            return [p.new_zeros(len(self.rows), *p.shape[1:]) for p in self.parameters()]
        norm = [torch.zeros_like(c) if c.grad is None else c.grad for c in captured.norm]
        if captured.order is not None:
            norm = [captured.order.unsort(gradient) for gradient in norm]
        return [
            gradient if parameter.requires_grad else torch.zeros_like(gradient)
            for parameter, gradient in zip(
                self.parameters(), [captured.weight, captured.bias, *norm], strict=True
            )
        ]

    def gram(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Layer`."""
        if gradients[0].is_cuda:
            return gram_at_once(self.rows, gradients)
        return super().gram(gradients)

    def module_parameters(self, module: int) -> list[Tensor]:
        """Views of one module's parameters: weight `(in, out)`, the others `(1, out)`."""
        return [parameter[module] for parameter in self.parameters()]

    @torch.no_grad()
    def copy_module(self, module: int, source: Layer, source_module: int) -> None:
        """See `Layer`."""
        theirs = source.module_parameters(source_module)
        for target, values in zip(self.module_parameters(module), theirs, strict=True):
            target.copy_(values)

    def _assign_gradient(self, number: int, gradient: Tensor) -> None:
        parameter = list(self.parameters())[number]
        if parameter.requires_grad:
            parameter.grad = gradient

    def assign_module_gradients(self, module: int, gradients: Sequence[Tensor]) -> None:
        """See `Layer`."""
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad[module] = gradient


def linear_chain(
    in_features: int, widths: Sequence[int], layer_norm: bool = False
) -> list[LayerFactory]:
    """Return a chain of hidden linear layers with ReLU: the trunk of an MLP, for any tree."""
    sizes = [in_features, *widths]
    return [
        partial(LinearStack, in_features=i, out_features=o, layer_norm=layer_norm)
        for i, o in pairwise(sizes)
    ]


def gram_at_once(modules: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Return what `Layer.gram` returns, with more products but in fewer kernels.

    It does not wait for the device.

    Args:
        modules: the module that each row runs, `(row,)`.
        gradients: the gradients of each parameter, `(row, ...)`.
    """
    vectors = [gradient.flatten(1) for gradient in gradients]
    products = torch.stack([v @ v.T for v in vectors]).sum(dim=0)
    return torch.where(modules.unsqueeze(1) == modules, products, 0.0)


class _RowGradients:
    """Every row's own gradient of each parameter of a `LinearStack`, from one backward pass."""

    def __init__(self, weight: Tensor, order: RowOrder | None) -> None:
        self.order = order  # order of the rows in the passes; gradients have the index's order
        self.weight = weight  # (row, in, out), written by the backward pass
        self.bias: Tensor | None = None  # (row, 1, out); None before that pass
        self.norm: tuple[Tensor, ...] = ()  # every row's copy of gain and shift, (row, 1, out)

    def fill(self, x: Tensor, grad_y: Tensor) -> None:
        if self.order is not None:
            x, grad_y = self.order.unsort(x), self.order.unsort(grad_y)
        if x.dtype == self.weight.dtype:
            torch.bmm(x.mT, grad_y, out=self.weight)
        else:
            self.weight.copy_(torch.bmm(x.mT, grad_y))
        self.bias = grad_y.sum(dim=1, keepdim=True, dtype=self.weight.dtype)


class _StackedLinear(torch.autograd.Function):
    """`y_r = x_r W_m(r) + b_m(r)` for all rows, without a copy of the weights for each row.

    While rows are captured, the backward pass fills `captured` with every row's own gradients,
    instead of their sums over the rows of a module. It takes the same number of products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (row, batch, in)
        weight: Tensor,  # (module, in, out)
        bias: Tensor,  # (module, 1, out)
        blocks: list[Block],
        captured: _RowGradients | None,
        equal_rows: bool,  # within each module
    ) -> Tensor:
        product_type, given_type = _product_type(x), weight.dtype
        x, weight = x.to(product_type).contiguous(), weight.to(product_type)
        bias = bias.to(product_type)
        ctx.save_for_backward(x, weight)
        ctx.blocks, ctx.captured = blocks, captured
        y = x.new_empty(*x.shape[:2], weight.shape[2])
        for block in blocks:
            biases, weights = block.modules(bias), block.modules(weight)
            if equal_rows and block.rows_per_module > 1:
                first_rows = block.rows(x)[:, : x.shape[1]]
                once = torch.baddbmm(biases, first_rows, weights)
                # Every row of a module gets the product of its first row.
                by_row = block.rows(y).unflatten(1, (block.rows_per_module, -1))
                by_row.copy_(once.unsqueeze(1))
            else:
                torch.baddbmm(biases, block.rows(x), weights, out=block.rows(y))
        return y.to(given_type)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_y = grads[0].to(x.dtype).contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x)
            for block in ctx.blocks:
                torch.bmm(block.rows(grad_y), block.modules(weight).mT, out=block.rows(grad_x))
        if ctx.captured is not None:
            ctx.captured.fill(x, grad_y)
        elif ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight = torch.zeros_like(weight)
            grad_bias = weight.new_zeros(weight.shape[0], 1, weight.shape[2])
            for block in ctx.blocks:
                rows = block.rows(grad_y)
                # Adding to zeros is faster than `bmm` if there are few rows.
                block.modules(grad_weight).baddbmm_(block.rows(x).mT, rows)
                block.modules(grad_bias).add_(rows.sum(dim=1, keepdim=True))
        # In the precision of the products; autograd converts them to that of the inputs.
        return grad_x, grad_weight, grad_bias, None, None, None


_stacked_linear: Callable[..., Tensor] = _StackedLinear.apply


def _product_type(x: Tensor) -> torch.dtype:
    """Return the type of matrix products: half precision under `torch.autocast`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocks: list[Block],
    captured: _RowGradients | None,
    equal_rows: bool,
) -> Tensor:
    if torch.compiler.is_compiling() and captured is None:
        return _plain_linear(x, weight, bias, blocks)
    return _stacked_linear(x, weight, bias, blocks, captured, equal_rows)


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor, blocks: list[Block]) -> Tensor:
    """Compute `_StackedLinear` in operations that `torch.compile` can follow."""
    product_type, given_type = _product_type(x), weight.dtype
    x, weight, bias = x.to(product_type), weight.to(product_type), bias.to(product_type)
    batch = x.shape[1]
    parts = []
    for block in blocks:
        size, run, stride = block.num_modules, block.rows_per_module, block.module_stride
        modules = slice(block.module_start, block.module_start + (size - 1) * stride + 1, stride)
        rows = slice(block.row_start, block.row_start + size * run)
        y = torch.baddbmm(bias[modules], x[rows].reshape(size, run * batch, -1), weight[modules])
        parts.append(y.reshape(size * run, batch, -1))
    return torch.cat(parts).to(given_type)
