"""Tar shards against the unpacked folder: the same table, labels and crops, bit for bit. Bad entries are made one by
one and must cost themselves only; tars cut anywhere, or with bytes changed at random, must not stop or hang a scan.
WebDataset's own rule (copied here as its regular expression) says which members are one sample.

pytest tests/pipelines/test_tars.py
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pipelines
from pipelines.backends import reference
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.data import demo, spans, tars
from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.decode import decode, decode_error
from pipelines.data.labels import label, unlabelled
from pipelines.data.scanning import scan
from pipelines.data.spans import Span
from pipelines.inputspec import InputSpec

Look = Callable[..., Scan]
Member = tuple[str, bytes]
NAMES = [pytest.param(name, marks=pytest.mark.gpu if name == "dali-gpu" else []) for name in pipelines.BACKENDS]


def encoded(width: int = 8, height: int = 6, format: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format, **options)
    return buffer.getvalue()


JPEG = encoded()


def entry(name: str, **settings: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in settings.items():
        setattr(info, key, value)
    return info


def packed(*members: Member | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files given by name and content, and of entries without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                tar.addfile(entry(member[0], size=len(member[1])), io.BytesIO(member[1]))
    return buffer.getvalue()


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """``look(path)``: a scan with its own cache."""
    return lambda root, **options: scan(
        root, **{"workers": 2, "cache": tmp_path / "cache", "progress": False, **options}
    )


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """``shard(*members)`` writes a.tar; ``name=`` another."""

    def write(*members: Member | tarfile.TarInfo, name: str = "a.tar", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(packed(*members, **options))
        return path

    return write


def reasons(found: Scan) -> dict[str, str]:
    return dict(zip(found.unreadable["name"], found.unreadable["reason"], strict=True))


# ------------------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("s-{8..11}.tar", ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]),
        ("s-{08..9}.tar", ["s-08.tar", "s-09.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a,}x.tar", ["ax.tar", "x.tar"]),
        ("s-?.tar", ["s-1.tar", "s-2.tar"]),
        ("{t,s}-*.tar", ["t-1.tar", "s-1.tar", "s-2.tar"]),
        ("one [1] {2}.tar", ["one [1] {2}.tar"]),  # a file of that very name
        ("s-1.tar", ["s-1.tar"]),
        ("S-1.TAR", ["S-1.TAR"]),
    ],
)
def test_patterns_name_tars_as_in_the_shell(pattern: str, names: list[str], tmp_path: Path) -> None:
    for name in [*names, "s-1.tar", "s-2.tar", "other-3.tar"]:
        (tmp_path / name).touch()
    assert tars.shards(tmp_path / pattern) == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{000..009}.tar", r"no tar .*s-000\.tar; 9 of the 10 tars of .* are missing"),
        ("gone.tar", r"no tar .*gone\.tar: check the path"),
        ("no-*.tar", r"no file fits .*no-\*\.tar"),
        ("s-{3..1}.tar", r"\{3\.\.1\} in .* goes down"),
        ("s-{001.tar", "braces of .* do not match"),
        ("s-1}.tar", "braces of .* do not match"),
        ("s-{a}.tar", r"\{a\} in .* is not a range"),
        ("s-{0..99999}{0..99999}.tar", "more than 100,000"),
        ("s-*", r"notes\.txt, of .*, is not a \.tar"),
        *[(name, "is compressed: unpack it") for name in ("a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.zst", "a.tar.xz")],
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, message: str, tmp_path: Path, look: Look) -> None:
    for name in ("s-001.tar", "s-notes.txt", "a.tar.gz"):
        (tmp_path / name).write_bytes(packed(("x.jpg", JPEG)))
    with pytest.raises(DatasetError, match=message):
        look(tmp_path / pattern)


def test_a_tar_whose_name_no_table_can_hold_is_refused(tmp_path: Path, look: Look) -> None:
    (tmp_path / "\udcff.tar").write_bytes(packed(("x.jpg", JPEG)))
    with pytest.raises(DatasetError, match=r"\\udcff\.tar' is not UTF-8: rename it"):
        look(tmp_path / "*.tar")


def test_a_folder_is_a_folder_whatever_its_name_and_one_of_tars_is_told_how(tmp_path: Path, look: Look) -> None:
    folder = tmp_path / "images [1] {a,b}.tar"
    folder.mkdir()
    (folder / "part-0.tar").write_bytes(packed(("x.jpg", JPEG)))
    with pytest.raises(DatasetError, match=r"or '.*/\*\.tar' for the tars in it"):
        look(folder)
    (folder / "x.jpg").write_bytes(JPEG)
    assert look(folder).table["name"].tolist() == ["x.jpg"]


def test_a_tar_without_images_is_refused(shard: Callable[..., Path], look: Look) -> None:
    with pytest.raises(DatasetError, match=r"no images in .*a\.tar: there are only other files \(2 \.txt\)"):
        look(shard(("a.txt", b""), ("b.txt", b"")))
    with pytest.raises(DatasetError, match=r"none of the 1 image files in .*x\.jpg, for one: an empty file"):
        look(shard(("x.jpg", b"")))


# ------------------------------------------------------------------------------------------ the same as in a folder


def a_folder(root: Path) -> Path:
    """Images of many kinds in folders by wnid, with names of many kinds."""
    exif = Image.Exif()
    exif[0x9286] = "x" * 65000  # with the colour profile, the header is longer than what is read of it first
    kinds = {
        "n01440764/a.jpg": encoded(30, 20),
        "n01440764/b.JPEG": encoded(11, 47, mode="L"),
        "n01440764/c.jpeg": encoded(9, 9, mode="CMYK"),
        "n01443537/really png.JPG": encoded(5, 70, "PNG", "RGBA"),
        "n01443537/really_webp.jpg": encoded(16, 17, "WEBP"),
        "n01443537/really_gif.jpg": encoded(4, 3, "GIF", "P"),
        "n01443537/größe é.png": encoded(2, 1, "PNG"),
        "n01443537/" + "long/" * 40 + "name" * 30 + ".png": encoded(3, 1, "PNG"),
        "n01484850/much_ahead.jpg": encoded(40, 10, exif=exif, icc_profile=bytes(90000)),
        "n01484850/no_image.jpg": b"nothing of the kind",
        "n01484850/empty.png": b"",
        "n01484850/x.y.jpg": encoded(7, 7),
        "n01484850/.jpg": b"a hidden file",
        "n01484850/._x.jpg": b"\0\5\x16\7",  # as macOS packs them
        "n01484850/notes.txt": b"",
    }
    for name, data in kinds.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "n01491361").mkdir()  # a class without an image
    return root


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("top", [".", "./", ""])
def test_a_packed_folder_scans_as_the_folder(top: str, format: int, tmp_path: Path, look: Look) -> None:
    root = a_folder(tmp_path / "val")
    with tarfile.open(tmp_path / "val.tar", "w", format=format) as tar:
        for path in [root] if top == "." else sorted(root.iterdir(), reverse=True):
            tar.add(path, "." if top == "." else top + path.name)
    folder, found = look(root), look(tmp_path / "val.tar")
    columns = ["name", "bytes", "width", "height", "format", "mode"]
    pd.testing.assert_frame_equal(found.table[columns], folder.table[columns], check_categorical=False)
    assert (found.folders, found.other_files) == (folder.folders, folder.other_files)
    assert reasons(found) == reasons(folder)
    assert len(found.unreadable) == 4
    one, other = (label(one, num_classes=1000) for one in (folder, found))
    assert one.label_rule == other.label_rule.replace(".tar", "")
    np.testing.assert_array_equal(one.table["label"], other.table["label"])
    rows = np.arange(len(other))
    contents = [span.read() for span in other.spans(rows)]
    assert contents == [Path(path).read_bytes() for path in one.paths(rows)]
    assert other.paths(rows) == [str(tmp_path / "val.tar" / name) for name in one.names(rows)]
    assert other.subset(3, 0).names(np.arange(3)) == one.subset(3, 0).names(np.arange(3))


def test_which_shard_an_image_is_in_changes_nothing(tmp_path: Path, look: Look, shard: Callable[..., Path]) -> None:
    images = [(f"{i % 3}/{i:02}.png", encoded(i + 1, 2, "PNG")) for i in range(20)]
    shard(*images)
    for part in range(3):
        shard(*images[part::3], name=f"p-{part}.tar")
    one, three = look(tmp_path / "a.tar"), look(tmp_path / "p-{0..2}.tar", workers=3)
    assert three.table["tar"].nunique() == 3
    columns = ["name", "bytes", "width", "height"]
    pd.testing.assert_frame_equal(one.table[columns], three.table[columns])
    assert unlabelled(three, "").table["name"].is_monotonic_increasing
    data = unlabelled(three, "")
    assert [span.read() for span in data.spans(np.arange(20))] == [data for _, data in sorted(images)]


def test_the_packed_demo_set_is_the_demo_set(tmp_path: Path, look: Look) -> None:
    root = demo.ensure("val", images=4, cache=tmp_path, workers=1)
    with tarfile.open(tmp_path / "demo.tar", "w") as tar:
        tar.add(root, ".")
    folder, found = (label(look(path), num_classes=len(demo.CLASSES)) for path in (root, tmp_path / "demo.tar"))
    assert found.is_demo and found.label_rule == folder.label_rule
    tables = (data.table[folder.table.columns].astype({"format": str, "mode": str}) for data in (found, folder))
    pd.testing.assert_frame_equal(*tables)


def test_a_row_is_small(look: Look, shard: Callable[..., Path]) -> None:
    found = look(shard(*[(f"{i:06}.jpg", JPEG) for i in range(500)]))
    assert found.table["tar"].cat.codes.dtype.itemsize <= 4
    assert found.table.memory_usage(deep=True).sum() / len(found.table) < 100


# --------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ([("x.cls", b"7")], 7),
        ([("x.cls", b" 007\n")], 7),
        ([("x.json", b'{"label": 3}')], 3),
        ([("x.json", b'{"cls": 4, "caption": "a cat"}')], 4),
        ([("x.json", b'{"label": 3, "cls": 4}')], 3),
        ([("x.json", b'{"label": "cat"}'), ("x.cls", b"5")], 5),
        ([("x.CLS", b"5")], 5),
        ([("./d/../x.cls", b"5"), ("x.json", b'{"cls": 2}')], 2),  # a path that leads up is none
        ([("x.cls", b"5"), ("x.txt", b"a cat"), ("x.other.cls", b"9"), ("d/x.cls", b"9")], 5),
    ],
)
def test_the_label_lies_beside_the_image(
    beside: list[Member], expected: int, shard: Callable[..., Path], look: Look
) -> None:
    for members in ([*beside, ("x.jpg", JPEG)], [("x.jpg", JPEG), *beside]):
        found = look(shard(*members))
        assert found.table["tar_label"].tolist() == [expected]
        data = label(found, num_classes=10)
        assert (data.table["label"].tolist(), data.has_labels) == ([expected], True)
        assert data.label_rule == "the .cls or .json beside each image -> their numbers"


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ([("x.cls", b"5"), ("x.json", b'{"label": 3}')], "its labels x.cls (5) and x.json (3) differ: leave one"),
        ([("x.cls", b"5"), ("x.cls", b"6")], "its label x.cls is in the tar twice: leave one"),
    ],
)
def test_of_two_labels_none_is_taken(beside: list[Member], reason: str, shard: Callable[..., Path], look: Look) -> None:
    found = look(shard(*beside, ("x.jpg", JPEG), ("y.cls", b"1"), ("y.jpg", JPEG)))
    assert found.table["name"].tolist() == ["y.jpg"]
    assert found.unreadable["reason"].tolist() == [reason]


def test_two_equal_labels_are_one(shard: Callable[..., Path], look: Look) -> None:
    found = look(shard(("x.cls", b"5"), ("x.json", b'{"label": 5}'), ("x.jpg", JPEG)))
    assert found.table["tar_label"].tolist() == [5]


@pytest.mark.parametrize("name", ["a.jpg", "d/a.b.jpg", "d.e/a.jpg", ".a.jpg", "a", "d.e/a", "./a.JPG"])
def test_samples_are_webdatasets(name: str) -> None:
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)  # webdataset.tariterators.base_plus_ext
    found = tars.sample_of(name)
    assert (found is None) == (match is None)
    if match and found:
        assert (found[0].lstrip("/"), found[1]) == (match[1], f".{match[2].lower()}")


def test_labels_beside_go_before_folders_and_a_labels_file_before_both(
    tmp_path: Path, shard: Callable[..., Path], look: Look
) -> None:
    found = look(shard(("1/x.jpg", JPEG), ("1/x.cls", b"2"), ("0/y.jpg", JPEG), ("0/y.cls", b"2")))
    assert label(found, num_classes=3).table["label"].tolist() == [2, 2]
    (tmp_path / "labels.txt").write_text("0/y.jpg 0\n1/x.jpg 1\n")
    assert label(found, num_classes=3, labels_file=tmp_path / "labels.txt").table["label"].tolist() == [0, 1]
    assert "tar_label" not in label(found, num_classes=3).table


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", JPEG), ("x.cls", b"10")], "1 of 1 labels in .* are numbers beyond a model of 10 classes"),
        (
            [("x.jpg", JPEG), ("x.cls", b"1"), ("y.jpg", JPEG), ("y.json", b"{}")],
            r"1 of the 2 images in .* have no label beside them \('y\.jpg'\)",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    members: list[Member], message: str, shard: Callable[..., Path], look: Look
) -> None:
    with pytest.raises(DatasetError, match=message):
        label(look(shard(*members)), num_classes=10)


# ---------------------------------------------------------------------------------------------------------- bad entries


def absurd() -> bytes:
    """A whole JPEG whose header says 60000 x 60000."""
    data = bytearray(JPEG)
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


def sparse(name: str) -> tarfile.TarInfo:
    return entry(name, type=tarfile.GNUTYPE_SPARSE)


BAD: dict[str, tuple[list[Member | tarfile.TarInfo], str, str]] = {  # members, the name that is listed, the reason
    "absolute": ([("/etc/x.jpg", JPEG)], "/etc/x.jpg", "absolute or holds '..'"),
    "upwards": ([("c/../../x.jpg", JPEG)], "c/../../x.jpg", "absolute or holds '..'"),
    "symlink": ([entry("c/x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "c/x.jpg", "a link"),
    "hard link": ([entry("c/x.jpg", type=tarfile.LNKTYPE, linkname="c/good.jpg")], "c/x.jpg", "a link"),
    "device": ([entry("c/x.jpg", type=tarfile.CHRTYPE)], "c/x.jpg", "not a regular file"),
    "pipe": ([entry("c/x.jpg", type=tarfile.FIFOTYPE)], "c/x.jpg", "not a regular file"),
    "unknown type": ([entry("c/x.jpg", type=b"V")], "c/x.jpg", "not a regular file"),
    "sparse": ([sparse("c/x.jpg")], "c/x.jpg", "holes left out"),
    "no image": ([("c/x.jpg", b"text")], "c/x.jpg", "no image that Pillow knows.*b'text'"),
    "empty": ([("c/x.jpg", b"")], "c/x.jpg", "an empty file"),
    "bomb": ([("c/x.jpg", absurd())], "c/x.jpg", "60000x60000 pixels: over the limit"),
    "name": ([("c/\udcff.jpg", JPEG)], "c/\\udcff.jpg", "not UTF-8"),
    "cls no number": ([("c/x.jpg", JPEG), ("c/x.cls", b"cat")], "c/x.jpg", r"its label c/x\.cls is b'cat', no whole"),
    "cls negative": ([("c/x.jpg", JPEG), ("c/x.cls", b"-1")], "c/x.jpg", "no whole number"),
    "cls empty": ([("c/x.jpg", JPEG), ("c/x.cls", b"")], "c/x.jpg", "no whole number"),
    "cls huge number": ([("c/x.jpg", JPEG), ("c/x.cls", b"9" * 5000)], "c/x.jpg", "no whole number"),
    "cls absurd": ([("c/x.jpg", JPEG), ("c/x.cls", b"1" * (1 << 21))], "c/x.jpg", "2,097,152 bytes: over 1,048,576"),
    "cls a link": (
        [("c/x.jpg", JPEG), entry("c/x.cls", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "c/x.jpg",
        r"its label c/x\.cls is unreadable: a link",
    ),
    "json broken": ([("c/x.jpg", JPEG), ("c/x.json", b"{")], "c/x.jpg", "is not JSON"),
    "json not UTF-8": ([("c/x.jpg", JPEG), ("c/x.json", b'{"a": "\xff"}')], "c/x.jpg", "is not JSON"),
    "json nested": ([("c/x.jpg", JPEG), ("c/x.json", b"[" * 500_000)], "c/x.jpg", "is not JSON"),
    "json absurd": ([("c/x.jpg", JPEG), ("c/x.json", b" " * (1 << 21))], "c/x.jpg", "over 1,048,576"),
    "json word": ([("c/x.jpg", JPEG), ("c/x.json", b'{"label": "cat"}')], "c/x.jpg", "has label 'cat', no whole"),
    "json fraction": ([("c/x.jpg", JPEG), ("c/x.json", b'{"cls": 1.0}')], "c/x.jpg", "has cls '1.0', no whole"),
    "json truth": ([("c/x.jpg", JPEG), ("c/x.json", b'{"cls": true}')], "c/x.jpg", "has cls 'True', no whole"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_entry_costs_itself_only(kind: str, shard: Callable[..., Path], look: Look) -> None:
    bad, name, reason = BAD[kind]
    found = look(shard(("c/good.jpg", JPEG), ("c/good.cls", b"1"), *bad, ("c/last.jpg", JPEG), ("c/last.cls", b"2")))
    assert found.table["name"].tolist() == ["c/good.jpg", "c/last.jpg"]
    assert found.table["tar_label"].tolist() == [1, 2]
    assert found.unreadable["name"].tolist() == [name]
    assert re.search(reason, found.unreadable["reason"].iloc[0])
    assert found.unreadable["stage"].tolist() == ["scan"]
    pd.testing.assert_frame_equal(look(found.root).unreadable, found.unreadable)  # from the cache


def test_links_and_paths_that_lead_out_are_nothing_to_us_if_they_are_no_images(
    shard: Callable[..., Path], look: Look
) -> None:
    found = look(shard(("../a.txt", b""), entry("b", type=tarfile.SYMTYPE, linkname="/"), ("x.jpg", JPEG)))
    assert (found.table["name"].tolist(), len(found.unreadable)) == (["x.jpg"], 0)
    assert found.other_files == {".txt": 1, "": 1}


def test_a_name_stands_for_one_image(tmp_path: Path, shard: Callable[..., Path], look: Look) -> None:
    shard(("c/x.jpg", JPEG), ("./c//y.jpg", JPEG), name="p-0.tar")
    shard(("c/y.jpg", JPEG), ("z.jpg", JPEG), name="p-1.tar")
    with pytest.raises(DatasetError, match=r"c/y\.jpg comes twice, in .*p-0\.tar and in .*p-1\.tar \(1 such"):
        look(tmp_path / "p-*.tar")
    with pytest.raises(DatasetError, match=r"x\.jpg comes twice, in .*a\.tar and in .*a\.tar"):
        look(shard(("x.jpg", JPEG), ("x.jpg", JPEG)))


def test_bad_entries_of_one_name_are_listed_apart(tmp_path: Path, shard: Callable[..., Path], look: Look) -> None:
    for part in range(2):
        shard(("../x.jpg", JPEG), ("../x.jpg", JPEG), (f"{part}.jpg", JPEG), name=f"p-{part}.tar")
    shard(("0.jpg", b"the same name as a good one"), name="p-2.tar")
    unreadable = look(tmp_path / "p-*.tar").unreadable
    assert len(unreadable) == 5 and unreadable["name"].is_unique
    assert "0.jpg" not in unreadable["name"].tolist()


# -------------------------------------------------------------------------------------------------------- damaged tars


FIVE = [(f"{i}.jpg", encoded(10 + i, 5)) for i in range(5)]
WHOLE = packed(*FIVE)
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as _tar:
    STARTS = [(member.offset, member.offset_data, member.size) for member in _tar]


@pytest.mark.parametrize(
    ("data", "images", "name", "reason"),
    [
        (WHOLE[: STARTS[3][1] + 100], 3, "3.jpg", "the tar ends before it does"),
        (WHOLE[: STARTS[3][1] + STARTS[3][2]], 4, None, "rest of the tar is lost: unexpected end"),
        (WHOLE[: STARTS[3][0] + 200], 3, None, "without an end mark"),
        (WHOLE[: STARTS[3][0]], 3, None, "without an end mark"),
        (WHOLE[: STARTS[3][0]] + b"#" * 512 + WHOLE[STARTS[3][1] :], 3, None, "damaged header at byte"),
        (WHOLE + packed(("later.jpg", JPEG)), 5, None, "more data behind the end mark"),
        (b"#" * 512 + WHOLE[512:], 0, None, "no tar, or damaged at its start, which is b'####"),
        (b"", 0, None, "an empty file"),
        (gzip.compress(WHOLE), 0, None, r"compressed \(gzip\): unpack it"),
    ],
    ids=["in data", "in padding", "in header", "between", "header", "joined", "start", "empty", "gzip"],
)
def test_a_damaged_tar_keeps_what_is_whole(
    data: bytes, images: int, name: str | None, reason: str, tmp_path: Path, look: Look, shard: Callable[..., Path]
) -> None:
    shard(("other.jpg", JPEG), name="b.tar")
    bad = tmp_path / "a.tar"
    bad.write_bytes(data)
    found = look(tmp_path / "{a,b}.tar")
    assert found.table["name"].tolist() == [*[f"{i}.jpg" for i in range(images)], "other.jpg"]
    said = reasons(found)
    assert set(said) == {str(bad), *([name] if name else [])}
    assert re.search(reason, said[name or str(bad)])


def test_wherever_a_tar_is_cut_what_lies_before_is_kept(tmp_path: Path, look: Look) -> None:
    path = tmp_path / "cut.tar"
    for size in range(600, len(WHOLE) - 512, 97):
        path.write_bytes(WHOLE[:size])
        whole = [f"{i}.jpg" for i, (_, start, length) in enumerate(STARTS) if start + length <= size]
        if not whole:
            with pytest.raises(DatasetError, match="none of the"):
                look(path)
            continue
        found = look(path)
        assert found.table["name"].tolist() == whole
        cut_in_end_mark = size >= STARTS[-1][1] + 1024 + 512
        assert (str(path) in reasons(found)) != cut_in_end_mark


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_bytes_changed_at_random_neither_stop_nor_hang_a_scan(format: int, tmp_path: Path, look: Look) -> None:
    whole = packed(*[(f"{'long' * 40}/ü{i}.jpg", JPEG) for i in range(3)], sparse("s.jpg"), format=format)
    rng = np.random.default_rng(0)
    path = tmp_path / "fuzzed.tar"
    for _ in range(120):
        data = bytearray(whole)
        header = int(rng.integers(len(whole) // 512)) * 512
        for at, value in zip(rng.integers(0, 512, 3), rng.choice([0, 45, 128, 255, 48, 57], 3), strict=True):
            data[header + int(at)] = int(value)
        if rng.random() < 0.9:  # so that the header counts
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        path.write_bytes(data)
        try:
            found = look(path)
        except DatasetError:
            continue
        assert len(found.table) + len(found.unreadable) >= 1
        for span in unlabelled(found, "").spans(np.arange(len(found.table))):
            assert len(span.read()) == span.length


@pytest.mark.parametrize("size", [-512, -1024, 1 << 40])
def test_a_forged_size_cannot_lead_back_or_fill_the_memory(size: int, tmp_path: Path, look: Look) -> None:
    for type in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        forged = entry("f.jpg", size=size, type=type).tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "a.tar").write_bytes(WHOLE[: STARTS[2][0]] + forged + WHOLE[STARTS[2][0] :])
        found = look(tmp_path / "a.tar")
        assert found.table["name"].tolist() == ["0.jpg", "1.jpg"]
        assert str(tmp_path / "a.tar") in reasons(found)


@pytest.mark.parametrize("size", [1 << 40, 10**30])
def test_a_size_beyond_the_tar_is_refused_however_large(size: int, tmp_path: Path, look: Look) -> None:
    header = entry("f.jpg", pax_headers={"size": str(size)}).tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "a.tar").write_bytes(WHOLE[: STARTS[2][0]] + header + WHOLE[STARTS[2][0] :])
    found = look(tmp_path / "a.tar")
    assert found.table["name"].tolist() == ["0.jpg", "1.jpg"]
    assert set(reasons(found)) == {"f.jpg", str(tmp_path / "a.tar")}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_forged_length_does_not_fill_the_memory(kind: bytes, tmp_path: Path, look: Look) -> None:
    path, size = tmp_path / "a.tar", 1 << 29
    path.write_bytes(WHOLE[: STARTS[2][0]] + entry("f.jpg", size=size, type=kind).tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, size + (1 << 20))  # the file is as long as it says, and takes no room
    tracemalloc.start()
    try:
        assert look(path).table["name"].tolist() == ["0.jpg", "1.jpg"]
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def read_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars that were indexed anew."""
    read: list[str] = []
    real = tars._Reader.read

    def recorded(self: Any) -> Any:
        read.append(Path(self.path).name)
        return real(self)

    monkeypatch.setattr(tars._Reader, "read", recorded)
    return read


