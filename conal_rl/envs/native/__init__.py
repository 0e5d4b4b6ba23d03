"""The fast Meta-World engine: metaworld 3.1.1's numbers at the speed of MuJoCo 3.3.0.

The modules build on each other, from the lowest to the highest:

- `vectors`, `rewards` and `physics` are the compiled code.
- `tasks` tells the compiled code where each task's objects are.
- `engine` has the threads, the memory and the snapshots.
- `episodes` has the goals, the horizon and the resets.
- `sb3_env` is the interface to Stable-Baselines3, and `gymnasium_env` the one to gymnasium.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from conal_rl.errors import SuiteError

EXACT_FOR = {"metaworld": "3.1.1", "mujoco": "3.3.0"}


def require_exact() -> None:
    """Check that the installed versions are the ones that the compiled code was compared with.

    Raises:
        SuiteError: The versions differ. The message names both, and the official engine.
    """
    installed = {package: _version(package) for package in EXACT_FOR}
    if installed != EXACT_FOR:
        raise SuiteError(
            f"native engine: got {_listed(installed)}, expected {_listed(EXACT_FOR)}. "
            "Install these versions, or use the official engine (--env.engine official)"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _listed(versions: dict[str, str]) -> str:
    return " with ".join(f"{package} {number}" for package, number in versions.items())
