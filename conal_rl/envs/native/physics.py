"""Compiled steps of Meta-World envs: MuJoCo's own C functions, then observation and reward.

A worker is one `mjModel` with one `mjData`. Several envs of a task take turns on it. Before an
env's step the worker loads the env's state `mjSTATE_INTEGRATION`, which lets MuJoCo continue
exactly, and after the step it saves this state. It also loads the positions that a reset writes
into the model. An env therefore takes kilobytes of memory, and does not need its own model.
"""

from __future__ import annotations

import ctypes
import math
import warnings
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
from conal_rl.envs.native.rewards.shaping import Scene, Start, rounded
from conal_rl.envs.native.vectors import (
    add,
    clip,
    compiled,
    distance,
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

# Columns of `Workers.places`: addresses of the memory that a step reads and writes.
(MODEL, DATA, BODY_POS, SITE_POS, WARNING, CTRL, MOCAP_POS, MOCAP_QUAT) = range(8)
(HAND, RIGHT_CLAW, LEFT_CLAW, RIGHT_TIP, LEFT_TIP, RIGHT_PAD, LEFT_PAD) = range(8, 15)
(OBJECT, ROTATION, JOINT, SECOND, SECOND_ROTATION, MARKS) = range(15, 21)
NUM_PLACES = MARKS + 5  # SECOND and SECOND_ROTATION, a quaternion, are 0 if the task lacks them

# What `Workers.places[:, ROTATION]` points to: nothing, a quaternion, a rotation matrix.
NO_ROTATION, QUATERNION, MATRIX = range(3)

_DIAL_TURN = rewards.ALL.index(rewards.mechanisms.dial_turn)
_DIAL_RADIUS = 0.05  # m


START_SIZE = 16  # floats of a `Start`


class Workers(NamedTuple):
    """All workers, one row each."""

    places: Integers  # (worker, NUM_PLACES): addresses
    rewards: Integers  # (worker,): the number of the reward function in `rewards.ALL`
    rotations: Integers  # (worker,): NO_ROTATION, QUATERNION or MATRIX
    frame_skips: Integers  # (worker,): MuJoCo steps per env step
    sizes: Integers  # (worker, 3): number of floats of a state, of body_pos, of site_pos
    limits: Floats  # (worker, 2, 3): lowest and highest position of the mocap body, m
    offsets: Floats  # (worker, 3): from OBJECT to the observed position, m
    bounds: Floats  # (worker, 2, 39): lowest and highest observations
    ranges: Integers  # (worker, 2): its first env, and the env after its last


# Entries of the `control` that threads share. Each one has its own cache line.
NEXT, DONE, SINGLE, STOPPED, CONTROL_SIZE = range(0, 80, 16)


class Envs(NamedTuple):
    """All envs, one row each. Rows have the length that the largest task needs."""

    states: Floats  # (env, state)
    body_pos: Floats  # (env, 3 * bodies)
    site_pos: Floats  # (env, 3 * sites)
    starts: Floats  # (env, START_SIZE): a flat `Start`
    previous: Floats  # (env, 18): the last observation, not clipped and without the goal
    moves: Floats  # (env, 3): displacement of the mocap body, m
    efforts: Floats  # (env,): the gripper's action, not clipped
    observations: Floats  # (env, 39)
    rewards: Floats  # (env,)
    successes: npt.NDArray[np.bool_]  # (env,)
    warnings: Integers  # (env,): number of MuJoCo's warnings in this episode


_LIBRARY = ("libmujoco*", "mujoco.dll")  # names of the file on different platforms


def _declare(name: str, *arguments: Any) -> Any:
    """Return a void function of libmujoco. Compiled and cached code finds it by its name."""
    folder = Path(mujoco.__file__).parent
    library = next(file for pattern in _LIBRARY for file in folder.glob(pattern))
    function = getattr(ctypes.CDLL(str(library)), name)
    llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return types.ExternalFunction(name, types.void(*arguments))


mj_step = _declare("mj_step", types.intp, types.intp)
mj_forward = _declare("mj_forward", types.intp, types.intp)
_mj_set_state = _declare("mj_setState", types.intp, types.intp, types.intp, types.uint32)
_mj_get_state = _declare("mj_getState", types.intp, types.intp, types.intp, types.uint32)


def _atomic(operation: str, operand: int) -> Any:
    @intrinsic
    def function(context: Any, address: Any) -> Any:
        del context, address

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = context.get_value_type(types.int64)
            place = builder.inttoptr(arguments[0], kind.as_pointer())
            return builder.atomic_rmw(operation, place, kind(operand), "seq_cst")

        return types.int64(types.intp), codegen

    return function


take = _atomic("add", 1)
"""Return the integer at an address and add 1 to it, in one atomic operation."""
look = _atomic("add", 0)
"""Return the integer at an address, after the writes of other threads."""
_clear = _atomic("xchg", 0)
"""Set the integer at an address to 0, after all earlier writes."""


@compiled
def _copy(source: int, target: int, size: int) -> None:
    a, b = floats(source), floats(target)
    for i in range(size):
        b[i] = a[i]


@compiled
def _count_warnings(address: int) -> int:
    """Return the number of warnings that MuJoCo has counted, and set its counters to 0."""
    statistics = integers(address)  # for each warning a pair: its last subject, and its count
    total = 0
    for i in range(NUM_WARNINGS):
        total += statistics[2 * i + 1]
        statistics[2 * i + 1] = 0
    return total


@compiled
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
        mj_step(at[MODEL], at[DATA])
    mj_forward(at[MODEL], at[DATA])
    envs.warnings[i] += _count_warnings(at[WARNING])
    _mj_get_state(at[MODEL], at[DATA], envs.states[i].ctypes.data, STATE)


@compiled
def _rim(angle: float) -> vectors.Vector:
    """Return the vector from a dial's centre to the mark on its rim."""
    return (_DIAL_RADIUS * math.sin(angle), _DIAL_RADIUS * -math.cos(angle), 0.0)


@compiled
def _observe(workers: Workers, envs: Envs, w: int, i: int) -> None:
    at = workers.places[w]
    now = np.zeros(18)
    now[0], now[1], now[2] = load(at[HAND])
    apart = norm(subtract(load(at[RIGHT_CLAW]), load(at[LEFT_CLAW])))
    now[3] = clip(apart / 0.1, 0.0, 1.0)
    offset = workers.offsets[w]
    place = add(load(at[OBJECT]), (offset[0], offset[1], offset[2]))
    if workers.rewards[w] == _DIAL_TURN:
        place = add(place, _rim(floats(at[JOINT])[0]))
    now[4], now[5], now[6] = place
    if workers.rotations[w] == QUATERNION:
        _copy(at[ROTATION], now[7:].ctypes.data, 4)
    elif workers.rotations[w] == MATRIX:
        now[7], now[8], now[9], now[10] = quaternion(at[ROTATION])
    if at[SECOND] != 0:
        now[11], now[12], now[13] = load(at[SECOND])
    if at[SECOND_ROTATION] != 0:
        _copy(at[SECOND_ROTATION], now[14:].ctypes.data, 4)

    low, high = workers.bounds[w, 0], workers.bounds[w, 1]
    observation, previous = envs.observations[i], envs.previous[i]
    for k in range(18):
        observation[k] = clip(now[k], low[k], high[k])
        observation[18 + k] = clip(previous[k], low[18 + k], high[18 + k])
        previous[k] = now[k]
    for k in range(3):
        observation[36 + k] = clip(envs.starts[i, k], low[36 + k], high[36 + k])


@compiled
def _scene(workers: Workers, envs: Envs, w: int, i: int) -> Scene:
    at = workers.places[w]
    o = envs.observations[i]
    return Scene(
        (o[0], o[1], o[2]),
        o[3],
        (o[4], o[5], o[6]),
        (o[7], o[8], o[9], o[10]),
        (o[11], o[12], o[13]),
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


@compiled
def _start(envs: Envs, i: int, scene: Scene) -> Start:
    s = envs.starts[i]
    if math.isnan(s[15]):  # bin-picking measures this length at its first step, not at the reset
        s[15] = distance(scene.object, (s[0], s[1], s[2]))
    return Start(
        (s[0], s[1], s[2]),
        (s[3], s[4], s[5]),
        (s[6], s[7], s[8]),
        (s[9], s[10], s[11]),
        (s[12], s[13], s[14]),
        s[15],
    )


@compiled
def _step_worker(workers: Workers, envs: Envs, w: int, single: bool) -> None:
    for i in range(workers.ranges[w, 0], workers.ranges[w, 1]):
        _simulate(workers, envs, w, i)
        _observe(workers, envs, w, i)
        scene = _scene(workers, envs, w, i)
        start, effort = _start(envs, i, scene), envs.efforts[i]
        reward, success = rewards.outcome(workers.rewards[w], scene, start, effort, single)
        envs.rewards[i], envs.successes[i] = reward, success


def _entry_points(sources: str, cache: bool = True) -> tuple[Any, Any, Any]:
    # numba's cache does not notice a change in the functions that a cached function calls. It
    # notices a changed closure value, so these functions close over `sources`, a digest of all
    # source files.

    @njit(cache=cache, nogil=True, error_model="numpy")
    def simulate(workers: Workers, envs: Envs, w: int, i: int) -> None:
        """Step only the physics of env `i` on worker `w`."""
        assert len(sources) > 0
        _simulate(workers, envs, w, i)

    @njit(cache=cache, nogil=True, error_model="numpy")
    def begin(envs: Envs, actions: Floats, scales: Floats, single: bool, control: Integers) -> None:
        """Let all threads begin a step.

        Actions are `(env, 4)`, and `scales` `(env,)` is their unit in metres. `single` says that
        both were float32 before.
        """
        assert len(sources) > 0
        for i in range(len(actions)):
            for axis in range(3):
                envs.moves[i, axis] = rounded(clip(actions[i, axis], -1.0, 1.0) * scales[i], single)
            envs.efforts[i] = actions[i, 3]
        control[SINGLE] = single
        _clear(control[DONE:].ctypes.data)
        _clear(control[NEXT:].ctypes.data)

    @njit(cache=cache, nogil=True, error_model="numpy")
    def step(
        workers: Workers, envs: Envs, order: Integers, control: Integers, patience: int
    ) -> None:
        """Step all envs of the workers in `order`. Each thread takes the next free worker.

        A positive `patience` is the number of times that the function looks for a free worker
        without success before it returns. With a patience of 0 it returns as soon as all workers
        are done.
        """
        assert len(sources) > 0
        waited = 0
        while True:
            turn = len(order)
            if look(control[NEXT:].ctypes.data) < len(order):
                turn = take(control[NEXT:].ctypes.data)
            if turn < len(order):
                _step_worker(workers, envs, order[turn], control[SINGLE] != 0)
                take(control[DONE:].ctypes.data)
                waited = 0
            elif patience > 0 and waited < patience:
                waited += 1
            elif patience > 0 or look(control[DONE:].ctypes.data) >= len(order):
                return

    return simulate, begin, step


_files = [Path(__file__), Path(str(vectors.__file__))]
_files += sorted(Path(str(rewards.__file__)).parent.glob("*.py"))
_digest = sha256(b"".join(file.read_bytes() for file in _files) + mujoco.__version__.encode())
try:
    simulate, begin, step = _entry_points(_digest.hexdigest())
except RuntimeError:  # numba does not find a folder that it can write to
    warnings.warn(
        "numba finds no folder for compiled code, so every process compiles it again. "
        "Set NUMBA_CACHE_DIR to a folder that can be written.",
        stacklevel=1,
    )
    simulate, begin, step = _entry_points(_digest.hexdigest(), cache=False)
