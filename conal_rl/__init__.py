"""Multi-task reinforcement learning whose networks learn their own sharing structure (CoNAL).

The names below are imported when they are first used, so that `import conal_rl` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conal_rl.version import __version__

if TYPE_CHECKING:
    from conal_rl.agents import ConalSAC
    from conal_rl.agents.experiment import load_run
    from conal_rl.core import Tree
    from conal_rl.envs import make
    from conal_rl.evaluation import evaluate_policy

__all__ = ["ConalSAC", "Tree", "__version__", "evaluate_policy", "load_run", "make"]

_HOMES = {
    "ConalSAC": "conal_rl.agents",
    "Tree": "conal_rl.core",
    "evaluate_policy": "conal_rl.evaluation",
    "load_run": "conal_rl.agents.experiment",
    "make": "conal_rl.envs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
