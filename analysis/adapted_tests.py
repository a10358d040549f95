"""How the claims of FixRes and FixEfficientNet are tested: pairs of networks at test sizes, image by image.

Like analysis/claim_tests.py: a test takes the Evidence and returns Findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy.stats import norm, ttest_1samp

from analysis.adapted import (
    LEVEL,
    AtSize,
    Pair,
    at_sizes,
    best_recipe,
    larger_than_train,
    networks,
    tuned_against_native,
    untuned,
)
from analysis.claim_tests import (
    ABSENT,
    ALPHA,
    DENIED,
    HOLDS,
    UNDECIDED,
    Finding,
    Findings,
    Test,
    absent,
    mean_interval,
    of_answers,
    rank_correlation,
    sign_flip,
    tallied,
)
from analysis.evidence import Evidence, Scored, common
from analysis.runs import is_v2
from analysis.stats import mcnemar, paired_difference

Pairs = Callable[[Sequence[AtSize]], list[Pair]]

EQUAL_MARGIN = 0.2  # points: a smaller network with crops may be this much worse than a larger one and count as equal
NEUTRAL_MARGIN = 1.0  # points between the gains on two data sets
RESAMPLES, SEED = 2000, 0  # of the bootstrap
SIMILAR = 0.5  # points of ImageNet accuracy, for "models performing similarly"


# ---- pairs of networks at test sizes


def more_right(pairs_of: Pairs, needs: str) -> Test:
    """Claims that the first of each pair gets more images right than the second, on average over the pairs."""

    def test(evidence: Evidence) -> Findings:
        return compared(pairs_of(at_sizes(evidence)), why_not(evidence, needs))

    return test


def why_not(evidence: Evidence, needs: str) -> str:
    """Why a claim about test sizes was not measured: what it needs, and the runs' own reasons where they have any."""
    return "; ".join([f"needs {needs}", *(() if evidence.scored else evidence.why_unscored)])


def compared(pairs: Sequence[Pair], needs: str) -> Findings:
    """A finding for all pairs together, summed by image, and one for each pair where there are several."""
    if not pairs:
        return Findings(absent(needs))
    differences = []
    for pair in pairs:
        one, other = common([(pair.one.names, pair.one.right), (pair.other.names, pair.other.right)])
        shared = common([(pair.one.names, pair.one.names), (pair.other.names, pair.other.names)])[0]
        differences.append((shared, one.astype(np.int64) - other.astype(np.int64), int(one.sum())))
    apart = [_of_pair(pair, d, correct) for pair, (_, d, correct) in zip(pairs, differences, strict=True)]
    if len(pairs) == 1:
        return Findings(apart[0])
    by_pair = common([(names, d) for names, d, _ in differences])
    d, n = by_pair.sum(axis=0), by_pair.shape[1]
    if n == 0:
        return Findings(absent("the pairs have no image in common"), tuple(apart))
    low, high = mean_interval(100 * d / len(pairs))
    effect = 100 * float(d.mean()) / len(pairs)
    test = "exact test over changes of sign, by image"
    note = f"mean of {len(pairs)} comparisons"
    together = Finding(f"{len(pairs)} pairs", "", effect, low, high, "points", sign_flip(d), None, test, n, note)
    return Findings(together, tuple(apart))


def _of_pair(pair: Pair, d: np.ndarray, correct: int) -> Finding:
    newly_correct, newly_wrong, n = int((d > 0).sum()), int((d < 0).sum()), len(d)
    if n == 0:
        return absent("the two have no image in common", pair.words)
    low, high = paired_difference(newly_correct, newly_wrong, correct, n)
    test = f"exact McNemar test, {newly_correct} images against {newly_wrong}"
    p_value = mcnemar(newly_correct, newly_wrong)
    return Finding(pair.words, "", 100 * float(d.mean()), low, high, "points", p_value, None, test, n)


# ---- where accuracy is best


