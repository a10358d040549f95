"""Which networks and sizes of a search are worth measuring to the end, judged from a few images and a few crops.

A network at one size is dropped where

    its cost is far from a target, however few crops it gets: estimates and short timings may be wrong by NEAR
    it is significantly worse than the best of those that meet the targets for sure
    a target for top-1 is out of its reach, or another reaches it for sure and is much faster

It is judged by two policies that are fixed before any answer is seen: the cheapest, and the costliest that may meet the
targets. Intervals of all networks hold together (analysis.choosing), at a level that is divided among the looks. More
crops than were screened may still raise its top-1. No more than the screened ones did, is assumed, for the gain of each
further crop falls (MID, Figure 3): where they gained more than those of the best, that much is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import choosing
from analysis.candidates import Candidate, Candidates
from analysis.recommend import TOP1, Target
from analysis.stats import wilson

NEAR = 0.7  # an estimate or a short timing may be wrong by so much, either way
LEVEL = choosing.SCREENING_LEVEL

Key = tuple[str, int, int]  # weights' hash, S, K
Rate = Callable[[Candidate], float | None]  # images/s, timed or estimated; None where neither is known


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one network at one size. ``top1`` (percent) is that of its better policy on the screened images,
    with Wilson's 95 % interval; None where it was not scored."""

    name: str
    step: str
    images: int
    top1: float | None
    low: float | None
    high: float | None
    kept: bool
    reason: str = ""
    sure: bool = True  # whether a policy meets the targets for cost for sure
    rate: float | None = None  # images/s of the fastest policy that may meet them, timed or estimated


@dataclass(frozen=True)
class Entry:
    """One network at one size: its policies that may meet the targets, and those that meet them for sure."""

    name: str
    near: list[Candidate]
    sure: list[Candidate]
    costliest: float  # forward passes of the costliest policy that was screened

    @property
    def standing(self) -> list[Candidate]:
        return cheapest_and_costliest(self.near)

    @property
    def gain_to_come(self) -> float:
        """Points that more crops may still gain, those that the screened ones did; 0 where they would cost too much."""
        ends = self.standing
        if len(ends) < 2 or ends[1].forwards < self.costliest:
            return 0.0
        return max(0.0, 100 * float(ends[1].right.mean() - ends[0].right.mean()))


def key_of(one: Candidate) -> Key:
    return one.setting.weight_hash, one.setting.S, one.setting.K


def joined(looks: Sequence[Candidates]) -> Candidates:
    """The settings that all looks have, on the images of all of them. Costs are those of the first look."""
    by_key = [{(key_of(one), one.record.policy, one.record.level): one for one in look.found} for look in looks]
    shared = [key for key in by_key[0] if all(key in look for look in by_key[1:])]
    found = [replace(by_key[0][key], right=np.concatenate([look[key].right for look in by_key])) for key in shared]
    return Candidates([name for look in looks for name in look.names], found)


def verdicts(
    found: Candidates, names: Mapping[Key, str], targets: Sequence[Target], rate: Rate, step: str, level: float = LEVEL
) -> dict[Key, Verdict]:
    """What becomes of each network at each size, in order. ``level``: of this look.

    Raises ValueError where nothing comes near the targets.
    """
    costs = [target for target in targets if target.metric != TOP1]
    entries = {key: entry_of(found, key, name, costs, rate) for key, name in names.items()}
    if not any(entry.near for entry in entries.values()):
        raise ValueError(f"nothing comes near {', '.join(map(str, costs))}: lower the targets or add smaller networks")
    accurate = next((target for target in targets if target.metric == TOP1), None)
    contenders = [entry for entry in entries.values() if entry.near]
    if accurate:
        reasons = out_of_reach(contenders, accurate, rate, level)
        if len(reasons) == len(contenders):
            raise ValueError(f"nothing reaches {accurate} on the screened images: lower it or add larger networks")
    else:
        reasons = worse(contenders, level)
    far = f"far from {', '.join(map(str, costs))}, however few crops"
    return {
        key: replace(
            _verdict(entry, found, key, step, far if not entry.near else reasons.get(entry.name, "")),
            sure=bool(entry.sure),
            rate=max((rate(one) or 0.0 for one in entry.near), default=None),
        )
        for key, entry in entries.items()
    }


def promising_first(verdict: Verdict, targets: Sequence[Target]) -> tuple[bool, float]:
    """A key for sorting: those that meet the targets for cost for sure come first, of these the most accurate; with a
    target for top-1, which asks for the fastest, the fastest."""
    fastest = any(target.metric == TOP1 for target in targets)
    return not verdict.sure, -((verdict.rate if fastest else verdict.top1) or 0.0)


def _verdict(entry: Entry, found: Candidates, key: Key, step: str, reason: str) -> Verdict:
    own = entry.standing or cheapest_and_costliest([one for one in found.found if key_of(one) == key])
    n, correct = len(found.names), max(int(one.right.sum()) for one in own)
    low, high = wilson(correct, n)
    return Verdict(entry.name, step, n, 100 * correct / n, low, high, not reason, reason)


def entry_of(found: Candidates, key: Key, name: str, costs: Sequence[Target], rate: Rate) -> Entry:
    own = [one for one in found.found if key_of(one) == key]
    bounds = [[[*map(target.is_met, bounds_of(one, target, rate))] for target in costs] for one in own]
    near = [one for one, of in zip(own, bounds, strict=True) if all(meets[0] for meets in of)]
    sure = [one for one, of in zip(own, bounds, strict=True) if all(meets[1] for meets in of)]
    return Entry(name, near, sure, max((one.forwards for one in usable(own)), default=0.0))


