"""Is anything lost when a run is killed? Runs are killed at random moments and resumed, again and again, to their end.

    python tests/stress/kills.py                 # 50 kills; about ten minutes on two cores
    python tests/stress/kills.py --kills 10 --seed 3
    python tests/stress/kills.py --models mobilenet:demo --images 80 --quick

Every chain of a killed run and its continuations must end with the files of an undisturbed run: predictions bit for
bit, every line of results.jsonl once and equal but for the times in it. After each kill every file there is whole.
Half of the kills are SIGKILL, which nothing can catch, a quarter each SIGINT (Ctrl-C) and SIGTERM (batch systems).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
# Batches and workers of a settled number: else they follow the moment's speed, or tuning in between, and stand in
# the records.
SETTLED = ["--batch-images", "8", "-j", "2"]
COMMAND = [
    "--crops", "1,3", *SETTLED, "--rounds", "1", "--round-seconds", "0.05", "--num-warm-iter", "1",
    "--latency-queries", "2",
]  # fmt: skip
QUICK = ["--no-cheap", "--crops", "1"]  # of two options of a name the last one counts
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
STATUSES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
# A signal that comes before the handlers are there, or when the work is done, ends a process as it ends any other.
IMPORTING_S, DONE = 3.0, "a summary"
PATIENCE_S = 120.0  # a process that does not end after a signal hangs


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when something was lost, differs, or hangs."""
    args = parse(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=args.scratch) as scratch:
        return kill_and_compare(args, Path(scratch), rng)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/kills.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="at least so many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals (default: 0)")
    parser.add_argument("--models", default="resnet:demo,mobilenet:demo", metavar="NAMES", help="as in bench/run.py")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="of the demo set (default: 300)")
    parser.add_argument("--quick", action="store_true", help="without dense and stopped policies, and one crop")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where the runs lie (default: the system's)")
    return parser.parse_args(argv)


def kill_and_compare(args: argparse.Namespace, scratch: Path, rng: random.Random) -> int:
    command = ["--models", args.models, "--limit", str(args.images), "--no-figures", *COMMAND]
    command += QUICK * args.quick
    started = time.monotonic()
    whole = scratch / "undisturbed"
    finish(start([*command, "--out", str(whole)]))
    whole_s = time.monotonic() - started
    print(f"an undisturbed run: {whole_s:.1f} s, {len(lines(whole))} lines", flush=True)
    expected = contents(whole)

    kills: Counter[str] = Counter()
    wrong: list[str] = []
    chains = 0
    while sum(kills.values()) < args.kills:
        chains += 1
        out = scratch / f"chain-{chains}"
        while not (ended := one_life(command, out, rng, whole_s, kills, wrong)):
            pass
        if ended == "finished":
            wrong += [f"{out.name}: {what}" for what in differences(expected, contents(out))]
        shutil.rmtree(out, ignore_errors=True)
        print(f"{sum(kills.values())} kills, {chains} chains, {len(wrong)} failures", flush=True)
    print("\nkilled while there was (signal):")
    for what, count in sorted(kills.items()):
        print(f"  {count:3}  {what}")
    for what in wrong:
        print(f"WRONG: {what}")
    verdict = "nothing was lost" if not wrong else f"{len(wrong)} FAILURES"
    print(f"{sum(kills.values())} kills in {chains} chains, each resumed to its end: {verdict}")
    return 1 if wrong else 0


def one_life(
    command: Sequence[str], out: Path, rng: random.Random, whole_s: float, kills: Counter[str], wrong: list[str]
) -> str:
    """Start or resume the run and perhaps kill it. Returns how the chain ended, "" while it goes on."""
    process = start(["--resume", str(out)] if (out / "run.json").exists() else [*command, "--out", str(out)])
    number = rng.choice(SIGNALS)
    delay_s = rng.uniform(0, whole_s)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        pass
    else:
        if process.returncode != 0:
            wrong.append(f"{out.name}: exit status {process.returncode}: {said(process)}")
            return "failed"
        return "finished"
    process.send_signal(number)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        wrong.append(f"{out.name}: still running {PATIENCE_S:.0f} s after {number.name}")
        return "failed"
    if process.returncode == 0:  # it was just done
        return "finished"
    there = state(out)
    kills[f"{there} ({number.name})"] += 1
    uncaught = number == signal.SIGKILL or delay_s < IMPORTING_S or there == DONE
    if process.returncode != STATUSES[number] and not (uncaught and process.returncode == -number):
        wrong.append(f"{out.name}: {number.name} gave exit status {process.returncode}: {said(process)}")
    wrong += [f"{out.name}: after {number.name}: {what}" for what in damaged(out)]
    return ""


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """bench/run.py, in a process group of its own; its words go to a file that ``said`` reads."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(RUN), *arguments], stdout=log, stderr=log, text=True, env=environment
    )
    process.log = log  # type: ignore[attr-defined]
    return process


def said(process: subprocess.Popen[str]) -> str:
    """The end of what it printed."""
    process.log.seek(0)  # type: ignore[attr-defined]
    return " | ".join(process.log.read().splitlines()[-6:])[-600:]  # type: ignore[attr-defined]


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run that nobody kills. Raises RuntimeError when it fails."""
    if process.wait():
        raise RuntimeError(f"the undisturbed run failed: {said(process)}")


# ------------------------------------------------------------------------------------------------------- what is there


def state(out: Path) -> str:
    """How far the run had come."""
    if not (out / "run.json").exists():
        return "no run yet"
    if (out / "summary.csv").exists():
        return DONE
    done = [line["kind"] for line in lines(out)]
    if any(out.glob("partial/*/*.npz")):
        return "partial results" if not done else "one network done, partial results of the next"
    return f"{len(set(done) & {'accuracy', 'throughput'})} phases or more" if done else "a plan"


def damaged(out: Path) -> list[str]:
    """Files under their final names that are not whole."""
    from bench import records
    from bench.predictions import Predictions

    found = []
    if (out / "run.json").exists():
        try:
            records.read_run(out)
        except ValueError as error:
            found.append(str(error))
        for path in [*out.glob("*.npz"), *out.glob("partial/*/*.npz")]:
            try:
                Predictions.load(path)
            except (ValueError, OSError) as error:
                found.append(str(error))
    return found


def lines(out: Path) -> list[dict[str, Any]]:
    """results.jsonl."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def contents(out: Path) -> dict[str, Any]:
    """All that two runs must have in common: for each file of predictions its arrays; the lines without their times."""
    from bench import records

    stored: dict[str, Any] = {}
    for path in sorted(out.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            stored |= {f"{path.name}/{name}": values for name, values in file.items()}
    for record in records.read_run(out).records:
        line = asdict(record)
        key = f"{record.kind} {record.setting.model} {record.setting.S}/{record.setting.K}"
        if isinstance(record, records.Throughput):
            key, line = (
                f"{key} {record.stage} {record.crops}",
                {"rounds": len(record.counts) > 0},
            )  # disturbed ones are repeated
        if isinstance(record, records.Latency):
            key, line = f"{key} {record.policy}", {"queries": len(record.latency_ms) > 0}
        stored.setdefault(key, []).append(line)
    stored["unreadable.csv"] = (out / "unreadable.csv").read_text(encoding="utf-8")
    stored["files"] = sorted(path.name for path in out.iterdir())
    return stored


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, by name; of lines, in which fields."""
    names = expected.keys() | found.keys()
    differ = [name for name in sorted(names) if not np.array_equal(expected.get(name, []), found.get(name, []))]
    return [name + _fields(expected.get(name), found.get(name)) for name in differ]


def _fields(mine: Any, theirs: Any) -> str:
    if not (isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs)):
        return ""
    pairs = [(_flat(a), _flat(b)) for a, b in zip(mine, theirs, strict=True) if isinstance(a, dict)]
    return "".join(f" {key}" for key in sorted({key for a, b in pairs for key in a | b if a.get(key) != b.get(key)}))


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, **line.get("setting", {}), "setting": None}


if __name__ == "__main__":
    sys.exit(main())