def best_size_above_train(evidence: Evidence) -> Findings:
    """The best size, chosen on one half of the images and measured on the other, against the train size (rule 14)."""
    pairs, notes = [], []
    for group in networks(at_sizes(evidence)):
        plain = {one.test_res: one for one in untuned(group)}
        own = next((one for one in plain.values() if one.is_native), None)
        if own is None or len(plain) < 3:
            continue
        chosen, chosen_sizes = _chosen_on_the_other_half(plain)
        pairs.append(Pair(replace(own, right=chosen), own))
        notes.append(f"{own.words}: best at {' and '.join(map(str, chosen_sizes))}")
    found = compared(pairs, why_not(evidence, "one network at its train size and two more; use --img-size 64:144:16"))
    if not pairs:
        return found
    apart = [replace(one, subject=note) for one, note in zip(found.apart, notes, strict=False)]
    return Findings(
        replace(found.together, note="; ".join([*notes, "chosen on the other half of the images"])), tuple(apart)
    )


def _chosen_on_the_other_half(plain: dict[int, AtSize]) -> tuple[np.ndarray, list[int]]:
    """bool [b]: right at the size that is best on the half to which the image does not belong; and both sizes."""
    names = next(iter(plain.values())).names
    right = common([(one.names, one.right) for one in plain.values()])
    if right.shape[1] != len(names):
        raise ValueError("the sizes of one network were scored on different images")
    even = np.argsort(np.argsort(names, kind="stable")) % 2 == 0
    sizes = list(plain)
    out, chosen = np.zeros(len(names), dtype=bool), []
    for half in (even, ~even):
        best = int(np.argmax(right[:, ~half].sum(axis=1)))
        out[half] = right[best][half]
        chosen.append(sizes[best])
    return out, sorted(chosen)


def best_size_moves_up(evidence: Evidence) -> Findings:
    """Ratio of the best size after fine-tuning to that before, over sizes that have both; bootstrap over images."""
    apart = []
    for group in networks(at_sizes(evidence)):
        plain, tuned = {one.test_res: one for one in untuned(group)}, best_recipe(group)
        sizes = sorted(plain.keys() & tuned.keys())
        if len(sizes) >= 3:
            before, after = (common([(side[K].names, side[K].right) for K in sizes]) for side in (plain, tuned))
            apart.append(_best_size_ratio(group[0], np.array(sizes), before, after))
    needs = "one network as it is and fine-tuned at three sizes or more; use multicrop-bench train-low-test-high"
    return tallied(apart) if apart else Findings(absent(why_not(evidence, needs)))


def _best_size_ratio(one: AtSize, sizes: np.ndarray, before: np.ndarray, after: np.ndarray) -> Finding:
    rng = np.random.default_rng(SEED)
    b = before.shape[1]
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, b, b), minlength=b)
        ratios[i] = sizes[np.argmax(after @ weights)] / sizes[np.argmax(before @ weights)]
    low, high = np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2])
    ends = [int(sizes[np.argmax(side.sum(axis=1))]) for side in (before, after)]
    verdict = HOLDS if low > 1 else DENIED if high < 1 else UNDECIDED
    trained = f" trained at {one.train_res}" if one.train_res else ""
    subject = f"{one.family or 'network'}{trained}{' on fixed crops' if one.training == 'fixed' else ''}"
    test = f"interval of {RESAMPLES:,} bootstrap samples of the images"
    note = f"best at {ends[0]} as it is, at {ends[1]} fine-tuned, of {', '.join(map(str, sizes.tolist()))}"
    unit = "times the best size as it is"
    return Finding(subject, verdict, ends[1] / ends[0], float(low), float(high), unit, test=test, images=b, note=note)


def because_of_random_resized_crop(evidence: Evidence) -> Findings:
    """Gain of the larger test size with RandomResizedCrop in training, less that with crops of a fixed size."""
    found = at_sizes(evidence)
    gains: dict[str, dict[tuple[str, int | None], tuple[Pair, np.ndarray]]] = {"train": {}, "fixed": {}}
    for pair in larger_than_train(found):
        if pair.one.training in gains:
            key = (pair.one.base, pair.one.train_res)
            gain = pair.one.right.astype(np.int64) - pair.other.right.astype(np.int64)
            gains[pair.one.training][key] = pair, gain
    both = [key for key in gains["train"] if key in gains["fixed"]]
    if not both:
        return Findings(absent(why_not(evidence, "a folder of multicrop-bench train-low-test-high with answers/*.npz")))
    apart, columns = [], []
    for key in both:
        (pair, with_it), (_, without) = gains["train"][key], gains["fixed"][key]
        d = with_it - without
        columns.append((pair.one.names, d))
        subject = f"{pair.one.family} trained at {pair.one.train_res}, tested at {pair.one.test_res}"
        note = f"gain {100 * with_it.mean():+.2f} with it, {100 * without.mean():+.2f} without"
        apart.append(_of_sums(subject, d, 1, note))
    if len(apart) == 1:
        return Findings(apart[0])
    total = common(columns).sum(axis=0)
    return Findings(_of_sums(f"{len(both)} networks", total, len(both), "mean over train sizes"), tuple(apart))


