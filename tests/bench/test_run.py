"""bench/run.py from end to end on a few generated images: what it writes, says and refuses; nothing is downloaded."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from analysis import known_answers
from bench import records, run
from bench.files import new_folder
from bench.measure import estimate, throughput
from bench.options import parse
from pipelines import BACKENDS, unusable
from pipelines.data.dataset import Dataset

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "run.py"
LEVELS = ["feature", "logit", "softmax"]
Small = Callable[..., Any]  # see conftest


def strict(line: str) -> dict[str, Any]:
    """JSON as the standard has it: NaN and Infinity are none."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def unreadable(out: Path) -> list[tuple[str, str]]:
    """(name, stage) of unreadable.csv; each has a reason."""
    with (out / "unreadable.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["reason"] for row in rows)
    return [(row["name"], row["stage"]) for row in rows]


# ------------------------------------------------------------------------------------------------ as a user starts it


@pytest.fixture
def started(tmp_path: Path, demo_root: Path, weights_file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script in an empty folder, in a process group of its own, as a shell does."""
    processes = []
    cwd = tmp_path / "empty"
    cwd.mkdir()

    def start(*argv: str) -> subprocess.Popen[str]:
        model = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64"]
        data = ["--data", str(demo_root), "--batch-images", "4", "-b", "8", "--no-figures"]
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *model, *data, *argv],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_run_writes_its_folder_and_says_where(
    started: Callable[..., subprocess.Popen[str]], data: Dataset, tmp_path: Path
) -> None:
    speed = ["--rounds", "1", "--round-seconds", "0.05", "--num-warm-iter", "1", "--latency-queries", "2"]
    process = started("--no-cheap", "--crops", "1,2,3", "--policies", "5FC+5MFC", *speed)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr

    result = strict(stdout.splitlines()[-1])
    out = Path(result["out"])
    assert out.is_absolute() and out.parent == tmp_path / "empty" / "runs"
    assert re.fullmatch(r"models-\d{8}-\d{6}", out.name)
    assert files(tmp_path / "empty") == {"runs"} and files(out.parent) == {out.name}
    predictions = "predictions-test_resnet-img-size-64.npz"
    assert files(out) == {"run.json", "results.jsonl", "summary.csv", "unreadable.csv", predictions}
    printed = [Path(line.strip()) for line in stdout.splitlines() if line.startswith("  /")]
    assert set(printed) == set(out.iterdir())
    assert Path(result["summary"]) == out / "summary.csv" and result["figures"] == []
    (headline,) = result["models"]
    assert headline["demo"] is True and set(headline["images_per_sec"]) == {"1", "2", "3"}

    assert "%|" in stderr and "accuracy" in stderr and "throughput" in stderr
    assert "%|" not in stdout and "\r" not in stdout and "\x1b" not in stdout

    lines = [strict(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["schema"] for line in lines} == {records.SCHEMA}
    found = records.read_run(out)
    policies = ["CC", "1RC", "2RC", "CC+1RC", "3RC", "CC+2RC", "5FC+5MFC"]
    assert [(r.policy, r.level) for r in found.accuracies] == [(p, level) for p in policies for level in LEVELS]
    assert {(r.images, r.unreadable) for r in found.accuracies} == {(24, 0)}
    stages = [(t.stage, t.crops) for t in found.throughputs]
    per_count = [(stage, n) for n in (1, 2, 3) for stage in ("load", "end_to_end")]
    assert stages == [("read", None), ("decode", None), ("resize", None), ("model", None), *per_count]
    assert all(rate > 0 for t in found.throughputs for rate in t.rates)
    assert all(t.peak_mem_bytes > 1e8 and t.frame_error_levels < 0.4 for t in found.throughputs)
    assert found.absents == []
    assert len({r.setting.weight_hash for r in found.records}) == 1

    with np.load(out / predictions, allow_pickle=False) as file:
        saved = dict(file)
    views = 1 + 4 + 5 + 3  # CC, FC without its centre, MFC, RC
    assert saved["top1"].shape == saved["nll"].shape == saved["in_top5"].shape == (3, 7, 24)
    assert saved["view_top1"].shape == (24, views)
    assert saved["names"].tolist() == data.table["name"].tolist()
    assert saved["labels"].tolist() == data.table["label"].tolist()
    assert (saved["policies"].tolist(), saved["levels"].tolist()) == (policies, LEVELS)
    by_hand = (saved["top1"][2, 0] == saved["labels"]).sum()
    assert found.accuracies[2].top1_correct == by_hand

    info = strict((out / "run.json").read_text(encoding="utf-8"))
    assert info["command"][:2] == ["multicrop-bench", "run"] and info["command"][-len(speed) :] == speed
    assert info["policies"] == policies and Path(info["data"]) == data.root
    assert info["models"][0]["label_rule"].startswith("demo data")
    machine = info["environment"]
    assert machine["cores_usable"] >= 1 and machine["cpu"] and machine["packages"]["torch"]
    assert torch.__version__.startswith(machine["packages"]["torch"])
    assert {"gpu", "gpu_driver", "git_commit", "python", "os", "machine_id"} <= set(machine)
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(found.records)


def test_ctrl_c_stops_it_with_whole_lines_and_130(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started("--no-cheap", "--crops", "1,2", "--rounds", "500", "--yes", "-j", "2", "--out", str(out))
    deadline = time.monotonic() + 120
    while not (out / "results.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # into the throughput pass
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert stdout == ""
    assert len(records.read_run(out).accuracies) == 4 * len(LEVELS)
    assert (out / "results.jsonl").read_text(encoding="utf-8").endswith("}\n")
    assert not (out / "summary.csv").exists()


@pytest.mark.parametrize("at", [0, 1])
def test_an_interruption_between_two_phases_keeps_those_before(
    at: int, small_run: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase's lines are there together or not at all: 4 policies at 3 levels and the ledger; nothing was timed."""
    real, count = records.extend, 0

    def extend(folder: Path, added: list[records.Record]) -> None:
        nonlocal count
        if count == at:
            raise KeyboardInterrupt
        count += 1
        real(folder, added)

    monkeypatch.setattr(records, "extend", extend)
    finished = small_run("--no-cheap", "--crops", "2", "--no-throughput", "--limit", "3")
    assert (finished.status, finished.stdout) == (130, "")
    assert f"--resume {finished.out}" in finished.stderr
    assert len(finished.run.records) == at * 13


# --------------------------------------------------------------------------------------------------- what it measures


def test_the_same_command_gives_the_same_answers(small_run: Small) -> None:
    argv = ["--policies", "CC+4RC,5FC+2MRC", "--no-throughput", "--limit", "9"]
    first, second = (small_run(*argv, out=name) for name in ("first", "second"))
    assert first.run.records == second.run.records
    for name, values in first.predictions().items():
        assert np.array_equal(values, second.predictions()[name]), name


def test_another_seed_gives_other_windows_and_the_same_centre_crop(small_run: Small) -> None:
    argv = ["--policies", "3RC", "--no-throughput", "--crop-pct", "0.7", "--limit", "15"]
    first, second = (small_run(*argv, "--seed", seed, out=seed).predictions() for seed in ("0", "1"))
    both = [name for name in first["names"].tolist() if name in second["names"].tolist()]  # the seed chooses them too
    assert both
    for name in both:
        i, j = (said["names"].tolist().index(name) for said in (first, second))
        assert np.array_equal(first["nll"][:, 0, i], second["nll"][:, 0, j])
        assert (first["nll"][:, 1, i] != second["nll"][:, 1, j]).all()


def test_speed_alone_needs_no_labels_and_writes_no_predictions(
    small_run: Small, demo_root: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:6]):
        shutil.copy(path, flat / f"{i}.jpg")
    finished = small_run("--data", str(flat), "--crops", "1")
    assert finished.status == 0
    assert finished.run.accuracies == [] and len(finished.run.throughputs) == 6
    (absent,) = finished.run.absents
    assert absent.what == "accuracy" and "no labels" in absent.reason
    assert f"not measured: accuracy: {absent.reason}" in finished.stdout
    assert finished.last["models"][0]["not_measured"] == {"accuracy": absent.reason}
    assert files(finished.out) == {"run.json", "results.jsonl", "summary.csv", "unreadable.csv"}


def test_accuracy_alone_says_that_nothing_was_timed(small_run: Small) -> None:
    finished = small_run("--crops", "1", "--no-throughput", "--limit", "4")
    assert finished.status == 0
    assert finished.run.throughputs == []
    why = "not asked for (`throughput`)"
    assert [(a.what, a.reason) for a in finished.run.absents] == [("throughput", why), ("latency", why)]
    (said,) = finished.last["models"]
    assert said["images_per_sec"] is None and said["not_measured"] == dict.fromkeys(
        ("throughput", "latency"), "not asked for (--no-throughput)"
    )


def test_a_dry_run_prints_the_cases_and_writes_nothing(
    small_run: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "resolve", lambda *args: pytest.fail("nothing is loaded"))
    finished = small_run("--no-cheap", "--crops", "1,3", "--policies", "5FC", "--img-size", "64,96", "--dry-run")
    accuracy = "  accuracy, in one pass of 8 views: CC, 1RC, 2RC, CC+1RC, 3RC, CC+2RC, 5FC"
    cases = [f"test_resnet img-size {size}" for size in (64, 96)]
    expected = [line for case in cases for line in (case, accuracy, "  throughput at 1, 3 crops")]
    assert (finished.status, finished.stdout.splitlines()) == (0, expected)
    assert files(tmp_path) == {"cwd"} and files(tmp_path / "cwd") == set()
    assert "accuracy" not in small_run("--no-accuracy", "--crops", "1", "--dry-run").stdout
    assert "throughput" not in small_run("--no-throughput", "--crops", "1", "--dry-run").stdout


def test_several_sizes_are_scored_each(small_run: Small) -> None:
    finished = small_run("--img-size", "48,64", "--crop-pct", "0.8", "--crops", "1", "--no-throughput", "--limit", "7")
    assert finished.status == 0
    assert {(r.setting.S, r.setting.K) for r in finished.run.accuracies} == {(60, 48), (80, 64)}
    npz = {name for name in files(finished.out) if name.endswith(".npz")}
    assert npz == {f"predictions-test_resnet-img-size-{size}-crop-pct-0.8.npz" for size in (48, 64)}
    answers = [np.load(finished.out / name)["nll"] for name in sorted(npz)]
    assert not np.array_equal(*answers)


# ------------------------------------------------------------------------------------------------------- real layouts

WNIDS = {"n03445777": 574, "n01440764": 0, "n07753592": 954, "n02123045": 281}  # golf ball, tench, banana, tabby


@pytest.fixture
def wnid_folders(demo_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "val"
    for i, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:7]):
        folder = root / list(WNIDS)[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{i}.jpg")
    return root


def test_a_subset_of_wnid_folders_is_scored_as_imagenet_and_squeezenet_has_no_feature_level(
    finish: Small, wnid_folders: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "squeezenet.safetensors"
    save_file(torchvision.models.squeezenet1_0().state_dict(), weights)
    argv = ["--models", "torchvision:squeezenet1_0", "--checkpoint", str(weights), "--img-size", "64"]
    policies = ["--no-cheap", "--crops", "1,2", "--policies", "CC,2RC+2MRC,5FC+5MFC"]
    finished = finish(*argv, "--data", str(wnid_folders), *policies, "--no-throughput")
    assert finished.status == 0
    said = finished.predictions()
    assert said["labels"].tolist() == [WNIDS[name.split("/")[0]] for name in said["names"].tolist()]
    assert said["levels"].tolist() == ["logit", "softmax"]
    assert said["top1"].min() >= 0 and said["top1"].max() < 1000
    (feature,) = [a for a in finished.run.absents if a.what == "accuracy at level feature"]
    assert "SqueezeNet" in feature.reason and "pools" in feature.reason
    assert f"not measured: accuracy at level feature: {feature.reason}" in finished.stdout
    assert {r.setting.is_demo for r in finished.run.records} == {False}
    assert finished.last["models"][0]["demo"] is False and "demo" not in finished.stdout.lower().split("written:")[0]


def test_a_timm_network_of_a_thousand_classes_is_scored_on_the_same_folders(
    finish: Small, wnid_folders: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "thousand.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=1000).state_dict(), weights)
    argv = ["--models", "test_resnet", "--checkpoint", str(weights), "--img-size", "64", "--no-throughput"]
    finished = finish(*argv, "--data", str(wnid_folders), "--crops", "1")
    assert finished.status == 0
    said = finished.predictions()
    assert said["labels"].tolist() == [WNIDS[name.split("/")[0]] for name in said["names"].tolist()]
    assert said["levels"].tolist() == LEVELS


# --------------------------------------------------------------------------------------------------------- bad images


@pytest.fixture
def damaged(demo_root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """``damaged("x", [0, 3])``: a copy of a few demo images below ``x``, in which these lack most of their bytes."""

    def copy(folder: str, rows: list[int], images: int = 8) -> list[str]:
        (tmp_path / folder).mkdir()
        for i, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:images]):
            content = path.read_bytes()
            (tmp_path / folder / f"{i}.jpg").write_bytes(content[:3000] if i in rows else content)
        (tmp_path / "labels.csv").write_text("name,label\n" + "".join(f"{i}.jpg,{i}\n" for i in range(images)))
        return ["--data", str(tmp_path / folder), "--labels-file", str(tmp_path / "labels.csv"), "--crops", "1"]

    return copy


def test_a_broken_jpeg_costs_itself_only(small_run: Small, damaged: Callable[..., list[str]], tmp_path: Path) -> None:
    whole = small_run(*damaged("whole", []), "--no-throughput", out="whole run")
    argv = damaged("broken", [2, 7])
    (tmp_path / "broken" / "5.jpg").write_text("<html>404</html>")
    finished = small_run(*argv, out="broken run")
    assert finished.status == 0
    assert unreadable(finished.out) == [("2.jpg", "decode"), ("5.jpg", "scan"), ("7.jpg", "decode")]
    assert unreadable(whole.out) == []
    kept, said = [0, 1, 3, 4, 6], finished.predictions()
    assert said["names"].tolist() == [f"{i}.jpg" for i in kept]
    for name in ("top1", "in_top5", "nll"):
        assert np.array_equal(said[name], whole.predictions()[name][:, :, kept])
    assert {(r.images, r.unreadable) for r in finished.run.accuracies} == {(5, 3)}
    assert "5 images, 3 unreadable" in finished.stdout
    assert all(rate > 0 for t in finished.run.throughputs for rate in t.rates)


@pytest.mark.parametrize("name", ["dali-cpu", "torchvision"])
def test_a_broken_jpeg_is_listed_when_only_speed_is_measured(
    name: str, small_run: Small, damaged: Callable[..., list[str]]
) -> None:
    if reason := unusable(name):
        pytest.skip(reason)
    argv = [*damaged("broken", [2]), "--batch-images", "8"]  # in every batch
    finished = small_run(*argv, "--no-accuracy", "--data-backend", name)
    assert finished.status == 0
    assert all(rate > 0 for t in finished.run.throughputs for rate in t.rates)
    assert unreadable(finished.out) == [("2.jpg", "decode")]


@pytest.mark.parametrize("argv", [[], ["--no-accuracy"]], ids=["scored", "timed only"])
def test_images_that_all_fail_to_decode_leave_everything_absent(
    argv: list[str], small_run: Small, damaged: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "MAX_IMAGES", 40)  # else it reads a million images in vain
    finished = small_run(*damaged("broken", [0, 1, 2], images=3), *argv)
    assert finished.status == 3
    assert {a.what for a in finished.run.absents} == {"accuracy", "throughput", "latency"}
    assert finished.run.throughputs == []
    assert len(unreadable(finished.out)) == 3


@pytest.mark.parametrize("factor", [float("nan"), 1e6], ids=["NaN", "certain of the wrong class"])
def test_a_network_that_overflows_is_reported_like_any_other(
    factor: float, small_run: Small, weights_file: Path, tmp_path: Path
) -> None:
    state = load_file(weights_file)
    state["fc.weight"] = state["fc.weight"] * factor
    save_file(state, tmp_path / "wild.safetensors")
    finished = small_run("--checkpoint", str(tmp_path / "wild.safetensors"), "--crops", "1", "--no-throughput")
    assert finished.status == 0, finished.stderr
    softmax = [r for r in finished.run.accuracies if r.level == "softmax"]
    assert {r.nll_mean for r in softmax} == {None}
    if factor != factor:
        assert {r.top1_correct for r in softmax} == {0}


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("there", ["empty", "full", "file"])
def test_results_are_never_written_over_others(there: str, small_run: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
    if there == "full":
        (out / "results.jsonl").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    finished = small_run("--crops", "1")
    assert (finished.status, finished.stdout) == (2, "")
    assert f"--out {out} exists" in finished.stderr and "new folder" in finished.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert there == "empty" or (out if there == "file" else out / "results.jsonl").read_text() == "mine"


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *form: "20261121-120000")
    seen = []
    with ExitStack() as open_together:
        for _ in range(3):
            seen.append(open_together.enter_context(new_folder(None, "nfnet")))
            assert seen[-1].is_dir()
    assert not any(folder.exists() for folder in seen)  # nothing was written into them
    stem = Path("runs") / "nfnet-20261121-120000"
    assert seen == [stem, Path(f"{stem}-2"), Path(f"{stem}-3")]


@pytest.fixture
def bad_folders(tmp_path: Path) -> Path:
    for name in ("empty", "texts", "broken", "classes/cat", "classes/dog"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    (tmp_path / "broken" / "a.jpg").write_text("no image")
    torchvision.io.write_jpeg(torch.zeros(3, 70, 80, dtype=torch.uint8), str(tmp_path / "classes" / "cat" / "a.jpg"))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "BAD/nowhere"], ["BAD/nowhere", "check the path given as --data"]),
        (["--data", "BAD/texts/notes.txt"], ["is a file, not a folder"]),
        (["--data", "BAD/empty"], ["no images in BAD/empty", "Give the folder"]),
        (["--data", "BAD/texts"], ["no images in BAD/texts", ".txt"]),
        (["--data", "BAD/broken"], ["none of the 1 image files", "a.jpg"]),
        (["--data", "BAD/classes"], ["class folders in BAD/classes", "16 classes", "--class-map", "--no-accuracy"]),
        (["--models", "resnet18x"], ["'resnet18x' is unknown", "resnet18"]),
        (["--models", "torchvision:squeezenet9"], ["squeezenet9", "squeezenet1_0"]),
        (["--checkpoint", "BAD/nowhere.pth"], ["--checkpoint BAD/nowhere.pth: no such file"]),
        (["--checkpoint", "BAD/texts/notes.txt"], ["--checkpoint BAD/texts/notes.txt"]),
        (["--models", "test_vit"], ["does not fit test_vit"]),
        (["--num-classes", "7"], ["has 16 classes, not 7"]),
        (["--num-classes", "0"], ["argument --num-classes: '0' is not a positive integer"]),
        (["--limit", "0"], ["--limit", "positive integer"]),
        (["--crop-mode", "border"], ["--crop-mode border is not supported", "center"]),
        (["--interpolation", "lanczos"], ["'lanczos'", "bilinear or bicubic"]),
        (["--model-kwargs", "colour=red"], ["--model-kwargs", "colour"]),
        (["--device", "mps"], ["--device mps is not supported"]),
        (["--weights", "random"], ["contradict each other"]),
        (["--policies", "7FC"], ["fives"]),
    ],
)
def test_mistakes_end_with_a_sentence_and_nothing_written(
    argv: list[str], says: list[str], small_run: Small, bad_folders: Path
) -> None:
    finished = small_run(*(word.replace("BAD", str(bad_folders)) for word in argv))
    assert (finished.status, finished.stdout) == (2, "")
    assert "Traceback" not in finished.stderr
    sentence = finished.stderr[finished.stderr.index("error: ") :]
    for word in says:
        assert word.replace("BAD", str(bad_folders)) in sentence
    assert not finished.out.exists()


