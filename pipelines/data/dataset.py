"""What images a folder holds: their sizes, and which files are unreadable and why. ``pipelines.data.labels`` adds
labels, ``pipelines.data.tars`` finds the images of tar shards.

    found = scan(Path("imagenet/val"), workers=8)      # 50,000 headers: seconds the first time, then below one
    data = label(found, num_classes=1000)               # pipelines.data.labels
    data.table                                          # name, label, width, height, bytes, format, mode, ...

Width and height are those of the stored pixels: EXIF orientation is ignored, as timm ignores it. An image's name is its
POSIX path relative to the root; rows are in code-point order of the names (``sorted``'s order, and ``LC_ALL=C ls``'s).

Headers are read once and kept in a Parquet cache; a later start walks the folder, compares file size and times
(of modification and of change), and reads only what changed. Files that fail are never cached, so that a mended
permission is seen at once.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from tqdm import tqdm

from pipelines import surroundings
from pipelines.data.faults import MACHINE_ERRNOS, raise_if_of_machine
from pipelines.data.formats import IMAGE_SUFFIXES, other_picture, refusal
from pipelines.data.limits import without_pillow_limit
from pipelines.data.rows import span_at
from pipelines.data.spans import Span
from pipelines.files import whole_path
from pipelines.text import visible

log = logging.getLogger(__name__)

# Folders that other programs leave in a data set, beside hidden ones (.ipynb_checkpoints, .thumbnails, .Trash-1000).
OTHER_PROGRAMS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
DEMO_TABLE = "demo.csv"
DEMO_COLUMNS = ("name", "label", "class", "width", "height")  # how the table of pipelines.data.demo begins
DEMO_TEXTS = ("name", "class", "subsampling")  # the other columns hold numbers
CHUNK_FILES = 512
BACKWARD_BYTES = 1 << 20  # of a file that ends in zeros, looked at at a time
START_BYTES = 16  # of a file that is not an image, for the message
# Rows that exist as Python objects at once, and what an interrupted scan may lose. Below the 700 new objects that wake
# the garbage collector: thousands of them cost a fifth of the walk over a million files, beside torch's many objects.
BATCH_ROWS = 512
CACHE_VERSION = "6"  # raised when what is found in the same files changes, for the cache holds what was found

NO_FACTS = (0, 0, 0)  # bytes, mtime_ns, ctime_ns of what is not a readable file
UNREADABLE_COLUMNS = ("name", "path", "stage", "reason")
FOUND = pa.schema(
    [
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),  # a copy made with the old times, or a tool that sets them, changes this one
        ("problem", pa.string()),  # "" = none
    ]
)
HEADER = pa.schema(
    [
        ("width", pa.int32()),  # stored pixels
        ("height", pa.int32()),
        ("format", pa.string()),  # Pillow's word: JPEG, PNG, MPO, ... whatever the suffix says
        ("mode", pa.string()),  # Pillow's word: RGB, L, CMYK, ...
        ("problem", pa.string()),
    ]
)
CACHED = pa.schema([FOUND.field(i) for i in range(4)] + [HEADER.field(i) for i in range(4)])

# Arrow-backed: a million names in tens of megabytes, where Python strings take a hundred bytes each.
TEXT = pd.StringDtype("pyarrow")


class DatasetError(ValueError):
    """A data set that cannot be used as asked; the message names the input and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """The images of a folder or of tar shards, before anything is known of their classes."""

    root: Path  # absolute; of tar shards the pattern that names them
    # A row an image: name, width, height, bytes, format, mode, and demo.csv's own columns; of an image in a tar also
    # tar (its path, a category), tar_offset and, where the tars hold labels, tar_label (-1 = none).
    table: pd.DataFrame
    unreadable: pd.DataFrame  # UNREADABLE_COLUMNS
    folders: tuple[str, ...]  # directly below the root, sorted, those without images too: an empty class is a class
    other_files: dict[str, int] = field(default_factory=dict)  # suffix -> how many files were not taken for images
    is_demo: bool = False
    class_names: tuple[str, ...] = ()  # in the order of the labels, where the data says so
    label_source: str = "the .cls or .json beside each image"  # of tar_label and label_word


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images. A row's position in ``table`` is its number everywhere else (``CropBatch.rows``)."""

    root: Path
    table: pd.DataFrame  # name, label (int64, -1 = none), width, height, bytes, format, mode, and any extra columns
    unreadable: pd.DataFrame  # UNREADABLE_COLUMNS: what the table leaves out, and why
    label_rule: str  # how labels were matched, one sentence for the record
    has_labels: bool
    is_demo: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def names(self, rows: np.ndarray) -> list[str]:
        return self.table["name"].iloc[rows].tolist()

    def spans(self, rows: np.ndarray) -> list[Span]:
        """Where each image's bytes lie."""
        return spans_of(self.root, self.table, rows)

    def paths(self, rows: np.ndarray) -> list[str]:
        """Absolute paths, for people: a tar member's is ``shard.tar/name``. Derived, because a million of them would be
        held for nothing."""
        names, spans = self.names(rows), self.spans(rows)
        return [span.path if span.is_file else f"{span.path}/{name}" for name, span in zip(names, spans, strict=True)]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Stored height and width, int64 [b, 2]."""
        return self.table[["height", "width"]].iloc[rows].to_numpy(np.int64)

    def file_bytes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of each image's file, int64 [b]."""
        return self.table["bytes"].iloc[rows].to_numpy(np.int64)

    def subset(self, limit: int | None, seed: int, skip: int = 0) -> Dataset:
        """``limit`` images chosen by a hash of (seed, name), in table order; all of them when there are no more, or for
        None. ``skip``: without the images that a limit of so many would take; the limit counts from there.

        The choice does not depend on the other files, and subsets nest: the 100 of a seed are among its 200.
        Raises DatasetError when ``limit`` is below one, or nothing is left.
        """
        limit = max(len(self) - skip, 1) if limit is None else limit
        if limit < 1:
            raise DatasetError(f"a subset of {limit} images is empty: give `limit` a number of at least 1")
        if skip >= len(self):
            raise DatasetError(f"`skip` {skip} leaves none of {len(self)} images: give a smaller number")
        if limit >= len(self) and not skip:
            return self
        keys = np.fromiter((_name_hash(seed, name) for name in self.table["name"]), np.uint64, len(self))
        rows = np.sort(np.argsort(keys, kind="stable")[skip : skip + limit])
        return replace(self, table=self.table.iloc[rows].reset_index(drop=True))


