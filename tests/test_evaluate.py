"""Evaluation: Meta-World's protocol to the letter, honest intervals, one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from metaworld.evaluation import evaluation as official_evaluation
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from conal_rl import envs, evaluate, evaluation
from conal_rl.agents import ConalSAC, experiment
from conal_rl.agents.episode_stats import RecentEpisodes
from conal_rl.agents.experiment import load_policy, make_agent
from conal_rl.agents.tree_files import load_trees
from conal_rl.config import Config, load_config
from conal_rl.core import Tree
from conal_rl.envs import make, suite_of
from conal_rl.envs.metaworld import CAMERA_SIZE, official_vector_env, suite_tasks
from conal_rl.errors import (
    CheckpointError,
    ConalError,
    ConfigError,
    ExtraError,
    ObservationError,
    SuiteError,
)
from conal_rl.evaluation import (
    Evaluation,
    evaluate_policy,
    mean_interval,
    prepare_videos,
    protocol,
    record_videos,
    video,
    wilson,
)
from conal_rl.runs.checkpoints import save_checkpoint
from conal_rl.runs.folder import find_run
from tests.helpers.scripted import ScriptedPolicy
from tests.helpers.tiers import first_quick
from tests.helpers.toy import Target

PAIR = ("window-open-v3", "pick-place-v3")


class Still:
    """Acts with zeros."""

    def __init__(self, action_dim: int = 4):
        self.action_dim = action_dim

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[np.float32], Any]:
        assert observation.dtype == np.float32
        assert deterministic
        return np.zeros((len(observation), self.action_dim), dtype=np.float32), None


class Balance:
    """Pushes a cart towards the side to which its pole falls."""

    def predict(
        self, observation: NDArray[np.float32], *, deterministic: bool = False
    ) -> tuple[NDArray[np.float32], Any]:
        x, x_dot, angle, angle_dot = observation[:, :4].T
        return np.sign(angle + 0.5 * angle_dot + 0.05 * x + 0.1 * x_dot)[:, None], None


@pytest.mark.parametrize("name", ["pretrained:chess", "pretrained:"])
def test_unknown_shipped_weights_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([name]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: pretrained: got ") and "\n" not in error


# Intervals


def test_wilson_equals_the_formula_by_hand_and_scipy() -> None:
    # 0 of 50: the upper limit is z^2 / (n + z^2) = 3.8415 / 53.8415.
    assert wilson(0.0, 50) == pytest.approx((0.0, 0.071348), abs=1e-6)
    assert wilson(1.0, 50) == pytest.approx((0.928652, 1.0), abs=1e-6)
    stats = pytest.importorskip("scipy.stats")
    for successes, n in [(0, 1), (1, 1), (3, 10), (47, 50), (50, 50)]:
        reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson(successes / n, n) == pytest.approx((reference.low, reference.high))


def test_mean_interval_of_one_task_is_wilsons() -> None:
    for rate in (0.0, 0.3, 1.0):
        assert mean_interval([rate], 10) == pytest.approx(wilson(rate, 10))


@pytest.mark.parametrize("rates", [[0.0] * 10, [1.0] * 10, [1.0] * 5 + [0.0] * 5, [0.98] * 10])
def test_mean_interval_holds_the_mean_with_room_at_the_extremes(rates: list[float]) -> None:
    low, high = mean_interval(rates, 50)
    assert 0 <= low <= np.mean(rates) <= high <= 1
    assert 0.005 < high - low < 0.05


@pytest.mark.parametrize("p", [[0.99] * 10, [0.9] * 10, [0.5] * 10, [0.95] * 5 + [0.05] * 5])
def test_mean_interval_covers_the_true_mean_as_often_as_it_says(p: list[float]) -> None:
    counts = np.random.default_rng(0).binomial(50, p, size=(1000, 10))
    intervals = np.array([mean_interval(row / 50, 50) for row in counts])
    covered = (intervals[:, 0] <= np.mean(p)) & (np.mean(p) <= intervals[:, 1])
    assert covered.mean() > 0.92


# Meta-World


def agent(policy: Any) -> Any:
    """`policy` as metaworld's own evaluation takes it, independent of ours."""

    class Agent:
        def eval_action(self, observations: NDArray[np.float64]) -> NDArray[np.float32]:
            actions: NDArray[np.float32] = policy.predict(np.float32(observations))[0]
            return actions

        def reset(self, env_mask: NDArray[np.bool_]) -> None:
            pass

    return Agent()


