"""The known names that are closest to a mistyped one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `". Did you mean 'a' or 'b'?"`, or `". Check the name"` if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=2)
    return f". Did you mean {' or '.join(map(repr, close))}?" if close else ". Check the name"
