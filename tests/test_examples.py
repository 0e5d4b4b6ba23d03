"""The examples run as they are, in under a minute each, and show what they say."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[[str], str]


@pytest.fixture
def run(scratch: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in an empty folder; returns what it printed."""

    def run_example(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_there_are_five_short_examples() -> None:
    lines = {p.name: len(p.read_text().splitlines()) for p in EXAMPLES.glob("*.py")}
    assert len(lines) == 5
    assert {name: count for name, count in lines.items() if not 15 <= count <= 40} == {}


@pytest.mark.slow
def test_evaluate_pretrained_prints_a_high_success(run: Run) -> None:
    rates = numbers(r"(\d+)%", run("evaluate_pretrained.py"))
    assert len(rates) == 11  # ten tasks and their mean
    assert rates[-1] >= 90


@pytest.mark.slow
def test_own_tasks_leaves_a_finished_run(run: Run, scratch: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run("own_tasks.py")
    assert ended.value.code == 0
    (folder,) = (scratch / "runs").iterdir()
    assert {"tree.json", "evaluation.json", "model"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_conal_sac_prints_a_tree_and_a_return(run: Run) -> None:
    shown = run("conal_sac.py")
    assert "7 tasks" in shown  # the tree
    (balanced,) = numbers(r"an episode: (\d+)", shown)
    assert balanced > 0


def test_tree_and_conflicts_finds_the_opposite_task(run: Run) -> None:
    shown = run("tree_and_conflicts.py")
    one, two = re.findall(r"squared errors \[(.*)\]", shown)
    assert max(map(float, two.split(","))) < 0.01 < max(map(float, one.split(",")))
    alike, opposite = numbers(r"conflict in (\d+)%", shown)[:2]
    assert (alike, opposite) == (0, 100)


def test_torchjd_aggregator_holds_the_model(run: Run) -> None:
    mean, noticing = numbers(r"in (\d+) of 100 steps", run("torchjd_aggregator.py"))
    assert mean == 0 < noticing
