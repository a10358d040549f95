"""The published centre crops, and what is said of a run beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
from scipy.stats import binom

from analysis import console, known_answers
from analysis.known_answers import FOLDER, IMAGENET, IMAGENET_V2, Comparison, KnownAnswer, why_not_comparable
from bench.predictions import Predictions
from bench.records import MODEL, Accuracy, Run, Setting, Throughput
from models.families import FAMILIES

SETTING = Setting(
    model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa",
    param_count=11_689_512,
    published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear", crop_mode="center",
    data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2,
    device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip


def centre_crop(correct: int, images: int = 50_000, setting: Setting = SETTING) -> Accuracy:
    return Accuracy(setting, "CC", 1, "softmax", images, 0, correct, correct, 1.0, 0, 0, 1.0)


def run_of(folder: Path, record: Accuracy, labels: np.ndarray | None = None) -> Run:
    """A run with one record, and predictions where labels are given."""
    models = [{"model": record.setting.model, "S": record.setting.S, "K": record.setting.K, "predictions": "p.npz"}]
    if labels is not None:
        n = len(labels)
        answers = np.zeros((1, 1, n), np.int32)
        Predictions(
            np.arange(n), labels, ["CC"], ["softmax"], answers, answers > 0, answers.astype(np.float32),
            answers[0].T, [],
        ).save(folder / "p.npz", [str(i) for i in range(n)])  # fmt: skip
    return Run(folder, {"models": models}, [record])


# Where the printed line and the configuration of today's timm differ: (printed, timm's).
DIFFERENT = {"ghostnet_100.in1k": ((224, 0.875, "bilinear"), (224, 0.875, "bicubic"))}


def test_the_stored_settings_are_those_of_timm() -> None:
    """Each line was printed with the configuration that timm has for testing that network."""
    known = known_answers.read_results(FOLDER / IMAGENET)
    assert len(known) == 999
    different = {}
    for name, one in known.items():
        if not timm.is_model(name.split(".")[0]):
            continue  # renamed since
        config = timm.get_pretrained_cfg(name)
        assert config is not None, name
        size = (config.test_input_size or config.input_size)[-1]
        ours = (one.img_size, one.crop_pct, one.interpolation)
        theirs = (size, config.test_crop_pct or config.crop_pct, config.interpolation)
        if (*ours[:1], *ours[2:]) != (*theirs[:1], *theirs[2:]) or abs(ours[1] - theirs[1]) > 0.0006:
            different[name] = (ours, theirs)
    assert different == DIFFERENT


def test_the_stored_figures_are_shares_in_order() -> None:
    frame = pd.read_csv(FOLDER / IMAGENET)
    assert frame["model"].is_unique and frame["top1"].is_monotonic_decreasing
    assert (frame["top1"] < frame["top5"]).all() and frame["top5"].between(80, 99.1).all()


def test_a_correct_setup_agrees_and_one_with_wrong_labels_does_not(tmp_path: Path) -> None:
    for correct, disagrees in ((34_880, False), (34_700, False), (33_000, True), (50, True)):
        (found,) = known_answers.comparisons(run_of(tmp_path, centre_crop(correct)))
        assert (found.known.top1, found.disagrees) == (69.76, disagrees)
        text = console.text([found.record], [found])
        assert "published centre crop: 69.76" in text and f"measured {correct / 500:.2f}" in text
        assert ("WARNING" in text) == disagrees
        (headline,) = console.headline([found.record], [found])
        assert headline["published_top1"] == 69.76
        assert headline["agrees_with_published"] is not disagrees


def test_the_published_figure_stands_in_the_row_of_the_centre_crop(tmp_path: Path) -> None:
    (found,) = known_answers.comparisons(run_of(tmp_path, centre_crop(34_880)))
    lines = console.text([found.record], [found]).splitlines()
    (heading,) = [line for line in lines if line.split()[:1] == ["policy"]]
    (row,) = [line for line in lines if line.split()[:1] == ["CC"]]
    assert heading.endswith("published") and row.endswith("69.76")
    assert "published" not in console.text([found.record])


@pytest.mark.parametrize(("n", "top1"), [(500, 69.76), (10_000, 76.13), (50_000, 85.0)])
def test_a_correct_setup_is_warned_of_at_most_once_in_a_hundred(n: int, top1: float) -> None:
    """Summed over every count that could be measured, with its probability."""
    known = KnownAnswer("x", top1, 90.0, 224, 0.875, "bilinear", "f.csv")
    spread = 6 * (n * top1 / 100 * (1 - top1 / 100)) ** 0.5
    counts = range(max(0, int(n * top1 / 100 - spread)), min(n, int(n * top1 / 100 + spread)) + 1, 1)
    edges = [k for k in counts if not Comparison(centre_crop(k, n), known, None).disagrees]
    agrees = binom.cdf(max(edges), n, top1 / 100) - binom.cdf(min(edges) - 1, n, top1 / 100)
    assert 0.98 < agrees < 1
    assert 1 - agrees <= 0.01 + 1e-9


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"K": 160, "S": 183}, "crop size is 160, and the published one 224"),
        ({"interpolation": "bicubic"}, "interpolation is bicubic"),
        ({"S": 224}, "crop ratio is 1.000, and the published one 0.875"),
        ({"adapt": "frechet"}, "adaptation is frechet"),
        ({"crop_mode": "squash"}, "crop mode is squash"),
    ],
)
def test_another_preparation_is_not_compared(changed: dict, reason: str, tmp_path: Path) -> None:
    (found,) = known_answers.comparisons(run_of(tmp_path, centre_crop(10, setting=replace(SETTING, **changed))))
    assert found.why_not is not None and reason in found.why_not
    assert not found.disagrees and "WARNING" not in "".join(known_answers.lines([found]))


def test_ten_classes_are_not_compared_and_a_sample_of_all_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    few = rng.choice(1000, 10, replace=False)[rng.integers(10, size=500)]
    all_of_them = rng.integers(1000, size=500)
    record = centre_crop(349, 500)
    (found,) = known_answers.comparisons(run_of(tmp_path, record, few))
    assert found.why_not and "10 classes" in found.why_not
    (found,) = known_answers.comparisons(run_of(tmp_path, record, all_of_them))
    assert found.why_not is None and not found.disagrees


@pytest.mark.parametrize(
    "changed", [{"weights": "random"}, {"is_demo": True}, {"model": "mine"}, {"weights": "/tmp/a.pt"}]
)
def test_nothing_is_said_where_nothing_is_published(changed: dict, tmp_path: Path) -> None:
    record = centre_crop(10, setting=replace(SETTING, **changed))
    assert known_answers.comparisons(run_of(tmp_path, record)) == []
    (headline,) = console.headline([record])
    assert headline["published_top1"] is None and headline["agrees_with_published"] is None


def test_files_as_timm_writes_them_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of timm's columns, a thousands separator in the number of parameters; the second labels and V2 by name."""
    head = "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation,top1_diff,top5_diff,rank_diff"
    row = 'resnet18.tv_in1k,{},40,80,20,"1,011.69",224,0.875,bilinear,1,2,0'
    for file, top1 in zip(known_answers.FILES, (69.76, 77.4, 57.2), strict=True):
        (tmp_path / file).write_text(f"{head}\n{row.format(top1)}\n")
    monkeypatch.setattr(known_answers, "FOLDER", tmp_path)
    known_answers.read_results.cache_clear()
    v2 = replace(SETTING, data="imagenetv2-matched-frequency-format-val")
    found = [
        known_answers.known_answer(setting, labels)
        for setting, labels in ((SETTING, "original"), (SETTING, "real"), (v2, "original"), (v2, "real"))
    ]
    assert [one and one.top1 for one in found] == [69.76, 77.4, 57.2, None]
    (tmp_path / "short.csv").write_text("model,top1\nx,1\n")
    with pytest.raises(ValueError, match=r"short\.csv, line 1: missing columns: top5, img_size"):
        known_answers.read_results(tmp_path / "short.csv")
    known_answers.read_results.cache_clear()


