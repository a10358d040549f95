"""Tests of this project's own claims: dense crops keep the gain of twenty crops, early stopping keeps their answers."""

from __future__ import annotations

import numpy as np

from analysis.claim_tests import (
    ALPHA,
    DENIED,
    HOLDS,
    LEVEL,
    MOST_CROPS,
    UNDECIDED,
    Finding,
    Findings,
    absent,
    mean_interval,
    of_answers,
    sign_flip,
    tallied,
)
from analysis.evidence import Evidence, Scored
from analysis.stats import KEPT_ANSWERS, KEPT_GAIN, wilson

WHOLE = f"{MOST_CROPS}RC"


@of_answers
def dense_keeps_gain(evidence: Evidence) -> Findings:
    """By network: the gain of DC less KEPT_GAIN of 20RC's, by image, where 20RC gains significantly."""
    return tallied([_dense_keeps_gain(network) for network in evidence.scored])


def _dense_keeps_gain(network: Scored) -> Finding:
    answers = network.answers
    if lacking := [policy for policy in ("CC", WHOLE, "DC") if not answers.has(policy, LEVEL)]:
        return absent(f"not scored: {', '.join(lacking)}; the network may lack dense crops", network.name)
    centre, whole, dense = (answers.right(policy, LEVEL).astype(np.int64) for policy in ("CC", WHOLE, "DC"))
    if sign_flip(whole - centre) >= ALPHA or whole.sum() <= centre.sum():
        return absent(f"{WHOLE} does not gain significantly: there is no gain to keep", network.name)
    values = 100 * ((dense - centre) - KEPT_GAIN * (whole - centre))
    low, high = mean_interval(values)
    verdict = HOLDS if low > 0 else DENIED if high < 0 else UNDECIDED
    gains = [100 * float((one - centre).mean()) for one in (dense, whole)]
    return Finding(
        network.name,
        verdict,
        float(values.mean()),
        low,
        high,
        f"points above {KEPT_GAIN:.0%} of the gain",
        test="Student's interval over images",
        images=len(values),
        note=f"DC {gains[0]:+.2f} points, {WHOLE} {gains[1]:+.2f}",
    )


@of_answers
def stopping_keeps_answers(evidence: Evidence) -> Findings:
    """By network: the share of 20RC's answers that 20RC~1% gives."""
    return tallied([_stopping_keeps_answers(network) for network in evidence.scored])


def _stopping_keeps_answers(network: Scored) -> Finding:
    answers, stopped = network.answers, f"{WHOLE}~1%"
    if lacking := [policy for policy in (WHOLE, stopped) if not answers.has(policy, LEVEL)]:
        return absent(f"not scored: {', '.join(lacking)}", network.name)
    same = answers.predicted(stopped, LEVEL) == answers.predicted(WHOLE, LEVEL)
    low, high = wilson(int(same.sum()), len(same))
    verdict = HOLDS if low >= 100 * KEPT_ANSWERS else DENIED if high < 100 * KEPT_ANSWERS else UNDECIDED
    return Finding(
        network.name,
        verdict,
        100 * float(same.mean()),
        low,
        high,
        "% of the answers kept",
        test=f"margin {KEPT_ANSWERS:.0%}, by Wilson's interval",
        images=len(same),
        note=f"{int((~same).sum())} of {len(same):,} answers differ",
    )
