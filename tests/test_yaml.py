"""YAML and command lines as people write them, and as nobody should."""

from __future__ import annotations

import dataclasses
import io
import math
import random
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conal_rl.config import Config, SupervisedConfig, load_config, parse_command_line
from conal_rl.config.loading import _FIELDS
from conal_rl.config.yaml_text import LONGEST, dump_yaml, load_yaml
from conal_rl.errors import ConfigError
from tests.helpers.refusals import refused

PLAIN: dict[str, Any] = {
    **{"1e6": 1e6, "1.0e+6": 1e6, "1E-3": 1e-3, ".5": 0.5, "5.": 5.0, "-1_000": -1000, "+5": 5},
    **{"010": 10, "0o10": 8, "0x1F": 31, "-.inf": -math.inf, "1e999": math.inf, "00.5": 0.5},
    **{"1:30": "1:30", "2024-01-01": "2024-01-01", "0b11": "0b11", "1_": 1, "_1": "_1", "٣": "٣"},
    **{"true": True, "False": False, "yes": "yes", "Off": "Off", "n": "n", "=": "=", "": None},
    **{"~": None, "Null": None, "none": "none", "9" * 5000: "9" * 5000, "<<": "<<", "inf": "inf"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "mine.yaml"


def load(file: Path, text: str | bytes, *options: str) -> Config:
    """Return the config of a text whose base is cartpole, except if it has its own."""
    content = text if isinstance(text, bytes) else f"base: cartpole\n{text}".encode()
    file.write_bytes(content)
    config = load_config(file, options)
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_word_follows_the_core_schema(text: str) -> None:
    value = load_yaml(f"[{text}]" if text else "x:")
    assert value == ([PLAIN[text]] if text else {"x": None})
    assert text == "" or type(value[0]) is type(PLAIN[text])


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


def test_a_quoted_or_tagged_word_is_text() -> None:
    words = ["1", "true", "~", "1:30", "", "1e6", "<<"]
    assert load_yaml(str(words)) == load_yaml("".join(f"- !!str '{w}'\n" for w in words)) == words


@pytest.mark.parametrize("steps", ["1e6", "1.0e6", "1.0e+6", "1_000_000", "0xF4240", "1000000.0"])
def test_an_integer_may_be_written_as_a_number(file: Path, steps: str) -> None:
    config = load(file, f"total_steps: {steps}")
    assert type(config.total_steps) is int and config.total_steps == 1_000_000
    assert load(file, "", "--total-steps", steps) == config


def test_a_leading_zero_means_nothing(file: Path) -> None:
    assert load(file, "seed: 010").seed == load(file, "", "--seed", "010").seed == 10


@pytest.mark.parametrize("field", ["minutes", "agent.learning_rate", "seed", "total_steps"])
@pytest.mark.parametrize("value", ["1:30", "1:30:00", "2024-01-01", "'60'", "9" * 5000, "1e999"])
def test_a_number_has_no_other_notation(file: Path, field: str, value: str) -> None:
    with refused(ConfigError, f"mine.yaml: {field}: got "):
        load(file, f"{field}: {value}")


@pytest.mark.parametrize(
    "text", ["!!float ''", "!!map [1]", "!!timestamp x", "!!null x", "!!int a"]
)
@pytest.mark.parametrize("field", ["minutes", "agent", "name"])
def test_a_tag_that_does_not_fit_is_named(file: Path, text: str, field: str) -> None:
    with refused(ConfigError, "invalid YAML", text.split()[0], "line 2"):
        load(file, f"{field}: {text}")


@pytest.mark.parametrize("text", ["!!python/name:os.system", "!!set {1}", "!!binary aGk=", "!x 1"])
def test_a_tag_of_a_different_schema_is_named(file: Path, text: str) -> None:
    with refused(ConfigError, "invalid YAML", text.split()[0]):
        load(file, f"name: {text}")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("name: 12", "Put it in quotes"),
        ("seed: '12'", "Leave out the quotes"),
        (f"total_steps: 1{'0' * 60}", "Give a smaller number"),
    ],
)
def test_an_error_says_how_to_write_it(file: Path, text: str, advice: str) -> None:
    with refused(ConfigError, f": {text.partition(':')[0]}: got ", f". {advice}"):
        load(file, text)


