"""Files of a folder in one file: Parquet and Arrow as Hugging Face's data sets have them, and a tar."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def table_of(root: Path, names: Sequence[str]) -> pa.Table:
    """A row a file: its bytes and path, and the number of its folder."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": (root / name).read_bytes(), "path": name} for name in names], kind)
    return pa.table({"image": images, "label": [int(name.split("/")[0]) for name in names]})


def write_parquet(root: Path, names: Sequence[str], path: Path) -> None:
    pq.write_table(table_of(root, names), path, row_group_size=50)


def write_arrow(root: Path, names: Sequence[str], path: Path) -> None:
    table = table_of(root, names)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def write_tar(root: Path, names: Sequence[str], path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(root / name, name)


FORMS: dict[str, tuple[str, Callable[[Path, Sequence[str], Path], None]]] = {
    "Parquet": ("images.parquet", write_parquet),
    "Arrow": ("images.arrow", write_arrow),
    "tar": ("images.tar", write_tar),
}


def write(form: str, root: Path, names: Sequence[str], folder: Path) -> Path:
    """The path of the file that holds ``names``, which lie below ``root``."""
    name, writer = FORMS[form]
    folder.mkdir(exist_ok=True)
    writer(root, names, folder / name)
    return folder / name
