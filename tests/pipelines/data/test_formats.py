"""Every kind of image file that is taken is read alike by DALI and PIL; what is not is refused, with its reason.

pytest tests/pipelines/data/test_formats.py
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.dataset import read_header, scan_folder
from pipelines.data.decode import decode
from pipelines.data.formats import FORMATS, IMAGE_SUFFIXES, NOT_READ_ALIKE, OTHER_PICTURES
from pipelines.data.scanning import scan

H, W = 12, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 4), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (H, W, 4), dtype=np.uint16)
RGB = Image.fromarray(PIXELS[..., :3])
MODES = {
    "rgb": RGB,
    "l": RGB.convert("L"),
    "rgba": Image.fromarray(PIXELS),
    "la": Image.fromarray(PIXELS).convert("LA"),
    "p": RGB.convert("P"),
    "1": RGB.convert("1"),
    "cmyk": RGB.convert("CMYK"),
    "ycbcr": RGB.convert("YCbCr"),
    "i16": Image.fromarray(DEEP[..., 0]),
}
SUFFIXES = ("png", "tif", "bmp", "webp", "jp2", "j2k", "ppm", "pgm", "jpg", "dib", "gif")
COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd", "tiff_lzma")


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", W, H, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bmp(bits: int, compression: int, data: bytes, beside: bytes = b"") -> bytes:
    start = 54 + len(beside)
    header = struct.pack("<IiiHHIIiiII", 40, W, H, 1, bits, compression, len(data), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + beside + data


HANDMADE = {
    "rgb16.png": png16(DEEP[..., :3], 2),
    "rgba16.png": png16(DEEP, 6),
    "grey_alpha16.png": png16(DEEP[..., :2], 4),
    "grey16.png": png16(DEEP[..., 0], 0),
    "most100.ppm": b"P6\n16 12\n100\n" + (PIXELS[..., :3] % 101).tobytes(),
    "most65535.ppm": b"P6\n16 12\n65535\n" + DEEP[..., :3].astype(">u2").tobytes(),
    "text.ppm": b"P3\n16 12\n255\n" + b" ".join(b"%d" % value for value in PIXELS[..., :3].ravel()) + b"\n",
    "555.bmp": bmp(16, 0, DEEP[..., 0].tobytes()),
    "565.bmp": bmp(16, 3, DEEP[..., 0].tobytes(), struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
    "32.bmp": bmp(32, 0, PIXELS.tobytes()),
    "rle4.bmp": bmp(4, 2, (b"\x10\x35" + b"\0\0") * H + b"\0\1", PIXELS[:4].tobytes()[:64]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, data in HANDMADE.items():
        (folder / name).write_bytes(data)
    for mode, image in MODES.items():
        wanted = {f"{mode}.{suffix}": {} for suffix in SUFFIXES}
        wanted |= {f"{mode}-{kind}.tif": {"compression": kind} for kind in COMPRESSIONS}
        for name, options in wanted.items():
            try:
                image.save(folder / name, **options)
            except (OSError, ValueError):  # not every format has every mode
                (folder / name).unlink(missing_ok=True)
    for orientation in (1, 3, 6):
        RGB.save(folder / f"turned{orientation}.tif", tiffinfo={274: orientation})
    RGB.save(folder / "pages.tif", save_all=True, append_images=[MODES["l"]])
    RGB.save(folder / "moving.png", save_all=True, append_images=[RGB.rotate(180)])
    RGB.save(folder / "two.mpo", save_all=True, append_images=[RGB.rotate(180)])
    MODES["cmyk"].save(folder / "adobe.jpg")
    (folder / "nameless.jpg").write_bytes((folder / "adobe.jpg").read_bytes().replace(b"Adobe", b"Abode"))
    return {path.name: path for path in sorted(folder.iterdir())}


def by_dali(path: Path) -> np.ndarray | None:
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline, types

    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        encoded = fn.external_source(
            lambda: [np.frombuffer(path.read_bytes(), np.uint8)], batch=True, dtype=types.UINT8
        )
        pipe.set_outputs(fn.decoders.image(encoded, adjust_orientation=False, output_type=types.RGB))
    pipe.build()
    try:
        return np.array(pipe.run()[0].at(0))
    except RuntimeError:
        return None


def test_what_is_taken_is_read_alike(files: dict[str, Path]) -> None:
    taken = [name for name, path in files.items() if not read_header(str(path))[-1]]
    assert len(taken) > 40
    different = []
    for name in taken:
        found = by_dali(files[name])
        if found is None or not np.array_equal(found, decode(files[name])):
            different.append(name)
    assert different == []


def test_every_reason_for_refusal_is_met_and_every_format_is_taken(files: dict[str, Path]) -> None:
    facts = {name: read_header(str(path)) for name, path in files.items()}
    assert {facts[-1] for facts in facts.values()} >= set(NOT_READ_ALIKE.values())
    assert {facts[2] for facts in facts.values() if not facts[-1]} == set(FORMATS)
    for name in ("rgb16.png", "turned3.tif", "p.tif", "565.bmp", "most100.ppm", "ycbcr.jp2", "rgb.gif"):
        assert facts[name][-1], name


def test_no_suffix_is_taken_and_refused_and_pillow_knows_those_that_are_taken() -> None:
    assert not IMAGE_SUFFIXES & OTHER_PICTURES
    Image.init()
    known = {suffix for suffix, format in Image.EXTENSION.items() if format in FORMATS}
    assert known - IMAGE_SUFFIXES == {".pfm"}
    assert IMAGE_SUFFIXES - known <= {".jif", ".dib"}


def test_every_picture_is_scored_or_listed(files: dict[str, Path], tmp_path: Path) -> None:
    """One of each suffix, and what other programs leave beside them."""
    root = tmp_path / "images"
    png = files["rgb.png"].read_bytes()
    scored = [f"cat/x{suffix.upper()}" for suffix in IMAGE_SUFFIXES]
    theirs = [
        ".ipynb_checkpoints/a.png",
        "cat/.ipynb_checkpoints/a.png",
        "cat/._b.png",
        "@eaDir/c.png",
        "__MACOSX/cat/d.png",
    ]
    listed = [f"cat/x{suffix}" for suffix in (*OTHER_PICTURES, ".jpg_large", ".png~")] + theirs
    for name in [*scored, *listed, "cat/Thumbs.db", "notes.txt", "cat/none"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    found = scan_folder(root, workers=1, cache=tmp_path / "cache", progress=False)
    assert sorted(found.table["name"]) == sorted(scored)
    assert sorted(found.unreadable["name"]) == sorted(listed)
    assert found.folders == ("cat",)
    assert found.other_files == {".db": 1, ".txt": 1, "": 1}


def progressive_of(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    stored = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 60)).save(stored, "JPEG", progressive=True)
    data = stored.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def test_a_progressive_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for scans, reason in ((20, ""), (5000, "a progressive JPEG of 5000 scans, over the limit of 100")):
        path = tmp_path / f"{scans}.jpg"
        path.write_bytes(progressive_of(scans))
        assert read_header(str(path))[-1] == reason
    shard = tmp_path / "val.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(tmp_path / "20.jpg", "a.jpg")
        archive.add(tmp_path / "5000.jpg", "b.jpg")
    found = scan(shard, workers=1, progress=False)
    assert found.table["name"].tolist() == ["a.jpg"]
    assert found.unreadable["reason"].tolist() == ["a progressive JPEG of 5000 scans, over the limit of 100"]
