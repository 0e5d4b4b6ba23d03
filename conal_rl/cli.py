"""What the commands share: errors in one line and exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console

from conal_rl.errors import ConalError, ConfigError


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
