"""A comparison of methods on one of the two small data sets that packages contain.

Every run is a separate `python -m conal_rl.train`, and a later call uses its folder again.

All final trees train for the same number of steps. A search of CoNAL-Pro ends early if all tasks
are settled. Its tree then trains once more, from scratch and for this number of steps.

RLW and the aggregations train on the trees of CoNAL's search of the same seed. A search always sums
the losses, so they do not have their own search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from conal_rl.benchmarks.study import finish, run_all, slug
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.core import Tree
from conal_rl.errors import CheckpointError
from conal_rl.files import read_json
from conal_rl.reports.run_data import read_phase
from conal_rl.supervised.metrics import delta_p

AGAIN = "trained for as long"
COUNTED = ["--agent.conflict-rule", "none"]  # count conflicts, but drop no gradients
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
    """The result of one run.

    Attributes:
        scores: The scores on the test part, by task and metric.
        parameters: The number of the encoder's parameters.
        conflicts: The share of negative cosines between tasks during the final tree's training.
            It is NaN if no module is shared, or if they were not counted.
        seconds: The time of the whole run.
        search_steps: Steps of the search.
        search_seconds: Time of the search.
        tree: The final tree.
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
    """Make the missing runs, and return the tables.

    Args:
        name: The name of the data set, which is also its preset's.
        seeds: Seeds of training.
        jobs: The number of runs at the same time.
        folder: The folder of the runs.
        options: Options of `python -m conal_rl.train` for all runs.

    Raises:
        ConalError: A run failed, or a folder has a run of different settings.
    """
    config = load_config(name, options)
    assert isinstance(config, SupervisedConfig)
    run_all(lambda seed: _run_seed(config, seed, folder, options), seeds, jobs)
    results = {method: [_read(folder, method, seed) for seed in seeds] for method in METHODS}
    return [comparison(name, results), scores_table(results), trees_table(results, seeds)]


def _run_seed(config: SupervisedConfig, seed: int, folder: Path, options: Sequence[str]) -> None:
    training = str(config.total_steps - config.search.steps)
    for method, method_options in METHODS.items():
        searched = str(folder / slug("CoNAL", seed) / "tree.json")
        words = [searched if word == "CoNAL" else word for word in method_options]
        if "--agent.tree" in words:
            words += ["--total-steps", training]
        command = [config.name, "--seed", str(seed), *options, *words]
        run, what = folder / slug(method, seed), f"{method}, seed {seed}"
        finish(run, command, what)
        if 0 < read(run).search_steps < config.search.steps:  # its tree trained for more steps
            again = [*command, "--agent.tree", str(run / "tree.json"), "--total-steps", training]
            finish(folder / slug(f"{method} {AGAIN}", seed), again, f"{what}, {AGAIN}")


def _read(folder: Path, method: str, seed: int) -> Result:
    result, again = read(folder / slug(method, seed)), folder / slug(f"{method} {AGAIN}", seed)
    if not (again / "evaluation.json").is_file():
        return result
    final = read(again)
    return final._replace(seconds=result.search_seconds + final.seconds)


def read(run: Path) -> Result:
    """Return the result of a finished run.

    Raises:
        CheckpointError: A file of the run is damaged.
    """
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
            f"{run}: got no or damaged evaluation.json or tree.json, expected both. "
            "Remove the run, or use a different --out"
        ) from error


def comparison(name: str, results: Mapping[str, Sequence[Result]]) -> Table:
    """Return delta_p against STL's mean, with 95% intervals (Student's t) over the seeds."""
    reference = mean_scores(results["STL"])
    count = len(results["STL"])
    rows = Table(
        title=f"{name}, {count} seeds",
        caption="delta_p: change against the mean of STL. "
        "Negative: share of negative cosines during the final tree's training.",
        box=box.SIMPLE_HEAD,
    )
    headings = ("method", "delta_p (%)", "95% interval", "encoder", "negative", "seconds")
    for heading in headings:
        rows.add_column(heading, justify="left" if heading == "method" else "right")
    for method, runs in results.items():
        values = [delta_p(result.scores, reference) for result in runs]
        low, high = interval(values)
        conflicts = [r.conflicts for r in runs if np.isfinite(r.conflicts)]
        rows.add_row(
            method,
            f"{fmean(values):+.2f}",
            f"{low:+.2f} .. {high:+.2f}",
            f"{fmean(result.parameters for result in runs):,.0f}",
            f"{fmean(conflicts):.2f}" if conflicts else "-",
            f"{fmean(result.seconds for result in runs):.0f}",
        )
    return rows


def scores_table(results: Mapping[str, Sequence[Result]]) -> Table:
    """Return every metric of every task, as the mean over the seeds."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("method")
    for task, metrics in results["STL"][0].scores.items():
        for metric in metrics:
            rows.add_column(f"{task}\n{metric}".replace("_", " "), justify="right")
    for method, runs in results.items():
        means = mean_scores(runs)
        rows.add_row(method, *(f"{v:.3f}" for metrics in means.values() for v in metrics.values()))
    return rows


def trees_table(results: Mapping[str, Sequence[Result]], seeds: Sequence[int]) -> Table:
    """Return the learnt trees: for each layer, the module of every task in the tasks' order."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("method")
    for seed in seeds:
        rows.add_column(f"seed {seed}")
    for method, runs in results.items():
        if method not in ("STL", "HPS") and "+" not in method:
            trees = [result.tree for result in runs]
            rows.add_row(method, *(" ".join("".join(map(str, x)) for x in t.layers) for t in trees))
    return rows


def mean_scores(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the mean over the runs of every score."""
    return {
        task: {metric: fmean(r.scores[task][metric] for r in results) for metric in metrics}
        for task, metrics in results[0].scores.items()
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean by Student's t. It is infinite for a single value."""
    from scipy import stats

    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.inf
    half = float(stats.t.ppf(0.975, max(len(values) - 1, 1))) * spread
    return fmean(values) - half, fmean(values) + half
