"""The papers' claims tested on runs made by hand, whose answers are planned image by image.

The references: binomial sums written out, every change of sign enumerated, textbook examples, numpy's polyfit.
An answer of 1 is right and one of 0 is wrong: every image is of class 1 unless a test says otherwise.
"""

import csv
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import claim_tests, claims
from analysis.claim_tests import ABSENT, DENIED, HOLDS, UNDECIDED, Finding
from analysis.evidence import common, evidence
from bench.records import Absent, Latency
from tests.analysis.conftest import save_predictions

LEVELS = ("feature", "logit", "softmax")


def answers(right, wrong, b=100, start=0):
    """int [b]: of b images the first ``right`` are right, but for ``wrong`` many from ``start`` on."""
    said = np.zeros(b, dtype=np.int64)
    said[:right] = 1
    said[start : start + wrong] = 0
    return said


@pytest.fixture
def scored(maker):
    """scored(run name, {(policy, level) or policy: answers}): a run with these answers and their records."""

    def made(name, top1, *, labels=None, names=None, file="predictions-x.npz", extra=(), mean_views=None, **changes):
        top1 = {(key, "softmax") if isinstance(key, str) else key: np.asarray(said) for key, said in top1.items()}
        policies = list(dict.fromkeys(policy for policy, _ in top1))
        levels = [level for level in LEVELS if any(key[1] == level for key in top1)]
        stacked = np.array([[top1.get((p, level), top1[p, "softmax"]) for p in policies] for level in levels])
        b = stacked.shape[2]
        labels = np.ones(b, dtype=np.int64) if labels is None else np.asarray(labels)
        known = labels >= 0
        right = (stacked == labels)[:, :, known]
        setting = maker.setting(**changes)
        records = []
        for p, policy in enumerate(policies):
            for i, level in enumerate(levels):
                own, centre = right[i, p], right[i, policies.index("CC")]
                newly_correct, newly_wrong = int((own & ~centre).sum()), int((centre & ~own).sum())
                record = maker.accuracy(
                    setting, policy, int(own.sum()), newly_correct, newly_wrong, level=level, images=int(known.sum())
                )
                views = (mean_views or {}).get(policy)
                records.append(replace(record, mean_views=views))
        run = maker.run(name, [*records, *(replace(record, setting=setting) for record in extra)])
        if file:
            own = [f"{i:05d}.jpg" for i in range(b)] if names is None else names
            save_predictions(run.folder / file, own, labels, policies, levels, stacked)
        return run

    return made


def judged(*runs):
    (verdicts,) = [claims.judge(one) for one in evidence(runs)]
    return verdicts.findings


def mcnemar_by_hand(newly_correct, newly_wrong):
    """Twice the smaller tail of a fair coin, written out."""
    m = newly_correct + newly_wrong
    tail = sum(math.comb(m, k) for k in range(min(newly_correct, newly_wrong) + 1)) / 2**m
    return min(1.0, 2 * tail)


# ---- statistics


def sign_flips_by_hand(differences):
    own = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(total >= own for total in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [[1, 1, 1, 0, -1], [2, -1, 1, 3, 0, 0], [4, 4, 4, -1, 2, -3, 1], [1, 2, 3, 4, 5, -6, 7, 8], [5], [-2, 3], [0, 0]],
)
def test_sign_flip_counts_every_change_of_sign(differences):
    assert claim_tests.sign_flip(np.array(differences)) == pytest.approx(sign_flips_by_hand(differences), abs=1e-12)


@pytest.mark.parametrize(("newly_correct", "newly_wrong"), [(12, 1), (3, 9), (5, 5), (40, 22), (0, 3)])
def test_sign_flip_of_one_comparison_is_mcnemars_test(newly_correct, newly_wrong):
    differences = np.array([1] * newly_correct + [-1] * newly_wrong + [0] * 17)
    assert claim_tests.sign_flip(differences) == pytest.approx(mcnemar_by_hand(newly_correct, newly_wrong))


