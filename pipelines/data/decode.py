"""Decoding with PIL, the reference for every decoder: RGB, EXIF orientation ignored, as timm loads an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.formats import FORMATS
from pipelines.data.limits import without_pillow_limit
from pipelines.data.spans import Span

READS = "reads it"
STRIP_PIXELS = 1 << 22
PNG_END = b"IEND\xaeB`\x82"


def decode(source: str | Path | Span | io.BytesIO) -> np.ndarray:
    """uint8 [H, W, 3]: PIL's pixels. Raises OSError and others of PIL's for a file that is not a readable image.

    Stricter than PIL, so that backends score the same files: raises OSError too for other formats than FORMATS and for
    a PNG that ends before its end chunk.
    """
    if isinstance(source, (str, Path)):
        source = Span(str(source))
    file = _Bytes(source) if isinstance(source, Span) else source
    with without_pillow_limit(), Image.open(file) as image:
        if image.format not in FORMATS:
            raise OSError(f"{image.format} images are not read by every backend: convert it to PNG or JPEG")
        if image.format == "PNG" and PNG_END not in file.getvalue():
            raise OSError("image file is truncated: a PNG without its end chunk")
        return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], strip by strip: PIL's own conversion holds a large image three times."""
    width, height = image.size
    image.load()
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def opened(span: Span, most: int | None = None) -> str | io.BytesIO:
    """What PIL can open: a file's path, or the bytes of another span (at most the first ``most``). Raises OSError."""
    return span.path if span.is_file else _Bytes(span, most)


def stored_size(source: str | io.BytesIO) -> tuple[int, int]:
    """Height and width by the header. Raises as PIL's open does."""
    with without_pillow_limit(), Image.open(source) as image:
        return image.height, image.width


def stored_size_of(span: Span) -> tuple[int, int]:
    """The same of a span."""
    return stored_size(opened(span))


class _Bytes(io.BytesIO):
    """PIL's messages show the repr of what it reads."""

    def __init__(self, span: Span, most: int | None = None) -> None:
        super().__init__(span.read(most))
        self.span = span

    def __repr__(self) -> str:
        return repr(self.span.path) if self.span.is_file else f"byte {self.span.offset} of {self.span.path!r}"


def decode_error(source: str | Path | Span) -> str:
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
