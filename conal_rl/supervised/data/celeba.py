"""CelebA: faces with 40 binary attributes, each of which is a task.

Liu et al., "Deep Learning Face Attributes in the Wild" (ICCV 2015). The nine default attributes are
those of Fifty et al., "Efficiently Identifying Task Groupings" (TAG, NeurIPS 2021).

Files:
    Anno/list_attr_celeba.txt       the count, the names, one row of 1 and -1 per image
    Eval/list_eval_partition.txt    0, 1 or 2 per image: training, validation, test
    Img/img_align_celeba_png        the aligned images, .png or .jpg
    Img/img_align_celeba            read instead if the folder above does not exist

The lists always name images `.jpg`. Images are resized as a whole and normalised with ImageNet's
mean and deviation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from conal_rl.errors import ConfigError
from conal_rl.files import user_path
from conal_rl.supervised.data.common import Sample, TargetSpec
from conal_rl.supervised.data.files import (
    DataError,
    data_error,
    missing_file,
    normalise,
    read_image,
    read_lines,
    resize,
)

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

    Items have an input `(3, size, size)`, and a target `()` of 0 or 1 for each attribute.

    Args:
        root: the folder with `Anno`, `Eval` and `Img`.
        split: the part, by the published partition.
        attributes: names of attributes, `NINE` by default; "all" takes the file's 40.
        size: side of the square that images are resized to.
        require_all: every image must have a file and a row of attributes. Without it, an image that
            lacks one is an item that cannot be read.

    Raises:
        DataError: a folder or file is missing, damaged, or has unexpected content.
        ConfigError: a split or attribute is unknown.
        ExtraError: pillow is not installed (when an item is read).
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        attributes: tuple[str, ...] | Literal["all"] = NINE,
        size: int = 64,
        require_all: bool = True,
    ):
        if split not in PARTITIONS:
            raise ConfigError(
                f"split: got {split!r}, expected one of {', '.join(PARTITIONS)}. Give one of them"
            )
        root, self.size = user_path(root), size
        self._list = root / _ATTRIBUTES
        known, rows, wrong = _read_attributes(self._list, require_all)
        chosen = known if attributes == "all" else attributes
        if unknown := [name for name in chosen if name not in known]:
            raise ConfigError(
                f"attributes: got {unknown[0]!r}, expected some of {', '.join(known)}. "
                "Give some of them"
            )
        names = _read_partition(root / _PARTITION, PARTITIONS[split])
        self.paths = _image_paths(root, names, require_all)
        """The images' files, in the order of the partition."""
        for name in names:
            if name not in rows and name not in wrong:
                expected = f"each image of {_PARTITION}"
                wrong[name] = data_error(self._list, f"no row for {name}", expected)
                if require_all:
                    raise wrong[name]
        self._wrong = {i: wrong[name] for i, name in enumerate(names) if name in wrong}
        columns, blank = [known.index(name) for name in chosen], bytes(len(known))
        labels = np.frombuffer(b"".join(rows.get(name, blank) for name in names), dtype=np.uint8)
        labels = labels.reshape(len(names), len(known))[:, columns]
        self.labels = torch.from_numpy(labels).long()  # (image, attribute)
        self.tasks = {name: TargetSpec((), torch.int64) for name in chosen}

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, index: int) -> list[Path]:
        """Return the files of an item."""
        return [self.paths[index], self._list]

    def __getitem__(self, index: int) -> Sample:
        if index in self._wrong:
            raise self._wrong[index]
        pixels = read_image(self.paths[index], "an aligned face, .png or .jpg", "RGB")
        image = resize(normalise(pixels), (self.size, self.size), "bilinear")
        return Sample(image, dict(zip(self.tasks, self.labels[index], strict=True)))


def _read_attributes(
    path: Path, require_all: bool
) -> tuple[tuple[str, ...], dict[str, bytes], dict[str, DataError]]:
    """Return the attributes' names, each image's row (bytes 0 or 1), and the errors of rows.

    With `require_all`, the first error is raised.
    """
    layout = "the number of images, the attributes' names, a row per image"
    lines = read_lines(path, layout)
    if len(lines) < 3 or not lines[0].isdecimal():
        raise data_error(path, f"{len(lines)} lines that start with {lines[:1]}", layout)
    names = tuple(lines[1].split())
    if int(lines[0]) != len(lines) - 2:
        raise data_error(path, f"{len(lines) - 2} rows", f"{lines[0]} rows, as line 1 says")
    rows: dict[str, bytes] = {}
    wrong: dict[str, DataError] = {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split()
        where = f"{path}, row {number}"
        if image in rows or image in wrong:
            wrong[image] = data_error(where, f"{image} a second time", "a new image")
        elif len(values) != len(names) or not set(values) <= {"1", "-1"}:
            wrong[image] = data_error(where, f"{line!r:.80}", f"{len(names)} values of 1 or -1")
        else:
            rows[image] = bytes(value == "1" for value in values)
        if require_all and image in wrong:
            raise wrong[image]
    return names, rows, wrong


def _read_partition(path: Path, wanted: str) -> list[str]:
    """Return the names of a split's images, in the order of the file."""
    names, known = [], set()
    for number, line in enumerate(read_lines(path, "a name and 0, 1 or 2 per image"), start=1):
        name, *part = line.split()
        if len(part) != 1 or part[0] not in PARTITIONS.values():
            raise data_error(f"{path}, row {number}", repr(line), "a name and 0, 1 or 2")
        if name in known:  # it might be in two splits
            raise data_error(f"{path}, row {number}", f"{name} a second time", "a new image")
        known.add(name)
        if part[0] == wanted:
            names.append(name)
    if not names:
        raise data_error(path, f"no image with {wanted}", "at least one")
    return names


def _image_paths(root: Path, names: list[str], require_all: bool) -> list[Path]:
    folder = next((root / name for name in _FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise missing_file(root / _FOLDERS[0], "a folder of images")
    present = {path.name for path in folder.iterdir()}  # the folder is listed only once
    paths = []
    for name in names:
        stem = Path(name).stem
        files = [stem + suffix for suffix in (".png", ".jpg") if stem + suffix in present]
        if not files and require_all:
            raise missing_file(folder / f"{stem}.png", f"an image (.png or .jpg) of {_PARTITION}")
        paths.append(folder / (files or [f"{stem}.png"])[0])
    return paths
