"""Two small real data sets that come with Python packages: handwritten digits and a terrain.

`Digits` is scikit-learn's copy of the UCI optical digits (Alpaydin & Kaynak, 1998): 1,797 images.
`Terrain` is matplotlib's elevation map of the Jacksboro fault in Tennessee and Kentucky, cut into
tiles. Its cells are 3 arc seconds wide. Its tasks are those of NYUv2, from a shaded image: depth,
normals and segmentation. matplotlib's `topobathy.npz` is not used: its cells are 2.5 km wide, too
wide for meaningful slopes, and it has room for only six tiles.
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
from conal_rl.supervised.data.files import data_error, reading

Split = Literal["train", "val", "test"]
Array = NDArray[np.float64]


class TaskKind(NamedTuple):
    """The kind of a task, from which its head, loss and metric are chosen."""

    kind: Literal["classification", "regression", "depth", "normals", "segmentation"]
    outputs: int
    """Classes, or channels of the target."""


class Digits:
    """Images of digits `(1, 8, 8)`, from 0 to 1, with five tasks.

    Four targets are class indices `()`: `digit` (10 classes), `parity` (1 is odd), `at_least_five`
    and `prime` (2, 3, 5 and 7). `ink` `(1,)` is the image's mean, standardised by mean and
    deviation over the training part.

    The images of each digit are shuffled with a fixed seed and cut 60 : 20 : 20. That gives 1,074
    images for training, 359 for validation and 364 for the test.

    Args:
        split: the part.

    Raises:
        ExtraError: scikit-learn is not installed.
        ConfigError: `split` is unknown.
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
        """The numbers of the images in scikit-learn's data set."""
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
        """Return an image and its targets of all tasks."""
        targets = {task: target[index] for task, target in self.targets.items()}
        return Sample(self.inputs[index], targets)


class Terrain:
    """Shaded relief `(1, 32, 32)` of a real landscape, with three tasks.

    `depth` `(1, 32, 32)` is the elevation minus the tile's mean, in units of 100 m. `normals`
    `(3, 32, 32)` are unit vectors (east, north, up) that point up from the surface.
    `segmentation` `(32, 32)` is the slope's class, one of five. Rows go south, columns go east. A
    cell is 93 m high and 74 m wide.

    Every pixel has a label. A depth of 0 is a valid depth, so losses and metrics need a void of
    None. For the same reason an error relative to the depth means little.

    The input depends on the normals, but many normals give the same input value, and no depth is
    visible in it. Slopes along the light's direction are visible. Slopes across it hardly are.

    The map has 5 by 6 square regions of 64 by 64 cells, with three cells between them: 18 for
    training, 6 for validation, 6 for the test. Gradients use one cell beyond a region, so no
    elevation is in two parts. Regions of validation and test are cut into 4 tiles each, so these
    parts have 24 tiles. In a training region a tile starts every 8 cells: 25 overlapping tiles, 450
    in all. A random split of the 450 tiles would put the same cells into both parts.

    Args:
        split: the part.

    Raises:
        ConfigError: `split` is unknown.
        DataError: matplotlib's map is missing or damaged.
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
        """The number of each tile's region, in ascending order."""
        self.corners = [(row, column) for _, row, column in tiles]
        """Each tile's first row and column on the map."""

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> Sample:
        """Return a tile's shaded relief and its targets of all tasks."""
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
    """Return unit normals `(3, row, column)` (east, north, up) of a map `(row, column)`.

    The gradients are central differences, one-sided at the map's edges. Rows go south, columns go
    east.

    Args:
        elevation: heights in metres.
        spacing: the distances of rows and of columns, in metres.
    """
    north, east = np.gradient(elevation, -spacing[0], spacing[1])
    normals = np.stack([-east, -north, np.ones_like(elevation)])
    return normals / np.linalg.norm(normals, axis=0)


