"""What a run trains: the interface that the trainer drives, and what every experiment needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import RenderableType
from torch import Tensor

from conal_rl.config import RunConfig
from conal_rl.core import Search, Tree
from conal_rl.core.learner import Learner
from conal_rl.device import EMULATED, choose_precision, has_bfloat16
from conal_rl.errors import ConfigError
from conal_rl.literals import Precision
from conal_rl.runs.progress import Session
from conal_rl.runs.structures import first_structure

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by group and name, as a checkpoint holds them."""


class Experiment(Protocol):
    """Networks, and the data that they learn from.

    A constructor takes a config and makes envs or opens a data set. Then either `start` or
    `restore` makes the networks.
    """

    @property
    def config(self) -> RunConfig:
        """The config, as the run's folder keeps it."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the whole run so far."""
        ...

    @property
    def precision(self) -> Precision:
        """The precision of the networks, decided once per run."""
        ...

    @property
    def learners(self) -> Mapping[str, Learner]:
        """The learners of the current trees, by the network's name."""
        ...

    def start(self) -> None:
        """Make the first networks. Errors that could come later are raised now.

        Raises:
            ConalError: the run cannot work; nothing has been written yet.
        """
        ...

    def restore(
        self, tensors: Tensors, state: Mapping[str, Any], precision: Precision | None
    ) -> None:
        """Make the networks of a checkpoint and fill them.

        Args:
            tensors: by group and name, as `state` returned them.
            state: what `state` returned.
            precision: the recorded precision of the run; None: it is decided again.

        Raises:
            ConalError: the checkpoint is damaged, or belongs to a different config.
        """
        ...

    def learn(self, session: Session) -> None:
        """Train up to `session.until` steps, or until the user stops it or its time is over."""
        ...

    def next_stage(self) -> bool:
        """Move to CoNAL-Pro's next stage; returns False if no stage is left."""
        ...

    def derive(self) -> tuple[Tree, ...]:
        """Return the trees of the search, in the order of the learners."""
        ...

    def train_trees(self, trees: tuple[Tree, ...]) -> None:
        """Continue with networks of these trees."""
        ...

    def trees_json(self, trees: tuple[Tree, ...]) -> str:
        """Return the content of tree.json."""
        ...

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return all that `restore` needs: tensors, and JSON types.

        Raises:
            ConalError: training has diverged, and an older checkpoint must stay.
        """
        ...

    def save_weights(self, folder: Path, finished: bool) -> None:
        """Write the weights that evaluation reads; `finished` says that training is over."""
        ...

    def evaluate(
        self, progress: Callable[[int, int], None]
    ) -> tuple[dict[str, Any], RenderableType]:
        """Return the content of evaluation.json, and a table to print.

        `progress` takes how many of `counted` are done and how many are wanted.
        """
        ...

    @property
    def counted(self) -> str:
        """What an evaluation counts: episodes or batches."""
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """The commands of `conal_rl.report` that draw a finished run of this kind."""
        ...


def decide_precision(
    device: torch.device,
    mixed: bool,
    recorded: Precision | None = None,
    on_cuda: Precision = "bfloat16",
) -> Precision:
    """Return the precision of a run, and print one line if a user may expect a different one.

    Args:
        device: the device of the run.
        mixed: the run's `agent.mixed_precision`.
        recorded: the precision of the run so far, which it keeps.
        on_cuda: the half precision of CUDA devices.
    """
    precision = recorded or choose_precision(mixed, device, on_cuda)
    if precision == "float16" and device.type != "cuda":
        precision = choose_precision(mixed, device, on_cuda)
    if precision == "bfloat16" and not has_bfloat16(device):
        print(
            f"agent.mixed_precision: {EMULATED}. The run began with it. Give "
            "--agent.no-mixed-precision for single precision.",
            file=sys.stderr,
        )
    elif mixed and precision == "single":
        print(
            "agent.mixed_precision: the run computes in single precision, because this machine, or "
            "the one that it began on, lacks instructions for bfloat16.",
            file=sys.stderr,
        )
    return precision


def search_space(config: RunConfig, tasks: tuple[str, ...]) -> Search:
    """Return the structure that a search begins with.

    Raises:
        ConfigError: there is only one task.
    """
    if len(tasks) < 2:
        raise ConfigError(
            f"agent.tree: got 'search', expected a fixed tree, because {tasks[0]} is the only task "
            "and nothing can be shared. Give independent"
        )
    return first_structure(config.search, len(tasks))


def require_compiler(device: torch.device) -> None:
    """Raise ConfigError if torch.compile does not work on this machine."""
    from torch._dynamo.exc import TorchDynamoException  # imported here because it takes a second

    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(
            f"agent.compile: got True, expected False here, because torch.compile fails "
            f"({reason}). Leave it out"
        ) from error
