"""A finished run's folder as data: its rows, curve and trees for `results/`."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conal_rl.config import AnyConfig, load_config, presets
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.files import read_json, read_rows, read_text
from conal_rl.reports.result_tables import EXTRAS
from conal_rl.reports.results import (
    EpisodesRow,
    Measurement,
    MetricRow,
    MissingRow,
    Results,
    RunRow,
    SuccessRow,
    check_rows,
    csv_files,
    read_results,
    require_method,
    require_name,
    write_files,
)
from conal_rl.runs.folder import Run

CURVE_LINES = 100
_KEPT = ("success/", "return/", "evaluation/", "loss/", "score/")
_SEARCH = ("search_steps", "search_seconds")


class Label(NamedTuple):
    """Facts about a run that its folder does not contain."""

    study: str
    method: str
    machine: str
    name: str | None = None  # None: STUDY-METHOD-SEED


def add_run(folder: Path, results_folder: Path, label: Label) -> str:
    """Add a finished run to a results folder, and return the run's name there.

    It writes the run's line of runs.csv, its lines of success.csv and episodes.csv or of
    metrics.csv, a curve of about 100 lines, and its trees. It writes all of them or nothing.

    Raises:
        ConfigError: the label or the results folder is wrong, or the name is taken.
        CheckpointError: `folder` is not a finished run, or a file in it is damaged.
    """
    require_name("--study", label.study)
    require_method("--method", label.method)
    run = Run(folder)
    report, config = _finished(run)
    name = label.name or f"{label.study}-{label.method}-{config.seed}"
    require_name("--name", name)
    with _alone(results_folder):
        before = read_results(results_folder)
        if name in before.by_name:
            raise ConfigError(
                f"--name: got {name!r}, expected a name that runs.csv does not have. "
                "Give a different name"
            )
        try:
            after = _with(before, run, report, config, label, name)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder}: got a damaged run ({reason}), expected a finished one. "
                "Restore its files, or resume the run"
            ) from error
        check_rows(after)
        files = csv_files(after)
        for path, text in (
            (after.tree_path(name), _trees(run)),
            (after.curve_path(name), _curve(run)),
        ):
            if text is not None:
                files[path] = text
        write_files(files)
    return name


def _finished(run: Run) -> tuple[Mapping[str, Any], AnyConfig]:
    if not run.evaluation_path.is_file():
        raise CheckpointError(
            f"{run.evaluation_path}: got no file, expected a finished run. Let the run end"
        )
    report = read_json(run.evaluation_path)
    if not isinstance(report, dict) or not {"success", "scores"} & report.keys():
        raise CheckpointError(
            f"{run.evaluation_path}: got no success or scores, expected those of tasks. "
            "Evaluate the run again"
        )
    if str(report.get("suite")).startswith("mt") and report.get("engine") != "official":
        raise CheckpointError(
            f"{run.evaluation_path}: engine: got {report.get('engine')!r}, expected 'official'. "
            "Evaluate the run with the official engine"
        )
    return report, run.config()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let processes that add runs at the same time wait for each other."""
    import fcntl  # imported here because Windows lacks it

    if not folder.is_dir():
        raise ConfigError(
            f"--results: got {folder}, expected a folder with runs.csv. "
            "Give the results folder of a checkout"
        )
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _with(
    before: Results,
    run: Run,
    report: Mapping[str, Any],
    config: AnyConfig,
    label: Label,
    name: str,
) -> Results:
    versions = read_json(run.folder / "versions.json")
    row = RunRow(
        run=name,
        study=label.study,
        method=label.method,
        seed=config.seed,
        commit=str(versions["commit"] or ""),
        machine=label.machine,
        steps=int(report["steps"]),
        seconds=float(report["seconds"]),
        overrides=overrides(config, f"results/trees/{name}.json"),
    )
    reason = "the run left no such file"
    kept = (("trees", run.tree_path), ("curve", run.progress_path))
    missing = [MissingRow(name, what, reason) for what, path in kept if not path.is_file()]
    ended = datetime.fromtimestamp(run.evaluation_path.stat().st_mtime, timezone.utc)
    date = ended.date().isoformat()
    extras = [
        Measurement(EXTRAS, name, key, str(report[key]), row.commit, row.machine, date)
        for key in _SEARCH
        if report.get(key)
    ]
    return replace(
        before,
        runs=(*before.runs, row),
        success=(*before.success, *success_rows(name, "final", report)),
        episodes=(*before.episodes, *episodes_rows(name, "final", report)),
        metrics=(*before.metrics, *_metrics(name, report)),
        measurements=(*before.measurements, *extras),
        missing=(*before.missing, *missing),
    )


