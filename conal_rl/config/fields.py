"""The flags of a config's field, next to its type, its default and its help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_type_hints

from conal_rl.config.values import advice, convert, describe, quoted
from conal_rl.errors import ConfigError

Flag = Literal["changes_run", "changes_experiment", "in_model", "keyword"]


def field(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Callable[[], Any] | None = None,
    changes_run: bool = False,
    changes_experiment: bool = True,
    in_model: bool = False,
    keyword: bool = True,
) -> Any:
    """Return a dataclass field that carries these flags.

    Args:
        changes_run: a resume refuses a different value, because it would be a different run.
        changes_experiment: runs that differ in it are different experiments.
        in_model: saved weights need it, because the networks depend on it.
        keyword: `conal_rl.agents.ConalSAC` takes it as a keyword.
    """
    metadata = {
        "changes_run": changes_run,
        "changes_experiment": changes_experiment,
        "in_model": in_model,
        "keyword": keyword,
    }
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_UNMARKED = field().metadata


def marked(section: type[Any], flag: Flag, value: bool = True) -> frozenset[str]:
    """Return the fields whose flag has this value, those of a section as `section.field`."""
    kinds = _types(section)
    paths = set[str]()
    for one in dataclasses.fields(section):
        if dataclasses.is_dataclass(kinds[one.name]):
            paths |= {f"{one.name}.{name}" for name in marked(kinds[one.name], flag, value)}
        elif (one.metadata or _UNMARKED)[flag] is value:
            paths.add(one.name)
    return frozenset(paths)


def convert_fields(section: Any, path: str) -> None:
    """Give every field of a section at `path` the declared type, or say that it does not fit.

    It is for the start of `__post_init__`. A list becomes a tuple, an integer a number, and a
    number of numpy one of Python.

    Raises:
        ConfigError: a value is not of its field's type.
    """
    for name, kind in _types(type(section)).items():
        value = getattr(section, name)
        try:
            object.__setattr__(section, name, convert(kind, value))
        except ValueError:
            field = f"{path}.{name}".lstrip(".")
            raise ConfigError(
                f"{field}: got {quoted(value)}, expected {describe(kind)}. {advice(kind, value)}"
            ) from None


def _types(section: type[Any]) -> dict[str, Any]:
    """Return the declared types of a section's fields by their names."""
    kinds = get_type_hints(section)
    return {one.name: kinds[one.name] for one in dataclasses.fields(section)}
