"""Rewards for moving pucks, plates, mugs and balls over the table."""

from __future__ import annotations

from conal_rl.envs.native.rewards.grasping import (
    averaged,
    caged,
    dense_grip,
    grip,
    pinch,
)
from conal_rl.envs.native.rewards.shaping import (
    Outcome,
    Scene,
    Start,
    hamacher,
    long_tail,
    plus,
)
from conal_rl.envs.native.vectors import Vector, clip, compiled, distance, norm, scaled, subtract


@compiled
def push(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPushEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    caging = caged(scene, start, scene.object, start.object, 0.015, 0.05, 0.005)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = 2 * grasp
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0:
        more = plus(plus(1.0, reward, narrow), 5.0 * in_place, narrow)
        reward = plus(reward, more, narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.05


@compiled
def push_wall(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPushWallEnvV3. The object moves to a point next to the wall, then to the target."""
    caging = caged(scene, start, scene.object, start.object, 0.015, 0.05, 0.005)
    grasp, narrow = dense_grip(caging, effort, single)
    reward = 2 * grasp
    to_target = distance(scene.object, start.target)
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0:
        reward = plus(reward, 1.0, narrow)
        if scene.object[1] > 0.75:
            in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
            reward = plus(plus(reward, 4.0, narrow), 3.0 * in_place, narrow)
        else:
            beside = (-0.05, 0.77, scene.object[2])
            weights = (3.0, 1.0, 1.0)
            apart = norm(scaled(subtract(scene.object, beside), weights))
            margin = norm(scaled(subtract(start.object, beside), weights))
            reward = plus(reward, 4.0 * long_tail(apart, 0.0, 0.05, margin), narrow)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def push_back(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPushBackEnvV3."""
    to_target = distance(scene.object, start.target)
    from_start = distance(start.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, from_start)
    reward = hamacher(pinch(scene, start, 0.007, 0.003, 0.01), in_place)
    held = distance(scene.object, scene.tcp) < 0.01 and 0 < scene.opened < 0.55
    if held and from_start - to_target > 0.01:
        reward += 1.0 + 5.0 * in_place
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07


@compiled
def swept(scene: Scene, start: Start, target: Vector, xz_threshold: float, slack: float) -> Outcome:
    """Return the reward for sweeping a cube to a target."""
    to_target = distance(scene.object, target)
    if to_target < 0.05:
        return 10.0, True
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, target))
    grasp = pinch(scene, start, 0.02, slack, xz_threshold)
    return 2 * grasp + 6 * hamacher(grasp, in_place), to_target <= 0.05


@compiled
def sweep(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerSweepEnvV3."""
    return swept(scene, start, start.target, 0.005, 0.01)


@compiled
def sweep_into_goal(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerSweepIntoGoalEnvV3. The target is a hole, and the height does not matter."""
    target = (start.target[0], start.target[1], scene.object[2])
    return swept(scene, start, target, 0.01, 0.005)


@compiled
def soccer(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerSoccerEnvV3."""
    weights = (3.0, 1.0, 1.0)
    apart = norm(scaled(subtract(scene.object, start.target), weights))
    margin = norm(scaled(subtract(scene.object, start.object), weights))
    in_place = long_tail(apart, 0.0, 0.07, margin)
    goal_line = start.target[1] - 0.1
    beyond = scene.object[1] - goal_line
    if scene.object[1] > goal_line and abs(scene.object[0] - start.target[0]) > 0.1:
        in_place = clip(in_place - 2 * (beyond / (1 - goal_line)), 0.0, 1.0)
    reward = 3 * pinch(scene, start, 0.013, 0.01, 0.005) + 6.5 * in_place
    if apart < 0.07:
        reward = 10.0
    return reward, distance(scene.object, start.target) <= 0.07


@compiled
def coffee(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerCoffeePushEnvV3 and SawyerCoffeePullEnvV3."""
    weights = (2.0, 2.0, 1.0)
    apart = norm(scaled(subtract(scene.object, start.target), weights))
    margin = norm(scaled(subtract(start.object, start.target), weights))
    in_place = long_tail(apart, 0.0, 0.05, margin)
    to_object = distance(scene.object, scene.tcp)

    caging = caged(scene, start, scene.object, start.object, 0.02, 0.05, 0.05)
    near = long_tail(to_object, 0.0, 0.04, abs(distance(start.object, start.tcp) - 0.04))
    grasp, narrow = averaged(grip(caging, effort, single, 0.7), near)
    reward = hamacher(grasp, in_place, narrow)
    if to_object < 0.04 and scene.opened > 0:
        reward = plus(reward, 1.0 + 5.0 * in_place, narrow)
    if apart < 0.05:
        reward = 10.0
    return reward, distance(scene.object, start.target) <= 0.07


@compiled
def plate_slide(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPlateSlideEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.05, distance(start.object, start.target))
    margin = distance(start.tcp, start.object)
    near = long_tail(distance(scene.tcp, scene.object), 0.0, 0.05, margin)
    reward = 10.0 if to_target < 0.05 else 8 * hamacher(near, in_place)
    return reward, to_target <= 0.07


@compiled
def plate_slide_low(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerPlateSlideSideEnvV3, SawyerPlateSlideBackEnvV3 and SawyerPlateSlideBackSideEnvV3."""
    to_target = distance(scene.object, start.target)
    to_object = distance(scene.tcp, scene.object)
    margin = distance(start.tcp, start.object) - 0.05
    reward = 1.5 * long_tail(to_object, 0.0, 0.05, margin)
    if scene.tcp[2] <= 0.03 and to_object < 0.07:
        margin = distance(start.object, start.target) - 0.05
        reward = 2.0 + 7.0 * long_tail(to_target, 0.0, 0.05, margin)
    if to_target < 0.05:
        reward = 10.0
    return reward, to_target <= 0.07
