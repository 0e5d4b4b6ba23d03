"""What a run's files say about conflicts between its tasks, and about its gates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conal_rl.config import AnyConfig, Config
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.runs.files import read_json
from conal_rl.runs.folder import Run

Array = NDArray[np.float64]

# As files and as figures name them.
NETWORKS = {"actor": "actor", "critic": "critics", "encoder": "encoder"}
METHODS = {"conal": "CoNAL", "conal_pro": "CoNAL-Pro", "ltb": "LTB", "recon": "Recon"}

_SCALAR = re.compile(r"(conflicts|gates)_(actor|critic|encoder)/(.+)/(\d+)")


@dataclass(frozen=True)
class Curve:
    """A scalar over training: steps, increasing, and values, both `(point,)`."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class Statistics:
    """Conflicts in the actor or the critics, over a whole phase.

    Attributes:
        layers: numbers of the layers, from 1.
        cosine: mean cosine of two tasks' gradients, `(layer, task, task)`; NaN where the two share
            no module, and for a task with itself.
        negative: share of steps in which it was negative, `(layer, task, task)`, NaN alike.
        held: per rule the share of steps in which it would have held each module, `(layer,)`.
    """

    layers: tuple[int, ...]
    cosine: Array
    negative: Array
    held: dict[str, Array]


@dataclass(frozen=True)
class Phase:
    """A run's search.json, a stage of CoNAL-Pro's, or training.json.

    `networks` has those with statistics.
    """

    name: str
    method: str
    tasks: tuple[str, ...]
    steps: int
    networks: dict[str, Statistics]


@dataclass(frozen=True)
class ConflictRecord:
    """What a run's folder holds on conflicts.

    Attributes:
        name: of the folder, made unique among those that are drawn together.
        method: for labels, as "CoNAL" or "HPS".
        phases: search, or its stages, and training; those that there are.
        searched: steps at the end of the search; None where there is none, or it goes on.
        negative: per network and layer (from 1) the share of negative cosines over training.
        gates: per network, choice and option (from 1) the gate's weight over the search.
    """

    name: str
    method: str
    config: AnyConfig
    phases: tuple[Phase, ...]
    searched: int | None
    negative: dict[str, dict[int, Curve]]
    gates: dict[str, dict[str, dict[int, Curve]]]

    @property
    def steps(self) -> str:
        """What the run's steps are."""
        return "env steps" if isinstance(self.config, Config) else "updates"


