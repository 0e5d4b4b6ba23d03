"""The replay's rings against Python deques, and what SB3's loop puts into them."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from conal_rl.agents.replay import SMALLEST_RETURN, Ring, TaskReplayBuffer
from conal_rl.core import Tree
from conal_rl.envs import TaskVecEnv
from conal_rl.envs.vec_env import Task
from tests.helpers.toy import FEATURES, Target, make_agent, one_hot, tasks_named

CPU = torch.device("cpu")


def spaces_of(tasks: int) -> tuple[Any, Any]:
    env = TaskVecEnv("toy", [Task(name, Target) for name in tasks_named(tasks)])
    return env.observation_space, env.action_space


def make_buffer(
    size: int,
    tasks: int,
    envs: int,
    validation_share: float = 0.0,
    n_steps: int = 1,
    **settings: Any,
) -> TaskReplayBuffer:
    return TaskReplayBuffer(
        size,
        *spaces_of(tasks),
        "cpu",
        envs,
        num_tasks=tasks,
        validation_share=validation_share,
        n_steps=n_steps,
        **settings,
    )


class Feeder:
    """Adds transitions whose every column tells their number; notes number, task and episode."""

    def __init__(self, env_tasks: list[int], tasks: int):
        self.env_tasks, self.tasks = env_tasks, tasks
        self.count = self.episodes = 0
        self.episode = [self._new_episode() for _ in env_tasks]
        self.task_of: dict[int, int] = {}
        self.episode_of: dict[int, int] = {}

    def _new_episode(self) -> int:
        self.episodes += 1
        return self.episodes

    def add(
        self, ends: list[bool], *buffers: TaskReplayBuffer, truncated: list[bool] | None = None
    ) -> None:
        envs = len(self.env_tasks)
        number = self.count + np.arange(envs, dtype=np.float32)
        features = np.repeat(number[:, None], FEATURES, axis=1)
        infos = [{"TimeLimit.truncated": cut} for cut in truncated or [False] * envs]
        for buffer in buffers:
            buffer.add(
                one_hot(features, self.env_tasks, self.tasks),
                one_hot(features + 0.5, self.env_tasks, self.tasks),
                -number[:, None],
                2 * number,
                np.array(ends),
                [dict(info) for info in infos],
            )
        for env, end in enumerate(ends):
            self.task_of[self.count + env] = self.env_tasks[env]
            self.episode_of[self.count + env] = self.episode[env]
            if end:
                self.episode[env] = self._new_episode()
        self.count += envs


def held(ring: Ring) -> list[list[int]]:
    """Per task the numbers of the transitions held, sorted; every row must be whole."""
    numbers = []
    for data, size in zip(ring.data, ring.sizes, strict=True):
        rows = data[:size].numpy()
        number = rows[:, :1]
        columns = [number] * FEATURES + [-number] + [number + 0.5] * FEATURES + [2 * number]
        np.testing.assert_array_equal(rows[:, :-1], np.concatenate(columns, axis=1))
        numbers.append(sorted(int(n) for n in number[:, 0]))
    return numbers


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_ring_holds_the_newest_of_each_task(data: st.DataObject) -> None:
    tasks, capacity = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    ring = Ring(tasks, capacity, 1, CPU)
    reference = [deque[float](maxlen=capacity) for _ in range(tasks)]
    value = 0
    rounds = st.lists(st.lists(st.integers(0, tasks - 1), max_size=capacity), max_size=12)
    for round_ in data.draw(rounds):
        rows = torch.arange(value, value + len(round_), dtype=torch.float32)
        ring.add(np.array(round_, dtype=np.int64), rows.unsqueeze(1))
        for task, row in zip(round_, rows.tolist(), strict=True):
            reference[task].append(row)
        value += len(round_)
        assert ring.sizes.tolist() == [len(kept) for kept in reference]
    for task, kept in enumerate(reference):
        assert sorted(ring.data[task, : len(kept), 0].tolist()) == list(kept)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_buffer_keeps_the_transitions_that_deques_keep(data: st.DataObject) -> None:
    """Whole episodes to one ring each, the first to validation, and each ring the newest."""
    tasks = data.draw(st.integers(1, 3))
    env_tasks = data.draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=5))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5]))
    capacity = data.draw(st.integers(20, 40))
    # The large buffer forgets nothing, and so says which ring each transition belongs to.
    small = make_buffer(capacity, tasks, len(env_tasks), share)
    large = make_buffer(2_000, tasks, len(env_tasks), share)
    feeder = Feeder(env_tasks, tasks)
    for _ in range(data.draw(st.integers(1, 40))):
        feeder.add(
            data.draw(st.lists(st.booleans(), min_size=len(env_tasks), max_size=len(env_tasks))),
            small,
            large,
        )

    validation = {number for numbers in held(large.validation) for number in numbers}
    training = {number for numbers in held(large.training) for number in numbers}
    assert validation | training == set(range(feeder.count))
    assert not validation & training
    assert large.size() == feeder.count
    episodes_of = feeder.episode_of
    assert not {episodes_of[n] for n in validation} & {episodes_of[n] for n in training}
    for task in range(tasks):
        first = next((n for n, owner in feeder.task_of.items() if owner == task), None)
        assert first is None or (first in validation) == (share > 0)
    for ring, members in ((small.training, training), (small.validation, validation)):
        for task, numbers in enumerate(held(ring)):
            newest = deque(
                (n for n in sorted(members) if feeder.task_of[n] == task), maxlen=ring.capacity
            )
            assert numbers == list(newest)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_validation_gets_its_share_of_episodes(share: float) -> None:
    buffer = make_buffer(4_000, 2, 3, share)
    feeder = Feeder([1, 0, 1], 2)
    generator = np.random.default_rng(0)
    for _ in range(1_000):
        feeder.add((generator.random(3) < 0.3).tolist(), buffer)
    for task in range(2):
        episodes = {e for n, e in feeder.episode_of.items() if feeder.task_of[n] == task}
        validation = {feeder.episode_of[n] for n in held(buffer.validation)[task]}
        assert len(validation) == pytest.approx(share * len(episodes), abs=2)


def test_samples_are_balanced_uniform_and_of_the_right_split() -> None:
    buffer = make_buffer(22, 2, 3, 0.5)
    feeder = Feeder([0, 1, 0], 2)
    for step in range(40):  # both rings wrap around
        feeder.add([step % 2 == 1] * 3, buffer)
    torch.manual_seed(0)
    for sample, ring in (
        (buffer.sample, buffer.training),
        (buffer.sample_validation, buffer.validation),
    ):
        batch = sample(11_000)
        assert batch.observations.shape == (2, 11_000, FEATURES)
        assert batch.actions.shape == (2, 11_000, 1)
        assert batch.rewards.shape == batch.dones.shape == (2, 11_000)
        assert torch.equal(batch.next_observations, batch.observations + 0.5)
        assert torch.equal(batch.rewards, 2 * batch.observations[..., 0])
        for task, numbers in enumerate(held(ring)):
            assert len(numbers) == 11
            drawn, counts = batch.observations[task, :, 0].unique(return_counts=True)
            assert drawn.tolist() == numbers
            chi_squared = ((counts - 1_000) ** 2 / 1_000).sum()
            assert chi_squared < 29.6  # 99.9% of chi squared with 10 degrees of freedom


def test_done_means_terminated() -> None:
    buffer = make_buffer(10, 1, 3)
    Feeder([0, 0, 0], 1).add([False, True, True], buffer, truncated=[False, False, True])
    assert buffer.training.data[0, :3, -1].tolist() == [0.0, 1.0, 0.0]


def test_sb3s_loop_stores_terminal_observations() -> None:
    """Through SB3's loop: terminal observations, truncation, several envs, scaled actions."""
    tasks = [
        Task("truncates", lambda: Target(length=3, bounds=(-2, 4))),
        Task("terminates", lambda: Target(length=4, bounds=(-2, 4), terminates=True)),
    ]
    env = TaskVecEnv("toy", tasks, envs_per_task=2)
    agent = make_agent(Tree.shared(env.tasks, 2), env=env, learning_starts=10_000)
    agent.learn(4 * 24)
    buffer = agent.replay_buffer
    assert buffer.training.sizes.tolist() == [48, 48]
    rows = buffer.training.data[:, :48]
    step, action, next_step = rows[..., 0], rows[..., FEATURES], rows[..., FEATURES + 1]
    assert torch.equal(next_step, step + 1)  # an auto-reset observation would be 0
    assert not rows[0, :, -1].any()
    assert torch.equal(rows[1, :, -1], (next_step[1] == 4).float())
    reward = -((action * 3 + 1 - 0.5) ** 2)  # [-1, 1] stands for [-2, 4]
    torch.testing.assert_close(rows[..., -2], reward)


