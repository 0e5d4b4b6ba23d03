"""What happens around the steps of a training: log files, progress bar, checkpoints, stopping."""

from __future__ import annotations

import csv
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
)
from rich.table import Column
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)

from conal_rl.errors import CheckpointError
from conal_rl.files import draft_file, read_text
from conal_rl.signals import StopRequest
from conal_rl.streams import can_redraw

FIRST_SAVE_SECONDS = 45.0
"""Seconds of a session after which its first checkpoint is due."""


_COLUMNS = (
    *("time/total_timesteps", "phase", "evaluation/", "success/mean", "success/", "return/"),
    *("validation/", "loss/", "rollout/", "train/", "time/"),
)
"""How the names of columns begin, in the order of progress.csv."""


class ContinuedCSV(CSVOutputFormat):
    """SB3's CSV log, which continues the lines of an earlier process, its columns in fixed order.

    Lines after the checkpoint are dropped, because the resumed run logs them again. An incomplete
    last line is dropped too.

    Args:
        path: the path of the log.
        steps: the steps of the checkpoint.

    Raises:
        CheckpointError: the file is not the log of a run.
    """

    def __init__(self, path: Path, steps: int):
        header, kept = "", list[str]()
        if path.exists():
            try:
                lines = read_text(path).splitlines(keepends=True)
                header, *whole = [line for line in lines if line.endswith("\n")] or [""]
                rows = csv.DictReader([header, *whole])
                for line, row in zip(whole, rows, strict=True):
                    if float(row["time/total_timesteps"]) <= steps:
                        kept.append(line)
            except (csv.Error, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: got a damaged file, expected the log of a run. Move it away; the "
                    "resumed run then begins a new one"
                ) from error
        with draft_file(path) as draft:  # SB3 keeps writing to this file under its new name
            super().__init__(str(draft))
            self.file.reconfigure(encoding="utf-8")  # in any locale
            self.keys = next(csv.reader([header]), [])
            self.file.writelines([header, *kept])
            self.file.flush()
        self.path = path

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Write a line. A column that is new moves to its place, in all lines. NaN stays empty."""
        cells = {
            name: value
            for name, value in known(key_values).items()
            if "csv" not in (key_excluded[name] or ())
        }
        if new := [name for name in cells if name not in self.keys]:
            self._add_columns(new)
        if cells:
            super().write(cells, key_excluded, step)

    def _add_columns(self, new: Sequence[str]) -> None:
        rows = list(csv.DictReader(read_text(self.path).splitlines()))
        self.keys = sorted([*self.keys, *new], key=_column)
        with draft_file(self.path) as draft:
            self.file.close()
            self.file = open(draft, "w+", encoding="utf-8", newline="")  # noqa: SIM115
            writer = csv.DictWriter(self.file, self.keys, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self.file.flush()


class Curves(TensorBoardOutputFormat):
    """SB3's TensorBoard log, without a point for NaN."""

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Write a point for each value that is known."""
        points = known(key_values)
        super().write(points, {name: key_excluded[name] for name in points}, step)


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not NaN."""
    nan = {
        name
        for name, value in values.items()
        if isinstance(value, float | np.floating) and isnan(value)
    }
    return {name: value for name, value in values.items() if name not in nan}


def _column(name: str) -> int:
    """Return the place of a column's kind in progress.csv."""
    kinds = (kind for kind, start in enumerate(_COLUMNS) if name.startswith(start))
    return next(kinds, len(_COLUMNS))


def make_logger(folder: Path, steps: int, config: str = "") -> Logger:
    """Return a log to progress.csv and TensorBoard files in `folder`; it continues at `steps`.

    TensorBoard shows `config`, the config in YAML, as a text.
    """
    from tensorboard.compat.proto.event_pb2 import (
        Event,
        SessionLog,
    )  # imported here because it is slow

    table = ContinuedCSV(folder / "progress.csv", steps)
    curves = Curves(str(folder))
    # TensorBoard then leaves out what an earlier process logged after these steps.
    start = SessionLog(status=SessionLog.START)
    curves.writer._get_file_writer().add_event(Event(step=steps + 1, session_log=start))
    if config:
        curves.writer.add_text("config", textwrap.indent(config, "    "), steps)
    return Logger(folder=str(folder), output_formats=[table, curves])


def log_final(logger: Logger, report: Mapping[str, Any], steps: int) -> None:
    """Log the content of evaluation.json to TensorBoard: success, returns and scores."""
    figures = {name: report.get(name) for name in ("mean_success", "total_error", "delta_p")}
    for kind in ("success", "returns"):
        figures |= {f"{kind}/{task}": value for task, value in report.get(kind, {}).items()}
    for task, metrics in report.get("scores", {}).items():
        figures |= {f"{task}/{metric}": value for metric, value in metrics.items()}
    points = {f"final/{name}": value for name, value in figures.items() if value is not None}
    for output in logger.output_formats:
        if isinstance(output, Curves):
            output.write(points, dict.fromkeys(points, ()), steps)


