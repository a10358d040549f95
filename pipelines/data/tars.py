"""Tar shards as a data set: what images they hold, where in the tar, and under which labels. Nothing is unpacked.

    found = scan("val-{000..049}.tar", workers=8)    # or a glob, a list {a,b}, or one .tar
    data = label(found, num_classes=1000)            # pipelines.data.labels

An image's name is the member's path, so that the same images in a folder have the same names, and with them the same
random windows and predictions. Members of one sample share their path up to the first dot of the file's name, as in
WebDataset: ``000001.jpg``, ``000001.cls`` (the label as text) or ``000001.json`` (the label as ``label`` or ``cls``).
A tar of tars (ILSVRC2012_img_train.tar: one a class) is read as if each lay unpacked in a folder of its name.

Each tar is indexed once; the index lies in the cache of the header scans and holds while the tar's size,
times, inode, first and last bytes do. What is damaged, or made to do harm, costs itself only and is in
``Scan.unreadable``.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import posixpath
import re
import stat
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from braceexpand import braceexpand
from tqdm import tqdm

from pipelines.data.dataset import (
    DEMO_TABLE,
    HEADER,
    NO_FACTS,
    START_BYTES,
    DatasetError,
    Scan,
    cache_file,
    cache_folder,
    frame,
    header_facts,
    is_of_another_program,
    left_out,
    listed,
    no_images,
    none_readable,
    read_cache,
    read_demo_table,
    record_batches,
    suffix_of,
    unreadable_frame,
    with_demo_columns,
    write_cache,
)
from pipelines.data.faults import raise_if_of_machine
from pipelines.data.formats import IMAGE_SUFFIXES, other_picture
from pipelines.data.spans import Span, pread

TAR = ".tar"
COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip")
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
REPACK = "unpack it, or store it as a plain .tar: an image in a compressed one cannot be read without all before it"
MOST_SHARDS = 100_000
HEADER_BYTES = (1 << 16, 1 << 26)  # of an image, read for its header; the second where the first are too few
MOST_LABEL_BYTES = 1 << 20  # of a .cls or .json
MOST_EXTENSION_BYTES = 1 << 20  # of a tar header with its long names; Python's tarfile reads any number into memory
EDGE_BYTES = 1 << 16  # at each end of a tar, hashed to notice another one in its place
END_BYTES = 1 << 20  # behind the end mark, looked at for more members; tars are padded with zeros to 10 KiB or so

INDEX = pa.schema(
    [
        ("name", pa.string()),  # "" = the shard itself, whose problem it is
        ("tar_offset", pa.int64()),
        ("bytes", pa.int64()),
        ("tar_label", pa.int64()),  # -1 = none
        *HEADER,
    ]
)


# ------------------------------------------------------------------------------------------------------------ patterns


def is_pattern(root: Path | str) -> bool:
    """Whether ``root`` names tars and not a folder."""
    text = str(Path(root).expanduser())
    return not Path(text).is_dir() and (
        text.lower().endswith((".tar", *COMPRESSED)) or any(sign in text for sign in "{}*?[")
    )


def shards(pattern: Path | str) -> list[str]:
    """The tars that ``pattern`` names: brace ranges ``{000..099}`` and lists ``{a,b}`` in their order, globs sorted.

    Raises DatasetError for a pattern that cannot be understood, that names compressed files or no tars, or of whose
    tars some are missing.
    """
    text = os.path.abspath(Path(pattern).expanduser())  # noqa: PTH100 - links stay: a store may hide names behind them
    named = [text] if Path(text).exists() else _expanded(text)
    found = [path for name in named for path in _globbed(name)]
    for path in found:
        if not path.isascii() and path != os.fsencode(path).decode(errors="replace"):
            raise DatasetError(f"the name of {path!a} is not UTF-8: rename it")
        if path.lower().endswith(COMPRESSED):
            raise DatasetError(f"{path} is compressed: {REPACK}")
        if not path.lower().endswith(".tar"):
            raise DatasetError(f"{path}, of {text}, is not a .tar: give a folder of images, or tars only, as `data`")
    missing = [path for path in found if not Path(path).exists()]
    if missing:
        others = f"; {len(missing)} of the {len(found)} tars of {text} are missing" if len(found) > 1 else ""
        raise DatasetError(f"there is no tar {missing[0]}{others}: check the path given as `data`")
    return found


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as the shell has it. Raises DatasetError."""
    groups = re.findall(r"\{([^{}]*)\}", pattern)
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise DatasetError(f"the braces of {pattern} do not match: write {{000..099}} for a range, {{a,b}} for a list")
    if math.prod(_group_size(words, pattern) for words in groups) > MOST_SHARDS:
        raise DatasetError(f"{pattern} names more than {MOST_SHARDS:,} tars: give a smaller range as `data`")
    return list(braceexpand(pattern, escape=False))


