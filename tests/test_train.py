"""The train command from end to end on toy tasks: its folder, stopping, resuming, its errors."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conal_rl import phases, train
from conal_rl.agents import ConalSAC
from conal_rl.agents.callback import RunCallback
from conal_rl.agents.storage import load_trees
from conal_rl.config import Config, load_config
from conal_rl.core import ConflictNoticing, ProStage, SearchSpace, Tree, weighting
from conal_rl.envs import make
from conal_rl.errors import CheckpointError
from conal_rl.progress import ContinuedCSV, PhaseDisplay
from conal_rl.reports.records import read_record
from conal_rl.runs import Run, load_checkpoint, save_checkpoint
from conal_rl.train import make_agent

TASKS = ("tests.agents.toy:Left-v0", "tests.agents.toy:Right-v0")
ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = {
    "total_steps": 320,
    "log_interval": 40,
    "env": {"suite": list(TASKS)},
    "agent": {
        "widths": [8],
        "critic": "mse",
        "batch_size": 4,
        "buffer_size": 400,
        "learning_starts": 20,
        "update_every": 4,
    },
    "search": {"steps": 160, "validation_share": 0.3},
    "evaluation": {"episodes": 2},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's own YAML file."""
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


@pytest.fixture(scope="module")
def finished(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that searched, derived, trained and evaluated; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([toy, "--out", str(folder), "--seed", "3"]) == 0
    return folder


def stop_at(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal once the run has taken `step` steps."""
    on_step = RunCallback._on_step
    sent: list[int] = []

    def spied(self: RunCallback) -> bool:
        if self.num_timesteps >= step and not sent:
            sent.append(step)
            signal.raise_signal(number)
        return on_step(self)

    patch.setattr(RunCallback, "_on_step", spied)


def killed_in_training(self: RunCallback) -> None:
    """As the process were, after the checkpoint of the derivation and before any other."""
    if self.phase == "train":
        raise RuntimeError("killed")
    self.saved, self.next_log, self.next_evaluation = time.monotonic(), 10**9, 10**9
    self.display = PhaseDisplay(self.phase, self.num_timesteps, self.until, self.seconds_left)


@pytest.fixture(scope="module")
def stopped(toy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that Ctrl-C ended, by the phase in which it came."""
    folders = {}
    for phase, step in (("search", 96), ("train", 248)):
        folders[phase] = tmp_path_factory.mktemp("runs") / phase
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main([toy, "--out", str(folders[phase])]) == 130
        assert load_checkpoint(folders[phase], groups=[])[1]["phase"] == phase
    return folders


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(run: Path) -> list[int]:
    """Of every row of progress.csv, which must rise from one to the next."""
    found = [int(row["time/total_timesteps"]) for row in rows(run)]
    assert found == sorted(set(found))
    return found


def state(run: Path) -> dict[str, Any]:
    return load_checkpoint(run, groups=[])[1]


def evaluation(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return content


# What a run leaves behind


def test_folder_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
    files = ("config.yaml", "versions.json", "tree.json", "tree.png", "search.json")
    assert names == {*files, "progress.csv", "evaluation.json", "checkpoints", "model"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["name"], config["seed"], config["total_steps"]) == ("toy", 3, 320)
    assert config["agent"]["gamma"] == 0.99  # defaults are spelt out
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step-000000320"]
    assert state(finished)["phase"] == "done"
    assert {"torch", "python", "commit"} <= json.loads(
        (finished / "versions.json").read_text()
    ).keys()


def test_trees_are_those_of_the_gates(finished: Path) -> None:
    trees = load_trees(finished / "tree.json", TASKS, 1)
    report = json.loads((finished / "search.json").read_text())
    assert report["steps"] == 160
    for name, tree in zip(("actor", "critic"), trees, strict=True):
        gates = [report[name]["gates"][task] for task in TASKS]
        points = [row.index(max(row)) + 1 for row in gates]
        assert tree == Tree.from_branch_points(points, 1, TASKS)
        assert report[name]["rule"] == "consensus"
    assert ConalSAC.load_weights(finished / "model").derive() == trees


def test_progress_of_a_run(finished: Path) -> None:
    assert steps(finished) == list(range(40, 321, 40))
    searching = [bool(row["train/gate_loss"]) for row in rows(finished)]
    assert searching == [False] + [True] * 3 + [False] * 4  # the first row is before any update
    for row in rows(finished):
        assert {f"return/{task}" for task in TASKS} < row.keys()
        assert float(row["success/mean"]) >= 0


def test_evaluation_of_a_run(finished: Path) -> None:
    report = evaluation(finished)
    assert report["suite"] == ",".join(TASKS)
    assert (report["engine"], report["seed"], report["episodes_per_task"]) == ("official", 1000, 2)
    assert list(report["success"]) == list(TASKS)
    assert all(rate in (0, 0.5, 1) for rate in report["success"].values())
    assert report["mean_success"] == pytest.approx(sum(report["success"].values()) / 2)
    low, high = report["ci95"]
    assert 0 <= low <= report["mean_success"] <= high <= 1
    assert (report["steps"], report["search_steps"]) == (320, 160)
    assert 0 <= report["search_seconds"] <= report["seconds"]
    assert report["replay_of_search_reused"] is True


def test_tensorboard_has_gates_and_conflicts(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"gates_actor/{TASKS[0]}/1", f"gates_critic/{TASKS[1]}/2", "train/actor_loss"} < tags
    assert {f"held_{name}/any_pair/1" for name in ("actor", "critic")} < tags
    logged = events.Scalars(f"gates_actor/{TASKS[0]}/1")
    assert [event.step for event in logged] == [40, 80, 120, 160]


def test_same_seed_same_result(toy: str, finished: Path, tmp_path: Path) -> None:
    assert train.main([toy, "--out", str(tmp_path / "again"), "--seed", "3"]) == 0
    for name in ("tree.json", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    again, before = evaluation(tmp_path / "again"), evaluation(finished)
    for name in ("success", "returns", "episodes"):
        assert again[name] == before[name]


def test_evaluating_on_the_way_changes_nothing_else(
    toy: str, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run), "--seed", "3", "--evaluation.every", "80"]) == 0
    evaluated = [row["evaluation/mean_success"] for row in rows(run)]
    assert evaluated[0] == "" and 0 <= float(evaluated[1]) <= 1
    for name in ("tree.json", "model/model.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_default_folder(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([toy, "--seed", "5", "--search.only"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("toy-5-")


# Trees that are given


@pytest.mark.parametrize("tree", ["shared", "independent"])
def test_fixed_trees(tree: str, toy: str, tmp_path: Path) -> None:
    run = tmp_path / tree
    assert train.main([toy, "--out", str(run), "--agent.tree", tree, "--total-steps", "120"]) == 0
    expected = getattr(Tree, tree)(TASKS, 1)
    assert load_trees(run / "tree.json", TASKS, 1) == (expected, expected)
    assert not (run / "search.json").exists()
    assert steps(run) == [40, 80, 120]
    report = evaluation(run)
    assert (report["steps"], report["search_steps"], report["search_seconds"]) == (120, 0, 0)
    assert report["replay_of_search_reused"] is False


@pytest.mark.parametrize("pair", [True, False])
def test_a_tree_from_a_file(pair: bool, toy: str, finished: Path, tmp_path: Path) -> None:
    path = finished / "tree.json"
    expected = load_trees(path, TASKS, 1)
    if not pair:
        path = tmp_path / "mine.json"
        # Its tasks in another order: the suite's order counts.
        Tree.independent(TASKS[::-1], 1).save(path)
        expected = (Tree.independent(TASKS, 1),) * 2
    run = tmp_path / "run"
    options = ["--agent.tree", str(path), "--total-steps", "80"]
    assert train.main([toy, "--out", str(run), *options]) == 0
    assert load_trees(run / "tree.json", TASKS, 1) == expected
    assert ConalSAC.load_weights(run / "model").derive() == expected


def test_search_only_then_the_rest(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run), "--search.only"]) == 0
    trees = (run / "tree.json").read_bytes()
    assert steps(run) == [40, 80, 120, 160]
    assert not (run / "evaluation.json").exists()
    assert train.main(["--resume", str(run)]) == 0  # there is nothing left to do
    assert steps(run) == [40, 80, 120, 160]
    assert not (run / "evaluation.json").exists()
    assert train.main(["--resume", str(run), "--search.no-only"]) == 0
    assert (run / "tree.json").read_bytes() == trees
    assert steps(run) == list(range(40, 321, 40))
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (320, 160)
    assert not ConalSAC.load_weights(run / "model").searching


def test_without_the_searchs_replay(toy: str, tmp_path: Path) -> None:
    """The derived agent begins with random steps; also where the run is resumed among them."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(176, patch)
        assert train.main([toy, "--out", str(run), "--search.keep-replay", "false"]) == 130
    assert state(run)["agent"]["updates"] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(192, patch)
        assert train.main(["--resume", str(run)]) == 130
    assert state(run)["agent"]["updates"] == 0  # random up to step 200
    assert train.main(["--resume", str(run)]) == 0
    assert state(run)["agent"]["updates"] == 15  # from 200 on one in 8 steps
    assert sum(state(run)["agent"]["replay"]["training_added"]) in range(150, 161)
    assert evaluation(run)["replay_of_search_reused"] is False


def test_training_ends_when_its_minutes_are_over(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps of the training, and never in the search; more minutes go on."""
    run = tmp_path / "run"
    elapsed = train.Training._elapsed

    def clock(self: train.Training) -> float:
        return 60.0 if self.steps >= 200 else min(elapsed(self), 59)

    monkeypatch.setattr(train.Training, "_elapsed", clock)
    assert train.main([toy, "--out", str(run), "--minutes", "1"]) == 0
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (200, 160)
    assert sum(state(run)["agent"]["replay"]["training_added"]) == 200  # not a step is lost
    assert float(rows(run)[-1]["time/minutes"]) == report["seconds"] / 60 == 1
    assert train.main(["--resume", str(run), "--minutes", "2"]) == 0
    assert evaluation(run)["steps"] == 320
    late = tmp_path / "late"
    monkeypatch.setattr(train.Training, "_elapsed", lambda _: 120.0)
    assert train.main([toy, "--out", str(late), "--minutes", "1"]) == 0
    assert evaluation(late)["steps"] in range(160, 170)


@pytest.mark.parametrize("validated", [True, False])
def test_divergence_is_one_line(
    validated: bool,
    toy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However soon: whether the next actions cannot be drawn, or an env refuses them. The folder
    keeps what is sound."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validated)
    update = ConalSAC._update

    def broken(self: ConalSAC, *given: Any) -> dict[str, torch.Tensor]:
        if self.num_timesteps > 200:
            with torch.no_grad():
                self.actor.head.weight[0] = torch.nan
        return update(self, *given)

    monkeypatch.setattr(ConalSAC, "_update", broken)
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: a weight is not finite after ") and "training diverged" in told
    tensors, about = load_checkpoint(run)
    assert about["agent"]["steps"] == 160
    assert all(bool(weight.isfinite().all()) for weight in tensors["policy"].values())


# Other searches


DEEPER = ["--agent.widths", "8", "6", "--env.suite", *TASKS, "tests.agents.toy:Target-v0"]
METHODS = {
    "conal_pro": [],
    "ltb": ["--search.copies", "2"],
    "recon": ["--search.specific-layers", "1"],
    "conal": ["--search.purely-specific", "false", "--search.rule", "any_pair"],
}


@pytest.mark.parametrize("method", METHODS)
def test_other_searches(method: str, toy: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*DEEPER, "--search.method", method, *METHODS[method]]
    assert train.main([toy, *options, "--out", str(whole)]) == 0
    report = json.loads((whole / "search.json").read_text())
    assert report["method"] == method
    assert len(report["actor"]["mean_cosine"]) == 2
    assert all(len(row) == 3 for layer in report["critic"]["negative_share"] for row in layer)
    assert report["actor"]["rule"] == {"conal": "any_pair", "conal_pro": "consensus"}.get(
        method, "none"
    )
    trees = load_trees(whole / "tree.json", (*TASKS, "tests.agents.toy:Target-v0"), 2)
    assert ConalSAC.load_weights(whole / "model").derive() == trees
    if method == "recon":
        for tree in trees:
            assert sorted(tree.modules) == [1, 3]

    command = [toy, *options, "--out", str(parts)]
    for step in (60, 111, 180):  # CoNAL-Pro's second stage begins at step 80
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main(command) == 130
        command = ["--resume", str(parts)]
    assert train.main(command) == 0
    assert evaluation(parts)["steps"] == evaluation(whole)["steps"]


@pytest.mark.parametrize("method", ["conal", "conal_pro", "ltb", "recon"])
def test_the_searchs_weights_are_kept(
    method: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The derived agent begins with what the search has learnt, where it is asked to."""
    same: list[bool] = []
    train_trees = train.Training._train_trees

    def spied(self: train.Training, trees: tuple[Tree, ...]) -> None:
        before = self.agent
        train_trees(self, trees)
        for name in ("actor", "critic", "critic_target"):
            old, new = getattr(before, name), getattr(self.agent, name)
            pairs = list(zip(old.head.parameters(), new.head.parameters()))
            if isinstance(old.encoder, SearchSpace):
                derived = old.encoder.derive()
                pairs += zip(derived.parameters(), new.encoder.parameters())
            same.append(all(torch.equal(*pair) for pair in pairs))

    monkeypatch.setattr(train.Training, "_train_trees", spied)
    options = [*DEEPER, "--search.method", method, "--total-steps", "170", "--search.steps", "160"]
    for keeps, flag in ((True, "--search.keep-weights"), (False, "--search.no-keep-weights")):
        same.clear()
        assert train.main([toy, *options, flag, "--out", str(tmp_path / str(keeps))]) == 0
        assert same == [keeps] * 3


def test_conal_pro_goes_on_from_stage_to_stage(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor's tasks join at once, the critics' never: a tree beside a second stage."""
    agents: list[ConalSAC] = []
    next_stage = ConalSAC.next_stage

    def decided(agent: ConalSAC) -> Any:
        with torch.no_grad():
            agent.gates.get("actor", torch.zeros(2, 2))[:, 0] += 9
            agent.gates["critic"][:, 1] += 9
        agents.append(agent)
        return next_stage(agent)

    monkeypatch.setattr(ConalSAC, "next_stage", decided)
    run = tmp_path / "run"
    options = [*DEEPER[:3], "--search.method", "conal_pro"]
    assert train.main([toy, *options, "--out", str(run)]) == 0
    first, second = agents
    assert first.structures == (ProStage(1, (None, None)),) * 2
    assert second.structures == (Tree.shared(TASKS, 2), ProStage(2, (None, None)))
    assert (first.num_timesteps, second.num_timesteps) == (80, 160)
    assert first.log_ent_coef is not None and second.log_ent_coef is not None
    assert (first.log_ent_coef != 0).all()  # from where it went on in the second stage
    validation = second.replay_buffer.validation.sizes
    assert (validation > 0).all() and (first.replay_buffer.validation.sizes > 0).all()
    assert load_trees(run / "tree.json", TASKS, 2) == (
        Tree.shared(TASKS, 2),
        Tree.independent(TASKS, 2),
    )
    drawn = state(run)["agent"]["model"]["trees"]
    assert "space" not in drawn["actor"] and "space" not in drawn["critic"]


def test_a_fixed_tree_counts_conflicts(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--agent.tree", "shared", "--agent.conflict-rule", "none"]
    assert train.main([toy, *options, "--out", str(run)]) == 0
    report = json.loads((run / "training.json").read_text())
    assert report["method"] == "shared"
    assert report["critic"]["rule"] == "none" and report["critic"]["gates"] == {}
    assert report["critic"]["task_dropped"]["none"] == [[0, 0]]
    assert 0 < report["critic"]["negative_share"][0][0][1] < 1


# Stopping and going on


@pytest.mark.parametrize("phase", ["search", "train"])
def test_stop_and_resume(phase: str, stopped: dict[str, Path], tmp_path: Path) -> None:
    run = copied(stopped[phase], tmp_path)
    before = rows(run)
    at = steps(run)[-1]
    assert at == state(run)["agent"]["steps"] in (96, 248)
    assert not (run / "evaluation.json").exists()
    assert train.main(["--resume", str(run)]) == 0
    after = rows(run)
    for old, new in zip(before, after):
        assert {key: value for key, value in old.items() if value}.items() <= new.items()
    assert set(range(40, at, 40)) | {at, 320} <= set(steps(run))
    assert max(b - a for a, b in zip([0, *steps(run)], steps(run))) <= 40
    assert state(run)["phase"] == "done"
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (320, 160)
    assert report["seconds"] >= report["search_seconds"]


def test_no_episode_comes_twice(finished: Path, stopped: dict[str, Path], tmp_path: Path) -> None:
    """The envs' noise tells: neither the derived agent nor a resumed run begins the seed again."""
    resumed = copied(stopped["search"], tmp_path)
    budget = ["--total-steps", "240", "--search.steps", "160"]
    assert train.main(["--resume", str(resumed), *budget]) == 0
    for run, held in ((finished, 320), (resumed, 240)):
        transitions = load_checkpoint(run, groups=["replay"])[0]["replay"]
        noise = torch.cat([rows[:, 1:3] for rows in transitions.values()])
        assert held <= len(noise) <= held + 8
        assert len(noise.unique(dim=0)) == len(noise)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """With the native engine, which goes on within the episodes; in search and in training."""
    config = CONFIG | {"total_steps": 1_600, "env": {"suite": ["reach-v3", "push-v3"]}}
    config["search"] = {"steps": 1_200, "validation_share": 0.3}
    config["evaluation"] = {"episodes": 1}
    config["agent"] = CONFIG["agent"] | {"n_steps": 3, "mixed_precision": True, "actor_every": 2}
    path = tmp_path / "metaworld.yaml"
    path.write_text(yaml.safe_dump(config))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([str(path), "--out", str(whole)]) == 0
    command = [str(path), "--out", str(parts)]
    for step in (700, 1_104, None, 1_300):
        with pytest.MonkeyPatch.context() as patch:
            if step is None:
                patch.setattr(RunCallback, "_on_training_start", killed_in_training)
                with pytest.raises(RuntimeError, match="killed"):
                    train.main(command)
            else:
                stop_at(step, patch)
                assert train.main(command) == 130
        command = ["--resume", str(parts)]
    assert train.main(command) == 0
    (tensors, about), (again, about_again) = (load_checkpoint(run) for run in (whole, parts))
    assert about["agent"]["updates"] == about_again["agent"]["updates"] > 20
    assert about["episodes"] == about_again["episodes"]
    assert train.main(["--resume", str(whole), "--total-steps", "1700"]) == 0
    other = ["--total-steps", "1610", "--env.envs-per-task", "2"]  # which begin new episodes
    assert train.main(["--resume", str(parts), *other]) == 0
    for group, named in tensors.items():
        for name, tensor in named.items():
            assert torch.equal(tensor, again[group][name]), f"{group}: {name}"


def test_stopped_twice_in_every_phase(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [toy, "--out", str(run)]
    for step in (48, 120, 168, 240):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main(command) == 130
        command = ["--resume", str(run)]
    assert train.main(command) == 0
    assert {48, 120, 168, 240, 320} <= set(steps(run))


def test_the_message_is_a_command_that_goes_on(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "my run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(60, patch)
        assert train.main([toy, "--out", str(run)]) == 130
    *_, noted, told = capsys.readouterr().err.splitlines()
    assert noted == "stopping after this step; writing a checkpoint"
    assert told.startswith("stopped at 64 steps; go on with: python -m conal_rl.train --resume ")
    words = shlex.split(told.partition("go on with: ")[2])
    assert words == ["python", "-m", "conal_rl.train", "--resume", str(run)]


def test_sigterm_stops_as_well(toy: str, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(60, patch, signal.SIGTERM)
        assert train.main([toy, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert state(tmp_path / "run")["agent"]["steps"] == 64  # the end of a round


def test_resume_of_a_finished_run_evaluates_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path)
    before = evaluation(run)
    (run / "evaluation.json").unlink()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conal_rl.evaluation.evaluate_policy", interrupt)
        assert train.main(["--resume", str(run)]) == 130
    assert f"go on with: python -m conal_rl.train --resume {run}" in capsys.readouterr().err
    assert train.main(["--resume", str(run)]) == 0
    assert evaluation(run)["returns"] == before["returns"]
    assert steps(run) == steps(finished)


def test_resume_with_more_steps(finished: Path, tmp_path: Path) -> None:
    """Also of a finished run; and what was asked for holds for later resumes as well."""
    run = copied(finished, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(352, patch)
        assert train.main(["--resume", str(run), "--total-steps", "400"]) == 130
    assert state(run)["phase"] == "train"
    assert train.main(["--resume", str(run)]) == 0
    assert steps(run) == [*range(40, 321, 40), 352, 392, 400]
    assert evaluation(run)["steps"] == 400
    assert (run / "tree.json").read_bytes() == (finished / "tree.json").read_bytes()


def test_resume_after_a_power_cut(toy: str, tmp_path: Path) -> None:
    """Without a last checkpoint: what was logged after the newest one comes again, once."""
    run = tmp_path / "run"

    def cut_off(folder: Path, step: int, *rest: Any) -> Path:
        if step >= 240:
            raise RuntimeError("power cut")
        return save_checkpoint(folder, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_checkpoint", cut_off)
        with pytest.raises(RuntimeError, match="power cut"):
            train.main([toy, "--out", str(run), "--checkpoint-minutes", "1e-9"])
    at = state(run)["agent"]["steps"]
    assert at < 240 == steps(run)[-1]
    with (run / "progress.csv").open("a") as file:
        file.write("0.5,")  # a line cut short
    assert train.main(["--resume", str(run)]) == 0
    assert set(range(40, at + 1, 40)) | {320} <= set(steps(run))
    assert max(b - a for a, b in zip([0, *steps(run)], steps(run))) < 80


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(toy: str, tmp_path: Path) -> None:
    """The real thing: a process, a signal from outside, and the command that it printed."""
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "conal_rl.train", toy, "--out", str(run)]
    with subprocess.Popen(
        [*command, "--total-steps", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        deadline = time.monotonic() + 100
        while not (run / "progress.csv").is_file() or (run / "progress.csv").stat().st_size == 0:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in errors
    told = errors.splitlines()[-1].partition("go on with: ")[2]
    at = state(run)["agent"]["steps"]
    words = [sys.executable, *shlex.split(told)[1:], "--search.steps", str(at + 80)]
    words += ["--total-steps", str(at + 160)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean return" in done.stdout
    assert at + 160 <= steps(run)[-1] < at + 170


# Errors: one line each


@pytest.fixture
def one_line(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which must fail with status 2; returns its one line on stderr."""

    def run(*words: str) -> str:
        capfd.readouterr()
        assert train.main(list(words)) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    "options, told",
    [
        (["--env.suite", "cartpol"], "unknown suite 'cartpol'"),
        (["--env.suite", "Pendulum-v1", "Pendulun-v1"], "did you mean"),
        (["--env.suite", "Pendulum-v1", "MountainCarContinuous-v0"], "action spaces"),
        (["--env.suite", "CartPole-v1"], "a list of tasks, in YAML [CartPole-v1]"),
        (["--threads", "1000000"], "threads: got 1000000, expected at most 1024"),
        (["--agent.critic-range", "-1e300", "1e300"], "agent.critic_range"),
        (["--agent.buffer-size", "100000000000"], "buffer_size"),
        (["--env.suite", "no_such_module:Env-v0", "Pendulum-v1"], "no_such_module"),
        (["--agent.bath-size", "3"], "did you mean --agent.batch-size?"),
        (["--agent.batch-size", "many"], "agent.batch_size: got 'many', expected an integer"),
        (["--agent.batch-size", "1.5"], "agent.batch_size: got 1.5, expected an integer"),
        (["--agent.buffer-size", "-1"], "agent.buffer_size: got -1, expected more than 0"),
        (["--agent.widths", "0"], "agent.widths"),
        (["--total-steps", "0"], "total_steps: got 0"),
        (["--search.steps", "320"], "search.steps: got 320, expected at most 319"),
        (["--agent.tree", "shard"], "agent.tree: got 'shard'"),
        (["--env.suite", "mt1:reach-v3"], "agent.tree: got 'search', but reach-v3 is the only"),
        (["--search.method", "recon", "--search.specific-layers", "2"], "expected at most 1"),
        (["--search.rule", "most"], "search.rule: got 'most', expected one of any_pair"),
        (["--agent.tree", "none.json"], "none.json: cannot be read: No such file"),
        (["--agent.tree", "broken.json"], "broken.json: is not JSON"),
        (["--agent.tree", "other.json"], "other.json: the tree has a task 'a'"),
        (["--agent.tree", "deep.json"], "deep.json: the tree has 2 layers, the network 1"),
        (["--agent.tree", "mixed.json"], "mixed.json: 'a' and 'c' part"),
        (["--agent.tree", ".json"], "Is a directory"),
        (["--device", "cuda:99"], "device: cuda:99 cannot be used here"),
        (["extra"], "got "),
    ],
)
def test_wrong_commands_start_nothing(
    options: list[str],
    told: str,
    toy: str,
    one_line: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Tree.shared(TASKS, 1).to_json()
    Path("broken.json").write_text(whole[:-3])
    Path("other.json").write_text(Tree.shared("ab", 1).to_json())
    Path("deep.json").write_text(Tree.shared(TASKS, 2).to_json())
    Path("mixed.json").write_text(
        Tree.shared("abc", 2).to_json().replace('[["a", "b", "c"]]', '[["a", "b"], ["c"]]', 1)
    )
    Path(".json").mkdir()
    files = set(tmp_path.iterdir())
    assert told in one_line(toy, *options, "--out", "run")
    assert told in one_line(toy, *options)
    assert set(tmp_path.iterdir()) == files


@pytest.mark.parametrize("tree", ["shared", "search"])
def test_a_missing_extra_starts_nothing(
    tree: str, toy: str, one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighting, "find_spec", lambda name: None)
    options = ["--agent.weighting", "upgrad", "--out", str(tmp_path / "r")]
    told = one_line(toy, "--agent.tree", tree, *options)
    assert told.startswith(
        "upgrad needs qpsolvers and quadprog: pip install 'conal_rl[aggregation]"
    )
    assert not (tmp_path / "r").exists()


def test_a_config_that_is_none(one_line: Any, tmp_path: Path) -> None:
    assert "did you mean cartpole?" in one_line("cartpol")
    assert "No such file" in one_line(str(tmp_path / "none.yaml"))
    assert "name one" in one_line()
    path = tmp_path / "bad.yaml"
    path.write_text("total_steps: 10\nenv: {suite: cartpole}\nagent: {batch_size: [1]}\n")
    assert one_line(str(path)).startswith(f"{path}: agent.batch_size: got [1]")
    path.write_text("total_steps: {")
    assert "not valid YAML" in one_line(str(path))


def test_a_folder_in_use(toy: str, finished: Path, one_line: Any, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "holds files already" in one_line(toy, "--out", str(finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_resume_without_a_run(one_line: Any, tmp_path: Path, toy: str) -> None:
    assert "nowhere" in one_line("--resume", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in one_line("--resume", str(tmp_path / "empty"))
    started = tmp_path / "started"
    started.mkdir()
    shutil.copy(toy, started / "config.yaml")
    assert "no complete checkpoint" in one_line("--resume", str(started))
    assert not any((tmp_path / "empty").iterdir())
    assert "leave out --out" in one_line("--resume", str(started), "--out", "x")
    assert "leave out cartpole" in one_line("cartpole", "--resume", str(started))


def test_two_processes_on_one_run(stopped: dict[str, Path], one_line: Any, tmp_path: Path) -> None:
    run = copied(stopped["train"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with Run(run).alone():
        assert "another process is training in it" in one_line("--resume", str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert train.main(["--resume", str(run)]) == 0


CHECKPOINT_FILES = ("manifest.json", "state.json", "policy.safetensors", "replay.safetensors")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_resume_from_a_truncated_checkpoint(
    name: str, stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    run = copied(stopped["train"], tmp_path)
    (path,) = run.glob(f"checkpoints/*/{name}")
    os.truncate(path, path.stat().st_size - 1)
    before = (run / "progress.csv").read_bytes()
    assert name in one_line("--resume", str(run))
    assert (run / "progress.csv").read_bytes() == before


@pytest.mark.parametrize("phase", ["search", "train"])
@pytest.mark.parametrize(
    "options, told",
    [
        (["--env.suite", "cartpole"], "the checkpoint is of tasks"),
        # The same spaces: only the names tell.
        (["--env.suite", "tests.agents.toy:Left-v0", "tests.agents.toy:Broken-v0"], "Broken-v0"),
        (["--env.suite", "nothing"], "unknown suite 'nothing'"),
        (["--agent.widths", "16"], "size mismatch for actor"),
        (["--agent.critic", "hl_gauss"], "size mismatch for critic"),
        (["--agent.buffer-size", "20"], "buffer_size"),
        (["--agent.tree", "shared"], "agent.tree"),
        (["--search.method", "ltb"], "search.method: got 'ltb', but"),
    ],
)
def test_resume_as_another_run(
    phase: str,
    options: list[str],
    told: str,
    stopped: dict[str, Path],
    one_line: Any,
) -> None:
    run = stopped[phase]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert told in one_line("--resume", str(run), *options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_strangers_state(stopped: dict[str, Path], one_line: Any, tmp_path: Path) -> None:
    """JSON that is whole and of this format, but lacks what a run needs."""
    run = copied(stopped["search"], tmp_path)
    (checkpoint,) = (run / "checkpoints").iterdir()
    content = json.loads((checkpoint / "state.json").read_text())
    tensors = load_checkpoint(run)[0]
    for name in ("phase", "seconds", "agent"):
        lacking = {key: value for key, value in content.items() if key != name}
        save_checkpoint(run, 1_000, tensors, lacking)
        assert name in one_line("--resume", str(run))
    for trees in ({}, {"actor": {"space": "conal"}}, {"actor": {"space": "x"}, "critic": 3}):
        content["agent"]["model"]["trees"] = trees
        save_checkpoint(run, 1_000, tensors, content)
        assert "does not describe a run" in one_line("--resume", str(run))


def test_an_env_that_breaks(one_line: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    suite = [TASKS[0], "tests.agents.toy:Broken-v0"]
    path.write_text(yaml.safe_dump(CONFIG | {"env": {"suite": suite}, "log_interval": 1000}))
    line = one_line(str(path), "--out", str(tmp_path / "run"))
    assert line.startswith("task 'tests.agents.toy:Broken-v0', env 0 of the task: the observation")
    assert "NaN" in line
    assert (tmp_path / "run" / "config.yaml").is_file()  # this one was started


def test_an_env_that_is_broken_from_the_start(one_line: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(
        yaml.safe_dump(CONFIG | {"env": {"suite": ["tests.agents.toy:BrokenAtOnce-v0"]}})
    )
    line = one_line(str(path), "--out", str(tmp_path / "run"))
    assert "NaN or inf at step 0" in line
    assert not (tmp_path / "run").exists()


def test_the_time_left_is_what_ends_first(capfd: pytest.CaptureFixture[str]) -> None:
    for left, told in ((120.0, "2 min left"), (-5.0, "0 min left"), (math.inf, " min left")):
        display = PhaseDisplay("train", 0, 10**12, lambda left=left: left)  # type: ignore[misc]
        display.line(10, "")
        display.close()
        line = capfd.readouterr().err
        assert told in line
    assert int(line.split(", ")[-2].split()[0]) > 2  # by steps


# The log file


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "progress.csv"


@pytest.mark.parametrize("content", ["", "\n", "time/total_timesteps", "time/total_timesteps,x\n"])
def test_a_log_without_rows(content: str, log: Path) -> None:
    log.write_text(content)
    output = ContinuedCSV(log, 100)
    output.write({"time/total_timesteps": 120, "x": 1.5}, {"time/total_timesteps": (), "x": ()})
    output.close()
    with log.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"time/total_timesteps": "120", "x": "1.5"}]


@pytest.mark.parametrize("content", ["x\n1\n", "time/total_timesteps\nmany\n", b"\xff\n", "a,b\n"])
def test_a_log_that_is_none(content: str | bytes, log: Path) -> None:
    damaged = content if isinstance(content, bytes) else content.encode()
    log.write_bytes(damaged + b"1,2\n")
    with pytest.raises(CheckpointError, match=r"progress\.csv: damaged"):
        ContinuedCSV(log, 100)
    assert log.read_bytes() == damaged + b"1,2\n"


def test_a_log_goes_on(log: Path) -> None:
    log.write_text('time/total_timesteps,x,y\n40,1,\n80,nan,"2"\n120,3,4\n160,5')
    output = ContinuedCSV(log, 80)
    output.write({"time/total_timesteps": 120, "z": 7}, {"time/total_timesteps": (), "z": ()})
    output.close()
    with log.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"time/total_timesteps": "40", "x": "1", "y": "", "z": ""},
            {"time/total_timesteps": "80", "x": "nan", "y": "2", "z": ""},
            {"time/total_timesteps": "120", "x": "", "y": "", "z": "7"},
        ]


# What goes wrong at the end of a search


def test_a_search_is_not_lost_where_its_end_fails(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "atomic_write", full)
        assert train.main([toy, "--out", str(run)]) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told == f"error: {run / 'search.json'}: No space left on device"
    assert train.main(["--resume", str(run)]) == 0
    assert evaluation(run)["search_steps"] == 160


def test_a_stage_leaves_its_conflicts_and_gates(toy: str, tmp_path: Path) -> None:
    """Of every task that was not settled before; `report conflicts` draws all stages."""
    run = tmp_path / "run"
    assert train.main([toy, *DEEPER, "--search.method", "conal_pro", "--out", str(run)]) == 0
    stages = [json.loads(path.read_text()) for path in sorted(run.glob("search-stage-*.json"))]
    assert [len(stages[0][network]["gates"]) for network in ("actor", "critic")] == [3, 3]
    last = json.loads((run / "search.json").read_text())
    assert last["actor"] == stages[-1]["actor"] and last["critic"] == stages[-1]["critic"]
    drawn = [phase.name for phase in read_record(run, "run").phases]
    assert drawn == [f"search-stage-{number}" for number in range(1, len(stages) + 1)]


def test_what_is_settled_first_goes_on_as_the_search_does(toy: str) -> None:
    """No aggregation before the search is over."""
    config = load_config(toy, ["--agent.weighting", "pcgrad", "--search.method", "conal_pro"])
    assert isinstance(config, Config)
    env = make(list(TASKS))
    pair = Tree.shared(TASKS, 1), ProStage.first(2)
    rules = [learner.rule for learner in make_agent(config, env, pair).learners.values()]
    assert all(isinstance(rule, ConflictNoticing) for rule in rules)
    trees = Tree.shared(TASKS, 1), Tree.shared(TASKS, 1)
    rules = [learner.rule for learner in make_agent(config, env, trees).learners.values()]
    assert all(isinstance(rule, weighting.Aggregation) for rule in rules)


# Envs without an end


def test_a_search_without_an_update_derives_nothing(
    toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = ["--env.suite", "tests.agents.toy:Endless-v0", "tests.agents.toy:Left-v0"]
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run), *suite]) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "error: no tree can be derived: the 160 steps of the search were without"
    )
    assert "max_episode_steps" in told
    assert not (run / "tree.json").exists()


# Machines without fast products in bfloat16


def test_single_precision_where_bfloat16_is_slower(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run is that of `--agent.no-mixed-precision`, to the last bit."""
    monkeypatch.setattr(train, "bfloat16_pays", lambda device: False)
    weights = []
    for name, option in (
        ("asked", "--agent.mixed-precision"),
        ("not", "--agent.no-mixed-precision"),
    ):
        assert train.main([toy, "--out", str(tmp_path / name), option]) == 0
        told = "bfloat16 would be slower here" in capfd.readouterr().err
        assert told == (name == "asked")
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


# Suites that come with others


def test_cartpole_preset(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--total-steps", "1400", "--search.steps", "700", "--agent.learning-starts", "30"]
    options += ["--evaluation.episodes", "2", "--log-interval", "350", "--agent.update-every", "4"]
    assert train.main(["cartpole", "--out", str(run), *options]) == 0
    report = evaluation(run)
    assert len(report["success"]) == 7
    assert 0 <= report["mean_success"] <= 1


def test_a_users_yaml_of_gymnasium_envs(tmp_path: Path) -> None:
    """Ten lines: tasks that define no success, actions in [-2, 2]."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
total_steps: 480
env:
  suite: [Pendulum-v1, Pendulum-v1]
agent:
  tree: shared
  widths: [16]
  learning_starts: 200
  update_every: 20
  critic: mse
evaluation: {episodes: 1}
"""
    )
    assert train.main([str(path), "--out", str(tmp_path / "run")]) == 0
    report = evaluation(tmp_path / "run")
    assert report["success"] == {"Pendulum-v1": None, "Pendulum-v1#2": None}
    assert report["mean_success"] is None and report["ci95"] is None
    assert all(-2000 < value < 0 for value in report["returns"].values())
