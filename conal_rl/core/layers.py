"""Layers that hold one set of weights per module of a tree and run all tasks at once.

Task-major throughout: an input is `(row, batch, ...)`, where a row is a task (or, for an
ensemble, one member's copy of a task), and a layer knows which of its modules each row runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core.one_input import SECOND_PASS, capture_one_input


class Block(NamedTuple):
    """Rows from `start` on, `run` for each of `size` modules: `first`, `first + step`, ..."""

    start: int
    first: int
    size: int
    run: int
    step: int = 1

    def rows(self, x: Tensor) -> Tensor:
        """The rows in contiguous `(row, batch, feature)`, a view `(size, run * batch, feature)`."""
        return _part(x, self.start, (self.size, self.run * x.shape[1], x.shape[2]))

    def modules(self, weight: Tensor) -> Tensor:
        """The modules in contiguous `(module, in, out)`, a view `(size, in, out)`."""
        return _part(weight, self.first, (self.size, *weight.shape[1:]), self.step)

    def extended(self, module: int, run: int) -> "Block | None":
        """This block and the next `run` rows, of `module`; None if that is not one block."""
        step = module - self.first if self.size == 1 else self.step
        if run != self.run or step < 1 or module != self.first + self.size * step:
            return None
        return self._replace(size=self.size + 1, step=step)


def _part(x: Tensor, start: int, shape: tuple[int, ...], step: int = 1) -> Tensor:
    """A view of contiguous `x` from `x[start]` on, in one call: many slices take time to make."""
    assert x.is_contiguous()
    width = shape[2]
    strides = step * shape[1] * width, width, 1
    return x.as_strided(shape, strides, x.storage_offset() + start * x.stride(0))


def row_blocks(index: Sequence[int]) -> list[Block]:
    """Few blocks, in order of the rows, that run `index`: one batched product each."""
    blocks: list[Block] = []
    start = 0
    for module, rows in groupby(index):
        run = len(list(rows))
        extended = blocks[-1].extended(module, run) if blocks else None
        if extended:
            blocks[-1] = extended
        else:
            blocks.append(Block(start, module, 1, run))
        start += run
    return blocks


class RowOrder(NamedTuple):
    """An order of rows other than that of the index."""

    order: Tensor  # (row,) the rows in this order
    place: Tensor  # (row,) each row's place in it

    def sort(self, x: Tensor) -> Tensor:
        """Bring `(row, ...)` into this order."""
        return x.index_select(0, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        """The inverse of `sort`."""
        return x.index_select(0, self.place)


class _StackedLinear(torch.autograd.Function):
    """`y_r = x_r W_m(r) + b_m(r)` for all rows, without a copy of the weights for each row.

    While rows are captured, the backward pass fills `captured` with every row's own gradients
    instead of summing these over the rows of a module: the same products, in the same number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (row, batch, in)
        weight: Tensor,  # (module, in, out)
        bias: Tensor,  # (module, 1, out)
        blocks: list[Block],
        captured: "_RowGradients | None",
        equal_rows: bool,  # of each module
    ) -> Tensor:
        product, given = _product_type(x), weight.dtype
        x, weight, bias = x.to(product).contiguous(), weight.to(product), bias.to(product)
        ctx.save_for_backward(x, weight)
        ctx.blocks, ctx.captured = blocks, captured
        y = x.new_empty(*x.shape[:2], weight.shape[2])
        for block in blocks:
            weights = block.modules(bias), block.modules(weight)
            if equal_rows and block.run > 1:
                part = block.rows(x)[:, : x.shape[1]]
                once = torch.baddbmm(weights[0], part, weights[1])
                block.rows(y).unflatten(1, (block.run, -1)).copy_(once.unsqueeze(1))
            else:
                torch.baddbmm(weights[0], block.rows(x), weights[1], out=block.rows(y))
        return y.to(given)

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
                # Also where nothing is there yet: for few rows, zeros first is faster than `bmm`.
                block.modules(grad_weight).baddbmm_(block.rows(x).mT, rows)
                block.modules(grad_bias).add_(rows.sum(dim=1, keepdim=True))
        # In the products' precision: autograd turns them into that of the inputs.
        return grad_x, grad_weight, grad_bias, None, None, None


