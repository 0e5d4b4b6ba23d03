"""`ConalSAC` used as SB3's users use SAC: learn, callbacks, evaluation, logs, zip files."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.vec_env import DummyVecEnv

from conal_rl.agents import ConalSAC
from conal_rl.core import LTBSearch, ReconSearch, Tree, TreeNetwork
from conal_rl.envs import TaskVecEnv
from conal_rl.envs.vec_env import Task
from conal_rl.errors import ConfigError, ObservationError, TreeError
from tests.helpers.agents import SEARCH, TASKS, TREES, assert_same_agent
from tests.helpers.toy import Target, make_agent, make_env, random_rows, same_tensors


class Memory(KVWriter):
    """Keeps what was logged, a dict for each line."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.lines.append(dict(key_values))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("tree", ["search", "pair"])
@pytest.mark.slow
def test_the_same_seed_gives_the_same_agent(tree: str) -> None:
    agents = []
    for _ in range(2):
        env = make_env((-0.5, 0.5), envs_per_task=2, seed=3)
        agent = make_agent(TREES[tree], env=env, seed=3, **SEARCH)
        agent.learn(512)
        assert agent._n_updates == 30
        agents.append(agent)
    assert_same_agent(*agents)
    other = make_agent(TREES[tree], seed=4)
    fresh = make_agent(TREES[tree], seed=3)
    assert not same_tensors(other.actor.state_dict(), fresh.actor.state_dict())


def test_a_second_learn_continues_the_first() -> None:
    agent = make_agent(TREES["shared"], train_freq=5)
    logged = Memory()
    agent.set_logger(Logger(None, [logged]))
    agent.learn(100, log_interval=4)
    assert agent.num_timesteps == 100
    stored, episodes = agent.replay_buffer.training.added.tolist(), agent._episode_num
    agent.learn(60, log_interval=4, reset_num_timesteps=False)
    assert agent.num_timesteps == 160
    assert agent._episode_num == 32 > episodes
    assert agent.replay_buffer.training.added.tolist() == [added + 30 for added in stored]
    steps = [line["time/total_timesteps"] for line in logged.lines]
    assert steps == [20, 40, 60, 80, 100, 120, 140, 160]
    agent.learn(20)  # counts from zero again, and keeps weights and data
    assert agent.num_timesteps == 20
    assert agent.replay_buffer.training.added.sum() == 180


def test_what_is_logged() -> None:
    agent = make_agent(TREES["search"], **SEARCH)
    logged = Memory()
    agent.set_logger(Logger(None, [logged]))
    agent.learn(100, log_interval=5)
    line = logged.lines[-1]
    for name in ("actor_loss", "critic_loss", "ent_coef", "entropy", "target_q", "gate_loss"):
        assert np.isfinite(line[f"train/{name}"])
    assert line["train/n_updates"] == agent._n_updates - 1 > 0
    assert line["train/learning_rate"] == pytest.approx(3e-4)
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= line.keys()
    for task in TASKS:
        assert line[f"return/{task}"] == pytest.approx(agent.recent.returns()[task], abs=2)
        for name in ("actor", "critic"):
            gates = [line[f"tree_gates_{name}/{task}/{point}"] for point in (1, 2, 3)]
            assert sum(gates) == pytest.approx(1)
    for name in ("actor", "critic"):
        for rule in ("any_pair", "conflicting_tasks", "and_deeper", "consensus", "none"):
            shares = [line[f"tree_held_{name}/{rule}/{layer}"] for layer in (1, 2)]
            assert all(0 <= share <= 1 for share in shares)
        assert line[f"tree_held_{name}/none/1"] == 0
    assert "success/mean" not in line  # this env defines no success


def test_success_and_return_are_logged_by_task() -> None:
    env = make_env((None, -3.0), envs_per_task=2)  # rewards: 1 at each step; at best -4
    agent = make_agent(TREES["shared"], env=env, learning_starts=1_000)
    assert np.isnan(list(agent.recent.returns().values())).all()
    for monitored in env.envs:
        task_env: Any = monitored
        task_env.env._threshold = 0.0  # as if registered with a reward_threshold
    logged = Memory()
    agent.set_logger(Logger(None, [logged]))
    agent.learn(4 * 10, log_interval=4)
    assert agent.recent.returns()["task-0"] == pytest.approx(5)
    assert agent.recent.returns()["task-1"] < -20
    assert agent.recent.success() == {"task-0": 1.0, "task-1": 0.0}
    assert logged.lines[-1]["success/task-0"] == 1
    assert logged.lines[-1]["success/mean"] == 0.5