def test_sign_flip_of_many_images_agrees_with_the_normal_distribution():
    rng = np.random.default_rng(0)
    differences = rng.choice([-3, -2, -1, 0, 1, 2, 3], size=20_000, p=[0.02, 0.03, 0.1, 0.693, 0.102, 0.033, 0.022])
    z = (abs(differences.sum()) - 0.5) / math.sqrt((differences**2).sum())
    assert claim_tests.sign_flip(differences) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_holm():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below the one before.
    assert claim_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert claim_tests.holm([0.6, 0.7]) == [1.0, 1.0]
    assert claim_tests.holm([]) == []


def test_mean_interval():
    # Of 1, 2, 3, 4: mean 2.5, standard deviation 1.290994; the t distribution's 97.5 % point is 3.182446.
    half = 3.182446 * 1.290994 / 2
    assert claim_tests.mean_interval(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        (2.5 - half, 2.5 + half), abs=1e-5
    )
    assert claim_tests.mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_rank_correlation_of_a_few_points_counts_every_permutation():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]  # 1 - 6 * (4 * 1) / (5 * 24) = 0.8
    rho, low, high, p_value = claim_tests.rank_correlation(x, y)
    assert rho == pytest.approx(0.8)
    rhos = [
        1 - 6 * sum((a - b) ** 2 for a, b in zip(x, order, strict=True)) / 120 for order in itertools.permutations(y)
    ]
    assert p_value == pytest.approx(sum(abs(r) >= 0.8 - 1e-9 for r in rhos) / 120)
    half = 1.959964 * math.sqrt((1 + 0.8**2 / 2) / 2)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half)))


def test_rank_correlation_of_what_does_not_vary():
    assert claim_tests.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == (0.0, -1.0, 1.0, 1.0)


def test_the_slope_of_the_means_is_the_mean_of_the_slopes():
    x, gains = [0.5, 1.0, 2.5], np.random.default_rng(1).normal(size=(3, 40))
    assert claim_tests.slopes(x, gains).mean() == pytest.approx(np.polyfit(x, gains.mean(axis=1), 1)[0])


def test_common_puts_images_in_one_order_and_drops_what_one_lacks():
    one = (np.array(["a", "b", "c", "d"]), np.array([1, 2, 3, 4]))
    other = (np.array(["d", "x", "c", "a"]), np.array([40, 0, 30, 10]))
    assert common([one, other]).tolist() == [[1, 3, 4], [10, 30, 40]]
    assert common([one, one]).tolist() == [[1, 2, 3, 4]] * 2


def test_verdicts_by_corrected_p_value():
    found = [
        Finding("up", effect=1.0, p_value=0.001),
        Finding("down", effect=-1.0, p_value=0.002),
        Finding("alone it would do", effect=1.0, p_value=0.04),
        Finding("given", ABSENT),
    ]
    out = claim_tests.corrected(found)
    assert [one.verdict for one in out] == [HOLDS, DENIED, HOLDS, ABSENT]
    assert [one.p_holm for one in out] == [pytest.approx(0.003), pytest.approx(0.004), pytest.approx(0.04), None]
    more = claim_tests.corrected([*found, Finding("x", effect=1.0, p_value=0.5)])
    assert more[2].verdict == UNDECIDED and more[2].p_holm == pytest.approx(0.08)


# ---- two policies


def test_two_random_crops_against_the_centre_crop(scored):
    # 60 right at the centre; two random crops mend 12 of the others and lose 1.
    found = judged(scored("a", {"CC": answers(60, 0), "2RC": answers(72, 1)}))["two_beat_centre"]
    assert found.apart == ()
    one = found.together
    assert one.effect == pytest.approx(11.0) and one.images == 100
    assert one.p_value == pytest.approx(28 / 2**13) == pytest.approx(mcnemar_by_hand(12, 1))
    assert one.verdict == HOLDS and one.low is not None and 0 < one.low < 11 < one.high
    assert one.subject == "resnet18.tv_in1k" and "12 images against 1" in one.test


