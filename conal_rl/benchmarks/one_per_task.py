"""Agents that are trained on one task each, and count together as one row of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from conal_rl.benchmarks.study import finish
from conal_rl.config import Config, load_config
from conal_rl.envs.metaworld import suite_tasks
from conal_rl.evaluation import Evaluation
from conal_rl.runs.files import atomic_write, read_json


def write_together(parts: Sequence[Path], suite: str | Sequence[str], evaluation: Path) -> None:
    """Write the evaluations of one task each as one of the suite, with what all have cost.

    By the official protocol of MT1, the goals of a task are as many and drawn as those of a suite,
    but others.

    Args:
        parts: files of one task each, in the order of the suite's.
        suite: what they make together.
        evaluation: the file to write.
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
    atomic_write(evaluation, json.dumps(whole.to_json() | cost, indent=2) + "\n")


def run_one_by_one(
    out: Path, preset: str, options: Sequence[str], steps: int, seed: int, what: str
) -> None:
    """See to it that every task of a preset's suite has a finished run of its own in `out`.

    Args:
        preset: of Meta-World.
        options: of `python -m conal_rl.train`, for every run.
        steps: env steps of all runs together.
        seed: of training.
        what: names the runs in errors.

    Raises:
        ConalError: one failed, or a folder has a run of another config.
    """
    config = load_config(preset)
    assert isinstance(config, Config)
    tasks = suite_tasks(config.env.suite)
    common = ["--seed", str(seed), "--total-steps", str(steps // len(tasks))]
    for task in tasks:
        own = ["--env.suite", f"mt1:{task}"]
        finish(out / task, [preset, *common, *options, *own], f"{what}, {task}")
    parts = [out / task / "evaluation.json" for task in tasks]
    write_together(parts, config.env.suite, out / "evaluation.json")
