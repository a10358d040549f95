"""The two ways in which a DALI graph cuts windows: their arguments against their meaning in NumPy, and the trial that
chooses between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.batch import CROP_OPERATOR_NAMES, LoadConfig, crop_operator_at, paste_reads_out_of_bounds
from pipelines.crops import GroupPlan, Planner, crop_windows, parse_policy, union
from pipelines.inputspec import InputSpec

pytestmark = pytest.mark.dali


@pytest.fixture
def crop_ops() -> Iterator[Any]:
    """The module, with nothing remembered of earlier trials, before and after."""
    module = pytest.importorskip("pipelines.backends.crop_ops")
    module.working_crop_operator.cache_clear()
    yield module
    module.working_crop_operator.cache_clear()


def groups() -> Iterator[tuple[GroupPlan, list[np.ndarray]]]:
    """Windows of random frames, some frames without any, in any order; and the frames."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        images, K = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        sizes = rng.integers(K, K + 9, (images, 2))
        frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        image = rng.permutation(np.repeat(np.arange(images), rng.integers(0, 5, images)))
        if len(image):
            offsets = rng.integers(0, sizes[image] - K + 1)
            windows = np.column_stack([offsets, rng.integers(0, 2, len(image))])
            yield GroupPlan(K, sizes, image, np.zeros(len(image), np.int32), windows), frames


def check(group: GroupPlan, frames: list[np.ndarray], slots: np.ndarray, crops: np.ndarray) -> None:
    """Each window once, where the slots say, with the pixels of its slice."""
    filled = slots[slots >= 0]
    assert sorted(filled.tolist()) == list(range(len(group.image)))
    for slot, crop in zip(slots.reshape(-1).tolist(), crops, strict=True):
        if slot >= 0:
            np.testing.assert_array_equal(
                crop, crop_windows(frames[group.image[slot]], group.windows[[slot]], group.K)[0]
            )


def test_paste_arguments_describe_the_windows(crop_ops: Any) -> None:
    """multi_paste's meaning, written in NumPy: output sample b starts as nothing; each slot copies a window of
    ``shapes`` at ``in_anchors`` of the frame ``in_ids`` (beside its mirror image) to ``out_anchors``."""
    for group, frames in groups():
        K, images = group.K, len(frames)
        slots = crop_ops.PASTE.slots(group, images)
        assert len(group.image) <= slots.size < len(group.image) + images  # no more than filling the samples takes
        ids, anchors, out_anchors, shapes, output_size = arrays = crop_ops.PASTE.arguments(group, slots)
        assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
        assert tuple(array.ndim - 1 for array in arrays) == crop_ops.PASTE.ndims
        both = [np.concatenate([frame, frame[:, ::-1]], axis=1) for frame in frames]
        samples = []
        for b in range(images):
            out = np.zeros((*output_size[b], 3), np.uint8)
            for read, (y, x), (to_y, to_x), (h, w) in zip(ids[b], anchors[b], out_anchors[b], shapes[b], strict=True):
                window = both[read][y : y + h, x : x + w]
                assert window.shape == (K, K, 3)
                out[to_y : to_y + h, to_x : to_x + w] = window
            samples.append(out)
        check(group, frames, slots, np.concatenate(samples).reshape(-1, K, K, 3))


def test_warp_arguments_describe_the_windows(crop_ops: Any) -> None:
    """warp_affine's meaning, written in NumPy: the pixel of sample b's crop j whose centre is (x, y, 1) shows the pixel
    of frame b in which ``matrix[b, j] @ (x, y, 1)`` lies."""
    for group, frames in groups():
        K, images = group.K, len(frames)
        slots = crop_ops.WARP.slots(group, images)
        assert slots.shape == (images, np.bincount(group.image).max())
        (matrix,) = crop_ops.WARP.arguments(group, slots)
        assert (matrix.dtype, matrix.ndim - 1) == (np.float32, *crop_ops.WARP.ndims)
        centres = np.stack([*(np.indices((K, K))[::-1] + 0.5), np.ones((K, K))])
        crops = []
        for b, frame in enumerate(frames):
            for one in matrix[b]:
                x, y = np.floor(np.einsum("ij,jkl->ikl", one, centres)).astype(int)
                assert 0 <= y.min() <= y.max() < len(frame)
                assert 0 <= x.min() <= x.max() < frame.shape[1]
                crops.append(frame[y, x])
        check(group, frames, slots, np.array(crops))


@pytest.mark.parametrize("name", CROP_OPERATOR_NAMES)
@pytest.mark.parametrize("device_id", [None, pytest.param(0, marks=pytest.mark.gpu)])
def test_both_ways_are_right_here(crop_ops: Any, name: str, device_id: int | None) -> None:
    assert tuple(crop_ops.CROP_OPERATORS) == CROP_OPERATOR_NAMES
    assert crop_ops.fault_of(crop_ops.CROP_OPERATORS[name], device_id) is None


