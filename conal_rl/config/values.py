"""Values of declared types: how they are read from YAML or words, and described in errors.

The types are those of a config's fields: int, float, bool, str, Literal, tuple and unions.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
import types
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin

from conal_rl.errors import ConfigError

SEE_HELP = "See python -m conal_rl.train --help"
"""The advice about a field, whose meaning the help explains."""
NUMBER = re.compile(
    r"(?:0o[0-7]+|0x[0-9a-fA-F]+|"
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|"
    r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
"""A number of YAML 1.2's core schema. Underscores may group the digits before the point."""
LARGEST = 2**128
"""Integers are below it, the range of single precision."""
_SWITCH = {"yes": True, "on": True, "true": True, 1: True}
_SWITCH |= {"no": False, "off": False, "false": False, 0: False}


def parse_options(
    argv: Sequence[str], kinds: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return `{field: value}` of the options `--field VALUE`, and all other words.

    A switch takes no value, or one of true, yes, on, 1, false, no, off and 0. A list takes every
    word up to the next option. Any other field takes one word. `-` and `_` are the same within a
    name.

    Raises:
        ConfigError: an option is unknown, or its value is missing.
    """
    given: dict[str, Any] = {}
    words: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        section, dot, field = name.rpartition(".")
        positive = f"{section}{dot}{field.removeprefix('no_')}"
        if kinds.get(positive) is bool and field.startswith("no_") and not equals:
            given[positive] = False
            continue
        if name not in kinds:
            raise ConfigError(
                f"command line: {shown(option)}: got an unknown option, expected one of the "
                f"fields. {suggestion(name, kinds, '--')}"
            )
        values = [value] if equals else _take(left, kinds[name])
        if not values:
            expected = describe(kinds[name])
            raise ConfigError(
                f"command line: {option}: got no value, expected {expected}. Give one"
            )
        given[name] = _from_words(values, kinds[name])
    return given, words


def _take(left: list[str], kind: Any) -> list[str]:
    """Remove an option's values from the front of `left` and return them."""
    if kind is bool:
        explicit = bool(left) and _switch(scalar(left[0])) is not None
        return [left.pop(0)] if explicit else ["true"]
    taken: list[str] = []
    while left and not left[0].startswith("--") and (_lists(kind) or not taken):
        taken.append(left.pop(0))
    return taken


def _from_words(words: list[str], kind: Any) -> Any:
    arms = _arms(kind)
    if type(None) in arms and len(words) == 1 and words[0].lower() == "none":
        return None
    as_text = any(_holds_text(arm) for arm in arms)
    values = [word if as_text or not word else scalar(word) for word in words]
    # A single word is a list only if the field takes no other single value.
    is_list = len(values) > 1 or not set(arms) - {*_lists(kind), type(None)}
    return list(values) if is_list else values[0]


def _arms(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; of any other type, only that type."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _lists(kind: Any) -> list[Any]:
    return [arm for arm in _arms(kind) if get_origin(arm) is tuple]


def _holds_text(kind: Any) -> bool:
    return get_origin(kind) is Literal or str in (kind, *get_args(kind))


def scalar(text: str) -> Any:
    """Return the value of a word of a command line, or of a plain word in YAML.

    It is that of YAML 1.2's core schema: no base 60, no octal number without 0o, no date. An
    integer that is too long for Python stays text.
    """
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if not NUMBER.match(text):
        return text
    digits = text.lower().replace("_", "")
    try:
        if digits[:2] in ("0o", "0x"):
            return int(digits, 0)
        is_integer = digits.lstrip("-+").isdigit()
        return int(digits) if is_integer else float(re.sub(r"\.(inf|nan)", r"\1", digits))
    except ValueError:  # thousands of digits
        return text


def _switch(value: Any) -> bool | None:
    """Return what a value means for a switch; None if it means nothing."""
    word = value.lower() if isinstance(value, str) else value
    return _SWITCH.get(word) if type(word) in (bool, int, str) else None


def require_no_value_of_a_switch(
    argv: Sequence[str], words: Sequence[str], kinds: Mapping[str, Any]
) -> None:
    """Raise ConfigError if one of the `words` follows a switch, which does not take it."""
    for option, word in pairwise(argv):
        name = option.removeprefix("--").replace("-", "_").replace(".no_", ".")
        if option.startswith("--") and kinds.get(name) is bool and word in words:
            raise ConfigError(
                f"command line: {option}: got {quoted(word)}, expected true or false. "
                f"Leave out {shown(word)}"
            )


def suggestion(name: str, known: Mapping[str, Any], prefix: str = "") -> str:
    """Return `Did you mean ...?` with the closest name, or `SEE_HELP` if no name is close."""
    last = {path.rpartition(".")[2]: path for path in known}
    close = difflib.get_close_matches(name, list(known), 1, cutoff=0.7)
    close = close or [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], last, 1)]
    if not close:
        return SEE_HELP
    return f"Did you mean {prefix}{close[0].replace('_', '-') if prefix else close[0]}?"


