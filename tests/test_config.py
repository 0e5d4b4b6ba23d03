"""Configs: presets, round trip, one-line errors, the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conal_rl.config import (
    AgentConfig,
    Config,
    DataConfig,
    EnvConfig,
    EvaluationConfig,
    ModelConfig,
    SearchConfig,
    SupervisedConfig,
    SupervisedEvaluationConfig,
    load_config,
    parse_command_line,
    presets,
)
from conal_rl.config.values import convert
from conal_rl.errors import ConfigError

MINIMAL = "total_steps: 1000\nenv:\n  suite: mt10\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load_rl(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    config = load_config(name, overrides)
    assert isinstance(config, Config)
    return config


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'mine.yaml'}: ")
    return message.removeprefix(f"{folder / 'mine.yaml'}: ")


def command_line_error(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(argv, "")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_preset_loads_under_its_own_name() -> None:
    assert {"mt10", "mt10_paper", "mt1", "mt25", "mt50", "cartpole"} <= set(presets())
    for name in presets():
        assert load_config(name).name == name


def test_a_file_needs_only_what_differs(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config == Config(
        name="mine",
        total_steps=1000,
        env=EnvConfig("mt10"),
        search=SearchConfig(steps=200),  # a fifth
        log_interval=10,  # a hundredth
    )


positive = st.floats(1e-6, 1e6)
share = st.floats(0.01, 0.99)
name = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", fullmatch=True)
configs = st.builds(
    Config,
    name=name,
    total_steps=st.integers(1_000, 10**9),
    env=st.builds(
        EnvConfig,
        suite=st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1).map(tuple),
        envs_per_task=st.integers(1, 99),
    ),
    agent=st.builds(
        AgentConfig,
        tree=st.sampled_from(["search", "shared", "independent"])
        | st.text().map(lambda text: text + ".json"),
        widths=st.lists(st.integers(1, 999), min_size=1).map(tuple),
        layer_norm=st.booleans(),
        learning_rate=positive,
        tau=share,
        target_entropy=st.none() | st.floats(-1e300, 1e300),
        critic_range=st.tuples(st.floats(-1e9, -1e-9), st.floats(0, 1e29)),
        max_grad_norm=st.none() | positive,
    ),
    search=st.builds(SearchConfig, steps=st.integers(1, 999), gumbel=st.booleans()),
    evaluation=st.builds(EvaluationConfig, episodes=st.integers(1, 99)),
    seed=st.integers(0, 2**32 - 1),
    device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    checkpoint_minutes=positive,
)


@given(config=configs)
def test_yaml_round_trip_is_exact(config: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("agent: {batchsize: 3}", "agent.batchsize: got an unknown field"),
        ("batch_size: 3", "batch_size: got an unknown field"),
        ("agent: {batch_size: 0}", "agent.batch_size: got 0, expected more than 0"),
        ("agent: {batch_size: 2.5}", "agent.batch_size: got 2.5, expected an integer"),
        ("agent: {batch_size: true}", "agent.batch_size: got True, expected an integer"),
        ("agent: {batch_size: '64'}", "agent.batch_size: got '64', expected an integer"),
        ("agent: {learning_rate: fast}", "agent.learning_rate: got 'fast', expected a number"),
        ("agent: {learning_rate: .nan}", "agent.learning_rate: got nan, expected a number"),
        ("agent: {layer_norm: 2}", "agent.layer_norm: got 2, expected true or false"),
        ("agent: {layer_norm: maybe}", "agent.layer_norm: got 'maybe', expected true or false"),
        ("agent: {tree: no}", "agent.tree: got 'no', expected search"),
        ("agent: {widths: 256}", "agent.widths: got 256, expected a list of integers"),
        ("agent: {widths: []}", "agent.widths: got [], expected one or more integers above 0"),
        ("agent: {critic: huber}", "agent.critic: got 'huber', expected one of hl_gauss, mse"),
        ("agent: {critic_range: [2, 1]}", "agent.critic_range: got [2.0, 1.0], expected the lower"),
        ("agent: {critic_range: [1]}", "agent.critic_range: got [1], expected 2 numbers"),
        ("agent: {gamma: 1}", "agent.gamma: got 1.0, expected 0 or more and below 1"),
        ("agent: {weighting: fair}", "agent.weighting: got 'fair', expected one of equal, random"),
        ("agent: {conflict_rule: most}", "agent.conflict_rule: got 'most', expected one of igno"),
        ("agent: {conflict_rule: none, weighting: mgda}", "agent.conflict_rule: got 'none'"),
        ("search: {method: darts}", "search.method: got 'darts', expected one of conal, conal_pro"),
        ("search: {copies: 1, method: ltb}", "search.copies: got 1, expected 2 or more"),
        (
            "search: {method: recon, specific_layers: 4}",
            "search.specific_layers: got 4, expected at most 3, the number of agent.widths",
        ),
        (
            "search: {method: conal_pro, purely_specific: false}",
            "search.purely_specific: got False",
        ),
        (
            "search: {purely_specific: false, rule: and_deeper}",
            "search.rule: got 'and_deeper'",
        ),
        ("search: {validation_share: 1}", "search.validation_share: got 1.0, expected between 0"),
        ("search: {steps: 1000}", "search.steps: got 1000, expected at most 999"),
        ("agent:", "agent: got nothing"),
        ("seed: -1", "seed: got -1, expected 0 or more"),
        ("name: ../up", "name: got '../up', expected letters"),
        ("device: cdua", "device: got 'cdua', expected auto"),
        ("seed: 1\nseed: 2", "got invalid YAML (seed is given twice"),
        ("agent.gamma: 0.5\nagent: {gamma: 0.9}", "agent.gamma: got two values"),
        ("name: !!python/object/apply:os.getcwd []", "got invalid YAML (the tag !!python"),
        ("agent: [", "got invalid YAML ("),
    ],
)
def test_an_error_says_field_value_and_what_is_allowed(
    tmp_path: Path, extra: str, message: str
) -> None:
    assert error_of(tmp_path, MINIMAL + extra).startswith(message)


@pytest.mark.parametrize(
    ("extra", "advice"),
    [
        ("agent: {batchsize: 3}", "Did you mean agent.batch_size?"),
        ("batch_size: 3", "Did you mean agent.batch_size?"),
        ("agent: {critic: mes}", "Did you mean mse?"),
        ("search: {method: conal-pro}", "Did you mean conal_pro?"),
        ("agent: {gamma: 2}", "See python -m conal_rl.train --help"),
        ("agent: {gamma: much}", "See python -m conal_rl.train --help"),
        ("agent: {zzzz: 2}", "See python -m conal_rl.train --help"),
        ("data: {set: digits}", "Leave it out"),
        ("search: {steps: 1000}", "Lower search.steps, or raise total_steps"),
    ],
)
def test_an_error_says_what_to_do(tmp_path: Path, extra: str, advice: str) -> None:
    assert error_of(tmp_path, MINIMAL + extra).endswith(f". {advice}")


def test_what_has_no_default_is_asked_for(tmp_path: Path) -> None:
    assert error_of(tmp_path, "env: {suite: mt10}").startswith("total_steps: got no value")
    assert error_of(tmp_path, "total_steps: 3").startswith("env.suite: got no value")
    assert error_of(tmp_path, "").startswith("got nothing")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=r"^[^:]+: got "):
            load_config(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="invalid YAML"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="Did you mean cartpole"):
        load_config("cartpol")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = "total_steps: 2_000_000\nenv: {suite: mt10}\nagent: {learning_rate: 3e-4, tau: 1}"
    config = load_rl(write(tmp_path, text))
    assert (config.total_steps, config.agent.learning_rate, config.agent.tau) == (2e6, 3e-4, 1)
    assert isinstance(config.agent.tau, float)


def test_overrides_change_fields_of_any_type() -> None:
    words = (
        "--agent.batch-size 64 --agent.learning_rate=1e-4 --search.only --seed 3 --env.suite a b"
    )
    words += " --agent.widths 64 32 --agent.no-layer-norm --agent.critic-range -2 5 --search.gumbel"
    config = load_rl("mt10", [*words.split(), "false", "--agent.target-entropy", "None"])
    agent = config.agent
    assert (agent.batch_size, agent.learning_rate, agent.layer_norm) == (64, 1e-4, False)
    assert (agent.widths, agent.critic_range) == ((64, 32), (-2.0, 5.0))
    assert agent.target_entropy is None
    assert (config.search.only, config.search.gumbel) == (True, False)
    assert (config.seed, config.env.suite) == (3, ("a", "b"))
    assert load_rl("mt10", ["--agent.target-entropy", "-3"]).agent.target_entropy == -3


def test_one_word_may_be_a_list() -> None:
    def data(*words: str) -> DataConfig:
        config = load_config("celeba9", words)
        assert isinstance(config, SupervisedConfig)
        return config.data

    assert data("--data.tasks", "Smiling").tasks == ("Smiling",)
    assert data("--data.tasks=all").tasks == ("all",)
    assert data("--data.tasks", "Bald", "Smiling").tasks == ("Bald", "Smiling")
    assert data("--data.tasks", "7", "8").tasks == ("7", "8")
    assert data("--data.tasks", "None").tasks is None
    assert data("--data.root", "none").root is None
    assert data("--data.size", "8", "9").size == (8, 9)
    assert load_rl("mt10", ["--agent.widths", "8"]).agent.widths == (8,)
    assert load_rl("mt10", ["--env.suite", "mt50"]).env.suite == "mt50"
    with pytest.raises(ConfigError, match=r"data\.size: got \[8\], expected 2 integers or None"):
        data("--data.size", "8")


def test_the_search_keeps_its_share_of_other_total_steps() -> None:
    assert load_config("mt50").search.steps == 2_000_000
    assert load_config("mt50", ["--total-steps", "20000"]).search.steps == 4_000


def test_a_smaller_budget_shrinks_the_search() -> None:
    assert load_config("mt10").search.steps == 400_000
    assert load_config("mt10", ["--total-steps", "20000"]).search.steps == 4_000
    assert load_config("mt10", ["--total-steps", "9000000"]).search.steps == 400_000
    assert load_config("nyuv2").search.steps == 19_800
    for steps in ("39600", "80000"):  # its own, and more
        assert load_config("nyuv2", ["--total-steps", steps]).search.steps == 19_800
    both = ["--total-steps", "20000", "--search.steps", "7000"]
    assert load_config("mt10", both).search.steps == 7_000


def test_a_file_may_have_a_different_file_as_its_base(tmp_path: Path) -> None:
    """A preset, or a file next to it, is the base; lists are replaced, sections are merged."""
    below = tmp_path / "sub" / "below.yaml"
    below.parent.mkdir()
    (tmp_path / "plain").write_text("base: sub/below.yaml\n")
    below.write_text(
        "base: mt10\nname: other\nagent: {widths: [8, 9], n_steps: 2}\nthreads: null\n"
    )
    preset = load_rl("mt10")
    assert (preset.threads, preset.agent.n_steps) == (1, 5)
    agent = dataclasses.replace(preset.agent, widths=(7,), n_steps=2, batch_size=5)
    expected = dataclasses.replace(preset, name="mine", threads=None, agent=agent)
    for base in ("sub/below.yaml", "plain", "./plain", "sub/../plain"):
        mine = write(tmp_path, f"base: {base}\nagent: {{widths: [7], batch_size: 5}}\n")
        assert load_config(mine) == expected
        assert load_config(mine, ["--seed", "4"]) == dataclasses.replace(expected, seed=4)
    named_alike = tmp_path / "mt10"
    named_alike.write_text("base: mt10\n")
    assert load_config(named_alike) == preset


def test_a_smaller_budget_than_the_bases_shrinks_the_search(tmp_path: Path) -> None:
    for steps, search in ((20_000, 4_000), (30_000_000, 400_000)):
        mine = write(tmp_path, f"base: mt10\ntotal_steps: {steps}\n")
        assert load_config(mine).search.steps == search
        above = tmp_path / "above.yaml"
        above.write_text("base: mine.yaml\ntotal_steps: 10_000_000\n")
        assert load_config(above).search.steps == 400_000
    mine = write(tmp_path, "base: mt10\ntotal_steps: 20_000\nsearch: {steps: 7_000}\n")
    assert load_config(mine).search.steps == 7_000
    assert load_config(mine, ["--total-steps", "10000"]).search.steps == 2_000
    mine = write(tmp_path, "base: mt10\ntotal_steps: 30_000_000\nsearch: {steps: null}\n")
    assert load_config(mine).search.steps == 6_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: cartpol", "cartpol: got no such config"),
        ("base: cartpol", "mine.yaml: base: cartpol: "),
        ("base: none.yaml", "none.yaml: "),
        ("base: none.yaml", "mine.yaml: base: "),
        ("base: [mt10]", "mine.yaml: base: got ['mt10'], expected a preset or a YAML file"),
        ("base:", "mine.yaml: base: got nothing, expected a preset or a YAML file"),
        ("base: ''", "mine.yaml: base: got '', expected a preset or a YAML file"),
        ('base: "mt10\\nx"', "mine.yaml: base: got 'mt10\\nx', expected a preset or a YAML file"),
        ("base: mine.yaml", "base: got "),
        ("base: circle.yaml", "base: got "),
        ("base: ../here/mine.yaml", "base: got "),
        ("base: mt10\nseed: -1", "mine.yaml: seed: got -1, expected 0 or more"),
        ("base: broken.yaml", "broken.yaml: agent.batch_size: got 0, expected more than 0"),
        (
            "base: mt10\ndata: {set: digits}",
            "mine.yaml: data.set: got a field of supervised learning",
        ),
        (
            "base: digits\nenv: {suite: mt10}",
            "mine.yaml: env.suite: got a field of reinforcement learning",
        ),
        ("base: mt10\ntotal_steps: many", "mine.yaml: total_steps: got 'many', expected an inte"),
    ],
)
def test_errors_name_the_file_that_is_at_fault(tmp_path: Path, text: str, message: str) -> None:
    tmp_path = tmp_path / "here"
    tmp_path.mkdir()
    (tmp_path / "circle.yaml").write_text("base: mine.yaml\n")
    (tmp_path / "broken.yaml").write_text("base: mt10\nagent: {batch_size: 0}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_step_size_may_fall_to_zero() -> None:
    assert load_rl("mt10", ["--agent.learning-rate-end", "0"]).agent.learning_rate_end == 0


def test_a_resumed_search_keeps_its_steps(tmp_path: Path) -> None:
    """Also where they are more than a fifth of a total that changes."""
    run = tmp_path / "run"
    run.mkdir()
    written = load_config("digits", ["--total-steps", "120", "--search.steps", "60"])
    (run / "config.yaml").write_text(written.to_yaml(), encoding="utf-8")
    for steps in ("100", "140"):
        command = parse_command_line(["--resume", str(run), "--total-steps", steps], "")
        assert command.config == dataclasses.replace(written, total_steps=int(steps))


def test_configs_of_old_runs_load(tmp_path: Path) -> None:
    config = load_rl(write(tmp_path, MINIMAL + "evaluation: {every_episodes: 3}"))
    assert config.evaluation.interim_episodes == 3
    both = MINIMAL + "evaluation: {every_episodes: 3, interim_episodes: 3}"
    assert error_of(tmp_path, both).startswith("evaluation.interim_episodes: got two values")


@pytest.mark.parametrize("name", presets())
def test_presets_list_only_what_differs(name: str) -> None:
    """From their base, or from the defaults; a search's steps depend on total_steps."""
    text = (resources.files("conal_rl") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    listed = by_path(yaml.safe_load(text))
    below: dict[str, Any] = {}
    if "base" in listed:
        below = by_path(yaml.safe_load(load_config(listed.pop("base")).to_yaml()))
    else:
        config = load_config(name)
        for section in ("agent", "search", "evaluation", "data", "env"):
            for one in dataclasses.fields(getattr(config, section, EnvConfig("mt10"))):
                below[f"{section}.{one.name}"] = one.default
        below |= {one.name: one.default for one in dataclasses.fields(config)}
    listed.pop("search.steps", None)
    same = {path for path, value in listed.items() if as_list(below[path]) == value}
    assert not same


def by_path(fields: dict[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            paths |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            paths[name] = value
    return paths


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


SECTIONS: dict[str, Any] = {
    "env": partial(EnvConfig, suite="mt10"),
    "agent": AgentConfig,
    "search": SearchConfig,
    "evaluation": EvaluationConfig,
    "data": partial(DataConfig, set="digits"),
    "agent (supervised)": ModelConfig,
    "evaluation (supervised)": SupervisedEvaluationConfig,
    "": partial(Config, name="toy", total_steps=10**6, env=EnvConfig(suite="mt10")),
}
WRONG: list[Any] = [
    *(None, math.nan, math.inf, -1, 2.5, True, "text", b"x", [], [1, 2], (None,), [[1]], {}),
    *(object(), np.array([1.0, 2.0]), np.eye(2), np.float32("nan"), np.bool_(True)),
]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_refuses_values_of_other_types(section: str) -> None:
    """In Python as well as in YAML: a field has its declared type, or an error names it."""
    make, path = SECTIONS[section], section.partition(" ")[0]
    for name in (one.name for one in dataclasses.fields(make())):
        kind = get_type_hints(type(make()))[name]
        for value in WRONG:
            try:
                made = make(**{name: value})
            except ConfigError as error:
                assert "\n" not in str(error)
                assert name in str(error) and path in str(error)
            else:
                assert convert(kind, getattr(made, name)) == getattr(made, name)


def test_a_section_takes_numbers_of_numpy() -> None:
    values: dict[str, Any] = {
        **{"widths": np.array([4, 5]), "tau": np.float32(0.5), "batch_size": np.int64(3)},
        **{"critic_range": [np.int64(-1), 2], "layer_norm": np.bool_(False), "reset_at": [2]},
    }
    made = AgentConfig(**values)
    assert (made.widths, made.tau, made.batch_size) == ((4, 5), 0.5, 3)
    assert (made.critic_range, made.layer_norm, made.reset_at) == ((-1.0, 2.0), False, (2,))
    assert {type(each) for each in (*made.widths, made.batch_size)} == {int}
    hash(made)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_rl("mt10").agent.gamma = 0.5  # type: ignore[misc]


def test_search_only_needs_a_search() -> None:
    with pytest.raises(ConfigError, match=r"search\.only"):
        load_config("mt10", ["--search.only", "--agent.tree", "shared"])


def test_the_log_interval_follows_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for steps, interval in ((100_000, 1_000), (10_000_000, 20_000), (50, 1)):
        path.write_text(f"total_steps: {steps}\nenv: {{suite: [Pendulum-v1]}}\n")
        assert load_config(path).log_interval == interval
    assert load_config("mt10").log_interval == 20_000


def test_the_command_line_gives_config_and_folders(tmp_path: Path) -> None:
    config, out, resume, *_ = parse_command_line(["--seed", "7", "mt10", "--out", "here"], "")
    assert (config, out, resume) == (
        load_config("mt10", ["--seed", "7"]),
        Path.cwd() / "here",
        None,
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = parse_command_line(["--resume", str(tmp_path), "--log-interval", "5"], "")
    assert again.config == dataclasses.replace(config, log_interval=5)
    assert again.resume == tmp_path


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ("mt10 --seed 3 --agent.learning-rate 0.1", "mt10"),
        ("mt10 --agent.tree shared", "mt10-hps"),
        ("mt10 --agent.tree independent --name mine", "mine-stl"),
        ("mt10 --agent.tree=my.json", "mt10-tree"),
        ("mt10 --search.method conal_pro", "mt10-conal_pro"),
        ("mt10 --search.rule none", "mt10-conal_no_noticing"),
        ("mt10 --search.rule any_pair", "mt10"),
        ("mt10 --search.no-purely-specific", "mt10-conal_no_purely_specific"),
        ("mt10 --agent.tree shared --agent.weighting pcgrad", "mt10-hps_pcgrad"),
        ("celeba9", "celeba9"),  # whose own method is CoNAL-Pro
        ("celeba9 --search.method conal", "celeba9-conal"),
        ("mt1", "mt1"),
    ],
)
def test_a_label_has_the_method_that_options_changed(options: str, label: str) -> None:
    assert parse_command_line(options.split(), "").label == label


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ("mt10 --total-steps 1_000_000", "200,000 steps instead of 400,000"),
        ("mt10 --total-steps 4_000_000", None),
        ("mt10 --total-steps 1_000_000 --search.steps 300_000", None),
        ("mt10 --total-steps 1_000_000 --agent.tree shared", None),
        ("digits --total-steps 500", "100 steps instead of 600"),
    ],
)
def test_a_search_that_total_steps_cuts_is_announced(options: str, cut: str | None) -> None:
    line = parse_command_line(options.split(), "").cut
    assert (line is None) == (cut is None)
    assert line is None or (cut is not None and cut in line and "--search.steps" in line)


