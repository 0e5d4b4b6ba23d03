"""Weights to share, and training states that resume like an uninterrupted training."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conal_rl.agents import ConalSAC
from conal_rl.agents.policies import CONAL
from conal_rl.agents.tree_files import load_trees, trees_to_json
from conal_rl.config import AgentConfig
from conal_rl.core import Tree
from conal_rl.errors import CheckpointError, ConfigError, TreeError
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from tests.helpers.agents import SEARCH, TASKS, TREES, assert_same_agent
from tests.helpers.tiers import first_quick
from tests.helpers.toy import make_agent, make_env, random_rows, same_tensors

Json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def forbid(*_: Any, **__: Any) -> None:
    raise AssertionError("a file was unpickled")


class NoUnpickler(pickle.Unpickler):
    """A class still, as what torch imports late may derive from it."""

    load = forbid


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "Unpickler", NoUnpickler)
    for module in (pickle, torch, np):
        monkeypatch.setattr(module, "load", forbid)
    monkeypatch.setattr(pickle, "loads", forbid)


def damage_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


# What is shared


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("critic", ["mse", "hl_gauss"])
def test_saved_weights_load_and_act_the_same(
    tree: str, critic: str, tmp_path: Path, no_pickles: None
) -> None:
    env = make_env((-0.5, 0.5), bounds=(-3.0, 1.0))
    agent = make_agent(
        TREES[tree],
        env=env,
        critic=critic,
        critic_bins=7,
        critic_range=(-4.0, 2.0),
        reward_scale=0.5,
        **SEARCH,
    )
    agent.learn(96)
    agent.save_weights(tmp_path / "model")
    agent.learn(24, reset_num_timesteps=False)
    agent.save_weights(tmp_path / "model")  # replaces
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = ConalSAC.load_weights(tmp_path / "model", device="cpu")
    rows = random_rows([1, 0, 0, 1], tasks=2)
    expected, _ = agent.predict(rows, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(rows, deterministic=True)[0], expected)
    assert loaded.derive() == agent.derive()
    assert (loaded.tasks, loaded.num_timesteps, loaded.settings.reward_scale) == (TASKS, 120, 0.5)
    features, actions = torch.randn(2, 3, 3), torch.rand(2, 3, 1)
    assert torch.equal(
        loaded.critic.values(features, actions), agent.critic.values(features, actions)
    )
    # The targets are not shipped: they begin as the critics.
    mine, targets = loaded.critic.state_dict(), loaded.critic_target.state_dict()
    assert same_tensors(mine, targets)


def test_a_disk_that_refuses_leaves_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(TREES["pair"])
    agent.save_weights(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conal_rl.runs.weights.save_file", full)
    with pytest.raises(CheckpointError, match=r"model: .*No space left"):
        make_agent(TREES["pair"], seed=1).save_weights(tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("other", ["folder", "file"])
def test_weights_never_replace_anything_else(other: str, tmp_path: Path) -> None:
    there = tmp_path / "results" if other == "file" else tmp_path / "results" / "thesis.txt"
    there.parent.mkdir(exist_ok=True)
    there.write_text("long work")
    with pytest.raises(CheckpointError, match="results: "):
        make_agent(TREES["pair"]).save_weights(tmp_path / "results")
    assert there.read_text() == "long work"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("name", [".DS_Store", ".nfs00000001", ".git"])
def test_a_model_is_replaced_next_to_litter_of_a_desktop(name: str, tmp_path: Path) -> None:
    agent = make_agent(TREES["pair"])
    agent.save_weights(tmp_path / "model")
    (tmp_path / "model" / name).write_text("")
    ours = name != ".git"
    with nullcontext() if ours else pytest.raises(CheckpointError, match="model: "):
        agent.save_weights(tmp_path / "model")
    assert (tmp_path / "model" / name).exists()  # it stays; only the model is replaced
    ConalSAC.load_weights(tmp_path / "model")


@pytest.mark.parametrize("tree", TREES)
def test_half_the_weights_do_the_same_in_mixed_precision(tree: str, tmp_path: Path) -> None:
    """And in single precision nearly the same."""
    for mixed in (True, False):
        agent = make_agent(TREES[tree], widths=(64, 64), mixed_precision=mixed, critic="hl_gauss")
        sizes = []
        for half in (False, True):
            agent.save_weights(tmp_path / str(half), half=half)
            sizes.append((tmp_path / str(half) / "model.safetensors").stat().st_size)
        assert sizes[1] < 0.6 * sizes[0]
        loaded = ConalSAC.load_weights(tmp_path / "True")
        rows = random_rows([row % 2 for row in range(40)], tasks=2)
        found, expected = (a.predict(rows, deterministic=True)[0] for a in (loaded, agent))
        np.testing.assert_allclose(found, expected, atol=0 if mixed else 0.05)
        assert mixed or not np.array_equal(found, expected)


@pytest.mark.parametrize("averaging", [None, 2.0])
@pytest.mark.parametrize("tree", TREES)
def test_weights_without_critics_act_the_same(
    tree: str, averaging: float | None, tmp_path: Path
) -> None:
    env = make_env((-0.5, 0.5), envs_per_task=2)
    agent = make_agent(TREES[tree], env=env, actor_averaging=averaging)
    agent.learn(100, log_interval=None)
    agent.save_weights(tmp_path / "whole")
    agent.save_weights(tmp_path / "model", critics=False)
    sizes = [(tmp_path / of / "model.safetensors").stat().st_size for of in ("model", "whole")]
    assert sizes[0] < 0.5 * sizes[1]
    loaded = ConalSAC.load_weights(tmp_path / "model", device="cpu")
    rows = random_rows([row % 2 for row in range(40)], tasks=2)
    found, expected = (a.predict(rows, deterministic=True)[0] for a in (loaded, agent))
    np.testing.assert_array_equal(found, expected)
    critics = [*loaded.critic.weights(), *loaded.critic_target.weights()]
    assert all(weight.isnan().all() for weight in critics)
    loaded.save_weights(tmp_path / "again")  # nor are they there when it is saved
    again = [(tmp_path / of / "model.safetensors").read_bytes() for of in ("model", "again")]
    assert again[0] == again[1]


def test_loaded_weights_can_be_trained_further(tmp_path: Path) -> None:
    make_agent(TREES["pair"]).save_weights(tmp_path / "model")
    loaded = ConalSAC.load_weights(tmp_path / "model", device="cpu")
    agent = make_agent(loaded.derive(), env=make_env((-0.5, 0.5), envs_per_task=2))
    agent.policy.load_state_dict(loaded.policy.state_dict())
    agent.learn(100)
    assert agent._n_updates > 0
    assert not same_tensors(loaded.policy.state_dict(), agent.policy.state_dict())


@pytest.fixture(scope="module")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "model"
    make_agent(TREES["search"], widths=(4,), buffer_size=50).save_weights(folder)
    return folder


def copy_of(model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_files_are_named(
    shared_model: Path, name: str, kept: int, tmp_path: Path
) -> None:
    folder = copy_of(shared_model, tmp_path)
    content = (folder / name).read_bytes()
    # Only white space is behind the JSON's last brace: without it, nothing would be missing.
    (folder / name).write_bytes(content.rstrip()[:kept])
    with pytest.raises(CheckpointError, match=name) as error:
        ConalSAC.load_weights(folder)
    assert "\n" not in str(error.value)


def test_altered_weights_are_refused(shared_model: Path, tmp_path: Path) -> None:
    folder = copy_of(shared_model, tmp_path)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        ConalSAC.load_weights(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_files_are_named(shared_model: Path, name: str, tmp_path: Path) -> None:
    folder = copy_of(shared_model, tmp_path)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: "):
        ConalSAC.load_weights(folder)
    with pytest.raises(CheckpointError, match="model"):
        ConalSAC.load_weights(tmp_path / "nowhere")
    copy_of(shared_model, tmp_path)
    with pytest.raises(CheckpointError, match=f"Give {folder}"):
        ConalSAC.load_weights(tmp_path)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"version": None}])
def test_a_model_of_a_different_version_is_refused(
    shared_model: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    folder = copy_of(shared_model, tmp_path)
    damage_json(folder / "model.json", **change)
    with pytest.raises(CheckpointError, match=r"conal_rl\.agent of version 1"):
        ConalSAC.load_weights(folder)


@pytest.mark.parametrize("tree", ["shared", "search"])
def test_loaded_weights_learn_in_an_env_that_they_are_given(tree: str, tmp_path: Path) -> None:
    agent = make_agent(TREES[tree], reward_scale=0.5)
    agent.learn(60)
    agent.save_weights(tmp_path / "model")
    env = make_env((-0.5, 0.5), envs_per_task=2)
    loaded = ConalSAC.load_weights(tmp_path / "model", device="cpu")
    loaded.set_env(env)
    again = ConalSAC.load(tmp_path / "model", env=env, device="cpu", learning_starts=2, gamma=0.5)
    observations = np.asarray(env.reset())
    for one in (loaded, again):
        assert one.settings.buffer_size == AgentConfig.buffer_size and one.n_envs == 4
        assert one.settings.reward_scale == 0.5 and one.settings.critic == "mse"
        np.testing.assert_array_equal(
            one.predict(observations, deterministic=True)[0],
            agent.predict(observations, deterministic=True)[0],
        )
        assert same_tensors(one.critic.state_dict(), agent.critic.state_dict())
    assert again.settings.gamma == 0.5
    again.learn(60)
    loaded.learn(60)
    assert again._n_updates > 0 and loaded._n_updates == 0, "the default begins with random steps"
    assert not same_tensors(again.critic.state_dict(), agent.critic.state_dict())
    again.set_env(make_env((-0.5, 0.5), envs_per_task=2))
    again.learn(8)


def test_weights_learn_only_with_critics_and_their_own_networks(tmp_path: Path) -> None:
    agent, env = make_agent(TREES["shared"]), make_env((-0.5, 0.5))
    agent.save_weights(tmp_path / "actor", critics=False)
    agent.save_weights(tmp_path / "model")
    loaded = ConalSAC.load_weights(tmp_path / "actor", device="cpu")
    with pytest.raises(ConfigError, match=r"^env: got an env for weights without critics"):
        loaded.set_env(env)
    with pytest.raises(ConfigError, match="without critics"):
        ConalSAC.load(tmp_path / "actor", env)
    assert isinstance(ConalSAC.load(tmp_path / "actor", device="cpu"), ConalSAC)
    with pytest.raises(ConfigError, match=r"agent.widths: got \(4, 4\), expected \(8, 8\)"):
        ConalSAC.load(tmp_path / "model", env, device="cpu", widths=(4, 4))
    with pytest.raises(CheckpointError, match="got a run's folder"):
        ConalSAC.load(tmp_path, env)


def test_weights_of_other_networks_are_refused(shared_model: Path, tmp_path: Path) -> None:
    folder = copy_of(shared_model, tmp_path)
    about = json.loads((folder / "model.json").read_text())
    damage_json(folder / "model.json", architecture=about["architecture"] | {"widths": [5]})
    with pytest.raises(CheckpointError, match="size mismatch"):
        ConalSAC.load_weights(folder)


def test_a_network_without_width_is_refused(shared_model: Path, tmp_path: Path) -> None:
    folder = copy_of(shared_model, tmp_path)
    about = json.loads((folder / "model.json").read_text())
    damage_json(folder / "model.json", architecture=about["architecture"] | {"widths": [0, 0]})
    with pytest.raises(CheckpointError, match="model"):
        ConalSAC.load_weights(folder)


FIELDS = (
    "tasks", "observation_dim", "action_low", "action_high", "architecture", "reward_scale",
    "steps", "trees",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_any_json_loads_or_is_refused(field: str, shared_model: Path, tmp_path: Path) -> None:
    """Any value of a field gives an agent that predicts, or one clear error."""
    folder = copy_of(shared_model, tmp_path)
    content = (folder / "model.json").read_text()

    @given(Json, st.booleans())
    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def check(value: Any, inside: bool) -> None:
        (folder / "model.json").write_text(content)
        old = json.loads(content)[field]
        if inside and isinstance(old, dict):
            value = old | {next(iter(old)): value}
        damage_json(folder / "model.json", **{field: value})
        try:
            agent = ConalSAC.load_weights(folder, device="cpu")
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            agent.predict(random_rows([0, 1], tasks=2))

    check()
    missing = json.loads(content)
    del missing[field]
    (folder / "model.json").write_text(json.dumps(missing))
    with pytest.raises(CheckpointError, match=field):
        ConalSAC.load_weights(folder)


# Trees


def test_trees_of_a_run_or_one_for_both(tmp_path: Path) -> None:
    actor, critic = Tree.shared(TASKS, 2), Tree.independent(TASKS, 2)
    path = tmp_path / "tree.json"
    path.write_text(trees_to_json(actor, critic))
    assert load_trees(path, TASKS, 2) == (actor, critic)
    turned = load_trees(path, TASKS[::-1], 2)
    assert turned[0].tasks == TASKS[::-1]
    actor.save(path)
    assert load_trees(path, TASKS, 2) == (actor, actor)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", ": got "),
        ("[]", "text: got a JSON list"),
        (b"\xff\xfe", ": got "),
        (b"[" * 100_000, ": got "),
        ('{"format": "conal_rl.trees"}', "actor: "),
        (trees_to_json(*[Tree.shared(TASKS, 2)] * 2)[:-3], ": got "),
        (trees_to_json(*[Tree.shared(TASKS, 3)] * 2), "layers: got 3 "),
        (trees_to_json(*[Tree.shared("ab", 2)] * 2), "tasks: got 'a' "),
        (Tree.shared(TASKS[:1], 2).to_json(), "tasks: got no 'task-1' "),
    ],
)
def test_wrong_tree_files_are_named(content: str | bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TreeError, match=reason) as error:
        load_trees(path, TASKS, 2)
    assert str(error.value).startswith(f"{path}: ")
    with pytest.raises(TreeError, match=": got "):
        load_trees(tmp_path / "none.json", TASKS, 2)


# Resumed training


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "search": ("search", {"smoothing": 0.9, "gate_every": 2}),
    "gumbel": ("search", {"gumbel": True, "temperature": (1.0, 0.3)}),
    "shared": ("shared", {"conflict_rule": "any_pair", "actor_averaging": 2.0}),
    "weighted": ("shared", {"weighting": "uncertainty"}),
    "aggregated": ("shared", {"weighting": "pcgrad"}),
    "pair": ("pair", {"critic": "hl_gauss", "critic_range": (-30.0, 0.0), "ent_coef": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", first_quick([20, 300]))
def test_resumed_updates_are_the_uninterrupted_ones(
    case: str, steps: int, tmp_path: Path, no_pickles: None
) -> None:
    tree, special = CASES[case]
    changed = SEARCH | {"buffer_size": 100} | special
    agent = make_agent(TREES[tree], **changed)
    agent.learn(steps)  # 20: before the first update
    assert (agent._n_updates > 0) == (steps > 40)
    save_checkpoint(tmp_path, steps, *agent.training_state())
    resumed = make_agent(TREES[tree], **changed | {"seed": 7})
    resumed.restore(*load_checkpoint(tmp_path))

    assert resumed.num_timesteps == agent.num_timesteps
    assert resumed._episode_num == agent._episode_num
    assert resumed.recent.returns() == pytest.approx(agent.recent.returns(), nan_ok=True)
    for name, noticing in agent.noticing.items():
        assert_same_noticing(noticing.state(), resumed.noticing[name].state())

    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    for one in (agent, resumed):
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        one._current_progress_remaining = 0.5
        one.train(gradient_steps=10, batch_size=8)
        one.replay_buffer.cut_episodes()
    assert resumed._n_updates == agent._n_updates >= 10 * (steps > 40)
    assert same_tensors(agent.policy.state_dict(), resumed.policy.state_dict())
    mine, theirs = agent.training_state(), resumed.training_state()
    assert mine[0].keys() == theirs[0].keys()
    for group, tensors in mine[0].items():
        assert same_tensors(tensors, theirs[0][group]), group
    assert json.dumps(mine[1]) == json.dumps(theirs[1])


def assert_same_noticing(one: Any, two: Any) -> None:
    assert one[1] == two[1]
    assert same_tensors(one[0], two[0])


def test_a_resumed_agent_continues_its_random_streams(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"])
    agent.learn(50)
    save_checkpoint(tmp_path, 50, *agent.training_state())

    def draws(one: ConalSAC) -> list[Any]:
        rows = random_rows([0, 1], tasks=2)
        numpy = np.random.normal(size=2).tolist()  # noqa: NPY002
        space = one.action_space.sample().tolist()
        return [torch.rand(2).tolist(), numpy, space, one.predict(rows)[0].tolist()]

    expected = draws(agent)
    resumed = make_agent(TREES["shared"], seed=9)
    resumed.restore(*load_checkpoint(tmp_path))
    assert draws(resumed) == expected


@pytest.mark.parametrize(
    "tree, other, reason",
    [
        ("shared", {"widths": (4, 4)}, "size mismatch"),
        ("shared", {"critic": "hl_gauss"}, "size mismatch"),
        ("shared", {"tree": "pair"}, "size mismatch"),
        ("shared", {"tree": "search"}, r"(Missing|Unexpected) key"),
        ("search", {"tree": "shared"}, r"(Missing|Unexpected) key"),
        ("shared", {"buffer_size": 20}, "buffer_size"),
        ("shared", {"targets": (-0.5, 0.0, 0.5)}, "size mismatch"),
    ],
)
def test_restoring_into_a_different_agent_is_refused(
    tree: str, other: dict[str, Any], reason: str
) -> None:
    agent = make_agent(TREES[tree], **SEARCH)
    agent.learn(100)
    groups, state = copy.deepcopy(agent.training_state())
    shape = TREES[other.pop("tree", tree)]
    if "targets" in other:
        shape = Tree.shared(["task-0", "task-1", "task-2"], 2)
    with pytest.raises(CheckpointError, match=reason) as error:
        make_agent(shape, **SEARCH | other).restore(groups, state)
    assert "\n" not in str(error.value)


def test_restore_says_what_is_missing() -> None:
    agent = make_agent(TREES["shared"])
    groups, state = agent.training_state()
    for name in ("steps", "replay", "recent"):
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(CheckpointError, match=name):
            agent.restore(groups, lacking)


def test_derived_agents_take_the_searchs_data() -> None:
    searched = make_agent(TREES["search"], **SEARCH)
    searched.learn(96)
    derived = make_agent(searched.derive(), **SEARCH)
    derived.replay_buffer.inherit_from(searched.replay_buffer)
    derived.train(gradient_steps=3, batch_size=8)
    assert derived._n_updates == 3
    assert derived.replay_buffer.training.sizes.tolist() == [48, 48]
    with pytest.raises(AssertionError):
        assert_same_agent(searched, derived)


def test_a_checkpoint_numbers_the_gates_of_all_networks() -> None:
    """Old checkpoints do so, too: one group holds the moments of the actor's and the critics'."""
    shared = Tree.shared(TASKS, 2)
    for trees, networks in ((None, ("actor", "critic")), ((shared, CONAL), ("critic",))):
        agent, other = (make_agent(trees, seed=seed, **SEARCH) for seed in (0, 1))
        agent.learn(96)
        groups, state = copy.deepcopy(agent.training_state())
        moments = groups["optimizer_gates"]
        assert {key.partition(".")[0] for key in moments} == set(map(str, range(len(networks))))
        for number, name in enumerate(networks):
            optimizer = agent.learners[name].gate_optimizer
            assert optimizer is not None
            expected = optimizer.state[agent.gates[name]]["exp_avg"]
            assert expected.any() and torch.equal(moments[f"{number}.exp_avg"], expected)
        other.restore(groups, state)
        assert_same_agent(agent, other)
        del groups["optimizer_gates"]
        with pytest.raises(CheckpointError, match="optimizer_gates"):
            other.restore(groups, state)
