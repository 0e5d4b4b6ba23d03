"""What takes minutes: `make test-long`. Each run is recorded in tests/LONG.md."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from conal_rl import evaluate, train
from conal_rl.runs.folder import find_run

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", ["mt10", "mt10_paper"])
def test_shipped_weights_succeed_as_recorded(name: str, tmp_path: Path) -> None:
    """By the official protocol, on the official envs. Processors round products differently."""
    recorded = json.loads((find_run(f"pretrained:{name}") / "evaluation.json").read_text())
    file = tmp_path / "result.json"
    assert evaluate.main([f"pretrained:{name}", "--engine", "official", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["seed"], found["episodes_per_task"]) == (recorded["seed"], 50)
    for task, success in recorded["success"].items():
        assert found["success"][task] == pytest.approx(success, abs=0.041)  # two episodes
    assert found["mean_success"] == pytest.approx(recorded["mean_success"], abs=0.0081)


def test_the_cartpole_preset_solves_every_variant(tmp_path: Path) -> None:
    assert train.main(["cartpole", "--out", str(tmp_path / "run")]) == 0
    returns = json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]
    assert len(returns) == 7
    assert {task: value for task, value in returns.items() if value < 475} == {}


def test_a_fresh_clone_installs_and_trains(tmp_path: Path) -> None:
    """As README says: clone, then make; the budget is small."""
    if shutil.which("make") is None or shutil.which("git") is None:
        pytest.skip("make or git is not installed")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    # The search must be long enough for two episodes of every task.
    few = "--total-steps 30000 --search.steps 15000 --agent.learning-starts 100"
    options = f"{few} --evaluation.episodes 1 --out runs/few"
    try:
        subprocess.run(["make", "test", "ARGS=tests/core/test_tree.py"], cwd=clone, check=True)
        subprocess.run(["make", "mt10", f"ARGS={options}"], cwd=clone, check=True)
    finally:
        shutil.rmtree(clone / ".venv", ignore_errors=True)  # gigabytes
    assert (clone / "runs" / "few" / "evaluation.json").is_file()
