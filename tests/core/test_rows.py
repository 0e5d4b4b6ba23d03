"""Blocks of rows: every index is covered, in few blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conal_rl.core.rows import row_blocks


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_blocks_cover_every_row_once_in_order(index: list[int]) -> None:
    blocks = row_blocks(index)
    covered = [
        (
            block.row_start + number * block.rows_per_module + row,
            block.module_start + number * block.module_stride,
        )
        for block in blocks
        for number in range(block.num_modules)
        for row in range(block.rows_per_module)
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
