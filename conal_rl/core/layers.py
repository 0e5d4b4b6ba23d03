"""The interface of a layer, which holds the weights of several modules and runs all tasks at once.

All tensors are task-major: an input is `(row, batch, ...)`. A row is a task or, in an ensemble, one
member's copy of a task. A layer knows the module of each row. Its two kinds are `LinearStack`
(`linear_stack.py`) and `ModuleStack` (`module_stack.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from conal_rl.core.rows import RowOrder, row_blocks


class Layer(nn.Module, ABC):
    """One layer of a tree: several modules of the same shape.

    While the layer captures, a forward pass prepares for `row_gradients`. The backward pass of
    training then keeps every row's own gradients, instead of their sums in the parameters.

    Attributes:
        index: the module that each row runs, `(row,)`, from 0.
        count: number of modules.
        blocks: the index in blocks of rows.
        captured: the data that a captured forward pass keeps for `row_gradients`; None before it.
    """

    captured: object | None

    def __init__(self, index: Sequence[int]):
        super().__init__()
        self.index = tuple(index)
        self.count = max(self.index) + 1
        self.blocks = row_blocks(self.index)
        self._capturing = False
        self.captured = None

    # Forward passes

    @abstractmethod
    def forward(self, x: Tensor, order: RowOrder | None = None, equal_rows: bool = False) -> Tensor:
        """Map `(row, batch, ...)` to `(row, batch, ...)`, each row with its module.

        A layer of one module takes any number of rows. If it captures, an input of one row gives an
        output of all rows.

        Args:
            x: the input, in the order of the index or in `order`; the output has the same order.
            order: an order that `arrange` has accepted.
            equal_rows: whether all rows of a module surely have the same input, which may save
                work.
        """

    @abstractmethod
    def run_modules(self, x: Tensor) -> Tensor:
        """Map `(module, batch, ...)` to `(module, batch, ...)`; nothing is captured."""

    def run_paths(self, x: Tensor) -> Tensor:
        """Map `(row, path, batch, ...)` to the same: several inputs for each row's module.

        The paths run in sequence, because some modules (batch norm) must not mix them.
        """
        return torch.stack([self(path) for path in x.unbind(1)], dim=1)

    def arrange(self, order: Sequence[int]) -> int | None:
        """Prepare for `forward` on rows in this order.

        Returns:
            The number of products that this order saves in a pass; None if the layer takes only the
            order of the index.
        """
        return None

    # Every row's own gradients

    @property
    def captures(self) -> bool:
        """Whether a forward pass now prepares for every row's own gradients."""
        return self._capturing and torch.is_grad_enabled()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Make a forward pass in this context prepare for `row_gradients`."""
        self.release()
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def release(self) -> None:
        """Forget what was captured."""
        self.captured = None

    def _check_first_pass(self) -> None:
        if self.captured is not None:
            raise RuntimeError(
                "capture: got a second forward pass of a layer, expected one. "
                "Compute all losses in one forward pass"
            )

    @abstractmethod
    def needs_pass_per_task(self) -> bool:
        """Whether row gradients take a backward pass per task, because nothing was captured.

        Raises:
            RuntimeError: the layer can capture any input, but `capture` was not used.
        """

    @abstractmethod
    def row_gradients(self) -> list[Tensor]:
        """Every row's own gradient of each parameter, `(row, ...)`, after a captured backward pass.

        They are valid until the next one, which may write into the same memory.

        Raises:
            RuntimeError: nothing was captured.
        """

    def rows_of_modules(self) -> list[list[int]]:
        """The rows that run each module, in order, `[module][...]`."""
        rows: list[list[int]] = [[] for _ in range(self.count)]
        for row, module in enumerate(self.index):
            rows[module].append(row)
        return rows

    def same_module(self) -> Tensor:
        """`(row, row)`, true if two different rows run the same module."""
        index = torch.tensor(self.index)
        return (index.unsqueeze(1) == index) & ~torch.eye(len(index), dtype=torch.bool)

    def gram(self, gradients: Sequence[Tensor]) -> Tensor:
        """Inner products `(row, row)` of the rows' gradients of all parameters.

        Rows that run different modules have 0: their gradients are of different weights.

        Args:
            gradients: of each parameter `(row, ...)`, as `row_gradients` returns them.
        """
        products = gradients[0].new_zeros(len(self.index), len(self.index))
        for rows in self.rows_of_modules():
            first, last = rows[0], rows[-1]
            # A slice is a view; a list of neighbouring rows would be a copy.
            select = slice(first, last + 1) if last - first + 1 == len(rows) else rows
            vectors = [gradient[select].flatten(1) for gradient in gradients]
            inner = torch.stack([v @ v.T for v in vectors]).sum(dim=0)
            products[torch.tensor(rows).unsqueeze(1), torch.tensor(rows)] = inner
        return products

    # The parameters of modules

    @abstractmethod
    def module_parameters(self, module: int) -> list[Tensor]:
        """The parameters of one module; views if a parameter holds those of several modules."""

    @abstractmethod
    def copy_module(self, module: int, source: Layer, source_module: int) -> None:
        """Copy one module's parameters and buffers from a layer of the same kind and shape."""

    def assign_gradients(self, gradients: Sequence[Tensor], weights: Tensor) -> None:
        """Set each parameter's gradient to a weighted sum of the rows' gradients.

        Frozen parameters get no gradient, because weight decay would move them.

        Args:
            gradients: of each parameter `(row, ...)`, as `row_gradients` returns them.
            weights: the weight of each row, `(row,)`.
        """
        for number, gradient in enumerate(gradients):
            flat = gradient.flatten(1)
            total = flat.new_zeros(self.count, 1, flat.shape[1])
            # One batched product: for each module of a block (1 x rows) @ (rows x numbers).
            for block in self.blocks:
                size, run = block.num_modules, block.rows_per_module
                rows = slice(block.row_start, block.row_start + size * run)
                block.modules(total).baddbmm_(
                    weights[rows].view(size, 1, run), flat[rows].unflatten(0, (size, run))
                )
            self._assign_gradient(number, total.view(self.count, *gradient.shape[1:]))

    @abstractmethod
    def _assign_gradient(self, number: int, gradient: Tensor) -> None:
        """Set the gradient `(module, ...)` of the modules' parameter of this number."""

    @abstractmethod
    def assign_module_gradients(self, module: int, gradients: Sequence[Tensor]) -> None:
        """Replace the gradients of one module's parameters that have one."""


LayerFactory = Callable[[tuple[int, ...]], Layer]
"""Makes a layer for an index of rows. A chain of modules is a sequence of these."""


class LayerList(nn.ModuleList):
    """An `nn.ModuleList` that type checkers know to hold layers."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Layer]: ...

        @overload
        def __getitem__(self, idx: slice) -> LayerList: ...

        @overload
        def __getitem__(self, idx: int) -> Layer: ...

        def __getitem__(self, idx: int | slice) -> Layer | LayerList: ...


def gradients_of(
    y: Tensor, wanted: Sequence[Tensor], grad_y: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the gradients of `wanted` and keep the graph; 0 for frozen or unused tensors."""
    learning = [tensor for tensor in wanted if tensor.requires_grad]
    gradients = iter(
        torch.autograd.grad(
            y, learning, grad_y, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(gradients) if t.requires_grad else torch.zeros_like(t) for t in wanted)
