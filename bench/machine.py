"""What machine and what software a number belongs to, and how much memory it took."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from models.recipe import package_version
from pipelines.surroundings import usable_cores

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "nvidia-dali-cuda120",
    "simplejpeg",
    "numpy",
    "pillow",
    "pandas",
    "scipy",
    "matplotlib",
)
ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Everything that a rate may depend on, as plain values for JSON. What cannot be read is None."""
    return {
        "machine_id": machine_id(),
        "cpu": cpu_name(),
        "cores_usable": usable_cores(),
        "cores_physical": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "gpu": gpu_name(),
        "gpu_driver": gpu_driver(),
        "cuda_of_torch": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "packages": {name: package_version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),  # None: no git
    }


def machine_id() -> str:
    """Eight hexadecimal digits that name the hardware: CPU model, usable cores, GPU model."""
    text = f"{cpu_name()}|{usable_cores()}|{gpu_name()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def gpu_driver() -> str | None:
    """The NVIDIA driver's version."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


class PeakMemory:
    """Peak memory between ``start`` and ``read``: this process and its children, and the whole GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sampled_bytes = self.gpu_used_bytes = 0

    def start(self) -> None:
        self.sampled_bytes = self.gpu_used_bytes = 0
        self.sample()

    def sample(self) -> None:
        """Look now. Called between timed segments, never inside one."""
        self.sampled_bytes = max(self.sampled_bytes, resident_bytes())
        if self.device.startswith("cuda"):  # the device's own count: DALI's pool is outside torch's
            free, total = torch.cuda.mem_get_info(self.device)
            self.gpu_used_bytes = max(self.gpu_used_bytes, total - free)


def resident_bytes() -> int:
    """Memory of this process and its children; pages that they share count once (PSS) where the system tells."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            info = process.memory_full_info() if sys.platform == "linux" else process.memory_info()
            total += getattr(info, "pss", 0) or info.rss
        except psutil.Error:
            continue
    return total
