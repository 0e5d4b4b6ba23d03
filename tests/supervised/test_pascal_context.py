"""PASCAL-Context: five kinds of files, parts merged, partial labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conal_rl.errors import ConfigError
from conal_rl.supervised import losses
from conal_rl.supervised.data.common import SharedLoader
from conal_rl.supervised.data.files import DataError, normalise
from conal_rl.supervised.data.pascal_context import (
    NORMALS_CATEGORIES,
    PART_CLASSES,
    PARTS,
    VOID,
    PascalContext,
    Task,
    edges,
)
from tests.helpers.datasets import Written, write_parts, write_pascal
from tests.helpers.refusals import refused

SIZE = (8, 10)
ALL: tuple[Task, ...] = ("semseg", "human_parts", "saliency", "normals", "edges")


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_pascal(tmp_path, size=SIZE)


def load(root: Path, *tasks: Task) -> PascalContext:
    return PascalContext(root, "train", tasks=tasks or ALL, size=SIZE)


def test_written_files_are_loaded(written: Written, tmp_path: Path) -> None:
    data = load(tmp_path)
    assert data.names == [f"2008_00000{number}" for number in range(4)]
    for index, arrays in enumerate(written):
        sample = data[index]
        # JPEG may be a grey level or two off: 0.05 after normalising.
        assert torch.allclose(sample.input, normalise(arrays["image"].copy()), atol=0.05)
        np.testing.assert_array_equal(sample.targets["semseg"], arrays["semseg"])
        np.testing.assert_array_equal(sample.targets["saliency"][0], arrays["saliency"] > 127.5)
        vectors = arrays["normals"] / 255 * 2 - 1
        vectors = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
        believed = np.isin(
            arrays["LabelMap"], [68, 158, 440]
        )  # ceiling, floor, wall; not sky, tree
        vectors = vectors * believed[..., None]
        np.testing.assert_allclose(sample.targets["normals"].movedim(0, -1), vectors, atol=1e-6)
        for task, target in sample.targets.items():
            assert (tuple(target.shape), target.dtype) == data.tasks[task]


def test_parts_of_people_are_merged(written: Written, tmp_path: Path) -> None:
    data = load(tmp_path, "human_parts")
    # one column each: head, lear, torso, rlarm, rhand, luleg, lfoot, ruarm
    assert data[0].targets["human_parts"].tolist() == [[1, 1, 2, 4, 4, 5, 6, 3, 0, 0]] * 8
    assert len(PART_CLASSES) == sum(len(" ".join(row).split()) for row in PARTS) == 24
    assert set(PART_CLASSES.values()) == {1, 2, 3, 4, 5, 6}
    # No label: a person without parts, parts of a different object, no object.
    assert [data[index].targets for index in (1, 2, 3)] == [{}, {}, {}]
    listing = tmp_path / "ImageSets" / "Parts" / "train.txt"
    listing.write_text(listing.read_text().replace("15", "14"))
    (tmp_path / "human_parts" / "2008_000000.mat").write_text("not read if no person is listed")
    assert load(tmp_path, "human_parts")[0].targets == {}


def test_partial_labels_are_masked(written: Written, tmp_path: Path) -> None:
    batches = list(SharedLoader(load(tmp_path), 2, shuffle=False))
    assert [batch.masks["human_parts"].tolist() for batch in batches] == [[1, 0], [0, 0]]
    assert batches[1].targets["human_parts"].shape == (2, *SIZE)
    assert not batches[1].targets["human_parts"].any()
    assert all(batch.masks["semseg"].all() for batch in batches)
    other = list(SharedLoader(load(tmp_path), 2, shuffle=False, workers=2))
    for one, two in zip(batches, other, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert all(torch.equal(one.targets[task], two.targets[task]) for task in ALL)


def test_losses_leave_out_unlabelled_pixels(written: Written, tmp_path: Path) -> None:
    (batch,) = SharedLoader(load(tmp_path), 4, shuffle=False)
    targets, masks = batch.targets, batch.masks
    classes = targets["semseg"].where(targets["semseg"] != VOID, 0)
    logits = torch.full((4, 21, *SIZE), -30.0).scatter(1, classes[:, None], 30)
    assert losses.cross_entropy(logits, targets["semseg"], void=VOID) == 0
    people = torch.full((4, 7, *SIZE), -30.0).scatter(1, targets["human_parts"][:, None], 30)
    people[1:] = torch.rand(3, 7, *SIZE)
    mask = masks["human_parts"]
    assert losses.cross_entropy(people, targets["human_parts"], void=VOID, mask=mask) == 0
    for task in ("saliency", "edges"):
        assert losses.balanced_bce(60 * targets[task] - 30, targets[task]) < 1e-6
    assert losses.normals_l1(2 * targets["normals"], targets["normals"]) < 1e-6
    believed = np.stack([np.isin(arrays["LabelMap"], [68, 158, 440]) for arrays in written])
    labelled = losses.has_normal(targets["normals"], targets["normals"])
    np.testing.assert_array_equal(labelled, believed)


def test_inputs_and_targets_are_resized(written: Written, tmp_path: Path) -> None:
    sample = PascalContext(tmp_path, "train", size=(16, 20))[0]
    assert sample.input.shape == (3, 16, 20)
    double = np.kron(written[0]["semseg"], np.ones((2, 2), dtype=np.uint8))
    np.testing.assert_array_equal(sample.targets["semseg"], double)
    length = sample.targets["normals"].norm(dim=0)
    assert ((length == 0) | ((length - 1).abs() < 1e-5)).all()
    assert PascalContext(tmp_path, "train").tasks["normals"].shape == (3, 512, 512)


def test_files_of_other_tasks_are_not_needed(written: Written, tmp_path: Path) -> None:
    for folder in ("human_parts", "sal_distill", "pascal-context/trainval", "normals_distill"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    (tmp_path / "ImageSets" / "Parts" / "train.txt").unlink()
    assert list(load(tmp_path, "semseg")[0].targets) == ["semseg"]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_edges_are_where_labels_change(height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (height, width))
    expected = [
        [
            float(
                (y + 1 < height and labels[y + 1, x] != labels[y, x])
                or (x + 1 < width and labels[y, x + 1] != labels[y, x])
            )
            for x in range(width)
        ]
        for y in range(height)
    ]
    assert edges(torch.from_numpy(labels)[None]).tolist() == [expected]


def test_normals_have_the_categories_of_nyuv2() -> None:
    assert list(NORMALS_CATEGORIES) == sorted(set(NORMALS_CATEGORIES))
    assert {72, 368, 427, 440} <= set(NORMALS_CATEGORIES)  # chair, sofa, tvmonitor, wall
    assert not {2, 207, 308, 360, 431} & set(NORMALS_CATEGORIES)  # aeroplane ... sky, unknown


def test_unknown_splits_and_tasks_are_refused(written: Written, tmp_path: Path) -> None:
    with refused(ConfigError, "split", "'test'", "train or val"):
        PascalContext(tmp_path, "test")  # type: ignore[arg-type]
    with refused(ConfigError, "tasks", "'depth'", "semseg, human_parts"):
        load(tmp_path, "depth")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "JPEGImages/2008_000001.jpg",
        "human_parts/2008_000001.mat",
        "sal_distill/2008_000001.png",
        "normals_distill/2008_000001.png",
        "pascal-context/trainval/2008_000001.mat",
        "ImageSets/Context/train.txt",
        "ImageSets/Parts/train.txt",
    ],
)
def test_missing_files_are_named(written: Written, tmp_path: Path, path: str) -> None:
    (tmp_path / path).unlink()
    with refused(DataError, tmp_path / path, "got no file"):
        load(tmp_path)


def test_a_missing_semseg_is_named(written: Written, tmp_path: Path) -> None:
    (tmp_path / "semseg" / "VOC12" / "2008_000001.png").unlink()
    path = tmp_path / "semseg" / "pascal-context" / "2008_000001.png"
    with refused(DataError, path, "got no file", "semseg"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("JPEGImages/2008_000000.jpg", "semseg"),
        ("semseg/pascal-context/2008_000000.png", "semseg"),
        ("human_parts/2008_000000.mat", "human_parts"),
        ("sal_distill/2008_000000.png", "saliency"),
        ("normals_distill/2008_000000.png", "normals"),
        ("pascal-context/trainval/2008_000000.mat", "edges"),
    ],
)
def test_damaged_files_are_named(written: Written, tmp_path: Path, path: str, task: Task) -> None:
    content = (tmp_path / path).read_bytes()
    for damaged in (b"", b"neither image nor mat", content[:60]):
        (tmp_path / path).write_bytes(damaged)
        with refused(DataError, tmp_path / path, "cannot be read"):
            load(tmp_path, task)[0]


def test_damaged_lists_are_named(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "ImageSets" / "Parts" / "train.txt"
    for content, part in (
        ("{", "JSON"),
        ("[]", "JSON"),
        ('{"2008_000000": [15]}', "2008_000001"),
    ):
        path.write_text(content)
        with refused(DataError, path, part):
            load(tmp_path)
    path = tmp_path / "ImageSets" / "Context" / "train.txt"
    path.write_text("\n")
    with refused(DataError, path, "empty"):
        load(tmp_path)


def test_wrong_shapes_and_values_are_named(written: Written, tmp_path: Path) -> None:
    name = "2008_000000"
    semseg = tmp_path / "semseg" / "pascal-context" / f"{name}.png"
    Image.fromarray(np.full(SIZE, 21, dtype=np.uint8)).save(semseg)
    with refused(DataError, semseg, "got the value 21", "integers 0 to 20"):
        load(tmp_path, "semseg")[0]
    for folder, task, shape in (
        ("semseg/pascal-context", "semseg", (8, 9)),
        ("sal_distill", "saliency", (8, 9)),
        ("normals_distill", "normals", (8, 9, 3)),
    ):
        path = tmp_path / folder / f"{name}.png"
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(path)
        with refused(DataError, path, f"got shape {shape}", "expected shape (8, 10"):
            load(tmp_path, task)[0]  # type: ignore[arg-type]
    labels = tmp_path / "pascal-context" / "trainval" / f"{name}.mat"
    scipy.io.savemat(labels, {"LabelMap": np.full(SIZE, 460)})
    with refused(DataError, labels, "got the value 460", "integers 0 to 459"):
        load(tmp_path, "edges")[0]
    scipy.io.savemat(labels, {"Labels": np.zeros(SIZE)})
    with refused(DataError, labels, "got Labels", "LabelMap"):
        load(tmp_path, "edges")[0]
    parts = tmp_path / "human_parts" / f"{name}.mat"
    write_parts(parts, [(15, ["head", "tail"])], SIZE)
    with refused(DataError, parts, "tail", "head, hair"):
        load(tmp_path, "human_parts")[0]
    write_parts(parts, [(15, ["head"])], (8, 9))
    with refused(DataError, parts, "got shape (8, 9)", "expected shape (8, 10)"):
        load(tmp_path, "human_parts")[0]
