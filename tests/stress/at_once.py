"""Two processes at once on one run's folder: two runs, two continuations, two figure makers, again and again.

    python tests/stress/at_once.py               # 50 times each; about half an hour on two cores
    python tests/stress/at_once.py --times 5

Of two runs into one folder, and of two continuations of one run, one must do the work and the other be refused with
exit status 2, or find the work done; what lies there then must be the files of a run that had the folder to itself.
Figure makers both succeed, and the pictures are those of one alone.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.stress.kills import COMMAND, contents, damaged, differences, finish, said, start

ROOT = Path(__file__).resolve().parents[2]
REFUSED = ("another process is writing", "results are never", "is writing to it")
PARTIAL_S = 120.0  # to wait for the first partial result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when something was lost, mixed or written twice."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/at_once.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, metavar="N", help="of each (default: 50)")
    times: int = parser.parse_args(argv).times
    command = ["--models", "mobilenet:demo", "--limit", "100", "--no-figures", *COMMAND]
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="at-once-") as scratch:
        whole = Path(scratch) / "undisturbed"
        finish(start([*command, "--out", str(whole)]))
        expected = contents(whole)
        for number in range(times):
            out = Path(scratch) / f"run-{number}"
            wrong += two([*command, "--out", str(out)], out, expected)
            shutil.rmtree(out)
            if stopped(command, out):
                wrong += two(["--resume", str(out)], out, expected)
            else:
                wrong.append(f"{out.name}: no run to continue")
            shutil.rmtree(out, ignore_errors=True)
            wrong += two_figure_makers(whole)
            print(f"{number + 1} of {times}: {len(wrong)} failures", flush=True)
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"{times} times two runs, two continuations, two figure makers: {(wrong and len(wrong)) or 'nothing'} wrong")
    return 1 if wrong else 0


def two(arguments: Sequence[str], out: Path, expected: dict[str, object]) -> list[str]:
    """Start the command twice at one moment. What is wrong with the ends and with the folder."""
    processes = [start(arguments), start(arguments)]
    statuses = sorted(process.wait() for process in processes)
    wrong = [f"{out.name}: exit statuses {statuses}"] if statuses not in ([0, 2], [0, 0]) else []
    for process in processes:
        if process.returncode == 2 and not any(words in said(process) for words in REFUSED):
            wrong.append(f"{out.name}: refused with: {said(process)}")
    if statuses == [0, 0] and "--resume" not in arguments:
        wrong.append(f"{out.name}: both runs wrote")
    wrong += damaged(out)
    return wrong + [f"{out.name}: {what}" for what in differences(expected, contents(out))]


def stopped(command: Sequence[str], out: Path) -> bool:
    """Leave a run that was killed after its first partial results. False: it never had any, or was too fast."""
    process = start([*command, "--out", str(out)])
    deadline = time.monotonic() + PARTIAL_S
    while process.poll() is None and time.monotonic() < deadline:
        if any(out.glob("partial/*/*.npz")):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    process.kill()
    process.wait()
    return False


def two_figure_makers(run: Path) -> list[str]:
    command = [sys.executable, "-m", "bench", "figures", str(run), "--only", "throughput_vs_crops"]
    pictures: list[bytes] = []
    for count in (1, 2):
        makers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(count)]
        statuses = [maker.wait() for maker in makers]
        if any(statuses):
            return [f"figures: exit statuses {statuses}"]
        (path,) = run.glob("throughput_vs_crops*.png")
        pictures.append(path.read_bytes())
        path.unlink()
    left = [path.name for path in run.iterdir() if path.suffix == ".part"]
    return ["two figure makers gave another picture than one"] * (pictures[0] != pictures[1]) + left


if __name__ == "__main__":
    sys.exit(main())
