"""Steps of supervised training: who learns from what, precision, compilation, selection."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conal_rl import train
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.core import ConalProStage, Tree
from conal_rl.core.findings import findings
from conal_rl.runs.progress import Session
from conal_rl.runs.trainer import Trainer
from conal_rl.supervised import experiment
from conal_rl.supervised.data.common import Batch, SharedLoader, TaskLoaders
from conal_rl.supervised.evaluation import load_network
from conal_rl.supervised.evaluation import test as score
from conal_rl.supervised.experiment import SupervisedExperiment
from conal_rl.supervised.network import task_losses
from conal_rl.supervised.problem import Part, Problem, make_problem
from tests.helpers.supervised_runs import DIGITS, METHODS, read, rows, run
from tests.helpers.supervised_sets import options_of
from tests.helpers.tiers import first_quick

State = dict[str, Tensor]
NORM = (".running_mean", ".running_var", ".num_batches_tracked")


def started(*words: str) -> SupervisedExperiment:
    """A training that has made no step; it has no folder."""
    config = load_config(DIGITS[0], [*DIGITS[1:], *words])
    assert isinstance(config, SupervisedConfig)
    training = SupervisedExperiment(config)
    training.start()
    return training


def update(training: SupervisedExperiment, count: int = 1) -> None:
    batches, validation = training._batches(), training._validation_batches()
    for _ in range(count):
        training._update(batches, validation)
        training._step += 1


def state(training: SupervisedExperiment) -> State:
    return {name: t.clone() for name, t in training.network.state_dict().items()}


def changed(before: State, after: State) -> set[str]:
    return {name for name in after if not torch.equal(before[name], after[name])}


# Who learns from what


@pytest.mark.parametrize("method", ["conal", "copies", "ltb", "conal_pro"])
def test_each_step_changes_only_its_own_parameters(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the gates' batches leave a trace in batch norm's statistics."""
    training = started(*METHODS[method])
    between: list[State] = []
    step = training.learner.step

    def spied(*arguments: Any) -> None:
        step(*arguments)
        between.append(state(training))

    monkeypatch.setattr(training.learner, "step", spied)
    for _ in range(2):
        before = state(training)
        update(training)
        weights = changed(before, between[-1])
        assert "encoder.gates" not in weights
        assert any(name.endswith(NORM) for name in weights)
        assert any(name.startswith("heads") for name in weights)
        assert changed(between[-1], state(training)) == {"encoder.gates"}
    assert all(parameter.grad is None for parameter in training.network.parameters())


def test_gumbel_temperature_falls_in_every_stage() -> None:
    """Two layers, two stages of half of the search each."""
    training = started("--search.method", "conal_pro", "--search.gumbel", "--search.steps", "4")
    tasks = len(training.tasks)
    found = []
    for number, steps in ((1, (0, 1, 2)), (2, (2, 3, 4))):
        training._build(ConalProStage(number, (None,) * tasks))
        for training._step in steps:
            training._set_rates()
            found.append(training.network.encoder.gumbel_temperature)
    assert found == pytest.approx([1.0, 0.55, 0.1] * 2)


def test_gates_step_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[int] = []
    training = started("--search.gate-every", "3")
    learner = training.learner
    monkeypatch.setattr(learner, "step_gates", lambda _: stepped.append(training.steps))
    update(training, 7)
    assert stepped == [0, 3, 6]


