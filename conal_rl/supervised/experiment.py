"""A supervised run: search on training and validation parts, derive, retrain on both, test."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import get_device
from torch import Tensor

from conal_rl.config import SupervisedConfig
from conal_rl.core import ConalProStage, Structure, Tree
from conal_rl.core.findings import log_scalars
from conal_rl.core.learner import Learner
from conal_rl.core.optimizers import set_learning_rate
from conal_rl.errors import CheckpointError, ConfigError, TreeError, diverged
from conal_rl.files import user_path
from conal_rl.literals import Precision
from conal_rl.runs.experiment import (
    Tensors,
    decide_precision,
    require_compiler,
    search_space,
)
from conal_rl.runs.progress import Session
from conal_rl.runs.structures import learner_settings, require_copies_to_fit
from conal_rl.runs.weights import (
    UNFIT,
    is_finite,
    reason,
    require_finite,
    structure_from_json,
    structure_to_json,
    write_model,
)
from conal_rl.supervised.data.common import Batch
from conal_rl.supervised.evaluation import Loader, mean_loss, read_reference, report_table, test
from conal_rl.supervised.network import (
    MultiTaskNetwork,
    autocast,
    statistics_kept,
    task_losses,
    to_device,
)
from conal_rl.supervised.problem import Part, make_problem
from conal_rl.supervised.selection import BestWeights

FORMAT, VERSION = "conal_rl.network", 1


class SupervisedExperiment:
    """A data set, and a network that learns its tasks together.

    Args:
        config: the config of the run.

    Raises:
        ConalError: the data set or the reference cannot be read.
    """

    def __init__(self, config: SupervisedConfig):
        self.problem = make_problem(config)
        self.tasks = tuple(self.problem.tasks)
        read_reference(config, self.problem.tasks)
        self.config = config
        self.device = get_device(config.device)
        self.precision: Precision
        self._step = 0
        self._first_step = 0  # first step of the phase
        self._best = BestWeights()
        self._forget_losses()
        self._logged_loss = 0.0

    def start(self) -> None:
        """Make the first network. Errors that could come later are raised now.

        Raises:
            ConalError: the data cannot be read, or a tree does not fit.
        """
        self._set_precision(None)
        structure = _fixed_tree(self.config, self.tasks) or search_space(self.config, self.tasks)
        self._build(structure)
        self._try_out()
        self._build(structure)

    def restore(
        self, tensors: Tensors, state: Mapping[str, Any], precision: Precision | None
    ) -> None:
        """Make the network of a checkpoint and fill it.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the config.
            ConfigError: the checkpoint belongs to different tasks.
        """
        try:
            tasks = ", ".join(state["tasks"])
            if state["tasks"] != list(self.tasks):
                raise ConfigError(
                    f"data.tasks: got {', '.join(self.tasks)}, expected {tasks}, which the run "
                    "began with. Start a new run"
                )
            self._set_precision(precision)
            self._build(structure_from_json(state["structure"]))
            self._fill(tensors, state)
        except UNFIT as error:
            raise CheckpointError(
                f"checkpoint: got a different run ({reason(error)}), expected one that fits the "
                "config. "
                "Start a new run"
            ) from error

    @property
    def steps(self) -> int:
        """Updates of the whole run so far."""
        return self._step

    @property
    def learners(self) -> dict[str, Learner]:
        """The learner of the encoder."""
        return {"encoder": self.learner}

    def learn(self, session: Session) -> None:
        """Train up to `session.until` updates, or until it is stopped or out of time or patience.

        Raises:
            ConalError: training diverged.
        """
        config = self.config
        batches = self._batches(self._step - self._first_step)
        validation = self._validation_batches(self._step - self._first_step)
        while self._step < session.until and not (self._out_of_patience() or session.out_of_time):
            if session.stopped:
                return
            self._update(batches, validation)
            self._step += 1
            last = self._step == session.until
            looks = self._selects and (last or self._step % config.evaluation.every == 0)
            if looks:
                self._look_at_validation(session.logger)
            if last or looks or self._step % config.log_interval == 0:
                self._log(session)
            session.save_if_due()
            if session.display.due():
                session.display.show(self._step, self._outcome())
        if (
            self._selects and not self._best.weights
        ):  # the minutes ended before the first evaluation
            self._look_at_validation(session.logger)
        if self._summed:
            self._log(session)
        session.display.show(self._step, self._outcome())
        if self._selects and not session.stopped:
            if not self._best.weights:
                raise diverged("no validation loss has been finite", self._step)
            if not is_finite(self.network):  # the last step spoilt the weights
                self.network.load_state_dict(self._best.weights)

    def next_stage(self) -> bool:
        """Move to CoNAL-Pro's next stage, with what was learnt; False if no stage is left."""
        stage = self.learner.next_stage()
        if stage is None:
            return False
        before = self.network
        self._build(stage)
        self.network.inherit_from(before)
        return True

    def derive(self) -> tuple[Tree]:
        """Return the encoder's tree."""
        return (self.learner.tree(),)

    def train_trees(self, trees: tuple[Tree, ...]) -> None:
        """Continue with a network of this tree, from scratch, except if weights are kept."""
        self._first_step = self._step
        before = self.network
        self._build(trees[0])
        if self.config.search.keep_weights:
            self.network.inherit_from(before)

    def trees_json(self, trees: tuple[Tree, ...]) -> str:
        """Return the content of tree.json."""
        return trees[0].to_json()

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return all that `restore` needs: tensors, and JSON types.

        Raises:
            ConalError: a loss or a weight is not finite.
        """
        self._mean_losses()
        require_finite(self.network, self._step)
        learnt, counters = self.learner.state()
        groups = {
            "network": dict(self.network.state_dict()),
            "random": {"torch": torch.get_rng_state()},
            **learnt,
        }
        if self.device.type == "cuda":
            groups["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        if self._best.weights:
            groups["best"] = self._best.weights
        state: dict[str, Any] = {
            "tasks": list(self.tasks),
            "structure": structure_to_json(self.structure),
            "step": self._step,
            "first_step": self._first_step,
            "losses": {"sums": self._sums.tolist(), "summed": self._summed},
            "best": self._best.state(),
            **counters,
        }
        return groups, state

    def save_weights(self, folder: Path, finished: bool) -> None:
        """Write the network's weights; after training, the selected weights."""
        about = {
            "format": FORMAT,
            "version": VERSION,
            "tasks": list(self.tasks),
            "structure": structure_to_json(self.structure),
            "steps": self._step,
        }
        selected = self._best.weights if finished else {}
        write_model(folder, about, selected or self.network.state_dict())

    figures, counted = (), "batches"

    def evaluate(self, progress: Callable[[int, int], None]) -> tuple[dict[str, Any], Table]:
        """Return the scores on the test part, as JSON types and as a table."""
        if self._step == self._first_step:
            print("The run made no update: the network has learnt nothing.", file=sys.stderr)
        if self._best.weights:  # only now, because training continues from the last weights
            self.network.load_state_dict(self._best.weights)
        report = test(
            self.network, self.problem, self.config, self.device, self.precision, progress
        )
        selected = {"selected_step": self._best.step if self._best.weights else None}
        return report | selected, report_table(report)

    def _fill(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        self._step, self._first_step = state["step"], state["first_step"]
        self._sums += torch.tensor(state["losses"]["sums"], device=self.device)
        self._summed = state["losses"]["summed"]
        self.network.load_state_dict(tensors["network"])
        self.learner.restore(tensors, state)
        if state["best"] is not None:
            self._best.restore(state["best"], tensors["best"])
        torch.set_rng_state(tensors["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in tensors["random"]:
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)

    @property
    def _searching(self) -> bool:
        return not isinstance(self.structure, Tree)

    # The network and its steps.

    def _build(self, structure: Structure) -> None:
        """Make a new network and its learner, from the seed and the step."""
        agent = self.config.agent
        require_copies_to_fit(structure, agent.depth, self.device)
        stream = np.random.SeedSequence([self.config.seed, self._step])
        torch.manual_seed(int(stream.generate_state(1)[0]))
        self.structure = structure
        self.network = MultiTaskNetwork(self.problem, structure).to(self.device)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        momentum = {"momentum": 0.9} if agent.optimizer == "sgd" else {}
        self.learner = Learner(
            self.network.encoder,
            self.network.weights(),
            structure,
            self.tasks,
            partial(
                kinds[agent.optimizer],
                lr=agent.learning_rate,
                weight_decay=agent.weight_decay,
                **momentum,
            ),
            learner_settings(agent, self.config.search, self._searching),
            scales=self.precision == "float16",
        )
        # Dynamo breaks the graph at every module that captures its tasks' gradients.
        compiles = agent.compile and self.learner.rule is None
        self._forward = torch.compile(self.network) if compiles else self.network

    def _set_precision(self, recorded: Precision | None) -> None:
        mixed = self.config.agent.mixed_precision
        self.precision = decide_precision(self.device, mixed, recorded, on_cuda="float16")
        self._autocast = autocast(self.device, self.precision)

    def _try_out(self) -> None:
        """Read first batches and open all files, so that errors come before the run."""
        for task in self.problem.tasks.values():
            task.metric()  # may lack a package
        if self.config.agent.compile:
            require_compiler(self.device)
        self._losses(next(self._batches()))
        if self.network.gates is not None:
            next(self._validation_batches())
        if self.config.agent.select:
            next(iter(self._looks()))
        elif self._searching:
            self.problem.loader("both", self.config.agent.batch_size, True)

    def _update(self, batches: Iterator[Batch], validation: Iterator[Batch]) -> None:
        """Step the weights and then, in a search, the gates."""
        self.network.train()
        self._set_rates()
        with self.learner.capture():
            losses = self._losses(next(batches))
        self.learner.step(losses, self.config.agent.max_grad_norm)
        self._sums += losses.detach()
        self._summed += 1
        due = (self._step - self._first_step) % self.config.search.gate_every == 0
        if due and self.learner.gates is not None:
            with statistics_kept(self.network):
                losses = self._losses(next(validation))
            self.learner.step_gates(losses)

    def _losses(self, cpu_batch: Batch) -> Tensor:
        """Return each task's loss, `(task,)`."""
        batch = to_device(cpu_batch, self.device)
        with self._autocast:
            predictions = self._forward(batch.inputs)
        return task_losses(self.problem, predictions, batch)

    def _set_rates(self) -> None:
        """Set the weights' learning rate and the temperature of sampled gates."""
        config, done = self.config, float(self._step - self._first_step)
        last = config.search.steps if self._searching else config.total_steps
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
        set_learning_rate(self.learner.optimizer, rate)
        self.learner.anneal(left)

    def _batches(self, first: int = 0) -> Iterator[Batch]:
        part: Part = "both"
        if self._searching or self.config.agent.select:
            part = "train"
        return self.problem.loader(part, self.config.agent.batch_size, True).endless(first)

    def _validation_batches(self, first: int = 0) -> Iterator[Batch]:
        """Return the batches that the gates learn from, after `first` steps of the search."""
        if self.network.gates is None:
            return iter(())
        taken = -(-first // self.config.search.gate_every)
        return self.problem.loader("validation", self.config.agent.batch_size, True).endless(taken)

    # Selection and logging.

    @property
    def _selects(self) -> bool:
        return not self._searching and self.config.agent.select

    def _looks(self) -> Loader:
        return self.problem.loader("validation", self.config.evaluation.batch_size, False)

    def _look_at_validation(self, logger: Logger) -> None:
        loss = mean_loss(self.network, self.problem, self._looks(), self.device, self._autocast)
        self._best.update(loss, self._step, self.network)
        logger.record("validation/loss", loss)

    def _out_of_patience(self) -> bool:
        patience = self.config.agent.patience
        return self._selects and patience is not None and self._best.looks_since >= patience

    def _mean_losses(self) -> dict[str, float]:
        """Return mean losses since the last log line; raise ConalError if one is not finite."""
        means = dict(zip(self.tasks, (self._sums / max(self._summed, 1)).tolist(), strict=True))
        for task, mean in means.items():
            if not math.isfinite(mean):
                raise diverged(f"the loss of {task} is {mean}", self._step)
        return means

    def _forget_losses(self) -> None:
        self._sums, self._summed = torch.zeros(len(self.tasks), device=self.device), 0

    def _log(self, session: Session) -> None:
        logger, display = session.logger, session.display
        for task, mean in self._mean_losses().items():
            logger.record(f"loss/{task}", mean)
        display.line(self._step, self._outcome())
        self._logged_loss = self._loss()
        self._forget_losses()
        logger.record("phase", session.phase, exclude="tensorboard")
        rate = self.learner.optimizer.param_groups[0]["lr"]
        logger.record("train/learning_rate", rate)
        logger.record("time/total_timesteps", self._step)
        logger.record("time/minutes", session.elapsed() / 60)
        logger.record("time/phase_steps_per_s", display.rate(self._step))
        for tag, value in log_scalars(self.learner, "encoder").items():
            logger.record(tag, value, exclude="csv")
        logger.dump(self._step)

    def _loss(self) -> float:
        """Return the mean of the summed losses since the last line of the log."""
        return float(self._sums.sum()) / max(self._summed, 1)

    def _outcome(self) -> str:
        loss = self._loss() if self._summed else self._logged_loss
        best = f", best validation loss {self._best.loss:.4f}" if self._best.weights else ""
        return f"loss {loss:.4f}{best}"


def _fixed_tree(config: SupervisedConfig, tasks: tuple[str, ...]) -> Tree | None:
    """Return the tree that `agent.tree` names, or None for a search."""
    depth = config.agent.depth
    if config.agent.tree == "search":
        return None
    if config.agent.tree == "shared":
        return Tree.shared(tasks, depth)
    if config.agent.tree == "independent":
        return Tree.independent(tasks, depth)
    path = user_path(config.agent.tree)
    tree = Tree.load(path)
    try:
        return tree.check(tasks, depth)
    except TreeError as error:
        raise TreeError(f"{path}: {error}. Use a tree of this data set and encoder") from error