def read_record(folder: Path, name: str) -> ConflictRecord:
    """Read search.json, training.json and the TensorBoard files of a run.

    Raises:
        CheckpointError: `folder` does not exist, a JSON file is damaged, or there is nothing.
        ConfigError: `folder` is no run, or its config is damaged.
    """
    run = Run(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run folder")
    if not run.config_path.is_file():
        raise ConfigError(f"{run.config_path}: missing; is {folder} a run's folder?")
    config = run.config()
    stages = sorted(
        folder.glob("search-stage-*.json"), key=lambda path: (len(path.name), path.name)
    )
    search = read_phase(folder / "search.json")  # which of CoNAL-Pro is its last stage's again
    searches = [read_phase(path) for path in stages] or [search]
    read = [*searches, read_phase(folder / "training.json")]
    phases = tuple(phase for phase in read if phase is not None)
    negative: dict[str, dict[int, Curve]] = {}
    gates: dict[str, dict[str, dict[int, Curve]]] = {}
    for tag, curve in read_scalars(folder).items():
        match = _SCALAR.fullmatch(tag)
        assert match is not None
        kind, network, name_of_scalar, number = match.groups()
        if kind == "gates":
            options = gates.setdefault(network, {}).setdefault(name_of_scalar, {})
            options[int(number)] = curve
        elif name_of_scalar == "negative":
            negative.setdefault(network, {})[int(number)] = curve
    if not negative and not phases:
        raise CheckpointError(
            f"{folder}: no conflicts were counted; run it with a search, or with "
            "--agent.conflict-rule none to count conflicts"
        )
    searched = None if search is None else search.steps
    return ConflictRecord(name, _method(config, phases), config, phases, searched, negative, gates)


def read_scalars(folder: Path) -> dict[str, Curve]:
    """The conflict and gate scalars of a run's TensorBoard files, by tag.

    Each process that worked on the run left a file. Points at or after the step where a later
    process began to log are of a branch that was abandoned, and are left out; of two values at one
    step the last written counts. A file's damaged end is skipped, as TensorBoard does.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = []
    for path in folder.glob("events.out.tfevents.*"):
        try:
            files.append(_read_events(path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    found: dict[str, dict[int, float]] = {}
    end = math.inf
    for _, first_step, points in sorted(files, key=lambda file: file[0], reverse=True):
        for tag, values in points.items():
            kept = {step: value for step, value in values.items() if step < end}
            found.setdefault(tag, {}).update(kept)
        end = min(end, first_step)
    return {
        tag: Curve(*np.array(sorted(values.items()), dtype=float).T)
        for tag, values in found.items()
        if values
    }


def _read_events(path: Path) -> tuple[float, float, dict[str, dict[int, float]]]:
    """When the file was begun, the first step in it, and per tag the values of steps."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    began, first_step = math.inf, math.inf
    points: dict[str, dict[int, float]] = {}
    for event in LegacyEventFileLoader(str(path)).Load():
        began = min(began, event.wall_time)
        for value in event.summary.value:
            first_step = min(first_step, event.step)
            if _SCALAR.fullmatch(value.tag) and math.isfinite(value.simple_value):
                points.setdefault(value.tag, {})[event.step] = value.simple_value
    return began, first_step, points


def read_phase(path: Path) -> Phase | None:
    """Read a run's search.json or training.json, None where there is none.

    Raises:
        CheckpointError: it is damaged, or not such a file.
    """
    if not path.exists():
        return None
    content = read_json(path)
    try:
        tasks = tuple(map(str, content["tasks"]))
        given = {network: content[network] for network in NETWORKS if network in content}
        return Phase(
            path.stem,
            str(content["method"]),
            tasks,
            int(content["steps"]),
            {
                network: _statistics(entry, len(tasks))
                for network, entry in given.items()
                if "mean_cosine" in entry
            },
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: damaged or of an older version: no {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or of an older version: {reason}") from error


def _statistics(entry: Any, tasks: int) -> Statistics:
    cosine, negative = (
        np.array(entry[name], dtype=float) for name in ("mean_cosine", "negative_share")
    )
    layers = len(cosine)
    numbers = tuple(map(int, entry.get("layers", range(1, layers + 1))))
    if len(numbers) != layers:
        raise ValueError(f"{len(numbers)} numbers for {layers} layers")
    cosine, negative = (
        a.reshape(0, tasks, tasks) if a.size == 0 else a for a in (cosine, negative)
    )
    for array in (cosine, negative):
        if array.shape != (layers, tasks, tasks):
            raise ValueError(f"{array.shape} numbers for {layers} layers of {tasks} tasks")
    held = {rule: np.array(shares, dtype=float) for rule, shares in entry["module_held"].items()}
    for rule, shares in held.items():
        if shares.shape != (layers,):
            raise ValueError(f"{shares.shape} numbers of {rule} for {layers} layers")
    # Gradients of different modules have no inner product; it is written as 0, and so is how often
    # it was negative. Two tasks that share a module never come out so.
    apart = ((cosine == 0) & (negative == 0)) | np.eye(tasks, dtype=bool)
    cosine[apart] = negative[apart] = np.nan
    return Statistics(numbers, cosine, negative, held)


def _method(config: AnyConfig, phases: Sequence[Phase]) -> str:
    """The method's name for labels."""
    if config.agent.tree != "search":
        weighting = "" if config.agent.weighting == "equal" else f" + {config.agent.weighting}"
        return ("HPS" if config.agent.tree == "shared" else "tree") + weighting
    # A search that is not over yet has no file.
    searched: str = config.search.method
    if phases and phases[0].name.startswith("search"):
        searched = phases[0].method
    ablation = "" if config.search.purely_specific else " without specific modules"
    if searched in ("conal", "conal_pro") and config.search.rule == "none":
        ablation += " without noticing"
    return METHODS.get(searched, searched) + ablation


def mean_over_pairs(values: Array) -> Array:
    """`(layer,)` of `(layer, task, task)`: the mean over pairs that share; NaN where none does."""
    known = np.isfinite(values)
    count = known.sum(axis=(1, 2))
    total = np.where(known, values, 0.0).sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
