"""compare loaders: every loader does the same work, wrong crops are noticed, and the ratios are what they say."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from bench.compare import loader_process, loaders  # noqa: E402
from bench.compare import loader_records as records  # noqa: E402
from bench.compare.loader_check import check_crops  # noqa: E402
from bench.compare.loader_process import (  # noqa: E402
    Comparison,
    LoaderFailed,
    LoaderProcess,
    SegmentResult,
    TimedLoader,
    grouped,
    request_for,
)
from bench.compare.loader_records import NotTimed, Timed, Workload  # noqa: E402
from bench.compare.loader_table import LOADERS, OURS, chosen  # noqa: E402
from bench.measure import tuned  # noqa: E402
from bench.options import parse_group  # noqa: E402
from pipelines.backends import reference  # noqa: E402
from pipelines.baselines import BASELINES, Files  # noqa: E402
from pipelines.inputspec import InputSpec  # noqa: E402

SHAPES = [(70, 90), (64, 48), (50, 50), (41, 97)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loaders")
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate(SHAPES):
        blocks = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((w, h), Image.Resampling.BICUBIC)
        image.save(root / f"{i}.jpg", quality=92, subsampling=0)
    return root


@pytest.fixture
def comparison(folder: Path) -> Comparison:
    names = [f"{i}.jpg" for i in range(len(SHAPES))]
    files = Files(str(folder), names, np.array(SHAPES, dtype=np.int64))
    return Comparison(files, InputSpec(S=40, K=32), "cpu", 0, 8, 0, 0.65, 1, 1 << 30)


def has(name: str) -> bool:
    try:
        LOADERS[name].load() if name in BASELINES else __import__("nvidia.dali" if "dali" in name else "torchvision")
    except ImportError:
        return False
    return not LOADERS[name].gpu_only


@pytest.mark.parametrize("name", [name for name, loader in LOADERS.items() if loader.factory or name in OURS])
@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_every_loader_delivers_the_images_crops(name: str, output: str, comparison: Comparison) -> None:
    if not has(name):
        pytest.skip(f"{name} is not to be had here")
    if output == "uint8" and not LOADERS[name].makes_uint8:
        pytest.skip(f"{name} ends in normalised tensors")
    error = TimedLoader(name, replace(comparison, workers=1 if name == "dali-cpu" else 0)).check(Workload(output, 3))
    assert error <= LOADERS[name].tolerance_levels


def test_crops_of_another_image_or_scale_are_noticed(comparison: Comparison) -> None:
    workload = Workload("uint8", 2)
    request = request_for("pil", workload, comparison, np.arange(4))
    right = torch.cat(list(BASELINES["pil"].load()(request)))
    assert check_crops("pil", LOADERS["pil"], request, [right]) <= LOADERS["pil"].tolerance_levels
    wrong = {
        "another image's": right.roll(2, 0),
        "mirrored": right.flip(-1),
        "brighter": (right.float() * 0.9).to(torch.uint8),
        "of one window": right[::2].repeat_interleave(2, 0),
    }
    for what, crops in wrong.items():
        with pytest.raises(reference.WrongPixels):
            check_crops("pil", LOADERS["pil"], request, [crops])
            pytest.fail(what)
    with pytest.raises(reference.WrongPixels, match="delivered"):
        check_crops("pil", LOADERS["pil"], request, [right[:-1]])


def timed(loader: str, workload: Workload, number: int, rate: float) -> Timed:
    return Timed(loader, workload, number, int(rate * 1000 * workload.crops), 1000.0, 64, 1, 0.1)


def test_ratios_are_taken_within_a_round() -> None:
    """The second round is twice as slow for both: their ratio is not moved by it."""
    workload = Workload("float32", 20)
    lines = [timed("dali-cpu", workload, r, rate) for r, rate in enumerate((80.0, 40.0, 88.0))]
    lines += [timed("pil", workload, r, rate) for r, rate in enumerate((20.0, 10.0, 20.0))]
    row = {row["loader"]: row for row in records.rows(lines, ["dali-cpu"])}["pil"]
    assert row["images_per_sec"] == pytest.approx(20.0)
    assert row["dali-cpu_over_it"] == pytest.approx(4.0)
    assert (row["dali-cpu_over_it_low"], row["dali-cpu_over_it_high"]) == pytest.approx((4.0, 4.4))


def test_lines_come_back_and_damage_is_named(tmp_path: Path) -> None:
    lines = [timed("pil", Workload("uint8", 5), 0, 12.5), NotTimed("ffcv", None, "no wheel")]
    lines.append(NotTimed("x", None, "", True))
    for line in lines:
        records.append(tmp_path, line)
    assert records.read(tmp_path) == lines
    with (tmp_path / "loaders.jsonl").open("a") as file:
        file.write('{"schema": 2, "kind": "timed"}\n')
    with pytest.raises(ValueError, match="line 4"):
        records.read(tmp_path)


def test_whole_cycles_are_counted() -> None:
    assert list(grouped([3, 3, 3, 1], 6)) == [6, 4]


def test_what_was_tuned_is_taken_by_our_backends_where_no_flag_says_otherwise(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path))

    def options(*argv: str) -> loaders.LoaderComparison:
        return parse_group(argv, "", None, loaders.LoaderComparison)

    tuned.store("dali-gpu", {"workers": 24, "prefetch": 4, "hw_load": 0.25, "crop_operator": None})
    found = loaders.tuned(options())
    assert found == {"dali-gpu": {"workers": 24, "hw_load": 0.25}, "dali-cpu": {}, "torchvision": {}}
    assert loaders.tuned(options("--hw-load", "0"))["dali-gpu"] == {"workers": 24}
    tuned.store("dali-gpu", {"workers": 24, "hw_load": 0.25, "crop_operator": "warp_affine"})
    assert loaders.tuned(options("-j", "4"))["dali-gpu"] == {"hw_load": 0.25, "crop_operator": "warp_affine"}
    comparison = replace(comparison, workers=3, tuned={"dali-cpu": {"workers": 5, "hw_load": 0.25}})
    names, workload, rows = ("dali-cpu", "torchvision", "pil"), Workload("uint8", 2), np.arange(4)
    workers = {name: request_for(name, workload, comparison, rows).workers for name in names}
    assert workers == {"dali-cpu": 5, "torchvision": 3, "pil": 3}


def test_loaders_by_letter_and_name() -> None:
    assert chosen("a,dali-cpu") == ["dali-cpu", "pil"]
    with pytest.raises(ValueError, match="no such loader; known are"):
        chosen("nobody")


def test_tars_are_refused_because_others_read_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, ".")
    assert loaders.main(["--only", "a", "--data", str(tmp_path / "images.tar"), "--out", str(tmp_path / "out")]) == 2
    assert "unpack these tars" in capsys.readouterr().err


class InProcess:
    """A loader of the comparison in this process, without workers of its own."""

    def __init__(self, name: str, comparison: Comparison) -> None:
        self.name = name
        if LOADERS[name].factory is None and name not in OURS:
            self.why_not = LOADERS[name].needs
        else:
            self.timed = TimedLoader(name, replace(comparison, workers=int(name in OURS)))

    def check(self, workload: Workload, *, limit_s: float) -> float:
        if hasattr(self, "why_not"):
            raise LoaderFailed(self.why_not)
        return self.timed.check(workload)

    def segment(self, workload: Workload, start: int, seconds: float, *, limit_s: float) -> SegmentResult:
        return self.timed.segment(workload, start, seconds)

    def kill(self, patience_s: float = 0.0) -> None: ...


@pytest.mark.slow
def test_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(loaders, "LoaderProcess", InProcess)
    monkeypatch.setattr(loader_process, "settle", lambda: None)
    out = tmp_path / "out"
    argv = ["--only", "a,b,dali-cpu,ffcv", "--data", str(folder), "--img-size", "32", "--crop-pct", "0.8"]
    argv += ["--crops", "1,3", "--rounds", "2", "--round-seconds", "0.02", "--workers", "1", "--out", str(out)]
    assert loaders.main([*argv, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "not timed: ffcv: ffcv 1.0.2 has no wheel" in printed
    assert "dali-cpu: at 3 crops" in printed
    table = json.loads(printed.splitlines()[-1])["measurements"]
    found = [(row["output"], row["crops"], row["loader"], row["rounds"]) for row in table]
    both = [(o, n, s, 2) for o in ("float32", "uint8") for n in (1, 3) for s in ("dali-cpu", "pil")]
    assert sorted(found) == sorted([*both, ("float32", 1, "pil-per-crop", 2), ("float32", 3, "pil-per-crop", 2)])
    per_crop = {row["crops"]: row["images_per_sec"] for row in table if row["loader"] == "pil-per-crop"}
    assert per_crop[3] == pytest.approx(per_crop[1] / 3)  # three passes
    assert all(row["images_per_sec"] > 0 for row in table)
    assert {path.name for path in out.iterdir()} == {"run.json", "loaders.jsonl", "loaders.csv"}
    assert loaders.main(argv) == 2  # never over results that are there
    assert "--out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_process_checks_times_and_reports_what_fails(folder: Path, comparison: Comparison) -> None:
    process = LoaderProcess("pil", replace(comparison, workers=1))
    try:
        assert process.check(Workload("uint8", 2), limit_s=100) <= LOADERS["pil"].tolerance_levels
        assert process.segment(Workload("uint8", 2), 0, 0.02, limit_s=100).crops > 0
        with pytest.raises(LoaderFailed, match="no attribute"):
            process.segment(Workload("no such type", 2), 0, 0.02, limit_s=100)
    finally:
        process.kill()
