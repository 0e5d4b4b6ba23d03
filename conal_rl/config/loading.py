"""Reads configs from YAML and the command line, with errors of one line."""

from __future__ import annotations

import dataclasses
import difflib
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from conal_rl.config.rl import Config
from conal_rl.config.supervised import SupervisedConfig
from conal_rl.config.values import (
    advice,
    convert,
    describe,
    parse_options,
    quoted,
    require_no_value_of_a_switch,
    shown,
    suggestion,
)
from conal_rl.config.yaml_text import load_yaml
from conal_rl.errors import ConfigError
from conal_rl.files import read_text, user_path

AnyConfig = Config | SupervisedConfig


def presets() -> tuple[str, ...]:
    """Return the names of the configs that come with the package."""
    files = (resources.files("conal_rl") / "configs").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a preset by its name, or a YAML file by its path, and apply command-line overrides.

    `base: NAME_OR_YAML` in a file names the config for all fields that the file leaves out; a
    relative path starts at the file's folder. `overrides` are options such as
    `["--agent.batch-size", "64", "--search.only"]`.

    Raises:
        ConfigError: in one line, the file, the field, its value and what was expected.
    """
    given, words = parse_options(overrides, _FIELDS)
    if words:
        require_no_value_of_a_switch(overrides, words, _FIELDS)
        raise ConfigError(
            f"command line: got {quoted(words[0])}, expected an option, such as --seed 1. "
            f"Leave out {shown(words[0])}"
        )
    return _load(str(name_or_path), given)


class CommandLine(NamedTuple):
    """What a command line of `python -m conal_rl.train` asks for."""

    config: AnyConfig
    out: Path | None  # the new run's folder, absolute; None: the default
    resume: Path | None  # the folder of the run to resume, absolute; None: a new run
    label: str  # the name of the run, with its method if options have changed it
    cut: str | None  # a line that says that --total-steps has cut the search, if it has


def parse_command_line(argv: Sequence[str], description: str) -> CommandLine:
    """Read `NAME_OR_YAML [--out DIR] [--resume DIR] [--section.field VALUE ...]`.

    `--resume DIR` needs no name, because the run has its own config. `--help` prints every field
    with the named config's values as defaults, and exits.

    Raises:
        ConfigError: as `load_config`, or the words are not those of the usage.
    """
    if "-h" in argv or "--help" in argv:
        _print_help([word for word in argv if not word.startswith("-")], description)
    given, words = parse_options(argv, {**_FIELDS, "out": str, "resume": str})
    out, resume = given.pop("out", None), given.pop("resume", None)
    for option, folder in (("--out", out), ("--resume", resume)):
        if folder == "":
            raise ConfigError(f"command line: {option}: got nothing, expected a folder. Give one")
    if resume is not None and (words or out is not None):
        extra = words[0] if words else "--out"
        raise ConfigError(
            f"command line: --resume: got {extra} with it, expected only fields to change. "
            f"Leave out {extra}"
        )
    if resume is not None:
        words = [str(user_path(resume) / "config.yaml")]
        if not os.path.isfile(words[0]):
            raise ConfigError(
                f"command line: --resume: got {resume}, expected a run's folder, which has a "
                "config.yaml. Give the folder that `train` named when the run began"
            )
    if len(words) != 1:
        others = [w for w in words if not (w in presets() or w.endswith(".yaml"))]
        require_no_value_of_a_switch(argv, others, _FIELDS)
        given_words = " ".join(words) or "no name"
        names = ", ".join(presets())
        raise ConfigError(
            f"command line: got {given_words}, expected one of {names}, or a YAML file. "
            "Give one name"
        )
    config = _load(words[0], given, keep_search=resume is not None)
    named = _load(words[0], {})
    changed = config.method != named.method
    label = f"{config.name}-{config.method}" if changed else config.name
    cut = _cut(named, config) if resume is None and "search.steps" not in given else None
    return CommandLine(config, _folder(out), _folder(resume), label, cut)


def _cut(named: AnyConfig, config: AnyConfig) -> str | None:
    """Return a line if the search is shorter than that of the config without options."""
    now, before = config.search.steps, named.search.steps
    if config.agent.tree != "search" or now >= before:
        return None
    return (
        f"search.steps: the search has {now:,} steps instead of {before:,}, a fifth of the "
        f"{config.total_steps:,} in total. Give --search.steps for a different length."
    )


def _folder(named: str | None) -> Path | None:
    return None if named is None else user_path(named).absolute()


def _load(name: str, overrides: Mapping[str, Any], keep_search: bool = False) -> AnyConfig:
    layers = _read(name)
    kind = _SUPERVISED if any(path.startswith("data.") for path in layers[0].fields) else _RL
    if overrides:
        layers.append(_Layer("command line", overrides))
    flat: dict[str, Any] = {}
    sized_for = 0  # the total_steps for which search.steps was written
    # Each layer is checked with only the layers below it, so that an error names the right file.
    for source, fields in layers:
        flat |= fields
        if flat.get("search.steps", 0) in (None, "none", "None"):  # back to the default
            del flat["search.steps"]
        sized = flat
        if "search.steps" in flat.keys() - fields.keys() and not keep_search:
            whole = _build(kind, {**flat, "search.steps": 1}, source).total_steps
            if whole < sized_for:  # a smaller budget shrinks the search
                fifth = max(1, whole // 5)
                sized = {**flat, "search.steps": min(flat["search.steps"], fifth)}
        config = _build(kind, sized, source)
        if "search.steps" in fields:
            sized_for = config.total_steps
    return config


class _Layer(NamedTuple):
    """Fields by their paths, and the name of their file in errors."""

    source: str
    fields: Mapping[str, Any]


def _read(name: str, above: tuple[str, ...] = ()) -> list[_Layer]:
    """Read a preset or file, and its base before it. `above` are the files that have it as base."""
    path = Path(str(resources.files("conal_rl"))) / "configs" / f"{name}.yaml"
    source = f"{name}.yaml"
    if name not in presets():
        path, source = user_path(name), name
        if not path.suffix and not os.path.exists(path):
            bare = name.rpartition("/")[2].lower()  # as in Meta-World/MT10
            close = difflib.get_close_matches(bare, presets(), 1)
            hint = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(presets())}"
            raise ConfigError(
                f"{name}: got no such config, expected a preset or a YAML file. {hint}"
            )
    fields = {"name": Path(source).stem, **_read_flat(path, source)}
    if "base" not in fields:
        return [_Layer(source, fields)]
    base = fields.pop("base")
    if not (isinstance(base, str) and base.isprintable() and base):
        raise ConfigError(
            f"{source}: base: got {quoted(base)}, expected a preset or a YAML file. "
            "Give one, such as mt10"
        )
    if base not in presets():
        neighbour = os.path.join(os.path.dirname(source), user_path(base))
        if os.path.dirname(base) or Path(base).suffix or os.path.exists(neighbour):
            base = neighbour
        above = *above, os.path.abspath(user_path(source))
        if os.path.abspath(user_path(base)) in above:
            raise ConfigError(
                f"{source}: base: got {base}, expected a config that does not itself have this "
                "file as its base. Give a different base"
            )
    try:
        return [*_read(base, above), _Layer(source, fields)]
    except ConfigError as error:
        raise ConfigError(f"{source}: base: {error}") from None


def _read_flat(path: Path, source: str) -> dict[str, Any]:
    """Read a YAML file; return its nested sections as `{"section.field": value}`."""
    try:
        data = load_yaml(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"{source}: got {error.strerror}, expected a readable file. Check the path"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = textwrap.shorten(str(error).replace('in "<unicode string>", ', ""), 400)
        raise ConfigError(
            f"{source}: got invalid YAML ({reason}), expected fields. Correct the file"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source}: got {quoted(data)}, expected fields and their values. Correct the file"
        )
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _SECTIONS:
            fields: dict[str, Any] = {key: value}
        elif isinstance(value, dict):
            fields = {f"{key}.{field}": inner for field, inner in value.items()}
        else:
            raise ConfigError(
                f"{source}: {key}: got {quoted(value)}, expected a section of fields. "
                "Indent its fields below it"
            )
        for given, inner in fields.items():
            name = _OLD_NAMES.get(given, given)
            if name in flat:
                raise ConfigError(
                    f"{source}: {shown(name)}: got two values, expected one. Leave out one of them"
                )
            flat[name] = inner
    return flat


def _build(kind: _Kind, flat: Mapping[str, Any], source: str) -> AnyConfig:
    """Check names and types, then construct the config; its classes check the ranges."""
    values: dict[str, dict[str, Any]] = {section: {} for section in ("", *kind.sections)}
    for path, value in flat.items():
        if path not in kind.fields:
            raise ConfigError(f"{source}: {shown(path)}: {_unknown(path, kind)}")
        section, _, name = path.rpartition(".")
        try:
            values[section][name] = convert(kind.fields[path], value)
        except (ValueError, OverflowError):
            expected = describe(kind.fields[path])
            raise ConfigError(
                f"{source}: {path}: got {quoted(value)}, expected {expected}. "
                f"{advice(kind.fields[path], value)}"
            ) from None
    for path in ("total_steps", kind.needs):
        if path not in flat:
            raise ConfigError(
                f"{source}: {path}: got no value, expected {describe(kind.fields[path])}. Give one"
            )
    if kind is _RL:
        hundredth = max(1, values[""]["total_steps"] // 100)
        values[""].setdefault("log_interval", min(Config.log_interval, hundredth))
    values["search"].setdefault("steps", max(1, values[""]["total_steps"] // 5))
    try:
        sections = {name: owner(**values[name]) for name, owner in kind.sections.items()}
        return kind.config(**values[""], **sections)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _unknown(path: str, kind: _Kind) -> str:
    """Return the end of an error about a field that this kind of config lacks."""
    if path not in _FIELDS:
        return f"got an unknown field, expected one of the config. {suggestion(path, kind.fields)}"
    here, there = "reinforcement learning", "supervised learning"
    if kind is _SUPERVISED:
        here, there = there, here
    return f"got a field of {there}, expected one of {here}. Leave it out"


def _print_help(words: Sequence[str], description: str) -> None:
    """Print the help with the values of the config that is named, otherwise of mt10, and exit."""
    from conal_rl.config.help import print_help

    named = next((word for word in words if word in presets() or word.endswith(".yaml")), "mt10")
    about = (
        f"{description} The defaults shown are those of {named}. `NAME --help` shows the defaults "
        "of a different config."
    )
    print_help(_load(named, {}), about, ", ".join(presets()))
    raise SystemExit(0)


class _Kind:
    """A class of config: its sections, and the declared type of every field by its path."""

    def __init__(self, config: type[AnyConfig], needs: str):
        self.config: Callable[..., AnyConfig] = config
        self.needs = needs
        declared = get_type_hints(config)
        self.sections: dict[str, Any] = {
            name: owner for name, owner in declared.items() if dataclasses.is_dataclass(owner)
        }
        self.fields: dict[str, Any] = {n: k for n, k in declared.items() if n not in self.sections}
        for section, owner in self.sections.items():
            kinds = get_type_hints(owner)
            self.fields |= {f"{section}.{name}": kind for name, kind in kinds.items()}


_RL, _SUPERVISED = _Kind(Config, "env.suite"), _Kind(SupervisedConfig, "data.set")
_KINDS = (_RL, _SUPERVISED)
_SECTIONS = {section for kind in _KINDS for section in kind.sections}
# Fields of the same path have the same type in both kinds.
_FIELDS = {path: field for kind in _KINDS for path, field in kind.fields.items()}
# Names that fields had in the configs of older runs.
_OLD_NAMES = {"evaluation.every_episodes": "evaluation.interim_episodes"}
