"""`TaskVecEnv` and lists of gymnasium envs, on toy envs with known numbers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from conal_rl.envs import TaskVecEnv, make
from conal_rl.envs.vec_env import Task
from conal_rl.errors import ConalError, ObservationError, SuiteError


class Toy(gym.Env[Any, Any]):
    """An env that observes noise and the step count. Its reward is the action."""

    def __init__(
        self,
        obs_dim: int = 2,
        bound: float = 1.0,
        end: int = 5,
        bad_obs_at: int | None = None,
        bad_reward_at: int | None = None,
        bad: float = np.nan,
    ) -> None:
        self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float64)
        self.action_space = Box(-bound, bound, (1,), np.float64)
        self.end, self.bad_obs_at, self.bad_reward_at = end, bad_obs_at, bad_reward_at
        self.bad = bad

    def _obs(self) -> Any:
        obs: Any = self.np_random.uniform(size=self.observation_space.shape)
        obs[0] = self.bad if self.t == self.bad_obs_at else self.t
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = self.bad if self.t == self.bad_reward_at else float(action[0])
        return self._obs(), reward, self.t == self.end, False, {}


class Image(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 1, (4, 4))


class Pushes(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Discrete(3)


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    registry = dict(gym.registry)
    toy: Any = Toy  # EnvCreator's **kwargs do not accept named arguments
    image: Any = Image
    pushes: Any = Pushes
    gym.register("Short-v0", entry_point=toy, max_episode_steps=3)
    gym.register("Wide-v0", entry_point=toy, kwargs={"obs_dim": 6}, reward_threshold=2.0)
    gym.register("Strong-v0", entry_point=toy, kwargs={"bound": 2.0})
    gym.register("Image-v0", entry_point=image)
    gym.register("Pushes-v0", entry_point=pushes)
    fails: Any = lambda: Path("none/model.xml").read_text()  # noqa: E731
    gym.register("Fails-v0", entry_point=fails)
    yield
    gym.registry.clear()
    gym.registry.update(registry)


def test_observations_are_padded_and_end_in_the_one_hot() -> None:
    envs: Any = make(["Short-v0", "Wide-v0"], envs_per_task=2, seed=0)
    assert envs.suite == envs.tasks == ("Short-v0", "Wide-v0")
    assert (envs.num_tasks, envs.envs_per_task, envs.num_envs) == (2, 2, 4)
    assert envs.observation_space.shape == (8,)
    np.testing.assert_array_equal(envs.observation_space.high[-3:], [np.inf, 1, 1])
    np.testing.assert_array_equal(envs.observation_space.low[-3:], [-np.inf, 0, 0])
    assert envs.action_space == Box(-1, 1, (1,), np.float32)
    assert all(envs.env_is_wrapped(Monitor))
    for obs in (envs.reset(), envs.step(np.zeros((4, 1), np.float32))[0]):
        assert (obs.shape, obs.dtype) == ((4, 8), np.float32)
        np.testing.assert_array_equal(obs[:, 6:], [[1, 0], [1, 0], [0, 1], [0, 1]])
        np.testing.assert_array_equal(obs[:2, 2:6], 0)  # padding of the short task
        assert (obs[2:, 1:6] > 0).all()
        assert all(envs.observation_space.contains(row) for row in obs)


def test_infos_report_how_an_episode_ended() -> None:
    envs: Any = make(["Short-v0", "Wide-v0"], seed=0)
    envs.reset()
    ends: dict[tuple[int, int], dict[str, Any]] = {}
    for step in range(1, 6):
        obs, rewards, dones, infos = envs.step(np.full((2, 1), 0.5, np.float32))
        np.testing.assert_array_equal(rewards, 0.5)
        for i in np.flatnonzero(dones):
            ends[step, int(i)] = infos[i]
            assert (obs[i, 0], infos[i]["terminal_observation"][0]) == (0, step)
            assert obs[i, 6 + i] == infos[i]["terminal_observation"][6 + i] == 1
    truncated, terminated = ends[3, 0], ends[5, 1]
    assert len(ends) == 2
    assert truncated["TimeLimit.truncated"] is True
    assert terminated["TimeLimit.truncated"] is False
    assert "is_success" not in truncated  # the env has no threshold
    assert terminated["is_success"] is True  # 5 x 0.5 >= 2
    assert (terminated["episode"]["r"], terminated["episode"]["l"]) == (2.5, 5)


def rollout(envs: Any, steps: int = 8) -> Any:
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, envs.num_envs, 1))
    return np.stack([envs.reset(), *(envs.step(a.astype(np.float32))[0] for a in actions)])


def test_the_seed_gives_every_env_its_own_stream() -> None:
    suite = ["Wide-v0", "Wide-v0"]
    first = rollout(make(suite, envs_per_task=2, seed=7))
    np.testing.assert_array_equal(first, rollout(make(suite, envs_per_task=2, seed=7)))
    assert not np.array_equal(first, rollout(make(suite, envs_per_task=2, seed=8)))
    noise = first[0, :, 1:6]
    assert len(np.unique(noise, axis=0)) == 4
    # Further envs do not change the streams of the first ones.
    np.testing.assert_array_equal(rollout(make(suite, seed=7))[0, :, 1:6], noise[[0, 2]])


def test_seed_takes_effect_at_the_next_reset() -> None:
    envs: Any = make(["Wide-v0"], seed=1)
    other = make(["Wide-v0"], seed=2)
    rollout(envs)
    envs.seed(2)
    np.testing.assert_array_equal(rollout(envs), rollout(other))
    assert envs.action_space.sample() == make(["Wide-v0"], seed=2).action_space.sample()


def test_repeated_env_ids_are_separate_tasks() -> None:
    assert make(["Short-v0", "Short-v0"]).tasks == ("Short-v0", "Short-v0#2")


def test_an_env_of_a_users_module_is_a_task(scratch: Path) -> None:
    (scratch / "my_tasks.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    envs: Any = make(["my_tasks:Mine-v0", "Pendulum-v1"])
    assert envs.reset().shape == (2, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(
    ("what", "where"), [("observation", "bad_obs_at"), ("reward", "bad_reward_at")]
)
def test_non_finite_numbers_are_named(what: str, where: str, bad: float) -> None:
    built = 0

    def sometimes_bad() -> Toy:
        nonlocal built
        built += 1
        # The first env of every task is built first, so the third env is env 1 of the first task.
        return Toy(**{where: 4}, bad=bad) if built == 3 else Toy()

    envs: Any = TaskVecEnv("toys", [Task("a", sometimes_bad), Task("b", sometimes_bad)], 2)
    envs.reset()
    actions = np.zeros((4, 1), np.float32)
    for _ in range(3):
        envs.step(actions)
    got = r"1e\+300, which is too large for single precision," if bad == 1e300 else "NaN or inf"
    message = f"task 'a', env 1 of the task: {what}: got {got} at step 4 of the episode"
    with pytest.raises(ObservationError, match=message):
        envs.step(actions)


def test_a_nan_at_the_reset_is_at_step_0() -> None:
    envs: Any = TaskVecEnv("toys", [Task("a", lambda: Toy(bad_obs_at=0))])
    with pytest.raises(
        ObservationError, match=r"'a', env 0 of the task.* at step 0 of the episode"
    ):
        envs.reset()


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (["Pushes-v0"], r"task 'Pushes-v0': action space: got Discrete\(3\)"),
        (["Short-v0", "Image-v0"], "task 'Image-v0': observation space: got Box.* 1-D Box"),
        (["Short-v0", "Strong-v0"], "task 'Strong-v0': action space: got Box.* task 'Short-v0'"),
        (["Pendulmu-v1"], "suite: got .*'Pendulmu-v1'.*'Pendulum-v1'"),
        (["Pendulum-v99"], "suite: got .*'Pendulum-v99'.*'Pendulum-v1'"),
        (["raech-v3"], "suite: got .*'raech-v3'.*'reach-v3'"),
        (["qqqqqq"], "suite: got .*'qqqqqq'"),
        (["no_such_module:Env-v0"], "task 'no_such_module:Env-v0': .*No module named"),
        (["Fails-v0"], "task 'Fails-v0': .*FileNotFoundError: .*model.xml"),
        (["bad name!"], "task 'bad name!': .*Malformed"),
        (["json:Decoder"], "task 'json:Decoder': .*'JSONDecoder'"),
        (["json:JSONDecoder"], "task 'json:JSONDecoder': got JSONDecoder.*JSONDecoder-v0"),
        (["no_such_module:Env"], "task 'no_such_module:Env': .*ModuleNotFoundError: No module"),
        (["Short-v0", "reach-v3"], "suite: got .*'Short-v0'"),
        (["reach-v3", "psuh-v3"], "suite: got .*'psuh-v3'.*'push-v3'"),
        (["reach-v3", "push-v3", "reach-v3"], "suite: got 'reach-v3' twice"),
        ([], "suite: got an empty list"),
        (10, "suite: got 10, expected the name of a suite or a list"),
        ({"reach-v3"}, "suite: got {'reach-v3'}, expected the name"),
        ([["reach-v3"]], r"suite: got \[\['reach-v3'\]\], expected the name"),
        (None, "suite: got nothing, expected the name"),
        ("", "suite: got an empty list"),
        ("mt12", "suite: got 'mt12', expected mt10.*'mt25' or"),
        ("Pendulum-v1", r"suite: got 'Pendulum-v1', .*\[Pendulum-v1\]"),
        ("MT10", r"tasks\. Did you mean 'mt10'\?$"),
        ("Meta-World/MT50", r"tasks\. Did you mean 'mt50'\?$"),
        ("conal_rl/MT25-v3", r"tasks\. Did you mean 'mt25'\?$"),
        ("reach-v3", r"\[reach-v3\]\)\. Did you mean 'mt1:reach-v3'\?$"),
        ("Meta-World/push-v3", r"Did you mean 'mt1:push-v3'\?$"),
        ("mt1", r"tasks\. Did you mean 'mt1:reach-v3'\?$"),
        ("Meta-World/MT1", r"tasks\. Did you mean 'mt1:reach-v3'\?$"),
        (["MT10"], "suite: got 'MT10' in a list .* Give the suite 'mt10' without a list"),
        (["cartpole"], "suite: got 'cartpole' in a list .* 'cartpole' without a list"),
        (["Meta-World/reach-v3"], r"suite: got .*\. Did you mean 'reach-v3'\?$"),
        (["mt1:reach-v3"], r"suite: got .*\. Did you mean 'reach-v3'\?$"),
        (["reach-v3", "Meta-World/push-v3"], r"suite: got .*\. Did you mean 'push-v3'\?$"),
        ("mt1:reach", "suite: got .*'reach'.*'reach-v3'"),
        ("mt1:", "suite: got .*''"),
    ],
)
def test_a_wrong_suite_is_one_line_that_names_it(suite: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message) as error:
        make(suite)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"envs_per_task": 0}, "envs_per_task: got 0, expected 1 or more"),
        ({"seed": -1}, "seed: got -1, expected 0 or more"),
        ({"seed": 2**32}, "seed: got 4294967296, expected"),
        ({"seed": None}, "seed: got nothing, expected an integer"),
        ({"envs_per_task": "two"}, "envs_per_task: got 'two', expected an integer"),
        ({"envs_per_task": 1.5}, "envs_per_task: got 1.5, expected an integer"),
        ({"engine": "warp"}, "engine: got 'warp', expected 'native' or 'official'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        make("mt10", **arguments)


def test_a_missing_package_of_an_env_is_named() -> None:
    gym.register("Broken-v0", entry_point="no_such_package:Env")
    with pytest.raises(SuiteError, match=r"task 'Broken-v0': .*no_such_package"):
        make(["Broken-v0"])


class ReportsSuccess(Toy):
    """An env that reports success at its second step, in the way that `key` names."""

    def __init__(self, key: str | None) -> None:
        super().__init__()
        self.key = key

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.key == "success":
            info["success"] = self.t == 2
        if self.key == "is_success" and terminated:
            info["is_success"] = True
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("threshold", [None, 1e9])
def test_success_is_the_envs_own_or_else_the_threshold(threshold: float | None) -> None:
    def build(key: str | None) -> gym.Env[Any, Any]:
        env = ReportsSuccess(key)
        env.spec = gym.envs.registration.EnvSpec("Success-v0", reward_threshold=threshold)
        return env

    keys = ["success", "is_success", None]
    tasks = [Task(str(key), lambda key=key: build(key)) for key in keys]  # type: ignore[misc]
    envs = TaskVecEnv("toy", tasks)
    for _ in range(2):  # two episodes
        envs.reset()
        for _ in range(5):
            _, _, dones, infos = envs.step(np.zeros((3, 1), dtype=np.float32))
        assert dones.all()
        assert infos[0]["is_success"] is infos[1]["is_success"] is True
        assert infos[2].get("is_success") is (None if threshold is None else False)


def test_an_info_that_the_env_reuses_is_not_changed() -> None:
    """Otherwise the next episode would show entries of the last one."""

    class Same(Toy):
        info: dict[str, Any]

        def reset(self, **given: Any) -> Any:
            self.episode = getattr(self, "episode", -1) + 1
            self.info = getattr(self, "info", {})
            return super().reset(**given)[0], self.info

        def step(self, action: Any) -> Any:
            self.info["success"] = self.episode % 2 == 0
            return *super().step(action)[:4], self.info

    envs = TaskVecEnv("toy", [Task("a", Same)])
    envs.reset()
    for episode in range(4):
        for step in range(1, 6):
            _, _, _, (info,) = envs.step(np.zeros((1, 1), dtype=np.float32))
            assert ("episode" in info) == ("is_success" in info) == (step == 5)
        assert info["is_success"] is (episode % 2 == 0)


def test_an_episode_without_a_report_of_success_has_failed() -> None:
    class Rarely(Toy):
        episodes = 0

        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            self.episodes += self.t == self.end
            return *rest, {"success": True} if self.episodes == 2 and self.t == self.end else info

    envs = TaskVecEnv("toy", [Task("a", Rarely)])
    envs.reset()
    reports = []
    for _ in range(4 * 5):
        _, _, dones, (info,) = envs.step(np.zeros((1, 1), dtype=np.float32))
        reports += [info.get("is_success")] * bool(dones[0])
    assert reports == [None, True, False, False]


def test_a_wrong_return_value_of_an_env_is_named() -> None:
    class Reward(Toy):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, np.array([0.5]) if self.t == 2 else np.float32(0.5), *rest

    class Bare(Toy):
        def reset(self, **given: Any) -> Any:
            return super().reset(**given)[0]

    class Seedless(Toy):
        def reset(self) -> Any:  # type: ignore[override]
            return super().reset()

    class Seeded(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self.env.reset()  # an old env does not take a seed

    envs = TaskVecEnv("toy", [Task("a", Toy), Task("b", Reward)])
    envs.reset()
    actions = np.zeros((2, 1), dtype=np.float32)
    envs.step(actions)
    message = r"task 'b', env 0 .*: reward: got array\(\[0.5\]\) at step 2"
    with pytest.raises(ObservationError, match=message):
        envs.step(actions)
    with pytest.raises(ObservationError, match=r"task 'a', env 0 .*: reset: got array"):
        TaskVecEnv("toy", [Task("a", Bare)]).reset()
    with pytest.raises(SuiteError, match=r"task 'a', env 0 .*: reset: .*seed"):
        TaskVecEnv("toy", [Task("a", Seedless)]).reset()
    adapted: Any = TaskVecEnv("toy", [Task("a", lambda: Seeded(Seedless()))]).reset()
    assert adapted.shape == (1, 3)


@pytest.mark.parametrize("length", [1, 3])
def test_an_observation_of_the_wrong_length_is_refused(length: int) -> None:
    """It would change the task's one-hot, or it would be padded without a message."""

    class Longer(Toy):
        def _obs(self) -> Any:
            return np.zeros(length if self.t == 2 else 2)

    envs = TaskVecEnv("toy", [Task("a", Longer), Task("b", Toy)])
    envs.reset()
    actions = np.zeros((2, 1), dtype=np.float32)
    envs.step(actions)
    with pytest.raises(
        ObservationError, match=rf"task 'a', env 0 .*observation: .* \({length},\) at step 2"
    ):
        envs.step(actions)


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.inf, (2,)),
        Box(-1, np.inf, (2,)),
        Box(-1, 1, (2, 3)),
        Box(-1, 1, ()),
        Box(0, 10, (2,), np.int64),
        Box(-1, 1, (0,)),
        Box(np.array([-1, 2.0]), np.array([1, 2.0]), dtype=np.float64),
        Box(-3e38, 3e38, (2,)),
        Box(-1e300, 1e300, (2,), np.float64),
        Box(1.0, 1.0 + 1e-12, (1,), np.float64),
    ],
)
def test_an_unsuitable_action_space_is_refused(space: Box) -> None:
    class Acts(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = space

    with pytest.raises(SuiteError, match="task 'a': action space: got Box"):
        TaskVecEnv("toy", [Task("a", Acts)])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((np.zeros(2), 0.0, False, {}), "step: got "),
        ((np.zeros(2), 0.0, False, False, None), "step: got "),
        (None, "step: got None"),
        (KeyError("door"), r"step: .*KeyError: 'door' \(.*, line \d+\)"),
    ],
)
def test_a_step_that_fails_is_named(returned: Any, message: str) -> None:
    class Faulty(Toy):
        def step(self, action: Any) -> Any:
            if isinstance(returned, Exception):
                raise returned
            return returned

    envs = TaskVecEnv("toy", [Task("a", Toy), Task("b", Faulty)])
    envs.reset()
    with pytest.raises(ConalError, match=f"task 'b', env 0 of the task: {message}"):
        envs.step(np.zeros((2, 1), dtype=np.float32))