def test_the_same_numbers_the_other_way_deny_it(scored):
    found = judged(scored("a", {"CC": answers(72, 1), "2RC": answers(60, 0)}))
    assert found["two_beat_centre"].together.verdict == DENIED
    assert found["two_beat_centre"].together.effect == pytest.approx(-11.0)


def test_one_random_crop_is_worse_counts_for_the_claim(scored):
    one = judged(scored("a", {"CC": answers(72, 1), "1RC": answers(60, 0)}))["one_worse_than_centre"].together
    assert one.verdict == HOLDS and one.effect == pytest.approx(11.0)


def test_a_small_difference_is_undecided(scored):
    one = judged(scored("a", {"CC": answers(60, 0), "2RC": answers(62, 1)}))["two_beat_centre"].together
    assert one.verdict == UNDECIDED and one.p_value == 1.0 and one.effect == pytest.approx(1.0)


def test_the_centre_below_five_takes_all_four_comparisons(scored):
    said = {"CC": answers(60, 0)}
    for n, gain in ((1, 8), (2, 4), (3, 2), (4, 2)):
        said[f"{n}RC"], said[f"CC+{n}RC"] = answers(60, 0), answers(60 + gain, 0)
    one = judged(scored("a", said))["centre_added_below_five"].together
    assert one.effect == pytest.approx((8 + 4 + 2 + 2) / 4)
    # Two images are mended four times, two twice, four once: all the same way, 2 of 2 ** 8 changes of sign.
    assert one.p_value == pytest.approx(2 / 2**8)
    assert "CC+1RC against 1RC +8.00, CC+2RC against 2RC +4.00" in one.note


def test_comparisons_that_were_not_scored_are_said(scored):
    found = judged(scored("a", {"CC": answers(60, 0), "10RC": answers(72, 1)}))
    assert found["average_beats_centre"].together.verdict == HOLDS
    assert "10RC against CC (of 2 comparisons)" in found["average_beats_centre"].together.note
    missing = found["mirrored_help"].together
    assert missing.verdict == ABSENT and missing.note.endswith("add --policies table1")
    assert found["random_added_to_fixed"].together.note.endswith("add --policies table8")
    assert found["two_beat_centre"].together.note == "not scored: 2RC, CC; add --policies 2RC,CC"


def test_softmax_against_feature(scored):
    said = {("CC", "feature"): answers(50, 0), ("CC", "softmax"): answers(50, 0)}
    said |= {("20RC", "feature"): answers(60, 0), ("20RC", "softmax"): answers(72, 1)}
    one = judged(scored("a", said))["softmax_beats_feature"].together
    assert one.verdict == HOLDS and one.effect == pytest.approx(11.0)
    absent = Absent(None, "accuracy at level feature", "it classifies before it pools")  # type: ignore[arg-type]
    run = scored("b", {"CC": answers(50, 0), "20RC": answers(60, 0)}, extra=[absent])
    one = judged(run)["softmax_beats_feature"].together
    assert one.verdict == ABSENT and one.note == "it classifies before it pools"


def test_networks_are_pooled_by_image(scored):
    runs = [
        scored("a", {"CC": answers(60, 0), "2RC": answers(66, 0)}),
        scored("b", {"CC": answers(60, 0), "2RC": answers(66, 0)}, model="other"),
    ]
    found = judged(*runs)["two_beat_centre"]
    assert [one.p_value for one in found.apart] == [pytest.approx(2 / 2**6)] * 2
    # The same six images in both: they count once, not twelve times.
    assert found.together.p_value == pytest.approx(2 / 2**6)
    assert found.together.effect == pytest.approx(6.0) and found.together.subject == "2 networks"


def test_pooling_matches_images_by_name(scored):
    order = [f"{i:05d}.jpg" for i in range(100)][::-1]
    runs = [
        scored("a", {"CC": answers(0, 0), "2RC": answers(6, 0)}),
        scored("b", {"CC": answers(0, 0), "2RC": answers(6, 0)}, model="other", names=order),
    ]
    # The second network's six are other images: twelve, once each.
    assert judged(*runs)["two_beat_centre"].together.p_value == pytest.approx(2 / 2**12)


