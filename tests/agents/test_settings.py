"""Settings of `ConalSAC`: objects, keywords that win, SB3's own keywords, and SB3's `load`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from conal_rl.agents import ConalSAC
from conal_rl.agents.arguments import KEYWORDS
from conal_rl.config import AgentConfig, SearchConfig, marked
from conal_rl.core import ConalProStage, ConalSearch, LTBSearch, ReconSearch, Structure, Tree
from conal_rl.errors import CheckpointError, ConfigError
from tests.helpers.refusals import refused
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


@pytest.mark.parametrize(
    ("made", "keyword"),
    [
        *(({"tree": SHARED}, {name: value}) for name, value in OF_SEARCH.items()),
        ({"tree": SHARED}, {"search": SearchConfig(gate_every=2)}),
        ({"tree": ReconSearch(1)}, {"gate_every": 2}),
        ({"tree": SHARED, "ent_coef": 0.2}, {"target_entropy": -2.0}),
        ({}, {"temperature": (2.0, 0.5)}),
        ({}, {"learning_rate_end": 1e-4}),
        ({}, {"reset_at": (5,)}),
        ({}, {"settings": AgentConfig(widths=(4, 4), reset_at=(5,))}),
        ({}, {"tasks": TASKS[::-1]}),
        ({}, {"tree": SHARED}),
        ({}, {"policy": "ConalPolicy"}),
        ({}, {"method": "ltb"}),
        ({}, {"num_timesteps": 7}),
        ({}, {"use_sde": True}),
        ({}, {"replay_buffer_kwargs": {"n_steps": 2}}),
        ({}, {"policy_kwargs": {"net_arch": {"pi": [4]}}}),
    ],
)
def test_load_refuses_what_has_no_effect(
    made: dict[str, Any], keyword: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, **made)
    (name,) = keyword
    if isinstance(keyword[name], AgentConfig | SearchConfig):
        name = "reset_at" if name == "settings" else "gate_every"
    with refused((ConfigError, TypeError), f"{name}: got "):
        ConalSAC.load(path, device="cpu", **keyword)


def test_load_takes_values_that_change_nothing(tmp_path: Path) -> None:
    made: dict[str, Any] = {"gate_every": 2, "reset_at": (5,), "ent_coef": 0.2, "gamma": 0.5}
    path = saved(tmp_path, tree=SHARED, **made)
    loaded = ConalSAC.load(path, device="cpu", settings=None, search=None, **made)
    assert (loaded.search.gate_every, loaded.settings.reset_at) == (2, (5,))


def test_load_takes_what_sb3_keeps_under_different_names(tmp_path: Path) -> None:
    path, kwargs = saved(tmp_path), {"widths": (4, 4), "gamma": 0.5}
    loaded = ConalSAC.load(path, device="cpu", stats_window_size=7, policy_kwargs=kwargs)
    assert (loaded._stats_window_size, loaded.settings.gamma) == (7, 0.5)


def test_load_changes_the_learning_rate_of_gates(tmp_path: Path) -> None:
    path = saved(tmp_path, gate_learning_rate=0.25)
    changes: list[tuple[dict[str, Any], float]] = [({}, 0.25), ({"gate_learning_rate": 0.5}, 0.5)]
    for changed, expected in changes:
        loaded = ConalSAC.load(path, device="cpu", **changed)
        for learner in loaded.learners.values():
            assert learner.gate_optimizer is not None
            assert learner.gate_optimizer.param_groups[0]["lr"] == expected


def test_keywords_of_load_win_over_saved_attributes(tmp_path: Path) -> None:
    made = agent(tree=SHARED, learning_rate=lambda left: left, gradient_steps=-1)
    made.batch_size = 64
    made.save(tmp_path / "agent.zip")
    kept, changed, whole = (
        ConalSAC.load(tmp_path / "agent.zip", device="cpu", **given)
        for given in ({}, {"batch_size": 16}, {"settings": AgentConfig(widths=(4, 4), updates=3)})
    )
    assert (kept.batch_size, kept.gradient_steps, kept.lr_schedule(0.5)) == (64, -1, 0.5)
    assert (changed.batch_size, changed.gradient_steps, changed.lr_schedule(0.5)) == (16, -1, 0.5)
    assert (whole.batch_size, whole.gradient_steps, whole.lr_schedule(0.5)) == (32, 3, 3e-4)


def test_a_schedule_has_no_learning_rate_end(tmp_path: Path) -> None:
    rates: dict[str, Any] = {"learning_rate": lambda left: left, "learning_rate_end": 1e-4}
    with refused(ConfigError, "learning_rate_end: got 0.0001"):
        agent(tree=SHARED, **rates)
    path = saved(tmp_path, tree=SHARED, learning_rate=rates["learning_rate"])
    with refused(ConfigError, "learning_rate_end: got 0.0001"):
        ConalSAC.load(path, device="cpu", learning_rate_end=1e-4)
    loaded = ConalSAC.load(path, device="cpu", learning_rate=1e-2, learning_rate_end=1e-4)
    assert loaded.lr_schedule(0) == pytest.approx(1e-4)


@pytest.mark.parametrize("schedule", [lambda _: "fast", lambda _: 1 / 0, lambda _: -1.0, dict])
def test_a_schedule_that_gives_no_rate_is_refused(schedule: Any) -> None:
    with refused(ConfigError, "learning_rate: got "):
        agent(learning_rate=schedule)


def test_a_zip_file_of_sb3s_sac_is_refused(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac.zip")
    with refused(CheckpointError, "sac.zip: got ", "SACPolicy"):
        ConalSAC.load(tmp_path / "sac.zip", device="cpu")


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
    *("auto", "auto_x", "auto_-1", {"a": 1}, {1}, [None], [[1]], ("a", "b"), np.eye(2), dict),
]
SB3S = set(inspect.signature(SAC.__init__).parameters) - {"self", "_init_setup_model"}
NAMES = sorted(KEYWORDS | SB3S | {"tasks", "tree", "settings", "search"})


def require_named(error: Exception, name: str, value: Any) -> None:
    message = str(error)
    assert name in message.partition(", expected ")[0], (value, message)
    assert ", expected " in message and "\n" not in message, (value, message)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_argument_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is made and learns, or an error of one line names the argument."""
    monkeypatch.chdir(tmp_path)  # text may be the name of a folder
    for value in BAD:
        given = {"env": make_env((-0.5, 0.5)), **SMALL, "learning_starts": 5, name: value}
        try:
            made = ConalSAC(**given)
        except (TypeError, ValueError) as error:
            require_named(error, name, value)
        else:
            made.learn(12, log_interval=None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES, "num_timesteps"}))
