"""NYUv2 and CityScapes, as MTAN prepared them: a tree of `.npy` files, one per image and task.

Liu et al., "End-to-End Multi-Task Learning with Attention" (CVPR 2019). LibMTL reads the same
files, `root/{train,val}/{image,label,depth,normal}/{i}.npy`. Shapes: image `(height, width, 3)`
from 0 to 1, label `(height, width)`, depth `(height, width, 1)`, normal `(height, width, 3)`.
Papers test on `val`.

As in LibMTL, images stay from 0 to 1. No mean is subtracted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conal_rl.errors import ConfigError
from conal_rl.files import user_path
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import (
    Array,
    data_error,
    is_hidden,
    missing_file,
    read_npy,
    require_values,
)

Split = Literal["train", "val"]
SCALES = (1.0, 1.2, 1.5)
VOID = -1
"""The class of unlabelled pixels. Depth 0 and normal (0, 0, 0) mean unlabelled too."""


class NYUv2:
    """Indoor scenes: 795 for training, 654 to test; 13 classes, depth in metres, normals.

    Items have an input `(3, height, width)` and the targets `segmentation` `(height, width)` int64,
    `depth` `(1, height, width)` and `normals` `(3, height, width)`.

    Args:
        root: the folder with `train` and `val`.
        split: the subfolder.
        tasks: the tasks to read, in order; None reads all.
        augment: scale and flip at random, depending on seed, epoch and index.
        seed: the seed of the augmentation.
        size: height and width of every array; None for the published size.
        require_all: every image must have all its files. Without it, an image that lacks one is an
            item that cannot be read.

    Raises:
        DataError: a folder or file is missing. When an item is read: a file is damaged or has
            unexpected content.
        ConfigError: a split or task is unknown.
    """

    size: tuple[int, int] = (288, 384)
    classes: ClassVar[int] = 13
    folders: ClassVar[dict[str, str]] = {
        "segmentation": "label",
        "depth": "depth",
        "normals": "normal",
    }
    """The folder of each task's targets."""
    depths: ClassVar[tuple[float, float]] = (0.0, 20.0)
    unit: ClassVar[str] = "metres"
    """Range and unit of the depth. The camera sees 10 m far, so other units exceed the range."""

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        tasks: Sequence[str] | None = None,
        augment: bool = False,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        require_all: bool = True,
    ):
        if split not in ("train", "val"):
            raise ConfigError(f"split: got {split!r}, expected train or val. Give one of them")
        self.folder = user_path(root) / split
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.size = size or self.size
        tasks = tuple(self.folders) if tasks is None else tasks
        if unknown := set(tasks) - self.folders.keys():
            raise ConfigError(
                f"tasks: got {min(unknown)!r}, expected some of {', '.join(self.folders)}. "
                "Give some of them"
            )
        self._kinds = ["image", *(self.folders[task] for task in tasks)]
        self.names = _paired_names(self.folder, self._kinds, require_all)
        """The names of the files, in the order of their numbers."""
        kinds = {
            "segmentation": TargetSpec(self.size, torch.int64),
            "depth": TargetSpec((1, *self.size), torch.float32),
            "normals": TargetSpec((3, *self.size), torch.float32),
        }
        self.tasks = {task: kinds[task] for task in tasks}

    def at_epoch(self, epoch: int) -> NYUv2:
        """Return the same data set with the augmentation of a different epoch."""
        changed = copy.copy(self)
        changed.epoch = epoch
        return changed

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> list[Path]:
        """Return the files of an item."""
        return [self.folder / kind / self.names[index] for kind in self._kinds]

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        image = self._read("image", "image", name)
        targets = {task: self._read(task, self.folders[task], name) for task in self.tasks}
        sample = Sample(image, targets)
        if not self.augment:
            return sample
        return augmented(sample, np.random.default_rng((self.seed, self.epoch, index)))

    def _read(self, kind: str, folder: str, name: str) -> Tensor:
        path = self.folder / folder / name
        channels = {"image": (3,), "segmentation": (), "depth": (1,), "normals": (3,)}[kind]
        array = read_npy(path, (*self.size, *channels), f"the {kind} of an image, an .npy array")
        if kind == "segmentation":
            require_values(path, array, VOID, self.classes - 1)
            return torch.from_numpy(array.astype(np.int64))
        # Resizing may exceed the range a little. Bytes or negative depths are a different format.
        low, high = {"image": (-0.1, 1.1), "depth": self.depths, "normals": (-1.1, 1.1)}[kind]
        require_values(path, array, low, high, self.unit if kind == "depth" else "")
        if kind == "normals":
            _require_unit_length(path, array)
        return torch.from_numpy(array.astype(np.float32)).movedim(-1, 0).contiguous()