def suggested(stderr: str) -> list[list[str]]:
    """The arguments of the commands that a refusal names."""
    commands = [shlex.split(line) for line in stderr.splitlines() if line.startswith("  multicrop-bench run ")]
    return [command[2:] for command in commands]


def test_a_run_of_more_than_half_an_hour_asks_and_names_commands_that_fit(
    small_run: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "expected_s", lambda job: 7200.0)
    finished = small_run("--crops", "1,2", "--seed", "5")
    assert (finished.status, finished.stdout) == (2, "")
    assert "2.0 h" in finished.stderr and "Add --yes" in finished.stderr
    assert not finished.out.exists()
    accuracy, speed = (parse(argv).config for argv in suggested(finished.stderr))
    assert not accuracy.measure.throughput and accuracy.data.limit == 24 * 1800 * 0.8 // 7200
    assert not speed.measure.accuracy and speed.measure.rounds == 1
    for config in (accuracy, speed):
        assert (config.measure.crops, config.data.seed, config.output.out) == ([1, 2], 5, finished.out)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--limit", "20"],
        ["--no-accuracy"],
        ["--no-throughput"],
    ],
)
def test_the_commands_named_can_be_given(argv: list[str], small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "expected_s", lambda job: 7200.0)
    commands = suggested(small_run("--crops", "1", *argv).stderr)
    assert commands
    try:
        parsed = [parse(command).config for command in commands]
    except SystemExit:
        pytest.fail("a suggestion is refused")
    limits = [config.data.limit for config in parsed if not config.measure.throughput]
    assert all(limit is not None and 1 <= limit < 20 for limit in limits)


