"""Multi-task SAC on Stable-Baselines3, with networks that learn what to share."""

from conal_rl.agents.policies import ConalPolicy
from conal_rl.agents.replay import TaskBatch, TaskReplayBuffer
from conal_rl.agents.sac import ConalSAC

__all__ = ["ConalPolicy", "ConalSAC", "TaskBatch", "TaskReplayBuffer"]
