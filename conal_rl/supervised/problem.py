"""What a supervised experiment learns: tasks, encoder, batches, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from conal_rl.core.layers import LayerFactory
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
