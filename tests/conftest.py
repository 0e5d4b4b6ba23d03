"""Settings of all tests, and what several folders of them share."""

from typing import Any

import pytest
import torch

from conal_rl import train

torch.set_num_threads(1)  # the networks here are small: more threads would only wait for each other


@pytest.fixture
def one_line(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the train command, which must fail with status 2; returns the last line on stderr."""

    def refused(*words: str, lines: int | None = 1) -> str:
        capfd.readouterr()
        assert train.main(list(words)) == 2
        told = capfd.readouterr().err.splitlines()
        assert lines is None or len(told) == lines
        assert told[-1].startswith("error: ")
        return told[-1].removeprefix("error: ")

    return refused