def test_runs_of_one_network_are_put_together(scored):
    runs = [
        scored("a", {"CC": answers(60, 0), "2RC": answers(72, 1)}),
        scored("b", {"CC": answers(60, 0), "1RC": answers(50, 0)}, workers=5, machine_id="elsewhere"),
    ]
    found = judged(*runs)
    assert found["two_beat_centre"].apart == () and found["two_beat_centre"].together.effect == pytest.approx(11.0)
    assert found["one_worse_than_centre"].together.effect == pytest.approx(10.0)


def test_other_images_are_other_evidence(scored):
    said = {"CC": answers(60, 0), "2RC": answers(72, 1)}
    runs = [scored("a", said), scored("b", said, data_hash="other"), scored("c", said, data_hash="d", is_demo=True)]
    found = evidence(runs)
    assert [one.is_demo for one in found] == [False, False, True]
    assert "DEMO DATA" in claims.title(found[2]) and "DEMO" not in claims.title(found[0])


# ---- reading the answers


def test_images_without_a_label_do_not_count(scored):
    labels = [1] * 50 + [-1] * 50
    one = judged(scored("a", {"CC": answers(40, 0), "2RC": answers(100, 0)}, labels=labels))["two_beat_centre"].together
    assert one.images == 50 and one.effect == pytest.approx(20.0)


def test_a_file_of_answers_is_known_by_its_counts(scored):
    run = scored("a", {"CC": answers(60, 0), "2RC": answers(72, 1)}, file="predictions-anything.npz")
    scored("other", {"CC": answers(61, 0), "2RC": answers(72, 1)})
    stranger = run.folder.parent / "other" / "predictions-x.npz"
    stranger.replace(run.folder / "predictions-a-stranger.npz")
    assert judged(run)["two_beat_centre"].together.effect == pytest.approx(11.0)


def test_without_answers_that_fit_nothing_is_measured(scored):
    run = scored("a", {"CC": answers(60, 0), "2RC": answers(72, 1)}, file="")
    one = judged(run)["two_beat_centre"].together
    assert one.verdict == ABSENT and "no predictions-*.npz that fits" in one.note


def test_the_runs_own_reason_is_given(maker):
    run = maker.run("a", [maker.absent(maker.setting(), "accuracy", "the weights are random")])
    found = judged(run)
    assert {one.together.verdict for one in found.values()} == {ABSENT}
    assert found["two_beat_centre"].together.note == "the weights are random"
    assert found["essentially_free"].together.note == "the throughput pass of a did not finish"


# ---- claims with a margin


def test_feature_and_logit_averaging(scored):
    same = {(p, level): answers(60, 0) for p in ("CC", "20RC") for level in LEVELS}
    found = judged(scored("a", same))["feature_equals_logit"].together
    assert found.verdict == HOLDS and found.effect == 0.0
    other = {**same, ("20RC", "logit"): answers(63, 0)}
    runs = [scored("b", same, model="linear"), scored("c", other, model="mobilenet_v3")]
    found = judged(*runs)["feature_equals_logit"]
    assert found.together.verdict == DENIED and [one.verdict for one in found.apart] == [HOLDS, DENIED]
    assert found.apart[1].effect == pytest.approx(3.0) and "3 of 100 answers" in found.apart[1].note
    assert "top-1 differs by 3.00 points" in found.apart[1].note


@pytest.mark.parametrize(
    ("more", "verdict"),
    # Of 20,000 images so many more are right: 20 are 0.1 points, give or take 0.05; 36 are 0.18, 44 are 0.22.
    [(0, HOLDS), (20, HOLDS), (36, UNDECIDED), (44, UNDECIDED), (200, DENIED)],
)
def test_saturation_has_a_margin(scored, more, verdict):
    b = 20_000
    said = {"CC": answers(9_000, 0, b), "20RC": answers(10_000, 0, b), "40RC": answers(10_000 + more, 0, b)}
    one = judged(scored("a", said))["saturates_at_twenty"].together
    assert one.effect == pytest.approx(100 * more / b)
    assert one.verdict == verdict and one.p_value is None


