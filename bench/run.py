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
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as `python bench/run.py`: search the repo root, not bench/ (which could shadow stdlib names)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import cases
from bench.options import parse

if TYPE_CHECKING:
    from bench.job import Job, Options
    from bench.records import Record
    from pipelines.dataset import Scan

ROOT = Path(__file__).resolve().parents[1]
ASK_ABOVE_S = 30 * 60


class UserError(Exception):
    """Something that the user can mend; the message says how."""


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
    weights = args.weights or default_weights(args)
    model_cases = cases.model_cases(
        family=args.family, models=args.models, variants=args.variants, demo=weights == "demo"
    )
    policies = cases.policies(crops=args.crops, named=args.policies)
    if args.dry_run:
        for case in model_cases:
            print(f"{case.name}: accuracy of {', '.join(p.name for p in policies)}; throughput at {args.crops} crops")
        return 0
    out = new_folder(args)
    say("loading torch, timm and the data backend ...")
    options = make_options(args, weights, policies)
    scan = find_images(args, options.workers)
    jobs = [make_job(case, scan, options) for case in model_cases]
    expected_s = sum(job.expected_s() for job in jobs)
    ask_about(expected_s, args, scan)
    out.mkdir(parents=True)
    write_info(out, args, policies, jobs, expected_s)
    written = [record for job in jobs for record in write_records(out, job)]
    write_unreadable(out, scan, jobs)
    return finish(out, written, args, started)


def say(text: str) -> None:
    """A line for the person who waits; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def default_weights(args: argparse.Namespace) -> str:
    """demo, where a family is asked for on the demo data; else pretrained."""
    from pipelines import demo

    on_demo = args.data is None or demo.is_demo(args.data)
    named_demo = bool(args.models) and all(name.strip().endswith(":demo") for name in args.models.split(","))
    return "demo" if on_demo and (args.family or named_demo) and not args.checkpoint else "pretrained"


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


def make_options(args: argparse.Namespace, weights: str, policies: list[Any]) -> Options:
    """Settle what depends on the machine: device, backend, workers."""
    import torch

    import pipelines
    from bench.job import Options
    from bench.machine import usable_cores

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: torch finds no NVIDIA GPU with a working driver; use --device cpu")
        device = device if ":" in device else "cuda:0"
    elif device != "cpu":
        raise UserError(f"--device {device} is not supported: cpu or cuda")
    try:
        backend, why = pipelines.choose(args.data_backend, device=device)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    say(why)
    return Options(
        policies=policies,
        crops=args.crops or sorted({policy.n_views for policy in policies}),
        weights=weights,
        checkpoint=args.checkpoint,
        load_arguments={
            "num_classes": args.num_classes,
            "model_kwargs": dict(args.model_kwargs),
            "img_size": args.img_size,
            "crop_pct": args.crop_pct,
            "crop_mode": args.crop_mode,
            "interpolation": args.interpolation,
        },
        labels_file=args.labels_file,
        class_map=args.class_map,
        limit=args.limit,
        seed=args.seed,
        backend=backend,
        workers=args.workers or usable_cores(),
        batch_images=args.batch_images,
        hw_load=args.hw_load,
        batch_size=args.batch_size,
        device=device,
        amp_dtype=args.amp_dtype,
        channels_last=args.channels_last,
        torchcompile=args.torchcompile,
        score=not args.no_accuracy,
        time=not args.no_throughput,
        rounds=args.rounds,
        round_seconds=args.round_seconds,
        num_warm_iter=args.num_warm_iter,
    )


def find_images(args: argparse.Namespace, workers: int) -> Scan:
    """Scan ``--data``, or make the demo images and scan those."""
    from pipelines import dataset, demo

    root = args.data if args.data is not None else demo.ensure("val")
    scan = dataset.scan(root, workers=workers)
    if len(scan.unreadable):
        say(f"{len(scan.unreadable)} files are no readable image and are left out; unreadable.csv will list them")
    return scan


def make_job(case: cases.ModelCase, scan: Scan, options: Options) -> Job:
    """Load a network and match the labels."""
    from bench.job import Job
    from models.classifier import WeightsError

    try:
        return Job(case, scan, options)
    except WeightsError as error:
        raise UserError(str(error)) from error


def ask_about(expected_s: float, args: argparse.Namespace, scan: Scan) -> None:
    """Say how long it will take. Raises UserError above half an hour, unless ``--yes``."""
    say(f"expected to take about {duration(expected_s)}")
    if expected_s <= ASK_ABOVE_S or args.yes:
        return
    images = min(args.limit or len(scan.table), len(scan.table))
    fits = max(1, int(images * ASK_ABOVE_S / expected_s * 0.8))
    command = ["python", "bench/run.py", *args.argv]
    raise UserError(
        f"this run would take about {duration(expected_s)} on this machine. Add --yes to go on, or run what fits:\n"
        f"  {shlex.join([*command, '--no-throughput', '--limit', str(fits)])}\n"
        f"  {shlex.join([*command, '--no-accuracy', '--rounds', '1'])}"
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_info(out: Path, args: argparse.Namespace, policies: list[Any], jobs: list[Job], expected_s: float) -> None:
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


def finish(out: Path, written: list[Record], args: argparse.Namespace, started: float) -> int:
    """Summary, figures, table, paths; the last line of standard output is JSON."""
    from bench import records, report

    summary = records.write_summary(out, written)
    figures = [] if args.no_figures else draw(out)
    print(report.text(written))
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
    }
    print(json.dumps(result))
    return 0


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
