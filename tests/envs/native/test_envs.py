"""Episodes, seeds and interfaces of the native engine equal those of the official one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from metaworld.envs import SawyerPushEnvV3, SawyerReachEnvV3
from metaworld.evaluation import evaluation
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

from conal_rl.device import usable_cores
from conal_rl.envs import make, native
from conal_rl.envs.metaworld import NUM_GOALS, official_vector_env, tasks
from conal_rl.envs.native import engine
from conal_rl.envs.native.episodes import Episodes, GoalStream
from conal_rl.envs.native.gymnasium_env import MetaWorldVectorEnv
from conal_rl.envs.native.sb3_env import NativeVecEnv
from conal_rl.errors import ConalError, ObservationError, SuiteError

PAIR = ("reach-v3", "window-open-v3")


class Lazy(SawyerReachEnvV3):
    """A user's task: an official one with its own reward and its own memory."""

    def evaluate_state(self, obs: Any, action: Any) -> Any:
        reward, info = super().evaluate_state(obs, action)
        self.effort = getattr(self, "effort", 0.0) + float(np.abs(action).sum())
        return reward - self.effort, info


class Ends(SawyerPushEnvV3):
    """A user's task that ends after ten steps."""

    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.curr_path_length == 10, truncated, info


def test_only_the_first_step_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles the engine, which takes a minute or two without a cache."""
    announcements: list[str] = []

    def announced(text: str) -> AbstractContextManager[None]:
        announcements.append(text)
        return nullcontext()

    monkeypatch.setattr(engine, "announced", announced)
    env = NativeVecEnv("mt1:reach-v3")
    env.reset()
    for _ in range(3):
        env.step(np.zeros((1, 4), dtype=np.float32))
    env.close()
    assert announcements == [engine.COMPILES]


def random_actions(steps: int, envs: int) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (steps, envs, 4)).astype(np.float32)


def assert_same_rollout(suite: Any, per_task: int, steps: int, seed: int = 4) -> None:
    """Make both engines with the same seed, and compare them on the same actions."""
    both: list[Any] = [make(suite, per_task, seed, engine) for engine in ("official", "native")]
    assert both[0].tasks == both[1].tasks
    assert both[0].observation_space == both[1].observation_space
    assert both[0].action_space == both[1].action_space
    np.testing.assert_array_equal(both[0].reset(), both[1].reset())
    for row in random_actions(steps, both[0].num_envs):
        official, ours = (envs.step(row) for envs in both)
        np.testing.assert_array_equal(official[0], ours[0])
        np.testing.assert_allclose(official[1], ours[1], rtol=1e-6)
        np.testing.assert_array_equal(official[2], ours[2])
        for a, b in zip(official[3], ours[3]):
            assert b["success"] == a["success"]
            if "terminal_observation" in a:
                np.testing.assert_array_equal(b["terminal_observation"], a["terminal_observation"])
                assert b["TimeLimit.truncated"] is a["TimeLimit.truncated"] is True
                assert b["is_success"] == a["is_success"]
                assert b["episode"]["l"] == a["episode"]["l"] == 500
                assert b["episode"]["r"] == pytest.approx(a["episode"]["r"])
    for envs in both:
        envs.close()


@pytest.mark.slow
def test_rollouts_across_resets_equal_the_official_ones() -> None:
    assert_same_rollout(PAIR, per_task=2, steps=1_010)


@pytest.mark.slow
def test_a_subclass_of_an_official_env_runs_its_own_code() -> None:
    """The suite's envs are then official ones, so a subclass may change any step or reset."""
    suite = [f"{__name__}:Lazy", f"{__name__}:Ends", "push-v3"]
    envs: Any = make(suite, 2, seed=4)
    envs.reset()
    efforts, dones = [], []
    for row in random_actions(20, envs.num_envs):
        _, rewards, done, _ = envs.step(row)
        efforts.append(rewards[0])
        dones.append(done)
    assert np.flatnonzero(np.array(dones)[:, 2]).tolist() == [9, 19]
    assert not np.array(dones)[:, [0, 1, 4, 5]].any()
    assert efforts[-1] < -20  # about -2 for each of 20 steps, plus the reward for reaching
    assert envs.env_method("get_wrapper_attr", "effort", indices=[0])[0] > 20
    envs.close()
    for build in (NativeVecEnv, MetaWorldVectorEnv):
        with pytest.raises(SuiteError, match=rf"native engine: got .*{__name__}:Lazy"):
            build(tuple(suite))


