"""Interrupted runs go on where they were; another run in their place is refused; a sweep survives its networks."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from bench import job as job_module
from bench import records, run
from bench import resume as resuming
from bench.cases import ModelCase
from bench.config import OutputConfig, RunConfig
from bench.distributed import ALONE, exchange
from bench.errors import Different, UserError
from bench.job import Job
from bench.measure import accuracy, adapt, auto_batch, estimate, limits, throughput, tuned
from bench.measure import partial_results as partial
from bench.predictions import Predictions, check_complete, joined
from models.predict import Network, OutOfMemory, default_batch_size
from pipelines.batch import Failure
from pipelines.data.dataset import Dataset
from tests.stress import kills

Small = Callable[..., Any]  # see conftest
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "run.py"
# Partial results of 24 images are of 8 each, so there are three.
ARGV = ["--crops", "2", "--no-throughput"]
LINES = 13  # 4 policies at 3 levels, the image accounting
NOT_TIMED = 1


@pytest.fixture
def resume(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``resume(folder)``: the command, its status and its words on standard error."""

    def call(folder: Path, *argv: str) -> tuple[int, str]:
        capfd.readouterr()
        status = run.main(["--resume", str(folder), *argv])
        return status, capfd.readouterr().err

    return call


def stop_at_shard(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Raise ``error`` instead of writing this shard (counted from 0)."""
    real, count = Predictions.save, 0

    def save(self: Predictions, path: Path, names: list[str], **how: Any) -> None:
        nonlocal count
        if count == number:
            raise error
        count += 1
        real(self, path, names, **how)

    monkeypatch.setattr(Predictions, "save", save)


@pytest.fixture
def images_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch that goes through a network, one after the other."""
    rows: list[int] = []
    real = accuracy.scored

    def counted(*arguments: Any) -> Iterator[Predictions]:
        for part in real(*arguments):
            rows.extend(part.rows.tolist())
            yield part

    monkeypatch.setattr(accuracy, "scored", counted)
    return rows


# ----------------------------------------------------------------------------------------------------------- it goes on


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_case_goes_on_from_its_last_whole_shard(
    at: int, small_run: Small, resume: Small, images_scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 3 the shards are there and the file that joins them is not."""
    expected = small_run(*ARGV, out="whole")
    assert sorted(images_scored) == list(range(24))
    with monkeypatch.context() as patch:
        stop_at_shard(patch, at, KeyboardInterrupt())
        stopped = small_run(*ARGV)
    assert stopped.status == 130 and stopped.stdout == ""
    assert {path.name for path in stopped.out.iterdir()} == {"run.json", "partial"}
    assert len(list(stopped.out.glob("partial/*/*"))) == at
    images_scored.clear()
    status, said = resume(stopped.out, "--no-figures")
    assert status == 0
    assert sorted(images_scored) == list(range(8 * at, 24))
    assert ("were scored before and are kept" in said) == (at > 0)
    assert kills.differences(kills.contents(expected.out), kills.contents(stopped.out)) == []
    assert len(stopped.run.info["resumed"]) == 1


def test_what_was_tuned_since_is_not_taken(
    small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 1, KeyboardInterrupt())
        stopped = small_run(*ARGV)
    tuned.store("torchvision", {"prefetch": 5})
    assert resume(stopped.out, "--no-figures")[0] == 0
    assert {record.setting.prefetch for record in stopped.run.records} == {2}


def test_finished_networks_are_not_loaded_again(
    small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--img-size", "48,64", "--crops", "1", "--no-throughput"]
    expected = small_run(*argv, out="whole")
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 3 + 1 + 1, KeyboardInterrupt())  # in the second network
        stopped = small_run(*argv)
    loaded: list[int] = []
    real = Job.__init__

    def counted(job: Job, *arguments: Any, **more: Any) -> None:
        real(job, *arguments, **more)
        loaded.append(job.classifier.spec.K)

    monkeypatch.setattr(Job, "__init__", counted)
    assert resume(stopped.out)[0] == 0
    assert loaded == [64]
    assert kills.differences(kills.contents(expected.out), kills.contents(stopped.out)) == []
    loaded.clear()
    assert resume(stopped.out)[0] == 0 and loaded == []  # a finished run: nothing is left to do


def test_the_timing_of_a_scored_network_is_done_alone(
    small_run: Small, resume: Small, damaged: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also its unreadable images are remembered: one of them in a timed batch would cost the batch."""
    root = tmp_path / "damaged"
    damaged(root)
    argv = ["--data", str(root), "--crops", "1"]
    expected = small_run(*argv, out="whole")
    with monkeypatch.context() as patch:
        patch.setattr(throughput, "measure", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = small_run(*argv)
    assert stopped.run.accuracies and not stopped.run.throughputs
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "_score_missing", lambda *_: pytest.fail("it is scored already"))
        assert resume(stopped.out)[0] == 0
    assert kills.differences(kills.contents(expected.out), kills.contents(stopped.out)) == []
    (found,) = stopped.run.image_accounts
    assert found.expected == found.scored + found.unreadable_at_scan + found.unreadable_when_decoded
    assert found.unreadable_when_decoded > 0


@pytest.fixture
def damaged(demo_root: Path) -> Callable[..., list[str]]:
    """Copies the demo set; two of its images lose half of their bytes."""

    def make(root: Path) -> list[str]:
        shutil.copytree(demo_root, root)
        (root / "demo.csv").unlink()
        for number, path in enumerate(sorted(root.rglob("*.jpg"))):
            folder = root / f"{number % 16:02}"
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
        broken = sorted(root.rglob("*.jpg"))[3:5]
        for path in broken:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return [path.relative_to(root).as_posix() for path in broken]

    return make


def test_shards_that_outlived_their_network_are_swept_away(
    small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the last record and the removal."""
    with monkeypatch.context() as patch:
        patch.setattr(partial.PartialResults, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = small_run(*ARGV)
    assert stopped.status == 130 and list(stopped.out.glob("partial/*/*.npz"))
    assert resume(stopped.out)[0] == 0
    assert not (stopped.out / "partial").exists()


def test_an_adaptation_is_the_same_in_each_continuation(make_job: Callable[..., Job]) -> None:
    """Its sums are taken batch by batch; a plan knows how fast the network is, and batches are cut by it elsewhere."""
    first = make_job("--policies", "CC", "--adapt", "gaussian", "--train-size", "48")
    config = replace(first.config, loading=replace(first.config.loading, batch_images=None))
    settled = resuming.NetworkPlan("x", 8, 2.0, {}, 1.0, {})
    jobs = [Job(first.case, first.scan, config, ALONE, one) for one in (None, settled)]
    assert len({job.load_config(1).batch_images for job in jobs}) == 2
    sums = [adapt.statistics(job).before for job in jobs]
    assert sums[0] is not None and sums[1] is not None
    assert np.array_equal(sums[0].total.numpy(), sums[1].total.numpy())
    assert np.array_equal(sums[0].squares.numpy(), sums[1].squares.numpy())


def test_the_size_of_an_adaptations_reference_is_not_searched_for(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch, "largest", lambda make, K: 4)
    job = make_job("--policies", "CC", "-b", "auto")
    assert job.batch_size == 4 and adapt.at_size(job, 48).batch_size == default_batch_size(48, "cpu")


def test_what_a_killed_writer_left_is_swept_away(small_run: Small, resume: Small) -> None:
    finished = small_run(*ARGV)
    left = finished.out / ".summary.csv.123-1.part"
    left.write_text("half of a li")
    assert resume(finished.out)[0] == 0
    assert not left.exists()


# ----------------------------------------------------------------------------------------------- another run is refused


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--seed", "3"], "--seed is 0 in the run and 3 here"),
        (["--crops", "1,2"], "--crops is [2] in the run and [1, 2] here"),
        (["--amp"], "--amp is False in the run and True here"),
        (["--img-size", "32"], "--img-size is [64] in the run and [32] here"),
    ],
)
def test_other_flags_are_refused_by_name(argv: list[str], says: str, small_run: Small, resume: Small) -> None:
    finished = small_run(*ARGV)
    before = {path: path.read_bytes() for path in finished.out.iterdir()}
    status, said = resume(finished.out, *argv)
    assert status == 2 and says in said
    assert {path: path.read_bytes() for path in finished.out.iterdir()} == before


def test_another_folder_is_refused(small_run: Small, resume: Small, tmp_path: Path) -> None:
    finished = small_run(*ARGV)
    status, said = resume(finished.out, "--out", str(tmp_path / "elsewhere"))
    assert status == 2 and "elsewhere" in said
    assert resume(finished.out, "--out", str(finished.out), "--no-figures")[0] == 0


@pytest.mark.parametrize("now", ["a:demo\n", "a:demo\nb:demo\nc:demo\n"])
def test_another_list_of_networks_is_refused(now: str, small_run: Small, resume: Small, tmp_path: Path) -> None:
    info = {"networks": ["a:demo", "b:demo"]}
    with pytest.raises(UserError, match=r"[bc]:demo .*belong.* to the run"):
        resuming.require_same_networks(now.split(), info)
    resuming.require_same_networks(["b:demo", "a:demo"], info)
    finished = small_run(*ARGV)
    assert finished.run.info["networks"] == ["test_resnet img-size 64"]
    finished.run.info["networks"].append("x")
    stored = finished.run.info | {"networks": ["test_resnet img-size 64", "x"]}
    (finished.out / "run.json").write_text(json.dumps(stored))
    status, said = resume(finished.out)
    assert status == 2 and "x belonged to the run" in said


def test_other_real_labels_are_refused(
    small_run: Small, resume: Small, demo_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of the images are scored by the former, and a shard does not say by which."""
    names = sorted(path.relative_to(demo_root).as_posix() for path in demo_root.rglob("*.jpg"))
    file = tmp_path / "real.json"
    file.write_text(json.dumps({name: [0] for name in names}))
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 1, KeyboardInterrupt())
        stopped = small_run(*ARGV, "--real-labels", str(file))
    assert stopped.status == 130
    file.write_text(json.dumps({name: [1, 2] for name in names}))
    status, said = resume(stopped.out)
    assert status == 2 and "--real-labels" in said


def test_the_same_flags_may_be_given_again(small_run: Small, resume: Small) -> None:
    finished = small_run(*ARGV)
    assert resume(finished.out, "--crops", "2", "--no-throughput", "--seed", "0", "--yes", "--no-figures")[0] == 0


@pytest.fixture
def stopped(small_run: Small, monkeypatch: pytest.MonkeyPatch, demo_root: Path, tmp_path: Path) -> Any:
    """A run of a copy of the images that was interrupted after its first shard."""
    root = tmp_path / "images"
    shutil.copytree(demo_root, root)
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 1, KeyboardInterrupt())
        return small_run("--data", str(root), *ARGV)


def test_another_data_set_is_refused(stopped: Any, resume: Small, tmp_path: Path) -> None:
    (tmp_path / "images" / "demo.csv").unlink()
    next((tmp_path / "images").rglob("*.jpg")).unlink()
    status, said = resume(stopped.out)
    assert status == 2 and ("data_hash" in said or "label" in said)


def test_other_weights_are_refused(stopped: Any, resume: Small, weights_file: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(weights_file)
    kept = weights_file.read_bytes()
    save_file({name: torch.zeros_like(t) if "bias" in name else t for name, t in state.items()}, weights_file)
    try:
        status, said = resume(stopped.out)
    finally:
        weights_file.write_bytes(kept)
    assert status == 2 and "weight_hash" in said


def test_another_version_of_torch_is_refused(stopped: Any, resume: Small) -> None:
    info = json.loads((stopped.out / "run.json").read_text())
    info["environment"]["packages"]["torch"] = "2.0.1"
    (stopped.out / "run.json").write_text(json.dumps(info))
    status, said = resume(stopped.out)
    assert status == 2 and "torch 2.0.1" in said


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "it has no run.json"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text('{"models": [')), "is damaged"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text('{"models": []}')), "another version"),
    ],
)
def test_what_is_no_run_is_refused(make: Callable[[Path], object], says: str, resume: Small, tmp_path: Path) -> None:
    make(tmp_path / "run")
    status, said = resume(tmp_path / "run")
    assert status == 2 and says in said


