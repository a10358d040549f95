"""Everything that only a machine with an NVIDIA GPU can show, step by step, with nothing downloaded.

    python bench/gpu.py                     # or: make gpu; call it again until it says that all is done
    python bench/gpu.py --dry-run           # the steps, and which are done
    python bench/gpu.py --device cpu --quick    # every step in miniature on a CPU: does the script work?

Each call stops before ``--minutes`` (9) and goes on where the last one stopped; a step that was cut off begins anew,
once: one that a whole call is too short for is given up, and the others go on.
Results lie in ``results/<gpu>/``: the tests' report, decoder_sweep.csv, rivals/, runs/ (one for each network, random
weights, generated JPEGs with ImageNet's distribution of sizes), network/, kernels.csv, figures/, and steps.jsonl, which
says what each step took and how it ended. They go into one archive beside the folder.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "torchvision", "timm", "nvidia.dali", "numpy", "pandas", "matplotlib", "pyarrow", "PIL",
          "safetensors", "scipy", "tqdm", "psutil", "pytest")  # fmt: skip
FIRST = ("resnet:50", "mobilenet:v3-large", "efficientnet:ap:b0", "efficientnet:ap:b4", "nfnet:f0")
HW_LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
KERNEL_NETWORKS = ("resnet:50",)
LEAST_SECONDS = 20.0  # with less left, no step is begun


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the work, in a process of its own, which can be ended when the time is up."""

    name: str
    command: tuple[str, ...]
    writes: str = ""  # what it makes below the results; removed before it is begun anew


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is done, 3 when another call is needed, 1 when steps failed, 2 for what can be mended."""
    args = parse(argv)
    out = args.out or ROOT / "results" / name_of(args.device)
    todo = steps(args, out)
    done = finished(out)
    if args.dry_run:
        for step in todo:
            print(f"{done.get(step.name, 'to do'):8s} {step.name}: {' '.join(step.command)}")
        return 0
    if missing := [name for name in NEEDED if not _there(name)]:
        print(f"error: not installed here: {', '.join(missing)}; pip install -e '.[dev]'", file=sys.stderr)
        return 2
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no NVIDIA GPU with a working driver (--device cpu --quick: a trial)", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    if args.step:
        FUNCTIONS[args.step](out, args)
        return 0
    return go_on(out, todo, done, args)


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/<gpu>")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="of one call (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="every step in miniature, to try the script")
    parser.add_argument("--only", metavar="NAMES", help="steps whose names begin so, by commas")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and stop")
    parser.add_argument("--step", choices=sorted(FUNCTIONS), help=argparse.SUPPRESS)  # do this one, here
    return parser.parse_args(argv)


def name_of(device: str) -> str:
    """For the folder: ``nvidia-h100-80gb-hbm3``."""
    from bench.machine import cpu_name, gpu_name

    text = (gpu_name() if device == "cuda" else cpu_name()) or device
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def steps(args: argparse.Namespace, out: Path) -> list[Step]:
    """In order of what a reader wants first."""
    from models.families import FAMILIES

    rest = [m.key for family in FAMILIES.values() for m in family.members if m.key not in FIRST]
    models = FIRST[:1] if args.quick else (*FIRST, *rest)
    short = ("--rounds", "1", "--round-seconds", "0.2") if args.quick else ("--rounds", "3")
    small = ("--img-size", "64") if args.quick else ()
    half = ("--amp-dtype", "float16", "--channels-last", "--torchcompile") if args.device == "cuda" else ()
    crops = "1,2" if args.quick else "1,2,5,10,20"
    python = sys.executable
    here = (python, "bench/gpu.py", "--device", args.device, *(("--quick",) if args.quick else ()), "--out", str(out))
    shared = ("--weights", "random", "--device", args.device, *half, *short, *small)
    tests = ("tests/test_rooms.py",) if args.quick else ("-m", "gpu")
    made = [
        Step("tests", (python, "-m", "pytest", "-q", "-rA", *tests)),
        Step("decoder-sweep", (*here, "--step", "decoder-sweep"), writes="decoder_sweep.csv"),
    ]
    for n in ("1,2",) if args.quick else ("1", "20", "5"):  # apart: all together do not end within a call
        folder = f"rivals/{n.replace(',', '-')}"
        command = (
            python, "bench/rivals.py", "--device", args.device, *short, *(("--only", "a,f") if args.quick else ()),
            "--crops", n, *(("--amp-dtype", "float16") if half else ()), *small, "--out", str(out / folder),
        )  # fmt: skip
        made.append(Step(f"rivals-{n}", command, writes=folder))
    for model in models:
        folder = f"runs/{model.replace(':', '-')}"
        command = (
            python, "bench/run.py", "--models", model, "--no-accuracy", "--crops", crops, *shared, "--no-figures",
            "--yes", "--out", str(out / folder),
        )  # fmt: skip
        made.append(Step(f"run-{model}", command, writes=folder))
    for model in models[: len(FIRST)]:
        folder = f"network/{model.replace(':', '-')}"
        chunks = "1,2" if args.quick else "1,8,64,256"
        command = (
            python, "bench/network.py", "--models", model, "--chunks", chunks, "--weights", "random", "--device",
            args.device, *(("--torchcompile",) if half else ()), *short, *small, "--out", str(out / folder),
        )  # fmt: skip
        made.append(Step(f"network-{model}", command, writes=folder))
    made.append(Step("kernels", (*here, "--step", "kernels"), writes="kernels.csv"))
    made.append(Step("figures", (*here, "--step", "figures"), writes="figures"))
    chosen = tuple(args.only.split(",")) if args.only else ("",)
    return [step for step in made if step.name.startswith(chosen)]


def finished(out: Path) -> dict[str, str]:
    """Step -> how it ended: ``ok``, ``failed`` or ``too long``. One that another call may finish is not there."""
    path = out / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {one["step"]: one["end"] for one in map(json.loads, lines)}


def go_on(out: Path, todo: Sequence[Step], done: dict[str, str], args: argparse.Namespace) -> int:
    """Do what is not done while there is time."""
    deadline, first = time.monotonic() + 60 * args.minutes, True
    for step in todo:
        if step.name in done:
            continue
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"time is up; call it again: {sum(s.name not in done for s in todo)} steps are left", flush=True)
            archive(out)
            return 3
        if step.writes:
            path = out / step.writes
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        print(f"{step.name} ...", flush=True)
        start = time.monotonic()
        end = attempt(step, out, left)
        if end == "cut off" and not first:
            print(f"{step.name} was cut off after {left:.0f} s; call it again", flush=True)
            archive(out)
            return 3
        end, first = "too long" if end == "cut off" else end, False
        done[step.name] = end
        with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step.name, "end": end, "took_s": round(time.monotonic() - start, 1)}) + "\n")
    print(f"all is done: {archive(out)}")
    failed = [step.name for step in todo if done[step.name] != "ok"]
    if failed:
        print(f"failed: {', '.join(failed)}; their output is in {out / 'logs'}")
    return int(bool(failed))


def attempt(step: Step, out: Path, left_s: float) -> str:
    """``ok``, ``failed`` or ``cut off``; what it said goes into logs/."""
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / f"{step.name.replace(':', '-')}.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            step.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
        try:
            return "ok" if child.wait(left_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "cut off"
        finally:
            if child.poll() is None:  # too long, or Ctrl-C: with its workers and its rivals' processes
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def archive(out: Path) -> Path:
    return Path(shutil.make_archive(str(out), "gztar", out.parent, out.name))


# ---- the steps that are no program of their own


def _job(args: argparse.Namespace, model: str, *more: str) -> Any:
    """A job of bench/run.py with random weights on the generated images."""
    from bench import cases
    from bench.options import parse as parse_run
    from bench.setup import find_images, make_job, make_options

    half = ["--amp-dtype", "float16", "--channels-last", "--torchcompile"] if args.device == "cuda" else []
    small = ["--img-size", "64"] if args.quick else []
    given = parse_run(
        ["--models", model, "--weights", "random", "--device", args.device, "--no-accuracy", *half, *small, *more]
    )
    options = make_options(given, "random", cases.policies(crops=[1], named=None))
    return make_job(cases.model_cases(given, demo=False)[0], find_images(given, options.workers), options)


def decoder_sweep(out: Path, args: argparse.Namespace) -> None:
    """Images per second of the pipeline alone at one crop, by the JPEG engine's share and the number of threads."""
    import numpy as np

    from bench.clocks import segment
    from pipelines import backend
    from pipelines.batch import LoadConfig

    job = _job(args, FIRST[0])
    name = job.options.backend
    threads = sorted({1, job.options.workers} if args.quick else {2, 4, 8, job.options.workers})
    loads = HW_LOADS if name == "dali-gpu" else (0.65,)
    planner = job.planner(job.options.policies[0])
    rows = np.resize(job.rows, len(job.rows) * (1 if args.quick else 100))
    rates: list[dict[str, Any]] = []
    for number in range(1 if args.quick else 3):
        for load in loads:
            for workers in threads:
                config = LoadConfig(batch_images=32 if args.quick else 256, workers=workers, hw_decoder_load=load)
                source = backend(name)(job.data, planner, config)
                stream = (len(batch.rows) for batch in source.batches(rows))
                took = segment(stream, seconds=0.1 if args.quick else 1.0, warmup_items=2, device=job.options.device)
                source.close()
                rates.append(
                    {"backend": name, "hw_load": load, "threads": workers, "round": number,
                     "images_per_sec": took.count / took.duration_s}
                )  # fmt: skip
    _write_csv(out / "decoder_sweep.csv", rates)


