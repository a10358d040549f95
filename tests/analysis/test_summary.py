"""Derived columns against their counts, and summary.csv."""

from __future__ import annotations

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest

from analysis import stats, summary
from bench.records import Absent, Accuracy, Setting, Throughput

SETTING = Setting(
    model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa", param_count=11,
    published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear", crop_mode="center",
    data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2,
    device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip
ACCURACY = Accuracy(SETTING, "CC+4RC", 5, "softmax", 1000, 3, 715, 912, 1.125, 40, 25, 5.0)
THROUGHPUT = Throughput(
    SETTING, "end_to_end", 5, 8, [30, 40, 20], [0.5, 0.5, 0.5], [10.0, 12.0], 10**9, None, 0.0625
)  # fmt: skip
ABSENT = Absent(SETTING, "accuracy at level feature", 'it has no „pooled\u2028feature“, says "SqueezeNet",\nand so on')


def test_an_accuracys_figures_are_those_of_its_counts() -> None:
    derived = summary.derived(ACCURACY)
    assert (derived["top1"], derived["top1_err"], derived["top5"]) == pytest.approx((71.5, 28.5, 91.2))
    assert derived["gain"] == pytest.approx(1.5)  # 40 - 25 of 1000
    assert (derived["top1_low"], derived["top1_high"]) == stats.wilson(715, 1000)
    assert (derived["gain_low"], derived["gain_high"]) == stats.paired_difference(40, 25, 715, 1000)
    assert derived["p_value"] == stats.mcnemar(40, 25)


def test_the_baseline_has_no_gain_and_no_interval_of_one() -> None:
    derived = summary.derived(replace(ACCURACY, policy="CC", top1_correct=700, newly_correct=0, newly_wrong=0))
    assert [derived[name] for name in ("gain", "gain_low", "gain_high", "p_value")] == [0.0, 0.0, 0.0, 1.0]


def test_a_throughputs_figures_are_those_of_its_rounds() -> None:
    derived = summary.derived(THROUGHPUT)
    assert (derived["rate_low"], derived["rate_high"]) == (40.0, 80.0)
    assert (derived["interval_p50_ms"], derived["interval_p95_ms"]) == pytest.approx((11.0, 11.9))


def test_the_summary_has_a_row_for_each_record_and_empty_cells_for_what_is_absent(tmp_path: Path) -> None:
    network = replace(THROUGHPUT, stage="model", crops=None, counts=[500], durations_s=[1.0])
    unscored = replace(ACCURACY, nll_mean=None, mean_views=None)
    path = summary.write_summary(tmp_path, [ACCURACY, THROUGHPUT, ABSENT, network, unscored])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]
    assert [row["kind"] for row in rows] == ["accuracy", "throughput", "absent", "throughput", "accuracy"]
    for row in rows:
        assert row.keys() >= {field.name for field in fields(Setting)}
        assert not row.keys() & {"setting", "counts", "durations_s", "interval_ms"}  # raw values stay in the lines
        assert row["model"] == "resnet18.tv_in1k" and row["seed"] == "0" and row["channels_last"] == "False"
    for derived, row in ((summary.derived(ACCURACY), rows[0]), (summary.derived(THROUGHPUT), rows[1])):
        assert {name: float(row[name]) for name in derived} == derived
    assert (rows[0]["policy"], rows[0]["n_views"], rows[0]["newly_correct"]) == ("CC+4RC", "5", "40")
    assert rows[2]["reason"] == ABSENT.reason
    accuracy_only = {"policy", "top1", "gain_low", "p_value", "nll_mean"}
    throughput_only = {"stage", "images_per_sec", "spread", "peak_mem_bytes", "interval_p95_ms"}
    assert {rows[0][name] for name in throughput_only} == {rows[1][name] for name in accuracy_only} == {""}
    assert {rows[2][name] for name in accuracy_only | throughput_only} == {""}
    assert (rows[3]["images_per_sec"], rows[3]["crops_per_sec"], rows[3]["crops"]) == ("", "500.0", "")
    assert (rows[4]["nll_mean"], rows[4]["mean_views"]) == ("", "")
