"""The train command of any checkout in a fork of this process, which has already imported torch.

Imports take several seconds of every command, and small runs take less than one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PACKAGES = (
    "torch",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchjd.aggregation",
    "safetensors.torch",
    "stable_baselines3",
    "gymnasium",
    "mujoco",
    "metaworld",
    "numba",
    "scipy.stats",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "rich.progress",
    "yaml",
)
"""Packages that runs import and that load slowly."""


def import_packages() -> None:
    """Import the packages of runs, once for all forks, with one thread of torch.

    A fork has only one thread, so that torch must not start more before it.
    """
    for name in PACKAGES:
        with contextlib.suppress(Exception):  # a run that needs it reports the error
            importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def train_in_fork(checkout: Path, arguments: Sequence[str], log: str) -> int:
    """Run `python -m conal_rl.train ARGUMENTS` of `checkout`, in it; return its exit status.

    Args:
        checkout: folder of the package, and working folder of the command.
        arguments: the arguments of the command.
        log: file for its output.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _train(checkout, arguments, log)
    try:
        _, ended = os.waitpid(child, 0)
    except KeyboardInterrupt:  # the child writes a checkpoint before its folder may go
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(ended)


def _train(checkout: Path, arguments: Sequence[str], log: str) -> NoReturn:
    """Train and exit; it never returns, so that no code of the parent runs a second time."""
    status = 1
    try:
        sys.stdout = sys.stderr = open(log, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        for descriptor in (1, 2):
            os.dup2(sys.stderr.fileno(), descriptor)
        os.chdir(checkout)
        for name in [name for name in sys.modules if name.partition(".")[0] == "conal_rl"]:
            del sys.modules[name]
        sys.path.insert(0, str(checkout))
        importlib.invalidate_caches()
        package = importlib.import_module("conal_rl").__file__
        if package != str(checkout / "conal_rl" / "__init__.py"):
            sys.exit(f"{package} was imported, expected that of {checkout}. Uninstall conal_rl.")
        sys.argv[1:] = arguments
        runpy.run_module("conal_rl.train", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # like Python at the end of a program
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
