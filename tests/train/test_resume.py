"""Runs of the train command that are stopped, killed, and resumed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conal_rl import train
from conal_rl.agents.callback import RunCallback
from conal_rl.runs import trainer
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.runs.progress import make_logger
from tests.helpers.toy_runs import (
    CONFIG,
    ROOT,
    copied,
    evaluation,
    killed_in_training,
    rows,
    state,
    steps,
    stop_at,
)


@pytest.mark.parametrize("phase", ["search", "train"])
def test_stop_and_resume(phase: str, stopped: dict[str, Path], tmp_path: Path) -> None:
    run = copied(stopped[phase], tmp_path)
    before = rows(run)
    at = steps(run)[-1]
    assert at == state(run)["agent"]["steps"] in (96, 248)
    assert not (run / "evaluation.json").exists()
    assert train.main(["--resume", str(run), "--evaluation.every", "120"]) == 0
    after = rows(run)
    for old, new in zip(before, after):
        assert {key: value for key, value in old.items() if value}.items() <= new.items()
    assert {*range(40, 321, 40), at} == set(steps(run))  # no other rhythm after the stop
    evaluated = [row["time/total_timesteps"] for row in after if row.get("evaluation/mean_success")]
    assert evaluated == [str(step) for step in (120, 240) if step > at]
    assert state(run)["phase"] == "done"
    report = evaluation(run)
    assert (report["steps"], report["search_steps"]) == (320, 160)
    assert report["seconds"] >= report["search_seconds"]
    assert train.main(["--resume", str(run)]) == 0
    assert rows(run) == after  # nothing was left to log


def test_means_over_episodes_continue_after_a_resume(
    stopped: dict[str, Path], tmp_path: Path
) -> None:
    run = copied(stopped["train"], tmp_path)
    before = state(run)["agent"]["last_episodes"]
    assert train.main(["--resume", str(run), "--total-steps", "272"]) == 0
    assert before and state(run)["agent"]["last_episodes"][: len(before)] == before
    returns, lengths = zip(*state(run)["agent"]["last_episodes"], strict=True)
    last = rows(run)[-1]
    assert float(last["rollout/ep_rew_mean"]) == pytest.approx(sum(returns) / len(returns))
    assert float(last["rollout/ep_len_mean"]) == pytest.approx(sum(lengths) / len(lengths))


def test_an_evaluation_that_was_due_at_the_stop_comes_after_it(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--agent.tree", "shared", "--total-steps", "200", "--evaluation.every", "80"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(80, patch)
        assert train.main([toy, "--out", str(run), *options]) == 130
    assert state(run)["agent"]["steps"] == 80 == state(run)["next_evaluation"]
    assert train.main(["--resume", str(run)]) == 0
    assert [s for s, row in zip(steps(run), rows(run)) if row["evaluation/mean_success"]] == [
        120,  # the line after it
        160,
    ]
    longer = ["--total-steps", "320", "--evaluation.every", "100"]  # what is next is 300
    assert train.main(["--resume", str(run), *longer]) == 0
    evaluated = [s for s, row in zip(steps(run), rows(run)) if row["evaluation/mean_success"]]
    assert evaluated == [120, 160, 320]


@pytest.mark.slow
def test_curves_of_a_resumed_run_are_one_branch(tmp_path: Path) -> None:
    """Lines logged after the checkpoint that a run resumes from come again, once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_at, logged in ((0, (10, 20, 30, 40)), (20, (30, 35)), (35, ()), (30, (40,))):
        logger = make_logger(tmp_path, resumed_at)
        for step in logged:
            logger.record("time/total_timesteps", step)
            logger.record("loss", resumed_at)
            logger.dump(step)
        logger.close()
        time.sleep(1.1)  # a file's name has the second in which it was begun
    events = EventAccumulator(str(tmp_path)).Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(10, 0), (20, 0), (30, 20), (40, 30)]


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
    """With the native engine, which resumes its episodes; in search and in training."""
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


@pytest.mark.slow
def test_a_run_stopped_twice_in_every_phase_is_the_same(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [toy, "--out", str(run)]
    for step in (48, 120, 168, 240):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main(command) == 130
        command = ["--resume", str(run)]
    assert train.main(command) == 0
    assert {48, 120, 168, 240, 320} <= set(steps(run))


def test_the_message_is_a_command_that_resumes(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "my run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(60, patch)
        assert train.main([toy, "--out", str(run)]) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert "64 steps" in last
    words = shlex.split(last.partition(": ")[2])
    assert words == ["python", "-m", "conal_rl.train", "--resume", str(run)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_as_well(number: int, toy: str, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(60, patch, number)
        assert train.main([toy, "--out", str(tmp_path / "run")]) == 128 + number
    assert signal.getsignal(number) == before
    assert state(tmp_path / "run")["agent"]["steps"] == 64  # the end of a round


def test_resume_of_a_finished_run_evaluates_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path)
    before = evaluation(run)
    (run / "evaluation.json").unlink()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conal_rl.evaluation.evaluate_policy", interrupt)
        assert train.main(["--resume", str(run)]) == 130
    assert f"python -m conal_rl.train --resume {run}" in capsys.readouterr().err
    assert train.main(["--resume", str(run)]) == 0
    assert evaluation(run)["returns"] == before["returns"]
    assert steps(run) == steps(finished)


def test_a_resume_may_raise_total_steps(finished: Path, tmp_path: Path) -> None:
    """Also of a finished run. Later resumes keep the new total_steps."""
    run = copied(finished, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(352, patch)
        assert train.main(["--resume", str(run), "--total-steps", "400"]) == 130
    assert state(run)["phase"] == "train"
    assert train.main(["--resume", str(run)]) == 0
    assert steps(run) == [*range(40, 321, 40), 352, 360, 400]
    assert evaluation(run)["steps"] == 400
    assert (run / "tree.json").read_bytes() == (finished / "tree.json").read_bytes()


@pytest.mark.slow
def test_ctrl_c_while_the_last_checkpoint_is_written(toy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def interrupted(folder: Path, step: int, tensors: Any, about: Any) -> Path:
        if about["phase"] == "done":
            signal.raise_signal(signal.SIGINT)
        return save_checkpoint(folder, step, tensors, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", interrupted)
        assert train.main([toy, "--out", str(run)]) == 130
    assert state(run)["phase"] == "done" and not (run / "evaluation.json").exists()
    assert train.main(["--resume", str(run)]) == 0
    assert evaluation(run)["steps"] == 320


@pytest.mark.slow
def test_a_resume_after_a_power_cut_logs_each_step_once(toy: str, tmp_path: Path) -> None:
    """Without a last checkpoint: what was logged after the newest one comes again, once."""
    run = tmp_path / "run"

    def cut_off(folder: Path, step: int, *rest: Any) -> Path:
        if step >= 240:
            raise RuntimeError("power cut")
        return save_checkpoint(folder, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", cut_off)
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
def test_ctrl_c_in_a_terminal_stops_and_resumes(toy: str, tmp_path: Path) -> None:
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
    command_to_resume = errors.splitlines()[-1].partition(": ")[2]
    at = state(run)["agent"]["steps"]
    words = [sys.executable, *shlex.split(command_to_resume)[1:], "--search.steps", str(at + 80)]
    words += ["--total-steps", str(at + 160)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean return" in done.stdout
    assert at + 160 <= steps(run)[-1] < at + 170
