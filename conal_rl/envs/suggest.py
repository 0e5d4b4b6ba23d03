"""The known names that are closest to a mistyped one, for error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `". Did you mean 'a' or 'b'?"`, or `". Check the name"` if no known name is close."""
    names = list(known)
    close = [name] if name in names else difflib.get_close_matches(name, names, n=2)
    return f". Did you mean {' or '.join(map(repr, close))}?" if close else ". Check the name"


def bare_name(name: str) -> str:
    """Return a suite's or a task's name as Meta-World or gymnasium has it in this package's form.

    `Meta-World/MT10` is `mt10`, `Meta-World/reach-v3` and `mt1:reach-v3` are `reach-v3`.
    """
    bare = name.rpartition("/")[2].lower().removeprefix("mt1:")
    return re.sub(r"^(mt\d+)-v3$", r"\1", bare)
