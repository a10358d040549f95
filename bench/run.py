"""The benchmark: accuracy and images per second of multi-crop inference.

    python bench/run.py --family nfnet --crops 1,2,5,10,20                    # demo data, nothing downloaded
    python bench/run.py --family nfnet --crops 1,2,5,10,20 --data imagenet/val
    python bench/run.py --models resnet50.a1_in1k --policies CC,10RC+10MRC --data imagenet/val

Accuracy: every readable image once, the views of all policies evaluated in one pass, every policy averaged at the
feature, logit and softmax level. Throughput: the pipeline alone, the network alone, both together, at each crop count.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as `python bench/run.py`: search the repo root, not bench/ (which could shadow stdlib names)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import cases
from bench.options import parse
from bench.setup import UserError, default_weights, find_images, make_job, make_options, say
from pipelines.crops import Policy, union

if TYPE_CHECKING:
    from bench.job import Job
    from bench.records import Record
    from pipelines.dataset import Scan

ROOT = Path(__file__).resolve().parents[1]
ASK_ABOVE_S = 30 * 60


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    args = parse(argv)
    try:
        return run(args)
    except (UserError, ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the lines already in the run's folder are whole", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Expand, load, estimate; then for each network score, time and write."""
    started = time.monotonic()
    weights = default_weights(args)
    model_cases = cases.model_cases(args, demo=weights == "demo")
    policies = cases.policies(crops=args.crops, named=args.policies)
    if args.dry_run:
        return dry_run(args, model_cases, policies)
    out = new_folder(args)
    say("loading torch, timm and the data backend ...")
    options = make_options(args, weights, policies)
    scan = find_images(args, options.workers)
    if args.strict and len(scan.unreadable):
        raise UserError(f"--strict: {unreadable_text(scan.unreadable[['name', 'reason']].to_numpy().tolist())}")
    jobs = [make_job(case, scan, options) for case in model_cases]
    expected_s = sum(job.expected_s() for job in jobs)
    ask_about(expected_s, args, scan)
    out.mkdir(parents=True)
    write_info(out, args, policies, jobs, expected_s)
    written = [record for job in jobs for record in write_records(out, job)]
    write_unreadable(out, scan, jobs)
    finish(out, written, args, started, [ledger(job) for job in jobs])
    failed = [(job.data.names([f.row])[0], f.reason) for job in jobs for f in job.failed]  # type: ignore[arg-type]
    if args.strict and failed:
        print(f"error: --strict: {unreadable_text(failed)}", file=sys.stderr)
        return 1
    return 0


def unreadable_text(failed: Sequence[Sequence[str]]) -> str:
    """How many, and the first of them with the reason."""
    name, reason = failed[0]
    return f"{len(failed)} images cannot be read; {name}, for one: {reason}"


def ledger(job: Job) -> dict[str, Any]:
    """Every image that was found, or chosen by --limit, is scored or unreadable (at the scan, or when decoded)."""
    at_scan, at_decode = len(job.data.unreadable), len(job.failed)
    return {
        "model": job.case.label,
        "expected": len(job.data) + at_scan,
        "scored": len(job.data) - at_decode if job.why_no_accuracy is None else 0,
        "unreadable": {"scan": at_scan, "decode": at_decode},
    }


def dry_run(args: argparse.Namespace, model_cases: list[cases.ModelCase], policies: list[Policy]) -> int:
    """Print the cases and stop."""
    crops = cases.crop_counts(args.crops, policies)
    for case in model_cases:
        print(case.label)
        if not args.no_accuracy:
            print(f"  accuracy, in one pass of {union(policies).total} views: {', '.join(p.name for p in policies)}")
        if not args.no_throughput:
            print(f"  throughput at {', '.join(map(str, crops))} crops")
    return 0


def new_folder(args: argparse.Namespace) -> Path:
    """Where the results go; made only when the run begins. Never a folder that exists."""
    if args.out:
        if args.out.exists():
            raise UserError(f"--out {args.out} exists; results are never written over others: name a new folder")
        return args.out
    stem = args.family or "models"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{stem}-{stamp}"
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{stem}-{stamp}-{number}"
        number += 1
    return folder


