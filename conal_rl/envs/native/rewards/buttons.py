"""Rewards for pressing buttons and handles."""

from __future__ import annotations

from conal_rl.envs.native.rewards.shaping import Outcome, Scene, Start, hamacher, long_tail
from conal_rl.envs.native.vectors import compiled, distance


@compiled
def nearness(scene: Scene, start: Start, radius: float) -> float:
    """Return how near the fingertips are to the button. The margin moves with the button."""
    apart = distance(scene.object, scene.tcp)
    return long_tail(apart, 0.0, radius, distance(scene.object, start.tcp))


@compiled
def button_press_topdown(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerButtonPressTopdownEnvV3."""
    to_target = abs(start.target[2] - scene.object[2])
    reward = 5 * hamacher(1 - scene.opened, nearness(scene, start, 0.01))
    if distance(scene.object, scene.tcp) <= 0.03:
        reward += 5 * long_tail(to_target, 0.0, 0.005, start.length)
    return reward, to_target <= 0.024


@compiled
def button_press_topdown_wall(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerButtonPressTopdownWallEnvV3. It rewards an open gripper, not a closed one."""
    to_target = abs(start.target[2] - scene.object[2])
    reward = 5 * hamacher(scene.opened, nearness(scene, start, 0.01))
    if distance(scene.object, scene.tcp) <= 0.03:
        reward += 5 * long_tail(to_target, 0.0, 0.005, start.length)
    return reward, to_target <= 0.024


@compiled
def pressed_ahead(scene: Scene, start: Start, travel: float) -> Outcome:
    """Return the reward for a button at the front of a box. The button moves along y."""
    to_target = abs(start.target[1] - scene.object[1])
    reward = 2 * hamacher(max(scene.opened, 0.0), nearness(scene, start, 0.05))
    if distance(scene.object, scene.tcp) <= 0.05:
        reward += 8 * long_tail(to_target, 0.0, 0.005, travel)
    return reward, to_target <= 0.02


@compiled
def button_press(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerButtonPressEnvV3."""
    return pressed_ahead(scene, start, start.length)


@compiled
def coffee_button(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerCoffeeButtonEnvV3."""
    return pressed_ahead(scene, start, 0.03)


@compiled
def button_press_wall(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerButtonPressWallEnvV3."""
    to_target = abs(start.target[1] - scene.object[1])
    if distance(scene.object, scene.tcp) > 0.07:
        reward = 2 * hamacher((1 - scene.opened) / 2.0, nearness(scene, start, 0.01))
    else:
        pressed = long_tail(to_target, 0.0, 0.005, start.length)
        reward = 2 + 2 * (1 + scene.opened) + 4 * pressed**2
    return reward, to_target <= 0.03


@compiled
def handle_press(scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """SawyerHandlePressEnvV3 and SawyerHandlePressSideEnvV3. The mark is the handle's start."""
    to_target = abs(scene.object[2] - start.target[2])
    if to_target <= 0.02:
        return 10.0, True
    margin = abs(abs(start.mark[2] - start.target[2]) - 0.02)
    in_place = long_tail(to_target, 0.0, 0.02, margin)
    margin = abs(distance(start.mark, start.tcp) - 0.02)
    near = long_tail(distance(scene.object, scene.tcp), 0.0, 0.02, margin)
    return hamacher(near, in_place) * 10, False
