"""Find this machine's fastest pipeline settings, one after the other, and keep them for later runs.

    python bench/tune.py                          # demo images, 224 from 256, at 20 crops; a minute or two
    python bench/tune.py --data imagenet/val --img-size 380 --crops 10

Threads, prefetch depth and, on a GPU, the JPEG engine's share are tried in turn around what a run takes by default;
the sides alternate in rounds, and a setting is kept only where it is faster in every round. The result lies beside the
header scans, in tuned.json, for this machine (its ``machine_id``) and backend; bench/run.py takes from it what no flag
says, and says so. Nothing in it changes a prediction on one backend (but see ``--hw-load``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from pipelines.batch import LoadConfig

FILE = "tuned.json"
FIELDS = ("workers", "prefetch", "hw_decoder_load")  # of LoadConfig


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
        prog="bench/tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", "--data-dir", type=Path, metavar="DIR", help="images (default: the demo set)")
    parser.add_argument("--data-backend", default="auto", metavar="NAME", help="default: the first that works")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--img-size", type=int, default=224, metavar="K", help="side of a crop, pixels (224)")
    parser.add_argument("--crop-pct", type=float, default=0.875, metavar="K/S", help="default: 0.875")
    parser.add_argument("--crops", type=int, default=20, metavar="N", help="of each image (20)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--round-seconds", type=float, default=1.0, metavar="S", help="default: 1.0")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Try, print, store."""
    import numpy as np
    import torch

    from bench.machine import usable_cores
    from pipelines import backend, choose, dataset, demo
    from pipelines.batch import LoadConfig, default_batch_images
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.inputspec import InputSpec
    from pipelines.labels import unlabelled

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, why = choose(args.data_backend, device=device)
    print(why)
    cores = usable_cores()
    data = unlabelled(dataset.scan(args.data or demo.ensure("val"), workers=cores), "not needed")
    spec = InputSpec(S=int(args.img_size / args.crop_pct), K=args.img_size)
    planner = Planner(spec, union([parse_policy(f"{args.crops}RC")]))
    gpu = name == "dali-gpu"
    best = LoadConfig(batch_images=default_batch_images(args.crops, spec.K, gpu=gpu), workers=cores)
    rows = np.resize(np.arange(len(data)), max(len(data), 100_000))

    def rate(config: LoadConfig) -> float:
        from bench.clocks import segment

        source = backend(name)(data, planner, config)
        try:
            stream = (len(batch.rows) for batch in source.batches(rows))
            took = segment(stream, seconds=args.round_seconds, warmup_items=3, device="cuda:0" if gpu else "cpu")
        finally:
            source.close()
        return took.count / took.duration_s

    for field, values in candidates(cores, gpu).items():
        best = better(best, field, values, rate, args.rounds)
    kept = {field: getattr(best, field) for field in FIELDS}
    store(name, kept)
    print(f"stored for {name} on this machine: {kept} ({path()})")
    return 0


def candidates(cores: int, gpu: bool) -> dict[str, list[Any]]:
    """Field of LoadConfig -> values to try, in the order in which the fields are settled."""
    out: dict[str, list[Any]] = {
        "workers": sorted({max(cores // 2, 1), max(cores - 1, 1), cores, cores + cores // 2, 2 * cores}),
        "prefetch": [1, 2, 3, 4],
    }
    return {**out, "hw_decoder_load": [0.0, 0.25, 0.5, 0.65, 0.8, 1.0]} if gpu else out


def better(best: LoadConfig, field: str, values: list[Any], rate: Any, rounds: int) -> LoadConfig:
    """The value of one field that is faster than what ``best`` has in every round; else what it has."""
    standing = getattr(best, field)
    values = [standing, *(value for value in values if value != standing)]
    rates: dict[Any, list[float]] = {value: [] for value in values}
    for number in range(rounds):
        for value in values[number % len(values) :] + values[: number % len(values)]:
            rates[value].append(rate(replace(best, **{field: value})))
    for value in values:
        shown = ", ".join(f"{one:.0f}" for one in rates[value])
        print(f"  {field} {value}: {shown} images/s" + "  (default)" * (value == standing), flush=True)
    faster = [v for v in values[1:] if all(a > b for a, b in zip(rates[v], rates[standing], strict=True))]
    return replace(best, **{field: max(faster, key=lambda value: sorted(rates[value])[rounds // 2], default=standing)})


def path() -> Path:
    from pipelines.dataset import cache_folder

    return cache_folder() / FILE


def _all() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: what it held is measured again
        return {}
    return found if isinstance(found, dict) else {}


def key(backend_name: str) -> str:
    from bench.machine import machine_id

    return f"{machine_id()} {backend_name}"


def stored(backend_name: str) -> dict[str, Any]:
    """What was found for a backend on this machine: some of FIELDS, or nothing."""
    found = _all().get(key(backend_name), {})
    valid = {"workers": (1, 4096), "prefetch": (1, 64), "hw_decoder_load": (0, 1)}
    return {f: found[f] for f, (low, high) in valid.items() if _is_between(found.get(f), low, high)}


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def store(backend_name: str, kept: dict[str, Any]) -> None:
    """Written whole or not at all."""
    from bench.records import write_whole

    path().parent.mkdir(parents=True, exist_ok=True)
    write_whole(path(), json.dumps({**_all(), key(backend_name): kept}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
