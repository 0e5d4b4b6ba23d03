"""Tables in Markdown from the data of `results/`, each named by its kind and a study.

`table("seeds mt10", results)` has a column for every run of the study mt10. A new study needs no
code here. Rates are means over tasks per seed, then over seeds, with a 95% t interval over seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np

from conal_rl.errors import ConfigError
from conal_rl.files import read_rows
from conal_rl.reports.results import MetricRow, Results, RunRow

Lines = list[str]
EXTRAS = "runs"
"""The table of measurements.csv with figures of runs for which runs.csv lacks a column."""
_EXTRA_ROWS = {
    "search_updates": "updates of the search",
    "updates": "updates of the derived agent",
    "steps_per_second": "env steps per second after the search",
    "training_success": "success in training, last 20 episodes",
}
_POINTS = 10  # points of a curve in a table


def table(name: str, results: Results) -> str:
    """Return the table of a marker's name, such as `seeds mt10`, in Markdown.

    Raises:
        ConfigError: the kind, study or run is unknown, or its data are damaged.
    """
    kind, *words = name.split()
    if kind not in KINDS:
        raise ConfigError(
            f"table: got {name!r}, expected one of {', '.join(KINDS)} and a study. "
            "Correct the marker"
        )
    make, least, most = KINDS[kind]
    if not least <= len(words) <= most:
        raise ConfigError(
            f"table: got {name!r}, expected {least} to {most} words after {kind}. "
            "Correct the marker"
        )
    return "\n".join(make(results, *words))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean by Student's t; NaN for fewer than two values."""
    from scipy import stats  # imported here because it is slow

    if len(values) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def mean_success(results: Results, run: str, weights: str = "final") -> float:
    """Return the mean over the tasks of one evaluation; NaN if it was not evaluated.

    A run whose success by task is not kept has its mean in measurements.csv.
    """
    rates = list(results.rates(run, weights).values())
    if rates:
        return fmean(rates)
    return float(results.measured(EXTRAS).get((run, "mean_success"), "nan"))


def _seeds(results: Results, study: str, weights: str = "final") -> Lines:
    runs = results.of_study(study)
    evaluated = {run.run: results.rates(run.run, weights) for run in runs}
    tasks = list(dict.fromkeys(task for rates in evaluated.values() for task in rates))
    rows = [
        ["commit", *(_commit(run.commit) for run in runs)],
        ["machine", *(run.machine or "-" for run in runs)],
        ["env steps", *(_whole(run.steps) for run in runs)],
        ["minutes of the search", *(_minutes(_search_seconds(results, run)) for run in runs)],
        ["minutes in all", *(_minutes(run.seconds) for run in runs)],
        *_extra_rows(results, runs),
        *([task, *(_rate(evaluated[run.run].get(task)) for run in runs)] for task in tasks),
        ["**mean**", *(f"**{_mean(results, run, weights)}**" for run in runs)],
        ["95% interval over the episodes", *(_over_episodes(results, r, weights) for r in runs)],
    ]
    return _markdown(["", *_labels(runs)], rows)


def _weights(results: Results, study: str) -> Lines:
    runs = results.of_study(study)
    names = {run.run: label for run, label in zip(runs, _labels(runs), strict=True)}
    pairs = list(dict.fromkeys((r.run, r.weights) for r in results.success if r.run in names))
    tasks = list(dict.fromkeys(row.task for row in results.success if row.run in names))
    rows = []
    for run, weights in pairs:
        rates = results.rates(run, weights)
        mean = f"{mean_success(results, run, weights):.3f}"
        rows.append([names[run], weights, mean, *(_rate(rates.get(task)) for task in tasks)])
    return _markdown(["run", "weights", "mean", *map(_short, tasks)], rows)


def _methods(results: Results, study: str) -> Lines:
    rows = []
    for method, runs in _by(results.of_study(study), lambda run: run.method).items():
        means = [mean_success(results, run.run) for run in runs]
        known = (run.seconds for run in runs)
        minutes = ", ".join("-" if s is None else f"{s / 60:.0f}" for s in known)
        rows.append([f"`{method}`", str(len(runs)), *_summary(means), _each(means), minutes])
    return _markdown(
        ["method", "seeds", "mean success", "95% t interval", "by seed", "minutes by seed"], rows
    )


def _tasks(results: Results, study: str) -> Lines:
    runs = results.of_study(study)
    tasks = list(dict.fromkeys(t for run in runs for t in results.rates(run.run)))
    rows = []
    for method, own in _by(runs, lambda run: run.method).items():
        if rates := [found for run in own if (found := results.rates(run.run))]:
            cells = [f"{fmean(r[task] for r in rates):.2f}" for task in tasks]
            rows.append([f"`{method}`", str(len(rates)), *cells])
    return _markdown(["method", "seeds", *map(_short, tasks)], rows)


