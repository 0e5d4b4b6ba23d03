"""What the data sets share: samples and batches, loaders, a split.

Order and augmentation follow from (seed, epoch) alone: they are the same with any number of worker
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

from conal_rl.errors import ConalError, ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Array = NDArray[Any]


class TargetSpec(NamedTuple):
    """What one sample's target of a task is."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Sample(NamedTuple):
    """One item of a data set whose tasks share the input."""

    input: Tensor  # (channel, height, width) float32
    targets: dict[str, Tensor]  # by task; a task without a label here is absent


class Batch(NamedTuple):
    """Samples side by side, of all tasks."""

    inputs: Tensor  # (1, batch, ...) one input for all tasks, or (task, batch, ...)
    targets: dict[str, Tensor]  # (batch, ...) per task; zeros where unlabelled
    masks: dict[str, Tensor]  # (batch,) bool per task: which samples are labelled


TaskItem = tuple[Tensor, Tensor]
"""Input and target: one item of a data set of one task."""
TaskCollate = Callable[[Mapping[str, Sequence[TaskItem]]], Batch]
"""Makes a batch of equally many items of each task, brought to one shape."""


class Indexed(Protocol[T_co]):
    """Anything with a length and items."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


class SharedDataset(Indexed[Sample], Protocol):
    """A data set whose tasks share the input."""

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The tasks in order, and what their targets are."""
        ...


@runtime_checkable
class Augmented(Protocol):
    """A data set whose items differ between epochs."""

    def at_epoch(self, epoch: int) -> Any:
        """The same data set as it is in that epoch; leaves this one alone."""
        ...


def at_epoch(dataset: T, epoch: int) -> T:
    """A data set as it is in an epoch: itself, unless it is `Augmented`."""
    return dataset.at_epoch(epoch) if isinstance(dataset, Augmented) else dataset


def collate(
    samples: Sequence[Sample], tasks: Sequence[str], specs: Mapping[str, TargetSpec] | None = None
) -> Batch:
    """Stack samples into a batch with inputs `(1, batch, channel, height, width)`.

    Args:
        samples: with inputs of one shape, and targets of one shape and dtype per task.
        tasks: whose targets and masks the batch has.
        specs: what targets are, for tasks without a label in any of the samples.

    Raises:
        ValueError: shapes or dtypes differ, or a task is neither labelled nor in `specs`.
    """
    inputs = _stack("inputs", [sample.input for sample in samples])[None]
    targets, masks = {}, {}
    for task in tasks:
        found = [sample.targets.get(task) for sample in samples]
        labels = [target for target in found if target is not None]
        masks[task] = torch.tensor([target is not None for target in found])
        if labels:
            blank = torch.zeros_like(labels[0])
        elif specs is not None and task in specs:
            blank = torch.zeros(specs[task].shape, dtype=specs[task].dtype)
        else:
            raise ValueError(f"no sample has a target of {task}, and its shape is not given")
        targets[task] = _stack(task, [blank if target is None else target for target in found])
    return Batch(inputs, targets, masks)


def stack_tasks(items: Mapping[str, Sequence[TaskItem]]) -> Batch:
    """Make a batch of each task's items, whose inputs have one shape: `(task, batch, ...)`.

    Raises:
        ValueError: inputs, or targets of one task, differ in shape or dtype.
    """
    inputs = [_stack(f"inputs of {task}", [x for x, _ in own]) for task, own in items.items()]
    targets = {task: _stack(task, [target for _, target in own]) for task, own in items.items()}
    masks = {task: torch.ones(len(own), dtype=torch.bool) for task, own in items.items()}
    return Batch(_stack("inputs of the tasks", inputs), targets, masks)


class _Loader:
    """Batches, each a function of seed, epoch and its number, so that any process may make any."""

    def __init__(
        self, items: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool, workers: int
    ):
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.shuffle, self.drop_last, self.workers = shuffle, drop_last, workers
        self.epoch = 0
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is at least {least}, not {getattr(self, name)}")
        if not len(self):
            raise ConfigError(f"{items} samples give no batch of {batch_size}")

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's order and augmentation iterating has; it stays until told otherwise."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.items // self.batch_size + (
            self.items % self.batch_size > 0 and not self.drop_last
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._from(0)

    def endless(self, first: int = 0) -> Iterator[Batch]:
        """Batches of epoch after epoch, beginning with the `first` of them all."""
        while True:
            epoch, number = divmod(first, len(self))
            self.set_epoch(epoch)
            for batch in self._from(number):
                first += 1
                yield batch

    def _from(self, first: int) -> Iterator[Batch]:
        """This epoch's batches from number `first` on."""
        batches = _Batches(self._maker(), len(self), self.batch_size)
        numbers = range(first, len(batches))
        if not self.workers:
            yield from map(batches.make, numbers)
            return
        # With a generator of its own: the loader would draw from the global one.
        own = torch.Generator()
        for batch in DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            collate_fn=_same,
            num_workers=self.workers,
            worker_init_fn=_leave_signals,
            generator=own,
        ):
            if isinstance(batch, ConalError):
                raise batch
            yield batch

    def _maker(self) -> Callable[[slice], Batch]:
        """What makes a batch of a stretch of this epoch's order; it can be pickled."""
        raise NotImplementedError

    def _order(self, count: int, *key: int) -> Array:
        key = (self.seed, self.epoch, *key)
        return np.random.default_rng(key).permutation(count) if self.shuffle else np.arange(count)


