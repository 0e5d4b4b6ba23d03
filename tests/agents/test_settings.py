"""Settings of `ConalSAC`: objects, keywords that win, SB3's own keywords, and SB3's `load`."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import SAC

from conal_rl.agents import ConalSAC
from conal_rl.agents.arguments import KEYWORDS
from conal_rl.config import AgentConfig, SearchConfig, marked
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Structure, Tree
from conal_rl.errors import CheckpointError, ConalError, ConfigError
from tests.helpers.toy import make_env, tasks_named

TASKS = tasks_named(2)
SHARED = Tree.shared(TASKS, 2)
SMALL: dict[str, Any] = {"widths": (4, 4), "buffer_size": 50, "device": "cpu"}
OF_AGENT: dict[str, Any] = {
    "learning_rate": 1e-2,
    "batch_size": 3,
    "max_grad_norm": 2.0,
    "weighting": "random",
    "conflict_rule": "none",
    "compile": False,
    "widths": (4, 5),
    "layer_norm": False,
    "learning_rate_end": 1e-3,
    "buffer_size": 60,
    "learning_starts": 7,
    "update_every": 2,
    "updates": 3,
    "actor_every": 2,
    "gamma": 0.5,
    "n_steps": 2,
    "tau": 0.5,
    "target_entropy": -0.5,
    "initial_temperature": 0.5,
    "critics": 1,
    "critic": "mse",
    "critic_bins": 7,
    "critic_range": (-2.0, 2.0),
    "critic_linear_to": 0.5,
    "reward_scale": 0.5,
    "normalize_returns": True,
    "critic_reduce": "min",
    "normalize_actor_loss": True,
    "mixed_precision": True,
    "cuda_graphs": False,
    "actor_averaging": 2.0,
    "reset_at": (5,),
}
OF_SEARCH: dict[str, Any] = {
    "purely_specific": False,
    "copies": 3,
    "specific_layers": 2,
    "rule": "any_pair",
    "margin": 0.1,
    "smoothing": 0.5,
    "specific_decay": 0.1,
    "gate_learning_rate": 1e-2,
    "validation_share": 0.3,
    "gumbel": True,
    "temperature": (2.0, 0.5),
    "gate_every": 2,
}


def agent(**given: Any) -> ConalSAC:
    return ConalSAC(env=make_env((-0.5, 0.5)), **{**SMALL, **given})


def test_the_defaults_are_those_of_the_config() -> None:
    bare = ConalSAC(env=make_env((-0.5, 0.5)), device="cpu")
    assert (bare.settings, bare.search) == (AgentConfig(), SearchConfig())


def test_every_field_is_a_keyword() -> None:
    assert OF_AGENT.keys() == marked(AgentConfig, "keyword")
    assert OF_SEARCH.keys() == marked(SearchConfig, "keyword")
    given = agent(tree=SHARED, **OF_AGENT)
    assert given.settings == AgentConfig(**OF_AGENT)
    assert agent(**OF_SEARCH).search == SearchConfig(**OF_SEARCH)
    assert given.policy.settings is given.settings is given.update.settings
    assert given.update.losses.settings is given.settings


@pytest.mark.parametrize("name", ["tree", "method", "steps", "only", "keep_replay", "keep_weights"])
def test_fields_of_runs_are_refused_as_keywords(name: str) -> None:
    with pytest.raises((TypeError, ConfigError), match=name):
        agent(**{name: "conal" if name in ("tree", "method") else 1})


def test_keywords_win_over_objects() -> None:
    settings, search = AgentConfig(gamma=0.5, tau=0.5), SearchConfig(gate_every=3, margin=0.5)
    given = agent(settings=settings, search=search, gamma=0.25, margin=0.25)
    assert (given.settings.gamma, given.settings.tau) == (0.25, 0.5)
    assert (given.search.gate_every, given.search.margin) == (3, 0.25)
    assert (settings.gamma, search.margin) == (0.5, 0.5)


def test_values_are_converted_to_their_fields_types() -> None:
    given = agent(widths=[4, 5], tau=1, batch_size=np.int64(3), reset_at=[2])
    assert (given.settings.widths, given.settings.reset_at) == ((4, 5), (2,))
    assert isinstance(given.settings.tau, float) and type(given.settings.batch_size) is int


def test_names_in_policy_kwargs_are_keywords() -> None:
    kwargs = {"widths": (5, 5), "critics": 1}
    given = ConalSAC(env=make_env((-0.5, 0.5)), policy_kwargs=kwargs, device="cpu")
    assert (given.settings.widths, given.critic.replicas) == ((5, 5), 1)
    assert kwargs == {"widths": (5, 5), "critics": 1}


def test_sb3s_names_win() -> None:
    given = agent(
        **{"train_freq": 3, "update_every": 2, "gradient_steps": 4, "updates": 2},
        **{"ent_coef": "auto_0.25", "initial_temperature": 0.5},
    )
    settings = given.settings
    assert (settings.update_every, settings.updates, settings.initial_temperature) == (3, 4, 0.25)
    assert (given.train_freq.frequency, given.gradient_steps) == (3, 4)  # type: ignore[union-attr]
    assert given.log_ent_coef is not None
    assert given.log_ent_coef.exp().tolist() == pytest.approx([0.25, 0.25])


def test_what_only_sb3_can_say() -> None:
    given = agent(
        train_freq=(2, "episode"),
        gradient_steps=-1,
        ent_coef=0.25,
        learning_rate=lambda left: left / 8,
        tree=SHARED,
    )
    assert given.settings == AgentConfig(widths=(4, 4), buffer_size=50)
    assert given.train_freq.unit.value == "episode"  # type: ignore[union-attr]
    assert (given.gradient_steps, given.log_ent_coef) == (-1, None)
    assert (given.lr_schedule(1), given.lr_schedule(0.5)) == (0.125, 0.0625)


def test_the_learning_rate_falls_on_fixed_trees() -> None:
    rates: dict[str, Any] = {"learning_rate": 1e-2, "learning_rate_end": 1e-4}
    fixed, searching = agent(tree=SHARED, **rates), agent(**rates)
    assert fixed.lr_schedule(0) == pytest.approx(1e-4)
    assert searching.lr_schedule(0) == fixed.lr_schedule(1) == pytest.approx(1e-2)


def test_sb3s_target_entropy_becomes_the_agents() -> None:
    for given, expected in (("auto", -1.0), (None, -1.0), (-3, -3.0)):
        assert agent(target_entropy=given).target_entropy == expected


def test_learning_starts_counts_steps_per_task() -> None:
    given = agent(learning_starts=8, tree=SHARED, learning_rate=1e-2)
    assert given.learning_starts == 16
    given.learn(16)
    assert given._n_updates == 0
    given.learn(2, reset_num_timesteps=False)
    assert given._n_updates == 1


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (SearchConfig(), ConalSearch()),
        (SearchConfig(method="conal_pro"), ConalProStage.first(2)),
        (SearchConfig(method="ltb", copies=3), LTBSearch(3)),
        (SearchConfig(method="recon", specific_layers=2), ReconSearch(2)),
        (SearchConfig(purely_specific=False, copies=2), LTBSearch(2)),
    ],
)
def test_without_a_tree_the_search_says_the_space(
    search: SearchConfig, expected: Structure
) -> None:
    assert agent(search=search).structures == (expected, expected)
    assert agent(search=search, tree=(None, SHARED)).structures == (expected, SHARED)


def test_conflict_rule_is_of_fixed_trees() -> None:
    given = agent(tree=SHARED, conflict_rule="any_pair", rule="consensus")
    assert {noticing.rule for noticing in given.noticing.values()} == {"any_pair"}
    searching = agent(settings=AgentConfig(conflict_rule="any_pair"), rule="none")
    assert {noticing.rule for noticing in searching.noticing.values()} == {"none"}
    for tree in (None, (None, SHARED)):
        with pytest.raises(ConfigError, match=r"^conflict_rule: .* rule"):
            agent(tree=tree, conflict_rule="any_pair")


def saved(folder: Path, **given: Any) -> Path:
    agent(**given).save(folder / "agent.zip")
    return folder / "agent.zip"


def test_load_moves_its_keywords_into_the_settings(tmp_path: Path) -> None:
    path = saved(tmp_path, tree=(None, SHARED), gamma=0.5, tau=0.5, gate_every=2)
    changed: dict[str, Any] = {"gamma": 0.75, "gate_every": 3, "learning_starts": 5}
    loaded = ConalSAC.load(path, env=make_env((-0.5, 0.5)), device="cpu", train_freq=2, **changed)
    assert (loaded.settings.gamma, loaded.settings.tau, loaded.search.gate_every) == (0.75, 0.5, 3)
    assert (loaded.gamma, loaded.learning_starts, loaded.settings.update_every) == (0.75, 10, 2)
    assert loaded.update.losses.settings.gamma == 0.75
    assert vars(loaded).keys().isdisjoint({"gate_every", "update_every"})


def test_load_takes_whole_settings(tmp_path: Path) -> None:
    path = saved(tmp_path, tree=SHARED, gamma=0.5)
    settings = AgentConfig(widths=(4, 4), buffer_size=50, batch_size=9)
    loaded = ConalSAC.load(path, device="cpu", settings=settings, tau=0.5)
    assert (loaded.settings.gamma, loaded.settings.batch_size, loaded.tau) == (0.99, 9, 0.5)


def test_load_keeps_and_replaces_what_only_sb3_can_say(tmp_path: Path) -> None:
    path = saved(tmp_path, tree=SHARED, learning_rate=lambda left: left, train_freq=(2, "episode"))
    loaded = ConalSAC.load(path, device="cpu")
    assert loaded.lr_schedule(0.5) == 0.5
    assert loaded.train_freq.unit.value == "episode"  # type: ignore[union-attr]
    changed = ConalSAC.load(path, device="cpu", learning_rate=1e-2, update_every=3)
    assert changed.lr_schedule(0.5) == 1e-2
    assert changed.train_freq.frequency == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keyword", "named"),
    [
        ({"gamma": 2.0}, "agent.gamma"),
        ({"conflict_margin": 0.1}, "conflict_margin: .*margin"),
        ({"conflict_rule": "none"}, "^conflict_rule: .* rule"),
        ({"copies": 3}, "copies: "),
        ({"seed": -1}, "seed: got -1"),
        ({"target_update_interval": 0}, "target_update_interval: got 0"),
        ({"device": "gpu"}, "device: got 'gpu'"),
    ],
)
def test_load_refuses_what_the_constructor_refuses(
    keyword: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    with pytest.raises(ConfigError, match=named):
        ConalSAC.load(path, **{"device": "cpu", **keyword})


@pytest.mark.parametrize(
    "keyword",
    [
        {"ent_coef": 0.2},
        {"ent_coef": "auto_0.5"},
        {"initial_temperature": 0.5},
        {"weighting": "uncertainty"},
        {"widths": (4,)},
        {"rule": "none"},
        {"specific_decay": 0.1},
        {"search": SearchConfig(method="recon")},
    ],
)
def test_load_refuses_what_saved_networks_depend_on(
    keyword: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path)
    name, value = next(iter(keyword.items()))
    if name == "ent_coef":
        name = "ent_coef" if value == 0.2 else "initial_temperature"
    with pytest.raises(
        ConfigError, match=f"^{'method' if name == 'search' else name}: got .*saved"
    ):
        ConalSAC.load(path, device="cpu", **keyword)


def test_load_refuses_a_learnt_temperature_for_a_fixed_one(tmp_path: Path) -> None:
    path = saved(tmp_path, ent_coef=0.2)
    assert ConalSAC.load(path, device="cpu", ent_coef=0.2).ent_coef == 0.2
    with pytest.raises(ConfigError, match=r"^ent_coef: got 'auto', expected 0\.2"):
        ConalSAC.load(path, device="cpu", ent_coef="auto")


def test_a_zip_file_without_settings_is_refused() -> None:
    """Commit 4bbec36 saved it; its classes have different names today."""
    old = Path(__file__).parents[1] / "data" / "old_runs" / "agent.zip"
    with pytest.raises(CheckpointError, match=r"agent\.zip: got a zip file of a different version"):
        ConalSAC.load(old, device="cpu")


def test_a_zip_file_needs_its_settings(tmp_path: Path) -> None:
    agent(tree=SHARED).save(tmp_path / "agent.zip", exclude=["_arguments"])
    with pytest.raises(CheckpointError, match=r"agent\.zip: got a zip file of a different version"):
        ConalSAC.load(tmp_path / "agent.zip", device="cpu")


BAD: list[Any] = [
    *(None, math.nan, math.inf, -1, -1.5, 0, True, "text", "3", b"x", [], [1, 2], (), (1,), {}),
    *((-1, "episode"), (1, "foo"), np.array([1.0, 2.0]), np.array(3), np.float32(2.5), object()),
]
SB3S = set(inspect.signature(SAC.__init__).parameters) - {"self", "policy", "env"}
NAMES = sorted((KEYWORDS | SB3S | {"tasks", "tree", "settings", "search"}) - {"_init_setup_model"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_argument_is_named(name: str) -> None:
    """The agent is made, or an error of one line names the argument."""
    env = make_env((-0.5, 0.5))
    for value in BAD:
        try:
            ConalSAC(env=env, **{**SMALL, name: value})
        except (TypeError, ValueError, ConalError) as error:
            assert name in str(error), (value, str(error))
            assert "\n" not in str(error)


def test_numbers_of_numpy_are_numbers() -> None:
    made = agent(seed=np.int64(3), train_freq=np.int32(2), gamma=np.float32(0.5))
    assert (made.seed, made.settings.update_every, made.settings.gamma) == (3, 2, 0.5)
