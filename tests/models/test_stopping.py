"""Stopping rules against all possible continuations, against the full policy, and against outcomes of known risk."""

import itertools

import numpy as np
import pytest
from scipy import stats

from models import stopping
from models.stopping import Rule, Running
from pipelines.crops import parse_policy, union


def softmax_scores(rng, images, stages, classes, scale=2.0):
    logits = rng.normal(0, scale, (images, 1, classes)) + rng.normal(0, 1, (images, stages, classes))
    e = np.exp(logits)
    return e / e.sum(-1, keepdims=True)


def summarized(scores, weight, full=None):
    return stopping.summarize(stopping.running_means(scores, weight), weight, np.ones(scores.shape[1]), full)


def test_suffixes():
    assert stopping.rule_of(parse_policy("CC+3DC~1%")) == Rule("margin", 0.01)
    assert stopping.rule_of(parse_policy("20RC~exact")) == Rule("exact")
    with pytest.raises(ValueError, match="no stopping rule"):
        stopping.rule_of(parse_policy("20RC"))


def test_stages_follow_the_policy_as_written():
    stages = stopping.stages_of(parse_policy("2RC+CC+3dc~exact"))
    assert [(stage.term, stage.view, stage.weight, stage.prefix.name) for stage in stages] == [
        ("RC", 0, 1, "1RC"),
        ("RC", 1, 1, "2RC"),
        ("CC", 0, 1, "CC+2RC"),
        ("DC", 0, 3, "CC+2RC+3DC"),
    ]
    assert [stage.weight for stage in stopping.stages_of(parse_policy("CC+3DC+16RC~1%"))] == [1, 3] + [1] * 16


def test_stages_of_an_adaptive_policy():
    """An image whose shape asks for 2 of up to 3 random crops: the third stage weighs nothing, the prefixes after the
    term are of the term itself."""
    policy = parse_policy("3ARC+3DC~exact")
    assert [stage.prefix.name for stage in stopping.stages_of(policy)] == ["1RC", "2RC", "3RC", "3ARC+3DC"]
    uncovered = np.array([[40, 100], [0, 100], [99, 100]])
    assert stopping.stage_weights(policy, uncovered).tolist() == [[1, 1, 0, 3], [1, 0, 0, 3], [1, 1, 1, 3]]
    views = union([policy, parse_policy("CC")])
    assert stopping.stage_columns(policy, views) == [1, 2, 3, 4]


def test_exact_against_all_continuations():
    """On a grid of quarters every continuation can be listed. Exact must stop where no continuation ties or wins, and
    must not where the worst continuation, which the grid holds, changes the class."""
    quarters = [np.array(p) / 4 for p in itertools.product(range(5), repeat=3) if sum(p) == 4]
    for weight in ([1.0, 1.0, 1.0], [3.0, 1.0, 1.0], [1.0, 2.0, 0.0], [1.0, 3.0, 1.0]):
        w = np.array(weight)
        for seen in (1, 2):
            for views in itertools.product(quarters, repeat=seen):
                scores = np.stack([*views, *[quarters[0]] * (3 - seen)])[None]
                may_stop = stopping.exact(summarized(scores, w))[0, seen - 1]
                sums = sum(v * x for v, x in zip(views, w, strict=False))
                best = int(np.argmax(sums))
                ends = [
                    sums + sum(v * x for v, x in zip(rest, w[seen:], strict=True))
                    for rest in itertools.product(quarters, repeat=3 - seen)
                ]
                safe = all(end[best] > np.delete(end, best).max() for end in ends)
                assert may_stop == safe


@pytest.mark.parametrize("seed", range(5))
def test_exact_keeps_every_decision(seed):
    rng = np.random.default_rng(seed)
    scores = softmax_scores(rng, 400, 12, 4)
    scores[:40] = np.round(scores[:40] * 4) / 4  # ties
    scores[40:60] = scores[40:60, :1]  # all views alike
    scores[60:70] = 0.25  # nothing but ties
    weight = np.where(np.arange(12) < rng.integers(1, 13, (400, 1)), 1.0, 0.0)
    weight[:100] *= rng.integers(1, 4, 12)
    scores[70:90, 3:] = np.where(weight[70:90, 3:, None] > 0, scores[70:90, 3:], np.nan)  # views that are not taken
    running = summarized(scores, weight)
    full = (np.nan_to_num(scores) * weight[..., None]).sum(1).argmax(1)
    running = summarized(scores, weight, full)
    stopped = stopping.stop(running, stopping.exact(running))
    assert stopped.agrees.all()
    assert (stopped.top1 == full).all()
    assert stopped.forwards.mean() < 0.9 * (weight > 0).sum(1).mean()
    assert (stopped.forwards <= (weight > 0).sum(1)).all()


