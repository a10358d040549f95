"""Disturbed rounds on made counters; a process and its child that are really stopped; a whole run that is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench import records
from bench.measure.disturbance import Meter, Reading, cores_time, disturbances

ROOT = Path(__file__).resolve().parents[3]
# One second on two cores of which the process used 1.8, others nothing.
GOOD = Reading(wall_s=1.0, cpu_s=1.8, throttled_s=0.0, stolen_s=0.0, busy_s=1.85, idle_s=0.15)
STEADY = [50.0] * 20

MADE = {
    "a stop": ({"wall_s": 4.0}, [*[50.0] * 19, 3050.0], ["nothing came for 3.0 s (usually 50 ms)", "used 0.45 cores"]),
    "a stop between two items of many seconds": ({"wall_s": 4.0}, STEADY, ["used 0.45 cores, in other rounds 1.80"]),
    "a CPU limit": ({"throttled_s": 0.4}, STEADY, ["the CPU limit of its container held it back for 0.4 s"]),
    "the host": ({"stolen_s": 0.3}, STEADY, ["the host of this virtual machine took 0.3 s"]),
    "other programs": ({"cpu_s": 1.4, "busy_s": 1.98, "idle_s": 0.02}, STEADY, ["other programs took 0.6 of 2 cores"]),
    "less CPU time": ({"cpu_s": 1.2, "busy_s": 1.3, "idle_s": 0.7}, STEADY, ["it was stopped, or waited"]),
}


@pytest.mark.parametrize(("changed", "between", "words"), MADE.values(), ids=MADE)
@pytest.mark.parametrize("others", [1, 4])
def test_a_disturbed_round_is_found_and_the_others_are_not(
    changed: dict[str, float], between: list[float], words: list[str], others: int
) -> None:
    rounds = [GOOD] * others + [replace(GOOD, **changed)]
    found = disturbances(rounds, [STEADY] * others + [between], cores=2)
    assert found[:-1] == [""] * others
    assert all(word in found[-1] for word in words), found[-1]


UNDISTURBED = {
    "other programs on cores that were free": {"busy_s": 2.5, "idle_s": 1.5, "cpu_s": 1.5},
    "a little of everything": {"stolen_s": 0.04, "throttled_s": 0.04, "busy_s": 1.95},
    "a fifth less CPU time": {"cpu_s": 1.45, "busy_s": 1.5, "idle_s": 0.5},
    "a system that tells nothing": {"throttled_s": None, "stolen_s": None, "busy_s": None, "idle_s": None},
}


@pytest.mark.parametrize("changed", UNDISTURBED.values(), ids=UNDISTURBED)
def test_small_differences_are_no_disturbance(changed: dict[str, float | None]) -> None:
    rounds = [GOOD, replace(GOOD, **changed), GOOD]  # type: ignore[arg-type]
    assert disturbances(rounds, [STEADY, [45.0, 60.0, 250.0], STEADY], cores=2) == [""] * 3


def test_a_network_whose_batches_take_seconds_is_not_stalled() -> None:
    assert disturbances([replace(GOOD, wall_s=12.0)] * 2, [[6000.0, 6000.0], [5000.0, 7000.0]], cores=2) == [""] * 2


def test_answers_that_come_several_at_once_are_not_stalled() -> None:
    """Of a stopped policy: most intervals are zero, and then nothing comes for as long as a few forward passes take."""
    burst = [0.0, 0.0, 0.0, 0.0, 800.0, 0.0, 0.0, 700.0]
    assert disturbances([GOOD] * 3, [burst] * 3, cores=2) == [""] * 3
    stalled = [0.0, 0.0, 0.0, 0.0, 800.0, 0.0, 0.0, 9000.0]
    found = disturbances([GOOD] * 3, [burst, stalled, burst], cores=2)
    assert [bool(reason) for reason in found] == [False, True, False] and "nothing came for 9.0 s" in found[1]


def test_work_that_waits_most_of_the_time_is_not_disturbed_by_a_little_less() -> None:
    waiting = Reading(1.0, 0.05)
    assert disturbances([waiting, replace(waiting, cpu_s=0.01)], [STEADY, STEADY], cores=2) == ["", ""]


def test_a_load_on_every_round_is_seen_in_every_round() -> None:
    loaded = replace(GOOD, cpu_s=1.2, busy_s=2.0, idle_s=0.0)
    assert all("other programs took 0.8 of 2 cores" in found for found in disturbances([loaded] * 3, [STEADY] * 3, 2))


def test_no_rounds_no_words() -> None:
    assert disturbances([], [], 2) == []


def test_only_the_own_cores_of_proc_stat_count() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    lines = [f"cpu{n} {10 * n} 1 2 {30 * n} 4 5 6 {7 * n} 0 0" for n in range(4)]
    text = "\n".join(["cpu  999 9 9 9 9 9 9 9 9 9", *lines, "intr 12345 0", "ctxt 99"])
    stolen, busy, idle = cores_time(text, {1, 3})
    assert (stolen, busy, idle) == (28 / ticks, (40 + 2 * 14) / ticks, (120 + 8) / ticks)
    assert cores_time("", {0}) == cores_time("cpu0 0 0 0 0 0 0 0 0 0 0", {0}) == (None, None, None)


def test_the_meter_counts_the_process_and_its_children_and_sees_that_they_stop() -> None:
    busy = "import time\nwhile True: time.process_time()"
    with subprocess.Popen([sys.executable, "-c", busy]) as child:
        try:
            meter = Meter()
            meter.find_children()
            assert child.pid in meter.children
            readings = [meter.read()]
            for number in (18, 19):  # SIGCONT, SIGSTOP
                child.send_signal(number)
                time.sleep(0.5)
                readings.append(meter.read())
        finally:
            child.kill()
    running, stopped = (b.since(a) for a, b in pairwise(readings))
    assert running.cpu_s > 0.05 and stopped.cpu_s < 0.05
    assert running.wall_s >= 0.5
    assert meter.read().cpu_s < readings[-1].cpu_s + 0.2 and child.pid not in meter.children  # it has ended


# Stops itself for three seconds, 0.3 s into the second segment of the network alone (the tenth of all with one count of
# crops and no policies: six in a round).
STOPPED_RUN = """
import os, subprocess, sys
from analysis import timing_notes
from bench import cli
from bench.measure import throughput
timing_notes.SHOWN = 100  # other programs may disturb many measurements
real, number = throughput.segment, [0]
def segment(stream, **arguments):
    number[0] += 1
    if number[0] == 10:
        me = os.getpid()
        subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -STOP {me}; sleep 3; kill -CONT {me}"])
    return real(stream, **arguments)
throughput.segment = segment
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so_and_times_the_round_again(demo_root: Path, tmp_path: Path) -> None:
    options = ["--family", "mobilenet", "--data", str(demo_root), "--crops", "2", "--no-cheap", "--no-accuracy"]
    options += ["-b", "8", "--batch-images", "8", "--latency-queries", "2", "--no-figures"]
    command = ["run", *options, "--rounds", "3", "--round-seconds", "0.5", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_RUN, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    network = next(t for t in records.read_run(tmp_path / "run").throughputs if t.stage == records.MODEL)
    assert network.durations_s[1] > 3 and "nothing came for 3." in network.disturbed[1]
    assert 1 not in network.kept or all(network.disturbed)  # other programs may have disturbed every round
    assert len(network.counts) > 3 and len(network.cpu_s) == len(network.counts)
    assert network.cpu_s[1] / network.durations_s[1] < 0.75 * network.cpu_s[0] / network.durations_s[0]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("network alone: ")]
    assert "rounds were disturbed and are" in line and "nothing came for 3." in line
    last = json.loads(done.stdout.splitlines()[-1])
    assert line in last["models"][0]["timing_notes"]