def test_a_tilde_in_a_command_line_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind `=` and in a file, where no shell replaces it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text(load_config("cartpole").to_yaml())
    (tmp_path / "mine.yaml").write_text("base: ~/config.yaml\nseed: 3\n")
    options = ["~/mine.yaml", "--out=~/run", "--agent.tree=~/tree.json"]
    config, out, *_ = parse_command_line(options, "")
    assert (config.seed, out) == (3, tmp_path / "run")
    assert config.with_whole_paths().agent.tree == str(tmp_path / "tree.json")
    assert parse_command_line(["--resume=~/"], "").resume == tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "command line: got no name, expected one of cartpole"),
        (["mt10", "mt50"], "command line: got mt10 mt50, expected one of"),
        (["mt10", "--agent.batchsize", "3"], "Did you mean --agent.batch-size?"),
        (["MT10"], "Did you mean mt10?"),
        (["Meta-World/MT50"], "Did you mean mt50?"),
        (["mt10", "--agent.batch_size", "x"], "command line: agent.batch_size: got 'x'"),
        (["mt10", "--agent.batch_size"], "--agent.batch_size: got no value"),
        (["mt10", "--agent.batch_size", "3", "4"], "command line: got mt10 4, expected"),
        (["mt10", "-x"], "-x: got an unknown option"),
        (["--resume", "a", "mt10"], "--resume: got mt10"),
        (["--resume", "a", "--out", "b"], "--resume: got --out"),
        (["--resume", "nowhere"], "--resume: got nowhere"),
    ],
)
def test_errors_of_the_command_line_say_what_is_wrong(argv: list[str], message: str) -> None:
    assert message in command_line_error(*argv)


