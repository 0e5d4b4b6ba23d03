"""What a run shows and writes while it trains: progress bar, log files, checkpoints, stopping."""

from __future__ import annotations

import csv
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)
from torch import Tensor

from conal_rl.agents import ConalSAC
from conal_rl.config import Config


class StopRequest:
    """Ctrl-C (or SIGTERM) noted, so that training can stop between two updates."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The first signal asks training to stop; a second one interrupts at once."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after this step; writing a checkpoint", file=sys.stderr)


class Stopped(Exception):
    """Ends `learn` between two rounds of training, where nothing is half done."""


class ContinuedCSV(CSVOutputFormat):
    """SB3's CSV log, which goes on behind the lines of an earlier process.

    Lines logged after the checkpoint that the run resumes from are dropped: they will come again.
    So is a last line that was cut short.
    """

    def __init__(self, path: Path, steps: int):
        rows: list[dict[str, str]] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = csv.DictReader(line for line in lines if line.endswith("\n"))
            rows = [row for row in whole if float(row["time/total_timesteps"]) <= steps]
        super().__init__(str(path))
        for row in rows:
            self.write(
                {key: value for key, value in row.items() if value}, {key: () for key in row}
            )


def make_logger(folder: Path, steps: int) -> Logger:
    """Log to progress.csv and TensorBoard files in `folder`, going on at `steps`."""
    outputs: list[KVWriter] = [
        ContinuedCSV(folder / "progress.csv", steps),
        TensorBoardOutputFormat(str(folder)),
    ]
    return Logger(folder=str(folder), output_formats=outputs)


class RunCallback(BaseCallback):
    """Shows progress, logs, writes checkpoints, and ends `learn` when asked to stop.

    Args:
        phase: name of the phase.
        until: env steps at which the phase ends.
        checkpoint: writes a checkpoint; called between updates, when nothing is half done.
        evaluate: returns mean success, or None; called every `config.evaluation.every` steps.
    """

    def __init__(
        self,
        config: Config,
        phase: str,
        until: int,
        stop: StopRequest,
        checkpoint: Callable[[], None],
        evaluate: Callable[[], float | None],
    ):
        super().__init__()
        self.config, self.phase, self.until, self.stop = config, phase, until, stop
        self.checkpoint, self.evaluate = checkpoint, evaluate
        self.evaluated: float | None = None
        self.console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} steps/s"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[outcome]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def _on_training_start(self) -> None:
        self.began = self.shown = self.saved = time.monotonic()
        self.first_step = self.num_timesteps
        self.next_log = self.num_timesteps + self.config.log_interval
        self.next_evaluation = self.num_timesteps + self.config.evaluation.every
        self.progress.start()
        self.bar = self.progress.add_task(
            self.phase, total=self.until, completed=self.num_timesteps, rate=0.0, outcome=""
        )

    def _on_rollout_start(self) -> None:
        # Between two rounds of training: envs, replay, networks and counters agree here.
        if self.stop.signal is not None:
            self._on_training_end()
            raise Stopped
        now = time.monotonic()
        if self.num_timesteps >= self.next_log:
            self.next_log += self.config.log_interval
            self._log(now)
        every = self.config.evaluation.every
        if every and self.num_timesteps >= self.next_evaluation:
            self.next_evaluation += every
            self.evaluated = self.evaluate()
        if now - self.saved > 60 * self.config.checkpoint_minutes:
            self.checkpoint()
            self.saved = time.monotonic()
        if now - self.shown > 0.5:
            self.shown = now
            self._show(now)

    def _on_step(self) -> bool:
        return True

    def close(self) -> None:
        """Take the progress bar down, also after an error."""
        self.progress.stop()

    def _on_training_end(self) -> None:
        assert isinstance(self.model, ConalSAC)
        self.model.dump_logs()
        self._show(time.monotonic())

    def _rate(self, now: float) -> float:
        return (self.num_timesteps - self.first_step) / max(now - self.began, 1e-9)

    def _show(self, now: float) -> None:
        self.progress.update(
            self.bar,
            completed=min(self.num_timesteps, self.until),
            rate=self._rate(now),
            outcome=self._outcome(),
        )

    def _log(self, now: float) -> None:
        assert isinstance(self.model, ConalSAC)
        if self.evaluated is not None:
            self.logger.record("evaluation/mean_success", self.evaluated)
        self.logger.record("time/phase_steps_per_s", self._rate(now))
        self.model.dump_logs()
        if self.progress.disable:
            left = (self.until - self.num_timesteps) / max(self._rate(now), 1e-9)
            self.console.print(
                f"{self.phase}: {self.num_timesteps:,} of {self.until:,} steps, "
                f"{self._rate(now):,.0f} steps/s, {left / 60:.0f} min left, {self._outcome()}",
                highlight=False,
                soft_wrap=True,
            )

    def _outcome(self) -> str:
        """Success while training (stochastic actions) where tasks define it, otherwise return."""
        assert isinstance(self.model, ConalSAC)
        success = np.array(list(self.model.recent_success().values()))
        parts = []
        if np.isfinite(success).any():
            parts.append(f"success {np.nanmean(success):.2f}")
        returns = np.array(list(self.model.recent_return().values()))
        if np.isfinite(returns).any():
            parts.append(f"return {np.nanmean(returns):.1f}")
        if self.evaluated is not None:
            parts.append(f"evaluated {self.evaluated:.2f}")
        return ", ".join(parts)


def conflict_report(agent: ConalSAC) -> dict[str, Any]:
    """Gates and conflicts as JSON types: why the trees are what they are.

    Conflicts are `(layer, task)` and `(layer, task, task)`, means over the twin critics.
    """
    report: dict[str, Any] = {
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "tasks": agent.tasks,
    }
    tasks = len(agent.tasks)

    def rounded(values: Tensor) -> Any:
        return values.numpy().round(4).tolist()

    for name, learner in agent.learners.items():
        report[name] = {"gates": learner.gate_weights()}
        statistics = learner.noticing.statistics() if learner.noticing else None
        if learner.noticing is None or statistics is None:
            continue
        report[name] |= {
            "rule": learner.noticing.rule,
            "module_held": {
                rule: rounded(held.mean(dim=1)) for rule, held in statistics.module_held.items()
            },
            "task_dropped": {
                rule: rounded(held.unflatten(1, (-1, tasks)).mean(dim=1))
                for rule, held in statistics.held.items()
            },
            "mean_cosine": rounded(statistics.of_tasks(statistics.cosine, tasks)),
            "negative_share": rounded(statistics.of_tasks(statistics.negative, tasks)),
        }
    return report
