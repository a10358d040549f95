"""The demo set: its files against themselves (determinism, restart), its plans against ImageNet's published shares,
its boxes against the pictures, its headers as Pillow reads them back."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from pipelines.data import demo

PLANNED = 4000  # images planned, not rendered: the shares below have a standard error of at most 0.7 %
RENDERED = 32


@pytest.fixture(scope="module")
def plans() -> list[demo.Plan]:
    return [demo.plan("val", index) for index in range(PLANNED)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure("val", RENDERED, cache=tmp_path_factory.mktemp("cache"), workers=1)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------- determinism and restart


def test_two_processes_write_the_bytes_of_one(root: Path, tmp_path: Path) -> None:
    assert RENDERED >= demo.WORTH_PROCESSES  # else this would compare one with one
    assert contents(demo.ensure("val", RENDERED, cache=tmp_path, workers=2)) == contents(root)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(root: Path, tmp_path: Path) -> None:
    small = contents(demo.ensure("val", 5, cache=tmp_path))
    large = contents(root)
    table = small.pop(demo.TABLE_NAME)
    assert len(small) == 5
    assert all(large[name] == data for name, data in small.items())
    assert large[demo.TABLE_NAME].startswith(table)


def test_splits_differ() -> None:
    train, val = demo.plan("train", 0), demo.plan("val", 0)
    assert (train.solid.x, train.solid.y) != (val.solid.x, val.solid.y)


def test_an_interrupted_set_is_continued(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written: list[int] = []
    original = demo._write_one

    def stop_at_the_seventh(root: Path, one: demo.Plan) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(one.index)
        original(root, one)

    monkeypatch.setattr(demo, "_write_one", stop_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        demo.ensure("val", RENDERED, cache=tmp_path, workers=1)
    unfinished = tmp_path / root.name
    assert not demo.is_demo(unfinished)
    assert len(list(unfinished.rglob("*.jpg"))) == 6
    cut = unfinished / demo.plan("val", 2).name
    cut.write_bytes(cut.read_bytes()[:-500])

    def count(root: Path, one: demo.Plan) -> None:
        written.append(one.index)
        original(root, one)

    written.clear()
    monkeypatch.setattr(demo, "_write_one", count)
    assert contents(demo.ensure("val", RENDERED, cache=tmp_path, workers=1)) == contents(root)
    assert sorted(written) == [2, *range(6, RENDERED)]
    assert "writing" in capfd.readouterr().err  # the progress bar, off stdout


def test_a_complete_set_is_left_alone_and_a_damaged_file_replaced(tmp_path: Path) -> None:
    root = demo.ensure("val", 4, cache=tmp_path)
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    demo.ensure("val", 4, cache=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")} == times
    damaged, lost, *_ = sorted(times)
    damaged.write_bytes(b"not an image")
    lost.unlink()
    demo.ensure("val", 4, cache=tmp_path)
    assert contents(root) == before


def test_no_temporary_file_is_left(root: Path) -> None:
    assert {path.suffix for path in root.rglob("*") if path.is_file()} == {".jpg", ".csv"}


def test_a_failing_child_is_an_error(tmp_path: Path) -> None:
    plans = [demo.plan("val", index) for index in range(demo.WORTH_PROCESSES)]
    with pytest.raises(RuntimeError, match="run again to continue"):  # the class folders do not exist
        demo._write_all(tmp_path, plans, workers=2)


# ------------------------------------------------------------------------------------------------ ImageNet's statistics


def test_sizes_are_those_of_imagenet(plans: list[demo.Plan]) -> None:
    width, height = (np.array([getattr(one, side) for one in plans]) for side in ("width", "height"))
    ratio = np.maximum(width, height) / np.minimum(width, height)
    assert (np.median(width), np.median(height)) == (500, 375)
    assert np.mean(height > width) == pytest.approx(0.26, abs=0.02)
    assert np.mean(height == width) == pytest.approx(0.04, abs=0.01)
    quantiles = np.quantile(ratio, (0.05, 0.25, 0.5, 0.75, 0.95))
    np.testing.assert_allclose(quantiles, (1.03, 1.33, 1.33, 1.50, 1.59), atol=0.03)
    assert 0.005 < np.mean(ratio > 2) < 0.04
    assert min(width.min(), height.min()) > 64


def test_planned_file_sizes_are_those_of_imagenet(plans: list[demo.Plan]) -> None:
    bytes_per_pixel = np.array([one.bytes_per_pixel for one in plans])
    pixels = np.array([one.width * one.height for one in plans])
    quantiles = np.quantile(bytes_per_pixel, (0.05, 0.25, 0.5, 0.75, 0.95))
    np.testing.assert_allclose(quantiles, (0.15, 0.32, 0.58, 0.79, 1.10), rtol=0.06)
    assert np.mean(bytes_per_pixel * pixels) == pytest.approx(110e3, rel=0.06)


def test_subsamplings_have_imagenets_shares(plans: list[demo.Plan]) -> None:
    names, counts = np.unique([one.subsampling for one in plans], return_counts=True)
    shares = dict(zip(names.tolist(), (counts / len(plans)).tolist(), strict=True))
    assert shares == pytest.approx({"grey": 0.02, "420": 0.20, "444": 0.75, "422": 0.03}, abs=0.03)


def test_written_files_have_about_the_planned_bytes(root: Path) -> None:
    table = demo.read_table(root)
    planned = np.array([demo.plan("val", index).bytes_per_pixel for index in range(RENDERED)])
    miss = table["bytes"] / (table["width"] * table["height"]) / planned
    assert miss.median() == pytest.approx(1, abs=0.05)
    assert miss.between(0.8, 1.25).mean() > 0.95


def test_training_images_have_the_composition_of_val_at_160_pixels(plans: list[demo.Plan]) -> None:
    train = [demo.plan("train", index) for index in range(2000)]
    val = plans[:2000]
    assert {one.short_side for one in train} == {160}

    def composition(one: demo.Plan) -> tuple[float, ...]:
        _, _, width, height = one.box
        return one.width / one.height, width / one.short_side, height / one.short_side, abs(one.solid.x)

    first, second = (np.array([composition(one) for one in some]) for some in (train, val))
    np.testing.assert_allclose(first.mean(axis=0), second.mean(axis=0), rtol=0.06)
    np.testing.assert_allclose(first.std(axis=0), second.std(axis=0), rtol=0.08)


def test_a_reduced_val_picture_looks_like_a_training_picture() -> None:
    """Contrast and fineness at a short side of 110, where both are used."""

    def measures(split: str) -> np.ndarray:
        values = []
        for index in range(24):
            picture = Image.fromarray(demo.render(demo.plan(split, index))).convert("L")
            reduction = 110 / min(picture.size)
            small = picture.resize([round(side * reduction) for side in picture.size], Image.Resampling.BILINEAR)
            pixels = np.asarray(small, dtype=float)
            values.append((pixels.std(), np.abs(np.diff(pixels)).mean()))
        return np.array(values).mean(axis=0)

    np.testing.assert_allclose(measures("train"), measures("val"), rtol=0.25)


# --------------------------------------------------------------------------------------------- the files and the table


def test_files_are_as_the_table_says(root: Path) -> None:
    table = demo.read_table(root)
    assert tuple(table.columns) == demo.COLUMNS
    assert len(table) == RENDERED
    named = {0: "444", 1: "422", 2: "420"}  # Pillow's numbers
    seen = set()
    for row in table.to_dict("records"):
        assert (root / row["name"]).stat().st_size == row["bytes"]
        assert row["name"].split("/")[0] == row["class"] == demo.CLASSES[row["label"]]
        with Image.open(root / row["name"]) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (row["width"], row["height"])
            subsampling = "grey" if picture.mode == "L" else named[JpegImagePlugin.get_sampling(picture)]
        assert subsampling == row["subsampling"]
        seen.add(subsampling)
    assert seen >= {"444", "420"}


@pytest.mark.parametrize("subsampling", demo.PILLOW_SUBSAMPLING)
def test_every_subsampling_can_be_read_back(subsampling: str, plans: list[demo.Plan], tmp_path: Path) -> None:
    one = next(one for one in plans if one.subsampling == subsampling)
    path = tmp_path / "one.jpg"
    path.write_bytes(demo.encode(one, demo.render(one)))
    with Image.open(path) as picture:
        if subsampling == "grey":
            assert picture.mode == "L"
        else:
            assert JpegImagePlugin.get_sampling(picture) == demo.PILLOW_SUBSAMPLING[subsampling]


def test_labels_are_balanced_from_the_first_images_on(root: Path) -> None:
    counts = demo.read_table(root)["label"].value_counts()
    assert len(counts) == len(demo.CLASSES) == 16
    assert set(counts) == {RENDERED // 16}


def test_boxes_lie_inside(plans: list[demo.Plan]) -> None:
    left, top, width, height = np.array([one.box for one in plans]).T
    sizes = np.array([(one.width, one.height) for one in plans]).T
    assert min(left.min(), top.min()) >= 0
    assert np.all(left + width <= sizes[0])
    assert np.all(top + height <= sizes[1])
    assert np.all(np.sqrt(width * height) / sizes.min(axis=0) > 0.2)


def test_objects_lie_off_centre_and_some_are_elongated_along_the_long_side(plans: list[demo.Plan]) -> None:
    boxes = np.array([one.box for one in plans])
    sizes = np.array([(one.width, one.height) for one in plans])
    offset = (boxes[:, :2] + boxes[:, 2:] / 2 - sizes / 2) / sizes
    assert np.all(np.abs(offset.mean(axis=0)) < 0.01)
    assert np.all(offset.std(axis=0) > 0.12)
    landscape = sizes[:, 0] >= sizes[:, 1]
    along = np.where(landscape, boxes[:, 2] / boxes[:, 3], boxes[:, 3] / boxes[:, 2])
    assert np.quantile(along, 0.9) > 1.3
    assert np.quantile(along, 0.1) > 0.75


def even_pattern(value: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.full_like(u, value)


def test_the_box_is_where_the_object_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures that differ in the texture's colour only: what differs is the object, as far as nothing hides it."""
    monkeypatch.setattr(demo, "_paint_decoys", lambda *_: None)
    monkeypatch.setattr(demo, "_paint_occluders", lambda *_: None)
    for index in range(6):
        one = demo.plan("val", index)
        pictures = []
        for value in (-9.0, 9.0):
            monkeypatch.setitem(
                demo.PATTERNS, demo.TEXTURES[one.label % len(demo.TEXTURES)], partial(even_pattern, value)
            )
            pictures.append(demo.render(one).astype(int))
        rows, columns = np.nonzero(np.abs(pictures[1] - pictures[0]).max(axis=2) > 8)
        left, top, width, height = one.box
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # Edges are soft, so that the outermost pixels differ too little to count, or a little beyond the outline.
        np.testing.assert_allclose(found, (left, top, left + width, top + height), atol=0.03 * one.short_side)