def test_a_bad_argument_of_load_is_named(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    for value in BAD:
        try:
            ConalSAC.load(path, **{"device": "cpu", name: value})
        except (TypeError, ValueError) as error:
            require_named(error, name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gradient_steps", value) for value in (None, "3", -1.5, -2)),
        *(("train_freq", value) for value in ((1,), (-1, "episode"), (1, "foo"), None)),
        *(("target_entropy", value) for value in ("high", np.array([1.0, 2.0]))),
        *(("ent_coef", v) for v in (-1, math.nan, math.inf, "auto_x", "auto_-1", "auto_", None)),
        *(("env", value) for value in (5, "Nowhere-v0", [make_env((0.5,))])),
        *(("policy", value) for value in ("CnnPolicy", None, SAC)),
        *((name, "x") for name in ("action_noise", "widths", "device", "seed", "search")),
        *((name, 5) for name in ("tensorboard_log", "sde_sample_freq", "tasks", "foo")),
        ("tree", Tree.shared(TASKS, 3)),
        ("tree", ReconSearch(3)),
        ("tree", ConalProStage.first(3)),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ConalSAC(**{"env": make_env((-0.5, 0.5)), **SMALL, name: value})
    require_named(caught.value, name, value)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"policy_kwargs": {"net_arch": {"pi": [8]}}}, "one list"),
        ({"policy_kwargs": {"net_arch": [8], "widths": [8]}}, "net_arch and widths"),
        ({"policy_kwargs": {"use_sde": True}}, "exploration"),
        ({"policy_kwargs": {"activation_fn": dict}}, "ReLU"),
        ({"policy_kwargs": {"optimizer_class": dict}}, "Adam"),
        ({"policy_kwargs": {"features_extractor_class": dict}}, "flat observations"),
        ({"policy_kwargs": {"width": (8,)}}, "Did you mean widths?"),
        ({"replay_buffer_kwargs": {"n_steps": 3}}, "as keywords"),
        ({"learning_rates": 1e-3}, "Did you mean learning_rate?"),
        ({"policy": "CnnPolicy"}, "'MlpPolicy'"),
    ],
)
def test_an_argument_of_sb3_comes_with_advice(given: dict[str, Any], advice: str) -> None:
    with refused((ConfigError, TypeError), f"{next(iter(given))}: got ", advice):
        agent(**given)


