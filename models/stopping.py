"""Early stopping: an image is answered as soon as enough of its views have been seen.

A stopped policy is a policy with a suffix, as in ``CC+3DC+16RC~1%``. Its terms are evaluated in the order in which they
are written, one view after the other; each evaluation is a stage. A dense or whole-image term is one stage, and its
number is only the stage's weight. The answer is the weighted mean over the views seen so far.

    ``~exact``  stops when no continuation can change the top-1 class (softmax level only)
    ``~1%``     stops when the margin exceeds a threshold, calibrated so that another top-1 class than the full policy's
                has a risk of at most 1 % (Learn then Test: Angelopoulos et al., arXiv 2110.01052)
    ``~sqrt``   stops when the gap between the two best sums exceeds sqrt(n (N - n) / N); a heuristic, no guarantee

Rules need only two numbers of each image and stage, top-1 class and margin (``Running``), so all rules are scored from
one run over all views. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipelines.crops import RULES, TERMS, Policy, Views, by_size, is_dense, stream_of, view_count

Numbers = np.ndarray | float
SLACK = 1e-9  # for each unit of weight: float64 sums in another order differ by far less
HALF_CONFIDENCE = 0.975  # for each half; both bounds hold together with 95 %
# Strictest first. Fixed before any outcome is seen, as the sequence of tests requires.
THRESHOLDS = np.round(np.arange(0.995, -0.001, -0.005), 3)


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation: view number ``view`` of ``term``'s stream, or a dense term as a whole. ``prefix``: the policy of
    all views up to it."""

    term: str
    view: int
    weight: int
    prefix: Policy


@dataclass(frozen=True, slots=True)
class Rule:
    """``kind`` is "exact", "margin" or "sqrt"; ``tolerance`` is the margin rule's risk, a fraction."""

    kind: str
    tolerance: float | None = None


def rule_of(policy: Policy) -> Rule:
    """``CC+3DC~1%`` -> ``Rule("margin", 0.01)``. Raises ValueError for a policy that does not stop."""
    if not policy.suffix:
        raise ValueError(f"policy {policy} has no stopping rule")
    if policy.suffix in RULES:
        return Rule(policy.suffix)
    return Rule("margin", float(policy.suffix.removesuffix("%")) / 100)


def stages_of(policy: Policy) -> list[Stage]:
    """The stages of a policy, in the order in which it is written.

    A prefix that ends within an adaptive term counts as if the image took all its views; ``stage_weights`` says which
    stages an image has.
    """
    stages: list[Stage] = []
    before: list[tuple[str, int]] = []
    for term, n in policy.written or policy.terms:
        if is_dense(term):
            stages.append(Stage(term, 0, n, _prefix([*before, (term, n)])))
        else:
            parts = [[*before, (stream_of(term), view + 1)] for view in range(n)]
            stages += [Stage(term, view, 1, _prefix(part)) for view, part in enumerate(parts)]
        before.append((term, n))
    return stages


def _prefix(terms: list[tuple[str, int]]) -> Policy:
    return Policy(tuple(sorted(terms, key=lambda part: by_size(part[0], TERMS))))


def stage_weights(policy: Policy, uncovered: np.ndarray) -> np.ndarray:
    """float64 [b, t]: the weight of each stage, 0 where an image does not take the view (adaptive terms); ``uncovered``
    int64 [b, 2] as ``Planner.uncovered`` gives it."""
    written = dict(policy.terms)
    stages = stages_of(policy)
    weights = np.zeros((len(uncovered), len(stages)))
    for t, stage in enumerate(stages):
        count = view_count(stage.term, 1 if is_dense(stage.term) else written[stage.term], uncovered)
        weights[:, t] = np.where(stage.view < count, stage.weight, 0)
    return weights


def stage_columns(policy: Policy, views: Views) -> list[int]:
    """The column of each stage's view."""
    return [views.columns[stream_of(stage.term)][stage.view] for stage in stages_of(policy)]


