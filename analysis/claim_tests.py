"""How a claim is tested: paired differences by image, exact tests, intervals, corrections, verdicts.

A test takes the Evidence and returns Findings: one for the claim, and one for each network where there are several.
``analysis/claims.py`` lists the claims and defines the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import Any

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import binom, norm, rankdata, spearmanr, ttest_1samp

from analysis.evidence import Answers, Evidence, Scored, Timed, common
from analysis.stats import CONFIDENCE, mcnemar, paired_difference
from analysis.tables import POLICY_TABLES, table_policies
from bench.records import END_TO_END, SPEED_FIELDS, Setting
from pipelines.crops import parse_policy

HOLDS, DENIED, UNDECIDED, ABSENT = "holds", "does not hold", "undecided", "not measured"
ALPHA = 1 - CONFIDENCE
LEVEL = "softmax"  # where a claim names none: every network has this level, and it is the paper's best
SATURATION_MARGIN = 0.2  # points; the smallest gain that MID prints of twenty crops for a ResNet is 1.17
FREE_MARGIN = 0.9  # of the rate at one crop
IDENTITY_MARGIN = 0.001  # share of the answers; float32 rounds differently before and after a linear head
MOST_PERMUTED = 7  # points whose every permutation is counted: 5,040
MOST_CROPS = 20  # the paper's largest number of plain random crops


# ---- statistics


def sign_flip(differences: np.ndarray) -> float:
    """Exact two-sided p value of whole-number paired differences [b], whose signs are all equally likely under chance.

    For differences of -1, 0 and 1 this is the exact McNemar test. Else the sum's distribution is the convolution of
    one binomial distribution for each magnitude (no sampling). Good to about 1e-12.
    """
    magnitudes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if len(magnitudes) == 0:
        return 1.0
    if len(magnitudes) == 1:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    distribution = np.ones(1)  # of the sum of those with a positive sign
    for magnitude, count in zip(magnitudes.tolist(), counts.tolist(), strict=True):
        steps = np.zeros(magnitude * count + 1)
        steps[::magnitude] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = fftconvolve(distribution, steps)
    total = int(magnitudes @ counts)
    as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(differences.sum()))
    return float(np.clip(distribution[as_far].sum(), 0.0, 1.0))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values [b]; without spread it is the mean itself."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scand. J. Statist. 6, 65), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float]:
    """Spearman's rho, its 95 % interval (Bonett and Wright 2000, Psychometrika 65, 23) and two-sided p.

    p counts every permutation up to seven points and is Student's approximation above. Where x or y does not vary, rho
    is 0 and p is 1.
    """
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0, -1.0, 1.0, 1.0
    rho, p_value = spearmanr(x, y)
    if len(x) <= MOST_PERMUTED:
        a, b = rankdata(x), rankdata(y)
        sums = np.array(list(permutations(a - a.mean()))) @ (b - b.mean())
        p_value = np.mean(np.abs(sums) >= abs(sums[0]) - 1e-9)
    half = norm.ppf(1 - ALPHA / 2) * np.sqrt((1 + rho**2 / 2) / max(len(x) - 3, 1))
    middle = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    return float(rho), float(np.tanh(middle - half)), float(np.tanh(middle + half)), float(p_value)


# ---- findings


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one claim, of one network or of all of them together."""

    subject: str
    verdict: str = ""  # "" until the p values of all claims are known
    effect: float | None = None  # with a p value: positive in the claimed direction
    low: float | None = None
    high: float | None = None
    unit: str = ""
    p_value: float | None = None
    p_holm: float | None = None
    test: str = ""
    images: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """``together``: the claim's own line. ``apart``: a line for each network, where there are several."""

    together: Finding
    apart: tuple[Finding, ...] = ()


Test = Callable[[Evidence], Findings]


def absent(why: str, subject: str = "") -> Finding:
    return Finding(subject, ABSENT, note=why)


def nowhere(apart: Sequence[Finding]) -> Findings:
    """No network has what the claim needs; the reasons, each once."""
    return Findings(absent("; ".join(dict.fromkeys(finding.note for finding in apart))))


def of_answers(test: Test) -> Test:
    """A test that needs scored networks."""

    def wrapped(evidence: Evidence) -> Findings:
        if not evidence.scored:
            return Findings(absent("; ".join(evidence.why_unscored)))
        return test(evidence)

    return wrapped


