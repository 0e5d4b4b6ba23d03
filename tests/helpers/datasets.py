"""Tiny data sets in the layouts of the real ones; each writer returns what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Written = list[dict[str, Array]]

CELEBA_HEADER = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair "
    "Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
)


def unit_normals(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Normals `(height, width, 3)` of length 1, some of them (0, 0, 0)."""
    normals = rng.normal(size=(*size, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[rng.random(size) < 0.2] = 0
    return normals


def write_array_tree(
    root: Path,
    split: str = "train",
    count: int = 12,
    size: tuple[int, int] = (6, 10),
    classes: int = 13,
    normals: bool = True,
) -> Written:
    """NYUv2, or without normals CityScapes: `{split}/{image,label,depth,normal}/{i}.npy`."""
    rng = np.random.default_rng(0)
    written = []
    for number in range(count):
        depth = rng.uniform(0.5, 9, (*size, 1))
        depth[rng.random(size) < 0.2] = 0
        arrays = {
            "image": rng.random((*size, 3)),
            "label": rng.integers(-1, classes, size).astype(np.float64),
            "depth": depth,
        }
        if normals:
            arrays["normal"] = unit_normals(rng, size)
        for kind, array in arrays.items():
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / split / kind / f"{number}.npy", array)
        written.append(arrays)
    return written


def png(path: Path, array: Array) -> None:
    """Write an image; 16 bits where the array has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_pascal(root: Path, split: str = "train", size: tuple[int, int] = (8, 10)) -> Written:
    """Four images: people with parts, people without, only a different thing with parts, empty."""
    first = 0 if split == "train" else 4
    rng = np.random.default_rng(1 + first)
    names = [f"2008_00000{first + number}" for number in range(4)]
    objects: list[list[tuple[int, list[str]]]] = [
        [
            (15, ["head", "lear", "torso", "rlarm", "rhand", "luleg", "lfoot", "ruarm"]),
            (12, ["tail", "head"]),
        ],
        [(15, [])],
        [(12, ["head", "torso"])],
        [],
    ]
    context = root / "ImageSets" / "Context"
    context.mkdir(parents=True, exist_ok=True)
    (context / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    parts = root / "ImageSets" / "Parts"
    parts.mkdir(parents=True, exist_ok=True)
    categories = [[category for category, _ in own] for own in objects]
    (parts / f"{split}.txt").write_text(json.dumps(dict(zip(names, categories, strict=True))))
    written = []
    for number, (name, own) in enumerate(zip(names, objects, strict=True)):
        arrays = pascal_arrays(rng, size)
        png(root / "JPEGImages" / f"{name}.jpg", arrays["image"])
        folder = "VOC12" if number % 2 else "pascal-context"
        write_palette_png(root / "semseg" / folder / f"{name}.png", arrays["semseg"])
        png(root / "sal_distill" / f"{name}.png", arrays["saliency"])
        png(root / "normals_distill" / f"{name}.png", arrays["normals"])
        labels = root / "pascal-context" / "trainval"
        labels.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(labels / f"{name}.mat", {"LabelMap": arrays["LabelMap"]})
        (root / "human_parts").mkdir(exist_ok=True)
        write_parts(root / "human_parts" / f"{name}.mat", own, size)
        written.append(arrays)
    return written


def pascal_arrays(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Array]:
    """What an image's files hold; one colour only, which JPEG keeps."""
    return {
        "image": np.broadcast_to(rng.integers(0, 256, 3), (*size, 3)).astype(np.uint8),
        "semseg": rng.choice([*range(21), 255], size).astype(np.uint8),
        "saliency": rng.integers(0, 256, size).astype(np.uint8),
        "normals": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        "LabelMap": rng.choice([68, 158, 360, 440, 420], size).astype(np.uint16),
    }


def write_palette_png(path: Path, classes: Array) -> None:
    """Write classes as VOC does: indices into colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(classes)
    image.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 7)])
    image.save(path)


def write_parts(path: Path, objects: list[tuple[int, list[str]]], size: tuple[int, int]) -> None:
    """Write a PASCAL-Part annotation in which an object's n-th part is the n-th column."""
    part_type = [("part_name", object), ("mask", object)]
    object_type = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    things = np.empty((1, len(objects)), dtype=object_type)
    for number, (category, names) in enumerate(objects):
        parts = np.empty((1, len(names)), dtype=part_type)
        for column, name in enumerate(names):
            mask = np.zeros(size, dtype=np.uint8)
            mask[:, column] = 1
            parts[0, column] = (name, mask)
        whole = np.ones(size, dtype=np.uint8)
        things[0, number] = ("thing", float(category), whole, parts if names else np.zeros((0, 0)))
    scipy.io.savemat(path, {"anno": {"imname": path.stem, "objects": things}})


def write_taskonomy(root: Path, count: int = 5, side: int = 8) -> Written:
    """`taskonomy.json` with train and test, six PNG files a row, and the classes' weights."""
    rng = np.random.default_rng(2)
    written, rows = [], []
    for number in range(count):
        arrays = {
            "rgb": rng.integers(0, 256, (side, side, 3)).astype(np.uint8),
            "segmentsemantic": rng.integers(0, 18, (side, side)).astype(np.uint8),
            "normal": rng.integers(0, 256, (side, side, 3)).astype(np.uint8),
            "depth_zbuffer": rng.choice([512, 9000, 64499, 64500, 65535], (side, side)),
            "keypoints2d": rng.integers(0, 700, (side, side)),
            "edge_texture": rng.integers(0, 9000, (side, side)),
        }
        row = [f"hall/{kind}/point_{number}_domain_{kind}.png" for kind in arrays]
        for name, kind in zip(row, arrays, strict=True):
            small = arrays[kind].dtype == np.uint8
            png(root / name, arrays[kind] if small else arrays[kind].astype(np.uint16))
        rows.append(row)
        written.append(arrays)
    (root / "taskonomy.json").write_text(json.dumps({"train": rows, "test": rows[:2]}))
    np.save(root / "semseg_prior_factor.npy", np.linspace(0.1, 3, 17))
    return written


def write_celeba(root: Path, count: int = 9, suffix: str = "png", size: int = 8) -> Written:
    """Images 000001 on, of train, val and test in turn; attributes and partition as published."""
    rng = np.random.default_rng(3)
    (root / "Anno").mkdir(parents=True)
    (root / "Eval").mkdir()
    attributes, partition, written = [], [], []
    for number in range(1, count + 1):
        face = {
            "image": np.broadcast_to(rng.integers(0, 256, 3), (size, size, 3)).astype(np.uint8),
            "labels": rng.choice([-1, 1], 40),
        }
        folder = "img_align_celeba_png" if suffix == "png" else "img_align_celeba"
        png(root / "Img" / folder / f"{number:06}.{suffix}", face["image"])
        values = " ".join(f"{value:2d}" for value in face["labels"])
        attributes.append(f"{number:06}.jpg {values}")
        partition.append(f"{number:06}.jpg {(number - 1) % 3}")
        written.append(face)
    text = "\n".join([str(count), CELEBA_HEADER + " ", *attributes])
    (root / "Anno" / "list_attr_celeba.txt").write_text(text + "\n")
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return written
