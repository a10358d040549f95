"""Every backend of BACKENDS against its contract (``pipelines.batch.Backend``); what cannot run here is skipped with
the backend's own reason.

Crops against NumPy slices of the backend's own frames, bit for bit; frames against PIL and against torchvision in
float32; decoded pixels against PIL; one pass against another of the same images in other company; ``paste_arguments``
against windows written in NumPy (test_cuts.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageOps

import pipelines
from pipelines import bounds
from pipelines.backends import reference, torchvision
from pipelines.batch import STAGES, CropBatch, Failure, LoadConfig, default_batch_images, split
from pipelines.crops import GroupPlan, Plan, Planner, crop_windows, parse_policy, union
from pipelines.data.faults import MachineFault
from pipelines.data.labels import unlabelled
from pipelines.data.scanning import scan
from pipelines.inputspec import InputSpec

ALL_STREAMS = "CC+5FC+5MFC+3RC+2MRC"
# The GPU decodes with another IDCT and other chroma filters than libjpeg-turbo (pipelines/backends/reference.py).
EXACT_DECODERS = ("dali-cpu", "torchvision")
NAMES = [pytest.param(name, marks=pytest.mark.gpu if name == "dali-gpu" else []) for name in pipelines.BACKENDS]


def runnable(name: str) -> str:
    if reason := pipelines.unusable(name):
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return runnable(request.param)


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """``make(name, source, planner, **LoadConfig)``: a backend that is closed after the test.

    Without the JPEG engine: which images it takes depends on the batch, and its pixels may differ from CUDA's.
    """
    made: list[Any] = []

    def make(name: str, source: Any, planner: Any, **config: Any) -> Any:
        settings = {"batch_images": 5, "workers": 1, "hw_load": 0.0, **config}
        made.append(pipelines.backend(name)(source, planner, LoadConfig(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def planner(policies: str = ALL_STREAMS, S: int = 64, K: int = 49, seed: int = 0, **spec: Any) -> Planner:
    return Planner(InputSpec(S, K, **spec), union([parse_policy(text) for text in policies.split(",")]), seed)


def collect(backend: Any, rows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(row, view) -> crop of a whole pass, which must obey the contract on the way: batches in order, the last one
    short, each row in ``rows`` or ``failed`` once, each planned view once, image-major, no crop of a failed row.
    """
    crops: dict[tuple[int, int], np.ndarray] = {}
    held = []
    pieces = [rows[i : i + backend.config.batch_images] for i in range(0, len(rows), backend.config.batch_images)]
    batches = list(backend.batches(rows))
    assert len(batches) == len(pieces)
    for batch, piece in zip(batches, pieces, strict=True):
        failed = [failure.row for failure in batch.failed]
        assert sorted([*batch.rows.tolist(), *failed]) == sorted(piece.tolist())
        assert batch.rows.tolist() == [row for row in piece.tolist() if row not in failed]
        assert batch.rows.dtype == np.int64
        seen: list[tuple[int, int]] = []
        for group in batch.groups:
            K = backend.planner.spec.K
            assert group.crops.dtype == torch.uint8
            assert group.crops.shape == (len(group.image), K, K, 3)
            assert group.crops.device == torch.device(backend.device)
            assert (group.image.dtype, group.view.dtype) == (np.int64, np.int32)
            np.testing.assert_array_equal(group.image < 0, group.view < 0)
            for crop, row, view in zip(
                group.crops.cpu().numpy(), group.image.tolist(), group.view.tolist(), strict=True
            ):
                if row >= 0:
                    seen.append((row, view))
                    crops[row, view] = crop
                    held.append((crop, crop.copy()))
        plan = backend.planner.plan(batch.rows, backend.source.names(batch.rows), backend.source.sizes(batch.rows))
        places = [(group.image, group.view) for group in plan.groups]
        assert seen == [
            (int(batch.rows[i]), int(v)) for image, view in places for i, v in zip(image, view, strict=True)
        ]
    # Crops were handed over: what the backend did since must not have reached them.
    assert all(np.array_equal(now, then) for now, then in held)
    return crops


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def by_stream(crops: dict[tuple[int, int], np.ndarray], views: Any) -> dict[tuple[int, str, int], np.ndarray]:
    """(row, stream, j) -> crop: what two unions of views have in common."""
    places = [(stream, j, column) for stream, columns in views.columns.items() for j, column in enumerate(columns)]
    return {(row, s, j): crops[row, column] for row in {row for row, _ in crops} for s, j, column in places}


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean())


# ---------------------------------------------------------------------------------------------- crops, frames, decoding


@pytest.mark.parametrize(
    ("policies", "spec"),
    [
        (ALL_STREAMS, {}),
        (ALL_STREAMS, {"interpolation": "bicubic"}),
        (ALL_STREAMS, {"crop_mode": "squash"}),
        ("CC", {}),
        ("5FC", {}),
        ("5MFC", {}),
        ("2RC", {}),
        ("2MRC", {}),
        ("CC,40RC+7MRC", {}),  # so many that the torchvision backend sends frames
        ("CC,2RC,9ARC+6AMRC", {}),  # each image another number
        (ALL_STREAMS, {"K": 64}),  # no slack
    ],
)
def test_crops_are_slices_of_the_backends_own_frames(
    name: str, make: Callable[..., Any], random_images: Any, policies: str, spec: dict[str, Any]
) -> None:
    one = planner(policies, **spec)
    rows = random_images.rows
    backend = make(name, random_images, one)
    frames = dict(backend.frames(rows))
    crops = collect(backend, rows)
    plan = one.plan(rows, random_images.names(rows), random_images.sizes(rows)).groups[0]
    assert list(frames) == rows.tolist()
    assert len(crops) == len(plan.image)
    for image, view, (y, x, mirror) in zip(plan.image.tolist(), plan.view.tolist(), plan.windows.tolist(), strict=True):
        assert frames[image].shape == (*plan.sizes[image], 3)
        window = frames[image][y : y + one.spec.K, x : x + one.spec.K]
        np.testing.assert_array_equal(crops[image, view], np.flip(window, axis=1) if mirror else window)


