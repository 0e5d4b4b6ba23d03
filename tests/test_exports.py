"""What `import conal_rl` offers, and how little it imports for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conal_rl
from conal_rl.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("name", sorted(set(conal_rl.__all__) - {"__version__"}))
def test_exported_names_exist(name: str) -> None:
    assert callable(getattr(conal_rl, name))
    assert name in dir(conal_rl)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        conal_rl.nothing_of_that_name  # noqa: B018


def test_import_is_light() -> None:
    heavy = ["torch", "numpy", "gymnasium", "stable_baselines3", "metaworld", "matplotlib"]
    code = f"import sys, conal_rl; print(*[m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_load_run_gives_an_agent_that_acts() -> None:
    agent = conal_rl.load_run("pretrained:mt10", device="cpu")
    assert isinstance(agent, conal_rl.ConalSAC)
    observation = agent.observation_space.sample()
    observation[-10:] = [0] * 9 + [1]
    action, _ = agent.predict(observation, deterministic=True)
    assert agent.action_space.contains(action)


def test_load_run_names_a_missing_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing-run"):
        conal_rl.load_run(tmp_path / "missing-run")


def test_load_run_names_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^device: got 'gpu'"):
        conal_rl.load_run("pretrained:mt10", device="gpu")
