"""Samples, batches, loaders and a random split, for all data sets.

Order and augmentation depend only on seed and epoch. So they are the same with any number of worker
processes, and a resumed run may start at any epoch.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from conal_rl.device import require_memory
from conal_rl.errors import ConalError, ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Array = NDArray[Any]
LEAST_BYTES_OF_A_WORKER = 5_000_000
"""A process that reads ahead takes at least as much memory of its own."""


class TargetSpec(NamedTuple):
    """Shape and dtype of one sample's target of a task."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Sample(NamedTuple):
    """One item of a data set whose tasks share the input."""

    input: Tensor  # (channel, height, width) float32
    targets: dict[str, Tensor]  # by task; only the tasks with a label


class Batch(NamedTuple):
    """Stacked samples of all tasks."""

    inputs: Tensor  # (1, batch, ...) shared by all tasks, or (task, batch, ...)
    targets: dict[str, Tensor]  # (batch, ...) per task; zeros if unlabelled
    masks: dict[str, Tensor]  # (batch,) bool per task: which samples are labelled


TaskItem = tuple[Tensor, Tensor]
"""Input and target of one item, for a data set of one task."""
TaskCollate = Callable[[Mapping[str, Sequence[TaskItem]]], Batch]
"""Makes a batch of the same number of items from each task, brought to one shape."""


class Indexed(Protocol[T_co]):
    """A sequence: it has a length and items."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


class SharedDataset(Indexed[Sample], Protocol):
    """A data set whose tasks share the input."""

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The tasks in order, with shape and dtype of their targets."""
        ...


@runtime_checkable
class Augmented(Protocol):
    """A data set whose items differ between epochs."""

    def at_epoch(self, epoch: int) -> Any:
        """Return the same data set in a different epoch; this one does not change."""
        ...


def at_epoch(dataset: T, epoch: int) -> T:
    """Return the data set in an epoch: itself, unless it is `Augmented`."""
    return dataset.at_epoch(epoch) if isinstance(dataset, Augmented) else dataset


def collate(
    samples: Sequence[Sample], tasks: Sequence[str], specs: Mapping[str, TargetSpec] | None = None
) -> Batch:
    """Stack samples into a batch with inputs `(1, batch, channel, height, width)`.

    Args:
        samples: their inputs have one shape, and each task's targets have one shape and dtype.
        tasks: the tasks in the batch.
        specs: shapes and dtypes for tasks that no sample has a label for.

    Raises:
        ValueError: shapes or dtypes differ, or an unlabelled task is not in `specs`.
    """
    inputs = _stack("inputs", [sample.input for sample in samples])[None]
    targets, masks = {}, {}
    for task in tasks:
        all_targets = [sample.targets.get(task) for sample in samples]
        labels = [target for target in all_targets if target is not None]
        masks[task] = torch.tensor([target is not None for target in all_targets])
        if labels:
            blank = torch.zeros_like(labels[0])
        elif specs is not None and task in specs:
            blank = torch.zeros(specs[task].shape, dtype=specs[task].dtype)
        else:
            raise ValueError(
                f"{task}: got no target, expected one in `samples` or a shape in `specs`"
            )
        targets[task] = _stack(
            task, [blank if target is None else target for target in all_targets]
        )
    return Batch(inputs, targets, masks)


def stack_tasks(items: Mapping[str, Sequence[TaskItem]]) -> Batch:
    """Make a batch with inputs `(task, batch, ...)` from each task's items.

    Raises:
        ValueError: the inputs, or the targets of one task, differ in shape or dtype.
    """
    inputs = [
        _stack(f"inputs of {task}", [x for x, _ in task_items])
        for task, task_items in items.items()
    ]
    targets = {
        task: _stack(task, [target for _, target in task_items])
        for task, task_items in items.items()
    }
    masks = {
        task: torch.ones(len(task_items), dtype=torch.bool) for task, task_items in items.items()
    }
    return Batch(_stack("inputs of the tasks", inputs), targets, masks)


