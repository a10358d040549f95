"""What each way of running the network gains: crops per second on resident crops, by chunk, sides in turn.

    multicrop-bench compare network --family resnet                       # the demo network; chunks of 1, 8, 64 and 256
    multicrop-bench compare network --models resnet50.a1_in1k --weights random --batch-sizes 1,64 --torchcompile

Every way is compared with ``plain`` (float32, NCHW, eager) in the same round: median of the ratios with its 95 %
interval, and the largest difference of a logit as a share of the largest logit. A way that is slower is marked so.
``timm's benchmark`` is the network as timm's benchmark.py runs it: weights and a resident, normalised input of one
type, channels-last, compiled with --torchcompile; ours begin with uint8 crops and normalise them.
Flags beside those below are bench/run.py's. Writes network.csv into ``--out``, if given.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cases, logs
from bench.errors import UserError, with_flags
from bench.options import CommandLine, build_parser, flag_names
from bench.options import parse as parse_options
from bench.setup import find_images, make_job, resolve
from bench.values import int_list
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from torch import Tensor

    from bench.job import Job
    from models.predict import Network


@dataclass(frozen=True, slots=True)
class Way:
    """How a network is run."""

    channels_last: bool = False
    fold: bool = False
    amp_dtype: str = "float32"
    compiled: bool = False
    as_timm: bool = False


log = logging.getLogger(__name__)
NOT_HERE = ("accuracy", "throughput", "dry_run", "resume", "yes", "figures", "crops", "policies", "batch_size", "fold")
PLAIN, TIMM, COMPILED = "plain", "timm's benchmark", "channels-last, fold, compiled"
WAYS = {
    PLAIN: Way(),
    "channels-last": Way(channels_last=True),
    "fold": Way(fold=True),
    "channels-last, fold": Way(channels_last=True, fold=True),
    "bfloat16, channels-last": Way(channels_last=True, amp_dtype="bfloat16"),
}
GPU_WAYS = {"float16, channels-last, fold": Way(channels_last=True, fold=True, amp_dtype="float16")}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    line = parse(argv)
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    try:
        return run(line, list(sys.argv[1:] if argv is None else argv))
    except (UserError, ValueError, OSError) as error:
        print(f"error: {with_flags(str(error), flag_names())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> CommandLine:
    """The run's options, and ``--batch-sizes``."""
    parser = build_parser("multicrop-bench compare network", __doc__, epilog=None, leave_out=NOT_HERE)
    parser.add_argument(
        "--batch-sizes", type=int_list, default=[1, 8, 64, 256], metavar="LIST", help="default: 1,8,64,256"
    )
    line = parse_options(argv, parser)
    out = line.config.output.out
    if out and out.exists():
        parser.error(f"--out {out} exists; results are never written over others: name a new folder")
    return line


def run(line: CommandLine, argv: list[str]) -> int:
    """Measure every way at every batch size; print and write."""
    config = resolve(line.config)
    config = replace(config, measure=replace(config.measure, crops=None, policies="1RC"))
    batch_sizes, device = line.own["batch_sizes"], str(config.network.device)
    scan = find_images(config)
    rows: list[dict[str, Any]] = []
    for case in cases.model_cases(config.network, demo=config.network.weights == "demo"):
        job = make_job(case, scan, config)
        crops = some_crops(job, max(batch_sizes))
        print(f"{case.label}, crops of {job.classifier.spec.K}, {device}; ratios are to {PLAIN}")
        for batch_size in batch_sizes:
            for row in measure(job, crops, batch_size, ways(device, config.network.torchcompile)):
                rows.append({"model": case.label, "K": job.classifier.spec.K, "device": device, **row})
                print(row_text(rows[-1]), flush=True)
    if config.output.out:
        write(config.output.out, argv, rows)
    return 0


