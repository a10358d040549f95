"""Commands that run out of memory: they end with a sentence, and no image is blamed.

pytest tests/bench/test_memory_limits.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from bench import run
from bench.errors import exit_status

ROOT = Path(__file__).resolve().parents[2]

# Where a new thread, or the next allocation, finds no memory, C libraries (glibc, OpenMP, the C++ library) write one of
# these and end the process, or a null pointer ends it: nothing can be said after that.
LIBRARIES_END = (
    "cannot allocate memory for thread-local data: ABORT", "Thread creation failed", "terminate called",
)  # fmt: skip
# Each further thread takes 72 MB of addresses or more: with them the limit would be reached at random places, some of
# them in C libraries that then end the process or wait for ever.
FEW_THREADS = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
UNDER_A_LIMIT = """
import resource, sys
import timm, torch, scipy.stats
import bench.measure.accuracy, bench.setup, models, pipelines.backends.torchvision, pipelines.backends.dali
from bench import cli
with open("/proc/self/status") as file:
    virtual = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (virtual + (int(sys.argv[1]) << 20),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 243 MB each in memory, and a network."""
    root = tmp_path_factory.mktemp("large")
    for number in range(3):
        folder = root / "images" / ("n01440764", "n01443537")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9000, 9000), (number, 9, 9)).save(folder / f"{number}.png", compress_level=1)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), root / "net.safetensors")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dali-cpu", "torchvision"])
@pytest.mark.parametrize("free_mib", [400, 1000])
def test_under_a_memory_limit_no_image_is_blamed(
    backend: str, free_mib: int, large_images: Path, tmp_path: Path
) -> None:
    """Images of 243 MB in memory, and little room: the run ends with the remedy, or every image is scored."""
    pytest.importorskip("nvidia.dali")
    network = ["--models", "test_resnet", "--checkpoint", str(large_images / "net.safetensors"), "--img-size", "64"]
    what = ["--data", str(large_images / "images"), "--policies", "CC", "--no-throughput", "--no-figures", "-j", "1"]
    command = ["run", *network, *what, "--data-backend", backend, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(free_mib), *command],
        capture_output=True, text=True, timeout=300, env={**os.environ, **FEW_THREADS, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    lost = tmp_path / "out" / "unreadable.csv"
    assert not lost.exists() or len(lost.read_text().splitlines()) == 1
    if any(words in done.stderr for words in LIBRARIES_END) or done.returncode == -signal.SIGSEGV:
        assert done.returncode, done.stderr
    elif done.returncode:
        assert done.returncode in (run.UNREADABLE, run.USERS, run.FAILED), done.stderr
        assert "ulimit" in done.stderr, done.stderr


def test_where_memory_runs_out_the_command_says_so_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> int:
        raise MemoryError("std::bad_alloc")

    assert exit_status(fails, {}) == 1
    assert "error: memory or file descriptors ran out (MemoryError: std::bad_alloc)" in capsys.readouterr().err
    monkeypatch.setattr(run, "run", fails)
    assert run.main(["--models", "test_resnet", "-q"]) == 1
    said = capsys.readouterr().err
    assert "memory or file descriptors ran out" in said and "ulimit" in said and "Traceback" not in said

    def broken() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(broken, {})