def test_timm_rows_are_sorted_and_have_timms_columns(tmp_path: Path) -> None:
    worse, better = centre_crop(30_000), centre_crop(40_000, setting=replace(SETTING, model="other"))
    crops = replace(worse, policy="5RC", n_views=5)
    rows = known_answers.timm_rows(Run(tmp_path, {}, [worse, crops, better]))
    assert json.loads(rows.to_json(orient="records"))[1] == {
        "model": "resnet18.tv_in1k", "top1": 60.0, "top1_err": 40.0, "top5": 60.0, "top5_err": 40.0,
        "param_count": 11.69, "img_size": 224, "crop_pct": 0.875, "interpolation": "bilinear",
    }  # fmt: skip
    assert list(rows["model"]) == ["other", "resnet18.tv_in1k"]


def test_timm_rows_of_a_timed_network_have_the_columns_of_timms_benchmark(tmp_path: Path) -> None:
    crops = centre_crop(30_000)
    network = Throughput(SETTING, MODEL, 1, 8, [100.0, 100.0], [0.5, 0.5], [], 0, None, 0.0)
    end_to_end = replace(network, stage="end_to_end", counts=[7.0, 7.0])
    untimed = centre_crop(20_000, setting=replace(SETTING, model="other"))
    counted = {"setting": asdict(SETTING), "multiply_adds": 1_814_073_344, "activations": 2_484_712}
    rows = known_answers.timm_rows(Run(tmp_path, {"models": [counted]}, [crops, untimed, end_to_end, network]))
    timed, other = json.loads(rows.to_json(orient="records"))
    speed = {name: timed[name] for name in known_answers.SPEED_COLUMNS}
    assert speed == {
        "infer_samples_per_sec": 200.0, "infer_step_time": 320.0, "infer_batch_size": 64, "infer_img_size": 224,
        "infer_gmacs": 1.81, "infer_macts": 2.48,
    }  # fmt: skip
    assert [other[name] for name in known_answers.SPEED_COLUMNS] == [None] * 6


