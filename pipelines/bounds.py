"""What a batch may hold, so that memory is bounded whatever the images' sizes: large ones share a batch with few
others, and one whose resized frame would be too large (a panorama of one pixel's height) costs itself only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipelines.batch import CropBatch, Failure, LoadConfig, Source, split
from pipelines.crops import resized_sizes

if TYPE_CHECKING:
    from pipelines.crops import Planner

BATCH_BYTES = {False: 512 << 20, True: 4 << 30}  # decoded pixels, resized frames and files of a batch; on a GPU: True
BLOCK_ROWS = 4096  # looked at together


def frame_pixels(source: Source, planner: Planner, rows: np.ndarray) -> np.ndarray:
    """int64 [b]: pixels of each image's largest resized frame."""
    sizes = source.sizes(rows)
    return np.max([resized_sizes(sizes, spec).prod(axis=1) for spec in planner.specs().values()], axis=0)


def too_large(source: Source, planner: Planner, rows: np.ndarray, config: LoadConfig) -> list[Failure]:
    """The images whose resized frames exceed ``config.max_resized_megapixels``."""
    found = []
    for piece in split(rows, BLOCK_ROWS):
        pixels = frame_pixels(source, planner, piece)
        for i in np.flatnonzero(pixels > 1e6 * config.max_resized_megapixels):
            height, width = source.sizes(piece[i : i + 1])[0].tolist()
            reason = (
                f"resized from {width}x{height} it would have {pixels[i] / 1e6:,.0f} megapixels: over the limit of "
                f"{config.max_resized_megapixels:g} (`max_resized_megapixels`)"
            )
            found.append(Failure(int(piece[i]), reason, "resize"))
    return found


def without(rows: np.ndarray, refused: list[Failure]) -> np.ndarray:
    """The other rows, in their order."""
    return rows[~np.isin(rows, [failure.row for failure in refused])] if refused else rows


def pieces(
    source: Source, planner: Planner, rows: np.ndarray, config: LoadConfig, *, gpu: bool
) -> Iterator[np.ndarray]:
    """Consecutive pieces of at most ``batch_images`` rows and BATCH_BYTES, but of at least one row."""
    for block in split(rows, max(config.batch_images, BLOCK_ROWS // config.batch_images * config.batch_images)):
        needed = image_bytes(source, planner, block)
        start, held = 0, 0
        for i, one in enumerate(needed.tolist()):
            if i > start and (i - start == config.batch_images or held + one > BATCH_BYTES[gpu]):
                yield block[start:i]
                start, held = i, 0
            held += one
        yield block[start:]


def image_bytes(source: Source, planner: Planner, rows: np.ndarray) -> np.ndarray:
    """int64 [b]: bytes of each image's decoded pixels, resized frames and, where it is known, file."""
    sizes = source.sizes(rows)
    pixels = sizes.prod(axis=1) + sum(resized_sizes(sizes, spec).prod(axis=1) for spec in planner.specs().values())
    file_bytes = getattr(source, "file_bytes", None)
    return 3 * pixels + (file_bytes(rows) if file_bytes else 0)


def with_refused(rows: np.ndarray, refused: list[Failure], batches: Iterable[CropBatch]) -> Iterator[CropBatch]:
    """``batches`` of the other rows, in their order, with each refused image among the failed ones of a batch."""
    if not refused:
        yield from batches
        return
    reasons = {failure.row: failure for failure in refused}
    left = deque(rows.tolist())
    for batch in batches:
        others, lost = len(batch.rows) + len(batch.failed), []
        while others:
            row = left.popleft()
            if row in reasons:
                lost.append(reasons[row])
            else:
                others -= 1
        yield replace(batch, failed=[*batch.failed, *lost])
    if left:
        yield CropBatch([], np.zeros(0, np.int64), [reasons[row] for row in left])
