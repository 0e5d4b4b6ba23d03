"""The commands of supervised runs: folders, searches, stops and resumes, tests, reports."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from conal_rl import evaluate, report, train
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.core import Tree
from conal_rl.errors import ConfigError
from conal_rl.reports import predictions
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import PhaseDisplay
from conal_rl.supervised.evaluation import load_network
from conal_rl.supervised.experiment import SupervisedExperiment
from conal_rl.supervised.problem import make_problem
from tests.helpers.supervised_runs import DIGITS, METHODS, TASKS, TINY, read, rows, run, stop_at
from tests.helpers.supervised_sets import METRICS, TEXT, options_of
from tests.helpers.tiers import first_quick

ROOT = Path(__file__).parents[2]
ALIKE = ("selected_step", "scores", "steps", "search_steps", "parameters")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a search; tests copy it before they change it."""
    return run(tmp_path_factory.mktemp("runs") / "finished", *DIGITS)


def run_in_parts(out: Path, words: Sequence[str], steps: Sequence[int]) -> Path:
    command = [*words, "--out", str(out)]
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main(command) == 130
        assert load_checkpoint(out, groups=[])[1]["step"] == step
        command = ["--resume", str(out)]
    assert train.main(command) == 0
    return out


def steps(folder: Path) -> list[int]:
    return [int(row["time/total_timesteps"]) for row in rows(folder)]


def require_equal(one: Path, other: Path) -> None:
    """Two runs must have equal results, bit for bit."""
    (tensors, state), (again, state_again) = load_checkpoint(one), load_checkpoint(other)
    for name in ("seconds", "search_seconds"):
        del state[name], state_again[name]
    assert state == state_again
    assert tensors.keys() == again.keys()
    for group, named in tensors.items():
        assert named.keys() == again[group].keys()
        for name, tensor in named.items():
            assert torch.equal(tensor, again[group][name]), f"{group}: {name}"
    assert [read(one)[key] for key in ALIKE] == [read(other)[key] for key in ALIKE]
    assert rows(one) == rows(other)
    assert (one / "tree.json").read_bytes() == (other / "tree.json").read_bytes()


# The folder of a run


def test_a_run_writes_all_its_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
    files = ("config.yaml", "versions.json", "tree.json", "tree.png", "search.json")
    assert names == {*files, "progress.csv", "evaluation.json", "checkpoints", "model"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["name"], config["data"]["set"], config["total_steps"]) == (
        "digits",
        "digits",
        12,
    )
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step-000000012"]
    assert steps(finished) == [2, 4, 6, 8, 10, 12]
    assert all(
        math.isfinite(float(row[f"loss/{task}"])) for row in rows(finished) for task in TASKS
    )
    gates = read(finished, "search")["encoder"]["gates"]
    points = [gates[task].index(max(gates[task])) + 1 for task in TASKS]
    assert Tree.load(finished / "tree.json") == Tree.from_branch_points(points, 2, TASKS)
    about = read(finished)
    assert (about["steps"], about["search_steps"], about["selected_step"]) == (12, 6, None)
    assert 0 <= about["search_seconds"] <= about["seconds"]


@pytest.mark.parametrize("name", first_quick(name for name in METRICS if name != "digits"))
def test_every_set_is_searched_trained_and_tested(name: str, tmp_path: Path) -> None:
    if name in TEXT:
        pytest.importorskip("transformers")
    if name == "panx":
        pytest.importorskip("seqeval")
    share = {"pascal_context": "0.5", "taskonomy": "0.4"}.get(name, "0.2")
    few = ["--total-steps", "5", "--search.steps", "3", "--log-interval", "2"]
    few += ["--search.validation-share", share, "--evaluation.every", "1"]
    folder = run(tmp_path / "run", name, *options_of(name, tmp_path / "data"), *few)
    assert {task: tuple(names) for task, names in read(folder)["scores"].items()} == METRICS[name]
    for metrics in read(folder)["scores"].values():
        assert all(value is None or math.isfinite(value) for value in metrics.values())
    config = load_config(folder / "config.yaml")
    assert Tree.load(folder / "tree.json").check(tuple(METRICS[name]), config.agent.depth)
    assert read(folder, "search")["tasks"] == list(METRICS[name])
    assert {2, 3, 4, 5} <= set(steps(folder))  # CoNAL-Pro logs every stage's end
    for left in ("versions.json", "tree.png", "model/model.json", "model/model.safetensors"):
        assert (folder / left).is_file()
    if name.startswith("celeba"):
        total = sum(100 - 100 * metrics["accuracy"] for metrics in read(folder)["scores"].values())
        assert read(folder)["total_error"] == pytest.approx(total)
        assert 3 < read(folder)["selected_step"] <= 5
    require_same_scores(folder, tmp_path)


