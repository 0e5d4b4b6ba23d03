"""A run from its first step to its evaluation, for any experiment."""

from __future__ import annotations

import io
import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from conal_rl.config import RunConfig, marked
from conal_rl.core import ConalProStage, Tree
from conal_rl.core.findings import findings
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.files import atomic_write, read_text, write_json
from conal_rl.runs.checkpoints import load_checkpoint, newest_step, save_checkpoint
from conal_rl.runs.experiment import Experiment
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import Session, evaluation_bar, log_final, make_logger
from conal_rl.signals import StopRequest

Phase = Literal["search", "train", "done"]


class Trainer:
    """One run: its folder, its experiment, and its phase.

    Attributes:
        phase: search, then train, then done; a run on fixed trees begins with train.
        search_steps: steps of the search; 0 before its end.
        search_seconds: wall-clock seconds of the search; 0 before its end.
    """

    def __init__(self, run: Run, experiment: Experiment, phase: Phase):
        self.run, self.experiment, self.config = run, experiment, experiment.config
        self.phase: Phase = phase
        self.search_steps, self.search_seconds = 0, 0.0
        self._seconds_before = 0.0  # seconds of earlier processes
        self._began = time.monotonic()
        self._stop = StopRequest()

    @classmethod
    def start(
        cls, experiment: Experiment, out: Path | None, runs: Path, label: str | None = None
    ) -> Trainer:
        """Begin a run in the new folder `out`, or in one with this label that is made in `runs`.

        Raises:
            ConalError: the experiment or the folder cannot be made. No folder is left.
        """
        experiment.start()
        phase: Phase = "search" if experiment.config.agent.tree == "search" else "train"
        run = Run.create(experiment.config, out, experiment.precision, runs, label)
        return cls(run, experiment, phase)

    @classmethod
    def resume(cls, run: Run, experiment: Experiment) -> Trainer:
        """Continue from the newest checkpoint of `run`.

        If steps are left to train, config.yaml is rewritten with the new config.

        Raises:
            ConfigError: the config describes a different run.
            ConalError: the checkpoint is damaged, or belongs to a different config.
        """
        tensors, state = load_checkpoint(run.folder)
        began = run.config().with_whole_paths()
        try:
            trainer = cls(run, experiment, state["phase"])
            trainer._restore_progress(state)
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{run.folder}: state.json: got a damaged file ({error}), expected a run's state. "
                "Start a new run"
            ) from error
        trainer._require_same_run(began)
        finished = (
            state["phase"] == "done" and newest_step(run.folder) >= trainer.config.total_steps
        )
        changed = "agent.mixed_precision" in trainer.config.differences(began) and not finished
        recorded = None if changed else run.precision()
        try:
            experiment.restore(tensors, state, recorded)
        except CheckpointError as error:
            raise CheckpointError(f"{run.folder}: {error}") from error
        trainer._continue(began)
        if recorded != "float16" and not finished:  # it stays recorded on a CPU, which lacks it
            run.record_precision(experiment.precision)
        return trainer

    def run_phases(self) -> int:
        """Run the remaining phases: search, training, evaluation. Return the exit status."""
        with self._stop.watching():
            config = read_text(self.run.config_path)
            self._logger = make_logger(self.run.folder, self.experiment.steps, config)
            print(f"The run is in {self.run.folder}.", file=sys.stderr)
            if self.phase == "train" and not self.run.tree_path.exists():
                self._write_trees(tuple(x.tree() for x in self.experiment.learners.values()))
            if self.phase == "search" and self._search():
                self._derive()
                if self.config.search.only:
                    self._say_what_is_next()
                    return 0
            if self.phase == "train" and self._learn(self.config.total_steps):
                self.phase = "done"
                self._report_conflicts("training.json")
                self._checkpoint()
            if self._stop.signal is not None and self.phase != "done":
                self._checkpoint()
        if self._stop.signal is not None:
            self._say_how_to_resume()
            return 128 + self._stop.signal
        try:
            self._evaluate()
        except KeyboardInterrupt:
            self._say_how_to_resume()
            raise
        return 0

    def _search(self) -> bool:
        """Search; CoNAL-Pro does so in stages. Returns False if the user stopped it."""
        steps, stages = self.config.search.steps, self.config.agent.depth
        while True:
            structures = [learner.structure for learner in self.experiment.learners.values()]
            numbers = [s.number for s in structures if isinstance(s, ConalProStage)]
            if not self._learn(steps * max(numbers) // stages if numbers else steps):
                return False
            self._checkpoint()  # the next writes may fail, for example on a full disk
            if numbers:
                self._report_conflicts(f"search-stage-{max(numbers)}.json")
            if not self.experiment.next_stage():
                return True
            self._checkpoint()

    def _derive(self) -> None:
        """Turn the gates of the search into networks of fixed trees."""
        trees = self.experiment.derive()
        self.search_steps, self.search_seconds = self.experiment.steps, self._elapsed()
        self._report_conflicts("search.json")
        self._write_trees(trees)
        console = Console(stderr=True)
        for name, tree in zip(self.experiment.learners, trees, strict=True):
            console.print(f"[bold]{name}[/bold]: {tree}", highlight=False, soft_wrap=True)
        if not self.config.search.only:
            self.phase = "train"
            self.experiment.train_trees(trees)
        self._checkpoint()

    def _learn(self, until: int) -> bool:
        """Train until `until` steps of the whole run. Returns False if the user stopped it."""
        session = Session(
            phase=self.phase,
            step=self.experiment.steps,
            until=until,
            total=until if self.config.search.only else self.config.total_steps,
            logger=self._logger,
            stop=self._stop,
            elapsed=self._elapsed,
            seconds_left=self._seconds_left,
            save=self._checkpoint,
            save_seconds=60 * self.config.checkpoint_minutes,
        )
        try:
            self.experiment.learn(session)
        finally:
            session.display.close()
        return not session.stopped

    def _evaluate(self) -> None:
        """Write evaluation.json and print its table."""
        seconds = self._elapsed()
        with evaluation_bar(self.experiment.counted) as show:
            report, table = self.experiment.evaluate(show)
        report |= {
            "steps": self.experiment.steps,
            "search_steps": self.search_steps,
            "seconds": round(seconds, 1),
            "search_seconds": round(self.search_seconds, 1),
        }
        write_json(self.run.evaluation_path, report)
        log_final(self._logger, report, self.experiment.steps)
        Console().print(table)
        self._say_what_is_next()

    def _say_what_is_next(self) -> None:
        folder, module = shlex.quote(str(self.run.folder)), "python -m conal_rl"
        searched = (self.run.folder / "search.json").exists()
        figures = [*self.experiment.figures, *["conflicts"] * searched]
        first = f"{module}.evaluate {folder}"
        if self.config.search.only:
            first = f"{module}.train --resume {folder} --search.no-only"
        print(
            f"The run is in {self.run.folder}. Next:",
            first,
            *(f"{module}.report {figure} {folder}" for figure in figures),
            f"tensorboard --logdir {folder}",
            sep="\n  ",
            file=sys.stderr,
        )

    def _report_conflicts(self, name: str) -> None:
        """Write gates and conflicts since the start of the phase, or of the search's stage."""
        learners = self.experiment.learners
        if any(learner.noticing for learner in learners.values()):
            searching = self.phase == "search"
            report = {
                "steps": self.experiment.steps,
                "tasks": next(iter(learners.values())).tasks,
                **{network: findings(learner) for network, learner in learners.items()},
                "method": self.config.search.method if searching else self.config.agent.tree,
                "seconds": self._elapsed(),
            }
            write_json(self.run.folder / name, report, indent=None)

    def _write_trees(self, trees: tuple[Tree, ...]) -> None:
        from matplotlib.figure import Figure  # imported here because it would slow every start

        atomic_write(self.run.tree_path, self.experiment.trees_json(trees))
        figure = Figure(figsize=(7 * len(trees), 6), layout="constrained")
        figure.suptitle(self.run.folder.name, parse_math=False)
        axes = figure.subplots(1, len(trees), squeeze=False)[0]
        for panel, tree, name in zip(axes, trees, self.experiment.learners, strict=True):
            tree.draw(panel, title=name)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        atomic_write(self.run.folder / "tree.png", image.getvalue())

    def _checkpoint(self) -> None:
        tensors, state = self.experiment.state()
        progress = {
            "phase": self.phase,
            "seconds": self._elapsed(),
            "search_steps": self.search_steps,
            "search_seconds": self.search_seconds,
        }
        save_checkpoint(self.run.folder, self.experiment.steps, tensors, progress | state)
        self.experiment.save_weights(self.run.folder / "model", finished=self.phase == "done")

    def _restore_progress(self, state: Mapping[str, Any]) -> None:
        self._seconds_before = float(state["seconds"])
        self.search_steps = int(state["search_steps"])
        self.search_seconds = float(state["search_seconds"])

    def _require_same_run(self, began: RunConfig) -> None:
        """Raise ConfigError if the config changes a field that a resume must keep."""
        fixed = marked(type(self.config), "changes_run")
        for path, (now, then) in self.config.differences(began).items():
            searched = path.startswith("search.") and self.phase != "search"
            if path == "search.only" and not now:
                continue  # the rest of a run that was a search only
            if path in fixed or searched:
                raise ConfigError(
                    f"{path}: got {now!r}, expected {then!r}, which {self.run.folder} began with. "
                    "Start a new run"
                )

    def _continue(self, began: RunConfig) -> None:
        """Return to training if steps are left, and rewrite config.yaml for it."""
        if self.phase == "done" and self.experiment.steps < self.config.total_steps:
            self.phase = "train"
        if self.phase != "done":
            atomic_write(self.run.config_path, self.config.to_yaml())
            return
        changed = self.config.differences(began)
        idle = [p for p in changed if p.startswith(("total_steps", "agent.", "search.", "env."))]
        if idle:
            print(
                f"{', '.join(idle)}: no effect, because all {self.experiment.steps:,} steps of "
                f"{self.run.folder} are done. Only the evaluation follows. Raise total_steps.",
                file=sys.stderr,
            )

    def _elapsed(self) -> float:
        """Return the wall-clock seconds of the whole run so far."""
        return self._seconds_before + time.monotonic() - self._began

    def _seconds_left(self) -> float:
        """Return the seconds until `minutes` end training; infinity without `minutes`."""
        if self.config.minutes is None or self.phase != "train":
            return math.inf
        return 60 * self.config.minutes - self._elapsed()

    def _say_how_to_resume(self) -> None:
        print(
            f"The run stopped at {self.experiment.steps:,} steps. Resume it with: "
            f"python -m conal_rl.train --resume {shlex.quote(str(self.run.folder))}",
            file=sys.stderr,
        )