class TakesNothing(SawyerReachEnvV3):
    """A user's task with a constructor that does not take Meta-World's arguments."""

    def __init__(self) -> None:
        super().__init__()


class FailsToReset(SawyerReachEnvV3):
    """A user's task with a reset that fails."""

    def reset_model(self) -> Any:
        raise KeyError("door")


class OneGoal(SawyerReachEnvV3):
    """A user's task that always has the same goal."""

    def _get_state_rand_vec(self) -> Any:
        self._last_rand_vec = np.array([0.0, 0.6, 0.02, 0.0, 0.8, 0.2])
        return self._last_rand_vec


@pytest.mark.parametrize(
    ("name", "error"),
    [("TakesNothing", "TypeError: .* unexpected keyword"), ("FailsToReset", "KeyError: 'door' ")],
)
def test_a_subclass_that_cannot_be_made_is_named(name: str, error: str) -> None:
    task = f"{__name__}:{name}"
    with pytest.raises(SuiteError, match=rf"task '{task}': .*{error}.*, line \d+\)"):
        make([task])


def test_a_subclass_may_have_one_goal() -> None:
    task = f"{__name__}:OneGoal"
    env = official_vector_env((task,), 0)
    first, _ = env.reset()
    second, _ = env.reset()
    np.testing.assert_array_equal(first, second)
    env.close()


def test_a_name_of_something_else_than_a_subclass_is_named() -> None:
    for name, message in (("PAIR", "got PAIR, expected"), ("Ender", "Ender.*'Ends'")):
        with pytest.raises(SuiteError, match=rf"task '{__name__}:{name}': .*{message}"):
            make(["push-v3", f"{__name__}:{name}"])
    with pytest.raises(SuiteError, match=r"task 'no_such_module:Env': .*no_such_module"):
        make(["no_such_module:Env"])


@pytest.mark.parametrize("select", ["random", "pseudorandom"])
def test_goals_are_drawn_as_metaworld_draws_them(select: Any) -> None:
    if select == "random":
        [task] = tasks("mt1:reach-v3", 0)
        env = task.build()
        env.unwrapped.seed(5)  # type: ignore[attr-defined]
    else:
        env = official_vector_env("mt1:reach-v3", 5).envs[0]  # type: ignore[union-attr]
    goals = {goal.data: i for i, goal in enumerate(env.get_wrapper_attr("tasks"))}
    stream = GoalStream(5, select)
    drawn = []
    for _ in range(NUM_GOALS + 3):
        drawn.append(stream.draw())
        env.reset()
        target = env.unwrapped._last_rand_vec  # type: ignore[attr-defined]
        [number] = [i for data, i in goals.items() if target.tobytes() in data]
        assert drawn[-1] == number
    if select == "pseudorandom":
        assert sorted(drawn[:NUM_GOALS]) == list(range(NUM_GOALS))
    state = stream.state()
    ahead = [stream.draw() for _ in range(NUM_GOALS)]
    for _ in range(2):  # a state can be restored more than once
        stream.restore(state)
        assert [stream.draw() for _ in range(NUM_GOALS)] == ahead


# Stable-Baselines3


