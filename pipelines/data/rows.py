"""An image that is a row of a Parquet file: its bytes, read by row groups, the latest of which are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.spans import Span

SUFFIX = ".parquet"
KEPT_BYTES = 512 << 20  # of decoded row groups in one process; Hugging Face's have some 10 to 100 MB
KEPT_FILES = 64
MOST_GROUP_BYTES = 4 << 30  # a larger row group is refused: all of it is decoded for one of its rows


def bytes_column(schema: pa.Schema) -> str | None:
    """The column of encoded images, as a path for pyarrow: ``image.bytes`` of Hugging Face's structs, or a plain one.

    None where there is none, or several of which none is called ``image`` or ``img``.
    """
    found = [
        f"{field.name}.bytes" if pa.types.is_struct(field.type) else field.name
        for field in schema
        if _is_binary(field.type) or _has_bytes(field.type)
    ]
    usual = [name for name in found if name.split(".")[0] in ("image", "img")]
    return found[0] if len(found) == 1 else usual[0] if len(usual) == 1 else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind)


class RowSpan(Span):
    """A row of a Parquet file: ``offset`` is its number in the file, ``length`` the bytes of its image."""

    @property
    def is_file(self) -> bool:
        return False

    def read(self, most: int | None = None) -> bytes:
        try:
            data = GROUPS.row(self.path, self.offset)
        except (pa.ArrowException, IndexError, KeyError, ValueError) as error:
            raise OSError(f"row {self.offset} of {self.path} cannot be read: {error}") from error
        if data is None or len(data) != self.length:
            raise OSError(f"row {self.offset} of {self.path} is another one than at the scan: the file has changed")
        return data if most is None else data[:most]


def span_at(path: str, offset: int, length: int) -> Span:
    """Where an image of a shard lies: a piece of a tar or an Arrow file, or a row of a Parquet file."""
    return (RowSpan if path.endswith(SUFFIX) else Span)(path, offset, length)


class _Groups:
    """Row groups, read once while their neighbours are asked for. Threads and processes: a lock, and no shared file."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: OrderedDict[str, tuple[pq.ParquetFile, str, np.ndarray]] = OrderedDict()
        self.groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def row(self, path: str, row: int) -> bytes | None:
        with self.lock:
            file, column, starts = self._file(path)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            return self._group(path, file, column, group)[row - int(starts[group])].as_py()

    def _file(self, path: str) -> tuple[pq.ParquetFile, str, np.ndarray]:
        if path not in self.files:
            file = pq.ParquetFile(path)
            column = bytes_column(file.schema_arrow)
            if column is None:
                raise ValueError("it has no column of images")
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.files[path] = (file, column, np.cumsum([0, *counts])[:-1])
            if len(self.files) > KEPT_FILES:
                self.files.popitem(last=False)[1][0].close()
        self.files.move_to_end(path)
        return self.files[path]

    def _group(self, path: str, file: pq.ParquetFile, column: str, group: int) -> Any:
        key = (path, group)
        if key not in self.groups:
            table = file.read_row_group(group, columns=[column], use_threads=False)
            self.groups[key] = flat(table.column(0))
            while len(self.groups) > 1 and sum(array.nbytes for array in self.groups.values()) > KEPT_BYTES:
                self.groups.popitem(last=False)
        self.groups.move_to_end(key)
        return self.groups[key]


def flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a column of images: of a struct its ``bytes``."""
    if not pa.types.is_struct(column.type):
        return column
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)


GROUPS = _Groups()
