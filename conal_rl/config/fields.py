"""The flags of a config's field, next to its type, its default and its help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_type_hints

from conal_rl.config.values import advice, convert, describe, quoted
from conal_rl.errors import ConfigError

Flag = Literal["changes_run", "changes_experiment", "in_model", "keyword"]
Section = TypeVar("Section")


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
    kinds = get_type_hints(section)
    paths = set[str]()
    for one in dataclasses.fields(section):
        if dataclasses.is_dataclass(kinds[one.name]):
            paths |= {f"{one.name}.{name}" for name in marked(kinds[one.name], flag, value)}
        elif (one.metadata or _UNMARKED)[flag] is value:
            paths.add(one.name)
    return frozenset(paths)


def with_values(section: Section, path: str, values: Mapping[str, Any]) -> Section:
    """Return the section at `path` with different values of some fields.

    Raises:
        ConfigError: a value is not of its field's type, or out of its range.
    """
    kinds = get_type_hints(type(section))
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = convert(kinds[name], value)
        except ValueError:
            expected = describe(kinds[name])
            raise ConfigError(
                f"{path}.{name}: got {quoted(value)}, expected {expected}. "
                f"{advice(kinds[name], value)}"
            ) from None
    return dataclasses.replace(section, **converted)  # type: ignore[type-var]
