"""Where the compiled code finds each Meta-World task's objects, and which reward it computes.

The numbers equal those of metaworld 3.1.1 (`_get_pos_objects`, `_get_quat_objects` and
`compute_reward` of each env). A task that is not in `COMPILED` runs its own observation and reward
code after compiled physics. The only such task of MT50 is stick-push. Its success depends on the
contact forces between the pads and the stick. MuJoCo moves these forces to a different place in
memory at every step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mujoco
import numpy as np
from metaworld import envs
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from conal_rl.envs.native import physics, rewards
from conal_rl.envs.native.physics import MATRIX, NO_ROTATION, QUATERNION, Floats, Integers
from conal_rl.envs.native.rewards import buttons, mechanisms, placing, sliding, tools

Part = tuple[str, str]  # kind and name of a part of the model


class CompiledTask(NamedTuple):
    """The observation and the reward of a task."""

    outcome: Any  # one of `rewards.ALL`
    object: Part
    rotation: tuple[str, str, str] | None = None  # a part and its attribute, xquat or xmat
    offset: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # from the object to its observed position, m
    second: Part | None = None  # the other object
    second_rotation: str | None = None  # name of a body
    joint: str | None = None
    marks: tuple[str, ...] = ()  # names of sites
    mark_start: str | None = None  # the env's attribute for `Start.mark`
    length: str | None = None  # the env's attribute for `Start.length`

    @property
    def reward(self) -> int:
        """The number of `outcome` in `rewards.ALL`."""
        return rewards.ALL.index(self.outcome)


def _body(name: str) -> tuple[str, str, str]:
    return ("body", name, "xquat")


def _geom(name: str) -> tuple[str, str, str]:
    return ("geom", name, "xmat")


_OBJECT: Part = ("body", "obj")
_PUCK: Part = ("geom", "puck")
_BUTTON: Part = ("body", "button")
_NUT: Part = ("site", "RoundNut-8")
_UNTURNED = _body("world")  # the original observes (1, 0, 0, 0)
_BOX = "collision_box"

COMPILED: dict[type[SawyerXYZEnv], CompiledTask] = {
    envs.SawyerNutAssemblyEnvV3: CompiledTask(
        tools.assembly, _NUT, _body("RoundNut"), marks=("RoundNut",)
    ),
    envs.SawyerBasketballEnvV3: CompiledTask(
        placing.basketball, ("body", "bsktball"), _body("bsktball")
    ),
    envs.SawyerBinPickingEnvV3: CompiledTask(
        placing.bin_picking, _OBJECT, _body("obj"), length="_target_to_obj_init"
    ),
    envs.SawyerBoxCloseEnvV3: CompiledTask(
        placing.box_close, ("body", "top_link"), _body("top_link")
    ),
    envs.SawyerButtonPressTopdownEnvV3: CompiledTask(
        buttons.button_press_topdown,
        _BUTTON,
        _body("button"),
        (0.0, 0.0, 0.193),
        length="_obj_to_target_init",
    ),
    envs.SawyerButtonPressTopdownWallEnvV3: CompiledTask(
        buttons.button_press_topdown_wall,
        _BUTTON,
        _body("button"),
        (0.0, 0.0, 0.193),
        length="_obj_to_target_init",
    ),
    envs.SawyerButtonPressEnvV3: CompiledTask(
        buttons.button_press,
        _BUTTON,
        _body("button"),
        (0.0, -0.193, 0.0),
        length="_obj_to_target_init",
    ),
    envs.SawyerButtonPressWallEnvV3: CompiledTask(
        buttons.button_press_wall,
        _BUTTON,
        _body("button"),
        (0.0, -0.193, 0.0),
        length="_obj_to_target_init",
    ),
    envs.SawyerCoffeeButtonEnvV3: CompiledTask(
        buttons.coffee_button, ("site", "buttonStart"), _UNTURNED
    ),
    envs.SawyerCoffeePullEnvV3: CompiledTask(sliding.coffee, _OBJECT, _geom("mug")),
    envs.SawyerCoffeePushEnvV3: CompiledTask(sliding.coffee, _OBJECT, _geom("mug")),
    envs.SawyerDialTurnEnvV3: CompiledTask(
        mechanisms.dial_turn,
        ("body", "dial"),
        _body("dial"),
        joint="knob_Joint_1",
        mark_start="dial_push_position",
    ),
    envs.SawyerNutDisassembleEnvV3: CompiledTask(
        tools.disassemble, _NUT, _body("RoundNut"), marks=("RoundNut",)
    ),
    envs.SawyerDoorCloseEnvV3: CompiledTask(
        mechanisms.door_close, ("geom", "handle"), _geom("handle")
    ),
    envs.SawyerDoorLockEnvV3: CompiledTask(
        mechanisms.door_lock, ("site", "lockStartLock"), _body("door_link")
    ),
    envs.SawyerDoorEnvV3: CompiledTask(
        mechanisms.door_open, ("geom", "handle"), _geom("handle"), joint="doorjoint"
    ),
    envs.SawyerDoorUnlockEnvV3: CompiledTask(
        mechanisms.door_unlock, ("site", "lockStartUnlock"), _body("door_link")
    ),
    envs.SawyerDrawerCloseEnvV3: CompiledTask(
        mechanisms.drawer_close, ("body", "drawer_link"), offset=(0.0, -0.16, 0.05)
    ),
    envs.SawyerDrawerOpenEnvV3: CompiledTask(
        mechanisms.drawer_open, ("body", "drawer_link"), _body("drawer_link"), (0.0, -0.16, 0.0)
    ),
    envs.SawyerFaucetCloseEnvV3: CompiledTask(
        mechanisms.faucet_close,
        ("site", "handleStartClose"),
        _body("faucetBase"),
        (0.0, 0.0, -0.01),
    ),
    envs.SawyerFaucetOpenEnvV3: CompiledTask(
        mechanisms.faucet_open, ("site", "handleStartOpen"), _body("faucetBase"), (0.0, 0.0, -0.01)
    ),
    envs.SawyerHammerEnvV3: CompiledTask(
        tools.hammer,
        ("body", "hammer"),
        _body("hammer"),
        second=("body", "nail_link"),
        second_rotation="nail_link",
        joint="NailSlideJoint",
    ),
    envs.SawyerHandInsertEnvV3: CompiledTask(placing.hand_insert, _OBJECT, _body("obj")),
    envs.SawyerHandlePressEnvV3: CompiledTask(
        buttons.handle_press, ("site", "handleStart"), mark_start="_handle_init_pos"
    ),
    envs.SawyerHandlePressSideEnvV3: CompiledTask(
        buttons.handle_press, ("site", "handleStart"), mark_start="_handle_init_pos"
    ),
    envs.SawyerHandlePullEnvV3: CompiledTask(placing.handle_pull, ("site", "handleRight")),
    envs.SawyerHandlePullSideEnvV3: CompiledTask(
        placing.handle_pull_side, ("site", "handleCenter")
    ),
    envs.SawyerLeverPullEnvV3: CompiledTask(
        mechanisms.lever_pull,
        ("site", "leverStart"),
        _geom("objGeom"),
        joint="LeverAxis",
        mark_start="_lever_pos_init",
    ),
    envs.SawyerPegInsertionSideEnvV3: CompiledTask(
        tools.peg_insert_side,
        ("site", "pegGrasp"),
        ("site", "pegGrasp", "xmat"),
        marks=(
            "pegHead",
            f"bottom_right_corner_{_BOX}_1",
            f"top_left_corner_{_BOX}_1",
            f"bottom_right_corner_{_BOX}_2",
            f"top_left_corner_{_BOX}_2",
        ),
        mark_start="peg_head_pos_init",
    ),
    envs.SawyerPegUnplugSideEnvV3: CompiledTask(
        tools.peg_unplug_side, ("site", "pegEnd"), _body("plug1")
    ),
    envs.SawyerPickOutOfHoleEnvV3: CompiledTask(placing.pick_out_of_hole, _OBJECT, _body("obj")),
    envs.SawyerPickPlaceEnvV3: CompiledTask(placing.pick_place, _OBJECT, _geom("objGeom")),
    envs.SawyerPickPlaceWallEnvV3: CompiledTask(
        placing.pick_place_wall, ("geom", "objGeom"), _geom("objGeom")
    ),
    envs.SawyerPlateSlideEnvV3: CompiledTask(sliding.plate_slide, _PUCK, _geom("puck")),
    envs.SawyerPlateSlideBackEnvV3: CompiledTask(sliding.plate_slide_low, _PUCK, _geom("puck")),
    envs.SawyerPlateSlideBackSideEnvV3: CompiledTask(sliding.plate_slide_low, _PUCK, _geom("puck")),
    envs.SawyerPlateSlideSideEnvV3: CompiledTask(sliding.plate_slide_low, _PUCK, _geom("puck")),
    envs.SawyerPushEnvV3: CompiledTask(sliding.push, _OBJECT, _geom("objGeom")),
    envs.SawyerPushBackEnvV3: CompiledTask(
        sliding.push_back, ("geom", "objGeom"), _geom("objGeom")
    ),
    envs.SawyerPushWallEnvV3: CompiledTask(
        sliding.push_wall, ("geom", "objGeom"), _geom("objGeom")
    ),
    envs.SawyerReachEnvV3: CompiledTask(placing.reach, _OBJECT, _geom("objGeom")),
    envs.SawyerReachWallEnvV3: CompiledTask(placing.reach, _OBJECT, _geom("objGeom")),
    envs.SawyerShelfPlaceEnvV3: CompiledTask(placing.shelf_place, _OBJECT, _geom("objGeom")),
    envs.SawyerSoccerEnvV3: CompiledTask(
        sliding.soccer, ("body", "soccer_ball"), ("body", "soccer_ball", "xmat")
    ),
    envs.SawyerStickPullEnvV3: CompiledTask(
        tools.stick_pull,
        ("body", "stick"),
        ("body", "stick", "xmat"),
        second=("site", "insertion"),
        marks=("stick_end",),
        mark_start="stick_init_pos",
    ),
    envs.SawyerSweepEnvV3: CompiledTask(sliding.sweep, _OBJECT, _body("obj")),
    envs.SawyerSweepIntoGoalEnvV3: CompiledTask(sliding.sweep_into_goal, _OBJECT, _geom("objGeom")),
    envs.SawyerWindowCloseEnvV3: CompiledTask(
        mechanisms.window_close,
        ("site", "handleCloseStart"),
        mark_start="window_handle_pos_init",
    ),
    envs.SawyerWindowOpenEnvV3: CompiledTask(
        mechanisms.window_open, ("site", "handleOpenStart"), mark_start="window_handle_pos_init"
    ),
}


def places(env: SawyerXYZEnv, model: mujoco.MjModel, data: mujoco.MjData) -> Integers:
    """Return addresses for `physics.Workers.places`. Addresses without a use are valid too."""

    def of(array: Any) -> int:
        return int(array.ctypes.data)

    at = np.full(physics.NUM_PLACES, of(data.qpos), dtype=np.int64)
    at[physics.MODEL], at[physics.DATA] = model._address, data._address
    at[physics.BODY_POS], at[physics.SITE_POS] = of(model.body_pos), of(model.site_pos)
    # Each warning is a pair of int32, and `number` is the second one.
    at[physics.WARNING] = of(data.warning.number) - 4
    at[physics.CTRL] = of(data.ctrl)
    at[physics.MOCAP_POS], at[physics.MOCAP_QUAT] = of(data.mocap_pos), of(data.mocap_quat)
    at[physics.HAND] = of(data.body("hand").xpos)
    at[physics.RIGHT_CLAW] = of(data.body("rightclaw").xpos)
    at[physics.LEFT_CLAW] = of(data.body("leftclaw").xpos)
    at[physics.RIGHT_TIP] = of(data.site("rightEndEffector").xpos)
    at[physics.LEFT_TIP] = of(data.site("leftEndEffector").xpos)
    at[physics.RIGHT_PAD] = of(data.body("rightpad").xpos)
    at[physics.LEFT_PAD] = of(data.body("leftpad").xpos)
    at[physics.SECOND] = at[physics.SECOND_ROTATION] = 0
    task = COMPILED.get(type(env))
    if task is None:
        return at
    at[physics.OBJECT] = of(_part(data, *task.object).xpos)
    if task.rotation is not None:
        kind, name, attribute = task.rotation
        at[physics.ROTATION] = of(getattr(_part(data, kind, name), attribute))
    if task.second is not None:
        at[physics.SECOND] = of(_part(data, *task.second).xpos)
    if task.second_rotation is not None:
        at[physics.SECOND_ROTATION] = of(data.body(task.second_rotation).xquat)
    if task.joint is not None:
        at[physics.JOINT] = of(data.joint(task.joint).qpos)
    for i, name in enumerate(task.marks):
        at[physics.MARKS + i] = of(data.site(name).xpos)
    return at


def _part(data: mujoco.MjData, kind: str, name: str) -> Any:
    return getattr(data, kind)(name)


def rotation_kind(task: CompiledTask) -> int:
    """Return what ROTATION points to: NO_ROTATION, QUATERNION or MATRIX."""
    if task.rotation is None:
        return NO_ROTATION
    return QUATERNION if task.rotation[2] == "xquat" else MATRIX


def start(env: SawyerXYZEnv) -> Floats:
    """Return the flat `Start` of an env directly after its reset, `(START_SIZE,)`.

    A length that the env measures only at its first step is NaN.
    """
    task = COMPILED[type(env)]
    parts: list[Any] = [env._target_pos, env.obj_init_pos, env.init_tcp, env.hand_init_pos]
    parts.append(np.zeros(3) if task.mark_start is None else getattr(env, task.mark_start))
    length = 0.0 if task.length is None else getattr(env, task.length)
    parts.append(math.nan if length is None else length)
    return np.hstack(parts).astype(np.float64)
