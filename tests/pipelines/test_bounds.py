"""Memory is bounded whatever the images' sizes: limits from the header, few large images a batch, no giant frames."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import bounds
from pipelines.backends import backend, unusable
from pipelines.batch import CropBatch, Failure, LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.data.dataset import Dataset, DatasetError
from pipelines.data.decode import decode
from pipelines.data.labels import unlabelled
from pipelines.data.limits import ImageLimits, without_pillow_limit
from pipelines.data.memory import ImageList
from pipelines.data.scanning import scan
from pipelines.inputspec import InputSpec

ROOT = Path(__file__).resolve().parents[2]
PLANNER = Planner(InputSpec(S=16, K=16), union([parse_policy("CC+2RC")]))
BACKENDS = [name for name in ("dali-cpu", "torchvision") if not unusable(name)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images; the second and the last are panoramas."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(40, 30), (3000, 1), (30, 40), (50, 50), (1, 2500)]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def data(root: Path, tmp_path: Path, **limits: float) -> Dataset:
    found = scan(root, workers=1, cache=tmp_path / "cache", progress=False, limits=ImageLimits(**limits))
    return unlabelled(found, "not needed")


def crops(batches: Iterator[CropBatch]) -> dict[tuple[int, int], bytes]:
    return {
        (int(row), int(view)): crop.numpy().tobytes()
        for batch in batches
        for group in batch.groups
        for crop, row, view in zip(group.crops, group.image, group.view, strict=True)
        if row >= 0
    }


def test_images_beyond_the_limits_are_listed_with_the_limit(images: Path, tmp_path: Path) -> None:
    for _ in range(2):  # from the headers, then from the cache
        found = data(images, tmp_path, megapixels=2e-3)
        assert found.table["name"].tolist() == ["0.png", "2.png"]
        reasons = dict(zip(found.unreadable["name"], found.unreadable["reason"], strict=True))
        assert reasons["1.png"] == "3000x1 pixels: over the limit of 0.002 megapixels (`max_megapixels`)"
        assert list(reasons) == ["1.png", "3.png", "4.png"]
    largest = (images / "1.png").stat().st_size
    found = data(images, tmp_path, megabytes=(largest - 1) / 1e6)
    assert f"a file of {largest:,} bytes" in found.unreadable["reason"].iloc[0]
    with pytest.raises(DatasetError, match="none of the 5"):
        data(images, tmp_path, megapixels=1e-6)


def test_a_list_of_images_has_limits_too(tmp_path: Path, images: Path) -> None:
    files = [images / "0.png", images / "1.png", (images / "1.png").read_bytes()]
    listed = ImageList.of(files, limits=ImageLimits(megapixels=2e-3))
    assert listed.readable.tolist() == [0] and "megapixels" in listed.errors[1] and "megapixels" in listed.errors[2]
    assert listed.file_bytes(np.arange(3)).tolist() == [(images / f"{n}.png").stat().st_size for n in (0, 1, 1)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("batch_images", [1, 2, 5])
def test_a_frame_that_would_be_too_large_costs_itself_only(
    name: str, batch_images: int, images: Path, tmp_path: Path
) -> None:
    source, rows = data(images, tmp_path), np.array([4, 3, 1, 0, 2])
    free = backend(name)(source, PLANNER, LoadConfig(batch_images, workers=1))
    bounded = backend(name)(source, PLANNER, LoadConfig(batch_images, workers=1, max_resized_megapixels=0.5))
    try:
        found = list(bounded.batches(rows))
        failed = {failure.row: failure for batch in found for failure in batch.failed}
        assert sorted(failed) == [1, 4] and {failure.stage for failure in failed.values()} == {"resize"}
        assert "48000" not in failed[1].reason and "resized from 3000x1 it would have 1 megapixels" in failed[1].reason
        assert sorted(row for batch in found for row in batch.rows.tolist()) == [0, 2, 3]
        assert crops(iter(found)) == crops(free.batches(np.array([3, 0, 2])))
        assert [row for row, _ in bounded.frames(rows)] == [3, 0, 2]
        assert sum(bounded.stage("resize", rows)) == 3
        assert [len(batch.failed) for batch in bounded.batches(np.array([1, 4]))] == [2]
    finally:
        free.close()
        bounded.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_large_images_share_a_batch_with_few_others(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data(images, tmp_path)
    needed = bounds.image_bytes(source, PLANNER, np.arange(5))
    assert needed[0] == 3 * (40 * 30 + 16 * 21) + (images / "0.png").stat().st_size
    made = backend(name)(source, PLANNER, LoadConfig(4, workers=1))
    expected = crops(made.batches(np.arange(5)))
    monkeypatch.setattr(bounds, "BATCH_BYTES", {False: int(needed[2] + needed[3]), True: 0})
    batches = list(made.batches(np.arange(5)))
    made.close()
    assert [batch.rows.tolist() for batch in batches] == [[0], [1], [2, 3], [4]]
    assert crops(iter(batches)) == expected


def test_pieces_are_of_batch_images_where_memory_allows(images: Path, tmp_path: Path) -> None:
    source = data(images, tmp_path)
    rows = np.resize(np.arange(5), 3 * bounds.BLOCK_ROWS + 7)
    sizes = [len(piece) for piece in bounds.pieces(source, PLANNER, rows, LoadConfig(48), gpu=False)]
    assert set(sizes[:-1]) == {48} and sum(sizes) == len(rows)


def test_refused_images_keep_their_place() -> None:
    rows = np.array([7, 1, 2, 8, 3, 9])
    refused = [Failure(row, "large", "resize") for row in (7, 8, 9)]
    batches = [CropBatch([], np.array([1]), []), CropBatch([], np.array([3]), [Failure(2, "bad")])]
    found = list(bounds.with_refused(rows, refused, batches))
    assert [[failure.row for failure in batch.failed] for batch in found] == [[7], [2, 8], [9]]
    assert list(bounds.with_refused(rows, [], batches)) == batches


def test_pillows_own_limit_stays_what_it_was_and_does_not_count_here(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns above its limit, which pytest makes an error, and refuses images of twice as many pixels."""
    code = "from PIL import Image; was = Image.MAX_IMAGE_PIXELS; import models, bench.run; assert was == "
    subprocess.run([sys.executable, "-c", f"{code} Image.MAX_IMAGE_PIXELS > 0"], check=True, cwd=ROOT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = data(images, tmp_path)
    assert len(source) == 5 and len(source.unreadable) == 0
    assert decode(images / "3.png").shape == (50, 50, 3)
    for name in BACKENDS:
        made = backend(name)(source, PLANNER, LoadConfig(4, workers=0 if name == "torchvision" else 1))
        assert sorted(row for batch in made.batches(np.arange(5)) for row in batch.rows.tolist()) == list(range(5))
        made.close()
    assert Image.MAX_IMAGE_PIXELS == 1000
    with without_pillow_limit():
        with without_pillow_limit():
            assert Image.MAX_IMAGE_PIXELS is None
        assert Image.MAX_IMAGE_PIXELS is None  # another thread's
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(images / "1.png")
