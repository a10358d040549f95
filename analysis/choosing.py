"""Choosing among settings that were scored on the same images, and saying honestly how good the choice is.

The images are parted by their names: one part chooses, the other reports (``parts``). On the first, settings that are
significantly worse than the best are dropped; on the second, which played no part in that, the chosen one is compared
with those that are left. All intervals of one comparison hold together, with 98 % in each of the two steps, and
99 % in a screening before them (analysis.screening): a difference that is not there is claimed in at most 5 of 100
searches.

Critical values are quantiles of the largest standardised difference, simulated from the settings' own covariance, for
their answers depend on one another (Hothorn, Bretz, Westfall 2008, Biometrical Journal 50, 346; Hsu 1996, Multiple
Comparisons, chapter 4, for comparisons with the best). Both steps go down: what is told apart is taken out, and the
rest is compared again with the smaller critical value of fewer comparisons, which errs no more often (Romano, Wolf
2005, JASA 100, 94). Intervals and tests are those of paired answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from scipy.stats import norm

from analysis.stats import mcnemar, paired_difference

LEVEL = 0.02  # of each of the two steps
SCREENING_LEVEL = 0.01
DRAWS = 4000
POWER = 0.8  # with which the images that "would do" tell two settings apart
MOST_IMAGES = 10_000_000  # beyond, no number of images is named


@dataclass(frozen=True, slots=True)
class Difference:
    """Top-1 of the chosen setting less another's, points, with the interval that holds for all of them together.

    It ends at 0 where the two are told apart only after others had been.
    """

    difference: float
    low: float
    high: float
    newly_correct: int  # by the chosen one
    newly_wrong: int
    p_value: float  # exact McNemar test, of this pair alone
    images_needed: int | None  # to tell the two apart; None where they are told apart, or no number would do
    is_tie: bool  # not told apart


def parts(names: Sequence[str], seed: int = 0) -> np.ndarray:
    """bool [b]: which images choose; the others report. A function of seed and name only, so that a larger set of
    images leaves each one where it was."""
    digests = (hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=1) for name in names)
    return np.array([digest.digest()[0] % 2 == 0 for digest in digests], dtype=bool)


def not_worse(right: np.ndarray) -> tuple[int, np.ndarray]:
    """The best of some settings on the images that choose, and which of them are not significantly worse.

    ``right`` bool [k, b]. Returns the index of the best (the first of equal ones) and bool [k]. A setting that is as
    good as the best is dropped in at most LEVEL of all searches, wherever the best was found.
    """
    left = np.arange(len(right))
    while True:
        best, p_values, level = behind_best(right[left], np.ones(len(left), dtype=bool), np.zeros(len(left)), LEVEL)
        if (p_values > level).all():
            return int(left[best]), np.isin(np.arange(len(right)), left)
        left = left[p_values > level]


def behind_best(
    right: np.ndarray, may_be_best: np.ndarray, credit: np.ndarray, level: float
) -> tuple[int, np.ndarray, float]:
    """How sure it is that each setting is worse than the best.

    ``right`` bool [k, b]; ``may_be_best`` bool [k]; ``credit`` [k]: so many points each is given before it is compared.
    Returns the index of the best, the p values [k] of the exact McNemar test (1 where a setting is not behind), and the
    level of each for which all hold together with 1 - ``level``, wherever the best was found. (An interval by Newcombe
    would be far too wide here: at such levels Wilson's, of which it consists, reach 15 points down from 96 % of 100
    images.)
    """
    allowed = np.flatnonzero(may_be_best)
    best = int(allowed[right[allowed].sum(1).argmax()])
    if len(right) == 1:
        return best, np.ones(1), level
    given = np.ceil(credit / 100 * right.shape[1]).astype(int)
    newly_correct = (right[best] & ~right).sum(1) - given
    newly_wrong = (right & ~right[best]).sum(1)
    p_values = [mcnemar(int(a), int(b)) if a > b else 1.0 for a, b in zip(newly_correct, newly_wrong, strict=True)]
    return best, np.array(p_values), float(2 * norm.sf(_critical_value(right, None, level)))


def differences(right: np.ndarray, chosen: int) -> list[Difference]:
    """The chosen setting against each other one, in order, on images that did not choose; intervals hold together with
    1 - LEVEL. ``right`` bool [k, b]."""
    left = [i for i in range(len(right)) if i != chosen]
    found: dict[int, Difference] = {}
    widest: dict[int, tuple[float, float]] = {}  # the intervals of all comparisons together
    while left:
        critical = _critical_value(right[[chosen, *left]], 0)
        now = {i: _difference(right[chosen], right[i], critical) for i in left}
        widest = widest or {i: (one.low, one.high) for i, one in now.items()}
        found |= now
        still = [i for i in left if now[i].is_tie]
        if len(still) == len(left):
            break
        left = still
    return [_within(found[i], *widest[i]) for i in sorted(found)]


def _within(found: Difference, low: float, high: float) -> Difference:
    """The difference with the interval of all comparisons; it ends at 0 where that one holds 0 and the two are told
    apart."""
    if not found.is_tie:
        low, high = (max(low, 0.0), high) if found.difference > 0 else (low, min(high, 0.0))
    return replace(found, low=low, high=high)


def expected_loss(right: np.ndarray, chosen: int) -> float:
    """Points of top-1 that the chosen setting is expected to lose against the best of all, whichever that is: the mean
    over the normal distribution of the settings' true differences, given these images."""
    base = right.astype(np.float64)
    ahead = base.mean(1) - base[chosen].mean()
    drawn = ahead + _errors(base - base[chosen], DRAWS)
    return float(100 * np.maximum(drawn.max(1), 0).mean())