def _of_sums(subject: str, d: np.ndarray, parts: int, note: str) -> Finding:
    low, high = mean_interval(100 * d / parts)
    test = "exact test over changes of sign, by image"
    effect = 100 * float(d.mean()) / parts
    return Finding(subject, "", effect, low, high, "points", sign_flip(d), None, test, len(d), note)


def batch_norm_matters_more(pairs_of: Pairs) -> Test:
    """Slope of what the BatchNorm adds over the distance of test and train size, |log2|, image by image."""

    def test(evidence: Evidence) -> Findings:
        pairs = [pair for pair in pairs_of(at_sizes(evidence)) if pair.one.train_res]
        distances = [abs(math.log2(pair.one.test_res / (pair.one.train_res or 1))) for pair in pairs]
        if len(set(distances)) < 2:
            needs = "--tune classifier and classifier+bn of one network, each at two sizes or more"
            return Findings(absent(why_not(evidence, needs)))
        gains = common([(p.one.names, 100.0 * (p.one.right.astype(np.int64) - p.other.right)) for p in pairs])
        centred = np.array(distances) - np.mean(distances)
        by_image = centred @ gains / float(centred @ centred)
        low, high = mean_interval(by_image)
        mean = float(by_image.mean())
        p_value = float(ttest_1samp(by_image, 0.0).pvalue) if np.ptp(by_image) > 0 else 1.0
        note = "what it adds: " + ", ".join(
            f"{gain:+.2f} at {pair.one.test_res}" for gain, pair in zip(gains.mean(axis=1), pairs, strict=True)
        )
        unit = "points for each doubling of the distance"
        words = "Student's t over images, of the slope"
        return Findings(
            Finding(f"{len(pairs)} sizes", "", mean, low, high, unit, p_value, None, words, gains.shape[1], note)
        )

    return test


# ---- several views of networks at other sizes


def several_sizes_averaged(evidence: Evidence) -> Findings:
    """Centre crops of two or more sizes averaged, against the largest of them alone, of each network that has them."""
    pairs = []
    for network in evidence.scored:
        for policy in network.answers.top1:
            if _centre_sizes(policy) >= 2 and network.answers.has(policy, LEVEL):
                pairs.append(_policy_pair(network, policy, "CC"))
    return compared(pairs, why_not(evidence, "a policy such as CC+CC@192; add --policies CC,CC+CC@192"))


def _centre_sizes(policy: str) -> int:
    """How many sizes of centre crops a policy averages; 0 where it has other views."""
    terms = policy.split("+")
    return len(set(terms)) if all(term == "CC" or term.startswith("CC@") for term in terms) else 0


def _policy_pair(network: Scored, one: str, other: str) -> Pair:
    def at(policy: str) -> AtSize:
        answers, setting = network.answers, network.setting
        right = answers.right(policy, LEVEL)
        named = f"{network.name} {policy}"
        return AtSize(named, "", named, None, setting.K, "none", "", 0.0, answers.names, right, network)

    return Pair(at(one), at(other))


def ten_crops_on_tuned(evidence: Evidence) -> Findings:
    """The ten fixed crops against the centre crop, of fine-tuned networks."""
    tuned = [n for n in evidence.scored if evidence.experiments.tuning_of(n.setting.weight_hash)]
    pairs = [_policy_pair(n, "5FC+5MFC", "CC") for n in tuned if n.answers.has("5FC+5MFC", LEVEL)]
    needs = "a fine-tuned network with --policies CC,5FC+5MFC, and the folder of its fine-tuning"
    return compared(pairs, why_not(evidence, needs))


@of_answers
def smaller_with_crops_equals_larger(evidence: Evidence) -> Findings:
    """Each network of a family with 20 random crops against the next larger one's centre crop: not worse, but for a
    margin."""
    apart = []
    families: dict[tuple[str | None, str | None], list[Scored]] = {}
    for network in evidence.scored:
        if network.setting.family and network.answers.has("CC", LEVEL):
            families.setdefault((network.setting.family, network.setting.published_in), []).append(network)
    for members in families.values():
        ordered = sorted({n.setting.param_count: n for n in reversed(members)}.values(), key=_parameters)
        for small, large in pairwise(ordered):
            apart.append(_not_worse(small, large))
    if not apart:
        return Findings(absent("needs two networks or more of one family; use --family NAME --variants all"))
    return tallied(apart)


