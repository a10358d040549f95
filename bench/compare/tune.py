"""Find this machine's fastest pipeline settings, one after the other, and keep them for later runs.

    multicrop-bench tune                          # demo images, 224 from 256, at 20 crops; a minute or two
    multicrop-bench tune --data imagenet/val --img-size 380 --crops 10
    multicrop-bench tune --out DIR                # every rate in DIR/tune.csv, what was kept in DIR/tuned.json

First the number of threads (on a GPU each number with each share of the JPEG engine, because the best share falls as
threads are added), then images per batch, on a GPU the image size from which it decodes Huffman codes, the prefetch
depth, then on a GPU DALI's operator for the crops. Candidates alternate in rounds, and one is kept only where it is
faster than the default in every round. On a CPU all backends that work are tuned and then compared: ``--data-backend
auto`` takes the fastest from then on, and runs say so. The result is stored for this machine
and backend (bench.measure.tuned); ``run`` and ``compare loaders`` use it where no option is given. No setting changes a
prediction on one backend (but see ``--hw-load``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench import logs, values
from bench.config import DataConfig, LoadingConfig, MeasureConfig, NetworkConfig, option, switch
from bench.errors import UserError, exit_status
from bench.files import new_folder_if
from bench.measure import tuned
from bench.options import group_flags, parse_group, shared

if TYPE_CHECKING:
    from pipelines.batch import LoadConfig, Source

# Of LoadConfig; ``batch_images`` is the most that a batch holds, where its crops fit into the memory meant for them.
FIELDS = ("workers", "batch_images", "hybrid_huffman_threshold", "prefetch", "hw_load", "crop_operator")
BATCH_IMAGES = {True: (64, 128, 256, 512), False: (16, 32, 64)}  # on a GPU, on a CPU
HUFFMAN_PIXELS = (250_000, 60_000)  # below DALI's default, which is 1,000,000
MIN_OPERATOR_CROPS = 20  # when operators for the crops are compared: at one crop they hardly differ
HW_LOADS = (0.0, 0.12, 0.25, 0.5, 0.65, 0.8, 1.0)
STREAM_IMAGES = 100_000  # a timed segment ends long before
WARMUP_BATCHES = 3


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """The options of tuning."""

    title: ClassVar[str] = "tuning"
    data: Path | None = shared(DataConfig, "data")
    data_backend: str = shared(LoadingConfig, "data_backend")
    device: str | None = shared(NetworkConfig, "device")
    img_size: int = option(
        "--img-size", default=224, metavar="K", parse=values.pixels, help="side of a crop, pixels (default: 224)"
    )
    crop_pct: float = option(
        "--crop-pct", default=0.875, metavar="K/S", parse=values.ratio, help="crop over short side (default: 0.875)"
    )
    crops: int = option("--crops", default=20, metavar="N", parse=values.crops, help="of each image (default: 20)")
    rounds: int = shared(MeasureConfig, "rounds", default=3, help="repetitions of every timing (default: 3)")
    round_seconds: float = shared(MeasureConfig, "round_seconds")
    out: Path | None = option(
        "--out", metavar="DIR", parse=values.path, help="a new folder for tune.csv and tuned.json"
    )
    store: bool = switch("--no-store", default=True, help="measure and print only; later runs take nothing from it")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parse_group(argv, "multicrop-bench tune", __doc__, TuneConfig)
    logs.set_up()
    return exit_status(lambda: tune(options), group_flags(TuneConfig), "interrupted; nothing was stored")


def tune(options: TuneConfig) -> int:
    """Measure, print, store. Raises UserError for a folder that exists, a device or backend that cannot be had."""
    with new_folder_if(options.out) as out:
        return tune_into(out, options)


def tune_into(out: Path | None, options: TuneConfig) -> int:
    """``tune``; the measurements are also written to ``out`` if that is given."""
    from bench.machine import usable_cores
    from pipelines.data import demo, scanning
    from pipelines.data.labels import unlabelled

    names = tuned_backends(options)
    data = unlabelled(scanning.scan(options.data or demo.ensure("val"), workers=usable_cores()), "not needed")
    best: dict[str, LoadConfig] = {}
    measured: list[dict[str, Any]] = []
    for name in names:
        best[name], rows = best_settings(options, name, data)
        measured += rows
    kept: dict[str, dict[str, Any]] = {
        name: {field: value for field in FIELDS if (value := getattr(config, field)) is not None}
        for name, config in best.items()
    }
    if len(names) > 1:
        rates = {name: partial(rate_of(options, name, data, options.crops), best[name]) for name in names}
        kept[tuned.AUTO] = {"data_backend": fastest(rates, options.rounds)}
    if out:
        write(out, measured, {tuned.key(name): found for name, found in kept.items()})
    for name, found in kept.items():
        if options.store:
            tuned.store(name, found)
        where = f"stored ({tuned.path()})" if options.store else "not stored"
        print(f"best for {name} on this machine, {where}: {found}")
    return 0


def tuned_backends(options: TuneConfig) -> list[str]:
    """The backend that is named, or that ``auto`` takes on a GPU; on a CPU all that work, which are then compared.
    Raises UserError for a device or backend that cannot be had."""
    from bench.setup import resolved_device
    from pipelines.backends import BACKENDS, choose, unusable

    device = resolved_device(options.device)
    try:
        name, why = choose(options.data_backend, device=device)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    print(why)
    if options.data_backend != "auto" or BACKENDS[name].on_gpu:
        return [name]
    return [one for one, entry in BACKENDS.items() if not entry.on_gpu and unusable(one, device) is None]


def best_settings(options: TuneConfig, name: str, data: Source) -> tuple[LoadConfig, list[dict[str, Any]]]:
    """One backend's fastest settings, and a row of tune.csv for each rate."""
    from bench.machine import usable_cores
    from pipelines.backends import BACKENDS
    from pipelines.batch import MOST_BATCH_IMAGES, LoadConfig

    cores, gpu = usable_cores(), BACKENDS[name].on_gpu
    operators = working_crop_operators(options.img_size) if gpu else [None]
    best = LoadConfig(batch_images=MOST_BATCH_IMAGES[gpu], workers=cores, crop_operator=operators[0])
    measured: list[dict[str, Any]] = []
    print(f"{name}:")
    for choices in candidates(cores, gpu, operators):
        crops = max(options.crops, MIN_OPERATOR_CROPS) if "crop_operator" in choices[0] else options.crops
        best, found = better(best, choices, rate_of(options, name, data, crops), options.rounds)
        measured += [{"backend": name, "crops": crops, **row} for row in found]
    return best, measured


