"""Find the images that a path names: a folder (``pipelines.data.dataset``), tar shards
(``pipelines.data.tars``), or Parquet and Arrow files (``pipelines.data.tables``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data import dataset, tables, tars
from pipelines.data.dataset import DatasetError, Scan
from pipelines.data.formats import IMAGE_SUFFIXES
from pipelines.data.limits import DEFAULT_LIMITS, ImageLimits

SETS = ("test", "train", "training", "validation", "val")  # names of folders that each hold a data set


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
    refuse_remote(root)
    find = tables.scan if tables.is_table(root) else tars.scan if tars.is_pattern(root) else dataset.scan_folder
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


def refuse_remote(root: Path | str) -> None:
    """Raises DatasetError for an address: data is read from disk only."""
    scheme, colon, rest = str(root).partition(":/")  # Path makes one slash of two
    if not colon or len(scheme) < 2 or not scheme.isalnum() or Path(root).exists():
        return
    name = "/".join(rest.strip("/").removeprefix("datasets/").split("/")[:2])
    how = (
        f"hf download {name} --repo-type dataset --local-dir DIR, then `data` DIR" if scheme == "hf" else "download it"
    )
    raise DatasetError(f"{scheme}://{rest.lstrip('/')} is an address, and images are read from disk only: {how}")


def refuse_several_sets(root: Path | str) -> None:
    """Raises DatasetError for a folder that holds train and val, as ImageNet's and Kaggle's do, before a million images
    are looked at: labels are those of one of them. Not for what needs no labels."""
    folder = Path(root).expanduser()
    for below in (folder / "ILSVRC" / "Data" / "CLS-LOC", folder / "Data" / "CLS-LOC", folder / "CLS-LOC", folder):
        sets = [below / name for name in SETS if (below / name).is_dir()]
        if len(sets) > 1 and not any(dataset.suffix_of(path.name) in IMAGE_SUFFIXES for path in below.iterdir()):
            others = {path.name for path in below.iterdir() if path.is_dir()} - {path.name for path in sets}
            if all(dataset.is_of_another_program(name) for name in others):
                raise DatasetError(
                    f"{folder} holds several sets of images: give one of them as `data`, such as {sets[-1]}"
                )


def require(root: Path | str) -> None:
    """Raises DatasetError where there is no such folder, or no such tars; reads nothing."""
    refuse_remote(root)
    if tables.is_table(root):
        tables.files(root)
    elif tars.is_pattern(root):
        tars.shards(root)
    else:
        dataset.checked_folder(root)
