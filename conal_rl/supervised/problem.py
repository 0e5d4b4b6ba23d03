"""The problem of a supervised experiment: tasks, encoder and batches, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from conal_rl.config.supervised import SupervisedConfig
from conal_rl.core.layers import LayerFactory
from conal_rl.errors import ConfigError
from conal_rl.files import user_path
from conal_rl.supervised.data.common import SharedLoader, TaskLoaders
from conal_rl.supervised.metrics import Metric

Part = Literal["train", "validation", "both", "test"]
"""A part of the data: weights train on "train", gates on "validation"; "both" joins the two."""


class Loss(Protocol):
    """A mean over the labelled elements, as in `conal_rl.supervised.losses`."""

    def __call__(self, prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return a scalar; `mask` `(batch,)` is True for labelled samples."""
        ...


class Task(NamedTuple):
    """One task of a problem."""

    head: Callable[[], nn.Module]  # maps the encoding of a batch to the prediction
    loss: Loss
    metric: Callable[[], Metric]
    weight: float = 1.0  # of the loss


@dataclass(frozen=True)
class Problem:
    """A data set with its tasks, encoder and batches.

    Attributes:
        tasks: the tasks, in the order of the encoder's rows.
        chain: the encoder's modules, one layer factory each.
        loader: `loader(part, batch_size, training)` returns the batches of a part. Batches for
            training are full, have a new order in every epoch, and are augmented if the config says
            so. Without `training` they have all samples, in order.
        prepare: fills a new network with pretrained weights, if the config names any.
        check: raises a DataError that names all damaged items of all parts, except if
            `data.skip_damaged` passes over them. Images are read for it.
        passed_over: by published part, the damaged items that were passed over so far.
    """

    tasks: Mapping[str, Task]
    chain: Sequence[LayerFactory]
    loader: Callable[[Part, int, bool], SharedLoader | TaskLoaders]
    prepare: Callable[[nn.Module], None]
    check: Callable[[], None] = lambda: None
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict)


def make_problem(config: SupervisedConfig) -> Problem:
    """Return the data set, encoder and tasks of a config.

    The test part is opened at once, so that missing files are found before the training. The other
    parts are opened with their first loader.

    Raises:
        ConfigError: a field does not fit the data set. Or, when a loader is made: a part is smaller
            than a training batch.
        CheckpointError: BERT's folder is missing or damaged. Or, when a network is prepared: a
            ResNet's file is.
        DataError: a file of the data set is missing or has unexpected content.
        ExtraError: an optional package that the data set needs is missing.
    """
    # Not at the top, because both modules import the types above.
    from conal_rl.supervised.images import image_problem
    from conal_rl.supervised.text import text_problem

    is_text = config.data.set in ("pawsx", "xnli", "panx", "udpos")
    return text_problem(config) if is_text else image_problem(config)


def root_of(config: SupervisedConfig, holds: str) -> Path:
    """Return the data set's folder; raise ConfigError if the config does not name it."""
    if config.data.root is None:
        raise ConfigError(
            f"data.root: got no value, expected the folder with {holds}. Give --data.root DIR"
        )
    return user_path(config.data.root)


def chosen_tasks(
    config: SupervisedConfig, known: Sequence[str], usual: Sequence[str]
) -> tuple[str, ...]:
    """Return the tasks to learn, in order; raise ConfigError if a task is not `known`."""
    if config.data.tasks is None:
        return tuple(usual)
    for task in config.data.tasks:
        if task not in known:
            listed = ", ".join(known)
            raise ConfigError(
                f"data.tasks: got {task!r}, expected some of {listed}. Give some of them"
            )
    return config.data.tasks


def require_full_batch(samples: int, batch_size: int, part: Part) -> None:
    """Raise ConfigError if a part is smaller than a training batch, which is always full."""
    if samples < batch_size:
        names = {"train": "the training part", "both": "training and validation together"}
        which = names.get(part, f"the {part} part")
        raise ConfigError(
            f"agent.batch_size: got {batch_size}, expected at most {samples}, the samples in "
            f"{which}. Use a smaller batch"
        )
