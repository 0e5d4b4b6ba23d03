"""Methods, and choices of the recipe, beside each other on MT10.

Every run is a `python -m conal_rl.train mt10` of its own, in a folder that a later call finds
again. Methods get the same env steps, those of a search included; choices of the recipe get the
same wall-clock, since what a choice costs is part of what it brings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from conal_rl.agents import ConalSAC
from conal_rl.benchmarks.one_per_task import run_one_by_one
from conal_rl.benchmarks.study import finish, slug, start
from conal_rl.config import load_config
from conal_rl.core import Tree, TreeNetwork, linear_chain
from conal_rl.core.tree_network import parameter_count
from conal_rl.errors import CheckpointError
from conal_rl.runs.files import read_json

HPS, STL = ["--agent.tree", "shared"], ["--agent.tree", "independent"]
SB3, WIDENED = "SB3's SAC, one per task", "HPS, as large as CoNAL"
ONE_BY_ONE = "STL, a run per task"
METHODS: Mapping[str, Sequence[str]] = {
    "HPS": HPS,
    "CoNAL": [],
    "STL": STL,
    "CoNAL, no noticing": ["--search.rule", "none"],
    "CoNAL, no purely-specific": ["--search.no-purely-specific", "--search.gumbel"],
    SB3: [],
    ONE_BY_ONE: STL,
    "HPS + PCGrad": [*HPS, "--agent.weighting", "pcgrad"],
    "CoNAL-Pro": ["--search.method", "conal_pro"],
    WIDENED: HPS,
    "HPS + CAGrad": [*HPS, "--agent.weighting", "cagrad"],
}
"""In the order of their importance. `WIDENED` has the parameters of its seed's CoNAL run."""

OTHERWISE = "*"
"""Marks rows with a run that is not of the present preset."""

SHORT_SEARCH = ["--agent.tree", "search", "--search.steps", "100000"]
"""The preset's would take all of a short run."""

RECIPE: Mapping[str, Sequence[str]] = {
    "HPS, the recipe": [],
    "2 envs per task": ["--env.envs-per-task", "2"],
    "16 envs per task": ["--env.envs-per-task", "16"],
    "single precision": ["--agent.no-mixed-precision"],
    "batch of 32": ["--agent.batch-size", "32"],
    "batch of 128": ["--agent.batch-size", "128"],
    "no layer norm": ["--agent.no-layer-norm"],
    "squared error": ["--agent.critic", "mse"],
    "equal bins": ["--agent.critic-linear-to", "none"],
    "actor losses as they are": ["--agent.no-normalize-actor-loss"],
    "two critics, mean": ["--agent.critics", "2"],
    "two critics, minimum": ["--agent.critics", "2", "--agent.critic-reduce", "min"],
    "1-step returns": ["--agent.n-steps", "1"],
    "3-step returns": ["--agent.n-steps", "3"],
    "returns of all tasks alike": ["--agent.normalize-returns", "--agent.reward-scale", "10"],
    "weights anew after 8,000 updates": ["--agent.reset-at", "8000"],
    "width of 400": ["--agent.widths", "400", "400", "400"],
    "entropy target of -4": ["--agent.target-entropy", "-4"],
    "entropy target of -1": ["--agent.target-entropy", "-1"],
    "step size of 1e-3": ["--agent.learning-rate", "1e-3"],
    "actor on every second update": ["--agent.actor-every", "2"],
    "newest weights of the actor": ["--agent.actor-averaging", "none"],
    "CoNAL": SHORT_SEARCH,
    "CoNAL, weights kept": [*SHORT_SEARCH, "--search.keep-weights"],
}
"""Each with one choice changed, on hard parameter sharing unless it says otherwise."""


class Result(NamedTuple):
    """One run, by the official protocol."""

    success: dict[str, float]
    steps: int
    seconds: float


Results = dict[str, list[Result]]
"""By the row of a table; a run for each seed that there is."""