def test_no_returns_across_the_reset_of_a_second_learn() -> None:
    tasks = [Task("a", lambda: Target(length=5))]
    env = TaskVecEnv("toy", tasks, envs_per_task=1)
    agent = make_agent(Tree.shared(env.tasks, 2), env=env, n_steps=3, learning_starts=10_000)
    for _ in range(2):
        agent.learn(4)  # of 5 steps
    size = int(agent.replay_buffer.training.sizes[0])
    rows = agent.replay_buffer.training.data[0, :size]
    spans = rows[:, FEATURES + 1] - rows[:, 0]
    assert spans.tolist() == [3.0, 3.0] * 2


def test_ready_once_every_task_has_both_kinds_of_data() -> None:
    buffer = make_buffer(40, 2, 2, 0.5)
    feeder = Feeder([0, 1], 2)
    feeder.add([True, False], buffer)
    feeder.add([False, True], buffer)
    assert not buffer.ready()  # task 1 has only its first episode, for validation
    feeder.add([False, False], buffer)
    assert buffer.ready()


def test_take_over_keeps_everything() -> None:
    old, new = make_buffer(60, 2, 3, 0.3), make_buffer(60, 2, 3)
    feeder = Feeder([0, 1, 0], 2)
    for step in range(70):
        feeder.add([step % 7 == 6] * 3, old)
    assert old.training.sizes.tolist() == [42, 42]  # both have wrapped around
    assert old.validation.sizes.tolist()[0] == 18
    new.inherit_from(old)
    before = zip(held(old.training), held(old.validation), strict=True)
    assert held(new.training) == [sorted(train + validation) for train, validation in before]
    assert not new.validation.sizes.any()
    # What comes next replaces what was taken over first.
    oldest = min(held(old.training)[1])
    feeder.add([False] * 3, new)
    while new.training.added[1] <= 60:
        feeder.add([False] * 3, new)
    assert oldest not in held(new.training)[1]