def _product_type(x: Tensor) -> torch.dtype:
    """What matrix products compute in: half precision under `torch.autocast`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _stacked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocks: list[Block],
    captured: "_RowGradients | None",
    equal_rows: bool,
) -> Tensor:
    if torch.compiler.is_compiling() and captured is None:
        return _plain_linear(x, weight, bias, blocks)
    y: Tensor = _StackedLinear.apply(x, weight, bias, blocks, captured, equal_rows)  # type: ignore[no-untyped-call]
    return y


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor, blocks: list[Block]) -> Tensor:
    """The same in operations that `torch.compile` can follow."""
    product, given = _product_type(x), weight.dtype
    x, weight, bias = x.to(product), weight.to(product), bias.to(product)
    batch = x.shape[1]
    parts = []
    for block in blocks:
        modules = slice(block.first, block.first + (block.size - 1) * block.step + 1, block.step)
        rows = slice(block.start, block.start + block.size * block.run)
        part = x[rows].reshape(block.size, block.run * batch, -1)
        y = torch.baddbmm(bias[modules], part, weight[modules])
        parts.append(y.reshape(block.size * block.run, batch, -1))
    return torch.cat(parts).to(given)


class _RowGradients:
    """Every row's own gradient of each parameter of a `LinearStack`, from one backward pass."""

    def __init__(self, weight: Tensor, order: RowOrder | None) -> None:
        self.order = order  # of the rows in the passes; the gradients are in that of the index
        self.weight = weight  # (row, in, out), written by the backward pass
        self.bias: Tensor | None = None  # (row, 1, out); None before it
        self.norm: tuple[Tensor, ...] = ()  # every row's copy of gain and shift, (row, 1, out)

    def fill(self, x: Tensor, grad_y: Tensor) -> None:
        if self.order is not None:
            x, grad_y = self.order.unsort(x), self.order.unsort(grad_y)
        if x.dtype == self.weight.dtype:
            torch.bmm(x.mT, grad_y, out=self.weight)
        else:
            self.weight.copy_(torch.bmm(x.mT, grad_y))
        self.bias = grad_y.sum(dim=1, keepdim=True, dtype=self.weight.dtype)