def test_sb3s_callbacks_run(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"])
    evaluate = EvalCallback(
        make_env((-0.5, 0.5)),
        eval_freq=25,
        n_eval_episodes=2,
        verbose=0,
        best_model_save_path=str(tmp_path),
    )
    save = CheckpointCallback(save_freq=30, save_path=str(tmp_path), name_prefix="agent")
    stop = StopTrainingOnMaxEpisodes(max_episodes=6)
    agent.learn(10_000, callback=[evaluate, save, stop])
    assert agent.num_timesteps == 2 * 30
    assert np.isfinite(evaluate.best_mean_reward)
    assert (tmp_path / "agent_60_steps.zip").is_file()
    best = ConalSAC.load(tmp_path / "best_model.zip", device="cpu")
    assert best.num_timesteps == 2 * 25


@pytest.mark.parametrize("tree", ["search", "shared"])
def test_an_agent_is_copied_at_any_time(tree: str) -> None:
    class Copies(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps in (2, 60):
                copies.append(copy.deepcopy(self.model))
            return True

    copies: list[Any] = []
    weighting = {"weighting": "gradvac"} if tree == "shared" else SEARCH
    agent = make_agent(TREES[tree], **weighting)
    agent.learn(96, callback=Copies())
    copies += [copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))]
    before = copy.deepcopy(agent.policy.state_dict())
    for each in copies[-2:]:
        assert same_tensors(each.policy.state_dict(), before)
    for each in copies:
        each.learn(24, reset_num_timesteps=False)
    assert same_tensors(agent.policy.state_dict(), before)
    assert not same_tensors(copies[-1].policy.state_dict(), before)


def test_a_copy_makes_its_own_logger(tmp_path: Path) -> None:
    """Files and streams can be copied as little as two agents can share them."""
    agent = make_agent(TREES["shared"])
    agent.set_logger(configure(str(tmp_path / "log"), ["stdout", "csv", "tensorboard"]))
    agent.learn(40)
    for twin in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        logged = (tmp_path / "log" / "progress.csv").read_text()
        twin.train(gradient_steps=1, batch_size=4)
        twin.learn(40)
        assert twin.logger is not agent.logger
        assert (tmp_path / "log" / "progress.csv").read_text() == logged


def test_a_copy_compiles_its_own_weights() -> None:
    """Torch copies a compiled function as it is: with the weights of the first network."""
    actor = make_agent(TREES["shared"]).actor
    assert copy.deepcopy(actor)._compiled is None
    actor.compile_training()
    twin = copy.deepcopy(actor)
    found: Any = twin._compiled
    assert found._torchdynamo_orig_callable.__self__ is twin
    assert pickle.loads(pickle.dumps(actor))._compiled is not None


def test_a_copy_of_a_learning_agent_does_not_learn() -> None:
    class Copies(BaseCallback):
        def _on_step(self) -> bool:
            copies.append(copy.deepcopy(self.model))
            return len(copies) < 3

    copies: list[Any] = []
    agent = make_agent(TREES["search"], **SEARCH)
    agent.learn(20, callback=Copies())
    assert not any(each.queue._learning for each in copies)


def test_sb3s_evaluate_policy_takes_the_agent() -> None:
    agent = make_agent(TREES["pair"])
    mean, deviation = evaluate_policy(agent, make_env((None, None)), n_eval_episodes=4)
    assert (mean, deviation) == (5, 0)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("temperature", ["auto", "auto_0.1"])
