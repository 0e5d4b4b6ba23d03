"""`python -m conal_rl.benchmark WHAT`: speed as ratios between peers, measured in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from conal_rl.commands import Parser, exit_status
from conal_rl.errors import ConfigError


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.benchmark", description=__doc__)
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    engine = what.add_parser("engine", help="env steps per second of the Meta-World engines")
    engine.add_argument("--suite", default="mt10", help="Meta-World suite (default: %(default)s)")
    engine.add_argument(
        "--envs-per-task",
        type=int,
        nargs="+",
        default=[1, 4, 8],
        metavar="N",
        help="one table for each (default: 1 4 8)",
    )
    engine.add_argument("--rounds", type=int, default=3, help="of which the median is shown")
    engine.add_argument("--seconds", type=float, default=4.0, help="of each peer in each round")
    engine.add_argument("--threads", type=int, help="of the native engine (default: all cores)")
    engine.add_argument(
        "--episodes",
        type=int,
        default=10,
        help="per task, played by one policy on both engines and compared; 0 leaves that out",
    )
    return parser


def run(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Raises:
        ConalError: whatever is wrong with the command line or the machine.
    """
    options = _parser().parse_args(arguments)
    for name in ("rounds", "seconds", *(("threads",) if options.threads is not None else ())):
        if getattr(options, name) <= 0:
            raise ConfigError(f"--{name} must be more than 0, not {getattr(options, name)}")
    if min(options.envs_per_task) < 1:
        raise ConfigError(f"--envs-per-task must be at least 1, not {min(options.envs_per_task)}")
    if options.episodes < 0:
        raise ConfigError(f"--episodes must be at least 0, not {options.episodes}")
    from conal_rl.benchmarks import engine

    console = Console()
    for envs_per_task in options.envs_per_task:
        console.print(
            engine.measure(
                options.suite, envs_per_task, options.rounds, options.seconds, options.threads
            )
        )
    if options.episodes:
        console.print(engine.compare_evaluations(options.suite, options.episodes))


def main(arguments: Sequence[str] | None = None) -> int:
    """`run`, as an exit status: 0, 2 after an error reported in one line, 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
