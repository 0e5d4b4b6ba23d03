"""Every data set in tiny files: what writes it, its options and its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conal_rl.supervised.data.celeba import NINE
from conal_rl.supervised.data.text import LABELS
from tests.helpers.datasets import (
    CELEBA_HEADER,
    write_array_tree,
    write_celeba,
    write_pascal,
    write_taskonomy,
)

SMALL = ["--agent.aspp-width", "4", "--agent.aspp-rates", "1", "2", "--agent.batch-size", "2"]
ANGLES = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
SEGMENTATION = ("mIoU", "pixel_accuracy")
DEPTH = ("abs_error", "rel_error")
TEXT = ("pawsx", "xnli", "panx", "udpos")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "run", "##s", "the")
LANGUAGES = {"udpos": ("en", "zh", "te", "vi")}
COUNTS = {"train": (5, 3, 4, 6), "dev": (3, 2, 3, 1), "test": (2, 5, 3, 4)}
"""The numbers of texts of the languages, in order."""


def write_nyuv2(root: Path) -> None:
    write_array_tree(root, "train", 10)
    write_array_tree(root, "val", 3)


def write_cityscapes(root: Path) -> None:
    write_array_tree(root, "train", 10, classes=7, normals=False)
    write_array_tree(root, "val", 3, classes=7, normals=False)


def write_both_pascals(root: Path) -> None:
    write_pascal(root, "train")
    write_pascal(root, "val")


def write_text(root: Path) -> None:
    """Write all four benchmarks, and a BERT of two layers to `root/bert`."""
    for name in TEXT:
        labels = LABELS[name]  # type: ignore[index]
        for split, counts in COUNTS.items():
            for language, count in zip(languages(name), counts, strict=True):
                lines = []
                for number in range(count):
                    label = labels[number % len(labels)]
                    pair = f"the dog\truns\t{label}\n"
                    lines.append(pair if name in TEXT[:2] else f"dog\t{label}\nruns\t{label}\n\n")
                (root / name).mkdir(exist_ok=True, parents=True)
                (root / name / f"{split}-{language}.tsv").write_text("".join(lines))
    write_bert(root / "bert")


def write_bert(folder: Path, **changes: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(sizes | changes))


def languages(name: str) -> tuple[str, ...]:
    return LANGUAGES.get(name, ("en", "zh", "de", "es"))


WRITERS: dict[str, Callable[[Path], object]] = {
    "nyuv2": write_nyuv2,
    "cityscapes": write_cityscapes,
    "pascal_context": write_both_pascals,
    "taskonomy": write_taskonomy,
    "celeba9": lambda root: write_celeba(root, 12),
    "celeba40": lambda root: write_celeba(root, 12),
    **dict.fromkeys(TEXT, write_text),
}
SIZES = {"nyuv2": (6, 10), "cityscapes": (6, 10), "pascal_context": (8, 10), "taskonomy": (8, 8)}
METRICS: dict[str, dict[str, tuple[str, ...]]] = {
    "nyuv2": {"segmentation": SEGMENTATION, "depth": DEPTH, "normals": ANGLES},
    "cityscapes": {"segmentation": SEGMENTATION, "depth": DEPTH},
    "pascal_context": {
        **dict.fromkeys(("semseg", "human_parts", "saliency"), ("mIoU",)),
        "normals": ("mean_angle",),
    },
    "taskonomy": {
        "segmentation": ("cross_entropy", "pixel_accuracy"),
        "normals": ("cosine",),
        **dict.fromkeys(("depth", "keypoints", "edges"), ("abs_error",)),
    },
    "celeba9": dict.fromkeys(NINE, ("accuracy",)),
    "celeba40": dict.fromkeys(CELEBA_HEADER.split(), ("accuracy",)),
    **{name: dict.fromkeys(languages(name), ("accuracy",)) for name in TEXT[:2]},
    **{name: dict.fromkeys(languages(name), ("f1",)) for name in TEXT[2:]},
    "digits": {
        **dict.fromkeys(("digit", "parity", "at_least_five", "prime"), ("accuracy",)),
        "ink": ("squared_error",),
    },
    "terrain": {"depth": ("abs_error",), "normals": ANGLES, "segmentation": SEGMENTATION},
}


def options_of(name: str, root: Path) -> list[str]:
    """Write tiny files of a preset's data set to `root`, and return small settings for it."""
    if name in WRITERS:
        WRITERS[name](root)
    if name in TEXT:
        bert = ["--agent.bert", str(root / "bert"), "--agent.bert-from-config"]
        sizes = ["--agent.modules", "2", "--data.tokens", "8", "--agent.batch-size", "2"]
        return ["--data.root", str(root), *bert, *sizes]
    options = [*SMALL, "--agent.encoder", "small"]
    if name in SIZES:
        options += ["--data.size", *map(str, SIZES[name])]
    if name.startswith("celeba"):
        options += ["--data.size", "8", "8"]
    return options + (["--data.root", str(root)] if name in WRITERS else [])
