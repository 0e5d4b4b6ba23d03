"""Two groups of runs in one table: their outcomes, the difference and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from conal_rl.cli import seed_ranges
from conal_rl.config import marked
from conal_rl.errors import ConfigError
from conal_rl.evaluation.comparison import (
    Difference,
    bootstrap_coverage,
    compare,
    improvement,
    improvement_interval,
    mean_over_runs,
)
from conal_rl.evaluation.intervals import Interval
from conal_rl.reports.seeds import Line
from conal_rl.reports.success import SuccessLog


@dataclass(frozen=True)
class Comparison:
    """What two groups of finished runs have reached in the final evaluation.

    Attributes:
        lines: The runs of A and of B, with the names of the groups. If `paired`, in the order of
            their seeds.
        tasks: The tasks whose mean is a run's outcome.
        paired: Whether runs of the same seed belong together.
    """

    lines: tuple[Line[SuccessLog], Line[SuccessLog]]
    tasks: tuple[str, ...]
    paired: bool

    @property
    def quantity(self) -> str:
        """The outcome: "success", or "return"."""
        return self.lines[0].runs[0].quantity

    def outcomes(self, group: int, task: str | None = None) -> list[float]:
        """Return one number per run: the mean over the tasks, or that of one task."""
        tasks = self.tasks if task is None else (task,)
        return [
            float(np.mean([log.final.tasks[task] for task in tasks]))
            for log in self.lines[group].runs
            if log.final is not None
        ]

    @property
    def difference(self) -> Difference:
        """A's mean minus B's."""
        return compare(self.outcomes(0), self.outcomes(1), self.paired)

    @property
    def remarks(self) -> list[str]:
        """What else differs: settings within a group, budgets and evaluations."""
        remarks = []
        for line in self.lines:
            first, *rest = (log.config for log in line.runs)
            may_differ = marked(type(first), "changes_experiment", False)
            changed = {path for config in rest for path in first.differences(config)} - may_differ
            if changed:
                remarks.append(f"{line.label}: its runs differ in {', '.join(sorted(changed))}.")
        steps = [{round(log.final.steps) for log in line.runs if log.final} for line in self.lines]
        if steps[0] != steps[1]:
            given = (" or ".join(f"{number:,}" for number in sorted(part)) for part in steps)
            remarks.append("The groups have different env steps: " + ", and ".join(given) + ".")
        return remarks


def read_comparison(
    a: Sequence[SuccessLog], b: Sequence[SuccessLog], tasks: Sequence[str], paired: bool
) -> Comparison:
    """Check that the runs can be compared, and name the groups.

    Args:
        a, b: The runs of both groups.
        tasks: The tasks that count; all, if it is empty.
        paired: Whether runs of the same seed belong together.

    Raises:
        ConfigError: A run is not finished, or its tasks or their quantity are not those of the
            others, or a pair is incomplete.
    """
    first = a[0]
    for log in (*a, *b):
        if log.final is None:
            raise ConfigError(
                f"{log.name}: got no evaluation.json, expected a finished run. "
                "Finish it with train --resume"
            )
        if log.quantity != first.quantity or log.final.tasks.keys() != first.tasks.keys():
            raise ConfigError(
                f"{log.name}: got {log.quantity} of {', '.join(log.final.tasks)}, expected "
                f"{first.quantity} of {', '.join(first.tasks)}, as {first.name} has. "
                "Compare runs of the same tasks"
            )
    unknown = [task for task in tasks if task not in first.tasks]
    if unknown:
        raise ConfigError(
            f"--tasks: got {unknown[0]}, expected some of {', '.join(first.tasks)}. Correct it"
        )
    if paired:
        seeds = [[log.config.seed for log in logs] for logs in (a, b)]
        if sorted(seeds[0]) != sorted(set(seeds[1])) or len(seeds[1]) != len(set(seeds[1])):
            raise ConfigError(
                f"--paired: got the seeds {seed_ranges(seeds[0])} and {seed_ranges(seeds[1])}, "
                "expected every seed once on both sides. Leave out --paired"
            )
        a, b = (sorted(logs, key=lambda log: log.config.seed) for logs in (a, b))
    names = [logs[0].method for logs in (a, b)]
    if names[0] == names[1]:
        names = [logs[0].name for logs in (a, b)]
    lines = [
        Line(f"{side}: {name} ({len(logs)} run{'s' * (len(logs) > 1)})", list(logs))
        for side, name, logs in zip("AB", names, (a, b), strict=True)
    ]
    chosen = tuple(task for task in first.tasks if task in (tasks or first.tasks))
    return Comparison((lines[0], lines[1]), chosen, paired)


def tables(comparison: Comparison) -> list[Table]:
    """Return the groups' outcomes, their tasks, and the difference with its verdict."""
    return [_groups(comparison), _tasks(comparison), _difference(comparison)]


