"""analysis.gpu_targets on folders made here from literal numbers: what passes, what misses, what is absent and why."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import gpu_targets
from analysis.gpu_targets import Target
from bench import records
from bench.compare import loader_records
from bench.compare.gpu_steps import HEADLINE, NETWORKS
from bench.compare.loader_records import NotTimed, Timed, Workload
from bench.records import Setting, Throughput
from models.variants import COMPILED, PLAIN, TIMM

SETTING = Setting(
    model="resnet50.a1_in1k", family="resnet", variant="50", weights="random", weight_hash="aa", param_count=25,
    published_top1=None, published_in=None, S=256, K=224, interpolation="bilinear", crop_mode="center", data="val",
    data_hash="dd", is_demo=True, backend="dali-gpu", batch_size=256, batch_images=256, workers=16, device="cuda:0",
    machine_id="m1", amp_dtype="float16", channels_last=True, torchcompile=True, seed=0, hw_load=0.25,
)  # fmt: skip


def found(folder: Path, prefix: str) -> list[Target]:
    return [
        target
        for target in gpu_targets.targets(folder, lambda step: f"because of {step}")
        if target.what.startswith(prefix)
    ]


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_nothing_measured_is_said_of_every_bar(tmp_path: Path) -> None:
    found = gpu_targets.targets(tmp_path, lambda step: f"because of {step}")
    assert {target.verdict for target in found} == {"absent"}
    assert [(target.wanted, target.note) for target in found] == [
        (0.95, "because of run-resnet:50"), (5, "because of loaders-1"), (20, "because of loaders-20"),
        *((1, f"because of network-{model}") for model in NETWORKS), (0.95, "because of kernels"),
        (0.99, "because of parity-0"), (0.99, "because of parity-1"),
    ]  # fmt: skip
    assert [line.split()[-4:-3] for line in gpu_targets.text(found)[1:3]] == [["absent"], ["absent"]]


def rates(stage: str, crops: int | None, rate: float) -> Throughput:
    return Throughput(SETTING, stage, crops, 8, [int(rate)] * 3, [1.0] * 3, [1.0], 10**9, None, 0.0)


def test_end_to_end_is_held_against_the_smaller_ceiling_more_strictly_where_they_lie_apart(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "resnet-50"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"schema": 2}')
    lines = [rates("model", None, 8000)]
    for crops, pipeline, reached in ((1, 4000, 3800), (2, 5000, 3400), (5, 4000, 1519), (20, 4000, 396)):
        lines += [rates("load", crops, pipeline), rates("end_to_end", crops, reached)]
    records.extend(folder, lines)
    assert [
        (b.what[-8:], b.wanted, b.verdict) for b in found(tmp_path, f"end to end over its ceiling, {HEADLINE}")
    ] == [
        (" 1 crops", 0.95, "pass"),  # 3800 of 4000; the network alone would do 8000
        (" 2 crops", 0.85, "pass"),  # 3400 of 4000; 5000 is not 1.5 times that
        (" 5 crops", 0.95, "miss"),  # 1519 of 1600
        ("20 crops", 0.95, "pass"),  # 396 of 400
    ]
    assert "P 4000, M/N 1600, end to end 1519 images/s, which spread by 0%" in found(tmp_path, "end to end")[2].note


def test_the_fastest_of_ours_is_held_against_the_pil_loader_in_floats(tmp_path: Path) -> None:
    def line(loader: str, output: str, crops: int, number: int, rate: float) -> Timed:
        return Timed(loader, Workload(output, crops), number, int(1000 * rate * crops), 1000.0, 64, 1, 0.1)

    one, twenty = tmp_path / "loaders" / "1", tmp_path / "loaders" / "20"
    one.mkdir(parents=True)
    twenty.mkdir()
    for number, slow in enumerate((1.0, 0.5, 1.0)):
        loaders = {"dali-cpu": 300.0, "dali-gpu": 480.0, "pil": 100.0}
        for loader, rate in loaders.items():
            loader_records.append(one, line(loader, "float16", 1, number, slow * rate))
            loader_records.append(one, line(loader, "uint8", 1, number, (9 if "dali" in loader else 1) * rate))
    loader_records.append(twenty, line("dali-gpu", "float16", 20, 0, 400.0))
    loader_records.append(twenty, NotTimed("pil", None, "no worker came up"))
    first, second = found(tmp_path, "pipeline over")
    assert (first.wanted, first.measured, first.verdict) == (5, pytest.approx(4.8), "miss")
    assert first.note == "dali-gpu, 4.80 .. 4.80, 3 rounds"
    assert (second.wanted, second.verdict, second.note) == (20, "absent", "pil: no worker came up")


def test_networks_are_compared_at_their_best_batch_sizes(tmp_path: Path) -> None:
    def rows(batch_size: int, timm: float, ours: float) -> list[dict[str, Any]]:
        loaders = {PLAIN: 1.0, TIMM: timm, "float16, channels-last, fold": 9e9, f"float16, {COMPILED}": ours}
        return [
            {"batch_size": batch_size, "variant": variant, "crops_per_sec": rate} for variant, rate in loaders.items()
        ]

    table(tmp_path / "network" / "resnet-50-256" / "network.csv", rows(256, timm=8000, ours=9000))
    table(tmp_path / "network" / "resnet-50-64" / "network.csv", rows(64, timm=10_000, ours=9500))
    table(tmp_path / "network" / "nfnet-f0-256" / "network.csv", rows(256, timm=800, ours=801)[:2])
    first, *others = found(tmp_path, "network alone")
    assert (first.measured, first.verdict) == (0.95, "miss")
    assert first.note == "ours 9500 crops/s at 64, timm 10000 crops/s at 64, of batch sizes 64, 256"
    assert [target.note for target in others if target.what.endswith("nfnet:f0")] == ["no compiled variant was timed"]
    assert {target.verdict for target in others} == {"absent"}


def test_kernels_are_asked_of_five_crops_and_more(tmp_path: Path) -> None:
    shares = {1: 0.5, 5: 0.95, 10: 0.949, 20: ""}
    table(
        tmp_path / "here" / "kernels.csv",
        [{"model": HEADLINE, "crops": n, "kernel_share": share} for n, share in shares.items()],
    )
    verdicts = [(target.what.split(", ")[-1], target.verdict) for target in found(tmp_path / "here", "kernels")]
    assert verdicts == [("5 crops", "pass"), ("10 crops", "miss"), ("20 crops", "absent")]


def test_answers_of_the_gpu_are_held_against_each_other_backends(tmp_path: Path) -> None:
    folder = tmp_path / "parity" / "hw-1"
    folder.mkdir(parents=True)
    agreement = {
        "dali-gpu - dali-cpu": {"CC": 1.0, "10RC": 0.98}, "dali-gpu - torchvision": {"CC": 0.99, "10RC": 1.0},
        "dali-cpu - torchvision": {"CC": 0.1},
    }  # fmt: skip
    frames = {pair: {"mean": 0.5, "worst": 1.0} for pair in agreement}
    (folder / "parity.json").write_text(json.dumps({"images": 9, "top1_agreement": agreement, "frames": frames}))
    absent, *compared = found(tmp_path, "same answer")
    assert (absent.verdict, absent.note) == ("absent", "because of parity-0")
    assert [(target.measured, target.verdict) for target in compared] == [(0.98, "miss"), (0.99, "pass")]
    assert compared[0].note == "at 10RC, 9 images; frames differ by 0.500 grey levels"
    (folder / "parity.json").write_text(json.dumps({"images": 9, "top1_agreement": {}, "frames": {}}))
    assert [target.note for target in found(tmp_path, "same answer")][1] == "dali-gpu was not compared"


def test_what_is_damaged_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "loaders" / "1").mkdir(parents=True)
    (tmp_path / "loaders" / "1" / "loaders.jsonl").write_text('{"schema": 2, "ki')
    (target,) = found(tmp_path, "over pil")
    assert (target.wanted, target.verdict) == (None, "absent")
    assert "loaders.jsonl, line 1" in target.note
    assert len(found(tmp_path, "network alone")) == len(NETWORKS)
    assert gpu_targets.text([target])[1].startswith("over pil       -         -  absent  /")


def test_the_table_is_written_and_printed(tmp_path: Path) -> None:
    rows = [
        Target("one thing", 0.95, 0.97),
        Target("another", 5, 4.8, "by so much"),
        Target("third", 1, None, "it failed"),
    ]
    assert gpu_targets.text(rows) == [
        "           wanted  measured",
        "one thing    0.95     0.970  pass",
        "another      5.00     4.800  miss    by so much",
        "third        1.00         -  absent  it failed",
    ]
    gpu_targets.write(tmp_path / "gpu_targets.csv", rows)
    with (tmp_path / "gpu_targets.csv").open() as file:
        assert [(row["measured"], row["verdict"]) for row in csv.DictReader(file)] == [
            ("0.97", "pass"), ("4.8", "miss"), ("", "absent"),
        ]  # fmt: skip
    assert replace(rows[0], measured=0.949).verdict == "miss"
