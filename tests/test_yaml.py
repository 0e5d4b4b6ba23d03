"""YAML of configs: values by the core schema of YAML 1.2, and one line for anything else."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conal_rl.config import load_config
from conal_rl.config.yaml_text import LONGEST, dump_yaml, load_yaml
from conal_rl.errors import ConfigError

BASE = "total_steps: 1000\nenv: {suite: cartpole}\n"

# The values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # The examples of the specification, section 10.3.2.
        ("[null, ~, '', Null]", [None, None, "", None]),
        ("[true, True, false, FALSE]", [True, True, False, False]),
        ("[0, 0o7, 0x3A, -19]", [0, 7, 58, -19]),
        ("[0., -0.0, .5, +12e03, -2E+05]", [0.0, -0.0, 0.5, 12000.0, -200000.0]),
        ("[.inf, -.Inf, +.INF]", [math.inf, -math.inf, math.inf]),
        # What YAML 1.1 takes for something else.
        ("[yes, no, on, off, y, n]", ["yes", "no", "on", "off", "y", "n"]),
        (
            "[010, 08, 1:30, 1:30:00, 2026-12-01, 0b11]",
            [10, 8, "1:30", "1:30:00", "2026-12-01", "0b11"],
        ),
        ("[1e6, 1e-4, 1E6, 1_000, 3e4]", [1e6, 1e-4, 1e6, 1000, 3e4]),
        (
            "['1', \"true\", !!str 1, !!int 7, !!float 2, !!bool true]",
            ["1", "true", "1", 7, 2, True],
        ),
        ("{1: a, true: b, ~: c}", {"1": "a", "true": "b", "~": "c"}),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("{d: {<<: [{b: 1}, {b: 2, c: 3}]}}", {"d": {"b": 1, "c": 3}}),
        ("\ufeffa: 1\r\nb: [x,\r\n  y]\r\n", {"a": 1, "b": ["x", "y"]}),
        ("", None),
    ],
)
def test_a_value_is_that_of_yaml_1_2(text: str, value: Any) -> None:
    assert load_yaml(text) == value
    assert [type(v) for v in load_yaml(text) or ()] == [type(v) for v in value or ()]


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.from_regex(r"[-+]?[0-9._oxbeE:]{1,6}", fullmatch=True),
    st.sampled_from(
        ["yes", "NO", "~", "null", "1:30", "010", "1e6", "<<", "=", ".inf", "2026-12-01"]
    ),
)


@given(
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.text(max_size=5).filter(lambda key: key != "<<"), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back(data: Any) -> None:
    assert load_yaml(dump_yaml(data)) == data


# Files that are refused


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "a: !!float ''",
        "a: !!map [1]",
        "a: !!timestamp x",
        "a: !!null x",
        "a: !!int 1.5",
        "a: !!binary x",
        "a: !!set {x, y}",
        "a: !own {x: 1}",
        "a: &x [*x]",
        "a: &x {b: *x}",
        "a: 1\n---\nb: 2",
        "{[1]: 2}",
        "a: {<<: 1}",
        "a: {<<: [1]}",
        "a: {b: 1, b: 2}",
        "a:\t- 1\n\t- 2",
        "a: \x00",
        "a: *missing",
        "[" * 20_000,
        "a: " + "{b: " * 3_000 + "1" + "}" * 3_000,
        "a: [" + "1, " * LONGEST + "]",
        "\n".join(
            [
                "a0: &a0 [1,1,1,1,1,1,1,1,1,1]",
                *(f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)),
            ]
        ),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_yaml_without_a_value_is_refused_at_once(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def one_line(tmp_path: Path, text: str | bytes) -> str:
    """The error of a config file with this text; it must be one short line that names the file."""
    path = tmp_path / "case.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    message = str(raised.value)
    assert "\n" not in message and message.isprintable() and len(message) < 600
    return message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed: " + "9" * 5_000, "seed: got "),
        ("seed: 1e30", "seed: got 1e+30"),
        ("seed: 1.5", "seed: got 1.5"),
        ("minutes: 1:30:00", "minutes: got '1:30:00', expected a number or None"),
        ("total_steps: 99999999999999999999", "total_steps: got 99999999999999999999"),
        (f"{'x' * 500}: 1", "expected"),
        ('"a\\nb": 1', "'a\\nb'"),
        ("agent: {layer_norm: 2026-12-01}", "agent.layer_norm: got '2026-12-01'"),
        ("agent: {layer_norm: ~}", "agent.layer_norm: got nothing, expected true or false"),
    ],
)
def test_an_odd_value_is_one_line(text: str, named: str, tmp_path: Path) -> None:
    assert named in one_line(tmp_path, BASE.replace("total_steps: 1000\n", "") + text)


def test_bytes_that_are_not_text_are_one_line(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", b"seed: \x80", b"\x00" * 100, random.Random(0).randbytes(500)):
        assert "case.yaml: got " in one_line(tmp_path, content)


@given(text=st.text(st.sampled_from("ab:-[]{}&*!<>|?%@'\"#\n ,1e.0~\t=_"), max_size=60))
def test_any_text_is_a_config_or_one_line(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "case.yaml"
    path.write_text(text)
    try:
        load_config(path)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 900


@given(st.lists(st.text(st.sampled_from("-abels_.=no1ye "), min_size=1, max_size=14), max_size=5))
def test_any_command_line_is_a_config_or_one_line(words: list[str]) -> None:
    try:
        load_config("cartpole", words)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 900


# Numbers and switches


@pytest.mark.parametrize("steps", ["1e6", "1.0e6", "1.0e+6", "1_000_000", "1000000"])
def test_an_integer_may_have_an_exponent(steps: str, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(f"total_steps: {steps}\nseed: 010\nenv: {{suite: cartpole}}\n")
    config = load_config(path)
    assert (config.total_steps, type(config.total_steps), config.seed) == (1_000_000, int, 10)
    config = load_config("cartpole", ["--total-steps", steps, "--seed", "010"])
    assert (config.total_steps, type(config.total_steps), config.seed) == (1_000_000, int, 10)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, True) for word in ("yes", "on", "1", "true", "Yes", "TRUE")),
        *((word, False) for word in ("no", "off", "0", "false", "OFF")),
    ],
)
def test_a_switch_takes_what_people_write(word: str, value: bool, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(BASE + f"agent: {{layer_norm: {word}}}\n")
    config: Any = load_config(path)
    assert config.agent.layer_norm is value
    for options in (["--agent.layer-norm", word], [f"--agent.layer-norm={word}"]):
        config = load_config("cartpole", options)
        assert config.agent.layer_norm is value


def test_a_word_after_a_switch_is_named_with_it() -> None:
    with pytest.raises(ConfigError, match=r"--agent.layer-norm: got 'maybe', expected true or fal"):
        load_config("cartpole", ["--agent.layer-norm", "maybe"])
    with pytest.raises(ConfigError, match=r"--agent.no-layer-norm: got 'yes', expected true or"):
        load_config("cartpole", ["--agent.no-layer-norm", "yes"])
