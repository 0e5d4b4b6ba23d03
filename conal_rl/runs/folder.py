"""A run's folder: config, versions, tree, progress, checkpoints, evaluation."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conal_rl import __version__
from conal_rl.config import AnyConfig, RunConfig, load_config
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.runs.checkpoints import checkpoints_of
from conal_rl.runs.files import atomic_write

_PACKAGES = ("gymnasium", "metaworld", "mujoco", "numpy", "stable-baselines3", "torch")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder and the places in it."""

    folder: Path

    @classmethod
    def create(cls, config: RunConfig, out: Path | None = None) -> Run:
        """Make the folder, by default `runs/NAME-SEED-TIME`, and write config.yaml, versions.json.

        Raises ConfigError where `out` holds files already or cannot be made.
        """
        try:
            folder = out or _new_folder(Path("runs"), config)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(
                    f"{folder}: holds files already; choose another --out"
                    + f", or go on with --resume {folder}" * bool(checkpoints_of(folder))
                )
            run = cls(folder)
            atomic_write(run.config_path, config.to_yaml())
            atomic_write(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot make the run: {error.strerror}") from error
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Return the run in `folder`, to go on with it or to evaluate it.

        Raises ConfigError or CheckpointError where the folder, its config or any checkpoint is
        missing.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such run folder")
        if not any(folder.iterdir()):
            raise CheckpointError(f"{folder}: empty, there is no run in it")
        run = cls(folder)
        if not run.config_path.is_file():
            raise ConfigError(f"{run.config_path}: missing; is {folder} a run's folder?")
        if not checkpoints_of(folder):
            raise CheckpointError(
                f"{run.checkpoints_path}: no complete checkpoint to go on from; where no process "
                "is training in it, start the run anew with another --out"
            )
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile; this one's end gives it free as well.

        Raises CheckpointError where another process is at it.
        """
        import fcntl  # not above: evaluation needs no lock, and Windows has none of these

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    f"{self.folder}: another process is training in it; wait for it, or stop it"
                ) from error
            except OSError:
                pass  # some network file systems lock no folders
            yield
        finally:
            os.close(descriptor)

    def config(self) -> AnyConfig:
        """Read the run's config.yaml."""
        return load_config(self.config_path)

    @property
    def config_path(self) -> Path:
        """The config, complete with defaults and overrides."""
        return self.folder / "config.yaml"

    @property
    def tree_path(self) -> Path:
        """The derived trees."""
        return self.folder / "tree.json"

    @property
    def progress_path(self) -> Path:
        """One row of metrics per log line."""
        return self.folder / "progress.csv"

    @property
    def checkpoints_path(self) -> Path:
        """One folder per checkpoint."""
        return self.folder / "checkpoints"

    @property
    def evaluation_path(self) -> Path:
        """Success per task after training."""
        return self.folder / "evaluation.json"


def find_run(text: str) -> Path:
    """The folder that a command line means: a path, or `pretrained:NAME`, what ships with us.

    Raises:
        CheckpointError: nothing of that name ships.
    """
    kind, _, name = text.partition(":")
    if kind != "pretrained":
        return Path(text)
    shipped = Path(__file__).parents[1] / "pretrained"
    names = sorted(path.name for path in shipped.glob("*") if (path / "model").is_dir())
    if name not in names:
        known = ", ".join(names) or "none"
        raise CheckpointError(f"{text}: no such weights ship with conal_rl; there are {known}")
    return shipped / name


def versions() -> dict[str, str | int | None]:
    """Return what ran: Python, the packages that matter, the machine, the git commit if any."""
    found: dict[str, str | int | None] = {
        "conal_rl": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _new_folder(parent: Path, config: RunConfig) -> Path:
    """Make and return a folder that no other run, started in the same second, has."""
    stem = f"{config.name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1000):
        folder = parent / (f"{stem}-{attempt}" if attempt else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"{parent / stem}: exists a thousand times; give --out")


def _commit() -> str | None:
    """Return the commit of the checkout that this package lies in, `-dirty` if edited since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository further up is not ours
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None
