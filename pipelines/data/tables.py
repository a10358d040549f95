"""Hugging Face's data sets as they lie on disk: Parquet shards, and the Arrow files of ``save_to_disk``.

    scan("imagenet/data/validation-*.parquet", workers=8)     # or one file, or the folder of one split

A row has an image (a struct of ``bytes`` and ``path``, or the bytes alone) and perhaps a label. Nothing is unpacked: an
image in Parquet is read with its row group (``pipelines.data.rows``), one in an Arrow file from its place in the file.
An image's name is its ``path``, so that the same images in a folder have the same random windows and predictions; where
rows have no path, or share one, it is the shard's name and the row's number. Images are in the order of the rows.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.dataset import (
    HEADER,
    START_BYTES,
    TEXT,
    DatasetError,
    Scan,
    cache_file,
    cache_folder,
    frame,
    header_facts,
    none_readable,
    read_cache,
    record_batches,
    suffix_of,
    unreadable_frame,
    write_cache,
)
from pipelines.data.faults import raise_if_of_machine
from pipelines.data.formats import IMAGE_SUFFIXES
from pipelines.data.rows import MOST_GROUP_BYTES, SUFFIX, bytes_column, flat
from pipelines.data.tars import file_identity

SUFFIXES = (SUFFIX, ".arrow")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target", "wnid", "synset")
SHARD = re.compile(r"[-_.]?\d+-of-\d+(?:-[0-9a-f]+)?$")  # what the names of one split's shards differ in
INDEX = pa.schema(
    [
        ("name", pa.string()),  # the path that the row gives, or ""
        ("tar_offset", pa.int64()),  # in an Arrow file; the row's number in a Parquet file
        ("bytes", pa.int64()),
        ("tar_label", pa.int64()),  # -1 = none
        ("label_word", pa.string()),  # "" = none
        *HEADER,
    ]
)


def is_table(root: Path | str) -> bool:
    """Whether ``root`` names Parquet or Arrow files, or a folder that holds them and no folder of images."""
    path = Path(root).expanduser()
    if path.is_dir():
        return bool(_tables_in(path)) and not _has_images(path)
    return str(path).lower().endswith(SUFFIXES)


def files(root: Path | str) -> list[str]:
    """The Parquet or Arrow files that ``root`` names, in order. Raises DatasetError where there are none, or several
    splits."""
    path = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100 - links stay: the hub's cache has names in them
    if path.is_dir():
        found = _tables_in(path)
    elif path.exists():
        found = [str(path)]
    else:
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        raise DatasetError(f"no file fits {path}: check the path given as `data`")
    splits = sorted({SHARD.sub("", str(Path(name).with_suffix(""))) for name in found})
    if len(splits) > 1:
        patterns = ", ".join(f"'{split}*{Path(found[0]).suffix}'" for split in splits[:4])
        raise DatasetError(
            f"{path} holds {len(splits)} splits or data sets: give one of them as `data`, such as {patterns}"
        )
    return found


def _has_images(folder: Path) -> bool:
    return any(suffix_of(name) in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names)


def _tables_in(folder: Path) -> list[str]:
    """Those in the folder and in folders below it, without the caches of the ``datasets`` library."""
    found = [
        str(path)
        for suffix in SUFFIXES
        for pattern in (f"*{suffix}", f"*/*{suffix}")
        for path in folder.glob(pattern)
        if not path.name.startswith(("cache-", ".")) and not path.parent.name.startswith(".")
    ]
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------- scan


def scan(root: Path | str, *, workers: int, cache: Path | None = None, progress: bool = True) -> Scan:
    """Find the images in Parquet or Arrow files; arguments and result as those of ``pipelines.data.scanning.scan``.

    Raises DatasetError when a file cannot be read or has no column of images, or when no image can be read.
    """
    paths = files(root)
    shown = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100
    with ThreadPoolExecutor(workers) as executor:
        found = list(executor.map(partial(_from_cache_or_file, cache=cache or cache_folder()), paths))
    counts = [shard.rows.num_rows for shard in found]
    codes = pa.array(np.repeat(np.arange(len(found), dtype=np.int32), counts))
    table = pa.concat_tables([shard.rows for shard in found])
    table = table.append_column("tar", pa.DictionaryArray.from_arrays(codes, paths)).combine_chunks()
    table = table.set_column(0, "name", pa.array(_names(table, paths, counts)))
    is_good = pc.equal(table["problem"], "")
    failed = table.filter(pc.invert(is_good))
    places = [f"{row['tar']}/{row['name']}" for row in failed.select(["tar", "name"]).to_pylist()]
    unreadable = unreadable_frame(failed["name"].to_pylist(), places, failed["problem"].to_pylist())
    good = table.filter(is_good).drop_columns(["problem"])
    if good.num_rows == 0:
        raise none_readable(shown, unreadable) if failed.num_rows else DatasetError(f"{shown} holds no rows")
    images = _labels(frame(good))
    classes = found[0].classes if len({shard.classes for shard in found}) == 1 else ()
    return Scan(shown, images, unreadable, (), class_names=classes, label_source="the label column")


def _labels(images: pd.DataFrame) -> pd.DataFrame:
    """Without the columns of labels that no row has."""
    if (images["tar_label"] < 0).all():
        images = images.drop(columns="tar_label")
    return (
        images.drop(columns="label_word") if (images["label_word"] == "").all() else images.astype({"label_word": TEXT})
    )


def _names(table: pa.Table, paths: list[str], counts: list[int]) -> list[str]:
    """The rows' own paths where each has one of its own, else shard and number."""
    given = [name.replace("\\", "/").removeprefix("./").lstrip("/") for name in table["name"].to_pylist()]
    if all(given) and len(set(given)) == len(given) and not any(".." in name.split("/") for name in given):
        return given
    shards = [Path(path).stem for path in paths]
    return [f"{shard}/{row:08d}" for shard, count in zip(shards, counts, strict=True) for row in range(count)]


