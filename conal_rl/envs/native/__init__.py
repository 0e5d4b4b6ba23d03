"""The fast Meta-World engine: metaworld 3.1.1's numbers at the speed of MuJoCo 3.3.0.

From below: `vectors`, `rewards`, `physics` (compiled), `tasks` (what they must know of a task),
`engine` (threads, memory, snapshots), `episodes` (goals, horizon, resets), and on top `vec_env`
for Stable-Baselines3 and `vector_env` for gymnasium.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from conal_rl.errors import SuiteError

EXACT_FOR = {"metaworld": "3.1.1", "mujoco": "3.3.0"}


def require_exact() -> None:
    """Refuse versions whose numbers the compiled code was not compared with.

    Raises:
        SuiteError: In one line, the versions it is exact for, and what to do.
    """
    found = {package: _version(package) for package in EXACT_FOR}
    if found != EXACT_FOR:
        raise SuiteError(
            f"the native engine is exact for {_listed(EXACT_FOR)}, not for {_listed(found)}: "
            "install those, or use the official engine (--env.engine official)"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _listed(versions: dict[str, str]) -> str:
    return " with ".join(f"{package} {number}" for package, number in versions.items())
