"""Decoding with PIL, the reference for every decoder: RGB, EXIF orientation ignored, as timm loads an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.spans import Span

READS = "reads it"


def decode(source: str | Path | io.BytesIO | Span) -> np.ndarray:
    """uint8 [H, W, 3]: PIL's pixels. Raises OSError and others of PIL's for a file that is no readable image."""
    with Image.open(opened(source) if isinstance(source, Span) else source) as image:
        return np.asarray(image.convert("RGB"))


def opened(span: Span, most: int | None = None) -> str | io.BytesIO:
    """What PIL can open: a file's path, or the bytes of another span (at most the first ``most``). Raises OSError."""
    return span.path if span.is_file else _Bytes(span, most)


class _Bytes(io.BytesIO):
    """PIL's messages show the repr of what it reads."""

    def __init__(self, span: Span, most: int | None) -> None:
        super().__init__(span.read(most))
        self.span = span

    def __repr__(self) -> str:
        return f"byte {self.span.offset} of {self.span.path!r}"


def complaint(source: str | Path | Span) -> str:
    """What PIL says of an image that another decoder refused."""
    try:
        decode(source)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return READS


def changed(planned: np.ndarray, found: np.ndarray) -> str | None:
    """Why a file whose pixels are now ``found`` (height, width) no longer fits its plan, or None."""
    (h, w), (new_h, new_w) = (int(x) for x in planned), (int(x) for x in found)
    if (h, w) == (new_h, new_w):
        return None
    return f"the file has changed since the scan: {new_w}x{new_h} pixels instead of {w}x{h}"
