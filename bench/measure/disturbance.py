"""Was a timed round disturbed? By a stop of the process, its CPU limit, the machine's host, or other programs.

Counters of the system are read just before and just after each timed segment; ``disturbances`` then compares the
rounds of one measurement with each other. A disturbed round is marked, timed again within a budget
(bench.measure.throughput), and left out of the medians while there are others (bench.records.Throughput).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from pipelines.surroundings import throttled_seconds

PROC_STAT = Path("/proc/stat")
# Below these a counter's steps (10 ms) and what any system does now and then would show as disturbances.
LEAST_S = 0.05  # CPU time
LOST_SHARE = 0.05  # of the cores' time, lost to a CPU limit or to the machine's host
OTHERS_SHARE = 0.15  # of the cores' time, taken by other programs ...
IDLE_SHARE = 0.1  # ... while no more than this was free
LEAST_CPU = 0.75  # of the CPU time per second of the other rounds
STALL_S, STALL_TIMES = 0.3, 8  # nothing came for so long, and for so many times the usual interval

REPEAT_SHARE = 0.25  # of the time that the rounds took: at most so long are disturbed ones timed again
REPEAT_PASSES = 3  # tries for each


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment, seconds since some moment of their own. None: the system does not tell."""

    wall_s: float
    cpu_s: float  # of this process and its children
    throttled_s: float | None = None  # runnable, but over the limit of its control group; of all its threads
    stolen_s: float | None = None  # the host of the virtual machine ran something else, on all cores together
    busy_s: float | None = None  # of the cores that this process may use, whoever used them
    idle_s: float | None = None

    def since(self, before: Reading) -> Reading:
        """What passed between the two."""
        return Reading(
            self.wall_s - before.wall_s,
            self.cpu_s - before.cpu_s,
            _difference(self.throttled_s, before.throttled_s),
            _difference(self.stolen_s, before.stolen_s),
            _difference(self.busy_s, before.busy_s),
            _difference(self.idle_s, before.idle_s),
        )


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


@dataclass
class Meter:
    """Reads the counters. ``alone`` False: other processes of the same run use the cores too, so nothing is said of
    other programs."""

    alone: bool = True
    children: dict[int, psutil.Process] = field(default_factory=dict)

    def find_children(self) -> None:
        """Look for worker processes. It takes milliseconds, in which a pipeline works ahead: never before a clock."""
        for child in psutil.Process().children(recursive=True):
            self.children.setdefault(child.pid, child)

    def read(self) -> Reading:
        """Now; takes well under a millisecond."""
        stolen_s, busy_s, idle_s = cores_time(_text(PROC_STAT), _own_cores())
        cpu_s = time.process_time() + sum(map(self._cpu_s, list(self.children)))
        if not self.alone:
            busy_s = idle_s = None
        return Reading(time.perf_counter(), cpu_s, throttled_seconds(), stolen_s, busy_s, idle_s)

    def _cpu_s(self, pid: int) -> float:
        try:
            used = self.children[pid].cpu_times()
        except psutil.Error:  # it has ended
            del self.children[pid]
            return 0.0
        return used.user + used.system


def cores_time(proc_stat: str, cores: set[int]) -> tuple[float | None, float | None, float | None]:
    """(stolen, busy, idle) seconds of these cores together, of /proc/stat's text (proc_stat(5)); None where it has none
    of them, or only zeros, as in some sandboxes."""
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    sums = np.zeros(8)
    for line in proc_stat.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores and len(values) >= 8:
            sums += np.array(values[:8], dtype=float)
    if not sums.any():
        return None, None, None
    user, nice, system, idle, iowait, irq, softirq, steal = (sums / ticks).tolist()
    return steal, user + nice + system + irq + softirq, idle + iowait


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def disturbances(
    rounds: Sequence[Reading], intervals_ms: Sequence[Sequence[float]], cores: int | None = None
) -> list[str]:
    """For each round of one measurement what disturbed it, in words, or "".

    ``rounds``: what passed in each; ``intervals_ms``: between its successive items; ``cores``: number of
    those that this process may run on.
    """
    cores = cores or len(_own_cores())  # not those of a CPU quota: others may use the rest of them
    found = [_of_counters(one, cores) for one in rounds]
    usual_s = usual_wait_s([ms / 1e3 for one in intervals_ms for ms in one])
    for reasons, between_ms in zip(found, intervals_ms, strict=True):
        longest_s = max(between_ms, default=0.0) / 1e3
        if longest_s > max(STALL_S, STALL_TIMES * usual_s):
            reasons.append(f"nothing came for {longest_s:.1f} s (usually {1e3 * usual_s:.0f} ms)")
    used = [one.cpu_s / one.wall_s for one in rounds]
    # The upper median of the rounds that nothing is known against: a stop can only lower it.
    known_good = sorted(share for share, reasons in zip(used, found, strict=True) if not reasons) or sorted(used)
    usual = known_good[len(known_good) // 2] if known_good else 0.0
    for reasons, one, share in zip(found, rounds, used, strict=True):
        if share < LEAST_CPU * usual and (usual - share) * one.wall_s > max(LEAST_S, 0.1 * one.wall_s):
            reasons.append(
                f"the process used {share:.2f} cores, in other rounds {usual:.2f}: it was stopped, or waited for the "
                "disk or for a core"
            )
    return ["; ".join(reasons) for reasons in found]


def usual_wait_s(intervals_s: Sequence[float]) -> float:
    """The interval in which half of the waiting was done. Not their median: a stopped policy's answers come several at
    once, so that most of its intervals are zero. A stall counts as STALL_S, or a single one could be half of it all."""
    ordered = np.sort(np.asarray(intervals_s, dtype=float))
    waited = np.minimum(ordered, STALL_S).cumsum()
    return float(ordered[np.searchsorted(waited, waited[-1] / 2)]) if len(ordered) else 0.0


def _of_counters(one: Reading, cores: int) -> list[str]:
    """What the counters of one round say, without the other rounds."""
    cores_s = cores * one.wall_s
    least_s = max(LEAST_S, LOST_SHARE * cores_s)
    reasons = []
    if (one.throttled_s or 0) > least_s:
        reasons.append(f"the CPU limit of its container held it back for {one.throttled_s:.1f} s")
    if (one.stolen_s or 0) > least_s:
        reasons.append(f"the host of this virtual machine took {one.stolen_s:.1f} s of the cores' time")
    if one.busy_s is not None and one.idle_s is not None:
        others_s = one.busy_s - one.cpu_s
        if others_s > max(LEAST_S, OTHERS_SHARE * cores_s) and one.idle_s < IDLE_SHARE * cores_s:
            reasons.append(f"other programs took {others_s / one.wall_s:.1f} of {cores} cores")
    return reasons
