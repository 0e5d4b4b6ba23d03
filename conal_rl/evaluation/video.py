"""Videos of a policy on Meta-World's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from conal_rl.envs.metaworld import (
    Camera,
    is_metaworld,
    official_vector_env,
    require_display,
    suite_tasks,
)
from conal_rl.errors import ConfigError, SuiteError
from conal_rl.evaluation.protocol import Policy, closing, require_fit
from conal_rl.files import draft_file

VIDEO_STRIDE = 4
"""Meta-World steps per frame: 4 steps of 12.5 ms make 20 frames per second of real time."""
VIDEO_TRIES = 10
"""Episodes to try; the video shows the first of them that succeeds."""


def prepare_videos(suite: str | Sequence[str], directory: Path) -> None:
    """Make the folder for `record_videos`, and raise its errors before the evaluation.

    Raises:
        SuiteError: the suite is not Meta-World's.
        ConalError: no display is named to render with.
        ConfigError: the folder cannot be made.
    """
    if not is_metaworld(suite):
        raise SuiteError(
            f"suite: got {suite!r}, expected a Meta-World suite to make videos of. "
            "Leave out --video"
        )
    require_display()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: got {error.strerror}, expected a writable folder. "
            "Give a different folder"
        ) from error


def record_videos(
    policy: Policy, suite: str | Sequence[str], seed: int, directory: Path
) -> list[Path]:
    """Film an episode of every task of a Meta-World suite; return the paths in suite order.

    A video shows the first of ten evaluation episodes that succeeds, up to its success. Without a
    success it shows the tenth. It is `TASK.mp4` if imageio-ffmpeg is installed, else `TASK.gif`.

    Raises:
        ConalError: as `prepare_videos`, or MuJoCo finds no OpenGL to render with.
    """
    prepare_videos(suite, directory)
    suffix = ".mp4" if find_spec("imageio_ffmpeg") else ".gif"
    timing = (
        {"fps": 20} if suffix == ".mp4" else {"duration": 50, "loop": 0}
    )  # 50 ms a frame, for ever
    paths = []
    envs = cast(gym.vector.SyncVectorEnv, official_vector_env(suite, seed))
    with closing(envs):
        require_fit(policy, suite_tasks(suite), envs.single_observation_space)
        envs.call("toggle_terminate_on_success", True)
        for task, env in zip(suite_tasks(suite), envs.envs, strict=True):
            paths.append(directory / f"{task}{suffix}")
            for _ in range(VIDEO_TRIES):
                frames, solved = _film(policy, env)
                if solved:
                    break
            with draft_file(paths[-1]) as draft:
                imageio.mimsave(draft, cast(Any, frames), **cast(Any, timing))
    return paths


def _film(policy: Policy, env: gym.Env[Any, Any]) -> tuple[list[NDArray[np.uint8]], bool]:
    """Return the images of an episode, which ends at its success, and whether it succeeded."""
    mujoco_env = cast(MujocoEnv, env.unwrapped)
    camera = Camera(mujoco_env.model, mujoco_env.data)
    try:
        observation, _ = env.reset()
        frames = [camera.image()]
        step, ended = 0, False
        while not ended:
            row = observation[None].astype(np.float32)
            action, _ = policy.predict(row, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action[0])
            step, ended = step + 1, bool(terminated or truncated)
            if ended or step % VIDEO_STRIDE == 0:
                frames.append(camera.image())
    finally:
        camera.close()
    return frames, bool(terminated)
