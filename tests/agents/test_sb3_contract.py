"""What SB3 promises its users, with `ConalSAC` and SB3's own SAC side by side."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from conal_rl.agents import ConalSAC, checks
from conal_rl.core import Tree
from conal_rl.envs.task_env import TaskEnv
from conal_rl.errors import ObservationError
from tests.helpers.agents import SEARCH, TASKS, TREES, assert_same_agent
from tests.helpers.refusals import refused
from tests.helpers.toy import FEATURES, Target, make_agent, make_env, random_rows, tasks_named

SHARED = TREES["shared"]


def env_of(tasks: list[int], total: int = 2, length: int = 5) -> DummyVecEnv:
    """Envs of the numbered tasks, out of `total` tasks; a VecEnv of a user's own."""

    def one(task: int) -> Any:
        env = TaskEnv(Target(length=length), str(task), 0, task, total, FEATURES)
        return lambda: Monitor(env)

    return DummyVecEnv([one(task) for task in tasks])


def sb3s(env: VecEnv, **settings: Any) -> SAC:
    sizes: dict[str, Any] = {"buffer_size": 1_000, "learning_starts": 20, "batch_size": 8}
    agent = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **sizes | settings)
    agent.set_logger(configure(None, []))
    return agent


# What callbacks see


class Watch(BaseCallback):
    """The names under train/ that are in the logger between two rounds."""

    def _on_training_start(self) -> None:
        self.found: set[str] = set()

    def _on_rollout_start(self) -> None:
        self.found |= {name for name in self.logger.name_to_value if name.startswith("train/")}

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("tree", ["shared", "search"])
def test_callbacks_see_the_losses_of_sb3(tree: str) -> None:
    agent = make_agent(TREES[tree], **SEARCH)
    seen = []
    for one in (sb3s(make_env((-0.5, 0.5)), train_freq=4), agent):
        watch = Watch()
        one.learn(100, callback=watch)
        seen.append(watch.found)
        assert one.logger.name_to_value["train/n_updates"] == one._n_updates > 0
    assert seen[0] <= seen[1]
    assert ("train/gate_loss" in seen[1]) == (tree == "search")


def test_a_fixed_temperature_has_no_loss() -> None:
    for one in (make_agent(SHARED, ent_coef=0.1), sb3s(make_env((-0.5, 0.5)), ent_coef=0.1)):
        watch = Watch()
        one.learn(60, callback=watch)
        assert "train/critic_loss" in watch.found
        assert "train/ent_coef_loss" not in watch.found


def test_the_line_of_eval_callback_has_the_losses() -> None:
    agent = make_agent(SHARED)
    lines: list[dict[str, Any]] = []

    class Lines(Logger):
        def dump(self, step: int = 0) -> None:
            lines.append(dict(self.name_to_value))
            super().dump(step)

    agent.set_logger(Lines(None, []))
    agent.learn(60, EvalCallback(make_env((0.1, 0.2)), eval_freq=25, n_eval_episodes=2, verbose=0))
    (of_evaluation,) = (line for line in lines if "eval/mean_reward" in line)
    assert np.isfinite([of_evaluation[f"train/{n}_loss"] for n in ("actor", "critic")]).all()
    assert of_evaluation["train/n_updates"] == 14  # in rounds 11 to 24


def test_gradient_steps_of_minus_one_are_counted() -> None:
    """As many updates as transitions."""
    for make in (sb3s, lambda env, **kw: make_agent(SHARED, env=env, **kw)):
        agent = make(make_env((-0.5, 0.5)), learning_starts=0, train_freq=3, gradient_steps=-1)
        agent.learn(3)
        assert agent.logger.name_to_value["train/n_updates"] == 3 * 2


# VecNormalize


def normalized(targets: tuple[float, ...] = (-0.5, 0.5), **settings: Any) -> VecNormalize:
    return VecNormalize(make_env(targets), **{"norm_obs": False, **settings})