@pytest.mark.slow
def test_equals_metaworlds_own_evaluation() -> None:
    """Task by task, for an expert so noisy that it fails at times."""
    ours = evaluate_policy(ScriptedPolicy(PAIR, noise=0.8), PAIR, episodes=3, seed=0)
    envs: Any = official_vector_env(PAIR, 0)
    mean, mean_return, success, returns = official_evaluation(
        agent(ScriptedPolicy(PAIR, noise=0.8)), envs, num_episodes=3
    )
    envs.close()
    assert ours.success == success
    assert ours.mean_success == pytest.approx(mean, abs=1e-12)
    assert ours.returns == {task: float(np.mean(returns[task])) for task in PAIR}
    assert np.mean(list(ours.returns.values())) == pytest.approx(mean_return)
    assert 0 < success["pick-place-v3"] < 1, "the test should see failures and successes"
    assert ours.episodes.keys() == set(PAIR)
    for task, episodes in ours.episodes.items():
        assert len(episodes) == 3
        assert sum(episodes) / 3 == success[task]


@pytest.mark.slow
def test_scripted_experts_solve_mt10() -> None:
    tasks = suite_tasks("mt10")
    result = evaluate_policy(ScriptedPolicy(tasks), "mt10", episodes=5, seed=42)
    assert list(result.success) == list(tasks)
    assert min(rate for rate in result.success.values() if rate is not None) >= 0.8
    assert result.mean_success is not None
    assert result.mean_success >= 0.95


def with_short_episodes(
    seen: dict[str, list[tuple[float, ...]]],
) -> Callable[[Any, int], gym.vector.SyncVectorEnv]:
    """`official_vector_env` with episodes of one step, which notes the goal of each reset."""

    class NoteGoal(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            out = super().reset(**kwargs)
            env: Any = self.unwrapped
            seen.setdefault(env.task_name, []).append(tuple(env._last_rand_vec))
            return out

    def build(suite: Any, seed: int) -> gym.vector.SyncVectorEnv:
        envs: Any = official_vector_env(suite, seed)
        for env in envs.envs:
            env.set_wrapper_attr("_max_episode_steps", 1, force=False)
        envs.envs = [NoteGoal(env) for env in envs.envs]
        return envs

    return build


@pytest.mark.slow
def test_visits_each_of_the_50_goals_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[float, ...]]] = {}
    monkeypatch.setattr(protocol, "official_vector_env", with_short_episodes(seen))
    counts: list[tuple[int, int]] = []
    evaluate_policy(Still(), PAIR, 50, 0, progress=lambda *count: counts.append(count))
    assert len(seen) == 2
    for goals in seen.values():
        assert len(goals) == 50
        assert len(set(goals)) == 50
    assert counts == [(i, 100) for i in range(1, 101)]


def test_refuses_a_policy_made_for_other_observations() -> None:
    policy: Any = Still()
    policy.observation_space = gym.spaces.Box(-1, 1, (49,))
    with pytest.raises(ObservationError, match=r"\(40,\).*\(49,\)"):
        evaluate_policy(policy, PAIR[:1], 1, 0)


def test_refuses_a_policy_of_other_tasks() -> None:
    """Their heads would be exchanged, in observations of the same shape."""
    policy: Any = Still()
    policy.tasks = ("push-v3", "reach-v3")
    with pytest.raises(ObservationError, match=r"reach-v3, push-v3.*push-v3, reach-v3"):
        evaluate_policy(policy, ("reach-v3", "push-v3"), 1, 0)
    policy.tasks = ("push",)
    with pytest.raises(ObservationError, match=r"standard, .* push"):
        evaluate_policy(policy, "cartpole", 1, 0)


