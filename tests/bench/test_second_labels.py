"""Second label sets, ImageNet-V2's numbered folders and sweeps of sizes, from end to end on made sets.

Known answers: the label sets are made from a first run's own answers; the numbered copy has the demo's images.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data import create_transform
from torchvision.transforms import Resize

from analysis import console
from bench import records
from pipelines.data import demo
from pipelines.data.dataset import Dataset

Small = Callable[..., Any]  # see conftest


def by_policy(run: records.Run, labels: str, level: str = "softmax") -> dict[str, records.Accuracy]:
    return {r.policy: r for r in run.accuracies_of(labels) if r.level == level}


@pytest.fixture
def second_labels(small_run: Small, tmp_path: Path) -> tuple[Any, Path, dict[str, np.ndarray]]:
    """A first run; label sets after its answers: none for 4 images, right at CC for 8, at 2RC for 5, all wrong else."""
    first = small_run("--policies", "2RC", "--no-throughput", out="first")
    answers = first.predictions()
    level = answers["levels"].tolist().index("softmax")
    centre, two = answers["top1"][level].tolist()
    sets = {}
    for i, name in enumerate(answers["names"].tolist()):
        wrong = min(set(range(16)) - {centre[i], two[i]})
        right = [[], [centre[i]], [two[i]]][(i >= 4) + (i >= 12)] if i < 17 else []
        sets[name] = right if i < 4 else [*right, wrong]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(sets), encoding="utf-8")
    return first, path, answers


def test_a_second_set_of_labels_is_scored_beside_the_original_ones(
    second_labels: tuple[Any, Path, dict[str, np.ndarray]], small_run: Small
) -> None:
    first, path, answers = second_labels
    done = small_run("--policies", "2RC", "--no-throughput", "--real-labels", str(path), out="second")
    assert done.status == 0, done.stderr
    assert done.run.accuracies == first.run.accuracies  # the original labels' score does not notice

    centre, two = answers["top1"][answers["levels"].tolist().index("softmax")]
    same = centre == two
    right = {"CC": 8 + int(same[12:17].sum()), "2RC": 5 + int(same[4:12].sum())}
    found = by_policy(done.run, records.REAL)
    assert {policy: r.top1_correct for policy, r in found.items()} == right
    assert {(r.images, r.nll_mean) for r in found.values()} == {(20, None)}
    assert (found["2RC"].newly_correct, found["2RC"].newly_wrong) == (
        int((~same[12:17]).sum()),
        int((~same[4:12]).sum()),
    )
    assert all(r.top5_correct >= r.top1_correct for r in found.values())
    assert found["2RC"].newly_correct + found["2RC"].newly_wrong > 0

    info = done.run.info["models"][0]
    assert info["real_label_rule"] == "real.json: 20 of 24 images have labels, 1.65 each on average"
    assert len(info["real_label_hash"]) == 16
    assert done.last["models"][0]["top1_centre_crop"] == round(by_policy(done.run, "original")["CC"].top1, 3)
    assert (
        done.stdout.count("top-1 %, demo (24 images") == done.stdout.count("top-1 %, demo, real labels (20 images") == 1
    )
    with (done.out / "summary.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["policy"] == "CC" and row["level"] == "softmax"]
    assert [(row["labels"], row["images"]) for row in rows] == [("original", "24"), ("real", "20")]

    saved = done.predictions()
    own = saved["real_label"]
    assert own.shape == saved["top1"].shape and (own[:, :, :4] == -1).all() and (own[:, :, 4:] >= 0).all()
    softmax = saved["levels"].tolist().index("softmax")
    assert (saved["top1"][softmax] == own[softmax]).sum(1).tolist() == [right["CC"], right["2RC"]]


def test_lines_of_earlier_versions_are_of_the_original_labels(
    second_labels: tuple[Any, Path, dict[str, np.ndarray]],
) -> None:
    first, _, _ = second_labels
    for line in (first.out / "results.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values.pop("labels", None):
            assert records.from_line(json.dumps(values)) == records.from_line(line)


def test_what_the_second_labels_cannot_be_scored_with_is_refused(
    small_run: Small, demo_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "real.json"
    path.write_text("[[1]]")
    done = small_run("--crops", "1", "--no-throughput", "--real-labels", str(path))
    assert done.status == 2 and "is not an ILSVRC2012_val_00000001.JPEG" in done.stderr and not done.out.exists()
    done = small_run("--crops", "1", "--real-labels", str(path), "--no-accuracy")
    assert done.status == 2 and "--real-labels is for scoring, which --no-accuracy switches off" in done.stderr
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(demo_root.rglob("*.jpg")), flat / "x.jpg")
    path.write_text('{"x.jpg": [1]}')
    done = small_run("--crops", "1", "--data", str(flat), "--no-throughput", "--real-labels", str(path))
    assert done.status == 2 and "scored beside the original labels" in done.stderr and "--labels-file" in done.stderr


def test_numbered_folders_are_scored_as_the_same_images_in_named_ones(
    small_run: Small, data: Dataset, tmp_path: Path
) -> None:
    """ImageNet-V2's layout: as text "10" sorts before "2", so that ranks would be wrong from the third folder on."""
    assert len(demo.CLASSES) == 16
    copy = tmp_path / "imagenetv2"
    for name, number in zip(data.table["name"], data.table["label"], strict=True):
        (copy / str(number)).mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / name, copy / str(number) / name.replace("/", "_"))
    named = small_run("--policies", "CC", "--no-throughput", out="named")
    numbered = small_run(
        "--policies", "CC", "--no-throughput", "--data", str(copy), "--label-order", "number", out="numbered"
    )
    assert numbered.run.info["models"][0]["label_rule"].endswith("numbered folders -> their numbers")
    counts = [(r.level, r.images, r.top1_correct, r.top5_correct) for r in named.run.accuracies]
    assert [(r.level, r.images, r.top1_correct, r.top5_correct) for r in numbered.run.accuracies] == counts
    assert 0 < counts[0][2] < counts[0][1]
    labels = dict(zip(numbered.predictions()["names"], numbered.predictions()["labels"], strict=True))
    folders = sorted({name.split("/")[0] for name in labels})
    by_rank = sum(folders.index(name.split("/")[0]) != number for name, number in labels.items())
    assert by_rank > len(labels) / 3  # the trap is in this set


