"""What damaged files do to a pass: fault injection, on every backend that works here.

    python tests/stress/faults.py               # about two minutes on two cores; exit status 1 when anything is off
    python tests/stress/faults.py --each 200 --good 500 --seed 3 --csv accounting.csv

Good images are scored alone. Then damaged files of every kind in KINDS are put beside them, the folder is scanned, some
files are damaged only after that, and all is scored again. Off is:

* a good image whose predictions (every level and policy, losses included) are not bit for bit what they were alone;
* a file that is not accounted for once: expected = scored + unreadable at the scan + unreadable when decoded;
* a file that ended otherwise than its kind allows: a truncated image that was scored, a PNG named .jpg that was not;
* a file that was scored and PIL refuses, or that was refused and PIL reads (those of the kinds below are counted only);
* a scored file whose resized frame is not the one that PIL's pixels give (within the backend's tolerance);
* the same of the good files and PACKED_EACH of each kind in one Parquet file, one Arrow file and one tar;
* a crash, or no end within ``--timeout`` seconds.

Files and damage are functions of ``--seed``. A stream of pixels whose bits were flipped may decode to garbage or be
refused, and decoders differ in what they let pass; such kinds allow both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from PIL import Image

from analysis.text import aligned
from bench import cases
from bench.config import LoadingConfig, MeasureConfig, NetworkConfig, RunConfig
from bench.setup import make_job, resolve
from pipelines.backends import BACKENDS, unusable
from pipelines.data.dataset import Scan
from pipelines.data.decode import READS, decode_error
from pipelines.data.demo import CLASSES
from pipelines.data.scanning import scan
from pipelines.files import write_whole
from tests.stress import packed

if TYPE_CHECKING:
    from bench.job import Job
    from bench.measure.accuracy import Predictions

POLICIES = "CC,2RC+2MRC"
GOOD, EACH = 300, 100  # good images, damaged files of each kind
PACKED_EACH = 10  # damaged files of each kind in files of other forms
SIDES = (100, 260)  # of the good images, pixels
LEAST_LATE_SHARE = 0.2  # of the damaged files are to be noticed only when decoded
NETWORK = NetworkConfig(family="resnet", weights="demo", device="cpu")

SCORED, AT_SCAN, AT_DECODING = "scored", "unreadable at the scan", "unreadable when decoded"
REFUSED = (AT_SCAN, AT_DECODING)
EITHER = (SCORED, *REFUSED)

Rng = np.random.Generator
Change = Callable[[Path, Rng], None]


# ------------------------------------------------------------------------------------------------------ kinds of damage


def stored(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def picture(rng: Rng, width: int, height: int) -> Image.Image:
    """RGB with detail at every scale, so that no two windows are alike."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((smooth + rng.integers(-25, 26, smooth.shape)).clip(0, 255).astype(np.uint8))


def some_picture(rng: Rng) -> Image.Image:
    width, height = rng.integers(*SIDES, 2).tolist()
    return picture(rng, width, height)


def jpeg(rng: Rng) -> bytes:
    options = {"quality": int(rng.integers(60, 96)), "subsampling": int(rng.integers(3))}
    return stored(some_picture(rng), "JPEG", **options, progressive=bool(rng.random() < 0.2))


def written(make: Callable[[bytes, Rng], bytes]) -> Change:
    """A change of a file's bytes."""

    def change(path: Path, rng: Rng) -> None:
        path.write_bytes(make(path.read_bytes(), rng))

    return change


def in_place_of(make: Callable[[Path], object]) -> Change:
    """Something else under the file's name."""

    def change(path: Path, rng: Rng) -> None:
        path.unlink()
        make(path)

    return change


def as_format(form: str, mode: str = "RGB", frames: int = 1, **options: Any) -> Change:
    """Another image in another format, under the old name."""

    def make(data: bytes, rng: Rng) -> bytes:
        images = [image.convert(mode) for image in pictures_of_one_size(rng, frames)]
        more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
        return stored(images[0], form, **options, **more)

    return written(make)


def pictures_of_one_size(rng: Rng, count: int) -> list[Image.Image]:
    width, height = rng.integers(*SIDES, 2).tolist()
    return [picture(rng, width, height) for _ in range(count)]


