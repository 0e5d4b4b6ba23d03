"""Comparisons of groups of runs: SciPy's tests, printed figures, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from conal_rl import benchmark, report
from conal_rl.cli import Parser, add_seeds, seed_ranges
from conal_rl.evaluation.comparison import (
    Difference,
    bootstrap_coverage,
    compare,
    holm,
    improvement,
    improvement_interval,
    mean_over_runs,
)

rates = st.floats(0, 1)
groups = st.lists(rates, min_size=2, max_size=12)


@given(groups, groups)
def test_a_difference_has_the_interval_of_its_p_value(a: list[float], b: list[float]) -> None:
    """An interval excludes 0 exactly if its test rejects equality, whoever is called A."""
    gap, back = compare(a, b), compare(b, a)
    assert gap.interval95 and gap.interval90 and back.interval95
    assert_allclose(gap.value, np.mean(a) - np.mean(b), atol=1e-12)
    assert_allclose(back.interval95, [-gap.interval95[1], -gap.interval95[0]], atol=1e-9)
    for (low, high), level in ((gap.interval95, 0.05), (gap.interval90, 0.10)):
        assert low <= gap.value <= high
        if not np.isclose(gap.p, level):
            assert (low > 0 or high < 0) == (gap.p < level)


def test_welch_is_computed_by_hand() -> None:
    """Variances 4 and 1 of 4 and 2 runs: standard error sqrt(1.5), 1.5^2 / (1/3 + 1/4) degrees."""
    a, b = [3 - 6**0.5, 3 + 6**0.5, 3.0, 3.0], [0.0, 2**0.5]
    gap = compare(a, b)
    degrees = 1.5**2 / (1 / 3 + 0.25)
    assert_allclose(gap.value, 3 - 0.5**0.5)
    assert_allclose(gap.p, 2 * stats.t.sf(gap.value / 1.5**0.5, degrees))


def test_pairs_are_the_t_test_of_their_differences() -> None:
    a, b = [0.9, 0.8, 0.6], [0.5, 0.6, 0.3]
    gap = compare(a, b, paired=True)
    mean, interval = mean_over_runs(np.subtract(a, b).tolist())
    assert interval is not None and gap.interval95 is not None
    assert_allclose([gap.value, *gap.interval95], [mean, *interval])


@pytest.mark.parametrize(
    ("a", "b", "paired", "printed"),
    [(10, 10, False, 0.12), (10, 5, False, 0.15), (5, 5, False, 0.18), (10, 10, True, 0.13)],
)
def test_the_detectable_difference_is_that_of_the_study_plan(
    a: int, b: int, paired: bool, printed: float
) -> None:
    """docs/results/study-plan.md prints them for a standard deviation of 0.09."""

    def spread(runs: int) -> list[float]:
        values = np.linspace(-1, 1, runs)
        return (0.09 * values / values.std(ddof=1)).tolist()

    x, y = spread(a), spread(b)
    if paired:  # uncorrelated, so that the difference has twice the variance
        x, y = (2**0.5 * np.array(x)).tolist(), [0.0] * b
    detectable = compare(x, y, paired).detectable
    if a != b:  # Welch has fewer degrees of freedom than the plan's pooled 13
        assert detectable == pytest.approx(printed, abs=0.012)
    else:
        assert detectable == pytest.approx(printed, abs=0.005)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.9, 0.91, 0.9], [0.5, 0.52, 0.51], "differs"),
        ([0.90, 0.91, 0.90], [0.95, 0.95, 0.96], "differs, by less than 0.10"),
        ([0.90, 0.91, 0.92], [0.91, 0.92, 0.90], "no difference"),
        ([0.9, 0.5, 0.7], [0.6, 0.9, 0.5], "not decided, at most 0.50"),
        ([1.0, 1.0], [1.0, 1.0], "no difference"),
        ([1.0, 1.0], [0.5, 0.5], "differs"),
        ([1.0], [0.5, 0.5], "not decided, because a group has fewer than two runs"),
    ],
)
def test_a_verdict_needs_the_interval_to_say_so(
    a: list[float], b: list[float], expected: str
) -> None:
    assert compare(a, b).verdict() == expected


def test_a_corrected_p_value_decides() -> None:
    gap = compare([0.9, 0.91, 0.9], [0.5, 0.52, 0.51])
    assert gap.verdict(p=0.2) == f"not decided, at most {max(map(abs, gap.interval95 or ())):.2f}"


def test_holm_is_computed_by_hand() -> None:
    assert_allclose(holm([0.04, 0.01, 0.03, 0.5]), [0.09, 0.04, 0.09, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@given(groups, groups)
def test_improvement_is_mann_whitneys_share(a: list[float], b: list[float]) -> None:
    expected = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert improvement(a, b) == pytest.approx(expected)
    low, high = improvement_interval(a, b, draws=50)
    assert 0 <= low <= high <= 1


def test_improvement_of_pairs_counts_them() -> None:
    assert improvement([1, 1, 0, 0.5], [0, 0.5, 1, 0.5], paired=True) == pytest.approx(2.5 / 4)


def test_coverage_grows_with_the_runs() -> None:
    few, many = bootstrap_coverage(2, 2), bootstrap_coverage(20, 20)
    assert few < 0.8 < 0.9 < many


def test_empty_groups_and_incomplete_pairs_are_refused() -> None:
    for a, b, paired in (([], [1.0], False), ([1.0], [1.0, 0.0], True)):
        with pytest.raises(ValueError, match="runs"):
            compare(a, b, paired)
    assert compare([1.0], [0.0]) == Difference(1.0, None, None, 1.0, None)


# Seeds


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_seeds_are_read_back_from_their_ranges(seeds: list[int]) -> None:
    parser = Parser()
    add_seeds(parser, [0])
    once = sorted(set(seeds))
    assert parser.parse_args(["--seeds", *seed_ranges(once).split()]).seeds == once
    assert parser.parse_args(["--seeds", *map(str, seeds)]).seeds == list(dict.fromkeys(seeds))
    assert parser.parse_args([]).seeds == [0]


@pytest.mark.parametrize(
    "word", ["-1", "a", "3-", "5-3", "1e3", "0-99999999999", "9" * 30, "\u0663"]
)
def test_seeds_that_are_none_are_named(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["groups", "--seeds", word]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# The command


def finished(
    folder: Path, seed: int, success: Sequence[float], steps: int = 100, agent: str = ""
) -> str:
    """A finished run of the tasks a and b."""
    folder.mkdir()
    tree = agent or "tree: shared"
    config = f"name: tiny\ntotal_steps: 1000\nseed: {seed}\nenv: {{suite: cartpole}}\n"
    (folder / "config.yaml").write_text(f"{config}agent: {{{tree}}}\n")
    rows = "time/total_timesteps,phase,success/a,success/b,time/minutes\n50,train,0,0,1\n"
    (folder / "progress.csv").write_text(rows)
    rates = dict(zip("ab", success, strict=True))
    final = {"success": rates, "steps": steps, "seconds": 60.0}
    (folder / "evaluation.json").write_text(json.dumps(final))
    return str(folder)


def pair(tmp_path: Path) -> tuple[list[str], list[str]]:
    shared = [finished(tmp_path / f"hps-{s}", s, (0.9, 0.8 + s / 100)) for s in range(3)]
    own = "tree: independent"
    single = [finished(tmp_path / f"stl-{s}", s, (0.5, 0.1), 90, own) for s in range(3)]
    return shared, single


def test_two_groups_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shared, single = pair(tmp_path)
    out = tmp_path / "out"
    assert report.main(["compare", *shared, "--", *single, "--paired", "--out", str(out)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = {words[0].strip(): [w.strip() for w in words[1:] if w.strip()] for words in lines}
    assert cells["A: HPS (3 runs)"][:2] == ["0-2", "0.855"]
    assert cells["B: STL (3 runs)"] == ["0-2", "0.300", "0.300 .. 0.300", "0.300", "0.300"]
    assert cells["b"][:3] == ["0.810", "0.100", "+0.710"]
    assert cells["difference of the means"] == ["+0.555"]
    assert cells["verdict"] == ["differs"]
    assert cells["remark"] == ["The groups have different env steps: 100, and 90."]
    assert (out / "compare.png").is_file()


def test_chosen_tasks_are_the_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared, single = pair(tmp_path)
    words = [*shared, "--", *single, "--tasks", "a", "--out", str(tmp_path / "out")]
    assert report.main(["compare", *words]) == 0
    printed = capsys.readouterr().out
    assert "+0.400" in printed and "mean success of 1 task" in printed


def test_groups_that_cannot_be_compared_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, single = pair(tmp_path)
    again = finished(tmp_path / "again", 0, (1, 1))
    broken = finished(tmp_path / "broken", 0, (1, 1))
    (Path(broken) / "evaluation.json").unlink()
    for words, error in (
        (shared, "got one group"),
        (["--", *shared], "got one group"),
        ([*shared, "--", shared[0]], "got a run twice"),
        ([*shared, "--", broken], "broken: got no evaluation.json"),
        ([*shared, "--", *single, "--tasks", "c"], "--tasks: got c, expected some of a, b"),
        ([*shared, "--", single[0], "--paired"], "--paired: got the seeds 0-2 and 0"),
        ([*shared[:1], again, "--", *single[:2], "--paired"], "--paired: got the seeds 0 0 and"),
    ):
        assert report.main(["compare", *words, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("error: ") and error in line and "\n" not in line
    assert not (tmp_path / "out").exists()
