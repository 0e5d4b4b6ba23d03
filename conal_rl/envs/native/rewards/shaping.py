"""Parts of the rewards: the state that they read, and `metaworld.utils.reward_utils`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from conal_rl.envs.native.vectors import Vector, compiled, subtract

Outcome = tuple[float, bool]  # reward, success


class Scene(NamedTuple):
    """The state after a step, as far as a reward reads it. Positions are in metres."""

    hand: Vector  # as observed, which means clipped to the hand's space
    opened: float  # the gripper, from 0 (closed) to 1 (open)
    object: Vector  # as observed
    rotation: tuple[float, float, float, float]  # of the object, as observed
    second: Vector  # the second object, as observed, if the task has two
    tcp: Vector  # the point between the fingertips
    left_pad: Vector
    right_pad: Vector
    joint: float  # of the task's mechanism, rad or m
    marks: tuple[Vector, Vector, Vector, Vector, Vector]  # sites of `CompiledTask.marks`


class Start(NamedTuple):
    """The state directly after the episode's reset, as far as a reward reads it."""

    target: Vector
    object: Vector
    tcp: Vector
    hand: Vector
    mark: Vector  # a further position, such as a handle's start
    length: float  # a length, such as a button's travel, m


@compiled
def long_tail(x: float, lower: float, upper: float, margin: float) -> float:
    """Return `reward_utils.tolerance` with its long_tail sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    scale = math.sqrt(1 / 0.1 - 1)
    return 1 / ((d * scale) ** 2 + 1)


@compiled
def gaussian(x: float, lower: float, upper: float, margin: float) -> float:
    """Return `reward_utils.tolerance` with its gaussian sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    return math.exp(-0.5 * (d * math.sqrt(-2 * math.log(0.1))) ** 2)


@compiled
def rounded(x: float, narrow: bool) -> float:
    """Round to float32 if `narrow`. Rounding every operation's result equals float32 arithmetic."""
    return float(np.float32(x)) if narrow else x


@compiled
def plus(a: float, b: float, narrow: bool) -> float:
    """Return a + b, in float32 if `narrow`."""
    return rounded(rounded(a, narrow) + rounded(b, narrow), narrow)


@compiled
def hamacher(a: float, b: float, narrow: bool = False) -> float:
    """Return `reward_utils.hamacher_product`, in float32 if `narrow`."""
    a, b = rounded(a, narrow), rounded(b, narrow)
    product = rounded(a * b, narrow)
    denominator = rounded(rounded(a + b, narrow) - product, narrow)
    return rounded(product / denominator, narrow) if denominator > 0 else 0.0


@compiled
def inside(point: Vector, zero: Vector, one: Vector) -> bool:
    """Return whether a point is in the box between two corners."""
    within = True
    for i in range(3):
        within = within and min(zero[i], one[i]) <= point[i] <= max(zero[i], one[i])
    return within


@compiled
def prism(point: Vector, zero: Vector, one: Vector) -> float:
    """Return `reward_utils.rect_prism_tolerance`."""
    if not inside(point, zero, one):
        return 1.0
    x, y, z = subtract(one, zero)
    px, py, pz = subtract(point, zero)
    return (px / x) * (py / y) * (pz / z)


@compiled
def funnel(radius: float, throat: float, steepness: float, height: float) -> float:
    """Return the height of a funnel's wall at a radius. It is 0 inside the throat."""
    return 0.0 if radius <= throat else steepness * math.log(radius - throat) + height


@compiled
def upright(rotation: tuple[float, float, float, float], w: float, z: float, slack: float) -> float:
    """Return 1 for the quaternion (w, 0, 0, z), and 0 for a rotation that differs by `slack`."""
    a, b, c, d = rotation
    error = math.sqrt((a - w) ** 2 + b**2 + c**2 + (d - z) ** 2)
    return max(1.0 - error / slack, 0.0)
