"""Taskonomy with five tasks, as AdaShare reads it.

Zamir et al., "Taskonomy" (CVPR 2018); Sun et al., "AdaShare" (NeurIPS 2020). `taskonomy.json` maps
each mode to rows of six PNG files, relative to the root: image, segmentation, normal, depth,
keypoint, edge. `semseg_prior_factor.npy` has the weight of each of the 17 classes.

Images are normalised with ImageNet's mean and deviation, which torchvision's weights expect.
AdaShare instead subtracts a mean from BGR bytes. AdaShare's random scaling is left out. Some
published images are damaged: AdaShare takes the first item instead, we leave the item out.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conal_rl.errors import ConfigError
from conal_rl.files import read_text, user_path
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import (
    Array,
    data_error,
    is_hidden,
    normalise,
    read_image,
    read_npy,
    reading,
    require_shape,
    require_values,
    resize,
)
from conal_rl.supervised.data.nyuv2 import flipped

TASKS = ("segmentation", "normals", "depth", "keypoints", "edges")
CLASSES = 17
SEGMENTATION_VOID = -1
"""The class of unlabelled pixels. They are 0 in the file, whose 1 to 17 are classes 0 to 16."""
DEPTH_VOID = 255.0
"""The depth of unlabelled pixels. Their normals are (0, 0, 0)."""
FARTHEST = 64500
"""A depth of this value or more in the file means unlabelled."""
KEYPOINTS_HIGHEST, EDGES_HIGHEST = 0.005, 0.08


class Taskonomy:
    """Indoor scenes with five tasks; items have an input `(3, side, side)`.

    Targets have the same side:
        segmentation    `(side, side)` int64
        normals         `(3, side, side)`, unit length
        depth           `(1, side, side)`, 0 to 1: log(1 + d) / log(2^16) of the file's d
        keypoints       `(1, side, side)`, -1 to 1: v / 2^16, clipped to 0..0.005, then rescaled
        edges           `(1, side, side)`, -1 to 1: v / 2^16, clipped to 0..0.08, then rescaled

    Args:
        root: the folder with `taskonomy.json`.
        split: one of the modes of `taskonomy.json`, such as train or test.
        augment: crop and flip at random, depending on seed, epoch and index. Without it, the crop
            is the centre.
        seed: the seed of the augmentation.
        size: side of the square that files are resized to.
        crop: side of the square that is cut out; None keeps all, as AdaShare does in its test.

    Raises:
        DataError: a file is missing or has unexpected content. PNG files are checked when an item
            is read.
        ConfigError: the split is unknown, or the crop is larger than the size.
        ExtraError: pillow is not installed (when an item is read).
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        augment: bool = False,
        seed: int = 0,
        size: int = 256,
        crop: int | None = 224,
    ):
        self.root, self.size, self.crop = user_path(root), size, crop or size
        if self.crop > size:
            raise ConfigError(
                f"crop: got {crop}, expected at most {size}, the size of images. Lower the crop"
            )
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.rows = _read_rows(self.root / "taskonomy.json", split)
        """The relative paths of each item's six files."""
        prior = self.root / "semseg_prior_factor.npy"
        weights = read_npy(prior, (CLASSES,), "the weight of each class, an .npy array")
        require_values(prior, weights, 0.0, 1e9)
        self.class_weight = torch.from_numpy(weights.astype(np.float32))
        """The weight of each class in the loss of segmentation, `(17,)`."""
        side = (self.crop, self.crop)
        channels = {"normals": 3, "depth": 1, "keypoints": 1, "edges": 1}
        dense = {name: TargetSpec((n, *side), torch.float32) for name, n in channels.items()}
        self.tasks = {"segmentation": TargetSpec(side, torch.int64), **dense}

    def at_epoch(self, epoch: int) -> Taskonomy:
        """Return the same data set with the augmentation of a different epoch."""
        changed = copy.copy(self)
        changed.epoch = epoch
        return changed

    def __len__(self) -> int:
        return len(self.rows)

    def files(self, index: int) -> list[Path]:
        """Return the files of an item."""
        return [self.root / name for name in self.rows[index]]

    def __getitem__(self, index: int) -> Sample:
        sample = self._read(self.rows[index])
        rng = np.random.default_rng((self.seed, self.epoch, index))
        margin = self.size - self.crop
        top, left = rng.integers(margin + 1, size=2) if self.augment else [margin // 2] * 2
        rows, columns = slice(top, top + self.crop), slice(left, left + self.crop)
        targets = {task: target[..., rows, columns] for task, target in sample.targets.items()}
        sample = Sample(sample.input[..., rows, columns], targets)
        return flipped(sample) if self.augment and rng.random() < 0.5 else sample

    def _read(self, row: list[str]) -> Sample:
        paths = dict(zip(("image", *TASKS), (self.root / name for name in row), strict=True))
        image = read_image(paths["image"], "an RGB image, .png", "RGB")
        shape = image.shape[:2]
        maps = {}
        for task in TASKS:
            path, mode = paths[task], "RGB" if task == "normals" else None
            array = read_image(path, f"the {task} of {row[0]}, .png", mode)
            require_shape(path, array, (*shape, 3) if mode else shape)
            # Normals have 8 bits. Segmentation is 0 to 17. All other files have 16 bits.
            if task in ("depth", "keypoints", "edges") and array.dtype.itemsize < 2:
                raise data_error(path, "8 bits per pixel", "16 bits per pixel")
            require_values(path, array, 0, CLASSES if task == "segmentation" else 2**16 - 1)
            maps[task] = self._nearest(array)
        pixels = resize(normalise(image), (self.size, self.size), "bilinear")
        return Sample(pixels, scale_targets(maps))

    def _nearest(self, array: Array) -> Tensor:
        planes = torch.from_numpy(array.astype(np.int64).reshape(*array.shape[:2], -1))
        return resize(planes.permute(2, 0, 1), (self.size, self.size), "nearest-exact")


def scale_targets(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the targets of the five tasks from the files' integers `(channel, height, width)`."""
    near = maps["depth"] < FARTHEST
    depth = torch.log1p(maps["depth"].float()) / math.log(2**16)
    return {
        "segmentation": maps["segmentation"][0] - 1,
        "normals": F.normalize(2 * maps["normals"].float() / 255 - 1, dim=0) * near,
        "depth": torch.where(near, depth, DEPTH_VOID),
        "keypoints": _clipped(maps["keypoints"], KEYPOINTS_HIGHEST),
        "edges": _clipped(maps["edges"], EDGES_HIGHEST),
    }


def _clipped(values: Tensor, highest: float) -> Tensor:
    return (values.float() / 2**16).clamp(max=highest) / highest * 2 - 1


def read_modes(path: Path) -> dict[str, Any]:
    """Return the content of `taskonomy.json`, from mode to rows of files."""
    with reading(path, "JSON from mode to rows of six files"):
        modes: Any = json.loads(read_text(path))
    if not isinstance(modes, dict):
        raise data_error(path, type(modes).__name__, "an object from mode to rows of six files")
    return modes


def _read_rows(path: Path, split: str) -> list[list[str]]:
    modes = read_modes(path)
    if split not in modes:
        raise ConfigError(
            f"split: got {split!r}, expected a mode of {path}: {', '.join(modes)}. Give one of them"
        )
    rows = modes[split]
    if not isinstance(rows, list) or not rows:
        raise data_error(f"{path}, {split}", "no rows", "rows of six files")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or [type(name) for name in row] != [str] * 6:
            raise data_error(f"{path}, {split}, row {number}", f"{row!r:.80}", "six files")
    return [row for row in rows if not any(is_hidden(Path(name).name) for name in row)]
