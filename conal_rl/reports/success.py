"""The figures of success during training, over env steps and over minutes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.files import read_rows
from conal_rl.reports.run_data import Array
from conal_rl.reports.style import COLOURS, FAINT, INK, dress, legend, line_styles
from conal_rl.runs.folder import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SuccessLog:
    """The success columns of progress.csv, or its returns if its tasks report no success.

    Each array is `(line,)`. A value is NaN if the line does not give it.

    Attributes:
        name: the run's name.
        steps: env steps, summed over all tasks.
        minutes: wall-clock minutes of the whole run, including the search.
        tasks: for each task the share of successes among its latest training episodes. Their
            actions are noisy.
        evaluated: mean success of deterministic actions, from evaluations during training.
        quantity: "success", or "return": `tasks` then has the mean returns.
        searched: number of lines of the search, the first ones.
    """

    name: str
    steps: Array
    minutes: Array
    tasks: dict[str, Array]
    evaluated: Array
    quantity: str
    searched: int

    @property
    def mean(self) -> Array:
        """The mean over the tasks; NaN until every task has finished an episode."""
        return np.mean(list(self.tasks.values()), axis=0)


def read_success(folder: Path, name: str) -> SuccessLog:
    """Read a run's progress.csv.

    Raises:
        CheckpointError: it is missing or damaged, or has neither success nor returns.
    """
    path = Run(folder).progress_path
    try:
        rows = read_rows(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: got {error.strerror!r}, expected a readable file. Give a run's folder"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, error) from error

    def column(key: str) -> Array:
        return np.array([float(row.get(key) or math.nan) for row in rows])

    columns = [key for key in (rows[0] if rows else ()) if key]
    if columns[:1] != ["time/total_timesteps"]:  # an older run, whose columns have any order
        columns.sort()
    for quantity in ("success", "return"):
        names = [key for key in columns if key.startswith(f"{quantity}/")]
        names = [key for key in names if key != "success/mean"]
        if names:
            break
    else:
        raise CheckpointError(
            f"{path}: got no column success/TASK or return/TASK, expected at least one. "
            "Give an RL run with a finished episode"
        )
    try:
        return SuccessLog(
            name,
            column("time/total_timesteps"),
            column("time/minutes"),
            {key.partition("/")[2]: column(key) for key in names},
            column("evaluation/mean_success"),
            quantity,
            max((n for n, row in enumerate(rows, 1) if row.get("phase") == "search"), default=0),
        )
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: got a damaged file ({error}), expected lines of metrics. Give a different run"
    )


def draw_success(logs: Sequence[SuccessLog]) -> Figure:
    """Draw each run's mean success over env steps and over minutes; dots are evaluations.

    A dashed line marks the end of a search. Returns are drawn for tasks that report no success.

    Raises:
        ConfigError: some runs have success and others only returns.
    """
    from matplotlib.figure import Figure

    quantities = {log.quantity: log.name for log in logs}
    if len(quantities) > 1:
        raise ConfigError(
            f"RUN: got success of {quantities['success']} and only returns of "
            f"{quantities['return']}, expected one kind. Draw them in two calls"
        )
    quantity = logs[0].quantity

    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    handles = []
    for log, style in zip(logs, line_styles(len(logs)), strict=True):
        for axes, x in zip(panels, (log.steps, log.minutes), strict=True):
            (line,) = axes.plot(x, log.mean, **style, label=log.name)
            if quantity == "success":
                axes.plot(x, log.evaluated, "o", color=style["color"], ms=3.5)
            if 0 < log.searched < len(x):
                axes.axvline(x[log.searched - 1], color=style["color"], lw=0.6, ls="--", zorder=0)
        handles.append(line)
    for axes, label in zip(panels, ("env steps", "minutes"), strict=True):
        dress(axes, ticks=5)
        axes.set_xlabel(label, size=8, color=INK)
        if quantity == "success":
            axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel(f"mean {quantity} during training", size=8, color=INK)
    legend(figure, handles)
    return figure


def draw_tasks(log: SuccessLog) -> Figure:
    """Draw the success, or return, of each task over env steps, one panel per task."""
    from matplotlib.figure import Figure

    rates = log.quantity == "success"
    columns = min(len(log.tasks), 5)
    rows = math.ceil(len(log.tasks) / columns)
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.1 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=rates)
    for axes, (task, values) in zip(panels.flat, log.tasks.items(), strict=False):
        axes.plot(log.steps, values, color=COLOURS["CoNAL"], lw=1.2)
        if rates:
            axes.axhline(1, color=FAINT, lw=0.5, zorder=0)
            axes.set_ylim(-0.05, 1.05)
        axes.set_title(task, size=6.5, color=INK, pad=2, parse_math=False)
        dress(axes, ticks=2)
    for axes in list(panels.flat)[len(log.tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("env steps", size=8, color=INK)
    figure.supylabel(f"{log.quantity} during training", size=8, color=INK)
    return figure
