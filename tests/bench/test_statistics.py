"""The records' statistics against hand-made references: formulas written out, binomial sums, simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import records
from bench.records import Absent, Accuracy, Incomparable, Setting, Throughput

SETTING = Setting(
    model="m",
    family="resnet",
    variant="18",
    weights="pretrained",
    weight_hash="ab",
    param_count=5,
    published_top1=69.76,
    published_in="MID Table I",
    S=256,
    K=224,
    interpolation="bilinear",
    crop_mode="center",
    data="val",
    data_hash="cd",
    is_demo=False,
    backend="dali-cpu",
    batch_size=16,
    batch_images=32,
    workers=2,
    device="cpu",
    machine_id="x",
    amp_dtype="float32",
    channels_last=False,
    torchcompile=False,
    seed=0,
)


def accuracy(**changes: object) -> Accuracy:
    values = {
        "setting": SETTING,
        "policy": "10RC",
        "n_views": 10,
        "level": "softmax",
        "images": 1000,
        "unreadable": 2,
        "top1_correct": 720,
        "top5_correct": 900,
        "nll_mean": 1.25,
        "fixed": 40,
        "broken": 20,
    }
    return Accuracy(**{**values, **changes})  # type: ignore[arg-type]


def rate(stage: str, crops: int | None, per_second: list[float]) -> Throughput:
    counts = [round(r * 10) for r in per_second]
    return Throughput(SETTING, stage, crops, 32, counts, [10.0] * len(counts), [1.0, 2.0, 9.0], 10**9, None, 0.01)


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (centre - half), 100 * (centre + half)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (7, 10), (720, 1000), (34880, 50000)])
def test_wilson_is_the_formula(k: int, n: int) -> None:
    assert records.wilson(k, n) == pytest.approx(wilson_by_hand(k, n), abs=1e-9)


@pytest.mark.parametrize(("fixed", "broken"), [(40, 20), (20, 40), (3, 3), (1, 0), (0, 9)])
def test_mcnemar_is_the_binomial_sum(fixed: int, broken: int) -> None:
    n = fixed + broken
    tail = sum(math.comb(n, i) for i in range(min(fixed, broken) + 1)) / 2**n
    assert records.mcnemar(fixed, broken) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def test_mcnemar_without_a_change_is_one() -> None:
    assert records.mcnemar(0, 0) == 1.0


def test_paired_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    n, shares = 400, [0.6, 0.1, 0.06, 0.24]  # right both, fixed, broken, wrong both
    hits = 0
    for _ in range(1000):
        both, fixed, broken, _ = rng.multinomial(n, shares)
        low, high = records.paired_difference(fixed, broken, both + fixed, n)
        hits += low <= 4.0 <= high
    assert 0.93 <= hits / 1000 <= 0.975


def test_paired_interval_is_symmetric_and_holds_its_estimate() -> None:
    low, high = records.paired_difference(40, 20, 720, 1000)
    mirrored = records.paired_difference(20, 40, 700, 1000)
    assert low < 2.0 < high
    assert mirrored == pytest.approx((-high, -low))
    low, high = records.paired_difference(0, 0, 500, 1000)  # no answer changed: no certainty that none would
    assert low == pytest.approx(-high) and 0 < high < 1


def test_derived_figures_of_an_accuracy() -> None:
    derived = accuracy().derived()
    assert (derived["top1"], derived["top1_err"], derived["top5"]) == (72.0, 28.0, 90.0)
    assert derived["gain"] == 2.0


@pytest.mark.parametrize(
    "record",
    [accuracy(), accuracy(nll_mean=None), rate("load", 5, [100.0, 120.0]), Absent(SETTING, "accuracy", "no labels")],
)
def test_a_line_reads_back_as_it_was(record: records.Record) -> None:
    line = records.to_line(record)
    assert "\n" not in line
    assert records.from_line(line) == record


def test_a_line_never_holds_nan() -> None:
    with pytest.raises(ValueError):
        records.to_line(accuracy(nll_mean=float("nan")))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"schema": 99}, "99"), ({"kind": "rumour"}, "rumour"), ({"policy": None, "surplus": 1}, "surplus")],
)
def test_foreign_lines_are_refused_by_name(change: dict, named: str) -> None:
    values = {**json.loads(records.to_line(accuracy())), **change}
    with pytest.raises(ValueError, match=named):
        records.from_line(json.dumps(values))


def test_a_missing_field_is_named() -> None:
    values = json.loads(records.to_line(accuracy()))
    del values["fixed"]
    with pytest.raises(ValueError, match="fixed"):
        records.from_line(json.dumps(values))


def test_a_damaged_run_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    records.append(tmp_path, accuracy())
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind"')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2"):
        records.read_run(tmp_path)
    with pytest.raises(ValueError, match="is no run"):
        records.read_run(tmp_path / "elsewhere")


@pytest.mark.parametrize("field", [f.name for f in fields(Setting)])
def test_whatever_differs_is_named(field: str) -> None:
    value = getattr(SETTING, field)
    other = replace(SETTING, **{field: (not value) if isinstance(value, bool) else "other"})
    records.require_comparable(SETTING, SETTING)
    with pytest.raises(Incomparable, match=field):
        records.require_comparable(SETTING, other)
    records.require_comparable(SETTING, other, varying=[field])


def test_summary_leaves_what_is_absent_empty(tmp_path: Path) -> None:
    import csv

    everything = [accuracy(), rate("model", None, [500.0]), Absent(SETTING, "accuracy at level feature", "none")]
    with records.write_summary(tmp_path, everything).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["accuracy", "throughput", "absent"]
    assert (rows[0]["top1"], rows[0]["images_per_sec"]) == ("72.0", "")
    assert (rows[1]["crops_per_sec"], rows[1]["images_per_sec"], rows[1]["top1"]) == ("500.0", "", "")
    assert rows[2]["reason"] == "none"


def test_ceilings() -> None:
    shared = records.ceiling_images_per_sec(400, 1000, 10, shared=True)
    assert shared == pytest.approx(1 / (1 / 400 + 10 / 1000))
    assert records.ceiling_images_per_sec(400, 1000, 10, shared=False) == 100
    assert records.ceiling_images_per_sec(50, 1000, 10, shared=False) == 50


def test_rates_beside_their_ceilings_and_the_crossover() -> None:
    """On shared cores with P = 400 images/s and M = 1000 crops/s, an ideal machine turns at N = M / P = 2.5."""
    counts = (1, 2, 5, 10)
    ideal = [rate("end_to_end", n, [1 / (1 / 400 + n / 1000)] * 3) for n in counts]
    run = [rate("model", None, [1000.0] * 3), *(rate("load", n, [400.0] * 3) for n in counts), *ideal]
    rows = records.rate_rows(run)
    assert [row["crops"] for row in rows] == list(counts)
    assert all(row["efficiency"] == pytest.approx(1, abs=0.01) for row in rows)
    assert [row["binds"] for row in rows] == ["pipeline", "pipeline", "network", "network"]
    assert all(a["images_per_sec"] > b["images_per_sec"] for a, b in pairwise(rows))
    turn = records.crossover(run)
    assert turn is not None
    assert turn.predicted == pytest.approx(2.5, rel=0.01)
    assert turn.observed == pytest.approx(2.5, rel=0.03)


def test_asdict_names_every_field_once() -> None:
    assert set(asdict(accuracy())) == {f.name for f in fields(Accuracy)}