def bounds_of(one: Candidate, target: Target, rate: Rate) -> tuple[float, float]:
    """The best and the worst value that a setting may turn out to have; infinitely good and bad where it was neither
    timed nor estimated."""
    if target.metric == "forwards":  # counted, not timed
        return one.forwards, one.forwards
    if target.metric == "images_per_sec":
        value = rate(one)
        return (float("inf"), 0.0) if value is None else (value / NEAR, value * NEAR)
    if target.metric == "peak_mem_gb":
        low = high = one.peak_mem_gb
    else:  # of few queries: the tail lies between the median and beyond the slowest
        low = one.latency_ms(50)
        tail = target.metric != "latency_p50_ms" and one.alone is not None
        high = max(one.alone.latency_ms) if tail and one.alone else low
    return (0.0, float("inf")) if low is None or high is None else (low * NEAR, high / NEAR)


def usable(own: Sequence[Candidate]) -> list[Candidate]:
    """The settings by which a network is judged: without stopped ones, whose cost depends on the images, and at one
    level."""
    plain = [one for one in own if "~" not in one.record.policy]
    softmax = [one for one in plain if one.record.level == "softmax" or one.record.n_views == 1]
    return softmax or plain or list(own)


def cheapest_and_costliest(own: Sequence[Candidate]) -> list[Candidate]:
    """By forward passes; one where they are the same."""
    if not own:
        return []
    known = usable(own)
    ends = [min(known, key=lambda one: one.forwards), max(known, key=lambda one: one.forwards)]
    return ends[: 1 + (ends[0] is not ends[1])]


def worse(entries: Sequence[Entry], level: float) -> dict[str, str]:
    """Name -> reason, of those that are significantly worse than the best that meets the targets for sure, whatever
    more crops may gain. Without any such, nothing is dropped."""
    best_of = [one for entry in entries for one in cheapest_and_costliest(entry.sure)]
    rows = _unique([*best_of, *(one for entry in entries for one in entry.standing)])
    if not best_of or len(rows) < 2:
        return {}
    right = np.array([one.right for one in rows])
    may_be_best = np.array([_has(best_of, row) for row in rows])
    best_row = rows[int(np.flatnonzero(may_be_best)[right[may_be_best].sum(1).argmax()])]
    gain_of_best = next(entry.gain_to_come for entry in entries if _has(entry.sure, best_row))
    gains = {entry.name: max(0.0, entry.gain_to_come - gain_of_best) for entry in entries}
    gain_of = {id(one): gains[entry.name] for entry in entries for one in entry.standing}
    credit = np.array([gain_of.get(id(row), 0.0) for row in rows])
    best, p_values, level_each = choosing.behind_best(right, may_be_best, credit, level)
    is_worse = dict(zip(map(id, rows), p_values <= level_each, strict=True))
    top1 = {id(row): 100 * float(row.right.mean()) for row in rows}
    reasons = {}
    for entry in entries:
        if all(is_worse[id(one)] for one in entry.standing):
            nearest = max(top1[id(one)] for one in entry.standing)
            more = f", and more crops may gain {gains[entry.name]:.1f} of them" if gains[entry.name] else ""
            reasons[entry.name] = (
                f"{top1[id(rows[best])] - nearest:.1f} points worse than {rows[best].setting.model} at "
                f"{rows[best].setting.K} px{more}"
            )
    return reasons


def _unique(found: Sequence[Candidate]) -> list[Candidate]:
    return list({id(one): one for one in found}.values())


def _has(found: Sequence[Candidate], one: Candidate) -> bool:
    return any(one is other for other in found)


def out_of_reach(entries: Sequence[Entry], target: Target, rate: Rate, level: float) -> dict[str, str]:
    """Name -> reason, of those that do not reach a top-1, or are much slower than one that reaches it for sure."""
    n = len(entries[0].near[0].right)

    def interval(one: Candidate, among: int) -> tuple[float, float]:
        return wilson(int(one.right.sum()), n, 1 - 2 * level / among)

    standing = sum(len(entry.standing) for entry in entries)
    settings = sum(len(entry.near) for entry in entries)
    reasons: dict[str, str] = {}
    fastest, fastest_name = 0.0, ""
    for entry in entries:
        highest = max(interval(one, standing)[1] for one in entry.standing) + entry.gain_to_come
        if highest < target.value:
            reasons[entry.name] = f"at most {highest:.1f} with more crops: {target} is out of reach"
        for one in cheapest_and_costliest(entry.sure):
            speed = rate(one) or 0.0
            if interval(one, standing)[0] >= target.value and speed > fastest:
                fastest, fastest_name = speed, one.name
    for entry in entries:
        able = [one for one in usable(entry.near) if interval(one, settings)[1] >= target.value]
        rates = [rate(one) for one in able or entry.standing[-1:]]  # more crops are slower still
        known = [one for one in rates if one is not None]
        if entry.name not in reasons and known and len(known) == len(rates) and max(known) < NEAR * NEAR * fastest:
            reasons[entry.name] = f"{max(known):.0f} images/s at most; {fastest_name} reaches {target} at {fastest:.0f}"
    return reasons
