"""The data of `results/`: whole, in agreement with the documents, and how runs join them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from conal_rl.config import presets
from conal_rl.errors import ConalError, ConfigError
from conal_rl.reports import results as data
from conal_rl.reports.result_adding import CURVE_LINES
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


HAND_MADE = [page for page in PAGES if "docs/results" in str(page) and "plan" not in page.name]


@pytest.mark.parametrize("page", HAND_MADE, ids=[page.name for page in HAND_MADE])
def test_tables_without_data_say_so(page: Path) -> None:
    generated = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)
    text = generated.sub("", page.read_text(encoding="utf-8"))
    for section in text.split("\n## "):
        assert "\n|" not in section or "data not kept" in section.lower(), section[:60]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_results_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_files_are_as_the_program_writes_them(kept: Results) -> None:
    for path, text in data.csv_files(kept).items():
        assert path.read_text(encoding="utf-8") == text, path


def test_every_tree_loads_or_is_listed_as_missing(kept: Results) -> None:
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


def test_means_of_changed_trees_equal_the_printed_ones(kept: Results) -> None:
    found = [mean_success(kept, f"mt10-pick-place-tree-{seed}") for seed in (1, 2)]
    assert found == pytest.approx([0.926, 0.840])


@pytest.mark.parametrize("weights, printed", [("final", 0.9615), ("newest", 0.9325)])
def test_mean_of_four_seeds_equals_the_printed_one(
    weights: str, printed: float, kept: Results
) -> None:
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


def test_t_interval_equals_students_table() -> None:
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
def test_file_with_a_different_header_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"runs\.csv: "):
        read_results(tmp_path)


def test_run_without_trees_needs_a_line_in_missing(tmp_path: Path) -> None:
    write_files(data.csv_files(some(tmp_path)))
    with pytest.raises(ConfigError, match=r"trees/toy-hps-0\.json"):
        read_results(tmp_path)


# Trees


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
