"""What the commands share: options, errors in one line, exit statuses."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from conal_rl.errors import ConalError, ConfigError
from conal_rl.signals import handled
from conal_rl.streams import lasting_streams

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like every other error of conal_rl."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, add_help=False)
        self.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"command line: {message}. Give --help to see the options")


def wide_console() -> Console:
    """Return a console for tables on stdout, 160 columns wide if that is not a terminal."""
    from rich.console import Console  # imported here because commands handle signals before it

    return Console(width=None if sys.stdout.isatty() else 160)


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of a supervised run's data."""
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        help="The folder of a supervised run's data. The default is the run's data.root. "
        "Give it if the data have moved.",
    )


class _Seeds(argparse.Action):
    """Collects the seeds of words such as 3 and 100-109."""

    def __call__(self, parser: Any, options: Any, words: Any, option: str | None = None) -> None:
        from conal_rl.config.checks import require_seed

        seeds: dict[int, None] = {}  # each once, in the order given
        for word in words:
            first, dash, last = word.partition("-")
            ends = (first, last) if dash else (first, first)
            if not all(end.isascii() and end.isdigit() and len(end) < 20 for end in ends):
                raise _wrong_seeds(word)
            low, high = map(int, ends)
            if not low <= high < low + 10_000:
                raise _wrong_seeds(word)
            seeds |= dict.fromkeys(range(low, high + 1))
        for seed in seeds:
            require_seed("--seeds", seed)
        setattr(options, self.dest, list(seeds))


def _wrong_seeds(word: str) -> ConfigError:
    return ConfigError(
        f"--seeds: got {word!r}, expected numbers and ranges. Give them as in 3 5 or 100-109"
    )


def add_seeds(parser: argparse.ArgumentParser, default: Sequence[int]) -> None:
    """Add the option that names seeds, as numbers and ranges."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        action=_Seeds,
        default=list(default),
        metavar="SEED",
        help=f"Use these seeds, as in 3 5 or 100-109. The default is {seed_ranges(default)}.",
    )


def seed_ranges(seeds: Sequence[int]) -> str:
    """Return seeds in words that `--seeds` takes: consecutive ones as a range."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges)


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status.

    The status is the command's, or 0. It is 2 after an error, which takes one line on stderr.
    After Ctrl-C, SIGTERM or SIGHUP it is 128 + the signal's number. Errors are those of conal_rl,
    missing files, a full disk, and memory.
    """
    came: list[int] = []
    last = -math.inf

    def interrupt(number: int) -> None:
        nonlocal last
        repeated, last = time.monotonic() - last < 1, time.monotonic()
        came.append(number)
        if number == signal.SIGINT or not repeated:  # some senders send SIGTERM twice
            raise KeyboardInterrupt

    with lasting_streams(), handled(interrupt):
        try:
            status, message = _outcome(run)
        except KeyboardInterrupt:
            return 128 + (came[0] if came else signal.SIGINT)
        except Exception:
            if not came:
                raise
        if came:  # an error that follows is of what the signal cut short
            return 128 + came[0]
        if message:
            print("error:", " ".join(message.splitlines()), file=sys.stderr)
        return status


def _outcome(run: Callable[[], int | None]) -> tuple[int, str]:
    """Run a command; return its exit status, and the message of its error."""
    try:
        status = run() or 0
        sys.stdout.flush()
        return status, ""
    except ConalError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = "out of memory"
    except RuntimeError as error:  # torch has a class for a GPU's memory, but not for a CPU's
        message = " ".join(str(error).split())
        if "memory" not in message or "alloc" not in message.lower():
            raise
        message = f"out of memory: {message}. Give a smaller agent.buffer_size or agent.batch_size"
    return 2, message
