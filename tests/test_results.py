"""The data of `results/`: whole, in agreement with the documents, and how runs join them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from conal_rl import report
from conal_rl.config import load_config, presets
from conal_rl.errors import CheckpointError, ConalError, ConfigError
from conal_rl.reports import results as data
from conal_rl.reports.result_adding import CURVE_LINES, Label, add_run, overrides, thinned
from conal_rl.reports.result_pages import pages, rewritten, tables
from conal_rl.reports.result_tables import mean_success, t_interval, table
from conal_rl.reports.result_trees import draw_study, read_trees
from conal_rl.reports.results import Results, read_results, write_files

ROOT = Path(__file__).parents[1]
PAGES = pages(ROOT)


@pytest.fixture(scope="module")
def kept() -> Results:
    return read_results(ROOT / "results")


# The data of this repository


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_documents_agree_with_the_data(page: Path, kept: Results) -> None:
    assert rewritten(page, kept) == page.read_text(encoding="utf-8")


def test_files_are_as_the_program_writes_them(kept: Results) -> None:
    for path, text in data.csv_files(kept).items():
        assert path.read_text(encoding="utf-8") == text, path


def test_every_kept_tree_loads_and_every_other_is_said_to_be_missing(kept: Results) -> None:
    missing = {row.run for row in kept.missing if row.what == "trees"}
    for run in kept.by_name:
        assert kept.tree_path(run).is_file() != (run in missing)
        if run not in missing:
            tasks = set(kept.rates(run))
            for tree in read_trees(kept.tree_path(run)).values():
                assert not tasks or set(tree.tasks) == tasks


def test_every_file_of_a_run_belongs_to_a_run(kept: Results) -> None:
    for folder in ("trees", "curves"):
        files = (kept.folder / folder).iterdir()
        assert {path.stem for path in files} <= kept.by_name.keys()


def test_curves_rise_to_the_end_of_their_run(kept: Results) -> None:
    for path in (kept.folder / "curves").iterdir():
        with path.open(encoding="utf-8") as file:
            steps = [int(line["steps"]) for line in csv.DictReader(file)]
        assert steps == sorted(set(steps))
        assert 5 <= len(steps) <= 2 * CURVE_LINES
        total = kept.by_name[path.stem].steps
        assert total is not None and 0.9 * total <= steps[-1] <= total


PRINTED = {
    "mt10-conal": ("0.982", "0.904", "0.962", "0.998"),
    "mt10-5-step-conal": ("0.950", "0.902", "0.898"),
    "mt10-3-step-conal": ("0.898", "0.964", "0.864"),
    "mt10-methods-hps": ("0.628", "0.710"),
    "mt10-methods-conal": ("0.778", "0.514"),
    "mt10-methods-stl": ("0.642", "0.680"),
    "mt10-methods-conal_no_noticing": ("0.654", "0.738"),
    "mt10-methods-conal_no_purely_specific": ("0.574", "0.640"),
    "mt10-methods-sb3_sac": ("0.428", "0.284"),
    "mt10-recipe-base": ("0.450", "0.662", "0.572"),
    "mt10-recipe-5-step-returns": ("0.712", "0.712", "0.698"),
    "mt10-recipe-no-layer-norm": ("0.302",),
    "mt10-paper-conal": ("0.994",),
    "mt10-paper-16-envs-conal": ("1.000", "0.992"),
    "mt10-first-conal": ("0.296",),
}
"""Means as the results page of commit 4bbec36 printed them, by seed from 0."""


@pytest.mark.parametrize("runs", PRINTED)
def test_means_are_those_that_were_printed(runs: str, kept: Results) -> None:
    found = [mean_success(kept, f"{runs}-{seed}") for seed in range(len(PRINTED[runs]))]
    assert tuple(f"{mean:.3f}" for mean in found) == PRINTED[runs]


def test_means_of_trees_with_pick_place_shared(kept: Results) -> None:
    found = [mean_success(kept, f"mt10-pick-place-tree-{seed}") for seed in (1, 2)]
    assert found == pytest.approx([0.926, 0.840])


@pytest.mark.parametrize("weights, printed", [("final", 0.9615), ("newest", 0.9325)])
def test_mean_of_four_seeds(weights: str, printed: float, kept: Results) -> None:
    means = [mean_success(kept, run.run, weights) for run in kept.of_study("mt10")]
    assert len(means) == 4
    assert fmean(means) == pytest.approx(printed)


def test_two_machines_agree_on_498_of_500_episodes(kept: Results) -> None:
    rows = {
        (row.weights, row.task): row.outcomes
        for row in kept.episodes
        if row.run == "mt10-paper-conal-0"
    }
    same = [
        first == second
        for (weights, task), outcomes in rows.items()
        if weights == "final"
        for first, second in zip(outcomes, rows["final-on-B", task], strict=True)
    ]
    assert (sum(same), len(same)) == (498, 500)


def test_shipped_weights_are_the_runs_that_the_data_name(kept: Results) -> None:
    for name, run in (("mt10", "mt10-conal-3"), ("mt10_paper", "mt10-paper-conal-0")):
        shipped = json.loads((ROOT / f"conal_rl/pretrained/{name}/evaluation.json").read_text())
        assert kept.rates(run) == shipped["success"]


def test_overrides_begin_with_a_preset(kept: Results) -> None:
    for run in kept.runs:
        preset, *options = run.overrides.split(" --")
        assert preset in presets()
        assert all(option and not option.startswith("-") for option in options)


# Tables


def some(folder: Path, **rows: Any) -> Results:
    run = {"commit": "abc", "machine": "A", "steps": 10, "seconds": 60.0, "overrides": "cartpole"}
    runs = tuple(
        data.RunRow(f"toy-{method}-{seed}", "toy", method, seed, **run)  # type: ignore[arg-type]
        for method in ("hps", "conal")
        for seed in (0, 1, 2)
    )
    rates = {"hps": (2, 4, 6), "conal": (10, 10, 10)}
    success = tuple(
        data.SuccessRow(run.run, "final", task, 10, count, 1.5)
        for run in runs
        for task, count in (("a", rates[run.method][run.seed]), ("b", 0))
    )
    return Results(folder, runs, success, **rows)


def test_t_interval_against_student() -> None:
    # t(0.975, 2) = 4.302653; the standard deviation of 1, 2, 3 is 1.
    low, high = t_interval([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_method_table_is_over_tasks_then_seeds(tmp_path: Path) -> None:
    header, _, hps, conal = table("methods toy", some(tmp_path)).splitlines()
    assert header.startswith("| method | seeds | mean success |")
    assert hps.split(" | ")[1:3] == ["3", "0.2"]
    assert "0.100, 0.200, 0.300" in hps
    assert conal.split(" | ")[2:4] == ["0.5", "0.500 to 0.500"]


def test_task_table_keeps_tasks_apart(tmp_path: Path) -> None:
    lines = table("tasks toy", some(tmp_path)).splitlines()
    assert lines[2:] == ["| `hps` | 3 | 0.40 | 0.00 |", "| `conal` | 3 | 1.00 | 0.00 |"]


def test_measured_table_shows_ratios_and_gaps(tmp_path: Path) -> None:
    rows = [("x", "old", "1500"), ("x", "new", "3000"), ("y", "new", "0.50")]
    measured = tuple(data.Measurement("speed", *row, "", "A", "2026-01-01") for row in rows)
    lines = table("measured speed new", some(tmp_path, measurements=measured)).splitlines()
    assert lines[2:] == ["| x | 1,500 (2.00) | 3,000 |", "| y | - | 0.50 |"]


@pytest.mark.parametrize(
    "name", ["nonsense toy", "seeds", "seeds other", "measured other", "seeds a b c", "curve toy"]
)
def test_unknown_table_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^(table|study): got "):
        table(name, some(tmp_path))


def test_page_is_rewritten_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: tasks toy -->\nold\n<!-- end -->\nafter\n")
    results = some(tmp_path)
    ((name, made),) = tables(page, results)
    assert name == "tasks toy"
    expected = f"before\n<!-- table: tasks toy -->\n{made}\n<!-- end -->\nafter\n"
    assert rewritten(page, results) == expected
    page.write_text(expected)
    assert rewritten(page, results) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: tasks toy -->\n",
        "<!-- table: tasks toy -->\n<!-- table: tasks toy -->\n<!-- end -->\n",
        "<!-- table: tasks other -->\n<!-- end -->\n",
    ],
)
def test_wrong_marker_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"page\.md"):
        rewritten(page, some(tmp_path))


# Damaged data


@pytest.mark.parametrize(
    "name, line, where",
    [
        ("runs", "a,s,hps,0,,A,,", r"runs\.csv:2"),
        ("runs", "a,s,hps,zero,,A,,,", r"runs\.csv:2: seed"),
        ("runs", "a,s,HPS,0,,A,,,", r"runs\.csv:2: method"),
        ("runs", "../a,s,hps,0,,A,,,", r"runs\.csv:2: run"),
        ("success", "toy,final,a,10,11,", r"success\.csv:2: successes"),
        ("success", "toy,final,a,10,1.5,", r"success\.csv:2: successes"),
        ("success", "other,final,a,10,1,", r"success\.csv:2: run"),
        ("episodes", "toy,final,a,0101", r"episodes\.csv:2: outcomes"),
        ("metrics", "toy,test,a,accuracy,nan", r"metrics\.csv:2: value"),
        ("measurements", "t,r,c,fast,,A,", r"measurements\.csv:2: value"),
        ("missing", "other,curve,lost", r"missing\.csv:2: run"),
    ],
)
def test_damaged_line_is_named(name: str, line: str, where: str, tmp_path: Path) -> None:
    rows: dict[str, list[str]] = {"runs": ["toy,s,hps,0,,A,,,"], name: [line]}
    for file, lines in rows.items():
        header = ",".join(data.column_names(data._FILES[file]))
        (tmp_path / f"{file}.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(ConfigError, match=where):
        read_results(tmp_path)


def test_line_that_is_there_twice_is_named(tmp_path: Path) -> None:
    header = ",".join(data.column_names(data.RunRow))
    (tmp_path / "runs.csv").write_text(f"{header}\n" + 2 * "toy,s,hps,0,,A,,,\n")
    with pytest.raises(ConfigError, match=r"runs\.csv:3"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["", "run,study\n", "\x00", 'run,"\n'])
def test_file_with_another_header_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"runs\.csv: "):
        read_results(tmp_path)


def test_run_without_trees_needs_a_line_in_missing(tmp_path: Path) -> None:
    write_files(data.csv_files(some(tmp_path)))
    with pytest.raises(ConfigError, match=r"trees/toy-hps-0\.json"):
        read_results(tmp_path)


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
        *("rate", "engine", "returns", "steps", "kind", "name"),
        *("no evaluation.json", "no versions.json", "no config.yaml"),
        *("evaluation.json", "versions.json", "progress.csv", "tree.json"),
    ],
)
def test_bad_run_leaves_the_data_alone(
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
    real = Path.write_text

    def refuse(path: Path, *args: Any, **options: Any) -> int:
        if "measurements" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ConfigError, match="No space left"):
        add_run(run, empty, LABEL)
    assert not [path for path in empty.rglob("*") if path.is_file()]


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


def test_trees_of_a_study_are_drawn(kept: Results, tmp_path: Path) -> None:
    figure = draw_study(kept, "mt10")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["mt10-conal-0, actor", "mt10-conal-0, critic"]
    assert len(titles) == 8


def test_study_without_trees_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConalError, match=r"^study: got 'toy'"):
        draw_study(some(tmp_path), "toy")


def test_damaged_tree_is_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"actor": 1}', "{}"):
        path = tmp_path / "tree.json"
        path.write_text(text)
        with pytest.raises(ConalError, match=r"tree\.json"):
            read_trees(path)


def test_a_progress_file_without_steps_is_refused(tmp_path: Path, empty: Path) -> None:
    run = rl_run(tmp_path / "run")
    (run / "progress.csv").write_text("success/mean\n0.5\n")
    with pytest.raises(CheckpointError, match=r"progress\.csv"):
        add_run(run, empty, LABEL)
