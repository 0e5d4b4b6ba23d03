"""What the commands share: errors in one line and exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
from collections.abc import Callable
from typing import NoReturn

from conal_rl.errors import ConalError, ConfigError


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other error of conal_rl: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message} (see --help)")


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command: its own status or 0, 2 after an error reported in one line, 130 on Ctrl-C."""
    try:
        return run() or 0
    except ConalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def keep_memory() -> None:
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