def _group_size(words: str, pattern: str) -> int:
    """How many names ``008..010`` or ``a,b`` gives. Raises DatasetError for what is neither."""
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", words, re.ASCII)
    if ends is None:
        if "," in words:
            return words.count(",") + 1
        raise DatasetError(f"{{{words}}} in {pattern} is not a range such as {{000..099}} or a list such as {{a,b}}")
    first, last = int(ends[1]), int(ends[2])
    if first > last:
        raise DatasetError(f"{{{words}}} in {pattern} goes down: write the smaller number first")
    return last - first + 1


def _globbed(path: str) -> list[str]:
    if Path(path).exists() or not any(sign in path for sign in "*?["):
        return [path]
    found = sorted(glob.glob(path))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        raise DatasetError(f"no file fits {path}: check the pattern given as `data`")
    return found


# ---------------------------------------------------------------------------------------------------------------- scan


def scan(pattern: Path | str, *, workers: int, cache: Path | None = None, progress: bool = True) -> Scan:
    """Find the images in the tars that ``pattern`` names; arguments and result as those of
    ``pipelines.data.scanning.scan``.

    Raises DatasetError as ``shards`` does, when a tar cannot be opened, when two images have one name, and when no
    image can be read.
    """
    root = Path(os.path.abspath(Path(pattern).expanduser()))  # noqa: PTH100
    paths = shards(root)
    found = _indexed(paths, cache or cache_folder(), workers, progress)
    folders = sorted({name for shard in found for name in shard.folders})
    other_files = sum((Counter(shard.other_files) for shard in found), Counter[str]())
    index = _one_table(found)
    if index.num_rows == 0:
        raise DatasetError(no_images(root, other_files))
    is_good = pc.equal(index["problem"], "")
    good = index.filter(is_good).drop_columns(["problem"])
    unreadable = _unreadable(index.filter(pc.invert(is_good)), good["name"])
    if good.num_rows == 0:
        raise none_readable(root, unreadable)
    _refuse_two_of_one_name(good)
    table = frame(good)
    if (table["tar_label"] < 0).all():
        table = table.drop(columns="tar_label")
    demo = _demo_table(found, root)
    if demo is not None:
        table = with_demo_columns(table, demo, root)
    return Scan(root, table, unreadable, tuple(folders), dict(sorted(other_files.items())), demo is not None)


def _one_table(found: list[_Shard]) -> pa.Table:
    """All rows, sorted by name, with the column ``tar``: the shard's path."""
    counts = [shard.images.num_rows for shard in found]
    codes = pa.array(np.repeat(np.arange(len(found), dtype=np.int32), counts))
    paths = pa.DictionaryArray.from_arrays(codes, [shard.path for shard in found])
    table = pa.concat_tables([shard.images for shard in found]).append_column("tar", paths)
    return table.take(pc.sort_indices(table["name"])).combine_chunks()


def _refuse_two_of_one_name(good: pa.Table) -> None:
    names = good["name"].combine_chunks()
    twice = pc.indices_nonzero(pc.equal(names[1:], names[:-1]))
    if len(twice):
        first = twice[0].as_py()
        a, b = (good["tar"][row].as_py() for row in (first, first + 1))
        raise DatasetError(
            f"{names[first].as_py()} comes twice, in {a} and in {b} ({len(twice)} such names in all): random windows "
            "and results go by an image's name; pack each image once, under a name of its own"
        )


def _unreadable(failed: pa.Table, good_names: pa.ChunkedArray) -> pd.DataFrame:
    """Names that would stand for two things, and those of whole shards, are told apart by tar and offset."""
    times = Counter(failed["name"].to_pylist())
    rows = failed.append_column("taken", pc.is_in(failed["name"], good_names)).to_pylist()
    names = [row["name"] or row["tar"] for row in rows]
    paths = [f"{row['tar']}/{row['name']}".rstrip("/") for row in rows]
    for i, row in enumerate(rows):
        if row["name"] and (row["taken"] or times[row["name"]] > 1):
            names[i] = f"{row['tar']}:{row['tar_offset']}:{row['name']}"
    return unreadable_frame(names, paths, [row["problem"] for row in rows])


