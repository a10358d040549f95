"""Commands whose standard streams are closed, broken, or not a terminal; and what lies in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = f"{sys.executable} {ROOT / 'bench/run.py'}"


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line by bash, whose status is that of the first command of a pipe."""
    script = f"{line}\nexit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def run_line(demo_root: Path, weights_file: Path, tmp_path: Path) -> str:
    how = "--img-size 48 --crops 1 --no-throughput --no-figures --batch-images 8 -b 8"
    return f"{COMMAND} --models test_resnet --checkpoint {weights_file} --data {demo_root} {how} --out {tmp_path}/out"


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_neither_files_nor_status(streams: str, run_line: str, tmp_path: Path) -> None:
    done = shell(f"{run_line} {streams}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "out/summary.csv").is_file()
    for path in (tmp_path / "out").iterdir():
        assert b"loading torch" not in path.read_bytes()  # no message in a file that took a closed number


@pytest.mark.slow
def test_a_broken_pipe_ends_quietly(run_line: str, tmp_path: Path) -> None:
    done = shell(f"{run_line} | true", tmp_path)
    assert done.returncode == 0 and "Broken" not in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out/summary.csv").is_file()


@pytest.mark.slow
def test_a_terminal_of_ascii_only_shows_the_json_line(run_line: str, tmp_path: Path) -> None:
    done = shell(f"{run_line}-é", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["out"].endswith("out-é")


def test_streams_that_break_in_the_middle() -> None:
    code = """
from bench import logs
logs.prepare_streams(); logs.prepare_streams()
import sys, os
reader, writer = os.pipe(); os.dup2(writer, 1); os.close(reader); os.close(writer)
for _ in range(3):
    print("x" * 100000, flush=True)
print("done", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_an_overview_into_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    done = shell(f"{sys.executable} -m bench --help | true", ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["random", "pipelines", "pickle"])
def test_worker_processes_import_nothing_from_the_current_folder(name: str, tmp_path: Path) -> None:
    script = tmp_path / "elsewhere" / "load.py"
    script.parent.mkdir()
    script.write_text(f"""
import sys
sys.path[0] = {str(ROOT)!r}
import numpy as np
from PIL import Image
from pathlib import Path
from pipelines.backends.torchvision import Torchvision
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union
from pipelines.data.memory import ImageList
from pipelines.inputspec import InputSpec
if __name__ == "__main__":
    data = ImageList.of([Image.new("RGB", (20, 20))] * 4)
    planner = Planner(InputSpec(S=16, K=16), union([parse_policy("CC")]))
    made = Torchvision(data, planner, LoadConfig(2, workers=1))
    print(sum(len(batch.rows) for batch in made.batches(np.arange(4))))
    made.close()
""")
    trap = tmp_path / f"{name}.py"
    trap.write_text("open('ran', 'w').close()\nraise SystemExit(9)\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
    assert not (tmp_path / "ran").exists()
