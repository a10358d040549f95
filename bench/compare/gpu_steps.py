"""What ``multicrop-bench compare gpu`` does, step by step, in order of what a reader wants first.

A step is a function that writes below a results folder and returns an exit status; gpu.py runs each in a process of its
own, which can be ended when its time is up.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from bench import values
from bench.config import (
    DataConfig,
    LoadingConfig,
    MeasureConfig,
    NetworkConfig,
    OutputConfig,
    RunConfig,
    option,
    switch,
    to_plain,
)
from bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = "resnet:50"  # whose share of kernel time is measured
NETWORKS = (HEADLINE, "efficientnet:ap:b0", "mobilenet:v3-large", "nfnet:f0")  # beside timm's benchmark, and end to end
FAMILIES = ("resnet", "efficientnet", "mobilenet", "nfnet")  # whose demo networks the preset is tried on
PARITY_HW_LOADS = (0, 1)
BATCH_SIZES = (256, 64, 8, 1)
CROPS = [1, 5, 20]
LARGE_K, HUGE_K = 380, 600  # crops from so many pixels on: batch size by what fits; a network takes longer
DALI = "nvidia.dali"
SANITIZED_K = 260  # DALI's multi_paste reads out of bounds there, so the backend must take warp_affine
KERNEL_SECONDS = 3.0  # that a profiler watches


@dataclass(frozen=True, slots=True)
class GpuConfig:
    """The options of the command."""

    title: ClassVar[str] = "everything that only a GPU can show"
    out: Path | None = option("--out", metavar="DIR", parse=values.path, help="default: results/<gpu>")
    minutes: float = option(
        "--minutes", default=25.0, metavar="N", parse=values.minutes, help="stop before so many (default: 25)"
    )
    device: str = option("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: with --quick, to try it")
    quick: bool = switch("--quick", help="every step in miniature, to try the command")
    only: str | None = option("--only", metavar="NAMES", help="steps whose names begin so, by commas")
    dry_run: bool = switch("--dry-run", help="print the steps and stop")

    @property
    def short(self) -> MeasureConfig:
        """Rounds as short as the figures bear."""
        rounds, seconds = (1, 0.1) if self.quick else (3, 0.7)
        return MeasureConfig(rounds=rounds, round_seconds=seconds, num_warm_iter=1 if self.quick else 2)

    def network(self, model: str, **changed: Any) -> NetworkConfig:
        """A network as it is fastest on a GPU, with random weights."""
        on_gpu = self.device != "cpu"
        switches = ("channels_last", "torchcompile", "fold", "cudnn_benchmark")
        fast: dict[str, Any] = {"amp_dtype": "float16", **dict.fromkeys(switches, True)} if on_gpu else {}
        size = {"img_size": [64]} if self.quick else {}
        return NetworkConfig(models=[model], weights="random", device=self.device, **{**fast, **size, **changed})


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of the work. ``function(out, config, **arguments)`` returns an exit status."""

    name: str
    function: Callable[..., int]
    writes: str  # what it makes below the results folder; removed before it is begun again
    expected_s: float  # roughly, on an H100 with 16 cores
    arguments: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # modules beside torch and timm


def steps(config: GpuConfig) -> list[Step]:
    """In order. The network alone comes first: it needs no DALI, and its compiled code is kept for the later steps."""
    networks, families = (NETWORKS[:1], FAMILIES[:1]) if config.quick else (NETWORKS, FAMILIES)
    made = [
        Step("images", images, "images.txt", 30),
        *(network_step(model, BATCH_SIZES[0]) for model in networks),
        Step("sanitizer", sanitizer, "sanitizer.txt", 40, needs=(DALI,)),
        Step("tests", tests, "tests.txt", 120, needs=(DALI, "pytest")),
        Step("tune", tuning, "tune", 150, needs=(DALI,)),
        *(Step(f"parity-{x}", parity, f"parity/hw-{x}", 60, {"hw_load": x}, (DALI,)) for x in PARITY_HW_LOADS),
        *map(end_to_end_step, networks),
        Step("kernels", kernels, "kernels.csv", 50, needs=(DALI,)),
        *(Step(f"loaders-{n}", loaders, f"loaders/{n}", 160, {"crops": n}, (DALI,)) for n in (1, 20, 5)),
        *(Step(f"preset-{family}", preset, f"preset/{family}.json", 100, {"family": family}) for family in families),
        *(network_step(model, n) for n in BATCH_SIZES[1:] for model in networks),
        *([] if config.quick else map(end_to_end_step, other_networks())),
    ]
    wanted = tuple(config.only.split(",")) if config.only else ("",)
    return [step for step in made if step.name.startswith(wanted)]


def network_step(model: str, batch_size: int) -> Step:
    arguments = {"model": model, "batch_size": batch_size}
    return Step(f"network-{model}-{batch_size}", network, f"network/{folder_of(model)}-{batch_size}", 110, arguments)


