"""What a run trains: the interface that the trainer drives, and what every experiment needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import RenderableType
from torch import Tensor

from conal_rl.config import RunConfig
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Rule, Search, Tree
from conal_rl.core.learner import Learner
from conal_rl.errors import ConfigError
from conal_rl.runs.progress import Session

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by group and name, as a checkpoint holds them."""
Gumbel = tuple[float, float]
"""Temperature at the start and at the end of a search."""


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
    def learners(self) -> Mapping[str, Learner]:
        """What learns a tree now, by the network's name."""
        ...

    def start(self) -> None:
        """Make the first networks, and refuse whatever would fail later.

        Raises:
            ConalError: the run cannot work; nothing has been written yet.
        """
        ...

    def restore(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Make the networks of a checkpoint and fill them.

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
        """Write the weights that evaluation reads; `finished`: the training is over."""
        ...

    def evaluate(self) -> tuple[dict[str, Any], RenderableType]:
        """Return what evaluation.json says of the network, and a table to print."""
        ...


def search_space(config: RunConfig, tasks: tuple[str, ...]) -> Search:
    """Return the structure that a search begins with.

    Raises:
        ConfigError: there is only one task.
    """
    search = config.search
    if len(tasks) < 2:
        raise ConfigError(
            f"agent.tree: got 'search', expected a fixed tree, because {tasks[0]} is the only task "
            "and nothing can be shared. Give independent."
        )
    if search.method == "ltb" or not search.purely_specific:
        return LTBSearch(search.copies)
    if search.method == "conal_pro":
        return ConalProStage.first(len(tasks))
    if search.method == "recon":
        return ReconSearch(search.specific_layers)
    return ConalSearch()


def conflict_rule(config: RunConfig, searching: bool) -> Rule:
    """Return the rule that conflicts are treated by, in a search or on fixed trees."""
    if searching:
        return config.search.rule if config.search.method in ("conal", "conal_pro") else "none"
    return "none" if config.agent.conflict_rule == "ignore" else config.agent.conflict_rule


def gumbel_temperature(config: RunConfig) -> Gumbel | None:
    """Return the schedule of straight-through Gumbel gates; None stands for the softmax."""
    search = config.search
    return search.temperature if search.gumbel or search.method == "ltb" else None


def require_compiler(device: torch.device) -> None:
    """Raise ConfigError if torch.compile does not work on this machine."""
    from torch._dynamo.exc import TorchDynamoException  # not above: it takes a second

    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(
            f"agent.compile: got True, but torch.compile does not work here ({reason}). Leave it "
            "out."
        ) from error
