"""What the system grants this process: processor cores, their instructions, and a folder for caches. A container grants
less than it shows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Processor cores that this process may use: of its cpuset, and no more than its CPU quota is worth, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def computes_bfloat16() -> bool:
    """Whether the processor computes with bfloat16, as far as the system says; others emulate it, slowly."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def cpu_quota() -> float | None:
    """How many cores' time the control groups (version 1 and 2) of this process grant; None: no limit is set.

    Source: Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and scheduler/sched-bwc.rst of the Linux kernel. A
    group cannot have more than the groups above it; inside a container its own group is usually the root.
    """
    found = [_quota_of(folder) for folder in _cpu_groups()]
    return min((quota for quota in found if quota is not None), default=None)


def throttled_seconds() -> float | None:
    """Seconds for which a control group's CPU quota has held its threads back, so far; None where the system does not
    say. Of the groups of this process and those above, the largest. Source: as for ``cpu_quota`` (``cpu.stat``)."""
    found = [_throttled(_text(folder / "cpu.stat")) for folder in _cpu_groups()]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _throttled(cpu_stat: str) -> float | None:
    values = dict(line.split(maxsplit=1) for line in cpu_stat.splitlines() if " " in line)
    if "throttled_usec" in values:  # version 2
        return int(values["throttled_usec"]) / 1e6
    return int(values["throttled_time"]) / 1e9 if "throttled_time" in values else None


def _cpu_groups() -> list[Path]:
    """The folders of this process's control groups, and of those above them, that may limit its CPU time."""
    found = []
    for line in _text(OWN_CGROUP).splitlines() or ["0::/"]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in [CGROUPS] if not controllers else [CGROUPS / "cpu", CGROUPS / controllers]:
            found += _with_those_above(top, path)
    found += [CGROUPS, CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"]
    return list(dict.fromkeys(found))


def _with_those_above(top: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _quota_of(group: Path) -> float | None:
    words = _text(group / "cpu.max").split() or [
        _text(group / "cpu.cfs_quota_us").strip(),
        _text(group / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def cache_folder(named: Path | str | None = None) -> Path:
    """``named``, else the environment variable MULTICROP_CACHE, else ``~/.cache/multicrop-bench``.

    A user without a home folder, as in many containers, has a folder of their own among the temporary files.
    """
    chosen = named or os.environ.get("MULTICROP_CACHE")
    try:
        return Path(chosen or "~/.cache/multicrop-bench").expanduser()
    except RuntimeError:  # no HOME, and no entry in the list of users
        if chosen:
            return Path(chosen)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"multicrop-bench-{user}"
