"""The train command from end to end on toy tasks, and the folder that it leaves behind."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from conal_rl import train
from conal_rl.agents import ConalSAC
from conal_rl.agents.experiment import _say_if_slow
from conal_rl.agents.tree_files import load_trees
from conal_rl.config import Config, load_config
from conal_rl.core import Tree
from conal_rl.errors import CheckpointError
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import ContinuedCSV, PhaseDisplay, make_logger
from conal_rl.runs.trainer import Trainer
from tests.helpers.toy_runs import TASKS, copied, evaluation, rows, state, steps, stop_at

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


def test_progress_has_a_fixed_order_and_no_nan(finished: Path) -> None:
    header, *lines = (finished / "progress.csv").read_text().splitlines()
    columns = header.split(",")
    returns = [f"return/{task}" for task in TASKS]
    successes = [f"success/{task}" for task in TASKS]
    first = ["time/total_timesteps", "phase", "success/mean", *successes, *returns]
    assert columns[: len(first)] == first
    kinds = [name.partition("/")[0] for name in columns[len(first) :]]
    assert kinds == sorted(kinds, key=["rollout", "train", "time"].index)
    assert "nan" not in "".join(lines)
    assert "rollout/success_rate" not in columns
    phases = [row["phase"] for row in rows(finished)]
    assert phases == ["search"] * 4 + ["train"] * 4


def test_counters_continue_after_the_search_and_a_resume(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stop in (100, 248):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(stop, patch)
            start = ["--resume", str(run)] if run.exists() else [toy, "--out", str(run)]
            assert train.main(start) == 130
    assert train.main(["--resume", str(run)]) == 0
    for name in ("train/n_updates", "time/time_elapsed", "time/minutes", "time/episodes"):
        values = [float(row[name]) for row in rows(run)]
        assert values == sorted(values), name


def test_a_run_says_where_it_is_and_what_comes_next(
    toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run)]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"The run is in {run}."
    assert lines[-5:] == [
        f"The run is in {run}. Next:",
        f"  python -m conal_rl.evaluate {run}",
        f"  python -m conal_rl.report success {run}",
        f"  python -m conal_rl.report conflicts {run}",
        f"  tensorboard --logdir {run}",
    ]


@pytest.mark.parametrize(
    ("device", "preset", "slow"),
    [
        ("cpu", "mt10_paper", True),
        ("cpu", "mt10", False),
        ("cuda", "mt10_paper", False),
    ],
)
def test_networks_for_a_gpu_on_a_cpu_are_announced(
    device: str, preset: str, slow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(preset)
    assert isinstance(config, Config)
    env = SimpleNamespace(num_tasks=10, num_envs=10 * config.env.envs_per_task)
    _say_if_slow(config, env, torch.device(device))  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == slow
    assert all("125,000 updates of 256" in line and "mt10 takes" in line for line in lines)


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


def scalars(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_gates_and_conflicts(finished: Path) -> None:
    events = scalars(finished)
    tags = set(events.Tags()["scalars"])
    gates = [f"tree_gates_actor/{TASKS[0]}/1", f"tree_gates_critic/{TASKS[1]}/2"]
    assert {*gates, "train/actor_loss"} < tags
    assert {f"tree_held_{name}/any_pair/1" for name in ("actor", "critic")} < tags
    assert [event.step for event in events.Scalars(gates[0])] == [40, 80, 120, 160]


def test_tensorboard_shows_success_before_diagnostics(finished: Path) -> None:
    groups = sorted({tag.partition("/")[0] for tag in scalars(finished).Tags()["scalars"]})
    assert groups[:4] == ["final", "return", "rollout", "success"]
    assert groups[4:6] == ["time", "train"]
    assert groups[6:] and all(group.startswith("tree_") for group in groups[6:])


def test_tensorboard_has_the_config_and_the_final_scores(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    assert train.main(["--resume", str(run)]) == 0  # it only evaluates
    report = evaluation(run)
    for folder in (finished, run):
        events = scalars(folder)
        (text,) = events.Tensors("config/text_summary")[-1].tensor_proto.string_val
        assert yaml.safe_load(text) == yaml.safe_load((run / "config.yaml").read_text())
        expected = {"mean_success": report["mean_success"]}
        for kind in ("success", "returns"):
            expected |= {f"{kind}/{task}": value for task, value in report[kind].items()}
        for name, value in expected.items():
            last = events.Scalars(f"final/{name}")[-1]
            assert (last.step, last.value) == (320, pytest.approx(value))
        assert [event.step for event in events.Scalars("success/mean")] == steps(run)


def test_the_same_seed_gives_the_same_files(toy: str, finished: Path, tmp_path: Path) -> None:
    assert train.main([toy, "--out", str(tmp_path / "again"), "--seed", "3"]) == 0
    for name in ("tree.json", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    again, before = evaluation(tmp_path / "again"), evaluation(finished)
    for name in ("success", "returns", "episodes"):
        assert again[name] == before[name]


def test_evaluations_during_training_change_nothing_else(
    toy: str, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run), "--seed", "3", "--evaluation.every", "80"]) == 0
    evaluated = [row["evaluation/mean_success"] for row in rows(run)]
    assert evaluated[0] == "" and 0 <= float(evaluated[1]) <= 1
    for name in ("tree.json", "model/model.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_the_default_folder_has_name_seed_and_time(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([toy, "--seed", "5", "--search.only"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("toy-5-")


def test_the_default_folder_names_a_method_that_options_chose(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--search.rule", "none", "--total-steps", "320", "--search.only"]
    assert train.main([toy, *options]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("toy-conal_no_noticing-0-")
    assert "instead of" not in capsys.readouterr().err


def test_a_cut_search_is_announced(
    toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--total-steps", "240", "--search.only"]
    assert train.main([toy, "--out", str(tmp_path / "run"), *options]) == 0
    announced = [line for line in capfd.readouterr().err.splitlines() if "instead of" in line]
    assert [line.startswith("search.steps: the search has 48 steps") for line in announced] == [
        True
    ]


def test_envs_get_only_actions_within_their_bounds(toy: str, tmp_path: Path) -> None:
    suite = ["--env.suite", *["tests.helpers.toy:Strict-v0"] * 2]
    assert train.main([toy, "--out", str(tmp_path / "run"), *suite, "--total-steps", "240"]) == 0


# Trees that are given


@pytest.mark.parametrize("tree", ["shared", "independent"])
def test_fixed_trees_train_without_a_search(tree: str, toy: str, tmp_path: Path) -> None:
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
def test_a_tree_from_a_file_is_trained(
    pair: bool, toy: str, finished: Path, tmp_path: Path
) -> None:
    path = finished / "tree.json"
    expected = load_trees(path, TASKS, 1)
    if not pair:
        path = tmp_path / "mine.json"
        # Its tasks are in a different order: the suite's order counts.
        Tree.independent(TASKS[::-1], 1).save(path)
        expected = (Tree.independent(TASKS, 1),) * 2
    run = tmp_path / "run"
    options = ["--agent.tree", str(path), "--total-steps", "80"]
    assert train.main([toy, "--out", str(run), *options]) == 0
    assert load_trees(run / "tree.json", TASKS, 1) == expected
    assert ConalSAC.load_weights(run / "model").derive() == expected


def test_search_only_stops_and_a_resume_trains(
    toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    capfd.readouterr()
    assert train.main([toy, "--out", str(run), "--search.only"]) == 0
    assert f"train --resume {run} --search.no-only" in capfd.readouterr().err
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


@pytest.mark.slow
def test_a_derived_agent_without_replay_begins_at_random(toy: str, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_training_ends_with_its_minutes(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps of the training, and never in the search; more minutes continue it."""
    run = tmp_path / "run"
    elapsed = Trainer._elapsed

    def clock(self: Trainer) -> float:
        return 60.0 if self.experiment.steps >= 200 else min(elapsed(self), 59)

    monkeypatch.setattr(Trainer, "_elapsed", clock)
    assert train.main([toy, "--out", str(run), "--minutes", "1"]) == 0
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (200, 160)
    assert sum(state(run)["agent"]["replay"]["training_added"]) == 200  # not a step is lost
    assert float(rows(run)[-1]["time/minutes"]) == report["seconds"] / 60 == 1
    assert train.main(["--resume", str(run), "--minutes", "2"]) == 0
    assert evaluation(run)["steps"] == 320
    late = tmp_path / "late"
    monkeypatch.setattr(Trainer, "_elapsed", lambda _: 120.0)
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
    """Either the next actions cannot be drawn, or an env refuses them. The checkpoint stays."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validated)
    finish = ConalSAC.finish_updates

    def broken(self: ConalSAC, batch_size: int | None = None) -> None:
        if self.queue.pending and self.num_timesteps > 200:
            with torch.no_grad():
                self.actor.head.weight[0] = torch.nan
        finish(self, batch_size)

    monkeypatch.setattr(ConalSAC, "finish_updates", broken)
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite after " in error and "diverged" in error
    tensors, about = load_checkpoint(run)
    assert about["agent"]["steps"] == 160
    assert all(bool(weight.isfinite().all()) for weight in tensors["policy"].values())


# The bar and the log file


@pytest.mark.parametrize("until", [400_000, 10_000_000])
def test_a_bar_of_80_columns_has_its_numbers(until: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhaseDisplay, "rate", lambda *_: 1488.0)
    display = PhaseDisplay("search", 0, until, 10_000_000, lambda: math.inf)
    display.show(until - 1, "success 0.72, return 3076.2, evaluated 0.95")
    display.close()
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(display._progress.get_renderable())
    (line,) = shown.get().splitlines()
    assert f"{until - 1}/{until}" in line and "1,488/s" in line
    assert "min left" in line and "success 0.72" in line


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "progress.csv"


@pytest.mark.parametrize("content", ["", "\n", "time/total_timesteps", "time/total_timesteps,x\n"])
def test_a_log_without_rows_can_be_continued(content: str, log: Path) -> None:
    log.write_text(content)
    output = ContinuedCSV(log, 100)
    output.write({"time/total_timesteps": 120, "x": 1.5}, {"time/total_timesteps": (), "x": ()})
    output.close()
    with log.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"time/total_timesteps": "120", "x": "1.5"}]


@pytest.mark.parametrize("content", ["x\n1\n", "time/total_timesteps\nmany\n", b"\xff\n", "a,b\n"])
def test_a_file_that_is_not_a_log_is_refused(content: str | bytes, log: Path) -> None:
    damaged = content if isinstance(content, bytes) else content.encode()
    log.write_bytes(damaged + b"1,2\n")
    with pytest.raises(CheckpointError, match=r"progress\.csv: "):
        ContinuedCSV(log, 100)
    assert log.read_bytes() == damaged + b"1,2\n"


def test_nan_is_an_empty_cell_and_not_a_point(tmp_path: Path) -> None:
    logger = make_logger(tmp_path, 0)
    for step, value in ((10, np.nan), (20, 1.5)):
        logger.record("time/total_timesteps", step)
        logger.record("loss/a", value)
        logger.record("loss/b", np.float32(value))
        logger.dump(step)
    logger.record("loss/c", 1.0, exclude="csv")
    logger.dump(30)
    logger.close()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert lines == ["time/total_timesteps,loss/a,loss/b", "10,,", "20,1.5,1.5"]
    points = scalars(tmp_path)
    assert [(event.step, event.value) for event in points.Scalars("loss/a")] == [(20, 1.5)]
    assert [event.step for event in points.Scalars("loss/b")] == [20]


def test_a_log_continues_at_the_checkpoint(log: Path) -> None:
    log.write_text('time/total_timesteps,x,y\n40,1,\n80,nan,"2"\n120,3,4\n160,5')
    output = ContinuedCSV(log, 80)
    assert log.read_text() == 'time/total_timesteps,x,y\n40,1,\n80,nan,"2"\n'
    output.write({"time/total_timesteps": 120, "z": 7}, {"time/total_timesteps": (), "z": ()})
    output.close()
    with log.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"time/total_timesteps": "40", "x": "1", "y": "", "z": ""},
            {"time/total_timesteps": "80", "x": "nan", "y": "2", "z": ""},
            {"time/total_timesteps": "120", "x": "", "y": "", "z": "7"},
        ]


def test_a_log_is_whole_when_the_process_dies(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_text("time/total_timesteps,x\n40,1\n80,2\n")
    before = log.read_bytes()

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(RuntimeError, match="killed"):
        ContinuedCSV(log, 80)
    assert log.read_bytes() == before
    assert list(log.parent.iterdir()) == [log]


# Precision


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Changes this machine into one with, or without, bfloat16 instructions."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def change(bfloat16: bool) -> None:
        monkeypatch.setattr("conal_rl.device._capabilities", lambda: {"amx_bf16": bfloat16})

    return change


def precision(run: Path) -> str:
    return str(json.loads((run / "versions.json").read_text())["precision"])


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_without_bfloat16_instructions_is_single(
    toy: str,
    tmp_path: Path,
    machine: Callable[[bool], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run is that of `--agent.no-mixed-precision`, to the last bit."""
    machine(False)
    for option in ("mixed-precision", "no-mixed-precision"):
        run = tmp_path / option
        assert train.main([toy, "--out", str(run), f"--agent.{option}"]) == 0
        assert ("single precision" in capfd.readouterr().err) == (option == "mixed-precision")
        assert precision(run) == "single"
    assert weights(tmp_path / "mixed-precision") == weights(tmp_path / "no-mixed-precision")