@pytest.mark.parametrize("spec", [{}, {"interpolation": "bicubic"}, {"crop_mode": "squash"}, {"S": 300, "K": 300}])
def test_frames_are_those_of_pil(name: str, make: Callable[..., Any], random_images: Any, spec: dict[str, Any]) -> None:
    """On noise, shrunk and enlarged. PIL rounds between its two passes, which costs it a third of a grey level here; a
    missing antialias, a shifted grid or a wrong filter costs several."""
    one = planner("CC", **spec)
    rows = random_images.rows
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    frames = dict(make(name, random_images, one).frames(rows))
    plan = one.plan(rows, random_images.names(rows), random_images.sizes(rows)).groups[0]
    for row, path in zip(rows.tolist(), random_images.paths(rows), strict=True):
        height, width = plan.sizes[row].tolist()
        with Image.open(path) as image:
            expected = np.asarray(image.resize((width, height), filters[one.spec.interpolation]))
        most = 0.5 if name in EXACT_DECODERS else pipelines.BACKENDS[name].tolerance_levels + 0.5
        assert mean_difference(frames[row], expected) < most, path


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_of_the_demo_images_are_the_references(
    name: str, make: Callable[..., Any], demo_images: Any, interpolation: str
) -> None:
    one = planner("CC", S=256, K=224, interpolation=interpolation)
    rows = demo_images.rows
    frames = dict(make(name, demo_images, one).frames(rows))
    differences = [mean_difference(frames[row], reference.frame(demo_images, one, row)) for row in rows.tolist()]
    assert max(differences) < pipelines.BACKENDS[name].tolerance_levels
    assert np.mean(differences) < {"dali-cpu": 0.02, "torchvision": 0.2}.get(name, 1.0)


@pytest.mark.dali
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_dali_and_torchvision_frames_agree(make: Callable[..., Any], demo_images: Any, interpolation: str) -> None:
    one = planner("CC", S=256, K=224, interpolation=interpolation)
    dali, other = (dict(make(name, demo_images, one).frames(demo_images.rows)) for name in ("dali-cpu", "torchvision"))
    assert dali.keys() == other.keys()
    assert np.mean([mean_difference(dali[row], other[row]) for row in dali]) < 0.2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_reference_is_pils_resize_within_its_rounding(random_images: Any, interpolation: str) -> None:
    """The judge must be judged: float32 resize, rounded once, against PIL's, rounded twice."""
    one = planner("CC", interpolation=interpolation)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for row, path in zip(random_images.rows.tolist(), random_images.paths(random_images.rows), strict=True):
        frame = reference.frame(random_images, one, row)
        with Image.open(path) as image:
            expected = np.asarray(image.resize((frame.shape[1], frame.shape[0]), filters[interpolation]))
        assert mean_difference(frame, expected) < 0.3


def odd_files(root: Path, picture: Callable[[int, int, int], Image.Image]) -> None:
    """Whatever an image folder may hold under the name of a JPEG; 64 pixels high, so that S = 64 resizes nothing."""
    rgb = picture(64, 91, 1)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # turn by 90 degrees to look at it
    rgb.save(root / "plain 4-4-4.jpg", quality=90, subsampling=0)
    rgb.save(root / "4-2-2.jpg", quality=90, subsampling=1)
    rgb.save(root / "4-2-0.jpg", quality=90, subsampling=2)
    rgb.save(root / "progressive.jpg", quality=90, progressive=True)
    rgb.save(root / "exif.jpg", quality=90, exif=rotated)
    rgb.save(root / "adobe rgb.jpg", quality=90, keep_rgb=True)
    rgb.convert("L").save(root / "grey.jpg", quality=90)
    rgb.convert("L").save(root / "grey progressive.jpg", quality=90, progressive=True)
    rgb.convert("CMYK").save(root / "cmyk.jpg", quality=90)
    rgb.save(root / "png rgb.jpg", format="PNG")
    rgb.convert("L").save(root / "png grey.jpg", format="PNG")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(root / "png palette.jpg", format="PNG")
    alpha = Image.linear_gradient("L").resize(rgb.size)
    Image.merge("RGBA", (*rgb.split(), alpha)).save(root / "png rgba.png")
    Image.merge("LA", (rgb.convert("L"), alpha)).save(root / "png la.png")
    trailing = (root / "4-2-0.jpg").read_bytes() + b"\0" * 1000 + b"garbage"
    (root / "trailing garbage.jpg").write_bytes(trailing)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_odd_content_has_pils_pixels(
    name: str,
    make: Callable[..., Any],
    listing: Callable[..., Any],
    picture: Callable[..., Image.Image],
    tmp_path: Path,
    interpolation: str,
) -> None:
    """Decoded to RGB as PIL's ``convert("RGB")`` does, EXIF orientation ignored, as timm loads an image."""
    odd_files(tmp_path, picture)
    source = listing(tmp_path)
    backend = make(name, source, planner("CC", S=64, K=64, interpolation=interpolation))
    frames = dict(backend.frames(source.rows))
    different = {}
    for row, (file, path) in enumerate(zip(source.listed, source.paths(source.rows), strict=True)):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
            assert expected.shape == (64, 91, 3)
            if file == "exif.jpg":
                assert ImageOps.exif_transpose(image).size == (64, 91)  # the file does ask to be turned
        assert row in frames, file
        limit = 0.0 if name in EXACT_DECODERS else pipelines.BACKENDS[name].tolerance_levels
        if (difference := mean_difference(frames[row], expected)) > limit:
            different[file] = difference
    assert different == {}


# ------------------------------------------------------------------------------------------------------- order and bits