@pytest.mark.parametrize("schedule", ["constant", "halve", "poly"])
def test_learning_rates_equal_those_by_hand(schedule: str) -> None:
    """Step sizes start again with the training, and with each stage of CoNAL-Pro."""

    def rates(training: SupervisedExperiment, steps: range) -> list[float]:
        found: list[float] = []
        for training._step in steps:
            training._set_rates()
            found.append(training.learner.optimizer.param_groups[0]["lr"])
        return found

    by_hand: dict[str, list[float]] = {"constant": [1] * 5, "halve": [1, 1, 0.5, 0.5, 0.25]}
    by_hand["poly"] = [(1 - k / 5) ** 0.9 for k in range(5)]
    expected = pytest.approx([1e-3 * share for share in by_hand[schedule]])
    words = ["--agent.learning-rate", "1e-3", "--agent.schedule", schedule]
    words += ["--agent.halve-every", "2", "--total-steps", "15", "--search.steps", "10"]
    stages = started("--search.method", "conal_pro", *words)
    assert stages.config.agent.depth == 2
    assert rates(stages, range(5)) == expected
    stages.structure = ConalProStage(2, (None,) * 5)
    assert rates(stages, range(5, 10)) == expected
    training = started("--agent.tree", "shared", *words)
    training._first_step = 10
    assert rates(training, range(10, 15)) == expected


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_purely_specific_modules_decay_at_a_rate_of_their_own(optimizer: str) -> None:
    training = started("--search.specific-decay", "0.5", "--agent.optimizer", optimizer)
    others, own = training.learner.optimizer.param_groups
    specific = {id(p) for n, p in training.network.encoder.named_parameters() if "specific" in n}
    assert {id(p) for p in own["params"]} == specific
    assert specific.isdisjoint(id(p) for p in others["params"])
    assert (own["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    update(training)
    assert own["lr"] == others["lr"]
    fixed = started("--search.specific-decay", "0.5", "--agent.tree", "shared")
    assert len(fixed.learner.optimizer.param_groups) == 1


class Watched:
    """A loader that tells what has been read."""

    def __init__(self, loader: SharedLoader | TaskLoaders, note: Callable[[Batch], None]):
        self.loader, self.note = loader, note

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._noted, self.loader)

    def endless(self, first: int = 0) -> Iterator[Batch]:
        return map(self._noted, self.loader.endless(first))

    def _noted(self, batch: Batch) -> Batch:
        self.note(batch)
        return batch


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, Part, bool], set[bytes]]:
    """Images read, by phase (with "test" for the end), part and whether for training."""
    found: dict[tuple[str, Part, bool], set[bytes]] = {}
    phase = ["search"]

    def watched(config: SupervisedConfig) -> Problem:
        problem = make_problem(config)

        def loader(part: Part, size: int, training: bool) -> Any:
            def note(batch: Batch) -> None:
                images = {image.numpy().tobytes() for image in batch.inputs[0]}
                found.setdefault((phase[0], part, training), set()).update(images)

            return Watched(problem.loader(part, size, training), note)

        return dataclasses.replace(problem, loader=loader)

    def entering(name: str, method: str) -> None:
        original = getattr(SupervisedExperiment, method)

        def entered(self: SupervisedExperiment, *arguments: Any) -> Any:
            phase[0] = name
            return original(self, *arguments)

        monkeypatch.setattr(SupervisedExperiment, method, entered)

    entering("train", "train_trees")
    entering("test", "evaluate")
    monkeypatch.setattr(experiment, "make_problem", watched)
    return found


NYUV2 = ["--search.validation-share", "0.4", "--total-steps", "30", "--search.steps", "15"]


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.slow
def test_parts_are_for_what_they_are_for(
    select: bool, seen: dict[tuple[str, Part, bool], set[bytes]], tmp_path: Path
) -> None:
    """Ten images, four of them cut off; and three for the test, which are repeated from the ten."""
    words = ["nyuv2", *options_of("nyuv2", tmp_path / "data"), *NYUV2]
    run(tmp_path / "run", *words, *["--agent.select", "--evaluation.every", "5"] * select)
    weights, gates = seen[("search", "train", True)], seen[("search", "validation", True)]
    assert (len(weights), len(gates), len(weights & gates)) == (6, 4, 0)
    after: dict[tuple[str, Part, bool], set[bytes]] = {("train", "both", True): weights | gates}
    if select:
        after = {("train", "train", True): weights, ("train", "validation", False): gates}
        # Looked at once before the run begins.
        assert seen.pop(("search", "validation", False)) <= gates
    for key, images in after.items():
        assert seen[key] == images
    assert len(seen[("test", "test", False)]) == 3
    assert set(seen) == {
        ("search", "train", True),
        ("search", "validation", True),
        *after,
        ("test", "test", False),
    }


