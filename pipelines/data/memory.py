"""A list of images as a backend's source: files, bytes, PIL images and arrays, without a scan of a folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.data.dataset import START_BYTES, header_facts, read_header
from pipelines.data.faults import raise_if_of_machine
from pipelines.data.limits import DEFAULT_LIMITS, ImageLimits
from pipelines.data.spans import Span


class MemorySpan(Span):
    """The bytes of an image that is not a file."""

    data: bytes

    @classmethod
    def of(cls, data: bytes) -> MemorySpan:
        span = cls("bytes in memory", 0, len(data))
        span.data = data
        return span

    @property
    def is_file(self) -> bool:
        return False

    def read(self, most: int | None = None) -> bytes:
        return self.data if most is None else self.data[:most]


@dataclass
class ImageList:
    """Images in their order, as ``pipelines.batch.Source``; ``errors`` says of a row why it cannot be read."""

    listed: list[str] = field(default_factory=list)
    where: list[Span] = field(default_factory=list)
    stored: list[tuple[int, int]] = field(default_factory=list)  # height, width; 0, 0 where it cannot be read
    lengths: list[int] = field(default_factory=list)  # bytes of each file
    errors: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, images: Sequence[Any], numbers: Iterable[int] | None = None, limits: ImageLimits = DEFAULT_LIMITS
    ) -> ImageList:
        """``images``: paths, bytes of encoded files, PIL images, or uint8 arrays [H, W, 3] or [H, W].

        A path's name is the path as given, with forward slashes; others are called ``image N`` after their
        ``numbers``, by default 0, 1, ... An item of another kind, or beyond ``limits``, is an error of its own row.
        """
        made = cls()
        for number, image in zip(range(len(images)) if numbers is None else numbers, images, strict=True):
            made._add(image, number, limits)
        if not all(span.is_file for span in made.where):  # backends take files only, or no file at all
            made.where = [_as_piece(span) for span in made.where]
        return made

    def _add(self, image: Any, number: int, limits: ImageLimits) -> None:
        try:
            span, facts = _file(Path(image)) if isinstance(image, str | Path) else _in_memory(image)
            file_bytes = Path(span.path).stat().st_size if span.is_file else span.length or 0
        except (OSError, ValueError, TypeError) as error:
            raise_if_of_machine(error)
            span, facts, file_bytes = MemorySpan.of(b""), (0, 0, "", "", str(error)), 0
        width, height, _, _, problem = facts
        if problem := problem or limits.why_refused(width, height, file_bytes):
            self.errors[len(self.listed)] = problem
        self.listed.append(name_of(image, number))
        self.where.append(span)
        self.stored.append((height, width))
        self.lengths.append(file_bytes)

    def __len__(self) -> int:
        return len(self.listed)

    @property
    def readable(self) -> np.ndarray:
        """int64: the rows whose header could be read."""
        return np.array([row for row in range(len(self)) if row not in self.errors], dtype=np.int64)

    def names(self, rows: np.ndarray) -> list[str]:
        return [self.listed[row] for row in rows]

    def spans(self, rows: np.ndarray) -> list[Span]:
        return [self.where[row] for row in rows]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.stored[row] for row in rows], dtype=np.int64).reshape(-1, 2)

    def file_bytes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of each image's file, int64 [b]."""
        return np.array([self.lengths[row] for row in rows], dtype=np.int64)


def name_of(image: Any, number: int) -> str:
    """The name of an item of a list: a path as given, with forward slashes, else ``image N``."""
    return Path(image).as_posix() if isinstance(image, str | Path) else f"image {number}"


Facts = tuple[int, int, str, str, str]  # of pipelines.data.dataset.header_facts: width, height, format, mode, problem


def _file(path: Path) -> tuple[Span, Facts]:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}" if not path.exists() else f"{path} is not a regular file")
    return Span(str(path.absolute())), read_header(str(path))


def _in_memory(image: Any) -> tuple[Span, Facts]:
    data = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else _encoded(image)
    return MemorySpan.of(data), header_facts(io.BytesIO(data), lambda: data[:START_BYTES])


def _encoded(image: Any) -> bytes:
    """A PIL image or array as PNG: lossless, so the backends decode the same pixels. Raises TypeError, ValueError."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(f"an array is uint8 [H, W, 3] or [H, W], not {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"an image is a path, bytes, a PIL image or a uint8 array, not {type(image).__name__}")
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_piece(span: Span) -> Span:
    return span if not span.is_file else Span(span.path, 0, Path(span.path).stat().st_size)
