"""How a DALI graph cuts a batch's windows from its frames, in one operator: two ways, equal bit for bit.

``multi_paste``, the first choice: ``in_ids`` names the image that each window reads, so the batch's windows fill the
output whatever the number of views. Where windows are mirrored the frame lies beside its mirror image.

``warp_affine`` with a matrix for each window, NVIDIA's recipe for several crops of an image, takes over on a GPU where
``multi_paste`` does not do what it does on a CPU (``working_crop_operator`` asks), and at crop sizes where it reads out
of bounds (``pipelines.batch.paste_reads_out_of_bounds``). Every image has as many slots as the
one with the most views; on two CPU cores it does half as many images/s at 20 crops of 224 pixels (212 to 217, against
436 to 451), while at one crop it keeps 0.94. On a GPU multicrop-bench tune tries both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline
from nvidia.dali import types as dali_types

from pipelines.crops import GroupPlan
from pipelines.crops import crop_windows as slices

types: Any = dali_types  # its constants are made at run time; type checkers do not see them
Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class CropOperator:
    """One way.

    ``slots(group, images)``: int64 [images, M], which of the group's windows each crop of each output sample shows, -1
    for none; ``arguments(group, slots)``: the arrays that the graph is fed for it, of ``dtypes`` and, for a sample,
    ``ndims``; ``operator(frame, *arguments, K=, mirrored=)``: the node whose samples hold M crops each.
    """

    name: str
    dtypes: tuple[Any, ...]
    ndims: tuple[int, ...]
    slots: Callable[[GroupPlan, int], np.ndarray]
    arguments: Callable[[GroupPlan, np.ndarray], Arrays]
    operator: Callable[..., Any]


def paste_slots(group: GroupPlan, images: int) -> np.ndarray:
    """The windows one after the other; the samples' M is ceil(windows / images)."""
    n = len(group.image)
    slots = np.full(images * -(-n // images), -1, dtype=np.int64)
    slots[:n] = np.arange(n)
    return slots.reshape(images, -1)


def paste_arguments(group: GroupPlan, slots: np.ndarray) -> Arrays:
    """int32 arrays in_ids [b, M], in_anchors [b, M, 2], out_anchors [b, M, 2], shapes [b, M, 2], output_size [b, 2]:
    a sample's crops on top of each other. An empty slot repeats the first window."""
    images, m = slots.shape
    image, y, x, mirror = _windows(group, slots)
    x = np.where(mirror, 2 * group.sizes[image, 1] - group.K - x, x)  # in the frame beside its mirror image
    out_anchors = np.zeros((images, m, 2), dtype=np.int32)
    out_anchors[:, :, 0] = np.arange(m) * group.K
    return (
        image.astype(np.int32),
        np.stack([y, x], axis=2).astype(np.int32),
        out_anchors,
        np.full((images, m, 2), group.K, dtype=np.int32),
        np.tile(np.array([m * group.K, group.K], dtype=np.int32), (images, 1)),
    )


def _paste(frame: Any, *arguments: Any, K: int, mirrored: bool) -> Any:
    if mirrored:
        frame = fn.cat(frame, fn.flip(frame, horizontal=1), axis=1)
    ids, anchors, out_anchors, shapes, size = arguments
    return fn.multi_paste(
        frame, in_ids=ids, in_anchors=anchors, out_anchors=out_anchors, shapes=shapes, output_size=size
    )


def warp_slots(group: GroupPlan, images: int) -> np.ndarray:
    """Each image's windows in its own sample; M is the most that one has."""
    counts = np.bincount(group.image, minlength=images)
    order = np.argsort(group.image, kind="stable")
    slots = np.full((images, counts.max()), -1, dtype=np.int64)
    image = group.image[order]
    slots[image, np.arange(len(order)) - (np.cumsum(counts) - counts)[image]] = order
    return slots


def warp_arguments(group: GroupPlan, slots: np.ndarray) -> Arrays:
    """float32 [b, M, 2, 3], from a crop's pixel centres to the frame's. An empty slot shows the frame's corner."""
    image, y, x, mirror = _windows(group, slots)
    del image
    sign = np.where(mirror, -1, 1)
    zero = np.zeros_like(sign)
    matrix = np.stack([sign, zero, np.where(mirror, x + group.K, x), zero, zero + 1, y], axis=-1)
    matrix[slots < 0] = [1, 0, 0, 0, 1, 0]
    return (matrix.reshape(*slots.shape, 2, 3).astype(np.float32),)


def _warp(frame: Any, matrix: Any, *, K: int, mirrored: bool) -> Any:
    del mirrored
    each = fn.per_frame(matrix, replace=True)
    return fn.warp_affine(frame, each, size=[K, K], interp_type=types.INTERP_NN, inverse_map=True)


def _windows(group: GroupPlan, slots: np.ndarray) -> Arrays:
    """image, y, x, mirror of each slot, the first window's in an empty one: int64 [b, M] each."""
    filled = np.maximum(slots, 0)
    y, x, mirror = np.moveaxis(group.windows[filled], -1, 0)
    return group.image[filled], y, x, mirror


PASTE = CropOperator("multi_paste", (types.INT32,) * 5, (1, 2, 2, 2, 1), paste_slots, paste_arguments, _paste)
WARP = CropOperator("warp_affine", (types.FLOAT,), (3,), warp_slots, warp_arguments, _warp)
CROP_OPERATORS = {operator.name: operator for operator in (PASTE, WARP)}


@cache
def working_crop_operator(device_id: int | None) -> CropOperator:
    """The first of CROP_OPERATORS whose crops of a trial batch are correct on that GPU (None: on the CPU).

    Raises RuntimeError with each one's fault where none does."""
    faults = []
    for operator in CROP_OPERATORS.values():
        if (fault := fault_of(operator, device_id)) is None:
            return operator
        faults.append(f"{operator.name}: {fault}")
    raise RuntimeError("no DALI operator makes correct crops here: " + "; ".join(faults))


def fault_of(operator: CropOperator, device_id: int | None) -> str | None:
    """What is wrong with the windows that it cuts from random frames, of several sizes, plain and mirrored, as many as
    the image's number: compared with NumPy's slices. None: nothing is."""
    rng = np.random.default_rng(0)
    images, K = 8, 96
    sizes = rng.integers(K, 3 * K, (images, 2))
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    image = np.repeat(np.arange(images), 3 * np.arange(images))
    yx = rng.integers(0, sizes[image] - K + 1)
    windows = np.column_stack([yx, rng.integers(0, 2, len(image))])
    group = GroupPlan(K, sizes, image, np.zeros(len(image), np.int32), windows)
    slots = operator.slots(group, images)
    try:
        crops = _tried(operator, device_id, frames, K, operator.arguments(group, slots))
    except RuntimeError as error:
        return " ".join(str(error).split("encountered:")[-1].split())[:200]
    if crops.shape != (slots.size, K, K, 3):
        return f"crops of shape {crops.shape}"
    wrong = 0
    for crop, slot in zip(crops, slots.reshape(-1).tolist(), strict=True):
        if slot >= 0:
            wrong += not np.array_equal(crop, slices(frames[image[slot]], windows[[slot]], K)[0])
    return f"{wrong} of {len(image)} windows differ from slices of the frame" if wrong else None


def _tried(
    operator: CropOperator, device_id: int | None, frames: list[np.ndarray], K: int, arguments: Arrays
) -> np.ndarray:
    pipe = Pipeline(
        batch_size=len(frames), num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipe:
        frame, *planned = fn.external_source(
            lambda: (frames, *arguments),
            num_outputs=1 + len(arguments),
            batch=True,
            dtype=[types.UINT8, *operator.dtypes],
            ndim=[3, *operator.ndims],
            layout=["HWC", *[""] * len(arguments)],
        )
        if device_id is not None:
            frame = frame.gpu()
        pipe.set_outputs(operator.operator(frame, *planned, K=K, mirrored=True))
    pipe.build()
    (output,) = pipe.run()
    return torch.from_dlpack(output.as_tensor()).cpu().numpy().reshape(-1, K, K, 3)