def test_a_sweep_of_sizes_is_one_run_with_timms_resizing(small_run: Small) -> None:
    done = small_run("--img-size", "64..66,80", "--crop-pct", "0.875", "--policies", "CC", "--no-throughput")
    assert done.status == 0, done.stderr
    settings = list(dict.fromkeys(r.setting for r in done.run.accuracies))
    assert [s.K for s in settings] == [64, 65, 66, 80]
    for setting in settings:
        transform: Any = create_transform(setting.K, crop_pct=0.875)
        assert next(t.size for t in transform.transforms if isinstance(t, Resize)) == setting.S
        path = done.run.predictions_path(setting)
        assert path is not None and path.name == f"predictions-test_resnet-img-size-{setting.K}-crop-pct-0.875.npz"
        with np.load(path) as file:
            right = file["top1"][0, 0] == file["labels"]
        assert right.sum() == next(r for r in done.run.accuracies if r.setting == setting).top1_correct
    assert [model["K"] for model in done.last["models"]] == [64, 65, 66, 80]
    assert console.text(done.run.records).count("top-1 %, demo (24 images") == 4


@pytest.mark.parametrize(("family", "K"), [("resnet", 96), ("mobilenet", 96), ("efficientnet", 96), ("nfnet", 96)])
def test_the_demo_networks_own_size_is_known_at_every_size(family: str, K: int, finish: Small, demo_root: Path) -> None:
    done = finish(
        "--family", family, "--data", str(demo_root), "--img-size", "64", "--policies", "CC", "--no-throughput",
        "--limit", "4",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    (model,) = done.run.info["models"]
    assert (model["own_K"], model["train_K"], model["K"], model["S"]) == (K, K, 64, 64 * 110 // 96)
