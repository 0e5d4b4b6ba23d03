"""Results as data: the CSV files of `results/`, read, checked and written.

`results/README.md` explains every file and column. A row of a file is an object of a class whose
fields are the file's columns; the column `return` is the field `return_`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from conal_rl.errors import ConfigError
from conal_rl.files import read_text, write_together

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""The form of a run's or a study's name; a run's files are named after it."""
METHOD = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class RunRow:
    """A line of runs.csv. None and "" stand for what was not noted."""

    run: str
    study: str
    method: str
    seed: int
    commit: str
    machine: str
    steps: int | None
    seconds: float | None
    overrides: str


@dataclass(frozen=True)
class SuccessRow:
    """A line of success.csv: one task of one evaluation."""

    run: str
    weights: str
    task: str
    episodes: int
    successes: int | None
    return_: float | None

    @property
    def rate(self) -> float:
        """Share of successful episodes; NaN if the task does not define success."""
        return math.nan if self.successes is None else self.successes / self.episodes


@dataclass(frozen=True)
class EpisodesRow:
    """A line of episodes.csv: the outcomes of one task's episodes, in order, as 0 and 1."""

    run: str
    weights: str
    task: str
    outcomes: str


@dataclass(frozen=True)
class MetricRow:
    """A line of metrics.csv: a score of a supervised run."""

    run: str
    part: str
    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class Measurement:
    """A line of measurements.csv. `value` keeps the digits of the note."""

    table: str
    row: str
    column: str
    value: str
    commit: str
    machine: str
    date: str


@dataclass(frozen=True)
class MissingRow:
    """A line of missing.csv: data of a run that are not kept, and the reason."""

    run: str
    what: str
    reason: str


Row = TypeVar("Row", bound=Any)
_FILES: Mapping[str, type[Any]] = {
    "runs": RunRow,
    "success": SuccessRow,
    "episodes": EpisodesRow,
    "metrics": MetricRow,
    "measurements": Measurement,
    "missing": MissingRow,
}
_KEYS: Mapping[str, Sequence[str]] = {
    "runs": ("run",),
    "success": ("run", "weights", "task"),
    "episodes": ("run", "weights", "task"),
    "metrics": ("run", "part", "task", "metric"),
    "measurements": ("table", "row", "column"),
    "missing": ("run", "what"),
}


@dataclass(frozen=True)
class Results:
    """Everything in a results folder; the files of trees and curves are read when needed."""

    folder: Path
    runs: tuple[RunRow, ...] = ()
    success: tuple[SuccessRow, ...] = ()
    episodes: tuple[EpisodesRow, ...] = ()
    metrics: tuple[MetricRow, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    missing: tuple[MissingRow, ...] = ()
    by_name: Mapping[str, RunRow] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {row.run: row for row in self.runs})

    def of_study(self, study: str) -> list[RunRow]:
        """Return the runs of a study in the file's order; raise ConfigError if it is empty."""
        rows = [row for row in self.runs if row.study == study]
        if not rows:
            known = ", ".join(sorted({row.study for row in self.runs})) or "nothing yet"
            raise ConfigError(f"study: got {study!r}, expected one of: {known}. Correct its name")
        return rows

    def rates(self, run: str, weights: str = "final") -> dict[str, float]:
        """Return the success of each task in one evaluation; empty if it is not kept by task."""
        rows = [row for row in self.success if row.run == run and row.weights == weights]
        return {row.task: row.rate for row in rows}

    def measured(self, table: str) -> dict[tuple[str, str], str]:
        """Return a table of measurements.csv by row and column; empty if unknown."""
        rows = [row for row in self.measurements if row.table == table]
        return {(row.row, row.column): row.value for row in rows}

    def tree_path(self, run: str) -> Path:
        """Return the path of a run's trees, if they are kept."""
        return self.folder / "trees" / f"{run}.json"

    def curve_path(self, run: str) -> Path:
        """Return the path of a run's curve, if it is kept."""
        return self.folder / "curves" / f"{run}.csv"