def hillshade(normals: Array) -> Array:
    """Return the brightness `(row, column)`, 0 to 1, of a white surface with these normals.

    It is Lambert's cosine of the angle to the light, without cast shadows. The light comes from
    the north-west, 45 degrees high: the default of maps and of matplotlib.

    Args:
        normals: unit vectors `(3, row, column)`.
    """
    azimuth, height = math.radians(315), math.radians(45)
    level = math.cos(height)
    light = [math.sin(azimuth) * level, math.cos(azimuth) * level, math.sin(height)]
    return np.tensordot(light, normals, axes=1).clip(min=0)


def slope_classes(normals: Array) -> NDArray[np.int64]:
    """Return the slope's class `(row, column)`, 0 (flattest) to 4, of `(3, row, column)` normals.

    Class k starts at the k-th value of `SLOPES` and ends below the next; class 0 starts at 0.
    """
    slope = np.degrees(np.arctan2(np.hypot(normals[0], normals[1]), normals[2]))
    return np.digitize(slope, SLOPES).astype(np.int64)


SLOPES = (6.0, 10.5, 15.5, 20.5)
"""The limits between the classes of slope, in degrees.

They are the quintiles over the training regions (5.8, 10.6, 15.5, 20.4), rounded to half degrees.
Every class has 19 to 21 percent of the training cells, and 17 to 23 percent of the cells of
validation and of the test.
"""

_REGION, _PITCH = 64, 67  # cells per region, and from one region's start to the next
_ROWS, _COLUMNS = range(6, 6 + 5 * _PITCH, _PITCH), range(2, 2 + 6 * _PITCH, _PITCH)


def _regions(split: Split) -> list[tuple[int, int, int]]:
    """Return number, first row and first column of each region of a part.

    Every row of regions has one or two regions of validation, and one or two of the test. Every
    column has one region of each.
    """
    which: dict[int, Split] = {0: "val", 2: "test"}
    return [
        (6 * y + x, row, column)
        for y, row in enumerate(_ROWS)
        for x, column in enumerate(_COLUMNS)
        if which.get((y + 2 * x) % 5, "train") == split
    ]


def _load_map() -> tuple[Array, tuple[float, float]]:
    """Return elevations `(344, 403)` and the spacing of rows and columns, all in metres."""
    from matplotlib.cbook import get_sample_data

    path = Path(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
    with reading(path, "matplotlib's map"), np.load(path) as file:
        elevation = file["elevation"].astype(np.float64)
        dx, dy, south, north = (float(file[name]) for name in ("dx", "dy", "ymax", "ymin"))
    if elevation.shape != (344, 403):
        raise data_error(
            path, f"shape {elevation.shape}", "shape (344, 403)", "Install matplotlib again"
        )
    # The map gives cells in degrees and calls its northern edge ymin. A degree of latitude has
    # 111,200 m, as in matplotlib's example of this map.
    shrink = math.cos(math.radians((south + north) / 2))
    return elevation, (111_200 * dy, 111_200 * dx * shrink)


def _load_digits() -> tuple[Array, NDArray[np.int64]]:
    """Return images `(1797, 8, 8)` from 0 to 1, and their digits `(1797,)`."""
    digits = import_extra("sklearn.datasets", "scikit-learn", "vision").load_digits()
    return digits.images / 16, digits.target


def _cut_by_class(classes: list[int]) -> dict[str, list[int]]:
    """Return the indices of each part, ascending: 60, 20 and 20 percent of every class."""
    parts: dict[str, list[int]] = {split: [] for split in get_args(Split)}
    draw = random.Random(0)  # Python guarantees the same numbers in every version
    keys = [draw.random() for _ in classes]
    for number in sorted(set(classes)):
        of_class = [index for index, of in enumerate(classes) if of == number]
        of_class.sort(key=keys.__getitem__)
        first, second = len(of_class) * 3 // 5, len(of_class) * 4 // 5
        parts["train"] += of_class[:first]
        parts["val"] += of_class[first:second]
        parts["test"] += of_class[second:]
    return {split: sorted(indices) for split, indices in parts.items()}


def _require_split(split: str) -> None:
    if split not in get_args(Split):
        raise ConfigError(
            f"split: got {split!r}, expected one of {', '.join(get_args(Split))}. Give one of them"
        )
