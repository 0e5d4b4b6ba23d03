"""Packages that `import conal_rl.envs` must not import."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_metaworld_is_imported_only_if_needed() -> None:
    code = (
        "import sys, conal_rl.envs; conal_rl.envs.make('cartpole')\n"
        "print([m for m in ('metaworld', 'mujoco', 'conal_rl.agents') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
