"""bench/compare/loaders.py: every side does the same work, wrong crops are noticed, and the ratios are what they say."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from bench.compare import loader_records as records  # noqa: E402
from bench.compare import loaders as rivals  # noqa: E402
from bench.compare import tune  # noqa: E402
from bench.compare.loader_records import Cell, NotTimed, Timed  # noqa: E402
from bench.compare.loader_sides import OURS, SIDES, Job, Player, check_crops, chosen, grouped, order_of  # noqa: E402
from pipelines.backends import reference  # noqa: E402
from pipelines.baselines import RIVALS, Files  # noqa: E402
from pipelines.inputspec import InputSpec  # noqa: E402

SHAPES = [(70, 90), (64, 48), (50, 50), (41, 97)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rivals")
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate(SHAPES):
        blocks = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((w, h), Image.Resampling.BICUBIC)
        image.save(root / f"{i}.jpg", quality=92, subsampling=0)
    return root


@pytest.fixture
def job(folder: Path) -> Job:
    names = [f"{i}.jpg" for i in range(len(SHAPES))]
    files = Files(str(folder), names, np.array(SHAPES, dtype=np.int64))
    return Job(files, InputSpec(S=40, K=32), "cpu", 0, 8, 0, 0.65, 1, 1 << 30)


def has(name: str) -> bool:
    try:
        SIDES[name].load() if name in RIVALS else __import__("nvidia.dali" if "dali" in name else "torchvision")
    except ImportError:
        return False
    return not SIDES[name].gpu_only


@pytest.mark.parametrize("name", [name for name, side in SIDES.items() if side.factory or name in OURS])
@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_every_side_delivers_the_images_crops(name: str, output: str, job: Job) -> None:
    if not has(name):
        pytest.skip(f"{name} is not to be had here")
    if output == "uint8" and not SIDES[name].makes_uint8:
        pytest.skip(f"{name} ends in normalised tensors")
    error = Player(name, replace(job, workers=1 if name == "dali-cpu" else 0)).check(Cell(output, 3))
    assert error <= SIDES[name].tolerance_levels


def test_crops_of_another_image_or_scale_are_noticed(job: Job) -> None:
    cell = Cell("uint8", 2)
    order = order_of("pil", cell, job, np.arange(4))
    right = torch.cat(list(RIVALS["pil"].load()(order)))
    assert check_crops("pil", SIDES["pil"], order, [right]) <= SIDES["pil"].tolerance_levels
    wrong = {
        "another image's": right.roll(2, 0),
        "mirrored": right.flip(-1),
        "brighter": (right.float() * 0.9).to(torch.uint8),
        "of one window": right[::2].repeat_interleave(2, 0),
    }
    for what, crops in wrong.items():
        with pytest.raises(reference.WrongPixels):
            check_crops("pil", SIDES["pil"], order, [crops])
            pytest.fail(what)
    with pytest.raises(reference.WrongPixels, match="delivered"):
        check_crops("pil", SIDES["pil"], order, [right[:-1]])


def timed(side: str, cell: Cell, number: int, rate: float) -> Timed:
    return Timed(side, cell, number, int(rate * 1000 * cell.crops), 1000.0, 64, 1, 0.1)


def test_ratios_are_taken_within_a_round() -> None:
    """The second round is twice as slow for both: their ratio is not moved by it."""
    cell = Cell("float32", 20)
    lines = [timed("dali-cpu", cell, r, rate) for r, rate in enumerate((80.0, 40.0, 88.0))]
    lines += [timed("pil", cell, r, rate) for r, rate in enumerate((20.0, 10.0, 20.0))]
    row = {row["side"]: row for row in records.rows(lines, ["dali-cpu"])}["pil"]
    assert row["images_per_sec"] == pytest.approx(20.0)
    assert row["dali-cpu_over_it"] == pytest.approx(4.0)
    assert (row["dali-cpu_over_it_low"], row["dali-cpu_over_it_high"]) == pytest.approx((4.0, 4.4))


def test_lines_come_back_and_damage_is_named(tmp_path: Path) -> None:
    lines = [timed("pil", Cell("uint8", 5), 0, 12.5), NotTimed("ffcv", None, "no wheel"), NotTimed("x", None, "", True)]
    for line in lines:
        records.append(tmp_path, line)
    assert records.read(tmp_path) == lines
    with (tmp_path / "rivals.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind": "timed"}\n')
    with pytest.raises(ValueError, match="line 4"):
        records.read(tmp_path)


def test_whole_cycles_are_counted() -> None:
    assert list(grouped([3, 3, 3, 1], 6)) == [6, 4]


def test_what_was_tuned_is_taken_by_our_backends_where_no_flag_says_otherwise(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path))
    tune.store("dali-gpu", {"workers": 24, "prefetch": 4, "hw_decoder_load": 0.25, "cut": None})
    found = rivals.tuned(rivals.parse([]))
    assert found == {"dali-gpu": {"workers": 24, "hw_decoder_load": 0.25}, "dali-cpu": {}, "torchvision": {}}
    assert rivals.tuned(rivals.parse(["--hw-load", "0"]))["dali-gpu"] == {"workers": 24}
    tune.store("dali-gpu", {"workers": 24, "hw_decoder_load": 0.25, "cut": "warp_affine"})
    assert rivals.tuned(rivals.parse(["-j", "4"]))["dali-gpu"] == {"hw_decoder_load": 0.25, "cut": "warp_affine"}
    job, cell = replace(job, workers=3, tuned={"dali-cpu": {"workers": 5, "hw_decoder_load": 0.25}}), Cell("uint8", 2)
    workers = {name: order_of(name, cell, job, np.arange(4)).workers for name in ("dali-cpu", "torchvision", "pil")}
    assert workers == {"dali-cpu": 5, "torchvision": 3, "pil": 3}


def test_sides_by_letter_and_name() -> None:
    assert chosen("a,dali-cpu") == ["dali-cpu", "pil"]
    with pytest.raises(ValueError, match="no such side; known are"):
        chosen("nobody")


def test_tars_are_refused_because_others_read_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, ".")
    assert rivals.main(["--only", "a", "--data", str(tmp_path / "images.tar"), "--out", str(tmp_path / "out")]) == 2
    assert "unpack these tars" in capsys.readouterr().err


@pytest.mark.timeout(200)
def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvidia.dali")
    out = tmp_path / "out"
    argv = ["--only", "a,b,dali-cpu,ffcv", "--data", str(folder), "--img-size", "32", "--crop-pct", "0.8"]
    argv += ["--crops", "1,3", "--rounds", "2", "--round-seconds", "0.1", "--workers", "1", "--out", str(out)]
    assert rivals.main(argv) == 0
    printed = capsys.readouterr().out
    assert "not timed: ffcv: ffcv 1.0.2 has no wheel" in printed
    assert "dali-cpu: at 3 crops" in printed
    table = json.loads(printed.splitlines()[-1])["cells"]
    cells = [(row["output"], row["crops"], row["side"], row["rounds"]) for row in table]
    both = [(o, n, s, 2) for o in ("float32", "uint8") for n in (1, 3) for s in ("dali-cpu", "pil")]
    assert sorted(cells) == sorted([*both, ("float32", 1, "pil-per-crop", 2), ("float32", 3, "pil-per-crop", 2)])
    per_crop = {row["crops"]: row["images_per_sec"] for row in table if row["side"] == "pil-per-crop"}
    assert per_crop[3] == pytest.approx(per_crop[1] / 3)  # three passes
    assert all(row["images_per_sec"] > 0 for row in table)
    assert {path.name for path in out.iterdir()} == {"run.json", "rivals.jsonl", "rivals.csv"}
    assert rivals.main(argv) == 2  # never over results that are there
