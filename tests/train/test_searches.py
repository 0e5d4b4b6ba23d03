"""Searches by the train command: each method, and what goes wrong at their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conal_rl import train
from conal_rl.agents import ConalSAC, experiment
from conal_rl.agents.experiment import make_agent
from conal_rl.agents.tree_files import load_trees
from conal_rl.config import Config, load_config
from conal_rl.core import ConalProStage, ConflictNoticing, SearchNetwork, Tree, weighting
from conal_rl.envs import make
from conal_rl.reports.run_data import read_record
from conal_rl.runs import trainer
from tests.helpers.tiers import first_quick
from tests.helpers.toy_runs import TASKS, evaluation, state, stop_at

DEEPER = ["--agent.widths", "8", "6", "--env.suite", *TASKS, "tests.helpers.toy:Target-v0"]
METHODS = {
    "conal_pro": [],
    "ltb": ["--search.copies", "2"],
    "recon": ["--search.specific-layers", "1"],
    "conal": ["--search.purely-specific", "false", "--search.rule", "any_pair"],
}


@pytest.mark.parametrize("method", first_quick(METHODS))
@pytest.mark.slow
def test_every_search_method_runs_and_resumes(method: str, toy: str, tmp_path: Path) -> None:
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
    trees = load_trees(whole / "tree.json", (*TASKS, "tests.helpers.toy:Target-v0"), 2)
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


@pytest.mark.parametrize("method", first_quick(["conal", "conal_pro", "ltb", "recon"]))
@pytest.mark.slow
def test_the_searchs_weights_are_kept(
    method: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The derived agent begins with the search's weights if keep_weights is set."""
    same: list[bool] = []
    train_trees = experiment.SACExperiment.train_trees

    def spied(self: experiment.SACExperiment, trees: tuple[Tree, ...]) -> None:
        before = self.agent
        train_trees(self, trees)
        for name in ("actor", "critic", "critic_target"):
            old, new = getattr(before, name), getattr(self.agent, name)
            pairs = list(zip(old.head.parameters(), new.head.parameters()))
            if isinstance(old.encoder, SearchNetwork):
                derived = old.encoder.derive()
                pairs += zip(derived.parameters(), new.encoder.parameters())
            same.append(all(torch.equal(*pair) for pair in pairs))

    monkeypatch.setattr(experiment.SACExperiment, "train_trees", spied)
    options = [*DEEPER, "--search.method", method, "--total-steps", "170", "--search.steps", "160"]
    for keeps, flag in ((True, "--search.keep-weights"), (False, "--search.no-keep-weights")):
        same.clear()
        assert train.main([toy, *options, flag, "--out", str(tmp_path / str(keeps))]) == 0
        assert same == [keeps] * 3


@pytest.mark.slow
def test_conal_pro_moves_from_stage_to_stage(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor's tasks join at once, the critics' never: a tree next to a second stage."""
    agents: list[ConalSAC] = []
    next_stage, replaced = ConalSAC.next_stage, experiment.SACExperiment.next_stage

    def decided(agent: ConalSAC) -> Any:
        with torch.no_grad():
            agent.gates.get("actor", torch.zeros(2, 2))[:, 0] += 9
            agent.gates["critic"][:, 1] += 9
        agents.append(agent)
        return next_stage(agent)

    def spied(self: experiment.SACExperiment) -> bool:
        before = self.agent
        follows = replaced(self)
        if follows:
            assert before.log_ent_coef is not None and self.agent.log_ent_coef is not None
            assert torch.equal(before.log_ent_coef, self.agent.log_ent_coef)
            heads = zip(before.critic.head.parameters(), self.agent.critic.head.parameters())
            assert all(torch.equal(*pair) for pair in heads)
        return follows

    monkeypatch.setattr(ConalSAC, "next_stage", decided)
    monkeypatch.setattr(experiment.SACExperiment, "next_stage", spied)
    run = tmp_path / "run"
    options = [*DEEPER[:3], "--search.method", "conal_pro"]
    assert train.main([toy, *options, "--out", str(run)]) == 0
    first, second = agents
    assert first.structures == (ConalProStage(1, (None, None)),) * 2
    assert second.structures == (Tree.shared(TASKS, 2), ConalProStage(2, (None, None)))
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


# What goes wrong at the end of a search


def test_a_search_is_kept_if_its_end_fails(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: object, indent: int | None = 2) -> None:
        raise OSError(28, "No space left on device", str(path))

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_json", full)
        assert train.main([toy, "--out", str(run)]) == 2
    assert f"{run / 'search.json'}: " in capfd.readouterr().err.splitlines()[-1]
    assert train.main(["--resume", str(run)]) == 0
    assert evaluation(run)["search_steps"] == 160


@pytest.mark.slow
def test_a_stage_leaves_its_conflicts_and_gates(toy: str, tmp_path: Path) -> None:
    """Of every task that was not settled before. `report conflicts` draws all stages."""
    run = tmp_path / "run"
    assert train.main([toy, *DEEPER, "--search.method", "conal_pro", "--out", str(run)]) == 0
    stages = [json.loads(path.read_text()) for path in sorted(run.glob("search-stage-*.json"))]
    assert [len(stages[0][network]["gates"]) for network in ("actor", "critic")] == [3, 3]
    last = json.loads((run / "search.json").read_text())
    assert last["actor"] == stages[-1]["actor"] and last["critic"] == stages[-1]["critic"]
    drawn = [phase.name for phase in read_record(run, "run").phases]
    assert drawn == [f"search-stage-{number}" for number in range(1, len(stages) + 1)]


def test_a_settled_network_is_treated_as_the_search_is(toy: str) -> None:
    """No aggregation before the search is over."""
    config = load_config(toy, ["--agent.weighting", "pcgrad", "--search.method", "conal_pro"])
    assert isinstance(config, Config)
    env = make(list(TASKS))
    pair = Tree.shared(TASKS, 1), ConalProStage.first(2)
    rules = [learner.rule for learner in make_agent(config, env, pair).learners.values()]
    assert all(isinstance(rule, ConflictNoticing) for rule in rules)
    trees = Tree.shared(TASKS, 1), Tree.shared(TASKS, 1)
    rules = [learner.rule for learner in make_agent(config, env, trees).learners.values()]
    assert all(isinstance(rule, weighting.Aggregation) for rule in rules)


# Envs without an end


def test_a_search_without_an_update_derives_nothing(
    toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = ["--env.suite", "tests.helpers.toy:Endless-v0", "tests.helpers.toy:Left-v0"]
    run = tmp_path / "run"
    assert train.main([toy, "--out", str(run), *suite]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: search.steps: ") and "max_episode_steps" in error
    assert not (run / "tree.json").exists()