def test_a_zip_file_restores_the_agent(tree: str, temperature: str, tmp_path: Path) -> None:
    """SB3's save and load, with optimiser states, with and without an env; training continues."""
    settings = SEARCH | {"gate_every": 2, "reward_scale": 0.5, "critic_reduce": "mean"}
    agent = make_agent(TREES[tree], ent_coef=temperature, **settings)
    agent.learn(96)
    before = copy.deepcopy(agent.policy.state_dict())
    agent.save(tmp_path / "agent.zip")
    assert same_tensors(agent.policy.state_dict(), before)

    loaded = ConalSAC.load(tmp_path / "agent.zip", device="cpu")
    assert_same_agent(agent, loaded)
    assert loaded.derive() == agent.derive()
    assert loaded.searching == agent.searching
    assert (loaded.tasks, loaded.num_timesteps, loaded._n_updates) == (TASKS, 96, 7)
    rows = random_rows([1, 0, 1], tasks=2)
    expected, _ = agent.predict(rows, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(rows, deterministic=True)[0], expected)
    assert (loaded.settings, loaded.search) == (agent.settings, agent.search)
    assert loaded.settings.reward_scale == 0.5 and loaded.search.gate_every == 2
    for name in ("target_entropy", "batch_size", "learning_starts", "ent_coef", "train_freq"):
        assert getattr(loaded, name) == getattr(agent, name)

    resumed = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    resumed.learn(96, reset_num_timesteps=False)
    assert resumed.num_timesteps == 192
    assert resumed._n_updates > 7 + 10
    assert not same_tensors(resumed.policy.state_dict(), before)
    assert all(torch.isfinite(value).all() for value in resumed.policy.state_dict().values())
    if tree == "search":
        assert torch.equal(resumed.gates["critic"], resumed.critic.gates)  # type: ignore[arg-type]
        assert not torch.equal(resumed.gates["actor"], before["actor.encoder.gates"])


