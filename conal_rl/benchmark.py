"""`python -m conal_rl.benchmark WHAT` measures speed, or compares methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from conal_rl.cli import Parser, add_seeds, exit_status, wide_console
from conal_rl.device import resolve_device
from conal_rl.errors import ConfigError
from conal_rl.files import user_path

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]
    Measure = Callable[[argparse.Namespace, Console], int | None]

ONE_INPUT_TASKS = 5
RECIPE_MINUTES = 20.0


class Size(NamedTuple):
    """Hidden widths, and transitions per task in a batch."""

    widths: Sequence[int]
    batch: int


MT10 = Size([256] * 3, 64)
MT10_PAPER = Size([400] * 3, 256)
"""The sizes of the presets `mt10` and `mt10_paper`."""
CONFLICT = Size([400] * 3, 128)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conal_rl.benchmark",
        description="Measure speed as ratios between peers, or compare methods.",
    )
    what = parser.add_subparsers(
        dest="what",
        metavar="WHAT",
        required=True,
        parser_class=Parser,
        help="The measurement or comparison. WHAT --help lists its options.",
    )
    _add_engine(what)
    _add_conflict(what)
    _add_update(what)
    _add_groups(what)
    _add_supervised(what)
    _add_mt10(what)
    _add_same_numbers(what)
    return parser


def _add_command(what: Commands, name: str, measure: Measure, text: str) -> Parser:
    command = what.add_parser(name, help=text, description=text)
    command.set_defaults(measure=measure)
    return command


def _add_engine(what: Commands) -> None:
    engine = _add_command(
        what, "engine", _engine, "Measure the env steps per second of the Meta-World engines."
    )
    engine.add_argument(
        "--suite", default="mt10", help="Step this Meta-World suite. The default is %(default)s."
    )
    engine.add_argument(
        "--envs-per-task",
        type=int,
        nargs="+",
        default=[1, 4, 8],
        metavar="N",
        help="Make one table for each of these numbers of envs. The default is 1 4 8.",
    )
    engine.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="Give the native engine this number of threads. The default is all cores.",
    )
    engine.add_argument(
        "--episodes",
        type=int,
        default=10,
        metavar="N",
        help="Compare this number of episodes per task, which one policy plays on both engines. "
        "The default is %(default)s. Give 0 to leave out the comparison.",
    )
    _add_turns(engine, seconds=4.0)


def _add_conflict(what: Commands) -> None:
    conflict = _add_command(
        what, "conflict", _conflict, "Measure training steps with and without conflict noticing."
    )
    _add_network(conflict, [2, 10, 50], "400 400 400", "128")
    _add_turns(conflict, seconds=2.0)


def _add_update(what: Commands) -> None:
    update = _add_command(
        what, "update", _update, "Measure SAC updates against the updates of Stable-Baselines3."
    )
    sizes = "the size of mt10 in one table and of mt10_paper in a second one"
    _add_network(update, [10], sizes, sizes)
    _add_turns(update, seconds=2.0)


def _add_groups(what: Commands) -> None:
    groups = _add_command(
        what, "groups", _groups, "Compare which searches recover known groups of tasks."
    )
    add_seeds(groups, range(10))
    groups.add_argument(
        "--steps",
        type=int,
        default=1800,
        metavar="N",
        help="Give each search this number of steps. The default is %(default)s.",
    )


def _add_supervised(what: Commands) -> None:
    supervised = _add_command(
        what, "supervised", _supervised, "Compare the methods on digits or terrain."
    )
    supervised.add_argument(
        "set", choices=("digits", "terrain"), help="The data set of the comparison."
    )
    add_seeds(supervised, range(5))
    _add_jobs(supervised, 2)
    _add_out(supervised, "runs/study-SET")


def _add_mt10(what: Commands) -> None:
    mt10 = _add_command(
        what, "mt10", _mt10, "Compare methods, or choices of the recipe, on Meta-World's MT10."
    )
    mt10.add_argument(
        "table",
        choices=("methods", "recipe"),
        help="The rows to compare: methods, or choices of the recipe.",
    )
    add_seeds(mt10, range(2))
    _add_jobs(mt10, 1)
    mt10.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="Give each run of `methods` this number of env steps. "
        "The default is the preset's number.",
    )
    mt10.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="Give each run of `recipe` this number of minutes. "
        f"The default is {RECIPE_MINUTES:g}.",
    )
    mt10.add_argument(
        "--rows",
        nargs="*",
        metavar="NAME",
        help="Run only these rows. The default is all rows. "
        "Give no name to show only the finished runs.",
    )
    _add_out(mt10, "runs/mt10-TABLE")


def _add_same_numbers(what: Commands) -> None:
    same = _add_command(
        what,
        "same-numbers",
        _same_numbers,
        "Compare small runs of this checkout with those of an older commit, number by number.",
    )
    same.add_argument(
        "--base", required=True, metavar="COMMIT", help="Compare with this git revision."
    )
    same.add_argument(
        "--keep",
        type=user_path,
        metavar="DIR",
        help="Keep the runs of the older commit in this folder. "
        "A later comparison with the same folder runs only this checkout. "
        "The default is a temporary folder.",
    )
    same.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="Keep the runs of this checkout in this folder. The default is a temporary folder.",
    )
    same.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="Run only the cases whose names fit, for example 'mt10-*' or '*-ltb'. "
        "The default is all cases.",
    )


def _add_network(
    command: argparse.ArgumentParser, tasks: list[int], widths: str, batch: str
) -> None:
    numbers = " ".join(map(str, tasks))
    command.add_argument(
        "--tasks",
        type=int,
        nargs="+",
        default=tasks,
        metavar="N",
        help=f"Make one table for each of these numbers of tasks. The default is {numbers}.",
    )
    command.add_argument(
        "--widths",
        type=int,
        nargs="+",
        metavar="N",
        help=f"Use these widths of the hidden layers. The default is {widths}.",
    )
    command.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help=f"Use this number of transitions per task. The default is {batch}.",
    )
    command.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="Give torch this number of threads. The default is torch's own choice.",
    )
    command.add_argument(
        "--device",
        default="cpu",
        help="Measure on this device, such as auto, cpu, cuda or cuda:1. "
        "The default is %(default)s.",
    )


def _add_turns(command: argparse.ArgumentParser, seconds: float) -> None:
    command.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="Measure this number of rounds and show the median. The default is %(default)s.",
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        metavar="N",
        help="Give each peer this number of seconds in each round. The default is %(default)s.",
    )


def _add_jobs(command: argparse.ArgumentParser, count: int) -> None:
    command.add_argument(
        "--jobs",
        type=int,
        default=count,
        metavar="N",
        help="Make this number of runs at the same time. The default is %(default)s.",
    )


def _add_out(command: argparse.ArgumentParser, folder: str) -> None:
    command.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help=f"Keep the runs in this folder. The default is {folder}.",
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status, 1 if numbers differ that should be equal.

    Raises:
        ConalError: The command line is wrong, or the machine lacks something.
    """
    options = _parser().parse_args(arguments)
    times = ("rounds", "seconds", "threads", "minutes")
    _require(options, "more than 0", lambda value: value > 0, *times)
    counts = ("envs_per_task", "widths", "batch", "steps", "jobs")
    _require(options, "at least 1", lambda value: value >= 1, *counts)
    _require(options, "at least 2", lambda value: value >= 2, "tasks")
    _require(options, "at least 0", lambda value: value >= 0, "episodes")
    # A table that goes into a file may be wider than a terminal.
    return options.measure(options, wide_console()) or 0