def test_a_reset_that_fails_is_named() -> None:
    class Faulty(Toy):
        def reset(self, **given: Any) -> Any:
            raise ValueError("no file level.txt")

    envs = TaskVecEnv("toy", [Task("a", Faulty)])
    with pytest.raises(SuiteError, match=r"task 'a', env 0 .*: reset: .*ValueErr"):
        envs.reset()


@pytest.mark.parametrize(
    ("low", "fits"),
    [(-0.1, True), (np.float64(-0.1), True), (-0.1 - 1e-6, False), (np.nextafter(-0.1, 0), False)],
)
def test_bounds_of_actions_are_equal_or_not(low: float, fits: bool) -> None:
    """In the same precision; -0.1 has a different rounding in float32."""

    def acting(low: float, kind: Any) -> Any:
        env = Toy()
        env.action_space = Box(np.array([low]), np.array([1.0]), dtype=kind)
        return env

    tasks = [
        Task("a", lambda: acting(-0.1, np.float64)),
        Task("b", lambda: acting(low, np.float64)),
    ]
    if fits:
        TaskVecEnv("toy", tasks)
        TaskVecEnv("toy", [tasks[0], Task("b", lambda: acting(low, np.float32))])
    else:
        with pytest.raises(SuiteError, match=r"task 'b': action space: .* as for task 'a'"):
            TaskVecEnv("toy", tasks)


