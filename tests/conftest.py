"""Settings of all tests, and what several folders of them share."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from hypothesis import HealthCheck, settings

from conal_rl import train

settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")  # a busy machine fails no test
torch.set_num_threads(1)  # the networks here are small: more threads would only wait for each other


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Signals have their usual handlers, also if pytest began under `nohup`."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


@pytest.fixture
def one_line(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the train command, which must fail with status 2; returns the last line on stderr."""

    def refused(*words: str, lines: int | None = 1) -> str:
        capfd.readouterr()
        assert train.main(list(words)) == 2
        printed = [
            line for line in capfd.readouterr().err.splitlines() if "The run is in" not in line
        ]
        assert lines is None or len(printed) == lines
        assert printed[-1].startswith("error: ")
        return printed[-1].removeprefix("error: ")

    return refused


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder for code of users: its modules and envs are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded, registered = set(sys.modules), set(gymnasium.registry)
    yield tmp_path
    for env in set(gymnasium.registry) - registered:
        if not env.startswith("conal_rl/"):
            del gymnasium.registry[env]
    for name in set(sys.modules) - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
