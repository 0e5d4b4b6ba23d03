"""A run's folder: config, versions, tree, progress, checkpoints, evaluation."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from conal_rl.config import AnyConfig, RunConfig, load_config
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.files import (
    DRAFTS,
    atomic_write,
    read_json,
    restore_folder,
    user_path,
    write_json,
)
from conal_rl.literals import Precision
from conal_rl.runs.checkpoints import checkpoints_of
from conal_rl.version import __version__

_PACKAGES = ("gymnasium", "metaworld", "mujoco", "numpy", "stable-baselines3", "torch")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, whose path is absolute, and the places in it."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder.absolute())

    @classmethod
    def create(
        cls,
        config: RunConfig,
        out: Path | None = None,
        precision: Precision = "single",
        runs: Path = Path("runs"),
        label: str | None = None,
    ) -> Run:
        """Make the folder `out`, by default `runs/LABEL-SEED-TIME`, with config and versions.

        The default of `label` is the config's name.

        Raises:
            ConfigError: `out` holds files already or cannot be made.
        """
        try:
            folder = out or _new_folder(runs, f"{label or config.name}-{config.seed}")
            folder.mkdir(parents=True, exist_ok=True)
            if any(not path.name.startswith(DRAFTS) for path in folder.iterdir()):
                resume = f", or resume the run there with --resume {folder}"
                raise ConfigError(
                    f"--out: got {folder}, expected a new or empty folder. Give a different one"
                    f"{resume if checkpoints_of(folder) else ''}"
                )
            run = cls(folder)
            atomic_write(run.config_path, config.to_yaml())
            write_json(run.versions_path, versions() | {"precision": precision})
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: got {error.strerror}, expected a writable folder. Give a "
                "different --out"
            ) from error
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Return the run in `folder`, to resume it.

        Raises:
            CheckpointError: the folder is missing or empty, or it has no complete checkpoint.
            ConfigError: it has no config.yaml.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: got no folder, expected a run. Check the path")
        if not any(folder.iterdir()):
            raise CheckpointError(f"{folder}: got an empty folder, expected a run. Check the path")
        run = cls(folder)
        if not run.config_path.is_file():
            raise ConfigError(
                f"{run.config_path}: got no file, expected a config. Give the folder of a run"
            )
        if not checkpoints_of(folder):
            raise CheckpointError(
                f"{run.checkpoints_path}: got no complete checkpoint, expected one to resume from. "
                "Wait for the process that trains here, or start the run again with a different "
                "--out"
            )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here during the block, or until this one ends.

        Raises:
            CheckpointError: a different process holds the lock.
        """
        import fcntl  # imported here because Windows lacks it, and evaluation needs no lock

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    f"{self.folder}: got a run that a different process trains, expected an idle "
                    "one. Wait for the process, or stop it"
                ) from error
            except OSError:
                pass  # some network file systems cannot lock a folder
            yield
        finally:
            os.close(descriptor)

    def config(self) -> AnyConfig:
        """Read the run's config.yaml."""
        return load_config(self.config_path)

    def precision(self) -> Precision | None:
        """Read the precision that the run computes in; None if no file records it.

        Raises:
            CheckpointError: versions.json or model.json is damaged.
        """
        described = _read_object(self.versions_path)
        if "precision" in described:
            return _precision(self.versions_path, described["precision"])
        # Version 0.1.0 recorded an agent's precision only with its weights.
        architecture = _read_object(self.folder / "model" / "model.json").get("architecture")
        if not isinstance(architecture, dict) or "mixed_precision" not in architecture:
            return None
        return "bfloat16" if architecture["mixed_precision"] else "single"

    def record_precision(self, precision: Precision) -> None:
        """Write to versions.json that the run computes in this precision from now on."""
        write_json(self.versions_path, _read_object(self.versions_path) | {"precision": precision})

    @property
    def versions_path(self) -> Path:
        """The versions of the packages, the machine, and the precision."""
        return self.folder / "versions.json"

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
        """The log: a row of metrics per line."""
        return self.folder / "progress.csv"

    @property
    def checkpoints_path(self) -> Path:
        """One folder per checkpoint."""
        return self.folder / "checkpoints"

    @property
    def evaluation_path(self) -> Path:
        """The result of the evaluation after training."""
        return self.folder / "evaluation.json"


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file is missing."""
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: got {type(content).__name__}, expected a JSON object. Restore the file"
        )
    return content


def _precision(path: Path, name: Any) -> Precision:
    for known in get_args(Precision):
        if name == known:
            return known
    names = ", ".join(get_args(Precision))
    raise CheckpointError(
        f"{path}: precision: got {name!r}, expected one of {names}. Restore the file"
    )


def find_run(text: str) -> Path:
    """Return the folder of a run that a command line names.

    Args:
        text: a path, or `pretrained:NAME` for weights that come with the package.

    Raises:
        CheckpointError: no weights of that name come with the package.
    """
    kind, _, name = text.partition(":")
    if kind != "pretrained":
        return user_path(text)
    shipped = Path(__file__).parents[1] / "pretrained"
    names = sorted(path.name for path in shipped.glob("*") if (path / "model").is_dir())
    if name not in names:
        known = ", ".join(names) or "none"
        raise CheckpointError(
            f"pretrained: got {name!r}, expected one of {known}. Give one of them"
        )
    return shipped / name


def is_model(path: Path) -> bool:
    """Return whether a folder has the files of a model: a run's `model/`, or a copy of it."""
    return (path / "model.json").is_file()


def is_shared_model(path: Path) -> bool:
    """Return whether a folder has weights to share, and no run around it."""
    path = path.resolve()
    return is_model(path) and not (path.name == "model" and Run(path.parent).config_path.is_file())


def run_of(path: Path) -> Run:
    """Return the run in a folder, or the run that a checkpoint or a `model/` belongs to.

    Raises:
        CheckpointError: `path` is none of them.
    """
    path = path.resolve()
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: got no folder, expected a run or a checkpoint. Check the path"
        )
    restore_folder(path / "model")
    if (path / "state.json").is_file():
        return Run(path.parents[1])
    if is_model(path):
        return Run(path.parent)
    if not any((path / part).is_dir() for part in ("model", "checkpoints")):
        raise CheckpointError(
            f"{path}: got a different folder, expected a run (with model/ or checkpoints/) or "
            "one of its checkpoints. Check the path"
        )
    return Run(path)


def versions() -> dict[str, str | int | None]:
    """Return the versions of Python and of important packages, the machine, and the git commit."""
    record: dict[str, str | int | None] = {
        "conal_rl": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for package in _PACKAGES:
        try:
            record[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record[package] = None
    return record


def _new_folder(parent: Path, name: str) -> Path:
    """Make and return a new folder, also if several runs start within one second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1000):
        folder = parent / (f"{stem}-{attempt}" if attempt else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ConfigError(
        f"{parent / stem}: got a thousand folders of this name, expected fewer. Give --out"
    )


def _commit() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` if files have changed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository in a parent folder is not ours
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