@pytest.mark.slow
def test_a_resume_keeps_the_precision_of_the_run(
    toy: str,
    tmp_path: Path,
    machine: Callable[[bool], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A machine without the instructions is slow, and computes the same."""
    for name, stays in (("here", True), ("moved", False)):
        run = tmp_path / name
        machine(True)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(248, patch)
            assert train.main([toy, "--out", str(run), "--agent.mixed-precision"]) == 130
        assert precision(run) == "bfloat16"
        machine(stays)
        capfd.readouterr()
        assert train.main(["--resume", str(run)]) == 0
        lines = [line for line in capfd.readouterr().err.splitlines() if "bfloat16" in line]
        assert len(lines) == (not stays)
        assert all("--agent.no-mixed-precision" in line for line in lines)
        assert precision(run) == "bfloat16"
    assert weights(tmp_path / "here") == weights(tmp_path / "moved")


@pytest.mark.slow
def test_a_resume_can_change_the_precision(
    toy: str, tmp_path: Path, machine: Callable[[bool], None]
) -> None:
    run = tmp_path / "run"
    machine(True)
    for option, expected in (("mixed", "bfloat16"), ("no-mixed", "single"), ("mixed", "bfloat16")):
        start = ["--resume", str(run)] if run.exists() else [toy, "--out", str(run)]
        steps = 320 if not run.exists() else state(run)["agent"]["steps"] + 40
        with pytest.MonkeyPatch.context() as patch:
            stop_at(steps - 40, patch)
            words = ["--total-steps", str(steps), f"--agent.{option}-precision"]
            assert train.main([*start, *words]) == 130
        assert precision(run) == expected


def test_a_finished_run_keeps_its_precision(
    finished: Path,
    tmp_path: Path,
    machine: Callable[[bool], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished, tmp_path / "run")
    machine(True)
    before = evaluation(run)
    assert precision(run) == "single"
    assert train.main(["--resume", str(run), "--agent.mixed-precision"]) == 0
    assert "agent.mixed_precision: no effect" in capsys.readouterr().err
    assert precision(run) == "single"
    assert evaluation(run)["returns"] == before["returns"]


def test_precision_of_a_run_before_it_was_recorded(finished: Path, tmp_path: Path) -> None:
    """Version 0.1.0 kept an agent's precision only with its weights."""
    run = copied(finished, tmp_path / "run")
    about = json.loads((run / "model" / "model.json").read_text())
    for half, expected in ((True, "bfloat16"), (False, "single")):
        (run / "versions.json").write_text("{}")
        about["architecture"]["mixed_precision"] = half
        (run / "model" / "model.json").write_text(json.dumps(about))
        assert Run(run).precision() == expected
    (run / "versions.json").write_text('{"precision": "half"}')
    with pytest.raises(CheckpointError, match=r"versions.json: precision: .*'half'"):
        Run(run).precision()


# Suites that come with others


def test_the_cartpole_preset_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--total-steps", "1400", "--search.steps", "700", "--agent.learning-starts", "30"]
    options += ["--evaluation.episodes", "2", "--log-interval", "350", "--agent.update-every", "4"]
    assert train.main(["cartpole", "--out", str(run), *options]) == 0
    report = evaluation(run)
    assert len(report["success"]) == 7
    assert 0 <= report["mean_success"] <= 1


def test_a_users_yaml_of_gymnasium_envs_trains(tmp_path: Path) -> None:
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
