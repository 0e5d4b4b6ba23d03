"""The v2 rewards of MT10 in compiled code, equal to those of metaworld 3.1.1.

Each function is one task's `compute_reward` and the `success` of its `evaluate_state`, in the
order of the original's operations. Where an action is float32, so is what the original derives
from it (a Python float yields to a numpy float32, NEP 50): `narrow` repeats that rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from conal_rl.envs.native.vectors import Vector, distance, norm, norm2, subtract

Outcome = tuple[float, bool]  # reward, success


class Scene(NamedTuple):
    """What a reward reads of the state that a step has led to; positions in metres."""

    hand: Vector  # as observed: clipped to the hand's space
    opened: float  # the gripper, 0 closed to 1 open
    object: Vector  # as observed
    tcp: Vector  # between the fingertips
    left_pad: Vector
    right_pad: Vector
    joint: float  # of the task's mechanism, rad
    marks: tuple[Vector, Vector, Vector, Vector, Vector]  # sites that only peg-insert-side reads


class Start(NamedTuple):
    """What a reward remembers of the episode's reset."""

    target: Vector
    object: Vector
    tcp: Vector
    hand: Vector
    mark: Vector  # of the window's handle or the peg's head
    length: float  # of the button's travel


@njit
def long_tail(x: float, lower: float, upper: float, margin: float) -> float:
    """`reward_utils.tolerance` with its long_tail sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    scale = math.sqrt(1 / 0.1 - 1)
    return 1 / ((d * scale) ** 2 + 1)


@njit
def gaussian(x: float, lower: float, upper: float, margin: float) -> float:
    """`reward_utils.tolerance` with its gaussian sigmoid, 0.1 at the margin."""
    if lower <= x <= upper:
        return 1.0
    if margin == 0.0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    return math.exp(-0.5 * (d * math.sqrt(-2 * math.log(0.1))) ** 2)


@njit
def rounded(x: float, narrow: bool) -> float:
    """To float32's precision where `narrow`. Rounding each operation's result is exact."""
    return float(np.float32(x)) if narrow else x


@njit
def hamacher(a: float, b: float, narrow: bool = False) -> float:
    """`reward_utils.hamacher_product`, in float32 where `narrow`."""
    a, b = rounded(a, narrow), rounded(b, narrow)
    product = rounded(a * b, narrow)
    denominator = rounded(rounded(a + b, narrow) - product, narrow)
    return rounded(product / denominator, narrow) if denominator > 0 else 0.0


@njit
def closing(effort: float) -> float:
    """How hard the gripper is told to close, 0 to 1."""
    return min(max(0.0, effort), 1.0)


@njit
def stays_narrow(effort: float, single: bool) -> bool:
    """Whether `closing(effort)` is the action's own float32, not one of the clip's bounds."""
    return single and 0.0 < effort <= 1.0


@njit
def grasped(caging: float, effort: float, single: bool) -> tuple[float, bool]:
    """Caging with gripping, high density: the reward, and whether it is float32."""
    gripping = closing(effort) if caging > 0.97 else 0.0
    narrow = caging > 0.97 and stays_narrow(effort, single)
    both = rounded(hamacher(caging, gripping, narrow) + rounded(caging, narrow), narrow)
    return both / 2, narrow


@njit
def gripper_caging(
    scene: Scene,
    start: Start,
    effort: float,
    single: bool,
    radius: float,
    pad_threshold: float,
    xz_threshold: float,
) -> tuple[float, bool]:
    """`SawyerXYZEnv._gripper_caging_reward`, high density; as `grasped`."""
    left_x = abs(scene.left_pad[1] - scene.object[1])
    right_x = abs(scene.right_pad[1] - scene.object[1])
    left_margin = abs(abs(scene.left_pad[1] - start.object[1]) - pad_threshold)
    right_margin = abs(abs(scene.right_pad[1] - start.object[1]) - pad_threshold)
    caging_y = hamacher(
        long_tail(left_x, radius, pad_threshold, left_margin),
        long_tail(right_x, radius, pad_threshold, right_margin),
    )
    margin = norm2(start.object[0] - start.tcp[0], start.object[2] - start.tcp[2]) - xz_threshold
    apart = norm2(scene.tcp[0] - scene.object[0], scene.tcp[2] - scene.object[2])
    caging = hamacher(caging_y, long_tail(apart, 0.0, xz_threshold, margin))
    return grasped(caging, effort, single)


@njit
def reach(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerReachEnvV3."""
    to_target = distance(scene.tcp, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.hand, start.target))
    return 10 * in_place, to_target <= 0.05


