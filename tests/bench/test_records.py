"""Records against what was put in: lines, files, damage, and when two may be compared."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench import records
from bench.records import Absent, Accuracy, ImageAccounting, Incomparable, Latency, Record, Setting, Throughput

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
LEDGER = ImageAccounting(SETTING, 7, 4, 1, 2, [["a/1.jpg", "decode", "truncated"], ["a/2.jpg", "decode", "zero bytes"]])
LATENCY = Latency(SETTING, "5RC", 5, 5, [4.0, 4.5, 9.25], [0, 7, 3], 5.0)
EXAMPLES: dict[str, Record] = {record.kind: record for record in (ACCURACY, THROUGHPUT, LATENCY, ABSENT, LEDGER)}


# -------------------------------------------------------------------------------------------------------- the records


def test_the_gain_is_the_difference_of_the_two_shares() -> None:
    baseline = replace(ACCURACY, policy="CC", top1_correct=715 - 40 + 25, newly_correct=0, newly_wrong=0)
    assert ACCURACY.top1 - baseline.top1 == pytest.approx(ACCURACY.gain)
    assert baseline.gain == 0.0


def test_a_throughputs_rates_are_those_of_its_rounds() -> None:
    assert THROUGHPUT.rates == [60.0, 80.0, 40.0]
    assert (THROUGHPUT.rate, THROUGHPUT.images_per_sec, THROUGHPUT.crops_per_sec) == (60.0, 60.0, 300.0)
    assert pytest.approx(40 / 60) == THROUGHPUT.spread


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
    [({"schema": 3}, "schema 3"), ({"schema": None}, "schema None"), ({"kind": "colour"}, "'colour'")],
)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_other_schemas_and_kinds_are_refused_by_name(kind: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        records.from_line(changed_line(kind, **changes))


# Came later than the first records.
OPTIONAL = {
    "mean_views", "labels", "adapt", "folded", "processes", "prefetch", "mmap", "hw_load", "crop_operator",
    "fitting_batch_size", "rank_rates", "cpu_s", "disturbed", "tf32", "cudnn_benchmark", "hybrid_huffman_threshold",
    "forwards", "agreement", "first_threshold", "second_threshold", "images_needed", "note",
    "valid_labels", "deployed_threshold", "deployed_correct", "deployed_agreement", "deployed_forwards",
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_missing_field_is_refused_by_name(kind: str) -> None:
    whole = json.loads(records.to_line(EXAMPLES[kind]))
    optional = OPTIONAL | ({"policy"} if kind == "throughput" else set())
    for name in set(whole) - {"schema", "kind", "setting"} - optional:
        with pytest.raises(ValueError, match=f"missing fields in a {type(EXAMPLES[kind]).__name__}: {name}"):
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
    (folder / "run.json").write_text('{"schema": 2}', encoding="utf-8")
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
    with pytest.raises(ValueError, match=r"is not a run: it has no run\.json") as refused:
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