def test_defaults_of_sb3_are_accepted() -> None:
    kwargs = {"handle_timeout_termination": True}
    made = agent(
        **{"use_sde": False, "sde_sample_freq": -1, "optimize_memory_usage": False},
        **{"replay_buffer_class": None, "replay_buffer_kwargs": kwargs, "verbose": False},
    )
    assert made.replay_buffer.handle_timeout_termination


def test_defaults_of_sb3s_policy_are_accepted() -> None:
    defaults = {
        name: each.default
        for name, each in inspect.signature(SACPolicy).parameters.items()
        if each.default is not inspect.Parameter.empty
    }
    assert {"net_arch", "activation_fn", "optimizer_class", "n_critics"} <= defaults.keys()
    made = agent(policy="MlpPolicy", policy_kwargs=defaults)
    assert made.settings == AgentConfig(widths=(4, 4), buffer_size=50, critics=2)


def test_sb3s_names_of_networks_are_settings(tmp_path: Path) -> None:
    kwargs = {"net_arch": [5, 6], "n_critics": 3, "activation_fn": nn.ReLU}
    made = ConalSAC("MlpPolicy", make_env((-0.5, 0.5)), policy_kwargs=kwargs, device="cpu")
    reference = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=kwargs)
    assert (made.settings.widths, made.settings.critics) == ((5, 6), 3)
    assert made.critic.replicas == len(reference.critic.q_networks)
    with refused(ConfigError, "critics: got "):
        agent(critics=2, policy_kwargs={"n_critics": 3})
    made.save(tmp_path / "agent.zip")
    with refused(ConfigError, "widths: got "):
        ConalSAC.load(tmp_path / "agent.zip", device="cpu", policy_kwargs={"net_arch": [5]})


def test_custom_objects_of_load_replace_settings(tmp_path: Path) -> None:
    """SB3 replaces attributes in the file; an agent's settings are not attributes there."""
    path, custom = saved(tmp_path), {"learning_rate": 2e-5, "batch_size": 7}
    loaded = ConalSAC.load(path, device="cpu", custom_objects=custom)
    assert (loaded.learning_rate, loaded.batch_size) == (2e-5, 7)
    loaded = ConalSAC.load(path, device="cpu", custom_objects=custom, batch_size=9)
    assert (loaded.settings.learning_rate, loaded.settings.batch_size) == (2e-5, 9)


def test_numbers_of_numpy_are_numbers() -> None:
    made = agent(
        **{"seed": np.int64(3), "train_freq": (np.int32(2), "episode"), "gamma": np.float32(0.5)},
        **{"widths": np.array([4, 5]), "reset_at": [np.int64(2)], "ent_coef": np.float32(0.5)},
    )
    settings = made.settings
    assert (made.seed, settings.gamma, settings.widths, settings.reset_at) == (3, 0.5, (4, 5), (2,))
    assert made.ent_coef_tensor.item() == 0.5
    frequency: Any = made.train_freq
    assert frequency == TrainFreq(2, TrainFrequencyUnit.EPISODE)


FLAT = Box(-1, 1, (4,))


class Space(gym.Env[Any, Any]):
    def __init__(self, observations: Any, actions: Any) -> None:
        self.observation_space, self.action_space = observations, actions


@pytest.mark.parametrize(
    "spaces",
    [
        (Dict({"seen": FLAT}), FLAT),
        (Box(0, 1, (2, 4)), FLAT),
        (Discrete(5), FLAT),
        (FLAT, Discrete(2)),
        (FLAT, Box(-1, 1, (2, 2))),
        (FLAT, Box(-np.inf, np.inf, (1,))),
    ],
)
def test_spaces_that_are_not_flat_are_refused(spaces: tuple[Any, ...], tmp_path: Path) -> None:
    env, path = DummyVecEnv([lambda: Space(*spaces)]), saved(tmp_path)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: ConalSAC(env=env, tasks=TASKS),
        lambda: agent().set_env(env),
        lambda: ConalSAC.load(path, env=env, device="cpu"),
    )
    for make in makers:
        with refused(ConfigError, "env: got the ", "Wrap the env"):
            make()
