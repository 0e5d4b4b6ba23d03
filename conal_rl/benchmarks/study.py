"""Runs that a table is made of: each a process of its own, in a folder that a later call finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conal_rl.config import AnyConfig, load_config
from conal_rl.errors import ConalError, ConfigError
from conal_rl.runs.folder import Run


def finish(run: Path, arguments: Sequence[str], what: str) -> None:
    """See to it that `run` is a finished run of `python -m conal_rl.train ARGUMENTS --out RUN`.

    A finished one is left alone, and one with a checkpoint goes on, where they are of the same
    config.

    Args:
        what: names it in errors.

    Raises:
        ConalError: it failed, or the folder has a run of another config.
    """
    try:
        config = load_config(arguments[0], arguments[1:])
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    require_config(run, config)
    if (run / "evaluation.json").is_file():
        return
    command = [*arguments, "--out", str(run)]
    if any(run.glob("checkpoints/step-*")):
        command = ["--resume", str(run)]
    elif (run / "config.yaml").is_file():  # stopped before its first checkpoint
        with Run(run).locked():
            shutil.rmtree(run)
    start("conal_rl.train", command, what)


def require_config(run: Path, config: AnyConfig) -> None:
    """Raise ConfigError where the folder has a run of another config."""
    written = run / "config.yaml"
    if written.is_file() and _anywhere(load_config(written)) != _anywhere(config):
        raise ConfigError(f"{run}: has a run of other settings; choose another --out, or remove it")


def _anywhere(config: AnyConfig) -> AnyConfig:
    """The same for a study in any folder: a tree is named by its run alone."""
    tree = Path(config.agent.tree)
    if tree.suffix != ".json":
        return config
    agent: Any = replace(config.agent, tree="/".join(tree.parts[-2:]))
    return replace(config, agent=agent)


def start(module: str, arguments: Sequence[str], what: str) -> None:
    """`python -m MODULE ARGUMENTS` with one thread of torch; of its output only a line at its end.

    Networks as small as these learn fastest on one, and others can run beside them.

    Raises:
        ConalError: with its last line, where it failed.
    """
    print(f"{what}: begins", file=sys.stderr)
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        error = last.removeprefix("error: ")
        if error == last:  # it did not end with an error of ours: a traceback, or it was killed
            error = f"exit status {ran.returncode} after: {last}"
        raise ConalError(f"{what}: {error}")
    print(f"{what}: done in {(time.monotonic() - began) / 60:.0f} min", file=sys.stderr)


def slug(method: str, seed: int) -> str:
    """Name of the folder of a method's run."""
    words = "".join(letter if letter.isalnum() else " " for letter in method.lower()).split()
    return "-".join([*words, str(seed)])
