"""What the compiled code must know of a Meta-World task: where its object is, which reward it has.

The numbers are those of metaworld 3.1.1 (`_get_pos_objects`, `_get_quat_objects` and
`compute_reward` of each env). A task that is not in `COMPILED`, or a subclass of one that is, runs
its own observation and reward code after compiled physics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np
from metaworld import envs
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from conal_rl.envs.native import physics
from conal_rl.envs.native.physics import MATRIX, NO_ROTATION, QUATERNION, Floats, Integers


class CompiledTask(NamedTuple):
    """How to observe and reward a task. Parts of the model are given as (kind, name)."""

    reward: int  # number in `physics._outcome`
    object: tuple[str, str]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: tuple[str, str] | None = None
    joint: str | None = None
    marks: tuple[str, ...] = ()  # sites
    mark_start: str | None = None  # attributes of the env that `Start` keeps
    length: str | None = None


_BOX = "collision_box"
COMPILED: dict[type[SawyerXYZEnv], CompiledTask] = {
    envs.SawyerReachEnvV3: CompiledTask(0, ("body", "obj"), rotation=("geom", "objGeom")),
    envs.SawyerPushEnvV3: CompiledTask(1, ("body", "obj"), rotation=("geom", "objGeom")),
    envs.SawyerPickPlaceEnvV3: CompiledTask(2, ("body", "obj"), rotation=("geom", "objGeom")),
    envs.SawyerDoorEnvV3: CompiledTask(
        3, ("geom", "handle"), rotation=("geom", "handle"), joint="doorjoint"
    ),
    envs.SawyerDrawerOpenEnvV3: CompiledTask(
        4, ("body", "drawer_link"), (0.0, -0.16, 0.0), rotation=("body", "drawer_link")
    ),
    envs.SawyerDrawerCloseEnvV3: CompiledTask(5, ("body", "drawer_link"), (0.0, -0.16, 0.05)),
    envs.SawyerButtonPressTopdownEnvV3: CompiledTask(
        6,
        ("body", "button"),
        (0.0, 0.0, 0.193),
        rotation=("body", "button"),
        length="_obj_to_target_init",
    ),
    envs.SawyerPegInsertionSideEnvV3: CompiledTask(
        7,
        ("site", "pegGrasp"),
        rotation=("site", "pegGrasp"),
        marks=(
            "pegHead",
            f"bottom_right_corner_{_BOX}_1",
            f"top_left_corner_{_BOX}_1",
            f"bottom_right_corner_{_BOX}_2",
            f"top_left_corner_{_BOX}_2",
        ),
        mark_start="peg_head_pos_init",
    ),
    envs.SawyerWindowOpenEnvV3: CompiledTask(
        8, ("site", "handleOpenStart"), mark_start="window_handle_pos_init"
    ),
    envs.SawyerWindowCloseEnvV3: CompiledTask(
        9, ("site", "handleCloseStart"), mark_start="window_handle_pos_init"
    ),
}


def places(env: SawyerXYZEnv, model: mujoco.MjModel, data: mujoco.MjData) -> Integers:
    """Addresses for `physics.Workers.places`; those that the task has no use for are valid too."""

    def of(array: Any) -> int:
        return int(array.ctypes.data)

    at = np.full(physics.NUM_PLACES, of(data.qpos), dtype=np.int64)
    at[physics.MODEL], at[physics.DATA] = model._address, data._address
    at[physics.BODY_POS], at[physics.SITE_POS] = of(model.body_pos), of(model.site_pos)
    # A pair of int32 for each warning, of which `number` is the second.
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
    task = COMPILED.get(type(env))
    if task is None:
        return at
    kind, name = task.object
    at[physics.OBJECT] = of(getattr(data, kind)(name).xpos)
    if task.rotation is not None:
        kind, name = task.rotation
        part = getattr(data, kind)(name)
        at[physics.ROTATION] = of(part.xquat if kind == "body" else part.xmat)
    if task.joint is not None:
        at[physics.JOINT] = of(data.joint(task.joint).qpos)
    for i, name in enumerate(task.marks):
        at[physics.MARKS + i] = of(data.site(name).xpos)
    return at


def rotation_kind(task: CompiledTask) -> int:
    """What ROTATION points to."""
    if task.rotation is None:
        return NO_ROTATION
    return QUATERNION if task.rotation[0] == "body" else MATRIX


def start(env: SawyerXYZEnv) -> Floats:
    """`rewards.Start` of an env that has just been reset, flat, `(16,)`."""
    task = COMPILED[type(env)]
    parts: list[Any] = [env._target_pos, env.obj_init_pos, env.init_tcp, env.hand_init_pos]
    parts.append(np.zeros(3) if task.mark_start is None else getattr(env, task.mark_start))
    parts.append(0.0 if task.length is None else getattr(env, task.length))
    return np.hstack(parts).astype(np.float64)