def compare_methods(
    seeds: Sequence[int], jobs: int, folder: Path, steps: int, rows: Sequence[str]
) -> list[Table]:
    """Run what has not been run of these rows, and return the tables of all.

    Args:
        seeds: of training.
        jobs: runs side by side.
        folder: where the runs are.
        steps: env steps of a run over all tasks.
        rows: the methods to run; the tables show the others as far as they were run.

    Raises:
        ConalError: a run failed, or one that is there is of other settings.
    """

    # Two rows may want the same CoNAL run at the same time.
    turns = {seed: Lock() for seed in seeds}

    def common(seed: int) -> list[str]:
        return ["mt10", "--seed", str(seed), "--total-steps", str(steps)]

    def arguments_of(method: str, seed: int) -> list[str]:
        return [*common(seed), *(STL if method == SB3 else METHODS[method])]

    def run(method: str, seed: int) -> None:
        out, what = folder / slug(method, seed), f"{method}, seed {seed}"
        arguments = arguments_of(method, seed)
        if method == SB3:
            start("conal_rl.benchmarks.sb3_sac", [*common(seed), "--out", str(out)], what)
            return
        if method == ONE_BY_ONE:
            run_one_by_one(out, "mt10", METHODS[method], steps, seed, what)
            return
        if method == WIDENED:
            run("CoNAL", seed)
            widths = widened(folder / slug("CoNAL", seed))
            arguments += ["--agent.widths", *map(str, widths)]
        with turns[seed] if method == "CoNAL" else nullcontext():
            finish(out, arguments, what)

    results = _run_and_read(
        run, arguments_of, METHODS, rows, seeds, jobs, folder, total_steps=steps
    )
    return tables(results, f"MT10, {steps:,} env steps")


def compare_choices(
    seeds: Sequence[int], jobs: int, folder: Path, minutes: float, rows: Sequence[str]
) -> list[Table]:
    """The same for choices of the recipe, in `minutes` of wall-clock each."""

    def arguments_of(choice: str, seed: int) -> list[str]:
        return ["mt10", "--seed", str(seed), "--minutes", str(minutes), *HPS, *RECIPE[choice]]

    def run(choice: str, seed: int) -> None:
        out, what = folder / slug(choice, seed), f"{choice}, seed {seed}"
        finish(out, arguments_of(choice, seed), what)

    results = _run_and_read(run, arguments_of, RECIPE, rows, seeds, jobs, folder, minutes=minutes)
    return tables(results, f"MT10, {minutes:g} minutes")


def _run_and_read(
    run: Callable[[str, int], None],
    arguments_of: Callable[[str, int], list[str]],
    known: Mapping[str, Any],
    rows: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    folder: Path,
    **budget: float,
) -> Results:
    with ThreadPoolExecutor(jobs) as pool:
        # By rows, not by seeds: the rows come in the order of their importance.
        list(pool.map(lambda pair: run(*pair), [(row, seed) for row in rows for seed in seeds]))
    results: Results = {}
    for row in known:
        there = {seed: folder / slug(row, seed) / "evaluation.json" for seed in seeds}
        found = {
            seed: path
            for seed, path in there.items()
            if path.is_file() and _has_budget(path.parent, budget)
        }
        follows = {"agent.widths"} if row == WIDENED else set()  # from its seed's CoNAL run
        as_now = [_is_of(path.parent, arguments_of(row, s), follows) for s, path in found.items()]
        name = row if all(as_now) else f"{row} {OTHERWISE}"
        results[name] = [read(path) for path in found.values()]
    return results


def _is_of(run: Path, arguments: Sequence[str], follows: set[str]) -> bool:
    """Whether a run has the settings that it would have now, but for what follows from others."""
    written = run / "config.yaml"
    if not written.is_file():  # a run of each task, in folders of their own
        parts = sorted(run.glob("*/config.yaml"))
        if not parts:  # nothing says otherwise
            return True
        written, follows = parts[0], follows | {"total_steps", "env.suite"}
    now = load_config(arguments[0], arguments[1:])
    changed = now.differences(load_config(written)).keys() - follows
    if now.agent.tree != "search":
        changed = {path for path in changed if not path.startswith("search.")}
    return not changed


