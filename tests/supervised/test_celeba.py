"""CelebA: attributes, partition and images belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from conal_rl.errors import ConfigError
from conal_rl.supervised.data.celeba import NINE, PARTITIONS, CelebA, Split
from conal_rl.supervised.data.common import SharedLoader
from conal_rl.supervised.data.files import DataError, normalise
from tests.helpers.datasets import CELEBA_HEADER, Written, write_celeba
from tests.helpers.refusals import refused

ATTRIBUTES = "Anno/list_attr_celeba.txt"
PARTITION = "Eval/list_eval_partition.txt"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_celeba(tmp_path)


@pytest.mark.parametrize("split", list(PARTITIONS))
def test_written_faces_are_loaded(written: Written, tmp_path: Path, split: Split) -> None:
    data = CelebA(tmp_path, split, attributes="all", size=8)
    faces = written[int(PARTITIONS[split]) :: 3]
    assert len(data) == len(faces) == 3
    assert list(data.tasks) == CELEBA_HEADER.split()
    for index, face in enumerate(faces):
        sample = data[index]
        assert [int(x) for x in sample.targets.values()] == (face["labels"] == 1).tolist()
        assert torch.equal(sample.input, normalise(face["image"]))


def test_defaults_are_nine_attributes_at_64(written: Written, tmp_path: Path) -> None:
    data = CelebA(tmp_path, "train")
    assert tuple(data.tasks) == NINE
    sample = data[1]
    assert sample.input.shape == (3, 64, 64)
    columns = [CELEBA_HEADER.split().index(name) for name in NINE]
    labels = (written[3]["labels"][columns] == 1).tolist()
    assert [int(x) for x in sample.targets.values()] == labels
    (batch,) = SharedLoader(data, 3)
    assert batch.inputs.shape == (1, 3, 3, 64, 64)
    assert {(t.shape, t.dtype) for t in batch.targets.values()} == {((3,), torch.int64)}


def test_jpg_images_are_read(tmp_path: Path) -> None:
    written = write_celeba(tmp_path, suffix="jpg", size=16)
    image = CelebA(tmp_path, "test", size=16)[0].input
    assert torch.allclose(image, normalise(written[2]["image"]), atol=0.05)


def test_unknown_splits_and_attributes_are_refused(written: Written, tmp_path: Path) -> None:
    with refused(ConfigError, "split", "'dev'", "train, val, test"):
        CelebA(tmp_path, "dev")  # type: ignore[arg-type]
    with refused(ConfigError, "attributes", "'Beard'", "5_o_Clock"):
        CelebA(tmp_path, "train", attributes=("Male", "Beard"))


def test_missing_files_are_named(written: Written, tmp_path: Path) -> None:
    image = tmp_path / "Img" / "img_align_celeba_png" / "000004.png"
    image.unlink()
    with refused(DataError, image, "no file", ".jpg", PARTITION):
        CelebA(tmp_path, "train")
    shutil.rmtree(image.parent)
    with refused(DataError, image.parent, "no file"):
        CelebA(tmp_path, "train")
    for name in (PARTITION, ATTRIBUTES):
        (tmp_path / name).unlink()
        with refused(DataError, tmp_path / name, "no file"):
            CelebA(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "old", "new", "parts"),
    [
        (ATTRIBUTES, "9\n", "10\n", ("got 9 rows", "expected 10 rows")),
        (ATTRIBUTES, "9\n", "nine\n", ("'nine'", "number of images")),
        (ATTRIBUTES, " Young", "", ("row 3:", "39 values")),
        (ATTRIBUTES, "000002.jpg  ", "000002.jpg 0", ("row 4:", "40 values")),
        (ATTRIBUTES, "000004.jpg", "000044.jpg", ("000004.jpg", PARTITION)),
        (PARTITION, "000002.jpg 1", "000002.jpg 3", ("row 2:", "'000002.jpg 3'", "0, 1 or 2")),
        (PARTITION, "000002.jpg 1", "000002.jpg", ("row 2:", "'000002.jpg'", "0, 1 or 2")),
        (PARTITION, "000002.jpg 1", "000001.jpg 2", ("row 2:", "000001.jpg a second time")),
        (ATTRIBUTES, "000002.jpg", "000001.jpg", ("row 4:", "000001.jpg a second time")),
        (PARTITION, " 0\n", " 2\n", ("no image with 0",)),
    ],
)
def test_damaged_lists_are_named(
    written: Written, tmp_path: Path, name: str, old: str, new: str, parts: tuple[str, ...]
) -> None:
    path = tmp_path / name
    text = path.read_text().replace("000002.jpg -", "000002.jpg  ")  # the first value becomes 1
    assert old in text
    path.write_text(text.replace(old, new))
    with refused(DataError, path, *parts):
        CelebA(tmp_path, "train")


def test_damaged_images_are_named(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "Img" / "img_align_celeba_png" / "000004.png"
    data = CelebA(tmp_path, "train")
    content = path.read_bytes()
    for damaged in (b"", b"not an image", content[:40], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with refused(DataError, path, "cannot be read", "an aligned face"):
            data[1]
    path.unlink()
    with refused(DataError, path, "no file", "an aligned face"):
        data[1]