@pytest.mark.parametrize("n_steps", [1, 3])
def test_rewards_are_scaled_as_sb3_scales_them(n_steps: int) -> None:
    """The same actions fill both replays, so that samples of one are samples of the other."""
    env = VecNormalize(env_of([0], total=1), norm_obs=False, gamma=0.9)
    settings: dict[str, Any] = {"gamma": 0.9, "n_steps": n_steps, "seed": 0}
    tree = Tree.shared(["only"], 2)
    mine = make_agent(tree, env=env, tasks=["only"], learning_starts=1_000, **settings)
    theirs = sb3s(env, learning_starts=1_000, **settings)
    for one in (mine, theirs):
        one.action_space.seed(0)
        env.seed(0)
        one.learn(200)
    for clip in (10.0, 0.3)[: 2 if n_steps == 1 else 1]:  # SB3 clips before it sums n rewards
        env.clip_reward = clip
        ours = mine.replay_buffer.sample(500, env).rewards.flatten()
        expected = theirs.replay_buffer.sample(4_000, env).rewards.flatten()  # type: ignore[union-attr]
        assert len(ours.unique()) > 50
        assert (ours[:, None] - expected).abs().min(dim=1).values.max() < 1e-5
        assert (ours.min() == -0.3) == (clip == 0.3)


@pytest.mark.parametrize("tree", ["shared", "search"])
def test_updates_learn_from_scaled_rewards(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = normalized((-40.0, 40.0))  # rewards of about -1600
    agent = make_agent(TREES[tree], env=envs, **SEARCH)
    assert agent.get_vec_normalize_env() is envs
    seen = []
    target = agent.update.losses.target

    def noting(batch: Any, temperature: Any) -> Any:
        seen.append(batch.rewards.abs().max().item())
        return target(batch, temperature)

    monkeypatch.setattr(agent.update.losses, "target", noting)
    agent.learn(100)
    assert agent._n_updates > 0 and 0 < max(seen) <= envs.clip_reward
    assert agent.replay_buffer.sample(8).rewards.abs().min() > 1_000
    assert min(agent.recent.returns().values()) < -5_000  # the log has the envs' own
    agent.set_env(normalized((-40.0, 40.0), training=False))
    agent.learn(40, reset_num_timesteps=False)


def test_vec_normalize_that_changes_nothing_changes_nothing() -> None:
    agents = []
    for wrap in (lambda env: env, lambda env: VecNormalize(env, norm_obs=False, norm_reward=False)):
        agents.append(make_agent(SHARED, env=wrap(make_env((-0.5, 0.5)))))
        agents[-1].learn(80)
    assert_same_agent(*agents)


def test_vec_normalize_works_inside_other_wrappers(tmp_path: Path) -> None:
    agent = make_agent(SHARED, env=VecMonitor(normalized()))
    agent.learn(60)
    agent.save(tmp_path / "agent.zip")
    loaded = ConalSAC.load(tmp_path / "agent.zip", env=normalized(), device="cpu")
    loaded.learn(60)
    assert loaded.get_vec_normalize_env() is loaded.env


def test_normalized_observations_are_refused(tmp_path: Path) -> None:
    agent = make_agent(SHARED)
    agent.save(tmp_path / "agent.zip")
    for make in (
        lambda env: ConalSAC(env=env),
        agent.set_env,
        lambda env: ConalSAC.load(tmp_path / "agent.zip", env=env, device="cpu"),
    ):
        for env in (VecNormalize(make_env((-0.5, 0.5))), VecMonitor(normalized(norm_obs=True))):
            with refused(ValueError, "env: got a VecNormalize of observations", "norm_obs=False"):
                make(env)


def test_rewards_have_one_unit() -> None:
    with refused(ValueError, "normalize_returns: got True and a VecNormalize"):
        make_agent(SHARED, env=normalized(), normalize_returns=True)
    make_agent(SHARED, env=normalized(norm_reward=False), normalize_returns=True)
    with refused(ValueError, "normalize_returns: got True and a VecNormalize"):
        make_agent(SHARED, normalize_returns=True).set_env(normalized())


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: VecNormalize(env, norm_obs=False)])
def test_a_copy_learns_what_the_agent_learns(
    copied: Callable[[Any], Any], wrap: Callable[[Any], Any]
) -> None:
    """SB3's own copies lose the envs in a VecNormalize."""
    agent = make_agent(TREES["search"], env=wrap(make_env((-0.5, 0.5))), **SEARCH)
    agent.learn(70)
    twin = copied(agent)
    for one in (agent, twin):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - SB3's stream
        one.learn(40, reset_num_timesteps=False)
    assert_same_agent(agent, twin)
    assert twin.env is not agent.env
    one, two = agent.get_vec_normalize_env(), twin.get_vec_normalize_env()
    if one is not None:
        assert two.ret_rms.var == one.ret_rms.var > 0


