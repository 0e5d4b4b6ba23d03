"""The cost of one SAC update: `ConalSAC` on several trees, and Stable-Baselines3's own SAC.

All peers have the same hidden widths, critics with a squared error, and no layer norm. They use the
same number of transitions per update: SB3's SAC draws `tasks * batch` of them. Its observations end
in the task's one-hot too.

An update is a whole call of `train(1)`. It draws from the replay buffer, steps temperatures,
critics and actor, and moves the targets. A search also steps the gates and notices conflicts.
Matrix multiplications have single precision, except in the rows with bf16. The operations are those
of matrix multiplications, and they are counted during one update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from rich.table import Table
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from torch.utils.flop_counter import FlopCounterMode

from conal_rl.agents import ConalSAC
from conal_rl.benchmarks import say
from conal_rl.benchmarks.conflict import Step, take_turns
from conal_rl.core import Tree
from conal_rl.envs import TaskVecEnv
from conal_rl.envs.vec_env import Task

OBSERVATION, ACTION = 39, 4  # sizes in Meta-World
STORED = 2000  # transitions per task
OWN_MODULES = (0, 1, 0, 0, 2, 0, 1, 0, 3, 1)
"""The number of last modules that each of ten tasks does not share in the derived tree.

Half of the tasks stay on the trunk, and one leaves it at the start.
"""

SB3 = "SB3's SAC"
PRODUCT, PRODUCT_FLOPS = "matrix product", 2 * 2048**3


class Peer(NamedTuple):
    """One kind of update."""

    step: Step
    flops: int  # operations of one update


def measure(
    tasks: int, widths: Sequence[int], batch: int, rounds: int, seconds: float, device: str
) -> Table:
    """Return a table of all peers. The arguments are those of `benchmarks.conflict.measure`."""
    torch.manual_seed(0)
    say(f"{tasks} tasks, hidden layers {', '.join(map(str, widths))}")
    peers = make_peers(tasks, widths, batch, device)
    square = torch.randn(2, 2048, 2048, device=device)
    product = torch.empty_like(square[0])
    steps: dict[str, Step] = {name: peer.step for name, peer in peers.items()}
    steps[PRODUCT] = lambda: torch.mm(square[0], square[1], out=product)
    times = take_turns(steps, rounds, seconds, device)

    limit = PRODUCT_FLOPS / times.pop(PRODUCT)
    table = Table(
        title=f"{tasks} tasks, hidden layers {', '.join(map(str, widths))}, batch {batch} per task",
        caption=f"The limit is {limit / 1e9:,.0f} GFLOP/s, from a product of 2048x2048 float32. "
        "The supernet's update includes a gate step and conflict noticing.",
    )
    columns = ("update", "time", "time/SB3", "GFLOP", "GFLOP/SB3", "GFLOP/s", "of limit")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    sb3_flops = peers[SB3].flops
    for name, taken in times.items():
        flops = peers[name].flops
        table.add_row(
            name,
            f"{1000 * taken:,.1f} ms",
            f"{taken / times[SB3]:.2f} x",
            f"{flops / 1e9:,.3g}",
            f"{flops / sb3_flops:.2f} x",
            f"{flops / taken / 1e9:,.3g}",
            f"{flops / taken / limit:.0%}",
        )
    return table


def make_peers(tasks: int, widths: Sequence[int], batch: int, device: str) -> dict[str, Peer]:
    """Return the kinds of update by name. Each has its own replay of random transitions."""
    env = _env(tasks)
    sb3 = SAC(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": list(widths)},
        buffer_size=STORED * tasks,
        seed=0,
        device=device,
    )
    peers = {SB3: _peer(sb3, tasks * batch)}
    shared, derived = Tree.shared(env.tasks, len(widths)), derived_tree(env.tasks, len(widths))
    kinds = {
        "HPS": (shared, False),
        "derived": (derived, False),
        "supernet": (None, False),
        "HPS, bf16": (shared, True),
        "derived, bf16": (derived, True),
        "supernet, bf16": (None, True),
    }
    for name, (tree, half) in kinds.items():
        agent = ConalSAC(
            env=env,
            tree=tree,
            widths=widths,
            layer_norm=False,
            critic="mse",
            critic_reduce="min",
            mixed_precision=half,
            buffer_size=STORED,
            rule="any_pair",
            seed=0,
            device=device,
        )
        peers[name] = _peer(agent, batch)
    return peers


def derived_tree(tasks: Sequence[str], depth: int) -> Tree:
    """Return a tree like a search's. `OWN_MODULES` repeats if there are more than ten tasks."""
    points = [
        max(1, depth + 1 - OWN_MODULES[number % len(OWN_MODULES)]) for number in range(len(tasks))
    ]
    return Tree.from_branch_points(points, depth, tasks)


def _peer(agent: SAC, batch: int) -> Peer:
    agent.set_logger(configure(None, []))
    assert agent.replay_buffer is not None
    _fill(agent.replay_buffer)

    def update() -> None:
        agent.train(1, batch)

    return Peer(update, count_flops(update))


def _fill(buffer: ReplayBuffer) -> None:
    """Add `STORED` random transitions of every task, in episodes of 50 steps."""
    random = np.random.default_rng(0)
    tasks = buffer.n_envs
    task_id = np.eye(tasks)
    width = buffer.observation_space.shape[0] - tasks  # type: ignore[index]  # Box

    def observe() -> np.ndarray:
        rows = random.standard_normal((tasks, width))
        return np.concatenate([rows, task_id], axis=1, dtype=np.float32)

    for step in range(1, STORED + 1):
        actions = random.uniform(-1, 1, (tasks, buffer.action_dim)).astype(np.float32)
        rewards = random.uniform(0, 1, tasks).astype(np.float32)
        over = np.full(tasks, step % 50 == 0)
        buffer.add(observe(), observe(), actions, rewards, over, [{}] * tasks)


def count_flops(step: Step) -> int:
    """Return the operations of the matrix products in one call, two per multiply-add."""
    # The counter does not know baddbmm_, which the layers' backward pass uses.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm})
    with counter:
        step()
    return counter.get_total_flops()


def _baddbmm(added_to: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    return 2 * a.numel() * b[2]  # a is (product, row, inner), b is (product, inner, column)


class _Still(gym.Env[Any, Any]):
    """An env with Meta-World's spaces that is never stepped."""

    observation_space = Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = Box(-1, 1, (ACTION,), np.float32)


def _env(tasks: int) -> TaskVecEnv:
    return TaskVecEnv("still", [Task(f"task-{number}", _Still) for number in range(tasks)])