class CityScapes(NYUv2):
    """Street scenes: 2,975 for training, 500 to test; 7 classes and inverse depth, 0 to about 0.49.

    Arguments, items and errors are those of `NYUv2`, without normals.
    """

    size = (128, 256)
    classes = 7
    folders: ClassVar[dict[str, str]] = {"segmentation": "label", "depth": "depth"}
    depths = (0.0, 10.0)  # a street in metres, or in pixels of disparity, exceeds it
    unit = "of inverse depth"


def augmented(sample: Sample, rng: np.random.Generator) -> Sample:
    """Scale by one of `SCALES` around a random place, then flip at random, as LibMTL does."""
    scale = SCALES[rng.integers(len(SCALES))]
    top, left = (int(rng.integers(n - _visible(n, scale) + 1)) for n in sample.input.shape[-2:])
    flip = rng.random() < 0.5
    sample = scaled(sample, scale, top, left)
    return flipped(sample) if flip else sample


def scaled(sample: Sample, scale: float, top: int, left: int) -> Sample:
    """Enlarge the part of the scene that starts at `top`, `left` to the size of the whole.

    An object that looks `scale` times larger is nearer, so the depth is divided by `scale`. Users
    of the benchmark divide CityScapes' inverse depth too, although it grows when objects come
    nearer; so do we. Normals use the nearest neighbour instead of LibMTL's interpolation: they keep
    unit length, and unlabelled normals (0, 0, 0) do not mix into their neighbours.
    """
    size = sample.input.shape[-2:]
    rows = slice(top, top + _visible(size[0], scale))
    columns = slice(left, left + _visible(size[1], scale))

    def nearest(target: Tensor) -> Tensor:
        part = target[..., rows, columns].double()  # exact for classes
        return F.interpolate(part.reshape(1, -1, *part.shape[-2:]), tuple(size))[0].to(target.dtype)

    image = sample.input[None, :, rows, columns]
    image = F.interpolate(image, tuple(size), mode="bilinear", align_corners=True)[0]
    targets = {
        task: nearest(target).reshape(target.shape) for task, target in sample.targets.items()
    }
    if "depth" in targets:
        targets["depth"] = targets["depth"] / scale
    return Sample(image, targets)


def _visible(length: int, scale: float) -> int:
    return max(1, int(length / scale))


def flipped(sample: Sample) -> Sample:
    """Mirror left and right; the x of normals changes its sign."""
    targets = {task: target.flip(-1) for task, target in sample.targets.items()}
    if "normals" in targets:
        targets["normals"] = targets["normals"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    return Sample(sample.input.flip(-1), targets)


def _require_unit_length(path: Path, normals: Array) -> None:
    """Raise a DataError if the normals seem to be stored as 0 to 1 instead of -1 to 1.

    Then no value is negative, and most lengths are not 1. Unlabelled normals are (0, 0, 0).
    """
    if (normals < 0).any():
        return
    lengths = np.linalg.norm(normals, axis=-1)
    labelled = lengths[lengths > 0]
    if labelled.size and not 0.9 < (length := float(np.median(labelled))) < 1.1:
        got = f"normals from 0 to 1 and of length {length:.3g}"
        raise data_error(path, got, "values from -1 to 1, and vectors of length 1")


def _paired_names(folder: Path, kinds: list[str], require_all: bool) -> list[str]:
    """Return the names `{i}.npy` of a split, in the order of numbers.

    Raises:
        DataError: a folder is missing or, with `require_all`, a file is missing in one of them.
    """
    names: dict[str, list[str]] = {}
    for kind in kinds:
        subfolder = folder / kind
        if not subfolder.is_dir():
            raise missing_file(subfolder, "a folder of 0.npy, 1.npy, ...")
        files = (path.name for path in subfolder.glob("*.npy") if not is_hidden(path.name))
        names[kind] = sorted(files, key=_number(subfolder))
    if not require_all:
        everything = set[str]().union(*names.values())
        names = dict.fromkeys(kinds, sorted(everything, key=_number(folder)))
    if not names["image"]:
        raise data_error(folder / "image", "an empty folder", "0.npy, 1.npy, ...")
    for kind in kinds:
        for one, other in ((kind, "image"), ("image", kind)):
            present = set(names[one])
            for name in names[other]:
                if name not in present:
                    raise missing_file(folder / one / name, f"a file to match {other}/{name}")
    return names["image"]


def _number(folder: Path) -> Callable[[str], int]:
    def number(name: str) -> int:
        stem = name.removesuffix(".npy")
        if not stem.isdecimal():
            advice = "Rename or remove the file"
            raise data_error(folder / name, repr(name), "a number as name, such as 0.npy", advice)
        return int(stem)

    return number
