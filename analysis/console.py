"""The records as a person reads them on a screen, and the headline figures for the last line of output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.ceilings import crossover, rate_rows
from analysis.summary import derived, p_value, top1_interval
from analysis.text import aligned
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
    Record,
    Throughput,
)

SHOWN_CURVE = (1, 2, 3, 5, 10, 20, 40)  # of the curve's policies, those that the table shows; summary.csv has all


RATE_HEADINGS = [
    *("crops", "images/s", "crops/s", "spread", "pipeline alone", "network alone", "ceiling", "reached"),
    *("slower part", "p50 ms", "p95 ms", "peak GB"),
]


def text(records: Sequence[Record]) -> str:
    """One section for each network at each of its sizes."""
    settings = dict.fromkeys(record.setting for record in records)
    return "\n\n".join(_section(setting.model, [r for r in records if r.setting == setting]) for setting in settings)


def _section(model: str, records: list[Record]) -> str:
    setting = records[0].setting
    demo = "  DEMO DATA: says nothing about ImageNet" if setting.is_demo else ""
    lines = [
        f"{model}  ({setting.weights} weights, {setting.K} from {setting.S} pixels, {setting.backend}, "
        f"{setting.device}, {setting.amp_dtype}, batch size {setting.batch_size}){demo}"
    ]
    for labels in LABELS:
        if accuracies := [r for r in records if isinstance(r, Accuracy) and r.labels == labels]:
            lines += ["", *_accuracy_table(accuracies)]
    throughputs = [r for r in records if isinstance(r, Throughput)]
    if throughputs:
        lines += ["", *_throughput_table(throughputs)]
    fitting = {r.fitting_batch_size for r in records if isinstance(r, (Accuracy, Throughput))} - {None}
    lines += [f"out of memory at batch size {setting.batch_size}; used {n}" for n in fitting]
    lines += [f"not measured: {r.what}: {r.reason}" for r in records if isinstance(r, Absent)]
    return "\n".join(lines)


def _accuracy_table(accuracies: list[Accuracy]) -> list[str]:
    first = accuracies[0]
    what = "top-1 %, demo" if first.setting.is_demo else "top-1 %"
    if first.labels != ORIGINAL:
        what += f", {first.labels} labels"
    shares = f"{first.images} images, {first.unreadable} unreadable"
    rows = [["policy", "level", "top-1", "95 % interval", "gain", "newly correct", "newly wrong", "p", "top-5", "NLL"]]
    for record in accuracies:
        if not is_shown(record.policy, record.n_views):
            continue
        low, high = top1_interval(record)
        rows.append(
            [
                record.policy,
                record.level,
                f"{record.top1:.2f}",
                f"{low:.2f}..{high:.2f}",
                f"{record.gain:+.2f}" if record.policy != "CC" else "",
                str(record.newly_correct),
                str(record.newly_wrong),
                f"{p_value(record):.2g}" if record.policy != "CC" else "",
                f"{record.top5:.2f}",
                f"{record.nll_mean:.3f}" if record.nll_mean is not None else "",
            ]
        )
    note = "newly correct, newly wrong, p (exact McNemar test): against CC; every n of the curves is in summary.csv"
    return [f"{what} ({shares})", *aligned(rows), note]


def is_shown(policy: str, n_views: int) -> bool:
    plain_curve = policy == f"{n_views}RC" or policy == f"CC+{n_views - 1}RC"
    return not plain_curve or n_views in SHOWN_CURVE


def _throughput_table(throughputs: list[Throughput]) -> list[str]:
    rows = [RATE_HEADINGS]
    found = rate_rows(throughputs)
    for row in found:
        figures = derived(row["record"])
        rows.append(
            [
                str(row["crops"]),
                f"{row['images_per_sec']:.1f}",
                f"{row['crops_per_sec']:.0f}",
                f"{100 * row['spread']:.0f} %",
                f"{row['pipeline_images_per_sec']:.1f} im/s",
                f"{row['network_crops_per_sec']:.0f} crops/s",
                f"{row['ceiling_images_per_sec']:.1f}",
                f"{100 * row['efficiency']:.0f} %",
                row["binds"],
                f"{figures['interval_p50_ms']:.0f}",
                f"{figures['interval_p95_ms']:.0f}",
                f"{row['record'].peak_mem_bytes / 1e9:.1f}",
            ]
        )
    rounds = len(throughputs[0].durations_s)
    lines = [f"end to end, images/s: medians of {rounds} rounds; spread is largest minus smallest over the median"]
    lines += aligned(rows)
    lines += _stages(throughputs)
    lines += _by_process([row["record"] for row in found])
    shaky = [str(row["crops"]) for row in found if row["spread"] > 0.2]
    if shaky:
        lines.append(
            f"the rounds differ by more than 20 % at {', '.join(shaky)} crops: close other programs, or use "
            "--rounds 15 --round-seconds 3"
        )
    return lines


def _by_process(end_to_end: list[Throughput]) -> list[str]:
    """A line for each of several processes; the table's rates are those of all together."""
    count = len(end_to_end[0].rank_rates[0]) if end_to_end and end_to_end[0].rank_rates else 0
    lines = []
    for rank in range(count):
        rates = [f"{t.crops}: {np.median([each[rank] for each in t.rank_rates]):.1f}" for t in end_to_end]
        lines.append(f"of that, process {rank}, images/s at each number of crops: {', '.join(rates)}")
    return lines


def _stages(throughputs: list[Throughput]) -> list[str]:
    """One line for what does not depend on the crops, one for the crossover."""
    stages = [f"{t.stage} {t.rate:.0f}" for t in throughputs if t.stage in (READ, DECODE, RESIZE)]
    lines = [f"of the pipeline alone, images/s, each with those before it: {', '.join(stages)}"] if stages else []
    found = crossover(throughputs)
    if found:
        seen = "" if found.observed is None else f", observed end to end at {found.observed:.1f}"
        lines.append(f"network and pipeline take equal time at {found.predicted:.1f} crops (from the ceilings){seen}")
    return lines


def headline(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Per network and size, for the JSON line: centre-crop top-1, the best policy, images/s by crop count. Absent is
    None. Original labels."""
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
                "best_policy": best and {"policy": best.policy, "level": best.level, "top1": round(best.top1, 3)},
                "images_per_sec": {str(row["crops"]): round(row["images_per_sec"], 2) for row in rows} or None,
                "not_measured": {r.what: r.reason for r in mine if isinstance(r, Absent)},
            }
        )
    return out


def accounting_lines(accounts: Sequence[ImageAccounting]) -> list[str]:
    """For each network: what became of every image."""
    return [
        f"{one.setting.model}: {one.expected:,} images, {one.scored:,} scored, unreadable "
        f"{one.unreadable_at_scan:,} at the scan and {one.unreadable_when_decoded:,} when decoded"
        for one in accounts
    ]


def failure_lines(failed: Sequence[FailedModel]) -> list[str]:
    return [f"FAILED: {one.label} ({one.stage}): {one.reason}" for one in failed]


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