def decided(finding: Finding, p_holm: float) -> Finding:
    """The verdict by direction and corrected p value."""
    verdict = UNDECIDED
    if p_holm < ALPHA and finding.effect:
        verdict = HOLDS if finding.effect > 0 else DENIED
    return replace(finding, p_holm=p_holm, verdict=verdict)


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """Holm's correction over those that await a verdict; the others as they are."""
    out = list(findings)
    waiting = [(i, f.p_value) for i, f in enumerate(findings) if not f.verdict and f.p_value is not None]
    for (i, _), p_holm in zip(waiting, holm([p for _, p in waiting]), strict=True):
        out[i] = decided(findings[i], p_holm)
    return out


def tallied(apart: Sequence[Finding]) -> Findings:
    """A claim about every network: one network for which it does not hold refutes it."""
    measured = [finding for finding in apart if finding.verdict != ABSENT]
    if not measured:
        return nowhere(apart)
    if len(apart) == 1:
        return Findings(apart[0])
    verdicts = [finding.verdict for finding in measured]
    verdict = DENIED if DENIED in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNDECIDED
    counts = ", ".join(f"{word} for {verdicts.count(word)}" for word in dict.fromkeys(verdicts))
    effects = [finding.effect for finding in measured if finding.effect is not None]
    span = f"; {min(effects):.2f} to {max(effects):.2f} {measured[0].unit}" if effects else ""
    return Findings(Finding(_count(len(measured)), verdict, note=counts + span), tuple(apart))


def _count(networks: int) -> str:
    return f"{networks} networks" if networks > 1 else "1 network"


# ---- two policies on the same images

PolicyAtLevel = tuple[str, str]  # policy, level


def _against(one: PolicyAtLevel, other: PolicyAtLevel) -> str:
    if one[0] == other[0]:
        return f"{one[0]}: {one[1]} against {other[1]}"
    return f"{one[0]} against {other[0]}"


@dataclass(frozen=True, slots=True)
class _Paired:
    """Of one network, for each comparison right (1) less right (0) by image."""

    network: Scored
    differences: dict[str, np.ndarray]  # comparison -> int64 [b]
    correct: int  # images right with the first comparison's first policy


def _paired(network: Scored, comparisons: Sequence[tuple[PolicyAtLevel, PolicyAtLevel]]) -> _Paired | str:
    """The network's differences, or why there are none."""
    answers = network.answers
    there = [pair for pair in comparisons if all(answers.has(*one) for one in pair)]
    if not there:
        levels = sorted({level for pair in comparisons for _, level in pair} - set(answers.levels))
        if levels:
            return "; ".join(network.reasons.get(level, f"it has no {level} level") for level in levels)
        needed = dict.fromkeys(policy for pair in comparisons for policy, _ in pair)
        return f"not scored: {', '.join(needed)}; add --policies {_flag(needed)}"
    rights = {_against(*pair): [answers.right(*one).astype(np.int64) for one in pair] for pair in there}
    correct = int(next(iter(rights.values()))[0].sum())
    return _Paired(network, {text: one - other for text, (one, other) in rights.items()}, correct)


def _flag(policies: Iterable[str]) -> str:
    """What to give ``--policies`` for these: the name of one of the paper's tables, or the policies."""
    tables = (number for number in POLICY_TABLES if set(policies) <= set(table_policies(number)))
    return next((f"table{number}" for number in tables), ",".join(policies))


def _finding(found: Sequence[_Paired], comparisons: int) -> Finding:
    """All comparisons of all these networks, summed by image."""
    columns = [(paired, text) for paired in found for text in paired.differences]
    by_column = common([(paired.network.answers.names, paired.differences[text]) for paired, text in columns])
    d, n = by_column.sum(axis=0), by_column.shape[1]
    if n == 0:
        return absent("the networks have no image in common", _count(len(found)))
    if len(columns) == 1:
        newly_correct, newly_wrong = int((d > 0).sum()), int((d < 0).sum())
        low, high = paired_difference(newly_correct, newly_wrong, found[0].correct, n)
        test = f"exact McNemar test, {newly_correct} images against {newly_wrong}"
    else:
        low, high = mean_interval(100 * d / len(columns))
        test = "exact test over changes of sign, by image"
    subject = found[0].network.name if len(found) == 1 else _count(len(found))
    effect = 100 * float(d.mean()) / len(columns)
    note = _parts_text([text for _, text in columns], 100 * by_column.mean(axis=1))
    if len(dict.fromkeys(text for _, text in columns)) < comparisons:
        note += f" (of {comparisons} comparisons)"
    return Finding(subject, "", effect, low, high, "points", sign_flip(d), None, test, n, note)


