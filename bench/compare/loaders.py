"""Our data pipelines beside the loaders that people write: same images, same cores, same crops, loaders in turn.

    multicrop-bench compare loaders                                 # 224 from 256, on the demo images; ten minutes
    multicrop-bench compare loaders --data imagenet/val --crops 1,5,20 --rounds 10
    multicrop-bench compare loaders --only a,b,dali-cpu             # loaders by letter or name

Every loader is timed to one point: the normalised tensor that enters the network's first layer (float32, or
--amp-dtype), and separately to uint8 crops. Each runs in a process of its own, with new workers for every segment, and
its crops are compared with the reference before it is timed. In each round every loader does every workload once; a
ratio is that of two loaders in one round, and its median over rounds is reported with a 95 % interval. Loaders without
multi-crop (b, c) are timed at one crop, and N crops are N passes.

The folder holds run.json, loaders.jsonl (each segment as it ends) and loaders.csv.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench import logs, values
from bench.compare import loader_records as records
from bench.compare.loader_process import Comparison, LoaderFailed, LoaderProcess, with_budget
from bench.compare.loader_records import NotTimed, Ratio, Timed, Workload
from bench.compare.loader_table import LOADERS, OURS, chosen
from bench.config import DataConfig, LoadingConfig, MeasureConfig, NetworkConfig, option, to_plain
from bench.errors import UserError, exit_status
from bench.files import new_folder
from bench.options import group_flags, parse_group, shared
from pipelines.baselines import UINT8, Files
from pipelines.batch import DEFAULT_HW_LOAD
from pipelines.inputspec import InputSpec

CHECK_LIMIT_S, SEGMENT_LIMIT_S, PATIENCE_S = 180.0, 300.0, 10.0
WARMUP_CYCLES = 1  # before each timed segment
IMAGES_SKIPPED = 37  # by which the next round's stream begins later
KNOWN = "; ".join(f"{loader.letter} {name}: {loader.what}" for name, loader in LOADERS.items())
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoaderComparison:
    """The options of a comparison of loaders."""

    title: ClassVar[str] = "comparison"
    only: str | None = option(
        "--only", metavar="LIST", help=f"loaders, by letter or name (default: all that run here). {KNOWN}"
    )
    data: Path | None = shared(DataConfig, "data", help="a folder of images (default: the demo set)")
    crops: list[int] = shared(MeasureConfig, "crops", default=[1, 20], help="of each image (default: 1,20)")
    img_size: int = option(
        "--img-size", default=224, metavar="K", parse=values.pixels, help="side of the crop, pixels (default: 224)"
    )
    crop_pct: float = option(
        "--crop-pct",
        default=0.875,
        metavar="K/S",
        parse=values.ratio,
        help="crop over short side (default: 0.875)",
    )
    interpolation: str = shared(NetworkConfig, "interpolation", default="bilinear")
    amp_dtype: str = option(
        "--amp-dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="type of the tensor that enters the network (default: float32)",
    )
    device: str | None = shared(NetworkConfig, "device")
    workers: int | None = shared(
        LoadingConfig,
        "workers",
        help="of every loader (default: usable cores; for our backends what multicrop-bench tune found, on the same "
        "cores)",
    )
    rounds: int = shared(MeasureConfig, "rounds")
    round_seconds: float = shared(
        MeasureConfig, "round_seconds", default=2.0, help="least length of a timed segment (default: 2.0)"
    )
    hw_load: float | None = shared(LoadingConfig, "hw_load")
    seed: int = shared(DataConfig, "seed", help="of our windows (default: 0)")
    out: Path | None = option(
        "--out", metavar="DIR", parse=values.path, help="a new folder (default: runs/loaders-<time>)"
    )

    def workloads(self) -> list[Workload]:
        """In the order of a round."""
        return [Workload(output, n) for output in (self.amp_dtype, UINT8) for n in self.crops]

    def workloads_of(self, name: str) -> list[Workload]:
        """Those that a loader can do."""
        can = LOADERS[name].makes_uint8
        return [workload for workload in self.workloads() if workload.output != UINT8 or can]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when one of our backends delivered wrong pixels, 2 for what the user can mend."""
    options = parse_group(argv, "multicrop-bench compare loaders", __doc__, LoaderComparison)
    logs.set_up()
    command = ["multicrop-bench", "compare", "loaders", *(sys.argv[1:] if argv is None else argv)]
    interrupted = "interrupted; the lines already in loaders.jsonl are whole"
    return exit_status(lambda: compare(options, command), group_flags(LoaderComparison), interrupted)


def compare(options: LoaderComparison, command: Sequence[str] = ()) -> int:
    """Check every loader, time them in turn, write and print. Returns the exit status.

    Raises UserError for a folder that exists or a device that cannot be had, ValueError for an unknown loader.
    """
    names = chosen(options.only)
    with new_folder(options.out, "loaders") as out:
        return compare_into(out, names, options, command)


