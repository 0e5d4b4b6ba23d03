"""The parts of rewards and observations equal metaworld's and scipy's own functions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from conal_rl.envs.native.rewards.shaping import gaussian, hamacher, long_tail, prism
from conal_rl.envs.native.vectors import clip, quaternion

lengths = st.floats(0, 2)
shares = st.floats(0, 1)
points = st.tuples(*[st.floats(-1, 1)] * 3)


@settings(deadline=None)  # the first call compiles
@given(x=st.floats(-1, 2), bounds=st.tuples(lengths, lengths), margin=lengths)
def test_tolerance_equals_metaworlds(x: float, bounds: tuple[float, float], margin: float) -> None:
    lower, upper = sorted(bounds)
    for ours, sigmoid in ((long_tail, "long_tail"), (gaussian, "gaussian")):
        official = reward_utils.tolerance(x, (lower, upper), margin, sigmoid)  # type: ignore[arg-type]
        assert ours(x, lower, upper, margin) == pytest.approx(official, rel=1e-12, abs=1e-300)


@settings(deadline=None)  # the first call compiles
@given(shares, shares)
def test_hamacher_product_equals_metaworlds(a: float, b: float) -> None:
    assert hamacher(a, b) == reward_utils.hamacher_product(a, b)


@settings(deadline=None)  # the first call compiles
@given(shares, shares.map(np.float32))
def test_hamacher_product_of_a_float32_is_a_float32(a: float, b: np.float32) -> None:
    try:
        official = reward_utils.hamacher_product(a, b)  # type: ignore[arg-type]
    except AssertionError:  # the official code refuses a value that was rounded to above 1
        return
    assert hamacher(a, float(b), True) == official


@settings(deadline=None)  # the first call compiles
@given(points, points, points)
def test_prism_equals_metaworlds(
    point: tuple[float, ...], zero: tuple[float, ...], one: tuple[float, ...]
) -> None:
    with np.errstate(all="ignore"):
        official = reward_utils.rect_prism_tolerance(*map(np.array, (point, zero, one)))
    if all(a != b for a, b in zip(zero, one)):  # both functions divide by the box's sides
        assert prism(point, zero, one) == pytest.approx(official)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_quaternion_equals_scipys(values: list[float]) -> None:
    if np.linalg.norm(values) < 1e-3:
        values[0] = 1.0
    check(Rotation.from_quat(values).as_matrix())


def test_quaternion_equals_scipys_for_half_turns() -> None:
    """Quarter and half turns make ties between the components that scipy divides by."""
    for rotation in Rotation.create_group("O"):
        check(rotation.as_matrix())


def check(matrix: npt.NDArray[np.float64]) -> None:
    matrix = np.ascontiguousarray(matrix)
    official = Rotation.from_matrix(matrix).as_quat()
    np.testing.assert_allclose(quaternion(matrix.ctypes.data), official, atol=1e-12)


def test_clip_keeps_nan() -> None:
    assert [clip(x, -1.0, 1.0) for x in (-2.0, 0.5, 2.0)] == [-1.0, 0.5, 1.0]
    assert np.isnan(clip(np.nan, -1.0, 1.0))