def spans_of(root: Path, table: pd.DataFrame, rows: np.ndarray) -> list[Span]:
    """Where the bytes of these rows of a scan's or data set's table lie."""
    if "tar" not in table:
        return [Span(str(root / name)) for name in table["name"].iloc[rows]]
    paths, offsets, lengths = (table[column].iloc[rows].tolist() for column in ("tar", "tar_offset", "bytes"))
    return list(map(span_at, paths, offsets, lengths))


def _name_hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"subset/{seed}/{name}".encode(), digest_size=8).digest(), "little")


def scan_folder(root: Path | str, *, workers: int, cache: Path | None = None, progress: bool = True) -> Scan:
    """The images of a folder; arguments, result and errors as those of ``pipelines.data.scanning.scan``."""
    folder = checked_folder(root)
    folders: list[str] = []
    other_files: Counter[str] = Counter()
    found = _find(folder, folders, other_files, progress)
    if found.num_rows == 0:
        raise DatasetError(no_images(folder, other_files))
    good, failed = _headers(folder, found, cache_file(cache or cache_folder(), folder), workers, progress)
    names = failed["name"].to_pylist()
    unreadable = unreadable_frame(names, [str(folder / name) for name in names], failed["problem"].to_pylist())
    if good.num_rows == 0:
        raise none_readable(folder, unreadable)
    table = frame(good.drop_columns(["mtime_ns", "ctime_ns"]))
    demo = _demo_table_in(folder)
    if demo is not None:
        table = with_demo_columns(table, demo, folder)
    return Scan(folder, table, unreadable, tuple(sorted(folders)), dict(sorted(other_files.items())), demo is not None)


