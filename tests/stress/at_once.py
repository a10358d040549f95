"""Two processes at once on one run's folder: two runs, two continuations, two figure makers, again and again.

    python tests/stress/at_once.py               # 50 times each; about twenty minutes on two cores
    python tests/stress/at_once.py --times 5

Of two runs into one folder, and of two continuations of one run, one must do the work and the other be refused with
exit status 2, or find the work done; what lies there then must be the files of a run that had the folder to itself.
Figure makers both succeed, and the pictures are those of one alone.

The processes come from a fork server that has imported the libraries already: importing takes longer than the runs, and
two processes meet more closely without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.stress.kills import SETTLED, contents, damaged, differences

COMMAND = [
    "run", "--models", "mobilenet:demo", "--limit", "40", "--crops", "1", *SETTLED, "--rounds", "1", "--round-seconds",
    "0.02", "--num-warm-iter", "1", "--latency-queries", "2", "--no-cheap", "--no-figures",
]  # fmt: skip
PRELOADED = [
    "torch", "timm", "scipy.stats", "bench.cli", "bench.run", "bench.setup", "bench.measure.accuracy",
    "bench.measure.throughput", "bench.measure.latency", "bench.measure.estimate", "bench.measure.same_images",
    "analysis.console", "analysis.summary", "analysis.make_figures", "pipelines.backends.dali",
]  # fmt: skip
REFUSED = ("another process is writing", "results are never", "is writing to it")
PARTIAL_S = 120.0  # to wait for the first partial result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when something was lost, mixed or written twice."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/at_once.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, metavar="N", help="of each (default: 50)")
    times: int = parser.parse_args(argv).times
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="at-once-") as scratch:
        whole = Path(scratch) / "undisturbed"
        first = Command([*COMMAND, "--out", str(whole)])
        if first.wait():
            raise RuntimeError(f"the undisturbed run failed: {first.said()}")
        expected = contents(whole)
        for number in range(times):
            out = Path(scratch) / f"run-{number}"
            wrong += two([*COMMAND, "--out", str(out)], out, expected)
            shutil.rmtree(out)
            if stopped([*COMMAND, "--out", str(out)], out):
                wrong += two(["run", "--resume", str(out)], out, expected)
            else:
                wrong.append(f"{out.name}: no run to continue")
            shutil.rmtree(out, ignore_errors=True)
            wrong += two_figure_makers(whole)
            print(f"{number + 1} of {times}: {len(wrong)} failures", flush=True)
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"{times} times two runs, two continuations, two figure makers: {(wrong and len(wrong)) or 'nothing'} wrong")
    return 1 if wrong else 0


class Command:
    """``multicrop-bench`` with these arguments, in a process that has imported PRELOADED."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.log = Path(tempfile.mkstemp(prefix="at-once-", suffix=".log")[1])
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=run_command, args=(list(arguments), str(self.log)))
        self.process.start()

    def wait(self) -> int:
        """The exit status."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def said(self) -> str:
        """The end of what it printed."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-6:])[-600:]


def run_command(arguments: list[str], log: str) -> None:
    from bench import cli

    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["multicrop-bench", *arguments]
    sys.exit(cli.main(arguments))


def two(arguments: Sequence[str], out: Path, expected: dict[str, object]) -> list[str]:
    """Start the command twice at one moment. What is wrong with the ends and with the folder."""
    processes = [Command(arguments), Command(arguments)]
    statuses = sorted(process.wait() for process in processes)
    wrong = [f"{out.name}: exit statuses {statuses}"] if statuses not in ([0, 2], [0, 0]) else []
    for process in processes:
        if process.wait() and not any(words in process.said() for words in REFUSED):
            wrong.append(f"{out.name}: refused with: {process.said()}")
        process.log.unlink()
    if statuses == [0, 0] and "--resume" not in arguments:
        wrong.append(f"{out.name}: both runs wrote")
    wrong += damaged(out)
    return wrong + [f"{out.name}: {what}" for what in differences(expected, contents(out))]


def stopped(arguments: Sequence[str], out: Path) -> bool:
    """Leave a run that was killed after its first partial results. False: it never had any, or was too fast."""
    command = Command(arguments)
    deadline = time.monotonic() + PARTIAL_S
    found = False
    while not found and command.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
        found = any(out.glob("partial/*/*.npz"))
    command.process.kill()
    command.wait()
    command.log.unlink()
    return found


def two_figure_makers(run: Path) -> list[str]:
    pictures: list[bytes] = []
    for count in (1, 2):
        makers = [Command(["figures", str(run), "--only", "throughput_vs_crops"]) for _ in range(count)]
        failed = [maker.said() for maker in makers if maker.wait()]
        if failed:
            return [f"figures: {failed}"]
        (path,) = run.glob("throughput_vs_crops*.png")
        pictures.append(path.read_bytes())
        path.unlink()
    left = [path.name for path in run.iterdir() if path.suffix == ".part"]
    return ["two figure makers gave another picture than one"] * (pictures[0] != pictures[1]) + left


if __name__ == "__main__":
    sys.exit(main())
