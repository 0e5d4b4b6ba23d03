"""What `import conal_rl.envs` may not bring with it."""

import subprocess
import sys


def test_metaworld_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, conal_rl.envs; conal_rl.envs.make('cartpole')\n"
        "print([m for m in ('metaworld', 'mujoco', 'conal_rl.agents') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