def require_same_scores(folder: Path, tmp_path: Path) -> None:
    """The evaluate command gives the run's scores, for the run and for its checkpoint."""
    (checkpoint,) = (folder / "checkpoints").iterdir()
    for path in (folder, checkpoint):
        file = tmp_path / f"{path.name}.json"
        assert evaluate.main([str(path), "--json", str(file), "--device", "cpu"]) == 0
        result = json.loads(file.read_text())
        assert result == {key: read(folder)[key] for key in result}
        assert {"scores", "parameters", "set"} <= result.keys()


def test_a_run_is_evaluated_elsewhere_and_with_moved_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    few = ["--total-steps", "2", "--agent.tree", "shared"]
    run(Path("run"), "nyuv2", *options_of("nyuv2", Path("data")), *few)
    monkeypatch.chdir(elsewhere)
    assert evaluate.main(["../run"]) == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    assert evaluate.main(["../run"]) == 2
    assert str(tmp_path / "data") in capsys.readouterr().err
    assert evaluate.main(["../run", "--data.root", "../moved"]) == 0
    assert report.main(["predictions", "../run", "--data.root", "../moved", "--images", "1"]) == 0
    assert evaluate.main(["pretrained:mt10", "--data.root", "../moved"]) == 2
    assert "--data.root" in capsys.readouterr().err


