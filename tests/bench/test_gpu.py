"""bench/gpu.py: steps are done once, a call stops in time, a fault costs its own step only. No GPU is needed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import Step


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 1)], 2), ([(0, 10), (2, 3), (9, 12)], 12), ([(1, 1)], 0)],
)
def test_time_in_kernels_is_counted_once(spans: list[tuple[float, float]], length: float) -> None:
    assert gpu.covered(spans) == length


def test_every_family_is_there_and_the_first_ones_come_first(tmp_path: Path) -> None:
    names = [step.name for step in gpu.steps(gpu.parse([]), tmp_path)]
    assert names[:6] == ["tests", "decoder-sweep", "rivals-1", "rivals-20", "rivals-5", "run-resnet:50"]
    assert len(set(names)) == len(names)
    assert {"run-nfnet:f6", "run-efficientnet:ap:b8", "run-efficientnet:ns:l2", "kernels", "figures"} <= set(names)
    for name in gpu.FIRST:
        assert names.count(f"run-{name}") == 1  # each is a member of its family, under this name


def test_commands_are_understood_by_their_programs(tmp_path: Path) -> None:
    from bench import network, rivals
    from bench.options import parse

    for quick in ([], ["--quick"]):
        for step in gpu.steps(gpu.parse(["--device", "cuda", *quick]), tmp_path):
            program, given = step.command[1:2], list(step.command[2:])
            if program == ("bench/run.py",):
                assert parse(given).no_accuracy
            elif program == ("bench/rivals.py",):
                rivals.parse(given)
            elif program == ("bench/network.py",):
                network.parse(given)
            elif program == ("bench/gpu.py",):
                assert gpu.parse(given).step == step.name


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
    assert gpu.finished(out) == ends
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
    assert gpu.finished(out) == {"long": "too long", "last": "ok"}
    assert "failed: long" in capsys.readouterr().out
    time.sleep(3)
    assert not mark.exists()  # what it had started was ended with it


def test_the_steps_are_printed_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.count("to do") == len(gpu.steps(gpu.parse([]), tmp_path))
    assert not (tmp_path / "none").exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("json", "no_such_package", "nor.this"))
    assert gpu.main([]) == 2
    assert "no_such_package, nor.this" in capsys.readouterr().err
