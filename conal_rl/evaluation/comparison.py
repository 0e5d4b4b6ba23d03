"""Whether two groups of runs differ, when each run is one number and seeds are few."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conal_rl.evaluation.intervals import Interval

EQUIVALENT = 0.10
"""Success rates whose difference is smaller count as no difference."""
_NOMINAL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of group A minus the mean of group B, and how sure it is.

    A group of one run has neither an interval nor a spread; `p` is then 1.

    Attributes:
        value: The difference of the means.
        interval95: Its 95% interval, Welch's or paired t; None without one.
        interval90: Its 90% interval. It lies within +-margin exactly if two one-sided tests at 5%
            reject a difference of that size (TOST, Schuirmann 1987).
        p: The p-value of the t test that the means are equal.
        detectable: The true difference that this test shows at 5% in 80% of the cases, with these
            numbers of runs and this spread between runs; None without an interval.
    """

    value: float
    interval95: Interval | None
    interval90: Interval | None
    p: float
    detectable: float | None

    def verdict(self, p: float | None = None, margin: float = EQUIVALENT) -> str:
        """Return in words what is decided.

        Args:
            p: The p-value after a correction for several comparisons, such as `holm`'s. None: the
                comparison is the only one.
            margin: The largest difference that does not matter.
        """
        if self.interval95 is None or self.interval90 is None:
            return "not decided, because a group has fewer than two runs"
        differs = (self.p if p is None else p) < 0.05
        equal = -margin <= self.interval90[0] and self.interval90[1] <= margin
        if differs:
            return f"differs, by less than {margin:.2f}" if equal else "differs"
        if equal:
            return "no difference"
        return f"not decided, at most {max(map(abs, self.interval95)):.2f}"


def compare(a: Sequence[float], b: Sequence[float], paired: bool = False) -> Difference:
    """Compare the outcomes of two groups of runs, one number per run.

    Args:
        a, b: The outcomes of each group.
        paired: Whether `a[i]` and `b[i]` belong together, as runs of one seed do.

    Raises:
        ValueError: A group is empty, or pairs are incomplete.
    """
    if not len(a) or not len(b) or (paired and len(a) != len(b)):
        raise ValueError(f"got {len(a)} and {len(b)} runs, expected at least one, or pairs")
    x, y = np.asarray(a, float), np.asarray(b, float)
    value = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Difference(value, None, None, 1.0, None)
    if (x - y if paired else np.concatenate([x - x[0], y - y[0]])).std() == 0:  # no spread at all
        return Difference(value, (value, value), (value, value), float(value == 0), 0.0)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # outcomes of a group may be nearly equal
        test: Any = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    low, high = test.confidence_interval(0.95)
    narrow_low, narrow_high = test.confidence_interval(0.90)
    error = (high - low) / 2 / stats.t.ppf(0.975, test.df)
    return Difference(
        value,
        (float(low), float(high)),
        (float(narrow_low), float(narrow_high)),
        float(test.pvalue),
        float(error * _detectable_errors(test.df)),
    )


def _detectable_errors(degrees: float) -> float:
    """Return the true difference, in standard errors, that a t test at 5% shows in 80%."""
    from scipy import optimize, stats

    critical = stats.t.ppf(0.975, degrees)
    return float(optimize.brentq(lambda d: stats.nct.sf(critical, degrees, d) - 0.8, 0.5, 60))


def mean_over_runs(outcomes: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean over runs and its 95% t interval; None with a single run."""
    values = np.asarray(outcomes, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, (mean - half, mean + half)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (1979) for this number of comparisons, in order."""
    order = np.argsort(ps)
    adjusted = np.empty(len(ps))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def improvement(a: Sequence[float], b: Sequence[float], paired: bool = False) -> float:
    """Return the share of pairs (a run of A, a run of B) in which A is better; a tie is half.

    It is the probability of improvement (Agarwal et al., NeurIPS 2021). With `paired`, only runs
    that belong together form a pair.
    """
    return float(_improvement(np.asarray(a, float), np.asarray(b, float), paired))


def _improvement(a: NDArray[Any], b: NDArray[Any], paired: bool) -> NDArray[Any]:
    """Do so for the last axis of `(..., run)`."""
    gap = a - b if paired else (a[..., :, None] - b[..., None, :])
    axes = -1 if paired else (-2, -1)
    better: NDArray[Any] = ((gap > 0) + 0.5 * (gap == 0)).mean(axis=axes)
    return better


def improvement_interval(
    a: Sequence[float], b: Sequence[float], paired: bool = False, draws: int = 2_000
) -> Interval:
    """Return the 95% percentile bootstrap interval of `improvement`, over runs.

    With few runs it is too narrow: see `bootstrap_coverage`.
    """
    draw = _draws(np.random.default_rng(0), len(a), len(b), paired, draws)
    return _ends(draw(np.asarray(a, float)[None], np.asarray(b, float)[None]))[0]


def bootstrap_coverage(runs_a: int, runs_b: int, paired: bool = False, cases: int = 400) -> float:
    """Return how often `improvement_interval` covers the truth, which is 0.5, in a simulation.

    The outcomes of both groups have one normal distribution. A nominal interval covers 0.95.
    """
    random = np.random.default_rng(0)
    a, b = random.normal(size=(cases, runs_a)), random.normal(size=(cases, runs_b))
    ends = _ends(_draws(random, runs_a, runs_b, paired, 400)(a, b))
    return float(np.mean([low <= 0.5 <= high for low, high in ends]))


def _draws(
    random: np.random.Generator, runs_a: int, runs_b: int, paired: bool, draws: int
) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """Return a function from outcomes `(case, run)` to improvements `(case, draw)`."""
    rows = random.integers(runs_a, size=(draws, runs_a))
    columns = rows if paired else random.integers(runs_b, size=(draws, runs_b))

    def drawn(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.stack(
            [_improvement(x[rows], y[columns], paired) for x, y in zip(a, b, strict=True)]
        )

    return drawn


def _ends(values: NDArray[Any]) -> list[Interval]:
    tail = (1 - _NOMINAL) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=-1)
    return list(zip(low.tolist(), high.tolist(), strict=True))
