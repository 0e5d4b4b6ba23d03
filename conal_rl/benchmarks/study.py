"""The runs of a table. Each one is a separate process, and later calls use its folder again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

from conal_rl.config import AnyConfig, load_config
from conal_rl.errors import ConalError, ConfigError
from conal_rl.runs.folder import Run

Item = TypeVar("Item")
_running: set[subprocess.Popen[str]] = set()
_turn, _stopping = Lock(), Event()


def finish(run: Path, arguments: Sequence[str], what: str) -> None:
    """Finish the run of `python -m conal_rl.train ARGUMENTS --out RUN`.

    A run that is finished is not changed. A run with a checkpoint resumes.

    Args:
        run: The run's folder.
        arguments: The preset and its options.
        what: The name of the run in errors.

    Raises:
        ConalError: The run failed, or the folder has a run of different settings.
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
    elif (run / "config.yaml").is_file():  # it stopped before its first checkpoint
        with Run(run).locked():
            shutil.rmtree(run)
    start("conal_rl.train", command, what)


def require_config(run: Path, config: AnyConfig) -> None:
    """Check that the folder does not have a run of different settings.

    Raises:
        ConfigError: It has one.
    """
    written = run / "config.yaml"
    if written.is_file() and _anywhere(load_config(written)) != _anywhere(config):
        raise ConfigError(
            f"{run}: got a run of different settings, expected none or one of the same settings. "
            "Choose a different --out, or remove the run"
        )


def _anywhere(config: AnyConfig) -> AnyConfig:
    """Return the config with a tree that only its run names, so that a study may move."""
    tree = Path(config.agent.tree)
    if tree.suffix != ".json":
        return config
    agent: Any = replace(config.agent, tree="/".join(tree.parts[-2:]))
    return replace(config, agent=agent)


def start(module: str, arguments: Sequence[str], what: str) -> None:
    """Run `python -m MODULE ARGUMENTS` with one torch thread, and print when it starts and ends.

    Small networks learn fastest with one thread, and other runs can use the other cores.

    Raises:
        ConalError: The process failed. The message has the last line of its output.
    """
    print(f"{what}: starts", file=sys.stderr)
    began = time.monotonic()
    with _turn:
        if _stopping.is_set():
            raise ConalError(f"{what}: the command was interrupted before the run began")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        _running.add(process)
    with process:
        _, printed = process.communicate()
    with _turn:
        _running.discard(process)
    if process.returncode:
        last = (printed.strip().splitlines() or ["no message"])[-1]
        error = last.removeprefix("error: ")
        if error == last:  # a traceback, or the process was killed
            error = f"exit status {process.returncode} after: {last}"
        raise ConalError(f"{what}: {error}")
    print(f"{what}: done in {(time.monotonic() - began) / 60:.0f} min", file=sys.stderr)


def run_all(run: Callable[[Item], object], items: Iterable[Item], jobs: int) -> None:
    """Call `run` for each item in order, `jobs` of them at a time.

    If a signal interrupts it, no run begins any more, and those under way write a checkpoint.

    Raises:
        ConalError: A run failed. The runs under way end first.
    """
    try:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(run, items))
            except KeyboardInterrupt:
                _stop_all()
                raise
    finally:
        _stopping.clear()


def _stop_all() -> None:
    with _turn:
        _stopping.set()
        for process in _running:
            process.terminate()
    print("The runs stop and write checkpoints. The same command resumes them.", file=sys.stderr)


def slug(method: str, seed: int) -> str:
    """Return the name of the folder of a method's run."""
    words = "".join(letter if letter.isalnum() else " " for letter in method.lower()).split()
    return "-".join([*words, str(seed)])
