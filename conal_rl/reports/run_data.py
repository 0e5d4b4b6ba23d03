"""The conflicts between a run's tasks and its gates, read from the run's files."""

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
from conal_rl.files import read_json, require_regular
from conal_rl.runs.folder import Run

Array = NDArray[np.float64]

# The name in files, then the name in figures.
NETWORKS = {"actor": "actor", "critic": "critics", "encoder": "encoder"}
FIXED = {"shared": "HPS", "independent": "STL"}
METHODS = {"conal": "CoNAL", "conal_pro": "CoNAL-Pro", "ltb": "LTB", "recon": "Recon"}

_SCALAR = re.compile(r"(conflicts|gates)_(actor|critic|encoder)/(.+)/(\d+)")
_TREE = "tree_"  # how these tags begin; older runs lack it
_ONCE = ("config/", "final/")  # tags that a process writes at its start and its end


@dataclass(frozen=True)
class Curve:
    """A scalar over training: increasing steps and their values, both `(point,)`."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class Statistics:
    """Conflicts in one network over a whole phase.

    Attributes:
        layers: numbers of the layers, from 1.
        cosine: mean cosine of two tasks' gradients, `(layer, task, task)`. NaN for a task with
            itself, and for two tasks that share no module.
        negative: share of steps with a negative cosine, `(layer, task, task)`, NaN in the same
            places.
        held: for each rule the share of steps in which it would have held the layer's module,
            `(layer,)`: dropped at least one task's gradient there.
        rule: the rule that the phase followed; none if it only counted.
    """

    layers: tuple[int, ...]
    cosine: Array
    negative: Array
    held: dict[str, Array]
    rule: str


@dataclass(frozen=True)
class Phase:
    """The content of search.json, of a CoNAL-Pro stage's search-stage-N.json, or of training.json.

    `networks` holds only the networks that have statistics.
    """

    name: str
    method: str
    tasks: tuple[str, ...]
    steps: int
    networks: dict[str, Statistics]


@dataclass(frozen=True)
class ConflictRecord:
    """The data on conflicts in a run's folder.

    Attributes:
        name: the folder's name, made unique among the runs of one report.
        method: the label of the method, such as "CoNAL" or "HPS".
        phases: the search or its stages, then the training, if the folder has them.
        searched: steps at the end of the search; None if there was no search or it still runs.
        negative: the share of negative cosines over training, by network and layer (from 1).
        gates: the gate's weight over the search, by network, choice and option (from 1).
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
        """The unit of the run's steps."""
        return "env steps" if isinstance(self.config, Config) else "updates"


def read_record(folder: Path, name: str) -> ConflictRecord:
    """Read search.json, training.json and the TensorBoard files of a run.

    Raises:
        CheckpointError: `folder` does not exist, has no data on conflicts, or has damaged JSON.
        ConfigError: the config of `folder` is missing or damaged.
    """
    run = Run(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: got no folder, expected a run. Check the path")
    if not run.config_path.is_file():
        raise ConfigError(
            f"{run.config_path}: got no file, expected a run's config. Check the path"
        )
    config = run.config()
    stages = sorted(
        folder.glob("search-stage-*.json"), key=lambda path: (len(path.name), path.name)
    )
    search = read_phase(folder / "search.json")  # CoNAL-Pro repeats its last stage there
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
            f"{folder}: got a run without counted conflicts, expected some. "
            "Train with a search, or with --agent.conflict-rule none, which counts conflicts"
        )
    searched = None if search is None else search.steps
    return ConflictRecord(
        name, method_label(config, phases), config, phases, searched, negative, gates
    )


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Return the conflict and gate scalars of a run's TensorBoard files, by tag.

    Each process of the run left one file. If a later process logged from step s on, the points of
    earlier files from step s on are left out, because the resume abandoned them. Of two values at
    one step, the last written counts. A file's damaged end is skipped, as in TensorBoard.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = []
    for path in folder.glob("events.out.tfevents.*"):
        try:
            require_regular(path)
            files.append(_read_events(path))
        except OSError as error:
            raise CheckpointError(
                f"{path}: got {error.strerror!r}, expected a readable file. Check its permissions"
            ) from error
    values_of_tags: dict[str, dict[int, float]] = {}
    end = math.inf
    for _, first_step, points in sorted(files, key=lambda file: file[0], reverse=True):
        for tag, values in points.items():
            kept = {step: value for step, value in values.items() if step < end}
            values_of_tags.setdefault(tag, {}).update(kept)
        end = min(end, first_step)
    return {
        tag: Curve(*np.array(sorted(values.items()), dtype=float).T)
        for tag, values in values_of_tags.items()
        if values
    }