def _demo_table(found: list[_Shard], root: Path) -> pd.DataFrame | None:
    spans = [Span(shard.path, *place) for shard in found for place in shard.demo]
    tables = [read_demo_table(io.BytesIO(span.read()), root / DEMO_TABLE) for span in spans]
    known = [table for table in tables if table is not None]
    return pd.concat(known, ignore_index=True).drop_duplicates() if known else None


# -------------------------------------------------------------------------------------------------------------- indices


@dataclass(slots=True)
class _Shard:
    """What one tar holds."""

    path: str
    images: pa.Table  # INDEX, those that cannot be read too
    folders: list[str]  # at the top
    other_files: dict[str, int]
    demo: list[list[int]]  # offset and length of each DEMO_TABLE at the top

    def facts(self) -> dict[bytes, bytes]:
        """All but the table, for the cache."""
        return {b"tar_facts": json.dumps([self.folders, self.other_files, self.demo]).encode()}


def _indexed(paths: list[str], cache: Path, workers: int, progress: bool) -> list[_Shard]:
    """Each tar's index, from the cache or read on one of the threads."""
    stopped = threading.Event()
    executor = ThreadPoolExecutor(workers)

    def done() -> None:
        bar.update()
        if stopped.is_set():
            raise InterruptedError("the scan was stopped")

    with tqdm(desc="indexing tars", unit=" images", disable=not progress, delay=1) as bar:
        try:
            return list(executor.map(partial(_from_cache_or_tar, cache=cache, done=done), paths))
        finally:
            stopped.set()
            executor.shutdown(cancel_futures=True)


def _from_cache_or_tar(path: str, cache: Path, done: Callable[[], Any]) -> _Shard:
    try:
        info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):  # a named pipe would block for ever
            raise DatasetError(f"{path} is not a regular file: take it out of the tars given as `data`")
        mark = {b"tar": os.fsencode(path), b"identity": file_identity(path, info)}
        file = cache_file(cache, Path(path))
        known = read_cache(file, mark, INDEX)
        if facts := known.schema.metadata and known.schema.metadata.get(b"tar_facts"):
            return _Shard(path, known.replace_schema_metadata(None), *json.loads(facts))
        with Path(path).open("rb") as opened:
            shard, is_sure = _Reader(path, opened, done).read()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): see to it, or leave it out of `data`") from error
    if is_sure:
        write_cache(file, {**mark, **shard.facts()}, shard.images)
    return shard


def file_identity(path: str, info: os.stat_result) -> bytes:
    """What changes when a tar is packed again, also under its old time and with its old size: size, times, inode, and
    a hash of its first and last bytes. Raises OSError."""
    with Path(path).open("rb") as file:
        ends = os.pread(file.fileno(), EDGE_BYTES, 0) + os.pread(
            file.fileno(), EDGE_BYTES, max(0, info.st_size - EDGE_BYTES)
        )
    facts = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, hashlib.sha256(ends).hexdigest())
    return " ".join(map(str, facts)).encode()


class _Member(NamedTuple):
    """A file in a tar."""

    name: str
    span: Span
    problem: str
    is_tar: bool = False  # no file: the tar itself, or one within it, of which something is lost