def advice(kind: Any, value: Any) -> str:
    """Return what to do about a value that does not fit: the closest choice, or `SEE_HELP`."""
    if str in _arms(kind) and isinstance(value, (int, float)):
        return "Put it in quotes"
    if isinstance(value, (int, float)) and abs(value) >= LARGEST:
        return "Give a smaller number"
    if isinstance(value, str) and isinstance(scalar(value), (int, float)):
        return "Leave out the quotes"
    choices = [choice for arm in _arms(kind) for choice in _choices(arm)]
    return suggestion(value, dict.fromkeys(choices)) if isinstance(value, str) else SEE_HELP


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def convert(kind: Any, value: Any) -> Any:
    """Return `value` as the type `kind` of a field; raise ValueError if it does not fit."""
    origin, args = get_origin(kind), get_args(kind)
    value = plain(value)
    if origin in (Union, types.UnionType):
        if type(None) in args and isinstance(value, str) and value.lower() == "none":
            return None  # as the help calls it
        for arm in args:
            try:
                return convert(arm, value)
            except ValueError:
                continue
    elif origin is Literal and isinstance(value, str) and value in args:
        return value
    elif origin is tuple and isinstance(value, tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(map(convert, kinds, value))
    elif kind is float and type(value) in (int, float):
        if math.isfinite(value) if type(value) is float else abs(value) < LARGEST:
            return float(value)
    elif kind is int and type(value) in (int, float):
        if -LARGEST < value < LARGEST and value == int(value):
            return int(value)
    elif kind is bool and (switch := _switch(value)) is not None:
        return switch
    elif kind is type(value) or (_is_section(kind) and isinstance(value, kind)):
        return value
    raise ValueError


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def plain(value: Any) -> Any:
    """Return `value` with numpy's numbers as Python's, and arrays and lists as tuples."""
    # numpy itself is not imported, so that --help answers at once.
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def describe(kind: Any, many: bool = False) -> str:
    """Return the values that a field's type allows, in words for errors."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arm) for arm in args)
    if origin is Literal:
        return f"one of {', '.join(args)}" if len(args) > 1 else str(args[0])
    if origin is tuple:
        count = "a list of" if args[-1] is Ellipsis else f"{len(args)}"
        return f"{count} {describe(args[0], many=True)}"
    if _is_section(kind):
        return f"an instance of {kind.__name__}"
    names = {int: "integer", float: "number", bool: "true or false", str: "text"}
    if kind in (int, float):
        return f"{names[kind]}s" if many else f"a{'n' if kind is int else ''} {names[kind]}"
    return names.get(kind, "None")


def quoted(value: Any) -> str:
    """Return a value as errors quote it: like YAML, in at most 60 characters."""
    text = "nothing" if value is None else _Short().repr(lists_for_tuples(value))
    text = text.replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Short(reprlib.Repr):
    """Writes the start of a value, because the whole may be long, or contain itself."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 30
        self.maxother = 70

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:70])

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() < 400:
            return repr(x)
        return f"an integer of {x.bit_length() * 0.30103:,.0f} digits"  # Python may not write it


def shown(text: str) -> str:
    """Return the name of a field or an option for an error; quoted if it is long or odd."""
    return text if text.isprintable() and len(text) <= 60 else quoted(text)


def lists_for_tuples(value: Any) -> Any:
    """Return `value` with its tuples as lists, because plain YAML has no tuples."""
    if isinstance(value, dict):
        return {key: lists_for_tuples(inner) for key, inner in value.items()}
    return [lists_for_tuples(v) for v in value] if isinstance(value, (list, tuple)) else value
