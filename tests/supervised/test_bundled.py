"""Digits and terrain: targets against plain formulas, parts without overlap, errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import matplotlib.cbook
import numpy as np
import pytest
import torch
from matplotlib.colors import LightSource

from conal_rl.errors import ConfigError, ExtraError
from conal_rl.supervised.data.bundled import (
    SLOPES,
    Digits,
    Split,
    Terrain,
    hillshade,
    slope_classes,
    surface_normals,
)
from conal_rl.supervised.data.common import SharedLoader, TargetSpec
from conal_rl.supervised.data.files import DataError
from tests.helpers.refusals import refused

PARTS: tuple[Split, ...] = get_args(Split)
SPACING = (90.0, 70.0)  # of rows and of columns, in metres


@pytest.fixture(scope="module")
def digits() -> dict[str, Digits]:
    pytest.importorskip("sklearn")
    return {part: Digits(part) for part in PARTS}


@pytest.fixture(scope="module")
def terrain() -> dict[str, Terrain]:
    return {part: Terrain(part) for part in PARTS}


def test_parts_of_digits_hold_each_image_once(digits: dict[str, Digits]) -> None:
    sizes = {part: len(dataset) for part, dataset in digits.items()}
    assert sizes == {"train": 1074, "val": 359, "test": 364}
    indices = [index for dataset in digits.values() for index in dataset.indices]
    assert sorted(indices) == list(range(1797))


def test_parts_of_digits_stay_as_they_are(digits: dict[str, Digits]) -> None:
    assert [digits[part].indices[:6] for part in PARTS] == [
        [2, 3, 4, 5, 7, 8],
        [0, 13, 14, 18, 21, 23],
        [1, 6, 10, 16, 17, 19],
    ]
    assert Digits("test").indices == digits["test"].indices


def test_every_digit_is_cut_in_the_same_shares(digits: dict[str, Digits]) -> None:
    counts = {
        part: dataset.targets["digit"].bincount(minlength=10) for part, dataset in digits.items()
    }
    total = sum(counts.values())
    for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert (counts[part] - share * total).abs().max() <= 1


def test_targets_of_digits_follow_from_the_digit(digits: dict[str, Digits]) -> None:
    datasets: Any = pytest.importorskip("sklearn.datasets")
    known = datasets.load_digits()
    odd, large, prime = {1, 3, 5, 7, 9}, {5, 6, 7, 8, 9}, {2, 3, 5, 7}
    for part in PARTS:
        for number, index in enumerate(digits[part].indices):
            image, targets = digits[part][number]
            digit = int(known.target[index])
            assert np.array_equal(image[0].numpy() * 16, known.images[index])
            classes = [int(targets[t]) for t in ("digit", "parity", "at_least_five", "prime")]
            assert classes == [digit, digit in odd, digit in large, digit in prime]


def test_ink_is_standardised_on_the_training_part(digits: dict[str, Digits]) -> None:
    ink = digits["train"].targets["ink"]
    assert abs(float(ink.mean())) < 1e-6 and abs(float(ink.std(correction=0)) - 1) < 1e-6
    means = torch.cat([dataset.inputs.mean(dim=(1, 2, 3)) for dataset in digits.values()])
    every = torch.cat([dataset.targets["ink"][:, 0] for dataset in digits.values()])
    assert torch.corrcoef(torch.stack([means, every]))[0, 1] > 0.99999


@pytest.mark.parametrize("name", ["digits", "terrain"])
def test_samples_have_the_specified_shapes(name: str, request: pytest.FixtureRequest) -> None:
    for dataset in request.getfixturevalue(name).values():
        assert list(dataset.tasks) == list(dataset.kinds)
        for index in (0, len(dataset) - 1):
            image, targets = dataset[index]
            assert image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1
            specs = {task: TargetSpec(tuple(y.shape), y.dtype) for task, y in targets.items()}
            assert specs == dataset.tasks
        for task, (kind, outputs) in dataset.kinds.items():
            target = torch.stack([dataset[index].targets[task] for index in range(len(dataset))])
            if kind in ("classification", "segmentation"):
                assert target.unique().tolist() == list(range(outputs))
            else:
                assert target.shape[1] == outputs
        with pytest.raises(IndexError):
            dataset[len(dataset)]


@pytest.mark.parametrize("name", ["digits", "terrain"])
def test_loaders_batch_both_data_sets(name: str, request: pytest.FixtureRequest) -> None:
    dataset = request.getfixturevalue(name)["val"]
    batches = list(SharedLoader(dataset, batch_size=10))
    assert sum(batch.inputs.shape[1] for batch in batches) == len(dataset)
    assert all(mask.all() for batch in batches for mask in batch.masks.values())


def test_normals_of_a_plane_follow_its_slope() -> None:
    row, column = np.mgrid[:6, :7]
    north, east = -row * SPACING[0], column * SPACING[1]
    normals = surface_normals(500 + 0.3 * east - 0.1 * north, SPACING)
    expected = np.array([-0.3, 0.1, 1]) / np.sqrt(0.3**2 + 0.1**2 + 1)
    assert np.allclose(normals, expected[:, None, None])
    slope = np.degrees(np.arctan(np.hypot(0.3, 0.1)))  # 17.5 degrees
    assert np.all(slope_classes(normals) == sum(slope >= limit for limit in SLOPES))


def test_normals_of_a_paraboloid_follow_its_gradient() -> None:
    row, column = np.mgrid[-10:11, -10:11]
    north, east = -row * SPACING[0], column * SPACING[1]
    normals = surface_normals(-(east**2 + 2.0 * north**2) / 5000, SPACING)
    # A hill's normals lean outwards; central differences of a square are exact.
    exact = np.stack([2 * east / 5000, 4 * north / 5000, np.ones_like(east)])
    exact /= np.linalg.norm(exact, axis=0)
    assert np.allclose(normals[:, 1:-1, 1:-1], exact[:, 1:-1, 1:-1])
    assert np.allclose(normals[:, 10, 10], [0, 0, 1])


def test_the_light_is_north_west_and_45_degrees_high() -> None:
    half = np.sqrt(0.5)
    towards, level, away = [-0.5, 0.5, half], [0, 0, 1], [0.8, -0.59, 0.1]
    assert np.allclose(hillshade(np.array([towards, level, away]).T), [1, half, 0])


def test_the_shade_equals_matplotlibs(terrain: dict[str, Terrain]) -> None:
    whole = terrain["train"]
    elevation, spacing = whole._elevation.numpy(), (92.66667, 74.40446)
    theirs = LightSource(315, 45).hillshade(elevation, dx=spacing[1], dy=spacing[0])
    # matplotlib stretches its shade to 0 to 1 over the map.
    ours = whole._shade.numpy()
    stretched = (ours - ours.min()) / (ours.max() - ours.min())
    assert np.abs(stretched - theirs).max() < 1e-5


def test_classes_of_slope_start_at_their_limits() -> None:
    slopes = np.radians([0, 5.99, 6.01, 10.49, 10.51, 15.49, 15.51, 20.49, 20.51, 89])
    around = np.linspace(0, 6, 10)  # in any direction
    level = np.sin(slopes)
    normals = np.stack([level * np.cos(around), level * np.sin(around), np.cos(slopes)])
    assert slope_classes(normals).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_targets_of_a_tile_describe_one_surface(terrain: dict[str, Terrain]) -> None:
    for dataset in terrain.values():
        image, targets = dataset[len(dataset) // 2]
        depth, normals = targets["depth"][0].double().numpy(), targets["normals"].numpy()
        again = surface_normals(100 * depth, (92.66667, 74.40446))
        assert np.abs(again - normals)[:, 1:-1, 1:-1].max() < 1e-4
        assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-6)
        assert abs(depth.mean()) < 1e-6
        light = torch.tensor([-0.5, 0.5, 0.5**0.5])
        assert torch.allclose(image[0], torch.tensordot(light, targets["normals"], dims=1))
        slope = np.degrees(np.arccos(normals[2].astype(float)))
        sure = np.abs(slope[..., None] - SLOPES).min(axis=-1) > 0.01
        classes = np.digitize(slope, SLOPES)
        assert np.array_equal(classes[sure], targets["segmentation"].numpy()[sure])


def cells(terrain: Terrain, tiles: Any = None, reach: int = 0) -> set[tuple[int, int]]:
    """The cells of the map in the tiles, and up to `reach` cells beyond."""
    corners = terrain.corners if tiles is None else [terrain.corners[tile] for tile in tiles]
    return {
        (row + y, column + x)
        for row, column in corners
        for y in range(-reach, terrain.tile + reach)
        for x in range(-reach, terrain.tile + reach)
    }


def test_no_cell_is_in_two_parts(terrain: dict[str, Terrain]) -> None:
    sizes = {part: len(dataset) for part, dataset in terrain.items()}
    assert sizes == {"train": 450, "val": 24, "test": 24}
    used = {
        part: cells(dataset, reach=1) for part, dataset in terrain.items()
    }  # gradients use one cell more
    assert not used["train"] & used["test"]
    assert not used["train"] & used["val"]
    assert not used["val"] & used["test"]
    assert min(row for dataset in used.values() for row, _ in dataset) >= 0
    assert max(row for dataset in used.values() for row, _ in dataset) < 344
    assert max(column for dataset in used.values() for _, column in dataset) < 403
    for part, regions in (("train", 18), ("val", 6), ("test", 6)):
        assert len(cells(terrain[part])) == regions * 64**2
        assert len(set(terrain[part].regions)) == regions


def test_tiles_of_validation_and_test_do_not_overlap(terrain: dict[str, Terrain]) -> None:
    for part in ("val", "test"):
        assert len(cells(terrain[part])) == len(terrain[part]) * 32**2


def test_classes_of_slope_are_balanced(terrain: dict[str, Terrain]) -> None:
    for part, least, most in (("train", 0.185, 0.215), ("val", 0.17, 0.23), ("test", 0.17, 0.235)):
        dataset = terrain[part]
        every = np.array([dataset._classes[row, column] for row, column in cells(dataset)])
        share = np.bincount(every) / len(every)
        assert len(share) == 5 and least < share.min() and share.max() < most


def test_tiles_are_the_same_every_time(terrain: dict[str, Terrain]) -> None:
    again = Terrain("val")
    for index in range(len(again)):
        old, new = terrain["val"][index], again[index]
        assert torch.equal(old.input, new.input)
        assert all(torch.equal(old.targets[task], new.targets[task]) for task in again.tasks)


@pytest.mark.parametrize("kind", [Digits, Terrain])
def test_other_splits_are_refused(kind: Any) -> None:
    with refused(ConfigError, "split", "'dev'", "train, val, test"):
        kind("dev")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused(ExtraError, "scikit-learn", ".[vision]"):
        Digits("train")


def test_a_damaged_map_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.npz"
    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", lambda *_, **__: str(path))

    def check(*parts: str) -> None:
        with refused(DataError, path, *parts):
            Terrain("train")

    check("no file")
    for content in (b"", b"PK\x03\x04 cut short", b"not an archive"):
        path.write_bytes(content)
        check("matplotlib's map")
    np.savez_compressed(path, elevation=np.arange(344.0 * 403).reshape(344, 403))
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + b"\xff" * 64 + whole[2064:])
    check("matplotlib's map")
    np.savez(path, elevation=np.zeros((344, 403)))
    check("dx")
    np.savez(path, elevation=np.zeros((3, 4)), dx=1, dy=1, ymin=1, ymax=1)
    check("(3, 4)", "(344, 403)")
