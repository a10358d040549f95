"""Our pipelines beside the loaders that people write: same images, same cores, same crops, sides in turn.

    python bench/compare/loaders.py                                        # 224 from 256, on the demo images; ten minutes
    python bench/compare/loaders.py --data imagenet/val --crops 1,5,20 --rounds 10
    python bench/compare/loaders.py --only a,b,dali-cpu                    # sides by letter or name

Every side is timed to one point: the normalised tensor that enters the network's first layer (float32, or --amp-dtype),
and apart from that to uint8 crops. Each runs in a process of its own, new workers for every segment, and its crops are
compared with the reference before it is timed. In each round every side does every cell once; a ratio is that of two
sides in one round, its median over rounds is reported with a 95 % interval. Loaders without multi-crop (b, c) are timed
at one crop, and N crops are N passes.

The folder holds run.json, rivals.jsonl (each segment as it ends) and rivals.csv.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.compare import loader_records as records
from bench.compare.loader_records import Cell, NotTimed, Ratio, Timed
from bench.compare.loader_sides import OURS, SIDES, Child, Job, SideFailed, chosen, with_budget
from bench.errors import UserError
from bench.values import int_list
from pipelines.baselines import UINT8, Files
from pipelines.batch import DEFAULT_HW_LOAD
from pipelines.inputspec import INTERPOLATIONS, InputSpec

CHECK_LIMIT_S, SEGMENT_LIMIT_S, PATIENCE_S = 180.0, 300.0, 10.0
log = logging.getLogger(__name__)
FLOATS = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when one of our backends delivered wrong pixels, 2 for what the user can mend."""
    args = parse(argv)
    try:
        return compare(args)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the lines already in rivals.jsonl are whole", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked options."""
    parser = argparse.ArgumentParser(
        prog="bench/compare/loaders.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sides = "; ".join(f"{side.letter} {name}: {side.what}" for name, side in SIDES.items())
    parser.add_argument(
        "--only", metavar="LIST", help=f"sides, by letter or name (default: all that run here). {sides}"
    )
    parser.add_argument("--data", "--data-dir", type=Path, metavar="DIR", help="images (default: the demo set)")
    parser.add_argument("--crops", type=int_list, default=[1, 20], metavar="LIST", help="default: 1,20")
    parser.add_argument("--img-size", type=int, default=224, metavar="K", help="side of the crop, pixels (224)")
    parser.add_argument("--crop-pct", type=float, default=0.875, metavar="K/S", help="default: 0.875")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, default="bilinear", help="default: bilinear")
    parser.add_argument("--amp-dtype", choices=FLOATS, default="float32", help="what enters the network (float32)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--workers", "-j", type=int, metavar="N",
        help="of every side (default: usable cores; for our backends bench/compare/tune.py's threads, which share them)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--round-seconds", type=float, default=2.0, metavar="S", help="of a segment, at least (2)")
    parser.add_argument(
        "--hw-load", type=float, metavar="X", help="of dali-gpu (default: bench/compare/tune.py's, or 0.65)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of our windows (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: runs/rivals-<time>)")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if args.rounds < 1 or not 0 < args.round_seconds < 600 or (args.workers or 1) < 1:
        parser.error("--rounds and --workers are at least 1, --round-seconds between 0 and 600")
    return args


def compare(args: argparse.Namespace) -> int:
    """Check every side, time them in turn, write and print."""
    names = chosen(args.only)
    out = args.out or Path("runs") / time.strftime("rivals-%Y%m%d-%H%M%S")
    if out.exists():
        raise UserError(f"--out {out} exists; results are never written over others: name a new folder")
    job = make_job(args)
    out.mkdir(parents=True)
    write_info(out, args, job, names)
    children: dict[str, Child] = {}
    try:
        errors, lines = check_all(names, args, job, children)
        for line in lines:
            records.append(out, line)
        lines += measure(out, args, errors, children)
        for child in children.values():
            child.kill(PATIENCE_S)
    finally:
        for child in children.values():
            child.kill()
    table = records.rows(lines, list(OURS))
    records.write_csv(out, table)
    print("\n".join(text(lines, args)))
    print(json.dumps({"out": str(out.resolve()), "cells": table}))
    wrong = [line for line in lines if isinstance(line, NotTimed) and line.side in OURS and line.wrong]
    return 1 if wrong else 0


