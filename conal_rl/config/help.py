"""The help of `python -m conal_rl.train`: every field of a config, its meaning and its default."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LONGEST_CHOICE = 60
"""Letters of a list of choices that stands next to its option; a longer one is in the text."""


def print_help(config: Any, description: str, names: str) -> None:
    """Print the usage of `train` and every field of a config, with its values as defaults.

    Args:
        config: the config whose values are shown.
        description: the first paragraph of the help.
        names: the names of all presets, in one string.
    """
    parser = argparse.ArgumentParser(
        prog="python -m conal_rl.train",
        usage="%(prog)s NAME_OR_YAML [OPTIONS]",
        description=description,
        formatter_class=_Formatter,
        add_help=False,
    )
    parser.add_argument(
        "NAME_OR_YAML", help=f"The name of a config, or a YAML file. The names are {names}."
    )
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    options.add_argument(
        "--out",
        metavar="DIR",
        help="Folder of the new run. Give one if scripts must find it. The default is "
        "runs/NAME-SEED-TIME, or runs/NAME-METHOD-SEED-TIME if options change the method.",
    )
    options.add_argument(
        "--resume",
        metavar="DIR",
        help="Folder of a run to resume. The run has its own config; give no name with it.",
    )
    _add_fields(options, config, "")
    for one in dataclasses.fields(config):
        section = getattr(config, one.name)
        if dataclasses.is_dataclass(section):
            about = " ".join((type(section).__doc__ or "").split())
            group = parser.add_argument_group(f"{one.name} options", about)
            _add_fields(group, section, f"{one.name}.")
    parser.print_help()


class _Formatter(argparse.HelpFormatter):
    """Puts the text below its option, and keeps the line breaks that a text has on purpose."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in _wrapped(part, width)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _add_fields(group: argparse._ArgumentGroup, section: Any, prefix: str) -> None:
    texts, kinds = _texts(type(section)), get_type_hints(type(section))
    for one in dataclasses.fields(section):
        default, kind = getattr(section, one.name), kinds[one.name]
        if dataclasses.is_dataclass(default):
            continue
        name = one.name.replace("_", "-")
        values, choices = _values(kind)
        # After explained choices, the default begins a line.
        space = "\n" if "\n" in texts[one.name] else " "
        text = f"{texts[one.name]}{space}{choices}The default is {_worded(default)}."
        text = text.replace("%", "%%")
        if kind is bool:
            flags = (f"--{prefix}{name}", f"--{prefix}no-{name}")
            group.add_argument(*flags, action="store_true", help=text)
        else:
            group.add_argument(f"--{prefix}{name}", metavar=values, help=text)


def _texts(section: type[Any]) -> dict[str, str]:
    """Return the docstring under each field of a config's class, by the field's name."""
    texts: dict[str, str] = {}
    for owner in reversed(section.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = _joined(inspect.cleandoc(str(below.value.value)))
    return texts


def _joined(text: str) -> str:
    """Join the lines of a text, except those that explain one choice: `name: text`."""
    first, *rest = text.splitlines()
    breaks = ("\n" if re.match(r"[a-z0-9_]+: ", line) else " " for line in rest)
    return first + "".join(space + line for space, line in zip(breaks, rest))


def _values(kind: Any) -> tuple[str, str]:
    """Return how a field's values are written on the command line, and its choices if many."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        written = [_values(arm)[0] for arm in args if arm is not type(None)]
        return written[-1] + "|None" * (type(None) in args), ""
    if origin is Literal:
        listed = ",".join(args)
        if len(listed) <= LONGEST_CHOICE:
            return f"{{{listed}}}", ""
        return "NAME", f"The names are {', '.join(args)}. "
    if origin is tuple:
        one = _values(args[0])[0]
        return (f"{one} [{one} ...]" if args[-1] is Ellipsis else " ".join([one] * len(args))), ""
    return {int: "N", float: "NUMBER", str: "TEXT"}.get(kind, ""), ""


def _worded(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "an empty list"
    return str(value).lower() if isinstance(value, bool) else str(value)