def test_unlabelled_truth_is_left_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test image has no people, so its parts of people are unlabelled."""
    drawn: list[list[np.ndarray]] = []

    def grid(rows: list[list[np.ndarray]], tasks: list[str]) -> Figure:
        assert tasks[1] == "human_parts"
        drawn.extend(rows)
        return Figure()

    monkeypatch.setattr(predictions, "_grid", grid)
    few = ["--total-steps", "2", "--agent.tree", "shared"]
    folder = run(tmp_path / "run", "pascal_context", *options_of("pascal_context", tmp_path), *few)
    assert report.main(["predictions", str(folder), "--images", "9", "--out", str(tmp_path)]) == 0
    blank = [bool(np.isnan(row[4]).all()) for row in drawn]
    config = load_config(folder / "config.yaml")
    assert isinstance(config, SupervisedConfig)
    problem = make_problem(config)
    masks = [batch.masks["human_parts"].tolist() for batch in problem.loader("test", 1, False)]
    assert blank == [mask == [False] for mask in masks]
    assert any(blank) and not any(np.isnan(row[3]).any() for row in drawn)


# Searches, trees, weightings


@pytest.mark.parametrize("method", first_quick(METHODS, 2))
@pytest.mark.slow
def test_searches_resume_as_if_never_stopped(method: str, tmp_path: Path) -> None:
    """Runs stop in the search and in training; some also stop as a search or a stage ends."""
    words = [*DIGITS, *METHODS[method]]
    whole = run(tmp_path / "whole", *words)
    tree = Tree.load(whole / "tree.json").check(TASKS, 2)
    searched = read(whole, "search")["steps"]
    assert searched == 6 or (method.startswith("conal_pro") and searched == 3)  # all settled
    if method == "recon":
        assert sorted(tree.modules) == [1, 5]
    if method == "counted":
        assert read(whole, "training")["encoder"].get("rule", "consensus") == "consensus"
    stops = (3, 5, 6, 9) if method in ("conal", "conal_pro, gumbel") else (3, 9)
    require_equal(whole, run_in_parts(tmp_path / "parts", words, stops))


FIXED: dict[str, list[str]] = {
    "shared": [],
    "independent": ["--agent.conflict-rule", "any_pair"],
    "tree.json": ["--agent.conflict-rule", "none", "--agent.weighting", "uncertainty"],
    "again.json": ["--agent.weighting", "mgda"],
    "last.json": ["--agent.weighting", "aligned_mtl", "--agent.max-grad-norm", "0.1"],
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.slow
def test_fixed_trees_resume_as_if_never_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = Tree.from_branch_points([1, 3, 3, 2, 2], 2, TASKS)
    if name.endswith(".json"):
        Tree.from_branch_points([2, 2, 3, 3, 1], 2, TASKS[::-1]).save(Path(name))
    else:
        tree = getattr(Tree, name)(TASKS, 2)
    words = [*DIGITS, "--agent.tree", name, *FIXED[name]]
    whole = run(tmp_path / "whole", *words)
    assert Tree.load(whole / "tree.json") == tree
    assert not (whole / "search.json").exists()
    assert read(whole)["search_steps"] == 0
    if name == "tree.json":
        encoder = read(whole, "training")["encoder"]
        assert encoder["rule"] == "none" and encoder["gates"] == {}
        assert len(encoder["mean_cosine"]) == len(tree.layers)
    require_equal(whole, run_in_parts(tmp_path / "parts", words, (5, 12)))


def test_minutes_continue_after_the_search_and_a_resume(tmp_path: Path) -> None:
    folder = run_in_parts(tmp_path / "run", DIGITS, (4, 9))
    with (folder / "progress.csv").open(newline="") as file:
        minutes = [float(row["time/minutes"]) for row in csv.DictReader(file)]
    assert minutes == sorted(minutes) and minutes[0] > 0


def test_the_final_test_says_how_long_it_is(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(finished)]) == 0
    assert capfd.readouterr().err.splitlines() == ["evaluation: 1 batches"]


def test_the_last_outcome_of_a_phase_is_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, str] = {}
    monkeypatch.setattr(
        PhaseDisplay, "show", lambda display, _, outcome: shown.update({display.phase: outcome})
    )
    run(tmp_path / "run", *DIGITS)
    assert shown.keys() == {"search", "train"}
    assert all(float(outcome.split()[1].rstrip(",")) > 0 for outcome in shown.values())


def test_float16_stays_recorded_on_a_cpu(tmp_path: Path) -> None:
    """A run of a GPU that continues on a CPU, and may go back."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(4, patch)
        assert train.main([*DIGITS, "--out", str(folder), "--agent.mixed-precision"]) == 130
    Run(folder).record_precision("float16")
    assert train.main(["--resume", str(folder)]) == 0
    assert Run(folder).precision() == "float16"


