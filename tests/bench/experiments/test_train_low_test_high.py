"""The experiment of FixRes Tables 5 and 9 in the smallest: its arithmetic, going on, and its figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from analysis.experiments import split
from analysis.figures import train_low_test_high as figure
from bench.experiments import train_low_test_high as experiment
from bench.experiments.train_low_test_high import CROPS, InMemory, Row, peaks, table
from models.loading import load
from pipelines.data import demo

IMAGES = 40


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure("train", IMAGES, cache=tmp_path_factory.mktemp("demo"), workers=1)


@pytest.fixture
def command(small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr(demo, "ensure", lambda split: small_demo)

    def flags(out: Path, *more: str) -> list[str]:
        return [
            *("--out", str(out), "--train-sizes", "32,40", "--test-sizes", "32,48", "--images", "40", "--epochs", "1"),
            *("--val-images", "20", "--adapt-images", "16", "--adapt-epochs", "2", "--adapt-batch", "8", *more),
        ]

    return flags


def row(test_res: int, correct: int, **words: Any) -> Row:
    given = {
        "family": "resnet", "crop": CROPS["train"], "train_res": 48, "S": 55, "adaptation": "none", "images": 200,
        "newly_correct": 0, "newly_wrong": 0,
    }  # fmt: skip
    return Row(**{**given, "test_res": test_res, "top1_correct": correct, **words})


def test_whole_experiment_and_going_on(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert experiment.main(command(out)) == 0
    first = (out / "results.csv").read_text()
    rows = list(csv.DictReader(first.splitlines()))
    assert len(rows) == 2 * 2 * 2 * 2  # crops, train sizes, test sizes, adapted or not
    assert {r["adaptation"] for r in rows} == {"none", "classifier+bn"}
    assert {r["images"] for r in rows} == {"20"}
    for r in rows:
        assert float(r["top1"]) == pytest.approx(5 * int(r["top1_correct"]))
        assert float(r["top1_low"]) <= float(r["top1"]) <= float(r["top1_high"])
    for plain, tuned in zip(rows[::2], rows[1::2], strict=True):
        difference = int(tuned["top1_correct"]) - int(plain["top1_correct"])
        assert difference == int(tuned["newly_correct"]) - int(tuned["newly_wrong"])
    info = json.loads((out / "results.json").read_text())
    assert set(info["training"]) == {"train-32", "train-40", "fixed-32", "fixed-40"}
    assert len(info["fine_tuning"]["train-32 at 48"]) == 2
    _, experiments = split([out])  # multicrop-bench claims reads each image's answers back
    right = {(a.crop, a.train_res, a.test_res, a.layers): int(a.right.sum()) for a in experiments.trained[0].answers}
    words = {"RandomResizedCrop": "train", "random crop of a fixed size": "fixed"}
    assert right == {
        (words[r["crop"]], int(r["train_res"]), int(r["test_res"]), r["adaptation"]): int(r["top1_correct"])
        for r in rows
    }
    picture = imread(out / "train_low_test_high.png")
    assert 700 <= picture.shape[1] <= 1250 and picture[..., :3].std() > 0.02

    # One network's scores at one size are lost: they come out the same, and nothing else is done again.
    lines = (out / "scored.jsonl").read_text().splitlines()
    (out / "scored.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "networks").iterdir()}
    capsys.readouterr()
    assert experiment.main(command(out, "--no-figures")) == 0
    assert (out / "results.csv").read_text() == first
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (out / "networks").iterdir()}
    assert capsys.readouterr().err.count("adapted") == 1

    assert experiment.main(command(out, "--epochs", "2")) == 2
    assert "holds another experiment (epochs is 1 there, 2 here)" in capsys.readouterr().err


def test_other_files_are_not_written_over(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert experiment.main(command(tmp_path)) == 2
    assert "holds other files: name a new folder" in capsys.readouterr().err


def test_scores_are_the_networks_own_answers() -> None:
    classifier = load("test_resnet", weights="random", num_classes=4, img_size=32)
    crops = torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = torch.tensor([classifier.net(classifier.prepare(crop[None])).argmax().item() for crop in crops])
    labels = answers.clone()
    labels[[2, 5]] = (labels[[2, 5]] + 1) % 4
    assert experiment.right(classifier, crops, labels).tolist() == [i not in (2, 5) for i in range(7)]


def test_crops_in_memory_come_in_the_order_asked_for() -> None:
    crops = torch.arange(600, dtype=torch.int64)[:, None, None, None].remainder(251).to(torch.uint8)
    rows = np.random.default_rng(0).permutation(600)
    batches = list(InMemory(crops).batches(rows))
    assert np.array_equal(np.concatenate([batch.rows for batch in batches]), rows)
    found = torch.cat([batch.groups[0].crops for batch in batches]).flatten()
    assert np.array_equal(found.numpy(), rows % 251)


def test_ratio_of_sizes_stays() -> None:
    specs = [experiment.spec_at(K) for K in (48, 96, 192)]
    assert [(spec.S, spec.K) for spec in specs] == [(55, 48), (110, 96), (220, 192)]


def test_peaks_and_table() -> None:
    rows = [
        row(32, 100),
        row(48, 120),
        row(64, 131),
        row(48, 140, adaptation="classifier+bn", newly_correct=25, newly_wrong=5),
    ]
    plain, tuned = peaks(rows)
    assert plain == {
        "crop": CROPS["train"], "train_res": 48, "adaptation": "none", "top1_at_train_res": 60.0, "best_test_res": 64,
        "best_top1": 65.5,
    }  # fmt: skip
    assert tuned["top1_at_train_res"] == 70.0
    assert peaks([row(32, 100)])[0]["top1_at_train_res"] is None
    assert rows[-1].derived()["gain"] == 10.0
    assert rows[-1].derived()["gain_low"] > 0
    text = table(rows)
    assert text[1].startswith("RandomResizedCrop, adaptation: none")
    assert [line.split() for line in text[3:6]] == [["32", "50.0"], ["48", "60.0"], ["64", "65.5"]]


def test_figure_draws_both_sides(tmp_path: Path) -> None:
    rows = [
        row(K, 100 + K, crop=crop, train_res=train, adaptation=adaptation)
        for crop in CROPS.values()
        for train in (48, 96)
        for adaptation in ("none", "classifier+bn")
        for K in (32, 48, 64, 96)
    ]
    experiment.write_csv(tmp_path / "results.csv", rows)
    settings = {"family": "resnet", "images": 10, "epochs": 1, "adapt_images": 5, "adapt_epochs": 1, "seed": 0}
    environment = {"cpu": "a CPU", "packages": {"torch": "2"}}
    info = {"settings": {**settings, "min_area": 0.25}, "environment": environment}
    (tmp_path / "results.json").write_text(json.dumps(info))
    data = figure.read(tmp_path)
    assert [len(frame) for frame in data.published] == [35, 28, 32]  # Table 5: 7 x 5, 7 x 4; Table 9: 8 x 4
    assert [len(frame) for frame in data.ours] == [8, 8, 8]
    drawn = figure.draw(data)
    lines = {line.get_gid(): line.get_xydata() for line in drawn.axes[3].get_lines() if line.get_gid()}
    assert set(lines) == {"demo 48", "demo 96"}
    assert np.asarray(lines["demo 48"]).tolist() == [[K, (100 + K) / 2] for K in (32, 48, 64, 96)]
    published = {line.get_gid(): line for line in drawn.axes[0].get_lines() if line.get_gid()}
    assert [288, 78.4] in np.asarray(published["published 224"].get_xydata()).tolist()
    with pytest.raises(ValueError, match="is not a finished run"):
        figure.read(tmp_path / "nowhere")
