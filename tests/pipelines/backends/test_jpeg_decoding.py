"""The torchvision backend's JPEG decoders, against PIL: the same pixels, and the same files refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.backends import jpeg


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


def decoder(name: str) -> jpeg.Decode:
    try:
        return jpeg.DECODERS[name]()
    except ImportError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", jpeg.DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_pils(kind: str, name: str) -> None:
    found = decoder(name)(KINDS[kind])
    expected = np.array(Image.open(io.BytesIO(KINDS[kind])).convert("RGB"))
    assert found.dtype == torch.uint8 and np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert torch.equal(jpeg.decode_rgb(KINDS[kind]), found)


@pytest.mark.parametrize("name", jpeg.DECODERS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused_by_all(share: float, name: str) -> None:
    whole = encoded(200, 300)
    with pytest.raises((RuntimeError, OSError)):
        decoder(name)(whole[: int(share * len(whole))])


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_says_what_pillow_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    fast = jpeg.header_of(KINDS[kind])
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert fast == jpeg.header_of(KINDS[kind]) and fast.plain


def other_kinds() -> dict[str, bytes]:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    files = {name: io.BytesIO() for name in ("CMYK", "two pictures", "PNG", "turned")}
    picture.convert("CMYK").save(files["CMYK"], "JPEG")
    picture.save(files["two pictures"], "MPO", save_all=True, append_images=[picture.rotate(180)])
    picture.save(files["PNG"], "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(files["turned"], "JPEG", exif=exif)
    return {name: file.getvalue() for name, file in files.items()}


OTHERS = other_kinds()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_plain_jpeg_is_read_as_pillow_reads_it(kind: str) -> None:
    expected = np.array(Image.open(io.BytesIO(OTHERS[kind])).convert("RGB"))
    assert np.array_equal(jpeg.decode_rgb(OTHERS[kind]).permute(1, 2, 0).numpy(), expected)
    header = jpeg.header_of(OTHERS[kind])
    assert (header.height, header.width) == expected.shape[:2]
    assert header.plain == (kind in ("two pictures", "turned"))


@pytest.mark.parametrize("name", jpeg.DECODERS)
def test_no_decoder_turns_an_image_by_its_exif_orientation(name: str) -> None:
    assert decoder(name)(OTHERS["turned"]).shape == (3, 40, 60)


def test_the_next_decoder_is_taken_where_one_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> jpeg.Decode:
        raise ImportError("no module")

    def broken() -> jpeg.Decode:
        raise RuntimeError("Could not load a library")

    def third(data: bytes) -> torch.Tensor:
        return torch.zeros(3, 1, 1)

    monkeypatch.setattr(jpeg, "DECODERS", {"a": missing, "b": broken, "c": lambda: third, "d": lambda: jpeg.by_pillow})
    assert jpeg.first_there() is third
    monkeypatch.setattr(jpeg, "DECODERS", {"a": missing})
    assert jpeg.first_there() is jpeg.by_pillow


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
    assert np.array_equal(jpeg.decode_rgb(damaged).permute(1, 2, 0).numpy(), expected)
