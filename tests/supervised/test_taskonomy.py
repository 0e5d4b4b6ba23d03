"""Taskonomy: targets are scaled as in AdaShare, and unlabelled pixels are marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conal_rl.errors import ConfigError
from conal_rl.supervised import losses
from conal_rl.supervised.data.common import SharedLoader
from conal_rl.supervised.data.files import DataError, normalise
from conal_rl.supervised.data.taskonomy import DEPTH_VOID, SEGMENTATION_VOID, Taskonomy
from tests.helpers.datasets import Written, write_taskonomy
from tests.helpers.refusals import refused


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_taskonomy(tmp_path)


def test_written_files_are_loaded_and_scaled(written: Written, tmp_path: Path) -> None:
    data = Taskonomy(tmp_path, "train", size=8, crop=None)
    assert len(data) == 5 and len(Taskonomy(tmp_path, "test")) == 2
    for index, arrays in enumerate(written):
        sample = data[index]
        assert torch.equal(sample.input, normalise(arrays["rgb"]))
        raw, near = arrays["segmentsemantic"].astype(int), arrays["depth_zbuffer"] < 64500
        expected = np.where(raw == 0, SEGMENTATION_VOID, raw - 1)
        np.testing.assert_array_equal(sample.targets["segmentation"], expected)
        depth = np.log(1 + arrays["depth_zbuffer"]) / np.log(2**16)
        depth = np.where(near, depth, DEPTH_VOID)
        np.testing.assert_allclose(sample.targets["depth"][0], depth, rtol=1e-6)
        vectors = arrays["normal"] / 255 * 2 - 1
        vectors = vectors / np.linalg.norm(vectors, axis=2, keepdims=True) * near[..., None]
        np.testing.assert_allclose(sample.targets["normals"].movedim(0, -1), vectors, atol=1e-6)
        for task, kind, highest in (
            ("keypoints", "keypoints2d", 0.005),
            ("edges", "edge_texture", 0.08),
        ):
            values = np.clip(arrays[kind] / 2**16, 0, highest) / highest * 2 - 1
            np.testing.assert_allclose(sample.targets[task][0], values, atol=1e-5)
            assert values.max() == 1 > values.min()  # some are clipped
    np.testing.assert_allclose(data.class_weight, np.linspace(0.1, 3, 17), rtol=1e-6)


def test_the_crop_is_the_centre_unless_augmented(written: Written, tmp_path: Path) -> None:
    whole = Taskonomy(tmp_path, "train", size=8, crop=None)[0]
    middle = Taskonomy(tmp_path, "train", size=8, crop=4)
    assert torch.equal(middle[0].input, whole.input[:, 2:6, 2:6])
    assert torch.equal(middle[0].targets["depth"], whole.targets["depth"][:, 2:6, 2:6])
    for task, spec in middle.tasks.items():
        assert (tuple(middle[0].targets[task].shape), middle[0].targets[task].dtype) == spec
    cuts = Taskonomy(tmp_path, "train", size=8, crop=6, augment=True)
    samples = [cuts.at_epoch(epoch)[0] for epoch in range(20)]
    patches = [
        image.flip(2) if mirrored else image
        for image in whole.input.unfold(1, 6, 1).unfold(2, 6, 1).flatten(1, 2).unbind(1)
        for mirrored in (False, True)
    ]
    which = {next(n for n, p in enumerate(patches) if torch.equal(p, s.input)) for s in samples}
    assert len(patches) == 18 and len(which) > 6
    assert {number % 2 for number in which} == {0, 1}  # not mirrored, and mirrored
    for sample in samples:
        length = sample.targets["normals"].norm(dim=0)
        assert torch.equal(length > 0.5, sample.targets["depth"][0] != DEPTH_VOID)
        assert ((length == 0) | ((length - 1).abs() < 1e-5)).all()


def test_losses_leave_out_unlabelled_pixels(written: Written, tmp_path: Path) -> None:
    (batch,) = SharedLoader(Taskonomy(tmp_path, "train", size=8, crop=None), 5, shuffle=False)
    targets = batch.targets
    raw = np.stack([arrays["segmentsemantic"] for arrays in written])
    near = np.stack([arrays["depth_zbuffer"] < 64500 for arrays in written])
    logits = torch.full((5, 17, 8, 8), -30.0).scatter(
        1, targets["segmentation"].clamp(0)[:, None], 30
    )
    logits[:, 0][torch.from_numpy(raw == 0)] = float(
        "inf"
    )  # an infinite loss if these pixels counted
    weight = Taskonomy(tmp_path, "train").class_weight
    segmentation = losses.cross_entropy(
        logits, targets["segmentation"], void=SEGMENTATION_VOID, class_weight=weight
    )
    assert segmentation == 0
    depth = torch.where(torch.from_numpy(near)[:, None], targets["depth"] + 0.5, torch.inf)
    assert losses.l1(depth, targets["depth"], void=DEPTH_VOID) == pytest.approx(0.5)
    labelled = losses.has_normal(targets["normals"], targets["normals"])
    np.testing.assert_array_equal(labelled, near)
    assert losses.normals_cosine(-3 * targets["normals"], targets["normals"]) == pytest.approx(2)


def test_batches_do_not_depend_on_workers(written: Written, tmp_path: Path) -> None:
    data = Taskonomy(tmp_path, "train", size=8, crop=6, augment=True)
    one, other = (list(SharedLoader(data, 2, workers=n)) for n in (0, 2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert all(torch.equal(a.targets[task], b.targets[task]) for task in data.tasks)


def test_files_are_resized(written: Written, tmp_path: Path) -> None:
    sample = Taskonomy(tmp_path, "train", size=16, crop=None)[0]
    raw = np.kron(written[0]["segmentsemantic"], np.ones((2, 2), dtype=int)).astype(int) - 1
    np.testing.assert_array_equal(sample.targets["segmentation"], raw)
    assert Taskonomy(tmp_path, "train")[0].input.shape == (3, 224, 224)
    with refused(ConfigError, "crop: got 300", "256"):
        Taskonomy(tmp_path, "train", crop=300)


def test_missing_files_are_named(written: Written, tmp_path: Path) -> None:
    data = Taskonomy(tmp_path, "train", size=8, crop=None)
    for path in sorted(tmp_path.glob("hall/*/point_2_*.png")):
        content = path.read_bytes()
        path.unlink()
        with refused(DataError, path, "got no file"):
            data[2]
        path.write_bytes(content[:50])
        with refused(DataError, path, "cannot be read"):
            data[2]
        path.write_bytes(content)
    for name in ("semseg_prior_factor.npy", "taskonomy.json"):
        (tmp_path / name).unlink()
        with refused(DataError, tmp_path / name, "got no file"):
            Taskonomy(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "JSON"),
        ([], "got list, expected an object"),
        ({"train": []}, "train: got no rows"),
        ({"train": [["a.png"] * 5]}, "train, row 0: got"),
        ({"train": [["a.png"] * 6, ["a.png"] * 5 + [3]]}, "train, row 1: got"),
    ],
)
def test_damaged_lists_are_named(written: Written, tmp_path: Path, content: Any, part: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "taskonomy.json").write_text(text)
    with refused(DataError, tmp_path / "taskonomy.json", part):
        Taskonomy(tmp_path, "train")


def test_wrong_values_and_shapes_are_named(written: Written, tmp_path: Path) -> None:
    with refused(ConfigError, "split: got 'val'", tmp_path / "taskonomy.json", "train, test"):
        Taskonomy(tmp_path, "val")
    data = Taskonomy(tmp_path, "train", size=8, crop=None)
    segmentation = tmp_path / data.rows[0][1]
    Image.fromarray(np.full((8, 8), 18, dtype=np.uint8)).save(segmentation)
    with refused(DataError, segmentation, "got the value 18", "integers 0 to 17"):
        data[0]
    Image.fromarray(np.zeros((8, 9), dtype=np.uint8)).save(segmentation)
    with refused(DataError, segmentation, "got shape (8, 9)", "expected shape (8, 8)"):
        data[0]
    for column in (3, 4, 5):
        path = tmp_path / data.rows[1][column]
        Image.fromarray(np.full((8, 8), 100, dtype=np.uint8)).save(path)
        with refused(DataError, path, "got 8 bits", "expected 16 bits"):
            data[1]
        Image.fromarray(np.full((8, 8), 100, dtype=np.uint16)).save(path)
    prior = tmp_path / "semseg_prior_factor.npy"
    np.save(prior, np.zeros(16))
    with refused(DataError, prior, "got shape (16,)", "expected shape (17,)"):
        Taskonomy(tmp_path, "train")
