"""Batches and loaders: their content and order, which never depend on workers."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conal_rl.errors import ConfigError, ExtraError
from conal_rl.supervised.data import files
from conal_rl.supervised.data.common import (
    Batch,
    Sample,
    SharedLoader,
    TargetSpec,
    TaskItem,
    TaskLoaders,
    collate,
    split,
    stack_tasks,
)
from conal_rl.supervised.data.files import DataError
from tests.helpers.refusals import refused

quick = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 23)


class Numbers:
    """Item i is the number i. `all` labels each item, `thirds` every third, `none` no item."""

    def __init__(self, count: int, broken: int = -1):
        self.count, self.broken, self.epoch = count, broken, 0
        self.tasks = {
            "all": TargetSpec((), torch.int64),
            "thirds": TargetSpec((2,), torch.float32),
            "none": TargetSpec((3, 1), torch.int64),
        }

    def at_epoch(self, epoch: int) -> Numbers:
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError(f"{index} is broken")
        noise = np.random.default_rng((self.epoch, index)).random()
        targets = {"all": torch.tensor(index)}
        if index % 3 == 0:
            targets["thirds"] = torch.full((2,), index + 1.0)
        return Sample(torch.tensor([[[float(index), noise]]]), targets)


class Words:
    """Sentences of unequal length; the target is the sentence's number."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TaskItem:
        return torch.full((1 + index % 4,), index), torch.tensor(index)


def padded(items: Mapping[str, Sequence[TaskItem]]) -> Batch:
    longest = max(len(words) for task_items in items.values() for words, _ in task_items)
    return stack_tasks(
        {
            task: [(torch.cat([x, torch.full((longest - len(x),), -1)]), y) for x, y in task_items]
            for task, task_items in items.items()
        }
    )


def flat(batches: Iterable[Batch]) -> list[Tensor]:
    return [x for b in batches for x in (b.inputs, *b.targets.values(), *b.masks.values())]