def none_readable(root: Path, unreadable: pd.DataFrame) -> DatasetError:
    """The error of a set without a single good image."""
    first = unreadable.iloc[0]
    return DatasetError(
        f"none of the {len(unreadable)} image files in {root} can be read; {first['name']}, for one: "
        f"{first['reason']}. Check that the set was copied or unpacked whole"
    )


def cache_folder() -> Path:
    """Where header scans are kept (``pipelines.surroundings.cache_folder``)."""
    return surroundings.cache_folder()


# ------------------------------------------------------------------------------------------------------- find the files


def checked_folder(root: Path | str) -> Path:
    """The folder, resolved. Raises DatasetError where there is none."""
    folder = Path(root).expanduser()
    if not folder.exists():
        raise DatasetError(f"there is no folder {folder}: check the path given as `data`")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file, not a folder: give the folder that holds the images as `data`")
    return folder.resolve()


def no_images(root: Path, other_files: Counter[str]) -> str:
    """The message of a set without any image file."""
    listing = ", ".join(f"{count} {suffix or '(no suffix)'}" for suffix, count in sorted(other_files.items())[:5])
    there = f"only other files ({listing})" if listing else "no files"
    tars = ""
    if other_files[".tar"]:
        tars = f", or '{root}/*.tar' for the tars in it"
    return (
        f"no images in {root}: there are {there} in it and the folders below it, and images are taken by their "
        f"suffix ({', '.join(sorted(IMAGE_SUFFIXES))}). Give the folder that holds the images as `data`{tars}"
    )


def _find(root: Path, folders: list[str], other_files: Counter[str], progress: bool) -> pa.Table:
    """Every image file, sorted by name, as FOUND. Fills ``folders`` and ``other_files``."""
    batches = []
    with tqdm(desc="finding images", unit=" files", disable=not progress, delay=1) as bar:
        for batch in record_batches(_walk(str(root), folders, other_files), FOUND):
            batches.append(batch)
            bar.update(batch.num_rows)
    table = pa.Table.from_batches(batches, FOUND)
    return table.take(pc.sort_indices(table["name"])).combine_chunks()


def _walk(root: str, folders: list[str], other_files: Counter[str]) -> Iterator[tuple[str, int, int, int, str]]:
    """Rows of FOUND, in no order."""
    to_visit = [("", tuple(_identity(str(folder)) for folder in (Path(root), *Path(root).parents)))]
    while to_visit:
        prefix, above = to_visit.pop()
        try:
            with os.scandir(f"{root}/{prefix}") as entries:
                for entry in entries:
                    name = prefix + entry.name
                    suffix = suffix_of(entry.name)
                    if suffix in IMAGE_SUFFIXES:
                        facts, problem = _file_facts(entry)
                        yield listed(name, facts, problem or left_out(name))
                    elif _is_folder(entry):
                        if not prefix and not is_of_another_program(entry.name):
                            folders.append(entry.name)
                        identity = _identity(entry.path)
                        if identity in above:
                            yield listed(name, NO_FACTS, "a link back to a folder above it: not followed")
                        else:
                            to_visit.append((f"{name}/", (*above, identity)))
                    elif other_picture(suffix):
                        yield listed(name, NO_FACTS, left_out(name))
                    else:
                        other_files[suffix] += 1
        except OSError as error:
            yield listed(prefix.rstrip("/") or ".", NO_FACTS, f"{UNLISTED}: {error.strerror}")


UNLISTED = "a folder that cannot be listed, and nobody knows how many images in it"


def is_of_another_program(name: str) -> bool:
    """Whether a file or folder of this name is not part of a data set: hidden, or in OTHER_PROGRAMS."""
    return name.startswith(".") or name in OTHER_PROGRAMS


