"""The figures of success during training, over env steps and over minutes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conal_rl.config import AnyConfig
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.files import read_json, read_rows
from conal_rl.reports.run_data import Array, Curve, method_label
from conal_rl.reports.seeds import Line, draw_band, lines, styles, title
from conal_rl.reports.style import COLOURS, FAINT, INK, SEARCH_ENDS, dress, legend, name_figure
from conal_rl.runs.folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINDOW = 5
"""Lines of the log that a point of a smoothed curve averages."""
_FAINT: dict[str, Any] = {"lw": 0.6, "alpha": 0.35}
_FINAL: dict[str, Any] = {"marker": "D", "ms": 4, "ls": "none", "clip_on": False, "zorder": 4}


class Final(NamedTuple):
    """The evaluation at the end of a run."""

    steps: float
    minutes: float
    mean: float  # NaN if no task has a value
    tasks: dict[str, float]  # in the suite's order


@dataclass(frozen=True)
class SuccessLog:
    """The success columns of progress.csv, or its returns if its tasks report no success.

    Each array is `(line,)`. A value is NaN if the line does not give it.

    Attributes:
        name: the run's name.
        config: the run's config.
        steps: env steps, summed over all tasks.
        minutes: wall-clock minutes of the whole run, including the search.
        tasks: for each task the share of successes among its latest training episodes, in the
            suite's order. Their actions are noisy.
        evaluated: mean success of deterministic actions, from evaluations during training. NaN if
            `tasks` has returns.
        quantity: "success", or "return": `tasks` then has the mean returns.
        searched: number of lines of the search, the first ones.
        final: the evaluation of the final weights; None before it.
    """

    name: str
    config: AnyConfig
    steps: Array
    minutes: Array
    tasks: dict[str, Array]
    evaluated: Array
    quantity: str
    searched: int
    final: Final | None

    @property
    def method(self) -> str:
        """The label of the method, such as "CoNAL" or "HPS"."""
        return method_label(self.config)

    @property
    def mean(self) -> Array:
        """The mean over the tasks; NaN until every task has finished an episode."""
        return np.mean(list(self.tasks.values()), axis=0)

    @property
    def is_smoothed(self) -> bool:
        """Whether the log has enough lines for curves of means."""
        return len(self.steps) >= 4 * _WINDOW

    def smoothed(self, values: Array) -> Array:
        """Return centred means over five lines `(line,)`; search and training do not mix."""
        if not self.is_smoothed:
            return values
        means = np.full_like(values, np.nan)
        for part in (slice(0, self.searched), slice(self.searched, None)):
            known = np.isfinite(values[part])
            kernel = np.ones(min(_WINDOW, max(len(known), 1)))
            if len(known):
                total = np.convolve(np.where(known, values[part], 0.0), kernel, "same")
                count = np.convolve(known.astype(float), kernel, "same")
                means[part] = np.where(known, total / np.maximum(count, 1.0), np.nan)
        return means


def read_success(folder: Path, name: str) -> SuccessLog:
    """Read a run's progress.csv, its config and its final evaluation.

    Raises:
        CheckpointError: a file is missing or damaged, or has neither success nor returns.
        ConfigError: the run's config is missing or damaged.
    """
    run = Run(folder)
    path = run.progress_path
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
        steps = column("time/total_timesteps")
        tasks = {key.partition("/")[2]: column(key) for key in names}
        minutes, evaluated = column("time/minutes"), column("evaluation/mean_success")
    except ValueError as error:
        raise _damaged(path, error) from error
    final = _read_final(run, quantity)
    order = [task for task in (final.tasks if final else ()) if task in tasks]
    tasks = {task: tasks[task] for task in [*order, *(t for t in tasks if t not in order)]}
    searched = _searched(run, rows, steps)
    return SuccessLog(
        name, run.config(), steps, minutes, tasks, evaluated, quantity, searched, final
    )


def _searched(run: Run, rows: Sequence[dict[str, str]], steps: Array) -> int:
    """Return the number of lines of the search; an older run's log does not say it."""
    if rows and "phase" in rows[0]:
        lines = (number for number, row in enumerate(rows, 1) if row["phase"] == "search")
        return max(lines, default=0)  # an older run's lines before its resume name no phase
    path = run.folder / "search.json"
    content = read_json(path) if path.exists() else {}
    try:
        return int((steps <= content.get("steps", 0)).sum())
    except (AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


def _read_final(run: Run, quantity: str) -> Final | None:
    if not run.evaluation_path.exists():
        return None
    content = read_json(run.evaluation_path)
    try:
        values = content["success" if quantity == "success" else "returns"]
        tasks = {task: math.nan if v is None else float(v) for task, v in values.items()}
        known = [value for value in tasks.values() if math.isfinite(value)]
        mean = float(np.mean(known)) if known else math.nan
        return Final(float(content["steps"]), float(content["seconds"]) / 60, mean, tasks)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(run.evaluation_path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: got a damaged file ({error}), expected metrics of a run. Give a different run"
    )


def draw_success(
    logs: Sequence[SuccessLog], groups: Sequence[Line[SuccessLog]] | None = None
) -> Figure:
    """Draw the runs' mean success over env steps and over minutes.

    Runs that differ only in their seeds become one line: their mean, in a band from lowest to
    highest. Curves of at least 20 lines are means over five lines of the log. Dots are evaluations
    during training, and diamonds are final evaluations. Returns are drawn for tasks that report no
    success.

    Args:
        logs: the runs.
        groups: the runs by line, if not by their settings.

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
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    drawn = lines(logs) if groups is None else groups
    line_styles = styles(drawn)
    for axes, label in zip(panels, ("env steps", "minutes"), strict=True):
        for line, style in zip(drawn, line_styles, strict=True):
            _draw_line(axes, line, style, label)
        dress(axes, ticks=5)
        axes.set_xlabel(label, size=8, color=INK)
        if quantity == "success":
            axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel(f"mean {quantity} during training", size=8, color=INK)
    handles = [
        panels[0].plot([], [], **style, label=line.label)[0]
        for line, style in zip(drawn, line_styles, strict=True)
    ]
    bands, singles = (any((len(line.runs) > 1) is many for line in drawn) for many in (True, False))
    legend(figure, handles + _marks(logs), _caption(title(logs), logs, bands, singles))
    return figure


def _draw_line(axes: Axes, line: Line[SuccessLog], style: dict[str, Any], label: str) -> None:
    """Draw the runs of a line over env steps or minutes, with their searches and evaluations."""
    curves = []
    for log in line.runs:
        x = log.steps if label == "env steps" else log.minutes
        known = np.isfinite(x)
        curves.append(Curve(x[known], log.smoothed(log.mean)[known]))
        if log.is_smoothed and len(line.runs) == 1:
            axes.plot(x, log.mean, color=style["color"], **_FAINT)
        if np.isfinite(log.evaluated).any():
            axes.plot(x, log.evaluated, "o", color=style["color"], ms=3)
        _end_search(axes, log, x, style["color"])
        if log.final is not None:
            at = log.final.steps if label == "env steps" else log.final.minutes
            axes.plot([at], [log.final.mean], color=style["color"], **_FINAL)
    draw_band(axes, curves, style)


def _end_search(axes: Axes, log: SuccessLog, x: Array, colour: str) -> None:
    if 0 < log.searched < len(x):
        axes.axvline(x[log.searched - 1], color=colour, zorder=0, **SEARCH_ENDS)


def _marks(logs: Sequence[SuccessLog], evaluations: bool = True) -> list[Any]:
    """Return the legend's entries for the marks that the logs have."""
    from matplotlib.lines import Line2D

    def mark(label: str, **style: Any) -> Line2D:
        return Line2D([], [], color=FAINT, label=label, **style)

    marks = []
    if any(0 < log.searched < len(log.steps) for log in logs):
        marks.append(mark("end of search", **SEARCH_ENDS))
    if evaluations and any(np.isfinite(log.evaluated).any() for log in logs):
        marks.append(mark("evaluation during training", marker="o", ms=3, ls="none"))
    if any(log.final is not None for log in logs):
        marks.append(mark("final evaluation", **_FINAL))
    return marks


def _caption(text: str, logs: Sequence[SuccessLog], bands: bool, singles: bool = True) -> str:
    parts = []
    if any(log.is_smoothed for log in logs):
        faint = "; faint: each line" if singles else ""
        parts.append(f"means over {_WINDOW} lines of the log{faint}")
    if bands:
        parts.append("band: lowest to highest seed")
    return "\n".join([text, *(["; ".join(parts)] if parts else [])])


def draw_tasks(log: SuccessLog) -> Figure:
    """Draw the success, or return, of each task over env steps, one panel per task."""
    from matplotlib.figure import Figure

    rates = log.quantity == "success"
    columns = min(len(log.tasks), 5)
    rows = math.ceil(len(log.tasks) / columns)
    width = min(max(1.5, 0.055 * max(map(len, log.tasks))), 3.0)
    figure = Figure(figsize=(max(width * columns + 0.5, 3.5), 1.1 * rows + 1.0))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=rates)
    colour = COLOURS.get(log.method, COLOURS["CoNAL"])
    for axes, (task, values) in zip(panels.flat, log.tasks.items(), strict=False):
        marker = "o" if np.isfinite(values).sum() == 1 else None  # a line needs two points
        axes.plot(log.steps, log.smoothed(values), color=colour, lw=1.2, marker=marker, ms=3)
        if log.is_smoothed:
            axes.plot(log.steps, values, color=colour, **_FAINT)
        _end_search(axes, log, log.steps, FAINT)
        if log.final is not None:
            axes.plot([log.final.steps], [log.final.tasks.get(task)], color=colour, **_FINAL)
        if rates:
            axes.axhline(1, color=FAINT, lw=0.5, zorder=0)
            axes.set_ylim(-0.05, 1.05)
        axes.set_title(task, size=6.5, color=INK, pad=2, parse_math=False)
        dress(axes, ticks=2)
    for axes in list(panels.flat)[len(log.tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("env steps", size=8, color=INK)
    figure.supylabel(f"{log.quantity} during training", size=8, color=INK)
    text, marks = _caption(title([log]), [log], bands=False), _marks([log], False)
    if marks:
        legend(figure, marks, text)
    else:
        name_figure(figure, text)
    return figure