def _has_budget(run: Path, budget: Mapping[str, float]) -> bool:
    """Whether a run is of this budget, by its config or, of runs of each task, by its steps."""
    written = run / "config.yaml"
    if not written.is_file():
        steps = read(run / "evaluation.json").steps
        return math.isclose(steps, budget.get("total_steps", steps), rel_tol=0.01)
    config = load_config(written)
    return all(getattr(config, field) == value for field, value in budget.items())


def read(evaluation: Path) -> Result:
    """What a finished run has left. Raises CheckpointError where that is damaged."""
    report = read_json(evaluation)
    try:
        return Result(dict(report["success"]), int(report["steps"]), float(report["seconds"]))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{evaluation}: not the evaluation of a run") from error


def widened(run: Path) -> list[int]:
    """Hidden widths with which HPS has at least the parameters of a run's encoders."""
    agent = ConalSAC.load_weights(run / "model", "cpu")
    networks = (agent.actor, agent.critic)
    architecture = agent.policy.architecture
    widths = list(architecture["widths"])
    shared = Tree.shared(agent.tasks, len(widths))

    def size(widths: Sequence[int]) -> int:
        total = 0
        for network in networks:
            chain = linear_chain(network.in_features, widths, architecture["layer_norm"])
            total += network.replicas * parameter_count(TreeNetwork(shared, chain))
        return total

    wanted = sum(parameter_count(network.encoder) for network in networks)
    while size(widths) < wanted:
        widths = [width + 8 for width in widths]
    return widths


def tables(results: Results, title: str) -> list[Table]:
    """Of all rows, and of the tasks in those that there are."""
    there = {name: own for name, own in results.items() if own}
    return [summary(results, title), *([successes(there)] if there else [])]


def summary(results: Results, title: str) -> Table:
    """Mean success and its interquartile mean, with 95% intervals, and time."""
    marked = any(name.endswith(OTHERWISE) for name in results)
    otherwise = f"; {OTHERWISE}: of another recipe, see their config.yaml" * marked
    rows = Table(
        title=title,
        caption="success: official protocol, final weights; "
        "intervals: bootstrap over seeds (of two, their range)" + otherwise,
        box=box.SIMPLE_HEAD,
    )
    headings = ("run", "seeds", "mean success", "95%", "IQM", "95%", "env steps", "minutes")
    for heading in headings:
        rows.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for name, own in results.items():
        if not own:
            rows.add_row(name, "not run", *[""] * (len(headings) - 2))
            continue
        scores = np.array([list(result.success.values()) for result in own])
        cells = []
        for statistic in (np.mean, interquartile_mean):
            cells.append(f"{statistic(scores):.3f}")
            low, high = bootstrap(scores, statistic)
            cells.append(f"{low:.3f} .. {high:.3f}" if len(own) > 1 else "-")
        steps = f"{np.mean([result.steps for result in own]):,.0f}"
        minutes = f"{np.mean([result.seconds for result in own]) / 60:.0f}"
        rows.add_row(name, str(len(own)), *cells, steps, minutes)
    return rows


def successes(results: Results) -> Table:
    """Success per task, mean over the seeds."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("run", no_wrap=True)
    for task in next(iter(results.values()))[0].success:
        rows.add_column(task.removesuffix("-v3").replace("-", "\n"), justify="right")
    for name, own in results.items():
        means = np.mean([list(result.success.values()) for result in own], axis=0)
        rows.add_row(name, *(f"{mean:.2f}" for mean in means))
    return rows


def interquartile_mean(scores: NDArray[np.float64]) -> float:
    """Mean of the middle half of all scores (Agarwal et al., NeurIPS 2021)."""
    from scipy import stats

    return float(stats.trim_mean(scores, 0.25, axis=None))


def bootstrap(
    scores: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], float | np.floating[Any]],
    draws: int = 2_000,
) -> tuple[float, float]:
    """95% percentile interval of a statistic of `(seed, task)`, drawing whole runs anew.

    Agarwal et al., "Deep RL at the Edge of the Statistical Precipice" (NeurIPS 2021), section 4.1,
    draw seeds apart for each task, since there every task has runs of its own. Here the tasks of a
    seed share a run, and what it has of luck.
    """
    random = np.random.default_rng(0)
    drawn = random.integers(len(scores), size=(draws, len(scores)))
    values = [float(statistic(scores[runs])) for runs in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
