"""A run's phases, whatever it learns: search, derive, train, evaluate, in one budget."""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

import torch
from rich.console import Console

from conal_rl.config import RunConfig
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Rule, Search, Tree
from conal_rl.core.learner import Learner
from conal_rl.errors import ConfigError
from conal_rl.runs.files import atomic_write
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import StopRequest

Phase = Literal["search", "train", "done"]
C = TypeVar("C", bound=RunConfig)
_OF_THE_CLOCK = ("seconds", "search_steps", "search_seconds")
Gumbel = tuple[float, float]  # temperature at the start and at the end
_OF_A_RUN = {
    "seed",
    *(f"agent.{name}" for name in ("tree", "widths", "layer_norm", "optimizer")),
    *(f"agent.{name}" for name in ("n_steps", "gamma")),
    *(f"agent.{name}" for name in ("critic", "critic_bins", "critic_range", "critic_linear_to")),
    *(f"agent.{name}" for name in ("critics", "actor_averaging", "conflict_rule", "weighting")),
    *(f"search.{name}" for name in ("method", "rule", "purely_specific", "copies", "gumbel")),
    *(f"search.{name}" for name in ("specific_layers", "specific_decay", "validation_share")),
    *("agent.select", "agent.strides", "agent.dilated", "agent.aspp_rates"),
    *("data.set", "data.size"),
}
"""Fields that make a run what it is, whenever it is gone on with."""


