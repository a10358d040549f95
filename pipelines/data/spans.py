"""Where an image's bytes lie: a whole file, or a piece of a tar. Read by ``pread``, never by ``mmap``: a mapped file
that is cut off while it is read kills the process.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Span(NamedTuple):
    """``length`` bytes of a file from ``offset`` on; None: to its end."""

    path: str
    offset: int = 0
    length: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of its own, which a library may be given by its path."""
        return self.length is None

    def read(self, most: int | None = None) -> bytes:
        """The bytes, at most the first ``most`` of them. Raises OSError, also when the file ends before the span."""
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return pread(file, self, most)
        finally:
            os.close(file)


def pread(file: int, span: Span, most: int | None = None) -> bytes:
    """``span.read(most)`` through the file descriptor ``file``, which is that of ``span.path``."""
    end = os.fstat(file).st_size if span.length is None else span.offset + span.length
    if most is not None:
        end = min(end, span.offset + most)
    pieces = []
    at = span.offset
    while at < end:
        piece = os.pread(file, end - at, at)  # may be short: Linux gives 2 GiB at most, a network less
        if not piece:
            raise OSError(
                f"{span.path} ends at byte {at} and was to be read up to {end}: it has changed since the scan"
            )
        pieces.append(piece)
        at += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