def test_inheriting_a_buffer_without_validation_keeps_the_share() -> None:
    old, new = make_buffer(60, 1, 1), make_buffer(60, 1, 1, 0.1)
    feeder = Feeder([0], 1)
    for _ in range(40):
        feeder.add([True], old)
    new.inherit_from(old)
    new.cut_episodes()
    for _ in range(20):
        feeder.add([True], new)
    assert new.validation.added.tolist() == [2]
    assert new.training.added.tolist() == [40 + 18]


def test_reset_forgets_everything() -> None:
    buffer, fresh = make_buffer(60, 2, 3, 0.3), make_buffer(60, 2, 3, 0.3)
    feeder = Feeder([0, 1, 0], 2)
    for step in range(30):
        feeder.add([step % 7 == 6] * 3, buffer)
    buffer.reset()
    assert buffer.size() == 0 and not buffer.ready()
    first = feeder.count
    for step in range(10):
        feeder.add([step % 3 == 2] * 3, buffer)
    again = Feeder([0, 1, 0], 2)
    again.count = first
    for step in range(10):
        again.add([step % 3 == 2] * 3, fresh)
    assert held(buffer.training) == held(fresh.training)
    assert held(buffer.validation) == held(fresh.validation)


def through_a_checkpoint(
    tensors: dict[str, Tensor], counters: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(counters))


