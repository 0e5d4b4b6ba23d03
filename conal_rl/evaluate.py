"""`python -m conal_rl.evaluate RUN_OR_CHECKPOINT`: success, or test scores, of what was trained."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from conal_rl.cli import Parser, exit_status, loading_mujoco
from conal_rl.config import AnyConfig, Config, SupervisedConfig, load_config
from conal_rl.device import resolve_device
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.runs.files import atomic_write
from conal_rl.runs.folder import find_run

if TYPE_CHECKING:
    from conal_rl.agents import ConalSAC


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.evaluate", description=__doc__)
    parser.add_argument(
        "path",
        type=find_run,
        metavar="RUN_OR_CHECKPOINT",
        help="a run's folder, one of the folders under its checkpoints/, or pretrained:NAME",
    )
    parser.add_argument("--episodes", type=int, help="per task (default: as the run's config)")
    parser.add_argument("--seed", type=int, help="of goals and envs (default: as the config)")
    parser.add_argument(
        "--engine",
        choices=("official", "native"),
        help="for Meta-World: the benchmark's own envs or the fast ones (default: official)",
    )
    parser.add_argument("--device", default="auto", help="of the network (default: %(default)s)")
    add_root(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument(
        "--video", type=Path, metavar="DIR", help="film each Meta-World task, solved if it is"
    )
    return parser


def add_root(parser: argparse.ArgumentParser) -> None:
    """Let a command say where a supervised run's data are now."""
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="of a supervised run's data, if they moved"
    )


def at_root(config: SupervisedConfig, root: str | None) -> SupervisedConfig:
    """The config with its data there, unless that is None."""
    if root is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))


def load_policy(path: Path, device: str = "auto") -> tuple[ConalSAC, Config]:
    """The agent of a run or of one of its checkpoints, and the config that it was trained with.

    Raises:
        CheckpointError: `path` is neither, or its files are damaged.
        ConfigError: the run's config.yaml is damaged.
    """
    from conal_rl.agents import ConalSAC
    from conal_rl.agents.storage import build

    path = path.resolve()
    config = config_of(path)
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: a supervised run; there is no agent in it")
    if (path / "model").is_dir():
        return ConalSAC.load_weights(path / "model", device), config
    tensors, state = load_checkpoint(path, groups=["policy"])
    return build(state.get("agent", {}).get("model"), tensors["policy"], device, path), config


def config_of(path: Path) -> AnyConfig:
    """The config of a run's folder, or of the run that a checkpoint belongs to.

    Raises:
        CheckpointError: `path` is neither.
        ConfigError: the run's config.yaml is missing or damaged.
    """
    path = path.resolve()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if (path / "state.json").is_file():
        return load_config(path.parents[1] / "config.yaml")
    if not any((path / part).is_dir() for part in ("model", "checkpoints")):
        raise CheckpointError(
            f"{path}: neither a run, with model/ or checkpoints/, nor a checkpoint"
        )
    return load_config(path / "config.yaml")


def write_json(report: Mapping[str, Any], file: Path) -> None:
    """Write atomically: readers see the old file or the whole new one.

    Raises:
        ConfigError: `file` cannot be written.
    """
    try:
        atomic_write(file, json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error


def run(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, print the table, write what was asked for.

    Raises:
        ConalError: whatever is wrong with the command line, the run or the machine.
    """
    options = _parser().parse_args(arguments)
    if options.json is not None and options.json.is_dir():
        raise ConfigError(f"cannot write {options.json}: it is a folder")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"cannot write {options.json}: its folder does not exist")
    config = config_of(options.path)
    resolve_device("--device", options.device)
    if isinstance(config, SupervisedConfig):
        _test(config, options)
    else:
        _play(options)


def _test(config: SupervisedConfig, options: argparse.Namespace) -> None:
    for name in ("episodes", "seed", "engine", "video"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: {options.path} is a supervised run, without episodes")
    from conal_rl.supervised.evaluation import load_network, print_report, test

    config = at_root(config, options.root)
    network, problem = load_network(options.path, config, options.device)
    report = test(network, problem, config, next(network.parameters()).device)
    print_report(report)
    if options.json is not None:
        write_json(report, options.json)


def _play(options: argparse.Namespace) -> None:
    if options.root is not None:
        raise ConfigError(f"--data.root: {options.path} is a run in RL, without data")
    with loading_mujoco():
        from conal_rl import evaluation  # here, so that --help and wrong options answer at once
    policy, config = load_policy(options.path, options.device)
    suite = config.env.suite
    if options.video is not None:
        evaluation.prepare_videos(suite, options.video)
    episodes = config.evaluation.episodes if options.episodes is None else options.episodes
    seed = config.evaluation.seed if options.seed is None else options.seed
    if seed == config.seed:
        print(f"seed {seed} is that of training: so are the goals", file=sys.stderr)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("episodes", total=None)
        result = evaluation.evaluate_policy(
            policy,
            suite,
            episodes,
            seed,
            options.engine or "official",
            lambda done, wanted: bar.update(task, completed=done, total=wanted),
        )
    Console().print(result.table())
    if options.json is not None:
        write_json(result.to_json(), options.json)
    if options.video is not None:
        for video in evaluation.record_videos(policy, suite, seed, options.video):
            print(video)


def main(arguments: Sequence[str] | None = None) -> int:
    """`run`, as an exit status: 0, 2 after an error reported in one line, 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