def make_job(args: argparse.Namespace) -> Job:
    """What all sides share. Raises UserError for what the user can mend."""
    import numpy as np
    import torch

    from bench.job import default_batch_size
    from bench.machine import usable_cores
    from pipelines.data import dataset, demo

    workers = args.workers or usable_cores()
    scan = dataset.scan(args.data if args.data is not None else demo.ensure("val"), workers=workers)
    if "tar" in scan.table:
        raise UserError(f"--data {args.data}: the other loaders read files, so unpack these tars and give their folder")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch finds no NVIDIA GPU with a working driver; use --device cpu")
    device = "cuda:0" if device == "cuda" else device
    sizes = scan.table[["height", "width"]].to_numpy(np.int64)
    job = Job(
        files=Files(str(scan.root), scan.table["name"].tolist(), np.ascontiguousarray(sizes)),
        spec=InputSpec(S=int(args.img_size / args.crop_pct), K=args.img_size, interpolation=args.interpolation),
        device=device,
        workers=workers,
        chunk=default_batch_size(args.img_size, device),
        seed=args.seed,
        hw_load=DEFAULT_HW_LOAD if args.hw_load is None else args.hw_load,
        warmup=1,
        budget_bytes=0,
        tuned=tuned(args),
    )
    return with_budget(job)


