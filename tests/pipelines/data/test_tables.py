"""Parquet shards and Arrow files of made images against the same images in a folder.

pytest tests/pipelines/data/test_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.dataset import DatasetError, Scan
from pipelines.data.identity import facts_of
from pipelines.data.labels import label
from pipelines.data.scanning import require, scan

Look = Callable[..., Scan]
COUNT = 23
LABELS = [(5 * i) % 7 for i in range(COUNT)]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return lambda root: scan(root, workers=2, cache=tmp_path / "cache", progress=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """JPEGs and PNGs of different sizes, one damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (8 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.{'png' if i % 3 else 'jpg'}")
    (folder / "007.png").write_bytes(b"not an image")
    return folder


def table_of(
    images: Path, *, names: list[str] | None = None, labels: list | None = None, paths: bool = True
) -> pa.Table:
    files = sorted(images.iterdir())
    rows = [{"bytes": file.read_bytes(), "path": file.name if paths else None} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(rows, kind)}
    if labels != []:
        columns["label"] = pa.array(LABELS if labels is None else labels)
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return table


def parquet(folder: Path, table: pa.Table, shards: int = 2, split: str = "validation") -> Path:
    folder.mkdir(exist_ok=True)
    size = -(-table.num_rows // shards)
    for k in range(shards):
        part = table.slice(k * size, size)
        pq.write_table(part, folder / f"{split}-{k:05}-of-{shards:05}.parquet", row_group_size=5)
    (folder / "README.md").write_text("a data set")
    return folder


def arrow(folder: Path, table: pa.Table) -> Path:
    """As ``datasets`` writes it by save_to_disk."""
    folder.mkdir()
    for k, part in enumerate((table.slice(0, 10), table.slice(10))):
        path = folder / f"data-{k:05}-of-00002.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            for batch in part.to_batches(max_chunksize=4):
                writer.write_batch(batch)
    (folder / "state.json").write_text("{}")
    return folder


FORMS = {
    "folder": lambda tmp, table: parquet(tmp / "hf", table),
    "folder above": lambda tmp, table: parquet(tmp / "hf" / "data", table).parent,
    "glob": lambda tmp, table: parquet(tmp / "hf", table) / "validation-*.parquet",
    "one file": lambda tmp, table: parquet(tmp / "hf", table, 1) / "validation-00000-of-00001.parquet",
    "Arrow": lambda tmp, table: arrow(tmp / "saved", table),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_images_are_those_of_the_folder(form: str, images: Path, tmp_path: Path, look: Look) -> None:
    (tmp_path / "hf").mkdir()
    root = FORMS[form](tmp_path, table_of(images))
    require(root)
    expected, found, again = look(images), look(root), look(root)
    columns = ["name", "bytes", "width", "height", "format", "mode"]
    for one in (found, again):
        pd.testing.assert_frame_equal(one.table[columns], expected.table[columns], check_categorical=False)
        assert one.unreadable["name"].tolist() == ["007.png"]
    data, plain = label(found, num_classes=7), label(expected, num_classes=7)
    assert data.table["label"].tolist() == [number for i, number in enumerate(LABELS) if i != 7]
    rows = np.arange(len(data))
    assert [span.read() for span in data.spans(rows)] == [span.read() for span in plain.spans(rows)]
    assert facts_of(data.spans(rows)[0])[3] == facts_of(plain.spans(rows)[0])[3]


def test_rows_without_paths_are_named_by_shard_and_number(images: Path, tmp_path: Path, look: Look) -> None:
    found = look(parquet(tmp_path / "hf", table_of(images, paths=False), shards=3))
    assert found.table["name"].iloc[0] == "validation-00000-of-00003/00000000"
    assert found.table["name"].is_unique


WNIDS = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042"]


def test_labels_are_matched_by_what_their_names_mean(images: Path, tmp_path: Path, look: Look) -> None:
    """Imagenette's labels are 0 to 9 and its names wnids: as numbers they would be other classes of ImageNet."""
    data = label(look(parquet(tmp_path / "hf", table_of(images, names=WNIDS))), num_classes=1000)
    assert data.table["label"].tolist()[:3] == [0, 566, 491]
    assert "the label column -> ImageNet-1k indices of their wnids" in data.label_rule


def test_numbers_of_other_classes_than_the_models_are_refused(images: Path, tmp_path: Path, look: Look) -> None:
    names = list("abcdefg")
    found = look(parquet(tmp_path / "hf", table_of(images, names=names)))
    assert label(found, num_classes=7).has_labels
    with pytest.raises(DatasetError, match=r"has 7 classes \('a', .*the model 1000 outputs.*`class_map`"):
        label(found, num_classes=1000)
    class_map = tmp_path / "map.txt"
    class_map.write_text("".join(f"{name} {10 * i}\n" for i, name in enumerate(names)))
    by_map = label(found, num_classes=1000, class_map=class_map)
    assert by_map.table["label"].tolist()[:3] == [0, 50, 30]


def test_labels_may_be_words_or_absent(images: Path, tmp_path: Path, look: Look) -> None:
    words = [WNIDS[number] for number in LABELS]
    assert label(look(parquet(tmp_path / "a", table_of(images, labels=words))), num_classes=1000).has_labels
    for labels in ([], [-1] * COUNT):
        without = label(look(parquet(tmp_path / f"b{len(labels)}", table_of(images, labels=labels))), num_classes=7)
        assert not without.has_labels


def test_what_cannot_be_meant_is_refused(images: Path, tmp_path: Path, look: Look) -> None:
    table = table_of(images)
    parquet(tmp_path / "hf", table, split="train")
    with pytest.raises(DatasetError, match=r"2 splits .*train\*\.parquet', '.*validation\*\.parquet'"):
        look(parquet(tmp_path / "hf", table))
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(DatasetError, match="has the columns text, and not one of images"):
        look(tmp_path / "text.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "text.parquet").read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"cut\.parquet cannot be read"):
        look(tmp_path / "cut.parquet")
    with pytest.raises(DatasetError, match=r"is an address.*hf download me/imagenet --repo-type dataset"):
        look(Path("hf://datasets/me/imagenet"))


def test_a_file_that_changed_since_the_scan_costs_its_rows_only(images: Path, tmp_path: Path, look: Look) -> None:
    root = parquet(tmp_path / "hf", table_of(images), shards=1)
    data = label(look(root), num_classes=7)
    path = next(root.glob("*.parquet"))
    pq.write_table(table_of(images).slice(1), path)
    with pytest.raises(OSError, match="the file has changed"):
        data.spans(np.arange(3))[0].read()
