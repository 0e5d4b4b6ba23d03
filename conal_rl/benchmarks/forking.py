"""The train command of any checkout in a fork of this process, where torch is imported already.

Imports take several seconds of every command, and small runs take less than one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
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
    "tyro",
    "yaml",
)
"""What runs import, slowest and most often."""


def import_packages() -> None:
    """Import what runs need, once for all forks, with one thread of torch.

    A fork has only one thread: torch must not have started others before.
    """
    for name in PACKAGES:
        with contextlib.suppress(Exception):  # the run that needs it says what is wrong
            importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def train_in_fork(checkout: Path, arguments: Sequence[str], log: str) -> int:
    """Run `python -m conal_rl.train ARGUMENTS` in and of `checkout`; return its exit status.

    Args:
        checkout: folder that has the package; the working folder of the command.
        arguments: of the command.
        log: file that its output goes to.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _train(checkout, arguments, log)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _train(checkout: Path, arguments: Sequence[str], log: str) -> NoReturn:
    """Never returns: nothing of the parent process runs a second time."""
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
    except BaseException:  # as Python itself does at the end of a program
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
