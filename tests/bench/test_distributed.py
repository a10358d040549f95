"""Several processes under torchrun: the predictions of one; one that dies; one that fails. Gloo, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import distributed, records
from bench.distributed import ALONE, Processes
from bench.records import Throughput
from tests.stress import kills

ROOT = Path(__file__).resolve().parents[2]
FAST = [
    "--rounds", "2", "--round-seconds", "0.05", "--num-warm-iter", "1", "--latency-queries", "2",
    "--batch-images", "4", "-b", "8", "-j", "1",
]  # fmt: skip
ARGV = [*FAST, "--crops", "1,3", "--save-scores", "CC,3RC", "--no-figures", "--data-backend", "torchvision"]

# For runs of which another test here has the same number of processes with workers: each worker imports torch.
WITHOUT_WORKERS = """
from dataclasses import replace
from pipelines.backends.torchvision import Torchvision
make = Torchvision.__init__
Torchvision.__init__ = lambda self, source, planner, config: make(self, source, planner, replace(config, workers=0))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launch(
    tmp_path_factory: pytest.TempPathFactory, demo_root: Path, weights_file: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``launch(3, "--out", ...)``: the command in so many processes; ``before`` is code that each runs first."""

    def call(count: int, *argv: str, before: str = "", workers: bool = True) -> subprocess.CompletedProcess[str]:
        cwd = tmp_path_factory.mktemp("launch")
        script = cwd / "run.py"
        script.write_text(
            f"import os, signal, sys\nsys.path[0] = {str(ROOT)!r}\n{'' if workers else WITHOUT_WORKERS}\n"
            f"{textwrap.dedent(before)}\n"
            "from bench import run\nif __name__ == '__main__':\n    run.end(run.main())\n"
        )
        model = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64"]
        given = argv if "--resume" in argv else [*model, "--data", str(demo_root), *ARGV, *argv]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        return subprocess.run(
            [sys.executable, *torchrun, str(script), *given],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=cwd,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip

    return call


@pytest.fixture(scope="module")
def alone(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process, without throughput."""
    out = tmp_path_factory.mktemp("alone") / "out"
    require_that_one_spoke(launch(1, "--no-throughput", "--out", str(out)))
    return out


def require_that_one_spoke(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written:") == 1


def scores(out: Path) -> dict[str, Any]:
    """Predictions and accuracy lines."""
    return {k: v for k, v in kills.contents(out).items() if not k.startswith("throughput")}


def test_two_and_three_processes_give_the_predictions_of_one(
    launch: Callable[..., Any], alone: Path, tmp_path: Path
) -> None:
    for count in (2, 3):
        argv = ["--no-throughput", "--out", str(tmp_path / str(count))]
        require_that_one_spoke(launch(count, *argv, workers=False))
    one, two, three = (scores(out) for out in (alone, tmp_path / "2", tmp_path / "3"))
    assert kills.differences(one, two) == kills.differences(one, three) == []


def test_throughput_is_that_of_all_and_of_each(launch: Callable[..., Any], tmp_path: Path) -> None:
    done = launch(2, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    run = records.read_run(tmp_path / "out")
    assert {r.setting.processes for r in run.records} == {2}
    assert run.throughputs
    for t in run.throughputs:
        assert len(t.rank_rates) >= 2 and {len(rates) for rates in t.rank_rates} == {2}  # rounds of processes
        for rate, each in zip(t.rates, [t.rank_rates[i] for i in t.kept], strict=True):
            assert 0 < rate <= sum(each) * (1 + 1e-9)  # the slowest ends it
    assert "process 0" in done.stdout and "process 1" in done.stdout


def test_when_one_dies_the_others_stop_with_a_message_and_resume_completes(
    launch: Callable[..., Any], alone: Path, tmp_path: Path
) -> None:
    """Process 2 of 3 is killed when it would write its shard; each has one of the three."""
    dies = """
        from bench.measure import accuracy
        if os.environ["RANK"] == "2":
            accuracy.Predictions.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    """
    out = tmp_path / "out"
    done = launch(3, "--no-throughput", "--out", str(out), before=dies)
    assert done.returncode != 0
    assert "--resume" in done.stderr and ("stopped by SIGTERM" in done.stderr or "another process" in done.stderr)
    assert records.read_run(out).records == []
    done = launch(3, "--resume", str(out), "--no-figures")
    assert done.returncode == 0, done.stderr
    assert kills.differences(scores(alone), scores(out)) == []


def test_an_error_in_one_process_is_recorded_once_and_all_end(launch: Callable[..., Any], tmp_path: Path) -> None:
    fails = """
        from bench.measure import accuracy
        real = accuracy.scored
        def scored(*arguments):
            yield from real(*arguments)
            raise RuntimeError("CUDA error: process one only")
        if os.environ["RANK"] == "1":
            accuracy.scored = scored
    """
    done = launch(2, "--out", str(tmp_path / "out"), before=fails, workers=False)
    run = records.read_run(tmp_path / "out")
    assert [one.stage for one in run.failed] == ["accuracy"], done.stderr
    assert "process one only" in run.failed[0].reason and run.records == []
    assert done.returncode != 0 and "FAILED" in done.stdout


def test_the_limit_passes_while_one_waits_for_the_other_and_the_sweep_goes_on(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    """Process 1 has done its share and waits; its timer must not end the exchange half way. The first one writes for
    long, and torchrun ends it if another process ends with an error."""
    slow = """
        import time
        from dataclasses import replace
        from bench import run
        from bench.measure import accuracy
        real_score, real_finish, real_plans = accuracy._score_missing, run.finish, run.make_plans
        def plans(session):  # without the limit
            asked = session.config
            session.config = replace(asked, output=replace(asked.output, timeout=None))
            made = real_plans(session)
            session.config = asked
            return made
        run.make_plans = plans
        def score(job, partial):
            if job.classifier.spec.K == 48:
                time.sleep(60)
            real_score(job, partial)
        def finish(*arguments):
            time.sleep(4)
            return real_finish(*arguments)
        if os.environ["RANK"] == "0":
            accuracy._score_missing, run.finish = score, finish
    """
    argv = ["--no-throughput", "--timeout", "12", "--img-size", "48,64"]
    done = launch(2, *argv, "--out", str(tmp_path / "out"), before=slow, workers=False)
    run = records.read_run(tmp_path / "out")
    assert [one.reason for one in run.failed] == ["it took longer than --timeout 12 s"], done.stderr
    assert [one.setting.K for one in run.image_accounts] == [64]
    assert done.returncode != 0 and '"failed": [{"model": "test_resnet img-size 48"' in done.stdout


# --------------------------------------------------------------------------------------------------- without torchrun


def test_alone_nothing_is_exchanged() -> None:
    assert distributed.join() is ALONE
    assert ALONE.all_gather(3) == [3] and ALONE.broadcast(lambda: 4) == 4
    with pytest.raises(ValueError, match="mine"), ALONE.agreed():
        raise ValueError("mine")


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_shard_is_somebodys_and_nobody_shares_one(world: int) -> None:
    shares = [Processes(rank, world).own_share(list(range(20))) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_rate_of_several_is_never_flattered() -> None:
    """100 images in 1 s beside 100 in 2 s: 100 a second, not 150."""
    t = Throughput.__new__(Throughput)
    for name, value in {"counts": [200], "durations_s": [2.0], "rank_rates": [[100.0, 50.0]], "disturbed": []}.items():
        object.__setattr__(t, name, value)
    assert t.rates == [100.0]
    assert replace(ALONE, rank=1).is_main is False


def test_a_world_that_cannot_be_met_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2.*torchrun"):
        distributed.join()
