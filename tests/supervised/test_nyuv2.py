"""NYUv2 and CityScapes: what was written is what is loaded, and augmentation keeps its laws."""

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


def test_what_was_written_is_loaded_in_order(written: Written, tmp_path: Path) -> None:
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


def test_cityscapes(tmp_path: Path) -> None:
    written = write_array_tree(tmp_path, "val", 3, SIZE, classes=7, normals=False)
    data = CityScapes(tmp_path, "val", size=SIZE)
    assert list(data.tasks) == list(data[0].targets) == ["segmentation", "depth"]
    np.testing.assert_array_equal(data[2].targets["segmentation"], written[2]["label"])
    assert (CityScapes.size, NYUv2.size) == ((128, 256), (288, 384))
    with pytest.raises(ConfigError, match="CityScapes has train and val, not test"):
        CityScapes(tmp_path, "test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected shape \(128, 256, 3\), found \(6, 10, 3\)"):
        CityScapes(tmp_path, "val")[0]


def test_targets_that_are_not_asked_for_need_not_be_there(tmp_path: Path) -> None:
    write_array_tree(tmp_path, "train", 3, SIZE)
    shutil.rmtree(tmp_path / "train" / "normal")
    data = NYUv2(tmp_path, "train", tasks=("depth", "segmentation"), size=SIZE)
    assert list(data.tasks) == list(data[0].targets) == ["depth", "segmentation"]
    with pytest.raises(DataError, match="normal is missing"):
        NYUv2(tmp_path, "train", size=SIZE)
    with pytest.raises(ConfigError, match="CityScapes has no task 'normals'"):
        CityScapes(tmp_path, "train", tasks=("depth", "normals"))


@pytest.mark.parametrize("kind", ["image", "label", "depth", "normal"])
def test_missing_files_are_named(written: Written, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train" / kind / "3.npy"
    path.unlink()
    with pytest.raises(DataError, match=rf"train/{kind}/3\.npy is missing; .*3\.npy is there"):
        NYUv2(tmp_path, "train", size=SIZE)
    for other in path.parent.iterdir():
        other.unlink()
    path.parent.rmdir()
    with pytest.raises(DataError, match=f"train/{kind} is missing; expected there: a folder"):
        NYUv2(tmp_path, "train", size=SIZE)


def test_empty_and_misnamed(tmp_path: Path) -> None:
    for kind in ("image", "label", "depth"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    with pytest.raises(DataError, match="image is empty"):
        CityScapes(tmp_path, "train")
    (tmp_path / "train" / "image" / "a.npy").touch()
    with pytest.raises(DataError, match=r"a\.npy: expected a number as name"):
        CityScapes(tmp_path, "train")


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("image", np.full((*SIZE, 3), 128.0), "expected values -0.1 to 1.1, found 128"),
        ("image", np.zeros((3, *SIZE)), r"expected shape \(6, 10, 3\), found \(3, 6, 10\)"),
        ("label", np.full(SIZE, 13), "expected integers -1 to 12, found 13"),
        ("label", np.full(SIZE, 0.5), "expected integers -1 to 12, found 0.5"),
        ("depth", np.full((*SIZE, 1), -1.0), "found -1.0"),
        ("depth", np.full((*SIZE, 1), np.inf), "found inf"),
        ("depth", np.zeros(SIZE), "expected shape"),
        ("normal", np.full((*SIZE, 3), np.nan), "expected values -1.1 to 1.1, found nan"),
    ],
)
def test_wrong_arrays_are_named(
    written: Written, tmp_path: Path, kind: str, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "train" / kind / "5.npy", array)
    with pytest.raises(DataError, match=rf"train/{kind}/5\.npy: .*{message}"):
        NYUv2(tmp_path, "train", size=SIZE)[5]


def test_damaged_files_are_named(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "train" / "depth" / "5.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"depth/5\.npy cannot be read as the depth of an image"):
        NYUv2(tmp_path, "train", size=SIZE)[5]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), height=st.integers(1, 9), width=st.integers(1, 9))
def test_flips_and_scales(seed: int, height: int, width: int) -> None:
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
    shown = sample.targets["segmentation"]
    assert torch.equal(sample.targets["depth"][0], shown.float() / scale)
    assert torch.equal(sample.targets["normals"][0], shown.float())
    assert shown[0, 0] == (10 if scale > 1 else 0)
    assert sample.input[0, 0, 0] == shown[0, 0]
    assert sample.input[0, -1, -1] == shown[-1, -1] == {1.0: 59, 1.2: 57, 1.5: 45}[scale]


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
    assert any(kept) and not all(kept)  # a sixth is neither scaled nor flipped


def test_each_scale_and_flip_is_as_likely() -> None:
    sample = Sample(torch.rand(3, *SIZE), {"depth": torch.arange(1.0, 61).view(1, *SIZE)})
    found: Counter[tuple[int, bool]] = Counter()
    for seed in range(600):
        depth = augmented(sample, np.random.default_rng(seed)).targets["depth"]
        highest = int((depth == depth.max()).flatten().nonzero()[0])
        found[len(depth.unique()), highest % SIZE[1] < SIZE[1] // 2] += 1  # pixels shown, mirrored
    assert len(found) == len(SCALES) * 2
    assert all(70 < count < 130 for count in found.values())
