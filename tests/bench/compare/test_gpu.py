"""compare gpu: steps in order of value, done once, ended in time; a fault costs its own step only. No GPU is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.compare import gpu, gpu_steps, tune
from bench.compare.gpu_steps import GpuConfig, Step
from bench.measure import tuned
from models.families import FAMILIES

LARGEST = gpu_steps.BATCH_SIZES[0]
NETWORK_ALONE = {f"network-{model}-{LARGEST}" for model in gpu_steps.NETWORKS}
END_TO_END = {f"run-{model}" for model in gpu_steps.NETWORKS}


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 1)], 2), ([(0, 10), (2, 3), (9, 12)], 12), ([(1, 1)], 0)],
)
def test_time_in_kernels_is_counted_once(spans: list[tuple[float, float]], length: float) -> None:
    assert gpu_steps.covered(spans) == length


TRACE = {
    "traceEvents": [
        {"ph": "X", "cat": "kernel", "name": "conv", "ts": 100.0, "dur": 30.0},
        {"ph": "X", "cat": "kernel", "name": "DALI's paste, on another stream", "ts": 120.0, "dur": 20.0},
        {"ph": "X", "cat": "kernel", "name": "head", "ts": 160.0, "dur": 10.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 140.0, "dur": 20.0},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset", "ts": 170.0, "dur": 30.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 90.0, "dur": 200.0},
        {"ph": "i", "cat": "kernel", "name": "a mark", "ts": 300.0},
        {"ph": "M", "name": "process_name"},
    ]
}


def test_kernels_are_active_where_any_of_them_runs_and_copies_are_none() -> None:
    spans = gpu_steps.kernel_spans(TRACE)
    assert spans == [(100, 130), (120, 140), (160, 170)]
    assert gpu_steps.covered(spans) / 200 == 0.25  # 40 and 10 of 200 us


def test_a_trace_of_this_torch_is_read() -> None:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        torch.ones(3).sum()
    found = gpu_steps.exported(trace)
    assert any(event.get("cat") == "cpu_op" for event in found["traceEvents"])  # the format that kernel_spans reads
    assert gpu_steps.kernel_spans(found) == []


class FakeMachine:
    """A clock and steps that take what is expected of them, or ``slower`` times as long."""

    def __init__(self, slower: float = 1.0) -> None:
        self.now, self.slower = 0.0, slower
        self.ended_at: dict[str, float] = {}

    def clock(self) -> float:
        return self.now

    def attempt(self, step: Step, out: Path, config: GpuConfig, left_s: float) -> str:
        took = step.expected_s * self.slower
        self.now += min(took, left_s)
        if took > left_s:
            return gpu.CUT_OFF
        self.ended_at[step.name] = self.now
        return gpu.OK

    def call(self, out: Path, config: GpuConfig) -> int:
        return gpu.work(out, config, gpu_steps.steps(config), gpu.finished(out), self.attempt, self.clock)

    def done_after(self, minutes: float) -> set[str]:
        return {name for name, ended in self.ended_at.items() if ended <= 60 * minutes}


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "importable", lambda name: True)


@pytest.mark.usefixtures("everything_installed")
def test_after_9_18_and_25_minutes_the_most_wanted_results_exist(tmp_path: Path) -> None:
    machine = FakeMachine()
    assert machine.call(tmp_path, GpuConfig(minutes=25)) == gpu.UNFINISHED
    assert machine.now <= 25 * 60
    assert machine.done_after(9) >= {"images"} | NETWORK_ALONE
    more = {"sanitizer", "tests", "tune", "parity-0", "parity-1"}
    assert machine.done_after(18) >= machine.done_after(9) | more | {f"run-{gpu_steps.HEADLINE}"}
    assert machine.done_after(25) >= machine.done_after(18) | END_TO_END | {"kernels", "loaders-1"}


@pytest.mark.usefixtures("everything_installed")
def test_calls_of_nine_minutes_continue_each_other_and_end(tmp_path: Path) -> None:
    machine, names = FakeMachine(), [step.name for step in gpu_steps.steps(GpuConfig())]
    statuses = [machine.call(tmp_path, GpuConfig(minutes=9))]
    while statuses[-1] == gpu.UNFINISHED:
        statuses.append(machine.call(tmp_path, GpuConfig(minutes=9)))
    assert statuses[-1] == gpu.ALL_DONE
    assert list(machine.ended_at) == list(gpu.finished(tmp_path))  # each once
    assert set(machine.ended_at) == set(names)


@pytest.mark.usefixtures("everything_installed")
def test_a_slower_machine_is_cut_off_in_time_and_goes_on(tmp_path: Path) -> None:
    machine = FakeMachine(slower=1.7)
    assert machine.call(tmp_path, GpuConfig(minutes=9)) == gpu.UNFINISHED
    assert machine.now <= 9 * 60
    first = dict(machine.ended_at)
    machine.now = 0.0
    machine.call(tmp_path, GpuConfig(minutes=9))
    assert list(machine.ended_at)[: len(first)] == list(first) and len(machine.ended_at) > len(first)


def test_the_network_alone_needs_no_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "importable", lambda name: name != "nvidia.dali")
    machine = FakeMachine()
    assert machine.call(tmp_path, GpuConfig(minutes=9999)) == gpu.UNFINISHED
    assert set(machine.ended_at) == {
        "images", *(f"network-{model}-{n}" for model in gpu_steps.NETWORKS for n in gpu_steps.BATCH_SIZES),
        *(f"preset-{family}" for family in ("resnet", "efficientnet", "mobilenet", "nfnet")),
    }  # fmt: skip


@pytest.mark.parametrize(("device", "fast"), [("cuda:0", True), ("cpu", False)])
def test_networks_run_as_they_are_fastest_on_a_gpu(device: str, fast: bool) -> None:
    network = GpuConfig(device=device).network("resnet50")
    switches = (network.channels_last, network.torchcompile, network.fold, network.cudnn_benchmark)
    assert [bool(one) for one in switches] == [fast] * 4
    assert (network.amp_dtype == "float16") == fast


def test_every_architecture_is_there_once() -> None:
    found = gpu_steps.steps(GpuConfig())
    names = [step.name for step in found]
    assert len(set(names)) == len(names)
    timed = {name.removeprefix("run-") for name in names if name.startswith("run-")}
    members = {m.key: m for family in FAMILIES.values() for m in family.members}
    kinds = [(members[key].model_id.partition(".")[0], members[key].K) for key in timed]
    assert sorted(kinds) == sorted({(m.model_id.partition(".")[0], m.K) for m in members.values()})
    assert all(gpu.MIN_SECONDS < step.expected_s < 540 for step in found)  # each fits into nine minutes
    assert [step.name for step in gpu_steps.steps(GpuConfig(only="tune,par"))] == ["tune", "parity-0", "parity-1"]


# Functions of steps: a child finds them by name.


def works(out: Path, config: GpuConfig) -> int:
    with (out / "times").open("a") as file:
        file.write("x")
    return 0


def returns_one(out: Path, config: GpuConfig) -> int:
    print("broken")
    return 1


def raises(out: Path, config: GpuConfig) -> int:
    raise ZeroDivisionError("division by zero")


def starts_another(out: Path, config: GpuConfig, *, mark: Path) -> int:
    code = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_a_fault_costs_its_own_step_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [Step("first", works, "", 0), Step("fails", returns_one, "none", 0), Step("faulty", raises, "none", 0)]
    assert gpu.work(tmp_path, GpuConfig(), todo, gpu.finished(tmp_path)) == gpu.FAILED
    assert "failed: fails, faulty" in capsys.readouterr().out
    ends = gpu.finished(tmp_path)
    assert {name: line["end"] for name, line in ends.items()} == {"first": "ok", "fails": "failed", "faulty": "failed"}
    assert (ends["fails"]["reason"], ends["faulty"]["reason"]) == ("broken", "ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in (tmp_path / "logs/faulty.txt").read_text()
    assert gpu.work(tmp_path, GpuConfig(), todo, gpu.finished(tmp_path)) == gpu.FAILED  # nothing is left
    assert (tmp_path / "times").read_text() == "x"


def test_a_step_that_a_whole_call_is_too_short_for_is_given_up_with_all_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    todo = [Step("long", starts_another, "half", 0, {"mark": mark})]
    assert gpu.work(tmp_path, GpuConfig(minutes=0.05), todo, {}) == gpu.FAILED
    (line,) = gpu.finished(tmp_path).values()
    assert line["end"] == gpu.TOO_LONG and line["reason"].startswith("not done after")
    time.sleep(4)
    assert not mark.exists()


def test_what_a_cut_off_step_wrote_is_removed(tmp_path: Path) -> None:
    def attempt(step: Step, out: Path, config: GpuConfig, left_s: float) -> str:
        (out / step.writes).mkdir()
        return gpu.CUT_OFF if step.name == "long" else gpu.OK

    todo = [Step("short", works, "a", 0), Step("long", works, "b", 0), Step("never", works, "c", 0)]
    ends: gpu.Ends = {}
    assert gpu.work(tmp_path, GpuConfig(), todo, ends, attempt) == gpu.UNFINISHED
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "steps.jsonl"]
    assert list(ends) == ["short"]


def test_the_steps_are_printed_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("to do") == len(gpu_steps.steps(GpuConfig())) and not out.exists()
    out.mkdir()
    (out / "steps.jsonl").write_text(json.dumps({"step": "tune", "end": "ok", "took_s": 123.4}) + "\n")
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    assert "   123 s  ok        tune" in capsys.readouterr().out
    assert gpu.main(["--minutes", "1", "--out", str(out)]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_what_was_tuned_is_used_where_the_cache_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.write(tmp_path / "tune", [{"workers": 3}], {tuned.key("dali-gpu"): {"workers": 3, "hw_load": 0.25}})
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "empty"))
    gpu.restore_tuning(tmp_path / "none")
    assert tuned.stored("dali-gpu") == {}
    gpu.restore_tuning(tmp_path)
    assert tuned.stored("dali-gpu") == {"workers": 3, "hw_load": 0.25}


@pytest.mark.slow
@pytest.mark.dali
def test_the_records_of_a_step_are_read_by_the_targets(
    tmp_path: Path, fast_backend: object, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps in miniature on a CPU, in this process, then the table."""
    from pipelines.data import demo

    monkeypatch.setattr(demo, "ensure", lambda split: demo_root)
    config = GpuConfig(device="cpu", quick=True)
    assert gpu_steps.network(tmp_path, config, model=gpu_steps.HEADLINE, batch_size=2) == 0
    assert gpu_steps.end_to_end(tmp_path, config, model=gpu_steps.HEADLINE) == 0
    gpu.report(tmp_path, {})
    table = pd.read_csv(tmp_path / "targets.csv").set_index("what")
    assert table.loc[f"end to end over its ceiling, {gpu_steps.HEADLINE}, 1 crops", "measured"] > 0
    assert {"no compiled variant was timed", "parity-0 is still to do"} <= set(table["note"])