class PhaseDisplay:
    """A phase's progress on stderr: a bar in a terminal, lines elsewhere.

    Args:
        phase: name of the phase.
        step: the step that it continues at.
        until: the step that it ends at.
        total: the step that the run ends at.
        seconds_left: returns the seconds after which it ends early.
    """

    def __init__(
        self, phase: str, step: int, until: int, total: int, seconds_left: Callable[[], float]
    ):
        self.phase, self.until, self.total, self._seconds_left = phase, until, total, seconds_left
        self._first, self._began = step, time.monotonic()
        self._shown = self._began
        self.console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),
            # At 80 columns the numbers are whole, and only the end of the outcome is cut off.
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[outcome]}", table_column=Column(no_wrap=True, ratio=1)),
            expand=True,
            console=self.console,
            disable=not can_redraw(self.console),
        )
        self._progress.start()
        self._bar = self._progress.add_task(
            phase, total=until, completed=step, rate=0.0, left="", outcome=""
        )

    def rate(self, step: int) -> float:
        """Return the steps per second of this phase in this process."""
        return (step - self._first) / max(time.monotonic() - self._began, 1e-9)

    def due(self) -> bool:
        """Return whether half a second has passed since this last returned True."""
        now = time.monotonic()
        due = now - self._shown > 0.5
        if due:
            self._shown = now
        return due

    def show(self, step: int, outcome: str) -> None:
        """Move the bar."""
        self._progress.update(
            self._bar,
            completed=min(step, self.until),
            rate=self.rate(step),
            left=self._left(step),
            outcome=outcome,
        )

    def line(self, step: int, outcome: str) -> None:
        """Print a line, except if a bar is shown."""
        if self._progress.disable:
            ends = f", {outcome}" if outcome else ""
            self.console.print(
                f"{self.phase}: {step:,} of {self.until:,} steps, "
                f"{self.rate(step):,.0f} steps/s, {self._left(step)}{ends}",
                highlight=False,
                soft_wrap=True,
            )

    def _left(self, step: int) -> str:
        """Return the time that is left of the run, and next to it that of the phase."""
        run, phase = (self._minutes(until, step) for until in (self.total, self.until))
        return f"{run:.0f} min left" + (f" ({self.phase} {phase:.0f})" if run > phase else "")

    def _minutes(self, until: int, step: int) -> float:
        seconds = max(until - step, 0) / max(self.rate(step), 1e-9)
        return max(min(seconds, self._seconds_left()), 0) / 60

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


@contextmanager
def evaluation_bar(counted: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of an evaluation is done: a bar in a terminal, a line elsewhere.

    Yields a function that takes how many are done and how many are wanted. `counted` names them,
    such as episodes.
    """
    console = Console(stderr=True)
    bars = can_redraw(console)
    with Progress(console=console, transient=True, disable=not bars) as bar:
        task = bar.add_task(f"evaluation, {counted}", total=None)

        def show(done: int, wanted: int) -> None:
            bar.update(task, completed=done, total=wanted)
            if not bars and done == 1:
                console.print(f"evaluation: {wanted:,} {counted}", highlight=False)

        yield show


@dataclass
class Session:
    """A part of the training, within one phase: its limits, its log and its checkpoints.

    Attributes:
        phase: name of the phase.
        step: the step of the whole run that it continues at.
        until: the step of the whole run that it ends at.
        total: the step that the whole run ends at.
        logger: takes the metrics.
        stop: says whether the user has asked to stop.
        elapsed: returns the seconds of the whole run so far.
        seconds_left: returns the seconds after which it ends early.
        save: writes a checkpoint.
        save_seconds: seconds between two checkpoints.
        display: the phase's progress.
    """

    phase: str
    step: int
    until: int
    total: int
    logger: Logger
    stop: StopRequest
    elapsed: Callable[[], float]
    seconds_left: Callable[[], float]
    save: Callable[[], None]
    save_seconds: float

    def __post_init__(self) -> None:
        self.display = PhaseDisplay(
            self.phase, self.step, self.until, self.total, self.seconds_left
        )
        # The first checkpoint comes within a minute, so that little is lost if the process dies.
        self._saved = time.monotonic() - max(self.save_seconds - FIRST_SAVE_SECONDS, 0)

    @property
    def stopped(self) -> bool:
        """Whether the user has asked to stop."""
        return self.stop.signal is not None

    @property
    def out_of_time(self) -> bool:
        """Whether the run's minutes are over."""
        return self.seconds_left() <= 0

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough. Call it between two whole steps."""
        if time.monotonic() - self._saved > self.save_seconds:
            self.save()
            self._saved = time.monotonic()