def compare_into(out: Path, names: Sequence[str], options: LoaderComparison, command: Sequence[str]) -> int:
    """``compare``, with results in ``out``."""
    comparison = make_comparison(options)
    write_info(out, options, command, comparison, names)
    processes: dict[str, LoaderProcess] = {}
    try:
        errors, lines = check_all(names, options, comparison, processes)
        for line in lines:
            records.append(out, line)
        lines += measure(out, options, errors, processes)
        for process in processes.values():
            process.kill(PATIENCE_S)
    finally:
        for process in processes.values():
            process.kill()
    table = records.rows(lines, list(OURS))
    records.write_csv(out, table)
    print("\n".join(text(lines, options)))
    print(json.dumps({"out": str(out.resolve()), "measurements": table}))
    wrong = [line for line in lines if isinstance(line, NotTimed) and line.loader in OURS and line.wrong]
    return 1 if wrong else 0


def make_comparison(options: LoaderComparison) -> Comparison:
    """What all loaders share. Raises UserError for what the user can mend."""
    import numpy as np

    from bench.job import default_batch_size
    from bench.machine import usable_cores
    from bench.setup import resolved_device
    from pipelines.data import demo, scanning

    workers = options.workers or usable_cores()
    scan = scanning.scan(options.data if options.data is not None else demo.ensure("val"), workers=workers)
    if "tar" in scan.table:
        raise UserError(f"`data` {options.data}: the other loaders read files, so unpack these tars, name their folder")
    device = resolved_device(options.device)
    sizes = scan.table[["height", "width"]].to_numpy(np.int64)
    comparison = Comparison(
        files=Files(str(scan.root), scan.table["name"].tolist(), np.ascontiguousarray(sizes)),
        spec=InputSpec(
            S=int(options.img_size / options.crop_pct), K=options.img_size, interpolation=options.interpolation
        ),
        device=device,
        workers=workers,
        batch_size=default_batch_size(options.img_size, device),
        seed=options.seed,
        hw_load=DEFAULT_HW_LOAD if options.hw_load is None else options.hw_load,
        warmup=WARMUP_CYCLES,
        budget_bytes=0,
        tuned=tuned(options),
    )
    return with_budget(comparison)


def tuned(options: LoaderComparison) -> dict[str, dict[str, Any]]:
    """What ``multicrop-bench tune`` stored for our backends and no option says otherwise. Prefetch stays as it is: the
    loaders' cycles depend on it."""
    from bench.measure.tuned import stored

    given = {"workers": options.workers, "hw_load": options.hw_load}
    free = [name for name, value in given.items() if value is None]
    free += ["crop_operator", "batch_images", "hybrid_huffman_threshold"]
    found = {name: {key: value for key, value in stored(name).items() if key in free} for name in OURS}
    for name, settings in found.items():
        if settings:
            log.info("%s: settings found by multicrop-bench tune, where no option is given: %s", name, settings)
    return found


def write_info(
    out: Path, options: LoaderComparison, command: Sequence[str], comparison: Comparison, names: Sequence[str]
) -> None:
    """run.json."""
    from bench.machine import environment
    from pipelines.files import write_whole

    files = comparison.files
    settings = asdict(replace(comparison, files=Files(files.root, [], files.stored[:0])))
    del settings["files"]
    info = {
        "schema": records.SCHEMA,
        "command": list(command),
        "config": to_plain(options),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": files.root,
        "images": len(files),
        "settings": settings,
        "loaders": {name: {"letter": LOADERS[name].letter, "what": LOADERS[name].what} for name in names},
        "environment": environment(),
    }
    write_whole(out / "run.json", json.dumps(info, indent=2) + "\n")


Errors = dict[tuple[str, Workload], float]  # worst mean difference of a crop from the reference, grey levels


def check_all(
    names: Sequence[str], options: LoaderComparison, comparison: Comparison, processes: dict[str, LoaderProcess]
) -> tuple[Errors, list[Timed | NotTimed]]:
    """Start each loader and compare its crops with the reference (DESIGN rule 7)."""
    errors: Errors = {}
    lines: list[Timed | NotTimed] = []
    for name in names:
        if LOADERS[name].gpu_only and comparison.device == "cpu":
            lines.append(NotTimed(name, None, LOADERS[name].needs))
            continue
        processes[name] = LoaderProcess(name, comparison)
        for workload in options.workloads_of(name):
            try:
                errors[name, workload] = processes[name].check(workload, limit_s=CHECK_LIMIT_S)
            except LoaderFailed as failed:
                lines.append(NotTimed(name, None, str(failed), failed.wrong))
                processes.pop(name).kill()
                log.info("%s %s: not timed: %s", LOADERS[name].letter, name, failed)
                break
        else:
            worst = max(error for (other, _), error in errors.items() if other == name)
            log.info("%s %s: crops agree with the reference to %.2f grey levels", LOADERS[name].letter, name, worst)
    return errors, lines