# Other suites


def test_cartpole_success_is_what_the_env_says() -> None:
    result = evaluate_policy(Balance(), "cartpole", episodes=2, seed=5)
    assert result.success["standard"] == 1.0
    assert result.success["reversed"] == 0.0
    assert result.returns["standard"] == 500
    assert result.returns["reversed"] < 20


def test_every_task_gets_as_many_episodes() -> None:
    first, again, other = (
        evaluate_policy(Still(1), "cartpole", episodes=11, seed=seed) for seed in (5, 5, 6)
    )
    assert len(first.success) == 7
    assert all(len(episodes) == 11 for episodes in first.episodes.values())
    assert first == again
    assert first.returns != other.returns


def test_tasks_without_success_are_left_out_of_the_mean() -> None:
    suite = ("Pendulum-v1", "Pendulum-v1")
    result = evaluate_policy(Still(1), suite, episodes=1, seed=0)
    assert set(result.success.values()) == {None}
    assert result.episodes == {}
    data = json.loads(json.dumps(result.to_json()))
    assert data["mean_success"] is None
    assert data["ci95"] is None
    assert all(value < 0 for value in data["returns"].values())
    assert result.table().row_count == 3


def test_an_episode_without_a_report_has_failed() -> None:
    """If it reports others: `info["success"]` may be there only on success."""

    class Half(Target):
        episode = 0

        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            if truncated:
                self.episode += 1
                info |= {"success": True} if self.episode % 2 else {}
            return obs, reward, terminated, truncated, info

    entry: Any = Half
    suite = ("Half-v0", "Pendulum-v1")
    gym.register("Half-v0", entry, kwargs={"bounds": (-2.0, 2.0)})
    try:
        result = evaluate_policy(Still(1), suite, episodes=40, seed=0)
    finally:
        del gym.registry["Half-v0"]
    assert result.success == {suite[0]: 0.5, suite[1]: None}
    assert sum(result.episodes[suite[0]]) == 20
    recent = RecentEpisodes(("reports", "silent"))
    for success in (1.0, float("nan"), float("nan"), float("nan")):
        recent.add("reports", -1.0, success)
        recent.add("silent", -1.0, float("nan"))
    assert recent.scalars()["success/mean"] == recent.scalars()["success/reports"] == 0.25
    assert "success/silent" not in recent.scalars()


def test_the_table_counts_tasks_with_success() -> None:
    some: dict[str, float | None] = {"a": 0.5, "b": None, "c": 1.0}
    every: dict[str, float | None] = {"a": 0.5}
    for given, label in ((some, "mean (success: of 2 tasks)"), (every, "mean")):
        result = evaluation.Evaluation(
            "cartpole", "official", 0, 2, given, dict.fromkeys(given, 1.0), {}
        )
        assert list(result.table().columns[0].cells)[-1] == label


# Bad input


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ConfigError, {"episodes": 0}),
        (ConfigError, {"seed": -1}),
        (ConfigError, {"seed": 2**32, "suite": "mt1:reach-v3"}),
        (ConfigError, {"engine": "quick"}),
        *((ConfigError, {"episodes": value}) for value in (1.5, "3", None, True)),
        *((ConfigError, {"seed": value}) for value in (0.5, "x", None)),
        (TypeError, {"policy": "pretrained:mt10"}),
        (SuiteError, {"engine": "native"}),
        (SuiteError, {"suite": "mt11"}),
        (SuiteError, {"suite": ("reach-v3", "CartPole-v1")}),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    kind: type[Exception], arguments: dict[str, Any]
) -> None:
    with pytest.raises(kind) as caught:
        evaluate_policy(**{"policy": Still(), "suite": "cartpole", **arguments})
    assert "\n" not in str(caught.value)
    if kind is not SuiteError:
        assert str(caught.value).startswith(f"{next(iter(arguments))}: got ")