def test_exact_is_strict():
    """A gap equal to the remaining weight may still end in a tie."""
    scores = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    assert not stopping.exact(summarized(scores, np.array([1.0, 1.0])))[:, 0].any()
    assert stopping.exact(summarized(scores, np.array([1.0, 0.999])))[:, 0].all()


def test_where_exact_can_never_stop():
    def can(text):
        return bool(
            stopping.can_stop_exactly(
                np.array([stage.weight for stage in stopping.stages_of(parse_policy(f"{text}~exact"))])
            )[0]
        )

    assert not can("CC+3DC") and not can("CC") and not can("2RC")
    assert can("3DC+CC") and can("3RC") and can("CC+3DC+2RC")


def test_nan_never_stops_and_counts_as_disagreement():
    scores = np.tile([0.99, 0.01], (3, 4, 1))
    scores[0, 0] = np.nan  # seen first: the image goes on to its end
    scores[1, 3] = np.nan  # not seen by an image that stops
    running = summarized(scores, np.ones(4))
    stopped = stopping.stop(running, stopping.margin_above(running, 0.5))
    assert stopped.stage.tolist() == [3, 0, 0]
    assert stopped.top1.tolist() == [-1, 0, 0]
    assert stopped.agrees.tolist() == [True, False, True]
    assert stopped.forwards.tolist() == [4, 1, 1]


def test_answer_is_the_weighted_mean_of_the_views_seen():
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]])
    means = stopping.running_means(scores, np.array([1, 3, 0]))
    np.testing.assert_allclose(means[0], [[0.9, 0.1], [0.375, 0.625], [0.375, 0.625]], atol=1e-15)
    not_taken = np.array([[[0.9, 0.1], [np.nan, np.nan], [0.5, 0.5]]])
    np.testing.assert_allclose(stopping.running_means(not_taken, np.array([1, 0, 1]))[0, 2], [0.7, 0.3], atol=1e-15)
    running = stopping.summarize(means, np.array([1, 3, 0]), np.array([1, 1.8, 1]))
    never = stopping.stop(running, np.zeros((1, 3), dtype=bool))
    assert (never.stage[0], never.top1[0], never.forwards[0]) == (1, 1, 2.8)


def test_square_root_rule():
    scores = np.tile([0.95, 0.05], (1, 20, 1))
    first = int(stopping.square_root(summarized(scores, np.ones(20)))[0].argmax()) + 1
    assert first == min(n for n in range(1, 20) if 0.9 * n > np.sqrt(n * (20 - n) / 20))


def test_bound_is_the_exact_binomial_one():
    for wrong, images in ((0, 400), (3, 900), (40, 50)):
        bound = stopping.upper_bound(wrong, images)
        assert stats.binom.cdf(wrong, images, bound) == pytest.approx(0.025)
    assert stopping.upper_bound(5, 5) == stopping.upper_bound(0, 0) == 1


