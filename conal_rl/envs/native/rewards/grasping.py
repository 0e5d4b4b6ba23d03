"""Rewards for gripping an object. Most tasks share them.

A `Grasp` says whether the original computes it in float32, because later numbers are then float32
too. This is so if the reward depends on the gripper's float32 action and no clip has replaced it.
"""

from __future__ import annotations

from conal_rl.envs.native.rewards.shaping import Scene, Start, hamacher, long_tail, plus, rounded
from conal_rl.envs.native.vectors import Vector, compiled, norm2

Grasp = tuple[float, bool]  # reward, whether it is float32


@compiled
def closing(effort: float, single: bool, full: float = 1.0) -> float:
    """Return how hard the gripper closes: from 0 to 1, and 1 for an effort of `full` or more."""
    if not effort > 0.0:
        return 0.0
    full = rounded(full, single)
    return 1.0 if effort > full else rounded(effort / full, single)


@compiled
def stays_narrow(effort: float, single: bool, full: float = 1.0) -> bool:
    """Return whether `closing` depends on the action's float32 number and not on a bound."""
    return single and 0.0 < effort <= rounded(full, single)


@compiled
def level(scene: Scene, start: Start, thing: Vector, origin: Vector, threshold: float) -> float:
    """Return how near the fingertips are, in x and z, to a thing that started at `origin`."""
    margin = norm2(origin[0] - start.tcp[0], origin[2] - start.tcp[2]) - threshold
    apart = norm2(scene.tcp[0] - thing[0], scene.tcp[2] - thing[2])
    return long_tail(apart, 0.0, threshold, margin)


@compiled
def caged(
    scene: Scene,
    start: Start,
    thing: Vector,
    origin: Vector,
    radius: float,
    pad_threshold: float,
    xz_threshold: float,
) -> float:
    """Return how well the fingers surround a thing: `SawyerXYZEnv._gripper_caging_reward`."""
    left, right = scene.left_pad[1], scene.right_pad[1]
    left_margin = abs(abs(left - origin[1]) - pad_threshold)
    right_margin = abs(abs(right - origin[1]) - pad_threshold)
    beside = hamacher(
        long_tail(abs(left - thing[1]), radius, pad_threshold, left_margin),
        long_tail(abs(right - thing[1]), radius, pad_threshold, right_margin),
    )
    return hamacher(beside, level(scene, start, thing, origin, xz_threshold))


@compiled
def grip(caging: float, effort: float, single: bool, full: float = 1.0) -> Grasp:
    """Return the grasp reward of low density. Closing counts only if the object is caged."""
    if not caging > 0.97:
        return hamacher(caging, 0.0), False
    narrow = stays_narrow(effort, single, full)
    return hamacher(caging, closing(effort, single, full), narrow), narrow


@compiled
def averaged(grasp: Grasp, reward: float) -> Grasp:
    """Return the mean of a grasp and a second reward."""
    value, narrow = grasp
    return plus(value, reward, narrow) / 2, narrow


@compiled
def dense_grip(caging: float, effort: float, single: bool, full: float = 1.0) -> Grasp:
    """Return the grasp reward of high density: the mean of `grip` and the caging."""
    return averaged(grip(caging, effort, single, full), caging)


@compiled
def between(scene: Scene, radius: float, outer: float) -> float:
    """Return how well the object is between the pads: 1 if each pad is at `radius` to `outer`.

    The original is meant to take its margins from the reset. However, its initial pads are views of
    MuJoCo's memory, so the margins come from the present pads.
    """
    left, right = scene.left_pad[1] - scene.object[1], scene.object[1] - scene.right_pad[1]
    return hamacher(
        long_tail(right, radius, outer, abs(abs(right) - 0.05)),
        long_tail(left, radius, outer, abs(abs(left) - 0.05)),
    )


@compiled
def pinch(scene: Scene, start: Start, radius: float, slack: float, xz_threshold: float) -> float:
    """Return a caging reward in which the pads, not the action, show that the gripper closes."""
    near = level(scene, start, scene.object, start.object, xz_threshold)
    caging = hamacher(between(scene, radius, 0.05), near)
    gripping = between(scene, radius, radius + slack) if caging > 0.95 else 0.0
    return (caging + gripping) / 2
