"""What each way of running the network gains: crops per second on resident crops, by batch size, variants in turn.

    multicrop-bench compare network --family resnet                   # the demo network; batch sizes 1, 8, 64 and 256
    multicrop-bench compare network --models resnet50.a1_in1k --weights random --batch-sizes 1,64 --torchcompile

Every variant is compared with ``plain`` (float32, NCHW, eager) in the same round: median of the ratios with its 95 %
interval, and the largest difference of a logit as a share of the largest logit. A variant that is slower is marked.
``timm's benchmark`` is the network as timm's benchmark.py runs it: weights and a resident, normalised input of one
type, channels-last, compiled with --torchcompile; ours begin with uint8 crops and normalise them.
The other options are those of ``run``. Writes network.csv and run.json into ``--out``, if given.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench import cases, logs, values
from bench.config import RunConfig, option, switch
from bench.errors import exit_status
from bench.files import new_folder_if
from bench.options import add_options, build_parser, flag_names, group_flags
from bench.options import parse as parse_options
from bench.setup import find_images, make_job, resolve
from models.variants import PLAIN, TIMM, Variant, variants
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from torch import Tensor

    from bench.job import Job
    from models.predict import Network

log = logging.getLogger(__name__)
NOT_HERE = ("accuracy", "throughput", "dry_run", "resume", "yes", "figures", "crops", "policies", "batch_size", "fold",
    "preset", "tf32", "cudnn_benchmark", "amp", "amp_dtype", "channels_last",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetworkComparison:
    """The options of this comparison beside those of a run."""

    title: ClassVar[str] = "comparison"
    batch_sizes: list[int] = option(
        "--batch-sizes",
        default=[1, 8, 64, 256],
        metavar="LIST",
        parse=values.int_list,
        help="crops per forward pass (default: 1,8,64,256)",
    )
    fastest_only: bool = switch(
        "--fastest-only", help="only plain, timm's benchmark and the variant that is expected to be the fastest"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    parser = build_parser("multicrop-bench compare network", __doc__, epilog=None, leave_out=NOT_HERE)
    add_options(parser, NetworkComparison)
    line = parse_options(argv, parser, NetworkComparison)
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    command = ["multicrop-bench", "compare", "network", *(sys.argv[1:] if argv is None else argv)]
    return exit_status(
        lambda: compare(line.config, NetworkComparison(**line.own), command),
        {**flag_names(), **group_flags(NetworkComparison)},
    )


def compare(config: RunConfig, comparison: NetworkComparison, command: Sequence[str] = ()) -> int:
    """Measure every variant at every batch size; print and write. Raises UserError for a folder that exists."""
    with new_folder_if(config.output.out) as out:
        rows = measure_all(config, comparison)
        if out:
            write(out, command, rows)
    return 0


def measure_all(config: RunConfig, comparison: NetworkComparison) -> list[dict[str, Any]]:
    """A row for each network, batch size and variant, which is also printed."""
    config = resolve(config)
    config = replace(config, measure=replace(config.measure, crops=None, policies="1RC"))
    device = str(config.network.device)
    chosen = variants(device, config.network.torchcompile)
    if comparison.fastest_only:
        chosen = {name: chosen[name] for name in dict.fromkeys([PLAIN, TIMM, list(chosen)[-1]])}
    scan = find_images(config)
    rows: list[dict[str, Any]] = []
    for case in cases.model_cases(config.network, demo=config.network.weights == "demo"):
        job = make_job(case, scan, config)
        crops = some_crops(job, max(comparison.batch_sizes))
        print(f"{case.label}, crops of {job.classifier.spec.K}, {device}; ratios are to {PLAIN}")
        for batch_size in comparison.batch_sizes:
            for row in measure(job, crops[:batch_size], chosen):
                rows.append({"model": case.label, "K": job.classifier.spec.K, "device": device, **row})
                print(row_text(rows[-1]), flush=True)
    return rows


def some_crops(job: Job, n: int) -> Any:
    """uint8 [n, K, K, 3]: random crops of the job's images, again from the start where there are fewer."""
    import numpy as np
    import torch

    rows = np.resize(job.rows, n)
    source = job.make_backend(job.planner(parse_policy("1RC")), job.load_config(1))
    try:
        pieces = [group.crops.cpu() for batch in source.batches(np.unique(rows)) for group in batch.groups]
    finally:
        source.close()
    together = torch.cat(pieces)
    return together[torch.arange(n) % len(together)]