def _parts_text(texts: Sequence[str], effects: np.ndarray) -> str:
    """``20RC against CC +1.20, 10RC against CC +1.05``: of each comparison the mean over networks."""
    by_text: dict[str, list[float]] = {}
    for text, effect in zip(texts, effects.tolist(), strict=True):
        by_text.setdefault(text, []).append(effect)
    if len(by_text) == 1:
        return texts[0]
    return ", ".join(f"{text} {np.mean(values):+.2f}" for text, values in by_text.items())


def better(*comparisons: tuple[PolicyAtLevel, PolicyAtLevel]) -> Test:
    """Claims that one policy and level is more accurate than another, on average over some comparisons."""

    @of_answers
    def test(evidence: Evidence) -> Findings:
        apart, found = [], []
        for network in evidence.scored:
            paired = _paired(network, comparisons)
            if isinstance(paired, str):
                apart.append(absent(paired, network.name))
            else:
                apart.append(_finding([paired], len(comparisons)))
                found.append(paired)
        if not found:
            return nowhere(apart)
        if len(apart) == 1:
            return Findings(apart[0])
        return Findings(_finding(found, len(comparisons)), tuple(apart))

    return test


def at_level(*pairs: tuple[str, str], level: str = LEVEL) -> Test:
    """``better`` for pairs of policies at one level."""
    return better(*(((one, level), (other, level)) for one, other in pairs))


def between_levels(one: str, other: str, *policies: str) -> Test:
    """``better`` for two levels of the same policies."""
    return better(*(((policy, one), (policy, other)) for policy in policies))


# ---- claims that nothing changes


@of_answers
def same_answers(evidence: Evidence) -> Findings:
    """Feature and logit averaging: the share of answers that differ, over all policies of several views."""
    return tallied([_same_answers(network) for network in evidence.scored])


def _same_answers(network: Scored) -> Finding:
    answers = network.answers
    for level in ("feature", "logit"):
        if level not in answers.levels:
            return absent(network.reasons.get(level, f"it has no {level} level"), network.name)
    policies = [policy for policy in answers.top1 if parse_policy(policy).n_views > 1]
    if not policies:
        return absent("no policy of several views was scored; add --policies 10RC", network.name)
    differ = np.array([answers.predicted(p, "feature") != answers.predicted(p, "logit") for p in policies])
    gaps = [int(answers.right(p, "feature").sum()) - int(answers.right(p, "logit").sum()) for p in policies]
    widest = 100 * max(map(abs, gaps)) / len(answers.labels)
    share = float(differ.mean())
    return Finding(
        network.name,
        HOLDS if share <= IDENTITY_MARGIN else DENIED,
        100 * share,
        unit="% of the answers differ",
        test=f"margin {100 * IDENTITY_MARGIN:g} % of the answers",
        images=len(answers.labels),
        note=f"{int(differ.sum()):,} of {differ.size:,} answers over {len(policies)} policies; top-1 differs by "
        f"{widest:.2f} points at most",
    )


@of_answers
def saturates(evidence: Evidence) -> Findings:
    """What the largest number of random crops adds to 20RC: below the margin, or above it."""
    most = max(n for network in evidence.scored for n in random_counts(network.answers))
    if most <= MOST_CROPS:
        return Findings(absent(f"no network was scored at more than {MOST_CROPS} random crops; add --crops 40"))
    return below_margin(at_level((f"{most}RC", f"{MOST_CROPS}RC"))(evidence))


@of_answers
def adaptive_suffices(evidence: Evidence) -> Findings:
    """What a fixed number of random crops adds to at most as many, chosen by the image's size."""
    answers = [network.answers for network in evidence.scored]
    both = {n for one in answers for n in random_counts(one) if f"{n}ARC" in one.top1}
    if not both:
        return Findings(absent("no adaptive policy was scored beside its fixed number; add --policies 20RC,20ARC"))
    most = max(both)
    found = below_margin(at_level((f"{most}RC", f"{most}ARC"))(evidence))
    views = [network.mean_views.get(f"{most}ARC", float(most)) for network in evidence.scored]
    note = f"{most}ARC takes {min(views):.1f} to {max(views):.1f} views per image"
    return replace(found, together=replace(found.together, note="; ".join(filter(None, [found.together.note, note]))))


def below_margin(found: Findings) -> Findings:
    """Verdicts by whether the interval is below or above SATURATION_MARGIN instead of by p value."""
    return Findings(_below_margin(found.together), tuple(map(_below_margin, found.apart)))


def _below_margin(finding: Finding) -> Finding:
    if finding.verdict == ABSENT or finding.low is None or finding.high is None:
        return finding
    verdict = UNDECIDED
    if finding.high < SATURATION_MARGIN:
        verdict = HOLDS
    elif finding.low >= SATURATION_MARGIN:
        verdict = DENIED
    return replace(finding, verdict=verdict, p_value=None, test=f"margin {SATURATION_MARGIN} points, by the interval")


