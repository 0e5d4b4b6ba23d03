"""How finished runs join the data of `results/`, and the command that adds them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conal_rl import report
from conal_rl.config import load_config
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.reports import results as data
from conal_rl.reports.result_adding import CURVE_LINES, Label, add_run, overrides, thinned
from conal_rl.reports.result_tables import table
from conal_rl.reports.results import read_results

# Adding a run


def finished(folder: Path, options: list[str], evaluation: dict[str, Any], preset: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load_config(preset, options).to_yaml())
    (folder / "versions.json").write_text(json.dumps({"commit": "0123abc"}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def rl_run(folder: Path, lines: int = 250) -> Path:
    evaluation = {
        "suite": "cartpole",
        "engine": "official",
        "episodes_per_task": 4,
        "success": {"a": 0.75, "b": None},
        "returns": {"a": 12.5, "b": 3},
        "episodes": {"a": [True, False, True, True]},
        "steps": 5000,
        "seconds": 61,
        "search_steps": 1000,
        "search_seconds": 7,
    }
    options = ["--seed", "3", "--agent.batch-size", "16", "--agent.tree", "some/tree.json"]
    run = finished(folder, options, evaluation, "cartpole")
    header = "success/mean,time/total_timesteps,train/loss,time/minutes,evaluation/mean_success\n"
    rows = (f"0.5,{20 * i},7,{i / 8},{'0.25' if i == 3 else ''}\n" for i in range(1, lines + 1))
    (run / "progress.csv").write_text(header + "".join(rows))
    (run / "tree.json").write_text('{"format": "conal_rl.trees"}')
    return run


def supervised_run(folder: Path) -> Path:
    evaluation = {
        "set": "digits",
        "scores": {"digit": {"accuracy": 0.5, "lost": None}},
        "parameters": {"encoder": 7, "heads": 2},
        "steps": 300,
        "seconds": 1.5,
        "search_steps": 0,
        "search_seconds": 0,
    }
    return finished(folder, ["--agent.tree", "independent"], evaluation, "digits")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


LABEL = Label("toy", "hps", "A")


def test_rl_run_becomes_data(tmp_path: Path, empty: Path) -> None:
    assert add_run(rl_run(tmp_path / "run"), empty, LABEL) == "toy-hps-3"
    found = read_results(empty)
    trees = "results/trees/toy-hps-3.json"
    options = f"cartpole --agent.tree {trees} --agent.batch-size 16"
    assert found.runs == (
        data.RunRow("toy-hps-3", "toy", "hps", 3, "0123abc", "A", 5000, 61.0, options),
    )
    assert found.success == (
        data.SuccessRow("toy-hps-3", "final", "a", 4, 3, 12.5),
        data.SuccessRow("toy-hps-3", "final", "b", 4, None, 3.0),
    )
    assert found.episodes == (data.EpisodesRow("toy-hps-3", "final", "a", "1011"),)
    assert found.measured("runs")["toy-hps-3", "search_seconds"] == "7"
    assert not found.missing and not found.metrics
    assert found.tree_path("toy-hps-3").read_text() == '{"format": "conal_rl.trees"}'


def test_curve_has_about_100_lines_with_every_evaluation(tmp_path: Path, empty: Path) -> None:
    add_run(rl_run(tmp_path / "run"), empty, LABEL)
    with (empty / "curves" / "toy-hps-3.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["steps", "minutes", "evaluation/mean_success", "success/mean"]
    assert CURVE_LINES <= len(lines) <= CURVE_LINES + 1
    assert (lines[0]["steps"], lines[-1]["steps"]) == ("20", "5000")
    assert [x["steps"] for x in lines if x["evaluation/mean_success"] == "0.25"] == ["60"]


def test_short_curve_is_kept_whole() -> None:
    lines = [{"time/total_timesteps": str(float(i)), "loss/a": "0.123456789"} for i in range(7)]
    assert thinned(lines).splitlines()[1:] == [f"{i},,0.123457" for i in range(7)]


def test_supervised_run_becomes_data(tmp_path: Path, empty: Path) -> None:
    add_run(supervised_run(tmp_path / "run"), empty, LABEL._replace(method="stl"))
    found = read_results(empty)
    assert found.metrics == (
        data.MetricRow("toy-stl-0", "test", "digit", "accuracy", 0.5),
        data.MetricRow("toy-stl-0", "network", "encoder", "parameters", 7.0),
        data.MetricRow("toy-stl-0", "network", "heads", "parameters", 2.0),
    )
    assert {row.what for row in found.missing} == {"trees", "curve"}
    assert not found.success
    assert table("metrics toy", found).splitlines()[2] == "| `stl` | 1 | 0.5 |"


@pytest.mark.parametrize(
    "options",
    [
        ["--agent.no-mixed-precision", "--total-steps", "4000000"],
        ["--agent.widths", "64", "64", "--minutes", "2.5", "--agent.actor-averaging", "none"],
        ["--search.rule", "none", "--search.steps", "1000"],
    ],
)
def test_overrides_repeat_the_run(options: list[str]) -> None:
    config = load_config("mt10", options)
    preset, *words = overrides(config, "unused").split()
    assert load_config(preset, words) == config


def test_overrides_leave_out_a_search_that_did_not_run() -> None:
    config = load_config("mt10", ["--agent.tree", "shared", "--total-steps", "1000"])
    assert overrides(config, "unused") == "mt10 --total-steps 1000 --agent.tree shared"


def damage(run: Path, how: str) -> None:
    evaluation = run / "evaluation.json"
    content = json.loads(evaluation.read_text())
    changes: dict[str, Any] = {
        "rate": {"success": {"a": "high"}},
        "engine": {"suite": "mt10", "engine": "native"},
        "returns": {"returns": {}},
        "steps": {"steps": None},
        "kind": {"success": None},
        "outcomes": {"episodes": {"a": [True, False, False, False]}},
        "suite": {"suite": None, "success": 5},
    }
    if how in changes:
        content |= changes[how]
        if how == "kind":
            del content["success"]
        evaluation.write_text(json.dumps(content))
    elif how == "name":
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("name: cartpole", "name: mine"))
    elif how.startswith("no "):
        (run / how.removeprefix("no ")).unlink()
    else:
        (run / how).write_text("x\n1\n")


@pytest.mark.parametrize(
    "how",
    [
        *("rate", "engine", "returns", "steps", "kind", "name", "outcomes", "suite"),
        *("no evaluation.json", "no versions.json", "no config.yaml"),
        *("evaluation.json", "versions.json", "progress.csv", "tree.json"),
    ],
)
def test_bad_run_does_not_change_the_data(
    how: str, tmp_path: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(rl_run(tmp_path / "first"), empty, LABEL)
    before = {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()}
    run = rl_run(tmp_path / "second")
    damage(run, how)
    words = ["--add", str(run), "--study", "toy", "--method", "conal", "--results", str(empty)]
    assert report.main(["results", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "label, field",
    [
        (LABEL._replace(study="a b"), "--study"),
        (LABEL._replace(study=""), "--study"),
        (LABEL._replace(method="CoNAL"), "--method"),
        (LABEL._replace(name="../a"), "--name"),
        (LABEL, "--name"),
    ],
)
def test_bad_label_is_refused(label: Label, field: str, tmp_path: Path, empty: Path) -> None:
    run = rl_run(tmp_path / "run")
    add_run(run, empty, LABEL)
    with pytest.raises(ConfigError, match=f"^{field}: got "):
        add_run(run, empty, label)


def test_disk_that_refuses_leaves_nothing_half_written(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rl_run(tmp_path / "run")
    real = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if "measurements" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ConfigError, match=r"measurements\.csv: got No space left"):
        add_run(run, empty, LABEL)
    assert not [path for path in empty.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [1, 4, 8])
def test_a_rename_that_fails_changes_no_file(
    number: int, tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, renames, rename = rl_run(tmp_path / "run"), 0, os.replace

    def refuse(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == number:
            raise OSError(5, "Input/output error", str(source), None, str(target))
        rename(source, target)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in empty.rglob("*") if path.is_file()}

    add_run(run, empty, LABEL)
    before = contents()
    assert len(before) == 8
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", refuse)
        with pytest.raises(ConfigError, match="Input/output error, expected a writable file"):
            add_run(run, empty, LABEL._replace(name="second"))
    assert contents() == before
    add_run(run, empty, LABEL._replace(name="second"))
    assert len(read_results(empty).runs) == 2


def test_missing_results_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--results: "):
        add_run(rl_run(tmp_path / "run"), tmp_path / "none", LABEL)
    with pytest.raises(ConfigError, match="none: got no folder"):
        read_results(tmp_path / "none")


def test_runs_added_at_the_same_time_are_all_there(tmp_path: Path, empty: Path) -> None:
    run = rl_run(tmp_path / "run")
    command = [sys.executable, "-m", "conal_rl.report", "results", "--add", str(run)]
    command += ["--results", str(empty), "--study", "toy", "--method"]
    methods = ["hps", "stl", "conal"]
    started = [
        subprocess.Popen([*command, method], stdout=subprocess.DEVNULL, env=dict(os.environ))
        for method in methods
    ]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert sorted(row.method for row in read_results(empty).runs) == sorted(methods)


# The command


def test_command_writes_tables_into_documents(
    tmp_path: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(rl_run(tmp_path / "run"), empty, LABEL)
    page = tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- table: returns toy -->\n<!-- end -->\n")
    assert report.main(["results", "--results", str(empty)]) == 0
    printed = capsys.readouterr().out
    assert "returns toy" in printed and "| seed 3 |" in printed
    assert page.read_text() == "<!-- table: returns toy -->\n<!-- end -->\n"
    assert report.main(["results", "--results", str(empty), "--write"]) == 0
    assert capsys.readouterr().out.split() == [str(page)]
    assert "| seed 3 |" in page.read_text()
    assert report.main(["results", "--results", str(empty), "--write"]) == 0
    assert capsys.readouterr().out == ""


def test_command_wants_study_and_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rl_run(tmp_path / "run")
    assert report.main(["results", "--add", str(run), "--method", "hps"]) == 2
    assert capsys.readouterr().err.startswith("error: --study: ")


def test_a_progress_file_without_steps_is_refused(tmp_path: Path, empty: Path) -> None:
    run = rl_run(tmp_path / "run")
    (run / "progress.csv").write_text("success/mean\n0.5\n")
    with pytest.raises(CheckpointError, match=r"progress\.csv"):
        add_run(run, empty, LABEL)