@pytest.mark.parametrize("word", ["yes", "no", "1", "0", "on", "off", "True", "FALSE", "Yes"])
def test_a_switch_takes_every_usual_word(file: Path, word: str) -> None:
    on = word.lower() in ("yes", "1", "on", "true")
    assert load(file, f"agent: {{layer_norm: {word}}}").agent.layer_norm is on
    for words in ((f"--agent.layer-norm={word}",), ("--agent.layer-norm", word)):
        assert load(file, "", *words).agent.layer_norm is on
        assert parse_command_line([*words, "cartpole"], "").config.agent.layer_norm is on  # type: ignore[union-attr]


def test_a_word_that_a_switch_does_not_take_is_named(file: Path) -> None:
    with refused(ConfigError, "agent.layer_norm: got 'maybe', expected true or false"):
        load(file, "agent: {layer_norm: maybe}")
    for option in ("--agent.layer-norm", "--agent.no-layer-norm", "--search.only"):
        for argv in (["cartpole", option, "maybe"], [option, "maybe", "cartpole"]):
            with refused(ConfigError, f"{option}: got 'maybe', expected true or false"):
                parse_command_line(argv, "")


def test_a_path_of_several_lines_is_answered_in_one(one_line: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for argv in (["a\nb.yaml"], ["a\nb"], ["cartpole", "--out", str(tmp_path / "file" / "a\nb")]):
        assert "a" in one_line(*argv)


def bomb(first: str, each: str) -> str:
    """Return a text in which every one of twelve lines has nine aliases of the line before."""
    lines = (each.format(f"&x{i} ", ", ".join([f"*x{i - 1}"] * 9)) for i in range(1, 13))
    return "\n".join([first, *(f"x{i}: {line}" for i, line in enumerate(lines, 1))])


REFUSED = {
    "aliases of billions of items": bomb("x0: &x0 [1]", "{}[{}]"),
    "merges of billions of keys": bomb("x0: &x0 {a: 1}", "{}{{<<: [{}]}}"),
    "an alias of itself": "agent: &a {widths: [*a]}",
    "a merge of itself": "agent: &a {<<: *a}",
    "an alias of nothing": "seed: *a",
    "deep nesting": f"agent: {'[' * 5_000}",
    "deep nesting that ends": f"agent: {'[' * 900}{']' * 900}",
    "deep mappings": f"agent: {'{a: ' * 900}",
    "a long file": "#" * LONGEST,
    "a long key": "x" * 100_000 + ": 1",
    "a key that is a list": "[1]: 2",
    "a key that is a number by its tag": "!!int 1: 2",
    "a key of several lines": '"a\\nb": 1',
    "a key given twice, once in quotes": "seed: 1\n'seed': 2",
    "two documents": "seed: 1\n---\nseed: 2",
    "a tab as indentation": "agent:\n\ttau: 0.5",
    "a null byte": "name: \0",
    "an escape": "name: \x1b[31m",
    "a merge without a mapping": "agent: {<<: [1]}",
    "an integer of thousands of digits": f"search: {{steps: 0x{'f' * 50_000}}}",
    "nothing": "seed:",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_text_that_means_nothing_is_refused(file: Path, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, REFUSED[what])
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(file)) + 500


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed: 1e30", "seed: got 10000"),
        ("seed: 1.5", "seed: got 1.5"),
        (f"total_steps: {10**40}", "total_steps: got 10000"),
        ('"a\\nb": 1', "'a\\nb'"),
        ("agent: {layer_norm: 2026-12-01}", "agent.layer_norm: got '2026-12-01'"),
        ("agent: {layer_norm: ~}", "agent.layer_norm: got nothing, expected true or false"),
    ],
)
def test_an_odd_value_is_named(file: Path, text: str, named: str) -> None:
    with refused(ConfigError, f"mine.yaml: {named}"):
        load(file, text)


def test_bytes_without_text_are_refused(file: Path) -> None:
    for content in (b"\xff\xfe\x00", b"seed: \x80", b"\x00" * 100, random.Random(0).randbytes(500)):
        with refused(ConfigError, "mine.yaml: got "):
            load(file, content)