class _Shard(NamedTuple):
    """What one file holds."""

    rows: pa.Table  # INDEX
    classes: tuple[str, ...]  # Hugging Face's names of the classes, in the order of the labels; () = not given


def _from_cache_or_file(path: str, cache: Path) -> _Shard:
    try:
        mark = {b"table": os.fsencode(path), b"identity": file_identity(path, os.stat(path))}  # noqa: PTH116
        kept = cache_file(cache, Path(path))
        known = read_cache(kept, mark, INDEX)
        if facts := known.schema.metadata and known.schema.metadata.get(b"table_classes"):
            return _Shard(known.replace_schema_metadata(None), tuple(json.loads(facts)))
        shard = (_read_parquet if path.endswith(SUFFIX) else _read_arrow)(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last of damaged names of columns
        raise_if_of_machine(error)
        raise DatasetError(f"{path} cannot be read ({error}): download it again, or leave it out of `data`") from error
    write_cache(kept, {**mark, b"table_classes": json.dumps(shard.classes).encode()}, shard.rows)
    return shard


def _read_parquet(path: str) -> _Shard:
    with pq.ParquetFile(path) as file:
        columns = _Columns.of(file.schema_arrow, path)

        def rows() -> Iterator[tuple[Any, ...]]:
            start = 0
            for group in range(file.num_row_groups):
                if (size := file.metadata.row_group(group).total_byte_size) > MOST_GROUP_BYTES:
                    raise DatasetError(
                        f"row group {group} of {path} has {size / 1e9:.1f} GB, all of which is decoded for one of its "
                        "images: write it anew with row_group_size=100"
                    )
                table = file.read_row_group(group, columns=columns.wanted, use_threads=False)
                table.validate(full=True)
                offsets = range(start, start + table.num_rows)
                yield from columns.rows(table, list(offsets))
                start += table.num_rows

        return _Shard(_index(rows()), columns.classes)


def _read_arrow(path: str) -> _Shard:
    """``save_to_disk`` writes Arrow's stream format, uncompressed: an image's bytes lie in the file as they are."""
    with pa.memory_map(path) as mapped:
        whole = mapped.read_buffer()
        try:
            reader: Any = pa.ipc.open_stream(pa.BufferReader(whole))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(pa.BufferReader(whole))
        table = reader.read_all()
        table.validate(full=True)  # else damaged text would end Python's own reading of it
        columns = _Columns.of(table.schema, path)
        places = _places(flat(table[columns.image.split(".")[0]]), whole, path)
        return _Shard(_index(columns.rows(table, places)), columns.classes)


def _places(images: pa.ChunkedArray, whole: pa.Buffer, path: str) -> list[int]:
    """Where in the file each image's bytes begin. Raises DatasetError for a compressed file, which has none."""
    places: list[int] = []
    for chunk in images.chunks:
        _, offsets, data = chunk.buffers()
        kind = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        begins = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk)].astype(np.int64)
        start = data.address - whole.address if data is not None else 0
        if not 0 <= start <= whole.size:
            raise DatasetError(f"{path} is compressed: write it anew by save_to_disk, or as Parquet")
        places += (begins + start).tolist()
    return places


