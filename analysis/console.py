"""What a run prints when it ends: its tables, and the figures for the last line of output, which is JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis import known_answers
from analysis.ceilings import crossover, policy_rows, rate_rows
from analysis.known_answers import Comparison
from analysis.runs import is_shown
from analysis.stats import CONFIDENCE, KEPT_ANSWERS, KEPT_GAIN
from analysis.summary import derived, p_value, top1_interval
from analysis.text import aligned, visible
from analysis.timing_notes import latency_notes, timing_notes
from bench.records import (
    DECODE,
    LABELS,
    ORIGINAL,
    READ,
    RESIZE,
    Absent,
    Accuracy,
    FailedModel,
    ImageAccounting,
    Latency,
    Record,
    Throughput,
)

Columns = dict[str, Callable[[Any], str]]  # heading -> the text of one row

ACCURACY: Columns = {  # rows: Accuracy
    "policy": lambda r: r.policy,
    "level": lambda r: r.level,
    "forwards": lambda r: "" if r.forwards is None else f"{r.forwards:.2f}",
    "top-1": lambda r: f"{r.top1:.2f}",
    "95 % interval": lambda r: "{:.2f}..{:.2f}".format(*top1_interval(r)),
    "gain": lambda r: f"{r.gain:+.2f}" if r.policy != "CC" else "",
    "newly correct": lambda r: str(r.newly_correct),
    "newly wrong": lambda r: str(r.newly_wrong),
    "p": lambda r: f"{p_value(r):.2g}" if r.policy != "CC" else "",
    "top-5": lambda r: f"{r.top5:.2f}",
    "NLL": lambda r: "" if r.nll_mean is None else f"{r.nll_mean:.3f}",
}
RATES: Columns = {  # rows: of analysis.ceilings.rate_rows
    "crops": lambda row: str(row["crops"]),
    "images/s": lambda row: f"{row['images_per_sec']:.1f}",
    "crops/s": lambda row: f"{row['crops_per_sec']:.0f}",
    "spread": lambda row: f"{100 * row['spread']:.0f} %",
    "pipeline alone": lambda row: f"{row['pipeline_images_per_sec']:.1f} im/s",
    "network alone": lambda row: f"{row['network_crops_per_sec']:.0f} crops/s",
    "ceiling": lambda row: f"{row['ceiling_images_per_sec']:.1f}",
    "reached": lambda row: f"{100 * row['efficiency']:.0f} %",
    "slower part": lambda row: row["binds"],
    "p50 ms": lambda row: _milliseconds(row, "interval_p50_ms"),
    "p95 ms": lambda row: _milliseconds(row, "interval_p95_ms"),
    "peak GB": lambda row: f"{row['record'].peak_mem_bytes / 1e9:.1f}",
}


CHEAP_FORWARDS = 2.0  # forward passes per image with which KEPT_GAIN should be reached
CHEAP_SHARE = 1 / 3  # of the forward passes of all crops, with which KEPT_ANSWERS should be reached


POLICY_RATES: Columns = {  # rows: of analysis.ceilings.policy_rows
    "policy": lambda row: row["policy"],
    "images/s": lambda row: f"{row['images_per_sec']:.1f}",
    "forwards": lambda row: f"{row['forwards']:.2f}",
    "spread": lambda row: f"{100 * row['spread']:.0f} %",
    "ceiling": lambda row: "" if row["efficiency"] is None else f"{row['ceiling_images_per_sec']:.1f}",
    "reached": lambda row: "" if row["efficiency"] is None else f"{100 * row['efficiency']:.0f} %",
    "as scored": lambda row: "" if row["agreement"] is None else f"{100 * row['agreement']:.2f} %",
}


LATENCIES: Columns = {  # rows: Latency
    "policy": lambda r: r.policy,
    "p50 ms": lambda r: _percentile(r, 50),
    "p90 ms": lambda r: _percentile(r, 90),
    "p99 ms": lambda r: _percentile(r, 99),
    "batch": lambda r: str(r.crops_per_forward),
    "forwards": lambda r: f"{r.forwards:.2f}",
    "images": lambda r: str(len(r.latency_ms)),
}


def _percentile(record: Latency, percent: int) -> str:
    value = record.percentile(percent)
    return "" if value is None else f"{value:.1f}"


def _milliseconds(row: dict[str, Any], name: str) -> str:
    value = derived(row["record"])[name]
    return "" if value is None else f"{value:.0f}"


def _table(columns: Columns, rows: Sequence[Any]) -> list[str]:
    return aligned([list(columns), *([column(row) for column in columns.values()] for row in rows)])


def text(records: Sequence[Record], known: Sequence[Comparison] = ()) -> str:
    """One section for each network at each of its sizes, with what is published of its centre crop (``known``). Names
    from data are made visible (analysis/text.py)."""
    settings = dict.fromkeys(record.setting for record in records)
    if not settings:
        return "Nothing was measured: no network finished a pass."
    return "\n\n".join(_section([r for r in records if r.setting == setting], known) for setting in settings)


def _section(records: list[Record], known: Sequence[Comparison]) -> str:
    setting = records[0].setting
    demo = "  DEMO DATA: says nothing about ImageNet" if setting.is_demo else ""
    among = f", answers among {setting.valid_labels}" if setting.valid_labels else ""
    lines = [
        f"{visible(setting.model)}  ({visible(setting.weights)} weights, {setting.K} from {setting.S} pixels, "
        f"{setting.backend}, {setting.device}, {setting.amp_dtype}, batch size {setting.batch_size}{among}){demo}"
    ]
    measured = [r for r in records if isinstance(r, (Accuracy, Throughput))]
    if not measured:
        lines.append("Nothing was measured.")
    for labels in LABELS:
        if accuracies := [r for r in records if isinstance(r, Accuracy) and r.labels == labels]:
            lines += ["", *_accuracy_lines(accuracies, [one for one in known if one.record in accuracies])]
    if throughputs := [r for r in records if isinstance(r, Throughput)]:
        lines += ["", *_throughput_lines(throughputs)]
    if latencies := [r for r in records if isinstance(r, Latency)]:
        heading = "latency, one image at a time; batch: crops in one forward pass"
        lines += ["", heading, *_table(LATENCIES, latencies), *latency_notes(latencies)]
    fitting = {r.fitting_batch_size for r in measured} - {None}
    lines += [f"out of memory at batch size {setting.batch_size}; used {n}" for n in fitting]
    lines += [f"not measured: {r.what}: {visible(r.reason)}" for r in records if isinstance(r, Absent)]
    return "\n".join(lines)


def _accuracy_lines(accuracies: list[Accuracy], known: list[Comparison]) -> list[str]:
    first = accuracies[0]
    what = "top-1 %, demo" if first.setting.is_demo else "top-1 %"
    if first.labels != ORIGINAL:
        what += f", {first.labels} labels"
    shown = [record for record in accuracies if is_shown(record.policy, record.n_views)]
    note = "newly correct, newly wrong, p (exact McNemar test): against CC; every n of the curves is in summary.csv"
    columns = ACCURACY
    if known:
        published = {one.record: f"{one.known.top1:.2f}" for one in known}
        columns = {**ACCURACY, "published": lambda record: published.get(record, "")}
    lines = [f"{what} ({first.images} images, {first.unreadable} unreadable)", *_table(columns, shown), note]
    forwards = "forwards: passes of the network per image, by pixels; ~: images are stopped early"
    return [*lines, forwards, *_stopping_lines(accuracies), *_cheapest(accuracies), *known_answers.lines(known)]


def _stopping_lines(accuracies: list[Accuracy]) -> list[str]:
    """For each stopped policy at softmax: how many answers are the whole policy's, and what could not be certified."""
    return [
        f"{r.policy} gives {100 * r.agreement:.2f} % of the answers of {r.policy.partition('~')[0]}"
        + (f" ({r.note})" if r.note else "")
        + _at_one_threshold(r)
        for r in accuracies
        if r.agreement is not None and r.level == "softmax"
    ]


