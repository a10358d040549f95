"""Find this machine's fastest pipeline settings, one after the other, and keep them for later runs.

    python bench/compare/tune.py                          # demo images, 224 from 256, at 20 crops; a minute or two
    python bench/compare/tune.py --data imagenet/val --img-size 380 --crops 10
    python bench/compare/tune.py --out DIR                # every rate in DIR/tune.csv, what was kept in DIR/tuned.json

Threads, on a GPU each number of them with each share of the JPEG engine (the best share falls as threads are added),
then prefetch depth, and on a GPU the operator that cuts the crops (of those that cut rightly there), are tried around
what a run takes by default; the sides alternate in rounds, and a setting is kept only where it is faster in every
round. The result lies beside the header scans, in tuned.json, for this machine (its ``machine_id``) and backend;
bench/run.py and bench/compare/loaders.py take from it what no flag says, and say so. Nothing in it changes a prediction on one
backend (but see ``--hw-load``).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import tuned

if TYPE_CHECKING:
    from pipelines.batch import LoadConfig

FIELDS = ("workers", "prefetch", "hw_decoder_load", "cut")  # of LoadConfig
CUT_CROPS = 20  # at least, when operators that cut are compared: one crop would hardly tell them apart
HW_LOADS = (0.0, 0.12, 0.25, 0.5, 0.65, 0.8, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    args = parse(argv)
    try:
        return run(args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was stored", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="bench/compare/tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", "--data-dir", type=Path, metavar="DIR", help="images (default: the demo set)")
    parser.add_argument("--data-backend", default="auto", metavar="NAME", help="default: the first that works")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--img-size", type=int, default=224, metavar="K", help="side of a crop, pixels (224)")
    parser.add_argument("--crop-pct", type=float, default=0.875, metavar="K/S", help="default: 0.875")
    parser.add_argument("--crops", type=int, default=20, metavar="N", help="of each image (20)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--round-seconds", type=float, default=1.0, metavar="S", help="default: 1.0")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder for tune.csv and tuned.json")
    parser.add_argument("--no-store", action="store_true", help="try and print only; later runs take nothing from it")
    args = parser.parse_args(argv)
    if args.out and args.out.exists():
        parser.error(f"--out {args.out} exists; results are never written over others: name a new folder")
    return args


def run(args: argparse.Namespace) -> int:
    """Try, print, store."""
    import numpy as np
    import torch

    from bench.machine import usable_cores
    from pipelines.backends import BACKENDS, backend, choose
    from pipelines.batch import LoadConfig, default_batch_images
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.data import dataset, demo
    from pipelines.data.labels import unlabelled
    from pipelines.inputspec import InputSpec

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, why = choose(args.data_backend, device=device)
    print(why)
    cores = usable_cores()
    data = unlabelled(dataset.scan(args.data or demo.ensure("val"), workers=cores), "not needed")
    spec = InputSpec(S=int(args.img_size / args.crop_pct), K=args.img_size)
    gpu = BACKENDS[name].on_gpu
    cuts = right_cuts() if gpu else [None]
    best = LoadConfig(workers=cores, cut=cuts[0])
    rows = np.resize(np.arange(len(data)), max(len(data), 100_000))

    def rate(config: LoadConfig, crops: int) -> float:
        from bench.measure.clocks import segment

        planner = Planner(spec, union([parse_policy(f"{crops}RC")]))
        config = replace(config, batch_images=default_batch_images(crops, spec.K, gpu=gpu))
        source = backend(name)(data, planner, config)
        try:
            stream = (len(batch.rows) for batch in source.batches(rows))
            took = segment(stream, seconds=args.round_seconds, warmup_items=3, device="cuda:0" if gpu else "cpu")
        finally:
            source.close()
        return took.count / took.duration_s

    measured: list[dict[str, Any]] = []
    for choices in candidates(cores, gpu, cuts):
        crops = max(args.crops, CUT_CROPS) if "cut" in choices[0] else args.crops
        best, found = better(best, choices, partial(rate, crops=crops), args.rounds)
        measured += [{"backend": name, "crops": crops, **row} for row in found]
    kept = {field: value for field in FIELDS if (value := getattr(best, field)) is not None}
    if args.out:
        write(args.out, measured, {tuned.key(name): kept})
    if args.no_store:
        print(f"best for {name} on this machine, not stored: {kept}")
        return 0
    tuned.store(name, kept)
    print(f"stored for {name} on this machine: {kept} ({tuned.path()})")
    return 0


def right_cuts() -> list[str | None]:
    """The operators that cut rightly on the GPU."""
    from pipelines.backends.crop_ops import CUTS, fault_of

    return [name for name, cut in CUTS.items() if fault_of(cut, 0) is None]


def candidates(cores: int, gpu: bool, cuts: Sequence[str | None] = ()) -> list[list[dict[str, Any]]]:
    """Fields of LoadConfig to try; each list is settled before the next is begun."""
    threads = sorted({max(cores // 2, 1), max(cores - 1, 1), cores, cores + cores // 2, 2 * cores})
    engine: list[dict[str, Any]] = [{"hw_decoder_load": load} for load in HW_LOADS] if gpu else [{}]
    return [
        [{"workers": n, **share} for n in threads for share in engine],
        [{"prefetch": n} for n in (1, 2, 3, 4)],
        *([[{"cut": cut} for cut in cuts]] if len(cuts) > 1 else []),
    ]


def better(
    best: LoadConfig, choices: list[dict[str, Any]], rate: Callable[[LoadConfig], float], rounds: int
) -> tuple[LoadConfig, list[dict[str, Any]]]:
    """The choice that is faster than what ``best`` has in every round, else ``best``; and a row for each rate."""
    configs = list(dict.fromkeys([best, *(replace(best, **choice) for choice in choices)]))
    rates: dict[LoadConfig, list[float]] = {config: [] for config in configs}
    for number in range(rounds):
        for config in configs[number % len(configs) :] + configs[: number % len(configs)]:
            rates[config].append(rate(config))
    for config in configs:
        what = ", ".join(f"{field} {getattr(config, field)}" for field in choices[0])
        shown = ", ".join(f"{one:.0f}" for one in rates[config])
        print(f"  {what}: {shown} images/s" + "  (default)" * (config == best), flush=True)
    faster = [c for c in configs[1:] if all(a > b for a, b in zip(rates[c], rates[best], strict=True))]
    rows = [
        {**{field: getattr(config, field) for field in FIELDS}, "round": number, "images_per_sec": one}
        for config, found in rates.items()
        for number, one in enumerate(found)
    ]
    return max(faster, key=lambda config: sorted(rates[config])[rounds // 2], default=best), rows


def write(out: Path, rows: Sequence[dict[str, Any]], kept: dict[str, dict[str, Any]]) -> None:
    """tune.csv and tuned.json."""
    from bench.files import write_whole

    out.mkdir(parents=True)
    with (out / "tune.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_whole(out / tuned.FILE, json.dumps(kept, indent=1) + "\n")
