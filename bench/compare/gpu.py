"""Everything that only a machine with an NVIDIA GPU can show, step by step, with nothing downloaded.

    python bench/compare/gpu.py                     # or: make gpu; call it again until it says that all is done
    python bench/compare/gpu.py --dry-run           # the steps, which are done, how long the others take, how many calls
    python bench/compare/gpu.py --device cpu --quick    # every step in miniature on a CPU: does the script work?

Each call stops before ``--minutes`` (9) and goes on where the last one stopped. A step that fails is noted with its
reason, and the others go on; one that was cut off begins anew, once: one that a whole call is too short for is given
up. To have a step done again, remove its line from steps.jsonl.

Results lie in ``results/<gpu>/``: tune/ (threads x the JPEG engine's share; what was best is used by all later steps,
also on a machine that was given back in between), parity/, rivals/, runs/ (one for each network, random weights,
generated JPEGs with ImageNet's distribution of sizes), network/, kernels.csv, figures/, logs/ with what each step said,
steps.jsonl, which says what each took and how it ended, and bars.csv: what was wanted, what was measured. They go into
one archive beside the folder.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {  # module -> what to ask pip for
    "torch": "torch", "torchvision": "torchvision", "timm": "timm", "nvidia.dali": "nvidia-dali-cuda120==2.4.*",
    "numpy": "numpy", "pandas": "pandas", "matplotlib": "matplotlib", "pyarrow": "pyarrow", "PIL": "pillow",
    "safetensors": "safetensors", "scipy": "scipy", "tqdm": "tqdm", "psutil": "psutil", "pytest": "pytest",
}  # fmt: skip
WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")  # kinds of system that their wheels are for
FIRST = ("resnet:50", "mobilenet:v3-large", "efficientnet:ap:b0", "efficientnet:ap:b4", "nfnet:f0")
HEADLINE = FIRST[0]  # of which the share of kernels is measured
NETWORKS = ("resnet:50", "efficientnet:ap:b0", "mobilenet:v3-large", "nfnet:f0")  # beside timm's benchmark
PARITY_HW_LOADS = (0, 1)
LEAST_SECONDS = 20.0  # with less left, no step is begun
LARGE_K, HUGE_K = 380, 600  # crops from so many pixels on: -b auto; a run takes longer
MOST_ARCHIVE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the work, in a process of its own, which can be ended when the time is up."""

    name: str
    command: tuple[str, ...]
    writes: str = ""  # what it makes below the results; removed before it is begun anew
    expected_s: float = 0.0  # roughly, on an H100 with 16 cores: a guess
    is_last: bool = False  # is about what all others wrote

    def is_begun(self, left_s: float, rest: int, first: bool) -> bool:
        """Whether it is begun with so much time left, and so many steps, of which it is one. A call's first always is;
        later ones only when they should end in time, so that a short one may come before a long one."""
        if self.is_last and rest > 1:
            return False
        return first or left_s >= max(LEAST_SECONDS, self.expected_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is done, 3 when another call is needed, 1 when steps failed, 2 for what can be mended."""
    args = parse(argv)
    if missing := [name for name in NEEDED if not _there(name)]:
        print(how_to_bring(missing), file=sys.stderr)
        return 2
    out = args.out or ROOT / "results" / name_of(args.device)
    todo = steps(args, out)
    done = finished(out)
    if args.dry_run:
        print("\n".join(overview(todo, done, 60 * args.minutes)))
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no NVIDIA GPU with a working driver (--device cpu --quick: a trial)", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    if args.step:
        FUNCTIONS[args.step](out, args)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is ended too
    return go_on(out, todo, done, args)


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False


def how_to_bring(missing: Sequence[str]) -> str:
    """What is not installed here, and how it comes to a machine that reaches no package index."""
    wanted = " ".join(f"'{NEEDED[name]}'" for name in missing)
    python, machine = ".".join(platform.python_version_tuple()[:2]), platform.machine()
    return (
        f"error: not installed here: {', '.join(missing)}. With a package index: pip install {wanted}\n"
        "Without one, on another machine, and with the folder wheels copied here:\n"
        f"  pip download --dest wheels --only-binary=:all: --python-version {python} "
        f"{' '.join(f'--platform {kind}_{machine}' for kind in WHEELS)} {wanted}\n"
        f"  {sys.executable} -m pip install --no-index --find-links wheels {wanted}"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="bench/compare/gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    text = device
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")[0]
        except (OSError, subprocess.SubprocessError):
            from bench.machine import gpu_name

            text = gpu_name() or device
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def steps(args: argparse.Namespace, out: Path) -> list[Step]:
    """In order of what a reader wants first."""
    make = Maker(args, out)
    made = [
        make.tune(),  # the later ones use what it finds
        make.tests(),
        *map(make.parity, PARITY_HW_LOADS),
        *map(make.rivals, ((1, 2) if args.quick else (1, 20))),
        make.run(HEADLINE),
        *(make.network(model, make.chunks[-1]) for model in make.chosen(NETWORKS)),
        make.own("kernels", "kernels.csv", 180),
        *map(make.run, make.chosen(FIRST)[1:]),
        *([] if args.quick else [make.rivals(5)]),
        *(make.network(model, n) for n in make.chunks[-2::-1] for model in make.chosen(NETWORKS)),
        *([] if args.quick else map(make.run, others())),
        replace(make.own("figures", "figures", 60), is_last=True),
    ]
    chosen = tuple(args.only.split(",")) if args.only else ("",)
    return [step for step in made if step.name.startswith(chosen)]


def others() -> list[str]:
    """The networks that are not among FIRST. With random weights two of one architecture and size are one."""
    from models.families import FAMILIES

    seen: dict[tuple[str, int], str] = {}
    for member in sorted((m for f in FAMILIES.values() for m in f.members), key=lambda m: m.key not in FIRST):
        seen.setdefault((member.model_id.partition(".")[0], member.K), member.key)
    return [key for key in seen.values() if key not in FIRST]


class Maker:
    """Steps from the options that all of them share."""

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self.out, self.quick = out, args.quick
        self.chunks = (1, 2) if args.quick else (1, 8, 64, 256)
        self.device = ("--device", args.device)
        self.short = ("--rounds", "1", "--round-seconds", "0.2") if args.quick else ("--rounds", "3")
        self.small = ("--img-size", "64") if args.quick else ()
        self.half = half(args.device)
        self.dtype, self.compiled = self.half[:2], self.half[-1:]

    def chosen(self, models: Sequence[str]) -> Sequence[str]:
        return models[:1] if self.quick else models

    def step(self, name: str, program: str, given: Sequence[str], writes: str, expected_s: float) -> Step:
        command = (sys.executable, program, *self.device, *given, "--out", str(self.out / writes))
        return Step(name, command, writes, 20 if self.quick else expected_s)

    def tests(self) -> Step:
        folders = ("tests/pipelines", "tests/models")
        chosen = ("tests/test_rooms.py",) if self.quick else ("-m", "gpu", *folders)
        command = (sys.executable, "-m", "pytest", "-q", "-rA", *chosen)
        return Step("tests", command, expected_s=20 if self.quick else 120)

    def tune(self) -> Step:
        trial = ("--rounds", "1", "--round-seconds", "0.1", "--no-store")  # a trial's rates are worth nothing
        seconds = trial if self.quick else ("--round-seconds", "0.5")
        return self.step("tune", "bench/compare/tune.py", ("--crops", "1", *seconds, *self.small), "tune", 360)

    def parity(self, load: int) -> Step:
        few = ("--limit", "8", "--policies", "2RC") if self.quick else ("--limit", "500", "--policies", "5FC+5MFC,10RC")
        given = ("--family", "resnet", *few, "--hw-load", str(load))
        return self.step(f"parity-{load}", "bench/compare/parity.py", given, f"parity/hw-{load}", 150)

    def rivals(self, crops: int) -> Step:
        """One crop count each: all together do not end within a call."""
        only = ("--only", "a,f") if self.quick else ()
        given = (*self.short, *only, "--crops", str(crops), *self.dtype, *self.small)
        return self.step(f"rivals-{crops}", "bench/compare/loaders.py", given, f"rivals/{crops}", 420)

    def run(self, model: str) -> Step:
        from models.families import FAMILIES

        K = next(member.K for family in FAMILIES.values() for member in family.members if member.key == model)
        given = (
            "--models", model, "--no-accuracy", "--crops", "1,2" if self.quick else "1,2,5,10,20", "--weights",
            "random", *self.half, *self.short, *self.small, *(("-b", "auto") if K >= LARGE_K else ()), "--no-figures",
            "--yes",
        )  # fmt: skip
        expected_s = 200 if K < LARGE_K else 320 if K < HUGE_K else 450
        return self.step(f"run-{model}", "bench/run.py", given, f"runs/{place(model)}", expected_s)

    def network(self, model: str, chunk: int) -> Step:
        """One chunk each: two compilations of a large network take minutes."""
        given = ("--models", model, "--chunks", str(chunk), "--weights", "random", *self.compiled, *self.short)
        name = f"network-{model}-{chunk}"
        return self.step(
            name, "bench/compare/network.py", (*given, *self.small), f"network/{place(model)}-{chunk}", 180
        )

    def own(self, name: str, writes: str, expected_s: float) -> Step:
        """A step of this program."""
        quick = ("--quick",) if self.quick else ()
        here = (sys.executable, "bench/compare/gpu.py", *self.device, *quick, "--out", str(self.out), "--step", name)
        return Step(name, here, writes, 20 if self.quick else expected_s)


def place(model: str) -> str:
    """The name of a network's folder."""
    return model.replace(":", "-")


def half(device: str) -> tuple[str, ...]:
    """How a network is run on a GPU; on a CPU this would only make the trial slow."""
    return ("--amp-dtype", "float16", "--channels-last", "--torchcompile") if device == "cuda" else ()


def overview(todo: Sequence[Step], done: dict[str, dict[str, Any]], call_s: float) -> list[str]:
    """The steps, what the finished ones took, what the others may take, and how many calls that is."""
    lines = []
    for step in todo:
        how = f"{done[step.name]['took_s']:5.0f} s  {done[step.name]['end']}" if step.name in done else (
            f"{step.expected_s:5.0f} s? to do"
        )  # fmt: skip
        lines.append(f"{how:17s} {step.name}: {' '.join(step.command)}")
    rest = [step for step in todo if step.name not in done]
    minutes = sum(step.expected_s for step in rest) / 60
    return [
        *lines,
        f"{len(rest)} of {len(todo)} steps are left: about {minutes:.0f} minutes (guessed, for an H100), "
        f"{calls(rest, call_s)} calls of {call_s / 60:g} minutes",
    ]


def calls(todo: Sequence[Step], call_s: float) -> int:
    """How many calls the steps take if each takes what is expected."""
    rest, number = list(todo), 0
    while rest:
        left, number, begun = call_s, number + 1, 0
        for step in list(rest):
            if step.is_begun(left, len(rest), begun == 0):
                rest.remove(step)
                left, begun = left - step.expected_s, begun + 1
    return number


def finished(out: Path) -> dict[str, dict[str, Any]]:
    """Step -> its line: ``end`` (``ok``, ``failed`` or ``too long``), ``took_s``, ``reason`` where it is not ok.

    One that another call may finish is not there.
    """
    path = out / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {one["step"]: one for one in map(json.loads, lines)}


def go_on(out: Path, todo: Sequence[Step], done: dict[str, dict[str, Any]], args: argparse.Namespace) -> int:
    """Do what is not done while there is time."""
    deadline, first = time.monotonic() + 60 * args.minutes, True
    if not args.quick:
        take_up_tuning(out)
    for step in todo:
        left = deadline - time.monotonic()
        if step.name in done or not step.is_begun(left, sum(s.name not in done for s in todo), first):
            continue
        remove(step, out)
        print(f"{step.name} ...", flush=True)
        start = time.monotonic()
        end = attempt(step, out, left)
        if end == "cut off" and not first:
            print(f"{step.name} was cut off after {left:.0f} s; call it again", flush=True)
            remove(step, out)  # half of it would stand in the table
            conclude(out, done, args.device)
            return 3
        line: dict[str, Any] = {"step": step.name, "end": "too long" if end == "cut off" else end}
        line["took_s"], first = round(time.monotonic() - start, 1), False
        if end != "ok":
            line["reason"] = f"not done after {left:.0f} s" if end == "cut off" else last_line(log_of(step, out))
            print(f"{step.name}: {line['end']}: {line['reason']}", flush=True)
        done[step.name] = line
        with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    fits = conclude(out, done, args.device)
    if rest := [step.name for step in todo if step.name not in done]:
        print(f"time is up; call it again: {len(rest)} steps are left, {rest[0]} first")
        return 3
    failed = [step.name for step in todo if done[step.name]["end"] != "ok"]
    print(f"all is done; failed: {', '.join(failed)}; what they said is in {out / 'logs'}" if failed else "all is done")
    return int(bool(failed) or not fits)


def remove(step: Step, out: Path) -> None:
    """What an earlier attempt wrote."""
    if step.writes:
        path = out / step.writes
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def take_up_tuning(out: Path) -> None:
    """What the step ``tune`` found, where this machine does not know it: it may have been another of the same kind."""
    from bench.measure.tuned import restore

    if (out / "tune" / "tuned.json").is_file():
        restore(out / "tune")


def attempt(step: Step, out: Path, left_s: float) -> str:
    """``ok``, ``failed`` or ``cut off``; what it said goes into logs/."""
    log_of(step, out).parent.mkdir(exist_ok=True)
    with log_of(step, out).open("w", encoding="utf-8") as log:
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


def log_of(step: Step, out: Path) -> Path:
    return out / "logs" / f"{step.name.replace(':', '-')}.txt"


def last_line(log: Path) -> str:
    """What a failed step said last, of a progress bar its last state."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def conclude(out: Path, done: dict[str, dict[str, Any]], device: str) -> bool:
    """Print and write the table of bars; pack everything. False where the archive is too large to be kept."""
    from bench.compare import targets as bars

    def why(name: str) -> str:
        """A step, or the first of several whose names begin so, that did not end well."""
        mine = [line for step, line in done.items() if step == name or step.startswith(f"{name}-")]
        bad = [f"{line['end']}: {line['reason']}" for line in mine if line["end"] != "ok"]
        return bad[0] if bad else f"{name} left no figure of it" if mine else f"{name} is still to do"

    table = bars.bars(out, why)
    bars.write(out / "bars.csv", table)
    print("\n".join(bars.text(table)))
    if device == "cpu":
        print("This was a trial of the script on a CPU: the table says nothing about a GPU.")
    path = archive(out)
    size = path.stat().st_size
    print(f"packed: {path}, {size / 2**20:.1f} MiB")
    if size > MOST_ARCHIVE_BYTES:
        files = sorted((p for p in out.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)[:5]
        largest = ", ".join(f"{p.relative_to(out)} {p.stat().st_size / 2**20:.1f}" for p in files)
        print(f"error: that is more than {MOST_ARCHIVE_BYTES >> 20} MiB; the largest files, MiB: {largest}")
    return size <= MOST_ARCHIVE_BYTES


def archive(out: Path) -> Path:
    return Path(shutil.make_archive(str(out), "gztar", out.parent, out.name))


# ---- the steps that are no program of their own


def _job(args: argparse.Namespace, model: str, crops: list[int]) -> Any:
    """A job of bench/run.py with random weights on the generated images."""
    from bench import cases
    from bench.config import MeasureConfig, NetworkConfig, RunConfig
    from bench.setup import find_images, make_job, resolve

    on_gpu = args.device != "cpu"
    network = NetworkConfig(
        models=[model],
        weights="random",
        device=args.device,
        amp_dtype="float16" if on_gpu else "float32",
        channels_last=True if on_gpu else None,
        torchcompile=on_gpu,
        img_size=[64] if args.quick else None,
    )
    config = resolve(RunConfig(network=network, measure=MeasureConfig(crops=crops, accuracy=False)))
    return make_job(cases.model_cases(config.network, demo=False)[0], find_images(config), config)


def kernels(out: Path, args: argparse.Namespace) -> None:
    """Share of the wall time of an end-to-end run in which a GPU kernel runs, from a profiler's trace (not NVML's).

    The pipeline's kernels count as the network's do; copies and fills do not. Empty on a CPU.
    """
    from torch.profiler import ProfilerActivity, profile

    from bench.measure.clocks import synchronize
    from bench.measure.throughput import Bench, Measurement

    rows = []
    crops = [1, 2] if args.quick else [1, 5, 10, 20]
    job = _job(args, HEADLINE, crops)
    bench = Bench(job, job.rows)
    bench.fill()
    for n in crops:
        stream = bench.stream(Measurement("end_to_end", n))
        for _ in range(3):
            next(stream)
        activities = [ProfilerActivity.CUDA] if args.device == "cuda" else [ProfilerActivity.CPU]
        synchronize(job.device)
        with profile(activities=activities) as trace:
            start = time.perf_counter()
            while time.perf_counter() - start < (0.1 if args.quick else 3.0):
                next(stream)
            synchronize(job.device)
            wall_us = 1e6 * (time.perf_counter() - start)
        found = kernel_spans(exported(trace))
        share = covered(found) / wall_us if found else None
        rows.append(
            {"model": HEADLINE, "crops": n, "wall_us": round(wall_us), "kernels": len(found), "kernel_share": share}
        )
    bench.close()
    _write_csv(out / "kernels.csv", rows)


def exported(trace: Any) -> dict[str, Any]:
    """A profiler's trace in the format of Chrome's viewer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))


def kernel_spans(trace: dict[str, Any]) -> list[tuple[float, float]]:
    """[start, end) of every kernel on the GPU, microseconds; copies and fills are events of other categories."""
    kernels = (event for event in trace["traceEvents"] if (event.get("ph"), event.get("cat")) == ("X", "kernel"))
    return [(event["ts"], event["ts"] + event["dur"]) for event in kernels]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def figures(out: Path, args: argparse.Namespace) -> None:
    """Of all runs together; those that ended."""
    runs = [str(path) for path in sorted((out / "runs").glob("*")) if (path / "run.json").is_file()]
    command = [sys.executable, str(ROOT / "analysis/make_figures.py"), *runs, "--out", str(out / "figures")]
    only = ["--only", "throughput_vs_crops"]
    done = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


FUNCTIONS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
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
