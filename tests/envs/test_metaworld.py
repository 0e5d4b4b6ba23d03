"""Meta-World suites equal the official classes, which the tests step by hand."""

import pickle
import warnings
from typing import Any

import metaworld
import numpy as np
import pytest
from metaworld.evaluation import evaluation
from metaworld.policies import SawyerReachV3Policy, SawyerWindowOpenV3Policy
from metaworld.types import Task as Goal

from conal_rl.envs import make
from conal_rl.envs.metaworld import is_metaworld, official_vector_env, suite_tasks, tasks
from conal_rl.errors import SuiteError

SEED = 3
ENGINES = pytest.mark.parametrize("engine", ["official", "native"])


@pytest.fixture(scope="session")
def mt10() -> metaworld.MT10:
    """The official benchmark. Its construction takes about 10 s."""
    return metaworld.MT10(seed=SEED)  # type: ignore[no-untyped-call]


def official_mt1(seed: int) -> list[Goal]:
    return metaworld.MT1("reach-v3", seed=seed).train_tasks  # type: ignore[no-untyped-call]


def goals_of(env: Any) -> list[bytes]:
    return [goal.data for goal in env.get_wrapper_attr("tasks")]


@pytest.mark.slow
def test_goals_equal_the_official_goals(mt10: metaworld.MT10) -> None:
    ours = tasks("mt10", SEED)
    assert [task.name for task in ours] == list(mt10.train_classes)
    for task in ours:
        official = [goal.data for goal in mt10.train_tasks if goal.env_name == task.name]
        assert len(official) == 50
        assert goals_of(task.build()) == official, task.name


def test_goals_of_mt1_equal_the_official_goals() -> None:
    official = [goal.data for goal in official_mt1(5)]
    [task] = tasks("mt1:reach-v3", 5)
    assert goals_of(task.build()) == official


class ByHand:
    """An official env with its random goals, without wrappers."""

    def __init__(self, benchmark: metaworld.MT10, name: str, seed: int) -> None:
        self.env: Any = benchmark.train_classes[name]()
        self.env.seed(seed)
        self.goals = [goal for goal in benchmark.train_tasks if goal.env_name == name]

    def reset(self) -> Any:
        self.env.set_task(self.goals[self.env.np_random.choice(50)])
        return self.env.reset()[0]


@pytest.mark.slow
@ENGINES
def test_an_episode_equals_the_official_episode(mt10: metaworld.MT10, engine: Any) -> None:
    envs: Any = make("mt10", seed=SEED, engine=engine)
    assert envs.tasks == tuple(mt10.train_classes)
    assert envs.action_space.shape == (4,)
    official = {
        i: ByHand(
            mt10, envs.tasks[i], int(np.random.SeedSequence([SEED, i, 0]).generate_state(1)[0])
        )
        for i in (1, 8)  # random actions do not solve push; an expert solves window-open
    }
    expert, rng = SawyerWindowOpenV3Policy(), np.random.default_rng(0)
    one_hot = np.eye(10, dtype=np.float32)

    obs = envs.reset()
    np.testing.assert_array_equal(obs[:, 39:], one_hot)
    raw = {i: env.reset() for i, env in official.items()}
    returns, solved = dict.fromkeys(official, 0.0), dict.fromkeys(official, False)
    for step in range(1, 501):
        for i in official:
            np.testing.assert_array_equal(obs[i, :39], raw[i].astype(np.float32))
        actions = rng.uniform(-1, 1, (10, 4)).astype(np.float32)
        actions[8] = np.clip(expert.get_action(raw[8]), -1, 1)
        obs, rewards, dones, infos = envs.step(actions)
        for i, by_hand in official.items():
            raw[i], reward, terminated, truncated, info = by_hand.env.step(actions[i])
            assert rewards[i] == np.float32(reward)
            assert (terminated, truncated) == (False, step == 500)
            assert dones[i] == truncated
            assert infos[i]["success"] == info["success"]
            returns[i] += reward
            solved[i] |= bool(info["success"])
    assert dones.all()
    assert solved == {1: False, 8: True}
    for i, by_hand in official.items():
        info = infos[i]
        terminal = np.concatenate([raw[i].astype(np.float32), one_hot[i]])
        np.testing.assert_array_equal(info["terminal_observation"], terminal)
        assert info["TimeLimit.truncated"] is True
        assert info["is_success"] is solved[i]
        assert info["episode"]["l"] == 500
        assert info["episode"]["r"] == pytest.approx(returns[i])
        np.testing.assert_array_equal(obs[i, :39], by_hand.reset().astype(np.float32))