def test_saturation_needs_more_than_twenty(scored):
    one = judged(scored("a", {"CC": answers(60, 0), "20RC": answers(70, 0)}))["saturates_at_twenty"].together
    assert one.verdict == ABSENT and "--crops 40" in one.note


def test_adaptive_crops_are_held_against_their_fixed_number(scored):
    b = 20_000
    said = {"CC": answers(9_000, 0, b), "20RC": answers(10_000, 0, b), "20ARC": answers(9_990, 0, b)}
    one = judged(scored("a", said, mean_views={"20ARC": 12.34}))["adaptive_suffices"].together
    assert one.verdict == HOLDS and one.effect == pytest.approx(0.05)
    assert "20ARC takes 12.3 to 12.3 views" in one.note


@pytest.mark.parametrize(
    ("many", "verdict"),
    [
        ([99, 100, 98, 99, 100], HOLDS),
        ([5, 5, 5, 5, 5.5], DENIED),
        ([60, 100, 90, 130, 95], UNDECIDED),
        ([5], UNDECIDED),
    ],
)
def test_free_means_nine_tenths_of_the_rate(maker, many, verdict):
    setting = maker.setting(device="cuda:0")
    records = [
        maker.rates(setting, "end_to_end", 1, [10_000.0] * len(many)),
        maker.rates(setting, "end_to_end", 20, [100 * rate for rate in many]),
    ]
    one = judged(maker.run("a", records))["essentially_free"].together
    assert one.verdict == verdict
    assert one.effect == pytest.approx(math.exp(sum(math.log(rate / 100) for rate in many) / len(many)))
    if len(many) > 1:
        assert one.low <= one.effect <= one.high


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [([1.0, 1.05, 1.02, 1.01], HOLDS), ([5.0, 6.0, 5.5, 5.2], DENIED), ([0.8, 1.6, 1.0, 1.4], UNDECIDED)],
)
def test_free_for_the_latency_means_nine_tenths_of_the_speed(maker, factors, verdict):
    setting = maker.setting(device="cuda:0")
    one = [10.0, 20.0, 12.0, 11.0]
    records = [
        maker.rates(setting, "end_to_end", 1, [100.0, 101.0]),
        Latency(setting, "1RC", 1, 1, one, [3, 1, 2, 9], 1.0),
        # In another order, with an image that only this one saw.
        Latency(
            setting, "20RC", 20, 20, [7.0, *(f * ms for f, ms in zip(factors, one, strict=True))], [5, 3, 1, 2, 9], 20.0
        ),
    ]
    found = judged(maker.run("a", records))["essentially_free_latency"].together
    assert found.verdict == verdict and found.images == 4
    assert found.effect == pytest.approx(math.exp(sum(map(math.log, factors)) / 4))


def test_a_cpu_says_that_the_sentence_is_about_gpus(maker):
    setting = maker.setting(device="cpu")
    records = [maker.rates(setting, "end_to_end", n, [1000 / n, 1010 / n]) for n in (1, 10)]
    assert "about GPUs" in judged(maker.run("a", records))["essentially_free"].together.note


# ---- trends


def sweep(scored, gains_by_S, **changes):
    """One network at several S; at each the gain of 20RC is so many of 100 images."""
    return [
        scored(f"S{S}{changes.get('model', '')}", {"CC": answers(50, 0), "20RC": answers(50 + gain, 0)}, S=S, **changes)
        for S, gain in gains_by_S.items()
    ]


