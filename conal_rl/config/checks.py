"""Ranges of fields: what is out of one is a ConfigError that names it, in one line."""

import re
from typing import Any

from conal_rl.config.values import shown
from conal_rl.errors import ConfigError


def require(holds: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ConfigError unless `holds`."""
    if not holds:
        raise ConfigError(f"{field}: got {shown(value)}, expected {allowed}")


def require_seed(field: str, seed: int) -> None:
    """Raise ConfigError unless numpy takes the seed."""
    require(0 <= seed < 2**32, field, seed, "0 or more and below 2**32, as numpy's seeds are")


def require_device(field: str, device: str) -> None:
    """Raise ConfigError unless it names a place where networks can run."""
    placed = re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device) is not None
    require(placed, field, device, "auto, cpu, cuda, cuda:N or mps")


def positive(section: Any, prefix: str, *fields: str) -> None:
    """Raise ConfigError where a field is neither None nor above 0."""
    for field in fields:
        value = getattr(section, field)
        require(value is None or value > 0, f"{prefix}.{field}".lstrip("."), value, "more than 0")


def not_negative(section: Any, prefix: str, *fields: str) -> None:
    """Raise ConfigError where a field is below 0."""
    for field in fields:
        value = getattr(section, field)
        require(value is None or value >= 0, f"{prefix}.{field}".lstrip("."), value, "0 or more")
