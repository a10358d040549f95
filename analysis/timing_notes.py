"""What a reader of timings must be told, in words: disturbed or differing rounds, and rates above their ceiling."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.ceilings import policy_rows, rate_rows
from bench.records import END_TO_END, LOAD, MODEL, Latency, Throughput

SHAKY = 0.2  # spread of the rounds over their median, above which it is said
MOST_REACHED = 1.15  # of the ceiling, which is made of two other measurements: above it one of the three was disturbed
SHOWN = 4  # lines about disturbed measurements; the records have all
STAGE_NAMES = {END_TO_END: "end to end", LOAD: "pipeline alone", MODEL: "network alone"}


def timing_notes(throughputs: Sequence[Throughput]) -> list[str]:
    """One sentence each, without a full stop, about the timings of one network; none where all is well."""
    return [*disturbed_notes(throughputs), *_spread_note(throughputs), *_ceiling_note(throughputs)]


def name_of(t: Throughput) -> str:
    """What was timed, for a sentence."""
    stage = STAGE_NAMES.get(t.stage, t.stage)
    if t.policy is not None:
        return f"{stage} of {t.policy}"
    return stage if t.crops is None else f"{stage} at {t.crops} {'crop' if t.crops == 1 else 'crops'}"


def disturbed_notes(throughputs: Sequence[Throughput]) -> list[str]:
    """One line for each disturbed measurement: how many rounds, what became of them, and the reason of the slowest."""
    hit = [t for t in throughputs if any(t.disturbed)]
    hit.sort(key=lambda t: "" in t.disturbed)  # first those without an undisturbed round
    lines = []
    for t in hit[:SHOWN]:
        reasons = [reason for reason in t.disturbed if reason]
        counted = "left out" if "" in t.disturbed else "used all the same, so this rate is not to be trusted"
        _, worst = min((t.counts[i] / t.durations_s[i], reason) for i, reason in enumerate(t.disturbed) if reason)
        of_them = "" if len(reasons) == 1 else "; the slowest"
        lines.append(
            f"{name_of(t)}: {len(reasons)} of {len(t.disturbed)} rounds were disturbed and are {counted}"
            f"{of_them}: {worst}"
        )
    if rest := len(hit) - SHOWN:
        lines += [f"rounds of {rest} more measurements were disturbed (`disturbed` in results.jsonl)"] * (rest > 0)
    if hit and any("" not in t.disturbed for t in hit):
        lines.append("time again on a machine that is free: stop other programs, or raise the container's CPU limit")
    return lines


def latency_notes(latencies: Sequence[Latency]) -> list[str]:
    """One sentence about policies with disturbed rounds; none where all is well."""
    hit = [one for one in latencies if any(one.disturbed)]
    if not hit:
        return []
    names = ", ".join(one.policy for one in hit)
    reason = next(text for text in hit[0].disturbed if text)
    useless = [one.policy for one in hit if "" not in one.disturbed]
    note = f"latency rounds of {names} were disturbed and are left out; the first: {reason}"
    if useless:
        note += f"; {', '.join(useless)}: every round was, so all are used, and this latency is not to be trusted"
    return [note]


def _spread_note(throughputs: Sequence[Throughput]) -> list[str]:
    shaky = [f"{name_of(t)} ({t.spread:.0%})" for t in throughputs if t.spread > SHAKY]
    if not shaky:
        return []
    return [
        f"the rounds differ by more than {SHAKY:.0%}: {', '.join(shaky)}; close other programs, or use "
        "--rounds 15 --round-seconds 3"
    ]


def _ceiling_note(throughputs: Sequence[Throughput]) -> list[str]:
    rows = [*rate_rows(throughputs), *policy_rows(throughputs)]
    above = [row for row in rows if row["efficiency"] is not None and row["efficiency"] > MOST_REACHED]
    if not above:
        return []
    named = ", ".join(f"{name_of(row['record'])} ({row['efficiency']:.0%})" for row in above)
    return [
        f"more than {MOST_REACHED:.0%} of the ceiling was reached: {named}; that cannot be, so end to end, the "
        "pipeline alone or the network alone was disturbed: measure again before these rates are used"
    ]