@ENGINES
def test_success_at_any_step_counts(engine: Any) -> None:
    envs: Any = make("mt1:reach-v3", seed=0, engine=engine)
    expert, obs = SawyerReachV3Policy(), envs.reset()
    seen: list[float] = []
    for step in range(500):
        # The hand reaches the goal, and then it leaves.
        action = expert.get_action(obs[0, :39].astype(np.float64))
        if any(seen):
            action = np.array([0.0, -1.0, 0.0, 0.0])
        obs, _, dones, infos = envs.step(np.clip(action, -1, 1)[None].astype(np.float32))
        seen.append(infos[0]["success"])
        assert dones[0] == (step == 499)
    assert (max(seen), seen[-1]) == (1.0, 0.0)
    assert infos[0]["is_success"] is True


@ENGINES
@pytest.mark.slow
def test_the_same_seed_gives_the_same_rollout(engine: Any) -> None:
    def rollout(seed: int) -> Any:
        envs: Any = make(["reach-v3", "push-v3"], envs_per_task=2, seed=seed, engine=engine)
        rng = np.random.default_rng(0)
        all_obs, all_rewards = [envs.reset()], []
        for _ in range(10):
            obs, rewards, _, _ = envs.step(rng.uniform(-1, 1, (4, 4)).astype(np.float32))
            all_obs.append(obs)
            all_rewards.append(rewards)
        all_obs.append(envs.reset())
        return np.stack(all_obs), np.stack(all_rewards)

    first, rewarded = rollout(0)
    again, others = rollout(0), rollout(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(rewarded, again[1])
    assert not np.array_equal(first, others[0])
    assert not np.array_equal(rewarded, others[1])
    goals = first[:, :, 36:39]
    assert not np.array_equal(goals[0, 0], goals[0, 1])  # envs of a task differ
    assert not np.array_equal(goals[0, 0], goals[-1, 0])  # and resets differ too


@pytest.mark.parametrize("strategy", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_official_vector_env_visits_each_goal_once(strategy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs: Any = official_vector_env("mt1:reach-v3", 0, strategy)
    try:
        assert envs.metadata["autoreset_mode"].value == "SameStep"
        goals = []
        for _ in range(50):
            obs, _ = envs.reset()
            assert obs.shape == (1, 40)
            assert obs[0, 39] == 1
            goals.append(tuple(obs[0, 36:39]))
        official = official_mt1(0)
        assert set(goals) == {
            tuple(pickle.loads(goal.data)["rand_vec"][3:].astype(np.float32)) for goal in official
        }
        assert len(set(goals)) == 50
    finally:
        envs.close()


@pytest.mark.slow
def test_official_vector_env_serves_the_official_evaluation() -> None:
    class Nothing:
        def reset(self, env_mask: Any) -> None: ...

        def eval_action(self, observations: Any) -> Any:
            np.testing.assert_array_equal(observations[:, 39:], np.eye(2))
            return np.zeros((2, 4))

    envs: Any = official_vector_env(["reach-v3", "push-v3"], 0)
    for task, goals in zip(tasks(["reach-v3", "push-v3"], 0), envs.get_attr("tasks"), strict=True):
        assert goals_of(task.build()) == [goal.data for goal in goals]  # the goals of training
    _, _, success, _ = evaluation(Nothing(), envs, num_episodes=1)
    assert set(success) == {"reach-v3", "push-v3"}


def test_suite_tasks_returns_the_names_in_order() -> None:
    assert all(map(is_metaworld, ["mt10", "mt1:reach-v3", ["reach-v3"]]))
    assert not any(map(is_metaworld, ["cartpole", ["Pendulum-v1"]]))
    assert suite_tasks("mt10") == tuple(metaworld.env_dict.MT10_V3)
    assert [len(suite_tasks(suite)) for suite in ("mt25", "mt50")] == [25, 50]
    assert suite_tasks("mt1:push-v3") == suite_tasks(["push-v3"]) == ("push-v3",)
    with pytest.raises(SuiteError, match="suite: got 'cartpole', expected mt10"):
        suite_tasks("cartpole")