class Answers(Toy):
    """An env whose first step gives what is said here, and otherwise what `Toy` gives."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        given = self.given
        info = {key: given[key] for key in ("success", "is_success") if key in given}
        return (
            given.get("obs", obs),
            given.get("reward", reward),
            given.get("terminated", terminated),
            given.get("truncated", truncated),
            info,
        )


def first_step(**given: Any) -> Any:
    """Return rewards, dones and infos of the first step."""
    envs = TaskVecEnv("toy", [Task("a", lambda: Answers(**given))])
    envs.reset()
    return envs.step(np.zeros((1, 1), dtype=np.float32))[1:]


class Truthy:
    """It is true, and says nothing about success."""

    def __repr__(self) -> str:
        return "Truthy()"


@pytest.mark.parametrize("key", ["success", "is_success", "terminated", "truncated"])
@pytest.mark.parametrize(
    "value",
    [
        np.array([True, False]),
        {"a": False},
        "False",
        "",
        np.nan,
        0.5,
        2,
        -1,
        None,
        [],
        1j,
        Truthy(),
        torch.ones(1, requires_grad=True),
    ],
    ids=repr,
)
def test_what_is_neither_true_nor_false_is_refused(key: str, value: Any) -> None:
    where = key if key.endswith("ated") else f"info['{key}']"
    message = (
        rf"^task 'a', env 0 of the task: {re.escape(where)}: got .* at step 1 .* true or false"
    )
    with pytest.raises(ObservationError, match=message) as error:
        first_step(**{key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("value", [0, 1])
def test_truth_has_the_type_of_the_env(value: int, kind: Any, shape: tuple[int, ...]) -> None:
    given = np.full(shape, value, kind)
    for form in (given, torch.from_numpy(given), *([given.item()] if not shape else [])):
        _, (done,), (info,) = first_step(success=form, terminated=True)
        assert done and info["is_success"] is bool(value)
        assert first_step(terminated=form)[1].tolist() == [bool(value)]
        assert first_step(truncated=form)[2][0]["TimeLimit.truncated"] is bool(value)


@pytest.mark.parametrize(
    "reward", ["1", None, [1.0], np.ones(1), {}, 1j, np.complex64(1), Truthy(), 1e39, -1e308]
)
def test_a_reward_that_the_agent_cannot_have_is_refused(reward: Any) -> None:
    with pytest.raises(ObservationError, match=r"^task 'a', env 0 .*: reward: got .* at step 1"):
        first_step(reward=reward)


@pytest.mark.parametrize("reward", [2, True, np.float32(2), np.int8(2), np.array(2.0), 3.4e38])
def test_a_reward_is_any_number(reward: Any) -> None:
    assert first_step(reward=reward)[0].tolist() == [pytest.approx(float(reward))]


@pytest.mark.parametrize(
    "obs",
    [
        np.array(["a", "b"]),
        torch.zeros(2, requires_grad=True),
        np.zeros(2, complex),
        [1.0, [2.0, 3.0]],
        None,
        "ab",
        {"a": 1, "b": 2},
        [None, None],
        np.array([1, 2], dtype=object),
        np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
    ],
    ids=repr,
)
def test_an_observation_that_is_not_numbers_is_refused(obs: Any) -> None:
    message = r"^task 'a', env 0 of the task: observation: got .* at step 1 .* of the shape \(2,\)"
    with pytest.raises(ObservationError, match=message) as error:
        first_step(obs=obs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("obs", [[1, 2], (True, False), np.array([1, 2], np.uint8), torch.ones(2)])
def test_an_observation_is_any_numbers(obs: Any) -> None:
    first_step(obs=obs)


def test_an_info_of_reset_is_a_mapping() -> None:
    class Bare(Toy):
        def reset(self, **given: Any) -> Any:
            return super().reset(**given)[0], None

    with pytest.raises(ObservationError, match=r"reset: got .* an info"):
        TaskVecEnv("toy", [Task("a", Bare)]).reset()


def test_actions_of_the_wrong_shape_are_refused() -> None:
    envs = TaskVecEnv("toy", [Task("a", Toy), Task("b", Toy)])
    envs.reset()
    with pytest.raises(ObservationError, match=r"actions: got .*\(2, 2\), expected \(2, 1\)"):
        envs.step(np.zeros((2, 2), dtype=np.float32))


# Arguments of SB3's make_vec_env


def monitored(folder: Path) -> list[tuple[Any, list[list[float]]]]:
    """For each env, the name in its monitor file, and its episodes: return and length."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.name.partition(".")[0]))
    assert [path.name for path in paths] == [f"{env}.monitor.csv" for env in range(len(paths))]
    found = []
    for path in paths:
        header, columns, *rows = path.read_text().splitlines()
        assert columns == "r,l,t"
        episodes = [[float(cell) for cell in row.split(",")[:2]] for row in rows]
        found.append((json.loads(header.removeprefix("#"))["env_id"], episodes))
    return found


