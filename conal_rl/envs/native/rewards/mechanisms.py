"""Rewards for parts that turn or slide: doors, drawers, windows, faucets, dials and levers."""

from __future__ import annotations

import math

from conal_rl.envs.native.rewards.grasping import closing, stays_narrow
from conal_rl.envs.native.rewards.shaping import (
    Outcome,
    Scene,
    Start,
    funnel,
    gaussian,
    hamacher,
    long_tail,
    rounded,
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
def door_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDoorEnvV3."""
    grab = rounded(min(max(effort, -1.0), 1.0) + 1.0, single) / 2.0
    door = (scene.object[0] + -0.05, scene.object[1], scene.object[2])
    floor = funnel(norm2(scene.hand[0] - door[0], scene.hand[1] - door[1]), 0.12, 0.04, 0.4)
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


@compiled
def door_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDoorCloseEnvV3."""
    to_target = distance(scene.object, start.target)
    in_place = gaussian(to_target, 0.0, 0.05, distance(start.object, start.target))
    margin = distance(start.hand, scene.object) + 0.1
    hand = gaussian(distance(scene.tcp, start.target), 0.0, 0.25 * 0.05, margin)
    reward = 10.0 if to_target < 0.05 else 3 * hand + 6 * in_place
    return reward, to_target <= 0.08


@compiled
def door_lock(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDoorLockEnvV3."""
    # The original is meant to take its margin from the reset, but its initial pad is a view of
    # the present pad.
    apart = norm(scaled(subtract(scene.object, scene.left_pad), (0.25, 1.0, 0.5)))
    near = long_tail(apart, 0.0, 0.01, apart)
    to_target = abs(start.target[2] - scene.object[2])
    locked = long_tail(to_target, 0.0, 0.005, 0.1)
    return 2 * hamacher(max(scene.opened, 0.0), near) + 8 * locked, to_target <= 0.02


SHOULDER = (0.0, 0.055, 0.07)  # from the hand to where the arm's wrist pushes, m


@compiled
def shoulder_nearness(hand: Vector, part: Vector, tcp: Vector, origin: Vector, w: Vector) -> float:
    """Return how near the hand's shoulder is to a part, with a weight for each axis."""
    apart = norm(scaled(subtract(add(hand, SHOULDER), part), w))
    margin = norm(scaled(subtract(add(tcp, SHOULDER), origin), w))
    return long_tail(apart, 0.0, 0.02, margin)


@compiled
def door_unlock(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDoorUnlockEnvV3."""
    # In the original `start.object` is a view of a link. The link turns about its own origin, so
    # its position stays the same.
    weights = (0.25, 1.0, 0.5)
    ready = shoulder_nearness(scene.hand, scene.object, start.tcp, start.object, weights)
    to_target = abs(start.target[0] - scene.object[0])
    return 2 * ready + 8 * long_tail(to_target, 0.0, 0.005, 0.1), to_target <= 0.02


@compiled
def lever_pull(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerLeverPullEnvV3. The mark is the lever's start."""
    weights = (4.0, 1.0, 4.0)
    ready = shoulder_nearness(scene.hand, scene.object, start.tcp, start.mark, weights)
    to_target = distance(scene.object, start.target)
    in_place = long_tail(to_target, 0.0, 0.04, distance(start.mark, start.target))
    success = abs(-scene.joint - math.pi / 2.0) <= math.pi / 24
    return 10.0 * hamacher(ready, in_place), success


@compiled
def drawer_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDrawerOpenEnvV3."""
    error = distance(scene.object, start.target)
    opening = long_tail(error, 0.0, 0.02, 0.2)
    weights = (3.0, 3.0, 1.0)
    handle = (start.target[0], start.target[1] + 0.2, start.target[2])
    margin = norm(scaled(subtract(handle, start.tcp), weights))
    apart = norm(scaled(subtract(scene.object, scene.hand), weights))
    return (long_tail(apart, 0.0, 0.01, margin) + opening) * 5.0, error <= 0.03


@compiled
def drawer_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDrawerCloseEnvV3."""
    to_target = distance(scene.object, start.target)
    margin = abs(distance(start.object, start.target) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.object, start.tcp) - 0.005)
    near = gaussian(distance(scene.object, scene.tcp), 0.0, 0.005, margin)
    narrow = stays_narrow(effort, single)
    reward = hamacher(hamacher(near, closing(effort, single), narrow), in_place, narrow)
    success = to_target <= 0.05 + 0.015
    return (10.0 if success else rounded(reward * 10, narrow)), success


@compiled
def dial_turn(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerDialTurnEnvV3. The mark is the position at which to push, at the reset."""
    to_target = distance(scene.object, start.target)
    margin = abs(distance(start.mark, start.target) - 0.07)
    in_place = long_tail(to_target, 0.0, 0.07, margin)
    push_position = add(scene.object, (0.05, 0.02, 0.09))
    margin = abs(distance(start.mark, start.tcp) - 0.005)
    near = gaussian(distance(push_position, scene.tcp), 0.0, 0.005, margin)
    narrow = stays_narrow(effort, single)
    reward = hamacher(hamacher(near, closing(effort, single), narrow), in_place, narrow)
    return rounded(10 * reward, narrow), to_target <= 0.07


@compiled
def window_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerWindowOpenEnvV3. The mark is the handle's start."""
    to_target = abs(scene.object[0] - start.target[0])
    margin = abs(abs(start.object[0] - start.target[0]) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.mark, start.tcp) - 0.02)
    near = long_tail(distance(scene.object, scene.tcp), 0.0, 0.02, margin)
    return 10 * hamacher(near, in_place), to_target <= 0.05


@compiled
def window_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerWindowCloseEnvV3. The mark is the handle's start."""
    to_target = abs(scene.object[0] - start.target[0])
    margin = abs(abs(start.mark[0] - start.target[0]) - 0.05)
    in_place = long_tail(to_target, 0.0, 0.05, margin)
    margin = abs(distance(start.mark, start.tcp) - 0.02)
    near = gaussian(distance(scene.object, scene.tcp), 0.0, 0.02, margin)
    return 10 * hamacher(near, in_place), to_target <= 0.05


@compiled
def turned_faucet(scene: Scene, start: Start, handle: Vector) -> Outcome:
    """Return the reward for a faucet. Its handle has to reach the target."""
    to_target = distance(handle, start.target)
    if to_target <= 0.07:
        return 10.0, True
    margin = abs(distance(start.object, start.target) - 0.07)
    in_place = long_tail(to_target, 0.0, 0.07, margin)
    margin = abs(distance(start.object, start.tcp) - 0.01)
    near = gaussian(distance(handle, scene.tcp), 0.0, 0.01, margin)
    return (2 * near + 3 * in_place) * 2, False


@compiled
def faucet_open(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerFaucetOpenEnvV3."""
    return turned_faucet(scene, start, add(scene.object, (-0.04, 0.0, 0.03)))


@compiled
def faucet_close(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerFaucetCloseEnvV3."""
    return turned_faucet(scene, start, scene.object)
