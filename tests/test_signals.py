"""Signals and streams of the commands: what ends them, and what must not."""

from __future__ import annotations

import sys
import threading

import pytest

from conal_rl.streams import announced


class _Listening:
    """A stream that notes what it gets, and when."""

    def __init__(self) -> None:
        self.text, self.came = "", threading.Event()

    def write(self, text: str) -> None:
        self.text += text
        self.came.set()

    def flush(self) -> None: ...


def test_only_a_long_block_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Listening()
    monkeypatch.setattr(sys, "stderr", stream)
    with announced("It is short.", 1e5):
        pass
    assert not stream.text
    with announced("It takes long.", 0.0):
        assert stream.came.wait(60)
    assert stream.text.startswith("It takes long.")