def _at_one_threshold(r: Accuracy) -> str:
    """What the one threshold that is kept for other images does on these."""
    if r.first_threshold is None or r.deployed_correct is None or r.deployed_agreement is None:
        return ""
    return (
        "; each half of the images is stopped at the threshold of the other half. At the stricter of the two, "
        f"{r.deployed_threshold:.3g}, which thresholds.json and recipes hold: {100 * r.deployed_agreement:.2f} % "
        f"of the answers, top-1 {100 * r.deployed_correct / r.images:.2f}, {r.deployed_forwards:.2f} forward passes"
    )


def _cheapest(accuracies: list[Accuracy]) -> list[str]:
    """What the largest nRC has at softmax, and the policy that has as much for the fewest forward passes."""
    cost = {r: r.forwards for r in accuracies if r.level == "softmax" and r.forwards is not None}
    curve = [r for r in cost if r.policy == f"{r.n_views}RC" and r.n_views > 1]
    if not curve:
        return []
    most = max(curve, key=lambda r: r.n_views)
    best = min((r for r in cost if r.top1 >= most.top1), key=lambda r: (cost[r], -r.top1))
    other = (
        "no cheaper policy has as much" if best is most else f"{best.policy} has {best.top1:.2f} for {cost[best]:.2f}"
    )
    return [
        f"{most.policy} has {most.top1:.2f} for {cost[most]:.2f} forward passes per image; {other}",
        *_kept_gain(most, cost),
        *_kept_answers(most, cost),
    ]


