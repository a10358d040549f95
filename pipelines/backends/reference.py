"""The crops as the words define them, written another way: PIL decodes, torchvision resizes in float32, NumPy slices.

Slow and plain. Every backend is compared with it before it is timed (DESIGN rule 7), and in the tests.
"""

from __future__ import annotations

import io
import logging

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, resize

from pipelines.backends import BACKENDS
from pipelines.batch import Backend, CropBatch, Source
from pipelines.bounds import fitting
from pipelines.crops import Planner, crop_windows
from pipelines.data.decode import READS, decode, decode_error, opened, stored_size
from pipelines.data.memory import ImageList

SMALL_S = 64  # below it a frame's border, which backends may treat otherwise, is a larger share of it
FINE_S = 128  # the smallest short side, pixels, at which made images have all their waves
log = logging.getLogger(__name__)


def resize_frame(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 [size[0], size[1], 3] from [H, W, 3]: antialiased, in float32, rounded once."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    resized = resize(pixels, list(size), InterpolationMode(interpolation), antialias=True)
    return resized.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def frame(source: Source, planner: Planner, row: int, group: int = 0) -> np.ndarray:
    """The resized frame that the row's crops are cut from, those of one of the plan's groups."""
    plan = planner.plan(np.array([row]), source.names(np.array([row])), source.sizes(np.array([row])))
    h, w = plan.groups[group].sizes[0].tolist()
    return resize_frame(decode(source.spans(np.array([row]))[0]), (h, w), planner.spec.interpolation)


class WrongPixels(RuntimeError):
    """A backend's crops are not the reference's: its speed would be no result."""


def check(backend: Backend, source: Source, planner: Planner, rows: np.ndarray) -> float:
    """Compare a backend with the reference on a few images; returns the worst mean difference of a frame, grey levels.

    Windows must be exact (each crop equals the NumPy slice of the backend's own frame); frames must be within
    the backend's ``tolerance_levels``. Raises WrongPixels, naming the image. Passed over are unreadable rows, files
    that changed since the scan, and images that are never resized whole (pipelines.panoramas). Where an image's frame
    is not within the tolerance, made images decide: if the backend is right on those, the image is unusual (a frame of
    a few pixels, hard noise), which is logged.
    """
    rows = fitting(source, planner, rows, backend.config)  # others have no frame to compare
    rows = np.array([row for row in rows.tolist() if not has_changed(source, row)], dtype=np.int64)
    frames = [dict(backend.frames(rows, g)) for g in range(len(planner.views.sizes))]
    if not frames[0]:
        for row, span in zip(rows.tolist(), source.spans(rows), strict=True):
            if decode_error(span) == READS:
                name = source.names(np.array([row]))[0]
                raise WrongPixels(f"{backend.name} calls each of {len(rows)} images unreadable, and PIL reads {name}")
    worst = max(_check_frames(backend, source, planner, g, found) for g, found in enumerate(frames))
    seen: list[int] = []
    failed: list[int] = []
    for batch in backend.batches(rows):
        seen += batch.rows.tolist()
        failed += [failure.row for failure in batch.failed]
        for g, group in enumerate(batch.groups):
            crops = group.crops.cpu().numpy()
            for row in set(batch.rows.tolist()) & set(frames[g]):
                sizes = source.sizes(np.array([row]))
                plan = planner.plan(np.array([row]), source.names(np.array([row])), sizes).groups[g]
                mine = group.image == row
                expected_crops = crop_windows(frames[g][row], plan.windows, plan.K)
                if not np.array_equal(group.view[mine], plan.view) or not np.array_equal(crops[mine], expected_crops):
                    raise WrongPixels(
                        f"{backend.name}: the crops of {source.names(np.array([row]))[0]} are not the planned windows"
                    )
        _check_dense(backend, source, planner, batch, frames[0])
    if sorted(seen + failed) != sorted(rows.tolist()) or set(seen) != set(frames[0]):
        raise WrongPixels(
            f"{backend.name}: of {len(rows)} images {len(seen)} came as crops, {len(frames[0])} as frames and "
            f"{len(failed)} as unreadable: some were lost or came twice"
        )
    return worst


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Of two uint8 images of one shape, in grey levels."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def has_changed(source: Source, row: int) -> bool:
    """Whether an image that PIL opens has another size than at the scan."""
    (span,), (size,) = source.spans(np.array([row])), source.sizes(np.array([row]))
    try:
        return stored_size(opened(span)) != (size[0], size[1])
    except Exception:  # on damaged files Pillow's plugins raise nearly anything
        return False


def made_images(S: int) -> ImageList:
    """Waves of all directions, as PNG and JPEG, larger and smaller than the short side S: what any right resize agrees
    on within a backend's tolerance, and a shifted or unfiltered one does not."""
    images: list[bytes] = []
    for height, width, format in ((2 * S, 3 * S, "PNG"), (3 * S + 1, 2 * S + 3, "JPEG"), (S + 5, S + 9, "PNG")):
        y, x = np.mgrid[:height, :width] / max(S, FINE_S)  # waves of few pixels would show how borders are treated
        waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((5, 2), (-3, 4), (1, 6))]
        file = io.BytesIO()
        pixels = np.round(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
        Image.fromarray(pixels).save(file, format, quality=95)
        images.append(file.getvalue())
    return ImageList.of(images)


def worst_of_made(backend: Backend, planner: Planner, group: int) -> float:
    """The worst mean difference of a backend's frames of made images from the reference, grey levels."""
    made = made_images(planner.spec.S)
    again = backend.on(made)
    try:
        frames = dict(again.frames(np.arange(len(made)), group))
        expected = {row: frame(made, planner, row, group) for row in range(len(made))}
        if any(row not in frames or frames[row].shape != whole.shape for row, whole in expected.items()):
            return float("inf")
        return max(mean_difference(frames[row], whole) for row, whole in expected.items())
    finally:
        again.close()


def _check_dense(
    backend: Backend, source: Source, planner: Planner, batch: CropBatch, frames: dict[int, np.ndarray]
) -> None:
    """Each dense view must be the NumPy slice of the backend's own frame, and none may lack. Raises WrongPixels."""
    came = set()
    for group in batch.frames:
        for pixels, row, view in zip(group.crops.cpu().numpy(), group.image.tolist(), group.view.tolist(), strict=True):
            came.add((row, view))
            name, size = source.names(np.array([row])), source.sizes(np.array([row]))
            (dense,) = (dense for dense in planner.plan(np.array([row]), name, size).dense if dense.view == view)
            top, left, height, width = dense.frames[0].tolist()
            expected = frames[row][top : top + height, left : left + width]
            if not np.array_equal(pixels, expected[:, ::-1] if dense.mirror else expected):
                raise WrongPixels(f"{backend.name}: the dense frame of {name[0]} is not the planned part of the image")
    if came != {(row, view) for row in batch.rows.tolist() for view in planner.views.dense.values()}:
        raise WrongPixels(f"{backend.name}: some dense frames were lost, or came of images that were not asked for")


def _check_frames(backend: Backend, source: Source, planner: Planner, g: int, frames: dict[int, np.ndarray]) -> float:
    """The worst mean difference of group ``g``'s frames (by row). Raises WrongPixels."""
    worst = 0.0
    for row, got in frames.items():
        name = source.names(np.array([row]))[0]
        expected = frame(source, planner, row, g)
        if got.shape != expected.shape:
            raise WrongPixels(
                f"{backend.name}: {name} was resized to {got.shape[:2]}, planned was {expected.shape[:2]}"
            )
        difference = mean_difference(got, expected)
        if difference > (most := BACKENDS[backend.name].tolerance_levels):
            says = (
                f"{backend.name}: the resized frame of {name} differs from the reference by {difference:.3f} grey "
                f"levels in the mean; at most {most} is allowed"
            )
            if (of_made := worst_of_made(backend, planner, g)) > most * max(1, SMALL_S / planner.spec.S):
                raise WrongPixels(f"{says}, and made images differ by {of_made:.3f}")
            log.warning("%s; made images agree (%.3f), so this image is unusual, and the backend right", says, of_made)
        worst = max(worst, difference)
    return worst
