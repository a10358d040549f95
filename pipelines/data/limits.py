"""How large one image may be, so that no file fills the memory: judged by its header, before it is decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image


class _Guard:
    """Pillow's own limit, while ImageLimits takes its place: how many threads have lifted it, and what it was."""

    lock = threading.Lock()
    lifted = 0
    limit: int | None = None


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Pillow refuses images of 179 megapixels and warns of half as many: a limit that only the whole process has, and
    which belongs to the program that imports this one. So it is lifted only while an image is opened here."""
    with _Guard.lock:
        if _Guard.lifted == 0:
            _Guard.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _Guard.lifted += 1
    try:
        yield
    finally:
        with _Guard.lock:
            _Guard.lifted -= 1
            if _Guard.lifted == 0:
                Image.MAX_IMAGE_PIXELS = _Guard.limit


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """``megapixels``: width times height as stored, millions. ``megabytes``: of the file, millions of bytes."""

    megapixels: float = 200
    megabytes: float = 256

    def why_refused(self, width: int, height: int, file_bytes: int) -> str:
        """Why an image is left out, or ""."""
        if width * height > 1e6 * self.megapixels:
            return f"{width}x{height} pixels: over the limit of {self.megapixels:g} megapixels (`max_megapixels`)"
        if file_bytes > 1e6 * self.megabytes:
            return f"a file of {file_bytes:,} bytes: over the limit of {self.megabytes:g} MB (`max_megabytes`)"
        return ""

    def refused(self, width: np.ndarray, height: np.ndarray, file_bytes: np.ndarray) -> np.ndarray:
        """bool [b]: which images are left out."""
        pixels = width.astype(np.int64) * height.astype(np.int64)
        return (pixels > 1e6 * self.megapixels) | (file_bytes > 1e6 * self.megabytes)


DEFAULT_LIMITS = ImageLimits()