@dataclass(frozen=True, slots=True)
class Running:
    """What the rules need of b images after each of t stages.

    ``top1`` int [b, t], -1 where the mean holds NaN; ``margin`` float [b, t], between the two most probable classes,
    NaN where it is not finite; ``weight`` float [b, t], of each stage, 0 for a view that an image does not take
    (adaptive policies); ``forwards`` float [b, t], forward passes of each stage (network pixels / K^2); ``full`` int
    [b], the top-1 class of the full policy.
    """

    top1: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    forwards: np.ndarray
    full: np.ndarray

    def __len__(self) -> int:
        return len(self.full)

    def take(self, rows: np.ndarray) -> Running:
        return Running(self.top1[rows], self.margin[rows], self.weight[rows], self.forwards[rows], self.full[rows])

    @staticmethod
    def concatenate(parts: Sequence[Running]) -> Running:
        """Batches of images, one after the other."""
        names = ("top1", "margin", "weight", "forwards", "full")
        return Running(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def running_means(scores: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean over the stages so far: scores [b, t, d], weight [t] or [b, t] -> float64 [b, t, d].

    NaN before the first stage of positive weight, and from the first NaN among an image's own views on.
    """
    scores = np.asarray(scores, dtype=np.float64)
    weight = np.broadcast_to(np.asarray(weight, dtype=np.float64), scores.shape[:2])
    terms = np.where(weight[..., None] > 0, scores * weight[..., None], 0.0)  # not 0 * NaN, which is NaN
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.cumsum(terms, axis=1) / np.cumsum(weight, axis=1)[..., None]


def summarize(
    probabilities: np.ndarray, weight: np.ndarray, forwards: np.ndarray, full: np.ndarray | None = None
) -> Running:
    """Top-1 classes and margins of running predictions [b, t, c], c at least 2; weight and forwards [t] or [b, t].

    ``probabilities``: at the softmax level the running means themselves, at other levels the softmax of the running
    mean logits, or of the head of the running mean features. ``full``: the full policy's top-1 from its canonical sum;
    by default that after the last stage. Raises ValueError for shapes that do not fit or negative weights.
    """
    if probabilities.ndim != 3 or probabilities.shape[2] < 2 or probabilities.shape[1] < 1:
        raise ValueError(f"running predictions are [images, stages, classes >= 2], not {list(probabilities.shape)}")
    shape = probabilities.shape[:2]
    weight = np.broadcast_to(np.asarray(weight, dtype=np.float64), shape)
    forwards = np.broadcast_to(np.asarray(forwards, dtype=np.float64), shape)
    if not (weight >= 0).all() or not (weight.sum(axis=1) > 0).all():
        raise ValueError("weights must not be negative, and each image needs a view of positive weight")
    finite = np.isfinite(probabilities).all(axis=2)
    known = np.where(finite[..., None], probabilities, 0.0)
    best = np.partition(known, -2, axis=2)[..., -2:]
    top1 = np.where(finite, known.argmax(axis=2), -1)
    margin = np.where(finite, best[..., 1] - best[..., 0], np.nan)
    last = top1[:, -1] if full is None else np.asarray(full)
    return Running(top1, margin, weight, np.where(weight > 0, forwards, 0.0), last)


@dataclass(frozen=True, slots=True)
class Stopped:
    """Per image [b]: ``stage``, the last one evaluated; the answer; the forward passes used; whether the answer is that
    of the full policy."""

    stage: np.ndarray
    top1: np.ndarray
    forwards: np.ndarray
    agrees: np.ndarray


def stop(running: Running, may_stop: np.ndarray) -> Stopped:
    """Each image stops at its first stage where ``may_stop`` bool [b, t], or else at the last of its own views, with
    the full policy's answer. A running mean that is not finite never stops an image."""
    total, seen = running.weight.sum(axis=1, keepdims=True), np.cumsum(running.weight, axis=1)
    complete = _remaining(running.weight) == 0
    early = may_stop & (running.top1 >= 0) & (seen > 0) & (total > 0) & ~complete
    stage = (early | complete).argmax(axis=1)
    images = np.arange(len(running))
    top1 = np.where(complete[images, stage], running.full, running.top1[images, stage])
    used = np.cumsum(running.forwards, axis=1)[images, stage]
    return Stopped(stage, top1, used, top1 == running.full)


def _remaining(weight: np.ndarray) -> np.ndarray:
    """[b, t] -> weight of the stages after each. Summed from the end: exactly 0 where nothing is left."""
    after = np.cumsum(weight[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([after[:, 1:], np.zeros_like(after[:, :1])], axis=1)


def _exact(margin: Numbers, seen: Numbers, left: Numbers) -> Any:
    return margin * seen > left + SLACK * (seen + left)


def _square_root(margin: Numbers, seen: Numbers, left: Numbers) -> Any:
    return margin * seen > np.sqrt(seen * left / (seen + left))


def may_stop(rule: Rule, margin: float, seen: float, left: float, threshold: float | None = None) -> bool:
    """Whether an image whose views of weight ``seen`` leave this margin may stop, with a weight of ``left`` to come;
    ``threshold``: the margin rule's."""
    if rule.kind == "margin":
        assert threshold is not None, "a risk needs a calibrated threshold"
        return margin > threshold
    return bool({"exact": _exact, "sqrt": _square_root}[rule.kind](margin, seen, left))


def exact(running: Running) -> np.ndarray:
    """Where no continuation can change the top-1 class: bool [b, t], for probabilities of the softmax level.

    A view's scores lie in [0, 1], so the remaining views can shrink the gap between two classes' weighted sums by no
    more than their weight.
    """
    seen = np.cumsum(running.weight, axis=1)
    return _exact(running.margin, seen, _remaining(running.weight))


def can_stop_exactly(weight: np.ndarray) -> np.ndarray:
    """For each image of weight [b, t] (or [t]), whether ``exact`` can ever save a stage. For ``CC+3DC`` it cannot: the
    dense term outweighs the centre crop."""
    weight = np.atleast_2d(np.asarray(weight, dtype=np.float64))
    left = _remaining(weight)
    possible = np.cumsum(weight, axis=1) > left + SLACK * weight.sum(axis=1, keepdims=True)
    return (possible & (left > 0)).any(axis=1)


def square_root(running: Running) -> np.ndarray:
    """Gap between the weighted sums above sqrt(n (N - n) / N), n of the weight N seen: bool [b, t]. No guarantee: about
    the spread of the remaining sum if views were independent."""
    return _square_root(running.margin, np.cumsum(running.weight, axis=1), _remaining(running.weight))


def margin_above(running: Running, threshold: float) -> np.ndarray:
    """Where the margin of the running mean is strictly above the threshold: bool [b, t]."""
    return running.margin > threshold


def upper_bound(wrong: np.ndarray | int, images: int) -> np.ndarray:
    """One-sided exact binomial bound on a rate (Clopper and Pearson, 1934), for each number of wrong images."""
    wrong = np.asarray(wrong)
    inside = np.minimum(wrong, images - 1)
    return np.where(wrong >= images, 1.0, stats.beta.ppf(HALF_CONFIDENCE, inside + 1, images - inside))


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one half of the images shows. ``threshold`` None: nothing could be certified, and then ``images_needed``
    says how many images a half would have to hold at the same rate of disagreement; None where no number would do."""

    images: int
    threshold: float | None
    wrong: int
    bound: float
    images_needed: int | None


def certify(running: Running, tolerance: float) -> Certificate:
    """Test the thresholds one after the other, strictest first, up to the first whose bound exceeds the tolerance.

    Learn then Test with fixed-sequence testing: each test has the level 2.5 %, and so has the whole sequence.
    """
    images = len(running)
    wrong = disagreements(running)
    bounds = upper_bound(wrong, images)
    passed = int(np.logical_and.accumulate(bounds <= tolerance).sum())
    if passed:
        last = passed - 1
        return Certificate(images, float(THRESHOLDS[last]), int(wrong[last]), float(bounds[last]), None)
    needed = images_needed(int(wrong[0]), images, tolerance)
    return Certificate(images, None, int(wrong[0]), float(bounds[0]), needed)


def disagreements(running: Running) -> np.ndarray:
    """For each of ``THRESHOLDS``, how many images ``stop`` would answer otherwise than the full policy: int64.

    An image stops at a stage for the thresholds from the highest margin before it up to, and without, its own.
    """
    early = (np.cumsum(running.weight, axis=1) > 0) & (_remaining(running.weight) > 0) & (running.top1 >= 0)
    margin = np.where(early & np.isfinite(running.margin), running.margin, -1.0)
    highest = np.maximum.accumulate(margin, axis=1)
    before = np.concatenate([np.full_like(highest[:, :1], -1.0), highest[:, :-1]], axis=1)
    counted = (margin > before) & (running.top1 != running.full[:, None])
    rising = THRESHOLDS[::-1]
    edges = np.zeros(len(rising) + 1, dtype=np.int64)
    np.add.at(edges, np.searchsorted(rising, before[counted]), 1)
    np.add.at(edges, np.searchsorted(rising, margin[counted]), -1)
    return np.cumsum(edges)[:-1][::-1]


def images_needed(wrong: int, images: int, tolerance: float) -> int | None:
    """The least number of images in a half whose bound would meet the tolerance at this rate of disagreement.

    None where the rate itself does not meet it. Without a disagreement, 1 % needs 368.
    """
    if wrong == 0:
        return math.ceil(math.log(1 - HALF_CONFIDENCE) / math.log(1 - tolerance))
    rate = wrong / images
    if rate >= tolerance:
        return None
    enough = 2 * images
    while upper_bound(math.ceil(rate * enough), enough) > tolerance:
        enough *= 2
    low = 1
    while low < enough:
        middle = (low + enough) // 2
        if upper_bound(math.ceil(rate * middle), middle) > tolerance:
            low = middle + 1
        else:
            enough = middle
    return enough


def second_half(names: Sequence[str], seed: int) -> np.ndarray:
    """bool [b]: which half an image belongs to, from its name and the seed alone, so that order does not matter."""
    return np.array([hashlib.blake2b(f"{seed} {name}".encode()).digest()[0] & 1 for name in names], dtype=bool)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The margin rule on images whose halves calibrate each other. ``halves``: the certificates of the first half and
    of the second; each image was scored with the other half's. ``fallback`` says what was done without a threshold."""

    stopped: Stopped
    halves: tuple[Certificate, Certificate]
    fallback: str | None

    @property
    def threshold(self) -> float | None:
        """For other images: the stricter of the two, so that it holds whenever both do; None unless both exist."""
        first, second = (half.threshold for half in self.halves)
        return None if first is None or second is None else max(first, second)


def stop_at(running: Running, threshold: float) -> Stopped:
    """All images stopped at one threshold of the margin, as ``models.early_stopping`` stops them."""
    return stop(running, margin_above(running, threshold))


def calibrate(running: Running, second: np.ndarray, tolerance: float, level: str) -> Calibrated:
    """Score each half (``second`` bool [b]) with the threshold that the other half certifies, jointly with 95 %.

    Where the other half certifies nothing, the softmax level falls back to ``exact``, other levels do not stop. Raises
    ValueError for a tolerance outside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"a tolerance of {tolerance} is not between 0 and 1")
    halves = (certify(running.take(~second), tolerance), certify(running.take(second), tolerance))
    otherwise = exact(running) if level == "softmax" else np.zeros(running.margin.shape, dtype=bool)
    may_stop = np.zeros(running.margin.shape, dtype=bool)
    for rows, half in ((second, halves[0]), (~second, halves[1])):
        may_stop[rows] = otherwise[rows] if half.threshold is None else margin_above(running, half.threshold)[rows]
    fallback = None
    lacking = [half for half in halves if half.threshold is None]
    if lacking:
        needed = [half.images_needed for half in lacking]
        would_do = (
            "no number of images would do at this rate of disagreement"
            if None in needed
            else f"{max(n for n in needed if n is not None)} images in each half would do"
        )
        instead = "~exact is used instead" if level == "softmax" else "these images are not stopped"
        fallback = f"a risk of {tolerance:.3g} cannot be certified from {len(running)} images: {instead}; {would_do}"
    return Calibrated(stop(running, may_stop), halves, fallback)