@pytest.mark.parametrize(("suite", "official"), [("mt1:reach-v3", True), ("cartpole", False)])
def test_the_table_says_why_returns_are_low(suite: str, official: bool) -> None:
    result = Evaluation(suite, "native", 0, 1, {"a": 1.0}, {"a": 124.0}, {"a": [True]})
    caption = str(result.table().caption)
    assert ("lower than in training" in caption) == official


# Videos


@pytest.mark.slow
def test_a_video_shows_a_whole_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    suite = "mt1:drawer-close-v3"
    try:
        paths = record_videos(ScriptedPolicy(suite_tasks(suite)), suite, 0, tmp_path / "videos")
    except ConalError as error:
        pytest.skip(str(error))
    assert [path.stem for path in paths] == ["drawer-close-v3"]
    import imageio.v3 as imageio

    frames = imageio.imread(paths[0])
    assert 3 < len(frames) < 126
    assert frames[0].shape[:2] == (CAMERA_SIZE, CAMERA_SIZE) == (480, 480)
    assert seconds(paths[0]) >= 3
    # The right way up: the sky, one grey, is above the table, not below it.
    assert frames[0][:20].std() < frames[0][-20:].std()
    assert (frames[0] != frames[-1]).any()


@pytest.mark.parametrize("solved_at", [1, 4, None])
def test_the_first_solved_episode_of_ten_is_filmed(
    solved_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = 0

    def film(*_: Any) -> tuple[list[NDArray[np.uint8]], bool]:
        nonlocal episodes
        episodes += 1
        return [np.full((8, 8, 3), episodes, dtype=np.uint8)], episodes == solved_at

    monkeypatch.setattr(video, "_film", film)
    monkeypatch.setenv("DISPLAY", ":0")
    (path,) = record_videos(Still(), "mt1:reach-v3", 0, tmp_path)
    assert path.is_file() and episodes == (solved_at or 10)


def test_a_video_without_opengl_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConalError, match="MUJOCO_GL=egl"):
        record_videos(Still(), "mt1:reach-v3", 0, tmp_path)


