"""PASCAL-Context with the five tasks of Maninis et al. (ASTMT, CVPR 2019).

Files, as in their `PASCAL_MT`:
    JPEGImages/*.jpg                      the photos
    ImageSets/Context/{train,val}.txt     one name per row
    ImageSets/Parts/{train,val}.txt       JSON from name to the categories of the image's objects
    semseg/VOC12/*.png                    classes; if missing, semseg/pascal-context/*.png
    human_parts/*.mat                     PASCAL-Part's annotations
    pascal-context/trainval/*.mat         a `LabelMap` of 459 categories
    normals_distill/*.png                 normals that the authors' network predicted
    sal_distill/*.png                     saliency that the authors' network predicted

Images are normalised with ImageNet's mean and deviation, as in Vandenhende et al. ("Multi-Task
Learning for Dense Prediction Tasks", 2021). Images are not augmented.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conal_rl.errors import ConfigError, import_extra
from conal_rl.files import read_text, user_path
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import (
    Array,
    data_error,
    normalise,
    read_image,
    read_lines,
    reading,
    require_files,
    require_shape,
    require_values,
    resize,
)

Split = Literal["train", "val"]
Task = Literal["semseg", "human_parts", "saliency", "normals", "edges"]
VOID = 255
"""The value of unlabelled pixels in `semseg`. Unlabelled normals are (0, 0, 0)."""
PERSON = 15
"""The category of people in VOC."""
PARTS = (
    ("head", "hair lear rear lebrow rebrow leye reye mouth nose"),
    ("torso", "neck"),
    ("luarm", "ruarm"),
    ("llarm", "rlarm lhand rhand"),
    ("luleg", "ruleg"),
    ("llleg", "rlleg lfoot rfoot"),
)
"""PASCAL-Part's parts of people, merged to classes 1 to 6: one row per class, 0 for the rest."""
PART_CLASSES = {
    name: number for number, row in enumerate(PARTS, 1) for name in " ".join(row).split()
}
# fmt: off
NORMALS_CATEGORIES = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50,
    51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104,
    105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172,
    174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230,
    232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281,
    283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323,
    329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432,
    440, 441, 442, 443, 444, 446, 454, 457,
)
# fmt: on
"""The categories that also exist in NYUv2, and tvmonitor: only their normals are used."""


