"""Damaged items are found before training, all of them are named, and they can be passed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conal_rl import train
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.supervised.data import damage
from conal_rl.supervised.data.damage import find_damaged
from conal_rl.supervised.data.files import DataError
from conal_rl.supervised.data.taskonomy import Taskonomy
from conal_rl.supervised.experiment import SupervisedExperiment
from conal_rl.supervised.problem import Problem, make_problem
from tests.helpers.datasets import write_taskonomy
from tests.helpers.refusals import refused
from tests.helpers.supervised_runs import read, run
from tests.helpers.supervised_sets import TEXT, WRITERS, options_of, write_text


def config_of(name: str, root: Path, *words: str) -> SupervisedConfig:
    config = load_config(name, [*options_of(name, root), *words])
    assert isinstance(config, SupervisedConfig)
    return config


def skipping(config: SupervisedConfig) -> SupervisedConfig:
    return replace(config, data=replace(config.data, skip_damaged=True))


def items(problem: Problem) -> dict[str, int]:
    """The number of items of each part."""
    loaders = {part: problem.loader(part, 1, False) for part in ("both", "test")}
    return {part: loader.items for part, loader in loaders.items()}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def resize(path: Path) -> None:
    """The right kind of file, but smaller."""
    if path.suffix == ".npy":
        np.save(path, np.load(path)[:-1])
    else:
        with Image.open(path) as image:
            image.crop((0, 0, image.width, image.height - 1)).save(path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 8] ^= 255
    path.write_bytes(content)


def spoil_values(path: Path) -> None:
    np.save(path, np.full_like(np.load(path), np.nan))


CASES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("nyuv2", "train/depth/3.npy", empty),
    ("nyuv2", "val/image/1.npy", cut_off),
    ("nyuv2", "train/label/0.npy", Path.unlink),
    ("nyuv2", "train/image/9.npy", Path.unlink),
    ("nyuv2", "train/normal/3.npy", spoil_values),
    ("cityscapes", "train/label/3.npy", resize),
    ("pascal_context", "JPEGImages/2008_000001.jpg", cut_off),
    ("pascal_context", "sal_distill/2008_000001.png", Path.unlink),
    ("pascal_context", "sal_distill/2008_000005.png", resize),
    ("pascal_context", "pascal-context/trainval/2008_000002.mat", empty),
    ("taskonomy", "hall/rgb/point_3_domain_rgb.png", flip_a_bit),
    ("taskonomy", "hall/depth_zbuffer/point_3_domain_depth_zbuffer.png", resize),
    ("taskonomy", "hall/normal/point_3_domain_normal.png", Path.unlink),
    ("celeba9", "Img/img_align_celeba_png/000004.png", cut_off),
    ("celeba9", "Img/img_align_celeba_png/000005.png", Path.unlink),
]


@pytest.mark.parametrize(("name", "file", "spoil"), CASES)
def test_one_damaged_item_is_named_or_passed_over(
    name: str, file: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    config = config_of(name, tmp_path)
    whole = items(make_problem(config))
    spoil(tmp_path / file)
    with refused(DataError, "1 damaged item", tmp_path / file, "--data.skip-damaged"):
        make_problem(config).check()
    problem = make_problem(skipping(config))
    problem.check()
    assert sum(items(problem).values()) == sum(whole.values()) - 1
    assert [*problem.passed_over.values()] == [[str(tmp_path / file)]]
    for part in ("both", "test"):
        assert len(list(problem.loader(part, 1, False)))


def test_images_without_a_row_of_attributes_are_items(tmp_path: Path) -> None:
    config = config_of("celeba9", tmp_path)
    path = tmp_path / "Anno" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace("-1", "0", 1)  # a value that is none
    lines[7] = lines[7].replace("000006", "000066")
    path.write_text("\n".join(lines))
    with refused(DataError, "2 damaged items", f"{path}, row 5", "no row for 000006.jpg"):
        make_problem(config).check()
    assert sum(items(make_problem(skipping(config))).values()) == 10


@pytest.fixture
def damaged(tmp_path: Path) -> list[Path]:
    """Twelve items of Taskonomy in `data`, of which the second and two later ones are damaged."""
    write_taskonomy(tmp_path / "data", count=12)
    paths = [tmp_path / f"data/hall/rgb/point_{n}_domain_rgb.png" for n in (1, 5, 8)]
    spoils: tuple[Callable[[Path], object], ...] = (flip_a_bit, empty, Path.unlink)
    for path, spoil in zip(paths, spoils, strict=True):
        spoil(path)
    return paths


def words_of(root: Path) -> list[str]:
    small = ["--data.size", "8", "8", "--agent.encoder", "small", "--agent.aspp-width", "4"]
    few = ["--agent.batch-size", "2", "--total-steps", "6", "--agent.tree", "shared"]
    return ["taskonomy", "--data.root", str(root), *small, *few, "--agent.aspp-rates", "1", "2"]


def test_all_damaged_items_are_named_before_a_run(
    damaged: list[Path], one_line: Any, tmp_path: Path
) -> None:
    line = one_line(*words_of(tmp_path / "data"), "--out", str(tmp_path / "run"))
    assert line.startswith("data.root: got 4 damaged items of taskonomy: ")  # one is in both parts
    assert all(str(path) in line for path in damaged)
    assert not (tmp_path / "run").exists()


def test_a_run_can_pass_over_damaged_items(
    damaged: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(tmp_path / "data"), "--data.skip-damaged"]
    first = run(tmp_path / "one", *words)
    printed = capfd.readouterr().err
    assert "taskonomy, train: 3 damaged items of 12 are passed over: " in printed
    assert "taskonomy, test: 1 damaged item of 2 is passed over: " in printed
    assert all(str(path) in printed for path in damaged)
    report = read(first)
    assert report["passed_over"]["train"] == [str(path) for path in damaged]
    second = run(tmp_path / "other", *words, "--data.workers", "2")
    assert report["scores"] == read(second)["scores"]  # any number of processes finds the same


def test_a_run_on_whole_items_ignores_the_setting(tmp_path: Path) -> None:
    write_taskonomy(tmp_path / "data", count=4)
    words = words_of(tmp_path / "data")
    reports = [
        read(run(tmp_path / "one", *words)),
        read(run(tmp_path / "other", *words, "--data.skip-damaged")),
    ]
    assert reports[0]["scores"] == reports[1]["scores"]
    assert not any("passed_over" in report for report in reports)


@pytest.mark.parametrize("search", [False, True])
def test_damage_during_training_keeps_what_was_learnt(
    search: bool, one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_taskonomy(tmp_path / "data", count=12)
    words = [*words_of(tmp_path / "data"), "--total-steps", "20"]
    if search:
        words += [
            "--agent.tree",
            "search",
            "--search.steps",
            "19",
            "--search.validation-share",
            "0.4",
        ]
    path = tmp_path / "data/hall/rgb/point_7_domain_rgb.png"
    update = SupervisedExperiment._update

    def spied(self: SupervisedExperiment, *batches: Any) -> None:
        update(self, *batches)
        if self.steps + 1 == 2:
            empty(path)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedExperiment, "_update", spied)
        line = one_line(*words, "--out", str(tmp_path / "run"), lines=None)
    assert str(path) in line
    step = load_checkpoint(tmp_path / "run", groups=[])[1]["step"]
    assert 2 <= step < 20
    assert "1 damaged item" in one_line("--resume", str(tmp_path / "run"))
    assert train.main(["--resume", str(tmp_path / "run"), "--data.skip-damaged"]) == 0


def test_mostly_damaged_items_are_not_passed_over(one_line: Any, tmp_path: Path) -> None:
    write_taskonomy(tmp_path / "data", count=5)
    paths = [tmp_path / f"data/hall/rgb/point_{n}_domain_rgb.png" for n in (2, 3, 4)]
    for path in paths:
        empty(path)
    words = [*words_of(tmp_path / "data"), "--data.skip-damaged", "--out", str(tmp_path / "run")]
    line = one_line(*words)
    assert "3 damaged items among 5 of taskonomy, train" in line and str(paths[0]) in line


# Reading everything once


def test_worker_processes_find_the_same_damage(damaged: list[Path], tmp_path: Path) -> None:
    data = Taskonomy(tmp_path / "data", "train", size=8, crop=None)
    before = torch.get_rng_state()
    one, other = find_damaged(data), find_damaged(data, workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(one) == list(other) == [1, 5, 8]
    assert [e.where for e in one.values()] == [e.where for e in other.values()]
    assert [e.where for e in one.values()] == [str(path) for path in damaged]


def test_a_long_search_for_damage_is_kept(
    damaged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Taskonomy(tmp_path / "data", "train", size=8, crop=None)
    find_damaged(data)
    assert not (tmp_path / "cache").exists()  # it was quick
    monkeypatch.setattr(damage, "KEPT_AFTER", -1.0)
    reads: list[int] = []
    get = Taskonomy.__getitem__

    def counted(self: Taskonomy, index: int) -> Any:
        reads.append(index)
        return get(self, index)

    monkeypatch.setattr(Taskonomy, "__getitem__", counted)

    def found() -> tuple[list[int], list[int]]:
        reads.clear()
        return list(find_damaged(data)), list(reads)

    assert found() == ([1, 5, 8], list(range(12)))
    assert found() == ([1, 5, 8], [1, 5, 8])
    [memory] = (tmp_path / "cache").rglob("*.json")
    for content in ("", "[99]", "[true]", "{}"):
        memory.write_text(content)
        assert found() == ([1, 5, 8], list(range(12)))
    empty(tmp_path / "data/hall/rgb/point_2_domain_rgb.png")
    assert found() == ([1, 2, 5, 8], list(range(12)))


def test_a_cache_that_cannot_be_written_is_left_out(
    damaged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "KEPT_AFTER", -1.0)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Taskonomy(tmp_path / "data", "train", size=8, crop=None)
    assert list(find_damaged(data)) == [1, 5, 8]


def test_a_set_of_a_different_format_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_taskonomy(tmp_path, count=40)
    monkeypatch.setattr(damage, "MOST_NAMED", 10)
    for path in tmp_path.glob("hall/rgb/*.png"):
        empty(path)
    data = Taskonomy(tmp_path, "train", size=8, crop=None)
    with refused(DataError, "16 damaged items among 16 of Taskonomy", "and 6 more"):
        find_damaged(data, what="Taskonomy")


def test_many_damaged_items_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were kept are all damaged, and still they are not most of the items."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(damage, "KEPT_AFTER", -1.0)
    monkeypatch.setattr(damage, "MOST_NAMED", 2)
    write_taskonomy(tmp_path, count=60)
    for number in range(40, 60):
        empty(tmp_path / f"hall/rgb/point_{number}_domain_rgb.png")
    data = Taskonomy(tmp_path, "train", size=8, crop=None)
    for _ in range(2):
        assert list(find_damaged(data)) == list(range(40, 60))


def test_a_wrong_size_is_explained(one_line: Any, tmp_path: Path) -> None:
    words = ["nyuv2", *options_of("nyuv2", tmp_path), "--data.size", "6", "8"]
    line = one_line(*words, "--out", str(tmp_path / "run"))
    assert "13 damaged items of nyuv2" in line and "skip" not in line
    assert "got shape (6, 10, 3), expected shape (6, 8, 3)" in line


# Files that do not belong to a data set


@pytest.mark.parametrize("name", WRITERS)
def test_double_files_of_macos_are_passed_over(name: str, tmp_path: Path) -> None:
    if name in TEXT:
        pytest.importorskip("transformers")
    config = config_of(name, tmp_path)
    before = items(make_problem(config))
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0")
        path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    problem = make_problem(config)
    problem.check()
    assert items(problem) == before and tuple(problem.tasks) == tuple(make_problem(config).tasks)


def test_rows_of_double_files_are_passed_over(tmp_path: Path) -> None:
    """A list that was made from the folders' content has them."""
    write_taskonomy(tmp_path)
    content = json.loads((tmp_path / "taskonomy.json").read_text())
    row = [f"{Path(name).parent}/._{Path(name).name}" for name in content["train"][0]]
    content["train"].insert(0, row)
    (tmp_path / "taskonomy.json").write_text(json.dumps(content))
    assert len(Taskonomy(tmp_path, "train")) == 5


