"""Images of extreme shape, whose resized frame would fill the memory: a picture of 65,000 x 1 pixels would have 2,800
megapixels at a short side of 224. They are never resized whole. Each window is resized from the pixels that it needs,
and is what the same window of the whole frame would be, within a small part of a grey level.

PIL does it, for every backend: its ``box`` gives the part of an image to resize in fractions of a pixel, and pixels
beside the box count where the filter reaches them, as in a resize of the whole image. In float32, rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipelines.batch import CropBatch, Failure, Group, Source
from pipelines.data.decode import changed, decode, stored_size_of
from pipelines.data.faults import fault, is_of_machine

if TYPE_CHECKING:
    from pipelines.crops import GroupPlan, Planner

FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # and reach, pixels


def window_of(
    image: np.ndarray, resized: tuple[int, int], window: tuple[int, int, int], K: int, interpolation: str
) -> np.ndarray:
    """uint8 [K, K, 3]: the window (y, x, mirror) of the image [H, W, 3] as it would be after resizing all of it to
    ``resized`` (height, width)."""
    (top, bottom, y0, y1), (left, right, x0, x1) = (
        _part(side, whole, start, K, FILTERS[interpolation][1])
        for side, whole, start in zip(image.shape[:2], resized, window[:2], strict=True)
    )
    pixels = image[top:bottom, left:right].astype(np.float32)
    out = np.empty((K, K, 3), np.uint8)
    for channel in range(3):
        resizable = Image.fromarray(np.ascontiguousarray(pixels[:, :, channel]))
        made = resizable.resize((K, K), FILTERS[interpolation][0], box=(x0, y0, x1, y1))
        out[:, :, channel] = np.asarray(made).round().clip(0, 255)
    return out[:, ::-1] if window[2] else out


def _part(side: int, whole: int, start: int, K: int, reach: int) -> tuple[int, int, float, float]:
    """Along one side of an image, resized from ``side`` to ``whole`` pixels: the source pixels that the K pixels from
    ``start`` on need (first, one behind the last), and where in them those K lie.

    They are few pixels, so that PIL's box, of 32-bit floats, is exact enough wherever the window lies.
    """
    scale = side / whole
    begin, end = start * scale, (start + K) * scale
    margin = int(reach * max(scale, 1.0)) + 2
    first, last = max(0, int(begin) - margin), min(side, int(end) + 1 + margin)
    return first, last, begin - first, min(end - first, float(last - first))


def windows_of(image: np.ndarray, group: GroupPlan, interpolation: str) -> np.ndarray:
    """Crops uint8 [n, K, K, 3] of a group that is planned for this image alone."""
    height, width = group.sizes[0].tolist()
    crops = np.empty((len(group.windows), group.K, group.K, 3), np.uint8)
    for crop, (y, x, mirror) in zip(crops, group.windows.tolist(), strict=True):
        crop[:] = window_of(image, (height, width), (y, x, mirror), group.K, interpolation)
    return crops


def read_by_windows(source: Source, planner: Planner, row: int, device: str) -> CropBatch:
    """The batch of one image, cut window by window. Raises MachineFault where memory runs out."""
    import torch

    rows = np.array([row], dtype=np.int64)
    plan = planner.plan(rows, source.names(rows), source.sizes(rows))
    (span,) = source.spans(rows)
    try:
        if reason := changed(plan.source_sizes[0], np.array(stored_size_of(span))):
            return CropBatch([], np.zeros(0, np.int64), [Failure(row, reason)])
        image = decode(span)
    except Exception as error:  # whatever a decoder raises, the image costs itself only
        if is_of_machine(error):
            raise fault(source.names(rows)[0], error) from None
        return CropBatch([], np.zeros(0, np.int64), [Failure(row, f"PIL: {type(error).__name__}: {error}")])
    groups = [
        Group(
            torch.from_numpy(windows_of(image, group, planner.spec.interpolation)).to(device),
            rows[group.image],
            group.view,
        )
        for group in plan.groups
    ]
    return CropBatch(groups, rows)
