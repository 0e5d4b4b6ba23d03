"""`python -m conal_rl.train NAME_OR_YAML`: search, derive, train, evaluate, in one budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from conal_rl.cli import exit_status
from conal_rl.config import AnyConfig, Config, parse_command_line
from conal_rl.device import resolve_device, tune_malloc
from conal_rl.runs.folder import Run


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, 2 (one line on stderr), or 130 after Ctrl-C."""
    return exit_status(lambda: run(sys.argv[1:] if argv is None else list(argv)))


def run(arguments: Sequence[str]) -> int:
    """Start or resume what the command line asks for; returns the exit status.

    Raises:
        ConalError: whatever is wrong with the command line, the run or the machine.
    """
    command = parse_command_line(arguments, __doc__ or "")
    tune_malloc()
    if command.config.threads is not None:
        torch.set_num_threads(command.config.threads)
    resolve_device("device", command.config.device)
    kind = _kind(command.config)
    if command.resume is not None:
        run = Run.open(command.resume)
        with run.alone():
            return kind.resume(run, command.config).run_phases()
    training = kind.start(command.config, command.out)
    with training.run.alone():
        return training.run_phases()


def _kind(config: AnyConfig) -> Any:
    if isinstance(config, Config):
        from conal_rl.agents.experiment import SACExperiment

        return SACExperiment
    from conal_rl.supervised.experiment import SupervisedExperiment

    return SupervisedExperiment


if __name__ == "__main__":
    sys.exit(main())
