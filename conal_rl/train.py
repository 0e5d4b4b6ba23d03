"""`python -m conal_rl.train NAME_OR_YAML` searches trees, trains them and evaluates, in one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conal_rl.cli import exit_status

if TYPE_CHECKING:
    from conal_rl.config import AnyConfig
    from conal_rl.runs.experiment import Experiment


def run(arguments: Sequence[str]) -> int:
    """Start or resume the run that the command line describes; return the exit status.

    Raises:
        ConalError: the command line, the run or the machine is at fault.
    """
    # Imported here, so that --help answers at once, and Ctrl-C is handled meanwhile.
    from conal_rl.config import parse_command_line

    command = parse_command_line(arguments, __doc__ or "")
    import torch

    from conal_rl.device import resolve_device, tune_malloc
    from conal_rl.runs.folder import Run
    from conal_rl.runs.trainer import Trainer

    # Absolute paths come first, because an env may change the working folder.
    config, runs = command.config.with_whole_paths(), Path("runs").absolute()
    tune_malloc()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    resolve_device("device", config.device)
    if command.resume is not None:
        run = Run.open(command.resume)
        with run.locked():
            return Trainer.resume(run, _experiment(config)).run_phases()
    trainer = Trainer.start(_experiment(config), command.out, runs, command.label)
    if command.cut is not None:
        print(command.cut, file=sys.stderr)
    with trainer.run.locked():
        return trainer.run_phases()


def _experiment(config: AnyConfig) -> Experiment:
    from conal_rl.config import Config

    if isinstance(config, Config):
        from conal_rl.agents.experiment import SACExperiment

        return SACExperiment(config)
    from conal_rl.supervised.experiment import SupervisedExperiment

    return SupervisedExperiment(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 after an error of one line, or 128 + a signal's number."""
    return exit_status(lambda: run(sys.argv[1:] if argv is None else list(argv)))


if __name__ == "__main__":
    sys.exit(main())
