"""Which rows run which module: blocks of rows for batched products, and orders of rows.

A row is a task, or one ensemble member's copy of a task. An index names the module of each row.
Linear layers run an index in blocks, one batched product each. `(0, 0, 0, 1, 3, 5)` is two blocks:

    row       0   1   2 | 3   4   5
    module    0   0   0 | 1   3   5

The first block has 1 module for 3 rows. The second has 3 modules, 2 apart, for 1 row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Neighbouring rows whose modules are equally far apart, each with the same number of rows."""

    row_start: int  # the first row
    module_start: int  # the module of the first row
    num_modules: int
    rows_per_module: int
    module_stride: int = 1  # from one module to the next

    def rows(self, x: Tensor) -> Tensor:
        """The block's rows of contiguous `(row, batch, feature)`, grouped by module.

        Returns:
            A view `(num_modules, rows_per_module * batch, feature)`.
        """
        shape = (self.num_modules, self.rows_per_module * x.shape[1], x.shape[2])
        return _strided_view(x, self.row_start, shape)

    def modules(self, weight: Tensor) -> Tensor:
        """The block's modules of contiguous `(module, in, out)`.

        Returns:
            A view `(num_modules, in, out)`.
        """
        shape = (self.num_modules, *weight.shape[1:])
        return _strided_view(weight, self.module_start, shape, self.module_stride)

    def extended(self, module: int, rows: int) -> Block | None:
        """Return this block with `rows` more rows of `module`; None if these are not a block."""
        stride = module - self.module_start if self.num_modules == 1 else self.module_stride
        next_module = self.module_start + self.num_modules * stride
        if rows != self.rows_per_module or stride < 1 or module != next_module:
            return None
        return self._replace(num_modules=self.num_modules + 1, module_stride=stride)


def _strided_view(x: Tensor, start: int, shape: tuple[int, ...], stride: int = 1) -> Tensor:
    """Return a view of contiguous `x` that slices and reshapes would also give, in one call.

    The view starts at `x[start]`. Its next matrix is `stride` matrices of `x` further. A matrix has
    `shape[1]` rows, so that the step is `stride * shape[1] * shape[2]` numbers.
    """
    assert x.is_contiguous()
    width = shape[2]
    strides = stride * shape[1] * width, width, 1
    return x.as_strided(shape, strides, x.storage_offset() + start * x.stride(0))


def row_blocks(index: Sequence[int]) -> list[Block]:
    """Return few blocks, in the order of the rows, that cover an index."""
    blocks: list[Block] = []
    start = 0
    for module, group in groupby(index):
        rows = len(list(group))
        extended = blocks[-1].extended(module, rows) if blocks else None
        if extended:
            blocks[-1] = extended
        else:
            blocks.append(Block(start, module, 1, rows))
        start += rows
    return blocks


class RowOrder(NamedTuple):
    """An order of rows that differs from the order of the index."""

    order: Tensor  # (row,) the rows in this order
    inverse: Tensor  # (row,) the position of each row in it

    def sort(self, x: Tensor) -> Tensor:
        """Bring `(row, ...)` into this order."""
        return x.index_select(0, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        """The inverse of `sort`."""
        return x.index_select(0, self.inverse)


def is_one_input(x: Tensor, rows: int) -> bool:
    """Return whether `(row, batch, ...)` is a shared input for several rows, expanded or not."""
    return len(x) == 1 < rows or (len(x) == rows > 1 and x.stride(0) == 0)