def read_results(folder: Path) -> Results:
    """Read and check the CSV files of a results folder. A file that does not exist is empty.

    Raises:
        ConfigError: a line is damaged, a row names a run that runs.csv lacks, or a run has neither
            trees (a curve) nor a line in missing.csv. The message names the file and line.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: got no folder, expected one with runs.csv. Give --results")
    rows = {name: tuple(_read(folder / f"{name}.csv", kind)) for name, kind in _FILES.items()}
    results = Results(folder, **rows)
    check_rows(results)
    _check_kept(results)
    return results


def _read(path: Path, kind: type[Row]) -> list[Row]:
    if not path.exists():
        return []
    try:
        text = read_text(path)
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise ConfigError(
            f"{path}: got {error.strerror}, expected a readable file. Check the path"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: got damaged text ({error}), expected a CSV file. Restore the file"
        ) from error
    columns = column_names(kind)
    if not lines or lines[0] != columns:
        got = ",".join(lines[0]) if lines else "nothing"
        raise ConfigError(
            f"{path}: header: got {got}, expected {','.join(columns)}. Correct the header"
        )
    return [_row(f"{path}:{number}", kind, line) for number, line in enumerate(lines[1:], 2)]


def column_names(kind: type[Any]) -> list[str]:
    """Return the header of the file whose rows are of this class."""
    return [column.name.rstrip("_") for column in fields(kind)]


def _row(where: str, kind: type[Row], cells: Sequence[str]) -> Row:
    columns = fields(kind)
    if len(cells) != len(columns):
        raise ConfigError(
            f"{where}: got {len(cells)} cells, expected {len(columns)}. Correct the line"
        )
    values = []
    for column, cell in zip(columns, cells, strict=True):
        convert, expected = _CONVERSIONS[str(column.type)]
        try:
            values.append(convert(cell))
        except ValueError as error:
            name = column.name.rstrip("_")
            raise ConfigError(
                f"{where}: {name}: got {cell!r}, expected {expected}. Correct the line"
            ) from error
    return kind(*values)


def _finite(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(cell)
    return value


_CONVERSIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": (_finite, "a number"),
    "int | None": (lambda cell: int(cell) if cell else None, "a whole number or nothing"),
    "float | None": (lambda cell: _finite(cell) if cell else None, "a number or nothing"),
}


def check_rows(results: Results) -> None:
    """Raise ConfigError, naming file and line, if rows contradict each other or are impossible."""
    for name in _FILES:
        path, seen = results.folder / f"{name}.csv", set()
        for number, row in enumerate(getattr(results, name), 2):
            where = f"{path}:{number}"
            key = tuple(getattr(row, column) for column in _KEYS[name])
            if key in seen:
                raise ConfigError(
                    f"{where}: got {' '.join(key)} twice, expected it once. Remove one of the lines"
                )
            seen.add(key)
            run = getattr(row, "run", None)
            if run is not None and run not in results.by_name:
                raise ConfigError(
                    f"{where}: run: got {run!r}, expected a run of runs.csv. Correct the line"
                )
            _check_row(where, row)
    _check_episodes(results)


def _check_row(where: str, row: Any) -> None:
    for column, value in vars(row).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"{where}: {column}: got {value}, expected a finite number. Correct the line"
            )
    if isinstance(row, RunRow):
        require_name(f"{where}: run", row.run)
        require_name(f"{where}: study", row.study)
        require_method(f"{where}: method", row.method)
    elif isinstance(row, SuccessRow):
        allowed = row.successes is None or 0 <= row.successes <= row.episodes
        if row.episodes < 1 or not allowed:
            raise ConfigError(
                f"{where}: successes: got {row.successes} of {row.episodes} episodes, "
                "expected a number from 0 to the episodes. "
                "Correct the line"
            )
    elif isinstance(row, EpisodesRow) and not re.fullmatch("[01]+", row.outcomes):
        raise ConfigError(
            f"{where}: outcomes: got {row.outcomes!r}, expected 0s and 1s. Correct the line"
        )
    elif isinstance(row, Measurement):
        try:
            _finite(row.value)
        except ValueError as error:
            raise ConfigError(
                f"{where}: value: got {row.value!r}, expected a number. Correct the line"
            ) from error


def _check_episodes(results: Results) -> None:
    counted = {(row.run, row.weights, row.task): row for row in results.success}
    for number, row in enumerate(results.episodes, 2):
        total = counted.get((row.run, row.weights, row.task))
        counts = (len(row.outcomes), row.outcomes.count("1"))
        if total is None or counts != (total.episodes, total.successes):
            where = results.folder / f"episodes.csv:{number}"
            expected = "no line" if total is None else f"{total.successes} of {total.episodes}"
            raise ConfigError(
                f"{where}: outcomes: got {counts[1]} successes of {counts[0]}, "
                f"expected what success.csv says: {expected}. "
                "Correct one of the lines"
            )


def _check_kept(results: Results) -> None:
    missing = {(row.run, row.what) for row in results.missing}
    for run in results.by_name:
        for what, path in (("trees", results.tree_path(run)), ("curve", results.curve_path(run))):
            if not path.is_file() and (run, what) not in missing:
                raise ConfigError(
                    f"{path}: got no file, expected it or a line in missing.csv. Add one of them"
                )


def require_name(where: str, name: str) -> None:
    """Raise ConfigError if this cannot name a run or a study."""
    if not NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', a letter or digit first"
        raise ConfigError(f"{where}: got {name!r}, expected {allowed}. Give a different name")


def require_method(where: str, method: str) -> None:
    """Raise ConfigError if this is not a method's name in the data."""
    if not METHOD.fullmatch(method):
        raise ConfigError(
            f"{where}: got {method!r}, expected small letters, digits and '_', as in conal_pro. "
            "Give a different name"
        )


def to_csv(kind: type[Any], rows: Iterable[Any]) -> str:
    """Return the text of a file with these rows, header included."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column_names(kind))
    for row in rows:
        writer.writerow([_cell(getattr(row, column.name)) for column in fields(kind)])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def csv_files(results: Results) -> dict[Path, str]:
    """Return the text of every CSV file of the folder, by its path."""
    return {
        results.folder / f"{name}.csv": to_csv(kind, getattr(results, name))
        for name, kind in _FILES.items()
    }


def write_files(files: Mapping[Path, str]) -> None:
    """Write several text files: all of them, or none if one cannot be written.

    Raises:
        ConfigError: the disk refuses.
    """
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_together(files)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: got {error.strerror}, expected a writable file. "
            "Check the disk and the file's permissions"
        ) from error
