"""The statistics of every table and figure, over SciPy. Shares are in percent, differences in percentage points.

Intervals are 95 % intervals; they are not corrected for multiple comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

CONFIDENCE = 0.95
KEPT_GAIN = 0.9  # share of the gain of the largest nRC that dense crops must keep
KEPT_ANSWERS = 0.99  # share of the whole policy's answers that a stopped one must keep


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a share, percent; of 95 % unless another confidence is asked for."""
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mcnemar(newly_correct: int, newly_wrong: int) -> float:
    """p value of the exact two-sided McNemar test: a sign test over the images on which exactly one of the two is
    right. 1.0 when there is none."""
    changed = newly_correct + newly_wrong
    return float(binomtest(newly_correct, changed, 0.5).pvalue) if changed else 1.0


def paired_difference(
    newly_correct: int, newly_wrong: int, correct: int, n: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval (95 % by default) of the difference of two paired shares, in points: Newcombe (1998), Statist. Med. 17,
    2635, method 10.

    ``correct`` of ``n`` images are right with the policy; ``correct - newly_correct + newly_wrong`` were right with
    the baseline.
    """
    p1, p2 = correct / n, (correct - newly_correct + newly_wrong) / n
    (l1, u1), (l2, u2) = ([x / 100 for x in wilson(round(p * n), n, confidence)] for p in (p1, p2))
    a = correct - newly_correct  # right with both
    d = n - a - newly_correct - newly_wrong  # wrong with both
    margins = (a + newly_correct) * (newly_wrong + d) * (a + newly_wrong) * (newly_correct + d)
    determinant = float(a * d - newly_correct * newly_wrong)
    if determinant > 0:  # continuity correction, as the paper has it
        determinant = max(determinant - n / 2, 0.0)
    phi = determinant / margins**0.5 if margins else 0.0
    delta = p1 - p2
    low = ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2) ** 0.5
    high = ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2) ** 0.5
    return 100 * (delta - low), 100 * (delta + high)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two shares of right answers on the same images; ``difference``: of the first over the second, in points, with its
    interval ``low``, ``high``."""

    newly_correct: int  # right only with the first
    newly_wrong: int  # right only with the second
    difference: float
    low: float
    high: float

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test."""
        return mcnemar(self.newly_correct, self.newly_wrong)


def paired(mine: np.ndarray, theirs: np.ndarray, confidence: float = CONFIDENCE) -> Paired:
    """Compare right answers (bool [b], one or more) with those of a baseline on the same images."""
    newly_correct, newly_wrong = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    low, high = paired_difference(newly_correct, newly_wrong, int(mine.sum()), len(mine), confidence)
    return Paired(newly_correct, newly_wrong, 100 * (newly_correct - newly_wrong) / len(mine), low, high)
