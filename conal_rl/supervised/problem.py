"""What a supervised experiment learns: tasks, encoder, batches, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from conal_rl.config.supervised import SupervisedConfig
from conal_rl.core.layers import LayerFactory
from conal_rl.errors import ConfigError
from conal_rl.supervised.data.common import SharedLoader, TaskLoaders
from conal_rl.supervised.metrics import Metric

Part = Literal["train", "validation", "both", "test"]
"""Of the data: what the search trains weights on, what it trains gates on, the two, the test."""


class Loss(Protocol):
    """A mean over what is labelled, as in `conal_rl.supervised.losses`."""

    def __call__(self, prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """A scalar; `mask` `(batch,)` says which samples are labelled."""
        ...


class Task(NamedTuple):
    """One task of a problem."""

    head: Callable[[], nn.Module]  # from the encoding of a batch to the prediction
    loss: Loss
    metric: Callable[[], Metric]
    weight: float = 1.0  # of the loss


@dataclass(frozen=True)
class Problem:
    """A data set with all that is needed to learn it.

    Attributes:
        tasks: in the order of the encoder's rows.
        chain: the encoder's modules, one layer factory each.
        loader: batches of a part: `loader(part, batch_size, training)`; for training in a new
            order every epoch, augmented if the config says so, and all of `batch_size`; otherwise
            in order, all samples.
        prepare: fills a new network with pretrained weights, if the config names any.
    """

    tasks: Mapping[str, Task]
    chain: Sequence[LayerFactory]
    loader: Callable[[Part, int, bool], SharedLoader | TaskLoaders]
    prepare: Callable[[nn.Module], None]


def make_problem(config: SupervisedConfig) -> Problem:
    """The data set, encoder and tasks that a config names.

    The test part is opened at once, so that what it lacks is known before anything is trained;
    the other parts when a loader of them is asked for.

    Raises:
        ConfigError: a field does not fit the data set; also when a loader is made, if a part is
            smaller than a training batch.
        CheckpointError: BERT's folder is missing or damaged; a ResNet's file, when it is loaded.
        DataError: the data set's files are missing or not as they should be.
        ExtraError: a package of the extra that the data set needs is missing.
    """
    # Both are made of the types above.
    from conal_rl.supervised.images import image_problem
    from conal_rl.supervised.text import text_problem

    is_text = config.data.set in ("pawsx", "xnli", "panx", "udpos")
    return text_problem(config) if is_text else image_problem(config)


def root_of(config: SupervisedConfig, holds: str) -> Path:
    """The data set's folder, which `holds` describes. Raises ConfigError if none is given."""
    if config.data.root is None:
        raise ConfigError(f"data.root: missing; give --data.root DIR, the folder with {holds}")
    return Path(config.data.root).expanduser()


def chosen_tasks(
    config: SupervisedConfig, known: Sequence[str], usual: Sequence[str]
) -> tuple[str, ...]:
    """The tasks to learn, in order. Raises ConfigError where a given one is not `known`."""
    if config.data.tasks is None:
        return tuple(usual)
    for task in config.data.tasks:
        if task not in known:
            listed = ", ".join(known)
            raise ConfigError(f"data.tasks: got {task!r}, expected some of {listed}")
    return config.data.tasks


def require_full_batch(samples: int, batch_size: int, part: Part) -> None:
    """Raise ConfigError where a part is smaller than a training batch, which is always full."""
    if samples < batch_size:
        names = {"train": "the training part", "both": "training and validation together"}
        which = names.get(part, f"the {part} part")
        raise ConfigError(
            f"agent.batch_size: got {batch_size}, but there are {samples} samples in {which}"
        )