def _parameters(network: Scored) -> int:
    return network.setting.param_count


def _not_worse(small: Scored, large: Scored) -> Finding:
    subject = f"20RC of {small.name} against CC of {large.name}"
    if not small.answers.has("20RC", LEVEL):
        return absent("20RC was not scored; add --crops 20", subject)
    one, other = common(
        [
            (small.answers.names, small.answers.right("20RC", LEVEL)),
            (large.answers.names, large.answers.right("CC", LEVEL)),
        ]
    )
    newly_correct, newly_wrong, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    if n == 0:
        return absent("the networks have no image in common", subject)
    low, high = paired_difference(newly_correct, newly_wrong, int(one.sum()), n)
    verdict = HOLDS if low > -EQUAL_MARGIN else DENIED if high < -EQUAL_MARGIN else UNDECIDED
    effect = 100 * (newly_correct - newly_wrong) / n
    test = f"not worse by {EQUAL_MARGIN} points, by the interval"
    return Finding(subject, verdict, effect, low, high, "points", test=test, images=n)


# ---- activations and times


def sparser_when_smaller(evidence: Evidence) -> Findings:
    """Share of zeros behind the pooling against the test size: rank correlation, negative in the claimed direction."""
    apart = []
    for one in evidence.experiments.activations:
        sizes, zeros = one.frame["K"].tolist(), one.frame["zero_percent"].tolist()
        if len(set(sizes)) < 4:
            apart.append(absent("needs four test sizes or more", one.model))
            continue
        rho, low, high, p_value = rank_correlation(sizes, zeros)
        note = f"zeros {zeros[0]:.1f} % at {sizes[0]}, {zeros[-1]:.1f} % at {sizes[-1]}"
        test = "Spearman's rank correlation of smaller size and zeros"
        apart.append(Finding(one.model, "", -rho, -high, -low, "rank correlation", p_value, None, test, None, note))
    if not apart:
        return Findings(absent(why_not(evidence, "a folder of multicrop-bench activations")))
    if len(apart) == 1:
        return Findings(apart[0])
    return tallied([_by_interval(one) for one in apart])


def _by_interval(finding: Finding) -> Finding:
    if finding.verdict == ABSENT or finding.low is None or finding.high is None:
        return finding
    verdict = HOLDS if finding.low > 0 else DENIED if finding.high < 0 else UNDECIDED
    return replace(finding, verdict=verdict, p_value=None, test=f"{finding.test}, by the interval")


def backward_cheaper_in_tuning(evidence: Evidence) -> Findings:
    """Of each fine-tuning: the median forward pass (frozen trunk and tuned layers) over the median backward pass."""
    apart = []
    for one in evidence.experiments.tunings:
        steps = one.step_ms
        if not {"trunk", "forward", "backward"} <= steps.keys():
            apart.append(absent("its note has no times of trunk, forward and backward", one.folder))
            continue
        forward = {key: steps["trunk"][key] + steps["forward"][key] for key in ("median", "min", "max")}
        backward = steps["backward"]
        ratio = forward["median"] / backward["median"]
        low, high = forward["min"] / backward["max"], forward["max"] / max(backward["min"], 1e-9)
        verdict = HOLDS if low > 1 else DENIED if high < 1 else UNDECIDED
        note = f"{forward['median']:.3g} ms forward, {backward['median']:.3g} ms backward, batches of {one.batch_size}"
        test = "least over most and most over least of all steps"
        subject = f"{one.folder} on {one.device}"
        apart.append(Finding(subject, verdict, ratio, low, high, "of the backward pass", test=test, note=note))
    return tallied(apart) if apart else Findings(absent("needs a folder of multicrop-bench finetune"))


# ---- other data: cleaner labels, ImageNet-V2


