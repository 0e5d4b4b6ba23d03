"""Agents that train on one task each. Together they are one row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conal_rl.benchmarks.study import finish
from conal_rl.config import Config, load_config
from conal_rl.envs.metaworld import suite_tasks
from conal_rl.evaluation import Evaluation
from conal_rl.files import read_json, write_json


def write_together(parts: Sequence[Path], suite: str | Sequence[str], evaluation: Path) -> None:
    """Write one evaluation of a suite, with the steps and seconds of all its single tasks.

    By the official protocol, MT1 draws as many goals for a task as a suite does, in the same way.
    The goals themselves differ.

    Args:
        parts: The evaluation files of single tasks, in the suite's order.
        suite: The suite of these tasks.
        evaluation: The file to write.
    """
    reports = [read_json(path) for path in parts]
    whole = Evaluation(
        suite if isinstance(suite, str) else ",".join(suite),
        *(reports[0][key] for key in ("engine", "seed", "episodes_per_task")),
        *(
            {task: value for report in reports for task, value in report[key].items()}
            for key in ("success", "returns", "episodes")
        ),
    )
    cost = {key: round(sum(report[key] for report in reports)) for key in ("steps", "seconds")}
    write_json(evaluation, whole.to_json() | cost)


def run_one_by_one(
    out: Path, preset: str, options: Sequence[str], steps: int, seed: int, what: str
) -> None:
    """Make the missing runs of every task of a preset's suite, and write their evaluation.

    Args:
        out: The folder of the runs.
        preset: A preset with a Meta-World suite.
        options: Options of `python -m conal_rl.train` for every run.
        steps: Env steps of all runs together.
        seed: Seed of training.
        what: The name of the runs in errors.

    Raises:
        ConalError: A run failed, or a folder has a run of different settings.
    """
    config = load_config(preset)
    assert isinstance(config, Config)
    tasks = suite_tasks(config.env.suite)
    common = ["--seed", str(seed), "--total-steps", str(steps // len(tasks))]
    for task in tasks:
        suite = ["--env.suite", f"mt1:{task}"]
        finish(out / task, [preset, *common, *options, *suite], f"{what}, {task}")
    parts = [out / task / "evaluation.json" for task in tasks]
    write_together(parts, config.env.suite, out / "evaluation.json")