class LinearStack(nn.Module):
    """Linear (+ layer norm) (+ ReLU) with one weight per module; rows run in batched products.

    Parameters are stacked along the first dimension: weight `(module, in, out)`, bias, gain and
    shift `(module, 1, out)`.

    While `capturing`, the one backward pass of training leaves every row's own gradients for
    `row_gradients` instead of their sums in the parameters: per-task gradients of shared modules
    cost no second pass.
    """

    rows: Tensor

    def __init__(
        self,
        index: Sequence[int],
        in_features: int,
        out_features: int,
        layer_norm: bool = False,
        activation: bool = True,
    ):
        super().__init__()
        self.index = tuple(index)
        self.count = max(self.index) + 1
        self.activation = activation
        self.capturing = False
        self.captured: _RowGradients | None = None
        bound = in_features**-0.5  # torch.nn.Linear's initialisation, per module
        self.weight = nn.Parameter(
            torch.empty(self.count, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(self.count, 1, out_features).uniform_(-bound, bound))
        if layer_norm:
            self.gain = nn.Parameter(torch.ones(self.count, 1, out_features))
            self.shift = nn.Parameter(torch.zeros(self.count, 1, out_features))
        self.layer_norm = layer_norm
        self.register_buffer("rows", torch.tensor(self.index), persistent=False)
        self.blocks = row_blocks(self.index)
        self.blocks_in_order = self.blocks
        self._row_weights = torch.empty(0)  # kept from step to step: new memory is slow memory

    def forward(
        self,
        x: Tensor,
        by_module: bool = False,
        order: RowOrder | None = None,
        equal_rows: bool = False,
    ) -> Tensor:
        """Map `(row, batch, in)` to `(row, batch, out)`; with `by_module` a row is a module.

        A layer of a single module takes any number of rows. Rows are in the order of the index, or
        in an `order` that was given to `arrange`: then the output is, too, but not `row_gradients`.
        With `equal_rows` all rows of a module have the same input, and their product is made once;
        where the layer captures, a single row comes out as all rows.

        Raises:
            ValueError: another number of rows.
        """
        blocks, rows, captured = self.blocks, self.rows, None
        if captures(self) and not by_module and is_one_input(x, len(rows)):
            x, equal_rows = x.expand(len(rows), *x.shape[1:]), True
        if by_module:
            blocks, rows = [Block(0, 0, self.count, 1)], torch.arange(self.count, device=x.device)
        elif self.count == 1 and len(x) != len(rows):
            blocks, rows = [Block(0, 0, 1, len(x))], rows.new_zeros(len(x))
        else:
            if order is not None:
                blocks = self.blocks_in_order
            if captures(self):
                captured = self._capture(order)
        if len(x) != len(rows):
            raise ValueError(f"expected {len(rows)} rows, got input {tuple(x.shape)}")
        y = _stacked_linear(x, self.weight, self.bias, blocks, captured, equal_rows)
        if self.layer_norm:
            rows = rows if order is None else order.sort(rows)
            gain, shift = self.gain.index_select(0, rows), self.shift.index_select(0, rows)
            if captured is not None:
                captured.norm = gain, shift
                for rows_own in captured.norm:
                    if rows_own.requires_grad:
                        rows_own.retain_grad()
            y = torch.addcmul(shift, F.layer_norm(y, y.shape[-1:]), gain)
        return F.relu(y, inplace=True) if self.activation else y

    def arrange(self, order: Sequence[int]) -> int:
        """Make ready for `forward` on rows in this order, and count the products that it takes."""
        self.blocks_in_order = row_blocks([self.index[row] for row in order])
        return len(self.blocks_in_order)

    def _capture(self, order: RowOrder | None) -> _RowGradients:
        if self.captured is not None:
            raise RuntimeError(SECOND_PASS)
        shape = (len(self.index), *self.weight.shape[1:])
        buffer, weight = self._row_weights, self.weight
        if (buffer.shape, buffer.dtype, buffer.device) != (shape, weight.dtype, weight.device):
            self._row_weights = weight.new_empty(shape)
        self.captured = _RowGradients(self._row_weights, order)
        return self.captured

    def row_gradients(self) -> list[Tensor]:
        """Every row's own gradient of each parameter, `(row, ...)`, after a captured backward.

        They last until the next one, which writes into the same memory.
        """
        captured = self.captured
        if captured is None:
            raise RuntimeError("the losses were computed outside of capture()")
        if captured.bias is None:  # no loss depends on this layer
            return [p.new_zeros(len(self.rows), *p.shape[1:]) for p in self.parameters()]
        norm = [torch.zeros_like(c) if c.grad is None else c.grad for c in captured.norm]
        if captured.order is not None:
            norm = [captured.order.unsort(gradient) for gradient in norm]
        found = [captured.weight, captured.bias, *norm]
        learning = [p.requires_grad for p in self.parameters()]
        return [g if own else torch.zeros_like(g) for g, own in zip(found, learning, strict=True)]

    @torch.no_grad()
    def copy_module(self, module: int, source: "LinearStack", source_module: int) -> None:
        """Take over one module's parameters from a layer of the same shape."""
        for mine, theirs in zip(self.parameters(), source.parameters(), strict=True):
            mine[module] = theirs[source_module]


def is_one_input(x: Tensor, rows: int) -> bool:
    """Whether `(row, batch, ...)` is one input for several rows, as it is or expanded."""
    return len(x) == 1 < rows or (len(x) == rows > 1 and x.stride(0) == 0)


class ModuleStack(nn.Module):
    """The same for any `nn.Module` (convolutions, transformer layers): one module object each.

    While `capturing`, a layer of one module leaves every row's own gradients for `row_gradients`
    if all rows have the same input.
    """

    def __init__(self, index: Sequence[int], factory: Callable[[], nn.Module]):
        super().__init__()
        self.index = tuple(index)
        self.count = max(self.index) + 1
        self.modules_ = nn.ModuleList(factory() for _ in range(self.count))
        self.capturing = False
        self.captured: list[Tensor] | None = None  # as `row_gradients`; empty before them

    def forward(self, x: Tensor, by_module: bool = False) -> Tensor:
        """Map `(row, batch, ...)` to `(row, batch, ...)`, the rows of a module run together.

        A layer of a single module takes any number of rows. Where it captures, a single row comes
        out as all rows.
        """
        if by_module:
            # A copy for each, as a module may work in place.
            return torch.stack([m(x[n].clone()) for n, m in enumerate(self.modules_)])
        if self.count == 1 and captures(self) and is_one_input(x, len(self.index)):
            return capture_one_input([self], x)
        if self.count == 1:
            return self.modules_[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        outputs: dict[int, Tensor] = {}
        for number, module in enumerate(self.modules_):
            rows = [row for row, used in enumerate(self.index) if used == number]
            y = module(x[rows].flatten(0, 1)).unflatten(0, (len(rows), x.shape[1]))
            outputs |= dict(zip(rows, y, strict=True))
        return torch.stack([outputs[row] for row in range(len(self.index))])

    def row_gradients(self) -> list[Tensor]:
        """Every row's own gradient of each parameter, `(row, ...)`, after a captured backward."""
        if self.captured is None:
            raise RuntimeError("the losses were computed outside of capture()")
        if not self.captured:  # no loss depends on this layer
            return [p.new_zeros(len(self.index), *p.shape) for p in self.parameters()]
        return self.captured

    def copy_module(self, module: int, source: "ModuleStack", source_module: int) -> None:
        """Take over one module's parameters and buffers from a layer of the same kind."""
        self.modules_[module].load_state_dict(source.modules_[source_module].state_dict())


Layer = LinearStack | ModuleStack
"""One layer of a tree: `count` modules, and in `index` the module that every row runs."""


def captures(layer: Layer) -> bool:
    """Whether a forward pass of the layer is to leave every row's own gradients."""
    return layer.capturing and torch.is_grad_enabled()


LayerFactory = Callable[[tuple[int, ...]], Layer]
"""Makes a layer for a row-to-module index; a chain of modules is a sequence of these."""


def linear_chain(
    in_features: int, widths: Sequence[int], layer_norm: bool = False
) -> list[LayerFactory]:
    """A chain of hidden linear layers with ReLU: an MLP's trunk, ready for any tree."""
    sizes = [in_features, *widths]
    return [
        partial(LinearStack, in_features=i, out_features=o, layer_norm=layer_norm)
        for i, o in pairwise(sizes)
    ]


def module_chain(factories: Sequence[Callable[[], nn.Module]]) -> list[LayerFactory]:
    """A chain of arbitrary modules, each given by a function that makes a fresh one."""
    return [partial(ModuleStack, factory=factory) for factory in factories]
