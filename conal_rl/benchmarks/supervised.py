"""Methods beside each other on one of the two small data sets that ship inside packages.

Every run is a `python -m conal_rl.train` of its own, in a folder that a later call finds again.
All final trees train for as long: fixed ones as long as derived ones do, and where a search of
CoNAL-Pro has ended early, as all tasks were settled, its tree is trained anew for that long. RLW
and aggregations retrain the trees that CoNAL's search of the same seed has derived: in the search
the losses are summed in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from conal_rl.benchmarks.study import finish, slug
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.core import Tree
from conal_rl.errors import CheckpointError
from conal_rl.reports.run_data import read_phase
from conal_rl.runs.files import read_json
from conal_rl.supervised.metrics import delta_p

AGAIN = "trained for as long"
COUNTED = ["--agent.conflict-rule", "none"]  # conflicts are counted, nothing is dropped
METHODS: Mapping[str, Sequence[str]] = {
    "STL": ["--agent.tree", "independent"],
    "HPS": ["--agent.tree", "shared", *COUNTED],
    "LTB": ["--search.method", "ltb", *COUNTED],
    "Recon": ["--search.method", "recon", *COUNTED],
    "CoNAL": COUNTED,
    "CoNAL-Pro": ["--search.method", "conal_pro", *COUNTED],
    "CoNAL, no noticing": ["--search.rule", "none", *COUNTED],
    "CoNAL, decay": ["--search.specific-decay", "1", *COUNTED],
    "CoNAL-Pro, decay": ["--search.method", "conal_pro", "--search.specific-decay", "1", *COUNTED],
    "CoNAL + RLW": ["--agent.tree", "CoNAL", "--agent.weighting", "random"],
    "CoNAL + UPGrad": ["--agent.tree", "CoNAL", "--agent.weighting", "upgrad"],
    "CoNAL + CAGrad": ["--agent.tree", "CoNAL", "--agent.weighting", "cagrad"],
}


class Result(NamedTuple):
    """One run.

    Attributes:
        scores: per task and metric, on the test part.
        parameters: of the encoder.
        conflicts: share of negative cosines between tasks while the final tree trained; NaN where
            nothing is shared, or they were not counted.
    """

    scores: dict[str, dict[str, float]]
    parameters: int
    conflicts: float
    seconds: float
    search_steps: int
    search_seconds: float
    tree: Tree


def measure(
    name: str, seeds: Sequence[int], jobs: int, folder: Path, options: Sequence[str] = ()
) -> list[Table]:
    """Run what has not been run yet, and return the tables.

    Args:
        name: of the data set and its preset.
        jobs: runs side by side.
        folder: where the runs are.
        options: of `python -m conal_rl.train`, for all of them.

    Raises:
        ConalError: a run failed.
    """
    config = load_config(name, options)
    assert isinstance(config, SupervisedConfig)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda seed: _run_seed(config, seed, folder, options), seeds))
    results = {method: [_read(folder, method, seed) for seed in seeds] for method in METHODS}
    return [comparison(name, results), scores_table(results), trees_table(results, seeds)]


def _run_seed(config: SupervisedConfig, seed: int, folder: Path, options: Sequence[str]) -> None:
    training = str(config.total_steps - config.search.steps)
    for method, own in METHODS.items():
        searched = str(folder / slug("CoNAL", seed) / "tree.json")
        words = [searched if word == "CoNAL" else word for word in own]
        if "--agent.tree" in words:
            words += ["--total-steps", training]
        command = [config.name, "--seed", str(seed), *options, *words]
        run, what = folder / slug(method, seed), f"{method}, seed {seed}"
        finish(run, command, what)
        if 0 < read(run).search_steps < config.search.steps:  # the rest went into training
            again = [*command, "--agent.tree", str(run / "tree.json"), "--total-steps", training]
            finish(folder / slug(f"{method} {AGAIN}", seed), again, f"{what}, {AGAIN}")


def _read(folder: Path, method: str, seed: int) -> Result:
    found, again = read(folder / slug(method, seed)), folder / slug(f"{method} {AGAIN}", seed)
    if not (again / "evaluation.json").is_file():
        return found
    final = read(again)
    return final._replace(seconds=found.search_seconds + final.seconds)


def read(run: Path) -> Result:
    """What a finished run has left. Raises CheckpointError where that is damaged."""
    report = read_json(run / "evaluation.json")
    training = read_phase(run / "training.json")
    shares: list[float] = []
    if training is not None and "encoder" in training.networks:
        negative = training.networks["encoder"].negative
        shares = negative[np.isfinite(negative)].tolist()
    try:
        return Result(
            report["scores"],
            report["parameters"]["encoder"],
            fmean(shares) if shares else float("nan"),
            report["seconds"],
            report["search_steps"],
            report["search_seconds"],
            Tree.load(run / "tree.json"),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{run}: its evaluation.json or tree.json is not that of a run"
        ) from error


def comparison(name: str, results: Mapping[str, Sequence[Result]]) -> Table:
    """delta_p against the mean of STL, with 95% intervals (Student's t) over the seeds."""
    reference = mean_scores(results["STL"])
    count = len(results["STL"])
    rows = Table(
        title=f"{name}, {count} seeds",
        caption="delta_p: against the mean of STL; negative: cosines while the final tree trained",
        box=box.SIMPLE_HEAD,
    )
    headings = ("method", "delta_p (%)", "95% interval", "encoder", "negative", "seconds")
    for heading in headings:
        rows.add_column(heading, justify="left" if heading == "method" else "right")
    for method, own in results.items():
        values = [delta_p(result.scores, reference) for result in own]
        low, high = interval(values)
        conflicts = [r.conflicts for r in own if np.isfinite(r.conflicts)]
        rows.add_row(
            method,
            f"{fmean(values):+.2f}",
            f"{low:+.2f} .. {high:+.2f}",
            f"{fmean(result.parameters for result in own):,.0f}",
            f"{fmean(conflicts):.2f}" if conflicts else "-",
            f"{fmean(result.seconds for result in own):.0f}",
        )
    return rows


def scores_table(results: Mapping[str, Sequence[Result]]) -> Table:
    """Every metric of every task, mean over the seeds."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("method")
    for task, metrics in results["STL"][0].scores.items():
        for metric in metrics:
            rows.add_column(f"{task}\n{metric}".replace("_", " "), justify="right")
    for method, own in results.items():
        means = mean_scores(own)
        rows.add_row(method, *(f"{v:.3f}" for metrics in means.values() for v in metrics.values()))
    return rows


def trees_table(results: Mapping[str, Sequence[Result]], seeds: Sequence[int]) -> Table:
    """The learnt trees: per layer, the module that each task runs, in the tasks' order."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("method")
    for seed in seeds:
        rows.add_column(f"seed {seed}")
    for method, own in results.items():
        if method not in ("STL", "HPS") and "+" not in method:
            trees = [result.tree for result in own]
            rows.add_row(method, *(" ".join("".join(map(str, x)) for x in t.layers) for t in trees))
    return rows


def mean_scores(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Means over runs."""
    return {
        task: {metric: fmean(r.scores[task][metric] for r in results) for metric in metrics}
        for task, metrics in results[0].scores.items()
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean by Student's t; not finite for a single value."""
    from scipy import stats

    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.inf
    half = float(stats.t.ppf(0.975, max(len(values) - 1, 1))) * spread
    return fmean(values) - half, fmean(values) + half
