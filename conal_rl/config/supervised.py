"""Supervised multi-task learning: a data set, a network and its optimiser, the test."""

from __future__ import annotations

import dataclasses
from typing import Literal

from conal_rl.config.checks import not_negative, positive, require
from conal_rl.config.fields import convert_fields, field
from conal_rl.config.shared import LearnerConfig, RunConfig, with_whole
from conal_rl.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set; its tasks are learnt together."""

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
    ] = field(changes_run=True)
    """Name of the data set. Choose digits or terrain for a first try: scikit-learn and matplotlib
    bring their files. Every other set needs data.root."""
    root: str | None = field(None, changes_experiment=False)
    """Folder with the data set's files. Give it for all sets except digits and terrain. None: the
    set needs no folder."""
    tasks: tuple[str, ...] | None = None
    """Tasks to learn, in this order: languages of text, attributes of celeba (all names them all).
    Give a few to learn fewer tasks. None: the usual tasks of the set."""
    size: tuple[int, int] | None = field(None, changes_run=True)
    """Height and width of the images. Lower it for a quick try. None: the published size."""
    tokens: int = 128
    """Largest number of tokens (pieces of words) in a text; longer texts are cut off. Raise it for
    long texts."""
    augment: bool = False
    """Scale, crop and flip training images at random, if the set supports it. Switch it on if the
    network memorises the training images."""
    workers: int = field(0, changes_experiment=False)
    """Number of processes that read ahead. Raise it if reading is slower than learning. The batches
    are the same for any number."""

    def __post_init__(self) -> None:
        convert_fields(self, "data")
        positive(self, "data", "tokens")
        not_negative(self, "data", "workers")
        fits = self.size is None or min(self.size) > 0
        require(fits, "data.size", self.size, "two integers above 0")
        named = self.tasks is None or (
            len(self.tasks) > 0 and len(set(self.tasks)) == len(self.tasks)
        )
        require(named, "data.tasks", self.tasks, "one or more names, each once")


def _are_small(numbers: tuple[int, ...]) -> bool:
    return min(numbers) > 0 and max(numbers) < 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LearnerConfig):
    """The network (a chain of modules that tasks may share, and a head per task), and how it
    learns."""

    encoder: Literal["small", "resnet18", "resnet34", "resnet50", "bert"] = "small"
    """Chain of modules that tasks may share. Choose a resnet for photographs and bert for text.
    small: each module is one 3x3 convolution.
    resnet: the modules are the stem and the four stages.
    bert: the modules are groups of its layers, agent.modules in number."""
    channels: tuple[int, ...] = (16, 32, 32)
    """Number of channels of each module of the small encoder. The length of the list is the number
    of modules. Raise them for larger images."""
    strides: tuple[int, ...] = field((1, 2, 1), changes_run=True)
    """Stride of each module of the small encoder; a stride of 2 halves the resolution. Give as many
    as agent.channels."""
    stem: Literal["imagenet", "3x3"] = "imagenet"
    """First module of a ResNet. Choose 3x3 for small images.
    imagenet: a 7x7 convolution and max-pooling reduce the resolution to a quarter.
    3x3: a 3x3 convolution keeps the resolution."""
    dilated: bool = field(False, changes_run=True)
    """Let a ResNet's last two stages keep their resolution and dilate their convolutions. Switch it
    on for tasks that predict every pixel."""
    pretrained: str | None = None
    """File with torchvision's weights, from which every module of a ResNet starts. Give one if the
    data are few. None: the weights are random."""
    bert: str | None = None
    """Folder of a BERT: config.json, the tokenizer's files and the weights. Give it for the encoder
    bert. None: the encoder is a different one."""
    bert_from_config: bool = False
    """Start BERT with random weights, so that the folder needs no weights. Switch it on to try the
    pipeline."""
    modules: int = 4
    """Number of modules into which BERT's layers are grouped. More modules give more branch points
    to search."""
    aspp_rates: tuple[int, ...] = field((12, 24, 36), changes_run=True)
    """Dilations of the heads that predict every pixel (atrous spatial pyramid pooling). Lower them
    for small images."""
    aspp_width: int = 256
    """Number of channels in the heads that predict every pixel. Lower it for a small encoder."""
    dropout: float = 0.5
    """Dropout in the heads of pixels and of text. Lower it if training and test losses are
    close."""
    optimizer: Literal["adam", "adamw", "sgd"] = field("adam", changes_run=True)
    """Optimiser of the weights; sgd has a momentum of 0.9. Choose the one of the work to compare
    with. The gates always have Adam."""
    weight_decay: float = 0.0
    """Weight decay of the weights' optimiser. Raise it against overfitting."""
    schedule: Literal["constant", "halve", "poly"] = "constant"
    """Schedule of the learning rate. Steps count from the start of the search, of a stage of
    conal_pro, or of the training. Choose poly for long training.
    constant: the rate does not change.
    halve: the rate is halved every agent.halve_every steps.
    poly: the rate is multiplied by (1 - share of the steps)^0.9, which is 0 at the end."""
    halve_every: int = 10_000
    """Number of steps after which the schedule halve halves the learning rate. Raise it for longer
    training."""
    mixed_precision: bool = False
    """Compute in half precision: in float16 with scaled losses on CUDA, in bfloat16 on a CPU that
    has its instructions. Switch it on for speed."""
    select: bool = field(False, changes_run=True)
    """Train the derived tree without the validation part, and keep the weights with the lowest loss
    on it. Switch it on against overfitting. If it is off, both parts are trained on and the last
    weights are kept, as in the paper."""
    patience: int | None = None
    """Number of evaluations on the validation part without a lower loss after which training stops.
    Set it to save time; it needs agent.select. None: training does not stop early."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths_fit = len(self.channels) > 0 and min(self.channels) > 0
        require(widths_fit, "agent.channels", self.channels, "one or more integers above 0")
        strides_fit = len(self.strides) == len(self.channels) and _are_small(self.strides)
        allowed = f"{len(self.channels)} integers above 0 and below 2**31, as agent.channels"
        require(strides_fit, "agent.strides", self.strides, allowed)
        allowed = "one or more integers above 0 and below 2**31"
        rates_fit = len(self.aspp_rates) > 0 and _are_small(self.aspp_rates)
        require(rates_fit, "agent.aspp_rates", self.aspp_rates, allowed)
        positive(self, "agent", "modules", "aspp_width", "halve_every", "patience")
        not_negative(self, "agent", "weight_decay")
        require(0 <= self.dropout < 1, "agent.dropout", self.dropout, "0 or more and below 1")
        if self.mixed_precision and self.weighting == "nash_mtl":
            raise ConfigError(
                "agent.weighting: got 'nash_mtl', expected a different one with "
                "agent.mixed_precision. It depends on the scale of gradients. Leave out one of them"
            )
        if self.patience is not None and not self.select:
            raise ConfigError(
                f"agent.patience: got {self.patience}, expected None without agent.select. "
                "Give agent.select too"
            )

    @property
    def depth(self) -> int:
        """Number of modules of the chain."""
        if self.encoder == "small":
            return len(self.channels)
        return self.modules if self.encoder == "bert" else 5

    @property
    def depth_field(self) -> str:
        """The field that sets `depth`, for errors."""
        return f"the number of modules of agent.encoder {self.encoder}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedEvaluationConfig:
    """Validation and test."""

    every: int = field(500, changes_experiment=False)
    """Number of steps between evaluations on the validation part, with agent.select. Lower it to
    select among more weights."""
    batch_size: int = field(32, changes_experiment=False)
    """Number of samples per task in one forward pass of validation and test. Raise it for speed,
    lower it if memory is short."""
    reference: str | None = field(None, changes_experiment=False)
    """File evaluation.json of the run to compare with, such as one with --agent.tree independent.
    Give it to report delta_p. None: delta_p is not reported."""

    def __post_init__(self) -> None:
        convert_fields(self, "evaluation")
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
        """Return the same config with absolute paths, as every config does."""
        config = super().with_whole_paths()
        return dataclasses.replace(
            self,
            data=with_whole(self.data, "root"),
            agent=with_whole(config.agent, "pretrained", "bert"),
            evaluation=with_whole(self.evaluation, "reference"),
        )
