"""Small runs of the train command, and what tests read in their folders."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from conal_rl.agents.callback import RunCallback
from conal_rl.runs.checkpoints import load_checkpoint

TASKS = ("tests.helpers.toy:Left-v0", "tests.helpers.toy:Right-v0")
ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "total_steps": 320,
    "log_interval": 40,
    "env": {"suite": list(TASKS)},
    "agent": {
        "widths": [8],
        "critic": "mse",
        "batch_size": 4,
        "buffer_size": 400,
        "learning_starts": 20,
        "update_every": 4,
    },
    "search": {"steps": 160, "validation_share": 0.3},
    "evaluation": {"episodes": 2},
}


def stop_at(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal once the run has taken `step` steps."""
    on_step = RunCallback._on_step
    sent: list[int] = []

    def spied(self: RunCallback) -> bool:
        if self.num_timesteps >= step and not sent:
            sent.append(step)
            signal.raise_signal(number)
        return on_step(self)

    patch.setattr(RunCallback, "_on_step", spied)


_on_training_start = RunCallback._on_training_start


def killed_in_training(self: RunCallback) -> None:
    """Fail after the checkpoint of the derivation and before the next one."""
    if self.session.phase == "train":
        raise RuntimeError("killed")
    _on_training_start(self)


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(run: Path) -> list[int]:
    """Return the step of every row of progress.csv; they must rise."""
    logged = [int(row["time/total_timesteps"]) for row in rows(run)]
    assert logged == sorted(set(logged))
    return logged


def state(run: Path) -> dict[str, Any]:
    return load_checkpoint(run, groups=[])[1]


def evaluation(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return content
