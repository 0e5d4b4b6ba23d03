"""Run folders that commit 4bbec36 wrote, each stopped in its search, still work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conal_rl import evaluate, train
from conal_rl.reports.success import read_success
from tests.helpers.toy_runs import evaluation, rows

OLD = Path(__file__).parent / "data" / "old_runs"


@pytest.mark.parametrize(("name", "steps"), [("cartpole", 980), ("digits", 12)])
@pytest.mark.slow
def test_an_old_run_resumes_and_evaluates(name: str, steps: int, tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD / name, tmp_path / name))
    before = rows(run)
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    after = rows(run)
    assert after[-1]["time/total_timesteps"] == str(steps)
    for old, new in zip(before, after):
        assert {key: value for key, value in old.items() if value}.items() <= new.items()
    assert list(after[0])[:2] == ["time/total_timesteps", "phase"]
    phases = [row["phase"] for row in after]  # the old rows do not say it
    assert phases == [""] * len(before) + sorted(phases[len(before) :])
    if name == "cartpole":
        log = read_success(run, name)
        assert log.searched == len(before) + phases.count("search") > len(before)
        assert log.steps.tolist() == [float(row["time/total_timesteps"]) for row in after]
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (steps, {980: 840, 12: 6}[steps])
    file = tmp_path / "again.json"
    assert evaluate.main([str(run), "--json", str(file), "--device", "cpu"]) == 0
    again = json.loads(file.read_text())
    assert again == {key: report[key] for key in again}


@pytest.mark.parametrize("name", ["cartpole", "digits"])
def test_an_old_checkpoint_evaluates(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (OLD / name / "checkpoints").iterdir()
    file = tmp_path / "result.json"
    assert evaluate.main([str(checkpoint), "--json", str(file), "--device", "cpu"]) == 0
    report = json.loads(file.read_text())
    tasks = report["returns"] if name == "cartpole" else report["scores"]
    printed = capsys.readouterr().out
    assert len(tasks) in (5, 7) and all(task in printed for task in tasks)