def test_yes_goes_on(small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "expected_s", lambda job: 7200.0)
    finished = small_run("--crops", "1", "--no-throughput", "--limit", "2", "--yes")
    assert finished.status == 0
    assert strict((finished.out / "run.json").read_text())["expected_s"] == 7200.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (119, "119 s"), (720, "12 min"), (7100, "118 min"), (12_600, "3.5 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert run.duration(seconds) == text


def test_every_backend_is_known_to_the_refusals_above() -> None:
    assert set(BACKENDS) == {"dali-gpu", "dali-cpu", "torchvision"}


# ------------------------------------------------------------------------------------------------------------ figures


def test_a_figure_that_fails_costs_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from analysis import make_figures
    from analysis.drawing import Drawn

    drawn = Drawn([tmp_path / "b.png", tmp_path / "a.png"], {"levels": "needs"}, {"gallery": "OSError: no font found"})
    monkeypatch.setattr(make_figures, "make_figures", lambda folders, keep_going: drawn)
    assert run.draw(tmp_path) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert "gallery" in caplog.text and "no font found" in caplog.text and "numbers are complete" in caplog.text

    monkeypatch.setattr(make_figures, "make_figures", lambda folders, keep_going: 1 / 0)
    assert run.draw(tmp_path) == []
    assert "figures could not be drawn" in caplog.text


# --------------------------------------------------------------------------------------------------- timm's columns


def test_a_damaged_file_of_published_figures_costs_these_only(
    small_run: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / known_answers.IMAGENET).write_text("model,top1\n")
    read = known_answers.read_results  # of a network of the published ones, which this is not
    monkeypatch.setattr(known_answers, "known_answer", lambda *_: read(tmp_path / known_answers.IMAGENET))
    done = small_run("--crops", "1", "--no-throughput")
    assert done.status == 0 and "published figures cannot be read" in done.stderr and "top-1 %" in done.stdout


def test_results_file_has_the_centre_crop_in_timms_columns(small_run: Small, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    done = small_run("--crops", "1,2", "--no-throughput", "--results-file", str(path))
    (centre,) = [r for r in done.run.accuracies if (r.policy, r.level) == ("CC", "softmax")]
    with path.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    columns = "model top1 top1_err top5 top5_err param_count img_size crop_pct interpolation"
    assert list(row) == columns.split()
    assert (row["model"], row["img_size"]) == (centre.setting.model, "64")
    assert float(row["top1"]) == pytest.approx(centre.top1, abs=1e-4)
    (model,) = done.run.info["models"]
    assert model["multiply_adds"] > model["activations"] > 0, "counted for the columns of a run that is timed"
    refused = small_run("--crops", "1", "--results-file", str(path), out="second")
    assert refused.status == 2 and "--results-file" in refused.stderr and "exists" in refused.stderr
