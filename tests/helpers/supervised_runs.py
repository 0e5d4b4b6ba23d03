"""Small runs of the train command on data sets, and what tests read in their folders."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from conal_rl import train
from conal_rl.supervised.data.bundled import Digits
from conal_rl.supervised.experiment import SupervisedExperiment

TASKS = tuple(Digits.kinds)
TINY = ["--total-steps", "12", "--search.steps", "6", "--log-interval", "2"]
DIGITS = [
    *("digits", *TINY, "--agent.channels", "4", "4", "--agent.strides", "1", "2"),
    *("--agent.batch-size", "8", "--evaluation.batch-size", "400"),
]


def run(out: Path, *words: str) -> Path:
    assert train.main([*words, "--out", str(out)]) == 0
    return out


def stop_at(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal once the run has made `step` updates."""
    update = SupervisedExperiment._update
    sent: list[int] = []

    def spied(self: SupervisedExperiment, *batches: Any) -> None:
        update(self, *batches)
        if self.steps + 1 >= step and not sent:
            sent.append(step)
            signal.raise_signal(number)

    patch.setattr(SupervisedExperiment, "_update", spied)


def read(folder: Path, name: str = "evaluation") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of progress.csv, with sorted columns and without the clock."""
    with (folder / "progress.csv").open(newline="") as file:
        lines = [dict(sorted(row.items())) for row in csv.DictReader(file)]
    for row in lines:
        del row["time/phase_steps_per_s"], row["time/minutes"]
    return lines


METHODS: dict[str, list[str]] = {
    "conal": [],
    "and_deeper": ["--search.rule", "and_deeper", "--search.gate-every", "2"],
    "gumbel": ["--search.gumbel"],
    "copies": ["--search.purely-specific", "false", "--search.copies", "2"],
    "ltb": ["--search.method", "ltb", "--search.copies", "2"],
    "recon": ["--search.method", "recon", "--search.specific-layers", "1"],
    "conal_pro": ["--search.method", "conal_pro"],
    "conal_pro, gumbel": ["--search.method", "conal_pro", "--search.gumbel"],
    "random": ["--agent.weighting", "random"],
    "uncertainty": ["--agent.weighting", "uncertainty"],
    "pcgrad": ["--agent.weighting", "pcgrad"],
    "counted": ["--agent.conflict-rule", "consensus"],
}
