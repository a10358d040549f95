"""Spread over folds and seeds: against a loop, against the formula by simulation, and against what the paper prints."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import spread
from analysis.published import load
from analysis.stats import wilson
from analysis.summary import top1_interval
from bench.records import Incomparable, read_run


def test_a_loop_that_leaves_each_fold_out_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    right, fold = rng.random((2, 97)) < 0.7, rng.integers(0, 10, 97)
    found = spread.leave_one_out(right, fold)
    for p in range(2):
        kept = [[r for r, f in zip(right[p].tolist(), fold.tolist(), strict=True) if f != k] for k in range(10)]
        expected = [100 * sum(own) / len(own) for own in kept]
        assert found[p] == pytest.approx(expected)
        assert spread.fold_spread(right, fold)[p] == pytest.approx(statistics.stdev(expected))


def test_the_formula_is_what_random_folds_give() -> None:
    rng = np.random.default_rng(1)
    right = rng.random((2000, 500)) < 0.77
    fold = np.arange(500) % 10
    found = float(np.sqrt((spread.fold_spread(right, fold) ** 2).mean()))
    assert found == pytest.approx(spread.expected_fold_spread(77.0, 500), rel=0.02)
    error = 100 * (0.77 * 0.23 / 500) ** 0.5
    assert spread.standard_error(found) == pytest.approx(error, rel=0.02)


def test_the_papers_number_is_less_than_half_of_what_ten_folds_of_imagenet_give() -> None:
    text = load("fixres_text").set_index("id")["value"]
    printed, folds = float(text["fold_deviation"]), int(text["folds"])
    expected = spread.expected_fold_spread(77.0, 50_000, folds)
    assert expected == pytest.approx(0.0661, abs=5e-5)
    assert (printed, folds) == (0.03, 10)
    assert spread.expected_fold_spread(96.2, 50_000, folds) == pytest.approx(printed, abs=0.0006)
    low, high = wilson(38_500, 50_000)
    assert (high - low) / 2 == pytest.approx(1.96 * spread.standard_error(expected), rel=0.01)


def test_an_images_fold_is_its_names_and_folds_are_of_about_one_size() -> None:
    names = [f"n{i % 7:08d}/größe {i}.JPEG" for i in range(5000)]
    fold = spread.folds_of(names)
    assert spread.folds_of(names[::-1]).tolist() == fold[::-1].tolist()
    assert spread.folds_of(names[:1])[0] == fold[0]
    sizes = np.bincount(fold)
    assert len(sizes) == 10 and sizes.min() > 420 and sizes.max() < 580  # four standard deviations of 21


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 images do not fill 10 folds: score more images, or lower --folds"):
        spread.leave_one_out(np.ones(3, bool), np.array([0, 1, 2]))


IMAGES = 24
POLICIES = ["CC", "1RC", "2RC", "3RC", "CC+1RC", "CC+2RC"]


@pytest.fixture
def seeded(maker: Any) -> Callable[..., Path]:
    """A demo run's folder; the centre crop is right on the same images with every seed, random crops are not."""

    def run(seed: int, **changes: object) -> Path:
        setting = maker.setting(is_demo=True, seed=seed, model="resnet:demo", K=64, S=73, **changes)
        labels = np.arange(IMAGES) % 4
        top1 = {}
        for policy in POLICIES:
            rng = np.random.default_rng(0 if policy == "CC" else seed + 1)
            top1[policy] = np.where(rng.random((2, IMAGES)) < 0.7, labels, labels + 1)
            top1["CC"] = top1["CC"][:1].repeat(2, axis=0)  # one view is its own mean at every level
        models = [{"model": setting.model, "S": 73, "K": 64, "predictions": "predictions-net.npz"}]
        made = maker.run(f"seed{seed}-{len(list(maker.root.iterdir()))}", maker.records_of(setting, labels, top1),
                         models=models)  # fmt: skip
        names = [f"{i}.jpg" for i in range(IMAGES)]
        maker.predictions(made, "net", names, labels.tolist(), top1, np.ones((IMAGES, 6)))
        return made.folder

    return run


def test_the_command_writes_folds_and_seeds(seeded: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folders = [seeded(seed) for seed in (0, 1, 2)]
    capsys.readouterr()
    assert spread.main([*map(str, folders), "--folds", "4"]) == 0
    said = capsys.readouterr().out
    assert "standard deviation over 4 leave-one-out folds" in said and "over 3 crop seeds" in said and "DEMO" in said

    runs = [read_run(folder) for folder in folders]
    with (folders[0] / "spread.csv").open(newline="") as file:
        rows = {(row["policy"], row["level"]): row for row in csv.DictReader(file)}
    for record in runs[0].accuracies:
        row = rows[record.policy, record.level]
        assert float(row["top1"]) == record.top1 and int(row["images"]) == record.images == 24
        assert (float(row["top1_low"]), float(row["top1_high"])) == top1_interval(record)
    with (folders[0] / "seeds.csv").open(newline="") as file:
        seeds = {(row["policy"], row["level"]): row for row in csv.DictReader(file)}
    for key, row in seeds.items():
        three = [next(r for r in run.accuracies if (r.policy, r.level) == key) for run in runs]
        assert float(row["top1_mean"]) == pytest.approx(statistics.mean(r.top1 for r in three))
        assert float(row["top1_seed_std"]) == pytest.approx(statistics.stdev(r.top1 for r in three))
        assert float(row["gain_seed_std"]) == pytest.approx(statistics.stdev(r.gain for r in three))
    assert float(seeds["CC", "softmax"]["top1_seed_std"]) == 0  # the centre crop draws nothing
    assert any(float(row["top1_seed_std"]) > 0 for row in seeds.values())


def test_runs_that_differ_in_more_than_the_seed_are_refused(
    seeded: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = seeded(0), seeded(1, data_hash="ee")
    assert spread.main([str(one), str(other), "--folds", "2"]) == 2
    assert "data_hash" in capsys.readouterr().err
    assert spread.main([str(one), str(one), "--folds", "2"]) == 2
    assert "have the seeds 0, 0: give runs that differ in --seed" in capsys.readouterr().err
    assert not (one / "seeds.csv").exists() and not (other / "spread.csv").exists()
    mine = read_run(one)
    half = [replace(r, setting=replace(r.setting, amp_dtype="bfloat16", seed=7)) for r in mine.records]
    with pytest.raises(Incomparable, match="amp_dtype"):
        spread.seed_rows([mine, replace(mine, records=half)])


def test_a_run_without_its_answers_says_so(seeded: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = seeded(0)
    next(folder.glob("predictions-*.npz")).unlink()
    assert spread.main([str(folder)]) == 2
    assert "has no predictions of resnet:demo at K=64: run it again" in capsys.readouterr().err