def test_one_percent_needs_some_400_images_in_each_half():
    assert stopping.images_needed(0, 100, 0.01) == 368
    assert stopping.upper_bound(0, 368) <= 0.01 < stopping.upper_bound(0, 367)
    assert stopping.images_needed(2, 100, 0.01) is None
    more = stopping.images_needed(1, 200, 0.01)
    assert more is not None and stopping.upper_bound(-(-more // 200), more) <= 0.01 and more > 368


def agreeing(images):
    return summarized(np.tile([0.97, 0.03], (images, 4, 1)), np.ones(4))


@pytest.mark.parametrize("level", ["softmax", "logit"])
def test_without_a_certificate(level):
    running = agreeing(200)
    result = stopping.calibrate(running, np.arange(200) % 2 == 0, 0.01, level)
    assert result.threshold is None
    assert result.fallback is not None and "368 images in each half" in result.fallback
    assert ("~exact" in result.fallback) == (level == "softmax")
    assert (result.stopped.forwards == (3 if level == "softmax" else 4)).all()


def test_with_a_certificate():
    result = stopping.calibrate(agreeing(800), np.arange(800) % 2 == 0, 0.01, "logit")
    assert result.threshold == 0 and result.fallback is None
    assert (result.stopped.forwards == 1).all() and result.stopped.agrees.all()


def test_the_sequence_ends_at_the_first_failure():
    """30 images are wrong for thresholds from 0.3 to 0.9 and right below: what passes again there is not tested."""
    margin, top1 = np.full((1000, 3), 0.999), np.zeros((1000, 3), int)
    margin[:30], top1[:30] = (0.3, 0.9, 0.9), (0, 1, 0)
    three = np.ones((1000, 3))
    running = Running(top1, margin, three, three, np.zeros(1000, int))
    counted = dict(zip(stopping.THRESHOLDS.tolist(), stopping.disagreements(running).tolist(), strict=True))
    assert (counted[0.9], counted[0.895], counted[0.3], counted[0.295]) == (0, 30, 30, 0)
    found = stopping.certify(running, 0.01)
    assert found.threshold == pytest.approx(0.9) and found.wrong == 0


def test_each_half_is_scored_with_the_threshold_of_the_other():
    """All disagreements lie in one half: it is itself scored with the other's loose threshold."""
    second = np.arange(1600) % 2 == 1
    top1 = np.zeros((1600, 2), int)
    top1[second, 0] = np.arange(800) < 100
    two = np.ones((1600, 2))
    running = Running(top1, np.full((1600, 2), 0.5), two, two, np.zeros(1600, int))
    result = stopping.calibrate(running, second, 0.01, "logit")
    assert result.halves[0].threshold == 0 and result.halves[1].threshold == pytest.approx(0.5)
    assert (~result.stopped.agrees).sum() == 100
    assert result.stopped.stage[second].max() == 0 and result.stopped.stage[~second].min() == 1


def test_disagreements_are_those_of_stopping_at_each_threshold():
    rng = np.random.default_rng(3)
    scores = softmax_scores(rng, 300, 6, 3, scale=0.5)
    scores[:20, 4:] = np.nan
    scores[20:30, 0] = np.nan
    weight = np.where(np.arange(6) < rng.integers(1, 7, (300, 1)), 1.0, 0.0)
    running = summarized(scores, weight)
    counted = stopping.disagreements(running)
    for threshold, wrong in zip(stopping.THRESHOLDS, counted, strict=True):
        assert wrong == (~stopping.stop(running, stopping.margin_above(running, threshold)).agrees).sum()
    assert counted.max() > 20


def test_halves_depend_on_name_and_seed_only():
    names = [f"image {i}.jpg" for i in range(2000)]
    halves = stopping.second_half(names, 0)
    assert 900 < halves.sum() < 1100
    assert (stopping.second_half(names[::-1], 0)[::-1] == halves).all()
    assert (stopping.second_half(names, 1) != halves).any()


def test_calibrated_risk_is_kept():
    """Images of known risk: margin u is uniform, and stopping goes wrong with probability (1 - u)^2 / 4. So the true
    risk of a threshold T is (1 - T)^3 / 12, and it must exceed 5 % in no more than 67 of 1,000 repetitions."""
    rng, kept, certified = np.random.default_rng(7), 0, 0
    second = np.arange(800) % 2 == 1
    two = np.ones((800, 2))
    for _ in range(1000):
        u = rng.uniform(size=800)
        wrong = rng.uniform(size=800) < (1 - u) ** 2 / 4
        running = Running(
            np.stack([wrong, np.zeros(800)], axis=1).astype(int), np.stack([u, u], axis=1), two, two, np.zeros(800, int)
        )
        halves = stopping.calibrate(running, second, 0.05, "logit").halves
        thresholds = [half.threshold for half in halves if half.threshold is not None]
        certified += len(thresholds) == 2
        kept += all((1 - threshold) ** 3 / 12 <= 0.05 for threshold in thresholds)
    assert certified > 900
    assert kept >= 933


def test_what_is_refused():
    scores = np.full((2, 3, 2), 0.5)
    for wrong in ([1, -1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="weights"):
            stopping.summarize(scores, np.array(wrong), np.ones(3))
    with pytest.raises(ValueError, match="classes >= 2"):
        stopping.summarize(scores[..., :1], np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="tolerance"):
        stopping.calibrate(agreeing(4), np.arange(4) > 1, 1.0, "softmax")


def test_batches_join():
    whole = agreeing(5)
    parts = Running.concatenate([whole.take(np.arange(2)), whole.take(np.arange(2, 5))])
    assert len(parts) == 5 and (parts.margin == whole.margin).all()