def test_vec_env_keeps_sb3s_contract() -> None:
    envs = make(PAIR, envs_per_task=2, seed=1)
    assert isinstance(envs, NativeVecEnv)
    assert envs.env_is_wrapped(Monitor) == [True] * 4
    assert envs.get_attr("num_tasks", [0, 3]) == [2, 2]
    with pytest.raises(NotImplementedError, match=r'indices: .*engine="official"'):
        envs.set_attr("render_mode", None, [1])
    wrapped: Any = VecMonitor(VecCheckNan(envs, raise_exception=True))
    first = wrapped.reset()
    assert first.dtype == np.float32
    assert envs.observation_space.contains(first[0])
    np.testing.assert_array_equal(first[:, 39:], [[1, 0], [1, 0], [0, 1], [0, 1]])
    wrapped.step_async(random_actions(1, 4)[0])
    observations, rewards, dones, infos = wrapped.step_wait()
    assert (observations.shape, rewards.dtype, dones.any()) == ((4, 41), np.float32, False)
    assert len(infos) == 4
    kept = np.array(observations)
    wrapped.step(random_actions(1, 4)[0])
    np.testing.assert_array_equal(observations, kept)  # the next step does not overwrite them
    envs.seed(1)
    np.testing.assert_array_equal(wrapped.reset(), first)
    wrapped.close()


@pytest.mark.slow
def test_monitor_files_are_those_of_the_official_engine(tmp_path: Path) -> None:
    rows: list[list[str]] = []
    engines: tuple[Literal["native", "official"], ...] = ("native", "official")
    for name in engines:
        envs = make(PAIR, seed=1, engine=name, monitor_dir=tmp_path / name)
        envs.reset()
        for actions in random_actions(1001, 2):
            envs.step(actions)
        envs.close()
        lines = [(tmp_path / name / f"{env}.monitor.csv").read_text().split() for env in (0, 1)]
        rows.append([line.rpartition(",")[0] for each in lines for line in each[-3:]])
    assert rows[0] == rows[1]  # without the time
    assert rows[0][0] == "r,l" and rows[0][1].endswith(",500")


def test_env_kwargs_are_only_for_gymnasiums_ids() -> None:
    assert make(PAIR, env_kwargs={"render_mode": "rgb_array"}).render_mode == "rgb_array"
    for name in ("native", "official"):
        with pytest.raises(SuiteError, match="env_kwargs: got max_episode_steps"):
            make(PAIR, engine=name, env_kwargs={"max_episode_steps": 3})


def test_actions_may_be_lists() -> None:
    """Of a VecEnv, and of the env of one task, like the official ones."""
    rewards = []
    for envs in (make(PAIR, seed=1), make(PAIR, seed=1, engine="official")):
        envs.reset()
        actions: Any = [[0.1, 0.2, 0.0, 0.0], np.zeros(4, dtype=np.float32)]
        rewards.append(envs.step(actions)[1].tolist())
    assert rewards[0] == rewards[1]
    single = gym.make("conal_rl/MT1-v3", task="reach-v3", seed=0)
    step: Any = single.step
    single.reset()
    listed = step([0.1, 0.2, 0.0, 0.0])
    again = gym.make("conal_rl/MT1-v3", task="reach-v3", seed=0)
    again.reset()
    np.testing.assert_array_equal(listed[0], again.step(np.array([0.1, 0.2, 0.0, 0.0]))[0])


def test_a_step_that_has_begun_ends_after_an_error() -> None:
    envs = make(PAIR, seed=1)
    envs.reset()
    actions = random_actions(3, 2)
    before = np.asarray(envs.step(actions[0])[0])

    def interrupt() -> None:
        raise KeyboardInterrupt

    envs.on_step_started = interrupt
    with pytest.raises(KeyboardInterrupt):
        envs.step(actions[1])
    envs.on_step_started = None
    assert not np.array_equal(np.asarray(envs.step(actions[2])[0]), before)
    envs.close()


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a new folder, because MuJoCo logs its warnings in the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("temporary_folder")
@pytest.mark.parametrize("engine", ["native", "official"])
def test_wrong_actions_are_refused_and_named(engine: Literal["native", "official"]) -> None:
    envs = make(PAIR, envs_per_task=2, engine=engine)
    envs.reset()
    first, second = random_actions(2, 4)
    envs.step(first)
    second[3, 3] = np.nan
    with pytest.raises(ObservationError, match=r"task 'window-open-v3', env 1 .*action: got NaN"):
        envs.step(second)
    for shape in ((4, 2), (2, 4), (4,)):
        with pytest.raises(ObservationError, match=r"actions: got .*, expected \(4, 4\)"):
            envs.step(np.zeros(shape, np.float32))
    envs.step(first)  # a refused step changes nothing
    envs.close()