def test_two_processes_do_not_write_to_one_run(stopped: Any, resume: Small) -> None:
    code = f"""
import sys
from pathlib import Path
from bench.files import locked
with locked(Path({str(stopped.out)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "locked\n"
    status, said = resume(stopped.out)
    assert status == 2 and "another process is writing" in said
    other.kill()  # the lock ends with its process, however it ends
    other.communicate()
    assert resume(stopped.out)[0] == 0


def repainted(path: Path) -> None:
    """Other bytes of the same size under the same modification time, as a tool leaves them that keeps times."""
    info, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1  # of the entropy-coded data
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.fixture
def own_images(demo_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_root, tmp_path / "images"))


def test_images_that_changed_since_they_were_scored_are_refused_by_name(
    small_run: Small, resume: Small, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 2, KeyboardInterrupt())
        stopped = small_run("--data", str(own_images), *ARGV)
    first = sorted(own_images.rglob("*.jpg"))[0]
    kept = first.read_bytes()
    repainted(first)
    status, said = resume(stopped.out)
    assert status == 2 and f"{first.relative_to(own_images).as_posix()} for one" in said and "Traceback" not in said
    assert not (stopped.out / "results.jsonl").exists()
    first.write_bytes(kept)
    for path in own_images.rglob("*.jpg"):
        path.touch()  # other times, the same bytes
    assert resume(stopped.out)[0] == 0


def test_an_image_that_could_not_be_decoded_is_known_again_too(
    small_run: Small, resume: Small, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sorted(own_images.rglob("*.jpg"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 3])  # its header can be read
    with monkeypatch.context() as patch:
        stop_at_shard(patch, 2, KeyboardInterrupt())
        stopped = small_run("--data", str(own_images), *ARGV)
    damaged = first.read_bytes()
    first.write_bytes(whole)
    status, said = resume(stopped.out)
    assert status == 2 and f"{first.relative_to(own_images).as_posix()} for one" in said
    first.write_bytes(damaged)
    assert resume(stopped.out)[0] == 0


def test_a_finished_network_holds_the_others_to_its_images(
    small_run: Small, resume: Small, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--data", str(own_images), "--img-size", "48,64", "--crops", "1", "--no-throughput", "--no-figures")
    real, runs = accuracy._score_missing, 0

    def score_and_change(*arguments: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            repainted(sorted(own_images.rglob("*.jpg"))[3])
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "_score_missing", score_and_change)
        mixed = small_run(*argv)
    assert mixed.status == 2 and "have changed since predictions-" in mixed.stderr
    assert {one.setting.K for one in mixed.run.accuracies} == {48}
    status, said = resume(mixed.out)
    assert status == 2 and "no longer the same files" in said


@pytest.mark.parametrize("backend", ["dali-cpu", "torchvision"])
def test_class_folders_that_vanish_stop_the_run(
    backend: str, small_run: Small, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "LOST_IMAGES", 2)
    real = accuracy.checked_rows

    def vanish(*arguments: Any) -> np.ndarray:
        rows = real(*arguments)[:1]
        for folder in sorted(path for path in own_images.iterdir() if path.is_dir())[-4:]:
            shutil.rmtree(folder)
        return rows

    monkeypatch.setattr(accuracy, "checked_rows", vanish)
    stopped = small_run("--data", str(own_images), *ARGV, "--data-backend", backend)
    assert stopped.status == 1 and "are gone since the run began" in stopped.stderr and "more than 2" in stopped.stderr
    assert stopped.run.records == []


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_data_set_that_goes_away_stops_the_run_and_is_no_list_of_unreadable_images(
    small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch, demo_root: Path, tmp_path: Path
) -> None:
    root, away = tmp_path / "images", tmp_path / "unmounted"
    shutil.copytree(demo_root, root)
    expected = small_run("--data", str(root), *ARGV, out="whole")
    real = accuracy.scored

    def unmount(*arguments: Any) -> Iterator[Predictions]:
        for number, part in enumerate(real(*arguments)):
            yield part
            if number == 2:
                root.rename(away)
                root.mkdir()  # an empty mount point

    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "scored", unmount)
        stopped = small_run("--data", str(root), *ARGV)
    assert stopped.status == 1
    assert "no longer there" in stopped.stderr and "--resume" in stopped.stderr
    assert stopped.run.records == []
    root.rmdir()
    away.rename(root)
    assert resume(stopped.out)[0] == 0
    assert kills.differences(kills.contents(expected.out), kills.contents(stopped.out)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a tmpfs")
@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(
    small_run: Small, demo_root: Path, weights_file: Path, tmp_path: Path
) -> None:
    """In a mount namespace of its own: a tmpfs with room for some shards, then for all."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    model = f"--models test_resnet --checkpoint {weights_file} --img-size 64 --data {demo_root}"
    how = f"{model} --crops 9 --no-throughput --no-figures --batch-images 4 -b 8 -j 1 --data-backend torchvision"
    script = f"""
        mount -t tmpfs -o size=36k none {disk} || exit 77
        {sys.executable} {SCRIPT} {how} --out {out}; echo status $?
        find {disk} -name '*.part' | sed 's/^/part /'
        mount -o remount,size=50m {disk}
        {sys.executable} {SCRIPT} --resume {out}; echo status $?
        cp -r {out} {tmp_path}/kept
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, env=environment, check=False, timeout=250,
    )  # fmt: skip
    if done.returncode == 77 or "Operation not permitted" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    if "status 2" in done.stdout and "no such folder" in done.stderr:
        pytest.fail(done.stderr)
    statuses = [line for line in done.stdout.splitlines() if line.startswith(("status", "part"))]
    assert statuses == ["status 1", "status 0"], done.stderr
    assert "No space left on device" in done.stderr and "--resume" in done.stderr and "Traceback" not in done.stderr
    assert small_run(*how.split(), out="whole").status == 0
    whole, kept = (kills.contents(tmp_path / name) for name in ("whole", "kept"))
    assert kills.differences(whole, kept) == []


def test_a_writer_that_is_killed_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    """Forty SIGKILLs of a process that does nothing but write."""
    code = f"""