class AsTimm:
    """The network as timm's benchmark.py runs it, on these crops."""

    def __init__(self, job: Job, variant: Variant, crops: Tensor) -> None:
        import torch

        from models.predict import AMP_DTYPES, GpuModes

        self.modes = GpuModes(cudnn_benchmark=True)  # as that program sets it
        classifier = unfolded(job).classifier
        device, dtype = job.device, AMP_DTYPES[variant.amp_dtype]
        classifier.place(device, channels_last=variant.channels_last)
        self.batch_size = len(crops)
        self.x = classifier.prepare(crops.to(device)).to(dtype)
        net = classifier.net.to(dtype=dtype)
        self.net: Any = torch.compile(net, dynamic=False) if variant.compiled else net

    def forward(self) -> tuple[None, Tensor]:
        import torch

        self.modes.set()
        with torch.no_grad():
            return None, self.net(self.x)


def unfolded(job: Job) -> Job:
    """The job loaded again, without folding: no variant changes another's weights."""
    network = replace(job.config.network, fold=False)
    return make_job(job.case, job.scan, replace(job.config, network=network))


def network_of(job: Job, variant: Variant, crops: Tensor) -> Network | AsTimm:
    """A network of its own, so that no variant changes another's weights, with these crops in its buffer."""
    from models.predict import GpuModes, Network

    if variant.as_timm:
        return AsTimm(job, variant, crops)
    classifier = unfolded(job).classifier
    if variant.fold:
        classifier.fold()
    network = Network(
        classifier,
        batch_size=len(crops),
        device=job.device,
        amp_dtype=variant.amp_dtype,
        channels_last=variant.channels_last,
        compiled=variant.compiled,
        modes=GpuModes(variant.tf32, variant.cudnn_benchmark),
    )
    network.buffer.copy_(crops)
    return network


def measure(job: Job, crops: Tensor, variants: dict[str, Variant]) -> list[dict[str, Any]]:
    """A row for each variant, on one batch of crops uint8 [b, K, K, 3]."""
    networks = {name: network_of(job, variant, crops) for name, variant in variants.items()}
    logits = {name: network.forward()[1].float().cpu().clone() for name, network in networks.items()}
    rates = timed(job, networks, len(crops))
    return [row(name, len(crops), rates, logits) for name in networks]


def timed(job: Job, networks: dict[str, Any], batch_size: int) -> dict[str, dict[int, float]]:
    """Variant -> round -> crops per second; another variant begins each round."""
    from tqdm import tqdm

    from bench.measure.clocks import segment

    asked = job.config.measure
    rates: dict[str, dict[int, float]] = {name: {} for name in networks}
    for number in tqdm(range(asked.rounds), desc=f"batch size {batch_size}", unit="round", leave=False):
        order = list(networks)[number % len(networks) :] + list(networks)[: number % len(networks)]
        for name in order:
            done = segment(
                forwards(networks[name], batch_size),
                seconds=asked.round_seconds,
                warmup_items=asked.num_warm_iter,
                device=job.device,
            )
            rates[name][number] = done.count / done.duration_s
    return rates


def row(name: str, batch_size: int, rates: dict[str, dict[int, float]], logits: dict[str, Tensor]) -> dict[str, Any]:
    """A variant's figures, beside the plain network's."""
    from bench.compare.loader_records import paired_ratio

    ratio = paired_ratio(rates[name], rates[PLAIN])
    assert ratio is not None
    return {
        "batch_size": batch_size,
        "variant": name,
        "crops_per_sec": sorted(rates[name].values())[len(rates[name]) // 2],
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "rounds": ratio.rounds,
        "logit_difference": float((logits[name] - logits[PLAIN]).abs().max() / logits[PLAIN].abs().max()),
        "top1_agreement": float((logits[name].argmax(1) == logits[PLAIN].argmax(1)).float().mean()),
    }


def forwards(network: Network | AsTimm, batch_size: int) -> Iterator[int]:
    """Endless forward passes; each item is the number of crops."""
    while True:
        network.forward()
        yield batch_size


def row_text(row: dict[str, Any]) -> str:
    """For a person."""
    interval = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.2f} .. {row['ratio_high']:.2f})"
    slower = "  slower" if row["ratio_high"] is not None and row["ratio_high"] < 1 else ""
    return (
        f"  batch size {row['batch_size']:4d}  {row['variant']:28s} {row['crops_per_sec']:8.1f} crops/s "
        f" {row['ratio']:.2f} x{interval}"
        f"  logits {row['logit_difference']:.1e}, top-1 agrees {row['top1_agreement']:.1%}{slower}"
    )


def write(out: Path, command: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """network.csv and run.json."""
    import pandas as pd

    from bench import machine
    from pipelines.files import write_whole
    from pipelines.text import csv_text

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "network.csv", csv_text(pd.DataFrame(list(rows))))
    info = {"command": list(command), "environment": machine.environment()}
    write_whole(out / "run.json", json.dumps(info, indent=1) + "\n")
    log.info("written: %s", (out / "network.csv").resolve())