# gymnasium


def test_an_env_passes_gymnasiums_and_sb3s_checkers() -> None:
    env = gym.make("conal_rl/MT1-v3", task="reach-v3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they give advice about bounds and seeds
        gymnasium_check(env.unwrapped, skip_render_check=True)
        sb3_check(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.slow
def test_the_registered_vector_env_can_be_made() -> None:
    envs: Any = gym.make_vec("conal_rl/MT10-v3", envs_per_task=2)
    assert (envs.num_envs, envs.single_observation_space.shape) == (20, (49,))
    observations, _ = envs.reset(seed=3)
    assert observations.dtype == np.float64
    assert envs.observation_space.contains(observations)
    again, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(observations, again)
    stepped = envs.step(envs.action_space.sample())
    assert [part.shape for part in stepped[:4]] == [(20, 49), (20,), (20,), (20,)]
    assert stepped[4]["success"].shape == (20,)
    envs.close()
    with pytest.raises(ValueError, match="num_envs: got 15, expected a multiple of the 10"):
        gym.make_vec("conal_rl/MT10-v3", num_envs=15)


@pytest.mark.slow
def test_vector_env_steps_equal_the_official_ones() -> None:
    official: Any = official_vector_env(PAIR, 6)
    ours = MetaWorldVectorEnv(PAIR, seed=6, task_select="pseudorandom")
    ours.episodes.seed([6, 6])
    for seed in (None, None):
        np.testing.assert_allclose(
            official.reset(seed=seed)[0], ours.reset(seed=seed)[0], atol=1e-9
        )
    for row in random_actions(502, 2):
        theirs, mine = official.step(row), ours.step(row)
        for a, b in zip(theirs[:4], mine[:4]):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-9)
        np.testing.assert_array_equal(
            theirs[4].get("_final_info", []), mine[4].get("_final_info", [])
        )
        if "final_info" in mine[4]:
            for info in (theirs[4], mine[4]):
                assert info["_final_obs"].all()
            for a, b in zip(theirs[4]["final_obs"], mine[4]["final_obs"]):
                np.testing.assert_allclose(a, b, atol=1e-9)
            final = [info["final_info"] for info in (theirs[4], mine[4])]
            np.testing.assert_array_equal(final[0]["success"], final[1]["success"])
            np.testing.assert_allclose(final[0]["episode"]["r"], final[1]["episode"]["r"])
            np.testing.assert_array_equal(final[0]["episode"]["l"], final[1]["episode"]["l"])
    official.close()
    ours.close()


@pytest.mark.slow
def test_metaworlds_evaluation_accepts_the_vector_env() -> None:
    class Agent:
        def eval_action(self, observations: Any) -> Any:
            return np.tile(np.array([0, 0.3, 0, 0], np.float32), (len(observations), 1))

        def reset(self, env_mask: Any) -> None:
            pass

    outcomes = []
    for envs in (
        official_vector_env(PAIR, 0),
        MetaWorldVectorEnv(PAIR, task_select="pseudorandom"),
    ):
        if isinstance(envs, MetaWorldVectorEnv):
            envs.episodes.seed([0, 0])
        outcomes.append(evaluation(Agent(), envs, 1))  # type: ignore[arg-type]
        envs.close()
    assert outcomes[0][2] == outcomes[1][2]
    for task, returns in outcomes[0][3].items():
        np.testing.assert_allclose(returns, outcomes[1][3][task])


@pytest.mark.slow
def test_images_equal_the_official_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    envs = make(PAIR, envs_per_task=2, seed=0)
    envs.reset()
    try:
        images = envs.get_images()
    except ConalError as error:
        pytest.skip(str(error))
    assert all(image is not None and image.shape == (480, 480, 3) for image in images)
    before = envs.step(random_actions(1, 4)[0])[0]
    envs.get_images()  # an image changes nothing
    fresh = make(PAIR, envs_per_task=2, seed=0)
    fresh.reset()
    np.testing.assert_array_equal(fresh.step(random_actions(1, 4)[0])[0], before)
    env = official_env("reach-v3")
    env.reset()
    official = env.render()[::-1, ::-1]
    assert np.abs(official.astype(int) - np.asarray(images[0]).astype(int)).mean() < 12
    env.close()


def official_env(name: str) -> Any:
    """Return an official env that renders, with the goals of a native env of the same seed."""
    from conal_rl.envs.metaworld import _goals, env_class

    env = env_class(name)(render_mode="rgb_array", camera_name="corner2", width=480, height=480)
    env.set_task(_goals((name,), 0)[0])
    return env


# Limits


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_version", lambda package: "9.9.9")
    with pytest.raises(SuiteError) as caught:
        make("mt1:reach-v3")
    for part in ("native engine", "metaworld 3.1.1", "mujoco 3.3.0", "9.9.9", "--env.engine"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    make("mt1:reach-v3", engine="official").close()


def test_a_further_env_takes_kilobytes() -> None:
    sizes = []
    for per_task in (1, 50):
        envs: Any = make(PAIR, envs_per_task=per_task)
        sizes.append(sum(array.nbytes for array in envs.episodes.engine.rows))
        envs.close()
    assert (sizes[1] - sizes[0]) / 98 < 20e3


@pytest.mark.parametrize("per_task", [2, 3, 4, 8])
def test_more_threads_than_tasks_take_below_20_mb_per_env(per_task: int) -> None:
    episodes = Episodes(["reach-v3"], per_task, seed=0, threads=8)
    assert episodes.engine.bytes_per_env < 20e6
    covered = [i for ends in episodes.engine.workers.ranges for i in range(*ends)]
    assert covered == list(range(per_task))
    episodes.close()


@pytest.mark.slow
def test_an_engine_that_is_freed_in_a_step_stops_its_threads() -> None:
    before = threading.active_count()
    for _ in range(3):
        episodes = Episodes(["reach-v3", "push-v3"], 2, seed=0, threads=3)
        episodes.seed(range(4))
        episodes.reset()
        episodes.start(random_actions(1, 4)[0])
        del episodes
    gc.collect()
    for _ in range(100):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    raise AssertionError(threading.enumerate())


@pytest.mark.usefixtures("temporary_folder")
def test_an_unstable_simulation_continues_as_the_official_one() -> None:
    """MuJoCo resets an unstable state and warns."""
    envs: Any = make(["reach-v3"], seed=0)
    envs.reset()
    engine = envs.episodes.engine
    official: SawyerXYZEnv = engine._official[0].__class__()
    official.set_task(engine.goals[0][0])
    official.reset()
    engine.reset(np.array([0]), np.array([0]))
    velocity = 1 + len(official.data.qpos)  # the state is time, qpos, qvel, ...
    engine.rows.states[0, velocity] = official.data.qvel[0] = 1e12
    for row in random_actions(5, 1):
        engine.start(row)
        engine.wait()
        observation, reward, *_ = official.step(row[0])
        np.testing.assert_allclose(engine.rows.observations[0], observation, atol=1e-9)
        assert engine.rows.rewards[0] == pytest.approx(reward, abs=1e-9)
    assert envs.episodes.warnings[0] > 0
    envs.close()


def test_a_seed_of_the_vector_env_fixes_the_goals() -> None:
    def goals(envs: MetaWorldVectorEnv, **arguments: Any) -> list[Any]:
        return envs.reset(**arguments)[0][:, 36:39].tolist()

    envs = MetaWorldVectorEnv("mt1:reach-v3", envs_per_task=3, seed=5)
    first = goals(envs, seed=7)
    assert goals(envs, seed=np.int64(7)) == first
    ones = goals(envs, seed=[1, 2, 3])
    other = goals(envs, seed=[1, 9, 3])
    assert ones[0] == other[0] and ones[2] == other[2]
    assert goals(envs, seed=[1, None, 3])[::2] == ones[::2]
    with pytest.raises(ValueError, match="seeds: got 2, expected 3"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="options: got reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert len(goals(envs)) == 3  # a refused reset changes nothing
    envs.close()
    with pytest.raises(ValueError, match="task_select: got 'all'"):
        MetaWorldVectorEnv("mt1:reach-v3", task_select="all")  # type: ignore[arg-type]


@pytest.mark.slow
def test_unseeded_envs_of_one_task_have_different_goals() -> None:
    envs = [gym.make("conal_rl/MT1-v3", task="reach-v3") for _ in range(4)]
    assert len({tuple(env.reset()[0][36:39]) for env in envs}) > 1
    assert len({tuple(env.reset(seed=3)[0][36:39]) for env in envs}) == 1
    for env in envs:
        env.close()
    seeded = [gym.make("conal_rl/MT1-v3", task="reach-v3", seed=3) for _ in range(2)]
    assert len({tuple(env.reset()[0][36:39]) for env in seeded}) == 1
    for env in seeded:
        env.close()


@pytest.mark.slow
def test_an_env_plays_each_goal_once_in_fifty_episodes() -> None:
    env = gym.make("conal_rl/MT1-v3", task="reach-v3", task_select="pseudorandom", seed=1)
    goals = set()
    observation, _ = env.reset()
    for _ in range(NUM_GOALS):
        goals.add(tuple(observation[36:39]))
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = env.step(np.zeros(4, dtype=np.float32))
            ended = terminated or truncated
        observation, _ = env.reset()
    assert len(goals) == NUM_GOALS
    assert tuple(observation[36:39]) in goals
    env.close()


@pytest.mark.parametrize("field", ["envs_per_task", "threads"])
def test_no_envs_or_no_threads_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: got 0, expected at least 1"):
        gym.make_vec("conal_rl/MT10-v3", **{field: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "limits", "cores"),
    [
        (None, {}, 8),  # a system that is not Linux
        ("0::/", {}, 8),
        ("0::/", {".": "max 100000"}, 8),
        ("0::/", {".": "300000 100000"}, 3),
        ("0::/", {".": "250000 100000"}, 2),
        ("0::/", {".": "20000 100000"}, 1),
        ("0::/", {".": "3200000 100000"}, 8),
        ("0::/pods/mine", {"pods/mine": "max 100000", "pods": "200000 50000"}, 4),
        ("0::/pods/mine", {"pods/mine": "100000 50000", "pods": "200000 50000"}, 2),
        ("0::/pods/mine", {"pods/other": "100000 100000"}, 8),
        ("2:cpu:/pods\n0::/pods", {"pods": "damaged"}, 8),
    ],
)
def test_a_containers_quota_limits_the_cores(
    group: str | None,
    limits: dict[str, str],
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process has 8 cores. The files follow the kernel's documentation of control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if group is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    for name, limit in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit + "\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.slow
def test_a_missing_cache_folder_gives_a_warning() -> None:
    """A read-only installation of a user without a home folder is such a case."""
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from conal_rl.envs.native import physics\n"
        "assert physics.step.stats.cache_path is None\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UserWarning" in ran.stderr and "NUMBA_CACHE_DIR" in ran.stderr