def left_out(name: str) -> str:
    """Why a picture of this path is not scored, or "": what other programs leave in a data set are copies and
    thumbnails, and some formats not every backend reads."""
    theirs = next((part for part in name.split("/") if is_of_another_program(part)), "")
    if theirs:
        return f"{theirs} is hidden or another program's, which keep copies and thumbnails: rename it to have it scored"
    suffix = suffix_of(name.rpartition("/")[2])
    return other_picture(suffix)


def suffix_of(name: str) -> str:
    """``.jpg`` of the file name ``x.JPG``; "" of a name without one, and of a hidden file's."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)  # noqa: PTH116 - a Path for each folder would cost more than the call
    except OSError:
        return None  # listing it fails next, and says why
    return info.st_dev, info.st_ino


def _file_facts(entry: os.DirEntry[str]) -> tuple[tuple[int, int, int], str]:
    """((bytes, mtime_ns, ctime_ns), problem). Only regular files may be opened: a named pipe would block for ever."""
    try:
        info = entry.stat()
    except FileNotFoundError:
        return NO_FACTS, "a link to nothing" if entry.is_symlink() else "vanished during the scan"
    except OSError as error:
        return NO_FACTS, f"{type(error).__name__}: {error.strerror}"
    if stat.S_ISREG(info.st_mode):
        return (info.st_size, info.st_mtime_ns, info.st_ctime_ns), ""
    return NO_FACTS, "a folder, not a file" if stat.S_ISDIR(info.st_mode) else "not a regular file"


def listed(name: str, facts: tuple[int, int, int], problem: str) -> tuple[str, int, int, int, str]:
    """The row of FOUND, but for a name that no table can hold."""
    try:
        if not name.isascii():
            name.encode()
    except UnicodeEncodeError:
        printable = name.encode("utf-8", "backslashreplace").decode()
        return (printable, *NO_FACTS, "its name is not UTF-8: rename it")
    return (name, *facts, problem)


def record_batches(rows: Iterable[tuple], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """In pieces, so that a million rows never exist as Python objects at once."""
    remaining = iter(rows)
    while piece := list(islice(remaining, BATCH_ROWS)):
        columns = zip(*piece, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


# ----------------------------------------------------------------------------------------------------- read the headers


def _headers(root: Path, found: pa.Table, cache: Path, workers: int, progress: bool) -> tuple[pa.Table, pa.Table]:
    """(readable images as CACHED, others with name and problem), both sorted by name. Renews the cache file."""
    is_file = pc.equal(found["problem"], "")
    files, others = found.filter(is_file).drop_columns(["problem"]), found.filter(pc.invert(is_file))
    mark = {b"root": os.fsencode(root)}
    cached = read_cache(cache, mark, CACHED).replace_schema_metadata(None)
    known, pending = _reuse(files, cached)
    batches: list[pa.RecordBatch] = []
    try:
        rows = _read_all(root, pending["name"], workers, progress)
        for batch in record_batches(rows, HEADER):
            batches.append(batch)
    finally:  # interrupted or not: what was read need not be read again
        read = pa.Table.from_batches(batches, HEADER)
        fresh = _beside(pending.slice(0, read.num_rows), read)
        is_good = pc.equal(fresh["problem"], "")
        good = known
        if fresh.num_rows:
            good = pa.concat_tables([known, fresh.filter(is_good).select(CACHED.names)])
            good = good.take(pc.sort_indices(good["name"]))
        good = good.combine_chunks()
        if good.num_rows != known.num_rows or known.num_rows != cached.num_rows:
            write_cache(cache, mark, good)
    failed = [table.select(["name", "problem"]) for table in (others, fresh.filter(pc.invert(is_good)))]
    return good, pa.concat_tables(failed).sort_by("name")


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    return pa.Table.from_arrays([*left.columns, *right.columns], names=[*left.column_names, *right.column_names])


def _reuse(files: pa.Table, cached: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Split ``files`` into cached rows that still hold, and files to read."""
    unchanged = files["name"].equals(cached["name"])  # both sorted; spares a million look-ups on most starts
    old = cached if unchanged else cached.take(pc.index_in(files["name"], cached["name"]))
    agree = [pc.equal(old[column], files[column]) for column in ("bytes", "mtime_ns", "ctime_ns")]
    same = pc.fill_null(reduce(pc.and_, agree), False)
    return old.filter(same), files.filter(pc.invert(same))


