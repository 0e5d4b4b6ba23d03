"""Two small real data sets that ship inside packages: handwritten digits and a mountain ridge.

`Digits` is scikit-learn's copy of the UCI optical digits (Alpaydin & Kaynak, 1998): 1,797 images.
`Terrain` is matplotlib's elevation map of the Jacksboro fault in Tennessee and Kentucky (cells of 3
arc seconds), in tiles: depth, normals and segmentation, the three tasks of NYUv2, from a shaded
image. matplotlib's other map, `topobathy.npz`, is left out: its cells are 2.5 km wide, where slopes
mean something else, and it has room for six tiles.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from conal_rl.errors import ConfigError, import_extra
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import DataError, reading

Split = Literal["train", "val", "test"]
Array = NDArray[np.float64]


class TaskKind(NamedTuple):
    """What a task is, for whoever chooses its head, loss and metric."""

    kind: Literal["classification", "regression", "depth", "normals", "segmentation"]
    outputs: int
    """Classes, or channels of the target."""


class Digits:
    """Images of digits `(1, 8, 8)`, from 0 to 1, with five tasks.

    `digit` (10 classes), `parity` (1: odd), `at_least_five` and `prime` (2, 3, 5 and 7) are class
    indices `()`; `ink` `(1,)` is the image's mean, standardised by mean and deviation over the
    training part. Every digit's images, in an order drawn once and for all, are cut 60 : 20 : 20:
    1,074 images for training, 359 for validation, 364 for the test.

    Args:
        split: which part.

    Raises:
        ExtraError: scikit-learn is not installed.
        ConfigError: no such split.
    """

    kinds: ClassVar[Mapping[str, TaskKind]] = {
        "digit": TaskKind("classification", 10),
        "parity": TaskKind("classification", 2),
        "at_least_five": TaskKind("classification", 2),
        "prime": TaskKind("classification", 2),
        "ink": TaskKind("regression", 1),
    }
    tasks: ClassVar[Mapping[str, TargetSpec]] = {
        name: TargetSpec((), torch.int64) for name in kinds
    } | {"ink": TargetSpec((1,), torch.float32)}

    def __init__(self, split: Split):
        _require_split(split)
        images, digits = _load_digits()
        parts = _cut_by_class(digits.tolist())
        ink = images.mean(axis=(1, 2))
        train = ink[parts["train"]]
        self.indices = parts[split]
        """Which of scikit-learn's images these are."""
        self.inputs = torch.tensor(images[self.indices], dtype=torch.float32)[:, None]
        standard = (ink[self.indices] - train.mean()) / train.std()
        digit = torch.tensor(digits[self.indices], dtype=torch.int64)
        self.targets = {
            "digit": digit,
            "parity": digit % 2,
            "at_least_five": (digit >= 5).long(),
            "prime": torch.isin(digit, torch.tensor([2, 3, 5, 7])).long(),
            "ink": torch.tensor(standard, dtype=torch.float32)[:, None],
        }

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:
        """An image and its targets, of every task."""
        targets = {task: target[index] for task, target in self.targets.items()}
        return Sample(self.inputs[index], targets)


class Terrain:
    """Shaded relief `(1, 32, 32)` of a real landscape, with three tasks.

    `depth` `(1, 32, 32)` is the elevation less the tile's mean, in units of 100 m; `normals`
    `(3, 32, 32)` point up from the surface, of length 1, to (east, north, up); `segmentation`
    `(32, 32)` is the slope's class, one of five. Nothing is unlabelled: 0 is a depth like any
    other, so losses and metrics want a void of None there, and an error relative to the depth says
    little. Rows go south, columns east; a cell is 93 m high and 74 m wide.

    The input follows from the normals, but for each of its values there are many normals, and no
    depth is in it: slopes along the light's direction are seen, those across it hardly.

    The map is 5 by 6 square regions of 64 cells, with three cells between them: 18 for training, 6
    for validation, 6 for the test. Gradients reach one cell beyond a region, so no elevation is in
    two parts. Regions of validation and test are cut into 4 tiles each, 24 and 24 in all; those of
    training every 8 cells, into 25 tiles that overlap one another, 450 in all: a random
    split of those would put the same cells into both of its parts.

    Args:
        split: which part.

    Raises:
        ConfigError: no such split.
        DataError: matplotlib lacks the map or has it damaged.
    """

    kinds: ClassVar[Mapping[str, TaskKind]] = {
        "depth": TaskKind("depth", 1),
        "normals": TaskKind("normals", 3),
        "segmentation": TaskKind("segmentation", 5),
    }
    tasks: ClassVar[Mapping[str, TargetSpec]] = {
        "depth": TargetSpec((1, 32, 32), torch.float32),
        "normals": TargetSpec((3, 32, 32), torch.float32),
        "segmentation": TargetSpec((32, 32), torch.int64),
    }
    tile = 32
    """Height and width of a tile, in cells."""

    def __init__(self, split: Split):
        _require_split(split)
        elevation, spacing = _load_map()
        normals = surface_normals(elevation, spacing)
        self._elevation = torch.tensor(elevation)
        self._normals = torch.tensor(normals, dtype=torch.float32)
        self._shade = torch.tensor(hillshade(normals), dtype=torch.float32)
        self._classes = torch.tensor(slope_classes(normals))
        stride = 8 if split == "train" else self.tile
        tiles = [
            (region, row + down, column + right)
            for region, row, column in _regions(split)
            for down in range(0, _REGION - self.tile + 1, stride)
            for right in range(0, _REGION - self.tile + 1, stride)
        ]
        self.regions = [region for region, _, _ in tiles]
        """The number of the region that each tile is from, in ascending order."""
        self.corners = [(row, column) for _, row, column in tiles]
        """Each tile's first row and column on the map."""

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> Sample:
        """A tile's shaded relief and its targets, of every task."""
        row, column = self.corners[index]
        cells = (..., slice(row, row + self.tile), slice(column, column + self.tile))
        height = self._elevation[cells]
        targets = {
            "depth": ((height - height.mean()) / 100).float()[None],
            "normals": self._normals[cells],
            "segmentation": self._classes[cells],
        }
        return Sample(self._shade[cells][None], targets)