def fastest(rates: Mapping[str, Callable[[], float]], rounds: int) -> str:
    """The backend, at its best settings, that was faster than the first one in every round; else the first one."""
    found: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(rounds):
        order = list(rates)[number % len(rates) :] + list(rates)[: number % len(rates)]
        for name in order:
            found[name].append(rates[name]())
    for name, own in found.items():
        print(f"  {name}: {', '.join(f'{one:.0f}' for one in own)} images/s", flush=True)
    first, *others = rates
    faster = [name for name in others if all(a > b for a, b in zip(found[name], found[first], strict=True))]
    return max(faster, key=lambda name: sorted(found[name])[rounds // 2], default=first)


def rate_of(options: TuneConfig, name: str, data: Source, crops: int) -> Callable[[LoadConfig], float]:
    """A function that measures images per second of the pipeline alone with given settings."""
    import numpy as np

    from bench.measure.clocks import segment
    from pipelines.backends import BACKENDS, backend
    from pipelines.batch import default_batch_images, size_hint
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.inputspec import InputSpec

    gpu = BACKENDS[name].on_gpu
    spec = InputSpec(S=int(options.img_size / options.crop_pct), K=options.img_size)
    planner = Planner(spec, union([parse_policy(f"{crops}RC")]))
    images = len(data)  # type: ignore[arg-type]
    rows = np.resize(np.arange(images), max(images, STREAM_IMAGES))

    hint = size_hint(data.sizes(np.arange(images))) if gpu else None

    def rate(config: LoadConfig) -> float:
        fitting = default_batch_images(crops, spec.K, gpu=gpu, most=config.batch_images)
        source = backend(name)(data, planner, replace(config, batch_images=fitting, size_hint=hint))
        try:
            stream = (len(batch.rows) for batch in source.batches(rows))
            device = "cuda:0" if gpu else "cpu"
            done = segment(stream, seconds=options.round_seconds, warmup_items=WARMUP_BATCHES, device=device)
        finally:
            source.close()
        return done.count / done.duration_s

    return rate


def working_crop_operators(K: int) -> list[str | None]:
    """DALI's operators that make correct crops on this GPU, without what K x K pixels rule out."""
    from pipelines.backends.crop_ops import CROP_OPERATORS, fault_of
    from pipelines.batch import crop_operator_at

    safe = {
        name: operator for name, operator in CROP_OPERATORS.items() if crop_operator_at(K, name, on_gpu=True) == name
    }
    return [name for name, operator in safe.items() if fault_of(operator, 0) is None]


def candidates(cores: int, gpu: bool, operators: Sequence[str | None] = ()) -> list[list[dict[str, Any]]]:
    """Fields of LoadConfig to try; each list is decided before the next one."""
    threads = sorted({max(cores // 2, 1), max(cores - 1, 1), cores, cores + cores // 2, 2 * cores})
    engine: list[dict[str, Any]] = [{"hw_load": load} for load in HW_LOADS] if gpu else [{}]
    return [
        [{"workers": n, **share} for n in threads for share in engine],
        [{"batch_images": n} for n in BATCH_IMAGES[gpu]],
        *([[{"hybrid_huffman_threshold": n} for n in HUFFMAN_PIXELS]] if gpu else []),
        [{"prefetch": n} for n in (1, 2, 3, 4)],
        *([[{"crop_operator": name} for name in operators]] if len(operators) > 1 else []),
    ]


def better(
    best: LoadConfig, choices: list[dict[str, Any]], rate: Callable[[LoadConfig], float], rounds: int
) -> tuple[LoadConfig, list[dict[str, Any]]]:
    """The choice that is faster than ``best`` in every round, else ``best``; and a row for each rate."""
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
    import pandas as pd

    from pipelines.files import write_whole
    from pipelines.text import csv_text

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "tune.csv", csv_text(pd.DataFrame(list(rows))))
    write_whole(out / tuned.FILE, json.dumps(kept, indent=1) + "\n")
