"""The v2 rewards of MT50 in compiled code, except stick-push. They equal those of metaworld 3.1.1.

Each function of `ALL` computes one task's `compute_reward` and the `success` of its
`evaluate_state`, in the original's order of operations. If an action is float32, the original
computes some later numbers in float32 too, because a Python float yields to a numpy float32
(NEP 50). The argument `narrow` repeats that rounding.
"""

from __future__ import annotations

from typing import Any

from conal_rl.envs.native.rewards import buttons, mechanisms, placing, sliding, tools
from conal_rl.envs.native.rewards.shaping import Outcome, Scene, Start
from conal_rl.envs.native.vectors import compiled

ALL: tuple[Any, ...] = (
    buttons.button_press,
    buttons.button_press_topdown,
    buttons.button_press_topdown_wall,
    buttons.button_press_wall,
    buttons.coffee_button,
    buttons.handle_press,
    mechanisms.dial_turn,
    mechanisms.door_close,
    mechanisms.door_lock,
    mechanisms.door_open,
    mechanisms.door_unlock,
    mechanisms.drawer_close,
    mechanisms.drawer_open,
    mechanisms.faucet_close,
    mechanisms.faucet_open,
    mechanisms.lever_pull,
    mechanisms.window_close,
    mechanisms.window_open,
    placing.basketball,
    placing.bin_picking,
    placing.box_close,
    placing.hand_insert,
    placing.handle_pull,
    placing.handle_pull_side,
    placing.pick_out_of_hole,
    placing.pick_place,
    placing.pick_place_wall,
    placing.reach,
    placing.shelf_place,
    sliding.coffee,
    sliding.plate_slide,
    sliding.plate_slide_low,
    sliding.push,
    sliding.push_back,
    sliding.push_wall,
    sliding.soccer,
    sliding.sweep,
    sliding.sweep_into_goal,
    tools.assembly,
    tools.disassemble,
    tools.hammer,
    tools.peg_insert_side,
    tools.peg_unplug_side,
    tools.stick_pull,
)


# A choice among seven groups of seven compiles ten times faster than repeated halving does.


def _seven(rewards: tuple[Any, ...]) -> Any:
    """Return one compiled function for up to seven rewards. Its first argument chooses one."""
    a, b, c, d, e, f, g = (rewards + rewards[-1:] * 7)[:7]

    @compiled
    def outcome(number: int, scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
        if number == 0:
            return a(scene, start, effort, single)
        if number == 1:
            return b(scene, start, effort, single)
        if number == 2:
            return c(scene, start, effort, single)
        if number == 3:
            return d(scene, start, effort, single)
        if number == 4:
            return e(scene, start, effort, single)
        if number == 5:
            return f(scene, start, effort, single)
        return g(scene, start, effort, single)

    return outcome


_a, _b, _c, _d, _e, _f, _g = (_seven(ALL[i : i + 7]) for i in range(0, 49, 7))


@compiled
def outcome(number: int, scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    """Return the reward and success of `ALL[number]`."""
    group, number = number // 7, number % 7
    if group == 0:
        return _a(number, scene, start, effort, single)
    if group == 1:
        return _b(number, scene, start, effort, single)
    if group == 2:
        return _c(number, scene, start, effort, single)
    if group == 3:
        return _d(number, scene, start, effort, single)
    if group == 4:
        return _e(number, scene, start, effort, single)
    if group == 5:
        return _f(number, scene, start, effort, single)
    return _g(number, scene, start, effort, single)
