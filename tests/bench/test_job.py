"""One network's part of a run: what it is set to, what it measures, and what it refuses to measure."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import job as job_module
from bench.job import Job, data_hash
from bench.measure import accuracy, estimate
from bench.records import Absent, Accuracy, ImageAccounting, Throughput
from models.predict import default_batch_size
from pipelines.backends import BACKENDS, reference
from pipelines.batch import CropBatch, Failure, default_batch_images
from pipelines.crops import parse_policy
from pipelines.data.dataset import Dataset, DatasetError
from pipelines.data.labels import label
from pipelines.data.scanning import scan
from tests.bench.conftest import change, run_job


@pytest.mark.parametrize(
    ("K", "crops"), [(32, 64), (64, 64), (96, 64), (112, 64), (160, 32), (224, 16), (320, 8), (800, 8)]
)
def test_a_batch_on_a_cpu_holds_about_as_many_pixels_whatever_the_crops_size(K: int, crops: int) -> None:
    assert default_batch_size(K, "cpu") == crops
    assert default_batch_size(K, "cuda:0") == 256


def test_the_hash_of_a_data_set_is_that_of_its_names_and_labels(data: Dataset) -> None:
    digest = hashlib.sha256()
    for row in data.table.to_dict("records"):
        digest.update(row["name"].encode() + b"\0" + str(row["label"]).encode() + b"\n")
    assert data_hash(data) == digest.hexdigest()[:16]
    relabelled = data.table.assign(label=data.table["label"].iloc[::-1].to_numpy())
    renamed = data.table.assign(name=data.table["name"] + "x")
    resized = data.table.assign(bytes=0)
    assert data_hash(replace(data, table=relabelled)) != data_hash(data) != data_hash(replace(data, table=renamed))
    assert data_hash(replace(data, table=resized, root=Path("elsewhere"))) == data_hash(data)
    assert data_hash(data.subset(5, seed=0)) != data_hash(data)


def test_the_setting_is_what_ran(make_job: Callable[..., Job], data: Dataset, weights_file: Path) -> None:
    argv = ["--crop-pct", "0.8", "--seed", "7", "--limit", "5", "-j", "2", "--channels-last", "--batch-images", "3"]
    job = make_job(*argv)
    setting = job.setting()
    parameters = sum(p.numel() for p in job.network.classifier.net.parameters())
    assert (setting.model, setting.family, setting.variant) == ("test_resnet.r160_in1k", None, None)
    assert (setting.weights, setting.param_count) == (str(weights_file), parameters)
    assert (setting.published_top1, setting.published_in) == (None, None)
    assert (setting.S, setting.K, setting.interpolation, setting.crop_mode) == (80, 64, "bilinear", "center")
    assert (setting.data, setting.is_demo) == (data.root.name, True)
    assert setting.data_hash == data_hash(data.subset(5, seed=7))
    assert (setting.backend, setting.batch_size, setting.batch_images, setting.workers) == ("torchvision", 8, 3, 2)
    assert (setting.device, setting.amp_dtype, setting.torchcompile) == ("cpu", "float32", False)
    assert (setting.channels_last, setting.seed) == (True, 7)
    assert setting == make_job(*argv).setting()
    assert (setting.prefetch, setting.mmap, setting.hw_load) == (2, True, None)
    job = make_job(*argv, "--no-mmap", "--hw-load", "0.25")
    assert (job.setting().mmap, job.setting().hw_load) == (False, None)
    change(job, "loading", data_backend="dali-gpu", prefetch=4)
    assert (job.setting().prefetch, job.setting().hw_load) == (4, 0.25)  # it decodes there, and there only


@pytest.mark.dali
def test_each_process_makes_its_own_gpu_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import setup
    from bench.distributed import Processes

    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for rank in range(4):
        assert setup.resolved_device(None, Processes(rank + 4, 8, rank, 4)) == f"cuda:{rank}"
    assert setup.resolved_device("cuda:2") == "cuda:2" and setup.resolved_device("cpu") == "cpu"
    assert current == [0, 1, 2, 3, 2]


def test_tf32_is_off_unless_asked_for_and_recorded_where_it_can_matter(make_job: Callable[..., Job]) -> None:
    for flags, asked in (((), False), (("--tf32", "--cudnn-benchmark"), True)):
        job = make_job(*flags)
        modes = job.make_network(1).modes
        assert (modes.tf32, modes.cudnn_benchmark) == (asked, asked)
        assert not job.setting().tf32 and not job.setting().cudnn_benchmark  # a CPU does neither
        change(job, "network", device="cuda:0")
        assert (job.setting().tf32, job.setting().cudnn_benchmark) == (asked, asked)


def test_another_operator_than_the_usual_one_is_said_and_recorded(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bench import setup
    from pipelines.backends import crop_ops

    right = {0: crop_ops.WARP, 1: crop_ops.PASTE}
    monkeypatch.setattr(crop_ops, "working_crop_operator", right.__getitem__)
    assert (
        setup.unusual_crop_operator("dali-cpu", "cpu", None) is None
    )  # on a CPU the tests have shown that it is right
    assert setup.unusual_crop_operator("dali-gpu", "cuda:1", None) is None
    assert setup.unusual_crop_operator("dali-gpu", "cuda:1", "warp_affine") == "warp_affine"
    assert setup.unusual_crop_operator("dali-gpu", "cuda:0", "multi_paste") is None
    assert caplog.messages == []
    assert setup.unusual_crop_operator("dali-gpu", "cuda", None) == "warp_affine"
    assert "DALI's warp_affine: its multi_paste makes wrong ones" in caplog.text
    job = make_job()
    assert job.setting().crop_operator is job.load_config(1).crop_operator is None
    change(job, "loading", crop_operator="warp_affine")
    assert job.setting().crop_operator == job.load_config(1).crop_operator == "warp_affine"


def test_the_operator_that_a_crop_size_needs_on_a_gpu_is_recorded(make_job: Callable[..., Job]) -> None:
    job = make_job("--img-size", "88")  # multi_paste would read out of bounds there
    assert job.setting().crop_operator is None
    change(job, "loading", data_backend="dali-gpu")
    assert job.setting().crop_operator == "warp_affine"


# --------------------------------------------------------------------------------------------------- how it is loaded


def test_a_slow_network_is_not_given_minutes_of_work_at_once(make_job: Callable[..., Job]) -> None:
    job = make_job("-j", "2")
    change(job, "loading", batch_images=None)
    by_memory = default_batch_images(1000, 64)
    assert 5 < by_memory < 24
    assert job.load_config(1000).batch_images == by_memory  # before anything is measured
    job.crops_per_sec = 5000 / job_module.BATCH_SECONDS
    assert job.load_config(1000).batch_images == 5  # of 1,000 views each, in so many seconds
    job.crops_per_sec = 0.5
    assert job.load_config(1000).batch_images == 2  # but each worker has an image
    job.crops_per_sec = 1e9
    assert job.load_config(1000).batch_images == by_memory
    change(job, "loading", batch_images=3)
    assert job.load_config(1000).batch_images == 3
    assert (job.load_config(20).workers, job.load_config(20).hw_load) == (2, 0.65)


def test_no_batch_holds_an_image_twice(make_job: Callable[..., Job]) -> None:
    job = make_job("--batch-images", "100")
    assert job.load_config(1).batch_images == 24
    job.failed = [Failure(row, "unreadable") for row in (3, 8, 9)]
    assert job.load_config(1).batch_images == 21
    job.failed = [Failure(row, "unreadable") for row in range(24)]
    assert job.load_config(1).batch_images == 1


class Steady:
    """A network whose every forward takes 10 ms."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.forwards = batch_size, 0

    def get_ready(self, sizes: object) -> None:
        pass

    def forward(self) -> tuple[None, torch.Tensor]:
        time.sleep(0.01)
        self.forwards += 1
        return None, torch.zeros(self.batch_size, 16)