def test_the_stored_figures_of_v2_and_real_are_on_both_sides_of_those_of_imagenet() -> None:
    """V2's images are harder, ReaL's labels kinder; sizes are the same. All networks of the papers are there."""
    plain, real, v2 = (
        known_answers.read_results(FOLDER / name) for name in (IMAGENET, known_answers.IMAGENET_REAL, IMAGENET_V2)
    )
    assert real.keys() == v2.keys() and len(v2) >= 77
    ours = {
        m.model_id
        for family in FAMILIES.values()
        for m in family.members
        if m.table.startswith(("MID", "EfficientNet-Lite"))
    }
    assert {name for name in ours if not name.startswith("torchvision:")} <= v2.keys()
    for name in v2.keys() & plain.keys():
        assert v2[name].top1 < plain[name].top1 < real[name].top1 and v2[name].top5 < plain[name].top5 < real[name].top5
        for field in ("img_size", "crop_pct", "interpolation"):
            assert getattr(v2[name], field) == getattr(plain[name], field) == getattr(real[name], field)


def test_a_wrong_setup_on_v2_and_real_labels_is_warned_of(tmp_path: Path) -> None:
    v2 = replace(SETTING, data="imagenetv2-matched-frequency-format-val")
    for correct, disagrees in ((5_717, False), (5_000, True)):
        (found,) = known_answers.comparisons(run_of(tmp_path, centre_crop(correct, 10_000, v2)))
        assert (found.known.top1, found.known.file, found.disagrees) == (57.17, IMAGENET_V2, disagrees)
    for correct, disagrees in ((36_200, False), (32_000, True)):
        record = replace(centre_crop(correct, 46_837), labels="real")
        (found,) = known_answers.comparisons(run_of(tmp_path, record))
        assert (found.known.top1, found.disagrees) == (77.287, disagrees)


def test_what_stands_in_a_row_can_be_compared() -> None:
    worse = centre_crop(30_000)
    assert why_not_comparable(worse, known_answers.known_answer(SETTING), None) is None  # type: ignore[arg-type]