def _read_all(
    root: Path, names: pa.ChunkedArray, workers: int, progress: bool
) -> Iterator[tuple[int, int, str, str, str]]:
    """Rows of HEADER in the order of ``names``.

    Threads: on a local disk one reads 50,000 headers in four seconds, on a slow one more of them hide the waiting.
    Two processes gained nothing at that number, for their start, and every caller would need a ``__main__`` guard.
    """
    if len(names) == 0:
        return
    starts = range(0, len(names), CHUNK_FILES)
    chunks = ((str(root), names.slice(start, CHUNK_FILES).to_pylist()) for start in starts)
    executor = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=len(names), desc="reading image headers", unit=" files", disable=not progress) as bar:
            for rows in _map_in_order(executor, chunks, ahead=4 * workers):
                bar.update(len(rows))
                yield from rows
    finally:
        executor.shutdown(cancel_futures=True)


def _map_in_order(
    executor: Executor, chunks: Iterable[tuple[str, list[str]]], ahead: int
) -> Iterator[list[tuple[int, int, str, str, str]]]:
    """``executor.map`` with few chunks in flight: that one submits a million names at once."""
    waiting: deque[Future] = deque()
    for chunk in chunks:
        waiting.append(executor.submit(_read_chunk, *chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_chunk(root: str, names: list[str]) -> list[tuple[int, int, str, str, str]]:
    return [read_header(f"{root}/{name}") for name in names]


def read_header(path: str) -> tuple[int, int, str, str, str]:
    """(width, height, format, mode, "") of the stored pixels, or (0, 0, "", "", the reason why not)."""
    return header_facts(path, lambda: Span(path).read(START_BYTES))


def header_facts(
    image: str | io.BytesIO, start: Callable[[], bytes], is_whole: bool = True
) -> tuple[int, int, str, str, str]:
    """As ``read_header``, of a path or of bytes in memory; ``start`` gives the first START_BYTES of them.

    ``is_whole``: the bytes are all of the image's, not only the first of them.
    """
    try:
        with without_pillow_limit(), Image.open(image) as opened:
            width, height = opened.size
            if width < 1 or height < 1:
                return 0, 0, "", "", f"a size of {width}x{height} pixels"
            if reason := refusal(opened):
                return 0, 0, "", "", reason
            if opened.info.get("progressive") and (reason := _many_scans(opened, is_whole)):
                return 0, 0, "", "", reason
            if is_whole and _is_cut_and_filled(opened):
                return 0, 0, "", "", CUT_AND_FILLED
            return width, height, opened.format or "", opened.mode, ""
    except Exception as error:  # on damaged headers Pillow's plugins raise nearly anything
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:  # not MemoryError: a damaged header raises it
            raise
        return 0, 0, "", "", _reason(start, error)


def _reason(start: Callable[[], bytes], error: Exception) -> str:
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason(start, error)
    return f"{type(error).__name__}: {error}"


def _no_known_format(start: Callable[[], bytes], error: Exception) -> str:
    first = start()
    return f"no image that Pillow knows, or a damaged header: it starts with {first!r}" if first else "an empty file"


REASONS: dict[type[Exception], Callable[[Callable[[], bytes], Exception], str]] = {
    UnidentifiedImageError: _no_known_format,
    FileNotFoundError: lambda start, error: "vanished during the scan",
    PermissionError: lambda start, error: "no permission to read it",
}


MOST_SCANS = 100  # of a progressive JPEG: encoders write about 10, and each is decoded over the whole picture


def _many_scans(image: ImageFile, is_whole: bool) -> str:
    """Why a progressive JPEG is refused, or ""; a small file of thousands of scans would be decoded for minutes.

    Its scans are counted by their markers, which cannot stand in coded pixels (ITU T.81, F.1.2.3). Of the first bytes
    of a file nothing can be said: the answer is then a reason to read all of it.
    """
    if image.fp is None:
        return ""
    if not is_whole:
        return "a progressive JPEG of which only the first bytes were read"
    image.fp.seek(0)
    scans, before = 0, b""
    while data := image.fp.read(BACKWARD_BYTES):
        scans += (before + data).count(b"\xff\xda")
        before = data[-1:]
    return f"a progressive JPEG of {scans} scans, over the limit of {MOST_SCANS}" if scans > MOST_SCANS else ""


def _is_cut_and_filled(image: ImageFile) -> bool:
    """A JPEG that ends in zeros and has no end marker behind its last scan: some decoders take zeros for pixels."""
    if image.format != "JPEG" or image.fp is None:
        return False
    end = image.fp.seek(0, os.SEEK_END)
    image.fp.seek(-2, os.SEEK_END)
    if image.fp.read() != b"\0\0":
        return False
    for start in range(end - BACKWARD_BYTES, -BACKWARD_BYTES, -BACKWARD_BYTES):  # a file may be all zeros, and large
        image.fp.seek(max(start, 0))
        data = image.fp.read(start + BACKWARD_BYTES + 1 - max(start, 0))  # a marker may lie across two blocks
        last_end, last_scan = data.rfind(b"\xff\xd9"), data.rfind(b"\xff\xda")
        if max(last_end, last_scan) >= 0:
            return last_end < last_scan
    return False


CUT_AND_FILLED = "a JPEG cut off, its end filled with zeros, as by an unfinished download: copy it again"


# --------------------------------------------------------------------------------------------------------------- cache


def cache_file(folder: Path, root: Path) -> Path:
    """Where in the cache folder the headers of a folder, or of one tar, are kept."""
    return folder / "scans" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.parquet"


def read_cache(path: Path, mark: dict[bytes, bytes], schema: pa.Schema) -> pa.Table:
    """The rows that ``write_cache`` wrote with the same mark and CACHE_VERSION, else none; a damaged file is replaced,
    with a warning. The table's metadata is all that was stored beside the rows."""
    nothing = schema.empty_table()
    if not path.exists():
        return nothing
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        stored = table.schema.metadata or {}
        if any(stored.get(key) != value for key, value in _versioned(mark).items()):
            return nothing
        if stored.get(CHECKSUM) != _checksum(stored):
            raise ValueError("its facts have another checksum")
        return table.cast(schema.with_metadata(stored))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_if_of_machine(error)
        message = f"the header cache {path} is damaged ({error}): reading all headers again and replacing it"
        log.warning("%s", visible(message))
        return nothing


CHECKSUM = b"multicrop_checksum"  # of the facts beside the rows; the rows have those of Parquet


def _checksum(facts: dict[bytes, bytes]) -> bytes:
    known = sorted((key, value) for key, value in facts.items() if key not in (CHECKSUM, b"ARROW:schema"))
    return hashlib.sha256(b"\0".join(part for pair in known for part in pair)).hexdigest().encode()


def _versioned(mark: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {b"multicrop_scan_version": CACHE_VERSION.encode(), **mark}


def write_cache(path: Path, mark: dict[bytes, bytes], table: pa.Table) -> None:
    """Atomically: another reader, or the start after a killed run, finds a whole file. Failure costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = _versioned(mark)
        table = table.replace_schema_metadata({**facts, CHECKSUM: _checksum(facts)})
        with whole_path(path) as part:
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)
    except OSError as error:
        message = (
            f"cannot write the header cache {path} ({error}): the next start reads all headers again; "
            "set MULTICROP_CACHE to a folder that can be written"
        )
        log.warning("%s", visible(message))


# -------------------------------------------------------------------------------------------------------------- tables


def frame(table: pa.Table) -> pd.DataFrame:
    """Names as TEXT, words that repeat (format, mode) as categories."""
    for column in ("format", "mode"):
        index = table.schema.get_field_index(column)
        table = table.set_column(index, column, table[column].dictionary_encode())
    return table.to_pandas(types_mapper={pa.string(): TEXT}.get)


def unreadable_frame(names: list[str], paths: list[str], reasons: list[str]) -> pd.DataFrame:
    """``Scan.unreadable`` of what the scan could not read."""
    columns = {"name": names, "path": paths, "stage": ["scan"] * len(names), "reason": reasons}
    return pd.DataFrame(columns, columns=list(UNREADABLE_COLUMNS), dtype=TEXT)


def left_out_lines(rows: Iterable[tuple[str, str]], shown: int = 5) -> list[str]:
    """What was left out and why, from (name, reason): the reasons that most files share first, each with an example."""
    names: dict[str, list[str]] = {}
    for name, reason in rows:
        names.setdefault(reason, []).append(name)
    most = sorted(names.items(), key=lambda item: -len(item[1]))
    lines = [
        visible(f"{found[0]}: {reason}" if len(found) == 1 else f"{len(found)} files, such as {found[0]}: {reason}")
        for reason, found in most[:shown]
    ]
    return lines + ([f"and {len(most) - shown} more reasons"] if len(most) > shown else [])


def _demo_table_in(root: Path) -> pd.DataFrame | None:
    path = root / DEMO_TABLE
    return read_demo_table(path, path) if path.is_file() else None


def read_demo_table(source: Path | io.BytesIO, shown: Path) -> pd.DataFrame | None:
    """``demo.csv`` when it begins as pipelines.data.demo writes it; a file of that name with other columns is not ours.

    Raises DatasetError, which names it ``shown``, when it is not a table.
    """
    try:
        demo = pd.read_csv(source, dtype=dict.fromkeys(DEMO_TEXTS, TEXT))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{shown} cannot be read ({error}): remove it, or write the demo data anew") from error
    if tuple(demo.columns[: len(DEMO_COLUMNS)]) != DEMO_COLUMNS:
        return None
    for name in DEMO_COLUMNS:
        if len(demo) and name not in DEMO_TEXTS and not pd.api.types.is_numeric_dtype(demo[name]):
            raise DatasetError(
                f"{shown}: the column {name} holds {_no_number(demo[name])!r:.40}, which is not a number"
            )
    return demo


def _no_number(column: pd.Series) -> object:
    """The first value of a column that is none."""
    numbers = pd.to_numeric(column, errors="coerce")
    return column[numbers.isna()].iloc[0] if numbers.isna().any() else column.iloc[0]


def with_demo_columns(table: pd.DataFrame, demo: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Add the object boxes and all else that the demo table knows, by name; its labels as ``demo_label``. Raises
    DatasetError when it is not of these images."""
    remedy = f"remove {root} and write the demo data anew, or remove {DEMO_TABLE} to use the images without it"
    if not demo["name"].is_unique:
        twice = demo["name"][demo["name"].duplicated()].iloc[0]
        raise DatasetError(f"{root / DEMO_TABLE} names {twice} twice: {remedy}")
    known = table.merge(demo, on="name", how="left", suffixes=("", "_demo"))
    differs = (known["width"] != known["width_demo"]) | (known["height"] != known["height_demo"])
    if differs.any():
        row = known[differs].iloc[0]
        raise DatasetError(
            f"{root / DEMO_TABLE} does not fit {int(differs.sum())} of {len(table)} files; {row['name']}, for one, is "
            f"{row['width']}x{row['height']} and not {row['width_demo']:g}x{row['height_demo']:g}: {remedy}"
        )
    known = known.drop(columns=[name for name in known.columns if name.endswith("_demo")])
    return known.rename(columns={"label": "demo_label"})
