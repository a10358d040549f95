"""Statistics against published examples, written-out formulas, exact sums and simulation.

References: Newcombe (1998a), Statist. Med. 17, 857 (one share), Table I; Newcombe (1998b), Statist. Med. 17, 2635
(paired shares), method 10; Fagerland, Lydersen and Laake (2014), Statist. Med. 33, 2850, whose example is Bentur's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from analysis import stats

# ---------------------------------------------------------------------------------------------------------- one share


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_examples(successes: int, trials: int, low: float, high: float) -> None:
    assert stats.wilson(successes, trials) == pytest.approx((100 * low, 100 * high), abs=0.0051)


@pytest.mark.parametrize(("successes", "trials"), [(1, 29), (720, 1000), (41_234, 50_000), (28, 29)])
def test_wilsons_ends_are_where_the_score_test_turns(successes: int, trials: int) -> None:
    share = successes / trials
    for end in stats.wilson(successes, trials):
        p = end / 100
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / trials), rel=1e-5)


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (centre - half), 100 * (centre + half)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (7, 10), (720, 1000), (34880, 50000)])
def test_wilson_is_the_formula(k: int, n: int) -> None:
    assert stats.wilson(k, n) == pytest.approx(wilson_by_hand(k, n), abs=1e-9)


# ------------------------------------------------------------------------------------------------------ paired shares


def binomial_p_value(newly_correct: int, newly_wrong: int) -> float:
    """Two-sided: all splits of the changed images that are no likelier than this one."""
    n = newly_correct + newly_wrong
    weights = [math.comb(n, k) for k in range(n + 1)]
    return float(Fraction(sum(w for w in weights if w <= weights[newly_correct]), 2**n))


@pytest.mark.parametrize(
    ("newly_correct", "newly_wrong"), [(0, 1), (1, 0), (5, 0), (7, 1), (12, 2), (30, 30), (31, 30), (140, 97)]
)
def test_mcnemar_is_a_sum_of_binomials(newly_correct: int, newly_wrong: int) -> None:
    assert stats.mcnemar(newly_correct, newly_wrong) == pytest.approx(
        binomial_p_value(newly_correct, newly_wrong), rel=1e-9
    )
    assert stats.mcnemar(newly_wrong, newly_correct) == pytest.approx(
        stats.mcnemar(newly_correct, newly_wrong), rel=1e-12
    )


def test_mcnemar_of_nothing_changed_is_one() -> None:
    assert stats.mcnemar(0, 0) == 1.0


def test_mcnemar_gives_the_published_example() -> None:
    assert stats.mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)  # Bentur's children: 18/256


@pytest.mark.parametrize(
    ("both", "newly_correct", "newly_wrong", "neither", "low", "high"),
    [
        (36, 12, 2, 0, 0.0569, 0.3404),  # the first four: Newcombe (1998b)
        (18, 12, 2, 18, 0.0562, 0.3290),
        (53, 0, 0, 1, -0.0729, 0.0729),
        (0, 30, 0, 0, 0.8395, 1.0),
        (1, 1, 7, 12, -0.507, -0.026),  # Fagerland and others (2014)
    ],
)
def test_the_paired_interval_gives_the_published_examples(
    both: int, newly_correct: int, newly_wrong: int, neither: int, low: float, high: float
) -> None:
    found = stats.paired_difference(
        newly_correct, newly_wrong, both + newly_correct, both + newly_correct + newly_wrong + neither
    )
    digits = 3 if low == -0.507 else 4
    assert found == pytest.approx((100 * low, 100 * high), abs=51 * 10.0**-digits)


@pytest.mark.parametrize(
    ("n", "both", "newly_correct", "newly_wrong"),
    [(1000, 0.66, 0.05, 0.03), (300, 0.8, 0.02, 0.05), (100, 0.3, 0.2, 0.2)],
)
def test_the_paired_interval_covers_the_truth_in_95_of_100_samples(
    n: int, both: float, newly_correct: float, newly_wrong: float
) -> None:
    samples = np.random.default_rng(n).multinomial(
        n, [both, newly_correct, newly_wrong, 1 - both - newly_correct - newly_wrong], size=500
    )
    truth = 100 * (newly_correct - newly_wrong)
    intervals = [stats.paired_difference(f, b, a + f, n) for a, f, b, _ in samples.tolist()]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98  # four standard errors about the method's own 0.95 to 0.96


def tables(n: int) -> Iterator[tuple[int, int, int, int]]:
    """Every way to be right with both, newly_correct, newly_wrong, wrong with both."""
    for both in range(n + 1):
        for newly_correct in range(n + 1 - both):
            for newly_wrong in range(n + 1 - both - newly_correct):
                yield both, newly_correct, newly_wrong, n - both - newly_correct - newly_wrong


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_paired_interval_of_every_small_table_holds_its_estimate_and_changes_sign_with_it(n: int) -> None:
    for both, newly_correct, newly_wrong, _ in tables(n):
        low, high = stats.paired_difference(newly_correct, newly_wrong, both + newly_correct, n)
        assert isinstance(low, float) and isinstance(high, float)
        assert -100 - 1e-9 <= low <= 100 * (newly_correct - newly_wrong) / n <= high <= 100 + 1e-9
        other = stats.paired_difference(newly_wrong, newly_correct, both + newly_wrong, n)
        assert other == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("correct", [0, 1, 500, 1000])
def test_nothing_changed_is_an_interval_about_zero(correct: int) -> None:
    low, high = stats.paired_difference(0, 0, correct, 1000)
    assert low == pytest.approx(-high) and 0 < high < 1


def test_a_larger_sample_narrows_the_paired_interval() -> None:
    widths = [np.diff(stats.paired_difference(4 * k, 2 * k, 70 * k, 100 * k))[0] for k in (1, 10, 100)]
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(10**0.5, rel=0.05)
