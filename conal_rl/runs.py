"""A run's folder: config, versions, tree, progress, checkpoints, evaluation.

Checkpoints are safetensors and JSON, so that loading one runs no code. Each appears under its name
only when it is complete, and its manifest holds the length and SHA-256 of every file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conal_rl import __version__
from conal_rl.config import AnyConfig, RunConfig, load_config
from conal_rl.errors import CheckpointError, ConalError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_MANIFEST = "manifest.json"
_STATE = "state.json"
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
                    + f", or go on with --resume {folder}" * bool(_checkpoints(folder))
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
        if not _checkpoints(folder):
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
    shipped = Path(__file__).with_name("pretrained")
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


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `path` so that it holds the old or the new content whole, also if the process dies."""
    content = data.encode() if isinstance(data, str) else data
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path, problem: type[ConalError] = CheckpointError) -> Any:
    """What a JSON file holds; raises `problem`, in one line, where it cannot be read as such."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise problem(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise problem(f"{path}: is not JSON: {error}") from error


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk, so that a rename never precedes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 1,
) -> Path:
    """Write `checkpoints/step-NNNNNNNNN` in a run's folder; return its path.

    Each group in `tensors` becomes one safetensors file, so its name is letters, digits, `_`, `-`;
    `state` (JSON types, text keys) becomes state.json. All but the newest `keep` checkpoints are
    removed once the new one is complete. A step saved twice gets `.1` behind its name, since a
    complete checkpoint is never replaced. Raises CheckpointError where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    parent = folder / "checkpoints"
    draft = parent / f".saving-step-{step:09d}"
    try:
        parent.mkdir(exist_ok=True)
        for abandoned in parent.glob(".*ing-*"):  # by a process that died in here
            shutil.rmtree(abandoned)
        draft.mkdir()
        for group, named in tensors.items():
            # A tensor that is contiguous, as replay data is, goes to the file without a copy.
            save_file({name: t.contiguous() for name, t in named.items()}, draft / _file_of(group))
        (draft / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in draft.glob("*.safetensors"):  # whose own mode is the owner's alone
            shutil.copymode(draft / _STATE, path)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(draft.iterdir())
        }
        # No newline at the end: a manifest that lost its last byte must not parse.
        (draft / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
        for path in draft.iterdir():
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"{draft}: cannot be written: {error}") from error

    older = _checkpoints(folder)
    again = [_order(path)[1] + 1 for path in older if _order(path)[0] == step]
    final = parent / (f"step-{step:09d}" + (f".{max(again)}" if again else ""))
    os.rename(draft, final)
    sync(parent)
    for path in older[: max(0, len(older) + 1 - keep)]:
        doomed = path.with_name(f".removing-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    return final


def load_checkpoint(
    folder: Path, groups: Collection[str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return tensors, on the CPU, and state of a run's newest checkpoint, or of that in `folder`.

    `groups` names the tensor groups wanted; None: all. Others are neither read nor checked.
    Raises CheckpointError, naming the file, where one is missing or not as it was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if re.match(r"step-\d", folder.name) or (folder / _MANIFEST).is_file():
        checkpoint = folder
    else:
        complete = _checkpoints(folder)
        if not complete:
            raise CheckpointError(f"{folder / 'checkpoints'}: no complete checkpoint")
        checkpoint = complete[-1]
    files = _read_manifest(checkpoint)
    wanted = sorted(set(files) - {_STATE} if groups is None else map(_file_of, groups))
    for name in (_STATE, *wanted):
        if name not in files:
            raise CheckpointError(f"{checkpoint / name}: not part of this checkpoint")
        _check(checkpoint / name, files[name])
    try:
        tensors = {Path(name).stem: load_file(checkpoint / name) for name in wanted}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot be read: {error}") from error
    return tensors, read_json(checkpoint / _STATE)


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
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository further up is not ours
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def _file_of(group: str) -> str:
    return f"{group}.safetensors"


def _order(checkpoint: Path) -> tuple[int, int]:
    step, _, attempt = checkpoint.name.removeprefix("step-").partition(".")
    return int(step), int(attempt or 0)


def _checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((p for p in found if re.fullmatch(r"step-\d+(\.\d+)?", p.name)), key=_order)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Return length and SHA-256 of each of the checkpoint's files."""
    path = checkpoint / _MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, the checkpoint is not complete")
    manifest = read_json(path)
    try:
        files = manifest["files"]
        plain = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, not a checkpoint's manifest") from error
    for name in plain:
        # A name from a stranger's manifest must not lead out of the checkpoint.
        if name != _STATE and not re.fullmatch(r"[\w-]+\.safetensors", name):
            raise CheckpointError(f"{path}: damaged, {name!r} is no checkpoint file")
    return plain


def _check(path: Path, written: tuple[int, str]) -> None:
    """Raise CheckpointError where a file is not as the manifest says it was written."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    size = path.stat().st_size
    if size != written[0]:
        raise CheckpointError(f"{path}: has {size} bytes, not the {written[0]} written")
    if _sha256(path) != written[1]:
        raise CheckpointError(f"{path}: altered since it was written")
