"""Ranges of fields: a value out of its range is a ConfigError of one line that names the field."""

import math
import re
from typing import Any

from conal_rl.config.values import SEE_HELP, convert, quoted
from conal_rl.errors import ConfigError


def require(holds: bool, field: str, value: Any, expected: str, advice: str = SEE_HELP) -> None:
    """Raise ConfigError unless `holds`."""
    if not holds:
        raise ConfigError(f"{field}: got {quoted(value)}, expected {expected}. {advice}")


def whole(field: str, value: Any, least: float = 1) -> int:
    """Return a whole number of at least `least`, which may be numpy's.

    Raises:
        ConfigError: the value is something else.
    """
    try:
        number: int = convert(int, value)
    except ValueError:
        raise ConfigError(f"{field}: got {quoted(value)}, expected an integer. Give one") from None
    require(number >= least, field, number, f"{least} or more", "Give a larger number")
    return number


def require_seed(field: str, seed: Any) -> None:
    """Raise ConfigError unless numpy takes the seed."""
    fits = 0 <= whole(field, seed, -math.inf) < 2**32
    require(fits, field, seed, "0 or more and below 2**32, the range of numpy's seeds")


def require_device(field: str, device: str) -> None:
    """Raise ConfigError unless networks can run on a device of this name."""
    known = re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device) is not None
    require(known, field, device, "auto, cpu, cuda, cuda:N or mps")


def positive(section: Any, prefix: str, *fields: str) -> None:
    """Raise ConfigError if a field is neither None nor above 0."""
    for field in fields:
        value = getattr(section, field)
        require(value is None or value > 0, f"{prefix}.{field}".lstrip("."), value, "more than 0")


def not_negative(section: Any, prefix: str, *fields: str) -> None:
    """Raise ConfigError if a field is below 0."""
    for field in fields:
        value = getattr(section, field)
        require(value is None or value >= 0, f"{prefix}.{field}".lstrip("."), value, "0 or more")