def measure(
    out: Path, options: LoaderComparison, errors: Errors, processes: dict[str, LoaderProcess]
) -> list[Timed | NotTimed]:
    """Every workload of every loader, `rounds` times; each segment is on the disk as soon as it ends."""
    from tqdm import tqdm

    lines: list[Timed | NotTimed] = []
    schedule = list(schedule_of(options, list(processes)))
    with tqdm(total=len(schedule), desc="loaders", unit="segment") as bar:
        for number, workload, name in schedule:
            bar.set_postfix_str(f"{name}, {workload.crops} crops, {workload.output}")
            bar.update()
            if name not in processes:
                continue
            try:
                new = time_once(processes[name], number, workload, options, errors)
            except LoaderFailed as failed:
                new = [NotTimed(name, workload, str(failed), failed.wrong)]
                processes.pop(name).kill()
            for line in new:
                records.append(out, line)
            lines += new
    return lines


def time_once(
    process: LoaderProcess, number: int, workload: Workload, options: LoaderComparison, errors: Errors
) -> list[Timed | NotTimed]:
    """One segment. A loader without multi-crop does the same work at every crop count: N crops are N such passes."""
    name = process.name
    done = process.segment(workload, IMAGES_SKIPPED * number, options.round_seconds, limit_s=SEGMENT_LIMIT_S)
    same_work = [one for one in options.workloads_of(name) if one.output == workload.output]
    return [
        Timed(
            name, one, number, done.crops, done.duration_s, done.batch_images, done.peak_mem_bytes, errors[name, one]
        )
        for one in (same_work if LOADERS[name].passes else [workload])
    ]  # fmt: skip


def schedule_of(options: LoaderComparison, names: Sequence[str]) -> Iterator[tuple[int, Workload, str]]:
    """(round, workload, loader). Another loader begins each round, so that none always follows the same one."""
    for number in range(options.rounds):
        first = number % max(len(names), 1)
        for workload in options.workloads():
            for name in [*names[first:], *names[:first]]:
                timed_once = LOADERS[name].passes and workload.crops != min(options.crops)
                if workload in options.workloads_of(name) and not timed_once:
                    yield number, workload, name


# ---- the tables


def text(lines: Sequence[Timed | NotTimed], options: LoaderComparison) -> list[str]:
    """Rates, our backends over each loader, and what our backends keep of their rate at the most crops."""
    found = records.summaries(lines)
    ours = [name for name in OURS if any(s.loader == name for s in found)]
    table = records.rows(lines, ours)
    out = []
    for workload in options.workloads():
        rows = [row for row in table if (row["output"], row["crops"]) == (workload.output, workload.crops)]
        out += ["", f"{workload.crops} crop{'s' * (workload.crops > 1)} of an image, to {workload.output}"]
        columns = "  ".join(f"{name} over it".ljust(26) for name in ours)
        out.append("  " + "loader".ljust(18) + "images/s".rjust(9) + "   from .. to".ljust(20) + columns)
        out += [row_text(row, ours) for row in rows]
    out += ["", *retained(found, options, ours)]
    return out + [f"not timed: {line.loader}: {line.reason}" for line in lines if isinstance(line, NotTimed)]


def row_text(row: dict[str, Any], ours: Sequence[str]) -> str:
    """One loader's line of a table."""
    ratios = (_ratio(*(row[f"{name}_over_it{end}"] for end in ("", "_low", "_high"))) for name in ours)
    span = f"   {row['rate_low']:.0f} .. {row['rate_high']:.0f}".ljust(20)
    label = f"{LOADERS[row['loader']].letter} {row['loader']}".ljust(18)
    return f"  {label}{row['images_per_sec']:9.1f}{span}" + "  ".join(ratio.ljust(26) for ratio in ratios)


def _ratio(median: float | None, low: float | None, high: float | None) -> str:
    if median is None:
        return "-"
    return f"{median:.2f} x" + (f" ({low:.2f} .. {high:.2f})" if low is not None else "")


def retained(found: Sequence[records.Summary], options: LoaderComparison, ours: Sequence[str]) -> list[str]:
    """What each of our backends keeps, at the most crops, of its rate at the fewest."""
    few, most = min(options.crops), max(options.crops)
    lines = []
    for name in ours:
        for output in (UINT8, options.amp_dtype):
            rates = {s.workload.crops: s.rates for s in found if s.loader == name and s.workload.output == output}
            if few == most or not {few, most} <= rates.keys():
                continue
            ratio: Ratio | None = records.paired_ratio(rates[most], rates[few])
            if ratio:
                share = _ratio(ratio.median, ratio.low, ratio.high)
                lines.append(f"{name}: at {most} crops {share} its rate at {few}, to {output}")
    return lines