def random_counts(answers: Answers) -> set[int]:
    """Every n for which nRC was scored, and 0."""
    policies = [parse_policy(policy) for policy in answers.top1]
    return {0} | {policy.n_views for policy in policies if [stream for stream, _ in policy.terms] == ["RC"]}


# ---- trends of the gain over networks


@dataclass(frozen=True, slots=True)
class _Gains:
    """The gain of one policy over the centre crop, in points, by network and image."""

    policy: str
    names: np.ndarray  # str [b]
    values: np.ndarray  # float64 [k, b]


def _gains(networks: Sequence[Scored]) -> _Gains | str:
    """Of the largest number of random crops that all share, on the images that all have; or why there are none."""
    shared = set.intersection(*(random_counts(network.answers) for network in networks))
    n = max(count for count in shared if count <= MOST_CROPS)
    if n < 2:
        return "the networks share no policy of several random crops; add --crops 20"
    answers = [network.answers for network in networks]
    gains = [100.0 * (a.right(f"{n}RC", LEVEL).astype(np.int64) - a.right("CC", LEVEL)) for a in answers]
    values = common([(a.names, gain) for a, gain in zip(answers, gains, strict=True)])
    names = common([(a.names, a.names) for a in answers])[0]
    return _Gains(f"{n}RC", names, values) if len(names) else "the networks have no image in common"


