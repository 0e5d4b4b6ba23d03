"""CelebA: faces with 40 binary attributes, of which each is a task.

Liu et al., "Deep Learning Face Attributes in the Wild" (ICCV 2015); the nine attributes are those
of Fifty et al., "Efficiently Identifying Task Groupings" (TAG, NeurIPS 2021). Files:
`Anno/list_attr_celeba.txt` (the count, the names, a row of 1 and -1 per image),
`Eval/list_eval_partition.txt` (0, 1, 2 for training, validation, test), and the aligned images in
`Img/img_align_celeba_png/*.png`, or as `.jpg`, there or in `Img/img_align_celeba`. The lists say
`.jpg` either way.

Images are resized as a whole and normalised with ImageNet's mean and deviation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from conal_rl.errors import ConfigError
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import DataError, normalise, read_image, read_lines, resize

Split = Literal["train", "val", "test"]
PARTITIONS: dict[Split, str] = {"train": "0", "val": "1", "test": "2"}
NINE = (
    "5_o_Clock_Shadow",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Goatee",
    "Mustache",
    "No_Beard",
    "Rosy_Cheeks",
    "Wearing_Hat",
)
_ATTRIBUTES = Path("Anno", "list_attr_celeba.txt")
_PARTITION = Path("Eval", "list_eval_partition.txt")
_FOLDERS = (Path("Img", "img_align_celeba_png"), Path("Img", "img_align_celeba"))


class CelebA:
    """Faces: 162,770 for training, 19,867 for validation, 19,962 to test.

    Items have an input `(3, size, size)` and, for each attribute, a target `()` of 0 or 1.

    Args:
        root: the folder with `Anno`, `Eval` and `Img`.
        split: by the published partition.
        attributes: their names, `NINE` by default; "all" for the file's 40.
        size: of the square that images are resized to.

    Raises:
        DataError: a folder or file is missing, or damaged, or not as it should be.
        ConfigError: no such split or attribute.
        ExtraError: pillow is not installed (when an item is read).
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        attributes: tuple[str, ...] | Literal["all"] = NINE,
        size: int = 64,
    ):
        if split not in PARTITIONS:
            raise ConfigError(f"CelebA has {', '.join(PARTITIONS)}, not {split}")
        root, self.size = Path(root).expanduser(), size
        known, rows = _read_attributes(root / _ATTRIBUTES)
        chosen = known if attributes == "all" else attributes
        if unknown := [name for name in chosen if name not in known]:
            raise ConfigError(f"CelebA has no attribute {unknown[0]}; it has {', '.join(known)}")
        names = _read_partition(root / _PARTITION, PARTITIONS[split])
        self.paths = _image_paths(root, names)
        """Files of the images, in the order of the partition."""
        for name in names:
            if name not in rows:
                raise DataError(f"{root / _ATTRIBUTES}: no row for {name}, which {_PARTITION} has")
        columns = [known.index(name) for name in chosen]
        labels = np.frombuffer(b"".join(rows[name] for name in names), dtype=np.uint8)
        labels = labels.reshape(len(names), len(known))[:, columns]
        self.labels = torch.from_numpy(labels).long()  # (image, attribute)
        self.tasks = {name: TargetSpec((), torch.int64) for name in chosen}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        pixels = read_image(self.paths[index], "an aligned face, .png or .jpg", "RGB")
        image = resize(normalise(pixels), (self.size, self.size), "bilinear")
        return Sample(image, dict(zip(self.tasks, self.labels[index], strict=True)))


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """The attributes' names, and each image's row, of a byte 0 or 1 per attribute."""
    lines = read_lines(path, "the number of images, the attributes' names, a row per image")
    if len(lines) < 3 or not lines[0].isdecimal():
        raise DataError(f"{path}: expected the number of images, the names, then rows")
    names = tuple(lines[1].split())
    if int(lines[0]) != len(lines) - 2:
        raise DataError(f"{path}: expected {lines[0]} rows, found {len(lines) - 2}")
    rows = {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split()
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise DataError(f"{path}, row {number}: expected {len(names)} values of 1 or -1")
        if image in rows:
            raise DataError(f"{path}, row {number}: {image} comes a second time")
        rows[image] = bytes(value == "1" for value in values)
    return names, rows


def _read_partition(path: Path, wanted: str) -> list[str]:
    """Names of the images of a split, in the order of the file."""
    names, known = [], set()
    for number, line in enumerate(read_lines(path, "a name and 0, 1 or 2 per image"), start=1):
        name, *part = line.split()
        if len(part) != 1 or part[0] not in PARTITIONS.values():
            raise DataError(f"{path}, row {number}: expected a name and 0, 1 or 2, found {line!r}")
        if name in known:  # it might be in two splits
            raise DataError(f"{path}, row {number}: {name} comes a second time")
        known.add(name)
        if part[0] == wanted:
            names.append(name)
    if not names:
        raise DataError(f"{path}: expected images with {wanted}, found none")
    return names


def _image_paths(root: Path, names: list[str]) -> list[Path]:
    folder = next((root / own for own in _FOLDERS if (root / own).is_dir()), None)
    if folder is None:
        raise DataError(f"{root / _FOLDERS[0]} is missing; expected there: the images")
    present = {path.name for path in folder.iterdir()}  # one look, not one per image
    paths = []
    for name in names:
        stem = Path(name).stem
        found = [stem + suffix for suffix in (".png", ".jpg") if stem + suffix in present]
        if not found:
            raise DataError(f"{folder / stem}.png is missing, and so is .jpg; {_PARTITION} has it")
        paths.append(folder / found[0])
    return paths