@pytest.mark.parametrize("same_episodes", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("steps", [4, 50])
def test_a_restored_buffer_samples_and_stores_the_same(
    steps: int, n_steps: int, same_episodes: bool
) -> None:
    """The restored buffer samples the same, and then stores the same."""
    one, two = (make_buffer(40, 2, 3, 0.3, n_steps, normalize_returns=True) for _ in range(2))
    feeder = Feeder([0, 1, 0], 2)
    for step in range(steps):
        feeder.add([step % 3 == 2] * 3, one)
    two.restore(*through_a_checkpoint(*one.state()))
    if same_episodes:
        two.continue_episodes(one.begun_episodes())
    else:
        one.cut_episodes()
    for step in range(20):
        assert torch.equal(two.training.data, one.training.data)
        assert torch.equal(two.validation.data, one.validation.data)
        assert two.training.added.tolist() == one.training.added.tolist()
        torch.manual_seed(step)
        mine = [one.sample(5), one.sample_validation(5)] if one.ready() else []
        torch.manual_seed(step)
        theirs = [two.sample(5), two.sample_validation(5)] if two.ready() else []
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            for x, y in zip(a, b, strict=True):
                assert x is y is None or (x is not None and y is not None and torch.equal(x, y))
        feeder.add([step % 4 == 3] * 3, one, two)


@given(st.data(), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_normalised_returns_equal_those_by_hand(data: st.DataObject, envs: int, tasks: int) -> None:
    """Rewards are divided by the task's largest discounted sum over all envs and episodes."""
    plain, buffer = (
        make_buffer(300, tasks, envs, gamma=0.5, normalize_returns=on) for on in (False, True)
    )
    feeder = Feeder([env % tasks for env in range(envs)], tasks)
    step = st.lists(st.booleans(), min_size=envs, max_size=envs)
    largest = [0.0] * tasks
    episodes: list[list[float]] = [[] for _ in range(envs)]
    for ends in data.draw(st.lists(step, min_size=1, max_size=30)):
        for env, end in enumerate(ends):
            episodes[env].append(2.0 * (feeder.count + env))
            total = sum(r * 0.5**age for age, r in enumerate(reversed(episodes[env])))
            largest[env % tasks] = max(largest[env % tasks], total)
            episodes[env] = [] if end else episodes[env]
        feeder.add(ends, plain, buffer)
    if not plain.ready():
        return
    rewards = []
    for one in (plain, buffer):
        torch.manual_seed(0)
        rewards.append(one.sample(20).rewards)
    by_hand = rewards[0] / torch.tensor(largest).clamp(min=SMALLEST_RETURN).unsqueeze(1)
    torch.testing.assert_close(rewards[1], by_hand)
    after = make_buffer(300, tasks, envs, gamma=0.5, normalize_returns=True)
    after.inherit_from(buffer)
    torch.manual_seed(0)
    assert torch.equal(after.sample(20).rewards, rewards[1])


@pytest.mark.parametrize("size", [30, 50])
def test_restore_refuses_rings_of_a_different_size(size: int) -> None:
    """A full ring does not fit a ring of a different size: some rows would be unwritten."""
    one = make_buffer(40, 1, 1)
    feeder = Feeder([0], 1)
    for _ in range(45):
        feeder.add([False], one)
    with pytest.raises(ValueError, match=r"buffer_size"):
        make_buffer(size, 1, 1).restore(*one.state())


def test_an_unfilled_buffer_is_restored_into_a_larger_one() -> None:
    one, two = make_buffer(40, 1, 1), make_buffer(50, 1, 1)
    feeder = Feeder([0], 1)
    for _ in range(35):
        feeder.add([False], one)
    two.restore(*through_a_checkpoint(*one.state()))
    assert held(two.training) == held(one.training)


def test_actions_and_observations_keep_their_places() -> None:
    """Two action dimensions and distinct observation columns come back as they went in."""
    generator = np.random.default_rng(0)
    env = TaskVecEnv("toy", [Task("only", lambda: Target(actions=2))])
    buffer = TaskReplayBuffer(5, env.observation_space, env.action_space, "cpu", num_tasks=1)
    obs, after, action = (
        generator.random((1, width), dtype=np.float32) for width in (FEATURES, FEATURES, 2)
    )
    hot = np.ones((1, 1), dtype=np.float32)

    def observed(features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([features, hot], axis=1)

    buffer.add(observed(obs), observed(after), action, np.ones(1), np.zeros(1, bool), [{}])
    batch = buffer.sample(1)
    np.testing.assert_array_equal(batch.observations[0], obs)
    np.testing.assert_array_equal(batch.next_observations[0], after)
    np.testing.assert_array_equal(batch.actions[0], action)


def test_returns_of_a_different_number_of_steps_are_refused() -> None:
    one, other = make_buffer(40, 2, 3, n_steps=3), make_buffer(40, 2, 3, n_steps=5)
    Feeder([0, 1, 0], 2).add([False] * 3, one)
    with pytest.raises(ValueError, match="n_steps: got returns of 3"):
        other.restore(*through_a_checkpoint(*one.state()))


@pytest.mark.parametrize("normalized", [False, True])
def test_normalised_returns_do_not_continue_plain_ones(normalized: bool) -> None:
    one, other = (
        make_buffer(40, 2, 3, normalize_returns=on) for on in (normalized, not normalized)
    )
    Feeder([0, 1, 0], 2).add([False] * 3, one)
    with pytest.raises(ValueError, match="normalize_returns"):
        other.restore(*through_a_checkpoint(*one.state()))


@given(st.data(), st.integers(2, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_n_step_returns_equal_those_by_hand(data: st.DataObject, n: int, envs: int) -> None:
    """Discounted sums over `n` steps of one environment, shorter only where its episode ends."""
    buffer = TaskReplayBuffer(
        400, *spaces_of(2), "cpu", envs, num_tasks=2, n_steps=n, gamma=0.5, validation_share=0.5
    )
    feeder = Feeder([env % 2 for env in range(envs)], 2)
    steps = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=envs, max_size=envs)))
    episodes: list[list[list[tuple[int, bool]]]] = [[[]] for _ in range(envs)]
    for step in steps:  # 0 ends an episode, 1 cuts it off, and the others continue
        for env, what in enumerate(step):
            episodes[env][-1].append((feeder.count + env, what == 0))
            if what <= 1:
                episodes[env].append([])
        feeder.add([what <= 1 for what in step], buffer, truncated=[what == 1 for what in step])
    expected = {}
    for of_env in episodes:
        for number, episode in enumerate(of_env):
            for start, (first, _) in enumerate(episode):
                part = episode[start : start + n]
                if len(part) < n and number == len(of_env) - 1:
                    continue  # still open
                reward = sum(2 * at * 0.5**k for k, (at, _) in enumerate(part))
                last, over = part[-1]
                expected[first] = (last + 0.5, reward, float(over), 0.5 ** len(part))
    found = {}
    for ring in (buffer.training, buffer.validation):
        for task, size in enumerate(ring.sizes):
            split = buffer._split(ring.data[task : task + 1, :size])
            assert split.discounts is not None
            columns = (split.next_observations[..., 0], split.rewards, split.dones, split.discounts)
            for row in range(size):
                first = int(split.observations[0, row, 0])
                assert feeder.task_of[first] == task
                found[first] = tuple(float(column[0, row]) for column in columns)
    assert found == expected
