"""Are a loader's crops those of the images? Compared with the reference before anything is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.compare.loader_table import OURS, planner
from pipelines.baselines import UINT8, Loader, Request

if TYPE_CHECKING:
    from torch import Tensor


def check_crops(name: str, loader: Loader, request: Request, tensors: list[Tensor]) -> float:
    """Compare what a loader delivered for a few images with the reference; the worst mean difference, grey levels.

    Ours must have cut the planned windows, a centre crop the centre; random windows must be found somewhere in the
    reference's frame (so they lie in it whole, unmirrored, at its scale), and must not all be the same one.
    Raises WrongPixels, naming the image.
    """
    import torch

    from pipelines.backends import reference
    from pipelines.backends.reference import WrongPixels

    images, K = len(request.rows), request.spec.K
    found = torch.cat(tensors)
    expected = (images * request.crops, 3, K, K)
    dtype = getattr(torch, request.output)
    if tuple(found.shape) != expected or found.dtype != dtype or str(found.device) != request.device:
        raise WrongPixels(
            f"{name} delivered {tuple(found.shape)} {found.dtype} on {found.device}; asked for were {expected} {dtype} "
            f"on {request.device}"
        )
    crops = levels(found, request).reshape(images, request.crops, 3, K, K)
    plans = planner(request)
    worst, distinct, room = 0.0, set(), 0
    for i, row in enumerate(request.rows.tolist()):
        frame = reference.frame(request.files, plans, row).transpose(2, 0, 1).astype(np.float32)
        room = max(room, *(side_px - K for side_px in frame.shape[1:]))
        planned = planned_windows(name, loader, request, row, frame)
        for j in range(request.crops):
            window, difference = nearest(frame, crops[i, j], None if planned is None else planned[j])
            distinct.add((i, window))
            worst = max(worst, difference)
            if difference > loader.tolerance_levels:
                where = "of the reference's frame" if planned is None else f"(y, x) = {window} of the reference's frame"
                raise WrongPixels(
                    f"{name}: crop {j} of {request.files.listed[row]} differs from every window {where} by at least "
                    f"{difference:.2f} grey levels in the mean; at most {loader.tolerance_levels} are allowed"
                )
    if planned is None and request.crops > 1 and room > 0 and len(distinct) == images:
        raise WrongPixels(f"{name}: the {request.crops} crops of each image are one and the same window")
    return worst


def levels(crops: Tensor, request: Request) -> np.ndarray:
    """float32 on the scale 0..255, normalisation undone."""
    import torch

    x = crops.to("cpu", torch.float32).numpy()
    if request.output == UINT8:
        return x
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (request.spec.mean, request.spec.std))
    return 255 * (x * std + mean)


def planned_windows(
    name: str, loader: Loader, request: Request, row: int, frame: np.ndarray
) -> list[tuple[int, int]] | None:
    """(y, x) of each crop of an image; None where a loader draws its own."""
    from pipelines.crops import centre_offset

    if name in OURS:
        one = np.array([row])
        group = planner(request).plan(one, request.files.names(one), request.files.sizes(one)).groups[0]
        return [(int(y), int(x)) for y, x, _ in group.windows]
    if loader.centre:
        y, x = centre_offset(np.array(frame.shape[1:]) - request.spec.K).tolist()
        return [(y, x)]
    return None


def nearest(frame: np.ndarray, crop: np.ndarray, at: tuple[int, int] | None) -> tuple[tuple[int, int], float]:
    """The window of ``frame`` float32 [3, H, W] that is most like ``crop`` [3, K, K], and their mean difference.

    ``at``: look there only. All windows are compared on a grid of points, the best few of them whole.
    """
    K = crop.shape[-1]
    candidates = [at] if at is not None else _likely(frame, crop, K)
    differences = [float(np.abs(frame[:, y : y + K, x : x + K] - crop).mean()) for y, x in candidates]
    best = int(np.argmin(differences))
    return candidates[best], differences[best]


def _likely(frame: np.ndarray, crop: np.ndarray, K: int, points: int = 12, few: int = 8) -> list[tuple[int, int]]:
    grid = np.unique(np.linspace(0, K - 1, points).astype(int))
    height, width = frame.shape[1] - K + 1, frame.shape[2] - K + 1
    distance = np.zeros((height, width), np.float32)
    for y in grid:
        for x in grid:
            there = frame[:, y : y + height, x : x + width]
            distance += np.abs(there - crop[:, y, x, None, None]).sum(axis=0)
    best = np.argsort(distance, axis=None, kind="stable")[:few]
    return [(int(i) // width, int(i) % width) for i in best]
