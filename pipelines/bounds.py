"""What a batch may hold, so that memory is bounded whatever the images' sizes: large ones share a batch with few
others, and one whose resized frame would be too large (a panorama of one pixel's height) is a batch of its own, cut
window by window (pipelines.panoramas), or costs itself only where a dense view needs the frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipelines.batch import CropBatch, Failure, LoadConfig, Source, split
from pipelines.crops import resized_sizes
from pipelines.panoramas import read_by_windows

if TYPE_CHECKING:
    from pipelines.crops import Planner

BATCH_BYTES = {False: 512 << 20, True: 4 << 30}  # decoded pixels, resized frames and files of a batch; on a GPU: True
BLOCK_ROWS = 4096  # looked at together


def frame_pixels(source: Source, planner: Planner, rows: np.ndarray) -> np.ndarray:
    """int64 [b]: pixels of each image's largest resized frame."""
    sizes = source.sizes(rows)
    return np.max([resized_sizes(sizes, spec).prod(axis=1) for spec in planner.specs().values()], axis=0)


def oversized(source: Source, planner: Planner, rows: np.ndarray, config: LoadConfig) -> np.ndarray:
    """bool [b]: images whose resized frames exceed ``config.max_resized_megapixels``."""
    most = 1e6 * config.max_resized_megapixels
    found = np.zeros(int(rows.max(initial=-1)) + 1, dtype=bool)  # of the rows that are asked for, else nothing
    found[rows] = True  # each once: timing asks for few rows millions of times
    for piece in split(np.flatnonzero(found), BLOCK_ROWS):
        found[piece] = frame_pixels(source, planner, piece) > most
    return found[rows]


def too_large(source: Source, planner: Planner, rows: np.ndarray, config: LoadConfig) -> list[Failure]:
    """Why the backend leaves out these oversized images: a dense view is made of the whole frame."""
    failures = []
    for row, pixels, (height, width) in zip(
        rows.tolist(), frame_pixels(source, planner, rows).tolist(), source.sizes(rows).tolist(), strict=True
    ):
        reason = (
            f"resized from {width}x{height} it would have {pixels / 1e6:,.0f} megapixels: over the limit of "
            f"{config.max_resized_megapixels:g} (`max_resized_megapixels`), and dense views need the whole frame "
            "(without them its windows are cut one by one)"
        )
        failures.append(Failure(row, reason, "resize"))
    return failures


def bounded(
    source: Source,
    planner: Planner,
    rows: np.ndarray,
    config: LoadConfig,
    load: Callable[[np.ndarray], Iterator[CropBatch]],
    device: str,
) -> Iterator[CropBatch]:
    """The batches of all rows, in order: ``load`` gives those of images that may be resized whole."""
    large = oversized(source, planner, rows, config)
    if not large.any():
        yield from load(rows)
    elif planner.views.dense:
        refused = too_large(source, planner, np.unique(rows[large]), config)
        yield from with_refused(rows, refused, load(rows[~large]))
    else:
        starts = np.flatnonzero(np.diff(large)) + 1  # of stretches of rows that are all oversized, or none of them
        for piece, is_large in zip(np.split(rows, starts), large[[0, *starts]], strict=True):
            if is_large:
                yield from (read_by_windows(source, planner, row, device) for row in piece.tolist())
            else:
                yield from load(piece)


def fitting(source: Source, planner: Planner, rows: np.ndarray, config: LoadConfig) -> np.ndarray:
    """The rows of images that are resized whole."""
    return rows[~oversized(source, planner, rows, config)]


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
