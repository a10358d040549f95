"""One image at a time: nothing is read ahead, all crops are in one batch, and the answers are the scored ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import console, summary
from analysis.timing_notes import latency_notes
from bench.job import Job
from bench.measure import latency
from bench.measure.accuracy import accuracy_phase
from bench.measure.disturbance import Meter, Reading
from bench.records import Absent, Latency, from_line, to_line
from pipelines.crops import Planner

CURVE = ["--crops", "1,5", "--latency-queries", "8", "--round-seconds", "30"]


@pytest.fixture(autouse=True)
def undisturbed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs on the machine that runs the tests would have rounds repeated."""
    if "disturbed" not in request.node.name:
        monkeypatch.setattr(latency, "disturbances", lambda rounds, intervals: [""] * len(rounds))


def measured(job: Job, out: Path) -> list[Any]:
    """Accuracy, for the answers; then the latencies."""
    setting = job.setting()
    list(accuracy_phase(job, setting, out))
    return list(latency.latency_phase(job, setting, out))


def test_every_crop_count_and_cheap_policy_is_asked_for_the_same_images(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    found = {one.policy: one for one in measured(make_job(*CURVE), tmp_path) if isinstance(one, Latency)}
    assert list(found) == ["1RC", "5RC", "DC", "CC+3DC", "5RC~exact"]  # 24 images certify no risk of 1 %
    rows = found["1RC"].rows
    assert len(set(rows)) == 8 and all(one.rows == rows and len(one.latency_ms) == 8 for one in found.values())
    assert {name: one.crops for name, one in found.items() if one.crops} == {"1RC": 1, "5RC": 5}
    assert [found[name].crops_per_forward for name in ("1RC", "5RC", "5RC~exact", "CC+3DC")] == [1, 5, 4, 1]
    assert found["5RC"].forwards == 5 and found["5RC~exact"].forwards <= 5 and found["DC"].forwards > 1
    assert all(one.agreement == 1 for name, one in found.items() if name not in ("1RC", "5RC"))
    line = to_line(found["5RC"])
    assert from_line(line) == found["5RC"]
    with pytest.raises(ValueError, match="7 queries and `rows` 8"):
        from_line(to_line(replace(found["5RC"], latency_ms=found["5RC"].latency_ms[1:])))
    with pytest.raises(ValueError, match="latency_ms"):
        from_line(to_line(replace(found["5RC"], latency_ms=[-1.0, *found["5RC"].latency_ms[1:]])))
    text = console.text(list(found.values()))
    assert "latency, one image at a time" in text and "5RC~exact" in text


def test_a_sure_image_takes_one_batch(make_job: Callable[..., Job]) -> None:
    job = make_job("--policies", "5RC~1%,CC+3DC~1%")
    forwards = {}
    for name in ("5RC~1%", "CC+3DC~1%"):
        for threshold in (-1.0, 2.0):  # every margin exceeds the first, none the second
            stream = latency.SingleStream(job, latency.Timing(latency.parse_policy(name), threshold))
            stream.round(np.arange(2), np.arange(3), 30.0, Meter())
            stream.close()
            forwards[name, threshold] = float(np.mean(stream.rounds[0].forwards))
    assert forwards["5RC~1%", -1.0] == 4 and forwards["5RC~1%", 2.0] == 5
    assert forwards["CC+3DC~1%", -1.0] == 1 and forwards["CC+3DC~1%", 2.0] > 2


@pytest.mark.parametrize("name", ["dali-cpu", "torchvision"])
def test_nothing_is_planned_or_read_before_it_is_asked_for(
    name: str, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []
    plan = Planner.plan
    monkeypatch.setattr(
        Planner, "plan", lambda self, rows, *rest: planned.extend(rows.tolist()) or plan(self, rows, *rest)
    )
    job = make_job(*CURVE, "--data-backend", name)
    stream = latency.SingleStream(job, latency.Timing(latency.parse_policy("5RC")))
    try:
        planned.clear()
        answers = stream.answer(np.arange(6))
        for asked in range(1, 5):
            next(answers)
            time.sleep(0.05)  # for a thread that works ahead
            assert planned == list(range(asked))
    finally:
        answers.close()
        stream.close()


def test_a_slow_forward_pass_is_seen(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("--crops", "1", "--no-cheap", "--latency-queries", "4")
    forward = latency.Network.forward

    def slow(self: Any, K: int | None = None) -> Any:
        time.sleep(0.05)
        return forward(self, K)

    monkeypatch.setattr(latency.Network, "forward", slow)
    (one,) = (each for each in measured(job, tmp_path) if isinstance(each, Latency))
    assert min(one.latency_ms) >= 50


def test_a_round_ends_in_time(make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency.Network, "forward", _sleeping(latency.Network.forward))
    job = make_job("--crops", "1", "--no-cheap", "--latency-queries", "8", "--round-seconds", "0.01")
    (one,) = (each for each in measured(job, tmp_path) if isinstance(each, Latency))
    assert len(one.latency_ms) == latency.FEWEST


def _sleeping(forward: Any) -> Any:
    def slow(self: Any, K: int | None = None) -> Any:
        time.sleep(0.03)
        return forward(self, K)

    return slow


def test_a_disturbed_round_is_answered_again_and_left_out(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two rounds is made to look as if the machine's host had taken the cores."""
    job = make_job("--crops", "1", "--no-cheap", "--latency-queries", "8", "--rounds", "2", "--round-seconds", "30")
    monkeypatch.setattr(latency, "REPEAT_SHARE", 100.0)  # a round of four images takes milliseconds
    readings = iter([0, 0, 0, 9, 9, 9])  # seconds stolen: before and after each round
    monkeypatch.setattr(Meter, "read", lambda self: Reading(time.perf_counter(), 0.0, stolen_s=float(next(readings))))
    (one,) = (each for each in measured(job, tmp_path) if isinstance(each, Latency))
    assert [bool(reason) for reason in one.disturbed] == [False, True, False]
    assert "the host of this virtual machine took 9.0 s" in one.disturbed[1]
    assert sorted(one.rows) == sorted(latency.spread_out(np.arange(len(job.rows)), 8).tolist()), "each image once"
    assert from_line(to_line(one)) == one
    (note,) = latency_notes([one])
    assert note.startswith("latency rounds of 1RC were disturbed and are left out; the first: the host")
    (note,) = latency_notes([replace(one, disturbed=["a stop"] * 3)])
    assert note.endswith("1RC: every round was, so all are used, and this latency is not to be trusted")
    assert latency_notes([replace(one, disturbed=[])]) == []


@pytest.mark.parametrize(
    ("argv", "why"), [(["--latency-queries", "0"], "latency_queries"), (["--no-throughput"], "throughput")]
)
def test_what_was_not_asked_for_is_absent(make_job: Callable[..., Job], tmp_path: Path, argv: list, why: str) -> None:
    (one,) = latency.latency_phase(job := make_job("--crops", "1", *argv), job.setting(), tmp_path)
    assert isinstance(one, Absent) and one.what == "latency" and why in one.reason


def test_percentiles_are_measured_values_with_queries_above_them(make_job: Callable[..., Job]) -> None:
    setting = make_job("--crops", "1").setting()
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0)).tolist()
    one = Latency(setting, "1RC", 1, 1, values, list(range(100)), 1.0)
    assert [one.percentile(p) for p in (50, 90, 99)] == [50.0, 90.0, 99.0]
    fewer = Latency(setting, "1RC", 1, 1, values[:99], list(range(99)), 1.0)
    assert fewer.percentile(99) is None and fewer.percentile(90) is not None
    assert summary.derived(one) == {"latency_p50_ms": 50.0, "latency_p90_ms": 90.0, "latency_p99_ms": 99.0}


def test_images_are_spread_over_all_of_them() -> None:
    assert latency.spread_out(np.arange(10, 20), 4).tolist() == [10, 13, 16, 19]
    assert latency.spread_out(np.array([7]), 3).tolist() == [7, 7, 7]