def ways(device: str, compiled: bool) -> dict[str, Way]:
    gpu = device.startswith("cuda")
    dtype = "float16" if gpu else "float32"
    out = {**WAYS, **(GPU_WAYS if gpu else {}), TIMM: Way(True, False, dtype, compiled, as_timm=True)}
    return {**out, f"{dtype}, {COMPILED}": Way(True, True, dtype, True)} if compiled else out


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
    """The network as timm's benchmark.py runs it (--precision, --channels-last, --torchcompile), on these crops."""

    def __init__(self, job: Job, way: Way, crops: Tensor) -> None:
        import torch

        from models.predict import AMP_DTYPES

        classifier = unfolded(job).classifier
        device, dtype = job.device, AMP_DTYPES[way.amp_dtype]
        classifier.place(device, channels_last=way.channels_last)
        self.chunk = len(crops)
        self.x = classifier.prepare(crops.to(device)).to(dtype)
        net = classifier.net.to(dtype=dtype)
        self.net: Any = torch.compile(net, dynamic=False) if way.compiled else net

    def forward(self) -> tuple[None, Tensor]:
        import torch

        with torch.no_grad():
            return None, self.net(self.x)


def unfolded(job: Job) -> Job:
    """The job loaded again, without folding: no variant changes another's weights."""
    network = replace(job.config.network, fold=False)
    return make_job(job.case, job.scan, replace(job.config, network=network))


def network_of(job: Job, way: Way, crops: Tensor) -> Network | AsTimm:
    """A network of its own, so that no way changes another's weights, with a chunk of crops in it."""
    from models.predict import Network

    if way.as_timm:
        return AsTimm(job, way, crops)
    classifier = unfolded(job).classifier
    if way.fold:
        classifier.fold()
    network = Network(
        classifier,
        chunk=len(crops),
        device=job.device,
        amp_dtype=way.amp_dtype,
        channels_last=way.channels_last,
        compiled=way.compiled,
    )
    network.buffer.copy_(crops)
    return network


def measure(job: Job, crops: Any, chunk: int, sides: dict[str, Way]) -> list[dict[str, Any]]:
    """A row for each way at one batch size."""
    from tqdm import tqdm

    from bench.compare.loader_records import paired_ratio
    from bench.measure.clocks import segment

    asked = job.config.measure
    networks = {name: network_of(job, way, crops[:chunk]) for name, way in sides.items()}
    answers = {name: network.forward()[1].float().cpu().clone() for name, network in networks.items()}
    rates: dict[str, dict[int, float]] = {name: {} for name in networks}
    for number in tqdm(range(asked.rounds), desc=f"batch size {chunk}", unit="round", leave=False):
        order = list(networks)[number % len(networks) :] + list(networks)[: number % len(networks)]
        for name in order:
            done = segment(
                forwards(networks[name]), seconds=asked.round_seconds, warmup_items=asked.num_warm_iter,
                device=job.device,
            )  # fmt: skip
            rates[name][number] = done.count / done.duration_s
    out = []
    for name in networks:
        ratio = paired_ratio(rates[name], rates[PLAIN])
        assert ratio is not None
        difference = (answers[name] - answers[PLAIN]).abs().max() / answers[PLAIN].abs().max()
        agree = (answers[name].argmax(1) == answers[PLAIN].argmax(1)).float().mean()
        out.append(
            {
                "batch_size": chunk,
                "way": name,
                "crops_per_sec": sorted(rates[name].values())[len(rates[name]) // 2],
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "rounds": ratio.rounds,
                "logit_difference": float(difference),
                "top1_agreement": float(agree),
            }
        )
    return out


def forwards(network: Network | AsTimm) -> Iterator[int]:
    while True:
        network.forward()
        yield network.chunk


def row_text(row: dict[str, Any]) -> str:
    """For a person."""
    interval = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.2f} .. {row['ratio_high']:.2f})"
    slower = "  slower" if row["ratio_high"] is not None and row["ratio_high"] < 1 else ""
    return (
        f"  batch size {row['batch_size']:4d}  {row['way']:28s} {row['crops_per_sec']:8.1f} crops/s "
        f" {row['ratio']:.2f} x{interval}"
        f"  logits {row['logit_difference']:.1e}, top-1 agrees {row['top1_agreement']:.1%}{slower}"
    )


def write(out: Path, argv: list[str], rows: Sequence[dict[str, Any]]) -> None:
    """network.csv and run.json."""
    import json

    from bench import machine
    from bench.files import write_whole

    out.mkdir(parents=True)
    with (out / "network.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    info = {"command": ["multicrop-bench", "compare", "network", *argv], "environment": machine.environment()}
    write_whole(out / "run.json", json.dumps(info, indent=1) + "\n")
    log.info("written: %s", (out / "network.csv").resolve())