def _require(
    options: argparse.Namespace, limit: str, holds: Callable[[float], bool], *names: str
) -> None:
    for name in names:
        given = getattr(options, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not holds(value):
                raise ConfigError(
                    f"--{name.replace('_', '-')}: got {value}, expected {limit}. "
                    "Give a different number"
                )


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
    console.print(groups.measure(options.seeds, options.steps))


def _supervised(options: argparse.Namespace, console: Console) -> None:
    from conal_rl.benchmarks import supervised

    out = options.out or Path("runs") / f"study-{options.set}"
    for table in supervised.measure(options.set, options.seeds, options.jobs, out):
        console.print(table)


def _mt10(options: argparse.Namespace, console: Console) -> None:
    from conal_rl.benchmarks import mt10
    from conal_rl.config import load_config

    known = mt10.METHODS if options.table == "methods" else mt10.RECIPE
    rows = list(known) if options.rows is None else list(dict.fromkeys(options.rows))
    for row in rows:
        if row not in known:
            names = ", ".join(map(repr, known))
            raise ConfigError(
                f"--rows: got {row!r}, expected some of {names}. Quote names with spaces"
            )
    other = "minutes" if options.table == "methods" else "steps"
    if (value := getattr(options, other)) is not None:
        raise ConfigError(
            f"--{other}: got {value}, expected no value for {options.table}. Leave it out"
        )
    out = options.out or Path("runs") / f"mt10-{options.table}"
    if options.table == "methods":
        steps = options.steps or load_config("mt10").total_steps
        tables = mt10.compare_methods(options.seeds, options.jobs, out, steps, rows)
    else:
        minutes = options.minutes or RECIPE_MINUTES
        tables = mt10.compare_choices(options.seeds, options.jobs, out, minutes, rows)
    for table in tables:
        console.print(table)


def _same_numbers(options: argparse.Namespace, console: Console) -> int:
    from conal_rl.benchmarks import same_numbers

    return same_numbers.measure(options.base, options.only, options.keep, options.out, console)


def _prepare_torch(options: argparse.Namespace, console: Console) -> None:
    """Set torch's threads, and print torch's version, the device and the threads.

    Raises:
        ConfigError: The device is unknown, or this machine does not have it.
    """
    import torch

    options.device = str(resolve_device("--device", options.device))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console.print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")


def main(arguments: Sequence[str] | None = None) -> int:
    """Call `run` and return the exit status: 0 or 1, 2 after an error, 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