def same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    pairs = zip(flat(one), flat(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def seen(loader: SharedLoader | TaskLoaders, task: str) -> list[int]:
    return [int(value) for batch in loader for value in batch.targets[task]]


def test_unlabelled_targets_are_zeros_of_the_right_shape() -> None:
    (batch,) = SharedLoader(Numbers(4), 4, shuffle=False)
    assert batch.inputs.shape == (1, 4, 1, 1, 2)
    assert torch.equal(batch.targets["all"], torch.arange(4))
    assert batch.targets["thirds"].tolist() == [[1, 1], [0, 0], [0, 0], [4, 4]]
    assert batch.targets["none"].tolist() == [[[0]] * 3] * 4
    assert batch.targets["none"].dtype == torch.int64
    assert {task: mask.tolist() for task, mask in batch.masks.items()} == {
        "all": [True] * 4,
        "thirds": [True, False, False, True],
        "none": [False] * 4,
    }


def test_collate_refuses_unequal_shapes() -> None:
    samples = [Sample(torch.zeros(1, 2, 2), {"a": torch.zeros(n)}) for n in (1, 2)]
    with refused(ValueError, "a: got", "(1,)", "(2,)"):
        collate(samples, ["a"])
    with refused(ValueError, "b: got", "specs"):
        collate(samples[:1], ["b"])
    samples = [Sample(torch.zeros(1, 2, n), {}) for n in (1, 2)]
    with refused(ValueError, "inputs: got", "(1, 2, 1)", "(1, 2, 2)"):
        collate(samples, [])
    with refused(ValueError, "inputs of the tasks: got", "(1, 1)", "(1, 2)"):
        stack_tasks({"a": [Words(4)[0]], "b": [Words(4)[1]]})


@quick
@given(count=sizes, batch=sizes, seed=st.integers(0, 9), drop_last=st.booleans())
def test_an_epoch_has_each_sample_once(count: int, batch: int, seed: int, drop_last: bool) -> None:
    if drop_last and batch > count:
        with refused(ConfigError, f"batch_size: got {batch}", f"{count} samples"):
            SharedLoader(Numbers(count), batch, drop_last=True)
        return
    loader = SharedLoader(Numbers(count), batch, seed=seed, drop_last=drop_last)
    lengths = [len(b.masks["all"]) for b in loader]
    numbers = seen(loader, "all")
    assert len(loader) == len(lengths)
    assert lengths[:-1] == [batch] * (len(lengths) - 1)
    assert len(set(numbers)) == len(numbers) == (count // batch * batch if drop_last else count)
    assert set(numbers) <= set(range(count))


@quick
@given(lengths=st.lists(sizes, min_size=1, max_size=4), batch=sizes, epoch=st.integers(0, 3))
def test_shorter_tasks_start_over(lengths: list[int], batch: int, epoch: int) -> None:
    datasets = {f"task{i}": Words(n) for i, n in enumerate(lengths)}
    items = max(lengths)
    loader = TaskLoaders(datasets, batch, padded)
    loader.set_epoch(epoch)
    for b in loader:
        assert b.inputs.shape[:2] == (len(lengths), len(b.masks["task0"]))
        for row, task in zip(b.inputs, loader.tasks, strict=True):
            assert torch.equal(row[:, 0], b.targets[task])  # item i starts with i
            assert b.masks[task].all()
    for task, dataset in datasets.items():
        counts = Counter(seen(loader, task))
        assert sum(counts.values()) == items
        again = {counts[i] for i in range(len(dataset))}
        assert again <= {items // len(dataset), -(-items // len(dataset))}


def test_a_task_that_starts_over_has_a_different_order() -> None:
    loader = TaskLoaders({"short": Words(12), "long": Words(36)}, 4, padded)
    numbers = seen(loader, "short")
    passes = [numbers[i : i + 12] for i in (0, 12, 24)]
    assert [sorted(order) for order in passes] == [list(range(12))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert seen(loader, "long")[:12] != passes[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_do_not_depend_on_workers(shuffle: bool) -> None:
    state = torch.get_rng_state()
    for epoch in (0, 4):
        shared = [SharedLoader(Numbers(11), 3, workers=n, shuffle=shuffle) for n in (0, 2)]
        words = {"a": Words(5), "b": Words(11)}
        separate = [TaskLoaders(words, 3, padded, workers=n, shuffle=shuffle) for n in (0, 2)]
        for loader in (*shared, *separate):
            loader.set_epoch(epoch)
        assert same(shared[0], shared[1])
        assert same(separate[0], separate[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_order_depends_on_seed_and_epoch() -> None:
    loader = SharedLoader(Numbers(20), 6, seed=3)
    epochs = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    resumed = SharedLoader(Numbers(20), 6, seed=3)
    resumed.set_epoch(2)
    assert same(resumed, epochs[2])
    orders = [[b.targets["all"].tolist() for b in epoch] for epoch in epochs]
    orders.append([b.targets["all"].tolist() for b in SharedLoader(Numbers(20), 6, seed=4)])
    assert len({str(order) for order in orders}) == 5
    noise = [{float(b.inputs.view(-1, 2)[0, 1]) for b in epoch} for epoch in epochs]
    assert not noise[0] & noise[1]  # augmentation too


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_one_line_from_each_process(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(SharedLoader(Numbers(9, broken=4), 2, workers=workers))
    assert str(caught.value) == "4 is broken"


@pytest.mark.parametrize(
    ("field", "value", "least"), [("batch_size", 0, 1), ("workers", -1, 0), ("seed", -1, 0)]
)
def test_loaders_refuse_small_values_and_no_samples(field: str, value: int, least: int) -> None:
    arguments: dict[str, int] = {"batch_size": 2, field: value}
    with refused(ConfigError, f"{field}: got {value}", f"{least} or more"):
        SharedLoader(Numbers(9), **arguments)  # type: ignore[arg-type]
    with refused(ConfigError, "batch_size: got 2", "0 samples"):
        SharedLoader(Numbers(0), 2)
    with refused(ConfigError, "batch_size: got 2", "0 samples"):
        TaskLoaders({"a": Words(3), "b": Words(0)}, 2, padded)


@quick
@given(count=st.integers(2, 40), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_a_split_is_disjoint_and_complete(count: int, share: float, seed: int) -> None:
    if round(share * count) in (0, count):
        with refused(ConfigError, f"share: got {share}", f"{count} samples"):
            split(Numbers(count), share, seed)
        return
    parts = split(Numbers(count), share, seed)
    numbers = [[int(part[i].targets["all"]) for i in range(len(part))] for part in parts]
    assert sorted(numbers[0] + numbers[1]) == list(range(count))
    assert numbers == [sorted(part_numbers) for part_numbers in numbers]
    assert len(numbers[0]) == round(share * count)
    assert [part.indices for part in split(Numbers(count), share, seed)] == [
        part.indices for part in parts
    ]


def test_parts_are_loaded_as_data_sets() -> None:
    parts = split(Numbers(20), 0.8, 0)
    loaders = [SharedLoader(part, 4) for part in parts]
    for loader in loaders:
        loader.set_epoch(5)
    assert [len(loader) for loader in loaders] == [4, 1]
    assert loaders[0].tasks == ("all", "thirds", "none")
    number, noise = loaders[1].dataset[0].input.flatten().tolist()
    (batch,) = loaders[1]
    row = batch.inputs.view(-1, 2)
    assert number in row[:, 0] and noise not in row[:, 1]  # the augmentation of epoch 5
    assert [part.indices for part in split(Numbers(20), 0.8, 1)] != [p.indices for p in parts]


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with refused(ExtraError, "pillow", ".[vision]"):
        files.read_image(tmp_path / "x.png", "an image")


def test_files_without_an_array_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    cases: dict[str, bytes] = {"": b"", "text": b"not an array", "cut": b"\x93NUMPY\x01\x00v\x00{'"}
    for content in cases.values():
        path.write_bytes(content)
        with refused(DataError, path, "cannot be read", "a depth"):
            files.read_npy(path, (1,), "a depth")
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with refused(DataError, path, "cannot be read"):
        files.read_npy(path, (1,), "a depth")  # a pickle could run code
    np.save(path, np.zeros((2, 3)))
    with refused(DataError, path, "got shape (2, 3)", "expected shape (1,)"):
        files.read_npy(path, (1,), "a depth")
    for values in (["3"], [3 + 5j], np.array(["2020-01-01"], dtype="M8[D]")):
        array = np.array(values)
        np.save(path, array)
        with refused(DataError, path, array.dtype, "expected numbers"):
            files.read_npy(path, (1,), "a depth")
        with refused(DataError, path, array.dtype, "expected numbers"):
            files.require_values(path, np.array(values), 0, 9)
    with np.testing.assert_raises(DataError):
        np.savez(tmp_path / "z.npz", a=np.zeros(1))
        files.read_npy(tmp_path / "z.npz", (1,), "a depth")


@quick
@given(value=st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_values_out_of_range_are_refused(value: float) -> None:
    array = np.array([0.0, value])
    for low, high, good in (
        (-1.0, 1.0, -1 <= value <= 1),
        (-1, 12, -1 <= value <= 12 and value == int(value)),
    ):
        try:
            files.require_values(Path("x"), array, low, high)
            passed = True
        except DataError:
            passed = False
        assert passed == good


def test_resize_keeps_dtypes_and_classes() -> None:
    classes = torch.tensor([[[255, 0], [20, 3]]])
    assert torch.equal(files.resize(classes, (2, 2), "nearest-exact"), classes)
    large = files.resize(classes, (4, 4), "nearest-exact")
    assert large.dtype == torch.int64
    assert torch.equal(large, classes.repeat_interleave(2, 1).repeat_interleave(2, 2))
    grey = files.normalise(np.full((2, 2, 3), 255, dtype=np.uint8))
    assert grey[:, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)
