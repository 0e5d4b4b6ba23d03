"""Multi-task reinforcement learning whose networks learn their own sharing structure (CoNAL)."""

__version__ = "0.1.0"
