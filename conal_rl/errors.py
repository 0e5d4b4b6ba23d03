"""Errors that conal_rl raises for wrong user input. Commands print each one in a single line."""

import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any


class ConalError(Exception):
    """A problem that the user can fix. Commands print it in one line and exit with status 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a name or a path may have several lines


class ConfigError(ConalError, ValueError):
    """A setting is wrong: in a config file, on the command line, or as an argument."""


class SuiteError(ConalError):
    """A task suite is unknown, or one of its environments cannot be made."""


class TreeError(ConalError):
    """A tree is malformed, or it does not fit its tasks or its network."""


class CheckpointError(ConalError):
    """A checkpoint or a run folder is missing, damaged or of the wrong kind."""


class ObservationError(ConalError, ValueError):
    """An observation, action or reward has a wrong shape, an unknown task, or a NaN or inf."""


class CallError(ConalError, RuntimeError):
    """Envs were called in a wrong order: before `reset`, after `close`, or in the middle of a call.

    The message says which call is expected.
    """


class ExtraError(ConalError, ImportError):
    """An optional package is missing. The message names it and the extra that installs it."""


def missing_extra(what: str, extra: str) -> ExtraError:
    """Return the error for a missing package.

    Args:
        what: The clause that names the package, such as "pillow is not installed".
        extra: The extra that installs it.
    """
    return ExtraError(
        f"{what}. Run pip install '.[{extra}]' -c constraints.txt in the source folder of conal_rl"
    )


def import_extra(module: str, package: str, extra: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: Full name of the module.
        package: The package's name in the message.
        extra: The extra that installs the package.

    Raises:
        ExtraError: The package is not installed.
    """
    try:
        return import_module(module)
    except ImportError as missing:
        raise missing_extra(f"{package} is not installed", extra) from missing


def of_user_code(error: Exception) -> str:
    """Return one line that describes an error of the user's own code: its type, text and place."""
    description = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return description
    return f"{description} ({frames[-1].filename}, line {frames[-1].lineno})"


def other_tasks(where: str, there: Sequence[str], agents: Sequence[str]) -> str:
    """Return the message for tasks that differ from the tasks of the agent's heads.

    Args:
        where: The holder of the wrong tasks, such as "the suite".
        there: The holder's tasks.
        agents: The agent's tasks.
    """
    return (
        f"{where}: got the tasks {', '.join(there)}, expected {', '.join(agents)} in this order. "
        "The agent has one head for each of its tasks. Use the agent's tasks"
    )


def diverged(what: str, updates: int) -> ConalError:
    """Return the error for a training that cannot continue, because `what` is not finite."""
    return ConalError(
        f"{what} after {updates} updates, because training diverged. "
        "Resume from the last checkpoint with a lower agent.learning_rate"
    )