def test_each_tar_is_indexed_once_and_again_when_it_has_changed(
    tmp_path: Path, look: Look, shard: Callable[..., Path], read_shards: list[str]
) -> None:
    members = [("c/x.jpg", JPEG), ("c/x.cls", b"1"), ("c/bad.jpg", b""), entry("e", type=tarfile.DIRTYPE)]
    for part in range(3):
        shard(*[(f"{part}{m[0]}", m[1]) if isinstance(m, tuple) else m for m in members], name=f"p-{part}.tar")
    first = look(tmp_path / "p-*.tar")
    assert sorted(read_shards) == ["p-0.tar", "p-1.tar", "p-2.tar"]
    read_shards.clear()
    again = look(tmp_path / "p-{0,1,2}.tar")
    assert read_shards == []
    pd.testing.assert_frame_equal(again.table, first.table)
    pd.testing.assert_frame_equal(again.unreadable, first.unreadable)
    assert (again.folders, again.other_files) == (first.folders, first.other_files)
    assert first.folders == ("0c", "1c", "2c", "e")
    os.utime(tmp_path / "p-0.tar", ns=(1, 1))  # another time
    info = (tmp_path / "p-1.tar").stat()
    shard(("new.jpg", JPEG), ("new.txt", bytes(20000)), name="p-1.tar")  # another size
    os.utime(tmp_path / "p-1.tar", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert "new.jpg" in look(tmp_path / "p-*.tar").table["name"].tolist()
    assert sorted(read_shards) == ["p-0.tar", "p-1.tar"]


def test_a_tar_packed_again_under_its_old_size_and_time_is_noticed(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    image = ("1.jpg", encoded())
    path.write_bytes(packed(image, ("1.cls", b"3")))
    assert look(path).table["tar_label"].tolist() == [3]
    info = path.stat()
    path.write_bytes(packed(image, ("1.cls", b"7")))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_size == info.st_size
    assert look(path).table["tar_label"].tolist() == [7]


def test_a_damaged_cache_is_replaced_with_a_warning(
    tmp_path: Path,
    look: Look,
    shard: Callable[..., Path],
    read_shards: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = shard(("x.jpg", JPEG))
    first = look(path)
    (file,) = (tmp_path / "cache" / "scans").iterdir()
    for damage in (b"no parquet", file.read_bytes()[:-40]):
        file.write_bytes(damage)
        caplog.clear()
        pd.testing.assert_frame_equal(look(path).table, first.table)
        assert re.search("cache .* is damaged", caplog.text)
        read_shards.clear()
        look(path)
        assert read_shards == []


def test_trouble_with_reading_is_not_remembered(
    look: Look, shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(("x.jpg", JPEG), ("y.jpg", encoded(900, 900)), ("y.cls", b"1"), ("x.cls", b"1"))
    real, broken = tars.pread, len(JPEG)

    def failing(file: int, span: Span, most: int | None = None) -> bytes:
        if span.length == broken:
            raise OSError(5, "Input/output error")
        return real(file, span, most)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "pread", failing)
        found = look(path)
    assert found.table["name"].tolist() == ["y.jpg"]
    assert "Input/output error" in reasons(found)["x.jpg"]
    assert len(look(path).table) == 2


def test_a_tar_that_cannot_be_opened_stops_the_scan(tmp_path: Path, look: Look, shard: Callable[..., Path]) -> None:
    shard(("x.jpg", JPEG))
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(DatasetError, match=r"b\.tar is not a regular file"):
        look(tmp_path / "{a,b}.tar")


# ---------------------------------------------------------------------------------------------------------------- spans


def test_spans_are_read_whole_in_part_and_in_short_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    data = bytes(range(256))
    path.write_bytes(data)
    real = os.pread
    for most_at_once in (1000, 7):
        monkeypatch.setattr(spans.os, "pread", lambda file, n, at, most=most_at_once: real(file, min(n, most), at))
        assert Span(str(path)).read() == data
        assert Span(str(path)).read(10) == data[:10]
        assert Span(str(path), 20, 100).read() == data[20:120]
        assert Span(str(path), 20, 100).read(30) == data[20:50]
        assert Span(str(path), 256, 0).read() == b""
        with pytest.raises(OSError, match="ends at byte 256 and was to be read up to 300"):
            Span(str(path), 200, 100).read()
    with pytest.raises(FileNotFoundError):
        Span(str(tmp_path / "none"), 0, 1).read()


def test_pil_reads_spans_and_says_where_a_bad_one_lies(tmp_path: Path, shard: Callable[..., Path], look: Look) -> None:
    path = shard(("x.png", encoded(3, 4, "PNG")))
    (span,) = unlabelled(look(path), "").spans(np.array([0]))
    assert decode(span).shape == (4, 3, 3)
    assert decode_error(span) == "reads it"
    said = decode_error(span._replace(offset=0))
    assert said == f"UnidentifiedImageError: cannot identify image file byte 0 of {str(path)!r}"
    assert "has changed since the scan" in decode_error(span._replace(offset=1 << 30))


# ------------------------------------------------------------------------------------------------------------- backends


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if reason := pipelines.unusable(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def pair(tmp_path: Path, random_images: Any, look: Look) -> tuple[Dataset, Dataset]:
    """The same images in a folder and in three tars; one of them is not an image behind its header."""
    root = tmp_path / "images"
    for path in (random_images.root / name for name in random_images.listed):
        copy = root / path.relative_to(random_images.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (root / "Ordner 0" / "cut.jpg").write_bytes(encoded(90, 70, quality=100)[:650])
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    for part in range(3):
        with tarfile.open(tmp_path / f"part-{part}.tar", "w") as tar:
            for path in paths[part::3]:
                tar.add(path, path.relative_to(root).as_posix())
    folder, found = look(root), look(tmp_path / "part-{0..2}.tar")
    return unlabelled(folder, ""), unlabelled(found, "")


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(name: str, source: Any, planner: Planner, **config: Any) -> Any:
        # Without the JPEG engine: which images it takes depends on the batch, and its pixels may differ from CUDA's.
        settings = {"batch_images": 4, "workers": 2, "hw_load": 0.0, **config}
        made.append(pipelines.backend(name)(source, planner, LoadConfig(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


PLANNER = Planner(InputSpec(64, 49), union([parse_policy("CC+3RC+2MRC")]), 0)


def crops(backend: Any, rows: np.ndarray) -> tuple[dict[tuple[int, int], torch.Tensor], dict[int, str]]:
    """(row, view) -> crop, and row -> reason."""
    found, failed = {}, {}
    for batch in backend.batches(rows):
        failed.update({failure.row: failure.reason for failure in batch.failed})
        for group in batch.groups:
            for crop, row, view in zip(group.crops.cpu(), group.image.tolist(), group.view.tolist(), strict=True):
                if row >= 0:
                    found[row, view] = crop
    return found, failed


def test_crops_are_those_of_the_unpacked_folder(name: str, pair: tuple[Dataset, Dataset], make: Any) -> None:
    folder, packed = pair
    rows = np.arange(len(folder))
    assert folder.names(rows) == packed.names(rows)
    backends = [make(name, source, PLANNER) for source in pair]
    (expected, failed_there), (found, failed) = (crops(backend, rows) for backend in backends)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], crop) for key, crop in expected.items())
    cut = folder.names(rows).index("Ordner 0/cut.jpg")
    assert list(failed) == list(failed_there) == [cut]
    assert ("truncated" in failed[cut]) == ("truncated" in failed_there[cut])
    expected_frames, frames = (dict(backend.frames(rows)) for backend in backends)
    assert expected_frames.keys() == frames.keys()
    assert all(np.array_equal(frames[row], frame) for row, frame in expected_frames.items())
    reference.check(backends[1], packed, PLANNER, rows)
    for what in ("read", "decode", "resize"):
        assert sum(backends[1].stage(what, np.delete(rows, cut))) == len(rows) - 1


@pytest.mark.parametrize("change", ["cut off", "removed", "replaced"])
def test_a_tar_that_changes_after_the_scan_costs_its_images_only(
    change: str, name: str, pair: tuple[Dataset, Dataset], make: Any
) -> None:
    folder, packed = pair
    rows = np.setdiff1d(np.arange(len(folder)), [folder.names(np.arange(len(folder))).index("Ordner 0/cut.jpg")])
    expected, _ = crops(make(name, folder, PLANNER), rows)
    places = packed.spans(rows)
    path = Path(places[0].path)
    hit = [row for row, span in zip(rows.tolist(), places, strict=True) if span.path == str(path)]
    first = min(span.offset for span in places if span.path == str(path))
    if change == "cut off":
        os.truncate(path, first + 600)
    elif change == "removed":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    found, failed = crops(make(name, packed, PLANNER), rows)
    assert sorted(failed) == hit and 0 < len(hit) < len(rows)
    if change != "replaced":
        assert all(str(path) in reason for reason in failed.values())
    assert found.keys() == {key for key in expected if key[0] not in hit}
    assert all(torch.equal(crop, expected[key]) for key, crop in found.items())


@pytest.mark.dali
def test_dali_may_map_files_unless_told_otherwise(
    pair: tuple[Dataset, Dataset], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.backends import dali as backend_dali

    told: list[bool] = []
    real = backend_dali.fn.io.file.read  # type: ignore[attr-defined]

    def recorded(path: Any, dont_use_mmap: bool) -> Any:
        told.append(dont_use_mmap)
        return real(path, dont_use_mmap=dont_use_mmap)

    monkeypatch.setattr(backend_dali.fn.io.file, "read", recorded)  # type: ignore[attr-defined]
    for data, mmap in ((pair[0], True), (pair[0], False), (pair[1], True)):  # tars are read here, never mapped
        assert list(make("dali-cpu", data, PLANNER, mmap=mmap).stage("read", np.arange(3))) == [3]
    assert told == [False, True]


def test_labels_of_names_with_dots_of_their_own_are_found(tmp_path: Path, look: Look) -> None:
    image = encoded(4, 3)
    with tarfile.open(tmp_path / "dots.tar", "w") as tar:
        for number in range(2):
            for suffix, data in ((".jpg", image), (".cls", b"%d" % number)):
                member = tarfile.TarInfo(f"img.v2.{number:04}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert label(look(tmp_path / "dots.tar"), num_classes=5).table["label"].tolist() == [0, 1]


def of_tars(broken: bool = False) -> bytes:
    """A tar a class, in a tar, as ImageNet's training images are downloaded."""
    inner = {
        wnid: packed(*((f"{wnid}_{i}.JPEG", encoded(8 + i, 6 + k)) for i in range(3)))
        for k, wnid in enumerate(("n01440764", "n02123045"))
    }
    if broken:
        inner["n01440764"] = inner["n01440764"][:2000]
        inner["n01443537"] = b"#" * 600
    return packed(*((f"{wnid}.tar", data) for wnid, data in inner.items()))


def test_a_tar_of_tars_is_read_as_if_each_were_unpacked_into_its_folder(tmp_path: Path, look: Look) -> None:
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(of_tars())
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(tmp_path / "train" / member.name.removesuffix(".tar"), filter="data")
    found, plain = look(tmp_path / "ILSVRC2012_img_train.tar"), look(tmp_path / "train")
    columns = ["name", "bytes", "width", "height", "format", "mode"]
    pd.testing.assert_frame_equal(found.table[columns], plain.table[columns], check_categorical=False)
    data, expected = label(found, num_classes=1000), label(plain, num_classes=1000)
    assert data.table["label"].tolist() == expected.table["label"].tolist() == [0, 0, 0, 281, 281, 281]
    rows = np.arange(6)
    assert [span.read() for span in data.spans(rows)] == [span.read() for span in expected.spans(rows)]
    again = look(tmp_path / "ILSVRC2012_img_train.tar")
    pd.testing.assert_frame_equal(again.table, found.table)


def test_what_is_lost_of_a_tar_within_a_tar_is_listed_by_its_name(tmp_path: Path, look: Look) -> None:
    (tmp_path / "train.tar").write_bytes(of_tars(broken=True))
    found = look(tmp_path / "train.tar")
    assert found.table["name"].tolist() == [
        "n01440764/n01440764_0.JPEG",
        *(f"n02123045/n02123045_{i}.JPEG" for i in range(3)),
    ]
    said = reasons(found)
    assert "no tar, or damaged at its start" in said["n01443537.tar"]
    assert set(said) <= {"n01440764/n01440764_1.JPEG", "n01440764.tar", "n01443537.tar"} and len(said) == 2