def test_every_usual_encoding_of_a_file_is_read(file: Path) -> None:
    """Also with a byte order mark and the line ends of Windows; others are refused."""
    text = "base: cartpole\nseed: 3\nagent:\n  tau: 0.5  # half\n"
    for content in (text, text.replace("\n", "\r\n"), text.replace("\n", "\r"), f"\ufeff{text}"):
        config = load(file, content.encode())
        assert (config.seed, config.agent.tau) == (3, 0.5)
    with refused(ConfigError, "mine.yaml: got invalid YAML"):
        load(file, text.encode("utf-16"))


def test_anchors_and_merges_are_understood(file: Path) -> None:
    """As YAML 1.1 defines merges: a mapping's own keys win, and then those of earlier ones."""
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {<<: [*x, *y], a: 3}\n"
    assert load_yaml(text)["z"] == {"a": 3, "b": 1, "c": 2}
    assert load_yaml(text) == yaml.safe_load(text)
    same = "agent: {widths: &w [8, 8], reset_at: *w}"
    assert load(file, same).agent.reset_at == (8, 8)


def test_text_has_quotes_only_if_it_needs_them() -> None:
    assert (
        dump_yaml(["1st", "0x", "1e6", "0o17", "no"]) == "- 1st\n- 0x\n- '1e6'\n- '0o17'\n- 'no'\n"
    )


NUMBERS = st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from([*PLAIN, "0o17", "0xff"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(value=VALUES)
def test_what_is_written_is_read_back_equal(value: Any) -> None:
    read = load_yaml(dump_yaml(value))
    assert read == value and repr(read) == repr(value)


WORDS = st.sampled_from(
    [
        *(f"{path.rpartition('.')[2]}: " for path in _FIELDS),
        *("agent:\n  ", "search:\n  ", "env: ", "data: ", "agent: {", "search: {", "base: mt10"),
        *(
            "\n",
            "\n  ",
            "\t",
            " ",
            ", ",
            ": ",
            "- ",
            "? ",
            "[",
            "]",
            "{",
            "}",
            "'",
            '"',
            "|\n",
            "#",
        ),
        *("&a ", "*a", "<<: *a\n", "<<", "---\n", "...\n", "%YAML 1.1\n", "\ufeff", "\0", "\r\n"),
        *("!!float ", "!!map ", "!!timestamp ", "!!null ", "!!int ", "!!str ", "!x ", "!!set "),
        *("!!python/object/apply:os.getcwd []", "base: mine.yaml", "\ud800", "\x85", "\u2028"),
        *(*filter(None, PLAIN), "1", "0", "-1", "0.5", "search", "shared", "mt10", "x.json"),
    ]
)
TEXTS = st.lists(WORDS | st.text(max_size=4), max_size=12).map("".join)


@given(start=st.sampled_from(["", "base: cartpole\n", "base: digits\n"]), text=TEXTS)
def test_any_yaml_is_a_config_or_one_line(start: str, text: str, file: Path) -> None:
    file.write_bytes((start + text).encode(errors="surrogatepass"))
    try:
        config = load_config(file)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith(str(file))
    else:
        file.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(file) == config


OPTIONS = st.sampled_from([f"--{path.replace('_', '-')}" for path in (*_FIELDS, "out", "resume")])
ARGUMENTS = (
    OPTIONS
    | st.sampled_from(["mt10", "digits", "none.yaml", "", "-", "--", "=", "-h", "None", "\udc80"])
    | st.sampled_from([*PLAIN, "0.5", "64", "shared", "pcgrad", "a\nb", "a\0b.yaml", "~x", "/"])
    | st.tuples(OPTIONS, st.sampled_from([*PLAIN]) | st.text(max_size=4)).map("=".join)
    | st.text(max_size=4)
)


@given(name=st.sampled_from(["mt10", "digits", "cartpole"]), argv=st.lists(ARGUMENTS, max_size=6))
def test_any_command_line_is_a_config_or_one_line(name: str, argv: list[str]) -> None:
    for words in ([name, *argv], argv):
        try:
            with redirect_stdout(io.StringIO()):
                config = parse_command_line(words, "").config
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
        except SystemExit as ended:  # help
            assert not ended.code
        else:
            assert isinstance(config, Config | SupervisedConfig)
            assert dataclasses.replace(config) == config
