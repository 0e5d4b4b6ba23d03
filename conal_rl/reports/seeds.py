"""Runs that differ only in their seeds, as one line of a figure: their mean, in a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from conal_rl.config import AnyConfig, marked
from conal_rl.reports.run_data import Curve
from conal_rl.reports.style import COLOURS, line_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Recorded(Protocol):
    """What a report reads of one run."""

    @property
    def name(self) -> str:
        """The folder's name, made unique among the runs of one report."""
        ...

    @property
    def method(self) -> str:
        """The label of the method, such as "CoNAL" or "HPS"."""
        ...

    @property
    def config(self) -> AnyConfig:
        """The run's config."""
        ...


R = TypeVar("R", bound=Recorded)


@dataclass(frozen=True)
class Line(Generic[R]):
    """A line of a figure, with its label in the legend."""

    label: str
    runs: list[R]  # more than one: seeds of the same experiment


def title(runs: Sequence[Recorded]) -> str:
    """Return the title of a figure: the run and its method, or the names of several runs."""
    if len(runs) == 1:
        return f"{runs[0].name}: {runs[0].method}"
    return f"{', '.join(sorted({run.config.name for run in runs}))}: {len(runs)} runs"


def lines(runs: Sequence[R]) -> list[Line[R]]:
    """Group the seeds of one experiment; lines of the same method get the names of folders."""
    groups: list[list[R]] = []
    for run in runs:
        for group in groups:
            if _same_but_seed(run, group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    separated: list[list[R]] = []
    for group in groups:
        # Two runs of the same seed say nothing about the spread over seeds.
        once = len({run.config.seed for run in group}) == len(group)
        separated += [group] if once else [[run] for run in group]
    methods = [group[0].method for group in separated]
    drawn = []
    for group, method in zip(separated, methods, strict=True):
        label = method
        if methods.count(method) > 1:
            label += f", {group[0].name}"
        if len(group) > 1:
            label += f" ({len(group)} seeds)"
        drawn.append(Line(label, group))
    return drawn


def _same_but_seed(a: Recorded, b: Recorded) -> bool:
    if a.method != b.method or type(a.config) is not type(b.config):
        return False
    may_differ = marked(type(a.config), "changes_experiment", False)
    return a.config.differences(b.config).keys() <= may_differ


def styles(drawn: Sequence[Line[Any]]) -> list[dict[str, Any]]:
    """Return each method's colour if no method has two lines, otherwise a sequence of colours."""
    methods = [line.runs[0].method for line in drawn]
    if len(set(methods)) == len(methods) and set(methods) <= set(COLOURS):
        return [{"color": COLOURS[method], "lw": 1.4} for method in methods]
    return line_styles(len(drawn))


def draw_band(axes: Axes, curves: Sequence[Curve], style: dict[str, Any]) -> None:
    """Draw the mean of the seeds' curves, in a band from lowest to highest.

    At each step, only the seeds that have a value there count. A single point is a dot.
    """
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    values = np.array(
        [np.interp(steps, c.steps, c.values, left=np.nan, right=np.nan) for c in curves]
    )
    known = np.isfinite(values)
    some = known.any(axis=0)
    if len(curves) > 1:
        low = np.where(some, np.where(known, values, np.inf).min(axis=0), np.nan)
        high = np.where(some, np.where(known, values, -np.inf).max(axis=0), np.nan)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, lw=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean = np.where(some, total / np.maximum(known.sum(axis=0), 1), np.nan)
    axes.plot(steps, mean, **style, marker="o" if some.sum() == 1 else None, ms=3)