def _critical_value(right: np.ndarray, chosen: int | None, level: float = LEVEL) -> float:
    """The 1 - ``level`` quantile of the largest |difference| in standard errors, were all settings equal: against one
    that was ``chosen`` beforehand, or (None) against the one that happens to be best."""
    values = right.astype(np.float64)
    drawn = _errors(values, DRAWS)
    against = drawn.argmax(1) if chosen is None else np.full(DRAWS, chosen)
    covariance = np.atleast_2d(np.cov(values, bias=True)) / values.shape[1]
    variance = np.diag(covariance)
    spread = np.sqrt(np.maximum(variance[against][:, None] + variance[None] - 2 * covariance[against], 0))
    ahead = np.abs(drawn[np.arange(DRAWS), against][:, None] - drawn)
    # Settings with the very same answers never differ: 0 / 0.
    standardised = np.divide(ahead, spread, out=np.zeros_like(ahead), where=spread > 1e-12)
    return float(np.quantile(standardised.max(1), 1 - level))


def _errors(values: np.ndarray, draws: int) -> np.ndarray:
    """Errors of the rows' means [draws, k], normal with the covariance of the means of ``values`` [k, b].

    Of fewer images than settings: the images' deviations, each times a normal number (the multiplier bootstrap), for a
    k x k matrix of thousands of settings takes long to decompose; else from the covariance, for the numbers of many
    images do not fit into memory. Both have the same distribution.
    """
    rng = np.random.default_rng(0)
    settings, images = values.shape
    if images < settings:
        centred = values - values.mean(1, keepdims=True)
        return rng.standard_normal((draws, images)) @ centred.T / images
    scale, vectors = np.linalg.eigh(np.atleast_2d(np.cov(values, bias=True)) / images)
    return (rng.standard_normal((draws, settings)) * np.sqrt(np.maximum(scale, 0))) @ vectors.T


def _difference(chosen: np.ndarray, other: np.ndarray, critical: float) -> Difference:
    """With Newcombe's interval, at the confidence that the critical value stands for."""
    newly_correct, newly_wrong = int((chosen & ~other).sum()), int((other & ~chosen).sum())
    n = len(chosen)
    confidence = float(1 - 2 * norm.sf(max(critical, norm.isf(LEVEL / 2))))
    low, high = paired_difference(newly_correct, newly_wrong, int(chosen.sum()), n, confidence)
    difference = (newly_correct - newly_wrong) / n
    needed = None
    if low <= 0 <= high and difference:
        variance = (newly_correct + newly_wrong) / n - difference**2
        images = (critical + norm.ppf(POWER)) ** 2 * variance / difference**2
        needed = ceil(images) if images <= MOST_IMAGES else None
    return Difference(
        100 * difference,
        low,
        high,
        newly_correct,
        newly_wrong,
        mcnemar(newly_correct, newly_wrong),
        needed,
        low <= 0 <= high,
    )
