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
from pipelines.backends import BACKENDS as ENTRIES
from pipelines.backends import backend, reference, unusable
from pipelines.batch import CropBatch, Failure, LoadConfig
from pipelines.crops import GroupPlan, Planner, crop_windows, parse_policy, resized_sizes, union
from pipelines.data.dataset import Dataset, DatasetError
from pipelines.data.decode import decode
from pipelines.data.labels import unlabelled
from pipelines.data.limits import ImageLimits, without_pillow_limit
from pipelines.data.memory import ImageList
from pipelines.data.scanning import scan
from pipelines.inputspec import InputSpec
from pipelines.panoramas import windows_of

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
def test_a_panorama_is_cut_by_windows_that_are_those_of_the_whole_frame(
    name: str, batch_images: int, images: Path, tmp_path: Path
) -> None:
    source, rows = data(images, tmp_path), np.array([4, 3, 1, 0, 2, 1, 1])
    free = backend(name)(source, PLANNER, LoadConfig(batch_images, workers=1))
    bounded = backend(name)(source, PLANNER, LoadConfig(batch_images, workers=1, max_resized_megapixels=0.5))
    try:
        found = list(bounded.batches(rows))
        assert [row for batch in found for row in batch.rows.tolist()] == rows.tolist()  # in order
        assert not any(batch.failed for batch in found)
        mine, whole = crops(iter(found)), crops(free.batches(rows))
        assert mine.keys() == whole.keys() and len(whole) == 5 * 3
        ordinary = [key for key in whole if key[0] not in (1, 4)]
        assert all(mine[key] == whole[key] for key in ordinary)  # bit for bit
        for row, view in whole.keys() - set(ordinary):
            a, b = (np.frombuffer(some[row, view], np.uint8).astype(int) for some in (mine, whole))
            assert np.abs(a - b).mean() < ENTRIES[name].tolerance_levels
        assert [row for row, _ in bounded.frames(rows)] == [3, 0, 2]
        assert sum(bounded.stage("resize", rows)) == 3
        assert 0 <= reference.check(bounded, source, PLANNER, np.arange(5)) < 1
    finally:
        free.close()
        bounded.close()


def gradients(height: int, width: int) -> np.ndarray:
    """Waves and noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / 7 + y / 5), 127 + 60 * np.cos(x / 3), 127 + 60 * np.sin(y / 4 - x / 11)]
    noise = np.random.default_rng(0).integers(-60, 60, (height, width, 3))
    return np.round(np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 3000), (7, 911), (40, 37), (230, 1900), (601, 97)])
def test_every_window_is_that_of_the_reference(size: tuple[int, int], interpolation: str) -> None:
    """Images are enlarged and reduced; windows lie at all borders and between."""
    K, image = 32, gradients(*size)
    resized = tuple(resized_sizes(np.array([size]), InputSpec(S=40, K=K))[0].tolist())
    frame = reference.resize_frame(image, resized, interpolation)
    room = np.array(resized) - K
    places = [(0, 0), tuple(room), (room[0], 0), (0, room[1]), *(room * u // 100 for u in ((13, 57), (71, 39)))]
    windows = np.array([(y, x, mirror) for y, x in places for mirror in (0, 1)])
    n = len(windows)
    group = GroupPlan(K, np.array([resized]), np.zeros(n, np.int64), np.arange(n, dtype=np.int32), windows)
    difference = windows_of(image, group, interpolation).astype(int) - crop_windows(frame, windows, K)
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.01


@pytest.mark.parametrize("name", BACKENDS)
def test_a_panorama_that_has_changed_or_is_damaged_costs_itself_only(name: str, images: Path, tmp_path: Path) -> None:
    source = data(images, tmp_path)
    bounded = backend(name)(source, PLANNER, LoadConfig(2, workers=1, max_resized_megapixels=0.5))
    whole = (images / "4.png").read_bytes()
    (images / "4.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (2900, 1)).save(images / "1.png")
    found = list(bounded.batches(np.arange(5)))
    bounded.close()
    assert [row for batch in found for row in batch.rows.tolist()] == [0, 2, 3]
    failed = {failure.row: failure.reason for batch in found for failure in batch.failed}
    assert "2900x1 pixels instead of 3000x1" in failed[1] and failed[4].startswith("PIL: OSError: image file is trunc")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("batch_images", [1, 2, 5])
def test_a_frame_that_dense_views_need_and_is_too_large_costs_itself_only(
    name: str, batch_images: int, images: Path, tmp_path: Path
) -> None:
    dense = Planner(InputSpec(S=16, K=16), union([parse_policy("CC+WI")]), stride=4)
    source, rows = data(images, tmp_path), np.array([4, 3, 1, 0, 2])
    free = backend(name)(source, dense, LoadConfig(batch_images, workers=1))
    bounded = backend(name)(source, dense, LoadConfig(batch_images, workers=1, max_resized_megapixels=0.5))
    try:
        found = list(bounded.batches(rows))
        failed = {failure.row: failure for batch in found for failure in batch.failed}
        assert sorted(failed) == [1, 4] and {failure.stage for failure in failed.values()} == {"resize"}
        assert "resized from 3000x1 it would have 1 megapixels" in failed[1].reason
        assert "dense views need the whole frame" in failed[4].reason
        assert [row for batch in found for row in batch.rows.tolist()] == [3, 0, 2]
        assert crops(iter(found)) == crops(free.batches(np.array([3, 0, 2])))
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
