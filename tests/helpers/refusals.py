"""Errors asserted by their type and by the fields, paths and values that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], *parts: object) -> Iterator[None]:
    """The block must raise `error`, whose message is one line and contains all `parts`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in {message!r}"