# ------------------------------------------------------------------------------------------------------------ the edges


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'test' is not train, val or fresh-NUMBER"):
        demo.ensure("test", cache=tmp_path)
    with pytest.raises(ValueError, match="images=0"):
        demo.ensure("val", 0, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "named"))
    root = demo.ensure("val", 1)
    assert root.parent == tmp_path / "named"
    assert f"v{demo.VERSION}" in root.name
    assert f"seed{demo.SEED}" in root.name


def test_is_demo(root: Path, tmp_path: Path) -> None:
    assert demo.is_demo(root)
    assert demo.is_demo(str(root))
    assert not demo.is_demo(tmp_path)
    (tmp_path / demo.TABLE_NAME).write_text("some,other,table\n")
    assert not demo.is_demo(tmp_path)


def test_the_command_line_prints_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.data.demo", "val", "--images", "2", "--cache", str(tmp_path)]
    repository = Path(demo.__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == f"{demo.ensure('val', 2, tmp_path)}\n"  # and nothing else: commands take it by $(...)


def test_it_imports_no_network_library() -> None:
    code = (
        "import sys, pipelines.data.demo; "
        "print([m for m in ('torch', 'torchvision', 'timm', 'nvidia') if m in sys.modules])"
    )
    repository = Path(demo.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fresh_splits_are_other_images_of_vals_kind(tmp_path: Path) -> None:
    roots = {split: demo.ensure(split, 3, tmp_path) for split in ("val", "fresh-1", "fresh-2")}
    tables = {split: demo.read_table(root) for split, root in roots.items()}
    assert all(demo.is_demo(root) and len(tables[split]) == 3 for split, root in roots.items())
    assert len({(roots[split] / tables[split]["name"][0]).read_bytes() for split in roots}) == 3
    assert tables["fresh-1"]["label"].tolist() == tables["val"]["label"].tolist()
    assert demo.default_images("fresh-12") == demo.SPLITS["val"]
    for wrong in ("fresh", "fresh-", "fresh--1", "fresh-01", "fresh-1/..", "fresh-1.5"):
        with pytest.raises(ValueError, match="fresh-NUMBER"):
            demo.ensure(wrong, 1, tmp_path)