from pathlib import Path
from pipelines.files import write_whole
n = 0
while True:
    n += 1
    write_whole(Path({str(tmp_path / "file")!r}), f"{{n}}\\n" * 20000)
"""
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while not (tmp_path / "file").exists() and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        for _ in range(8):  # stopped in the middle of whatever it does
            writer.send_signal(signal.SIGSTOP)
            lines = (tmp_path / "file").read_text().splitlines()
            assert len(lines) == 20000 and len(set(lines)) == 1
            seen.add(lines[0])
            writer.send_signal(signal.SIGCONT)
            time.sleep(rng.uniform(0, 0.02))
        writer.kill()
        writer.wait()
        lines = (tmp_path / "file").read_text().splitlines()
        assert len(lines) == 20000 and len(set(lines)) == 1
        (tmp_path / "file").unlink()
    assert len(seen) > 5


def test_a_folder_that_cannot_be_made_is_named(small_run: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    finished = small_run(*ARGV, out="file/out")
    assert finished.status == 2 and "--out" in finished.stderr and "file/out" in finished.stderr


def test_strict_counts_an_image_once(small_run: Small, damaged: Callable[..., list[str]], tmp_path: Path) -> None:
    """Two networks cannot read the same two images."""
    damaged(tmp_path / "damaged")
    argv = ["--data", str(tmp_path / "damaged"), "--strict", "--img-size", "48,64", *ARGV]
    finished = small_run(*argv)
    assert finished.status == 1 and "--strict: 2 images cannot be read" in finished.stderr
    assert finished.last["failed"] == []


def test_strict_and_an_image_that_the_scan_cannot_read(small_run: Small, demo_root: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_root, tmp_path / "images")
    next((tmp_path / "images").rglob("*.jpg")).with_name("text.jpg").write_text("no image")
    finished = small_run("--data", str(tmp_path / "images"), "--strict", *ARGV)
    assert finished.status == 1 and "--strict: 1 images" in finished.stderr and not finished.out.exists()


def test_a_clock_that_jumps_changes_no_duration(small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real = time.time
    jumps: list[float] = []

    def jumping() -> float:
        jumps.append(float(rng.uniform(-1e6, 1e6)))
        return real() + jumps[-1]

    monkeypatch.setattr(time, "time", jumping)
    started = time.perf_counter()
    finished = small_run("--crops", "1")
    took_s = time.perf_counter() - started
    time.time()
    assert finished.status == 0 and jumps
    assert all(0 < s < took_s for t in finished.run.throughputs for s in t.durations_s)
    assert 0 < finished.last["elapsed_s"] < took_s + 0.1  # it is rounded


# ------------------------------------------------------------------------------------------------ a sweep over networks


def fails(K: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy pass of the network of this size raises."""
    real = accuracy._score_missing

    def score(job: Job, *arguments: Any) -> None:
        if job.classifier.spec.K == K:
            raise error
        real(job, *arguments)

    monkeypatch.setattr(accuracy, "_score_missing", score)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OutOfMemory("not even one crop fits"), "not even one crop fits"),
        (RuntimeError("CUDA error: an illegal memory access"), "illegal memory access"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_network_that_fails_is_recorded_and_the_others_go_on(
    error: Exception, says: str, small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--img-size", "48,56,64", "--crops", "1", "--no-throughput"]
    expected = small_run(*argv, out="whole")
    with monkeypatch.context() as patch:
        fails(56, error, patch)
        finished = small_run(*argv)
    assert finished.status == 3
    assert [r.setting.K for r in finished.run.image_accounts] == [48, 64]
    (failed,) = finished.run.failed
    assert (failed.label, failed.stage) == ("test_resnet img-size 56", "accuracy") and says in failed.reason
    assert f"FAILED: test_resnet img-size 56 (accuracy): {failed.reason}" in finished.stdout
    assert finished.last["failed"] == [{"model": failed.label, "stage": "accuracy", "reason": failed.reason}]
    status, _ = resume(finished.out)  # once more, and now it works
    assert status == 0 and finished.run.failed == []
    assert kills.differences(kills.contents(expected.out), kills.contents(finished.out)) == []


@pytest.mark.slow
def test_a_network_that_takes_too_long_is_recorded(small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    real = accuracy._score_missing

    def slow(job: Job, *arguments: Any) -> None:
        if job.classifier.spec.K == 48:
            time.sleep(60)
        real(job, *arguments)

    monkeypatch.setattr(accuracy, "_score_missing", slow)
    finished = small_run("--img-size", "48,64", "--crops", "1", "--no-throughput", "--timeout", "12")
    assert finished.status == 3
    assert [r.setting.K for r in finished.run.image_accounts] == [64]
    assert finished.run.failed[0].reason == "it took longer than --timeout 12 s"


def test_time_that_is_up_is_no_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are read, whatever is raised is taken for the image's fault; the limit is none of that."""

    def reads_images() -> None:
        try:
            time.sleep(5)
        except Exception as error:
            pytest.fail(f"taken for an image's fault: {error!r}")

    with pytest.raises(TimeoutError, match=r"`timeout` 0\.1 s"), limits.time_limit(0.1):
        reads_images()


def test_time_that_is_up_waits_for_the_end_of_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that left in the middle of one would take the others' next words for these."""
    monkeypatch.setattr(limits, "RETRY_ALARM_S", 0.05)
    ended = False
    with pytest.raises(TimeoutError), limits.time_limit(0.05):
        exchange.underway = True
        time.sleep(0.2)
        ended = True
        exchange.underway = False
        time.sleep(5)
    assert ended


def test_a_network_that_takes_too_long_to_load_is_left_out(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("--crops", "1")
    monkeypatch.setattr(estimate, "expected_s", lambda job: 1.0)
    slow, fast = ModelCase("slow"), ModelCase("fast")

    def load(session: run.Session, case: ModelCase) -> Job:
        if case is slow:
            time.sleep(30)
        job.case = case
        return job

    monkeypatch.setattr(run, "load_job", load)
    session = run.Session(RunConfig(output=OutputConfig(timeout=1.0)), [], cases=[slow, fast])
    made, failed = run.make_plans(session)
    assert list(made) == ["fast"]
    assert [(one.label, one.stage, one.reason) for one in failed] == [
        ("slow", "load", "it took longer than --timeout 1 s")
    ]
    session.cases = [slow]
    with pytest.raises(UserError, match="`timeout` 1 s"):
        run.make_plans(session)


def test_a_network_is_gone_before_the_next_one_is_loaded(small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of two may not be there."""
    networks: list[weakref.ref[Network]] = []
    alive: list[int] = []
    real_load, real_network = Job._load, Job.make_network

    def load(job: Job) -> Any:
        alive.append(sum(one() is not None for one in networks))
        return real_load(job)

    def network(job: Job, size: int, **how: Any) -> Network:
        made = real_network(job, size, **how)
        networks.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Job, "_load", load)
    monkeypatch.setattr(Job, "make_network", network)
    gc.disable()  # it may come by at the right moment
    try:
        assert small_run("--img-size", "48,56,64", "--crops", "1", "--no-throughput").status == 0
    finally:
        gc.enable()
    assert alive == [0] * 6  # three are planned, then scored


def test_a_failed_network_is_in_the_summary(small_run: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(48, OutOfMemory("not even one crop fits"), monkeypatch)
    finished = small_run("--img-size", "48,64", "--crops", "1", "--no-throughput")
    with (finished.out / "summary.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["kind"] == "failed"]
    assert (row["model"], row["stage"]) == ("test_resnet img-size 48", "accuracy") and "not even one" in row["reason"]


def test_names_come_from_a_file_and_one_that_does_not_load_is_left_out(finish: Small, demo_root: Path) -> None:
    listed = demo_root.parent / "networks.txt"
    listed.write_text("# two networks\ntest_resnet  # small\n\nno_such_network\n")
    argv = ["--model-list", str(listed), "--weights", "random", "--no-accuracy", "--crops", "1"]
    finished = finish("--data", str(demo_root), *argv)
    assert finished.status == 3
    assert {t.setting.model.split(".")[0] for t in finished.run.throughputs} == {"test_resnet"}
    (failed,) = finished.run.failed
    assert (failed.label, failed.stage) == ("no_such_network", "load") and "no_such_network" in failed.reason


def test_a_sweep_in_which_nothing_loads_writes_nothing(finish: Small, demo_root: Path) -> None:
    finished = finish("--data", str(demo_root), "--models", "no_such,nor_this", "--weights", "random", "--no-accuracy")
    assert finished.status == 2 and "none of the 2 networks" in finished.stderr
    assert not finished.out.exists()


@pytest.mark.parametrize("text", [None, "# nothing\n"])
def test_a_list_without_names_is_refused(text: str | None, finish: Small, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    finished = finish("--model-list", str(tmp_path / "list.txt"))
    assert finished.status == 2 and "list.txt" in finished.stderr


# ----------------------------------------------------------------------------------------------------------- the pieces


def made(rows: list[int], failed: list[int] = []) -> Predictions:  # noqa: B006 - not changed
    n = len(rows)
    return Predictions(
        rows=np.array(rows, np.int64), labels=np.array(rows, np.int64) % 3, policies=["CC"], levels=["softmax"],
        top1=np.array(rows, np.int32).reshape(1, 1, n), in_top5=np.ones((1, 1, n), bool),
        nll=np.array(rows, np.float32).reshape(1, 1, n), view_top1=np.array(rows, np.int32).reshape(n, 1),
        failed=[Failure(row, f"reason {row}") for row in failed],
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 5, 8, 11, 50])
def test_shards_are_the_same_whatever_the_batches(batch: int, tmp_path: Path) -> None:
    """Rows 4 and 17 of 40 cannot be read. Pieces 1, 2 and 4 of five are asked for, as by one of several processes."""
    some = partial.PartialResults(tmp_path / "s", np.arange(40))
    assert [len(piece) for piece in some.pieces] == [8] * 5
    rows = np.concatenate([some.pieces[n] for n in (1, 2, 4)])
    parts = []
    for start in range(0, len(rows), batch):
        mine = rows[start : start + batch].tolist()
        parts.append(made([r for r in mine if r != 17], [r for r in mine if r == 17]))
    partial.fill(some, [1, 2, 4], iter(parts))
    assert some.missing() == [0, 3]
    partial.fill(some, [0, 3], [made([0, 1, 2, 3, 5, 6, 7, *range(24, 32)], [4])])
    whole = some.whole(made([]))
    assert whole.rows.tolist() == [r for r in range(40) if r not in (4, 17)]
    assert whole.top1[0, 0].tolist() == whole.nll[0, 0].tolist() == whole.rows.tolist()
    assert [(f.row, f.reason) for f in whole.failed] == [(4, "reason 4"), (17, "reason 17")]


def test_images_that_nobody_asked_for_are_an_error(tmp_path: Path) -> None:
    """0 came twice, behind the shard that it belongs to; 99 belongs to none."""
    some = partial.PartialResults(tmp_path, np.arange(16))
    with pytest.raises(RuntimeError, match="1 images more than were requested"):
        partial.fill(some, [0, 1], [made(list(range(8))), made([0, *range(8, 16)])])
    with pytest.raises(RuntimeError, match="1 images more than"):
        partial.fill(some, [0, 1], [made(list(range(16))), made([99])])


def test_a_damaged_shard_is_removed_and_named(tmp_path: Path) -> None:
    some = partial.PartialResults(tmp_path, np.arange(16))
    partial.fill(some, [0, 1], [made(list(range(16)))])
    data = some.path(1).read_bytes()
    some.path(1).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"000001.npz.*removed"):
        some.whole(made([]))
    assert some.missing() == [1]


def test_a_stream_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="before piece 1 was complete"):
        partial.fill(partial.PartialResults(tmp_path, np.arange(16)), [0, 1], [made(list(range(10)))])


@pytest.mark.parametrize(("images", "length"), [(1, 8), (24, 8), (1000, 16), (50_000, 256), (1_281_167, 256)])
def test_the_length_of_a_shard_follows_the_number_of_images_alone(images: int, length: int) -> None:
    pieces = partial.PartialResults(Path("nowhere"), np.arange(images)).pieces
    assert {len(piece) for piece in pieces[:-1]} <= {length}
    assert np.array_equal(np.concatenate(pieces), np.arange(images))


def test_no_image_may_be_scored_twice() -> None:
    with pytest.raises(RuntimeError, match="same images once each"):
        check_complete(np.arange(3), joined([made([0, 1]), made([1, 2])]))


def test_kills_would_notice_a_difference(tmp_path: Path, small_run: Small) -> None:
    finished = small_run(*ARGV)
    (path,) = finished.out.glob("*.npz")
    expected = kills.contents(finished.out)
    changed = Predictions.load(path)
    changed.nll[0, 0, 0] = np.nextafter(changed.nll[0, 0, 0], np.float32(9))
    changed.save(path, expected[f"{path.name}/names"].tolist())
    assert kills.differences(expected, kills.contents(finished.out)) == [f"{path.name}/nll"]
    path.write_bytes(path.read_bytes()[:100])
    assert kills.damaged(finished.out)


# -------------------------------------------------------------------------------------------------------------- -b auto


def test_auto_finds_the_largest_batch_that_fits(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    class Small64(Network):
        """A device with room for 64 crops."""

        def _step(self, crops: Any) -> Any:
            if len(crops) > 64:
                raise MemoryError("out of memory")
            return super()._step(crops)

    monkeypatch.setattr(job_module, "Network", Small64)
    job = make_job("-b", "auto")
    assert job.batch_size == job.network.batch_size == 64
    assert job.setting().batch_size == 64


def test_auto_stops_before_a_cpus_memory_is_half_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GB a crop, 40 GB free: 16 crops take 16, 32 would take 32 of the 20 that may be used."""
    taken: list[int] = []

    def make(batch_size: int) -> Any:
        return SimpleNamespace(
            fitting_batch_size=batch_size,
            device=SimpleNamespace(type="cpu"),
            forward=lambda K: taken.append(batch_size * 10**9),
        )

    monkeypatch.setattr(auto_batch, "peak_bytes", lambda: max(taken, default=0))
    monkeypatch.setattr(auto_batch, "_free_bytes", lambda: 40 * 10**9)
    assert auto_batch.largest(make, 64) == 16


def test_the_setting_of_another_process_may_have_another_device(data: Dataset, make_job: Callable[..., Job]) -> None:
    setting = make_job("--crops", "1").setting()
    one = resuming.NetworkPlan("x", 8, None, records.asdict(setting), 1.0, {})
    resuming.require_same_setting(setting, one, ALONE)
    elsewhere = replace(setting, device="cuda:1")
    resuming.require_same_setting(elsewhere, one, replace(ALONE, rank=1, world=2))
    with pytest.raises(Different, match="device of x was 'cpu'"):
        resuming.require_same_setting(elsewhere, one, ALONE)
    with pytest.raises(Different, match=r"data_hash.*in process 1"):
        resuming.require_same_setting(replace(setting, data_hash="00"), one, replace(ALONE, rank=1, world=2))


@pytest.mark.skipif(sys.platform != "linux", reason="forkserver's workers")
def test_workers_end_when_the_process_that_they_load_for_is_killed(tmp_path: Path, demo_root: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(f"""
import sys
sys.path[0] = {str(ROOT)!r}
import numpy as np
import psutil
from pipelines import backend
from pipelines.data import dataset, labels, scanning
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.inputspec import InputSpec
if __name__ == "__main__":
    data = labels.unlabelled(scanning.scan({str(demo_root)!r}, workers=1, progress=False), "not needed")
    planner = Planner(InputSpec(S=64, K=48), union([parse_policy("2RC")]))
    batches = backend("torchvision")(data, planner, LoadConfig(batch_images=2, workers=2)).batches(np.arange(24))
    next(batches)
    print("loading", flush=True)
    sys.stdin.read()
""")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # the fork server and two workers
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_batch_size_that_was_halved_before_an_interruption_is_recorded(
    small_run: Small, resume: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process has room for 3 of the 8 crops of a forward, its continuation for all."""
    real = Network._step

    def crowded(self: Network, crops: Any) -> Any:
        if len(crops) > 3:
            raise MemoryError
        return real(self, crops)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "_step", crowded)
        stop_at_shard(patch, 2, KeyboardInterrupt())
        stopped = small_run(*ARGV)
    assert stopped.status == 130
    assert resume(stopped.out)[0] == 0
    assert {r.fitting_batch_size for r in stopped.run.accuracies} == {2}
    assert {path.name for path in stopped.out.iterdir()} >= {"run.json"} and not (stopped.out / "partial").exists()
    whole = small_run(*ARGV, out="whole")
    assert {r.fitting_batch_size for r in whole.run.accuracies} == {None}


def test_a_run_of_another_version_is_refused(stopped: Any, resume: Small) -> None:
    info = json.loads((stopped.out / "run.json").read_text())
    info["models"][0]["setting"]["quantised"] = True
    (stopped.out / "run.json").write_text(json.dumps(info))
    status, said = resume(stopped.out)
    assert status == 2 and "unknown fields in a Setting: quantised" in said
