"""Videos of a policy on the tasks of a suite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray
from PIL import Image as pillow  # imageio requires it

from conal_rl.envs import make
from conal_rl.envs.metaworld import (
    Camera,
    is_metaworld,
    official_vector_env,
    require_display,
    suite_tasks,
)
from conal_rl.errors import ConalError, ConfigError, SuiteError, missing_extra, of_user_code
from conal_rl.evaluation import protocol
from conal_rl.evaluation.protocol import Policy, require_fit
from conal_rl.files import draft_file

FPS = 20
"""A video has at least this many frames per second of real time, if the env has as many steps."""
VIDEO_TRIES = 10
"""Episodes to try; the video shows the first of them that succeeds."""
HELD, SHORTEST = 1, 3
"""Seconds for which a video shows its last frame, and of a whole video; both at least."""

Image = NDArray[np.uint8]


class _Stage(NamedTuple):
    task: str
    env: gym.Env[Any, Any]
    image: Callable[[], Image]
    steps_per_second: float


def prepare_videos(suite: str | Sequence[str], directory: Path) -> None:
    """Make the folder for `record_videos`, and raise its errors before the evaluation.

    Raises:
        SuiteError: an env of the suite gives no images.
        ConalError: no display is named to render with, or a package is missing.
        ConfigError: the folder cannot be made.
    """
    if is_metaworld(suite):
        require_display()
    else:
        with closing(_own_stages(suite, 0, None)) as stages:
            for stage in stages:
                stage.image()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: got {error.strerror}, expected a writable folder. "
            "Give a different folder"
        ) from error


def record_videos(
    policy: Policy,
    suite: str | Sequence[str],
    seed: int,
    directory: Path,
    written: Callable[[Path], object] | None = None,
) -> list[Path]:
    """Film an episode of every task of a suite; return the paths in suite order.

    A video shows the first of ten episodes that succeeds. Without a success it shows the tenth.
    For a task without success it shows the first episode. An episode of Meta-World ends at its
    success. The last frame is held. A file is named `TASK.mp4` if imageio-ffmpeg is installed,
    else `TASK.gif`; letters that no file's name can have become `_`.

    Args:
        policy: acts as an SB3 algorithm does.
        suite: what `conal_rl.envs.make` takes.
        seed: seed of the goals and of the envs.
        directory: the folder for the videos.
        written: takes the path of each video as soon as the file is there.

    Raises:
        ConalError: as `prepare_videos`, or MuJoCo finds no OpenGL to render with.
    """
    prepare_videos(suite, directory)
    suffix = ".mp4" if find_spec("imageio_ffmpeg") else ".gif"
    stages = (_metaworld_stages if is_metaworld(suite) else _own_stages)(suite, seed, policy)
    paths: list[Path] = []
    with closing(stages):
        for stage in stages:
            for _ in range(VIDEO_TRIES):
                frames, solved = _film(policy, stage)
                if solved is not False:
                    break
            name = re.sub(r"[^\w.-]+", "_", stage.task)
            path = directory / f"{name}{suffix}"
            if path in paths:
                path = directory / f"{name}_{len(paths)}{suffix}"
            _write(path, frames, stage.steps_per_second)
            paths.append(path)
            if written is not None:
                written(path)
    return paths


def _metaworld_stages(
    suite: str | Sequence[str], seed: int, policy: Policy
) -> Generator[_Stage, None, None]:
    """Yield the tasks of a Meta-World suite, with the episodes of its official protocol."""
    envs = cast(gym.vector.SyncVectorEnv, official_vector_env(suite, seed))
    with protocol.closing(envs):
        require_fit(policy, suite_tasks(suite), envs.single_observation_space)
        envs.call("toggle_terminate_on_success", True)
        for task, env in zip(suite_tasks(suite), envs.envs, strict=True):
            mujoco_env = cast(MujocoEnv, env.unwrapped)
            with closing(Camera(mujoco_env.model, mujoco_env.data)) as camera:
                yield _Stage(task, env, camera.image, 80)


def _own_stages(
    suite: str | Sequence[str], seed: int, policy: Policy | None
) -> Generator[_Stage, None, None]:
    """Yield the tasks of any other suite; each env has begun an episode with its seed."""
    envs = cast(Any, make(suite, 1, seed, render_mode="rgb_array"))
    with protocol.closing(envs):
        if policy is not None:
            require_fit(policy, envs.tasks, envs.observation_space)
        for task, env, env_seed in zip(envs.tasks, envs.envs, envs.seed(seed), strict=True):
            env.reset(seed=env_seed)
            steps = env.metadata.get("render_fps") or 30
            yield _Stage(task, env, partial(_rendered, task, env), steps)


def _rendered(task: str, env: gym.Env[Any, Any]) -> Image:
    """Return the env's own image `(height, width, 3)`.

    Raises:
        SuiteError: the env gives a different result, or its code fails.
        ExtraError: a package is missing that the env renders with.
    """
    try:
        image: Any = env.render()
    except gym.error.DependencyNotInstalled as error:
        problem = str(error).split(",")[0]  # such as "pygame is not installed", and then a command
        raise missing_extra(f"task {task!r}: render: {problem}", "video") from error
    except ConalError:
        raise
    except Exception as error:  # the env's own code may raise anything
        raise SuiteError(
            f"task {task!r}: render: got {of_user_code(error)}, expected an image. Correct the "
            "env, or leave out --video"
        ) from error
    if getattr(image, "dtype", None) != np.uint8 or np.shape(image)[2:] != (3,):
        raise SuiteError(
            f"task {task!r}: render: got {type(image).__name__} of the shape {np.shape(image)}, "
            "expected an image (height, width, 3) of bytes. Correct the env, or leave out --video"
        )
    return image


def _film(policy: Policy, stage: _Stage) -> tuple[list[Image], bool | None]:
    """Return the images of an episode, and whether it succeeded; None if the env does not say."""
    observation, _ = stage.env.reset()
    frames = [stage.image()]
    step, ended = 0, False
    info: dict[str, Any] = {}
    while not ended:
        row = observation[None].astype(np.float32)
        action, _ = policy.predict(row, deterministic=True)
        observation, _, terminated, truncated, info = stage.env.step(action[0])
        step, ended = step + 1, bool(terminated or truncated)
        if ended or step % _stride(stage.steps_per_second) == 0:
            frames.append(stage.image())
    solved = info.get("is_success", info.get("success"))
    return frames, None if solved is None else bool(solved)


def _stride(steps_per_second: float) -> int:
    return max(1, int(steps_per_second // FPS))


def _write(path: Path, frames: Sequence[Image], steps_per_second: float) -> None:
    # A GIF counts time in hundredths of a second, and viewers slow down below two of them.
    pause = max(2, round(100 * _stride(steps_per_second) / steps_per_second))
    held = max(100 * HELD, 100 * SHORTEST - pause * len(frames))
    with draft_file(path) as draft:
        if path.suffix == ".mp4":
            still = [frames[-1]] * math.ceil(held / pause)
            timing: dict[str, Any] = {"fps": 100 / pause, "macro_block_size": 2}
            imageio.mimsave(draft, cast(Any, [*frames, *still]), **timing)
            return
        first, *rest = map(pillow.fromarray, frames)
        pauses = [10 * pause] * len(rest) + [10 * (pause + held)]  # milliseconds
        first.save(draft, save_all=True, append_images=rest, duration=pauses, loop=0)