def end_to_end_step(model: str) -> Step:
    K = crop_size(model)
    expected_s = 80 if K < LARGE_K else 160 if K < HUGE_K else 300
    return Step(f"run-{model}", end_to_end, f"runs/{folder_of(model)}", expected_s, {"model": model}, (DALI,))


def folder_of(model: str) -> str:
    return model.replace(":", "-")


def crop_size(model: str) -> int:
    from models.families import FAMILIES

    return next(member.K for family in FAMILIES.values() for member in family.members if member.key == model)


def other_networks() -> list[str]:
    """The families' other members; with random weights two of one architecture and size are one."""
    from models.families import FAMILIES

    members = [member for family in FAMILIES.values() for member in family.members]
    found: dict[tuple[str, int], str] = {}
    for member in sorted(members, key=lambda member: member.key not in NETWORKS):
        found.setdefault((member.model_id.partition(".")[0], member.K), member.key)
    return [key for key in found.values() if key not in NETWORKS]


# ---- the steps


def images(out: Path, config: GpuConfig) -> int:
    """Make the demo images, so that no later step spends its time on them."""
    from pipelines.data import demo

    root = demo.ensure("val")
    (out / "images.txt").write_text(f"{root}\n", encoding="utf-8")
    return 0


def network(out: Path, config: GpuConfig, *, model: str, batch_size: int) -> int:
    """The network alone, beside timm's benchmark. Crops come from torchvision: no DALI is needed."""
    from bench.compare.network import NetworkComparison, compare

    run = RunConfig(
        network=config.network(model, fold=False),
        loading=LoadingConfig(data_backend="torchvision"),
        measure=config.short,
        output=OutputConfig(out=out / "network" / f"{folder_of(model)}-{batch_size}"),
    )
    return compare(run, NetworkComparison([min(batch_size, 4) if config.quick else batch_size], fastest_only=True))


def sanitizer(out: Path, config: GpuConfig) -> int:
    """DALI's crops under NVIDIA's compute-sanitizer, which finds reads out of bounds. The program must be installed."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer, of NVIDIA's CUDA toolkit, is not installed")
        return 1
    code = f"from bench.compare import gpu_steps; gpu_steps.make_crops({SANITIZED_K})"
    command = [program, "--error-exitcode", "1", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (out / "sanitizer.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    print(done.stdout + done.stderr)
    return done.returncode


def make_crops(K: int) -> None:
    """One batch of five random crops of K x K pixels on the GPU."""
    import numpy as np

    from pipelines.backends import backend
    from pipelines.batch import LoadConfig
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.data import demo, scanning
    from pipelines.data.labels import unlabelled
    from pipelines.inputspec import InputSpec

    data = unlabelled(scanning.scan(demo.ensure("val"), workers=1, progress=False), "not needed")
    planner = Planner(InputSpec(S=K + 20, K=K), union([parse_policy("5RC")]))
    source = backend("dali-gpu")(data, planner, LoadConfig(batch_images=8, workers=2))
    for batch in source.batches(np.arange(8)):
        print(sum(int(group.crops.sum()) for group in batch.groups))
    source.close()


def tests(out: Path, config: GpuConfig) -> int:
    """The tests that need a GPU."""
    import pytest

    chosen = ["--collect-only"] if config.quick else []
    return int(
        pytest.main(["-q", "-rA", "-m", "gpu", *chosen, str(ROOT / "tests/pipelines"), str(ROOT / "tests/models")])
    )


def tuning(out: Path, config: GpuConfig) -> int:
    """Pipeline settings at one crop, kept for the later steps."""
    from bench.compare.tune import TuneConfig, tune

    rounds, seconds, K = (1, 0.02, 64) if config.quick else (2, 0.5, 224)
    return tune(
        TuneConfig(
            device=config.device, crops=1, rounds=rounds, round_seconds=seconds, img_size=K, out=out / "tune",
            store=not config.quick,
        )
    )  # fmt: skip


def parity(out: Path, config: GpuConfig, *, hw_load: int) -> int:
    """Do the backends agree, with a share of the images decoded by the JPEG engine?"""
    from bench.compare.parity import compare

    limit, policies = (8, "2RC") if config.quick else (500, "5FC+5MFC,10RC")
    return compare(
        RunConfig(
            data=DataConfig(limit=limit),
            network=NetworkConfig(family="resnet", weights="demo", device=config.device),
            loading=LoadingConfig(hw_load=float(hw_load)),
            measure=MeasureConfig(policies=policies),
            output=OutputConfig(out=out / "parity" / f"hw-{hw_load}"),
        )
    )


def preset(out: Path, config: GpuConfig, *, family: str) -> int:
    """What `preset` fast takes for a family's demo network: rates and agreement of every candidate."""
    from bench import cases
    from bench.measure.preset import choose
    from bench.setup import find_images, resolve
    from pipelines.files import write_whole

    network = NetworkConfig(family=family, weights="demo", device=config.device, preset="fast")
    limit, loading = 8 if config.quick else None, LoadingConfig(data_backend="torchvision")
    run = resolve(RunConfig(network=network, data=DataConfig(limit=limit), loading=loading))
    choice = choose(cases.model_cases(run.network, demo=True)[0], find_images(run), run)
    print(choice.words())
    (out / "preset").mkdir(exist_ok=True)
    write_whole(out / "preset" / f"{family}.json", json.dumps(asdict(choice), indent=1) + "\n")
    return 0