def ask_about(expected_s: float, args: argparse.Namespace, scan: Scan) -> None:
    """Say how long it will take. Raises UserError above half an hour, unless ``--yes``."""
    say(f"expected to take about {duration(expected_s)}")
    if expected_s <= ASK_ABOVE_S or args.yes:
        return
    images = min(args.limit or len(scan.table), len(scan.table))
    fits = max(1, int(images * ASK_ABOVE_S / expected_s * 0.8))
    command = ["python", "bench/run.py", *args.argv]
    shorter = []
    if not args.no_accuracy:
        shorter.append([*command, *["--no-throughput"] * (not args.no_throughput), "--limit", str(fits)])
    if not args.no_throughput:
        shorter.append([*command, *["--no-accuracy"] * (not args.no_accuracy), "--rounds", "1"])
    raise UserError(
        f"this run would take about {duration(expected_s)} on this machine. Add --yes to go on, or run what fits:\n"
        + "\n".join(f"  {shlex.join(one)}" for one in shorter)
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_info(out: Path, args: argparse.Namespace, policies: list[Policy], jobs: list[Job], expected_s: float) -> None:
    """run.json."""
    from bench import machine, records

    info = {
        "schema": records.SCHEMA,
        "command": ["python", "bench/run.py", *args.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "expected_s": round(expected_s, 1),
        "policies": [policy.name for policy in policies],
        "data": str(jobs[0].data.root),
        "images_unreadable_at_scan": len(jobs[0].data.unreadable),
        "load": {name: getattr(jobs[0].options, name) for name in ("backend", "workers", "prefetch", "hw_load")},
        "models": [job.describe() for job in jobs],
        "environment": machine.environment(),
    }
    records.write_whole(out / "run.json", json.dumps(info, indent=2) + "\n")


def write_records(out: Path, job: Job) -> list[Record]:
    """Run a job; each record is on the disk as soon as it is there."""
    from bench import records

    written = []
    for record in job.run(out):
        records.append(out, record)
        written.append(record)
    return written


def write_unreadable(out: Path, scan: Scan, jobs: list[Job]) -> None:
    """unreadable.csv: every image that was left out, once."""
    rows = {
        (name, stage): reason
        for name, stage, reason in scan.unreadable[["name", "stage", "reason"]].itertuples(index=False)
    }
    for job in jobs:
        for failure in job.failed:
            rows[job.data.names([failure.row])[0], failure.stage] = failure.reason  # type: ignore[arg-type]
    with (out / "unreadable.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "stage", "reason"])
        writer.writerows([name, stage, reason] for (name, stage), reason in sorted(rows.items()))


def finish(
    out: Path, written: list[Record], args: argparse.Namespace, started: float, ledgers: list[dict[str, Any]]
) -> None:
    """Summary, figures, table, paths; the last line of standard output is JSON."""
    from bench import records, report

    summary = records.write_summary(out, written)
    figures = [] if args.no_figures else draw(out)
    print(report.text(written))
    for one in ledgers:
        print(
            f"\n{one['model']}: {one['expected']:,} images, {one['scored']:,} scored, unreadable "
            f"{one['unreadable']['scan']:,} at the scan and {one['unreadable']['decode']:,} when decoded"
        )
    print("\nwritten:")
    paths = sorted(path.resolve() for path in out.iterdir())
    for path in paths:
        print(f"  {path}")
    result = {
        "out": str(out.resolve()),
        "summary": str(summary.resolve()),
        "figures": [str(path) for path in figures],
        "elapsed_s": round(time.monotonic() - started, 1),
        "models": report.headline(written),
        "images": ledgers,
    }
    print(json.dumps(result))


def draw(out: Path) -> list[Path]:
    """The figures, by a program of their own: the room of drawing is below this one."""
    script = ROOT / "analysis" / "make_figures.py"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"the figures could not be drawn: {done.stderr.strip().splitlines()[-1:]}; the numbers are safe")
        return []
    return sorted(path.resolve() for path in out.glob("*.png"))


if __name__ == "__main__":
    sys.exit(main())
