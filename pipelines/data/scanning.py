"""Find the images that a path names: a folder (``pipelines.data.dataset``) or tar shards (``pipelines.data.tars``)."""

from __future__ import annotations

from pathlib import Path

from pipelines.data import dataset, tars
from pipelines.data.dataset import DatasetError, Scan


def scan(root: Path | str, *, workers: int, cache: Path | None = None, progress: bool = True) -> Scan:
    """Find the images below ``root`` and read their headers. ``root`` may name tar shards: see ``pipelines.data.tars``.

    ``workers`` threads read headers. ``cache`` is the cache folder (default: ``dataset.cache_folder()``); ``progress``
    shows bars on stderr. Links to files and folders are followed, links that lead back up are not. What cannot be read
    is in ``Scan.unreadable`` with its reason.

    Raises DatasetError when ``root`` is not a folder, holds no image or none that can be read, or when its ``demo.csv``
    does not fit the files.
    """
    if workers < 1:
        raise DatasetError(f"workers={workers}: reading headers takes at least one")
    find = tars.scan if tars.is_pattern(root) else dataset.scan_folder
    return find(root, workers=workers, cache=cache, progress=progress)


def require(root: Path | str) -> None:
    """Raises DatasetError where there is no such folder, or no such tars; reads nothing."""
    if tars.is_pattern(root):
        tars.shards(root)
    else:
        dataset.checked_folder(root)
