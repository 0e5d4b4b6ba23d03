"""Damaged items of a data set: they are found before training, named, and passed over if asked.

Some published images of Taskonomy are damaged. To find them, every item is read once. If that takes
long, the result is kept in the user's cache, under the sizes and times of all files.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from conal_rl.errors import ConalError
from conal_rl.files import read_json, user_path, write_json
from conal_rl.streams import announced
from conal_rl.supervised.data.common import Part, SharedDataset, leave_signals, same
from conal_rl.supervised.data.files import DataError
from conal_rl.version import __version__

MOST_NAMED = 1000
"""Damaged items that an error or a line names."""
WITH_REASON = 10
"""Damaged items whose name is followed by the reason; the first ones."""
KEPT_AFTER = 10.0
"""Seconds of reading after which its result is kept."""
_CHUNK = 16  # items that a worker process reads at once


@runtime_checkable
class FromFiles(Protocol):
    """A data set each of whose items is read from its own files."""

    def files(self, index: int) -> Sequence[Path]:
        """Return the files that an item depends on."""
        ...


class Splits:
    """The splits of a data set of images, without their damaged items if asked.

    Args:
        open_split: returns a split, augmented or not, by its name.
        names: the names of all splits.
        what: the name of the data set.
        skip: pass over damaged items.
        workers: number of processes that read; 0 reads in this process.
    """

    def __init__(
        self,
        open_split: Callable[[Any, bool], SharedDataset],
        names: Sequence[str],
        what: str,
        skip: bool,
        workers: int,
    ):
        self.names, self.what, self.skip, self.workers = tuple(names), what, skip, workers
        self.passed_over: dict[str, list[str]] = {}
        """By split, the names of the items that are left out."""
        self._open = open_split
        self._found: dict[str, dict[int, DataError]] = {}
        self._items: dict[str, int] = {}

    def __call__(self, name: str, augmented: bool) -> SharedDataset:
        """Open a split.

        Raises:
            DataError: a file is missing or damaged that does not belong to one item. With `skip`,
                most items are damaged.
        """
        dataset = self._open(name, augmented)
        damaged = self._damaged(name) if self.skip else {}
        if not damaged:
            return dataset
        return Part(dataset, [index for index in range(len(dataset)) if index not in damaged])

    def check(self) -> None:
        """Raise a DataError that names the damaged items of all splits, without `skip`."""
        errors = [error for name in self.names for error in self._damaged(name).values()]
        if not self.skip:
            require_none(errors, sum(self._items.values()), self.what)

    def _damaged(self, name: str) -> dict[int, DataError]:
        if name not in self._found:
            dataset, where = self._open(name, False), f"{self.what}, {name}"
            self._items[name] = len(dataset)
            text = f"{where}: all {len(dataset):,} items are read once, to find damaged ones."
            with announced(f"{text} Raise data.workers to read faster."):
                damaged = find_damaged(dataset, self.workers, where)
            if self.skip and damaged:
                self.passed_over[name] = pass_over([*damaged.values()], len(dataset), where)
            self._found[name] = damaged
        return self._found[name]


def require_none(errors: Sequence[DataError], items: int, what: str) -> None:
    """Raise a DataError that names all damaged items, if there are any; `items` counts all."""
    if errors:
        advice = "Download the files again, or give --data.skip-damaged"
        if 2 * len(errors) > items:
            advice = "Check the format of the files"
        raise DataError(
            f"data.root: got {_count(len(errors))} of {what}: {_named(errors)}, expected whole "
            f"items. {advice}"
        )


def pass_over(errors: Sequence[DataError], items: int, what: str) -> list[str]:
    """Print and return the names of the damaged items; `items` is the number of all.

    Raises:
        DataError: most items are damaged, so the data set probably has a different format.
    """
    if 2 * len(errors) > items:
        raise _mostly_damaged(errors, items, what)
    verb = "is" if len(errors) == 1 else "are"
    print(
        f"{what}: {_count(len(errors))} of {items:,} {verb} passed over: {_named(errors)}.",
        file=sys.stderr,
    )
    return [_name(error) for error in errors]


def find_damaged(
    dataset: SharedDataset, workers: int = 0, what: str = "the data set"
) -> dict[int, DataError]:
    """Return the errors of a data set's items, by index; every item is read once.

    Raises:
        ConalError: reading needs a package that is missing.
        DataError: most of the first items are damaged, and more than `MOST_NAMED`.
    """
    if not isinstance(dataset, FromFiles):
        return {}
    memory = _memory(dataset)
    kept = _kept(memory, len(dataset))
    damaged: dict[int, DataError] = {}
    if kept is not None:  # they are read again, because a disk may have failed only then
        for found in _read(dataset, kept, workers):
            damaged |= found
        return damaged
    began = time.monotonic()
    for number, found in enumerate(_read(dataset, range(len(dataset)), workers), start=1):
        damaged |= found
        seen = min(number * _CHUNK, len(dataset))
        if len(damaged) > MOST_NAMED and 2 * len(damaged) > seen:
            raise _mostly_damaged([*damaged.values()], seen, what)
    if time.monotonic() - began > KEPT_AFTER:
        with suppress(OSError):  # it is read again next time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, sorted(damaged), indent=None)
    return damaged


class _Chunks(Dataset["dict[int, DataError] | ConalError"]):
    """Reads chunks of items; an error is returned because torch adds a traceback to it."""

    def __init__(self, dataset: SharedDataset, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return -(-len(self.indices) // _CHUNK)

    def __getitem__(self, number: int) -> dict[int, DataError] | ConalError:
        damaged = {}
        for index in self.indices[number * _CHUNK : (number + 1) * _CHUNK]:
            try:
                self.dataset[index]
            except DataError as error:
                error.__cause__ = error.__context__ = None  # they would keep the file's content
                damaged[index] = error.with_traceback(None)
            except ConalError as error:
                return error
        return damaged


def _read(
    dataset: SharedDataset, indices: Sequence[int], workers: int
) -> Iterator[dict[int, DataError]]:
    """Read these items in order, and yield the errors of each chunk."""
    chunks = _Chunks(dataset, indices)
    numbers = range(len(chunks))
    results: Any = map(chunks.__getitem__, numbers)
    if workers and len(chunks) > 1:
        results = DataLoader(
            chunks,
            batch_size=None,
            sampler=numbers,
            collate_fn=same,
            num_workers=min(workers, len(chunks)),
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # without it, it would draw from the global one
        )
    for found in results:
        if isinstance(found, ConalError):
            raise found
        yield found


def _memory(dataset: Any) -> Path:
    """Return the file that keeps which items are damaged, as long as no file changes."""
    digest = sha256(repr((__version__, type(dataset).__name__, dataset.tasks)).encode())
    for index in range(len(dataset)):
        for path in dataset.files(index):
            about = None
            with suppress(OSError):
                status = path.stat()
                about = status.st_size, status.st_mtime_ns
            digest.update(repr((index, str(path), about)).encode())
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache / "conal_rl" / "damaged" / f"{digest.hexdigest()}.json"


def _kept(memory: Path, items: int) -> list[int] | None:
    if not memory.exists():
        return None
    try:
        content = read_json(memory)
    except ConalError:
        return None
    fits = isinstance(content, list) and all(
        type(index) is int and 0 <= index < items for index in content
    )
    return content if fits else None


def _mostly_damaged(errors: Sequence[DataError], items: int, what: str) -> DataError:
    return DataError(
        f"data.root: got {_count(len(errors))} among {items:,} of {what}: {_named(errors)}, "
        "expected at most half. Check the format of the files"
    )


def _count(damaged: int) -> str:
    return f"{damaged:,} damaged item{'s' * (damaged > 1)}"


def _name(error: DataError) -> str:
    return error.where or str(error)


def _named(errors: Sequence[DataError]) -> str:
    names = [_name(error) for error in errors[:MOST_NAMED]]
    for number, error in enumerate(errors[:WITH_REASON]):
        names[number] += f" (got {error.got}, expected {error.expected})"
    if len(errors) > MOST_NAMED:
        names.append(f"and {len(errors) - MOST_NAMED:,} more")
    return "; ".join(names)