class Trainer(ABC, Generic[C]):
    """One run: which phase it is in, and its folder. A subclass says how it learns.

    Attributes:
        seconds: wall-clock of earlier processes.
    """

    def __init__(self, config: C, run: Run, phase: Phase):
        self.config, self.run = config, run
        self.phase: Phase = phase
        self.seconds = 0.0
        self.search_steps = self.search_seconds = 0.0
        self.stop = StopRequest()
        self._clock = time.monotonic()

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the whole run so far."""

    @property
    @abstractmethod
    def learners(self) -> dict[str, Learner]:
        """What learns a tree now, by the network's name."""

    @abstractmethod
    def _begin(self) -> None:
        """Open the log."""

    @abstractmethod
    def _learn(self, until: int) -> bool:
        """Train until `until` steps of the whole run; False if stopped before."""

    @abstractmethod
    def _next_stage(self) -> bool:
        """Go on with CoNAL-Pro's next stage; False where there is none to come."""

    @abstractmethod
    def _derive_trees(self) -> tuple[Tree, ...]:
        """The trees of the search, in the order of the learners."""

    @abstractmethod
    def _train_trees(self, trees: tuple[Tree, ...]) -> None:
        """Go on with networks of fixed trees."""

    @abstractmethod
    def _trees_json(self, trees: tuple[Tree, ...]) -> str:
        """What tree.json holds."""

    @abstractmethod
    def _checkpoint(self) -> None:
        """Write all that going on needs."""

    @abstractmethod
    def _evaluate_finally(self) -> None:
        """Write evaluation.json and print its table."""

    def run_phases(self) -> int:
        """Do what is left of search, training and evaluation; return the exit status."""
        with self.stop.watching():
            self._begin()
            if self.phase == "train" and not self.run.tree_path.exists():
                self._write_trees(tuple(learner.tree() for learner in self.learners.values()))
            if self.phase == "search" and self._search():
                self._derive()
                if self.config.search.only:
                    return 0
            if self.phase == "train" and self._learn(self.config.total_steps):
                self.phase = "done"
                self._report_conflicts("training.json")
                self._checkpoint()
            if self.stop.signal is not None:
                if self.phase != "done":
                    self._checkpoint()
                self._say_how_to_go_on()
                return 128 + self.stop.signal
        try:
            self._evaluate_finally()
        except KeyboardInterrupt:
            self._say_how_to_go_on()
            raise
        return 0

    def _require_same_run(self, began: RunConfig) -> None:
        """Raise ConfigError where this would be another run, or said to have been one."""
        for path, (now, then) in self.config.differences(began).items():
            searched = path.startswith("search.") and self.phase != "search"
            if path in _OF_A_RUN or (searched and path != "search.only"):
                raise ConfigError(
                    f"{path}: got {now!r}, but {self.run.folder} began with {then!r}; "
                    "start a new run"
                )

    def _go_on(self, began: RunConfig) -> None:
        """Train on where there is something left, and keep what the config changes for that."""
        if self.phase == "done" and self.steps < self.config.total_steps:
            self.phase = "train"
        if self.phase != "done":
            atomic_write(self.run.config_path, self.config.to_yaml())
            return
        changed = self.config.differences(began)
        idle = [p for p in changed if p.startswith(("total_steps", "agent.", "search.", "env."))]
        if idle:
            print(
                f"{self.run.folder} has finished its {self.steps:,} steps: it is evaluated, and "
                f"{', '.join(idle)} change nothing unless total_steps is larger",
                file=sys.stderr,
            )

    def _search(self) -> bool:
        """All of the search, which for CoNAL-Pro comes in stages; False if stopped before."""
        steps, stages = self.config.search.steps, self.config.agent.depth
        while True:
            structures = [learner.structure for learner in self.learners.values()]
            numbers = [s.number for s in structures if isinstance(s, ConalProStage)]
            if not self._learn(steps * max(numbers) // stages if numbers else steps):
                return False
            self._checkpoint()  # what comes may fail: a disk may be full
            if numbers:
                self._report_conflicts(f"search-stage-{max(numbers)}.json")
            if not self._next_stage():
                return True
            self._checkpoint()

    def _derive(self) -> None:
        """From the search's gates to networks of fixed trees."""
        trees = self._derive_trees()
        self.search_steps, self.search_seconds = self.steps, self._elapsed()
        self._report_conflicts("search.json")
        self._write_trees(trees)
        console = Console(stderr=True)
        for name, tree in zip(self.learners, trees, strict=True):
            console.print(f"[bold]{name}[/bold]: {tree}", highlight=False, soft_wrap=True)
        if not self.config.search.only:
            self.phase = "train"
            self._train_trees(trees)
        self._checkpoint()

    def _report_conflicts(self, name: str) -> None:
        """Gates and conflicts since the phase, or the stage of a search, began."""
        searching = self.phase == "search"
        if any(learner.noticing for learner in self.learners.values()):
            report = {
                "steps": self.steps,
                "tasks": next(iter(self.learners.values())).tasks,
                **{network: learner.report() for network, learner in self.learners.items()},
                "method": self.config.search.method if searching else self.config.agent.tree,
                "seconds": self._elapsed(),
            }
            atomic_write(self.run.folder / name, json.dumps(report) + "\n")

    def _write_trees(self, trees: tuple[Tree, ...]) -> None:
        from matplotlib.figure import Figure  # not above: it would slow every start

        atomic_write(self.run.tree_path, self._trees_json(trees))
        figure = Figure(figsize=(7 * len(trees), 6), layout="constrained")
        axes = figure.subplots(1, len(trees), squeeze=False)[0]
        for panel, tree, name in zip(axes, trees, self.learners, strict=True):
            tree.draw(panel, title=name)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        atomic_write(self.run.folder / "tree.png", image.getvalue())

    def _progress(self) -> dict[str, Any]:
        """How far the phases are, as a checkpoint's state."""
        clock = {name: getattr(self, name) for name in _OF_THE_CLOCK}
        return {"phase": self.phase, **clock, "seconds": self._elapsed()}

    def _restore_progress(self, state: Mapping[str, Any]) -> None:
        for name in _OF_THE_CLOCK:
            setattr(self, name, state[name])

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._clock

    def _seconds_left(self) -> float:
        """After which training has to end, whatever total_steps says."""
        if self.config.minutes is None or self.phase != "train":
            return math.inf
        return 60 * self.config.minutes - self._elapsed()

    def _say_how_to_go_on(self) -> None:
        print(
            f"stopped at {self.steps:,} steps; go on with: "
            f"python -m conal_rl.train --resume {shlex.quote(str(self.run.folder))}",
            file=sys.stderr,
        )


def require_compiler(device: torch.device) -> None:
    """Raise ConfigError where torch.compile does not work."""
    from torch._dynamo.exc import TorchDynamoException  # not above: it takes a second

    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(f"agent.compile: torch.compile does not work here: {reason}") from error


def search_space(config: RunConfig, tasks: tuple[str, ...]) -> Search:
    """What the search begins in.

    Raises:
        ConfigError: there is only one task.
    """
    search = config.search
    if len(tasks) < 2:
        raise ConfigError(
            f"agent.tree: got 'search', but {tasks[0]} is the only task and has nobody to share "
            "with; give independent"
        )
    if search.method == "ltb" or not search.purely_specific:
        return LTBSearch(search.copies)
    if search.method == "conal_pro":
        return ConalProStage.first(len(tasks))
    if search.method == "recon":
        return ReconSearch(search.specific_layers)
    return ConalSearch()


def conflict_rule(config: RunConfig, searching: bool) -> Rule:
    """The rule that conflicts are treated by, in a search or on fixed trees."""
    if searching:
        return config.search.rule if config.search.method in ("conal", "conal_pro") else "none"
    return "none" if config.agent.conflict_rule == "ignore" else config.agent.conflict_rule


def gumbel_temperature(config: RunConfig) -> Gumbel | None:
    """The schedule of straight-through Gumbel gates; None for the softmax."""
    search = config.search
    return search.temperature if search.gumbel or search.method == "ltb" else None