def remains_on_clean_labels(evidence: Evidence) -> Findings:
    """Fine-tuned against native, scored with the second set of labels."""
    found = []
    for one in at_sizes(evidence):
        real = one.scored.answers.real.get("CC") if one.scored else None
        if real is not None and one.scored is not None:
            right = real[one.scored.answers.levels.index(LEVEL)]
            labelled = right >= 0
            found.append(replace(one, names=one.names[labelled], right=right[labelled] == 1))
    needs = "a network as it is and fine-tuned, both with --real-labels real.json"
    return compared(tuned_against_native(found), why_not(evidence, needs))


def _on_v2(evidence: Evidence) -> bool:
    return any(is_v2(network.setting) for network in evidence.scored)


NO_V2 = "a network as it is and fine-tuned on ImageNet-V2 (a folder with v2 in its name)"


def remains_on_v2(evidence: Evidence) -> Findings:
    """Fine-tuned against native, on ImageNet-V2."""
    if not _on_v2(evidence):
        return Findings(absent(why_not(evidence, NO_V2)))
    return compared(tuned_against_native(at_sizes(evidence)), why_not(evidence, NO_V2))


def _beside(evidence: Evidence) -> Evidence | None:
    """The same networks on ImageNet, for evidence of ImageNet-V2."""
    if not _on_v2(evidence):
        return None
    return next((one for one in evidence.others if one.scored and not one.is_demo and not _on_v2(one)), None)


def neutral_to_overfitting(evidence: Evidence) -> Findings:
    """Gain of fine-tuning on ImageNet-V2 less that on ImageNet: two samples of images, equal within a margin."""
    old = _beside(evidence)
    if old is None:
        return Findings(absent(why_not(evidence, f"{NO_V2}, and the same on ImageNet")))
    before = {(p.one.base, p.one.test_res): p for p in tuned_against_native(at_sizes(old))}
    apart = []
    for pair in tuned_against_native(at_sizes(evidence)):
        there = before.get((pair.one.base, pair.one.test_res))
        if there is not None:
            apart.append(_gain_difference(pair, there))
    needs = why_not(evidence, f"{NO_V2}, and the same on ImageNet")
    return tallied(apart) if apart else Findings(absent(needs))


def _gain_difference(new: Pair, old: Pair) -> Finding:
    gains = [
        100.0 * np.subtract(*common([(p.one.names, p.one.right), (p.other.names, p.other.right)]).astype(np.int64))
        for p in (new, old)
    ]
    effect = float(gains[0].mean() - gains[1].mean())
    half = norm.ppf(1 - ALPHA / 2) * math.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains))
    low, high = effect - half, effect + half
    inside, outside = low > -NEUTRAL_MARGIN and high < NEUTRAL_MARGIN, low > NEUTRAL_MARGIN or high < -NEUTRAL_MARGIN
    verdict = HOLDS if inside else DENIED if outside else UNDECIDED
    note = f"gain {gains[0].mean():+.2f} on ImageNet-V2, {gains[1].mean():+.2f} on ImageNet"
    test = f"equal within {NEUTRAL_MARGIN} point, by the interval (two samples of images)"
    return Finding(new.words, verdict, effect, low, high, "points", test=test, images=len(gains[0]), note=note)


def noisy_student_overfits(evidence: Evidence) -> Findings:
    """Other networks against Noisy Student's of similar ImageNet accuracy, on ImageNet-V2."""
    old = _beside(evidence)
    if old is None:
        return Findings(
            absent(why_not(evidence, "EfficientNets of Noisy Student and others on ImageNet and ImageNet-V2"))
        )
    accuracy = {one.scored.setting.weight_hash: float(one.right.mean()) for one in at_sizes(old) if one.scored}
    here = [one for one in at_sizes(evidence) if one.scored and one.scored.setting.weight_hash in accuracy]
    students = [one for one in here if _is_noisy_student(one)]
    pairs = []
    for one in here:
        if not _is_noisy_student(one) and students:
            own = accuracy[_hash(one)]
            near = min(students, key=lambda student: abs(accuracy[_hash(student)] - own))
            if 100 * abs(accuracy[_hash(near)] - own) <= SIMILAR:
                pairs.append(Pair(one, near))
    needs = f"networks within {SIMILAR} points of one of Noisy Student's on ImageNet"
    return compared(pairs, why_not(evidence, needs))


def _hash(one: AtSize) -> str:
    assert one.scored is not None
    return one.scored.setting.weight_hash


def _is_noisy_student(one: AtSize) -> bool:
    assert one.scored is not None
    return ".ns_" in one.scored.setting.model
