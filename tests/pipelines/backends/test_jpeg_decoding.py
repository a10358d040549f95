"""The torchvision backend's two JPEG decoders, against PIL: the same pixels, and the same files refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.backends import torchvision as backend


def encoded(height: int, width: int, *, grey: bool = False, **how: object) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    rng = np.random.default_rng(height)
    blurred = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((width, height))
    file = io.BytesIO()
    blurred.save(file, "JPEG", **how)
    return file.getvalue()


KINDS = {
    **{f"subsampling {n}": encoded(37, 53, subsampling=n, quality=80) for n in (0, 1, 2)},
    **{f"progressive {n}": encoded(64, 101, subsampling=n, progressive=True) for n in (0, 2)},
    "grey": encoded(50, 71, grey=True),
    "one pixel wide": encoded(9, 1),
}


@pytest.mark.parametrize("with_simplejpeg", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_pils(kind: str, with_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_simplejpeg:
        pytest.importorskip("simplejpeg")
        monkeypatch.setattr(backend, "decode_jpeg", None)  # torchvision's is not called
    else:
        monkeypatch.setattr(backend, "simplejpeg", None)
    found = backend.decode_rgb(KINDS[kind])
    expected = np.array(Image.open(io.BytesIO(KINDS[kind])).convert("RGB"))
    assert found.dtype == torch.uint8 and np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused_by_both(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(200, 300)
    for with_simplejpeg in (True, False):
        if not with_simplejpeg:
            monkeypatch.setattr(backend, "simplejpeg", None)
        with pytest.raises((RuntimeError, OSError)):
            backend.decode_rgb(whole[: int(share * len(whole))])


def test_what_simplejpeg_refuses_pil_decides() -> None:
    """libjpeg warns of damage that it can pass over; PIL passes over it, and simplejpeg refuses it."""
    simplejpeg = pytest.importorskip("simplejpeg")
    whole = bytearray(encoded(64, 64, quality=95))
    start = len(whole) // 2
    whole[start : start + 3] = b"\xff\xd5\x00"  # a restart marker where none belongs
    damaged = bytes(whole)
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(damaged, colorspace="RGB")
    expected = np.array(Image.open(io.BytesIO(damaged)).convert("RGB"))
    assert np.array_equal(backend.decode_rgb(damaged).permute(1, 2, 0).numpy(), expected)
