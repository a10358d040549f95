"""The columns derived from each record, and summary.csv, which has them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats import mcnemar, paired_difference, wilson
from bench.records import Absent, Accuracy, FailedModel, ImageAccounting, Latency, Record, Throughput
from pipelines.files import write_whole
from pipelines.text import csv_text

LATENCY_PERCENTILES = (50, 90, 99)


def top1_interval(record: Accuracy) -> tuple[float, float]:
    """Wilson's 95 % interval of top-1, percent."""
    return wilson(record.top1_correct, record.images)


def gain_interval(record: Accuracy) -> tuple[float, float]:
    """95 % interval of the gain over the centre crop on the same images, points (Newcombe)."""
    if record.policy == "CC":
        return 0.0, 0.0  # the baseline compared with itself: there is nothing to estimate
    return paired_difference(record.newly_correct, record.newly_wrong, record.top1_correct, record.images)


def p_value(record: Accuracy) -> float:
    """Exact McNemar test against the centre crop."""
    return mcnemar(record.newly_correct, record.newly_wrong)


def _of_accuracy(record: Accuracy) -> dict[str, Any]:
    low, high = top1_interval(record)
    gain_low, gain_high = gain_interval(record)
    return {
        "top1": record.top1,
        "top1_err": 100 - record.top1,
        "top1_low": low,
        "top1_high": high,
        "top5": record.top5,
        "gain": record.gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "p_value": p_value(record),
    }


def _of_throughput(record: Throughput) -> dict[str, Any]:
    p50, p95 = np.percentile(record.interval_ms, [50, 95]).tolist() if record.interval_ms else (None, None)
    return {
        "images_per_sec": record.images_per_sec,
        "crops_per_sec": record.crops_per_sec,
        "rate_low": min(record.rates),
        "rate_high": max(record.rates),
        "spread": record.spread,
        "rounds": len(record.counts),
        "rounds_disturbed": sum(map(bool, record.disturbed)),
        "interval_p50_ms": p50,
        "interval_p95_ms": p95,
    }


def _of_latency(record: Latency) -> dict[str, Any]:
    return {f"latency_p{percent}_ms": record.percentile(percent) for percent in LATENCY_PERCENTILES}


def _nothing(record: Absent | ImageAccounting) -> dict[str, Any]:
    return {}


DERIVED: dict[type, Callable[[Any], dict[str, Any]]] = {
    Accuracy: _of_accuracy,
    Throughput: _of_throughput,
    Latency: _of_latency,
    Absent: _nothing,
    ImageAccounting: _nothing,
}


def derived(record: Record) -> dict[str, Any]:
    """Column name -> value: percentages, points and their 95 % intervals, or rates per second."""
    return DERIVED[type(record)](record)


def summary(records: Sequence[Record], failed: Sequence[FailedModel] = ()) -> pd.DataFrame:
    """One row per record: its setting, its plain fields, its derived columns. What is absent is None.

    A network that failed has its label as ``model``, and ``stage`` and ``reason``.
    """
    rows = []
    for record in records:
        plain = {k: v for k, v in asdict(record).items() if k != "setting" and not isinstance(v, list)}
        rows.append({"kind": record.kind, **asdict(record.setting), **plain, **derived(record)})
    rows += [{"kind": one.kind, "model": one.label, "stage": one.stage, "reason": one.reason} for one in failed]
    return pd.DataFrame(rows, dtype=object)  # object: an integer column with gaps stays integers


def write_summary(folder: Path, records: Sequence[Record], failed: Sequence[FailedModel] = ()) -> Path:
    """Write ``summary`` as summary.csv into the run's folder; return its path. What is absent is empty."""
    path = folder / "summary.csv"
    write_whole(path, csv_text(summary(records, failed), "\r\n"))
    return path
