"""Comparisons on MT10: of methods, and of choices of the recipe.

Every run is a separate `python -m conal_rl.train mt10`, and a later call uses its folder again.
Methods get the same number of env steps, and the steps of a search count too. Choices of the recipe
get the same wall-clock time, so a slow choice makes fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from conal_rl.benchmarks.study import finish, run_all, slug, start
from conal_rl.config import load_config, marked
from conal_rl.core import Tree, TreeNetwork, linear_chain
from conal_rl.core.tree_network import parameter_count
from conal_rl.errors import CheckpointError
from conal_rl.files import read_json

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
"""Options of each row, in order of importance. A row's name is also its folder's.

`WIDENED` has at least the parameters of the CoNAL run of its seed.
"""

OTHERWISE = "*"
"""The mark of a row with a run of settings that differ from the present ones."""

SHORT_SEARCH = ["--agent.tree", "search", "--search.steps", "100000"]
"""The preset's search would take all of a short run."""

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
    "weights reset after 8,000 updates": ["--agent.reset-at", "8000"],
    "width of 400": ["--agent.widths", "400", "400", "400"],
    "entropy target of -4": ["--agent.target-entropy", "-4"],
    "entropy target of -1": ["--agent.target-entropy", "-1"],
    "step size of 1e-3": ["--agent.learning-rate", "1e-3"],
    "actor on every second update": ["--agent.actor-every", "2"],
    "newest weights of the actor": ["--agent.actor-averaging", "none"],
    "CoNAL": SHORT_SEARCH,
    "CoNAL, weights kept": [*SHORT_SEARCH, "--search.keep-weights"],
}
"""Options of each row: one changed choice, on hard parameter sharing if no search is named."""


class Result(NamedTuple):
    """The result of one run by the official protocol: success by task, env steps and seconds."""

    success: dict[str, float]
    steps: int
    seconds: float


Results = dict[str, list[Result]]
"""The finished runs of each row of a table, one per seed."""


def compare_methods(
    seeds: Sequence[int], jobs: int, folder: Path, steps: int, rows: Sequence[str]
) -> list[Table]:
    """Make the missing runs of some methods, and return the tables of all methods.

    Args:
        seeds: Seeds of training.
        jobs: The number of runs at the same time.
        folder: The folder of the runs.
        steps: Env steps of a run, over all tasks.
        rows: The methods to run. The tables also show the finished runs of the other methods.

    Raises:
        ConalError: A run failed, or a folder has a run of different settings.
    """

    # Two rows may need the same CoNAL run at the same time.
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
    """Make the missing runs of some choices of the recipe, and return the tables of all choices.

    Args:
        seeds, jobs, folder: As in `compare_methods`.
        minutes: Wall-clock time of a run.
        rows: The choices to run.

    Raises:
        ConalError: As in `compare_methods`.
    """

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
    # All seeds of a row run before the next row, because the rows are in order of importance.
    run_all(lambda pair: run(*pair), [(row, seed) for row in rows for seed in seeds], jobs)
    results: Results = {}
    for row in known:
        paths = {seed: folder / slug(row, seed) / "evaluation.json" for seed in seeds}
        finished = {
            seed: path
            for seed, path in paths.items()
            if path.is_file() and _has_budget(path.parent, budget)
        }
        derived = {"agent.widths"} if row == WIDENED else set()  # from its seed's CoNAL run
        as_now = [
            _has_settings(path.parent, arguments_of(row, seed), derived)
            for seed, path in finished.items()
        ]
        name = row if all(as_now) else f"{row} {OTHERWISE}"
        results[name] = [read(path) for path in finished.values()]
    return results


def _has_settings(run: Path, arguments: Sequence[str], derived: set[str]) -> bool:
    """Return whether a run has the settings of `arguments`, except the fields in `derived`."""
    written = run / "config.yaml"
    if not written.is_file():  # every task has a run in its own folder
        parts = sorted(run.glob("*/config.yaml"))
        if not parts:  # no config shows a difference
            return True
        written, derived = parts[0], derived | {"total_steps", "env.suite"}
    now = load_config(arguments[0], arguments[1:])
    changed = now.differences(load_config(written)).keys() - derived
    changed &= marked(type(now), "changes_experiment")
    if now.agent.tree != "search":
        changed = {path for path in changed if not path.startswith("search.")}
    return not changed


