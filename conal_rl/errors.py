"""What conal_rl raises when a user's input is at fault: one line, no traceback."""

import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any


class ConalError(Exception):
    """A problem the user can mend; commands print it in one line and exit with status 2."""


class ConfigError(ConalError):
    """A config file or command-line option is wrong."""


class SuiteError(ConalError):
    """A task suite or one of its environments is unknown or cannot be made."""


class TreeError(ConalError):
    """A tree is malformed or does not fit its tasks or network."""


class CheckpointError(ConalError):
    """A checkpoint or run folder is missing, damaged or of another kind."""


class ObservationError(ConalError):
    """An observation or action of the wrong shape or of no task, or a value that is not finite."""


class ExtraError(ConalError, ImportError):
    """An optional package is missing; the message names it and the extra that brings it."""


def missing_extra(what: str, extra: str) -> ExtraError:
    """The error to raise where `what` says which package is missing, and `extra` brings it."""
    return ExtraError(
        f"{what}: pip install '.[{extra}]' -c constraints.txt, in the source folder of conal_rl"
    )


def import_extra(module: str, package: str, extra: str) -> Any:
    """Import a module of an optional package, or raise an ExtraError that says how to get it."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise missing_extra(f"{package} is not installed", extra) from missing


def of_user_code(error: Exception) -> str:
    """What to say, in one line, of whatever a user's own module raised, and where."""
    told = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    return f"{told} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else told


def other_tasks(where: str, there: Sequence[str], agents: Sequence[str]) -> str:
    """What to say where tasks are not those that an agent's heads are for."""
    return (
        f"{where} has the tasks {', '.join(there)}; the agent is of {', '.join(agents)}, and its "
        "heads are theirs, in that order"
    )


def diverged(what: str, updates: int) -> ConalError:
    """The error to raise where `what` says that training cannot go on."""
    return ConalError(
        f"{what} after {updates} updates: training diverged; "
        "resume from the last checkpoint with a lower agent.learning_rate"
    )