# Observations


@pytest.mark.parametrize("of", ["agent", "policy"])
@pytest.mark.parametrize("rows", [1, 3])
def test_lists_and_tensors_are_observations(of: str, rows: int) -> None:
    agent = make_agent(SHARED)
    model: Any = agent if of == "agent" else agent.policy
    given = random_rows([1, 0, 1][:rows], tasks=2)
    expected, _ = agent.predict(given, deterministic=True)
    kinds: list[Any] = [given.tolist(), [*given], torch.from_numpy(given), given.astype(float)]
    kinds.append(torch.from_numpy(given).double().requires_grad_())
    for kind in kinds:
        np.testing.assert_array_equal(model.predict(kind, deterministic=True)[0], expected)
    action, _ = model.predict(kinds[0][0], deterministic=True)
    np.testing.assert_array_equal(action, expected[0])


@pytest.mark.parametrize("of", ["agent", "policy"])
def test_lists_and_tensors_are_checked_as_arrays_are(of: str) -> None:
    agent = make_agent(SHARED)
    model: Any = agent if of == "agent" else agent.policy
    row = random_rows([0], tasks=2)[0]
    without = np.append(row[:-2], [0, 0]).astype(np.float32)
    wrong: list[tuple[Any, str]] = [
        *((kind, "[0.0, 0.0]") for kind in (without, without.tolist(), torch.from_numpy(without))),
        *((kind, "(4,)") for kind in (row[:-1], row[:-1].tolist(), torch.from_numpy(row[:-1]))),
        (row[None, None], "(1, 1, 5)"),
        (3.0, "()"),
        *((None, "()"), ("text", "'text'"), ({"seen": row}, "{'seen'"), ([[1.0], row], "[[")),
    ]
    for observation, named in wrong:
        with refused(ObservationError, "observation: got", named):
            model.predict(observation)
    with pytest.raises(ValueError, match="mixing Gym API"):  # SB3's own
        model.predict((row, {}))


# Tasks and data


def test_a_task_without_an_env_is_refused_at_learn() -> None:
    names = list(tasks_named(3))
    agent = make_agent(Tree.shared(names, 2), env=env_of([0, 2, 2], total=3), tasks=names)
    with refused(ValueError, "env: got no environment of task-1", "3 tasks"):
        agent.learn(10)
    assert agent.num_timesteps == 0
    agent.set_env(env_of([2, 1, 0], total=3))
    agent.learn(60)
    assert agent._n_updates > 0


def test_a_task_with_transitions_needs_no_env(tmp_path: Path) -> None:
    agent = make_agent(SHARED)
    agent.learn(60)
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    one_task = make_agent(SHARED, env=env_of([1]), tasks=list(TASKS))
    one_task.load_replay_buffer(tmp_path / "replay.pkl")
    one_task.learn(60)
    assert one_task._n_updates > 0


def test_a_search_without_data_warns_at_its_end() -> None:
    agent = make_agent(None, env=make_env((-0.5, 0.5), length=10**9), **SEARCH)
    warned = r"got no training transitions of task-0, task-1.*TimeLimit"
    with pytest.warns(UserWarning, match=warned):
        agent.learn(100)
    assert agent._n_updates == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_agent(None, **SEARCH).learn(100)
        make_agent(SHARED, env=make_env((-0.5, 0.5), length=10**9)).learn(100)