def tuned(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What bench/compare/tune.py stored for our backends and no flag says otherwise. (But prefetch stays as it is: the sides'
    cycles depend on it.)"""
    from bench.tuned import stored

    flags = {"workers": args.workers, "hw_decoder_load": args.hw_load, "cut": None}
    free = [name for name, given in flags.items() if given is None]
    found = {side: {name: value for name, value in stored(side).items() if name in free} for side in OURS}
    for side, values in found.items():
        if values:
            log.info(f"{side}: tuned for this machine by bench/compare/tune.py, where no flag says otherwise: {values}")
    return found


def write_info(out: Path, args: argparse.Namespace, job: Job, names: Sequence[str]) -> None:
    """run.json."""
    from bench.files import write_whole
    from bench.machine import environment

    settings = asdict(replace(job, files=Files(job.files.root, [], job.files.stored[:0])))
    del settings["files"]
    info = {
        "schema": records.SCHEMA,
        "command": ["python", "bench/compare/loaders.py", *args.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": job.files.root,
        "images": len(job.files),
        "settings": settings,
        "rounds": args.rounds,
        "round_seconds": args.round_seconds,
        "sides": {name: {"letter": SIDES[name].letter, "what": SIDES[name].what} for name in names},
        "environment": environment(),
    }
    write_whole(out / "run.json", json.dumps(info, indent=2) + "\n")


def cells(args: argparse.Namespace) -> list[Cell]:
    """In the order of a round."""
    return [Cell(output, n) for output in (args.amp_dtype, UINT8) for n in args.crops]


def cells_of(name: str, args: argparse.Namespace) -> list[Cell]:
    """The cells in which a side can be timed."""
    side = SIDES[name]
    return [cell for cell in cells(args) if cell.output != UINT8 or side.makes_uint8]


def check_all(
    names: Sequence[str], args: argparse.Namespace, job: Job, children: dict[str, Child]
) -> tuple[dict[tuple[str, Cell], float], list[Timed | NotTimed]]:
    """Start each side and compare its crops with the reference (DESIGN rule 7): the worst mean difference by cell."""
    errors: dict[tuple[str, Cell], float] = {}
    lines: list[Timed | NotTimed] = []
    for name in names:
        if SIDES[name].gpu_only and job.device == "cpu":
            lines.append(NotTimed(name, None, SIDES[name].needs))
            continue
        children[name] = Child(name, job)
        for cell in cells_of(name, args):
            try:
                errors[name, cell] = children[name].check(cell, limit_s=CHECK_LIMIT_S)
            except SideFailed as failed:
                lines.append(NotTimed(name, None, str(failed), failed.wrong))
                children.pop(name).kill()
                break
        if name in children:
            worst = max(error for (side, _), error in errors.items() if side == name)
            log.info(f"{SIDES[name].letter} {name}: crops agree with the reference to {worst:.2f} grey levels")
        else:
            log.info(f"{SIDES[name].letter} {name}: not timed: {lines[-1].reason}")  # type: ignore[union-attr]
    return errors, lines


def measure(
    out: Path, args: argparse.Namespace, errors: dict[tuple[str, Cell], float], children: dict[str, Child]
) -> list[Timed | NotTimed]:
    """``--rounds`` times every cell of every side; each segment is on the disk as soon as it ends."""
    from tqdm import tqdm

    lines: list[Timed | NotTimed] = []
    schedule = list(turns(args, list(children)))
    with tqdm(total=len(schedule), desc="rivals", unit="segment") as bar:
        for number, cell, name in schedule:
            bar.set_postfix_str(f"{name}, {cell.crops} crops, {cell.output}")
            bar.update()
            if name not in children:
                continue
            try:
                took = children[name].segment(cell, 37 * number, args.round_seconds, limit_s=SEGMENT_LIMIT_S)
            except SideFailed as failed:
                new: list[Timed | NotTimed] = [NotTimed(name, cell, str(failed), failed.wrong)]
                children.pop(name).kill()
            else:
                # A loader without multi-crop does the same work at every crop count: N crops are N such passes.
                same_work = [one for one in cells_of(name, args) if one.output == cell.output]
                new = [
                    Timed(
                        name, one, number, took.crops, took.duration_s, took.batch_images, took.peak_mem_bytes,
                        errors[name, one],
                    )
                    for one in (same_work if SIDES[name].passes else [cell])
                ]  # fmt: skip
            for line in new:
                records.append(out, line)
            lines += new
    return lines


def turns(args: argparse.Namespace, names: Sequence[str]) -> Iterator[tuple[int, Cell, str]]:
    """(round, cell, side). Another side begins each round, so that none always follows the same one."""
    for number in range(args.rounds):
        first = number % max(len(names), 1)
        for cell in cells(args):
            for name in [*names[first:], *names[:first]]:
                timed_once = SIDES[name].passes and cell.crops != min(args.crops)
                if cell in cells_of(name, args) and not timed_once:
                    yield number, cell, name


def text(lines: Sequence[Timed | NotTimed], args: argparse.Namespace) -> list[str]:
    """The tables: rates, our backends over each side, and what our backends keep of their rate at the most crops."""
    found = records.summaries(lines)
    ours = [name for name in OURS if any(s.side == name for s in found)]
    table = records.rows(lines, ours)
    out = []
    for cell in cells(args):
        rows = [row for row in table if (row["output"], row["crops"]) == (cell.output, cell.crops)]
        out += ["", f"{cell.crops} crop{'s' * (cell.crops > 1)} of an image, to {cell.output}"]
        out.append("  " + "side".ljust(18) + "images/s".rjust(9) + "   from .. to".ljust(20) + "  ".join(
            f"{name} over it".ljust(26) for name in ours
        ))  # fmt: skip
        for row in rows:
            ratios = (_ratio(*(row[f"{name}_over_it{end}"] for end in ("", "_low", "_high"))) for name in ours)
            span = f"   {row['rate_low']:.0f} .. {row['rate_high']:.0f}".ljust(20)
            label = f"{SIDES[row['side']].letter} {row['side']}".ljust(18)
            out.append(f"  {label}{row['images_per_sec']:9.1f}{span}" + "  ".join(r.ljust(26) for r in ratios))
    out += ["", *kept(found, args, ours)]
    out += [f"not timed: {line.side}: {line.reason}" for line in lines if isinstance(line, NotTimed)]
    return out


def _ratio(median: float | None, low: float | None, high: float | None) -> str:
    if median is None:
        return "-"
    return f"{median:.2f} x" + (f" ({low:.2f} .. {high:.2f})" if low is not None else "")


def kept(found: Sequence[records.Summary], args: argparse.Namespace, ours: Sequence[str]) -> list[str]:
    """What each of our backends keeps, at the most crops, of its rate at the fewest."""
    few, most = min(args.crops), max(args.crops)
    lines = []
    for name in ours:
        for output in (UINT8, args.amp_dtype):
            rates = {s.cell.crops: s.rates for s in found if s.side == name and s.cell.output == output}
            if few == most or not {few, most} <= rates.keys():
                continue
            ratio: Ratio | None = records.paired_ratio(rates[most], rates[few])
            if ratio:
                share = _ratio(ratio.median, ratio.low, ratio.high)
                lines.append(f"{name}: at {most} crops {share} its rate at {few}, to {output}")
    return lines