def _choices(results: Results, study: str) -> Lines:
    runs = results.of_study(study)
    options = {run.run: _options(run) for run in runs}
    common = set.intersection(*map(set, options.values()))
    extras = results.measured(study)
    columns = list(dict.fromkeys(column for _, column in extras))
    rows = []
    for (method, changed), of_choice in _by(
        runs, lambda run: (run.method, " ".join(o for o in options[run.run] if o not in common))
    ).items():
        means = [mean_success(results, run.run) for run in of_choice]
        steps = [run.steps for run in of_choice if run.steps is not None]
        measured = [
            ", ".join(_number(extras.get((run.run, column), "-")) for run in of_choice)
            for column in columns
        ]
        rows.append(
            [
                f"`{method}`",
                f"`{changed}`" if changed else "nothing",
                ", ".join(str(run.seed) for run in of_choice),
                _each(means),
                *measured,
                f"{fmean(steps) / 1e6:.2f}M" if steps else "-",
            ]
        )
    heading = ["method", "changed", "seeds", "success by seed", *columns, "env steps (mean)"]
    return _markdown(heading, rows)


def _studies(results: Results, *studies: str) -> Lines:
    rows = []
    for study in studies:
        for method, runs in _by(results.of_study(study), lambda run: run.method).items():
            means = [mean_success(results, run.run) for run in runs]
            known = [value for value in means if math.isfinite(value)]
            rows.append(
                [
                    study,
                    f"`{method}`",
                    str(len(known)),
                    ", ".join(dict.fromkeys(_commit(run.commit) for run in runs)),
                    ", ".join(dict.fromkeys(run.machine for run in runs)),
                    *_summary(known),
                    f"{min(known):.3f}" if known else "-",
                ]
            )
    heading = ["study", "method", "seeds", "commits", "machine", "mean success"]
    return _markdown([*heading, "95% t interval", "worst seed"], rows)


def _returns(results: Results, study: str) -> Lines:
    runs = results.of_study(study)
    of_run: dict[str, dict[str, str]] = {run.run: {} for run in runs}
    for row in results.success:
        if row.run in of_run and row.weights == "final" and row.return_ is not None:
            of_run[row.run][row.task] = f"{row.return_:g}"
    tasks = list(dict.fromkeys(task for cells in of_run.values() for task in cells))
    rows = [
        [
            label,
            _commit(run.commit),
            *(of_run[run.run].get(task, "-") for task in tasks),
            "-" if run.seconds is None else f"{run.seconds:.0f}",
        ]
        for run, label in zip(runs, _labels(runs), strict=True)
    ]
    return _markdown(["", "commit", *tasks, "seconds"], rows)


def _metrics(results: Results, study: str, part: str = "test") -> Lines:
    runs = results.of_study(study)
    names = {run.run for run in runs}
    scores = [row for row in results.metrics if row.run in names and row.part == part]
    columns = list(dict.fromkeys((row.task, row.metric) for row in scores))
    rows = []
    for method, group in _by(runs, lambda run: run.method).items():
        cells = [_score(scores, {run.run for run in group}, column) for column in columns]
        rows.append([f"`{method}`", str(len(group)), *cells])
    heading = [f"{task} ({metric.replace('_', ' ')})" for task, metric in columns]
    return _markdown(["method", "seeds", *heading], rows)


