"""JPEG decoders of the torchvision backend. All of them bind libjpeg-turbo, and their pixels are Pillow's.

simplejpeg, if it is there, reads a header in 2 us, where Pillow takes 25, and decodes fastest; what it refuses, Pillow
decides. torchvision's decoders are deprecated, and taken where simplejpeg is missing, for as long as they exist.

Tried and not taken: TorchCodec 0.17. It turns images by their EXIF orientation, with no switch, so that its pixels are
others; of the rest they are equal, at 1.15 times simplejpeg's CPU time, as torchvision's (200 JPEGs of 0.18 megapixels:
1.20, 1.38 and 1.39 ms each; Pillow 1.74).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from pipelines.data.decode import decode
from pipelines.data.limits import without_pillow_limit

try:
    import simplejpeg
except ImportError:  # not built for this system
    simplejpeg = None

PLAIN = ("YCbCr", "RGB", "Gray")  # colour spaces that libjpeg-turbo turns into RGB as Pillow does
Decode = Callable[[bytes], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Header:
    """``plain``: a JPEG that libjpeg-turbo decodes to RGB."""

    height: int
    width: int
    plain: bool


def header_of(data: bytes) -> Header:
    """Raises as Pillow's open does."""
    if simplejpeg is not None:
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # no JPEG, or one that Pillow decides about
            pass
        else:
            if colorspace in PLAIN:
                return Header(height, width, True)
    with without_pillow_limit(), Image.open(io.BytesIO(data)) as image:
        return Header(image.height, image.width, image.format == "JPEG" and image.mode in ("RGB", "L"))


def decode_rgb(data: bytes) -> torch.Tensor:
    """uint8 [3, H, W] (channels last in memory): plain JPEGs by libjpeg-turbo, all else through Pillow; same pixels."""
    return decode_plain(data) if header_of(data).plain else by_pillow(data)


def by_pillow(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decode(io.BytesIO(data))).permute(2, 0, 1)


def _simplejpeg() -> Decode:
    if simplejpeg is None:
        raise ImportError("simplejpeg is not installed")

    def decode_jpeg(data: bytes) -> torch.Tensor:
        try:
            # Not its defaults: the fast cosine transform and upsampling give other pixels.
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
        except ValueError:
            return by_pillow(data)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    return decode_jpeg


def _torchvision() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated; gone in some later release

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


# In the order in which they are taken. Each raises ImportError where it is not installed.
DECODERS: dict[str, Callable[[], Decode]] = {
    "simplejpeg": _simplejpeg,
    "torchvision": _torchvision,
    "pillow": lambda: by_pillow,
}


def first_there() -> Decode:
    """The first decoder that is installed and can be loaded."""
    for load in DECODERS.values():
        try:
            return load()
        except (ImportError, OSError, RuntimeError):
            continue
    return by_pillow


decode_plain = first_there()