def slopes(x: Sequence[float], gains: np.ndarray) -> np.ndarray:
    """[b]: each image's least-squares slope of the gains [k, b] over x [k]; their mean is the slope of the means."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return centred @ gains / float(centred @ centred)


def _slope_finding(subject: str, by_image: np.ndarray, unit: str, note: str) -> Finding:
    low, high = mean_interval(by_image)
    p_value = float(ttest_1samp(by_image, 0.0).pvalue) if np.ptp(by_image) > 0 else 1.0
    test = "Student's t over images, of the slope"
    return Finding(subject, "", float(by_image.mean()), low, high, unit, p_value, None, test, len(by_image), note)


def trends(groups: Iterable[Sequence[Scored]], x_of: Callable[[Scored], float], unit: str) -> Findings:
    """A slope of the gain for each group of networks, and the mean of the slopes, image by image."""
    apart, columns = [], []
    for networks in groups:
        found = _gains(networks)
        subject = "; ".join(network.name for network in networks)
        if isinstance(found, str):
            apart.append(absent(found, subject))
            continue
        by_image = slopes([x_of(network) for network in networks], found.values)
        means = ", ".join(f"{gain:+.2f}" for gain in found.values.mean(axis=1))
        apart.append(_slope_finding(subject, by_image, unit, f"gains of {found.policy}: {means}"))
        columns.append((found.names, by_image))
    if not columns:
        return nowhere(apart)
    if len(apart) == 1:
        return Findings(apart[0])
    mean = common(columns).mean(axis=0)
    return Findings(
        _slope_finding(f"{len(columns)} groups of networks", mean, unit, "mean of the slopes"), tuple(apart)
    )


def grouped(networks: Iterable[Scored], *keys: str) -> list[list[Scored]]:
    """Networks whose settings agree in these fields, together."""
    groups: dict[tuple[Any, ...], list[Scored]] = {}
    for network in networks:
        groups.setdefault(tuple(getattr(network.setting, key) for key in keys), []).append(network)
    return list(groups.values())


@of_answers
def gain_with_slack_of_one_network(evidence: Evidence) -> Findings:
    """One network, one K, several S: nothing but the crop ratio varies."""
    varying = {"S", *SPEED_FIELDS}
    groups = grouped(evidence.scored, *(f.name for f in fields(Setting) if f.name not in varying))
    swept = [group for group in groups if len({network.setting.S for network in group}) >= 3]
    if not swept:
        return Findings(absent("needs one network at three crop ratios or more; use --crop-pct 0.7,0.8,0.875,0.95,1.0"))
    return trends(swept, lambda network: 10 * network.slack, "points for each 0.1 of slack")


@of_answers
def gain_with_slack_across(evidence: Evidence) -> Findings:
    """Different networks, each at one crop ratio (of a sweep the first given): rank correlation of slack and gain."""
    networks = [group[0] for group in grouped(evidence.scored, "model", "weight_hash")]
    slacks = [network.slack for network in networks]
    if len(networks) < 4 or len(set(slacks)) < 2:
        there = f"{_count(len(networks))} with {len(set(slacks))} ratio" + ("s" if len(set(slacks)) > 1 else "")
        return Findings(absent(f"needs four networks or more with different crop ratios, not {there}"))
    found = _gains(networks)
    if isinstance(found, str):
        return Findings(absent(found))
    rho, low, high, p_value = rank_correlation(slacks, found.values.mean(axis=1).tolist())
    subject, unit, test = _count(len(networks)), "rank correlation", "Spearman's rank correlation over networks"
    note = f"gain of {found.policy}"
    return Findings(Finding(subject, "", rho, low, high, unit, p_value, None, test, found.values.shape[1], note))


@of_answers
def smaller_gain_more(evidence: Evidence) -> Findings:
    """Within a family and one table of the paper: the gain over the logarithm of the number of parameters."""
    families = [network for network in evidence.scored if network.setting.family]
    groups = grouped(families, "family", "published_in", "seed")
    several = [group for group in groups if len({network.setting.param_count for network in group}) > 1]
    if not several:
        return Findings(absent("needs two networks or more of one family; use --family NAME --variants all"))
    unit = "points for each halving of the parameters"
    return trends(several, lambda network: -float(np.log2(network.setting.param_count)), unit)


# ---- speed


def essentially_free(evidence: Evidence) -> Findings:
    """End to end, images per second at many crops over those at one."""
    if not evidence.timed:
        return Findings(absent("; ".join(evidence.why_untimed)))
    return tallied([_rate_kept(network) for network in evidence.timed])


def _about_gpus(network: Timed) -> str:
    return "; the sentence is about GPUs" if network.setting.device == "cpu" else ""


def _rate_kept(network: Timed) -> Finding:
    subject = f"{network.name} on {network.setting.device}"
    by_crops = {r.crops: r for r in network.throughputs if r.stage == END_TO_END and r.crops is not None}
    counts = [n for n in by_crops if 1 < n <= MOST_CROPS]
    if 1 not in by_crops or not counts:
        return absent("needs rates at one crop and at several; add --crops 1,20", subject)
    one, many = by_crops[1], by_crops[max(counts)]
    rounds = min(len(one.rates), len(many.rates))
    # The rounds alternate what is timed: a slow minute slows both rates of a round.
    logs = np.log(np.array(many.rates[:rounds]) / np.array(one.rates[:rounds]))
    unit = "of the rate at one crop"
    note = f"{many.rate:.3g} images/s at {max(counts)} crops, {one.rate:.3g} at one"
    note += _about_gpus(network)
    ratio = float(np.exp(logs.mean()))
    if rounds < 2:
        return Finding(subject, UNDECIDED, ratio, unit=unit, note=f"{note}; one round has no interval")
    low, high = (float(np.exp(end)) for end in mean_interval(logs))
    verdict = HOLDS if low >= FREE_MARGIN else DENIED if high < FREE_MARGIN else UNDECIDED
    test = f"margin {FREE_MARGIN}, by the interval (t over {rounds} rounds)"
    return Finding(subject, verdict, ratio, low, high, unit, test=test, note=note)


def essentially_free_latency(evidence: Evidence) -> Findings:
    """One image at a time: its latency at many crops, all of them in one batch, over that at one."""
    if not evidence.timed:
        return Findings(absent("; ".join(evidence.why_untimed)))
    return tallied([_latency_kept(network) for network in evidence.timed])


def _latency_kept(network: Timed) -> Finding:
    subject = f"{network.name} on {network.setting.device}"
    by_crops = {r.crops: dict(zip(r.rows, r.latency_ms, strict=True)) for r in network.latencies if r.crops}
    counts = [n for n in by_crops if 1 < n <= MOST_CROPS]
    if 1 not in by_crops or not counts:
        return absent("needs latencies at one crop and at several; add --crops 1,20", subject)
    one, many = by_crops[1], by_crops[max(counts)]
    same = [row for row in many if row in one]
    logs = np.log([many[row] / one[row] for row in same])
    medians = [float(np.median(list(each.values()))) for each in (many, one)]
    note = f"medians {medians[0]:.3g} ms at {max(counts)} crops, {medians[1]:.3g} at one"
    note += _about_gpus(network)
    unit, ratio = "times the latency at one crop", float(np.exp(logs.mean()))
    if len(same) < 2:
        return Finding(subject, UNDECIDED, ratio, unit=unit, note=f"{note}; one image has no interval")
    low, high = (float(np.exp(end)) for end in mean_interval(logs))
    most = 1 / FREE_MARGIN
    verdict = HOLDS if high <= most else DENIED if low > most else UNDECIDED
    test = f"margin {most:.2f}, by the interval (t over {len(same)} images)"
    return Finding(subject, verdict, ratio, low, high, unit, test=test, images=len(same), note=note)
