"""What the commands share: errors in one line and exit statuses."""

from __future__ import annotations

import argparse
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
