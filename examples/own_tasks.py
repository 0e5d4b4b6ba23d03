"""Your own gymnasium environments as tasks, trained by the same command as MT10.

Run it with `python examples/own_tasks.py`; it takes less than a minute, too short to learn much.
The run's folder is in `runs/`.
"""

from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

from conal_rl import train


class HeavyPendulum(PendulumEnv):
    """A pendulum of three times the mass."""

    def __init__(self) -> None:
        super().__init__()
        self.m = 3.0


gymnasium.register("HeavyPendulum-v0", HeavyPendulum, max_episode_steps=200)

CONFIG = """
total_steps: 1_600
env: {suite: [Pendulum-v1, HeavyPendulum-v0]}
agent:
  widths: [32, 32]
  batch_size: 32
  learning_starts: 100
  reward_scale: 0.1
  critic_range: [-100, 10]  # lowest and highest scaled return
search: {steps: 1_000}
evaluation: {episodes: 2}
"""
Path("pendulums.yaml").write_text(CONFIG, encoding="utf-8")
raise SystemExit(train.main(["pendulums.yaml", "--seed", "1"]))
