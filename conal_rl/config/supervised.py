"""Supervised multi-task learning: a data set, a network and its optimiser, the test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from conal_rl.config.checks import not_negative, positive, require
from conal_rl.config.shared import LearnerConfig, RunConfig
from conal_rl.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, whose tasks are learnt together."""

    set: Literal[
        "nyuv2",
        "cityscapes",
        "pascal_context",
        "taskonomy",
        "celeba",
        "pawsx",
        "xnli",
        "panx",
        "udpos",
        "digits",
        "terrain",
    ]
    """Which one; digits and terrain come inside of scikit-learn and matplotlib."""
    root: str | None = None
    """Folder of its files; --data.root DIR."""
    tasks: tuple[str, ...] | None = None
    """Tasks to learn, in this order: for text languages, for celeba attributes, or all. None: those
    that are usual for the set."""
    size: tuple[int, int] | None = None
    """Height and width of images; None: as published."""
    tokens: int = 128
    """Length of a text, in pieces of words."""
    augment: bool = False
    """Scale, crop and flip training images at random, where the set has that."""
    workers: int = 0
    """Processes that read ahead; batches are the same with any number."""

    def __post_init__(self) -> None:
        positive(self, "data", "tokens")
        not_negative(self, "data", "workers")
        fits = self.size is None or min(self.size) > 0
        require(fits, "data.size", self.size, "two integers above 0")
        named = self.tasks is None or (
            len(self.tasks) > 0 and len(set(self.tasks)) == len(self.tasks)
        )
        require(named, "data.tasks", self.tasks, "one or more names, each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LearnerConfig):
    """The network: a chain of modules that tasks may share, a head for each task; and how it
    learns."""

    encoder: Literal["small", "resnet18", "resnet34", "resnet50", "bert"] = "small"
    """The chain of modules. small: 3x3 convolutions, one a module; resnet: stem and four stages;
    bert: its layers in agent.modules groups."""
    channels: tuple[int, ...] = (16, 32, 32)
    """Of the small encoder's modules."""
    strides: tuple[int, ...] = (1, 2, 1)
    """Of the small encoder's modules."""
    stem: Literal["imagenet", "3x3"] = "imagenet"
    """A ResNet's first module: 7x7 and max-pooling, at a quarter of the resolution; or 3x3 at all
    of it."""
    dilated: bool = False
    """A ResNet's last two stages keep their resolution and dilate their convolutions instead."""
    pretrained: str | None = None
    """A file of torchvision's weights that every module of a ResNet starts with."""
    bert: str | None = None
    """Folder of a BERT: config.json, the tokenizer's files and the weights."""
    bert_from_config: bool = False
    """BERT starts with random weights, and needs none in the folder."""
    modules: int = 4
    """Modules that BERT's layers are grouped into."""
    aspp_rates: tuple[int, ...] = (12, 24, 36)
    """Dilations of the heads that predict every pixel (atrous spatial pyramid pooling)."""
    aspp_width: int = 256
    """Channels in these heads."""
    dropout: float = 0.5
    """In the heads of pixels and of text."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The weights' optimiser; sgd has a momentum of 0.9. Gates have Adam."""
    weight_decay: float = 0.0
    """Of the weights' optimiser."""
    schedule: Literal["constant", "halve", "poly"] = "constant"
    """The step size over the steps since the search, a stage of CoNAL-Pro's, or the training began.
    halve: half of it every agent.halve_every steps; poly: to 0 at the end, as (1 - share)^0.9."""
    halve_every: int = 10_000
    """Steps of the halve schedule."""
    mixed_precision: bool = False
    """Compute in half precision where that is safe: float16 with scaled gradients on CUDA,
    bfloat16 on a CPU that has instructions for it."""
    select: bool = False
    """Train the derived tree without the validation part, and keep the weights of its lowest loss
    there. False: train on both parts and keep the last weights, as the paper does."""
    patience: int | None = None
    """With agent.select: stop after so many looks at validation without a lower loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths_fit = len(self.channels) > 0 and min(self.channels) > 0
        require(widths_fit, "agent.channels", self.channels, "one or more integers above 0")
        strides_fit = len(self.strides) == len(self.channels) and min(self.strides) > 0
        allowed = f"{len(self.channels)} integers above 0, as agent.channels"
        require(strides_fit, "agent.strides", self.strides, allowed)
        rates_fit = len(self.aspp_rates) > 0 and min(self.aspp_rates) > 0
        require(rates_fit, "agent.aspp_rates", self.aspp_rates, "one or more integers above 0")
        positive(self, "agent", "modules", "aspp_width", "halve_every", "patience")
        not_negative(self, "agent", "weight_decay")
        require(0 <= self.dropout < 1, "agent.dropout", self.dropout, "0 or more and below 1")
        if self.mixed_precision and self.weighting == "nash_mtl":
            raise ConfigError(
                "agent.weighting: nash_mtl depends on the scale of gradients, which "
                "agent.mixed_precision changes; leave out one of them"
            )
        if self.patience is not None and not self.select:
            raise ConfigError("agent.patience: it needs agent.select, which looks at validation")

    @property
    def depth(self) -> int:
        """Modules of the chain."""
        if self.encoder == "small":
            return len(self.channels)
        return self.modules if self.encoder == "bert" else 5

    @property
    def depth_field(self) -> str:
        """See `LearnerConfig`."""
        return f"the number of modules of agent.encoder {self.encoder}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedEvaluationConfig:
    """Validation and test."""

    every: int = 500
    """Steps between looks at the validation part, where it is not trained on."""
    batch_size: int = 32
    """Samples per task in one forward pass of validation and test."""
    reference: str | None = None
    """evaluation.json of another run, such as that of --agent.tree independent: delta_p against it
    is reported."""

    def __post_init__(self) -> None:
        positive(self, "evaluation", "every", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig):
    """A supervised experiment."""

    data: DataConfig
    agent: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    evaluation: SupervisedEvaluationConfig = dataclasses.field(
        default_factory=SupervisedEvaluationConfig
    )

    def with_root(self, root: str | None) -> SupervisedConfig:
        """Return the same config with its data in `root`, or this one if that is None."""
        if root is None:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, root=root))

    def with_whole_paths(self) -> SupervisedConfig:
        """The same, with paths that hold in any folder: a run is gone on with from anywhere."""

        def whole(section: Any, *fields: str) -> Any:
            given = {field: getattr(section, field) for field in fields}
            found = {
                name: str(Path(path).expanduser().resolve())
                for name, path in given.items()
                if path is not None
            }
            return dataclasses.replace(section, **found)

        return dataclasses.replace(
            self,
            data=whole(self.data, "root"),
            agent=whole(self.agent, "pretrained", "bert"),
            evaluation=whole(self.evaluation, "reference"),
        )
