"""Runs that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conal_rl import train
from conal_rl.runs.checkpoints import load_checkpoint
from tests.helpers.toy_runs import CONFIG, stop_at


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's own YAML file."""
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


@pytest.fixture(scope="session")
def finished(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that searched, derived, trained and evaluated; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([toy, "--out", str(folder), "--seed", "3"]) == 0
    return folder


@pytest.fixture(scope="session")
def stopped(toy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that Ctrl-C ended, by the phase in which it came."""
    folders = {}
    for phase, step in (("search", 96), ("train", 248)):
        folders[phase] = tmp_path_factory.mktemp("runs") / phase
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main([toy, "--out", str(folders[phase])]) == 130
        assert load_checkpoint(folders[phase], groups=[])[1]["phase"] == phase
    return folders
