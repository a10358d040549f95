"""Commands whose standard streams are closed, broken, or not a terminal; and what lies in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines import decoder_messages, workers

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


@pytest.mark.parametrize("writable", [True, False])
def test_a_long_name_of_the_temporary_folder_is_no_address_of_a_socket(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets of workers get a short one, where there is one; afterwards all is as it was."""
    long = tmp_path / ("t" * 100)
    long.mkdir()
    short = tmp_path if writable else tmp_path / "none"
    monkeypatch.setattr(workers, "SHORT", short)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(long))
    with workers.safe_start():
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(short if writable else long)
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(long)
    monkeypatch.setattr(workers, "MOST_BYTES", 10_000)
    with workers.safe_start():
        assert tempfile.gettempdir() == str(long)


DECODERS = [
    b"\x1b[0;31m[ERROR] \x1b[0m[libjpeg_turbo_decoder] Could not decode jpeg code stream - Premature end of data\n",
    b"[WARNING] [nvjpeg-cuda-decoder] no such thing\n",
    b"Corrupt JPEG data: 1122 extraneous bytes before marker 0xd9\n",
    b"Bogus Huffman table definition\n",
    b"Premature end of JPEG file\n",
    b"Warning: unknown JFIF revision number 9.09\n",
    b"Huffman table 0x00 was not defined\n",
    b"libpng warning: iCCP: known incorrect sRGB profile\n",
    b"libpng error: IDAT: CRC error\n",
    b"TIFFReadDirectory: Warning, Unknown field with tag 34000 (0x84d0) encountered.\n",
    b"[ WARN:0@0.113] global loadsave.cpp:244 findDecoder imread_('x'): can't open/read file\n",
    b"/x/site-packages/PIL/TiffImagePlugin.py:900: UserWarning: Truncated File Read\n  warnings.warn(str(msg))\n",
]
OTHERS = [
    b"Traceback (most recent call last):\n",
    b'  File "x.py", line 3\n',
    b"terminate called after throwing an instance of 'std::bad_alloc'\n",
    b"\rpredict:  50%|#####     | 1/2",
    b"\x1b[Aa line above\n",
    b"Bus error (core dumped)\n",
    b"error: --data: there is no folder; [ERROR] is what decoders write\n",
    b"Loading weights\n",
    b"no end of line",
]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_decoders_own_lines_are_left_out_and_nothing_else(size: int) -> None:
    passing = decoder_messages.Filter()
    everything = b"".join([*DECODERS, *OTHERS[:3], b"\n", *DECODERS, *OTHERS[3:]])
    shown = b"".join(passing.feed(everything[i : i + size]) for i in range(0, len(everything), size)) + passing.end()
    assert shown == b"".join([*OTHERS[:3], b"\n", *OTHERS[3:]])


def test_a_progress_bar_without_an_end_of_line_is_shown_at_once() -> None:
    assert decoder_messages.Filter().feed(b"\r 50%|###") == b"\r 50%|###"


@pytest.mark.parametrize(("end", "status"), [("", 0), ("os.abort()", -6)])
def test_a_command_shows_no_decoders_lines_and_keeps_last_words(end: str, status: int, tmp_path: Path) -> None:
    lines = {"first": DECODERS[0] + b"a library\n" + DECODERS[2], "child": DECODERS[3] + b"a child\n"}
    script = tmp_path / "script.py"
    script.write_text(f"""
from bench import logs
logs.prepare_streams(); logs.without_decoder_messages()
import os, subprocess, sys
print("ours", file=sys.stderr)
os.write(2, {lines["first"]!r})
child = "import os, sys; os.write(2, bytes.fromhex(sys.argv[1]))"
subprocess.run([sys.executable, "-c", child, {lines["child"].hex()!r}])
os.write(2, b"last words\\n")
{end}
""")
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert sorted(done.stderr.splitlines()) == ["a child", "a library", "last words", "ours"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchvision", pytest.param("dali-cpu", marks=pytest.mark.dali)])
def test_damaged_images_are_named_with_reasons_and_decoders_are_silent(
    backend: str, demo_root: Path, weights_file: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:4]):
        data = path.read_bytes()
        damaged = [data, data[:6000], data[:3000] + bytes(40) + data[3040:], data.replace(b"\xff\xc4", b"\xff\xc4" * 2)]
        (images / f"{number}.jpg").write_bytes(damaged[number])
    how = f"--img-size 48 --policy CC -b 8 --data-backend {backend} --model test_resnet --checkpoint {weights_file}"
    done = shell(f"{sys.executable} -m bench predict {images} {how}", tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if line and "image/s" not in line]
    assert said[0].endswith("of 4 images have no answer") and said[1].startswith("  1.jpg: ")
    assert all(line.startswith("  ") and ".jpg: " in line for line in said[1:]), said


def test_where_no_process_can_be_started_all_is_shown(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
from bench import logs
sys.executable = {str(tmp_path / "nowhere")!r}
logs.prepare_streams(); logs.without_decoder_messages()
os.write(2, b"a library\\n")
print("ours", file=sys.stderr)
""")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "a library\nours\n")


def test_packages_of_a_user_are_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("bench", "models", "pipelines", "analysis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the package of the user was imported')")
    code = "import sys, multicrop_bench; sys.argv = ['multicrop-bench', '--help']; sys.exit(multicrop_bench.main())"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "multicrop-bench COMMAND" in done.stdout