class SharedLoader(_Loader):
    """Batches of a data set whose tasks share the input; iterating gives one epoch's.

    Args:
        dataset: what to load.
        batch_size: samples of a batch; the last one has what is left, or is dropped.
        seed: of the order.
        shuffle: False keeps the data set's order.
        drop_last: leave out a last batch that is not full.
        workers: processes that read ahead; 0 reads in this one. No number changes a batch.

    Raises:
        ConfigError: there would be no batch, or an argument is below its least value.
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
    """Batches of one data set per task, each batch with equally many items of every task.

    Args:
        datasets: by task, with items `(input, target)`.
        batch_size: items of each task in a batch.
        collate: makes the batch; it pads where inputs differ in shape.
        seed, shuffle, drop_last, workers: see `SharedLoader`.

    Raises:
        ConfigError: there would be no batch, or an argument is below its least value.
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
        # An empty one has nothing to start over.
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
    """Some items of a data set, in a given order."""

    def __init__(self, dataset: Indexed[T], indices: Sequence[int]):
        self.dataset, self.indices = dataset, tuple(indices)

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The data set's, if its tasks share the input."""
        tasks: Mapping[str, TargetSpec] = self.dataset.tasks  # type: ignore[attr-defined]
        return tasks

    def at_epoch(self, epoch: int) -> Part[T]:
        """The same part of the data set as it is in that epoch."""
        return Part(at_epoch(self.dataset, epoch), self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> T:
        return self.dataset[self.indices[index]]


class Joined(Generic[T]):
    """Data sets of one kind, one after the other."""

    def __init__(self, datasets: Sequence[Indexed[T]]):
        self.datasets = tuple(datasets)

    @property
    def tasks(self) -> Mapping[str, TargetSpec]:
        """The first data set's, if its tasks share the input."""
        tasks: Mapping[str, TargetSpec] = self.datasets[0].tasks  # type: ignore[attr-defined]
        return tasks

    def at_epoch(self, epoch: int) -> Joined[T]:
        """The data sets as they are in that epoch."""
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
    """A data set's samples with some of its tasks, in a given order."""

    def __init__(self, dataset: SharedDataset, tasks: Sequence[str]):
        self.dataset = dataset
        self.tasks = {task: dataset.tasks[task] for task in tasks}

    def at_epoch(self, epoch: int) -> Only:
        """The same tasks of the data set as it is in that epoch."""
        return Only(at_epoch(self.dataset, epoch), tuple(self.tasks))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        kept = {task: sample.targets[task] for task in self.tasks if task in sample.targets}
        return sample._replace(targets=kept)


def split(dataset: Indexed[T], share: float, seed: int) -> tuple[Part[T], Part[T]]:
    """Cut a data set in two at random, as the search does 80/20; no item is in both or neither.

    Args:
        dataset: any; each part keeps its order.
        share: of the items, to the first part.
        seed: of the draw.

    Raises:
        ConfigError: a part would be empty.
    """
    first = round(share * len(dataset))
    if not 0 < first < len(dataset):
        raise ConfigError(f"{len(dataset)} samples: a share of {share} leaves one part empty")
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = np.sort(order[:first]), np.sort(order[first:])
    return Part(dataset, parts[0].tolist()), Part(dataset, parts[1].tolist())


class _Batches(Dataset["Batch | ConalError"]):
    """An epoch's batches by number; an error is returned, since torch adds a traceback to it."""

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
        {task: [own[int(i)] for i in orders[task][stretch]] for task, own in datasets.items()}
    )


def _leave_signals(worker: int) -> None:
    """What stops a run reaches all of its processes; the main one decides when the others end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _same(batch: Any) -> Any:
    return batch


def _stack(what: str, tensors: Sequence[Tensor]) -> Tensor:
    if len(kinds := {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}) != 1:
        raise ValueError(f"{what} differ in shape or dtype: {sorted(kinds, key=str)}")
    return torch.stack(list(tensors))
