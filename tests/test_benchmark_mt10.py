"""The comparisons on MT10: the runs that they make or reuse, and their statistics."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.table import Table
from stable_baselines3 import SAC

from conal_rl import benchmark, train
from conal_rl.agents import ConalSAC
from conal_rl.agents.policies import ConalPolicy
from conal_rl.benchmarks import mt10, one_per_task, sb3_sac, study
from conal_rl.benchmarks.mt10 import Result, bootstrap, interquartile_mean, successes, summary
from conal_rl.benchmarks.study import slug
from conal_rl.config import Config, load_config
from conal_rl.core import Tree
from conal_rl.core.tree_network import parameter_count
from conal_rl.errors import ConalError
from conal_rl.evaluation import evaluate_policy
from conal_rl.runs.folder import Run


def cells(table: Table) -> list[list[str]]:
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns))]


def test_the_interquartile_mean_uses_the_middle_half() -> None:
    scores = np.array([[0.0, 1.0, 0.5, 0.7], [0.1, 0.9, 0.4, 0.6]])
    assert interquartile_mean(scores) == pytest.approx((0.4 + 0.5 + 0.6 + 0.7) / 4)


def test_the_bootstrap_draws_whole_runs() -> None:
    """Equal runs give an interval of zero width. Further equal tasks do not narrow an interval."""

    def mean(scores: NDArray[np.float64]) -> float:
        return float(scores.mean())

    same = np.array([[0.0, 1.0, 0.5]] * 4)
    assert bootstrap(same, mean) == (0.5, 0.5)
    # Runs have the success 0 or 1, so the mean of n draws is binomial for any number of tasks.
    stats = pytest.importorskip("scipy.stats")
    for tasks in (1, 10):
        low, high = bootstrap(np.repeat([[0.0], [1.0]] * 8, tasks, axis=1), mean, draws=20_000)
        assert (low, high) == tuple(stats.binom(16, 0.5).ppf([0.025, 0.975]) / 16)


def test_rows_without_a_run_are_marked() -> None:
    runs = [
        Result({"a-v3": 0.5, "b-v3": 1.0}, 1000, 60),
        Result({"a-v3": 0.7, "b-v3": 1.0}, 1000, 180),
    ]
    rows = cells(summary({"HPS": runs, "STL": []}, "title"))
    assert rows[0][:3] == ["HPS", "2", "0.800"]
    assert rows[0][-2:] == ["1,000", "2"]
    assert rows[1] == ["STL", "not run", *[""] * 6]
    assert cells(successes({"HPS": runs})) == [["HPS", "0.60", "1.00"]]
    (single,) = cells(summary({"HPS": runs[:1]}, "title"))
    assert single[2:6] == ["0.750", "-", "0.750", "-"]  # one run does not give an interval


@pytest.mark.parametrize("table", [mt10.METHODS, mt10.RECIPE])
def test_every_row_has_a_different_config(table: dict[str, list[str]]) -> None:
    common = mt10.HPS if table is mt10.RECIPE else []
    configs = [load_config("mt10", [*common, *options]) for options in table.values()]
    # These rows do not differ in their options.
    same = {mt10.SB3: "CoNAL", mt10.WIDENED: "HPS", mt10.ONE_BY_ONE: "STL"}
    distinct = [c for name, c in zip(table, configs, strict=True) if name not in same]
    assert len({config.to_yaml() for config in distinct}) == len(distinct)
    slugs = {study.slug(name, 0) for name in table}
    assert len(slugs) == len(table)


@pytest.mark.slow
def test_finished_runs_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(module: str, arguments: list[str], what: str) -> None:
        started.append([module.rpartition(".")[2], *arguments])
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=module == "conal_rl.benchmarks.sb3_sac")
        report = {"success": {"reach-v3": 0.5}, "steps": 10, "seconds": 60}
        (out / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")

    monkeypatch.setattr(study, "start", start)
    monkeypatch.setattr(mt10, "start", start)
    arguments = ["mt10", "methods", "--out", str(tmp_path), "--steps", "10", "--jobs", "1"]
    rows = ["--rows", "STL", mt10.SB3]
    assert benchmark.main([*arguments, "--seeds", "0-1", *rows]) == 0
    out = [str(tmp_path / name) for name in ("stl-0", "stl-1", "sb3-s-sac-one-per-task-0")]
    common = ["--total-steps", "10"]
    stl = ["--agent.tree", "independent"]
    assert started[:3] == [
        ["train", "mt10", "--seed", "0", *common, *stl, "--out", out[0]],
        ["train", "mt10", "--seed", "1", *common, *stl, "--out", out[1]],
        ["sb3_sac", "mt10", "--seed", "0", *common, "--out", out[2]],
    ]
    assert benchmark.main([*arguments, "--seeds", "0-1", *rows]) == 0
    assert started[4:] == started[2:4]  # SB3's runs decide themselves which tasks are left
    assert benchmark.main([*arguments, "--rows"]) == 0
    assert len(started) == 6


def test_a_run_of_different_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is first finished, and then it has only a checkpoint."""
    monkeypatch.setattr(study, "start", lambda *_: pytest.fail("started"))
    run = tmp_path / "hps-0"
    run.mkdir()
    config = load_config("mt10", ["--total-steps", "10", *mt10.HPS])
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    report = {"success": {"reach-v3": 0.5}, "steps": 10, "seconds": 60}
    (run / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    command = ["mt10", "methods", "--out", str(tmp_path), "--rows", "HPS", "--seeds", "0"]
    assert benchmark.main([*command, "--steps", "10"]) == 0
    for _ in range(2):
        capsys.readouterr()
        assert benchmark.main([*command, "--steps", "20"]) == 2
        assert f"error: {run}: got a run of different settings" in capsys.readouterr().err
        (run / "evaluation.json").unlink(missing_ok=True)
        (run / "checkpoints" / "step-5").mkdir(parents=True, exist_ok=True)


@pytest.mark.slow
def test_a_row_of_a_different_recipe_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of an older preset are such rows."""
    run = tmp_path / "hps-0"
    run.mkdir()
    report = {"success": {"reach-v3": 0.5}, "steps": 10, "seconds": 60}
    (run / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    for recipe, marked in (([], False), (["--agent.gamma", "0.5"], True)):
        config = load_config("mt10", ["--total-steps", "10", *mt10.HPS, *recipe])
        (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        command = ["mt10", "methods", "--out", str(tmp_path), "--steps", "10", "--rows"]
        assert benchmark.main(command) == 0
        output = capsys.readouterr().out
        assert ("HPS *" in output) is ("a different recipe" in output) is marked


@pytest.mark.slow
def test_derived_settings_do_not_mark_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"success": {"reach-v3": 0.5}, "steps": 10, "seconds": 60}
    widths = ["--agent.widths", "300", "300", "300"]
    for method, folder, suite, recipe, marked in (
        (mt10.WIDENED, ".", "mt10", widths, False),
        (mt10.WIDENED, ".", "mt10", [*widths, "--agent.gamma", "0.5"], True),
        ("STL", ".", "mt10", widths, True),
        (mt10.ONE_BY_ONE, "reach-v3", "mt1:reach-v3", [], False),
        (mt10.ONE_BY_ONE, "reach-v3", "mt1:reach-v3", ["--agent.gamma", "0.5"], True),
    ):
        run = tmp_path / slug(method, 0)
        (run / folder).mkdir(parents=True, exist_ok=True)
        (run / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
        steps = "10" if folder == "." else "1"
        options = ["--total-steps", steps, "--env.suite", suite, *mt10.METHODS[method], *recipe]
        config = load_config("mt10", options)
        (run / folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        command = ["mt10", "methods", "--out", str(tmp_path), "--steps", "10", "--rows"]
        assert benchmark.main(command) == 0
        assert (f"{method} *" in capsys.readouterr().out) is marked
        shutil.rmtree(run)


def test_a_study_may_move_to_a_different_folder(tmp_path: Path) -> None:
    first, moved, other = (
        load_config("digits", ["--agent.tree", f"{tree}/tree.json"])
        for tree in ("old/conal-0", "/new/conal-0", "old/conal-1")
    )
    (tmp_path / "config.yaml").write_text(first.to_yaml(), encoding="utf-8")
    study.require_config(tmp_path, moved)
    with pytest.raises(ConalError, match=f"{tmp_path}: got a run"):
        study.require_config(tmp_path, other)


@pytest.mark.slow
def test_a_folder_without_a_run_is_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "hps-0" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine", encoding="utf-8")
    command = ["mt10", "methods", "--out", str(tmp_path), "--rows", "HPS", "--seeds", "0"]
    assert benchmark.main(command) == 2
    assert str(notes.parent) in capsys.readouterr().err
    assert notes.read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_rows_of_a_different_budget_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in (("hps-0", mt10.HPS), ("stl-0", mt10.STL)):
        steps = "10" if name == "hps-0" else "20"
        config = load_config("mt10", ["--total-steps", steps, *options])
        run = Run.create(config, tmp_path / name)
        report = {"success": {"reach-v3": 0.5}, "steps": int(steps), "seconds": 60}
        run.evaluation_path.write_text(json.dumps(report), encoding="utf-8")
    command = ["mt10", "methods", "--out", str(tmp_path), "--seeds", "0", "--rows"]
    assert benchmark.main([*command, "--steps", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["STL", "1", "0.500"] for line in lines)
    assert any(line.split() == ["HPS", "not", "run"] for line in lines)
    per_task = tmp_path / study.slug(mt10.ONE_BY_ONE, 0) / "evaluation.json"
    per_task.parent.mkdir()
    for taken, cell in ((10, "not run"), (20, "0.500")):
        report = {"success": {"reach-v3": 0.5}, "steps": taken, "seconds": 60}
        per_task.write_text(json.dumps(report), encoding="utf-8")
        assert benchmark.main([*command, "--steps", "20"]) == 0
        lines = capsys.readouterr().out.splitlines()
        line = next(line for line in lines if line.split()[:2] == ["STL,", "a"])
        assert cell in line
    for damage in ("[]", "{}"):
        per_task.write_text(damage)
        assert benchmark.main([*command, "--steps", "20"]) == 2
        assert f"error: {per_task}: got " in capsys.readouterr().err


def test_a_run_of_a_different_process_is_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run before its first checkpoint looks like a stopped one."""
    config = load_config("mt10", ["--total-steps", "10", *mt10.HPS])
    run = Run.create(config, tmp_path / "hps-0")
    command = ["mt10", "methods", "--out", str(tmp_path), "--rows", "HPS", "--seeds", "0"]
    with run.locked():
        assert benchmark.main([*command, "--steps", "10"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run.folder}: ") and "process" in error
    assert run.config() == config


@pytest.mark.parametrize(
    "code, message",
    [
        ("import sys; sys.exit('error: no such suite')", "HPS: no such suite"),
        ("raise OSError('disk')", "HPS: exit status 1 after: OSError: disk"),
        (
            "import os; os.write(2, b'train: 40'); os.kill(os.getpid(), 9)",
            "HPS: exit status -9 after: train: 40",
        ),
    ],
)
def test_a_failed_run_is_reported_by_its_last_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConalError) as failed:
        study.start("failing", [], "HPS")
    assert str(failed.value) == message


@pytest.mark.slow
def test_rows_that_need_the_same_run_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process would treat the folder of the first one as a stopped run."""
    started: list[str] = []

    def start(module: str, arguments: list[str], what: str) -> None:
        started.append(what)
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        time.sleep(0.2)
        report = {"success": {"reach-v3": 0.5}, "steps": 10, "seconds": 60}
        (out / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")

    monkeypatch.setattr(study, "start", start)
    monkeypatch.setattr(mt10, "widened", lambda _: [8])
    mt10.compare_methods([0], 2, tmp_path, 10, ["CoNAL", mt10.WIDENED])
    assert started == ["CoNAL, seed 0", f"{mt10.WIDENED}, seed 0"]


def test_an_unknown_row_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["mt10", "recipe", "--rows", "magic"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: --rows: got 'magic'") and "'HPS, the recipe', '2 envs" in error
    assert "\n" not in error


def test_hps_is_widened_to_the_parameters_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = ["--total-steps", "30", "--agent.learning-starts", "1", "--evaluation.episodes", "1"]
    tree = ["--agent.tree", "independent", "--agent.widths", "16", "16"]
    assert train.main(["cartpole", "--out", str(run), *few, *tree]) == 0
    agent = ConalSAC.load_weights(run / "model")
    wanted = sum(parameter_count(n.encoder) for n in (agent.actor, agent.critic))
    widths = mt10.widened(run)
    assert widths[0] == widths[1]
    shared = Tree.shared(agent.tasks, 2)
    counts = {}
    for width in (widths[0], widths[0] - 8):
        settings = agent.policy._get_constructor_parameters()
        wide = dataclasses.replace(agent.settings, widths=(width, width))
        settings |= {"actor_tree": shared, "critic_tree": shared, "settings": wide}
        policy = ConalPolicy(**settings)
        counts[width] = sum(parameter_count(n.encoder) for n in (policy.actor, policy.critic))
    assert counts[widths[0] - 8] < wanted <= counts[widths[0]]


def two_tasks(folder: Path) -> Path:
    config = folder / "small.yaml"
    config.write_text(
        "total_steps: 40\nenv: {suite: [reach-v3, push-v3], envs_per_task: 2}\n"
        "agent: {widths: [8], learning_starts: 4}\nevaluation: {episodes: 1}\n",
        encoding="utf-8",
    )
    return config


@pytest.mark.slow
def test_a_run_per_task_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = two_tasks(tmp_path), tmp_path / "out"
    one_per_task.run_one_by_one(out, str(config), mt10.STL, 40, 3, "one by one")
    result = mt10.read(out / "evaluation.json")
    assert list(result.success) == ["reach-v3", "push-v3"] and result.steps == 40
    reports = [json.loads((out / task / "evaluation.json").read_text()) for task in result.success]
    assert [report["steps"] for report in reports] == [20, 20]
    assert result.seconds == pytest.approx(sum(report["seconds"] for report in reports), abs=0.5)
    made = load_config(out / "push-v3" / "config.yaml")
    assert isinstance(made, Config)
    assert (made.env.suite, made.seed) == ("mt1:push-v3", 3)
    monkeypatch.setattr(study, "start", lambda *_: pytest.fail("started"))
    (out / "evaluation.json").unlink()
    one_per_task.run_one_by_one(out, str(config), mt10.STL, 40, 3, "one by one")
    assert mt10.read(out / "evaluation.json").success == result.success


@pytest.mark.slow
def test_sb3s_sac_trains_once_on_every_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = two_tasks(tmp_path)
    out = tmp_path / "out"
    command = [str(config), "--total-steps", "40", "--out", str(out)]
    assert sb3_sac.main(command) == 0
    result = mt10.read(out / "evaluation.json")
    assert list(result.success) == ["reach-v3", "push-v3"] and result.steps == 40
    trained = (out / "reach-v3.zip").stat().st_mtime_ns
    (out / "evaluation.json").unlink()
    assert sb3_sac.main(command) == 0
    assert (out / "reach-v3.zip").stat().st_mtime_ns == trained
    assert mt10.read(out / "evaluation.json").success == result.success
    capsys.readouterr()
    assert sb3_sac.main([*command, "--total-steps", "60"]) == 2
    assert f"error: {out}: got a run of different settings" in capsys.readouterr().err
    for task in result.success:
        agent = SAC.load(out / f"{task}.zip")
        again = evaluate_policy(agent, f"mt1:{task}", episodes=1, seed=1000)
        report = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        assert report["returns"][task] == pytest.approx(again.returns[task])
        assert report["episodes"][task] == again.episodes[task]


@pytest.mark.slow
def test_a_task_with_a_json_file_is_not_trained_again(tmp_path: Path) -> None:
    """The file is enough on a different machine. It does not need the weights."""
    config, out = two_tasks(tmp_path), tmp_path / "out"
    out.mkdir()
    reach = {"engine": "official", "seed": 1000, "episodes_per_task": 1}
    reach |= {"success": {"reach-v3": 1.0}, "returns": {"reach-v3": 5.0}}
    reach |= {"episodes": {"reach-v3": [True]}, "steps": 20, "seconds": 90.4}
    (out / "reach-v3.json").write_text(json.dumps(reach), encoding="utf-8")
    assert sb3_sac.main([str(config), "--total-steps", "40", "--out", str(out)]) == 0
    push = json.loads((out / "push-v3.json").read_text(encoding="utf-8"))
    assert not (out / "reach-v3.zip").exists()
    result = mt10.read(out / "evaluation.json")
    assert result.success == {"reach-v3": 1.0} | push["success"]
    assert result.steps == 40 and result.seconds == round(90.4 + push["seconds"])
