"""NYUv2 and CityScapes, as MTAN prepared them: a tree of `.npy` files, one per image and task.

Liu et al., "End-to-End Multi-Task Learning with Attention" (CVPR 2019); LibMTL reads the same
files. `root/{train,val}/{image,label,depth,normal}/{i}.npy`: image `(height, width, 3)` from 0 to
1, label `(height, width)`, depth `(height, width, 1)`, normal `(height, width, 3)`. `val` is what
papers test on.

As in LibMTL, images are taken as they are: from 0 to 1, without subtracting a mean.
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
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import DataError, read_npy, require_values

Split = Literal["train", "val"]
SCALES = (1.0, 1.2, 1.5)
VOID = -1
"""The class of pixels without a label. Depth 0 and normal (0, 0, 0) are none either."""


class NYUv2:
    """Indoor scenes: 795 for training, 654 to test; 13 classes, depth in metres, normals.

    Items have an input `(3, height, width)` and the targets `segmentation` `(height, width)` int64,
    `depth` `(1, height, width)` and `normals` `(3, height, width)`.

    Args:
        root: the folder with `train` and `val`.
        split: which of them.
        tasks: whose targets to read, in order; None: all.
        augment: scale and flip at random, as a function of seed, epoch and index.
        seed: of the augmentation.
        size: height and width that every array must have; None for the published one.

    Raises:
        DataError: a folder or file is missing, or, when an item is read, damaged or not as it
            should be.
        ConfigError: no such split or task.
    """

    size: tuple[int, int] = (288, 384)
    classes: ClassVar[int] = 13
    folders: ClassVar[dict[str, str]] = {
        "segmentation": "label",
        "depth": "depth",
        "normals": "normal",
    }
    """Where the targets of each task are."""

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        tasks: Sequence[str] | None = None,
        augment: bool = False,
        seed: int = 0,
        size: tuple[int, int] | None = None,
    ):
        if split not in ("train", "val"):
            raise ConfigError(f"{type(self).__name__} has train and val, not {split}")
        self.folder = Path(root).expanduser() / split
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.size = size or self.size
        tasks = tuple(self.folders) if tasks is None else tasks
        if unknown := set(tasks) - self.folders.keys():
            raise ConfigError(f"{type(self).__name__} has no task {min(unknown)!r}")
        self.names = _paired_names(self.folder, ["image", *(self.folders[t] for t in tasks)])
        """Names of the files, in the order of their numbers."""
        kinds = {
            "segmentation": TargetSpec(self.size, torch.int64),
            "depth": TargetSpec((1, *self.size), torch.float32),
            "normals": TargetSpec((3, *self.size), torch.float32),
        }
        self.tasks = {task: kinds[task] for task in tasks}

    def at_epoch(self, epoch: int) -> NYUv2:
        """The same data set with that epoch's augmentation."""
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def __len__(self) -> int:
        return len(self.names)

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
        # Resizing may have left the range a little; bytes, or depths below 0, are another format.
        low, high = {"image": (-0.1, 1.1), "depth": (0.0, 1e4), "normals": (-1.1, 1.1)}[kind]
        require_values(path, array, low, high)
        return torch.from_numpy(array.astype(np.float32)).movedim(-1, 0).contiguous()


class CityScapes(NYUv2):
    """Street scenes: 2,975 for training, 500 to test; 7 classes and inverse depth, 0 to about 0.49.

    Arguments, items and errors as `NYUv2`'s, without normals.
    """

    size = (128, 256)
    classes = 7
    folders: ClassVar[dict[str, str]] = {"segmentation": "label", "depth": "depth"}


def augmented(sample: Sample, rng: np.random.Generator) -> Sample:
    """Scale by one of `SCALES` about a random place, then flip or not, as LibMTL does."""
    scale = SCALES[rng.integers(len(SCALES))]
    top, left = (int(rng.integers(n - _shown(n, scale) + 1)) for n in sample.input.shape[-2:])
    flip = rng.random() < 0.5
    sample = scaled(sample, scale, top, left)
    return flipped(sample) if flip else sample


def scaled(sample: Sample, scale: float, top: int, left: int) -> Sample:
    """Enlarge the part of the scene that starts at `top`, `left` to the size of the whole.

    What is `scale` times as large is that much nearer: depth is divided by it. So is CityScapes'
    inverse depth, as the benchmark's users have it, of which what is nearer has more. Normals take
    their nearest neighbour, where LibMTL interpolates: they stay of unit length, and unlabelled
    ones (0, 0, 0) do not leak into others.
    """
    size = sample.input.shape[-2:]
    rows = slice(top, top + _shown(size[0], scale))
    columns = slice(left, left + _shown(size[1], scale))

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


def _shown(length: int, scale: float) -> int:
    return max(1, int(length / scale))


def flipped(sample: Sample) -> Sample:
    """Mirror left and right; the normals' x changes its sign."""
    targets = {task: target.flip(-1) for task, target in sample.targets.items()}
    if "normals" in targets:
        targets["normals"] = targets["normals"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    return Sample(sample.input.flip(-1), targets)


def _paired_names(folder: Path, kinds: list[str]) -> list[str]:
    """The files that each of a split's folders has, `{i}.npy`, in the order of their numbers."""
    names: dict[str, list[str]] = {}
    for kind in kinds:
        own = folder / kind
        if not own.is_dir():
            raise DataError(f"{own} is missing; expected there: a folder of 0.npy, 1.npy, ...")
        names[kind] = sorted((path.name for path in own.glob("*.npy")), key=_number(own))
    if not names["image"]:
        raise DataError(f"{folder / 'image'} is empty; expected there: 0.npy, 1.npy, ...")
    for kind in kinds:
        for one, other in ((kind, "image"), ("image", kind)):
            present = set(names[one])
            for name in names[other]:
                if name not in present:
                    there = folder / other / name
                    raise DataError(f"{folder / one / name} is missing; {there} is there")
    return names["image"]


def _number(folder: Path) -> Callable[[str], int]:
    def number(name: str) -> int:
        stem = name.removesuffix(".npy")
        if not stem.isdecimal():
            raise DataError(f"{folder / name}: expected a number as name, such as 0.npy")
        return int(stem)

    return number
