"""Whether this checkout computes the same numbers as an older commit, run by run.

Both sides run the same small command lines on the same machine with the same interpreter. The
script uses only stable interfaces: `python -m conal_rl.train`, its options, a run's files.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import conal_rl
from conal_rl.benchmarks.forking import import_packages, train_in_fork
from conal_rl.benchmarks.run_differences import compare_runs, declared_differences
from conal_rl.errors import ConalError, ConfigError
from conal_rl.files import write_json

SHOWN = 20
"""Differences of a case that are printed."""
CHECKOUT = Path(conal_rl.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """The options of a run and of its resumes, for `python -m conal_rl.train`.

    Attributes:
        name: name of the run's folder.
        arguments: options that start the run.
        resumes: options of each resume, without `--resume`.
    """

    name: str
    arguments: tuple[str, ...]
    resumes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """The CPU seconds of both sides of a case, and their differences, a line each.

    `declared` has the columns in which they differ because the log has changed.
    """

    old_seconds: float
    new_seconds: float
    differences: list[str]
    declared: Sequence[str] = ()


_MT10 = (
    "mt10 --agent.no-mixed-precision --env.envs-per-task 2 --agent.widths 16 16 "
    "--agent.batch-size 8 --agent.buffer-size 2000 --agent.learning-starts 50 "
    "--agent.update-every 5 --agent.actor-every 2 --log-interval 200 --evaluation.episodes 1"
)
_MT1 = (
    "mt1 --agent.no-mixed-precision --env.envs-per-task 2 --agent.widths 16 16 "
    "--agent.batch-size 16 --agent.buffer-size 2000 --agent.learning-starts 100 "
    "--agent.update-every 10 --agent.reset-at 30 --log-interval 100 --evaluation.episodes 2 "
    "--evaluation.every 1100"
)
_CARTPOLE = (
    "cartpole --agent.widths 16 16 --agent.batch-size 8 --agent.buffer-size 2000 "
    "--agent.learning-starts 30 --log-interval 100 --evaluation.episodes 2"
)
_DIGITS = (
    "digits --agent.channels 4 4 --agent.strides 2 2 --agent.batch-size 4 --log-interval 5 "
    "--evaluation.every 10"
)
_TERRAIN = (
    "terrain --agent.channels 4 4 --agent.strides 2 2 --agent.aspp-width 4 --agent.batch-size 2 "
    "--log-interval 5 --evaluation.every 10"
)
_SHIPPED_TREE = "--agent.widths 16 16 16 --agent.tree conal_rl/pretrained/mt10/tree.json"


def cases() -> list[Case]:
    """Return every case: all search methods on four presets, and fixed trees on five.

    A search stops at its own end (`search.only`), is resumed for a longer search, and then derives,
    trains and evaluates. A fixed tree is trained, and resumed for more steps. Searches on mt10 are
    longer than its first episodes, which have 10,000 env steps.
    """
    return [
        *_searches("mt10", _MT10, (10_800, 11_200, 11_700), pro=(21_000, 21_400, 21_900)),
        _tree("mt10", "pcgrad", f"{_MT10} --agent.tree shared", 1_500, 2_000),
        _tree("mt10", "upgrad", f"{_MT10} {_SHIPPED_TREE}", 1_500, 2_000),
        *_searches(
            "cartpole",
            f"{_CARTPOLE} --evaluation.every 500",
            (800, 1_200, 1_800),
            conal="--search.gumbel --search.rule any_pair",
            no_specific="--search.keep-weights",
            conal_pro="--search.rule and_deeper --search.no-keep-replay",
        ),
        _tree("cartpole", "conflict", f"{_CARTPOLE} --agent.tree shared", 800, 1_200),
        Case("mt1-independent", _words(f"{_MT1} --total-steps 1500"), _resumes("2300")),
        *_searches(
            "digits",
            _DIGITS,
            (24, 36, 60),
            conal="--search.rule any_pair --search.smoothing 0.5",
            no_specific="--search.keep-weights",
            conal_pro="--search.rule and_deeper --search.specific-decay 0.1",
        ),
        _tree("digits", "uncertainty", f"{_DIGITS} --agent.tree shared --agent.select", 24, 40),
        *_searches(
            "terrain",
            _TERRAIN,
            (16, 24, 40),
            conal="--search.rule conflicting_tasks",
            no_specific="--search.keep-weights",
            conal_pro="--search.gumbel",
        ),
        _tree("terrain", "pcgrad", f"{_TERRAIN} --agent.tree shared", 16, 30),
    ]


def _searches(
    preset: str,
    arguments: str,
    steps: tuple[int, int, int],
    pro: tuple[int, int, int] | None = None,
    conal: str = "",
    no_specific: str = "",
    conal_pro: str = "",
) -> Iterator[Case]:
    """Return a case for every search method; `steps` end both searches and the run."""
    methods = {
        "conal": (conal, steps),
        "conal-no-specific": (f"--search.no-purely-specific {no_specific}", steps),
        "conal_pro": (f"--search.method conal_pro {conal_pro}", pro or steps),
        "ltb": ("--search.method ltb", steps),
        "recon": ("--search.method recon", steps),
    }
    for name, (method, (first, longer, end)) in methods.items():
        # Gates that learn fast tell trees apart after a few steps.
        started = f"{arguments} {method} --search.gate-learning-rate 0.1 --search.only"
        budget = f"--search.steps {first} --total-steps {first}"
        resumed = f"--search.no-only --search.steps {longer} --total-steps {end}"
        yield Case(f"{preset}-{name}", _words(f"{started} {budget}"), (_words(resumed),))


def _tree(preset: str, losses: str, arguments: str, first: int, end: int) -> Case:
    """Return a case of a fixed tree with aggregation, loss weights or conflict noticing."""
    option = "--agent.conflict-rule any_pair"
    option = option if losses == "conflict" else f"--agent.weighting {losses}"
    started = f"{arguments} {option} --total-steps {first}"
    return Case(f"{preset}-tree-{losses}", _words(started), _resumes(str(end)))


def _resumes(*totals: str) -> tuple[tuple[str, ...], ...]:
    return tuple(("--total-steps", total) for total in totals)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def run_case(checkout: Path, case: Case, folder: Path) -> float:
    """Run a case with the package in `checkout`, into `folder`; return its CPU seconds.

    Raises:
        ConalError: a command failed. The error has the last line of its output.
    """
    began = _children_seconds()
    start = [*case.arguments, "--device", "cpu", "--threads", "1", "--out", str(folder)]
    for arguments in (start, *(["--resume", str(folder), *more] for more in case.resumes)):
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
            status = train_in_fork(checkout, arguments, log.name)
            last = (log.read().strip().splitlines() or ["no message"])[-1]
        if status:
            command = " ".join(arguments)
            raise ConalError(f"{case.name}: exit status {status} of {command}: {last}")
    return _children_seconds() - began


def _children_seconds() -> float:
    """Return the CPU seconds of all finished children; a busy machine does not change them."""
    times = os.times()
    return times.children_user + times.children_system


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield the commit in a temporary git worktree, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as folder:
        place = Path(folder).resolve() / "base"
        _git("worktree", "add", "--detach", str(place), commit)
        try:
            yield place
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> str:
    try:
        ran = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True)
    except OSError as error:
        raise ConalError(f"git: got {error.strerror}, expected a program. Install git") from error
    if ran.returncode:
        raise ConfigError(f"git {arguments[0]}: {ran.stderr.strip() or 'failed'}")
    return ran.stdout.strip()


def _kept_seconds(folder: Path, case: Case, commit: str) -> float | None:
    """Return the seconds of a finished base run in `folder`; else empty it and return None.

    Raises:
        ConfigError: this script has not made the folder.
    """
    record = folder.with_suffix(".json")
    if folder.exists() and not record.is_file():
        raise ConfigError(
            f"--keep: got {folder}, expected a folder of base runs. Choose a different folder"
        )
    if record.is_file():
        try:
            kept = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            kept = None  # a process died while it wrote
        if folder.is_dir() and isinstance(kept, dict):
            seconds = kept.pop("seconds", None)
            if kept == _description(case, commit) and isinstance(seconds, int | float):
                return float(seconds)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _description(case: Case, commit: str) -> dict[str, Any]:
    commands = [list(case.arguments), *map(list, case.resumes)]
    return {"commit": commit, "interpreter": sys.executable, "commands": commands}


def _record(folder: Path, case: Case, commit: str, seconds: float | None) -> None:
    """Record the base run of `folder`, and whether it has finished."""
    record = {**_description(case, commit), "seconds": seconds}
    write_json(folder.with_suffix(".json"), record, indent=1)


def run_both(
    base: str, chosen: Sequence[Case], keep: Path | None, out: Path | None
) -> dict[str, Outcome]:
    """Run both sides of the cases and compare them.

    Args:
        base: git revision of the old side; the new side is the checkout of this package.
        chosen: the cases.
        keep: folder of the old side's runs; its finished runs are not run again.
        out: folder of the new side's runs.

    Raises:
        ConalError: the revision does not exist, or a run of the old side failed.
    """
    commit = _git("rev-parse", "--verify", f"{base}^{{commit}}")
    outcomes: dict[str, Outcome] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-numbers-")))
        old_runs = (keep or scratch / "old").resolve()
        new_runs = (out or scratch / "new").resolve()
        for runs in (old_runs, new_runs):
            runs.mkdir(parents=True, exist_ok=True)
        import_packages()
        old_checkout: Path | None = None
        for case in chosen:
            folder = old_runs / case.name
            seconds = _kept_seconds(folder, case, commit)
            if seconds is None:
                if old_checkout is None:
                    old_checkout = stack.enter_context(checked_out(commit))
                _record(folder, case, commit, None)
                seconds = run_case(old_checkout, case, folder)
                _record(folder, case, commit, seconds)
            outcomes[case.name] = _against(case, seconds, folder, new_runs / case.name)
            count = len(outcomes[case.name].differences)
            print(f"{case.name}: {_verdict(count)}", file=sys.stderr)
    return outcomes


def _against(case: Case, old_seconds: float, old: Path, new: Path) -> Outcome:
    """Run the new side of a case and compare; a failure is a difference."""
    try:
        seconds = run_case(CHECKOUT, case, new)
    except ConalError as error:
        return Outcome(old_seconds, math.nan, [f"the new side failed: {error}"])
    declared = declared_differences(old, new)
    return Outcome(old_seconds, seconds, compare_runs(old, new), declared)


def _verdict(differences: int) -> str:
    return f"{differences} difference{'s' * (differences != 1)}" if differences else "equal"


def measure(base: str, only: str, keep: Path | None, out: Path | None, console: Console) -> int:
    """Print a line for each case and its differences; return 1 if any case differs, or 0.

    Args:
        base: git revision to compare with.
        only: shell pattern of the cases' names.
        keep: folder that keeps the base's runs. None: a temporary folder.
        out: folder of this checkout's runs. None: a temporary folder.
        console: prints the lines.

    Raises:
        ConalError: no case fits, the revision does not exist, or a run of the base failed.
    """
    chosen = [case for case in cases() if fnmatch(case.name, only)]
    if not chosen:
        names = ", ".join(case.name for case in cases())
        raise ConfigError(
            f"--only: got {only!r}, expected a pattern that fits one of {names}. "
            "Give a different one"
        )
    outcomes = run_both(base, chosen, keep, out)
    table = Table(title=f"this checkout against {base}")
    for column in ("case", "numbers", "CPU seconds before", "now"):
        table.add_column(column, justify="left" if column in ("case", "numbers") else "right")
    for name, outcome in outcomes.items():
        seconds = (f"{side:.0f}" for side in (outcome.old_seconds, outcome.new_seconds))
        table.add_row(name, _verdict(len(outcome.differences)), *seconds)
    sums = zip(*((o.old_seconds, o.new_seconds) for o in outcomes.values()), strict=True)
    table.add_section()
    table.add_row("all", "", *(f"{sum(side):.0f}" for side in sums))
    console.print(table)
    declared = {column for outcome in outcomes.values() for column in outcome.declared}
    if declared:
        columns = ", ".join(sorted(declared))
        line = f"These columns differ, because the log has changed: {columns}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for name, outcome in outcomes.items():
        for line in outcome.differences[:SHOWN]:
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
        if len(outcome.differences) > SHOWN:
            console.print(f"{name}: and {len(outcome.differences) - SHOWN} more")
    return int(any(outcome.differences for outcome in outcomes.values()))