@dataclass(slots=True)
class _Reader:
    """Reads one tar's index. Headers by Python's tarfile, images by ``pread``: no member is ever opened by its name."""

    path: str
    file: BinaryIO
    done: Callable[[], Any]
    folders: set[str] = field(default_factory=set)
    other_files: Counter[str] = field(default_factory=Counter)
    is_sure: bool = True  # no trouble with reading, which may pass: only then the index is kept

    def read(self) -> tuple[_Shard, bool]:
        images, demo = [], []
        beside: dict[tuple[str, str], _Member] = {}
        for member in self._members(Span(self.path, 0, os.fstat(self.file.fileno()).st_size)):
            suffix = suffix_of(posixpath.basename(member.name))
            if suffix in IMAGE_SUFFIXES or other_picture(suffix) or member.is_tar:
                images.append(member._replace(problem=member.problem or left_out(member.name)))
                continue
            self.other_files[suffix] += 1
            if suffix in LABEL_READERS:
                self._mark_if_twice(member, beside)
                beside[posixpath.splitext(member.name)[0], suffix] = member  # of a name with dots of its own
                if sample := sample_of(member.name):
                    beside[sample] = member
            if member.name == DEMO_TABLE and not member.problem:
                demo.append([member.span.offset, member.span.length or 0])
        rows = (self._row(image, beside) for image in images)
        table = pa.Table.from_batches(record_batches(rows, INDEX), INDEX)
        return _Shard(self.path, table, sorted(self.folders), dict(self.other_files), demo), self.is_sure

    def _members(self, whole: Span, tar_name: str = "") -> Iterator[_Member]:
        """The files of the tar at ``whole``, in order; last, where it does not end as it should, one that says so.

        ``tar_name``: of a tar within the tar, whose files are named by it as if it had been unpacked into a folder.
        """
        at = 0
        try:
            headers: Any = _Headers(self.file, whole)
            with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # or it keeps them all
                    if entry.offset_data <= at or entry.size < 0:
                        raise tarfile.ReadError("a header that leads back")
                    at = entry.offset_data
                    yield from self._member(entry, whole, tar_name)
                lost = _ending(self.file, whole, tar.offset)
        except Exception as error:  # on damaged headers tarfile raises nearly anything
            raise_if_of_machine(error)
            self.is_sure = self.is_sure and not isinstance(error, OSError)
            lost = _no_tar(self.file, whole) if at == 0 else f"behind byte {at} the rest of the tar is lost: {error}"
        if lost:
            yield _Member(tar_name, Span(self.path, whole.offset + at, 0), lost, is_tar=True)

    def _member(self, entry: tarfile.TarInfo, whole: Span, tar_name: str) -> Iterator[_Member]:
        size = whole.length or 0
        problem = next((reason for fails, reason in REFUSED if fails(entry, size)), "")
        name = entry.name if problem == OUTSIDE else posixpath.normpath(entry.name)
        if tar_name and problem != OUTSIDE:
            name = f"{tar_name.removesuffix(TAR)}/{name}"
        top = name.split("/")[0]
        if problem != OUTSIDE and name != "." and ("/" in name or entry.isdir()) and not is_of_another_program(top):
            self.folders.add(top)
        if entry.isdir():
            return
        name, *_, unprintable = listed(name, NO_FACTS, "")
        length = min(entry.size, size)  # a forged one may be too large for any table
        span = Span(self.path, whole.offset + entry.offset_data, length)
        problem = unprintable or problem
        if name.endswith(TAR) and not problem and not tar_name:  # ImageNet's training images: a tar a class, in a tar
            yield from self._members(span, name)
        else:
            yield _Member(name, span, problem)

    def _row(self, image: _Member, beside: dict[tuple[str, str], _Member]) -> tuple[Any, ...]:
        """Of INDEX."""
        self.done()
        facts: tuple[Any, ...] = (0, 0, "", "", image.problem)
        label, label_problem = -1, ""
        if not image.problem:
            facts = self._header(image.span)
            label, label_problem = self._label(image.name, beside)
        return (image.name, *image.span[1:], label, *facts[:4], facts[4] or label_problem)

    def _header(self, span: Span) -> tuple[int, int, str, str, str]:
        """As ``pipelines.data.dataset.read_header``."""
        for most in HEADER_BYTES[self._ends_in_zeros(span) :]:
            try:
                data = pread(self.file.fileno(), span, most)
            except OSError as error:
                self.is_sure = False
                return 0, 0, "", "", f"cannot be read: {error}"
            facts = header_facts(io.BytesIO(data), partial(bytes, data[:START_BYTES]), len(data) == span.length)
            if not facts[-1] or len(data) == span.length:
                break
        return facts

    def _ends_in_zeros(self, span: Span) -> bool:
        """Whether the image may be one that was cut off and filled: then all of it is looked at."""
        length = span.length or 0
        return length > 2 and os.pread(self.file.fileno(), 2, span.offset + length - 2) == b"\0\0"

    @staticmethod
    def _mark_if_twice(member: _Member, beside: dict[tuple[str, str], _Member]) -> None:
        """Keep under (name, "") what comes a second time."""
        first = beside.get((posixpath.splitext(member.name)[0], suffix_of(posixpath.basename(member.name))))
        if first is not None and first.name == member.name:
            beside[member.name, ""] = member

    def _label(self, image: str, beside: dict[tuple[str, str], _Member]) -> tuple[int, str]:
        """(the label beside the image, -1 for none; why it cannot be used): of a ``.cls`` or a ``.json``, which must
        agree where there are both."""
        sample = sample_of(image)
        found: dict[str, int] = {}
        for suffix, read in LABEL_READERS.items():
            exact = beside.get((posixpath.splitext(image)[0], suffix))
            member = exact or (beside.get((sample[0], suffix)) if sample else None)
            if member is None:
                continue
            try:
                label = self._read_label(member, read)
            except ValueError as error:
                if found:  # a .json beside a .cls may describe the image, and its "label" be a word
                    continue
                return -1, f"its label {member.name} {error}"
            if label is not None:
                found[member.name] = label
                if (member.name, "") in beside:
                    return -1, f"its label {member.name} is in the tar twice: leave one"
        if len(set(found.values())) > 1:
            return (
                -1,
                f"its labels {' and '.join(f'{name} ({label})' for name, label in found.items())} differ: leave one",
            )
        return next(iter(found.values()), -1), ""

    def _read_label(self, member: _Member, read: Callable[[bytes], int | None]) -> int | None:
        if member.problem:
            raise ValueError(f"is unreadable: {member.problem}")
        if (member.span.length or 0) > MOST_LABEL_BYTES:
            raise ValueError(f"has {member.span.length:,} bytes: over {MOST_LABEL_BYTES:,} it is none")
        try:
            return read(pread(self.file.fileno(), member.span))
        except OSError as error:
            self.is_sure = False
            raise ValueError(f"cannot be read: {error}") from error


