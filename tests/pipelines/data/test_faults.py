"""The machine's faults (no memory, no file descriptors) end a pass; they are never booked as an image's."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.backends import backend, unusable
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.data.dataset import Dataset
from pipelines.data.faults import MachineFault, is_of_machine
from pipelines.data.labels import unlabelled
from pipelines.data.memory import ImageList
from pipelines.data.scanning import scan
from pipelines.inputspec import InputSpec

PLANNER = Planner(InputSpec(S=16, K=16), union([parse_policy("CC")]))


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    for number in range(3):
        Image.new("RGB", (20, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return unlabelled(scan(tmp_path, workers=1, cache=tmp_path / "cache", progress=False), "not needed")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DALI: std::bad_alloc"),
        RuntimeError("could not create a primitive"),  # oneDNN, under a limit of memory
        RuntimeError("could not execute a primitive"),
        RuntimeError("can't start new thread"),
        RuntimeError("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    ],
)
def test_faults_of_the_machine_are_recognised(error: Exception) -> None:
    assert is_of_machine(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated"),
        OSError(errno.ENOENT, "no"),
        ValueError("bad"),
        RuntimeError("could not create a primitive descriptor for the convolution forward propagation primitive"),
    ],
)
def test_faults_of_images_are_not_taken_for_them(error: Exception) -> None:
    assert not is_of_machine(error)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_torchvision_ends_and_blames_no_image(
    error: Exception, source: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.backends import torchvision

    def fail(data: bytes) -> None:
        raise error

    monkeypatch.setattr(torchvision, "decode_rgb", fail)
    made = torchvision.Torchvision(source, PLANNER, LoadConfig(workers=0))
    with pytest.raises(MachineFault, match=r"^the machine, not an image, failed while 0\.png was read"):
        list(made.batches(np.arange(3)))


def test_a_worker_without_file_descriptors_ends_the_pass_with_one_sentence(
    source: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.backends import torchvision

    class Loader:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def __iter__(self) -> None:  # as torch raises a worker's error again
            raise MachineFault(
                "Caught MachineFault in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "pipelines.data.faults.MachineFault: the machine, not an image, failed while 0.png was read"
            )

    monkeypatch.setattr(torchvision, "DataLoader", Loader)
    made = torchvision.Torchvision(source, PLANNER, LoadConfig(workers=0))
    with pytest.raises(MachineFault) as raised:
        list(made.batches(np.arange(3)))
    assert str(raised.value) == "the machine, not an image, failed while 0.png was read"


@pytest.mark.skipif(unusable("dali-cpu") is not None, reason="needs DALI")
@pytest.mark.parametrize("alone_too", [False, True])
def test_dali_reads_one_by_one_where_a_batch_does_not_fit(
    alone_too: bool, source: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend("dali-cpu")(source, PLANNER, LoadConfig(workers=1))
    real = type(made)._pipe  # type: ignore[attr-defined]

    class Full:
        def run(self, requests: object) -> object:
            for plan, _ in requests:  # type: ignore[attr-defined]
                yield plan, RuntimeError("Error in CPU operator encountered: std::bad_alloc")

    def pipe(self: object, what: str, rows: np.ndarray, *, alone: bool = False) -> object:
        return Full() if alone_too or not alone else real(self, what, rows, alone=alone)

    monkeypatch.setattr(type(made), "_pipe", pipe)
    if alone_too:
        with pytest.raises(MachineFault, match=r"0\.png"):
            list(made.batches(np.arange(3)))
    else:
        (batch,) = made.batches(np.arange(3))
        assert batch.rows.tolist() == [0, 1, 2] and not batch.failed
    made.close()


def test_a_scan_blames_no_file_for_a_lack_of_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "0.png")

    def fails(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(tmp_path / "0.png"))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(OSError, match="Too many open files"):
        scan(tmp_path, workers=1, cache=tmp_path / "cache", progress=False)
    with pytest.raises(OSError, match="Too many open files"):
        ImageList.of([tmp_path / "0.png"])


def test_a_cache_is_not_called_damaged_where_no_thread_can_be_started(
    source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.data import dataset

    def fails(*arguments: object, **keywords: object) -> None:
        raise OSError("Unknown error: Failed to launch worker thread: Resource temporarily unavailable")

    kept = next((tmp_path / "cache").rglob("*.parquet"))
    before = kept.read_bytes()
    monkeypatch.setattr(dataset.pq, "ParquetFile", fails)
    with pytest.raises(OSError, match="Failed to launch"):
        scan(tmp_path, workers=1, cache=tmp_path / "cache", progress=False)
    assert kept.read_bytes() == before