def test_gain_over_the_crop_ratio_of_one_network(scored):
    # K 224: S 224, 280, 320, 373 are slacks 0, 0.2, 0.3, 0.39946
    gains = {224: 0, 280: 10, 320: 15, 373: 20}
    one = judged(*sweep(scored, gains))["gain_falls_with_ratio"].together
    slope = np.polyfit([10 * (1 - 224 / S) for S in gains], list(gains.values()), 1)[0]
    assert one.effect == pytest.approx(slope) and one.verdict == HOLDS
    assert "slack" in one.unit and "gains of 20RC: +0.00, +10.00, +15.00, +20.00" in one.note


def test_two_crop_ratios_are_no_trend(scored):
    one = judged(*sweep(scored, {224: 0, 320: 15}))["gain_falls_with_ratio"].together
    assert one.verdict == ABSENT and "--crop-pct" in one.note


def test_gain_over_the_crop_ratio_from_network_to_network(scored):
    runs = [
        scored(f"n{S}", {"CC": answers(50, 0), "20RC": answers(50 + gain, 0)}, S=S, model=f"n{S}")
        for S, gain in {224: 1, 240: 2, 256: 3, 288: 4, 320: 5, 352: 6}.items()
    ]
    one = judged(*runs)["gain_falls_with_ratio_across"].together
    assert one.effect == pytest.approx(1.0) and one.p_value == pytest.approx(2 / math.factorial(6))
    few = judged(*runs[:3])["gain_falls_with_ratio_across"].together
    assert few.verdict == ABSENT and "3 networks with 3 ratios" in few.note


def test_smaller_networks_of_a_family(scored):
    runs = [
        scored(f"p{size}", {"CC": answers(50, 0), "20RC": answers(50 + gain, 0)}, model=f"p{size}", param_count=size)
        for size, gain in {1_000: 20, 2_000: 14, 4_000: 8}.items()
    ]
    one = judged(*runs)["smaller_gain_more"].together
    assert one.effect == pytest.approx(6.0) and one.verdict == HOLDS  # points for each halving
    apart = judged(runs[0], scored("q", {"CC": answers(50, 0)}, model="q", family="nfnet"))
    assert apart["smaller_gain_more"].together.verdict == ABSENT


# ---- this project's own claims


def test_dense_crops_keep_the_gain_or_not(scored):
    """100 images: the centre crop has 50 right, 20RC 70; the effect by hand."""
    centre, whole = answers(50, 0), answers(70, 0)
    kept = judged(scored("kept", {"CC": centre, "20RC": whole, "DC": answers(75, 0)}))["dense_keeps_gain"].together
    assert kept.verdict == HOLDS and kept.effect == pytest.approx(25 - 0.9 * 20)
    lost = judged(scored("lost", {"CC": centre, "20RC": whole, "DC": answers(55, 0)}))["dense_keeps_gain"].together
    assert lost.verdict == DENIED and lost.effect == pytest.approx(5 - 0.9 * 20)
    none = judged(scored("none", {"CC": centre, "20RC": centre, "DC": whole}))["dense_keeps_gain"].together
    assert none.verdict == ABSENT and "no gain to keep" in none.note
    assert judged(scored("no", {"CC": centre, "20RC": whole}))["dense_keeps_gain"].together.verdict == ABSENT


def test_stopping_keeps_answers_or_not(scored):
    whole = answers(2000, 0, b=2000)
    for changed, verdict in ((0, HOLDS), (15, UNDECIDED), (60, DENIED)):
        stopped = whole.copy()
        stopped[:changed] = 1 - stopped[:changed]
        one = judged(scored(f"s{changed}", {"CC": whole, "20RC": whole, "20RC~1%": stopped}))
        found = one["stopping_keeps_answers"].together
        assert (found.verdict, found.effect) == (verdict, pytest.approx(100 - changed / 20))


# ---- the table of claims


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_every_claim_has_a_place_a_quote_and_what_the_tables_say(name):
    claim = claims.CLAIMS[name]
    assert claim.place and len(claim.quote) > 20 and claim.published() and claim.says


