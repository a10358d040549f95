"""What each way of running the network gains: crops per second on resident crops, by chunk, sides in turn.

    python bench/compare/network.py --family resnet                       # the demo network; chunks of 1, 8, 64 and 256
    python bench/compare/network.py --models resnet50.a1_in1k --weights random --chunks 1,64 --torchcompile

Every way is compared with ``plain`` (float32, NCHW, eager) in the same round: median of the ratios with its 95 %
interval, and the largest difference of a logit as a share of the largest logit. A way that is slower is marked so.
``timm's benchmark`` is the network as timm's benchmark.py runs it: weights and a resident, normalised input of one
type, channels-last, compiled with --torchcompile; ours begin with uint8 crops and normalise them.
Flags beside those below are bench/run.py's. Writes network.csv into ``--out``, if given.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench import cases, options
from bench.cases import int_list
from bench.setup import UserError, default_weights, find_images, make_job, make_options, say
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
    args = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        return run(args)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def parse(argv: list[str]) -> argparse.Namespace:
    """This program's options and bench/run.py's in one."""
    parser = argparse.ArgumentParser(
        prog="bench/compare/network.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--chunks", type=int_list, default=[1, 8, 64, 256], metavar="LIST", help="default: 1,8,64,256")
    own, rest = parser.parse_known_args(argv)
    shared = options.parse(rest)
    if shared.out and shared.out.exists():
        parser.error(f"--out {shared.out} exists; results are never written over others: name a new folder")
    return argparse.Namespace(**{**vars(shared), **vars(own), "argv": argv})


def run(args: argparse.Namespace) -> int:
    """Measure every way at every chunk; print and write."""
    weights = default_weights(args)
    found = cases.model_cases(args, demo=weights == "demo")
    setting = make_options(args, weights, [parse_policy("1RC")])
    scan = find_images(args, setting.workers)
    rows: list[dict[str, Any]] = []
    for case in found:
        job = make_job(case, scan, setting)
        crops = some_crops(job, max(args.chunks))
        print(f"{case.label}, crops of {job.classifier.spec.K}, {setting.device}; ratios are to {PLAIN}")
        for chunk in args.chunks:
            for row in measure(job, crops, chunk, ways(setting.device, args.torchcompile), args):
                rows.append({"model": case.label, "K": job.classifier.spec.K, "device": setting.device, **row})
                print(line(rows[-1]), flush=True)
    if args.out:
        write(args.out, args, rows)
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
    source = job.make_backend(job.options.backend, job.planner(parse_policy("1RC")), job.config(1))
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

        classifier = make_job(job.case, job.scan, replace(job.options, fold=False)).classifier
        device, dtype = job.options.device, AMP_DTYPES[way.amp_dtype]
        classifier.place(device, channels_last=way.channels_last)
        self.chunk = len(crops)
        self.x = classifier.prepare(crops.to(device)).to(dtype)
        net = classifier.net.to(dtype=dtype)
        self.net: Any = torch.compile(net, dynamic=False) if way.compiled else net

    def forward(self) -> tuple[None, Tensor]:
        import torch

        with torch.no_grad():
            return None, self.net(self.x)


def network_of(job: Job, way: Way, crops: Tensor) -> Network | AsTimm:
    """A network of its own, so that no way changes another's weights, with a chunk of crops in it."""
    from models.predict import Network

    if way.as_timm:
        return AsTimm(job, way, crops)
    classifier = make_job(job.case, job.scan, replace(job.options, fold=False)).classifier
    if way.fold:
        classifier.fold()
    network = Network(
        classifier,
        chunk=len(crops),
        device=job.options.device,
        amp_dtype=way.amp_dtype,
        channels_last=way.channels_last,
        compiled=way.compiled,
    )
    network.buffer.copy_(crops)
    return network


def measure(job: Job, crops: Any, chunk: int, sides: dict[str, Way], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way at one chunk."""
    from tqdm import tqdm

    from bench.clocks import segment
    from bench.compare.loader_records import paired_ratio

    networks = {name: network_of(job, way, crops[:chunk]) for name, way in sides.items()}
    answers = {name: network.forward()[1].float().cpu().clone() for name, network in networks.items()}
    rates: dict[str, dict[int, float]] = {name: {} for name in networks}
    for number in tqdm(range(args.rounds), desc=f"chunk {chunk}", unit="round", leave=False):
        order = list(networks)[number % len(networks) :] + list(networks)[: number % len(networks)]
        for name in order:
            done = segment(
                forwards(networks[name]), seconds=args.round_seconds, warmup_items=args.num_warm_iter,
                device=job.options.device,
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
                "chunk": chunk,
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


def line(row: dict[str, Any]) -> str:
    """For a person."""
    interval = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.2f} .. {row['ratio_high']:.2f})"
    slower = "  slower" if row["ratio_high"] is not None and row["ratio_high"] < 1 else ""
    return (
        f"  chunk {row['chunk']:4d}  {row['way']:28s} {row['crops_per_sec']:8.1f} crops/s "
        f" {row['ratio']:.2f} x{interval}"
        f"  logits {row['logit_difference']:.1e}, top-1 agrees {row['top1_agreement']:.1%}{slower}"
    )


def write(out: Path, args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """network.csv and run.json."""
    import json

    from bench import machine
    from bench.records import write_whole

    out.mkdir(parents=True)
    with (out / "network.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    info = {"command": ["python", "bench/compare/network.py", *args.argv], "environment": machine.environment()}
    write_whole(out / "run.json", json.dumps(info, indent=1) + "\n")
    say(f"written: {(out / 'network.csv').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
