"""Compiled steps of Meta-World envs: MuJoCo's own C functions, then observation and reward.

A worker is one `mjModel` with one `mjData`; several envs of a task take turns on it. What MuJoCo
needs to go on exactly (`mjSTATE_INTEGRATION`) is written before an env's step and read after it,
and so are the positions that a reset writes into the model. An env costs kilobytes, not a model.
"""

from __future__ import annotations

import ctypes
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding
import mujoco
import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic

from conal_rl.envs.native import rewards, vectors
from conal_rl.envs.native.rewards import Outcome, Scene, Start
from conal_rl.envs.native.vectors import (
    add,
    clip,
    floats,
    integers,
    load,
    middle,
    norm,
    quaternion,
    subtract,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

STATE = mujoco.mjtState.mjSTATE_INTEGRATION.value
NUM_WARNINGS = mujoco.mjtWarning.mjNWARNING.value

# Columns of `Workers.places`: addresses of what a step reads and writes.
(MODEL, DATA, BODY_POS, SITE_POS, WARNING, CTRL, MOCAP_POS, MOCAP_QUAT) = range(8)
(HAND, RIGHT_CLAW, LEFT_CLAW, RIGHT_TIP, LEFT_TIP, RIGHT_PAD, LEFT_PAD) = range(8, 15)
(OBJECT, ROTATION, JOINT, MARKS) = range(15, 19)
NUM_PLACES = MARKS + 5

# What `Workers.places[:, ROTATION]` points to: nothing, a quaternion, a rotation matrix.
NO_ROTATION, QUATERNION, MATRIX = range(3)


class Workers(NamedTuple):
    """All workers, one row each."""

    places: Integers  # (worker, NUM_PLACES)
    rewards: Integers  # (worker,): which reward function
    rotations: Integers  # (worker,): what ROTATION points to
    frame_skips: Integers  # (worker,): MuJoCo steps per env step
    sizes: Integers  # (worker, 3): floats of a state, of body_pos, of site_pos
    limits: Floats  # (worker, 2, 3): box of the mocap body, m
    offsets: Floats  # (worker, 3): from OBJECT to the object as observed, m
    bounds: Floats  # (worker, 2, 39): of observations
    ranges: Integers  # (worker, 2): its envs, first and past the last


class Envs(NamedTuple):
    """All envs, one row each; rows are as long as the longest task's."""

    states: Floats  # (env, state)
    body_pos: Floats  # (env, 3 * bodies)
    site_pos: Floats  # (env, 3 * sites)
    starts: Floats  # (env, 16): `Start`, flat
    previous: Floats  # (env, 18): the last observation, unclipped and without goal
    moves: Floats  # (env, 3): of the mocap body, m
    efforts: Floats  # (env,): the gripper's action, as given
    observations: Floats  # (env, 39)
    rewards: Floats  # (env,)
    successes: npt.NDArray[np.bool_]  # (env,)
    warnings: Integers  # (env,): MuJoCo's so far


def _declare(name: str, *arguments: Any) -> Any:
    """A void function of libmujoco; compiled code, fresh or from numba's cache, finds it by name."""
    package = Path(mujoco.__file__).parent
    library = next(file for pattern in ("libmujoco*", "mujoco.dll") for file in package.glob(pattern))
    function = getattr(ctypes.CDLL(str(library)), name)
    llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return types.ExternalFunction(name, types.void(*arguments))


_mj_step = _declare("mj_step", types.intp, types.intp)
_mj_forward = _declare("mj_forward", types.intp, types.intp)
_mj_set_state = _declare("mj_setState", types.intp, types.intp, types.intp, types.uint32)
_mj_get_state = _declare("mj_getState", types.intp, types.intp, types.intp, types.uint32)


@intrinsic  # type: ignore[misc]
def _take(context: Any, counter: Any) -> Any:
    """The integer at an address, which one more is added to in the same instant."""
    del context, counter

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(types.int64)
        place = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.atomic_rmw("add", place, kind(1), "monotonic")

    return types.int64(types.intp), codegen


@njit
def _copy(source: int, target: int, size: int) -> None:
    a, b = floats(source), floats(target)
    for i in range(size):
        b[i] = a[i]


@njit
def _count_warnings(address: int) -> int:
    """How many warnings MuJoCo has counted; it starts again at 0."""
    statistics = integers(address)  # pairs of what it was about, and how often
    total = 0
    for i in range(NUM_WARNINGS):
        total += statistics[2 * i + 1]
        statistics[2 * i + 1] = 0
    return total


@njit
def _simulate(workers: Workers, envs: Envs, w: int, i: int) -> None:
    at = workers.places[w]
    size = workers.sizes[w]
    _copy(envs.body_pos[i].ctypes.data, at[BODY_POS], size[1])
    _copy(envs.site_pos[i].ctypes.data, at[SITE_POS], size[2])
    _mj_set_state(at[MODEL], at[DATA], envs.states[i].ctypes.data, STATE)

    position, rotation = floats(at[MOCAP_POS]), floats(at[MOCAP_QUAT])
    limits = workers.limits[w]
    for axis in range(3):
        moved = position[axis] + envs.moves[i, axis]
        position[axis] = clip(moved, limits[0, axis], limits[1, axis])
    rotation[0], rotation[1], rotation[2], rotation[3] = 1.0, 0.0, 1.0, 0.0
    ctrl = floats(at[CTRL])
    ctrl[0], ctrl[1] = envs.efforts[i], -envs.efforts[i]

    _count_warnings(at[WARNING])
    for _ in range(workers.frame_skips[w]):
        _mj_step(at[MODEL], at[DATA])
    _mj_forward(at[MODEL], at[DATA])
    envs.warnings[i] += _count_warnings(at[WARNING])
    _mj_get_state(at[MODEL], at[DATA], envs.states[i].ctypes.data, STATE)


@njit
def _observe(workers: Workers, envs: Envs, w: int, i: int) -> None:
    at = workers.places[w]
    now = np.zeros(18)
    now[0], now[1], now[2] = load(at[HAND])
    apart = norm(subtract(load(at[RIGHT_CLAW]), load(at[LEFT_CLAW])))
    now[3] = clip(apart / 0.1, 0.0, 1.0)
    offset = workers.offsets[w]
    now[4], now[5], now[6] = add(load(at[OBJECT]), (offset[0], offset[1], offset[2]))
    if workers.rotations[w] == QUATERNION:
        _copy(at[ROTATION], now[7:].ctypes.data, 4)
    elif workers.rotations[w] == MATRIX:
        now[7], now[8], now[9], now[10] = quaternion(at[ROTATION])

    low, high = workers.bounds[w, 0], workers.bounds[w, 1]
    observation, previous = envs.observations[i], envs.previous[i]
    for k in range(18):
        observation[k] = clip(now[k], low[k], high[k])
        observation[18 + k] = clip(previous[k], low[18 + k], high[18 + k])
        previous[k] = now[k]
    for k in range(3):
        observation[36 + k] = clip(envs.starts[i, k], low[36 + k], high[36 + k])


@njit
def _scene(workers: Workers, envs: Envs, w: int, i: int) -> Scene:
    at = workers.places[w]
    o = envs.observations[i]
    return Scene(
        (o[0], o[1], o[2]),
        o[3],
        (o[4], o[5], o[6]),
        middle(load(at[RIGHT_TIP]), load(at[LEFT_TIP])),
        load(at[LEFT_PAD]),
        load(at[RIGHT_PAD]),
        floats(at[JOINT])[0],
        (
            load(at[MARKS]),
            load(at[MARKS + 1]),
            load(at[MARKS + 2]),
            load(at[MARKS + 3]),
            load(at[MARKS + 4]),
        ),
    )


@njit
def _start(envs: Envs, i: int) -> Start:
    s = envs.starts[i]
    return Start(
        (s[0], s[1], s[2]),
        (s[3], s[4], s[5]),
        (s[6], s[7], s[8]),
        (s[9], s[10], s[11]),
        (s[12], s[13], s[14]),
        s[15],
    )


@njit
def _outcome(number: int, scene: Scene, start: Start, effort: float, single: bool) -> Outcome:
    if number == 0:
        return rewards.reach(scene, start, effort, single)
    if number == 1:
        return rewards.push(scene, start, effort, single)
    if number == 2:
        return rewards.pick_place(scene, start, effort, single)
    if number == 3:
        return rewards.door_open(scene, start, effort, single)
    if number == 4:
        return rewards.drawer_open(scene, start, effort, single)
    if number == 5:
        return rewards.drawer_close(scene, start, effort, single)
    if number == 6:
        return rewards.button_press_topdown(scene, start, effort, single)
    if number == 7:
        return rewards.peg_insert_side(scene, start, effort, single)
    if number == 8:
        return rewards.window_open(scene, start, effort, single)
    return rewards.window_close(scene, start, effort, single)


def _entry_points(sources: str) -> tuple[Any, Any]:
    # numba's cache of a function sees no change in the functions that it calls, but it does see
    # the values that a function closes over: `sources`, a digest of all of them.

    @njit(cache=True, nogil=True)
    def simulate(workers: Workers, envs: Envs, w: int, i: int) -> None:
        """One step of env `i` on worker `w`, physics alone."""
        assert len(sources) > 0
        _simulate(workers, envs, w, i)

    @njit(cache=True, nogil=True)
    def step(workers: Workers, envs: Envs, order: Integers, counter: Integers, single: bool) -> None:
        """One step of all envs of workers, which threads take from `order[counter:]` in turn.

        `single` says that the actions were float32.
        """
        assert len(sources) > 0
        while True:
            turn = _take(counter.ctypes.data)
            if turn >= len(order):
                return
            w = order[turn]
            for i in range(workers.ranges[w, 0], workers.ranges[w, 1]):
                _simulate(workers, envs, w, i)
                _observe(workers, envs, w, i)
                scene, start = _scene(workers, envs, w, i), _start(envs, i)
                number = workers.rewards[w]
                reward, success = _outcome(number, scene, start, envs.efforts[i], single)
                envs.rewards[i], envs.successes[i] = reward, success

    return simulate, step


_files = [Path(str(module.__file__)) for module in (rewards, vectors)] + [Path(__file__)]
_digest = sha256(b"".join(file.read_bytes() for file in _files) + mujoco.__version__.encode())
simulate, step = _entry_points(_digest.hexdigest())
