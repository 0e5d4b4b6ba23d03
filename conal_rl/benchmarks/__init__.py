"""The measurements and comparisons of `python -m conal_rl.benchmark`."""

import sys


def say(part: str) -> None:
    """Print on stderr which part of a benchmark begins, because each may take minutes."""
    print(f"{part}: starts", file=sys.stderr, flush=True)
