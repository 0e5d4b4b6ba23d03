"""How well a policy does: success per task with its intervals, and videos."""

import contextlib
import os
from collections.abc import Iterator

from conal_rl.errors import ConalError


@contextlib.contextmanager
def _loading_mujoco() -> Iterator[None]:
    """Raise ConalError if the OpenGL that MUJOCO_GL names fails."""
    try:
        yield
    except Exception as error:
        if "MUJOCO_GL" not in os.environ:
            raise
        backend = os.environ["MUJOCO_GL"]
        raise ConalError(
            f"MUJOCO_GL: got {backend} ({error}), expected a backend that MuJoCo can load. Try egl"
        ) from error


with _loading_mujoco():
    from conal_rl.evaluation.intervals import Interval, mean_interval, wilson
    from conal_rl.evaluation.protocol import Engine, Evaluation, Policy, evaluate_policy
    from conal_rl.evaluation.video import prepare_videos, record_videos

__all__ = [
    "Engine",
    "Evaluation",
    "Interval",
    "Policy",
    "evaluate_policy",
    "mean_interval",
    "prepare_videos",
    "record_videos",
    "wilson",
]
