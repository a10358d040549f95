"""bench/compare/gpu.py: steps are done once, a call stops in time, a fault costs its own step only. No GPU is needed."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.compare import gpu, tune
from bench.compare.gpu import Step
from models.families import FAMILIES


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 1)], 2), ([(0, 10), (2, 3), (9, 12)], 12), ([(1, 1)], 0)],
)
def test_time_in_kernels_is_counted_once(spans: list[tuple[float, float]], length: float) -> None:
    assert gpu.covered(spans) == length


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
    spans = gpu.kernel_spans(TRACE)
    assert spans == [(100, 130), (120, 140), (160, 170)]
    assert gpu.covered(spans) / 200 == 0.25  # 40 and 10 of 200 us


def test_a_trace_of_this_torch_is_read() -> None:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        torch.ones(3).sum()
    found = gpu.exported(trace)
    assert any(event.get("cat") == "cpu_op" for event in found["traceEvents"])  # the format that kernel_spans reads
    assert gpu.kernel_spans(found) == []


def test_every_architecture_is_there_and_what_is_asked_for_first_comes_first(tmp_path: Path) -> None:
    steps = gpu.steps(gpu.parse([]), tmp_path)
    names = [step.name for step in steps]
    first = ["tune", "tests", "parity-0", "parity-1", "rivals-1", "rivals-20", "run-resnet:50", "network-resnet:50-256"]
    assert names[:8] == first
    assert len(set(names)) == len(names)
    assert {"run-nfnet:f6", "run-efficientnet:ap:b8", "run-efficientnet:ns:l2", "kernels", "figures"} <= set(names)
    for name in gpu.FIRST:
        assert names.count(f"run-{name}") == 1  # each is a member of its family, under this name
    timed = {name.removeprefix("run-") for name in names if name.startswith("run-")}
    members = {m.key: m for family in FAMILIES.values() for m in family.members}
    kinds = [(members[key].model_id.partition(".")[0], members[key].K) for key in timed]
    assert sorted(kinds) == sorted({(m.model_id.partition(".")[0], m.K) for m in members.values()})
    largest = next(step for step in steps if step.name == "run-efficientnet:ns:l2")
    assert largest.command[largest.command.index("-b") + 1] == "auto"
    assert all(gpu.LEAST_SECONDS < step.expected_s < 540 for step in steps)  # each fits into a call


def test_commands_are_understood_by_their_programs(tmp_path: Path) -> None:
    from bench.compare import loaders as rivals
    from bench.compare import network, tune
    from bench.options import parse

    known: dict[str, Callable[[list[str]], object]] = {
        "bench/run.py": parse, "bench/compare/parity.py": parse, "bench/compare/loaders.py": rivals.parse, "bench/compare/tune.py": tune.parse,
        "bench/compare/network.py": network.parse, "bench/compare/gpu.py": gpu.parse,
    }  # fmt: skip
    for quick in ([], ["--quick"]):
        for step in gpu.steps(gpu.parse(["--device", "cuda", *quick]), tmp_path):
            _, program, *given = step.command
            if program == "-m":
                assert given[0] == "pytest"
                continue
            args: Any = known[program](given)
            assert args.device == "cuda"
            assert getattr(args, "step", None) in (None, step.name)
            if program != "bench/compare/gpu.py":
                assert args.out == tmp_path / step.writes


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_second_call_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    out.mkdir()
    mark = f"open({str(tmp_path / 'times')!r}, 'a').write('x')"
    steps = [
        Step("first", python(mark)),
        Step("fails", python("raise SystemExit('broken')")),
        Step("faulty", python("1 / 0")),
        Step("long", python("import time; time.sleep(60)"), writes="half"),
        Step("last", python(mark)),
    ]
    args = gpu.parse(["--minutes", "0.02"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEAST_SECONDS", 0.1)
        status = [gpu.go_on(out, steps, gpu.finished(out), args)]
        while gpu.finished(out).keys() < {"first", "fails", "faulty"}:  # a slow machine takes several calls
            status.append(gpu.go_on(out, steps, gpu.finished(out), args))
    assert set(status) == {3}
    assert "call it again" in capsys.readouterr().out
    assert "long" not in gpu.finished(out)
    (out / "half").mkdir()
    check = f"import pathlib; assert not pathlib.Path({str(out / 'half')!r}).exists()"
    steps[3] = Step("long", python(check), writes="half")
    assert gpu.go_on(out, steps, gpu.finished(out), gpu.parse([])) == 1
    ends = {"first": "ok", "fails": "failed", "faulty": "failed", "long": "ok", "last": "ok"}
    assert {name: line["end"] for name, line in gpu.finished(out).items()} == ends
    reasons = {name: line.get("reason") for name, line in gpu.finished(out).items()}
    assert (reasons["fails"], reasons["faulty"]) == ("broken", "ZeroDivisionError: division by zero")
    assert reasons["first"] is None
    assert (tmp_path / "times").read_text() == "xx"  # each once
    assert gpu.go_on(out, steps, gpu.finished(out), gpu.parse([])) == 1  # nothing is left; what failed is still said
    assert "broken" in (out / "logs/fails.txt").read_text()
    assert "ZeroDivisionError" in (out / "logs/faulty.txt").read_text()
    assert (tmp_path / "results.tar.gz").is_file()
    assert all(json.loads(line)["took_s"] >= 0 for line in (out / "steps.jsonl").read_text().splitlines())


def test_what_a_whole_call_is_too_short_for_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, mark = tmp_path / "results", tmp_path / "worker"
    out.mkdir()
    worker = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    long = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    steps = [Step("long", python(long)), Step("last", python(""))]
    args = gpu.parse(["--minutes", "0.02"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEAST_SECONDS", 0.1)
        assert gpu.go_on(out, steps, {}, args) == 3
    assert gpu.go_on(out, steps, gpu.finished(out), gpu.parse([])) == 1
    assert {name: line["end"] for name, line in gpu.finished(out).items()} == {"long": "too long", "last": "ok"}
    said = capsys.readouterr().out
    assert "failed: long" in said and "long: too long: not done after" in said
    time.sleep(3)
    assert not mark.exists()  # what it had started was ended with it


def test_a_step_is_not_begun_that_would_not_end_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    out.mkdir()
    steps = [
        Step("first", python(""), expected_s=9999),
        Step("long", python(""), expected_s=9999),
        Step("short", python("")),
        Step("last", python(""), is_last=True),
    ]
    assert gpu.go_on(out, steps, gpu.finished(out), gpu.parse([])) == 3  # a call's first one is begun all the same
    assert list(gpu.finished(out)) == ["first", "short"]
    assert "time is up; call it again: 2 steps are left, long first" in capsys.readouterr().out
    assert gpu.go_on(out, steps, gpu.finished(out), gpu.parse([])) == 0
    assert list(gpu.finished(out)) == ["first", "short", "long", "last"]
    assert gpu.calls(steps, 540) == 3  # if the long ones take as long as they say


@pytest.mark.parametrize(
    ("expected_s", "number"),
    [([], 0), ([100], 1), ([300, 240], 1), ([300, 241], 2), ([530, 5], 2), ([700, 30], 2), ([200, 400, 100, 140], 2)],
)
def test_calls_are_counted_as_they_will_be_made(expected_s: list[float], number: int) -> None:
    steps = [Step(f"{i}", (), expected_s=seconds) for i, seconds in enumerate(expected_s)]
    assert gpu.calls(steps, 540) == number


def test_the_steps_are_printed_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    steps = gpu.steps(gpu.parse([]), tmp_path)
    said = capsys.readouterr().out
    assert said.count("to do") == len(steps)
    assert "  360 s? to do    tune: " in said
    number = gpu.calls(steps, 540)
    assert f"{len(steps)} of {len(steps)} steps are left" in said and f"{number} calls of 9 minutes" in said
    assert not out.exists()
    out.mkdir()
    (out / "steps.jsonl").write_text('{"step": "tune", "end": "ok", "took_s": 123.4}\n')
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    assert "  123 s  ok       tune: " in capsys.readouterr().out


def test_what_is_missing_is_named_with_how_to_bring_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDED", {"json": "json", "no_such_package": "no-such-package==1", "nor.this": "nor"})
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert "not installed here: no_such_package, nor.this." in said
    assert "pip download --dest wheels" in said and "'no-such-package==1' 'nor'" in said
    assert "pip install --no-index --find-links wheels" in said
    assert "://" not in said


def test_nothing_is_imported_on_the_way_but_what_is_asked_for() -> None:
    """Every import of another project's module in the rooms' files, but for files that no step loads."""
    rooms = {"pipelines", "models", "bench", "analysis"}
    apart = {"analysis/report.py", "pipelines/rivals/spdl_loader.py"}  # the HTML report; an optional rival
    needed = {name.partition(".")[0] for name in gpu.NEEDED} | set(sys.stdlib_module_names) | rooms
    for path in (path for room in rooms for path in (gpu.ROOT / room).rglob("*.py")):
        where = path.relative_to(gpu.ROOT).as_posix()
        if where not in apart:
            assert {name.partition(".")[0] for name in imported(path)} - {"huggingface_hub"} <= needed, where
    for room in sorted(rooms):
        loads = [path for path in (gpu.ROOT / room).rglob("*.py") if "analysis.report" in imported(path)]
        assert loads == [] or loads == [gpu.ROOT / "analysis/make_report.py"]


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def test_what_was_tuned_is_taken_up_on_the_next_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results"
    tune.write(out / "tune", [{"workers": 3}], {tune.key("dali-gpu"): {"workers": 3, "hw_decoder_load": 0.25}})
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "empty"))
    gpu.take_up_tuning(tmp_path)  # nothing was tuned
    assert tune.stored("dali-gpu") == {}
    gpu.take_up_tuning(out)
    assert tune.stored("dali-gpu") == {"workers": 3, "hw_decoder_load": 0.25}


def test_an_archive_that_is_too_large_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    out.mkdir()
    assert gpu.go_on(out, [], {}, gpu.parse([])) == 0
    (out / "large.bin").write_bytes(os.urandom(2 << 20))
    monkeypatch.setattr(gpu, "MOST_ARCHIVE_BYTES", 1 << 20)
    assert gpu.go_on(out, [], {}, gpu.parse([])) == 1
    assert "more than 1 MiB; the largest files, MiB: large.bin 2.0" in capsys.readouterr().out