def pixels_start(data: bytes) -> int:
    """Where a JPEG's entropy-coded data begin: behind its first SOS segment."""
    place = data.index(b"\xff\xda")
    return place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(len(data) * rng.uniform(0.001, 0.999))]


def cut_in_the_pixels(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(pixels_start(data), len(data) - 1))]


def progressive_cut(data: bytes, rng: Rng) -> bytes:
    return cut_in_the_pixels(stored(some_picture(rng), "JPEG", progressive=True), rng)


def cmyk_cut(data: bytes, rng: Rng) -> bytes:
    return cut_in_the_pixels(stored(some_picture(rng).convert("CMYK"), "JPEG"), rng)


def nameless_cmyk(data: bytes, rng: Rng) -> bytes:
    """Pillow writes Adobe's segment first."""
    named = stored(some_picture(rng).convert("CMYK"), "JPEG")
    assert named[2:4] == b"\xff\xee"
    return named[:2] + named[4 + int.from_bytes(named[4:6], "big") :]


def without_its_end(data: bytes, rng: Rng) -> bytes:
    return data[: -int(rng.integers(1, 9))]


def flipped(data: bytes, places: np.ndarray, rng: Rng) -> bytes:
    damaged = np.frombuffer(data, np.uint8).copy()
    damaged[places] ^= np.left_shift(1, rng.integers(0, 8, len(places))).astype(np.uint8)
    return damaged.tobytes()


def header_bits(data: bytes, rng: Rng) -> bytes:
    return flipped(data, rng.integers(0, pixels_start(data), rng.integers(1, 9)), rng)


def pixel_bits(data: bytes, rng: Rng) -> bytes:
    return flipped(data, rng.integers(pixels_start(data), len(data), rng.integers(1, 21)), rng)


def stretch(data: bytes, rng: Rng) -> tuple[int, int]:
    """[start, stop) somewhere in a JPEG's pixels."""
    start = int(rng.integers(pixels_start(data), len(data) - 2))
    return start, min(len(data) - 2, start + int(rng.integers(1, 1025)))