def _kept_gain(most: Accuracy, cost: dict[Accuracy, float]) -> list[str]:
    """How much of the gain of the largest nRC can be had for CHEAP_FORWARDS passes, where it gains significantly."""
    cheap = [r for r in cost if 1 < cost[r] <= CHEAP_FORWARDS and r.policy != most.policy]
    if not cheap or most.gain <= 0 or p_value(most) >= 1 - CONFIDENCE:
        return []
    best = max(cheap, key=lambda r: (r.gain, -cost[r]))
    share = best.gain / most.gain
    compared = "at least" if share >= KEPT_GAIN else "less than"
    return [
        f"for {CHEAP_FORWARDS:g} forward passes or fewer the best is {best.policy} ({cost[best]:.2f}): "
        f"{share:.0%} of the gain of {most.policy}, {compared} {KEPT_GAIN:.0%}"
    ]


def _kept_answers(most: Accuracy, cost: dict[Accuracy, float]) -> list[str]:
    """Whether KEPT_ANSWERS of the answers of the largest nRC can be had for CHEAP_SHARE of its cost."""
    stopped = [r for r in cost if r.policy.startswith(f"{most.policy}~") and r.agreement is not None]
    enough = [r for r in stopped if r.agreement is not None and r.agreement >= KEPT_ANSWERS]
    if not stopped:
        return []
    limit = CHEAP_SHARE * cost[most]
    if not enough:
        return [f"no stopped {most.policy} gives {KEPT_ANSWERS:.0%} of its answers"]
    best = min(enough, key=cost.__getitem__)
    within = "within" if cost[best] <= limit else "more than"
    return [
        f"{KEPT_ANSWERS:.0%} of the answers of {most.policy} take {cost[best]:.2f} forward passes ({best.policy}): "
        f"{within} a third of its cost"
    ]


def _throughput_lines(throughputs: list[Throughput]) -> list[str]:
    rows = rate_rows(throughputs)
    if not rows:
        why = "end to end was not timed together with the pipeline and the network alone"
        return [why, *_stages(throughputs), *timing_notes(throughputs)]
    rounds = len(throughputs[0].rates)
    lines = [
        f"end to end, images/s: medians of {rounds} rounds; spread is largest minus smallest over the median",
        *_table(RATES, rows),
        *_policies(throughputs),
        *_stages(throughputs),
        *_by_process([row["record"] for row in rows]),
    ]
    return lines + timing_notes(throughputs)