def _index(rows: Iterator[tuple[Any, ...]]) -> pa.Table:
    return pa.Table.from_batches(record_batches(rows, INDEX), INDEX)


class _Columns(NamedTuple):
    """Which columns of a table are used."""

    image: str  # as bytes_column has it
    path: str | None
    label: str | None
    classes: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, path: str) -> _Columns:
        """Raises DatasetError where there is no column of images."""
        image = bytes_column(schema)
        if image is None:
            raise DatasetError(
                f"{path} has the columns {', '.join(schema.names)}, and not one of images: a struct with the images' "
                "bytes and path, or bytes, called image where there are several"
            )
        first = image.split(".")[0]
        has_path = "." in image and any(part.name == "path" for part in schema.field(first).type)
        label = next((name for name in LABEL_COLUMNS if name in schema.names and name != first), None)
        return cls(image, f"{first}.path" if has_path else None, label, _class_names(schema, label))

    @property
    def wanted(self) -> list[str]:
        return [name for name in (self.image, self.path, self.label) if name]

    def rows(self, table: pa.Table, places: list[int]) -> Iterator[tuple[Any, ...]]:
        """Of INDEX."""
        column = table[self.image.split(".")[0]]
        images = flat(column)
        names = [chunk.field("path") for chunk in column.chunks] if self.path else []
        paths = [name for chunk in names for name in chunk.to_pylist()] or [None] * len(images)
        labels = table[self.label].to_pylist() if self.label else [None] * len(images)
        for image, place, path, label in zip(images, places, paths, labels, strict=True):
            data = image.as_py()
            number, word, problem = self._label(label)
            facts: tuple[Any, ...] = (0, 0, "", "", "the row holds no bytes of an image, only its path")
            if data is not None:
                facts = header_facts(io.BytesIO(data), partial(bytes, data[:START_BYTES]))
            yield (path or "", place, len(data or b""), number, word, *facts[:4], facts[4] or problem)

    def _label(self, label: Any) -> tuple[int, str, str]:
        """(number, word, why it cannot be used) of what a row holds as its label."""
        if label is None or label == -1:
            return -1, "", ""
        if isinstance(label, str):
            return -1, label, ""
        if type(label) is not int or not 0 <= label < 10**18:
            return -1, "", f"its label is {str(label)[:40]!r}, no whole number from 0 on and no text"
        return label, self.classes[label] if label < len(self.classes) else "", ""


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """What Hugging Face's ClassLabel calls the numbers of the label column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