def surface_normals(elevation: Array, spacing: tuple[float, float]) -> Array:
    """Unit normals `(3, row, column)` (east, north, up) of a map of heights `(row, column)`.

    From central differences, one-sided ones at the map's edges. Rows go south, columns east.

    Args:
        elevation: in metres.
        spacing: of rows and of columns, in metres.
    """
    north, east = np.gradient(elevation, -spacing[0], spacing[1])
    normals = np.stack([-east, -north, np.ones_like(elevation)])
    return normals / np.linalg.norm(normals, axis=0)


def hillshade(normals: Array) -> Array:
    """How brightly a white surface of `normals` `(3, row, column)` is lit, `(row, column)`, 0 to 1.

    Lambert's cosine of the angle to the light, without shadows cast. The light is the
    cartographers' (and matplotlib's) usual one, from the north-west, 45 degrees high.
    """
    azimuth, height = math.radians(315), math.radians(45)
    level = math.cos(height)
    light = [math.sin(azimuth) * level, math.cos(azimuth) * level, math.sin(height)]
    return np.tensordot(light, normals, axes=1).clip(min=0)


def slope_classes(normals: Array) -> NDArray[np.int64]:
    """The class of the slope, 0 (flattest) to 4, `(row, column)`, of `normals` `(3, row, column)`.

    Class k is from the k-th of `SLOPES` to below the next.
    """
    slope = np.degrees(np.arctan2(np.hypot(normals[0], normals[1]), normals[2]))
    return np.digitize(slope, SLOPES).astype(np.int64)


SLOPES = (6.0, 10.5, 15.5, 20.5)
"""Degrees between the classes of slope.

The quintiles over the training regions, 5.8, 10.6, 15.5 and 20.4, to the next half degree: so every
class has 19 to 21 percent of these cells, and 17 to 23 percent of validation's and the test's.
"""

_REGION, _PITCH = 64, 67  # cells of a region, and from one to the next
_ROWS, _COLUMNS = range(6, 6 + 5 * _PITCH, _PITCH), range(2, 2 + 6 * _PITCH, _PITCH)


def _regions(split: Split) -> list[tuple[int, int, int]]:
    """Number, first row and first column of a part's regions.

    Every row of regions has one or two of validation and of the test, every column one of each.
    """
    which: dict[int, Split] = {0: "val", 2: "test"}
    return [
        (6 * y + x, row, column)
        for y, row in enumerate(_ROWS)
        for x, column in enumerate(_COLUMNS)
        if which.get((y + 2 * x) % 5, "train") == split
    ]


def _load_map() -> tuple[Array, tuple[float, float]]:
    """Elevation `(344, 403)` in metres, and the spacing of rows and columns in metres."""
    from matplotlib.cbook import get_sample_data

    path = Path(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
    with reading(path, "matplotlib's map"), np.load(path) as file:
        elevation = file["elevation"].astype(np.float64)
        dx, dy, south, north = (float(file[name]) for name in ("dx", "dy", "ymax", "ymin"))
    if elevation.shape != (344, 403):
        raise DataError(f"{path}: expected a map of 344 x 403 cells, got {elevation.shape}")
    # The map's cells are in degrees; it names its northern edge ymin. 111,200 m to a degree of
    # latitude, as in matplotlib's own example of this map.
    shrink = math.cos(math.radians((south + north) / 2))
    return elevation, (111_200 * dy, 111_200 * dx * shrink)


def _load_digits() -> tuple[Array, NDArray[np.int64]]:
    """Images `(1797, 8, 8)` from 0 to 1, and their digits `(1797,)`."""
    digits = import_extra("sklearn.datasets", "scikit-learn", "vision").load_digits()
    return digits.images / 16, digits.target


def _cut_by_class(classes: list[int]) -> dict[str, list[int]]:
    """Indices of the parts in ascending order: 60, 20 and 20 percent of every class."""
    parts: dict[str, list[int]] = {split: [] for split in get_args(Split)}
    draw = random.Random(0)  # of which Python promises the same numbers in every version
    keys = [draw.random() for _ in classes]
    for number in sorted(set(classes)):
        own = [index for index, of in enumerate(classes) if of == number]
        own.sort(key=keys.__getitem__)
        first, second = len(own) * 3 // 5, len(own) * 4 // 5
        parts["train"] += own[:first]
        parts["val"] += own[first:second]
        parts["test"] += own[second:]
    return {split: sorted(indices) for split, indices in parts.items()}


def _require_split(split: str) -> None:
    if split not in get_args(Split):
        raise ConfigError(f"no split {split!r}: one of {', '.join(get_args(Split))}")
