"""A small demo set, a checkpoint made here, bench/run.py called in this process. The home folder is never touched."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from bench import cases, machine, records, run, setup
from bench import job as job_module
from bench.job import Job
from bench.measure import accuracy, estimate, throughput
from bench.options import parse
from models import dense
from models.classifier import Classifier
from pipelines import backend
from pipelines.backends.torchvision import Torchvision
from pipelines.batch import LoadConfig, Source
from pipelines.crops import Planner
from pipelines.data import demo
from pipelines.data.dataset import Dataset, Scan
from pipelines.data.labels import label
from pipelines.data.scanning import scan

IMAGES = 24
CLASSES = len(demo.CLASSES)


class InProcess(Torchvision):
    """The torchvision backend without worker processes: each test would wait seconds for their start."""

    def __init__(self, source: Source, planner: Planner, config: LoadConfig) -> None:
        super().__init__(source, planner, replace(config, workers=0))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULTICROP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure("val", images=IMAGES, cache=tmp_path_factory.mktemp("demo"), workers=1)


@pytest.fixture(scope="session")
def data(demo_root: Path) -> Dataset:
    return label(scan(demo_root, workers=1, progress=False), num_classes=CLASSES)


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """test_resnet for the demo's classes, random but for a head whose answers differ from image to image."""
    torch.manual_seed(0)
    net: Any = timm.create_model("test_resnet", num_classes=CLASSES)
    head = net.get_classifier()
    torch.nn.init.normal_(head.weight)
    with torch.inference_mode():
        head.bias.copy_(-net.eval().forward_head(net.forward_features(torch.randn(8, 3, 64, 64))).mean(0))
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(net.state_dict(), path)
    return path


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str
    out: Path

    @property
    def last(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def run(self) -> records.Run:
        return records.read_run(self.out)

    def predictions(self) -> dict[str, np.ndarray]:
        (path,) = self.out.glob("predictions-*.npz")
        with np.load(path) as file:
            return dict(file)


REDUCTIONS: dict[tuple[str, int], tuple[int, int]] = {}
find_reduction = dense._reduction


def known_reduction(classifier: Classifier) -> tuple[int, int]:
    """By the network's own text and size: finding it takes a mobile network half a second, in every job."""
    key = (repr(classifier.net), classifier.spec.K)
    if key not in REDUCTIONS:
        REDUCTIONS[key] = find_reduction(classifier)
    return REDUCTIONS[key]


def make_fast(patch: pytest.MonkeyPatch) -> type[InProcess]:
    """`--data-backend torchvision` without worker processes. Memory is looked at once: it takes a tenth of a second."""
    known = machine.resident_bytes()
    patch.setattr(dense, "_reduction", known_reduction)
    patch.setattr(machine, "resident_bytes", lambda: known)
    patch.setattr(job_module, "backend", lambda name: InProcess if name == "torchvision" else backend(name))
    return InProcess


@pytest.fixture
def fast_backend(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    """See ``make_fast``."""
    return make_fast(monkeypatch)


@pytest.fixture
def make_job(fast_backend: object, demo_root: Path, weights_file: Path) -> Callable[..., Job]:
    """``make_job("--crops", "2")``: what bench/run.py makes of its first network, on the small checkpoint."""

    def make(*argv: str, scanned: Scan | None = None) -> Job:
        model = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64"]
        asked = parse([*model, "--data", str(demo_root), *FAST, "--data-backend", "torchvision", *argv]).config
        config = setup.resolve(asked)
        case = cases.model_cases(config.network, demo=config.network.weights == "demo")[0]
        return setup.make_job(case, scanned or setup.find_images(config), config)

    return make


def run_job(job: Job, out: Path) -> Iterator[records.Record]:
    """Accuracy and throughput of one network; each record as soon as it is there."""
    setting = job.setting()
    yield from accuracy.accuracy_phase(job, setting, out)
    yield from throughput.throughput_phase(job, setting, out)
    accuracy.partial_results(job, out).remove()


def change(job: Job, group: str, **values: Any) -> None:
    """Give one group of the job's configuration other values."""
    job.config = replace(job.config, **{group: replace(getattr(job.config, group), **values)})


# Each round is as short as it can be: what the numbers are worth is not asked here.
FAST = [
    "--rounds", "1", "--round-seconds", "0.05", "--num-warm-iter", "1", "--latency-queries", "2",
    "--batch-images", "4", "-b", "8", "-j", "1",
]  # fmt: skip
QUICKLY = [*FAST, "--no-figures", "--data-backend", "torchvision"]


def status_of(argv: list[str]) -> int:
    """Of the command; 2 where argparse ends it."""
    try:
        return run.main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def run_command(*args: str, out: Path) -> Finished:
    """The command as ``finish`` runs it, for fixtures that several tests share: nothing stays changed afterwards."""
    said, errors = io.StringIO(), io.StringIO()
    cwd = out.parent / f"{out.name}-cwd"
    cwd.mkdir()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        make_fast(patch)
        patch.setattr(estimate, "expected_s", lambda job: 1.0)
        patch.chdir(cwd)
        status = status_of([*QUICKLY, *args, "--out", str(out)])
    return Finished(status, said.getvalue(), errors.getvalue(), out)


@pytest.fixture
def finish(
    tmp_path: Path, fast_backend: object, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """``finish("--crops", "1")``: the command in an empty working folder, with its status and what it said.

    The measurement of how long it will take is left out; it has tests of its own.
    """
    monkeypatch.setattr(estimate, "expected_s", lambda job: 1.0)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)

    def call(*args: str, out: str = "out") -> Finished:
        capfd.readouterr()
        folder = tmp_path / out
        status = status_of([*QUICKLY, *args, "--out", str(folder)])
        said = capfd.readouterr()
        return Finished(status, said.out, said.err, folder)

    return call


@pytest.fixture
def small_run(finish: Callable[..., Finished], demo_root: Path, weights_file: Path) -> Callable[..., Finished]:
    """``finish`` on the demo set with the small checkpoint, at 64 pixels."""
    model = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64"]
    return partial(finish, *model, "--data", str(demo_root))