@pytest.mark.parametrize(
    ("argv", "expected_s"),
    [
        # 24 images, 21 views: 24 (1/50 + 21/800)
        (["--no-throughput"], 1.11),
        # The network, then at 1 and 20 crops the pipeline and both: 2 rounds of a second and 2 + 1 times one warm-up.
        (["--no-accuracy", "--rounds", "2"], 5 * 2 * 1.0 + 3 * (0.01 + 2 * 4 / 50 + 4 * (2 / 50 + 21 / 800))),
    ],
)
def test_the_time_expected_is_that_of_the_work(
    argv: list[str], expected_s: float, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("--crops", "1,20", *argv, "--round-seconds", "1")
    monkeypatch.setattr(estimate, "_pipeline_rate", lambda job: 50.0)
    job.__dict__["network"] = Steady(8)
    assert estimate.expected_s(job) == pytest.approx(expected_s, rel=0.25)
    assert 400 < job.crops_per_sec <= 800


@pytest.mark.parametrize(("good", "low", "high"), [(8, 80, 200), (0, 0, 5)])
def test_the_pipelines_rate_is_measured_in_readable_images(
    good: int, low: float, high: float, make_job: Callable[..., Job]
) -> None:
    """Batches of eight take 40 ms or a little more."""
    job = make_job("--crops", "2", "--batch-images", "8")

    class Paced(job_module.backend("torchvision")):  # type: ignore[misc]
        def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
            for start in range(0, len(rows), 8):
                time.sleep(0.04)
                batch = rows[start : start + 8]
                yield CropBatch([], batch[:good], [Failure(int(row), "unreadable") for row in batch[good:]])

    job.make_backend = lambda planner, config: Paced(job.data, planner, config)  # type: ignore[method-assign]
    assert low < estimate._pipeline_rate(job) <= high


# ----------------------------------------------------------------------------------------------- what is not measured


def kinds(job: Job, out: Path) -> tuple[list[Any], dict[str, str]]:
    """The records, and what is absent with its reason."""
    found = list(run_job(job, out))
    return found, {record.what: record.reason for record in found if isinstance(record, Absent)}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [(["--no-accuracy"], "not asked for (`accuracy`)"), (["--weights", "random"], "the weights are random")],
)
def test_what_is_not_scored_says_why(
    argv: list[str], reason: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("--crops", "1", *argv) if "random" not in argv else random_job(make_job)
    found, absent = kinds(job, tmp_path)
    assert absent["accuracy"].startswith(reason)
    assert not any(isinstance(record, Accuracy) for record in found)
    assert {(r.stage, r.crops) for r in found if isinstance(r, Throughput)} == {
        *((stage, None) for stage in ("read", "decode", "resize", "model")), ("load", 1), ("end_to_end", 1),
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # no predictions


def random_job(make_job: Callable[..., Job]) -> Job:
    job = make_job("--crops", "1")
    change(job, "network", weights="random", checkpoint=None)
    return job


def test_what_is_not_timed_says_why(make_job: Callable[..., Job], tmp_path: Path) -> None:
    found, absent = kinds(make_job("--no-cheap", "--crops", "2", "--no-throughput"), tmp_path)
    assert absent == {"throughput": "not asked for (`throughput`)"}
    assert [(r.policy, r.level) for r in found if isinstance(r, Accuracy)] == [
        (policy, level) for policy in ("CC", "1RC", "2RC", "CC+1RC") for level in ("feature", "logit", "softmax")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions-test_resnet-img-size-64.npz"]


def test_images_without_labels_are_timed_only(make_job: Callable[..., Job], demo_root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:3]):
        shutil.copy(path, flat / f"{i}.jpg")
    job = make_job("--crops", "1", scanned=scan(flat, workers=1, progress=False))
    assert "no labels file was given" in str(job.why_no_accuracy)


def test_labels_that_do_not_fit_are_refused_unless_nothing_is_scored(
    make_job: Callable[..., Job], demo_root: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        shutil.copy(next(demo_root.rglob("*.jpg")), tmp_path / name)
    scanned = scan(tmp_path, workers=1, progress=False)
    with pytest.raises(DatasetError, match="16 classes"):
        make_job("--crops", "1", scanned=scanned)
    job = make_job("--crops", "1", "--no-accuracy", scanned=scanned)
    assert not job.data.has_labels and "16 classes" in job.data.label_rule


# ---------------------------------------------------------------------------------- a fast wrong answer is not a result


class Shifted:
    """Crops moved by one pixel."""

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        for batch in super().batches(rows):  # type: ignore[misc]
            yield replace(batch, groups=[replace(g, crops=g.crops.roll(1, dims=2)) for g in batch.groups])


class Darkened:
    """Frames and crops alike, as by another decoder: the windows are right and the pixels are not."""

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for row, frame in super().frames(rows, group):  # type: ignore[misc]
            yield row, frame - np.minimum(frame, 2)

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        for batch in super().batches(rows):  # type: ignore[misc]
            yield replace(batch, groups=[replace(g, crops=g.crops - g.crops.clamp(max=2)) for g in batch.groups])


@pytest.mark.parametrize(("wrong", "says"), [(Shifted, "not the planned windows"), (Darkened, "grey levels")])
@pytest.mark.parametrize("argv", [["--no-throughput"], ["--no-accuracy"]])
def test_a_backend_with_wrong_pixels_is_not_measured(
    wrong: type,
    says: str,
    argv: list[str],
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job("--crops", "1", *argv)
    broken = type("Broken", (wrong, job_module.backend("torchvision")), {})
    monkeypatch.setattr(job_module, "backend", lambda name: broken)
    found = []
    with pytest.raises(reference.WrongPixels, match=says):
        for record in run_job(job, tmp_path):
            found.append(record)
    assert all(isinstance(record, (Absent, ImageAccounting)) for record in found)


def test_the_frames_error_is_recorded_beside_the_rate(make_job: Callable[..., Job], tmp_path: Path) -> None:
    found, _ = kinds(make_job("--crops", "1", "--no-accuracy"), tmp_path)
    errors = {record.frame_error_levels for record in found if isinstance(record, Throughput)}
    assert len(errors) == 1
    assert 0.01 < errors.pop() < BACKENDS["torchvision"].tolerance_levels


def test_unreadable_images_do_not_take_the_place_of_the_checked_ones(
    make_job: Callable[..., Job], demo_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(demo_root, root)
    for path in sorted(root.rglob("*.jpg"))[: accuracy.CHECKED_IMAGES]:
        path.write_bytes(path.read_bytes()[:3000])
    found, _ = kinds(make_job("--crops", "1", "--data", str(root)), tmp_path)
    assert all(record.frame_error_levels > 0 for record in found if isinstance(record, Throughput))


# -------------------------------------------------------------------------------------------------------- the figures


def test_an_adaptive_policys_views_are_averaged_over_the_scored_images(
    make_job: Callable[..., Job], data: Dataset, tmp_path: Path
) -> None:
    job = make_job("--policies", "CC+9ARC,5FC", "--no-throughput", "--crop-pct", "0.8")
    found, _ = kinds(job, tmp_path)
    taken = []
    for height, width in data.sizes(np.arange(len(data))).tolist():
        h, w = 80 * height // min(height, width), 80 * width // min(height, width)
        taken.append(1 + min(1 + math.floor(9 * (h * w - 64 * 64) / (h * w)), 9))
    by_policy = {r.policy: (r.n_views, r.mean_views) for r in found if isinstance(r, Accuracy)}
    assert by_policy == {"CC": (1, 1.0), "5FC": (5, 5.0), "CC+9ARC": (10, pytest.approx(np.mean(taken)))}
    assert min(taken) < max(taken)


def test_the_description_says_where_the_feature_level_is(make_job: Callable[..., Job]) -> None:
    job = make_job("--no-throughput", "--crops", "1")
    described = job.describe()
    assert described["model"] == "test_resnet.r160_in1k" and described["num_classes"] == 16
    assert described["images"] == 24 and described["label_rule"] == job.data.label_rule
    job.classifier = SimpleNamespace(**{**vars(job.classifier), "feature_absent_reason": "none here"})  # type: ignore[assignment]
    assert job.describe()["feature_absent_reason"] == "none here"


def test_labels_are_those_of_the_data_set(make_job: Callable[..., Job], demo_root: Path) -> None:
    job = make_job("--crops", "1", "--limit", "7", "--seed", "2")
    expected = label(scan(demo_root, workers=1, progress=False), num_classes=16).subset(7, seed=2)
    assert job.data.table.equals(expected.table) and job.rows.tolist() == list(range(7))
    assert job.views.total == 2 and list(job.policies) == [parse_policy("CC"), parse_policy("1RC")]


def test_the_jpeg_engine_takes_no_image_of_the_accuracy_pass(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels may differ, and which images it takes depends on what shares their batch."""
    job = make_job("--crops", "1", "--hw-load", "0.9")
    shares: list[float] = []
    real = Job.make_backend

    def make_backend(self: Job, planner: Any, config: Any) -> Any:
        shares.append(config.hw_load)
        return real(self, planner, config)

    monkeypatch.setattr(Job, "make_backend", make_backend)
    list(accuracy.accuracy_phase(job, job.setting(), tmp_path))
    assert shares == [0.0] and job.load_config(1).hw_load == 0.9


def test_the_commonest_shapes_of_dense_frames_are_compiled(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by a plain loop over the images' sizes."""
    monkeypatch.setattr(job_module, "MOST_COMPILED_FRAMES", 2)
    job = make_job("--policies", "DC")
    assert job.dense is not None
    counts: Counter[tuple[int, int]] = Counter()
    for height, width in job.data.sizes(np.arange(len(job.data))).tolist():
        scale = job.classifier.spec.S / min(height, width)
        resized = (int(height * scale + 1e-9), int(width * scale + 1e-9))
        counts[job.dense.frame(*resized)[2:]] += 1
    frames, share = job.common_frames
    assert len(counts) > 2 and len(frames) == 2
    assert share == sum(counts[frame] for frame in frames) / len(job.data)
    assert min(counts[frame] for frame in frames) >= sorted(counts.values())[-2]
    assert "compiled_frames" not in job.describe()
    job.make_network(8, compiled=True)
    assert job.dense.compiled_frames == frames
    job.make_network(8)
    assert not job.dense.compiled_frames
    compiled = make_job("--policies", "DC", "--torchcompile")
    assert compiled.describe()["compiled_frames"] == sorted(map(list, frames))
    assert compiled.describe()["compiled_frames_share"] == round(share, 4)
    monkeypatch.setattr(job_module, "LEAST_COMPILED_SHARE", 0.99)
    assert make_job("--policies", "DC").common_frames == (frozenset(), 0.0)
