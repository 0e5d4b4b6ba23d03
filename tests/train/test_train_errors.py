"""The train command refuses wrong input, in one line each."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conal_rl import evaluation as conal_evaluation
from conal_rl import train
from conal_rl.config import load_config
from conal_rl.core import Tree, weighting
from conal_rl.errors import SuiteError
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import PhaseDisplay
from tests.helpers.toy_runs import CONFIG, TASKS, copied, state


@pytest.mark.parametrize(
    "options, part",
    [
        (["--env.suite", "cartpol"], "suite: got 'cartpol'"),
        (["--env.suite", "Pendulum-v1", "Pendulun-v1"], "'Pendulun-v1', expected"),
        (["--env.suite", "Pendulum-v1", "MountainCarContinuous-v0"], "action space: got Box"),
        (["--env.suite", "CartPole-v1"], "[CartPole-v1]"),
        (["--threads", "1000000"], "threads: got 1000000, expected at most 1024"),
        (["--agent.critic-range", "-1e300", "1e300"], "agent.critic_range"),
        (["--agent.buffer-size", "100000000000"], "buffer_size"),
        (["--env.suite", "no_such_module:Env-v0", "Pendulum-v1"], "no_such_module"),
        (["--agent.bath-size", "3"], "Did you mean --agent.batch-size?"),
        (["--agent.batch-size", "many"], "agent.batch_size: got 'many', expected an integer"),
        (["--agent.batch-size", "1.5"], "agent.batch_size: got 1.5, expected an integer"),
        (["--agent.buffer-size", "-1"], "agent.buffer_size: got -1, expected more than 0"),
        (["--agent.widths", "0"], "agent.widths"),
        (["--total-steps", "0"], "total_steps: got 0"),
        (["--search.steps", "320"], "search.steps: got 320, expected at most 319"),
        (["--search.steps", "40"], "search.steps: got 40, expected more than 40"),
        (["--agent.learning-starts", "80"], "search.steps: got 160, expected more than 160"),
        (["--agent.tree", "shard"], "agent.tree: got 'shard'"),
        (["--seed", "1000"], "seed: got 1000, "),
        (["--seed", "1001", "--evaluation.every", "80"], "seed: got 1001, "),
        (["--env.suite", "mt1:reach-v3"], "agent.tree: got 'search', "),
        (["--search.method", "recon", "--search.specific-layers", "2"], "expected at most 1"),
        (["--search.rule", "most"], "search.rule: got 'most', expected one of any_pair"),
        (["--agent.tree", "none.json"], "none.json: "),
        (["--agent.tree", "broken.json"], "broken.json: "),
        (["--agent.tree", "other.json"], "other.json: tasks: got 'a'"),
        (["--agent.tree", "deep.json"], "deep.json: layers: got 2 "),
        (["--agent.tree", "mixed.json"], "mixed.json: layer 2: got "),
        (["--agent.tree", ".json"], ".json: got Is a directory"),
        (["--device", "cuda:99"], "device: got cuda:99"),
        (["extra"], "got "),
    ],
)
def test_wrong_commands_start_nothing(
    options: list[str],
    part: str,
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
    assert part in one_line(toy, *options, "--out", "run")
    assert part in one_line(toy, *options)
    assert set(tmp_path.iterdir()) == files


@pytest.mark.parametrize("tree", ["shared", "search"])
def test_a_missing_extra_starts_nothing(
    tree: str, toy: str, one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighting, "find_spec", lambda name: None)
    options = ["--agent.weighting", "upgrad", "--out", str(tmp_path / "r")]
    error = one_line(toy, "--agent.tree", tree, *options)
    assert error.startswith("upgrad needs qpsolvers and quadprog") and ".[aggregation]" in error
    assert not (tmp_path / "r").exists()


def test_a_missing_config_is_named(one_line: Any, tmp_path: Path) -> None:
    assert "Did you mean cartpole?" in one_line("cartpol")
    assert "No such file" in one_line(str(tmp_path / "none.yaml"))
    assert one_line().startswith("command line: got no name")
    path = tmp_path / "bad.yaml"
    path.write_text("total_steps: 10\nenv: {suite: cartpole}\nagent: {batch_size: [1]}\n")
    assert one_line(str(path)).startswith(f"{path}: agent.batch_size: got [1]")
    path.write_text("total_steps: {")
    assert "invalid YAML" in one_line(str(path))


def test_a_folder_with_files_is_not_overwritten(
    toy: str, finished: Path, one_line: Any, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert f"--out: got {finished}, " in one_line(toy, "--out", str(finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_resume_without_a_run(one_line: Any, tmp_path: Path, toy: str) -> None:
    assert "nowhere" in one_line("--resume", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in one_line("--resume", str(tmp_path / "empty"))
    started = tmp_path / "started"
    started.mkdir()
    shutil.copy(toy, started / "config.yaml")
    assert f"{started / 'checkpoints'}: " in one_line("--resume", str(started))
    assert not any((tmp_path / "empty").iterdir())
    assert "--resume: got --out" in one_line("--resume", str(started), "--out", "x")
    assert "--resume: got cartpole" in one_line("cartpole", "--resume", str(started))


def test_two_processes_on_one_run(stopped: dict[str, Path], one_line: Any, tmp_path: Path) -> None:
    run = copied(stopped["train"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with Run(run).locked():
        assert str(run) in one_line("--resume", str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert train.main(["--resume", str(run)]) == 0


CHECKPOINT_FILES = ("manifest.json", "state.json", "policy.safetensors", "replay.safetensors")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_truncated_checkpoint_is_named(
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
    "options, part",
    [
        (["--env.suite", "cartpole"], "env.suite: got the tasks standard, "),
        # The same spaces: only the names tell.
        (["--env.suite", "tests.helpers.toy:Left-v0", "tests.helpers.toy:Broken-v0"], "Broken-v0"),
        (["--env.suite", "nothing"], "suite: got 'nothing'"),
        (["--agent.widths", "16"], "agent.widths: got (16,), "),
        (["--agent.widths", "8", "8"], "agent.widths: got (8, 8), "),
        (["--agent.critic", "hl_gauss"], "agent.critic: got 'hl_gauss', "),
        (["--agent.critic-range", "-1", "22"], "agent.critic_range: got (-1.0, 22.0), "),
        (["--agent.critic-linear-to", "0.5"], "agent.critic_linear_to: got 0.5, "),
        (["--agent.n-steps", "2"], "agent.n_steps: got 2, "),
        (["--agent.gamma", "0.5"], "agent.gamma: got 0.5, "),
        (["--agent.conflict-rule", "none"], "agent.conflict_rule: got 'none', "),
        (["--agent.weighting", "pcgrad"], "agent.weighting: got 'pcgrad', "),
        (["--seed", "7"], "seed: got 7, "),
        (["--search.rule", "none"], "search.rule: got 'none', "),
        (["--agent.buffer-size", "20"], "buffer_size"),
        (["--agent.tree", "shared"], "agent.tree"),
        (["--search.method", "ltb"], "search.method: got 'ltb', "),
        (["--evaluation.seed", "0"], "seed: got 0, "),
    ],
)
def test_a_resume_cannot_change_the_run(
    phase: str,
    options: list[str],
    part: str,
    stopped: dict[str, Path],
    one_line: Any,
) -> None:
    run = stopped[phase]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert part in one_line("--resume", str(run), *options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_what_a_search_was_cannot_be_changed_afterwards(
    stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    for name, value in (
        ("gate-learning-rate", 0.5),
        ("keep-replay", False),
        ("keep-weights", True),
        ("only", True),
    ):
        error = one_line("--resume", str(stopped["train"]), f"--search.{name}", str(value).lower())
        assert error.startswith(f"search.{name.replace('-', '_')}: got {value}, ")
    run = copied(stopped["search"], tmp_path)
    assert train.main(["--resume", str(run), "--search.gate-learning-rate", "0.5"]) == 0
    assert load_config(run / "config.yaml").search.gate_learning_rate == 0.5


def test_a_finished_runs_config_says_what_it_was(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path)
    before = (run / "config.yaml").read_bytes()
    options = ["--agent.learning-rate", "0.5", "--total-steps", "200", "--threads", "1"]
    assert train.main(["--resume", str(run), *options]) == 0
    assert "total_steps, agent.learning_rate" in capfd.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_a_state_without_its_entries_is_refused(
    stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    """The JSON is not damaged, but an entry is missing."""
    run = copied(stopped["search"], tmp_path)
    (checkpoint,) = (run / "checkpoints").iterdir()
    content = json.loads((checkpoint / "state.json").read_text())
    tensors = load_checkpoint(run)[0]
    for name in ("phase", "seconds", "agent"):
        lacking = {key: value for key, value in content.items() if key != name}
        save_checkpoint(run, 1_000, tensors, lacking)
        assert f"'{name}'" in one_line("--resume", str(run))
    for trees in ({}, {"actor": {"space": "conal"}}, {"actor": {"space": "x"}, "critic": 3}):
        content["agent"]["model"]["trees"] = trees
        save_checkpoint(run, 1_000, tensors, content)
        assert one_line("--resume", str(run)).startswith(f"{run}: state.json: ")


def test_an_env_that_breaks_is_named(one_line: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    suite = [TASKS[0], "tests.helpers.toy:Broken-v0"]
    path.write_text(yaml.safe_dump(CONFIG | {"env": {"suite": suite}, "log_interval": 1000}))
    line = one_line(str(path), "--out", str(tmp_path / "run"))
    assert line.startswith("task 'tests.helpers.toy:Broken-v0', env 0 of the task: observation: ")
    assert "NaN" in line
    assert (tmp_path / "run" / "config.yaml").is_file()  # this one was started


@pytest.mark.parametrize(
    ("env", "part"),
    [("BrokenAtOnce", "NaN or inf at step 0"), ("FailsAtOnce", "step: got KeyError")],
)
def test_an_env_that_is_broken_from_the_start(
    env: str, part: str, one_line: Any, tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"env": {"suite": [f"tests.helpers.toy:{env}-v0"]}}))
    line = one_line(str(path), "--out", str(tmp_path / "run"))
    assert part in line
    assert not (tmp_path / "run").exists()


def test_the_time_left_is_what_ends_first(capfd: pytest.CaptureFixture[str]) -> None:
    for left, part in ((120.0, "2 min left"), (-5.0, "0 min left"), (math.inf, " min left")):
        end = 10**12
        display = PhaseDisplay("train", 0, end, end, lambda left=left: left)  # type: ignore[misc]
        display.line(10, "")
        display.close()
        line = capfd.readouterr().err
        assert part in line and "(train" not in line
    assert int(line.split(", ")[-1].split()[0]) > 2  # by steps


def test_the_time_left_is_of_the_run_and_of_the_phase(capfd: pytest.CaptureFixture[str]) -> None:
    display = PhaseDisplay("search", 0, 10**9, 10**11, lambda: math.inf)
    display.line(10, "")
    display.close()
    *_, left = capfd.readouterr().err.strip().split(", ")
    run, phase = re.fullmatch(r"(\d+) min left \(search (\d+)\)", left).groups()  # type: ignore[union-attr]
    assert int(run) == pytest.approx(100 * int(phase), rel=0.1)


def test_a_failed_evaluation_does_not_stop_training(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(*_: Any, **__: Any) -> Any:
        raise SuiteError("an episode has not ended")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(conal_evaluation, "evaluate_policy", endless)
        options = ["--agent.tree", "shared", "--total-steps", "160", "--evaluation.every", "60"]
        assert train.main([toy, "--out", str(run), *options]) == 2  # the last one fails, too
    error = capsys.readouterr().err
    for step in (64, 120):
        assert f" {step} steps " in error and "an episode has not ended" in error
    assert state(run)["phase"] == "done"
    assert train.main(["--resume", str(run)]) == 0
