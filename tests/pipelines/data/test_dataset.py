"""The scan against folders made here, of known sizes, formats and faults; timm's reader says which files are images.

pytest tests/pipelines/test_dataset.py
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from pipelines.data import dataset
from pipelines.data.dataset import Dataset, DatasetError, Scan, cache_folder, read_header
from pipelines.data.labels import unlabelled
from pipelines.data.scanning import scan

Look = Callable[..., Scan]  # scans ``root``, with other options where given


def encoded(width: int = 8, height: int = 6, format: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if data is None else data)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def look(root: Path, tmp_path: Path) -> Look:
    return lambda **options: scan(root, **{"workers": 2, "cache": tmp_path / "cache", "progress": False, **options})


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """File names whose header was read, in any order."""
    read: list[str] = []

    def recorded(path: str) -> tuple[int, int, str, str, str]:
        read.append(Path(path).name)
        return read_header(path)

    monkeypatch.setattr(dataset, "read_header", recorded)
    return read


# ------------------------------------------------------------------------------------------------------------ the table


def test_sizes_formats_and_modes_are_those_of_the_files(root: Path, look: Look) -> None:
    kinds = {
        "rgb.jpg": (30, 20, "JPEG", "RGB"),
        "grey.JPEG": (11, 47, "JPEG", "L"),
        "print.jpeg": (9, 9, "JPEG", "CMYK"),
        "really_png.JPG": (5, 70, "PNG", "RGBA"),
        "really_webp.jpg": (16, 17, "WEBP", "RGB"),
        "plain.PNG": (2, 1, "PNG", "RGB"),
    }
    for name, (width, height, format, mode) in kinds.items():
        write(root / name, encoded(width, height, format, mode))
    table = look().table
    got = {row.name: (row.width, row.height, row.format, row.mode) for row in table.itertuples(index=False)}
    assert got == kinds
    assert table["bytes"].tolist() == [(root / name).stat().st_size for name in table["name"]]


def test_names_are_posix_paths_in_code_point_order(root: Path, look: Look) -> None:
    names = ["b/2.jpg", "b/10.jpg", "B.jpg", "b.jpg", "b/c/d.jpg", "b-1/x.jpg", "ü/é 1.jpg", "a\n,.jpg"]
    for name in names:
        write(root / name)
    assert look().table["name"].tolist() == sorted(names)
    assert sorted(names)[:3] == ["B.jpg", "a\n,.jpg", "b-1/x.jpg"]


def test_the_same_files_are_images_as_in_timm(root: Path, look: Look) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    for name in ("c/a.jpg", "c/b.JpEg", "d/c.png", "d/d.webp", "d/e.bmp", "d/f.txt", "d/.jpg", "d/jpg", "d/g.jpg.txt"):
        write(root / name)
    paths = [path for path, _ in find_images_and_targets(str(root))[0]]
    found = look()
    beyond_timm = ["d/d.webp", "d/e.bmp"]
    assert sorted(found.table["name"]) == sorted([*(str(Path(path).relative_to(root)) for path in paths), *beyond_timm])
    assert found.other_files == {".txt": 2, "": 2}


def test_exif_orientation_is_ignored(root: Path, look: Look) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    path = write(root / "turned.jpg", encoded(40, 10, exif=exif))
    with Image.open(path) as image:
        assert ImageOps.exif_transpose(image).size == (10, 40)
    assert look().table[["width", "height"]].iloc[0].tolist() == [40, 10]


def test_top_folders_are_listed_with_empty_ones(root: Path, look: Look) -> None:
    write(root / "b/deep/1.jpg")
    (root / "a").mkdir()
    assert look().folders == ("a", "b")


def test_links_to_files_and_folders_are_followed_but_not_upwards(root: Path, tmp_path: Path, look: Look) -> None:
    write(root / "c/1.jpg")
    outside = write(tmp_path / "elsewhere/2.jpg")
    (root / "c/link.jpg").symlink_to(outside)
    (root / "d").symlink_to(outside.parent)
    (root / "c/up").symlink_to(root)
    (root / "c/higher").symlink_to(tmp_path)
    found = look()
    assert found.table["name"].tolist() == ["c/1.jpg", "c/link.jpg", "d/2.jpg"]
    assert found.unreadable["name"].tolist() == ["c/higher", "c/up"]
    assert found.unreadable["reason"].str.contains("link back").all()


def test_workers_and_progress_change_nothing(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(1500):  # more than one chunk a thread
        write(root / f"{index % 7}/{index}.jpg", encoded(1 + index % 50, 1 + index % 31) if index < 40 else None)
    quiet = scan(root, workers=1, cache=tmp_path / "one", progress=False)
    assert capfd.readouterr() == ("", "")
    shown = scan(root, workers=5, cache=tmp_path / "five", progress=True)
    output, errors = capfd.readouterr()
    assert output == "" and "1500/1500" in errors
    pd.testing.assert_frame_equal(quiet.table, shown.table)
    assert len(quiet.table) == 1500


# ----------------------------------------------------------------------------------------------------------- unreadable


def absurd() -> bytes:
    """A whole JPEG whose header says 60000 x 60000."""
    data = bytearray(encoded())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


def zeros_from(share: float) -> bytes:
    """A JPEG with detail, the rest of its bytes zeros; 1 leaves it whole."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    kept = int(len(data.getvalue()) * share)
    return data.getvalue()[:kept] + bytes(len(data.getvalue()) - kept)