LISTS = {
    "taskonomy": "taskonomy.json",
    "pascal_context": "ImageSets/*/*.txt",
    "celeba9": "[AE]*/*.txt",
    "xnli": "xnli/*.tsv",
    "udpos": "udpos/*.tsv",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_may_have_a_bom_and_blank_lines(name: str, tmp_path: Path) -> None:
    if name in TEXT:
        pytest.importorskip("transformers")
    config = config_of(name, tmp_path)
    before = items(make_problem(config))
    for path in tmp_path.glob(LISTS[name]):
        content = path.read_bytes().replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf\r\n" + content + b"\r\n\r\n")
    problem = make_problem(config)
    problem.check()
    assert items(problem) == before


# Lines of text


def test_damaged_lines_are_named_or_passed_over(
    tmp_path: Path, one_line: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    write_text(tmp_path / "data")
    options = options_of("xnli", tmp_path / "data")
    lines = {"train-en": b"the dog\truns\n", "train-zh": b"a\tb\t-\n", "test-de": b"\xff\tb\t-\n"}
    for name, line in lines.items():
        path = tmp_path / "data" / "xnli" / f"{name}.tsv"
        path.write_bytes(path.read_bytes() + line)
    words = ["xnli", *options, "--agent.tree", "shared", "--total-steps", "2"]
    named = one_line(*words, "--out", str(tmp_path / "run"))
    assert "3 damaged items of xnli" in named and "byte 0xff" in named
    assert all(f"{name}.tsv, line" in named for name in lines)
    assert not (tmp_path / "run").exists()
    report = read(run(tmp_path / "run", *words, "--data.skip-damaged"))
    assert {part: len(names) for part, names in report["passed_over"].items()} == {
        "train": 2,
        "test": 1,
    }
    assert "xnli, train: 2 damaged items of 20 are passed over: " in capfd.readouterr().err
    shutil.rmtree(tmp_path / "data")
    write_text(tmp_path / "data")
    assert read(run(tmp_path / "whole", *words))["scores"] == report["scores"]