def loaders(out: Path, config: GpuConfig, *, crops: int) -> int:
    """Our pipelines beside other people's loaders, at one crop count."""
    from bench.compare.loaders import LoaderComparison, compare

    options = LoaderComparison(
        crops=[crops], device=config.device, rounds=config.short.rounds, out=out / "loaders" / str(crops)
    )
    if config.quick:
        return compare(replace(options, only="a,f", img_size=64, round_seconds=0.1))
    return compare(options if config.device == "cpu" else replace(options, amp_dtype="float16"))


def network_job(config: GpuConfig, model: str, crops: Sequence[int]) -> Any:
    """A network that is timed and not scored."""
    from bench import cases
    from bench.setup import find_images, make_job, resolve

    auto = {"batch_size": "auto"} if crop_size(model) >= LARGE_K else {}
    measure = replace(config.short, crops=list(crops), accuracy=False)
    asked = RunConfig(network=config.network(model, **auto), measure=measure)
    resolved = resolve(asked)
    return make_job(cases.model_cases(resolved.network, demo=False)[0], find_images(resolved), resolved)


def end_to_end(out: Path, config: GpuConfig, *, model: str) -> int:
    """The pipeline alone, the network alone, and both together, at each crop count; the records of a run."""
    from bench import machine, records
    from bench.measure.throughput import throughput_phase
    from bench.resume import write_info

    folder = out / "runs" / folder_of(model)
    folder.mkdir(parents=True)
    job = network_job(config, model, [1, 2] if config.quick else CROPS)
    info = {
        "schema": records.SCHEMA,
        "command": ["multicrop-bench", "compare", "gpu"],
        "config": to_plain(job.config),
        "load": to_plain(job.config.loading),
        "data": str(job.data.root),
        "environment": machine.environment(),
    }
    write_info(folder, info)
    records.extend(folder, list(throughput_phase(job, job.setting(), folder)))
    return 0


# ---- the share of time in which the GPU computes


def kernels(out: Path, config: GpuConfig) -> int:
    """kernels.csv: the share of an end-to-end run's wall time in which a GPU kernel runs, from a profiler's trace (not
    NVML's). The pipeline's kernels count as the network's do; copies and fills do not. No share on a CPU."""
    import pandas as pd

    from bench.measure.throughput import Bench
    from pipelines.files import write_whole
    from pipelines.text import csv_text

    crops = [1, 2] if config.quick else [1, 5, 10, 20]
    job = network_job(config, HEADLINE, crops)
    bench = Bench(job, job.rows)
    try:
        bench.fill()
        rows = [kernel_share(bench, job.device, n, 0.1 if config.quick else KERNEL_SECONDS) for n in crops]
    finally:
        bench.close()
    write_whole(out / "kernels.csv", csv_text(pd.DataFrame(rows)))
    return 0


def kernel_share(bench: Any, device: str, crops: int, seconds: float) -> dict[str, Any]:
    """A row of kernels.csv. ``kernel_share`` is None where the profiler saw no kernel."""
    from torch.profiler import ProfilerActivity, profile

    from bench.measure.clocks import synchronize
    from bench.measure.throughput import Measurement

    stream = bench.stream(Measurement("end_to_end", crops))
    for _ in range(3):
        next(stream)
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA]) as trace:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(stream)
        synchronize(device)
        wall_us = 1e6 * (time.perf_counter() - start)
    found = kernel_spans(exported(trace))
    share = covered(found) / wall_us if found else None
    return {"model": HEADLINE, "crops": crops, "wall_us": round(wall_us), "kernels": len(found), "kernel_share": share}


def exported(trace: Any) -> dict[str, Any]:
    """A profiler's trace in the format of Chrome's viewer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))


def kernel_spans(trace: dict[str, Any]) -> list[tuple[float, float]]:
    """[start, end) of every kernel on the GPU, microseconds; copies and fills are events of other categories."""
    found = (event for event in trace["traceEvents"] if (event.get("ph"), event.get("cat")) == ("X", "kernel"))
    return [(event["ts"], event["ts"] + event["dur"]) for event in found]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def require_gpu(config: GpuConfig) -> None:
    """Raises UserError where the device cannot be had."""
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "`device` cuda: torch finds no NVIDIA GPU with a working driver (to try: `device` cpu, `quick`)"
        )