def without_adobe(data: bytes) -> bytes:
    assert data[2:4] == b"\xff\xee"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


FAULTS = {
    "empty.jpg": (lambda path: write(path, b""), "an empty file"),
    "page.jpg": (lambda path: write(path, b"<!DOCTYPE html><html>"), r"no image that Pillow knows.*<!DOCTYPE"),
    "cut.jpg": (lambda path: write(path, encoded()[:100]), "OSError: Truncated"),
    "cut.png": (lambda path: write(path, encoded(format="PNG")[:12]), "."),
    "absurd.jpg": (lambda path: write(path, absurd()), "60000x60000 pixels: over the limit of 200 megapixels"),
    "folder.jpg": (lambda path: path.mkdir(), "a folder, not a file"),
    "nowhere.jpg": (lambda path: path.symlink_to("missing"), "a link to nothing"),
    "itself.jpg": (lambda path: path.symlink_to(path.name), "OSError: .*symbolic links"),
    "pipe.jpg": (lambda path: os.mkfifo(path), "not a regular file"),
    "deep.png": (lambda path: write(path, encoded(format="PNG", mode="I;16")), "more than 8 bits"),
    "plain_cmyk.jpg": (lambda path: write(path, without_adobe(encoded(mode="CMYK"))), "without Adobe's marker"),
    "half.jpg": (lambda path: write(path, zeros_from(0.7)), "a JPEG cut off, its end filled with zeros"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_listed_with_its_reason_and_costs_itself_only(name: str, root: Path, look: Look) -> None:
    make, reason = FAULTS[name]
    write(root / "a_good.jpg")
    write(root / "z_good.jpg")
    make(root / name)
    found = look()
    assert found.table["name"].tolist() == ["a_good.jpg", "z_good.jpg"]
    (row,) = found.unreadable.to_dict("records")
    assert (row["name"], row["path"], row["stage"]) == (name, str(root / name), "scan")
    assert pd.Series([row["reason"]]).str.contains(reason, regex=True).all(), row["reason"]
    assert look().unreadable.equals(found.unreadable)  # from the second start's cache too


def test_what_every_decoder_reads_alike_is_taken(root: Path, look: Look) -> None:
    """Also zeros behind the end of a JPEG, as cameras pad their files."""
    write(root / "whole.jpg", zeros_from(1))
    write(root / "padded.jpg", zeros_from(1) + bytes(500))
    write(root / "cmyk.jpg", encoded(mode="CMYK"))
    assert len(look().table) == 3


def test_an_image_inside_a_folder_named_like_one_is_not_taken_for_a_class(root: Path, look: Look) -> None:
    write(root / "a.jpg")
    write(root / "x.jpg/b.jpg")
    found = look()
    assert found.table["name"].tolist() == ["a.jpg"] and found.folders == ()
    assert found.unreadable["name"].tolist() == ["x.jpg"]


def test_a_name_that_is_not_utf8_is_listed(root: Path, look: Look) -> None:
    write(root / "good.jpg")
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/bad\xff.jpg")).write_bytes(encoded())
    except OSError:
        pytest.skip("this file system takes no such name")
    found = look()
    assert len(found.table) == 1
    assert found.unreadable["name"].tolist() == [r"bad\udcff.jpg"]
    assert "rename" in found.unreadable["reason"][0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (FileNotFoundError(2, "No such file"), "vanished during the scan"),
        (ValueError("odd plugin"), "ValueError: odd plugin"),
    ],
)
def test_errors_on_opening_become_reasons(
    error: Exception, reason: str, root: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root / "bad.jpg")
    write(root / "good.jpg")
    real = Image.open

    def opened(path: str) -> Image.Image:
        if path.endswith("bad.jpg"):
            raise error
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(dataset.Image, "open", opened)
        found = look()
    assert found.unreadable[["name", "reason"]].to_numpy().tolist() == [["bad.jpg", reason]]
    assert len(look().table) == 2  # mended, seen at once: failures are not cached


def test_a_file_that_vanishes_before_it_is_read(root: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root / "good.jpg")
    gone = write(root / "gone.jpg")
    walk = dataset._walk

    def walk_and_remove(*arguments: Any) -> Iterator[tuple[str, int, int, str]]:
        yield from list(walk(*arguments))
        gone.unlink()

    monkeypatch.setattr(dataset, "_walk", walk_and_remove)
    found = look()
    assert found.table["name"].tolist() == ["good.jpg"]
    assert found.unreadable["reason"].tolist() == ["vanished during the scan"]


def test_a_folder_that_cannot_be_listed(root: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root / "a/1.jpg")
    write(root / "locked/2.jpg")
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).rstrip("/").endswith("locked"):  # pathlib gives paths
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(dataset.os, "scandir", scandir)
    found = look()
    assert found.table["name"].tolist() == ["a/1.jpg"]
    assert found.unreadable["name"].tolist() == ["locked"]
    assert (
        "cannot be listed, and nobody knows how many images in it: Permission denied" in found.unreadable["reason"][0]
    )