@njit
def push(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPushEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    grasp, narrow = gripper_caging(scene, start, effort, single, 0.015, 0.05, 0.005)
    reward = 2 * grasp
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0:
        more = rounded(rounded(1.0 + reward, narrow) + rounded(5.0 * in_place, narrow), narrow)
        reward = rounded(reward + more, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.05


@njit
def pick_place(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPickPlaceEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))

    # The original's "initial" pads are views of MuJoCo's memory: they are the present pads.
    left_margin = abs(abs(scene.object[1] - scene.left_pad[1]) - 0.05)
    right_margin = abs(abs(scene.object[1] - scene.right_pad[1]) - 0.05)
    y_caging = hamacher(
        long_tail(scene.left_pad[1] - scene.object[1], 0.015, 0.05, left_margin),
        long_tail(scene.object[1] - scene.right_pad[1], 0.015, 0.05, right_margin),
    )
    margin = norm2(start.object[0] - start.tcp[0], start.object[2] - start.tcp[2]) - 0.005
    apart = norm2(scene.tcp[0] - scene.object[0], scene.tcp[2] - scene.object[2])
    caging = hamacher(y_caging, long_tail(apart, 0.0, 0.005, margin))
    grasp, narrow = grasped(caging, effort, single)

    reward = hamacher(grasp, in_place, narrow)
    lifted = scene.object[2] - 0.01 > start.object[2]
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0 and lifted:
        reward = rounded(reward + rounded(1.0 + 5.0 * in_place, narrow), narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@njit
def door_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDoorEnvV3."""
    grab = rounded(min(max(effort, -1.0), 1.0) + 1.0, single) / 2.0
    door = (scene.object[0] + -0.05, scene.object[1], scene.object[2])
    radius = norm2(scene.hand[0] - door[0], scene.hand[1] - door[1])
    floor = 0.0 if radius <= 0.12 else 0.04 * math.log(radius - 0.12) + 0.4
    above_floor = 1.0
    if scene.hand[2] < floor:
        above_floor = long_tail(floor - scene.hand[2], 0.0, 0.01, floor / 2.0)
    beside = subtract(subtract(scene.hand, door), (0.05, 0.03, -0.01))
    ready = hamacher(above_floor, long_tail(norm(beside), 0.0, 0.06, 0.5))
    to_open = math.pi / 2.0 + math.pi / 6 + scene.joint
    opened = 0.8 * long_tail(to_open, 0.0, 0.5, math.pi / 3.0)
    if scene.joint < -math.pi / 90.0:
        opened = 0.2 + opened
    reward = 2.0 * hamacher(ready, grab) + 8.0 * opened
    success = abs(scene.object[0] - start.target[0]) <= 0.08
    return (10.0 if success else reward), success


@njit
def drawer_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDrawerOpenEnvV3."""
    error = distance(scene.object, start.target)
    opening = long_tail(error, 0.0, 0.02, 0.2)
    x, y, z = subtract(scene.object, scene.hand)
    handle = (start.target[0], start.target[1] + 0.2, start.target[2])
    x0, y0, z0 = subtract(handle, start.tcp)
    margin = norm((x0 * 3.0, y0 * 3.0, z0))
    caging = long_tail(norm((x * 3.0, y * 3.0, z)), 0.0, 0.01, margin)
    return (caging + opening) * 5.0, error <= 0.03


@njit
def drawer_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDrawerCloseEnvV3."""
    to_target = distance(scene.object, start.target)
    margin = abs(distance(start.object, start.target) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.object, start.tcp) - 0.005)
    near = gaussian(distance(scene.object, scene.tcp), 0.0, 0.005, margin)
    narrow = stays_narrow(effort, single)
    reward = hamacher(hamacher(near, closing(effort), narrow), in_place, narrow)
    success = to_target <= 0.05 + 0.015
    return (10.0 if success else rounded(reward * 10, narrow)), success


@njit
def button_press_topdown(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerButtonPressTopdownEnvV3."""
    to_object = distance(scene.object, scene.tcp)
    to_target = abs(start.target[2] - scene.object[2])
    near = long_tail(to_object, 0.0, 0.01, distance(scene.object, start.tcp))
    pressed = long_tail(to_target, 0.0, 0.005, start.length)
    reward = 5 * hamacher(1 - scene.opened, near)
    if to_object <= 0.03:
        reward += 5 * pressed
    return reward, to_target <= 0.024


@njit
def inside(point: Vector, zero: Vector, one: Vector) -> bool:
    """Whether a point is in the box between two corners."""
    for i in range(3):
        if not min(zero[i], one[i]) <= point[i] <= max(zero[i], one[i]):
            return False
    return True


@njit
def prism(point: Vector, zero: Vector, one: Vector) -> float:
    """`reward_utils.rect_prism_tolerance`."""
    if not inside(point, zero, one):
        return 1.0
    x, y, z = subtract(one, zero)
    px, py, pz = subtract(point, zero)
    return (px / x) * (py / y) * (pz / z)


@njit
def peg_insert_side(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPegInsertionSideEnvV3."""
    head, right1, left1, right2, left2 = scene.marks
    x, y, z = subtract(head, start.target)
    to_target = norm((x, y * 2.0, z * 2.0))
    x, y, z = subtract(start.mark, start.target)
    in_place = long_tail(to_target, 0.0, 0.07, norm((x, y * 2.0, z * 2.0)))
    boxes = hamacher(prism(head, right2, left2), prism(head, right1, left1))
    in_place = hamacher(in_place, boxes)

    grasp, narrow = gripper_caging(scene, start, effort, single, 0.0075, 0.03, 0.005)
    # A prism's value is a numpy float64, to which the float32 yields.
    narrow = narrow and not (inside(head, right1, left1) or inside(head, right2, left2))
    near = distance(scene.object, scene.tcp) < 0.08
    held = near and scene.opened > 0 and scene.object[2] - 0.01 > start.object[2]
    if held:
        reward = hamacher(1.0, in_place) + (1.0 + 5 * in_place)
    else:
        reward = hamacher(grasp, in_place, narrow)
    if to_target <= 0.07:
        reward = 10.0
    return reward, to_target <= 0.07


@njit
def window_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerWindowOpenEnvV3."""
    to_target = abs(scene.object[0] - start.target[0])
    margin = abs(abs(start.object[0] - start.target[0]) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.mark, start.tcp) - 0.02)
    near = long_tail(distance(scene.object, scene.tcp), 0.0, 0.02, margin)
    return 10 * hamacher(near, in_place), to_target <= 0.05


@njit
def window_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerWindowCloseEnvV3."""
    to_target = abs(scene.object[0] - start.target[0])
    margin = abs(abs(start.mark[0] - start.target[0]) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.mark, start.tcp) - 0.02)
    near = gaussian(distance(scene.object, scene.tcp), 0.0, 0.02, margin)
    return 10 * hamacher(near, in_place), to_target <= 0.05
