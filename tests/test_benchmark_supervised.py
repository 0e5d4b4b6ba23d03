"""The comparison of methods on digits and terrain, and the picture of predictions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conal_rl import benchmark, report, train
from conal_rl.benchmarks import study, supervised
from conal_rl.benchmarks.supervised import Result, comparison, interval, mean_scores, trees_table
from conal_rl.config import load_config
from conal_rl.core import Tree
from conal_rl.errors import CheckpointError
from conal_rl.reports.predictions import _pair
from conal_rl.supervised.metrics import AbsoluteError, Cosine

TASKS = ("a", "b", "c")


def result(accuracy: float, error: float, tree: Tree, conflicts: float = float("nan")) -> Result:
    scores = {"a": {"accuracy": accuracy}, "b": {"abs_error": error}}
    return Result(scores, 100, conflicts, 3.0, 0, 0.0, tree)


def cells(table: object) -> list[list[str]]:
    columns = table.columns  # type: ignore[attr-defined]
    return [list(map(str, row)) for row in zip(*(column.cells for column in columns))]


def test_delta_p_is_against_the_mean_of_stl() -> None:
    independent, shared = Tree.independent(TASKS, 2), Tree.shared(TASKS, 2)
    results = {
        "STL": [result(0.8, 2.0, independent), result(0.8, 2.0, independent)],
        "HPS": [result(0.88, 2.0, shared, 0.25), result(0.80, 1.6, shared, 0.35)],
    }
    rows = cells(comparison("digits", results))
    assert rows[0][:3] == ["STL", "+0.00", "+0.00 .. +0.00"]
    # The runs have 5% (the mean of +10% for a and 0 for b) and 10% (0 for a and +20% for b).
    assert rows[1][0:2] == ["HPS", "+7.50"]
    assert rows[1][4] == "0.30"
    assert rows[0][4] == "-"
    assert mean_scores(results["HPS"])["a"]["accuracy"] == pytest.approx(0.84)


def test_intervals_are_those_of_students_t() -> None:
    low, high = interval([1.0, 2.0, 3.0])  # t of 2 degrees is 4.3027, the error 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert np.isinf(interval([1.0])).all()


def test_trees_are_written_layer_by_layer() -> None:
    tree = Tree.from_branch_points([1, 2, 3], 2, TASKS)
    runs = [result(0.5, 1.0, tree)]
    rows = cells(trees_table({"STL": runs, "CoNAL": runs, "CoNAL + RLW": runs}, [7]))
    assert rows == [["CoNAL", "011 012"]]


@pytest.mark.slow
def test_finished_supervised_runs_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: supervised.METHODS[name] for name in ("STL", "CoNAL", "CoNAL + RLW")}
    monkeypatch.setattr(supervised, "METHODS", kept)
    options = ["--total-steps", "8", "--search.steps", "4"]
    tables = supervised.measure("digits", [0], 1, tmp_path, options)
    assert [table.row_count for table in tables] == [3, 3, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conal-0", "conal-rlw-0", "stl-0"]
    searched, retrained = (tmp_path / f"{n}-0" / "tree.json" for n in ("conal", "conal-rlw"))
    assert Tree.load(searched) == Tree.load(retrained)
    monkeypatch.setattr(study, "start", lambda *_: pytest.fail("a run started"))
    supervised.measure("digits", [0], 1, tmp_path, options)


def test_the_tree_of_a_search_that_ended_early_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(module: str, arguments: list[str], what: str) -> None:
        started.append(arguments[:-2])
        out = Path(arguments[-1])
        out.mkdir(parents=True)
        config = load_config(arguments[0], arguments[1:-2])
        fixed = config.agent.tree != "search"
        evaluation = {
            "scores": {"a": {"accuracy": 0.5 + fixed / 4}},
            "parameters": {"encoder": 10},
            "seconds": 3.0,
            "search_steps": 0 if fixed else 2,
            "search_seconds": 0.0 if fixed else 1.0,
        }
        (out / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        (out / "tree.json").write_text(Tree.shared(TASKS, 2).to_json(), encoding="utf-8")

    kept = {name: supervised.METHODS[name] for name in ("STL", "CoNAL-Pro")}
    monkeypatch.setattr(supervised, "METHODS", kept)
    monkeypatch.setattr(study, "start", start)
    options = ["--total-steps", "12", "--search.steps", "4"]
    tables = supervised.measure("digits", [0], 1, tmp_path, options)
    assert len(started) == 3
    again = load_config(started[2][0], started[2][1:])
    assert (again.total_steps, again.seed) == (8, 0)
    assert again.agent.tree == str(tmp_path / "conal-pro-0" / "tree.json")
    row = cells(tables[0])[1]
    assert (row[0], row[-1]) == ("CoNAL-Pro", "4")  # the search and the second training
    assert cells(tables[1])[1][1] == "0.750"
    assert supervised.measure("digits", [0], 1, tmp_path, options)
    assert len(started) == 3


def test_a_failed_run_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "METHODS", {"STL": ["--agent.learning-rate", "-1"]})
    assert benchmark.main(["supervised", "digits", "--seeds", "0", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: STL, seed 0: ") and "learning_rate" in error
    assert "\n" not in error


@pytest.mark.slow
def test_predictions_of_terrain_become_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    few = ["--agent.tree", "shared", "--total-steps", "2", "--agent.aspp-width", "4"]
    assert train.main(["terrain", "--out", str(run), *few]) == 0
    capsys.readouterr()
    command = ["predictions", str(run), "--out", str(tmp_path / "report"), "--images", "2"]
    assert report.main(command) == 0
    picture = Path(capsys.readouterr().out.strip())
    assert picture.name == "predictions-run.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name, damage",
    [
        ("evaluation.json", "[]"),
        ("evaluation.json", "{}"),
        ("training.json", "[]"),
        ("training.json", '{"encoder": []}'),
        ("training.json", '{"encoder": {"mean_cosine": [[1], [1, 2]]}}'),
    ],
)
def test_a_damaged_run_is_named(name: str, damage: str, tmp_path: Path) -> None:
    report = {"scores": {}, "parameters": {"encoder": 1}, "seconds": 1}
    report |= {"search_steps": 0, "search_seconds": 0}
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    training = '{"method": "none", "tasks": ["a"], "steps": 3, "encoder": {}}'
    (tmp_path / "training.json").write_text(training)
    Tree.shared(TASKS, 2).save(tmp_path / "tree.json")
    assert supervised.read(tmp_path).parameters == 1
    (tmp_path / name).write_text(damage)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.*{name}"):
        supervised.read(tmp_path)


def test_a_pixel_without_a_label_is_not_drawn() -> None:
    problem: Any = SimpleNamespace(
        tasks={
            "normals": SimpleNamespace(metric=Cosine),
            "depth": SimpleNamespace(metric=partial(AbsoluteError, 0)),
        }
    )
    torch.manual_seed(0)
    target = torch.rand(1, 3, 4, 4) + 0.1
    target[0, :, 1, 2] = 0
    _, truth = _pair(problem, "normals", torch.rand(1, 3, 4, 4), target)
    assert np.argwhere(np.isnan(truth).all(axis=-1)).tolist() == [[1, 2]]
    depth = torch.rand(1, 1, 4, 4)
    predicted, truth = _pair(problem, "depth", depth, torch.zeros(1, 1, 4, 4))
    assert np.isnan(truth).all()
    assert (predicted.min(), predicted.max()) == (0, 1)
    low, high = _pair(problem, "depth", depth, torch.linspace(0, 2, 16).view(1, 1, 4, 4))
    assert np.isnan(high[0, 0]) and high[3, 3] == 1 and low.max() < 0.5


def test_predictions_of_digits_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    few = ["--agent.tree", "shared", "--total-steps", "2"]
    assert train.main(["digits", "--out", str(run), *few]) == 0
    capsys.readouterr()
    assert report.main(["predictions", str(run), "--out", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "digits" in error
    assert not (tmp_path / "report").exists()
