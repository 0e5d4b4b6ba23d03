"""`python -m conal_rl.benchmark WHAT`: speed as ratios between peers, methods beside each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from conal_rl.commands import Parser, exit_status, usable_device, wide_console
from conal_rl.errors import ConfigError

ONE_INPUT_TASKS = 5
RECIPE_MINUTES = 20.0


class Size(NamedTuple):
    """Hidden widths, and transitions per task in a batch."""

    widths: Sequence[int]
    batch: int


MT10 = Size([256] * 3, 64)
MT10_PAPER = Size([400] * 3, 256)
"""Of the presets `mt10` and `mt10_paper`."""
CONFLICT = Size([400] * 3, 128)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.benchmark", description=__doc__)
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    engine = what.add_parser("engine", help="env steps per second of the Meta-World engines")
    engine.set_defaults(measure=_engine)
    engine.add_argument("--suite", default="mt10", help="Meta-World suite (default: %(default)s)")
    engine.add_argument(
        "--envs-per-task",
        type=int,
        nargs="+",
        default=[1, 4, 8],
        metavar="N",
        help="one table for each (default: 1 4 8)",
    )
    engine.add_argument("--threads", type=int, help="of the native engine (default: all cores)")
    engine.add_argument(
        "--episodes",
        type=int,
        default=10,
        help="per task, played by one policy on both engines and compared; 0 leaves that out",
    )
    conflict = what.add_parser("conflict", help="training steps with and without conflict noticing")
    conflict.set_defaults(measure=_conflict)
    _add_network_options(conflict, [2, 10, 50], "400 400 400", "128")
    update = what.add_parser("update", help="SAC updates against those of Stable-Baselines3's SAC")
    update.set_defaults(measure=_update)
    sizes = "the presets mt10's and mt10_paper's, a table each"
    _add_network_options(update, [10], sizes, sizes)
    groups = what.add_parser("groups", help="which searches recover known groups of tasks")
    groups.set_defaults(measure=_groups)
    groups.add_argument("--seeds", type=int, default=10, help="0 to N - 1 (default: %(default)s)")
    groups.add_argument("--steps", type=int, default=1800, help="of each search")
    supervised = what.add_parser(
        "supervised", help="the methods beside each other on digits or terrain"
    )
    supervised.set_defaults(measure=_supervised)
    supervised.add_argument("set", choices=("digits", "terrain"), help="which data set")
    supervised.add_argument(
        "--seeds", type=int, default=5, help="0 to N - 1 (default: %(default)s)"
    )
    supervised.add_argument(
        "--jobs", type=int, default=2, help="runs side by side (default: %(default)s)"
    )
    supervised.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/study-SET)"
    )
    mt10 = what.add_parser("mt10", help="methods, or choices of the recipe, on Meta-World's MT10")
    mt10.set_defaults(measure=_mt10)
    mt10.add_argument("table", choices=("methods", "recipe"), help="what is compared")
    mt10.add_argument("--seeds", type=int, default=2, help="0 to N - 1 (default: %(default)s)")
    mt10.add_argument(
        "--jobs", type=int, default=1, help="runs side by side (default: %(default)s)"
    )
    mt10.add_argument(
        "--steps", type=int, help="methods: env steps of each run (default: the preset's)"
    )
    mt10.add_argument(
        "--minutes", type=float, help=f"recipe: of each run (default: {RECIPE_MINUTES:g})"
    )
    mt10.add_argument(
        "--rows",
        nargs="*",
        metavar="NAME",
        help="rows to run (default: all); without a name: show what there is",
    )
    mt10.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/mt10-TABLE)"
    )
    _add_same_numbers(what)
    for command in (engine, conflict, update):
        command.add_argument("--rounds", type=int, default=3, help="of which the median is shown")
        command.add_argument(
            "--seconds",
            type=float,
            default=4.0 if command is engine else 2.0,
            help="of each peer in each round",
        )
    return parser


def _add_network_options(
    command: argparse.ArgumentParser, tasks: list[int], widths: str, batch: str
) -> None:
    shown = " ".join(map(str, tasks))
    command.add_argument(
        "--tasks", type=int, nargs="+", default=tasks, metavar="N", help=f"default: {shown}"
    )
    command.add_argument(
        "--widths", type=int, nargs="+", metavar="N", help=f"of hidden layers (default: {widths})"
    )
    command.add_argument("--batch", type=int, help=f"transitions per task (default: {batch})")
    command.add_argument("--threads", type=int, help="of torch (default: as torch decides)")
    command.add_argument("--device", default="cpu", help="as a run's device (default: cpu)")


def _add_same_numbers(what: argparse._SubParsersAction[Parser]) -> None:
    same = what.add_parser(
        "same-numbers", help="Whether small runs give the same numbers as an older commit."
    )
    same.set_defaults(measure=_same_numbers)
    same.add_argument(
        "--base", required=True, metavar="COMMIT", help="The git revision to compare with."
    )
    same.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="Folder of the base's runs. A later comparison with it runs only the new side.",
    )
    same.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Folder of the new side's runs. The default is a temporary folder.",
    )
    same.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="Cases to run, such as 'mt10-*' or '*-ltb'. The default is all of them.",
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status: 1 if numbers differ that should be the same.

    Raises:
        ConalError: whatever is wrong with the command line or the machine.
    """
    options = _parser().parse_args(arguments)
    times = ("rounds", "seconds", "threads", "minutes")
    _require(options, "more than 0", lambda value: value > 0, *times)
    counts = ("envs_per_task", "widths", "batch", "seeds", "steps", "jobs")
    _require(options, "at least 1", lambda value: value >= 1, *counts)
    _require(options, "at least 2", lambda value: value >= 2, "tasks")
    _require(options, "at least 0", lambda value: value >= 0, "episodes")
    # Tables that go into a file have the room they need.
    return options.measure(options, wide_console()) or 0