def test_env_kwargs_and_monitor_dir_are_those_of_sb3(tmp_path: Path) -> None:
    kwargs = {"max_episode_steps": 4, "g": 2.0, "render_mode": "rgb_array"}
    mine = make(
        ["Pendulum-v1"] * 2, env_kwargs=kwargs, monitor_dir=tmp_path / "new" / "mine", seed=1
    )
    theirs = make_vec_env(
        "Pendulum-v1", 2, seed=1, env_kwargs=kwargs, monitor_dir=str(tmp_path / "theirs")
    )
    assert mine.render_mode == theirs.render_mode == "rgb_array"
    for envs in (mine, theirs):
        assert [env.unwrapped.g for env in envs.envs] == [2.0] * 2  # type: ignore[attr-defined]
        envs.reset()
        for _ in range(9):
            envs.step(np.zeros((2, 1)))
        envs.close()
    one, two = monitored(tmp_path / "new" / "mine"), monitored(tmp_path / "theirs")
    assert [name for name, _ in one] == [name for name, _ in two] == ["Pendulum-v1"] * 2
    for (_, episodes), (_, expected) in zip(one, two, strict=True):
        assert [length for _, length in episodes] == [length for _, length in expected] == [4, 4]
    assert kwargs["g"] == 2.0 and "render_mode" in kwargs