def test_a_long_search_without_data_warns_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the tasks has ended episodes; the warning names the other, once."""
    monkeypatch.setattr(checks, "PATIENCE", 30)

    class Times(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(len(warned))
            return True

    env = env_of([0, 1])
    env.envs[1].unwrapped.length = 10**9  # type: ignore[attr-defined]
    agent, steps = make_agent(None, env=env, tasks=list(TASKS), **SEARCH), list[int]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        agent.learn(120, Times())
    messages = {str(warning.message) for warning in warned}
    assert len(warned) == 2 and len(messages) == 1  # early, and at the end
    assert "no training transitions of task-1, expected" in messages.pop()
    assert steps.index(1) in range(28, 36)


# Evaluation


@pytest.fixture
def seven() -> Iterator[tuple[Any, ConalSAC]]:
    env = make_env((0.1,) * 7)
    yield env, make_agent(Tree.shared(env.tasks, 2), env=env)


def test_evaluations_that_leave_tasks_out_warn(seven: tuple[Any, ConalSAC]) -> None:
    env, agent = seven
    warned = "n_eval_episodes: got 5 for 7 envs .* no episode to task-0, task-1, .* Give 7"
    with pytest.warns(UserWarning, match=warned):
        evaluate_policy(agent, env, n_eval_episodes=5)
    with pytest.warns(UserWarning, match=warned):
        evaluate_policy(agent.policy, env, n_eval_episodes=5)
    with pytest.warns(UserWarning, match=warned):
        agent.learn(70, EvalCallback(make_env((0.1,) * 7), eval_freq=10, verbose=0))


def test_evaluations_that_weigh_tasks_unequally_warn(seven: tuple[Any, ConalSAC]) -> None:
    env, agent = seven
    fewer = r"got 10 for 7 envs .* fewer episodes to task-0, .*task-3 than .* Give 14"
    with pytest.warns(UserWarning, match=fewer):
        evaluate_policy(agent, env)


def test_even_evaluations_do_not_warn(seven: tuple[Any, ConalSAC]) -> None:
    env, agent = seven
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_policy(agent, env, n_eval_episodes=14)
        evaluate_policy(agent, env_of([3, 5], total=7), n_eval_episodes=4)
        evaluate_policy(agent, env_of([3], total=7), n_eval_episodes=3)
        evaluate_policy(agent, env_of([3, 3], total=7), n_eval_episodes=3)
        agent.predict(env.reset(), episode_start=np.ones(7, dtype=bool))


# The replay


def test_the_replay_says_how_full_it_is() -> None:
    env = make_env((-0.5, 0.5))
    mine = make_agent(SHARED, env=env, buffer_size=30)
    theirs = sb3s(make_env((-0.5, 0.5)), buffer_size=2 * 30)
    for steps in (40, 20, 10):
        for one in (mine, theirs):
            one.learn(steps, reset_num_timesteps=False)
        replays = mine.replay_buffer, theirs.replay_buffer
        assert replays[0].pos == replays[1].pos  # type: ignore[union-attr]
        assert replays[0].full == replays[1].full == (steps != 40)  # type: ignore[union-attr]
    for replay in replays:
        replay.reset()  # type: ignore[union-attr]
        assert (replay.pos, replay.full) == (0, False)  # type: ignore[union-attr]


def test_a_replay_with_validation_is_full_when_both_parts_are() -> None:
    agent = make_agent(None, buffer_size=20, **SEARCH)
    replay = agent.replay_buffer
    for _ in range(12):
        agent.learn(20, reset_num_timesteps=False)
        assert replay.full == (replay.size() == 2 * 20)
    assert replay.full


# Spaces


def test_actions_of_float64_are_float32_inside() -> None:
    class Double(Target):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Box(-1.0, 1.0, (1,), np.float64)

    env = DummyVecEnv([lambda i=i: TaskEnv(Double(), "", 0, i, 2, FEATURES) for i in (0, 1)])  # type: ignore[misc]
    agent = make_agent(SHARED, env=env, tasks=list(TASKS))
    agent.learn(60)
    assert agent._n_updates > 0