def _require(
    options: argparse.Namespace, limit: str, holds: Callable[[float], bool], *names: str
) -> None:
    for name in names:
        given = getattr(options, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not holds(value):
                raise ConfigError(f"--{name.replace('_', '-')} must be {limit}, not {value}")


def _engine(options: argparse.Namespace, console: Console) -> None:
    from conal_rl.benchmarks import engine

    for envs_per_task in options.envs_per_task:
        console.print(
            engine.measure(
                options.suite, envs_per_task, options.rounds, options.seconds, options.threads
            )
        )
    if options.episodes:
        console.print(engine.compare_evaluations(options.suite, options.episodes))


def _conflict(options: argparse.Namespace, console: Console) -> None:
    _prepare_torch(options, console)
    from conal_rl.benchmarks import conflict

    turns = (options.rounds, options.seconds, options.device)
    widths, batch = options.widths or CONFLICT.widths, options.batch or CONFLICT.batch
    for tasks in options.tasks:
        console.print(conflict.measure(tasks, widths, batch, *turns))
    console.print(conflict.measure_one_input(ONE_INPUT_TASKS, *turns))


def _update(options: argparse.Namespace, console: Console) -> None:
    _prepare_torch(options, console)
    from conal_rl.benchmarks import update

    sizes = [
        Size(options.widths or preset.widths, options.batch or preset.batch)
        for preset in (MT10, MT10_PAPER)
    ]
    for tasks in options.tasks:
        for widths, batch in sizes if sizes[0] != sizes[1] else sizes[:1]:
            console.print(
                update.measure(
                    tasks, widths, batch, options.rounds, options.seconds, options.device
                )
            )


def _groups(options: argparse.Namespace, console: Console) -> None:
    import torch

    from conal_rl.benchmarks import groups

    torch.set_num_threads(1)  # the networks are tiny
    console.print(groups.measure(range(options.seeds), options.steps))


def _supervised(options: argparse.Namespace, console: Console) -> None:
    from conal_rl.benchmarks import supervised

    out = options.out or Path("runs") / f"study-{options.set}"
    for table in supervised.measure(options.set, range(options.seeds), options.jobs, out):
        console.print(table)


def _mt10(options: argparse.Namespace, console: Console) -> None:
    from conal_rl.benchmarks import mt10
    from conal_rl.config import load_config

    known = mt10.METHODS if options.table == "methods" else mt10.RECIPE
    rows = list(known) if options.rows is None else list(dict.fromkeys(options.rows))
    for row in rows:
        if row not in known:
            raise ConfigError(f"--rows: unknown {row!r}; there are {', '.join(map(repr, known))}")
    other = "minutes" if options.table == "methods" else "steps"
    if getattr(options, other) is not None:
        raise ConfigError(f"--{other}: not an option of {options.table}")
    out = options.out or Path("runs") / f"mt10-{options.table}"
    seeds = range(options.seeds)
    if options.table == "methods":
        steps = options.steps or load_config("mt10").total_steps
        tables = mt10.compare_methods(seeds, options.jobs, out, steps, rows)
    else:
        minutes = options.minutes or RECIPE_MINUTES
        tables = mt10.compare_choices(seeds, options.jobs, out, minutes, rows)
    for table in tables:
        console.print(table)


def _same_numbers(options: argparse.Namespace, console: Console) -> int:
    from conal_rl.benchmarks import same_numbers

    return same_numbers.measure(options.base, options.only, options.keep, options.out, console)


def _prepare_torch(options: argparse.Namespace, console: Console) -> None:
    """Set the threads, and say what is measured on.

    Raises:
        ConfigError: no such device, or none here.
    """
    import torch

    options.device = str(usable_device("--device", options.device))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console.print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")


def main(arguments: Sequence[str] | None = None) -> int:
    """`run`, as an exit status: 0 or 1, 2 after an error reported in one line, 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