@pytest.mark.parametrize("argv", [["--help"], ["mt10_paper", "-h"]])
def test_help_shows_every_field_with_its_default(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(argv, "Train.")
    assert not caught.value.code
    shown = capsys.readouterr().out
    for section in (EnvConfig, AgentConfig, SearchConfig, EvaluationConfig):
        prefix = section.__name__.removesuffix("Config").lower()
        for field in dataclasses.fields(section):
            assert f"--{prefix}.{field.name.replace('_', '-')}" in shown
    width = "400 400 400" if "mt10_paper" in argv else "256 256 256"
    assert f"The default is {width}." in " ".join(shown.split())


@pytest.mark.parametrize(
    "name, option, kind",
    [
        ("mt10", "--data.root", "supervised learning"),
        ("mt10", "--agent.encoder", "supervised learning"),
        ("digits", "--env.suite", "reinforcement learning"),
        ("digits", "--agent.tau", "reinforcement learning"),
    ],
)
def test_fields_of_the_other_kind_are_refused(name: str, option: str, kind: str) -> None:
    value = {"--agent.encoder": "small", "--agent.tau": "0.1"}.get(option, "x")
    error = command_line_error(name, option, value)
    assert error.startswith(f"command line: {option[2:]}: ") and kind in error


def test_sections_say_what_is_learnt(tmp_path: Path) -> None:
    supervised = load_config(write(tmp_path, "total_steps: 10\ndata:\n  set: digits\n"))
    assert isinstance(supervised, SupervisedConfig)
    assert (supervised.search.steps, supervised.agent.depth) == (2, 3)
    both = "total_steps: 10\ndata: {set: digits}\nenv: {suite: mt10}\n"
    assert error_of(tmp_path, both).startswith("env.suite: got a field of reinforcement learning")
    assert error_of(tmp_path, "total_steps: 10\n").startswith("env.suite: got no value")
    assert error_of(tmp_path, "data: {set: digits}\n").startswith("total_steps: got no value")
