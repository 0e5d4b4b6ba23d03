"""Rewards for pegs, nuts, hammers and sticks. The gripper holds one end and uses the other."""

from __future__ import annotations

from conal_rl.envs.native.rewards.grasping import averaged, caged, dense_grip, grip
from conal_rl.envs.native.rewards.shaping import (
    Outcome,
    Scene,
    Start,
    funnel,
    hamacher,
    inside,
    long_tail,
    plus,
    prism,
    rounded,
    upright,
)
from conal_rl.envs.native.vectors import (
    Vector,
    add,
    compiled,
    distance,
    norm,
    norm2,
    scaled,
    subtract,
)


@compiled
def peg_insert_side(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPegInsertionSideEnvV3. The mark is the start of the peg's head."""
    head, right1, left1, right2, left2 = scene.marks
    weights = (1.0, 2.0, 2.0)
    to_target = norm(scaled(subtract(head, start.target), weights))
    margin = norm(scaled(subtract(start.mark, start.target), weights))
    in_place = long_tail(to_target, 0.0, 0.07, margin)
    boxes = hamacher(prism(head, right2, left2), prism(head, right1, left1))
    in_place = hamacher(in_place, boxes)

    caging = caged(scene, start, scene.object, start.object, 0.0075, 0.03, 0.005)
    grasp, narrow = dense_grip(caging, effort, single)
    # A prism's value is a numpy float64, so the float32 becomes float64.
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


@compiled
def peg_unplug_side(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPegUnplugSideEnvV3."""
    to_target = distance(scene.object, start.target)
    caging = caged(scene, start, scene.object, start.object, 0.025, 0.05, 0.005)
    grasp, narrow = dense_grip(caging, effort, single, 0.8)
    reward = 2 * grasp
    pulled = scene.opened > 0.5 and scene.object[0] - start.object[0] > 0.015
    if pulled and distance(scene.object, scene.tcp) < 0.035:
        in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
        reward = plus(plus(1.0, reward, narrow), 5 * in_place, narrow)
    if to_target <= 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def beside(thing: Vector, hand: Vector, reach: float) -> Vector:
    """Return where to hold a long thing: at the hand's x if that is within reach."""
    return (hand[0], thing[1], thing[2]) if abs(thing[0] - hand[0]) < reach else thing


@compiled
def used(grasp: float, narrow: bool, in_place: float, level: float) -> float:
    """Return the reward for a tool that is held, in place and not tilted."""
    reward = plus(rounded(2.0 * grasp, narrow), 6.0 * in_place, narrow)
    return rounded(reward * rounded(level, narrow), narrow)


@compiled
def assembly(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerNutAssemblyEnvV3. The first mark is the nut's centre."""
    center = scene.marks[0]
    x, y, z = subtract(start.target, center)
    radius = norm2(x, y)
    success = radius < 0.02 and z > 0.0
    if success:
        return 10.0, True
    error = (x, y, funnel(radius, 0.01, 0.02, 0.2) - center[2])
    in_place = 0.9 * long_tail(norm(scaled(error, (1.0, 1.0, 3.0))), 0.0, 0.02, 0.4)
    if center[2] > 0.02 or radius < 0.01:
        in_place = 0.1 + in_place
    wrench = beside(scene.object, scene.hand, 0.01)
    caging = caged(scene, start, wrench, start.object, 0.015, 0.02, 0.01)
    margin = abs(distance(start.object, start.tcp) - 0.01)
    near = long_tail(distance(wrench, scene.tcp), 0.0, 0.01, margin)
    grasp, narrow = averaged(grip(caging, effort, single), near)
    return used(grasp, narrow, in_place, upright(scene.rotation, 0.707, 0.707, 0.4)), False


@compiled
def disassemble(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerNutDisassembleEnvV3. The first mark is the nut's centre."""
    if scene.object[2] > start.target[2]:
        return 10.0, True
    center = scene.marks[0]
    error = norm(subtract(add(start.target, (0.0, 0.0, 0.1)), center))
    in_place = 0.9 * long_tail(error, 0.0, 0.02, 0.2)
    if center[2] > 0.02:
        in_place = 0.1 + in_place
    wrench = beside(scene.object, scene.hand, 0.01)
    caging = caged(scene, start, wrench, start.object, 0.015, 0.02, 0.01)
    grasp, narrow = dense_grip(caging, effort, single)
    return used(grasp, narrow, in_place, upright(scene.rotation, 0.707, 0.707, 0.4)), False


@compiled
def hammer(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerHammerEnvV3. The joint is the nail's."""
    head = add(scene.object, (0.16, 0.06, 0.0))
    in_place = 0.9 * long_tail(distance(start.target, head), 0.0, 0.02, 0.2)
    if head[2] > 0.02:
        in_place = 0.1 + in_place
    handle = beside(scene.object, scene.hand, 0.07)
    caging = caged(scene, start, handle, start.object, 0.015, 0.02, 0.01)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = used(grasp, narrow, in_place, upright(scene.rotation, 1.0, 0.0, 0.4))
    success = scene.joint > 0.09
    return (10.0 if success and reward > 5.0 else reward), success


@compiled
def hooked(handle: Vector, end: Vector) -> bool:
    """Return whether a stick's end is through a handle."""
    return (
        end[0] >= handle[0] and abs(end[1] - handle[1]) <= 0.04 and abs(end[2] - handle[2]) <= 0.06
    )


@compiled
def stick_pull(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerStickPullEnvV3. The mark is the stick's start, and `scene.marks[0]` its end."""
    stick, handle, end = scene.object, scene.second, scene.marks[0]
    held = distance(stick, scene.tcp) < 0.02 and scene.opened > 0
    held = held and stick[2] - 0.01 > start.mark[2]
    offset, weights = (0.05, 0.0, 0.0), (1.0, 1.0, 2.0)
    container = add(handle, offset)
    apart = norm(scaled(subtract(stick, container), weights))
    margin = norm(scaled(subtract(start.mark, add(start.object, offset)), weights))
    in_place = long_tail(apart, 0.0, 0.05, margin)
    to_target = distance(handle, start.target)
    inserted = hooked(handle, end)
    if not held:
        caging = caged(scene, start, stick, start.object, 0.014, 0.05, 0.01)
        grasp, narrow = dense_grip(caging, effort, single)
        reward = hamacher(grasp, in_place, narrow)
    elif not inserted:
        reward = 1.0 + hamacher(1.0, in_place) + 5.0 * in_place
    elif to_target <= 0.12:
        reward = 10.0
    else:
        margin = distance(start.mark, start.target)
        back = long_tail(distance(stick, start.target), 0.0, 0.05, margin)
        margin = distance(start.object, start.target)
        pulled = long_tail(distance(container, start.target), 0.0, 0.05, margin)
        reward = 1.0 + hamacher(1.0, in_place) + 5.0 + 2.0 * back + 1.0 * pulled
    return reward, to_target <= 0.12 and inserted
