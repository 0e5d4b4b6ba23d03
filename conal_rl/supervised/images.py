"""The data sets of images as problems: each has parts, heads, losses and metrics.

The settings for NYUv2 and CityScapes are those of LibMTL and of the authors' code. The settings for
PASCAL-Context are those of ASTMT, for Taskonomy those of AdaShare, for CelebA those of TAG.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from conal_rl.config.checks import require
from conal_rl.config.supervised import ModelConfig, SupervisedConfig
from conal_rl.core.layers import LayerFactory
from conal_rl.device import require_memory
from conal_rl.errors import ConfigError
from conal_rl.supervised.data.bundled import Digits, Terrain
from conal_rl.supervised.data.celeba import NINE, CelebA
from conal_rl.supervised.data.common import Joined, Only, SharedDataset, SharedLoader, split
from conal_rl.supervised.data.nyuv2 import VOID, CityScapes, NYUv2
from conal_rl.supervised.data.pascal_context import PascalContext
from conal_rl.supervised.data.taskonomy import CLASSES, DEPTH_VOID, SEGMENTATION_VOID, Taskonomy
from conal_rl.supervised.decoders import aspp, pooled_linear
from conal_rl.supervised.encoders import Depth as ResNetDepth
from conal_rl.supervised.encoders import features, load_torchvision, resnet_chain, small_chain
from conal_rl.supervised.losses import (
    balanced_bce,
    cross_entropy,
    l1,
    normals_cosine,
    normals_l1,
    squared_error,
)
from conal_rl.supervised.metrics import (
    AbsoluteError,
    Accuracy,
    Cosine,
    Depth,
    Edges,
    MeanAngle,
    MeanIoU,
    Metric,
    NormalAngles,
    Saliency,
    Segmentation,
    SquaredError,
    TaskonomySegmentation,
)
from conal_rl.supervised.problem import (
    Loss,
    Part,
    Problem,
    Task,
    chosen_tasks,
    require_full_batch,
    root_of,
)

_DEPTHS: dict[str, ResNetDepth] = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


class Target(NamedTuple):
    """A task without its head, which depends on the encoder."""

    outputs: int  # classes, or channels to predict
    loss: Loss
    metric: Callable[[], Metric]
    weight: float = 1.0


class ImageSet(NamedTuple):
    """The settings of one data set."""

    targets: Mapping[str, Target]  # the tasks to learn, in order
    open: Callable[[Part, bool], SharedDataset]  # opens a part with all its tasks, augmented or not
    size: tuple[int, int] | None  # height and width of predictions; None: one per image
    channels: int = 3


def image_problem(config: SupervisedConfig) -> Problem:
    """Return the problem of a config whose data set has images; see `problem.make_problem`."""
    agent, data = config.agent, config.data
    if agent.encoder == "bert":
        raise ConfigError(
            f"agent.encoder: got 'bert', expected small or a resnet for the images of {data.set}. "
            "Choose a different encoder"
        )
    allowed = "2 or more, because of batch norm"
    require(agent.batch_size > 1, "agent.batch_size", agent.batch_size, allowed)
    image_set = _SETS[data.set](config)
    height, width = data.size or image_set.size or (1, 1)
    image = 4 * image_set.channels * height * width
    require_memory("data.size", data.size, image)
    require_memory("agent.batch_size", agent.batch_size, image * agent.batch_size)
    chain = _chain(agent, image_set.channels, data.set)
    channels = features(chain, image_set.channels).channels
    tasks = {
        name: Task(
            _head(agent, channels, target.outputs, image_set.size),
            target.loss,
            target.metric,
            target.weight,
        )
        for name, target in image_set.targets.items()
    }

    @cache  # validation is read many times
    def opened(part: Part, augmented: bool) -> Only:
        return Only(image_set.open(part, augmented), tuple(tasks))

    opened("test", False)  # so that missing files are found before the training

    def loader(part: Part, batch_size: int, training: bool) -> SharedLoader:
        dataset = opened(part, training and data.augment and part != "test")
        if training:
            require_full_batch(len(dataset), batch_size, part)
        return SharedLoader(
            dataset,
            batch_size,
            seed=config.seed,
            shuffle=training,
            drop_last=training,
            workers=data.workers,
        )

    return Problem(tasks, chain, loader, _prepare(agent))


def _chain(agent: ModelConfig, channels: int, name: str) -> list[LayerFactory]:
    if agent.encoder == "small":
        weights = sum(9 * a * b for a, b in pairwise((channels, *agent.channels)))
        require_memory("agent.channels", agent.channels, 4 * weights)
        return small_chain(agent.channels, agent.strides, channels)
    if channels != 3:
        raise ConfigError(
            f"agent.encoder: got {agent.encoder!r}, expected small, because images of {name} have "
            f"{channels} channel. Choose small"
        )
    return resnet_chain(_DEPTHS[agent.encoder], agent.stem, agent.dilated)


def _prepare(agent: ModelConfig) -> Callable[[nn.Module], None]:
    if agent.pretrained is None:
        return lambda network: None
    if agent.encoder not in _DEPTHS:
        raise ConfigError(
            f"agent.pretrained: got {agent.pretrained!r}, expected no value for the encoder "
            f"{agent.encoder}. Remove it, or choose a resnet"
        )
    return partial(load_torchvision, weights=agent.pretrained)


def _head(
    agent: ModelConfig, channels: int, outputs: int, size: tuple[int, int] | None
) -> Callable[[], nn.Module]:
    if size is None:
        return partial(pooled_linear, channels, outputs)
    rates, width, dropout = agent.aspp_rates, agent.aspp_width, agent.dropout
    weights = 9 * len(rates) * channels * width + width**2
    require_memory("agent.aspp_width", width, 4 * weights)
    return partial(aspp, channels, outputs, size, rates, width, dropout)


def _nyuv2(config: SupervisedConfig, kind: type[NYUv2] = NYUv2) -> ImageSet:
    root = root_of(config, "train and val")
    size = config.data.size or kind.size
    known = {
        "segmentation": Target(
            kind.classes, partial(cross_entropy, void=VOID), partial(Segmentation, kind.classes)
        ),
        "depth": Target(1, partial(l1, void=0), Depth),
        "normals": Target(3, normals_cosine, NormalAngles),
    }
    targets = _chosen(config, {task: known[task] for task in kind.folders})
    tasks = tuple(targets)

    def open_split(name: Any, augmented: bool) -> SharedDataset:
        return kind(root, name, tasks=tasks, augment=augmented, seed=config.seed, size=size)

    return ImageSet(targets, _cut_training(config, open_split, "val"), size)


def _pascal_context(config: SupervisedConfig) -> ImageSet:
    root = root_of(config, "JPEGImages, ImageSets and the others")
    size = config.data.size or (512, 512)
    ignoring = partial(cross_entropy, void=255)
    known = {
        "semseg": Target(21, ignoring, partial(MeanIoU, 21, 255)),
        "human_parts": Target(7, ignoring, partial(MeanIoU, 7, 255)),
        "saliency": Target(1, balanced_bce, Saliency),
        "normals": Target(3, normals_l1, MeanAngle),
        "edges": Target(1, partial(balanced_bce, positive_weight=0.95), Edges),
    }
    targets = _chosen(config, known, tuple(known)[:4])
    tasks: Any = tuple(targets)

    def open_split(name: Any, augmented: bool) -> SharedDataset:
        return PascalContext(root, name, tasks=tasks, size=size)

    return ImageSet(targets, _cut_training(config, open_split, "val"), size)


def _taskonomy(config: SupervisedConfig) -> ImageSet:
    # The test uses the central 224 of 256, because training uses crops of 224. AdaShare tests on
    # whole images.
    root = root_of(config, "taskonomy.json and semseg_prior_factor.npy")
    crop = _side(config, 224)
    size = 256 if 224 <= crop <= 256 else crop

    def open_split(name: str, augmented: bool) -> Taskonomy:
        return Taskonomy(root, name, augment=augmented, seed=config.seed, size=size, crop=crop)

    weight, void = open_split("test", False).class_weight, SEGMENTATION_VOID
    loss = partial(cross_entropy, void=void, class_weight=weight)
    depth = Target(1, partial(l1, void=DEPTH_VOID), partial(AbsoluteError, int(DEPTH_VOID)), 2)
    known = {
        "segmentation": Target(CLASSES, loss, partial(TaskonomySegmentation, weight, void), 1),
        "normals": Target(3, normals_cosine, Cosine, 3),
        "depth": depth,
        "keypoints": Target(1, l1, AbsoluteError, 7),
        "edges": Target(1, l1, AbsoluteError, 7),
    }
    modes = json.loads((root / "taskonomy.json").read_text(encoding="utf-8"))
    cut = _three_parts(open_split) if "val" in modes else _cut_training(config, open_split, "test")
    return ImageSet(_chosen(config, known), cut, (crop, crop))


def _celeba(config: SupervisedConfig) -> ImageSet:
    root, size = root_of(config, "Anno, Eval and Img"), _side(config, 64)
    attributes = tuple(CelebA(root, "test", attributes="all").tasks)
    known = dict.fromkeys(attributes, Target(2, cross_entropy, Accuracy))
    targets = known if config.data.tasks == ("all",) else _chosen(config, known, NINE)

    def open_split(name: Any, augmented: bool) -> SharedDataset:
        return CelebA(root, name, attributes=tuple(targets), size=size)

    return ImageSet(targets, _three_parts(open_split), None)


def _digits(config: SupervisedConfig) -> ImageSet:
    _require_no_size(config, "8 x 8")
    known = {
        name: Target(1, squared_error, SquaredError)
        if kind.kind == "regression"
        else Target(kind.outputs, cross_entropy, Accuracy)
        for name, kind in Digits.kinds.items()
    }
    return ImageSet(_chosen(config, known), _three_parts(lambda name, _: Digits(name)), None, 1)


def _terrain(config: SupervisedConfig) -> ImageSet:
    _require_no_size(config, f"{Terrain.tile} x {Terrain.tile}")
    classes = Terrain.kinds["segmentation"].outputs
    known = {
        "depth": Target(1, l1, AbsoluteError),  # 0 is a valid depth: the tile's mean
        "normals": Target(3, normals_cosine, NormalAngles),
        "segmentation": Target(classes, cross_entropy, partial(Segmentation, classes)),
    }
    parts = _three_parts(lambda name, _: Terrain(name))
    return ImageSet(_chosen(config, known), parts, (Terrain.tile, Terrain.tile), 1)


_SETS: dict[str, Callable[[SupervisedConfig], ImageSet]] = {
    "nyuv2": _nyuv2,
    "cityscapes": partial(_nyuv2, kind=CityScapes),
    "pascal_context": _pascal_context,
    "taskonomy": _taskonomy,
    "celeba": _celeba,
    "digits": _digits,
    "terrain": _terrain,
}


def _chosen(
    config: SupervisedConfig, known: Mapping[str, Target], usual: Sequence[str] | None = None
) -> dict[str, Target]:
    tasks = chosen_tasks(config, tuple(known), tuple(known) if usual is None else usual)
    return {task: known[task] for task in tasks}


def _cut_training(
    config: SupervisedConfig, open_split: Callable[[Any, bool], SharedDataset], test: str
) -> Callable[[Part, bool], SharedDataset]:
    """Return an opener of parts; validation is a random share of the training split."""

    def open_part(part: Part, augmented: bool) -> SharedDataset:
        if part == "test":
            return open_split(test, False)
        whole = open_split("train", augmented)
        if part == "both":
            return whole
        train, validation = split(whole, 1 - config.search.validation_share, config.seed)
        return train if part == "train" else validation

    return open_part


def _three_parts(
    open_split: Callable[[Any, bool], SharedDataset],
) -> Callable[[Part, bool], SharedDataset]:
    """Return an opener of parts for a data set that has the splits train, val and test."""

    def open_part(part: Part, augmented: bool) -> SharedDataset:
        if part == "both":
            return Joined([open_split("train", augmented), open_split("val", augmented)])
        return open_split("val" if part == "validation" else part, augmented)

    return open_part


def _side(config: SupervisedConfig, published: int) -> int:
    height, width = config.data.size or (published, published)
    square = f"a square, because images of {config.data.set} are square"
    require(height == width, "data.size", config.data.size, square)
    return height


def _require_no_size(config: SupervisedConfig, fixed_size: str) -> None:
    allowed = f"no value, because images of {config.data.set} are always {fixed_size}"
    require(config.data.size is None, "data.size", config.data.size, allowed)
