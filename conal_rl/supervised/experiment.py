"""A supervised run: search on training and validation parts, derive, retrain on both, test."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import get_device
from torch import Tensor

from conal_rl.config import SupervisedConfig
from conal_rl.core import ConalProStage, SearchNetwork, Structure, Tree
from conal_rl.core.bilevel import decay_specific, gate_step
from conal_rl.core.learner import ConflictSettings, Learner
from conal_rl.errors import CheckpointError, TreeError, diverged
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.runs.files import atomic_write
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import PhaseDisplay, make_logger
from conal_rl.runs.trainer import (
    Phase,
    Trainer,
    conflict_rule,
    gumbel_temperature,
    require_compiler,
    search_space,
)
from conal_rl.runs.weights import (
    UNFIT,
    is_finite,
    optimizer_tensors,
    reason,
    require_finite,
    restore_optimizer,
    structure_from_json,
    structure_to_json,
    write_model,
)
from conal_rl.supervised.data.common import Batch
from conal_rl.supervised.evaluation import Loader, mean_loss, print_report, read_reference, test
from conal_rl.supervised.network import (
    MultiTaskNetwork,
    autocast,
    statistics_kept,
    task_losses,
    to_device,
)
from conal_rl.supervised.problem import Part, Problem, make_problem
from conal_rl.supervised.selection import Selection

FORMAT, VERSION = "conal_rl.network", 1


class SupervisedExperiment(Trainer[SupervisedConfig]):
    """A run on a data set whose tasks are learnt together."""

    def __init__(
        self,
        config: SupervisedConfig,
        run: Run,
        phase: Phase,
        problem: Problem,
        structure: Structure,
    ):
        super().__init__(config, run, phase)
        self.problem = problem
        self.tasks = tuple(problem.tasks)
        self.device = get_device(config.device)
        self._autocast = autocast(self.device, config.agent.mixed_precision)
        self._step = 0
        self._first_step = 0  # of the phase
        self._selection = Selection()
        self._forget_losses()
        self._logger: Logger
        self._build(structure)

    @classmethod
    def start(cls, config: SupervisedConfig, out: Path | None) -> SupervisedExperiment:
        """Begin a run in a new folder. Everything that can be refused is, before it exists."""
        problem = make_problem(config)
        read_reference(config, problem.tasks)
        tree = _fixed_tree(config, tuple(problem.tasks))
        structure = tree or search_space(config, tuple(problem.tasks))
        draft = cls(config, Run(Path()), "train" if tree else "search", problem, structure)
        draft._try_out()
        draft._build(structure)
        draft.config = config.with_whole_paths()
        draft.run = Run.create(draft.config, out)
        return draft

    @classmethod
    def resume(cls, run: Run, config: SupervisedConfig) -> SupervisedExperiment:
        """Go on from the newest checkpoint of `run`.

        What `config` changes is kept in the run's config.yaml, for later resumes, where there is
        something left to train.
        """
        config = config.with_whole_paths()
        tensors, state = load_checkpoint(run.folder)
        began = run.config()
        problem = make_problem(config)
        read_reference(config, problem.tasks)
        try:
            if state["tasks"] != list(problem.tasks):
                names = ", ".join(state["tasks"])
                raise CheckpointError(f"{run.folder}: the checkpoint is of tasks {names}")
            structure = structure_from_json(state["structure"])
            training = cls(config, run, state["phase"], problem, structure)
            training._require_same_run(began)
            training._restore(tensors, state)
        except UNFIT as error:
            raise CheckpointError(
                f"{run.folder}: the checkpoint does not fit this config: {reason(error)}"
            ) from error
        training._go_on(began)
        return training

    # What Trainer asks for.

    @property
    def steps(self) -> int:
        """Updates of the whole run so far."""
        return self._step

    @property
    def learners(self) -> dict[str, Learner]:
        """The encoder's."""
        return {"encoder": self.learner}

    def _begin(self) -> None:
        self._logger = make_logger(self.run.folder, self._step)

    def _learn(self, until: int) -> bool:
        settings = self.config
        display = PhaseDisplay(self.phase, self._step, until, self._seconds_left)
        batches = self._batches(self._step - self._first_step)
        validation = self._validation_batches(self._step - self._first_step)
        saved = time.monotonic()
        try:
            while self._step < until and not self._out_of_patience() and self._seconds_left() > 0:
                if self.stop.signal is not None:
                    return False
                self._update(batches, validation)
                self._step += 1
                last = self._step == until
                looks = self._selects and (last or self._step % settings.evaluation.every == 0)
                if looks:
                    self._look_at_validation()
                if last or looks or self._step % settings.log_interval == 0:
                    self._log(display)
                if time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                    self._checkpoint()
                    saved = time.monotonic()
                if display.due():
                    display.show(self._step, self._outcome())
            if self._selects and not self._selection.weights:  # its minutes ended before a look
                self._look_at_validation()
            if self._summed:
                self._log(display)
        finally:
            display.close()
        if self.stop.signal is not None:
            return False
        if self._selects:
            if not self._selection.weights:
                raise diverged("no validation loss has been finite", self._step)
            if not is_finite(self.network):  # the last step's; nothing can go on from them
                self.network.load_state_dict(self._selection.weights)
        return True

    def _next_stage(self) -> bool:
        following = self.learner.next_stage()
        if following is not None:
            before = self.network
            self._build(following)
            self.network.inherit_from(before)
        return following is not None

    def _derive_trees(self) -> tuple[Tree, ...]:
        return (self.learner.tree(),)

    def _train_trees(self, trees: tuple[Tree, ...]) -> None:
        self._first_step = self._step
        before = self.network
        self._build(trees[0])
        if self.config.search.keep_weights:
            self.network.inherit_from(before)

    def _trees_json(self, trees: tuple[Tree, ...]) -> str:
        return trees[0].to_json()

    def _checkpoint(self) -> None:
        self._mean_losses()
        require_finite(self.network, self._step)
        optimizers = self._optimizers()
        groups = {
            "network": dict(self.network.state_dict()),
            "random": {"torch": torch.get_rng_state()},
            "loss_weights": self.learner.loss_weights.state_dict(),
            **{f"optimizer_{n}": optimizer_tensors(o) for n, o in optimizers.items()},
        }
        if self.device.type == "cuda":
            groups["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        if self._selection.weights:
            groups["best"] = self._selection.weights
        state: dict[str, Any] = {
            **self._progress(),
            "tasks": list(self.tasks),
            "structure": structure_to_json(self.structure),
            "step": self._step,
            "first_step": self._first_step,
            "losses": {"sums": self._sums.tolist(), "summed": self._summed},
            "best": self._selection.state(),
            "scalers": {name: scaler.state_dict() for name, scaler in self._scalers().items()},
        }
        if self.learner.noticing is not None:
            groups["conflict"], state["noticing"] = self.learner.noticing.state()
        save_checkpoint(self.run.folder, self._step, groups, state)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "tasks": list(self.tasks),
            "structure": structure_to_json(self.structure),
            "steps": self._step,
        }
        selected = self._selection.weights if self.phase == "done" else {}
        write_model(self.run.folder / "model", about, selected or self.network.state_dict())

    def _evaluate_finally(self) -> None:
        seconds = self._elapsed()
        if self._step == self._first_step:
            print("there was no update: what is tested has learnt nothing", file=sys.stderr)
        if self._selection.weights:  # not before: from the last ones training can go on
            self.network.load_state_dict(self._selection.weights)
        report = test(self.network, self.problem, self.config, self.device)
        report |= {
            "steps": self._step,
            "search_steps": self.search_steps,
            "seconds": round(seconds, 1),
            "search_seconds": round(self.search_seconds, 1),
            "selected_step": self._selection.step if self._selection.weights else None,
        }
        atomic_write(self.run.evaluation_path, json.dumps(report, indent=2) + "\n")
        print_report(report)

    # The network and its steps.

    def _build(self, structure: Structure) -> None:
        """A new network, with optimisers that remember nothing."""
        agent, search = self.config.agent, self.config.search
        stream = np.random.SeedSequence([self.config.seed, self._step])
        torch.manual_seed(int(stream.generate_state(1)[0]))
        self.structure = structure
        self.network = MultiTaskNetwork(self.problem, structure).to(self.device)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        momentum = {"momentum": 0.9} if agent.optimizer == "sgd" else {}
        self.optimizer: torch.optim.Optimizer = kinds[agent.optimizer](
            self.network.weights(),
            lr=agent.learning_rate,
            weight_decay=agent.weight_decay,
            **momentum,
        )
        encoder = self.network.encoder
        if search.specific_decay and isinstance(encoder, SearchNetwork):
            decay_specific(self.optimizer, encoder.specific_weights(), search.specific_decay)
        gates = self.network.gates
        self.gate_optimizer = (
            None if gates is None else torch.optim.Adam([gates], lr=search.gate_learning_rate)
        )
        scales = agent.mixed_precision and self.device.type == "cuda"
        self._gate_scaler = torch.amp.GradScaler("cuda") if scales else None
        searching = not isinstance(structure, Tree)
        rule = conflict_rule(self.config, searching)
        self.learner = Learner(
            self.network.encoder,
            self.optimizer,
            structure,
            self.tasks,
            ConflictSettings(rule, search.margin, search.smoothing),
            hold=agent.conflict_rule != "ignore",
            weighting=agent.weighting,
            scaler=torch.amp.GradScaler("cuda") if scales else None,
        )
        # Dynamo breaks the graph at every module whose tasks' gradients are captured.
        compiles = agent.compile and self.learner.rule is None
        self._forward = torch.compile(self.network) if compiles else self.network

    def _try_out(self) -> None:
        """Read first batches and open what is needed later: what fails, fails before the run."""
        for task in self.problem.tasks.values():
            task.metric()  # may lack a package
        if self.config.agent.compile:
            require_compiler(self.device)
        self._losses(next(self._batches()))
        if self.network.gates is not None:
            next(self._validation_batches())
        if self.config.agent.select:
            next(iter(self._looks()))
        elif self.phase == "search":
            self.problem.loader("both", self.config.agent.batch_size, True)

    def _update(self, batches: Iterator[Batch], validation: Iterator[Batch]) -> None:
        """One step of the weights, then, in a search, one of the gates."""
        self.network.train()
        self._set_rates()
        with self.learner.capture():
            losses = self._losses(next(batches))
        self.learner.step(losses, self.config.agent.max_grad_norm)
        self._sums += losses.detach()
        self._summed += 1
        gates, every = self.network.gates, self.config.search.gate_every
        if gates is not None and (self._step - self._first_step) % every == 0:
            assert self.gate_optimizer is not None
            with statistics_kept(self.network):
                loss = self._losses(next(validation)).sum()
            gate_step(loss, [gates], self.gate_optimizer, self._gate_scaler)

    def _losses(self, cpu_batch: Batch) -> Tensor:
        """Of each task, `(task,)`."""
        batch = to_device(cpu_batch, self.device)
        with self._autocast:
            predictions = self._forward(batch.inputs)
        return task_losses(self.problem, predictions, batch)

    def _set_rates(self) -> None:
        """The weights' step size, and the temperature of sampled gates."""
        config, done = self.config, float(self._step - self._first_step)
        last = config.search.steps if self.phase == "search" else config.total_steps
        length = float(max(last - self._first_step, 1))
        if isinstance(self.structure, ConalProStage):  # stages are equally long
            length /= config.agent.depth
            done -= (self.structure.number - 1) * length
        done = max(done, 0.0)
        left = max(1 - done / length, 0.0)
        rate = config.agent.learning_rate
        if config.agent.schedule == "halve":
            rate *= 0.5 ** (done // config.agent.halve_every)
        elif config.agent.schedule == "poly":
            rate *= left**0.9
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        temperature = gumbel_temperature(config)
        if temperature is not None and isinstance(self.network.encoder, SearchNetwork):
            start, end = temperature
            self.network.encoder.gumbel_temperature = end + (start - end) * left

    def _batches(self, first: int = 0) -> Iterator[Batch]:
        part: Part = "both"
        if self.phase == "search" or self.config.agent.select:
            part = "train"
        return self.problem.loader(part, self.config.agent.batch_size, True).endless(first)

    def _validation_batches(self, first: int = 0) -> Iterator[Batch]:
        """Those that the gates learn from, after `first` steps of the search."""
        if self.network.gates is None:
            return iter(())
        taken = -(-first // self.config.search.gate_every)
        return self.problem.loader("validation", self.config.agent.batch_size, True).endless(taken)

    # Selection, logging, state.

    @property
    def _selects(self) -> bool:
        return self.phase == "train" and self.config.agent.select

    def _looks(self) -> Loader:
        return self.problem.loader("validation", self.config.evaluation.batch_size, False)

    def _look_at_validation(self) -> None:
        loss = mean_loss(self.network, self.problem, self._looks(), self.device, self._autocast)
        self._selection.look(loss, self._step, self.network)
        self._logger.record("validation/loss", loss)

    def _out_of_patience(self) -> bool:
        patience = self.config.agent.patience
        return self._selects and patience is not None and self._selection.looks_since >= patience

    def _mean_losses(self) -> dict[str, float]:
        """Since the last line of the log. Raises ConalError if one is not finite."""
        means = dict(zip(self.tasks, (self._sums / max(self._summed, 1)).tolist(), strict=True))
        for task, mean in means.items():
            if not math.isfinite(mean):
                raise diverged(f"the loss of {task} is {mean}", self._step)
        return means

    def _forget_losses(self) -> None:
        self._sums, self._summed = torch.zeros(len(self.tasks), device=self.device), 0

    def _log(self, display: PhaseDisplay) -> None:
        for task, mean in self._mean_losses().items():
            self._logger.record(f"loss/{task}", mean)
        display.line(self._step, self._outcome())
        self._forget_losses()
        self._logger.record("train/learning_rate", self.optimizer.param_groups[0]["lr"])
        self._logger.record("time/total_timesteps", self._step)
        self._logger.record("time/phase_steps_per_s", display.rate(self._step))
        for tag, value in self.learner.scalars("encoder").items():
            self._logger.record(tag, value, exclude="csv")
        self._logger.dump(self._step)

    def _outcome(self) -> str:
        loss = float(self._sums.sum()) / max(self._summed, 1)
        best = (
            f", best validation loss {self._selection.loss:.4f}" if self._selection.weights else ""
        )
        return f"loss {loss:.4f}{best}"

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        named = {"weights": self.optimizer, "gates": self.gate_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    def _scalers(self) -> dict[str, torch.amp.GradScaler]:
        named = {"weights": self.learner.scaler, "gates": self._gate_scaler}
        return {name: scaler for name, scaler in named.items() if scaler is not None}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self._restore_progress(state)
        self._step, self._first_step = state["step"], state["first_step"]
        self._sums += torch.tensor(state["losses"]["sums"], device=self.device)
        self._summed = state["losses"]["summed"]
        self.network.load_state_dict(tensors["network"])
        self.learner.loss_weights.load_state_dict(tensors["loss_weights"])
        for name, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, tensors[f"optimizer_{name}"])
        for name, scaler in self._scalers().items():
            if name in state["scalers"]:
                scaler.load_state_dict(state["scalers"][name])
        if self.learner.noticing is not None:
            self.learner.noticing.restore(tensors["conflict"], state["noticing"])
        if state["best"] is not None:
            self._selection.restore(state["best"], tensors["best"])
        torch.set_rng_state(tensors["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in tensors["random"]:
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)


def _fixed_tree(config: SupervisedConfig, tasks: tuple[str, ...]) -> Tree | None:
    """The tree that `agent.tree` names, or None where it is to be searched."""
    depth = config.agent.depth
    if config.agent.tree == "search":
        return None
    if config.agent.tree == "shared":
        return Tree.shared(tasks, depth)
    if config.agent.tree == "independent":
        return Tree.independent(tasks, depth)
    path = Path(config.agent.tree)
    try:
        return Tree.load(path).check(tasks, depth)
    except TreeError as error:
        raise TreeError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
