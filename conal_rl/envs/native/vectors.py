"""Points in space for compiled code.

A point is a tuple of three floats. `load` reads one from MuJoCo's memory.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

Vector = tuple[float, float, float]  # metres

compiled = njit(error_model="numpy")
"""Compile a function. A division by zero gives inf or NaN as in numpy, without an exception."""


def _memory_of(kind: Any) -> Any:
    @intrinsic
    def memory(context: Any, address: Any) -> Any:
        del context, address

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), codegen

    return memory


floats = _memory_of(types.float64)
"""Return the float64 memory at an address, as a C pointer."""
integers = _memory_of(types.int32)
"""Return the int32 memory at an address, as a C pointer."""


@compiled
def load(address: int) -> Vector:
    """Return the three floats at an address."""
    memory = floats(address)
    return (memory[0], memory[1], memory[2])


@compiled
def add(a: Vector, b: Vector) -> Vector:
    """Return a + b."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@compiled
def subtract(a: Vector, b: Vector) -> Vector:
    """Return a - b."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


@compiled
def scaled(a: Vector, weights: Vector) -> Vector:
    """Return a * weights for each axis."""
    return (a[0] * weights[0], a[1] * weights[1], a[2] * weights[2])


@compiled
def middle(a: Vector, b: Vector) -> Vector:
    """Return (a + b) / 2."""
    return ((a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0, (a[2] + b[2]) / 2.0)


@compiled
def norm(a: Vector) -> float:
    """Return the Euclidean length."""
    return math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])


@compiled
def norm2(x: float, y: float) -> float:
    """Return the Euclidean length in a plane."""
    return math.sqrt(x * x + y * y)


@compiled
def distance(a: Vector, b: Vector) -> float:
    """Return the Euclidean distance."""
    return norm(subtract(a, b))


@compiled
def clip(x: float, low: float, high: float) -> float:
    """Clip as `numpy.clip` does: NaN stays NaN."""
    if x < low:
        return low
    return high if x > high else x


@compiled
def quaternion(address: int) -> tuple[float, float, float, float]:
    """Return the rotation matrix at an address (9 floats, row by row) as (x, y, z, w).

    There are four formulas, one for each component that they divide by. The function divides by
    the largest component, as `scipy.spatial.transform.Rotation.from_matrix` does, so that the signs
    agree too.
    """
    m = floats(address)
    trace = m[0] + m[4] + m[8]
    if trace > m[0] and trace > m[4] and trace > m[8]:
        x, y, z, w = m[7] - m[5], m[2] - m[6], m[3] - m[1], 1.0 + trace
    elif m[0] >= m[4] and m[0] >= m[8]:
        x, y, z, w = 1.0 - trace + 2.0 * m[0], m[3] + m[1], m[6] + m[2], m[7] - m[5]
    elif m[4] >= m[8]:
        x, y, z, w = m[1] + m[3], 1.0 - trace + 2.0 * m[4], m[7] + m[5], m[2] - m[6]
    else:
        x, y, z, w = m[2] + m[6], m[5] + m[7], 1.0 - trace + 2.0 * m[8], m[3] - m[1]
    length = math.sqrt(x * x + y * y + z * z + w * w)
    return (x / length, y / length, z / length, w / length)