def kernels(out: Path, args: argparse.Namespace) -> None:
    """Share of the wall time of an end-to-end run in which a GPU kernel runs, from a profiler's trace (not NVML's).

    The pipeline's kernels count as the network's do; copies and fills do not. Empty on a CPU.
    """
    from torch.profiler import ProfilerActivity, profile

    from bench.clocks import synchronize
    from bench.throughput import Bench, Cell
    from pipelines import backend

    rows = []
    for model in KERNEL_NETWORKS:
        crops = [1, 2] if args.quick else [1, 5, 10, 20]
        job = _job(args, model, "--crops", ",".join(map(str, crops)))
        options = job.options
        bench = Bench(backend(options.backend), job.data, job.rows, job.planner, job.config, job.network, options.crops)
        bench.fill()
        for n in crops:
            stream = bench.stream(Cell("end_to_end", n))
            for _ in range(3):
                next(stream)
            activities = [ProfilerActivity.CUDA] if args.device == "cuda" else [ProfilerActivity.CPU]
            synchronize(options.device)
            with profile(activities=activities) as trace:
                start = time.perf_counter()
                while time.perf_counter() - start < (0.1 if args.quick else 3.0):
                    next(stream)
                synchronize(options.device)
                wall_us = 1e6 * (time.perf_counter() - start)
            spans = [
                (e.time_range.start, e.time_range.end)
                for e in trace.events()
                if e.device_type.name == "CUDA" and not e.name.startswith(("Memcpy", "Memset"))
            ]
            share = covered(spans) / wall_us if args.device == "cuda" else None
            rows.append({"model": model, "crops": n, "wall_us": round(wall_us), "kernel_share": share})
        bench.close()
    _write_csv(out / "kernels.csv", rows)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def figures(out: Path, args: argparse.Namespace) -> None:
    """Of all runs together."""
    runs = [str(path) for path in sorted((out / "runs").glob("*")) if (path / "run.json").is_file()]
    command = [sys.executable, str(ROOT / "analysis/make_figures.py"), *runs, "--out", str(out / "figures")]
    only = ["--only", "throughput_vs_crops"]
    done = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


FUNCTIONS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "decoder-sweep": decoder_sweep,
    "kernels": kernels,
    "figures": figures,
}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