def test_no_claim_is_left_out_of_a_full_set_of_answers_and_rates(scored, maker):
    policies = [f"{n}RC" for n in (1, 2, 3, 4, 10, 20, 40)] + [f"CC+{n}RC" for n in (1, 2, 3, 4)] + ["20ARC"]
    policies += ["CC", "5RC+5MRC", "10RC+10MRC", "5FC", "5FC+5MFC"]
    policies += ["20RC+20MRC"]
    policies += [text for n in (5, 10, 15, 20) for text in (f"5FC+{n}RC", f"5FC+5MFC+{n}RC+{n}MRC")]
    rng = np.random.default_rng(0)
    said = {(policy, level): rng.integers(0, 2, 50) for policy in policies for level in LEVELS}
    runs = [scored(f"n{S}", said, S=S, model=f"n{S}", param_count=10 * S) for S in (224, 256, 288, 320)]
    runs += [scored(f"s{S}", said, S=S, model="swept", file=f"predictions-{S}.npz") for S in (230, 250, 270)]
    setting = maker.setting()
    rates = [maker.rates(setting, "end_to_end", n, [100 / n, 90 / n]) for n in (1, 20)]
    latencies = [Latency(setting, f"{n}RC", n, n, [1.0 * n, 1.1 * n], [0, 1], float(n)) for n in (1, 20)]
    runs.append(maker.run("speed", [*rates, *latencies]))
    found = judged(*runs)
    assert [name for name in claims.CLAIMS_MID if found[name].together.verdict == ABSENT] == []


def test_every_claim_says_why_it_was_not_measured(maker):
    setting = maker.setting()
    reasons = [maker.absent(setting, what, f"no {what}, said the run") for what in ("accuracy", "throughput")]
    found = judged(maker.run("a", reasons))
    assert list(found) == list(claims.CLAIMS)
    assert {one.together.verdict for one in found.values()} == {ABSENT}
    assert all("said the run" in found[name].together.note for name in claims.CLAIMS_MID)
    needs = [one.together.note for name, one in found.items() if name not in claims.CLAIMS_MID]
    assert all("needs " in note or "said the run" in note for note in needs)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("softmax_beats_feature", "124 of 124 comparisons agree"),
        ("mirrored_help", "20 of 20 comparisons agree"),
        ("random_beat_fixed", "0 of 20 comparisons agree"),
        ("average_beats_centre", "347 of 348 comparisons agree"),
        # ResNet-18, feature: 71.94 to 71.91 (-0.03); ResNet-18, softmax, with fixed crops: 72.40 to 72.33.
        ("saturates_at_twenty", "-0.07 to +0.06 points (Tables I and VIII, 20 comparisons)"),
    ],
)
def test_what_the_papers_tables_say(name, says):
    assert says in claims.CLAIMS[name].published()


def test_p_values_are_written_with_two_digits():
    assert [claims.p_text(p) for p in (None, 1.0, 0.04321, 6.79e-5, 1e-13)] == ["", "1", "0.043", "6.8e-05", "<1e-12"]


# ---- the program


def test_the_program_writes_markdown_and_csv(scored, capsys):
    run = scored("a", {"CC": answers(60, 0), "2RC": answers(72, 1)}, model="<script>|evil")
    assert claims.main([str(run.folder)]) == 0
    assert "holds         two random crops beat the centre crop: +11.00 points" in capsys.readouterr().out
    text = (run.folder / "claims.md").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script>\\|evil" in text
    with (run.folder / "claims.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["claim"] for row in rows if row["scope"] == "claim"] == list(claims.CLAIMS)
    row = next(row for row in rows if row["claim"] == "two_beat_centre")
    assert row["verdict"] == HOLDS and float(row["effect"]) == pytest.approx(11.0) and row["demo"] == "no"
    assert row["published"] == "not printed: Figures 3 and 7 only"


def test_the_program_names_what_is_no_run(tmp_path, capsys):
    assert claims.main([str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err


def test_the_program_names_a_run_without_results(maker, capsys):
    assert claims.main([str(maker.run("empty", []).folder)]) == 2
    assert "empty holds no results" in capsys.readouterr().err