def test_monitor_files_hold_the_episodes_of_infos(tmp_path: Path) -> None:
    envs = make("cartpole", monitor_dir=str(tmp_path), seed=2)
    envs.reset()
    ended: list[list[list[float]]] = [[] for _ in range(7)]
    for _ in range(40):
        *_, infos = envs.step([envs.action_space.sample() for _ in range(7)])  # type: ignore[arg-type]
        for env, info in enumerate(infos):
            if "episode" in info:
                ended[env].append([info["episode"]["r"], info["episode"]["l"]])
    assert [episodes for _, episodes in monitored(tmp_path)] == ended
    assert any(ended)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_kwargs": ["g"]}, r"env_kwargs: got \['g'\], expected a dict"),
        ({"env_kwargs": {"mass": 1}}, "Pendulum-v1.*no argument mass"),
        ({"suite": "cartpole", "env_kwargs": {"mass": 1}}, "env_kwargs: got mass for cartpole"),
        ({"monitor_dir": 5}, "monitor_dir: got 5"),
        ({"monitor_dir": Path(__file__)}, "monitor_dir: got .*test_vec_env"),
    ],
)
def test_wrong_arguments_for_all_envs_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message) as error:
        make(**{"suite": ["Pendulum-v1"], **arguments})
    assert "\n" not in str(error.value)


def test_actions_may_be_lists() -> None:
    envs = TaskVecEnv("toy", [Task("a", Toy), Task("b", Toy)])
    for actions in ([[0.5], [-0.5]], [np.array([0.5]), np.array([-0.5])]):
        envs.reset()
        rewards = envs.step(actions)[1]  # type: ignore[arg-type]
        assert rewards.tolist() == [0.5, -0.5]
    with pytest.raises(ObservationError, match=r"actions: .*\(2,\)"):
        envs.step([0.5, -0.5])  # type: ignore[arg-type]