class _Loader:
    """Batches that depend only on seed, epoch and number, so any process can make any batch."""

    def __init__(
        self, items: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool, workers: int
    ):
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.shuffle, self.drop_last, self.workers = shuffle, drop_last, workers
        self.epoch = 0
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}: got {getattr(self, name)}, expected {least} or more. "
                    "Give a larger number"
                )
        require_memory("data.workers", workers, workers * LEAST_BYTES_OF_A_WORKER)
        if not len(self):
            raise ConfigError(
                f"batch_size: got {batch_size}, expected a batch from {items} samples. "
                "Use a smaller batch or more samples"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order and augmentation all later iterations have."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.items // self.batch_size + (
            self.items % self.batch_size > 0 and not self.drop_last
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._from(0)

    def endless(self, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of all epochs in turn, from batch number `first` on."""
        while True:
            epoch, number = divmod(first, len(self))
            self.set_epoch(epoch)
            for batch in self._from(number):
                first += 1
                yield batch

    def _from(self, first: int) -> Iterator[Batch]:
        """Yield this epoch's batches from number `first` on."""
        batches = _Batches(self._maker(), len(self), self.batch_size)
        numbers = range(first, len(batches))
        if not self.workers:
            yield from map(batches.make, numbers)
            return
        # Without a generator, the DataLoader would draw from the global one.
        generator = torch.Generator()
        for batch in DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            collate_fn=_same,
            num_workers=self.workers,
            worker_init_fn=_leave_signals,
            generator=generator,
        ):
            if isinstance(batch, ConalError):
                raise batch
            yield batch

    def _maker(self) -> Callable[[slice], Batch]:
        """Return a function that makes a batch from a slice of this epoch's order; it pickles."""
        raise NotImplementedError

    def _order(self, count: int, *key: int) -> Array:
        key = (self.seed, self.epoch, *key)
        return np.random.default_rng(key).permutation(count) if self.shuffle else np.arange(count)


class SharedLoader(_Loader):
    """Batches of a data set whose tasks share the input; an iteration is one epoch.

    Args:
        dataset: the samples to load.
        batch_size: samples in a batch. The last batch may have fewer.
        seed: the seed of the order.
        shuffle: if False, the data set's order is kept.
        drop_last: leave out a last batch that is not full.
        workers: processes that read ahead; 0 reads in this process. Batches do not depend on it.

    Raises:
        ConfigError: there would be no batch, or an argument is below its minimum.
    """

    def __init__(
        self,
        dataset: SharedDataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
    ):
        super().__init__(len(dataset), batch_size, seed, shuffle, drop_last, workers)
        self.dataset = dataset
        self.tasks = tuple(dataset.tasks)

    def _maker(self) -> Callable[[slice], Batch]:
        dataset = at_epoch(self.dataset, self.epoch)
        return partial(_shared_batch, dataset, self._order(self.items))


class TaskLoaders(_Loader):
    """Batches of one data set per task, with the same number of items from every task.

    A data set that is shorter than the longest starts over, in a different order.

    Args:
        datasets: the data set of each task, with items `(input, target)`.
        batch_size: items of each task in a batch.
        collate: makes the batch. It pads inputs of different shapes.
        seed, shuffle, drop_last, workers: see `SharedLoader`.

    Raises:
        ConfigError: there would be no batch, or an argument is below its minimum.
    """

    def __init__(
        self,
        datasets: Mapping[str, Indexed[TaskItem]],
        batch_size: int,
        collate: TaskCollate = stack_tasks,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
    ):
        lengths = [len(dataset) for dataset in datasets.values()]
        # An empty data set cannot start over.
        items = max(lengths, default=0) if all(lengths) else 0
        super().__init__(items, batch_size, seed, shuffle, drop_last, workers)
        self.datasets, self.collate = dict(datasets), collate
        self.tasks = tuple(datasets)

    def _maker(self) -> Callable[[slice], Batch]:
        datasets, orders = {}, {}
        for number, (task, dataset) in enumerate(self.datasets.items()):
            passes = range(-(-self.items // len(dataset)))
            order = [self._order(len(dataset), number, again) for again in passes]
            orders[task] = np.concatenate(order)[: self.items]
            datasets[task] = at_epoch(dataset, self.epoch)
        return partial(_task_batch, datasets, orders, self.collate)


class Part(Generic[T]):
    """Selected items of a data set, in a given order."""

    def __init__(self, dataset: Indexed[T], indices: Sequence[int]):
        self.dataset, self.indices = dataset, tuple(indices)

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The data set's tasks, if they share the input."""
        tasks: Mapping[str, TargetSpec] = self.dataset.tasks  # type: ignore[attr-defined]
        return tasks

    def at_epoch(self, epoch: int) -> Part[T]:
        """Return the same part of the data set in that epoch."""
        return Part(at_epoch(self.dataset, epoch), self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> T:
        return self.dataset[self.indices[index]]


class Joined(Generic[T]):
    """Data sets of one kind, concatenated."""

    def __init__(self, datasets: Sequence[Indexed[T]]):
        self.datasets = tuple(datasets)

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The first data set's tasks, if they share the input."""
        tasks: Mapping[str, TargetSpec] = self.datasets[0].tasks  # type: ignore[attr-defined]
        return tasks

    def at_epoch(self, epoch: int) -> Joined[T]:
        """Return the same data sets in that epoch."""
        return Joined([at_epoch(dataset, epoch) for dataset in self.datasets])

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, index: int) -> T:
        for dataset in self.datasets[:-1]:
            if index < len(dataset):
                return dataset[index]
            index -= len(dataset)
        return self.datasets[-1][index]


class Only:
    """A data set's samples with only some of its tasks, in a given order."""

    def __init__(self, dataset: SharedDataset, tasks: Sequence[str]):
        self.dataset = dataset
        self.tasks = {task: dataset.tasks[task] for task in tasks}

    def at_epoch(self, epoch: int) -> Only:
        """Return the same tasks of the data set in that epoch."""
        return Only(at_epoch(self.dataset, epoch), tuple(self.tasks))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        kept = {task: sample.targets[task] for task in self.tasks if task in sample.targets}
        return sample._replace(targets=kept)


def split(dataset: Indexed[T], share: float, seed: int) -> tuple[Part[T], Part[T]]:
    """Split a data set in two at random; each item is in exactly one part.

    The search splits its training data 80/20 this way.

    Args:
        dataset: any data set; each part keeps its order.
        share: the share of the items in the first part.
        seed: the seed of the draw.

    Raises:
        ConfigError: a part would be empty.
    """
    first = round(share * len(dataset))
    if not 0 < first < len(dataset):
        raise ConfigError(
            f"share: got {share}, expected a share that gives both parts some of the "
            f"{len(dataset)} samples. Use a share closer to 0.5"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = np.sort(order[:first]), np.sort(order[first:])
    return Part(dataset, parts[0].tolist()), Part(dataset, parts[1].tolist())


class _Batches(Dataset["Batch | ConalError"]):
    """An epoch's batches by number; errors are returned because torch adds a traceback to them."""

    def __init__(self, maker: Callable[[slice], Batch], count: int, batch_size: int):
        self.maker, self.count, self.batch_size = maker, count, batch_size

    def make(self, number: int) -> Batch:
        return self.maker(slice(number * self.batch_size, (number + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch | ConalError:
        try:
            return self.make(number)
        except ConalError as error:
            return error


def _shared_batch(dataset: SharedDataset, order: Array, stretch: slice) -> Batch:
    samples = [dataset[int(index)] for index in order[stretch]]
    return collate(samples, list(dataset.tasks), dataset.tasks)


def _task_batch(
    datasets: Mapping[str, Indexed[TaskItem]],
    orders: Mapping[str, Array],
    make: TaskCollate,
    stretch: slice,
) -> Batch:
    return make(
        {
            task: [dataset[int(i)] for i in orders[task][stretch]]
            for task, dataset in datasets.items()
        }
    )


def _leave_signals(worker: int) -> None:
    """Ignore the signals that stop a run: the main process ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _same(batch: Any) -> Any:
    return batch


def _stack(what: str, tensors: Sequence[Tensor]) -> Tensor:
    if len(kinds := {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}) != 1:
        raise ValueError(f"{what}: got {sorted(kinds, key=str)}, expected one shape and dtype")
    return torch.stack(list(tensors))