def success_rows(run: str, weights: str, report: Mapping[str, Any]) -> list[SuccessRow]:
    """Return an evaluation.json as lines of success.csv; a supervised run has no lines."""
    episodes = report.get("episodes_per_task", 0)
    return [
        SuccessRow(
            run,
            weights,
            task,
            episodes,
            None if rate is None else round(rate * episodes),
            float(report["returns"][task]),
        )
        for task, rate in report.get("success", {}).items()
    ]


def episodes_rows(run: str, weights: str, report: Mapping[str, Any]) -> list[EpisodesRow]:
    """Return the lines of episodes.csv: each episode's outcome, for tasks that define success."""
    return [
        EpisodesRow(run, weights, task, "".join("01"[bool(outcome)] for outcome in outcomes))
        for task, outcomes in report.get("episodes", {}).items()
    ]


def _metrics(run: str, report: Mapping[str, Any]) -> list[MetricRow]:
    rows = [
        MetricRow(run, "test", task, metric, float(value))
        for task, metrics in report.get("scores", {}).items()
        for metric, value in metrics.items()
        if value is not None
    ]
    sizes = report.get("parameters", {}).items() if rows else ()
    return [*rows, *(MetricRow(run, "network", part, "parameters", n) for part, n in sizes)]


def overrides(config: AnyConfig, trees: str) -> str:
    """Return the words after `train` that repeat a run, without its seed and folder.

    The preset comes first, then every option by which the run differs from it.

    Args:
        config: the config of the run.
        trees: the file that `--agent.tree` names, if the run had a file.

    Raises:
        ConfigError: the config is not based on a preset of its name.
    """
    if config.name not in presets():
        raise ConfigError(
            f"name: got {config.name!r}, expected a preset, one of {', '.join(presets())}. "
            "Write the preset's name into the run's config.yaml"
        )
    words = [config.name]
    searches = config.agent.tree == "search"
    as_long = load_config(config.name, ["--total-steps", str(config.total_steps)])
    for path, (value, _) in config.differences(load_config(config.name)).items():
        if path == "log_interval" and value == as_long.log_interval:
            continue  # it follows from total_steps
        if path == "agent.tree" and str(value).endswith(".json"):
            value = trees
        matters = path not in ("seed", "device") and (searches or not path.startswith("search."))
        if matters:
            words += _option(path.replace("_", "-"), value)
    return " ".join(words)


def _option(path: str, value: Any) -> list[str]:
    section, _, name = path.rpartition(".")
    if value is False:
        return [f"--{section}.no-{name}" if section else f"--no-{name}"]
    if value is True:
        return [f"--{path}"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{path}", *map(_word, values)]


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "none" if value is None else str(value)


def _trees(run: Run) -> str | None:
    if not run.tree_path.is_file():
        return None
    read_json(run.tree_path)
    return read_text(run.tree_path)


def _curve(run: Run) -> str | None:
    """Return about 100 evenly spaced lines of progress.csv, and every line of an evaluation."""
    path = run.progress_path
    if not path.is_file():
        return None
    try:
        return thinned(read_rows(path))
    except (ArithmeticError, csv.Error, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: got a damaged file ({error}), expected the log of a run. Restore the file"
        ) from error


def thinned(lines: Sequence[Mapping[str, str]]) -> str:
    """Return the text of a curve's file, from the lines of a progress.csv.

    Raises:
        LookupError, ValueError: the lines are not from a run.
    """
    evaluated = {i for i, x in enumerate(lines) if x.get("evaluation/mean_success")}
    last = len(lines) - 1
    even = {round(i) for i in np.linspace(0, last, min(CURVE_LINES, len(lines)))}
    names = sorted(name for name in lines[0] if name and name.startswith(_KEPT))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["steps", "minutes", *names])
    for i in sorted(even | evaluated):
        steps = round(float(lines[i]["time/total_timesteps"]))
        cells = (lines[i].get(name) for name in ("time/minutes", *names))
        writer.writerow([steps, *map(_digits, cells)])
    return text.getvalue()


def _digits(cell: str | None) -> str:
    """Return a number with six digits, enough for a curve."""
    value = float(cell) if cell else math.nan
    return f"{value:.6g}" if math.isfinite(value) else ""