def zeroed_block(data: bytes, rng: Rng) -> bytes:
    start, stop = stretch(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def lost_block(data: bytes, rng: Rng) -> bytes:
    start, stop = stretch(data, rng)
    return data[:start] + data[stop:]


def zeros_from_somewhere(data: bytes, rng: Rng) -> bytes:
    """What a download leaves that reserved its file first."""
    start = int(rng.integers(pixels_start(data), len(data) - 64))
    return data[:start] + bytes(len(data) - start)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its header."""
    frame = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def larger_than_its_data(data: bytes, rng: Rng) -> bytes:
    width, height = rng.integers(300, 1200, 2).tolist()
    return claiming(data, width, height)


def small(data: bytes, rng: Rng) -> bytes:
    width, height = rng.integers(1, 80, 2).tolist()
    return stored(picture(rng, width, height), "JPEG")


def grey_16_bit(data: bytes, rng: Rng) -> bytes:
    return stored(Image.fromarray(rng.integers(0, 1 << 16, (120, 130)).astype(np.uint16)), "PNG")


def colour_16_bit(data: bytes, rng: Rng) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    width, height = rng.integers(*SIDES, 2).tolist()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + rng.bytes(6 * width) for _ in range(height))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_cut(data: bytes, rng: Rng) -> bytes:
    png = stored(some_picture(rng), "PNG")
    return png[: -int(rng.choice([rng.integers(1, 13), rng.integers(13, len(png) - 100)]))]


def of_another_size(data: bytes, rng: Rng) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
    other = some_picture(rng)
    return stored(other if other.size != size else other.crop((0, 0, size[0] - 1, size[1])), "JPEG")


TEXT = b"These are the notes of Monday, and no image.\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"


@dataclass(frozen=True, slots=True)
class Kind:
    """``change`` damages a good JPEG at a path; ``may_be`` says how such a file may end."""

    change: Change
    may_be: tuple[str, ...]
    after_scan: bool = False
    needs_a_user: bool = False  # means nothing to root


KINDS: dict[str, Kind] = {
    "cut anywhere": Kind(written(cut), REFUSED),
    "cut in the pixels": Kind(written(cut_in_the_pixels), (AT_DECODING,)),
    "cut in the pixels, progressive": Kind(written(progressive_cut), (AT_DECODING,)),
    "cut in the pixels, CMYK": Kind(written(cmyk_cut), (AT_DECODING,)),
    "without its last bytes": Kind(written(without_its_end), EITHER),  # its pixels may all be there
    "zeros from somewhere on": Kind(written(zeros_from_somewhere), (AT_SCAN,)),
    "bits of the header flipped": Kind(written(header_bits), EITHER),
    "bits of the pixels flipped": Kind(written(pixel_bits), EITHER),
    "a block of zeros": Kind(written(zeroed_block), EITHER),
    "a block lost": Kind(written(lost_block), EITHER),
    "larger than its data": Kind(written(larger_than_its_data), EITHER),
    "trailing garbage": Kind(written(lambda data, rng: data + rng.bytes(int(rng.integers(1, 4000)))), (SCORED,)),
    "empty": Kind(written(lambda data, rng: b""), (AT_SCAN,)),
    "text": Kind(written(lambda data, rng: TEXT), (AT_SCAN,)),
    "an HTML error page": Kind(written(lambda data, rng: HTML), (AT_SCAN,)),
    "random bytes": Kind(written(lambda data, rng: rng.bytes(len(data))), (AT_SCAN,)),
    "60000 x 60000 claimed": Kind(written(lambda data, rng: claiming(data, 60000, 60000)), (AT_SCAN,)),
    "a folder": Kind(in_place_of(Path.mkdir), (AT_SCAN,)),
    "a named pipe": Kind(in_place_of(os.mkfifo), (AT_SCAN,)),
    "a link to nothing": Kind(in_place_of(lambda path: path.symlink_to("gone.jpg")), (AT_SCAN,)),
    "no permission": Kind(lambda path, rng: path.chmod(0), (AT_SCAN,), needs_a_user=True),
    "PNG": Kind(as_format("PNG"), (SCORED,)),
    "PNG with transparency": Kind(as_format("PNG", "RGBA"), (SCORED,)),
    "PNG with a palette": Kind(as_format("PNG", "P"), (SCORED,)),
    "PNG cut": Kind(written(png_cut), REFUSED),
    "PNG of 16-bit grey": Kind(written(grey_16_bit), (AT_SCAN,)),
    "WebP": Kind(as_format("WEBP"), (SCORED,)),
    "WebP, animated": Kind(as_format("WEBP", frames=3), (SCORED,)),
    "GIF, animated": Kind(as_format("GIF", frames=3), (AT_SCAN,)),
    "PNG of 16-bit colour": Kind(written(colour_16_bit), (AT_SCAN,)),
    "BMP": Kind(as_format("BMP"), (SCORED,)),
    "TIFF": Kind(as_format("TIFF"), (SCORED,)),
    "TIFF, compressed": Kind(as_format("TIFF", compression="tiff_lzw"), (SCORED,)),
    "TIFF, to be turned": Kind(as_format("TIFF", tiffinfo={274: 6}), (AT_SCAN,)),
    "TIFF with a palette": Kind(as_format("TIFF", "P"), (AT_SCAN,)),
    "JPEG 2000": Kind(as_format("JPEG2000"), (SCORED,)),
    "PPM": Kind(as_format("PPM"), (SCORED,)),
    "CMYK JPEG": Kind(as_format("JPEG", "CMYK"), (SCORED,)),
    "CMYK JPEG without Adobe's marker": Kind(written(nameless_cmyk), (AT_SCAN,)),
    "grey JPEG": Kind(as_format("JPEG", "L"), (SCORED,)),
    "smaller than the crop": Kind(written(small), (SCORED,)),
    "deleted after the scan": Kind(lambda path, rng: path.unlink(), (AT_DECODING,), after_scan=True),
    "emptied after the scan": Kind(written(lambda data, rng: b""), (AT_DECODING,), after_scan=True),
    "cut after the scan": Kind(written(cut), (AT_DECODING,), after_scan=True),
    "text after the scan": Kind(written(lambda data, rng: TEXT), (AT_DECODING,), after_scan=True),
    "a folder after the scan": Kind(in_place_of(Path.mkdir), (AT_DECODING,), after_scan=True),
    "of another size after the scan": Kind(written(of_another_size), (AT_DECODING,), after_scan=True),
}


def usable_kinds() -> dict[str, Kind]:
    """KINDS without those that mean nothing here, which are named on stderr."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    unusable_here = [name for name, kind in KINDS.items() if kind.needs_a_user and is_root]
    for name in unusable_here:
        print(f"left out: {name!r}: root reads every file; run as another user", file=sys.stderr)
    return {name: kind for name, kind in KINDS.items() if name not in unusable_here}


def write_good(root: Path, images: int, seed: int) -> list[str]:
    """Their names: JPEGs in numbered class folders."""
    names = []
    for i in range(images):
        name = f"{i % len(CLASSES):02}/good-{i:05d}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(np.random.default_rng([seed, 0, i])))
        names.append(name)
    return names


def write_damaged(root: Path, good: Sequence[str], kinds: dict[str, Kind], each: int, seed: int) -> dict[str, str]:
    """name -> kind. Each begins as a good image's bytes; what comes after the scan is left to ``damage_after_scan``."""
    kind_of = {}
    for k, (kind_name, kind) in enumerate(kinds.items()):
        for i in range(each):
            rng = np.random.default_rng([seed, 1, k, i])
            name = f"{rng.integers(len(CLASSES)):02}/kind {k:02d} {i:05d}.jpg"
            path = root / name
            path.write_bytes((root / good[int(rng.integers(len(good)))]).read_bytes())
            if not kind.after_scan:
                kind.change(path, rng)
            kind_of[name] = kind_name
    return kind_of


def damage_after_scan(root: Path, kind_of: dict[str, str], kinds: dict[str, Kind], seed: int) -> None:
    for i, (name, kind) in enumerate(kind_of.items()):
        if kinds[kind].after_scan:
            kinds[kind].change(root / name, np.random.default_rng([seed, 2, i]))


# --------------------------------------------------------------------------------------------------------- one backend


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a damaged file on one backend."""

    name: str
    kind: str
    outcome: str
    reason: str  # "" where it was scored
    pil: str  # what PIL says of it, as it is now; "" where the scan refused it
    frame_error_levels: float | None  # of its resized frame, from PIL's pixels; None where it was not compared

    @property
    def pil_disagrees(self) -> bool:
        """A file that has changed since the scan is refused for that, whatever PIL says."""
        if self.outcome == SCORED:
            return self.pil != READS
        return self.outcome == AT_DECODING and self.pil == READS and "changed since the scan" not in self.reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one backend."""

    backend: str
    endings: list[Ending]
    off: list[str]  # sentences
    seconds: float


def make(root: Path, backend: str, cache: Path, workers: int) -> Job:
    """A demo network on what a scan of the folder finds now."""
    asked = RunConfig(
        network=NETWORK,
        measure=MeasureConfig(policies=POLICIES),
        loading=LoadingConfig(data_backend=backend, workers=workers),
    )
    config = resolve(asked)
    found: Scan = scan(root, workers=workers, cache=cache, progress=False)
    return make_job(cases.model_cases(config.network, demo=True)[0], found, config)


def score(job: Job) -> Predictions:
    """The accuracy pass of a run."""
    from bench.measure.scoring import evaluate

    planner = job.planner(*job.policies)
    source = job.make_backend(planner, job.load_config(job.views.total))
    try:
        return evaluate(source, job.network, job.rows, job.scoring())
    finally:
        source.close()


def examine(
    backend: str,
    root: Path,
    good: Sequence[str],
    kinds: dict[str, Kind],
    each: int,
    seed: int,
    workers: int,
    forms: Sequence[str] = tuple(packed.FORMS),
) -> Outcome:
    """Score the good images alone, damage, score all, compare. ``root`` is empty but for the good images."""
    start = time.perf_counter()
    cache = root.with_name(f"{root.name} cache")
    job = make(root, backend, cache, workers)
    alone = score(job)
    off = [f"{len(good) - len(alone.rows)} good images were not scored"] if len(alone.rows) != len(good) else []
    kind_of = write_damaged(root, good, kinds, each, seed)
    for form in forms:
        off += [f"{form}: {sentence}" for sentence in examine_packed(backend, form, root, kind_of, kinds, alone, good)]
    job = make(root, backend, cache, workers)
    damage_after_scan(root, kind_of, kinds, seed)
    try:
        found = score(job)
    except (RuntimeError, ValueError) as error:
        return Outcome(backend, [], [*off, f"the pass ended with {type(error).__name__}: {error}"], elapsed(start))
    endings = account(job, found, kind_of)
    off += compare_good(job, alone, found, good)
    off += check_accounting(job, endings, kind_of, len(good), found)
    off += complaints(backend, endings, kinds)
    return Outcome(backend, endings, off, elapsed(start))


def examine_packed(
    backend: str,
    form: str,
    root: Path,
    kind_of: dict[str, str],
    kinds: dict[str, Kind],
    alone: Predictions,
    good: Sequence[str],
) -> list[str]:
    """What is off when the good files, and some of each kind that are files, lie in one file of another form."""
    there = {
        name: kind
        for name, kind in kind_of.items()
        if int(name[-9:-4]) < PACKED_EACH and not kinds[kind].after_scan and is_packable(root / name)
    }
    data = packed.write(form, root, [*good, *there], root.with_name(f"{root.name} packed"))
    try:
        job = make(data, backend, root.with_name(f"{root.name} cache"), 1)
        found = score(job)
    except (RuntimeError, ValueError) as error:
        return [f"the pass ended with {type(error).__name__}: {error}"]
    endings = account(job, found, there)
    off = compare_good(job, alone, found, good) + complaints(backend, endings, kinds)
    return off + check_accounting(job, endings, there, len(good), found, enough_late=False)


def is_packable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def elapsed(start: float) -> float:
    return time.perf_counter() - start


def account(job: Job, found: Predictions, kind_of: dict[str, str]) -> list[Ending]:
    """How each damaged file ended, in order of the accounting; one that is counted twice comes twice."""
    unreadable = job.data.unreadable
    endings = [
        Ending(name, kind_of[name], AT_SCAN, reason, "", None)
        for name, reason in zip(unreadable["name"], unreadable["reason"], strict=True)
        if name in kind_of
    ]
    failed_rows = np.array([failure.row for failure in found.failed], dtype=np.int64)
    reasons = [failure.reason for failure in found.failed]
    for rows, outcome, why in (
        (failed_rows, AT_DECODING, reasons),
        (found.rows, SCORED, [""] * len(found.rows)),
    ):
        for row, name, reason in zip(rows.tolist(), job.data.names(rows), why, strict=True):
            if name in kind_of:
                pil = decode_error(job.data.spans(np.array([row]))[0])
                endings.append(Ending(name, kind_of[name], outcome, reason, pil, None))
    return with_frame_errors(job, endings)


def with_frame_errors(job: Job, endings: list[Ending]) -> list[Ending]:
    """Compare the resized frame of each scored file that PIL reads with ``pipelines.backends.reference``."""
    from pipelines.backends import reference

    row_of = {name: row for row, name in enumerate(job.data.table["name"])}
    rows = np.array([row_of[e.name] for e in endings if e.outcome == SCORED and e.pil == READS], dtype=np.int64)
    planner = job.planner(*job.policies)
    source = job.make_backend(planner, job.load_config(job.views.total))
    errors = {}
    try:
        for row, frame in source.frames(rows):
            expected = reference.frame(job.data, planner, row)
            errors[row] = float(np.abs(frame.astype(np.int16) - expected.astype(np.int16)).mean())
    finally:
        source.close()
    return [replace(e, frame_error_levels=errors.get(row_of.get(e.name, -1))) for e in endings]


def compare_good(job: Job, alone: Predictions, found: Predictions, good: Sequence[str]) -> list[str]:
    """``good`` is in order of names, as rows are."""
    place = {name: i for i, name in enumerate(job.data.names(found.rows))}
    missing = [name for name in good if name not in place]
    if missing:
        return [f"{len(missing)} good images were not scored beside damaged ones ({missing[0]}, for one)"]
    own = np.array([place[name] for name in sorted(good)])
    differ = np.zeros(len(own), dtype=bool)
    for field in ("top1", "in_top5", "nll"):
        differ |= (getattr(alone, field) != getattr(found, field)[..., own]).any((0, 1))
    differ |= (alone.view_top1 != found.view_top1[own]).any(1)
    if differ.any():
        first = sorted(good)[int(np.flatnonzero(differ)[0])]
        return [f"{int(differ.sum())} good images have other predictions beside damaged ones ({first}, for one)"]
    return []


def check_accounting(
    job: Job,
    endings: Sequence[Ending],
    kind_of: dict[str, str],
    good: int,
    found: Predictions,
    *,
    enough_late: bool = True,
) -> list[str]:
    """``enough_late``: whether the kinds must be such as are noticed only when decoded."""
    expected, counted = good + len(kind_of), len(found.rows) + len(job.data.unreadable) + len(found.failed)
    off = [] if expected == counted else [f"{expected} files were written and {counted} are accounted for"]
    times = Counter(ending.name for ending in endings)
    if wrong := [name for name in kind_of if times[name] != 1]:
        off.append(f"{len(wrong)} damaged files are not accounted for once ({wrong[0]}, for one)")
    late = sum(ending.outcome == AT_DECODING for ending in endings)
    if enough_late and late < LEAST_LATE_SHARE * len(kind_of):
        off.append(f"only {late} of {len(kind_of)} damaged files were noticed when decoded: the kinds prove too little")
    return off


def complaints(backend: str, endings: Sequence[Ending], kinds: dict[str, Kind]) -> list[str]:
    """A sentence for each kind and each thing that is off."""
    most = BACKENDS[backend].tolerance_levels
    checks: dict[str, Callable[[Ending], bool]] = {
        "ended otherwise than they may": lambda e: e.outcome not in kinds[e.kind].may_be,
        "ended otherwise than PIL says": lambda e: e.pil_disagrees and kinds[e.kind].may_be != EITHER,
        "were scored with other pixels than PIL's": lambda e: (e.frame_error_levels or 0) > most,
    }
    off = []
    for words, is_off in checks.items():
        for kind in kinds:
            if wrong := [e for e in endings if e.kind == kind and is_off(e)]:
                one = wrong[0]
                levels = "" if one.frame_error_levels is None else f", {one.frame_error_levels:.2f} grey levels off"
                reason = f" ({one.reason})" if one.reason else ""
                off.append(f"{kind}: {len(wrong)} {words}; {one.name}: {one.outcome}{reason}, PIL: {one.pil}{levels}")
    return off


# ----------------------------------------------------------------------------------------------------------- the report

HEADINGS = ("kind", "made", "at the scan", "when decoded", "scored", "PIL disagrees", "worst frame")


def table(endings: Sequence[Ending]) -> list[str]:
    """As text, a line for each kind."""
    rows = [list(HEADINGS)]
    for kind in KINDS:
        own = [e for e in endings if e.kind == kind]
        if not own:
            continue
        counts = [sum(e.outcome == outcome for e in own) for outcome in (AT_SCAN, AT_DECODING, SCORED)]
        disagree = sum(e.pil_disagrees for e in own)
        errors = [e.frame_error_levels for e in own if e.frame_error_levels is not None]
        worst = f"{max(errors):.3f}" if errors else "-"
        rows.append([kind, *(str(n) for n in (len(own), *counts, disagree)), worst])
    return aligned(rows)


def examine_apart(
    backend: str, folder: Path, good: Sequence[str], kinds: Sequence[str], args: argparse.Namespace
) -> Outcome:
    """``examine`` in a process of its own, so that a crash or a hang is an outcome as well.

    What decoders print of damaged files, thousands of lines, goes into a log.
    """
    start = time.perf_counter()
    context = get_context("spawn")
    theirs, ours = context.Pipe()
    log = folder / "log"
    log.touch()
    arguments = (theirs, log, backend, folder / "images", good, kinds, args.each, args.seed, args.workers)
    process = context.Process(target=_examine_there, args=arguments)
    process.start()
    theirs.close()
    try:
        if ours.poll(args.timeout):
            outcome = ours.recv()
            process.join()
            return outcome
        ended = f"it did not end within {args.timeout:g} s"
    except EOFError:
        process.join()
        ended = f"it ended with exit status {process.exitcode} (below 0: that signal)"
    finally:
        process.kill()
    said = log.read_text(errors="replace").splitlines()[-3:]
    return Outcome(backend, [], [f"{ended}; its last words: {' | '.join(said)}"], elapsed(start))


def _examine_there(
    connection: Connection, log: Path, backend: str, root: Path, good: Any, kinds: Any, *rest: Any
) -> None:
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    connection.send(examine(backend, root, good, {name: KINDS[name] for name in kinds}, *rest))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each backend and, as the last line, JSON. Exit status 0, or 1 when anything is off."""
    args = parse(argv)
    kinds = usable_kinds()
    outcomes = []
    for name in args.backends:
        print(
            f"{name}: {args.good} good images, {args.each} damaged files of each of {len(kinds)} kinds ...",
            file=sys.stderr,
        )
        with tempfile.TemporaryDirectory(prefix="faults ") as folder:
            good = write_good(Path(folder) / "images", args.good, args.seed)
            outcomes.append(examine_apart(name, Path(folder), good, list(kinds), args))
        report(outcomes[-1], args.good)
    if args.csv:
        write_csv(args.csv, outcomes)
    print(json.dumps({"good": args.good, "seed": args.seed, **{o.backend: summary(o) for o in outcomes}}))
    return int(any(outcome.off for outcome in outcomes))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/stress/faults.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--good", type=int, default=GOOD, metavar="N", help=f"good images (default: {GOOD})")
    parser.add_argument("--each", type=int, default=EACH, metavar="N", help=f"files of each kind (default: {EACH})")
    parser.add_argument("--seed", type=int, default=0, help="of images and damage (default: 0)")
    parser.add_argument("--data-backend", dest="backends", action="append", choices=tuple(BACKENDS),
                        help="may be repeated (default: all that work here)")  # fmt: skip
    parser.add_argument("-j", "--workers", type=int, default=2, help="decoding threads or processes (default: 2)")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="for each backend (default: 300)")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write how every damaged file ended, and what PIL says"
    )
    args = parser.parse_args(argv)
    if args.good < len(CLASSES) or args.each < 1:
        parser.error(f"--good {args.good} --each {args.each}: at least {len(CLASSES)} good images and 1 of each kind")
    args.backends = args.backends or [name for name in BACKENDS if unusable(name) is None]
    return args


def report(outcome: Outcome, good: int) -> None:
    print(f"\n{outcome.backend}")
    print("\n".join(table(outcome.endings)))
    found = summary(outcome)
    print(
        f"{outcome.backend}: {good} good and {found['damaged']} damaged files; of these {found[AT_SCAN]} {AT_SCAN}, "
        f"{found[AT_DECODING]} {AT_DECODING}, {found[SCORED]} {SCORED}; PIL disagrees on {found['PIL disagrees']}; "
        f"{outcome.seconds:.0f} s: {'OFF' if outcome.off else 'all as it should be'}"
    )
    for sentence in outcome.off:
        print(f"OFF: {sentence}")
    sys.stdout.flush()


def summary(outcome: Outcome) -> dict[str, Any]:
    counts = Counter(e.outcome for e in outcome.endings)
    return {
        "damaged": len(outcome.endings),
        **{name: counts[name] for name in (AT_SCAN, AT_DECODING, SCORED)},
        "PIL disagrees": sum(e.pil_disagrees for e in outcome.endings),
        "off": outcome.off,
    }


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    columns = ["backend", "kind", "name", "outcome", "reason", "PIL", "frame_error_levels"]
    rows = [
        (outcome.backend, e.kind, e.name, e.outcome, e.reason, e.pil, e.frame_error_levels)
        for outcome in outcomes
        for e in outcome.endings
    ]
    write_whole(path, pd.DataFrame(rows, columns=columns).to_csv(index=False))


if __name__ == "__main__":
    sys.exit(main())