def _read_events(path: Path) -> tuple[float, float, dict[str, dict[int, float]]]:
    """Return the time of the first event, the first step, and the values by tag and step."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    began, first_step = math.inf, math.inf
    points: dict[str, dict[int, float]] = {}
    for event in LegacyEventFileLoader(str(path)).Load():
        began = min(began, event.wall_time)
        for value in event.summary.value:
            if value.tag.startswith(_ONCE):
                continue
            first_step, tag = min(first_step, event.step), value.tag.removeprefix(_TREE)
            if _SCALAR.fullmatch(tag) and math.isfinite(value.simple_value):
                points.setdefault(tag, {})[event.step] = value.simple_value
    return began, first_step, points


def read_phase(path: Path) -> Phase | None:
    """Read a run's search.json or training.json; return None if the file does not exist.

    Raises:
        CheckpointError: the file is damaged or has different content.
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
        raise _damaged(path, f"no {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise _damaged(path, reason) from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: got a damaged file or one of an older version ({reason}), expected the results "
        "of a phase. Give a different run"
    )


def _statistics(entry: Any, tasks: int) -> Statistics:
    cosine, negative = (
        np.array(entry[name], dtype=float) for name in ("mean_cosine", "negative_share")
    )
    layers = len(cosine)
    numbers = tuple(map(int, entry.get("layers", range(1, layers + 1))))
    if len(numbers) != layers:
        raise ValueError(f"layers: got {len(numbers)} numbers, expected {layers}")
    cosine, negative = (
        a.reshape(0, tasks, tasks) if a.size == 0 else a for a in (cosine, negative)
    )
    for array in (cosine, negative):
        if array.shape != (layers, tasks, tasks):
            raise ValueError(f"cosines: got shape {array.shape}, expected {(layers, tasks, tasks)}")
    held = {rule: np.array(shares, dtype=float) for rule, shares in entry["module_held"].items()}
    for rule, shares in held.items():
        if shares.shape != (layers,):
            raise ValueError(f"{rule}: got shape {shares.shape}, expected {(layers,)}")
    # Two tasks that share no module have no inner product of gradients. The file then holds 0 for
    # the cosine and for its share of negatives. Tasks that share a module never have both zeros.
    unshared = ((cosine == 0) & (negative == 0)) | np.eye(tasks, dtype=bool)
    cosine[unshared] = negative[unshared] = np.nan
    return Statistics(numbers, cosine, negative, held, str(entry.get("rule", "none")))


def method_label(config: AnyConfig, phases: Sequence[Phase] = ()) -> str:
    """Return the method's name for labels."""
    if config.agent.tree != "search":
        weighting = "" if config.agent.weighting == "equal" else f" + {config.agent.weighting}"
        return FIXED.get(config.agent.tree, "tree") + weighting
    # A search that still runs has not written its file.
    searched: str = config.search.method
    if phases and phases[0].name.startswith("search"):
        searched = phases[0].method
    ablation = "" if config.search.purely_specific else " without specific modules"
    if searched in ("conal", "conal_pro") and config.search.rule == "none":
        ablation += " without noticing"
    return METHODS.get(searched, searched) + ablation


def mean_over_pairs(values: Array) -> Array:
    """Average `(layer, task, task)` over pairs that share, `(layer,)`; NaN if no pair shares."""
    known = np.isfinite(values)
    count = known.sum(axis=(1, 2))
    total = np.where(known, values, 0.0).sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
