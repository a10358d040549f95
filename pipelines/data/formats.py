"""Which image files are taken, and which are refused because decoders here read them differently.

Every backend must see the same pixels. Where the decoders were found to differ, by more than the rounding of a JPEG's
inverse transform, the file is listed with its reason rather than scored by whichever decoder is in use. Each entry was
tried on DALI 2.4 against PIL (tests/pipelines/data/test_formats.py, tests/stress/faults.py).
"""

from __future__ import annotations

from collections.abc import Callable

from PIL.ImageFile import ImageFile

# Pillow's words for what every backend reads, whatever the file's suffix -> its suffixes, compared in lower case.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# Pictures too, which Pillow may read but not every backend: listed one by one, so that none is left out silently.
OTHER_PICTURES = frozenset(
    f".{suffix}"
    for line in (
        "gif avif avifs heic heif hif jxl jxr wdp qoi ico cur icns tga psd psb svg svgz eps ai pcx dds exr hdr pfm pam",
        "xbm xpm sgi rgb rgba ras fits fit dcm jls mj2 bpg raw dng cr2 cr3 nef arw raf orf rw2 srw pef",
    )
    for suffix in line.split()
)

BEGINNINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".gif")

CONVERT = "convert it to PNG or JPEG"


def other_picture(suffix: str) -> str:
    """Why a file with such a suffix is not read, though it is a picture; "" for a suffix of another kind.

    Programs that save web pages write ``x.jpg_large`` and ``x.png~``.
    """
    if suffix in OTHER_PICTURES:
        return f"{suffix} pictures are not read by every backend: {CONVERT}"
    alike = suffix not in IMAGE_SUFFIXES and suffix.startswith(BEGINNINGS)
    return f"{suffix} is not the suffix of an image: rename the file if it is one" if alike else ""


def refusal(image: ImageFile) -> str:
    """Why an opened image, of which only the header has been read, is refused; "" where it is not."""
    if image.format not in FORMATS:
        return f"{image.format} images are not read by every backend: {CONVERT}"
    return next((reason for is_so, reason in NOT_READ_ALIKE.items() if is_so(image)), "")


def _codec(image: ImageFile) -> str:
    return str(image.tile[0][0]) if image.tile else ""


def _arguments(image: ImageFile) -> tuple[object, ...]:
    """What Pillow tells its decoder; the first says how pixels are stored, such as RGB;16B."""
    found = image.tile[0][3] if image.tile else ()
    return found if isinstance(found, tuple) else (found,)


def _tiff_tag(image: ImageFile, tag: int) -> tuple[int, ...]:
    found = getattr(image, "tag_v2", {}).get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _is_deep(image: ImageFile) -> bool:
    if image.mode.startswith(("I", "F")):  # I, I;16, I;16B, F
        return True
    stored = str(_arguments(image)[:1])
    depths = _tiff_tag(image, 258) if image.format == "TIFF" else _jpeg2000_depths(image)
    return (";16" in stored and image.format in ("PNG", "TIFF")) or any(depth > 8 for depth in depths)


def _head(image: ImageFile) -> bytes:
    """The first bytes of a file, of which Pillow has read the header."""
    if image.fp is None:
        return b""
    image.fp.seek(0)
    return image.fp.read(1 << 16)


def _jpeg2000_depths(image: ImageFile) -> list[int]:
    """Bits of each component: the Ssiz bytes of the SIZ marker segment (ISO 15444-1, A.5.1)."""
    if image.format != "JPEG2000":
        return []
    head = _head(image)
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0:
        return []
    count = int.from_bytes(head[at + 40 : at + 42], "big")
    return [(byte & 0x7F) + 1 for byte in head[at + 42 : at + 42 + 3 * count : 3]]


def _is_nameless_cmyk(image: ImageFile) -> bool:
    return image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info


def _is_turned_tiff(image: ImageFile) -> bool:
    return image.format == "TIFF" and _tiff_tag(image, 274) not in ((), (1,))


def _is_odd_tiff(image: ImageFile) -> bool:
    """All but grey, RGB and RGBA with alpha apart, of 8 bits; and bilevel in a compressed form."""
    if image.format != "TIFF":
        return False
    compression = image.info.get("compression")
    if compression == "tiff_lzma" or compression == "lzma":
        return True
    if image.mode == "1":
        return compression == "raw"
    is_plain = image.mode in ("L", "RGB", "RGBA") and all(depth == 8 for depth in _tiff_tag(image, 258))
    return not is_plain or 1 in _tiff_tag(image, 338)  # 1: the colours are multiplied by alpha


def _is_odd_bmp(image: ImageFile) -> bool:
    stored = str(_arguments(image)[0]) if image.tile else ""
    is_rle4 = _codec(image) == "bmp_rle" and stored == "P;4"
    return image.format == "BMP" and (is_rle4 or stored in ("BGR;15", "BGR;16"))


def _is_odd_jpeg2000(image: ImageFile) -> bool:
    """Colour spaces other than sRGB and grey (ISO 15444-1, I.5.3.3: EnumCS 16 and 17), and grey without a container."""
    if image.format != "JPEG2000":
        return False
    if image.mode not in ("L", "RGB", "RGBA"):
        return True
    head = _head(image)
    at = head.find(b"colr")
    if at < 0:
        return image.mode == "L"
    return not (head[at + 4] == 1 and int.from_bytes(head[at + 7 : at + 11], "big") in (16, 17))


def _is_odd_ppm(image: ImageFile) -> bool:
    return image.format == "PPM" and _codec(image).startswith("ppm") and _arguments(image)[-1] not in (255, 65535)


NOT_READ_ALIKE: dict[Callable[[ImageFile], bool], str] = {
    _is_deep: "more than 8 bits a pixel and channel, which decoders bring to 8 bits differently: convert it to 8 bits",
    _is_nameless_cmyk: "a CMYK JPEG without Adobe's marker, which DALI inverts and PIL does not: convert it to RGB",
    _is_turned_tiff: f"a TIFF with an orientation, by which some decoders turn it and others do not: {CONVERT}",
    _is_odd_tiff: f"a TIFF of a kind that decoders read differently (palette, CMYK, YCbCr, Lab, ...): {CONVERT}",
    _is_odd_bmp: f"a BMP of a kind that decoders read differently (16 bits a pixel, 4-bit RLE): {CONVERT}",
    _is_odd_jpeg2000: f"a JPEG 2000 of a kind that decoders read differently (not sRGB or grey): {CONVERT}",
    _is_odd_ppm: f"a PPM whose largest value is not 255, which decoders scale differently: {CONVERT}",
}
