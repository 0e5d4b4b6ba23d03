"""`python -m conal_rl.evaluate RUN_OR_CHECKPOINT` prints how well a trained network does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conal_rl.cli import Parser, add_data_root, exit_status
from conal_rl.config import SupervisedConfig
from conal_rl.device import resolve_device
from conal_rl.errors import ConfigError
from conal_rl.files import is_writable, user_path, write_json
from conal_rl.runs.folder import find_run, is_shared_model, run_of


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.evaluate", description=__doc__)
    parser.add_argument(
        "path",
        type=find_run,
        metavar="RUN_OR_CHECKPOINT",
        help="The folder of a run, one of the folders in its checkpoints/, a copy of its model/, "
        "or pretrained:NAME.",
    )
    suite = (
        "The suite of a copied model/, or its tasks with commas. The default is found by the names "
        "of its tasks. Give it for cartpole:proportional."
    )
    parser.add_argument("--suite", help=suite)
    episodes = (
        "The number of episodes per task. The default is the run's evaluation.episodes. Raise it "
        "for a narrower interval."
    )
    seed = (
        "The seed of the goals and of the envs. The default is the run's evaluation.seed. "
        "Change it to draw different goals."
    )
    parser.add_argument("--episodes", type=int, metavar="N", help=episodes)
    parser.add_argument("--seed", type=int, metavar="N", help=seed)
    parser.add_argument(
        "--engine",
        choices=("official", "native"),
        help="The engine that steps Meta-World's envs. The default is official, which has the "
        "benchmark's own envs. Choose native to be faster; it plays the same episodes.",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="The device of the network, such as cpu or cuda. The default is %(default)s. "
        "Name one if auto chooses a device that is busy.",
    )
    add_data_root(parser)
    result = (
        "The file for the result in JSON. A pipe or a device, such as /dev/stdout, receives the "
        "JSON too. By default, no file is written."
    )
    folder = "The folder for a video of each task. By default, no video is made."
    parser.add_argument("--json", type=_output, metavar="FILE", help=result)
    parser.add_argument("--video", type=_output, metavar="DIR", help=folder)
    return parser


def _output(text: str) -> Path:
    """Return an absolute path, because an env may change the working folder."""
    return user_path(text).absolute()


def run(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, print the table, and write the files that the command line names.

    Raises:
        ConalError: the command line, the run or the machine is at fault.
    """
    options = _parser().parse_args(arguments)
    if options.json is not None and not is_writable(options.json):
        raise ConfigError(
            f"--json: got {options.json}, expected a file in a folder that exists, both writable. "
            "Make the folder first"
        )
    shared = is_shared_model(options.path)
    if options.suite is not None and not shared:
        raise ConfigError(
            f"--suite: got {options.path}, which names its suite, expected a copy of a model/. "
            "Leave out --suite"
        )
    config = None if shared else run_of(options.path).config()
    resolve_device("--device", options.device)
    if isinstance(config, SupervisedConfig):
        _test(config, options)
    else:
        _play(options)


def _test(config: SupervisedConfig, options: argparse.Namespace) -> None:
    for name in ("episodes", "seed", "engine", "video"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name}: got {options.path}, expected an RL run with it. Leave out --{name}"
            )
    from conal_rl.runs.experiment import decide_precision
    from conal_rl.runs.progress import evaluation_bar
    from conal_rl.supervised.evaluation import load_network, report_table, test

    config = config.with_root(options.root)
    network, problem = load_network(options.path, config, options.device)
    device, recorded = next(network.parameters()).device, run_of(options.path).precision()
    precision = decide_precision(device, config.agent.mixed_precision, recorded, "float16")
    with evaluation_bar("batches") as show:
        report = test(network, problem, config, device, precision, show)
    _write_and_print(report, options.json, report_table(report))


def _play(options: argparse.Namespace) -> None:
    if options.root is not None:
        raise ConfigError(
            f"--data.root: got {options.path}, expected a supervised run with it. "
            "Leave out --data.root"
        )
    # Here, so that --help and wrong options answer at once.
    from conal_rl import evaluation
    from conal_rl.agents.experiment import load_policy
    from conal_rl.runs.progress import evaluation_bar

    policy, config = load_policy(options.path, options.device)
    suite = config.env.suite
    if options.suite is not None:
        suite = tuple(options.suite.split(",")) if "," in options.suite else options.suite
    if options.video is not None:
        evaluation.prepare_videos(suite, options.video)
    episodes = config.evaluation.episodes if options.episodes is None else options.episodes
    seed = config.evaluation.seed if options.seed is None else options.seed
    if seed == config.seed and not is_shared_model(options.path):
        print(
            f"The seed {seed} is also the seed of training, so the goals are the same.",
            file=sys.stderr,
        )
    with evaluation_bar("episodes") as show:
        result = evaluation.evaluate_policy(
            policy,
            suite,
            episodes,
            seed,
            options.engine or "official",
            show,
        )
    _write_and_print(result.to_json(), options.json, result.table())
    if options.video is not None:
        print(f"A video of each task follows, in {options.video}.", file=sys.stderr)
        evaluation.record_videos(policy, suite, seed, options.video, _print)


def _print(path: Path) -> None:
    print(path, flush=True)  # as soon as the video is there


def _write_and_print(report: dict[str, Any], file: Path | None, table: Table) -> None:
    """Write the result, then print it; what fails does not keep the other from its turn."""
    try:
        if file is not None:
            write_json(file, report, through=True)
    finally:
        Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 after an error of one line, or 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
