"""Statistics against published examples, exact sums and simulation; records against what was put in.

References: Newcombe (1998a), Statist. Med. 17, 857 (one share), Table I; Newcombe (1998b), Statist. Med. 17, 2635
(paired shares), method 10; Fagerland, Lydersen and Laake (2014), Statist. Med. 33, 2850, whose example is Bentur's.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import records
from bench.records import Absent, Accuracy, Incomparable, Ledger, Record, Setting, Throughput

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
LEDGER = Ledger(SETTING, 7, 4, 1, 2, [["a/1.jpg", "decode", "truncated"], ["a/2.jpg", "decode", "zero bytes"]])
EXAMPLES: dict[str, Record] = {record.kind: record for record in (ACCURACY, THROUGHPUT, ABSENT, LEDGER)}


def rates(stage: str, crops: int | None, *per_second: float, setting: Setting = SETTING) -> Throughput:
    """Rounds of 8 seconds each."""
    counts = [int(8 * rate) for rate in per_second]
    return Throughput(setting, stage, crops, 8, counts, [8.0] * len(counts), [1.0], 10**9, None, 0.0)


# ---------------------------------------------------------------------------------------------------------- one share


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_examples(successes: int, trials: int, low: float, high: float) -> None:
    assert records.wilson(successes, trials) == pytest.approx((100 * low, 100 * high), abs=0.0051)


@pytest.mark.parametrize(("successes", "trials"), [(1, 29), (720, 1000), (41_234, 50_000), (28, 29)])
def test_wilsons_ends_are_where_the_score_test_turns(successes: int, trials: int) -> None:
    share = successes / trials
    for end in records.wilson(successes, trials):
        p = end / 100
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / trials), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ paired shares


def binomial_p_value(fixed: int, broken: int) -> float:
    """Two-sided: all splits of the changed images that are no likelier than this one."""
    n = fixed + broken
    weights = [math.comb(n, k) for k in range(n + 1)]
    return float(Fraction(sum(w for w in weights if w <= weights[fixed]), 2**n))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 1), (1, 0), (5, 0), (7, 1), (12, 2), (30, 30), (31, 30), (140, 97)])
def test_mcnemar_is_a_sum_of_binomials(fixed: int, broken: int) -> None:
    assert records.mcnemar(fixed, broken) == pytest.approx(binomial_p_value(fixed, broken), rel=1e-9)
    assert records.mcnemar(broken, fixed) == pytest.approx(records.mcnemar(fixed, broken), rel=1e-12)


def test_mcnemar_of_nothing_changed_is_one() -> None:
    assert records.mcnemar(0, 0) == 1.0


def test_mcnemar_gives_the_published_example() -> None:
    assert records.mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)  # Bentur's children: 18/256


@pytest.mark.parametrize(
    ("both", "fixed", "broken", "neither", "low", "high"),
    [
        (36, 12, 2, 0, 0.0569, 0.3404),  # the first four: Newcombe (1998b)
        (18, 12, 2, 18, 0.0562, 0.3290),
        (53, 0, 0, 1, -0.0729, 0.0729),
        (0, 30, 0, 0, 0.8395, 1.0),
        (1, 1, 7, 12, -0.507, -0.026),  # Fagerland and others (2014)
    ],
)
def test_the_paired_interval_gives_the_published_examples(
    both: int, fixed: int, broken: int, neither: int, low: float, high: float
) -> None:
    found = records.paired_difference(fixed, broken, both + fixed, both + fixed + broken + neither)
    digits = 3 if low == -0.507 else 4
    assert found == pytest.approx((100 * low, 100 * high), abs=51 * 10.0**-digits)


@pytest.mark.parametrize(
    ("n", "both", "fixed", "broken"), [(1000, 0.66, 0.05, 0.03), (300, 0.8, 0.02, 0.05), (100, 0.3, 0.2, 0.2)]
)
def test_the_paired_interval_covers_the_truth_in_95_of_100_samples(
    n: int, both: float, fixed: float, broken: float
) -> None:
    samples = np.random.default_rng(n).multinomial(n, [both, fixed, broken, 1 - both - fixed - broken], size=500)
    truth = 100 * (fixed - broken)
    intervals = [records.paired_difference(f, b, a + f, n) for a, f, b, _ in samples.tolist()]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98  # four standard errors about the method's own 0.95 to 0.96


def tables(n: int) -> Iterator[tuple[int, int, int, int]]:
    """Every way to be right with both, fixed, broken, wrong with both."""
    for both in range(n + 1):
        for fixed in range(n + 1 - both):
            for broken in range(n + 1 - both - fixed):
                yield both, fixed, broken, n - both - fixed - broken


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_paired_interval_of_every_small_table_holds_its_estimate_and_changes_sign_with_it(n: int) -> None:
    for both, fixed, broken, _ in tables(n):
        low, high = records.paired_difference(fixed, broken, both + fixed, n)
        assert isinstance(low, float) and isinstance(high, float)
        assert -100 - 1e-9 <= low <= 100 * (fixed - broken) / n <= high <= 100 + 1e-9
        other = records.paired_difference(broken, fixed, both + broken, n)
        assert other == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("correct", [0, 1, 500, 1000])
def test_nothing_changed_is_an_interval_about_zero(correct: int) -> None:
    low, high = records.paired_difference(0, 0, correct, 1000)
    assert low == pytest.approx(-high) and 0 < high < 1


def test_a_larger_sample_narrows_the_paired_interval() -> None:
    widths = [np.diff(records.paired_difference(4 * k, 2 * k, 70 * k, 100 * k))[0] for k in (1, 10, 100)]
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(10**0.5, rel=0.05)


# -------------------------------------------------------------------------------------------------------- the records


def test_an_accuracys_figures_are_those_of_its_counts() -> None:
    derived = ACCURACY.derived()
    assert (derived["top1"], derived["top1_err"], derived["top5"]) == pytest.approx((71.5, 28.5, 91.2))
    assert derived["gain"] == pytest.approx(1.5)  # 40 - 25 of 1000
    assert (derived["top1_low"], derived["top1_high"]) == records.wilson(715, 1000)
    assert (derived["gain_low"], derived["gain_high"]) == records.paired_difference(40, 25, 715, 1000)
    assert derived["p_value"] == pytest.approx(binomial_p_value(40, 25))


def test_the_gain_is_the_difference_of_the_two_shares() -> None:
    baseline = replace(ACCURACY, policy="CC", top1_correct=715 - 40 + 25, fixed=0, broken=0)
    assert ACCURACY.top1 - baseline.top1 == pytest.approx(ACCURACY.gain)
    assert (baseline.gain, baseline.p_value) == (0.0, 1.0)


def test_a_throughputs_figures_are_those_of_its_rounds() -> None:
    assert THROUGHPUT.rates == [60.0, 80.0, 40.0]
    assert (THROUGHPUT.rate, THROUGHPUT.images_per_sec, THROUGHPUT.crops_per_sec) == (60.0, 60.0, 300.0)
    assert pytest.approx(40 / 60) == THROUGHPUT.spread
    derived = THROUGHPUT.derived()
    assert (derived["rate_low"], derived["rate_high"]) == (40.0, 80.0)
    assert (derived["interval_p50_ms"], derived["interval_p95_ms"]) == pytest.approx((11.0, 11.9))


@pytest.mark.parametrize(
    ("stage", "crops", "images_per_sec", "crops_per_sec"),
    [("model", None, None, 60.0), ("decode", None, 60.0, None), ("load", 5, 60.0, 300.0)],
)
def test_images_and_crops_are_never_mixed_up(
    stage: str, crops: int | None, images_per_sec: float | None, crops_per_sec: float | None
) -> None:
    one = replace(THROUGHPUT, stage=stage, crops=crops)
    assert (one.images_per_sec, one.crops_per_sec) == (images_per_sec, crops_per_sec)


# ---------------------------------------------------------------------------------------------------- lines and files


def test_every_kind_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(records.KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_line_reads_back_equal(kind: str) -> None:
    line = records.to_line(EXAMPLES[kind])
    assert len(line.splitlines()) == 1
    assert records.from_line(line) == EXAMPLES[kind]
    assert json.loads(line)["schema"] == records.SCHEMA and json.loads(line)["kind"] == kind


def changed_line(example: str, **changes: Any) -> str:
    return json.dumps({**json.loads(records.to_line(EXAMPLES[example])), **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"schema": 2}, "schema 2"), ({"schema": None}, "schema None"), ({"kind": "latency"}, "'latency'")],
)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_other_schemas_and_kinds_are_refused_by_name(kind: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        records.from_line(changed_line(kind, **changes))


# Came later than the first records.
OPTIONAL = {
    "mean_views", "labels", "adapt", "folded", "processes", "prefetch", "mmap", "hw_load", "cut", "fitting_batch_size",
    "rank_rates",
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_missing_field_is_refused_by_name(kind: str) -> None:
    whole = json.loads(records.to_line(EXAMPLES[kind]))
    for name in set(whole) - {"schema", "kind", "setting"} - OPTIONAL:
        with pytest.raises(ValueError, match=f"missing fields in a {kind.title()}: {name}"):
            records.from_line(json.dumps({k: v for k, v in whole.items() if k != name}))
    for field in fields(Setting):
        setting = {k: v for k, v in whole["setting"].items() if k != field.name}
        if field.name in OPTIONAL:
            assert records.from_line(json.dumps({**whole, "setting": setting})) == EXAMPLES[kind]
            continue
        with pytest.raises(ValueError, match=f"missing fields in a Setting: {field.name}"):
            records.from_line(json.dumps({**whole, "setting": setting}))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_unknown_fields_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match="latency_ms"):
        records.from_line(changed_line(kind, latency_ms=3))
    with pytest.raises(ValueError, match="unknown fields in a Setting: mood"):
        records.from_line(changed_line(kind, setting={**asdict(SETTING), "mood": "good"}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "record",
    [
        lambda value: replace(ACCURACY, nll_mean=value),
        lambda value: replace(THROUGHPUT, durations_s=[1.0, value, 1.0]),
        lambda value: replace(ABSENT, setting=replace(SETTING, published_top1=value)),
    ],
)
def test_what_is_no_number_is_never_written(record: Any, value: float, tmp_path: Path) -> None:
    records.append(tmp_path, ACCURACY)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ValueError):
        records.append(tmp_path, record(value))
    assert (tmp_path / "results.jsonl").read_bytes() == before


def a_run(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"schema": 1}', encoding="utf-8")
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_a_run_reads_back_as_written(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"command": ["x"]}', encoding="utf-8")
    assert records.read_run(tmp_path).records == []
    for record in EXAMPLES.values():
        records.append(tmp_path, record)
    run = records.read_run(tmp_path)
    assert (run.folder, run.info) == (tmp_path, {"command": ["x"]})
    assert run.records == list(EXAMPLES.values())
    assert (run.accuracies, run.throughputs, run.absents) == ([ACCURACY], [THROUGHPUT], [ABSENT])


DAMAGES = {
    "cut": lambda line: line[:-20],
    "empty": lambda line: "",
    "no JSON": lambda line: "Killed",
    "a list": lambda line: f"[{line}]",
    "no setting": lambda line: changed_line("absent", setting=None),
    "another schema": lambda line: changed_line("absent", schema=0),
}


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        lambda line: "3",
        lambda line: "null",
    ],
    ids=[*DAMAGES, "a number", "null"],
)
def test_a_damaged_line_is_named_with_its_file(tmp_path: Path, damage: Any) -> None:
    lines = [records.to_line(record) for record in EXAMPLES.values()]
    lines[2] = damage(lines[2])
    with pytest.raises(ValueError, match=r"results\.jsonl, line 3: ") as refused:
        records.read_run(a_run(tmp_path / "run", *lines))
    assert str(tmp_path / "run") in str(refused.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: it has no run\.json") as refused:
        records.read_run(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refused.value)


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json"):
        records.read_run(tmp_path)


def test_a_whole_file_replaces_another_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    records.write_whole(path, "old")
    records.write_whole(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


# ------------------------------------------------------------------------------------------------------ comparability


@pytest.mark.parametrize("field", [field.name for field in fields(Setting)])
def test_every_difference_is_refused_by_its_name(field: str) -> None:
    value = getattr(SETTING, field)
    changed: dict[str, Any] = {field: (not value) if isinstance(value, bool) else "other" if value is None else None}
    other = replace(SETTING, **changed)
    with pytest.raises(Incomparable, match=f"cannot be compared: {field} is "):
        records.require_comparable(SETTING, other)
    with pytest.raises(Incomparable, match=f"cannot be compared: {field} is "):
        records.require_comparable(other, SETTING, varying={f.name for f in fields(Setting)} - {field})
    records.require_comparable(SETTING, other, varying=[field])


def test_equal_settings_are_comparable_also_when_read_back() -> None:
    records.require_comparable(SETTING, records.from_line(records.to_line(ACCURACY)).setting)


# ------------------------------------------------------------------------------------------------------------ summary


def test_the_summary_has_a_row_for_each_record_and_empty_cells_for_what_is_absent(tmp_path: Path) -> None:
    network = rates("model", None, 500.0)
    unscored = replace(ACCURACY, nll_mean=None, mean_views=None)
    path = records.write_summary(tmp_path, [ACCURACY, THROUGHPUT, ABSENT, network, unscored])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]
    assert [row["kind"] for row in rows] == ["accuracy", "throughput", "absent", "throughput", "accuracy"]
    for row in rows:
        assert row.keys() >= {field.name for field in fields(Setting)}
        assert not row.keys() & {"setting", "counts", "durations_s", "interval_ms"}  # raw values stay in the lines
        assert row["model"] == "resnet18.tv_in1k" and row["seed"] == "0" and row["channels_last"] == "False"
    for derived, row in ((ACCURACY.derived(), rows[0]), (THROUGHPUT.derived(), rows[1])):
        assert {name: float(row[name]) for name in derived} == derived
    assert (rows[0]["policy"], rows[0]["n_views"], rows[0]["fixed"]) == ("CC+4RC", "5", "40")
    assert rows[2]["reason"] == ABSENT.reason
    accuracy_only = {"policy", "top1", "gain_low", "p_value", "nll_mean"}
    throughput_only = {"stage", "images_per_sec", "spread", "peak_mem_bytes", "interval_p95_ms"}
    assert {rows[0][name] for name in throughput_only} == {rows[1][name] for name in accuracy_only} == {""}
    assert {rows[2][name] for name in accuracy_only | throughput_only} == {""}
    assert (rows[3]["images_per_sec"], rows[3]["crops_per_sec"], rows[3]["crops"]) == ("", "500.0", "")
    assert (rows[4]["nll_mean"], rows[4]["mean_views"]) == ("", "")


# ----------------------------------------------------------------------------------------------------------- ceilings


@pytest.mark.parametrize("crops", [1, 2, 5, 20])
@pytest.mark.parametrize(("P", "M"), [(400, 1000), (50, 6000), (3000, 90)])
def test_ceilings_are_those_of_the_design(P: int, M: int, crops: int) -> None:
    shared = records.ceiling_images_per_sec(P, M, crops, shared=True)
    apart = records.ceiling_images_per_sec(P, M, crops, shared=False)
    assert shared == pytest.approx(float(1 / (Fraction(1, P) + Fraction(crops, M))))
    assert apart == pytest.approx(float(min(Fraction(P), Fraction(M, crops))))
    assert apart / 2 <= shared < apart  # sharing cores costs something, at most half


@pytest.mark.parametrize(("device", "shared"), [("cpu", True), ("cuda:0", False)])
def test_each_crop_count_stands_beside_its_own_ceiling(device: str, shared: bool) -> None:
    setting = replace(SETTING, device=device)
    measured = [
        rates("decode", None, 900.0, setting=setting),
        rates("model", None, 1200.0, 1000.0, 800.0, setting=setting),
        rates("load", 10, 250.0, setting=setting),
        rates("end_to_end", 10, 80.0, 60.0, 70.0, setting=setting),
        rates("load", 1, 400.0, 500.0, 300.0, setting=setting),
        rates("end_to_end", 1, 200.0, setting=setting),
        rates("end_to_end", 7, 100.0, setting=setting),  # its pipeline was not timed: no ceiling, no row
    ]
    rows = {row["crops"]: row for row in records.rate_rows(measured)}
    assert set(rows) == {1, 10}
    for crops, P, reached in ((1, 400.0, 200.0), (10, 250.0, 70.0)):
        row, ceiling = rows[crops], records.ceiling_images_per_sec(P, 1000.0, crops, shared=shared)
        assert (row["pipeline_images_per_sec"], row["network_crops_per_sec"]) == (P, 1000.0)
        assert (row["images_per_sec"], row["crops_per_sec"]) == (reached, reached * crops)
        assert row["ceiling_images_per_sec"] == pytest.approx(ceiling)
        assert row["efficiency"] == pytest.approx(reached / ceiling)
        assert row["binds"] == ("pipeline" if crops == 1 else "network")
    assert rows[10]["rates"] == [80.0, 60.0, 70.0]


def test_without_the_network_alone_there_is_no_ceiling() -> None:
    measured = [rates("load", 1, 400.0), rates("end_to_end", 1, 200.0)]
    assert records.rate_rows(measured) == []
    assert records.crossover(measured) is None


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_ideal_machine_crosses_over_where_its_ceilings_say(device: str) -> None:
    setting, P, M = replace(SETTING, device=device), 4000.0, 16000.0
    measured = [rates("model", None, M, setting=setting)]
    for crops in (1, 2, 8, 16):
        ceiling = records.ceiling_images_per_sec(P, M, crops, shared=device == "cpu")
        measured += [
            rates("load", crops, P, setting=setting),
            rates("end_to_end", crops, ceiling, setting=setting),
        ]
    found = records.crossover(measured)
    assert found is not None and found.observed is not None
    assert (found.predicted, found.observed) == pytest.approx((4.0, 4.0), rel=0.01)
    one = records.crossover(measured[:3])
    assert one is not None and (one.predicted, one.observed) == (4.0, None)