def _groups(comparison: Comparison) -> Table:
    of = f"{len(comparison.tasks)} task{'s' * (len(comparison.tasks) > 1)}"
    rows = _table(f"mean {comparison.quantity} of {of}, final evaluation")
    for heading in ("group", "seeds", "mean", "95% t interval", "lowest", "highest"):
        rows.add_column(heading, justify="left" if heading in ("group", "seeds") else "right")
    for number, line in enumerate(comparison.lines):
        outcomes = comparison.outcomes(number)
        mean, interval = mean_over_runs(outcomes)
        seeds = seed_ranges([log.config.seed for log in line.runs])
        rows.add_row(
            Text(line.label),
            seeds,
            *(_number(mean), _interval(interval)),
            *(_number(min(outcomes)), _number(max(outcomes))),
        )
    return rows


def _tasks(comparison: Comparison) -> Table:
    rows = _table(f"mean {comparison.quantity} by task")
    for heading in ("task", "A", "B", "A - B", "95% interval"):
        rows.add_column(heading, justify="left" if heading == "task" else "right")
    for task in comparison.tasks:
        a, b = comparison.outcomes(0, task), comparison.outcomes(1, task)
        gap = compare(a, b, comparison.paired)
        cells = (_number(float(np.mean(a))), _number(float(np.mean(b))), _signed(gap.value))
        rows.add_row(Text(task), *cells, _interval(gap.interval95, _signed))
    return rows


def _difference(comparison: Comparison) -> Table:
    gap = comparison.difference
    a, b = comparison.outcomes(0), comparison.outcomes(1)
    test = "paired t" if comparison.paired else "Welch's t"
    rows = _table("A - B", show_header=False)
    rows.add_column()
    rows.add_column()
    rows.add_row("difference of the means", _signed(gap.value))
    if gap.interval95 is not None and gap.detectable is not None:
        rows.add_row("95% interval", f"{_interval(gap.interval95, _signed)} ({test})")
        rows.add_row("90% interval", _interval(gap.interval90, _signed))
        rows.add_row("p", f"{gap.p:.3g}")
        rows.add_row(
            "could be seen",
            f"a difference of {_number(gap.detectable)}, in 80% of such comparisons",
        )
    better = improvement(a, b, comparison.paired)
    rows.add_row("probability of improvement", f"{better:.2f}")
    if gap.interval95 is not None:
        ends = _interval(improvement_interval(a, b, comparison.paired), "{:.2f}".format)
        covers = bootstrap_coverage(len(a), len(b), comparison.paired)
        rows.add_row(
            "its 95% interval",
            f"{ends} (bootstrap over runs; with so few runs it covers {covers:.0%} in simulations)",
        )
    if comparison.quantity == "success":
        rows.add_row("verdict", gap.verdict())
    for remark in comparison.remarks:
        rows.add_row("remark", Text(remark))
    return rows


def _table(title: str, show_header: bool = True) -> Table:
    return Table(
        title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_header=show_header, min_width=40
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"


def _interval(ends: Interval | None, form: Callable[[float], str] = _number) -> str:
    return "-" if ends is None else f"{form(ends[0])} .. {form(ends[1])}"
