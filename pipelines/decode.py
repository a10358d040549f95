"""Decoding with PIL, the reference for every decoder: RGB, EXIF orientation ignored, as timm loads an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

READS = "reads it"


def decode(source: str | Path | io.BytesIO) -> np.ndarray:
    """uint8 [H, W, 3]: PIL's pixels. Raises OSError and others of PIL's for a file that is no readable image."""
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


def complaint(path: str | Path) -> str:
    """What PIL says of a file that another decoder refused."""
    try:
        decode(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return READS


def changed(planned: np.ndarray, found: np.ndarray) -> str | None:
    """Why a file whose pixels are now ``found`` (height, width) no longer fits its plan, or None."""
    (h, w), (new_h, new_w) = (int(x) for x in planned), (int(x) for x in found)
    if (h, w) == (new_h, new_w):
        return None
    return f"the file has changed since the scan: {new_w}x{new_h} pixels instead of {w}x{h}"