class _Headers:
    """The file for tarfile, which reads nothing of it but headers: a forged length must not fill the memory."""

    def __init__(self, file: BinaryIO, whole: Span) -> None:
        self.file, self.whole, self.at = file, whole, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        left = max(0, (self.whole.length or 0) - self.at)
        data = os.pread(self.file.fileno(), min(size, left), self.whole.offset + self.at)
        self.at += len(data)
        return data

    def seek(self, offset: int) -> int:
        self.at = offset
        return offset

    def tell(self) -> int:
        return self.at


def _ending(file: BinaryIO, whole: Span, offset: int) -> str:
    """What is wrong at ``offset`` of a tar, where tarfile found no further header, or ""."""
    size = whole.length or 0
    end = os.pread(file.fileno(), min(END_BYTES, max(0, size - offset)), whole.offset + offset)
    if len(end) < tarfile.BLOCKSIZE:
        return f"it ends at byte {size} without an end mark: what followed, if anything did, is lost"
    if any(end[: tarfile.BLOCKSIZE]):
        return f"a damaged header at byte {offset}: the rest of the tar is lost"
    if end.strip(b"\0"):
        return (
            f"more data behind the end mark at byte {offset}, as in tars joined by cat: it is not read; join by tar -A"
        )
    return ""


def _no_tar(file: BinaryIO, whole: Span) -> str:
    start = os.pread(file.fileno(), min(START_BYTES, whole.length or 0), whole.offset)
    kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if kind:
        return f"it is compressed ({kind}): {REPACK}"
    return f"no tar, or damaged at its start, which is {start!r}" if start else "an empty file"


def _leads_out(entry: tarfile.TarInfo, size: int) -> bool:
    return entry.name.startswith("/") or ".." in entry.name.split("/")


OUTSIDE = "its path is absolute or holds '..': pack it again by a path within the folder"
REFUSED: tuple[tuple[Callable[[tarfile.TarInfo, int], bool], str], ...] = (  # of an entry and the tar's size, bytes
    (_leads_out, OUTSIDE),
    (lambda entry, size: entry.issym() or entry.islnk(), "a link: pack what it leads to (tar -h --hard-dereference)"),
    (lambda entry, size: entry.issparse(), "stored with its holes left out: pack it without tar -S"),
    (lambda entry, size: not (entry.isreg() or entry.isdir()), "not a regular file"),
    (lambda entry, size: entry.offset_data + entry.size > size, "the tar ends before it does: it has been cut off"),
)


# --------------------------------------------------------------------------------------------------------------- labels


def sample_of(name: str) -> tuple[str, str] | None:
    """(sample, suffix) as WebDataset splits a member's path: at the first dot of the file's name. None: no sample.

    Source: webdataset.tariterators.base_plus_ext.
    """
    folder, file = posixpath.split(name)
    stem, dot, suffix = file.partition(".")
    return (f"{folder}/{stem}", f".{suffix.lower()}") if dot and stem else None


def _cls_label(data: bytes) -> int:
    text = data.strip()
    if not re.fullmatch(rb"\d{1,18}", text):
        raise ValueError(f"is {text[:40]!r}, no whole number from 0 on")
    return int(text)


def _json_label(data: bytes) -> int | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict) or not (keys := [key for key in ("label", "cls") if key in found]):
        return None
    label = found[keys[0]]
    if type(label) is not int or not 0 <= label < 10**18:
        raise ValueError(f"has {keys[0]} {str(label)[:40]!r}, no whole number from 0 on")
    return label


LABEL_READERS: dict[str, Callable[[bytes], int | None]] = {".cls": _cls_label, ".json": _json_label}
