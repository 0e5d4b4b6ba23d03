"""What the commands share: errors in one line and exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from conal_rl.config.checks import require_device
from conal_rl.errors import ConalError, ConfigError

if TYPE_CHECKING:
    import torch


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other error of conal_rl: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message} (see --help)")


def wide_console() -> Console:
    """For tables on stdout, which are not cut to 80 columns where that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command: its own status or 0, 2 after an error reported in one line, 130 on Ctrl-C.

    Errors are those of conal_rl, and what a machine has not: files, a disk's room, memory.
    """
    try:
        return run() or 0
    except ConalError as error:
        told = str(error)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        told = "out of memory"
    except RuntimeError as error:  # torch has a class for a GPU's memory, and none for a CPU's
        told = " ".join(str(error).split())
        if "memory" not in told or "alloc" not in told.lower():
            raise
        told = f"out of memory; a smaller agent.buffer_size or batch_size needs less: {told}"
    except KeyboardInterrupt:
        return 130
    print(f"error: {told}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def loading_mujoco() -> Iterator[None]:
    """Around the first import of MuJoCo, which loads the OpenGL that MUJOCO_GL names.

    Raises:
        ConalError: that fails, as it does in many ways.
    """
    try:
        yield
    except Exception as error:
        if "MUJOCO_GL" not in os.environ:
            raise
        backend = os.environ["MUJOCO_GL"]
        raise ConalError(f"MuJoCo does not load with MUJOCO_GL={backend}: {error}") from error


def resolve_device(field: str, name: str) -> torch.device:
    """The device that a name stands for; `auto` is a GPU where there is one.

    Raises:
        ConfigError: naming `field`, where it is no device's name, or there is none of it here.
    """
    require_device(field, name)
    import torch  # not above, so that --help and wrong options answer at once
    from stable_baselines3.common.utils import get_device

    if name == "auto":
        return get_device(name)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{field}: {name} cannot be used here: {reason}") from error
    return torch.device(name)


def tune_malloc() -> None:
    """Let this process keep memory that it has freed, for its next use; glibc alone is asked.

    A step of training frees and takes the same megabytes again and again. Given back to the
    system in between, every page of them costs a fault: a quarter of a small network's update.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the highest that is allowed
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)
