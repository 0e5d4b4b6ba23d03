"""NYUv2 and CityScapes: loaded files equal written ones, and augmentation keeps its laws."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conal_rl.errors import ConfigError
from conal_rl.supervised.data.common import Batch, Sample, SharedLoader
from conal_rl.supervised.data.files import DataError
from conal_rl.supervised.data.nyuv2 import (
    SCALES,
    CityScapes,
    NYUv2,
    augmented,
    flipped,
    scaled,
)
from tests.helpers.datasets import Written, unit_normals, write_array_tree
from tests.helpers.refusals import refused

SIZE = (6, 10)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_array_tree(tmp_path, size=SIZE)


def scene(seed: int, size: tuple[int, int] = SIZE) -> Sample:
    rng = np.random.default_rng(seed)
    normals = torch.tensor(unit_normals(rng, size), dtype=torch.float32).movedim(-1, 0)
    depth = torch.tensor(rng.uniform(0.5, 9, (1, *size)), dtype=torch.float32)
    classes = torch.tensor(rng.integers(-1, 13, size))
    image = torch.tensor(rng.random((3, *size)), dtype=torch.float32)
    return Sample(image, {"segmentation": classes, "depth": depth, "normals": normals})


def equal(one: Sample, other: Sample) -> bool:
    return torch.equal(one.input, other.input) and all(
        torch.equal(target, other.targets[task]) for task, target in one.targets.items()
    )


def test_written_files_are_loaded_in_order(written: Written, tmp_path: Path) -> None:
    data = NYUv2(tmp_path, "train", size=SIZE)
    assert data.names == [f"{number}.npy" for number in range(12)]  # 10 after 9, not after 1
    for index, arrays in enumerate(written):
        sample = data[index]
        for tensor, kind in (
            (sample.input, "image"),
            (sample.targets["depth"], "depth"),
            (sample.targets["normals"], "normal"),
        ):
            assert tensor.dtype == torch.float32
            np.testing.assert_array_equal(tensor.movedim(0, -1), arrays[kind].astype(np.float32))
        np.testing.assert_array_equal(sample.targets["segmentation"], arrays["label"])
        for task, spec in data.tasks.items():
            target = sample.targets[task]
            assert (tuple(target.shape), target.dtype) == spec


def test_cityscapes_has_two_tasks_and_its_size(tmp_path: Path) -> None:
    written = write_array_tree(tmp_path, "val", 3, SIZE, classes=7, normals=False)
    data = CityScapes(tmp_path, "val", size=SIZE)
    assert list(data.tasks) == list(data[0].targets) == ["segmentation", "depth"]
    np.testing.assert_array_equal(data[2].targets["segmentation"], written[2]["label"])
    assert (CityScapes.size, NYUv2.size) == ((128, 256), (288, 384))
    with refused(ConfigError, "split", "'test'", "train or val"):
        CityScapes(tmp_path, "test")  # type: ignore[arg-type]
    with refused(DataError, "image/0.npy", "got shape (6, 10, 3)", "expected shape (128, 256, 3)"):
        CityScapes(tmp_path, "val")[0]


def test_files_of_other_tasks_are_not_needed(tmp_path: Path) -> None:
    write_array_tree(tmp_path, "train", 3, SIZE)
    shutil.rmtree(tmp_path / "train" / "normal")
    data = NYUv2(tmp_path, "train", tasks=("depth", "segmentation"), size=SIZE)
    assert list(data.tasks) == list(data[0].targets) == ["depth", "segmentation"]
    with refused(DataError, tmp_path / "train" / "normal", "got no file"):
        NYUv2(tmp_path, "train", size=SIZE)
    with refused(ConfigError, "tasks", "'normals'", "segmentation, depth"):
        CityScapes(tmp_path, "train", tasks=("depth", "normals"))


@pytest.mark.parametrize("kind", ["image", "label", "depth", "normal"])
def test_missing_files_are_named(written: Written, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train" / kind / "3.npy"
    path.unlink()
    with refused(DataError, path, "got no file", "/3.npy"):
        NYUv2(tmp_path, "train", size=SIZE)
    for other in path.parent.iterdir():
        other.unlink()
    path.parent.rmdir()
    with refused(DataError, path.parent, "got no file", "a folder"):
        NYUv2(tmp_path, "train", size=SIZE)


def test_empty_folders_and_wrong_names_are_refused(tmp_path: Path) -> None:
    for kind in ("image", "label", "depth"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    with refused(DataError, tmp_path / "train" / "image", "empty"):
        CityScapes(tmp_path, "train")
    (tmp_path / "train" / "image" / "a.npy").touch()
    with refused(DataError, tmp_path / "train" / "image" / "a.npy", "a number"):
        CityScapes(tmp_path, "train")


@pytest.mark.parametrize(
    ("kind", "array", "value", "expected"),
    [
        ("image", np.full((*SIZE, 3), 128.0), "128.0", "values -0.1 to 1.1"),
        ("image", np.zeros((3, *SIZE)), "(3, 6, 10)", "shape (6, 10, 3)"),
        ("label", np.full(SIZE, 13), "13", "integers -1 to 12"),
        ("label", np.full(SIZE, 0.5), "0.5", "integers -1 to 12"),
        ("depth", np.full((*SIZE, 1), -1.0), "-1.0", "values 0.0 to 20.0 metres"),
        ("depth", np.full((*SIZE, 1), np.inf), "inf", "values 0.0 to 20.0 metres"),
        ("depth", np.full((*SIZE, 1), 2345), "2345", "values 0.0 to 20.0 metres"),
        ("depth", np.full((*SIZE, 1), 234.5), "234.5", "values 0.0 to 20.0 metres"),
        ("depth", np.zeros(SIZE), "(6, 10)", "shape (6, 10, 1)"),
        ("normal", np.full((*SIZE, 3), np.nan), "nan", "values -1.1 to 1.1"),
        ("normal", np.full((*SIZE, 3), [0.5, 0.5, 1]), "length 1.22", "values from -1 to 1"),
    ],
)
def test_wrong_arrays_are_named(
    written: Written, tmp_path: Path, kind: str, array: np.ndarray, value: str, expected: str
) -> None:
    path = tmp_path / "train" / kind / "5.npy"
    np.save(path, array)
    with refused(DataError, path, f"{value}, expected {expected}"):
        NYUv2(tmp_path, "train", size=SIZE)[5]


def test_cityscapes_depth_is_inverse(tmp_path: Path) -> None:
    write_array_tree(tmp_path, classes=7, normals=False)
    path = tmp_path / "train" / "depth" / "5.npy"
    for depth in (35.0, 126.0):  # metres, and pixels of disparity
        np.save(path, np.full((*SIZE, 1), depth))
        with refused(DataError, path, depth, "inverse depth"):
            CityScapes(tmp_path, "train", size=SIZE)[5]


def test_damaged_files_are_named(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "train" / "depth" / "5.npy"
    path.write_bytes(path.read_bytes()[:200])
    with refused(DataError, path, "cannot be read", "the depth of an image"):
        NYUv2(tmp_path, "train", size=SIZE)[5]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), height=st.integers(1, 9), width=st.integers(1, 9))
def test_augmentation_keeps_shapes_classes_and_lengths(seed: int, height: int, width: int) -> None:
    sample = scene(seed, (height, width))
    assert equal(flipped(flipped(sample)), sample)
    assert torch.equal(
        flipped(sample).targets["normals"][0, 0], -sample.targets["normals"][0, 0].flip(0)
    )
    assert torch.equal(
        flipped(sample).targets["normals"][1:], sample.targets["normals"][1:].flip(2)
    )
    changed = augmented(sample, np.random.default_rng(seed))
    for task, target in changed.targets.items():
        assert (target.shape, target.dtype) == (
            sample.targets[task].shape,
            sample.targets[task].dtype,
        )
    length = changed.targets["normals"].norm(dim=0)
    assert ((length == 0) | ((length - 1).abs() < 1e-5)).all()
    assert set(changed.targets["segmentation"].unique().tolist()) <= set(
        sample.targets["segmentation"].unique().tolist()
    )
    assert changed.input.min() >= 0
    assert changed.input.max() <= 1 + 1e-6


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_divides_depth_and_keeps_pixels_together(scale: float) -> None:
    places = torch.arange(60.0).view(1, 6, 10)
    classes = torch.arange(60).view(6, 10)
    targets = {"segmentation": classes, "depth": places, "normals": places.expand(3, 6, 10)}
    sample = scaled(Sample(places.expand(3, 6, 10), targets), scale, 1 if scale > 1 else 0, 0)
    classes_after = sample.targets["segmentation"]
    assert torch.equal(sample.targets["depth"][0], classes_after.float() / scale)
    assert torch.equal(sample.targets["normals"][0], classes_after.float())
    assert classes_after[0, 0] == (10 if scale > 1 else 0)
    assert sample.input[0, 0, 0] == classes_after[0, 0]
    assert sample.input[0, -1, -1] == classes_after[-1, -1] == {1.0: 59, 1.2: 57, 1.5: 45}[scale]


def test_augmentation_depends_on_seed_epoch_and_index(written: Written, tmp_path: Path) -> None:
    def load(seed: int, epoch: int, workers: int = 0) -> list[Batch]:
        data = NYUv2(tmp_path, "train", augment=True, seed=seed, size=SIZE)
        loader = SharedLoader(data, 12, shuffle=False, workers=workers)
        loader.set_epoch(epoch)
        return list(loader)

    def inputs(batches: list[Batch]) -> torch.Tensor:
        return batches[0].inputs

    assert torch.equal(inputs(load(0, 1)), inputs(load(0, 1, workers=2)))
    assert not torch.equal(inputs(load(0, 1)), inputs(load(0, 2)))
    assert not torch.equal(inputs(load(0, 1)), inputs(load(1, 1)))
    plain = SharedLoader(NYUv2(tmp_path, "train", size=SIZE), 12, shuffle=False)
    assert torch.equal(next(iter(plain)).inputs, next(iter(plain)).inputs)
    kept = [torch.equal(a, b) for a, b in zip(inputs(load(0, 1))[0], next(iter(plain)).inputs[0])]
    assert any(kept) and not all(kept)  # one in six is neither scaled nor flipped


def test_all_scales_and_flips_are_equally_likely() -> None:
    sample = Sample(torch.rand(3, *SIZE), {"depth": torch.arange(1.0, 61).view(1, *SIZE)})
    counts: Counter[tuple[int, bool]] = Counter()
    for seed in range(600):
        depth = augmented(sample, np.random.default_rng(seed)).targets["depth"]
        highest = int((depth == depth.max()).flatten().nonzero()[0])
        counts[len(depth.unique()), highest % SIZE[1] < SIZE[1] // 2] += (
            1  # visible pixels, mirrored
        )
    assert len(counts) == len(SCALES) * 2
    assert all(70 < count < 130 for count in counts.values())