def test_a_zip_file_keeps_learnt_loss_weights(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"], weighting="uncertainty", learning_rate=0.01)
    agent.learn(60)
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    assert_same_agent(agent, loaded)
    (learnt,), (again,) = (a.update.loss_weights.parameters() for a in (agent, loaded))
    assert learnt.abs().min() > 0 and torch.equal(learnt, again)
    loaded.learn(60)
    assert not torch.equal(learnt, again)


def test_a_zip_file_keeps_the_largest_returns(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"], normalize_returns=True)
    agent.learn(60)
    largest = agent.largest_returns.copy()
    assert largest.min() > 0
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    assert loaded.replay_buffer.largest_returns is not None
    np.testing.assert_array_equal(loaded.replay_buffer.largest_returns.largest, largest)
    loaded.learn(60, reset_num_timesteps=False)
    assert (loaded.replay_buffer.largest_returns.largest >= largest).all()


def test_a_zip_file_keeps_the_unit_of_a_loaded_replay(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"], normalize_returns=True)
    agent.learn(60)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    assert loaded.replay_buffer.largest_returns is not None
    loaded.replay_buffer.largest_returns.largest *= 7
    loaded.save(tmp_path / "again.zip")
    again = ConalSAC.load(tmp_path / "again.zip", env=make_env((-0.5, 0.5)), device="cpu")
    np.testing.assert_allclose(again.largest_returns, 7 * agent.largest_returns)


def test_settings_given_to_load_are_the_replays_too(tmp_path: Path) -> None:
    make_agent(TREES["shared"], n_steps=3).save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(
        tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu", gamma=0.5, n_steps=2
    )
    assert loaded.replay_buffer.returns is not None
    assert (loaded.replay_buffer.returns.gamma, loaded.replay_buffer.returns.n) == (0.5, 2)


def test_a_zip_file_keeps_a_fixed_temperature(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"], ent_coef=0.05)
    agent.learn(60)
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    assert loaded.log_ent_coef is None
    assert loaded.ent_coef_tensor.item() == pytest.approx(0.05)
    loaded.learn(60)
    assert loaded._n_updates > 0


def test_a_policy_saved_by_sb3_acts_the_same(tmp_path: Path) -> None:
    agent = make_agent(TREES["pair"])
    agent.policy.save(str(tmp_path / "policy.pt"))
    policy = type(agent.policy).load(str(tmp_path / "policy.pt"), device="cpu")
    rows = random_rows([1, 0, 1], tasks=2)
    expected, _ = agent.predict(rows, deterministic=True)
    np.testing.assert_array_equal(policy.predict(rows, deterministic=True)[0], expected)


def test_schedules_and_training_by_episodes_work() -> None:
    rates = []

    def note(local: Any, _: Any) -> bool:
        rates.append(local["self"].actor.optimizer.param_groups[0]["lr"])
        return True

    agent = make_agent(
        Tree.shared(TASKS[:1], 2),
        (0.5,),
        learning_rate=lambda left: 1e-3 * left,
        learning_starts=20,
        train_freq=(2, "episode"),
        gradient_steps=-1,
    )
    agent.learn(100, callback=note)
    assert agent._n_updates == 80  # as many as steps, after the first 20
    assert rates[0] == 1e-3 and rates[-1] == pytest.approx(1e-4)


def test_agents_may_share_their_settings() -> None:
    """What one agent derives from its arguments stays its own."""
    policy, replay = {"widths": (8, 8)}, dict[str, Any]()
    agents = [
        ConalSAC(
            env=make_env((-0.5, 0.5)), tree=tree, policy_kwargs=policy, replay_buffer_kwargs=replay
        )
        for tree in TREES.values()
    ]
    assert "actor_tree" not in policy and replay == {}
    assert [agent.policy_kwargs["actor_tree"] for agent in agents] == [
        agent.policy.actor_tree for agent in agents
    ]


def test_an_env_without_names_needs_them() -> None:
    env = make_env((-0.5, 0.5))
    del env.tasks
    with pytest.raises(ValueError, match="tasks"):
        make_agent(None, env=env)
    assert make_agent(None, env=env, tasks=["a", "b"]).tasks == ("a", "b")


@pytest.mark.slow
def test_sb3s_tables_take_long_names_that_begin_alike(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"some_package.of_mine.envs:Pendulum{kind}-v1" for kind in ("Heavy", "Light")]
    env = TaskVecEnv("toy", [Task(name, Target) for name in names])
    agent = ConalSAC(env=env, verbose=1, widths=(8,), learning_starts=50, seed=0)
    agent.learn(200, log_interval=4)
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in names)
    assert "gates_actor" not in printed


@pytest.mark.slow
def test_clamped_targets_are_counted_and_warned_of() -> None:
    """Rewards of -1 for ever: a value of -100 where the range ends at -1."""
    kinds: dict[str, Any] = {"critic": "hl_gauss", "learning_starts": 10}
    agent = make_agent(TREES["shared"], (5.0, 5.0), **kinds)
    with pytest.warns(UserWarning, match="critic_range"):
        agent.learn(400, log_interval=4)
    fine = make_agent(TREES["shared"], (5.0, 5.0), reward_scale=1e-4, **kinds)
    logged = Memory()
    fine.set_logger(Logger(None, [logged]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine.learn(400, log_interval=4)
    assert logged.lines[-1]["train/clamped_targets"] == 0


@pytest.mark.parametrize("tree", ["search", "recon"])
def test_zip_file_keeps_the_conflicts_and_the_episodes(tree: str, tmp_path: Path) -> None:
    structure = ReconSearch(1) if tree == "recon" else TREES[tree]
    agent = make_agent(structure, **SEARCH, smoothing=0.9)
    agent.learn(96)
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=make_env((-0.5, 0.5)), device="cpu")
    assert loaded.derive() == agent.derive()
    assert loaded.recent.returns() == agent.recent.returns()
    for name, noticing in agent.noticing.items():
        (tensors, counters), (mine, counted) = noticing.state(), loaded.noticing[name].state()
        assert counters == counted and counters["steps"] > 0
        assert "gram" in tensors and same_tensors(tensors, mine)


@pytest.mark.parametrize(
    ("saved", "settings", "message"),
    [
        (TREES["shared"], {"normalize_returns": True}, "normalize_returns"),
        (TREES["shared"], {"n_steps": 3}, "n_steps"),
        (None, {"validation_share": 0.3}, "validation_share"),
    ],
)
def test_a_replay_of_other_settings_is_refused(
    saved: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_agent(saved, **settings).save_replay_buffer(tmp_path / "replay.pkl")
    agent = make_agent(TREES["shared"])
    own = agent.replay_buffer
    with pytest.raises(ValueError, match=message):
        agent.load_replay_buffer(tmp_path / "replay.pkl")
    assert agent.replay_buffer is own


def test_a_replay_is_loaded_after_the_old_one_was_freed(tmp_path: Path) -> None:
    agent = make_agent(TREES["search"], n_steps=3, **SEARCH)
    agent.learn(60)
    size = agent.replay_buffer.size()
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    make_agent(TREES["shared"], n_steps=3).save_replay_buffer(tmp_path / "other.pkl")
    agent.replay_buffer = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="replay buffer: got validation_share"):
        agent.load_replay_buffer(tmp_path / "other.pkl")
    assert vars(agent)["replay_buffer"] is None
    agent.load_replay_buffer(tmp_path / "replay.pkl")
    assert agent.replay_buffer.size() == size > 0
    agent.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("content", [{}, None, [1]])
def test_a_pickle_of_something_else_is_not_a_replay(content: Any, tmp_path: Path) -> None:
    (tmp_path / "replay.pkl").write_bytes(pickle.dumps(content))
    agent = make_agent(TREES["shared"])
    own = agent.replay_buffer
    with pytest.raises(ValueError, match="replay buffer: got a"):
        agent.load_replay_buffer(tmp_path / "replay.pkl")
    assert agent.replay_buffer is own


def test_a_replay_of_a_different_algorithm_is_refused(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save_replay_buffer(tmp_path / "replay.pkl")
    with pytest.raises(ValueError, match="replay buffer"):
        make_agent(TREES["shared"]).load_replay_buffer(tmp_path / "replay.pkl")


def test_returns_do_not_continue_in_a_loaded_replay(tmp_path: Path) -> None:
    """Rewards and discounts of a buffer's open transitions are of episodes that ended elsewhere."""
    agents = [make_agent(TREES["shared"], n_steps=3, train_freq=4) for _ in range(2)]
    for agent in agents:
        agent.learn(10)
    agents[0].save_replay_buffer(tmp_path / "replay.pkl")
    agents[1].load_replay_buffer(tmp_path / "replay.pkl")
    replay = agents[1].replay_buffer
    held = replay.training.sizes.copy()
    agents[1].learn(2, reset_num_timesteps=False)  # rounds of 4: each transition was its episode's
    assert replay.returns is not None
    assert (replay.training.sizes - held).tolist() == [2, 2]  # 4 steps, of which 2 are still open


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_search_needs_data_of_both_kinds(share: float) -> None:
    with pytest.raises(ConfigError, match=r"search\.validation_share"):
        make_agent(None, validation_share=share)


@pytest.mark.parametrize(
    "argument", [{"replay_buffer_class": HerReplayBuffer}, {"optimize_memory_usage": True}]
)
def test_a_different_replay_is_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))):
        make_agent(TREES["shared"], **argument)


def test_a_replay_moves_to_the_device_of_its_new_agent(tmp_path: Path) -> None:
    agent = make_agent(TREES["shared"])
    agent.learn(60)
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    agent.device = torch.device("meta")
    agent.load_replay_buffer(tmp_path / "replay.pkl")
    batch = agent.replay_buffer.sample(4)
    assert {tensor.device.type for tensor in batch[:5]} == {"meta"}


def test_frozen_weights_stay_frozen() -> None:
    agent = make_agent(TREES["shared"])
    frozen = []
    for network in (agent.critic, agent.actor):
        assert isinstance(network.encoder, TreeNetwork)
        frozen.append(network.encoder.layers[0])
    for layer in frozen:
        layer.requires_grad_(False)
    before = copy.deepcopy([layer.state_dict() for layer in frozen])
    agent.learn(96)
    assert agent._n_updates > 0
    assert all(same_tensors(a.state_dict(), b) for a, b in zip(frozen, before, strict=True))


def test_recon_counts_every_step() -> None:
    agent = make_agent(ReconSearch(1))
    agent.learn(100)
    assert agent._n_updates > 3
    for noticing in agent.noticing.values():
        statistics = noticing.statistics()
        assert statistics is not None
        assert statistics.counted.max() == noticing.steps


def test_recon_counts_in_plain_training() -> None:
    agent = make_agent(ReconSearch(1), rule="any_pair")
    assert {noticing.rule for noticing in agent.noticing.values()} == {"none"}
    agent_of_one = make_agent(ReconSearch(1), (0.5,))
    assert all(tree == Tree.independent(TASKS[:1], 2) for tree in agent_of_one.derive())


def test_and_deeper_is_refused_for_ltb() -> None:
    with pytest.raises(ValueError, match="and_deeper"):
        make_agent(LTBSearch(2), rule="and_deeper")


def exchanged() -> TaskVecEnv:
    """An env of the same spaces, whose tasks are in a different order."""
    return TaskVecEnv("toy", [Task(name, Target) for name in reversed(TASKS)])


def test_envs_of_other_tasks_are_refused(tmp_path: Path) -> None:
    """They would be given each other's heads."""
    agent = make_agent(TREES["shared"])
    agent.save(tmp_path / "agent.zip")
    message = "the environment: got .* task-1, task-0, expected task-0, task-1"
    with pytest.raises(ValueError, match=message):
        agent.set_env(exchanged())
    with pytest.raises(ValueError, match=message):
        ConalSAC.load(tmp_path / "agent.zip", env=exchanged())
    with pytest.raises(ValueError, match=message):
        ConalSAC(env=exchanged(), tasks=TASKS)
    agent.set_env(make_env((0.1, 0.2), envs_per_task=1))
    ConalSAC.load(tmp_path / "agent.zip", env=make_env((0.1, 0.2))).learn(30)


@pytest.mark.parametrize(
    ("tail", "named"),
    [((0, 0), "[0.0, 0.0]"), ((1, 1), "[1.0, 1.0]"), ((0.5, 0.5), "[0.5, 0.5]"), ((2, 0), "2.0")],
)
def test_observations_of_no_task_are_refused(tail: tuple[float, float], named: str) -> None:
    agent = make_agent(TREES["shared"])
    rows = np.array([[0, 0, 0, 1, 0], [0, 0, 0, *tail]], dtype=np.float32)
    for wrong in (rows, rows[1]):
        with pytest.raises(ObservationError, match="one-hot") as error:
            agent.predict(wrong)
        assert named in str(error.value)
    assert agent.predict(rows[0])[0].shape == (1,)


def test_an_env_without_a_one_hot_is_refused() -> None:
    class Unnamed(DummyVecEnv):
        pass

    env = Unnamed([Target])
    with pytest.raises(ValueError, match=r"3 numbers.* 3 tasks"):
        ConalSAC(env=env, tasks=("a", "b", "c"))
    agent = ConalSAC(env=env, tasks=("a", "b"))
    with pytest.raises(ObservationError, match="one-hot"):
        agent.learn(10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tree": "shared"}, "tree: got 'shared'"),
        ({"tree": [None, None]}, "tree: got"),
        ({"tree": (None, None, None)}, "tree: got 3"),
        ({"env": make_env((0.1,))}, "tree: .*task-0"),
        ({"tasks": "task-0"}, "tasks: got 'task-0'"),
        ({"tasks": ()}, r"tasks: got \[\]"),
        ({"tasks": ("a", "a")}, "tasks: got 'a' twice"),
        ({"tasks": ("a", " ")}, "tasks: got ' '"),
        ({"n_steps": 0}, "agent.n_steps"),
        ({"batch_size": 0}, "agent.batch_size"),
        ({"buffer_size": 0}, "agent.buffer_size"),
        ({"learning_starts": -1}, "agent.learning_starts"),
        ({"gate_every": 0}, "search.gate_every"),
        ({"actor_every": 0}, "agent.actor_every"),
        ({"target_update_interval": 0}, "target_update_interval: got 0"),
        ({"critic_reduce": "max"}, "agent.critic_reduce"),
        ({"buffer_size": 3, "validation_share": 0.9}, "buffer_size: got 3"),
        ({"gamma": 2.0}, "agent.gamma"),
        ({"tau": 0.0}, "agent.tau"),
        ({"reward_scale": 0.0}, "agent.reward_scale"),
        ({"specific_decay": -1.0}, "search.specific_decay"),
        ({"max_grad_norm": 0.0}, "agent.max_grad_norm"),
        ({"temperature": (1.0,)}, "search.temperature"),
        ({"temperature": (0.1, 1.0)}, "search.temperature"),
        ({"policy_kwargs": {"widths": ()}}, "agent.widths"),
        ({"widths": (8, 0)}, "agent.widths"),
        ({"policy_kwargs": {"critics": 0}}, "agent.critics"),
        ({"policy_kwargs": {"actor_averaging": -1.5}}, "agent.actor_averaging"),
        ({"policy_kwargs": {"widths": (8,)}, "widths": (8,)}, "widths: "),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}}, "net_arch"),
        ({"train_freq": 0}, "train_freq: got 0"),
        ({"gradient_steps": 0}, "gradient_steps: got 0"),
        ({"ent_coef": "auto_0"}, "ent_coef: got 'auto_0'"),
        ({"learning_rate": "fast"}, "learning_rate: got 'fast'"),
        ({"settings": {"gamma": 0.9}}, "settings: "),
        ({"search": {"rule": "none"}}, "search: "),
        ({"critic": "huber"}, "agent.critic: "),
        ({"conflict_margin": 0.1}, "conflict_margin: .*margin"),
        ({"conflict_smoothing": 0.1}, "conflict_smoothing: .*smoothing"),
        ({"hold_after_search": True}, "hold_after_search: .*conflict_rule"),
        ({"gumbel_temperature": (1.0, 0.5)}, "gumbel_temperature: .*temperature"),
        ({"conflict_rule": "none"}, "^conflict_rule: .* rule"),
        ({"tree": ReconSearch(1), "specific_layers": 2}, "specific_layers: "),
        ({"method": "recon"}, "method"),
        ({"env": None}, "env: got None"),
    ],
)
def test_arguments_out_of_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, TreeError), match=message):
        ConalSAC(**{"env": make_env((0.1, 0.2)), **arguments})
