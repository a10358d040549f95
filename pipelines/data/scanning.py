"""Find the images that a path names: a folder (``pipelines.data.dataset``) or tar shards (``pipelines.data.tars``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data import dataset, tars
from pipelines.data.dataset import DatasetError, Scan
from pipelines.data.limits import DEFAULT_LIMITS, ImageLimits


def scan(
    root: Path | str,
    *,
    workers: int,
    cache: Path | None = None,
    progress: bool = True,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Scan:
    """Find the images below ``root`` and read their headers. ``root`` may name tar shards: see ``pipelines.data.tars``.

    ``workers`` threads read headers. ``cache`` is the cache folder (default: ``dataset.cache_folder()``); ``progress``
    shows bars on stderr. Links to files and folders are followed, links that lead back up are not. What cannot be read
    is in ``Scan.unreadable`` with its reason, and so is an image beyond ``limits``.

    Raises DatasetError when ``root`` is not a folder, holds no image or none that can be read, or when its ``demo.csv``
    does not fit the files.
    """
    if workers < 1:
        raise DatasetError(f"workers={workers}: reading headers takes at least one")
    find = tars.scan if tars.is_pattern(root) else dataset.scan_folder
    return limited(find(root, workers=workers, cache=cache, progress=progress), limits)


def limited(found: Scan, limits: ImageLimits) -> Scan:
    """The scan without the images beyond ``limits``, which are among its unreadable ones. Raises DatasetError where
    none is left."""
    width, height, file_bytes = (found.table[name].to_numpy() for name in ("width", "height", "bytes"))
    refused = limits.refused(width, height, file_bytes)
    if not refused.any():
        return found
    rows = np.flatnonzero(refused)
    names = found.table["name"].iloc[rows].tolist()
    spans = dataset.spans_of(found.root, found.table, rows)
    paths = [span.path if span.is_file else f"{span.path}/{name}" for name, span in zip(names, spans, strict=True)]
    reasons = [limits.why_refused(int(width[i]), int(height[i]), int(file_bytes[i])) for i in rows]
    unreadable = pd.concat([found.unreadable, dataset.unreadable_frame(names, paths, reasons)], ignore_index=True)
    if refused.all():
        raise dataset.none_readable(found.root, unreadable)
    table = found.table[~refused].reset_index(drop=True)
    return replace(found, table=table, unreadable=unreadable.sort_values("name", ignore_index=True))


def require(root: Path | str) -> None:
    """Raises DatasetError where there is no such folder, or no such tars; reads nothing."""
    if tars.is_pattern(root):
        tars.shards(root)
    else:
        dataset.checked_folder(root)