@pytest.mark.slow
def test_retraining_begins_from_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and optimiser of the search are left behind."""
    states: list[Any] = []
    train_trees = SupervisedExperiment.train_trees

    def spied(self: SupervisedExperiment, trees: tuple[Tree, ...]) -> None:
        searched = {p.data_ptr() for p in self.network.parameters()}
        heads = deepcopy(self.network.heads.state_dict())
        train_trees(self, trees)
        learnt = self.learner.optimizer.state
        states.extend([heads, deepcopy(self.network.heads.state_dict()), learnt])
        assert not searched & {p.data_ptr() for p in self.network.parameters()}

    monkeypatch.setattr(SupervisedExperiment, "train_trees", spied)
    run(tmp_path / "run", *DIGITS)
    searched, drawn, optimizer = states
    assert changed(searched, drawn) and isinstance(optimizer, dict)
    run(tmp_path / "kept", *DIGITS, "--search.keep-weights")
    searched, kept, _ = states[3:]
    assert not changed(searched, kept)


# Selection


@pytest.mark.parametrize(
    "losses, kept, stopped",
    [
        ([3.0, 1.0, 2.0, 1.0, 0.5], 6, 12),  # the fourth look is not lower: patience is up
        ([3.0, 1.0, 2.0, 0.5, 0.7], 12, 14),  # looks are every three steps and after the last
        ([1.0, 3.0, 0.9, 0.8, 0.7], 14, 14),
        ([float("nan"), 3.0, 4.0, 2.0, 1.0], 14, 14),
    ],
)
def test_selection_keeps_the_weights_of_the_lowest_loss(
    losses: list[float],
    kept: int,
    stopped: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: dict[int, State] = {}
    left = iter(losses)
    training: list[SupervisedExperiment] = []
    learn = SupervisedExperiment.learn

    def scripted(network: torch.nn.Module, *_: Any) -> float:
        looks[training[0].steps] = {n: t.clone() for n, t in network.state_dict().items()}
        return next(left)

    def watched(self: SupervisedExperiment, session: Session) -> None:
        training[:] = [self]
        learn(self, session)

    monkeypatch.setattr(experiment, "mean_loss", scripted)
    monkeypatch.setattr(SupervisedExperiment, "learn", watched)
    words = [*DIGITS, "--agent.tree", "shared", "--agent.select", "--evaluation.every", "3"]
    words += ["--agent.patience", "2", "--total-steps", "14", "--log-interval", "4"]
    folder = run(tmp_path / "run", *words)
    assert (read(folder)["selected_step"], read(folder)["steps"]) == (kept, stopped)
    network, _ = load_network(folder, training[0].config, "cpu")
    assert not changed(looks[kept], network.state_dict())
    assert rows(folder)[-1]["validation/loss"] == str(losses[len(looks) - 1])
    assert rows(folder)[-1]["time/total_timesteps"] == str(stopped)
    assert train.main(["--resume", str(folder)]) == 0  # has nothing left to look at
    assert read(folder)["selected_step"] == kept


@pytest.mark.slow
def test_training_resumes_from_the_last_weights(tmp_path: Path) -> None:
    words = [*DIGITS, "--agent.tree", "shared", "--agent.select", "--evaluation.every", "2"]
    words += ["--agent.schedule", "constant", "--agent.learning-rate", "0.1"]
    whole = run(tmp_path / "whole", *words, "--total-steps", "20")
    parts = run(tmp_path / "parts", *words, "--total-steps", "14")
    first = read(parts)
    assert first["selected_step"] < 14, "otherwise there is nothing to tell apart"
    (checkpoint,) = (parts / "checkpoints").iterdir()
    config = load_config(str(parts / "config.yaml"))
    assert isinstance(config, SupervisedConfig)
    selected, last = load_network(parts, config)[0], load_network(checkpoint, config)[0]
    assert not changed(dict(selected.state_dict()), last.state_dict())
    assert train.main(["--resume", str(parts), "--total-steps", "20"]) == 0
    for name in ("selected_step", "scores"):
        assert read(parts)[name] == read(whole)[name]


def test_a_bad_last_step_does_not_change_the_selected_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(self: SupervisedExperiment, *batches: Any) -> None:
        step(self, *batches)
        if self.steps == 9:
            with torch.no_grad():
                for weight in self.network.parameters():
                    weight.fill_(torch.inf)

    step = SupervisedExperiment._update
    monkeypatch.setattr(SupervisedExperiment, "_update", spoiled)
    words = [*DIGITS, "--agent.tree", "shared", "--agent.select", "--evaluation.every", "2"]
    folder = run(tmp_path / "run", *words, "--total-steps", "10")
    assert 0 < read(folder)["selected_step"] < 10
    assert list((folder / "checkpoints").iterdir())


def test_what_its_minutes_end_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps since the last line, and a look at validation that no step was left for."""

    def elapsed(self: Trainer) -> float:
        return 60.0 * (self.experiment.steps >= 5)

    monkeypatch.setattr(Trainer, "_elapsed", elapsed)
    words = [*DIGITS, "--agent.tree", "shared", "--agent.select", "--evaluation.every", "9"]
    folder = run(tmp_path / "run", *words, "--log-interval", "4", "--minutes", "1")
    steps = [row["time/total_timesteps"] for row in rows(folder)]
    assert steps == ["4", "5"]
    assert rows(folder)[-1]["validation/loss"]


def test_a_run_without_a_finite_validation_loss_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "mean_loss", lambda *_: float("nan"))
    words = [*DIGITS, "--agent.tree", "shared", "--agent.select", "--out", str(tmp_path / "run")]
    assert train.main(words) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: no validation loss has been finite after 12 updates")
    )


# Precision