def _policies(throughputs: list[Throughput]) -> list[str]:
    """The dense and stopped policies."""
    rows = policy_rows(throughputs)
    if not rows:
        return []
    heading = (
        f"dense crops and early stopping, end to end, {len(rows[0]['rates'])} rounds; as scored: timed answers that "
        "are those of the accuracy pass"
    )
    return [heading, *_table(POLICY_RATES, rows)]


def _by_process(end_to_end: list[Throughput]) -> list[str]:
    """A line for each of several processes; the table's rates are those of all together."""
    count = len(end_to_end[0].rank_rates[0]) if end_to_end and end_to_end[0].rank_rates else 0
    lines = []
    for rank in range(count):
        rates = [f"{t.crops}: {np.median([t.rank_rates[i][rank] for i in t.kept]):.1f}" for t in end_to_end]
        lines.append(f"of that, process {rank}, images/s at each number of crops: {', '.join(rates)}")
    return lines


def _stages(throughputs: list[Throughput]) -> list[str]:
    """One line for what does not depend on the crops, one for the crossover."""
    stages = [f"{t.stage} {t.rate:.0f}" for t in throughputs if t.stage in (READ, DECODE, RESIZE)]
    lines = [f"of the pipeline alone, images/s, each with those before it: {', '.join(stages)}"] if stages else []
    if found := crossover(throughputs):
        lines.append(
            f"network and pipeline take equal time at {found.predicted:.1f} crops (from the ceilings), {found.text}"
        )
    return lines


def headline(records: Sequence[Record], known: Sequence[Comparison] = ()) -> list[dict[str, Any]]:
    """Per network and size, for the JSON line: centre-crop top-1 and the published one, the best policy, images/s by
    crop count. Absent is None. Original labels."""
    out = []
    for setting in dict.fromkeys(record.setting for record in records):
        mine = [r for r in records if r.setting == setting]
        accuracies = [r for r in mine if isinstance(r, Accuracy) and r.labels == ORIGINAL]
        baseline = next((r for r in accuracies if r.policy == "CC" and r.level == "softmax"), None)
        best = max(accuracies, key=lambda r: (r.top1, -r.n_views), default=None)
        rows = rate_rows([r for r in mine if isinstance(r, Throughput)])
        out.append(
            {
                "model": setting.model,
                "K": setting.K,
                "demo": setting.is_demo,
                "top1_centre_crop": baseline and round(baseline.top1, 3),
                **known_answers.headline(known, setting),
                "best_policy": best and {"policy": best.policy, "level": best.level, "top1": round(best.top1, 3)},
                "images_per_sec": {str(row["crops"]): round(row["images_per_sec"], 2) for row in rows} or None,
                "timing_notes": timing_notes([r for r in mine if isinstance(r, Throughput)]),
                "not_measured": {r.what: r.reason for r in mine if isinstance(r, Absent)},
            }
        )
    return out


def accounting_lines(accounts: Sequence[ImageAccounting]) -> list[str]:
    """For each network: what became of every image."""
    return [
        f"{visible(one.setting.model)}: {one.expected:,} images, {one.scored:,} scored, unreadable "
        f"{one.unreadable_at_scan:,} at the scan and {one.unreadable_when_decoded:,} when decoded"
        for one in accounts
    ]


def failure_lines(failed: Sequence[FailedModel]) -> list[str]:
    """For each network that failed: where and why."""
    return [f"FAILED: {visible(one.label)} ({one.stage}): {visible(one.reason)}" for one in failed]


def accounting_headline(accounts: Sequence[ImageAccounting]) -> list[dict[str, Any]]:
    """The same for the JSON line."""
    return [
        {
            "model": one.setting.model,
            "expected": one.expected,
            "scored": one.scored,
            "unreadable": {"scan": one.unreadable_at_scan, "decode": one.unreadable_when_decoded},
        }
        for one in accounts
    ]