# ------------------------------------------------------------------------------------------------------ nothing to scan


def test_refusals_name_the_input_and_the_remedy(root: Path, tmp_path: Path, look: Look) -> None:
    with pytest.raises(DatasetError, match=rf"no folder {tmp_path / 'nowhere'}: check the path"):
        scan(tmp_path / "nowhere", workers=1, cache=tmp_path)
    file = write(tmp_path / "one.jpg")
    with pytest.raises(DatasetError, match=rf"{file} is a file, not a folder: give the folder"):
        scan(file, workers=1, cache=tmp_path)
    with pytest.raises(DatasetError, match=rf"no images in {root}: there are no files.*\.jpeg, .*\.jpg, .*\.png"):
        look()
    write(root / "a/b.md")
    write(root / "readme")
    with pytest.raises(DatasetError, match=r"only other files \(1 \(no suffix\), 1 \.md\)"):
        look()
    write(root / "bad.jpg", b"")
    with pytest.raises(DatasetError, match=r"none of the 1 image files .*bad.jpg, for one: an empty file\. Check"):
        look()
    with pytest.raises(DatasetError, match="workers=0"):
        look(workers=0)


# ---------------------------------------------------------------------------------------------------------------- cache


def test_a_second_start_reads_only_what_changed(root: Path, look: Look, headers_read: list[str]) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"):
        write(root / name)
    first = look()
    assert sorted(headers_read) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    headers_read.clear()
    pd.testing.assert_frame_equal(look().table, first.table)
    assert headers_read == []

    write(root / "a/2.jpg", encoded(99, 77))  # changed
    write(root / "b/5.jpg", encoded(3, 4))  # added
    (root / "b/3.jpg").unlink()  # removed
    (root / "b/4.jpg").rename(root / "b/0.jpg")  # renamed
    table = look().table.set_index("name")
    assert sorted(headers_read) == ["0.jpg", "2.jpg", "5.jpg"]
    assert table.index.tolist() == ["a/1.jpg", "a/2.jpg", "b/0.jpg", "b/5.jpg"]
    assert (table["width"]["a/2.jpg"], table["height"]["a/2.jpg"]) == (99, 77)

    headers_read.clear()
    assert look().table.set_index("name").equals(table) and headers_read == []


@pytest.mark.parametrize("what", ["size", "time"])
def test_size_and_time_each_tell_a_changed_file(what: str, root: Path, look: Look, headers_read: list[str]) -> None:
    path = write(root / "1.jpg", encoded(8, 6) + b"....")
    before = path.stat()
    look()
    headers_read.clear()
    other = encoded(6, 8)
    path.write_bytes(other if what == "size" else other + b"....")
    new_time_ns = before.st_mtime_ns + (0 if what == "size" else 1000)
    os.utime(path, ns=(new_time_ns, new_time_ns))
    assert (path.stat().st_size == before.st_size) == (what == "time")
    assert look().table[["width", "height"]].iloc[0].tolist() == [6, 8]
    assert headers_read == ["1.jpg"]


def test_failures_are_read_again_on_every_start(root: Path, look: Look, headers_read: list[str]) -> None:
    write(root / "good.jpg")
    write(root / "bad.jpg", b"text")
    look()
    headers_read.clear()
    look()
    assert headers_read == ["bad.jpg"]