SGD = ("--agent.optimizer", "sgd", "--agent.learning-rate", "0.1", "--agent.max-grad-norm", "0.5")
WAYS = {
    "conal": [],
    "shared": ["--agent.tree", "shared"],
    "held": ["--agent.tree", "shared", "--agent.conflict-rule", "consensus"],
    "uncertainty": ["--agent.tree", "shared", "--agent.weighting", "uncertainty"],
    "mgda": ["--agent.tree", "shared", "--agent.weighting", "mgda"],
}


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs that only emulate it, too."""
    monkeypatch.setattr("conal_rl.device._capabilities", lambda: {"amx_bf16": True})


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("way", first_quick(["conal", "held"]))
@pytest.mark.slow
def test_bfloat16_on_a_cpu_learns_alike(way: str, tmp_path: Path) -> None:
    longer = ["--total-steps", "60", "--search.steps", "30", "--log-interval", "15"]
    words = [*DIGITS, *WAYS[way], *longer, "--agent.learning-rate", "0.01"]
    folder = run(tmp_path / "half", *words, "--agent.mixed-precision")
    full = run(tmp_path / "full", *words)
    totals = [
        [sum(float(value) for key, value in row.items() if key[:5] == "loss/") for row in rows(r)]
        for r in (folder, full)
    ]
    assert totals[0][-1] < totals[0][-2]
    assert totals[0] == pytest.approx(totals[1], rel=0.05) and totals[0] != totals[1]
    config = load_config(folder / "config.yaml")
    assert isinstance(config, SupervisedConfig)
    again = score(*load_network(folder, config, "cpu"), config, torch.device("cpu"), "bfloat16")
    assert again["scores"] == read(folder)["scores"]


@pytest.mark.usefixtures("bfloat16")
def test_half_precision_is_used_and_losses_are_not_in_it() -> None:
    training = started("--agent.mixed-precision")
    found: list[torch.dtype] = []
    for module in training.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda *a: found.append(a[2].dtype))
    assert training._losses(next(training._batches())).dtype == torch.float32
    assert set(found) == {torch.bfloat16}


def with_scalers(training: SupervisedExperiment, scale: float) -> torch.amp.GradScaler:
    training.learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    training.learner.gate_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return training.learner.scaler


@pytest.mark.parametrize("way", WAYS)
def test_scaled_steps_are_the_unscaled(way: str) -> None:
    plain, scaled = started(*SGD, *WAYS[way]), started(*SGD, *WAYS[way])
    with_scalers(scaled, 2.0**10)
    for _ in range(3):
        for training in (plain, scaled):
            update(training)
        assert_close(state(scaled), state(plain), rtol=1e-4, atol=1e-6)


def test_clipping_comes_after_unscaling() -> None:
    training = started(*SGD, "--agent.tree", "shared")
    with_scalers(training, 2.0**10)
    reference = deepcopy(training.network)
    batch = next(training._batches())
    losses = task_losses(training.problem, reference(batch.inputs), batch)
    losses.sum().backward()
    gradients = [p.grad for p in reference.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm > 0.5
    update(training)
    for mine, its in zip(training.network.parameters(), reference.parameters(), strict=True):
        assert its.grad is not None
        assert_close(mine, its - 0.1 * its.grad * 0.5 / norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_an_overflow_changes_no_weight(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = started(*WAYS[way])
    scaler = with_scalers(training, 2.0**10)
    update(training)
    before, losses = state(training), training._losses
    if training.learner.noticing is not None:
        training.learner.noticing.study_every = 1
    with monkeypatch.context() as patch:
        # Beyond single precision's 2^128.
        patch.setattr(training, "_losses", lambda batch: losses(batch) * 2.0**122)
        update(training, 2)
    assert {name for name in changed(before, state(training)) if not name.endswith(NORM)} == set()
    assert scaler.get_scale() == 2.0**8
    if training.learner.noticing is not None:
        json.dumps(findings(training.learner), allow_nan=False)
        tensors, _ = training.learner.noticing.state()
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    update(training)
    assert {name for name in changed(before, state(training)) if name.startswith("heads")}
    assert all(parameter.isfinite().all() for parameter in training.network.parameters())


# Compilation


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.slow
def test_compiled_is_eager() -> None:
    eager, compiled = (started(*SGD, *WAYS["shared"], *more) for more in ((), ["--agent.compile"]))
    assert compiled._forward is not compiled.network
    batch = next(eager._batches())
    assert_close(
        compiled._forward(batch.inputs), eager._forward(batch.inputs), rtol=1e-4, atol=1e-5
    )
    for training in (eager, compiled):
        update(training, 2)
    assert_close(state(compiled), state(eager), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", ["conal", "held", "mgda"])
@pytest.mark.slow
def test_steps_that_capture_gradients_are_eager(way: str) -> None:
    training = started(*WAYS[way], "--agent.compile")
    assert training._forward is training.network
    update(training)