class Drawn(Target):
    """Its image has the step in its first pixel; it says nothing about success."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.render_mode = render_mode

    def render(self) -> Any:
        if self.target is None:
            return None
        image = np.zeros((480, 500, 3), np.uint8)
        image[:200, :200] = min(40 * self.steps, 250)
        return image


class Solved(Drawn):
    """Succeeds in its third episode."""

    episode = -1  # the first reset is that of the seed

    def reset(self, **given: Any) -> Any:
        self.episode += 1
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        *step, info = super().step(action)
        return (*step, info | {"success": self.episode == 3})


@pytest.fixture
def drawn() -> Iterator[None]:
    """Registers envs that give images."""
    ids: dict[str, tuple[Any, dict[str, Any]]] = {
        "own/Drawn-v0": (Drawn, {"length": 6}),
        "Long-v0": (Drawn, {"length": 80}),
        "Solved-v0": (Solved, {}),
        "Blank-v0": (Drawn, {"target": None}),
        "Undrawn-v0": (Target, {}),
    }
    for env_id, (entry, settings) in ids.items():
        gym.register(env_id, entry, disable_env_checker=True, kwargs=settings)
    yield
    for env_id in ids:
        del gym.registry[env_id]


def pauses(path: Path) -> list[int]:
    """The milliseconds that each image of a GIF is shown."""
    with Image.open(path) as image:
        return [frame.info["duration"] for frame in ImageSequence.Iterator(image)]


def seconds(path: Path) -> float:
    return sum(pauses(path)) / 1000


def test_own_tasks_are_filmed_and_named_one_by_one(
    tmp_path: Path, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "find_spec", lambda _: None)
    seen: list[tuple[Path, int]] = []
    suite = ("own/Drawn-v0", "Long-v0", "Solved-v0", "Solved-v0")
    paths = record_videos(
        Still(1),
        suite,
        0,
        tmp_path,
        lambda path: seen.append((path, len(list(tmp_path.iterdir())))),
    )
    names = ["own_Drawn-v0.gif", "Long-v0.gif", "Solved-v0.gif", "Solved-v0_2.gif"]
    assert [path.name for path in paths] == names
    assert seen == [(path, number) for number, path in enumerate(paths, start=1)]
    short, long, *_ = paths
    with Image.open(short) as image:
        assert image.size == (500, 480)
        brightness = [np.asarray(f.convert("L"))[0, 0] for f in ImageSequence.Iterator(image)]
    assert brightness == sorted(set(brightness)) and len(brightness) == 4, "steps 0, 2, 4 and 6"
    assert seconds(short) == 3 and pauses(short)[-1] >= 1000, "the last one is held"
    assert seconds(long) == pytest.approx(41 * 0.05 + 1)


def test_episodes_without_success_are_filmed_once(tmp_path: Path, drawn: None) -> None:
    class Counting(Still):
        calls = 0

        def predict(self, *given: Any, **named: Any) -> Any:
            self.calls += 1
            return super().predict(*given, **named)

    for suite, steps in (("own/Drawn-v0", 6), ("Solved-v0", 3 * 5)):
        policy = Counting(1)
        record_videos(policy, [suite], 0, tmp_path)
        assert policy.calls == steps


@pytest.mark.parametrize(
    ("task", "part"),
    [("Undrawn-v0", "render_mode"), ("Blank-v0", "render: got NoneType")],
)
def test_an_env_without_images_is_named(task: str, part: str, tmp_path: Path, drawn: None) -> None:
    with pytest.raises(SuiteError, match=f"^task '{task}': .*{part}"):
        prepare_videos([task], tmp_path / "films")
    assert not (tmp_path / "films").exists()


@pytest.mark.slow
def test_cartpole_is_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "VIDEO_TRIES", 1)
    if not find_spec("pygame"):
        with pytest.raises(ExtraError, match=r"pygame is not installed\. .*\[video\]"):
            prepare_videos("cartpole", tmp_path)
        return
    paths = record_videos(Still(1), "cartpole", 0, tmp_path)
    assert [path.stem for path in paths][:2] == ["standard", "long_pole"]


def test_envs_of_every_suite_have_images(drawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make(["Long-v0"] * 2, render_mode="rgb_array")
    envs.reset()
    assert envs.render_mode == "rgb_array"
    images = [np.asarray(image) for image in envs.get_images()]
    assert [image.shape for image in images] == [(480, 500, 3)] * 2
    assert make("cartpole", render_mode="rgb_array").render_mode == "rgb_array"
    official = make("mt1:reach-v3", engine="official", render_mode="rgb_array")
    assert official.render_mode == "rgb_array"
    with pytest.raises(SuiteError, match="render_mode: got 'human'"):
        make("mt1:reach-v3", render_mode="human")
    with pytest.raises(SuiteError, match=r"Undrawn-v0.*render_mode"):
        make(["Undrawn-v0"], render_mode="rgb_array")


def test_videos_are_refused_before_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "evaluate_policy", lambda *_: pytest.fail("evaluated"))
    monkeypatch.setenv("DISPLAY", ":0")
    there = tmp_path / "there"
    there.touch()
    assert evaluate.main(["pretrained:mt10", "--video", str(there)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {there}: ")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert evaluate.main(["pretrained:mt10", "--video", str(tmp_path / "films")]) == 2
    assert "MUJOCO_GL" in capsys.readouterr().err
    assert not (tmp_path / "films").exists()


def test_videos_are_announced(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    announced = f"A video of each task follows, in {tmp_path / 'films'}."
    monkeypatch.setattr(evaluation, "prepare_videos", lambda *_: None)

    def record(*_: Any) -> list[Path]:
        assert capsys.readouterr().err.splitlines()[-1] == announced
        return []

    monkeypatch.setattr(evaluation, "record_videos", record)
    assert evaluate.main([str(run_folder), "--video", str(tmp_path / "films")]) == 0


# The command


CONFIG = "name: tiny\ntotal_steps: 10\nenv: {suite: cartpole}\nagent: {tree: shared}\n"


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder whose agent is `Balance`."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "checkpoints" / "10").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG + "evaluation: {episodes: 3, seed: 7}\n")
    config = load_config(run / "config.yaml")
    monkeypatch.setattr(experiment, "load_policy", lambda path, device: (Balance(), config))
    return run


def test_command_writes_json(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert evaluate.main([str(run_folder), "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert data.keys() == {
        "suite",
        "engine",
        "seed",
        "episodes_per_task",
        "success",
        "mean_success",
        "ci95",
        "returns",
        "episodes",
    }
    assert data["suite"] == "cartpole"
    assert (data["episodes_per_task"], data["seed"]) == (3, 7), "the config's, unless given"
    assert data["mean_success"] == pytest.approx(np.mean(list(data["success"].values())))
    assert data["ci95"][0] <= data["mean_success"] <= data["ci95"][1]
    assert "standard" in capsys.readouterr().out
    assert set(tmp_path.iterdir()) == {run_folder, file}
    assert evaluate.main([str(run_folder), "--json", str(file), "--episodes", "2"]) == 0
    assert json.loads(file.read_text())["episodes_per_task"] == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--episodes", "0"],
        ["--episodes", "many"],
        ["--engine", "quick"],
        ["--device", "gpu"],
        ["--device", "cuda:99"],
        ["--json", "no/such/folder/out.json"],
        ["--json", "."],
        ["--frobnicate"],
    ],
)
def test_command_reports_errors_in_one_line(
    run_folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run_folder), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error


def test_a_run_and_its_checkpoint_hold_the_same_agent(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml")
    assert isinstance(config, Config)
    env = envs.make("cartpole")
    agent = make_agent(config, env, (Tree.shared(env.tasks, config.agent.depth),) * 2)
    agent.save_weights(tmp_path / "model")
    tensors, state = agent.training_state()
    checkpoint = save_checkpoint(tmp_path, 10, tensors, {"agent": state})
    observations = np.asarray(env.reset())
    expected, _ = agent.predict(observations, deterministic=True)
    for path in (tmp_path, checkpoint):
        policy, policy_config = load_policy(path, "cpu")
        assert policy_config == config
        np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)

    (tmp_path / "model").rename(tmp_path / "elsewhere")
    newest, _ = load_policy(tmp_path, "cpu")  # killed before it could write model/
    np.testing.assert_array_equal(newest.predict(observations, deterministic=True)[0], expected)
    (tmp_path / "elsewhere").rename(tmp_path / "model")

    (checkpoint / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors"):
        load_policy(checkpoint, "cpu")
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_policy(tmp_path, "cpu")


def test_a_copied_model_is_evaluated_on_its_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tasks, suite in (
        (suite_tasks("mt10"), "mt10"),
        (suite_tasks("mt1:reach-v3"), ("reach-v3",)),
        (("standard", "long_pole"), ("standard", "long_pole")),
        (("Pendulum-v1", "Pendulum-v1#2"), ("Pendulum-v1", "Pendulum-v1")),
    ):
        assert suite_of(tasks) == suite
    env = make("cartpole")
    agent = ConalSAC(env=env, tree=Tree.shared(env.tasks, 1), widths=(8,), buffer_size=10)
    agent.save_weights(tmp_path / "friends")
    friends = str(tmp_path / "friends")
    file = tmp_path / "out.json"
    for given, name in (
        ([], "cartpole"),
        (["--suite", "cartpole:proportional"], "cartpole:proportional"),
    ):
        words = [friends, "--episodes", "1", "--json", str(file), *given]
        assert evaluate.main(words) == 0
        assert json.loads(file.read_text())["suite"] == name
    run = tmp_path / "run"
    shutil.copytree(friends, run / "model")
    (run / "config.yaml").write_text(CONFIG + "evaluation: {episodes: 3, seed: 7}\n")
    for path in (run, run / "model"):
        assert evaluate.main([str(path), "--json", str(file)]) == 0
        data = json.loads(file.read_text())
        assert (data["episodes_per_task"], data["seed"]) == (3, 7), "the run's"
        capsys.readouterr()
        assert evaluate.main([str(path), "--suite", "cartpole"]) == 2
        assert capsys.readouterr().err.startswith("error: --suite: got ")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=f"^{path}: "):
            load_policy(path)


def test_command_ends_quietly_on_ctrl_c(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Evaluation:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_policy", interrupt)
    assert evaluate.main([str(run_folder)]) == 130


@pytest.mark.parametrize("command", ["evaluate", "train"])
@pytest.mark.slow
def test_command_without_the_named_opengl(command: str, run_folder: Path, tmp_path: Path) -> None:
    """MuJoCo fails on import then, so this takes a process of its own.

    Training on CartPole would find that only at its end.
    """
    here = tmp_path / "here"
    here.mkdir()
    words = [str(run_folder)] if command == "evaluate" else ["cartpole", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", f"conal_rl.{command}", *words],
        cwd=here,
        env={**os.environ, "MUJOCO_GL": "none-such", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: MUJOCO_GL: got none-such")
    assert done.stderr.count("\n") == 1
    assert not list(here.iterdir())


def test_episodes_without_an_end_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            return np.zeros((len(observation), 1), dtype=np.float32), None

    monkeypatch.setattr(protocol, "ENDLESS", 50)
    endless = "tests.helpers.toy:Endless-v0"
    for suite in ((endless,), ("tests.helpers.toy:Left-v0", endless)):
        with pytest.raises(SuiteError, match=f"^{endless}: .* 50 steps"):
            evaluation.evaluate_policy(Still(), suite, 1)


def test_an_env_with_a_longer_time_limit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ENDLESS", 50)
    settings = {"target": None, "length": 10**9}
    gym.register("Long-v0", "tests.helpers.toy:Target", max_episode_steps=70, kwargs=settings)
    try:
        result = evaluate_policy(Still(1), ("Long-v0",), episodes=2)
    finally:
        del gym.registry["Long-v0"]
    assert result.returns == {"Long-v0": 70.0}


def test_an_env_that_does_not_close_loses_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("no such window")

    monkeypatch.setattr(Target, "close", fails)
    result = evaluate_policy(Still(1), ("tests.helpers.toy:Left-v0",), episodes=1)
    assert list(result.returns) == ["tests.helpers.toy:Left-v0"]
    assert "close: got RuntimeError: no such window" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["official", "native"])
@pytest.mark.parametrize(
    ("actions", "part"),
    [(np.full((1, 4), np.nan), "task 'reach-v3', .* NaN or inf"), (np.zeros((1, 3)), "of shape")],
)
def test_actions_that_no_env_can_take_are_refused(
    engine: Any, actions: NDArray[np.float64], part: str
) -> None:
    class Wrong:
        def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            return actions.astype(np.float32), None

    with pytest.raises(ObservationError, match=part):
        evaluation.evaluate_policy(Wrong(), "mt1:reach-v3", 1, engine=engine)


@pytest.mark.parametrize("name", first_quick(["mt10", "mt10_paper"]))
def test_shipped_weights_do_what_their_evaluation_says(name: str) -> None:
    folder = find_run(f"pretrained:{name}")
    claimed = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    agent = ConalSAC.load_weights(folder / "model", "cpu")
    actor, critic = load_trees(folder / "tree.json", agent.tasks, 3)
    assert agent.structures == (actor, critic)
    success = evaluate_policy(agent, "mt10", episodes=2, seed=7, engine="native").mean_success
    assert success is not None
    assert abs(success - claimed["mean_success"]) < 0.16  # 20 other episodes
