"""multicrop-bench predict: three formats that say the same, going on after an interruption, refusals in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench import predict
from models import MultiCrop
from models.multicrop import ImageResult


@pytest.fixture
def folder(demo_root: Path, tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:5]):
        shutil.copy(path, images / f"{number}.jpg")
    (images / "3-text.jpg").write_text("no image")
    return images


@pytest.fixture
def command(folder: Path, weights_file: Path) -> Callable[..., int]:
    def call(*argv: str, images: Path | list[Path] = folder) -> int:
        model = ["--model", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64"]
        how = ["--policy", "CC+2RC", "--data-backend", "torchvision", "-b", "8", "-q"]
        named = map(str, images if isinstance(images, list) else [images])
        return predict.main([*named, *model, *how, *argv])

    return call


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=15))


def test_the_formats_say_the_same_as_the_python_interface(
    command: Callable[..., int], folder: Path, weights_file: Path, tmp_path: Path
) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        assert command("--topk", "2", "--out", str(tmp_path / f"out.{ending}")) == 0
    classify = MultiCrop(
        "test_resnet", checkpoint=weights_file, img_size=64, policy="CC+2RC", backend="torchvision", batch_size=8
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [predict.row_of(image, 2) for image in classify(folder)]
    assert [line["filename"] for line in lines] == ["0.jpg", "1.jpg", "2.jpg", "3-text.jpg", "3.jpg", "4.jpg"]
    assert [bool(line["error"]) for line in lines] == [False] * 3 + [True] + [False] * 2
    parquet = pd.read_parquet(tmp_path / "out.parquet")
    csv = pd.read_csv(tmp_path / "out.csv").astype({"index_0": "Int64", "index_1": "Int64"})
    assert list(parquet.columns) == list(csv.columns) == list(lines[0])
    for a, b, line in zip(as_rows(parquet), as_rows(csv), lines, strict=True):
        for name in line:
            expected = pytest.approx(line[name]) if isinstance(line.get(name), float) else line.get(name)
            assert a[name] == b[name] == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_several_files_are_the_folders_rows(
    command: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell makes them of photos/*.jpg. (Which random crops an image has depends on its name.)"""
    one, several = tmp_path / "one.jsonl", tmp_path / "several.jsonl"
    files = sorted(folder.glob("*.jpg"))
    assert command("--policy", "CC", "--out", str(one)) == 0
    assert command("--policy", "CC", "--out", str(several), images=files) == 0
    expected, found = ([json.loads(line) for line in path.read_text().splitlines()] for path in (one, several))
    assert [row["filename"] for row in found] == list(map(str, files))
    assert [{**row, "filename": Path(row["filename"]).name} for row in found] == expected
    capsys.readouterr()
    for other in (folder, tmp_path / "nowhere.jpg"):
        with pytest.raises(SystemExit, match="2"):
            command(images=[*files, other])
        assert f"several IMAGES must all be files: {other} is not;" in capsys.readouterr().err


def test_without_a_file_the_table_is_printed(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--topk", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "filename,error,index_0,label_0,name_0,prob_0" and len(lines) == 7
    assert command("--topk", "1", "--results-format", "json") == 0
    said = capsys.readouterr()
    assert [json.loads(line)["filename"] for line in said.out.splitlines()] == [
        line.split(",")[0] for line in lines[1:]
    ]
    assert said.err == ""  # -q: no progress bar


@pytest.mark.parametrize(
    ("option", "reason"),
    {
        "--max-megapixels=0.5": "over the limit of 0.5 megapixels (`max_megapixels`)",
        "--max-megabytes=0.7": "over the limit of 0.7 MB (`max_megabytes`)",
        "--max-resized-megapixels=0.1": "",  # cut window by window
    }.items(),
)
@pytest.mark.parametrize("as_list", [False, True])
def test_the_limits_of_a_run_hold_here_too(
    option: str, reason: str, as_list: bool, command: Callable[..., int], folder: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 6000, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "wide.jpg", quality=98)
    images = folder / "*.jpg" if as_list else folder
    for given, refused in ((option, True), ("-q", False)):
        out = tmp_path / f"out{refused}.jsonl"
        assert command(given, "--out", str(out), images=images) == 0
        errors = {Path(row["filename"]).name: row["error"] for row in map(json.loads, out.read_text().splitlines())}
        error = errors.pop("wide.jpg")
        assert reason in (error or "") if refused else error is None
        assert [name for name, error in errors.items() if error] == ["3-text.jpg"]


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_command_is_continued(
    after: int, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command("--out", str(tmp_path / "whole.csv")) == 0
    seen: list[str] = []
    real = predict.row_of

    def interrupted(image: ImageResult, k: int) -> dict[str, Any]:
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(image.name)
        return real(image, k)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "row_of", interrupted)
        assert command("--out", str(tmp_path / "out.csv")) == 130
    assert not (tmp_path / "out.csv").exists()
    lines = tmp_path / ".out.csv.lines"
    lines.write_text(lines.read_text() + '{"filename": "4.j')  # cut off by a kill
    again: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(predict, "row_of", lambda image, k: again.append(image.name) or real(image, k))
        assert command("--out", str(tmp_path / "out.csv")) == 0
    assert len(again) == 6 - after and not set(again) & set(seen)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_grew_while_interrupted_loses_and_repeats_nothing(
    command: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = predict.row_of
    seen: list[str] = []

    def interrupted(image: ImageResult, k: int) -> dict[str, Any]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(image.name)
        return real(image, k)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "row_of", interrupted)
        assert command("--out", str(tmp_path / "out.csv")) == 130
    shutil.copy(folder / "4.jpg", folder / "0-new.jpg")  # comes before what was classified
    assert command("--out", str(tmp_path / "out.csv")) == 0
    assert command("--out", str(tmp_path / "whole.csv")) == 0
    found, whole = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "whole.csv")
    assert found["filename"].tolist()[:2] == seen == ["0.jpg", "1.jpg"]
    pd.testing.assert_frame_equal(found.sort_values("filename", ignore_index=True), whole)


def test_the_rest_of_another_command_is_refused(
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out.csv")
    with monkeypatch.context() as patch:
        patch.setattr(predict, "row_of", lambda image, k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("--out", out) == 130
    assert command("--out", out, "--seed", "3") == 2
    said = capsys.readouterr().err
    assert "of another command" in said and "--seed" in said and "was 0 and is 3" in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--out", "x.txt"], "does not end in .csv"),
        (["--results-format", "parquet"], "--results-format parquet is not text"),
        (["--topk", "0"], "'0' is not a positive integer"),
        (["--level", "votes"], "votes"),
        (["--policy", "7FC"], "a policy is a sum of terms"),
        (["--model", "no_such_network"], "no_such_network"),
        (["--device", "tpu"], "--device tpu is not supported"),
    ],
)
def test_mistakes_end_in_a_sentence(
    argv: list[str], says: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = command(*argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2 and says in capsys.readouterr().err


def test_a_wrong_path_an_empty_folder_and_an_existing_file(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(images=tmp_path / "nowhere") == 2
    assert "there is no file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command(images=tmp_path / "empty") == 2
    assert "no images" in capsys.readouterr().err
    (tmp_path / "there.csv").touch()
    assert command("--out", str(tmp_path / "there.csv")) == 2
    assert "exists" in capsys.readouterr().err