def test_batches_come_in_the_order_of_the_rows(name: str, make: Callable[..., Any], random_images: Any) -> None:
    backend = make(name, random_images, planner("CC+2MRC"), batch_images=3)
    rows = np.array([6, 1, 0, 7, 3, 2, 5, 4])
    assert [batch.rows.tolist() for batch in backend.batches(rows)] == [[6, 1, 0], [7, 3, 2], [5, 4]]
    assert [row for row, _ in backend.frames(rows)] == rows.tolist()
    assert [batch.rows.tolist() for batch in backend.batches(rows[:3])] == [[6, 1, 0]]
    assert list(backend.batches(rows[:0])) == []
    assert [batch.rows.tolist() for batch in backend.batches(rows[:1])] == [[6]]


def test_a_row_may_be_asked_for_again(name: str, make: Callable[..., Any], random_images: Any) -> None:
    """The speed pass goes round and round, also in one batch when there are few images."""
    backend = make(name, random_images, planner("CC+2MRC"), batch_images=3)
    rows = np.array([6, 1, 6, 6, 1, 6, 1])
    batches = list(backend.batches(rows))
    assert [batch.rows.tolist() for batch in batches] == [[6, 1, 6], [6, 1, 6], [1]]
    once = collect(backend, np.array([6, 1]))
    for batch in batches:
        (group,) = batch.groups
        real = group.image >= 0
        assert real.sum() == 3 * len(batch.rows)
        for crop, row, view in zip(group.crops.cpu().numpy()[real], group.image[real], group.view[real], strict=True):
            np.testing.assert_array_equal(crop, once[int(row), int(view)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_does_not_depend_on_how_it_was_loaded(
    name: str, make: Callable[..., Any], random_images: Any, interpolation: str
) -> None:
    """Bit for bit: batch size, workers, prefetching, order, what shares the batch, and what else is in the run."""
    rows = random_images.rows
    few = planner("CC+5FC+2RC+1MRC", interpolation=interpolation)
    alone = collect(make(name, random_images, few, batch_images=1), rows)
    assert len({crop.tobytes() for crop in alone.values()}) == len(alone)  # else equality would say little
    for config in (
        {"batch_images": 3, "workers": 2, "prefetch": 1},
        {"batch_images": 5, "workers": 3, "prefetch": 3},
        {"batch_images": 32, "workers": 1, "prefetch": 2},
    ):
        backend = make(name, random_images, few, **config)
        assert same(collect(backend, rows), alone)
        assert same(collect(backend, rows[::-1]), alone)
        assert same(collect(backend, np.array([3, 1, 7])), {key: alone[key] for key in alone if key[0] in (3, 1, 7)})
    many = planner("5FC+5MFC+30RC,CC,40MRC", interpolation=interpolation)
    larger = by_stream(collect(make(name, random_images, many), rows), many.views)
    smaller = by_stream(alone, few.views)
    assert all(np.array_equal(smaller[key], larger[key]) for key in smaller)


@pytest.mark.gpu
def test_without_the_jpeg_engine_a_gpu_gives_the_references_pixels(make: Callable[..., Any], demo_images: Any) -> None:
    """Windows exact, frames near the reference, each pass alike."""
    runnable("dali-gpu")
    one = planner("CC+5MFC+3RC", S=256, K=224)
    backend = make("dali-gpu", demo_images, one)
    assert (
        reference.check(backend, demo_images, one, demo_images.rows) < pipelines.BACKENDS["dali-gpu"].tolerance_levels
    )
    assert same(collect(backend, demo_images.rows), collect(backend, demo_images.rows))


@pytest.mark.gpu
def test_the_jpeg_engine_comes_near_the_references_pixels(make: Callable[..., Any], demo_images: Any) -> None:
    """As many images as it takes. Frame by frame and crop by crop, but not bit for bit: it may round as it likes."""
    runnable("dali-gpu")
    one = planner("CC+5MFC+3RC", S=256, K=224)
    backend = make("dali-gpu", demo_images, one, hw_load=1.0)
    tolerance = pipelines.BACKENDS["dali-gpu"].tolerance_levels
    frames = dict(backend.frames(demo_images.rows))
    crops = collect(backend, demo_images.rows)
    assert sorted(frames) == demo_images.rows.tolist()
    for row, frame in frames.items():
        expected = reference.frame(demo_images, one, row)
        assert mean_difference(frame, expected) < tolerance
        here = np.array([row])
        (group,) = one.plan(here, demo_images.names(here), demo_images.sizes(here)).groups
        for view, crop in zip(group.view.tolist(), crop_windows(expected, group.windows, group.K), strict=True):
            assert mean_difference(crops[row, view], crop) < tolerance + 1  # a part of the frame may differ by more


def test_every_backend_makes_the_same_plan_of_it(make: Callable[..., Any], random_images: Any) -> None:
    """Same rows, same views, in the same places; together with the slices above: same windows."""
    names = [name for name in pipelines.BACKENDS if not pipelines.unusable(name)]
    keys = {name: list(collect(make(name, random_images, planner()), random_images.rows)) for name in names}
    expected = [(row, view) for row in random_images.rows.tolist() for view in range(planner().views.total)]
    assert keys == dict.fromkeys(names, expected)


def test_the_data_set_is_a_source(name: str, make: Callable[..., Any], random_images: Any, tmp_path: Path) -> None:
    """The real one, whose columns come as pandas lays them out in memory, gives what the tests' plain one gives."""
    found = scan(random_images.root, workers=1, cache=tmp_path, progress=False)
    real = unlabelled(found, "not needed")
    assert real.names(random_images.rows) == random_images.names(random_images.rows)
    expected = collect(make(name, random_images, planner("CC+1MRC"), batch_images=3), random_images.rows)
    assert same(collect(make(name, real, planner("CC+1MRC"), batch_images=3), random_images.rows), expected)


def test_a_finished_pass_leaves_no_crops_to_the_garbage_collector(make: Callable[..., Any], random_images: Any) -> None:
    """A cycle that held each pass's last batch grew to gigabytes before a collector saw a reason to come by."""
    backend = make("dali-cpu", random_images, planner("CC+1MRC"), batch_images=3)
    list(backend.batches(random_images.rows))  # imports and caches
    gc.collect()
    gc.disable()
    try:
        for batch in backend.batches(random_images.rows):
            del batch
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [type(thing).__name__ for thing in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert "frame" not in kept  # DALI's tensors are not seen by the collector; what held them was a frame


# ------------------------------------------------------------------------------------------------------------ bad files


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory, listing: Any, picture: Any) -> tuple[Any, dict[str, str]]:
    """A listing of 13 images of 60 x 48, of which 8 were spoilt after the scan; name -> what its reason must say."""
    root = tmp_path_factory.mktemp("bad")
    for i in range(13):
        picture(48, 60, i).save(root / f"{i:02}.jpg", quality=90)
    source = listing(root)
    whole = (root / "01.jpg").read_bytes()
    (root / "01.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "02.jpg").write_bytes(b"")
    (root / "04.jpg").write_text("no image\n" * 50)
    (root / "05.jpg").unlink()
    picture(96, 120, 5).save(root / "06.jpg")
    picture(40, 50, 6).save(root / "08.jpg")
    picture(60, 48, 8).save(root / "09.jpg")  # turned
    (root / "11.jpg").unlink()
    (root / "11.jpg").mkdir()
    return source, {
        "01.jpg": "",
        "02.jpg": "",
        "04.jpg": "",
        "05.jpg": "No such file",
        "06.jpg": "changed since the scan: 120x96 pixels instead of 60x48",
        "08.jpg": "changed since the scan: 50x40 pixels instead of 60x48",
        "09.jpg": "changed since the scan: 48x60 pixels instead of 60x48",
        "11.jpg": "irectory",
    }


@pytest.mark.parametrize("batch_images", [1, 3, 4, 32])
def test_a_bad_file_costs_itself_only(
    name: str, make: Callable[..., Any], bad_folder: tuple[Any, dict[str, str]], batch_images: int
) -> None:
    source, reasons = bad_folder
    good = [row for row in source.rows.tolist() if source.listed[row] not in reasons]
    expected = collect(make(name, source, planner("CC+2RC+2MRC"), batch_images=4), np.array(good))
    backend = make(name, source, planner("CC+2RC+2MRC"), batch_images=batch_images)
    for _ in range(2):  # the second pass finds the backend as the first did
        assert same(collect(backend, source.rows), expected)
        failed = {source.listed[f.row]: f for batch in backend.batches(source.rows) for f in batch.failed}
        assert failed.keys() == reasons.keys()
        for file, failure in failed.items():
            assert failure.stage == "decode"
            assert len(failure.reason) > 10
            assert "\n" not in failure.reason
            assert reasons[file] in failure.reason, failure
        assert [row for row, _ in backend.frames(source.rows)] == good


UNPARSABLE = """
import sys
import numpy as np
from pipelines.backends.dali import DaliCpu
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.inputspec import InputSpec
from pipelines.data.spans import Span

class OneGif:
    def names(self, rows): return ["x"] * len(rows)
    def spans(self, rows): return [Span(sys.argv[1] if row % 32 == 0 else sys.argv[2]) for row in rows]
    def sizes(self, rows): return np.full((len(rows), 2), 200)

backend = DaliCpu(OneGif(), Planner(InputSpec(40, 32), union([parse_policy("CC")])), LoadConfig(32, 2))
print(sum(backend.stage("decode", np.arange(32 * 60))))
"""


@pytest.mark.dali
def test_dali_survives_large_batches_with_a_header_that_it_cannot_parse(
    picture: Callable[..., Any], tmp_path: Path
) -> None:
    """DALI 2.4.0's decoder ends the process at 32 images and more; hence a process of its own."""
    picture(200, 200, 0).save(tmp_path / "a.gif")
    picture(200, 200, 1).save(tmp_path / "b.jpg")
    command = [sys.executable, "-c", UNPARSABLE, str(tmp_path / "a.gif"), str(tmp_path / "b.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr[-2000:]


def test_a_batch_without_a_readable_image_is_a_batch(
    name: str, make: Callable[..., Any], bad_folder: tuple[Any, dict[str, str]]
) -> None:
    source, reasons = bad_folder
    bad = np.array([row for row in source.rows.tolist() if source.listed[row] in reasons])
    batches = list(make(name, source, planner("CC+2MRC"), batch_images=4).batches(bad))
    assert [[f.row for f in batch.failed] for batch in batches] == [bad[:4].tolist(), bad[4:].tolist()]
    assert [len(batch.rows) for batch in batches] == [0, 0]
    assert all((group.image < 0).all() for batch in batches for group in batch.groups)


def test_a_mended_file_is_read_again(
    name: str, make: Callable[..., Any], listing: Callable[..., Any], picture: Callable[..., Any], tmp_path: Path
) -> None:
    for i in range(3):
        picture(48, 60, i).save(tmp_path / f"{i}.jpg")
    source = listing(tmp_path)
    backend = make(name, source, planner("CC+1MRC"))
    before = collect(backend, source.rows)
    shutil.copy(tmp_path / "1.jpg", tmp_path / "kept")
    (tmp_path / "1.jpg").unlink()
    assert [f.row for batch in backend.batches(source.rows) for f in batch.failed] == [1]
    shutil.copy(tmp_path / "kept", tmp_path / "1.jpg")
    assert same(collect(backend, source.rows), before)


# -------------------------------------------------------------------------------------------- passes, processes, stages

LAST = 3  # of 3 batches


@pytest.mark.parametrize("taken", [0, 1, 2, LAST])
def test_a_pass_may_be_left_at_any_point(name: str, make: Callable[..., Any], random_images: Any, taken: int) -> None:
    backend = make(name, random_images, planner("CC+1MRC"), batch_images=3)
    expected = collect(backend, random_images.rows)
    left = backend.batches(random_images.rows[::-1])
    for _ in range(taken):
        next(left)
    del left
    assert same(collect(backend, random_images.rows), expected)


def test_frames_may_be_left_in_the_middle(
    name: str, make: Callable[..., Any], bad_folder: tuple[Any, dict[str, str]]
) -> None:
    """Also where the batch was refused and its images come one by one."""
    source, _ = bad_folder
    backend = make(name, source, planner("CC"), batch_images=6)
    expected = dict(backend.frames(source.rows))
    for taken in (1, 2, 3):
        left = backend.frames(source.rows)
        for _ in range(taken):
            next(left)
        del left
        assert same(dict(backend.frames(source.rows)), expected)


def test_an_unknown_row_is_an_error_and_costs_nothing_else(
    name: str, make: Callable[..., Any], random_images: Any
) -> None:
    """The caller's mistake, not a bad image: it is raised, not listed, and the next pass is whole."""
    backend = make(name, random_images, planner("CC+1MRC"), batch_images=3)
    expected = collect(backend, random_images.rows)
    with pytest.raises(IndexError):
        list(backend.batches(np.array([0, 1, 2, 3, 4, 5, 6, 7, 99])))
    assert same(collect(backend, random_images.rows), expected)


def process_ids() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def becomes(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    stop = time.monotonic() + seconds
    while not condition() and time.monotonic() < stop:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("left", [False, True], ids=["finished", "left in the middle"])
def test_close_leaves_no_worker_behind(name: str, make: Callable[..., Any], random_images: Any, left: bool) -> None:
    def used() -> Any:
        backend = make(name, random_images, planner("CC+1MRC"), batch_images=1, workers=2)
        batches = backend.batches(random_images.rows)
        next(batches) if left else list(batches)
        return backend

    used().close()  # starts what is started once: the fork server, the resource tracker
    assert becomes(lambda: not multiprocessing.active_children())
    before = process_ids()
    backend = used()
    if name == "torchvision":
        assert len(process_ids() - before) == 2  # the workers can be seen
    backend.close()
    assert becomes(lambda: process_ids() <= before)
    assert becomes(lambda: "planner" not in {thread.name for thread in threading.enumerate()})


def test_a_closed_backend_starts_again(name: str, make: Callable[..., Any], random_images: Any) -> None:
    backend = make(name, random_images, planner("CC+1MRC"))
    before = collect(backend, random_images.rows)
    backend.close()
    backend.close()
    assert same(collect(backend, random_images.rows), before)


@pytest.mark.parametrize("what", STAGES)
def test_a_stage_counts_the_images(name: str, make: Callable[..., Any], random_images: Any, what: str) -> None:
    """Also between passes of another kind, which share the workers."""
    backend = make(name, random_images, planner("CC+1MRC"), batch_images=3)
    expected = collect(backend, random_images.rows)
    for _ in range(2):
        assert list(backend.stage(what, random_images.rows)) == [3, 3, 2]
        assert same(collect(backend, random_images.rows), expected)


@pytest.mark.parametrize("what", ["decode", "resize"])
def test_a_stage_does_not_count_what_it_did_not_do(
    name: str, make: Callable[..., Any], bad_folder: tuple[Any, dict[str, str]], what: str
) -> None:
    """A stage is timed, so it need not read a refused batch again image by image: the batch may count as none."""
    source, reasons = bad_folder
    counted = list(make(name, source, planner("CC"), batch_images=2).stage(what, source.rows))
    changed = {file for file, reason in reasons.items() if "changed" in reason}  # readable all the same
    readable = [file not in reasons or file in changed for file in source.listed]
    pieces = [readable[i : i + 2] for i in range(0, len(readable), 2)]
    assert len(counted) == len(pieces)
    for count, piece in zip(counted, pieces, strict=True):
        assert count <= sum(piece)
    good = [not any(file in reasons for file in source.listed[i : i + 2]) for i in range(0, len(readable), 2)]
    assert [count for count, whole in zip(counted, good, strict=True) if whole] == [
        len(piece) for piece, whole in zip(pieces, good, strict=True) if whole
    ]
    assert any(good)


# ---------------------------------------------------------------------------------------------- ragged numbers of views


class Ragged:
    """Plans a different number of views for each image, as a size-adaptive policy would: image ``i`` of a batch gets
    the first ``counts[i]`` of its views."""

    def __init__(self, inner: Planner, counts: list[int]) -> None:
        self.inner, self.counts = inner, counts
        self.spec, self.views = inner.spec, inner.views

    def specs(self) -> dict[int | None, InputSpec]:
        return self.inner.specs()

    def plan(self, rows: np.ndarray, names: list[str], sizes: np.ndarray) -> Plan:
        plan = self.inner.plan(rows, names, sizes)
        (group,) = plan.groups
        kept = group.view < np.array([self.counts[row] for row in rows])[group.image]
        ragged = GroupPlan(group.K, group.sizes, group.image[kept], group.view[kept], group.windows[kept])
        return Plan(plan.rows, plan.source_sizes, (ragged,))


@pytest.mark.parametrize("counts", [[3, 1, 8, 8, 2, 5, 1, 4], [8, 1, 1, 1, 1, 1, 1, 1], [1] * 8])
def test_images_may_have_different_numbers_of_views(
    name: str, make: Callable[..., Any], random_images: Any, counts: list[int]
) -> None:
    inner = planner("CC,3RC+4MRC")
    workers = 0 if name == "torchvision" else 1  # a class of a test module does not reach another process
    backend = make(name, random_images, Ragged(inner, counts), batch_images=3, workers=workers)
    expected = collect(make(name, random_images, inner), random_images.rows)
    got = {}
    for batch in backend.batches(random_images.rows):
        (group,) = batch.groups
        for crop, row, view in zip(group.crops.cpu().numpy(), group.image.tolist(), group.view.tolist(), strict=True):
            if row >= 0:
                assert (row, view) not in got
                got[row, view] = crop
    assert same(got, {(row, view): crop for (row, view), crop in expected.items() if view < counts[row]})


def crops_by_place(backend: Any, rows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(row, view) -> crop of a whole pass, of all sizes."""
    found = {}
    for batch in backend.batches(rows):
        for group in batch.groups:
            places = zip(group.image.tolist(), group.view.tolist(), strict=True)
            found.update(zip(places, group.crops.cpu().numpy(), strict=True))
    return {place: crop for place, crop in found.items() if place != (-1, -1)}


@pytest.mark.parametrize("device", ["dali-cpu", pytest.param("dali-gpu", marks=pytest.mark.gpu)])
def test_each_crop_operator_gives_the_same_crops(device: str, make: Callable[..., Any], random_images: Any) -> None:
    """Plain and mirrored, of two sizes, of different numbers, from any row of the batch; one operator for all sizes, or
    one for each."""
    from pipelines.backends.crop_ops import CROP_OPERATORS, PASTE, WARP

    runnable(device)
    rows = random_images.rows
    ragged = Ragged(planner("CC+3MRC"), [3, 1, 4, 4, 2, 3, 1, 4])
    two_sizes = planner("CC+4ARC+CC@33+2MRC@33+6ARC@33")  # both sizes: images have different numbers of crops
    for one in (planner("CC+2RC"), planner("5FC+5MFC+4ARC+3AMRC"), two_sizes, ragged):
        first, *others = (
            crops_by_place(make(device, random_images, one, batch_images=3, crop_operator=name), rows)
            for name in CROP_OPERATORS
        )
        assert len(first) >= 2 * len(rows)
        assert others
        assert all(same(first, other) for other in others)
    expected = crops_by_place(make(device, random_images, two_sizes, batch_images=3), rows)
    for operators in ((PASTE, WARP), (WARP, PASTE)):
        backend = make(device, random_images, two_sizes, batch_images=3)
        backend.crop_operators = operators
        assert same(crops_by_place(backend, rows), expected)


def test_memory_is_taken_anew_only_when_nobody_holds_it() -> None:
    from pipelines.backends.torchvision import BufferPool

    def address(array: Any) -> int:
        return array.__array_interface__["data"][0]

    memory = BufferPool()
    first, second = (memory.take((4, 3, 3, 3)) for _ in range(2))
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((4, 3, 3, 3), np.uint8, True)
    taken = {address(first), address(second)}
    assert len(taken) == 2
    crop = torch.from_numpy(first)[2]
    del first, second
    third = memory.take((2, 3, 3, 3))
    assert address(third) in taken - {crop.data_ptr() - 2 * 27}  # the second's: a crop of the first is still held
    crop[:] = 7
    fourth = memory.take((4, 3, 3, 3))
    fourth[:] = 0
    assert (crop == 7).all()
    del crop
    fifth = memory.take((9, 3, 3, 3))  # larger than what is free
    assert address(fifth) not in taken


def test_a_crop_outlives_its_batch(name: str, make: Callable[..., Any], random_images: Any) -> None:
    one = planner("CC+9RC+2MRC")
    held = []
    for batch in make(name, random_images, one, batch_images=2).batches(random_images.rows):
        crop = batch.groups[0].crops[3]
        held.append((crop, crop.clone()))
    assert len(held) == len(random_images.rows) // 2 > 2
    assert all(torch.equal(crop, then) for crop, then in held)


# ------------------------------------------------------------------------------------------ the check before the timing


class Sabotaged:
    """A backend whose crops or frames are spoilt on the way."""

    def __init__(self, inner: Any, fault: str) -> None:
        self.inner, self.fault, self.name, self.config = inner, fault, inner.name, inner.config

    def on(self, source: Any) -> Any:
        return Sabotaged(self.inner.on(source), self.fault)

    def close(self) -> None:
        self.inner.close()

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for row, frame in self.inner.frames(rows, group):
            if self.fault == "shifted grid":
                frame = np.roll(frame, 1, axis=1)
            if self.fault == "size":
                frame = frame[:-1]
            yield row, frame

    def batches(self, rows: np.ndarray) -> Iterator[Any]:
        for batch in self.inner.batches(rows):
            for group in batch.groups:
                if self.fault == "one pixel":
                    group.crops[-1, 3, 5, 1] += 1
                if self.fault == "mirrored":
                    group.crops[0] = group.crops[0].flip(1)
                if self.fault == "views exchanged":
                    group.view[:2] = group.view[:2][::-1].copy()
                if self.fault == "a view missing":
                    group.image[0] = -1
            yield batch


def test_the_check_passes_a_backend_that_is_right(name: str, make: Callable[..., Any], random_images: Any) -> None:
    one = planner(S=64, K=49)
    worst = reference.check(make(name, random_images, one), random_images, one, random_images.rows)
    assert 0 < worst < pipelines.BACKENDS[name].tolerance_levels


@pytest.mark.parametrize(
    "fault", ["one pixel", "mirrored", "views exchanged", "a view missing", "shifted grid", "size"]
)
def test_the_check_finds_a_fault(name: str, make: Callable[..., Any], random_images: Any, fault: str) -> None:
    """DESIGN rule 7: a fast wrong answer is not a result."""
    one = planner("CC+2RC")
    spoilt: Any = Sabotaged(make(name, random_images, one, batch_images=8), fault)
    with pytest.raises(reference.WrongPixels, match=name):
        reference.check(spoilt, random_images, one, random_images.rows)


def test_an_unusual_image_is_noted_and_the_backend_kept(
    name: str,
    make: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One pixel of frame around a grey picture: dali-cpu differs in border pixels, and is right."""
    pixels = np.full((400, 300, 3), 128, np.uint8)
    pixels[0] = pixels[-1] = pixels[:, 0] = pixels[:, -1] = (255, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "framed.png")
    source = unlabelled(scan(tmp_path, workers=1, cache=tmp_path / "cache", progress=False), "not needed")
    one = planner(S=96, K=96)
    entry = replace(pipelines.BACKENDS[name], tolerance_levels=0.3)
    monkeypatch.setitem(reference.BACKENDS, name, entry)
    real = reference.mean_difference
    monkeypatch.setattr(reference, "mean_difference", lambda a, b: real(a, b) + (a.shape[:2] == (128, 96)))
    made = make(name, source, one)
    with caplog.at_level("WARNING", "pipelines"):
        worst = reference.check(made, source, one, np.arange(1))
    assert worst > 1 and "framed.png differs" in caplog.text and "this image is unusual" in caplog.text


@pytest.mark.parametrize("S", [16, 32, 48, 224])
def test_made_images_agree_at_every_size(name: str, make: Callable[..., Any], random_images: Any, S: int) -> None:
    one = planner(S=S, K=S)
    worst = reference.worst_of_made(make(name, random_images, one), one, 0)
    assert 0 < worst < pipelines.BACKENDS[name].tolerance_levels * max(1, reference.SMALL_S / S)


def test_the_check_passes_over_images_that_changed_since_the_scan(
    name: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    for number in range(2):
        Image.new("RGB", (60, 50), (number, 9, 9)).save(tmp_path / f"{number}.png")
    source = unlabelled(scan(tmp_path, workers=1, cache=tmp_path / "cache", progress=False), "not needed")
    for number in range(2):
        Image.new("RGB", (70, 50)).save(tmp_path / f"{number}.png")
        one = planner(S=32, K=32)
        reference.check(make(name, source, one), source, one, np.arange(2))


def test_the_check_passes_over_unreadable_rows(
    name: str, make: Callable[..., Any], bad_folder: tuple[Any, dict[str, str]]
) -> None:
    source, _ = bad_folder
    one = planner("CC+1MRC")
    reference.check(make(name, source, one), source, one, source.rows)


class Silent:
    """A backend that does next to nothing, at great speed."""

    def __init__(self, inner: Any, lost: str) -> None:
        self.inner, self.lost, self.name, self.config = inner, lost, inner.name, inner.config

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        yield from [] if self.lost == "every image" else self.inner.frames(rows, group)

    def batches(self, rows: np.ndarray) -> Iterator[Any]:
        yield from list(self.inner.batches(rows))[
            : {"every image": 0, "every batch": 0, "the last batch": -1}[self.lost]
        ]


@pytest.mark.parametrize("lost", ["every image", "every batch", "the last batch"])
def test_the_check_finds_what_is_missing(name: str, make: Callable[..., Any], random_images: Any, lost: str) -> None:
    one = planner("CC+1MRC")
    silent: Any = Silent(make(name, random_images, one, batch_images=3), lost)
    with pytest.raises(reference.WrongPixels):
        reference.check(silent, random_images, one, random_images.rows)


def test_the_check_asks_whether_what_failed_is_unreadable(
    name: str, make: Callable[..., Any], random_images: Any
) -> None:
    """A decoder that is broken here fails on good images too; nothing would then be compared with anything."""
    one = planner("CC+1MRC")
    refusing: Any = make(name, random_images, one, batch_images=8)
    failed = [Failure(row, "no decoder") for row in random_images.rows.tolist()]
    refusing.frames = lambda rows, group=0: iter(())
    refusing.batches = lambda rows: iter([CropBatch([], rows[:0], failed)])
    with pytest.raises(reference.WrongPixels):
        reference.check(refusing, random_images, one, random_images.rows)


# ------------------------------------------------------------------------------------------------------------- choosing


def fake_unusable(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str]) -> None:
    monkeypatch.setattr("pipelines.backends.unusable", lambda name, device: reasons.get(name))


def test_a_gpu_backend_is_tried_on_the_networks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes each has its own GPU: none may open a context on another's."""
    dali = pytest.importorskip("pipelines.backends.dali")
    used: list[tuple[str, int]] = []

    class Pipe:
        def __init__(self, *, device_id: int, **other: Any) -> None:
            used.append(("pipeline", device_id))

        def set_outputs(self, output: Any) -> None: ...

        def build(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dali, "Pipeline", Pipe)
    monkeypatch.setattr(dali, "working_crop_operator", lambda index: used.append(("crops", index)))
    assert (
        pipelines.choose("auto", device="cuda:3")[0] == pipelines.choose("dali-gpu", device="cuda:3")[0] == "dali-gpu"
    )
    assert used == [("pipeline", 3), ("crops", 3)] * 2


@pytest.mark.parametrize(
    ("device", "reasons", "chosen", "line"),
    [
        ("cuda", {}, "dali-gpu", "data backend dali-gpu"),
        ("cpu", {}, "dali-cpu", "data backend dali-cpu; not dali-gpu: the network runs on the CPU"),
        ("cuda", {"dali-gpu": "no GPU"}, "dali-cpu", "data backend dali-cpu; not dali-gpu: no GPU"),
        (
            "cuda:1",
            {"dali-gpu": "no DALI", "dali-cpu": "none at all"},
            "torchvision",
            "data backend torchvision; not dali-gpu: no DALI; not dali-cpu: none at all",
        ),
    ],
)
def test_auto_takes_the_first_that_works_and_says_why(
    monkeypatch: pytest.MonkeyPatch, device: str, reasons: dict[str, str], chosen: str, line: str
) -> None:
    fake_unusable(monkeypatch, reasons)
    assert pipelines.choose("auto", device=device) == (chosen, line)


def test_nothing_that_works_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_unusable(monkeypatch, {name: f"why not {name}" for name in pipelines.BACKENDS})
    with pytest.raises(RuntimeError) as refused:
        pipelines.choose("auto", device="cuda")
    assert [name for name in pipelines.BACKENDS if f"{name}: why not {name}" not in str(refused.value)] == []


def test_a_named_backend_is_taken_or_refused_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_unusable(monkeypatch, {"dali-cpu": "no DALI"})
    assert pipelines.choose("torchvision") == ("torchvision", "data backend torchvision (as asked)")
    assert pipelines.choose("dali-gpu", device="cpu")[0] == "dali-gpu"
    with pytest.raises(RuntimeError, match=r"dali-cpu .*no DALI.*`data_backend` auto"):
        pipelines.choose("dali-cpu")


def test_an_unknown_backend_is_an_error_that_lists_the_known() -> None:
    for call in (pipelines.choose, pipelines.backend, pipelines.unusable):
        with pytest.raises(ValueError, match="'dali'") as refused:
            call("dali")
        assert [name for name in [*pipelines.BACKENDS, "auto"] if name not in str(refused.value)] == []


def test_every_entry_names_a_backend_of_that_name(name: str) -> None:
    backend = pipelines.backend(name)
    assert backend.name == name
    assert 0 < pipelines.BACKENDS[name].tolerance_levels < 2
    for method in ("batches", "frames", "stage", "close", "probe"):
        assert callable(getattr(backend, method))


def broken_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: str) -> None:
    """A backend whose module fails to import with this message."""
    (tmp_path / "a_broken_backend.py").write_text(f"raise ImportError({message!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(pipelines.BACKENDS["dali-cpu"], module="a_broken_backend", class_name="Broken")
    monkeypatch.setitem(pipelines.BACKENDS, "dali-cpu", broken)


def test_a_library_that_is_missing_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken_library(monkeypatch, tmp_path, "libdali.so: cannot open shared object file")
    assert pipelines.unusable("dali-cpu") == "ImportError: libdali.so: cannot open shared object file"
    chosen, line = pipelines.choose("auto", device="cpu")
    assert chosen == "torchvision"
    assert "not dali-cpu: ImportError: libdali.so" in line


def test_the_choice_is_explained_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NumPy, for one, explains a failed import in twenty lines."""
    broken_library(monkeypatch, tmp_path, "numpy failed\n\nPlease read this\nand that")
    assert "\n" not in pipelines.choose("auto", device="cpu")[1]


# -------------------------------------------------------------------------------------------------------- small helpers


def test_split_loses_no_row() -> None:
    for n in range(9):
        for size in range(1, 5):
            pieces = split(np.arange(n), size)
            assert [row for piece in pieces for row in piece.tolist()] == list(range(n))
            assert all(len(piece) == size for piece in pieces[:-1])
            assert all(0 < len(piece) <= size for piece in pieces)


def test_default_batches_are_bounded_by_their_crops_bytes() -> None:
    for gpu, most_images, most_bytes in ((False, 32, 128 << 20), (True, 256, 1 << 30)):
        for views in (1, 20, 100, 1000):
            for K in (32, 224, 800):
                images = default_batch_images(views, K, gpu=gpu)
                assert isinstance(images, int)
                assert 1 <= images <= most_images
                assert images == 1 or images * views * K * K * 3 <= most_bytes
                assert images == most_images or (images + 1) * views * K * K * 3 > most_bytes


@pytest.mark.dali
def test_closing_frees_the_pipeline_at_once(random_images: Any) -> None:
    """On a GPU each one holds hundreds of megabytes, and tuning builds a hundred."""
    config = LoadConfig(batch_images=4, workers=2)
    gc.disable()  # it may come by at the right moment
    try:
        backend = pipelines.backend("dali-cpu")(random_images, planner("2RC", S=64, K=48), config)
        assert sum(len(batch.rows) for batch in backend.batches(random_images.rows)) == len(random_images)
        (fed,) = backend._pipes.values()  # type: ignore[attr-defined]
        freed = [weakref.ref(fed), weakref.ref(fed.pipe)]
        del fed
        backend.close()
        assert [one() for one in freed] == [None, None]
    finally:
        gc.enable()


@pytest.mark.slow  # PyTorch looks for lost workers every five seconds
def test_the_batch_of_a_killed_worker_is_read_again(
    make: Callable[..., Any], random_images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Every image once, in order, with the pixels of an undisturbed pass; and no image is called unreadable."""
    few = planner("CC+2RC")
    undisturbed = list(make("torchvision", random_images, few, batch_images=2).batches(random_images.rows))
    backend = make("torchvision", random_images, few, batch_images=2, workers=2, prefetch=1)
    batches = []
    for batch in backend.batches(random_images.rows):
        if not batches:
            (first, _) = backend._loader._iterator._workers
            first.kill()
        batches.append(batch)
    assert "a worker process ended" in caplog.text
    assert [batch.rows.tolist() for batch in batches] == [batch.rows.tolist() for batch in undisturbed]
    assert not any(batch.failed for batch in batches)
    for mine, theirs in zip(batches, undisturbed, strict=True):
        assert torch.equal(mine.groups[0].crops, theirs.groups[0].crops)


def test_a_million_rows_are_looked_at_as_they_are_read(
    make: Callable[..., Any], random_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing asks for so many in every round, and reads some thousands of them."""
    backend, looked_at = make("torchvision", random_images, planner("CC"), batch_images=4), 0
    real = bounds.image_bytes

    def counted(source: Any, planner: Planner, rows: np.ndarray) -> np.ndarray:
        nonlocal looked_at
        looked_at += len(rows)
        return real(source, planner, rows)

    monkeypatch.setattr(bounds, "image_bytes", counted)
    rows = np.resize(random_images.rows, 1_000_000)
    batches = backend.batches(rows)
    assert [next(batches).rows.tolist() for _ in range(3)] == rows[:12].reshape(3, 4).tolist()
    assert looked_at <= bounds.BLOCK_ROWS


def _send_what_cannot_be_sent(results: Any) -> None:
    torchvision._set_up_worker(0)
    results.put(lambda: None)  # Python's own queue would drop it
    time.sleep(60)


@pytest.mark.slow
def test_a_worker_that_cannot_send_its_batch_ends_and_keeps_nobody_waiting() -> None:
    context = torchvision._context()
    worker = context.Process(target=_send_what_cannot_be_sent, args=(context.Queue(),))
    worker.start()
    worker.join(50)
    assert worker.exitcode == 1


def test_workers_that_end_twice_end_the_reading_and_no_image_is_blamed(
    make: Callable[..., Any], random_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make("torchvision", random_images, planner("CC"), batch_images=2, workers=2)
    tries = []

    def lost() -> Iterator[Any]:
        tries.append([rows.tolist() for rows in backend._upcoming.left])
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    monkeypatch.setattr(backend, "_from_workers", lost)
    name = re.escape(random_images.names(random_images.rows[:1])[0])
    with pytest.raises(MachineFault, match=rf"ended 2 times while the batch from {name} on .*fewer `workers`"):
        list(backend.batches(random_images.rows))
    assert len(tries) == 2 and tries[0] == tries[1] == random_images.rows.reshape(-1, 2).tolist()