def spoilt(way: Any, fault: str) -> Any:
    """The same way with a fault in its operator, as a GPU's might have."""

    def arguments(group: GroupPlan, slots: np.ndarray) -> tuple[np.ndarray, ...]:
        if fault == "one window is another":
            slots = np.where(slots == slots.max(), 0, slots)
        return way.arguments(group, slots)

    def operator(frame: Any, *arguments: Any, **more: Any) -> Any:
        if fault == "in_ids are refused":
            raise RuntimeError("encountered: Assert on in_ids")
        more["mirrored"] = more["mirrored"] and fault != "no mirror image"
        return way.operator(frame, *arguments, **more)

    return replace(way, arguments=arguments, operator=operator)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("in_ids are refused", "Assert on in_ids"),
        ("one window is another", "1 of 84 windows differ"),
        ("no mirror image", "."),
    ],
)
def test_the_second_way_is_taken_where_the_first_is_wrong(
    crop_ops: Any, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    assert crop_ops.working_crop_operator(None) is crop_ops.PASTE
    crop_ops.working_crop_operator.cache_clear()
    paste = spoilt(crop_ops.PASTE, fault)
    assert said in crop_ops.fault_of(paste, None)
    monkeypatch.setattr(crop_ops, "CROP_OPERATORS", {"multi_paste": paste, "warp_affine": crop_ops.WARP})
    assert crop_ops.working_crop_operator(None) is crop_ops.WARP
    crop_ops.working_crop_operator.cache_clear()
    monkeypatch.setattr(crop_ops, "CROP_OPERATORS", {"multi_paste": paste})
    with pytest.raises(RuntimeError, match="no DALI operator makes correct crops here: multi_paste: "):
        crop_ops.working_crop_operator(None)


def paste_kernel_stays_inside(K: int, crops: int, samples: int) -> bool:
    """DALI's PasteKernel on ``samples`` outputs of ``crops`` crops on top of each other: both searches, of every thread
    of every block of a row, in the list of all patches. Python's IndexError is the read out of bounds."""
    width = 3 * K  # channels lie in the row
    patch_end = [width] * (crops * samples)  # one column of patches a sample, each as wide as the output
    for first_patch in range(0, crops * samples, crops):
        for block_start in range(0, width, 256):
            block_end = min(block_start + 256, width)
            for thread in range(32):
                try:
                    patch = first_patch
                    while thread + block_start >= patch_end[patch]:
                        patch += 1
                    for x in range(thread + block_start, block_end, 32):
                        while x >= patch_end[patch]:
                            patch += 1
                except IndexError:
                    return False
    return True


def test_the_crop_sizes_at_which_multi_paste_reads_out_of_bounds() -> None:
    for K in range(1, 1025):
        assert paste_kernel_stays_inside(K, crops=2, samples=2) != paste_reads_out_of_bounds(K), K
    assert [K for K in (224, 260, 300, 380, 456, 528, 600) if paste_reads_out_of_bounds(K)] == [260, 600]


@pytest.mark.parametrize("K", [1, 10, 11, 88, 224, 260, 600])
def test_warp_affine_is_taken_where_multi_paste_reads_out_of_bounds(K: int) -> None:
    for usual in (None, *CROP_OPERATOR_NAMES):
        assert crop_operator_at(K, usual, on_gpu=False) == usual  # the CPU's multi_paste has no such search
    unsafe = K not in (11, 224)
    assert crop_operator_at(K, None, on_gpu=True) == ("warp_affine" if unsafe else None)
    assert crop_operator_at(K, "multi_paste", on_gpu=True) == ("warp_affine" if unsafe else "multi_paste")
    assert crop_operator_at(K, "warp_affine", on_gpu=True) == "warp_affine"


@pytest.mark.parametrize("asked", [None, "multi_paste"])
@pytest.mark.parametrize(("mixed", "expected"), [(True, ["PASTE", "WARP"]), (False, ["PASTE", "PASTE"])])
def test_each_crop_size_has_its_own_operator(
    crop_ops: Any, monkeypatch: pytest.MonkeyPatch, asked: str | None, mixed: bool, expected: list[str]
) -> None:
    from pipelines.backends import dali

    monkeypatch.setattr(dali, "working_crop_operator", lambda device_id: crop_ops.PASTE)
    planner = Planner(InputSpec(S=256, K=224), union([parse_policy("CC+2RC@260")]))
    config = LoadConfig(crop_operator=asked)
    backend: Any = SimpleNamespace(planner=planner, config=config, mixed=mixed)
    assert list(dali._Dali._operators(backend)) == [getattr(crop_ops, name) for name in expected]
