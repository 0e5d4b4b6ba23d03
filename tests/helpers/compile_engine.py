"""Compiles the Meta-World engine into its cache: `python -m tests.helpers.compile_engine`."""

from __future__ import annotations

import numpy as np

from conal_rl.envs import make


def compile_engine() -> None:
    """Reset and step one env: half a minute the first time, a few seconds afterwards."""
    env = make("mt1:reach-v3")
    env.reset()
    env.step(np.zeros((1, 4), dtype=np.float32))
    env.close()


if __name__ == "__main__":
    compile_engine()