def only_cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").rglob("*.parquet")
    return file


def test_a_damaged_cache_is_replaced_with_a_warning(
    root: Path, tmp_path: Path, look: Look, headers_read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write(root / "1.jpg")
    first = look()
    file = only_cache_file(tmp_path)
    for damaged in (b"", b"no parquet", file.read_bytes()[:-20]):
        file.write_bytes(damaged)
        headers_read.clear()
        caplog.clear()
        assert look().table.equals(first.table)
        assert f"{file.name} is damaged" in caplog.text
        assert headers_read == ["1.jpg"]
    headers_read.clear()
    look()
    assert headers_read == []


def test_another_versions_cache_is_not_used(
    root: Path, look: Look, headers_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root / "1.jpg")
    look()
    headers_read.clear()
    monkeypatch.setattr(dataset, "CACHE_VERSION", "older")
    look()
    assert headers_read == ["1.jpg"]


def test_each_root_has_its_own_cache(root: Path, tmp_path: Path, look: Look) -> None:
    write(root / "1.jpg", encoded(10, 20))
    other = tmp_path / "other"
    write(other / "1.jpg", encoded(30, 40))
    os.utime(other / "1.jpg", ns=((root / "1.jpg").stat().st_mtime_ns,) * 2)
    look()
    table = scan(other, workers=1, cache=tmp_path / "cache", progress=False).table
    assert table[["width", "height"]].iloc[0].tolist() == [30, 40]
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 2


def test_an_interrupted_scan_goes_on_where_it_stopped(root: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{index:03}.jpg" for index in range(100)]
    for name in names:
        write(root / name)
    read: list[str] = []

    def until_interrupted(path: str) -> tuple[int, int, str, str, str]:
        read.append(Path(path).name)
        if len(read) == 55:
            raise KeyboardInterrupt
        return read_header(path)

    monkeypatch.setattr(dataset, "CHUNK_FILES", 10)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 10)
    monkeypatch.setattr(dataset, "read_header", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(workers=1)
    first = len(read)
    assert look(workers=1).table["name"].tolist() == names
    assert set(read[first:]) == set(names[50:])


def test_a_cache_that_cannot_be_written_costs_a_warning(
    root: Path, tmp_path: Path, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    write(root / "1.jpg")
    in_the_way = write(tmp_path / "file")
    assert len(look(cache=in_the_way).table) == 1
    assert "MULTICROP_CACHE" in caplog.text


def test_scans_at_the_same_time_leave_one_whole_cache(
    root: Path, tmp_path: Path, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(50):
        write(root / f"{index}.jpg")
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    only_cache_file(tmp_path)
    assert [path.name for path in (tmp_path / "cache/scans").iterdir()] == [only_cache_file(tmp_path).name]
    assert len(look().table) == 50
    assert not caplog.records  # of a damaged cache, or one that cannot be written


def test_the_cache_folder_is_set_by_the_environment(
    root: Path, tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"
    write(root / "1.jpg")
    look(cache=None)
    assert len(list((tmp_path / "elsewhere").rglob("*.parquet"))) == 1
    monkeypatch.delenv("MULTICROP_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "multicrop-bench"


# ------------------------------------------------------------------------------------------------------------- demo.csv

DEMO = "name,label,class,width,height,box_x,box_y,box_w,box_h,bytes\n"


def test_the_demo_table_adds_its_columns_by_name(root: Path, look: Look) -> None:
    write(root / "a/0.jpg", encoded(10, 20))
    write(root / "b/1.jpg", encoded(30, 40))
    write(root / "b/bad.jpg", b"")
    (root / "demo.csv").write_text(
        DEMO + "b/1.jpg,1,b,30,40,5,6,7,8,1\nb/bad.jpg,1,b,1,1,1,1,1,1,1\na/0.jpg,0,a,10,20,1,2,3,4,1\n"
    )
    found = look()
    assert found.is_demo
    assert found.table["name"].tolist() == ["a/0.jpg", "b/1.jpg"]
    assert found.table[["box_x", "box_y", "box_w", "box_h"]].to_numpy().tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.table["class"].tolist() == ["a", "b"]
    assert found.table["bytes"].tolist() == [(root / name).stat().st_size for name in ("a/0.jpg", "b/1.jpg")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0.jpg,0,a,11,20,1,2,3,4,1\n", r"does not fit 1 of 1 files; 0.jpg, for one, is 10x20 and not 11x20: remove"),
        ("1.jpg,0,a,10,20,1,2,3,4,1\n", r"0.jpg, for one, is 10x20 and not nanxnan"),
        ("0.jpg,0,a,10,20,1,2,3,4,1\n" * 2, "names 0.jpg twice"),
    ],
)
def test_a_demo_table_that_does_not_fit_is_refused(lines: str, message: str, root: Path, look: Look) -> None:
    write(root / "0.jpg", encoded(10, 20))
    (root / "demo.csv").write_text(DEMO + lines)
    with pytest.raises(DatasetError, match=message):
        look()


def test_another_table_of_that_name_is_left_alone(root: Path, look: Look) -> None:
    write(root / "0.jpg")
    (root / "demo.csv").write_text("name,price\n0.jpg,3\n")
    found = look()
    assert not found.is_demo and "price" not in found.table


def test_the_demo_set_is_known_by_how_its_table_begins() -> None:
    from pipelines.data import demo

    assert demo.COLUMNS[: len(dataset.DEMO_COLUMNS)] == dataset.DEMO_COLUMNS
    assert demo.TABLE_NAME == dataset.DEMO_TABLE


# -------------------------------------------------------------------------------------------------------------- Dataset


def test_a_dataset_gives_backends_what_they_ask_for(root: Path, look: Look) -> None:
    write(root / "a/0.jpg", encoded(10, 20))
    write(root / "b/1.jpg", encoded(30, 40))
    data = unlabelled(look(), "speed only")
    rows = np.array([1, 0])
    assert len(data) == 2
    assert data.names(rows) == ["b/1.jpg", "a/0.jpg"]
    assert data.paths(rows) == [str(root / "b" / "1.jpg"), str(root / "a" / "0.jpg")]
    sizes = data.sizes(rows)
    assert sizes.dtype == np.int64 and sizes.tolist() == [[40, 30], [20, 10]]  # height, width
    assert data.names(np.array([], np.int64)) == [] and data.sizes(np.array([], np.int64)).shape == (0, 2)


@pytest.fixture
def hundred(root: Path, look: Look) -> Dataset:
    for index in range(100):
        write(root / f"{index % 3}/{index:02}.jpg")
    return unlabelled(look(), "test")


def test_a_subset_depends_on_names_alone(hundred: Dataset) -> None:
    chosen = set(hundred.subset(20, seed=0).table["name"])
    assert len(chosen) == 20
    # Without the images that were not chosen, or half of them, the same are chosen again.
    rest = hundred.table[hundred.table["name"].isin(chosen) | (hundred.table.index % 2 == 0)]
    fewer = dataset.replace(hundred, table=rest.sample(frac=1, random_state=1).reset_index(drop=True))
    assert set(fewer.subset(20, seed=0).table["name"]) == chosen


def test_subsets_nest_keep_the_order_and_differ_by_seed(hundred: Dataset) -> None:
    small, large = hundred.subset(10, seed=3).table, hundred.subset(40, seed=3).table
    assert set(small["name"]) < set(large["name"])
    assert large["name"].tolist() == sorted(large["name"]) and large.index.tolist() == list(range(40))
    assert set(hundred.subset(40, seed=4).table["name"]) != set(large["name"])
    merged = large.merge(hundred.table, on="name", suffixes=("", "_all"))
    assert (merged["width"] == merged["width_all"]).all()


def test_images_that_are_skipped_are_those_of_the_smaller_subset(hundred: Dataset) -> None:
    first, whole = hundred.subset(10, seed=3).table["name"], hundred.subset(40, seed=3).table["name"]
    following = hundred.subset(30, seed=3, skip=10)
    assert set(following.table["name"]) == set(whole) - set(first)
    rest = hundred.subset(None, seed=3, skip=10).table["name"]
    assert set(rest) == set(hundred.table["name"]) - set(first) and rest.tolist() == sorted(rest)
    assert len(hundred.subset(30, seed=3, skip=95)) == 5 and len(hundred.subset(None, seed=3)) == 100
    with pytest.raises(DatasetError, match="`skip` 100 leaves none of 100 images"):
        hundred.subset(None, seed=3, skip=100)


def test_a_subset_is_frozen(hundred: Dataset) -> None:
    """Golden: a change of the hash would make records of earlier runs incomparable."""
    golden = ["0/00.jpg", "0/42.jpg", "0/81.jpg", "1/64.jpg", "2/89.jpg"]
    assert hundred.subset(5, seed=0).table["name"].tolist() == golden


def test_limits_at_the_edges(hundred: Dataset) -> None:
    assert len(hundred.subset(100, seed=0)) == 100 and len(hundred.subset(10**9, seed=0)) == 100
    with pytest.raises(DatasetError, match="`limit`"):
        hundred.subset(0, seed=0)