def _score(rows: Sequence[MetricRow], runs: set[str], column: tuple[str, str]) -> str:
    values = [row.value for row in rows if row.run in runs and (row.task, row.metric) == column]
    if not values:
        return "-"
    least, mean, most = (_figure(x) for x in (min(values), fmean(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"


def _measured(results: Results, name: str, per: str | None = None) -> Lines:
    cells = results.measured(name)
    if not cells:
        known = ", ".join(dict.fromkeys(row.table for row in results.measurements))
        raise ConfigError(
            f"table: got {name!r}, expected one of measurements.csv: {known}. Correct the marker"
        )
    columns = list(dict.fromkeys(column for _, column in cells))
    if per is not None and per not in columns:
        raise ConfigError(
            f"table: {name}: got {per!r}, expected one of {', '.join(columns)}. Correct the marker"
        )

    def cell(row: str, column: str) -> str:
        value = cells.get((row, column))
        if value is None:
            return "-"
        text = _number(value)
        reference = None if per in (None, column) else cells.get((row, str(per)))
        return text if reference is None else f"{text} ({float(reference) / float(value):.2f})"

    rows = [[row, *(cell(row, c) for c in columns)] for row in dict.fromkeys(r for r, _ in cells)]
    return _markdown(["", *columns], rows)


def _curve(results: Results, study: str) -> Lines:
    runs = [run for run in results.of_study(study) if results.curve_path(run.run).is_file()]
    if not runs:
        raise ConfigError(
            f"table: got curve {study}, expected a study with a kept curve. Correct the marker"
        )
    rows = []
    for run, label in zip(runs, _labels(runs), strict=True):
        rows_of_run = read_rows(results.curve_path(run.run))
        lines = [line for line in rows_of_run if line.get("success/mean")]
        points = np.array([[float(x["steps"]), float(x["success/mean"])] for x in lines])
        wanted = points[-1, 0] * np.arange(1, _POINTS + 1) / _POINTS
        nearest = np.abs(points[:, :1] - wanted).argmin(0)
        cells = [f"{rate:.2f} at {steps / 1e6:.2f}M" for steps, rate in points[nearest]]
        rows.append([label, *cells])
    return _markdown(["", *(f"{100 * p // _POINTS}%" for p in range(1, _POINTS + 1))], rows)


def _trees(results: Results, run: str) -> Lines:
    from conal_rl.reports.result_trees import read_trees  # imported here because it imports torch

    lines = []
    for network, tree in read_trees(results.tree_path(run)).items():
        lines += f"{network}: {tree}".split("\n")
    return ["```", *lines, "```"]


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


Key = TypeVar("Key")


def _by(runs: Sequence[RunRow], key: Callable[[RunRow], Key]) -> dict[Key, list[RunRow]]:
    groups: dict[Key, list[RunRow]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _labels(runs: Sequence[RunRow]) -> list[str]:
    """Return seeds if all differ; otherwise the runs' names without the study's name."""
    if len({run.seed for run in runs}) == len(runs):
        return [f"seed {run.seed}" for run in runs]
    return [run.run.removeprefix(f"{run.study}-") for run in runs]


def _options(run: RunRow) -> list[str]:
    """Return a run's options one by one, without the preset and the method's options."""
    options = re.split(r" (?=--)", run.overrides)[1:]
    return [o for o in options if o not in ("--agent.tree shared", "--agent.tree independent")]


def _summary(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    low, high = (min(max(end, 0.0), 1.0) for end in t_interval(values))
    interval = "-" if len(values) < 2 else f"{low:.3f} to {high:.3f}"
    return f"{fmean(values):.4g}", interval


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" if math.isfinite(value) else "-" for value in values)


def _mean(results: Results, run: RunRow, weights: str) -> str:
    return _each([mean_success(results, run.run, weights)])


def _over_episodes(results: Results, run: RunRow, weights: str) -> str:
    from conal_rl.evaluation import mean_interval  # imported here because it imports Meta-World

    rows = [row for row in results.success if row.run == run.run and row.weights == weights]
    rates = [row.rate for row in rows if row.successes is not None]
    if not rates:
        return "-"
    low, high = mean_interval(rates, rows[0].episodes)
    return f"{low:.3f} to {high:.3f}"


def _search_seconds(results: Results, run: RunRow) -> float | None:
    value = results.measured(EXTRAS).get((run.run, "search_seconds"))
    return None if value is None else float(value)


def _extra_rows(results: Results, runs: Sequence[RunRow]) -> list[list[str]]:
    """Return rows of figures that were noted for at least one of the runs."""
    extras = results.measured(EXTRAS)
    return [
        [label, *(_number(extras.get((run.run, column), "-")) for run in runs)]
        for column, label in _EXTRA_ROWS.items()
        if any((run.run, column) in extras for run in runs)
    ]


def _number(text: str) -> str:
    """Return a number with commas between thousands."""
    return f"{int(text):,}" if text.isdigit() else text


def _commit(commit: str) -> str:
    """Return seven digits of a hash, and whether the checkout was edited."""
    return f"`{commit[:7]}{'-dirty' * commit.endswith('-dirty')}`" if commit else "-"


def _rate(rate: float | None) -> str:
    return "-" if rate is None or math.isnan(rate) else f"{rate:.2f}"


def _whole(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 60:.1f}"


def _short(task: str) -> str:
    return task.removesuffix("-v3")


KINDS: Mapping[str, tuple[Callable[..., Lines], int, int]] = {
    "seeds": (_seeds, 1, 2),
    "weights": (_weights, 1, 1),
    "methods": (_methods, 1, 1),
    "tasks": (_tasks, 1, 1),
    "choices": (_choices, 1, 1),
    "studies": (_studies, 1, 20),
    "returns": (_returns, 1, 1),
    "metrics": (_metrics, 1, 2),
    "measured": (_measured, 1, 2),
    "curve": (_curve, 1, 1),
    "trees": (_trees, 1, 1),
}
"""Kinds of tables, and the number of words after each: a study, table or run, and an option."""