class PascalContext:
    """Photos: 4,998 for training, 5,105 for validation.

    Items have an input `(3, height, width)` and targets of the same height and width:
        semseg         `(height, width)` int64, 21 classes
        human_parts    `(height, width)` int64, 7 classes; absent without annotated parts of people
        saliency       `(1, height, width)` of 0 and 1
        edges          `(1, height, width)` of 0 and 1
        normals        `(3, height, width)`

    Two details differ from ASTMT. Edges are the pixels of the resized labels whose right or lower
    neighbour has a different label: they are one pixel wide without thinning. Normals are resized
    before the unused categories are set to zero, so normals never mix with zeros.

    Args:
        root: the folder with `JPEGImages` and the other folders.
        split: the part, by `ImageSets`.
        tasks: the tasks, in order; `edges` is not among the default four.
        size: height and width of inputs and targets.
        require_all: every image must have all its files. Without it, an image that lacks one is an
            item that cannot be read.

    Raises:
        DataError: a folder or file is missing. When an item is read: a file is damaged or has
            unexpected content.
        ConfigError: a split or task is unknown.
        ExtraError: pillow or scipy is not installed (when an item is read).
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        tasks: Sequence[Task] = ("semseg", "human_parts", "saliency", "normals"),
        size: tuple[int, int] = (512, 512),
        require_all: bool = True,
    ):
        if split not in ("train", "val"):
            raise ConfigError(f"split: got {split!r}, expected train or val. Give one of them")
        if unknown := [task for task in tasks if task not in get_args(Task)]:
            known = ", ".join(get_args(Task))
            raise ConfigError(
                f"tasks: got {unknown[0]!r}, expected some of {known}. Give some of them"
            )
        self.root, self.size = user_path(root), size
        listing = self.root / "ImageSets" / "Context" / f"{split}.txt"
        self.names = read_lines(listing, "a list of images, a name per row")
        """The names of the images, in the order of the list."""
        if not self.names:
            raise data_error(listing, "an empty file", "a name per row")
        kinds = {
            "semseg": TargetSpec(size, torch.int64),
            "human_parts": TargetSpec(size, torch.int64),
            "saliency": TargetSpec((1, *size), torch.float32),
            "normals": TargetSpec((3, *size), torch.float32),
            "edges": TargetSpec((1, *size), torch.float32),
        }
        self.tasks = {str(task): kinds[task] for task in tasks}
        labels = {"edges"} if "normals" in self.tasks else set()
        self._kinds = sorted({"image", *self.tasks, *labels})
        if require_all:
            self._require_files()
        self._objects_path = self.root / "ImageSets" / "Parts" / f"{split}.txt"
        self._people: dict[str, bool] = {}
        if "human_parts" in self.tasks:
            self._people = _read_people(self._objects_path)
        if require_all and "human_parts" in self.tasks:
            for name in self.names:
                self._has_people(name)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> list[Path]:
        """Return the files of an item."""
        paths = [self._path(kind, self.names[index]) for kind in self._kinds]
        return [*paths, self._objects_path] if "human_parts" in self.tasks else paths

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        pixels = read_image(self._path("image", name), "a photo, .jpg", "RGB")
        targets = {}
        for task in self.tasks:
            if (target := self._target(task, name, pixels.shape[:2])) is not None:
                targets[task] = target
        return Sample(resize(normalise(pixels), self.size, "bicubic"), targets)

    def _target(self, task: str, name: str, shape: tuple[int, ...]) -> Tensor | None:
        if task == "semseg":
            path = self._path(task, name)
            labels = read_image(path, "classes 0 to 20 or 255, .png")
            require_shape(path, labels, shape)
            require_values(path, np.where(labels == VOID, 0, labels), 0, 20)
            return self._resized(labels)[0].long()
        if task == "human_parts":
            parts = self._parts(name, shape) if self._has_people(name) else None
            return None if parts is None else self._resized(parts)[0].long()
        if task == "saliency":
            path = self._path(task, name)
            values = read_image(path, "how salient each pixel is, .png", "L")
            require_shape(path, values, shape)
            return (self._resized(values) > 127).float()
        categories = self._resized(self._label_map(name, shape))
        return edges(categories) if task == "edges" else self._normals(name, shape, categories)

    def _normals(self, name: str, shape: tuple[int, ...], categories: Tensor) -> Tensor:
        path = self._path("normals", name)
        pixels = read_image(path, "normals, an RGB .png", "RGB")
        require_shape(path, pixels, (*shape, 3))
        vectors = 2 * torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 1
        vectors = F.normalize(resize(vectors, self.size, "bilinear"), dim=0)
        return vectors * torch.isin(categories, torch.tensor(NORMALS_CATEGORIES))

    def _parts(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Return classes 0 to 6 `(height, width)`; None if no part of a person is annotated."""
        path = self._path("human_parts", name)
        parts = np.zeros(shape, dtype=np.uint8)
        with reading(path, "PASCAL-Part's annotation, .mat"):
            for part in _people_parts(_load_mat(path)["anno"]):
                mask = part["mask"]
                require_shape(path, mask, shape)
                parts[mask > 0] = _part_class(path, part["part_name"].item())
        return parts if parts.any() else None

    def _label_map(self, name: str, shape: tuple[int, ...]) -> Array:
        path = self._path("edges", name)
        with reading(path, "PASCAL-Context's LabelMap, .mat"):
            mat = _load_mat(path)
            if "LabelMap" not in mat:
                raise data_error(path, ", ".join(mat) or "no variable", "a LabelMap")
            labels = np.asarray(mat["LabelMap"])
        require_shape(path, labels, shape)
        require_values(path, labels, 0, 459)
        return labels.astype(np.int64)

    def _resized(self, labels: Array) -> Tensor:
        """Resize labels `(height, width)` to `(1, *size)`, by the nearest neighbour."""
        return resize(torch.from_numpy(labels.astype(np.int64))[None], self.size, "nearest-exact")

    def _path(self, kind: str, name: str) -> Path:
        semseg = self.root / "semseg" / "VOC12" / f"{name}.png"
        if kind == "semseg" and not semseg.is_file():
            semseg = self.root / "semseg" / "pascal-context" / f"{name}.png"
        return {
            "image": self.root / "JPEGImages" / f"{name}.jpg",
            "semseg": semseg,
            "human_parts": self.root / "human_parts" / f"{name}.mat",
            "saliency": self.root / "sal_distill" / f"{name}.png",
            "normals": self.root / "normals_distill" / f"{name}.png",
            "edges": self.root / "pascal-context" / "trainval" / f"{name}.mat",
        }[kind]

    def _require_files(self) -> None:
        for kind in self._kinds:
            paths = [self._path(kind, name) for name in self.names]
            require_files(paths, f"the {kind} of an image that ImageSets/Context lists")

    def _has_people(self, name: str) -> bool:
        if name not in self._people:
            got = f"no categories of {name}"
            raise data_error(self._objects_path, got, "those of each listed image")
        return self._people[name]


def edges(labels: Tensor) -> Tensor:
    """Return 1 at pixels whose right or lower neighbour differs, else 0: `(1, height, width)`."""
    is_edge = torch.zeros_like(labels, dtype=torch.bool)
    is_edge[..., :-1] |= labels[..., :-1] != labels[..., 1:]
    is_edge[..., :-1, :] |= labels[..., :-1, :] != labels[..., 1:, :]
    return is_edge.float()


def _read_people(path: Path) -> dict[str, bool]:
    """Return for each image whether a person is in it."""
    with reading(path, "JSON from image to the categories of its objects"):
        objects = json.loads(read_text(path))
        return {name: PERSON in categories for name, categories in objects.items()}


def _load_mat(path: Path) -> dict[str, Any]:
    mat = import_extra("scipy.io", "scipy", "vision").loadmat(path)
    return {key: value for key, value in mat.items() if not key.startswith("__")}


def _people_parts(annotation: Any) -> list[Any]:
    """Return the parts of all people in an annotation, each with `part_name` and `mask`."""
    objects = annotation["objects"].item().ravel()
    people = [one for one in objects if one["class_ind"].item() == PERSON]
    return [part for person in people for part in person["parts"].ravel()]


def _part_class(path: Path, name: str) -> int:
    if name not in PART_CLASSES:
        raise data_error(path, f"the part {name}", f"one of {', '.join(PART_CLASSES)}")
    return PART_CLASSES[name]
