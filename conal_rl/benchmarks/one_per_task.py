"""Agents that are trained on one task each, and evaluated together as one policy of the suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import SAC

from conal_rl.agents import ConalSAC
from conal_rl.benchmarks.study import finish
from conal_rl.config import Config, load_config
from conal_rl.envs.metaworld import suite_tasks
from conal_rl.evaluation import evaluate_policy
from conal_rl.runs import atomic_write


class OnePerTask:
    """Agents of one task each, as one policy of all of them."""

    def __init__(self, agents: Sequence[SAC]):
        self.agents = agents

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[Any], None]:
        """Actions (row, action) for observations (row, feature + task); every agent acts alone."""
        features, task_id = np.split(observation, [-len(self.agents)], axis=1)
        alone = np.column_stack([features, np.ones(len(features), dtype=np.float32)])
        task = task_id.argmax(axis=1)
        actions = np.empty((len(task), *self.agents[0].action_space.shape), dtype=np.float32)  # type: ignore[misc]
        for number in np.unique(task):
            rows = task == number
            actions[rows] = self.agents[number].predict(alone[rows], deterministic=deterministic)[0]
        return actions, None


def evaluate_together(
    agents: Sequence[SAC], config: Config, steps: int, seconds: float, evaluation: Path
) -> None:
    """Evaluate on the goals of the whole suite, and write it with what all agents have cost.

    Args:
        agents: in the order of the tasks of `config.env.suite`.
        config: its suite and evaluation count.
        steps: env steps of all agents together.
        seconds: of training, of all agents one after another.
        evaluation: the file to write.
    """
    settings = config.evaluation
    result = evaluate_policy(OnePerTask(agents), config.env.suite, settings.episodes, settings.seed)
    report = result.to_json() | {"steps": steps, "seconds": round(seconds)}
    atomic_write(evaluation, json.dumps(report, indent=2) + "\n")


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
    evaluation = out / "evaluation.json"
    if not evaluation.is_file():
        reports = [json.loads((out / task / evaluation.name).read_text("utf-8")) for task in tasks]
        agents = [ConalSAC.load_weights(out / task / "model", "cpu") for task in tasks]
        taken, seconds = (sum(report[key] for report in reports) for key in ("steps", "seconds"))
        evaluate_together(agents, config, taken, seconds, evaluation)
