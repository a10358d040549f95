"""Whether images are still the ones that were scored: size, times and a sum of the bytes of each.

found = identify(data.spans(rows), workers=2)     # reads every file
found.changed(data.spans(rows))                   # later: reads only those whose size or times differ
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipelines.data.spans import Span

# Of one image. A time of 0 and a hash of 0 stand for one that was not read, which nothing contradicts.
FACTS = np.dtype([("bytes", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("content_crc32", "<u8")])
UNKNOWN = (0, 0, 0, 0)


def facts_of(span: Span) -> tuple[int, int, int, int]:
    """FACTS of an image: those of its file (of a tar's member, the tar's times) and a hash of its bytes; UNKNOWN where
    it cannot be read."""
    try:
        file = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return UNKNOWN
    try:
        info = os.fstat(file)
        if type(span) is Span:
            size, digest = _hash_of_file(file, span, info.st_size)
        else:  # a table's row has its own way
            data = span.read()
            size, digest = len(data), content_hash(data)
        return size, info.st_mtime_ns, info.st_ctime_ns, digest
    except OSError:
        return UNKNOWN
    finally:
        os.close(file)


def content_hash(data: bytes) -> int:
    """CRC-32, never 0: it is to find files that were exchanged or damaged, not forgers, and costs a quarter of BLAKE2b,
    more than which would show in the accuracy pass of a small network."""
    return zlib.crc32(data) or NO_ZERO


NO_ZERO = 1 << 32  # stands for a sum of 0, which means that nothing is known


class _Buffer(threading.local):
    """Of each thread: fresh memory for every image costs more than to hash it."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(1 << 18))


_buffer = _Buffer()


def _hash_of_file(file: int, span: Span, file_bytes: int) -> tuple[int, int]:
    """Bytes of the span and their hash. Raises OSError where the file ends before the span."""
    end = file_bytes if span.length is None else span.offset + span.length
    at, summed = span.offset, 0
    while at < end:
        done = os.preadv(file, [_buffer.view[: end - at]], at)
        if not done:
            raise OSError(f"{span.path} ends at byte {at} and was to be read up to {end}")
        summed = zlib.crc32(_buffer.view[:done], summed)
        at += done
    return end - span.offset, summed or NO_ZERO


def changed(spans: Sequence[Span], then: np.ndarray, workers: int = 1) -> Iterator[int]:
    """Positions of the images whose bytes are not those of ``then`` (FACTS [b]) any more.

    Only files whose size or times differ are read: one that was touched, or copied elsewhere, is the same image.
    """
    times: dict[str, tuple[int, int, int]] = {}
    suspects = []
    for i, span in enumerate(spans):
        if then["content_crc32"][i] == 0:
            continue
        if span.path not in times:
            times[span.path] = _size_and_times(span.path)
        size, mtime_ns, ctime_ns = times[span.path]
        size = size if span.length is None else span.length
        if (size, mtime_ns, ctime_ns) != tuple(int(then[name][i]) for name in ("bytes", "mtime_ns", "ctime_ns")):
            suspects.append(i)
    with ThreadPoolExecutor(workers) as threads:
        now = threads.map(facts_of, [spans[i] for i in suspects])
        yield from (i for i, facts in zip(suspects, now, strict=True) if facts[3] != then["content_crc32"][i])


def _size_and_times(path: str) -> tuple[int, int, int]:
    try:
        info = os.stat(path)  # noqa: PTH116 - a Path for each of a million files would cost more than the call
    except OSError:
        return -1, -1, -1
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


@dataclass
class Identifier:
    """Identifies images on threads of its own, beside the network: reading again what has just been decoded."""

    workers: int = 1

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.workers, "identity")
        self._pending: dict[int, Future[tuple[int, int, int, int]]] = {}

    def begin(self, rows: Iterable[int], spans: Iterable[Span]) -> None:
        """Begin to identify these rows."""
        for row, span in zip(rows, spans, strict=True):
            self._pending[row] = self._threads.submit(facts_of, span)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """FACTS [b] of rows that were begun; each can be taken once."""
        return np.array([self._pending.pop(row).result() for row in rows.tolist()], dtype=FACTS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
