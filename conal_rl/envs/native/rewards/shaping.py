"""What rewards are made of: the state they read, and `metaworld.utils.reward_utils`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from conal_rl.envs.native.vectors import Vector, compiled, subtract

Outcome = tuple[float, bool]  # reward, success


class Scene(NamedTuple):
    """What a reward reads of the state that a step has led to; positions in metres."""

    hand: Vector  # as observed: clipped to the hand's space
    opened: float  # the gripper, 0 closed to 1 open
    object: Vector  # as observed
    rotation: tuple[float, float, float, float]  # of the object, as observed
    second: Vector  # the other object, where a task has two, as observed
    tcp: Vector  # between the fingertips
    left_pad: Vector
    right_pad: Vector
    joint: float  # of the task's mechanism, rad or m
    marks: tuple[Vector, Vector, Vector, Vector, Vector]  # sites that the task names


class Start(NamedTuple):
    """What a reward remembers of the episode's reset."""

    target: Vector
    object: Vector
    tcp: Vector
    hand: Vector
    mark: Vector  # a further position, such as a handle's
    length: float  # such as a button's travel


@compiled
def long_tail(x: float, lower: float, upper: float, margin: float) -> float:
    """`reward_utils.tolerance` with its long_tail sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    scale = math.sqrt(1 / 0.1 - 1)
    return 1 / ((d * scale) ** 2 + 1)


@compiled
def gaussian(x: float, lower: float, upper: float, margin: float) -> float:
    """`reward_utils.tolerance` with its gaussian sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    return math.exp(-0.5 * (d * math.sqrt(-2 * math.log(0.1))) ** 2)


@compiled
def rounded(x: float, narrow: bool) -> float:
    """To float32's precision where `narrow`. Rounding each operation's result is exact."""
    return float(np.float32(x)) if narrow else x


@compiled
def plus(a: float, b: float, narrow: bool) -> float:
    """a + b, in float32 where `narrow`."""
    return rounded(rounded(a, narrow) + rounded(b, narrow), narrow)


@compiled
def hamacher(a: float, b: float, narrow: bool = False) -> float:
    """`reward_utils.hamacher_product`, in float32 where `narrow`."""
    a, b = rounded(a, narrow), rounded(b, narrow)
    product = rounded(a * b, narrow)
    denominator = rounded(rounded(a + b, narrow) - product, narrow)
    return rounded(product / denominator, narrow) if denominator > 0 else 0.0


@compiled
def inside(point: Vector, zero: Vector, one: Vector) -> bool:
    """Whether a point is in the box between two corners."""
    within = True
    for i in range(3):
        within = within and min(zero[i], one[i]) <= point[i] <= max(zero[i], one[i])
    return within


@compiled
def prism(point: Vector, zero: Vector, one: Vector) -> float:
    """`reward_utils.rect_prism_tolerance`."""
    if not inside(point, zero, one):
        return 1.0
    x, y, z = subtract(one, zero)
    px, py, pz = subtract(point, zero)
    return (px / x) * (py / y) * (pz / z)


@compiled
def funnel(radius: float, throat: float, steepness: float, height: float) -> float:
    """How high above a funnel's foot its wall is at a radius; 0 inside the throat."""
    return 0.0 if radius <= throat else steepness * math.log(radius - throat) + height


@compiled
def upright(rotation: tuple[float, float, float, float], w: float, z: float, slack: float) -> float:
    """1 where a rotation is the quaternion (w, 0, 0, z), 0 where it differs by `slack`."""
    a, b, c, d = rotation
    error = math.sqrt((a - w) ** 2 + b**2 + c**2 + (d - z) ** 2)
    return max(1.0 - error / slack, 0.0)
