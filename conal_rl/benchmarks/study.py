"""Runs that a table is made of: each a process of its own, in a folder that a later call finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conal_rl.envs.native.engine import usable_cores
from conal_rl.errors import ConalError


def finish(run: Path, arguments: Sequence[str], what: str, threads: int) -> None:
    """See to it that `run` is a finished run of `python -m conal_rl.train ARGUMENTS --out RUN`.

    A finished one is left alone, and one with a checkpoint goes on.

    Args:
        what: names it in errors.
        threads: of the process.

    Raises:
        ConalError: it failed.
    """
    if (run / "evaluation.json").is_file():
        return
    command = [*arguments, "--out", str(run)]
    if any(run.glob("checkpoints/step-*")):
        command = ["--resume", str(run)]
    elif run.exists():
        shutil.rmtree(run)
    start("conal_rl.train", command, what, threads)


def start(module: str, arguments: Sequence[str], what: str, threads: int) -> None:
    """`python -m MODULE ARGUMENTS` on this many threads, without its output.

    Raises:
        ConalError: with its last line, where it failed.
    """
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConalError(f"{what}: {last[0].removeprefix('error: ')}")


def threads_each(jobs: int) -> int:
    """Threads for each of so many runs side by side: together they take the cores there are."""
    return max(1, usable_cores() // jobs)


def slug(method: str, seed: int) -> str:
    """Name of the folder of a method's run."""
    words = "".join(letter if letter.isalnum() else " " for letter in method.lower()).split()
    return "-".join([*words, str(seed)])