def _has_budget(run: Path, budget: Mapping[str, float]) -> bool:
    """Return whether a run has this budget. Without a config its number of steps decides."""
    written = run / "config.yaml"
    if not written.is_file():
        steps = read(run / "evaluation.json").steps
        return math.isclose(steps, budget.get("total_steps", steps), rel_tol=0.01)
    config = load_config(written)
    return all(getattr(config, field) == value for field, value in budget.items())


def read(evaluation: Path) -> Result:
    """Return the result of a finished run.

    Raises:
        CheckpointError: The file is damaged.
    """
    report = read_json(evaluation)
    try:
        return Result(dict(report["success"]), int(report["steps"]), float(report["seconds"]))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{evaluation}: got {type(report).__name__}, expected the evaluation of a run. "
            "Remove the run, or use a different --out"
        ) from error


def widened(run: Path) -> list[int]:
    """Return hidden widths that give HPS at least the parameters of a run's encoders."""
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
    """Return the summary of all rows, and the success per task if there is a finished run."""
    finished = {name: runs for name, runs in results.items() if runs}
    return [summary(results, title), *([successes(finished)] if finished else [])]


def summary(results: Results, title: str) -> Table:
    """Return mean success and its interquartile mean with 95% intervals, env steps and time."""
    marked = any(name.endswith(OTHERWISE) for name in results)
    note = f" {OTHERWISE}: a run has a different recipe, see its config.yaml." * marked
    rows = Table(
        title=title,
        caption="Success: official protocol, final weights. "
        "Intervals: bootstrap over seeds. For two seeds it is their range." + note,
        box=box.SIMPLE_HEAD,
    )
    headings = ("run", "seeds", "mean success", "95%", "IQM", "95%", "env steps", "minutes")
    for heading in headings:
        rows.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for name, runs in results.items():
        if not runs:
            rows.add_row(name, "not run", *[""] * (len(headings) - 2))
            continue
        scores = np.array([list(result.success.values()) for result in runs])
        cells = []
        for statistic in (np.mean, interquartile_mean):
            cells.append(f"{statistic(scores):.3f}")
            low, high = bootstrap(scores, statistic)
            cells.append(f"{low:.3f} .. {high:.3f}" if len(runs) > 1 else "-")
        steps = f"{np.mean([result.steps for result in runs]):,.0f}"
        minutes = f"{np.mean([result.seconds for result in runs]) / 60:.0f}"
        rows.add_row(name, str(len(runs)), *cells, steps, minutes)
    return rows


def successes(results: Results) -> Table:
    """Return the success per task, as the mean over the seeds."""
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("run", no_wrap=True)
    for task in next(iter(results.values()))[0].success:
        rows.add_column(task.removesuffix("-v3").replace("-", "\n"), justify="right")
    for name, runs in results.items():
        means = np.mean([list(result.success.values()) for result in runs], axis=0)
        rows.add_row(name, *(f"{mean:.2f}" for mean in means))
    return rows


def interquartile_mean(scores: NDArray[np.float64]) -> float:
    """Return the mean of the middle half of all scores (Agarwal et al., NeurIPS 2021)."""
    from scipy import stats

    return float(stats.trim_mean(scores, 0.25, axis=None))


def bootstrap(
    scores: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], float | np.floating[Any]],
    draws: int = 2_000,
) -> tuple[float, float]:
    """Return a 95% percentile interval of a statistic of `(seed, task)`.

    It draws whole runs with replacement. All tasks of a seed share one run, so their results
    depend on each other. Agarwal et al. draw seeds separately for each task, because their tasks
    have separate runs ("Deep RL at the Edge of the Statistical Precipice", NeurIPS 2021,
    section 4.1).
    """
    random = np.random.default_rng(0)
    drawn = random.integers(len(scores), size=(draws, len(scores)))
    values = [float(statistic(scores[runs])) for runs in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
