"""Rewards for moving the hand to a place, with or without an object."""

from __future__ import annotations

from conal_rl.envs.native.rewards.grasping import between, caged, dense_grip, grip, level
from conal_rl.envs.native.rewards.shaping import (
    Outcome,
    Scene,
    Start,
    funnel,
    hamacher,
    long_tail,
    plus,
    rounded,
    upright,
)
from conal_rl.envs.native.vectors import (
    add,
    clip,
    compiled,
    distance,
    norm,
    norm2,
    scaled,
    subtract,
)


@compiled
def reach(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerReachEnvV3 and SawyerReachWallEnvV3."""
    to_target = distance(scene.tcp, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.hand, start.target))
    return 10 * in_place, to_target <= 0.05


@compiled
def holds(scene: Scene, start: Start, near: float, lift: float) -> bool:
    """Return whether an open gripper is at an object, and the object is above its start."""
    close = distance(scene.object, scene.tcp) < near
    return close and scene.opened > 0 and scene.object[2] - lift > start.object[2]


@compiled
def pick_place(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPickPlaceEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    near = level(scene, start, scene.object, start.object, 0.005)
    caging = hamacher(between(scene, 0.015, 0.05), near)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = hamacher(grasp, in_place, narrow)
    if holds(scene, start, 0.02, 0.01):
        reward = plus(reward, 1.0 + 5.0 * in_place, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def pick_place_wall(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPickPlaceWallEnvV3. The object moves to a point above the wall, then to the target."""
    above = (start.target[0], 0.77, 0.25)
    weights = (1.0, 1.0, 3.0)
    apart = norm(scaled(subtract(scene.object, above), weights))
    margin = norm(scaled(subtract(start.object, above), weights))
    over_wall = long_tail(apart, 0.0, 0.05, margin)
    caging = caged(scene, start, scene.object, start.object, 0.015, 0.05, 0.005)
    grasp, narrow = grip(caging, effort, single)
    reward = hamacher(grasp, over_wall, narrow)
    to_target = distance(scene.object, start.target)
    if holds(scene, start, 0.02, 0.015):
        reward = plus(reward, 1.0, narrow)
        if scene.object[1] > 0.75:
            in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
            reward = plus(plus(reward, 4.0, narrow), 3.0 * in_place, narrow)
        else:
            reward = plus(reward, 4.0 * over_wall, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def pick_out_of_hole(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPickOutOfHoleEnvV3."""
    radius = norm2(scene.tcp[0] - start.object[0], scene.tcp[1] - start.object[1])
    floor = funnel(radius, 0.03, 0.015, 0.15)
    above_floor = 1.0
    if scene.tcp[2] < floor:
        above_floor = long_tail(floor - scene.tcp[2], 0.0, 0.01, 0.02)
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.02, distance(start.object, start.target))
    caging = caged(scene, start, scene.object, start.object, 0.015, 0.02, 0.03)
    grasp, narrow = dense_grip(caging, effort, single, 0.1)
    reward = hamacher(grasp, in_place, narrow)
    lifted = scene.object[2] - 0.02 > start.object[2]
    if distance(scene.object, scene.tcp) < 0.04 and lifted and not scene.opened < 0.33:
        reward = plus(reward, 1.0 + 5.0 * hamacher(in_place, above_floor), narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def bin_picking(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerBinPickingEnvV3. `start.length` is the distance to the target at the first step."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, start.length)
    hand, origin, target = scene.hand, start.object, start.target
    floor = min(
        funnel(norm2(hand[0] - origin[0], hand[1] - origin[1]), 0.03, 0.02, 0.2),
        funnel(norm2(hand[0] - target[0], hand[1] - target[1]), 0.03, 0.02, 0.2),
    )
    above_floor = 1.0
    if hand[2] < floor:
        above_floor = long_tail(floor - hand[2], 0.0, 0.01, 0.05)
    caging = caged(scene, start, scene.object, origin, 0.015, 0.05, 0.01)
    grasp, narrow = dense_grip(caging, effort, single, 0.7)
    reward = hamacher(grasp, in_place, narrow)
    lifted = scene.object[2] - 0.02 > origin[2]
    if distance(scene.object, hand) < 0.04 and lifted and not scene.opened < 0.43:
        reward = plus(reward, 1.0 + 5.0 * hamacher(above_floor, in_place), narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.05


@compiled
def shelf_place(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerShelfPlaceEnvV3. An object below the shelf is not in place."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    caging = caged(scene, start, scene.object, start.object, 0.02, 0.05, 0.01)
    grasp, narrow = grip(caging, effort, single)
    reward = hamacher(grasp, in_place, narrow)
    x, y, z = scene.object
    target_x, target_y, _ = start.target
    if 0.0 < z < 0.24 and target_x - 0.15 < x < target_x + 0.15:
        front = target_y - 3 * 0.05
        if front < y < target_y:
            loss = hamacher((y - front) / (3 * 0.05), (0.24 - z) / 0.24)
            in_place = clip(in_place - loss, 0.0, 1.0)
            narrow = False  # numpy's clip returns a float64, so the float32 becomes float64
        elif y > target_y:
            in_place = 0.0
    if holds(scene, start, 0.025, 0.01):
        reward = plus(reward, 1.0 + 5.0 * in_place, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def basketball(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerBasketballEnvV3. The target is above the hoop."""
    target = (start.target[0], start.target[1], 0.3)
    weights = (1.0, 1.0, 2.0)
    to_target = norm(scaled(subtract(scene.object, target), weights))
    margin = norm(scaled(subtract(start.object, target), weights))
    in_place = long_tail(to_target, 0.0, 0.08, margin)
    if holds(scene, start, 0.035, 0.01):
        reward = hamacher(1.0, in_place) + (1.0 + 5.0 * in_place)
    else:
        caging = caged(scene, start, scene.object, start.object, 0.025, 0.06, 0.005)
        grasp, narrow = dense_grip(caging, effort, single)
        reward = hamacher(grasp, in_place, narrow)
    if to_target < 0.08:
        reward = 10.0
    return reward, to_target <= 0.08


@compiled
def hand_insert(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerHandInsertEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    caging = caged(scene, start, scene.object, start.object, 0.015, 0.05, 0.005)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = hamacher(grasp, in_place, narrow)
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0:
        reward = plus(reward, 1.0 + 7.0 * in_place, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.05


@compiled
def handle_pull(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerHandlePullEnvV3."""
    to_target = abs(start.target[2] - scene.object[2])
    in_place = long_tail(to_target, 0.0, 0.05, abs(start.target[2] - start.object[2]))
    caging = caged(scene, start, scene.object, start.object, 0.022, 0.05, 0.01)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = hamacher(grasp, in_place, narrow)
    # The original compares y with z here.
    lifted = scene.object[1] - 0.01 > start.object[2]
    if distance(scene.object, scene.tcp) < 0.035 and scene.opened > 0 and lifted:
        reward = plus(reward, 1.0 + 5.0 * in_place, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.05


@compiled
def handle_pull_side(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerHandlePullSideEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    caging = caged(scene, start, scene.object, start.object, 0.032, 0.06, 0.01)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = hamacher(grasp, in_place, narrow)
    if holds(scene, start, 0.035, 0.01):
        reward = plus(reward, 1.0 + 5.0 * in_place, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.08


@compiled
def box_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerBoxCloseEnvV3. A lid that is not level gets no reward."""
    level_lid = upright(scene.rotation, 0.707, 0.707, 0.2)
    success = distance(scene.object, start.target) < 0.08
    if success:
        return 10.0 * level_lid, True
    grab = rounded(min(max(effort, -1.0), 1.0) + 1.0, single) / 2.0
    hand, lid = scene.hand, add(scene.object, (0.0, 0.0, 0.02))
    floor = funnel(norm2(hand[0] - lid[0], hand[1] - lid[1]), 0.02, 0.04, 0.4)
    above_floor = 1.0
    if hand[2] < floor:
        above_floor = long_tail(floor - hand[2], 0.0, 0.01, floor / 2.0)
    ready = hamacher(above_floor, long_tail(distance(hand, lid), 0.0, 0.02, 0.5))
    error = norm(scaled(subtract(start.target, lid), (1.0, 1.0, 3.0)))
    lifted = 0.8 * long_tail(error, 0.0, 0.05, 0.25)
    if lid[2] > 0.04:
        lifted = 0.2 + lifted
    return (2.0 * hamacher(grab, ready) + 8.0 * lifted) * level_lid, False
