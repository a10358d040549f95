"""CPU quotas of made control groups, a user without a home folder, and little shared memory.

pytest tests/pipelines/test_surroundings.py
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import surroundings

FILES = {
    "version 2, a container's root": ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
    "version 2, no limit": ({"cpu.max": "max 100000"}, "0::/\n", None),
    "version 2, in the group above": ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 2.0),
    "version 2, its own and the group above": (
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"},
        "0::/a/b\n",
        0.5,
    ),
    "version 1": (
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
        "4:cpu,cpuacct:/docker/x\n3:memory:/\n",
        3.0,
    ),
    "version 1, in its own group": (
        {"cpu,cpuacct/job/cpu.cfs_quota_us": "50000", "cpu,cpuacct/job/cpu.cfs_period_us": "25000"},
        "4:cpu,cpuacct:/job\n",
        2.0,
    ),
    "version 1, no limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", None),
    "no control groups": ({}, "", None),
    "not readable as numbers": ({"cpu.max": "some words"}, "nonsense\n", None),
}


@pytest.mark.parametrize(("files", "own", "expected"), FILES.values(), ids=FILES)
def test_a_quota_is_read_from_the_control_groups(
    files: dict[str, str], own: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {**files, "own": own}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(surroundings, "CGROUPS", tmp_path)
    monkeypatch.setattr(surroundings, "OWN_CGROUP", tmp_path / "own")
    assert surroundings.cpu_quota() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert surroundings.usable_cores() == (8 if expected is None else max(1, int(expected)))


def test_a_user_without_a_home_folder_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTICROP_CACHE", raising=False)

    def nowhere(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert surroundings.cache_folder().name == f"multicrop-bench-{os.getuid()}"
    assert surroundings.cache_folder("/data/cache") == Path("/data/cache")


def test_a_batch_that_finds_no_shared_memory_is_sent_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.backends import torchvision as backend

    tensors = [torch.arange(12, dtype=torch.uint8), torch.arange(5, dtype=torch.uint8)]
    loaded = backend._Loaded(np.arange(2), [], [], tensors)
    monkeypatch.setattr(backend, "get_worker_info", lambda: object())

    def no_room(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")

    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    _, sent = backend.sendable((None, loaded))
    arrived = pickle.loads(pickle.dumps(sent))
    assert all(torch.equal(found, tensor) for found, tensor in zip(arrived.pixels, tensors, strict=True))