@pytest.mark.slow
def test_a_finished_run_is_tested_in_its_own_precision(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr("conal_rl.device._capabilities", lambda: {"amx_bf16": True})
    (folder / "evaluation.json").unlink()
    config = (folder / "config.yaml").read_bytes()
    assert train.main(["--resume", str(folder), "--agent.mixed-precision"]) == 0
    assert "agent.mixed_precision: no effect" in capsys.readouterr().err
    assert read(folder)["scores"] == read(finished)["scores"]
    assert Run(folder).precision() == "single"
    assert (folder / "config.yaml").read_bytes() == config


def test_load_network_names_a_device_that_is_not_there(finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    assert isinstance(config, SupervisedConfig)
    with pytest.raises(ConfigError, match=r"^device: got 'gpu'"):
        load_network(finished, config, "gpu")


@pytest.mark.slow
def test_dropout_and_random_weights_resume_as_if_never_stopped(tmp_path: Path) -> None:
    words = ["terrain", *TINY, "--agent.channels", "4", "4", "--agent.strides", "2", "2"]
    words += ["--agent.aspp-width", "4", "--agent.aspp-rates", "1", "--agent.dropout", "0.5"]
    words += ["--agent.weighting", "random", "--agent.batch-size", "4"]
    words += ["--agent.optimizer", "sgd", "--agent.schedule", "halve", "--agent.halve-every", "2"]
    whole = run(tmp_path / "whole", *words)
    require_equal(whole, run_in_parts(tmp_path / "parts", words, (2, 9)))


@pytest.mark.slow
def test_resumed_runs_do_not_depend_on_workers(finished: Path, tmp_path: Path) -> None:
    parts = run_in_parts(tmp_path / "parts", [*DIGITS, "--data.workers", "1"], (4, 9))
    require_equal(finished, parts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_processes_stop_a_run_once(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in a terminal and most schedulers of clusters signal all processes."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "conal_rl.train", *DIGITS, "--data.workers", "2"]
    command += ["--out", str(folder), "--total-steps", "100000", "--search.steps", "50000"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 100
        log = folder / "progress.csv"
        while not log.is_file() or log.stat().st_size == 0:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert errors.count("stops after this step") == 1
    assert errors.splitlines()[-1].endswith(f"--resume {folder}")
    assert load_checkpoint(folder, groups=[])[1]["phase"] == "search"


@pytest.mark.slow
def test_selection_resumes_as_if_never_stopped(tmp_path: Path) -> None:
    words = [*DIGITS, "--agent.select", "--evaluation.every", "2", "--agent.learning-rate", "0.1"]
    whole = run(tmp_path / "whole", *words, "--agent.patience", "3")
    selected = read(whole)["selected_step"]
    assert selected in (8, 10, 12)
    validation_losses = [float(row["validation/loss"]) for row in rows(whole)[3:]]
    assert validation_losses.index(min(validation_losses)) == (selected - 8) // 2
    words += ["--agent.patience", "3"]
    require_equal(whole, run_in_parts(tmp_path / "parts", words, (7, 8, 11)))


@pytest.mark.slow
def test_runs_stopped_between_stages_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next stage has begun, but nothing is trained in it."""
    words = [*DIGITS, *METHODS["conal_pro"]]
    whole, parts = run(tmp_path / "whole", *words), tmp_path / "parts"
    next_stage = SupervisedExperiment.next_stage

    def signalled(self: SupervisedExperiment) -> bool:
        follows = next_stage(self)
        signal.raise_signal(signal.SIGTERM)
        return follows

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedExperiment, "next_stage", signalled)
        assert train.main([*words, "--out", str(parts)]) == 128 + signal.SIGTERM
    state = load_checkpoint(parts, groups=[])[1]
    assert (state["step"], state["structure"]["number"]) == (3, 2)
    assert train.main(["--resume", str(parts)]) == 0
    require_equal(whole, parts)


def test_stages_inherit_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[dict[str, torch.Tensor]] = []
    next_stage = SupervisedExperiment.next_stage

    def spied(self: SupervisedExperiment) -> bool:
        before = {name: t.clone() for name, t in self.network.state_dict().items()}
        follows = next_stage(self)
        learnt.extend([before, {n: t.clone() for n, t in self.network.state_dict().items()}])
        return follows

    monkeypatch.setattr(SupervisedExperiment, "next_stage", spied)
    run(tmp_path / "run", *DIGITS, *METHODS["conal_pro"])
    before, after = learnt[:2]
    kept = [name for name in after if name.startswith(("heads.", "encoder.joint.layers.0."))]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert (before["encoder.gates"] != 1).any() and (after["encoder.gates"] == 1).all()


def test_a_run_with_only_a_search_can_be_resumed(finished: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *DIGITS, "--search.only")
    assert not (folder / "evaluation.json").exists()
    assert train.main(["--resume", str(folder), "--search.no-only"]) == 0
    require_equal(finished, folder)


def test_a_finished_run_can_be_tested_again_or_extended(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "evaluation.json").unlink()
    assert train.main(["--resume", str(folder)]) == 0
    require_equal(finished, folder)
    assert train.main(["--resume", str(folder), "--total-steps", "15"]) == 0
    assert steps(folder) == [2, 4, 6, 8, 10, 12, 14, 15]
    assert (read(folder)["steps"], read(folder)["search_steps"]) == (15, 6)


@pytest.mark.parametrize("options", [["--agent.select"], ["--search.validation-share", "0.5"]])
def test_samples_stay_in_their_parts(
    options: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise, weights would be selected on samples that they were trained on."""
    assert train.main(["--resume", str(finished), *options, "--total-steps", "16"]) == 2
    field = options[0].removeprefix("--").replace("-", "_")
    assert field in capsys.readouterr().err


# Against a reference


def test_delta_p_compares_with_the_reference(finished: Path, tmp_path: Path) -> None:
    reference = read(finished)
    for metrics in reference["scores"].values():
        for name in metrics:
            metrics[name] /= 2
    (tmp_path / "half.json").write_text(json.dumps(reference))
    folder = run(tmp_path / "run", *DIGITS, "--evaluation.reference", str(tmp_path / "half.json"))
    # Four tasks are twice as good; ink's error is twice as high.
    assert read(folder)["delta_p"] == pytest.approx(100 * (4 - 1) / 5)


# Other commands


def test_evaluate_refuses_options_of_rl_runs(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for option in ("--video", "--episodes", "--seed", "--engine"):
        value = {"--video": str(tmp_path / "video"), "--engine": "native"}.get(option, "3")
        assert evaluate.main([str(finished), option, value]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {option}: ") and str(finished) in line
    assert not (tmp_path / "video").exists()
    assert evaluate.main([str(finished), "--device", "gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --device: got 'gpu'")


def test_evaluate_uses_the_given_device(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def spied(field: str, device: str) -> torch.device:
        devices.append(device)
        return torch.device("cpu")

    monkeypatch.setattr("conal_rl.supervised.evaluation.resolve_device", spied)
    monkeypatch.setattr(evaluate, "resolve_device", lambda field, device: None)  # no GPU here
    assert evaluate.main([str(finished), "--device", "cuda:3"]) == 0
    assert devices == ["cuda:3"]


def test_evaluate_names_damaged_weights(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    weights = folder / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert evaluate.main([str(folder)]) == 2
    about = read(folder / "model", "model") | {"structure": {"space": "conal"}}
    shutil.copy(finished / "model" / "model.safetensors", weights)
    (folder / "model" / "model.json").write_text(json.dumps(about))
    assert evaluate.main([str(folder)]) == 2
    about = read(finished / "model", "model")
    about["tasks"].reverse()  # as if the data named them in a different order
    (folder / "model" / "model.json").write_text(json.dumps(about))
    assert evaluate.main([str(folder)]) == 2
    damaged, unfit, other = capsys.readouterr().err.splitlines()
    assert str(weights) in damaged
    assert str(folder) in unfit and str(folder) in other
    assert "ink, prime" in other


@pytest.mark.slow
def test_the_report_has_a_supervised_runs_conflicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = ["--agent.conflict-rule", "none", "--search.rule", "any_pair"]
    folder = run(tmp_path / "run", *DIGITS, *counted, "--search.gate-learning-rate", "1")
    capsys.readouterr()
    out = tmp_path / "figures"
    assert report.main(["conflicts", str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "CoNAL" in printed and "encoder 1" in printed
    written = {path.name for path in out.iterdir()}
    assert {"conflicts.png", "cosines-run.png", "gates-run.png"} <= written
    assert report.main(["conflicts", str(folder / "model"), "--out", str(out)]) == 2


def test_a_tilde_in_a_path_is_the_home_directory(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of("nyuv2", tmp_path / "nyu")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["~/nyu" if word == str(tmp_path / "nyu") else word for word in options]
    assert "~/nyu" in words
    few = ["--agent.tree", "shared", "--total-steps", "2"]
    folder = run(tmp_path / "run", "nyuv2", *words, *few)
    assert evaluate.main([str(folder)]) == 0
    assert train.main(["--resume", str(folder), "--total-steps", "3"]) == 0


def test_a_missing_reference_costs_only_the_comparison(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Path(shutil.copy(finished / "evaluation.json", tmp_path / "reference.json"))
    few = ["--agent.tree", "shared", "--total-steps", "2"]
    folder = run(tmp_path / "run", *DIGITS, *few, "--evaluation.reference", str(reference))
    assert "delta_p" in read(folder)
    reference.unlink()
    result = tmp_path / "result.json"
    assert evaluate.main([str(folder), "--json", str(result)]) == 0
    message = capsys.readouterr().err
    assert str(reference) in message and "delta_p" in message
    report_of_run = json.loads(result.read_text())
    assert report_of_run["scores"] == read(folder)["scores"] and "delta_p" not in report_of_run
