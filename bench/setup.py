"""From a configuration to networks and images: what every command begins with.

Heavy imports (torch, timm, DALI) happen inside the functions, so that ``--help`` and errors come at once.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from bench.config import LoadingConfig, RunConfig
from bench.distributed import ALONE, Processes
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.cases import ModelCase
    from bench.job import Job
    from bench.resume import NetworkPlan
    from pipelines.data.dataset import Scan

log = logging.getLogger(__name__)


def default_weights(config: RunConfig) -> str:
    """`weights`; by default demo where a family is named with the demo data, else pretrained."""
    from pipelines.data import demo

    network = config.network
    if network.weights:
        return network.weights
    on_demo = config.data.data is None or demo.is_demo(config.data.data)
    named_demo = bool(network.models) and all(name.endswith(":demo") for name in network.models or [])
    return "demo" if on_demo and (network.family or named_demo) and not network.checkpoint else "pretrained"


def resolve(config: RunConfig, processes: Processes = ALONE) -> RunConfig:
    """Decide what depends on the machine: weights, device, backend, workers, tuned settings. Several processes share
    its cores and its GPUs. Raises UserError for a device or backend that cannot be had."""
    network = config.network
    device = resolved_device(network.device, processes)
    channels_last = network.channels_last
    if channels_last is None and not network.preset:  # which decides it later, for each network
        channels_last = device == "cpu"
    network = replace(network, weights=default_weights(config), device=device, channels_last=channels_last)
    return replace(config, network=network, loading=resolved_loading(config.loading, device, processes))


def resolved_device(asked: str | None, processes: Processes = ALONE) -> str:
    """``cpu`` or ``cuda:INDEX``. Raises UserError for a device that this machine lacks."""
    import torch

    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return device
    if not device.startswith("cuda"):
        raise UserError(f"`device` {device} is not supported: cpu or cuda")
    if not torch.cuda.is_available():
        raise UserError(f"`device` {device}: torch finds no NVIDIA GPU with a working driver; use `device` cpu")
    device = device if ":" in device else f"cuda:{processes.local_rank}"
    index, count = torch.device(device).index, torch.cuda.device_count()
    if index >= count:
        raise UserError(f"`device` {device}: this machine has {count} GPUs, numbered from 0")
    torch.cuda.set_device(index)  # what names no device (events, pinned memory, libraries) must not use the first GPU
    return device


def resolved_loading(loading: LoadingConfig, device: str, processes: Processes = ALONE) -> LoadingConfig:
    """The backend, and its settings: as given, else as tuned on this machine, else the defaults."""
    from bench.machine import usable_cores
    from bench.measure.tuned import fastest_cpu_backend, stored
    from pipelines import backends
    from pipelines.backends import BACKENDS
    from pipelines.batch import DEFAULT_HW_LOAD, DEFAULT_PREFETCH

    try:
        fastest = fastest_cpu_backend()
        name, why = backends.choose(loading.data_backend, device=device, fastest_cpu=fastest)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    log.info(why)
    if loading.data_backend == "auto" and fastest is None and not BACKENDS[name].on_gpu:
        log.info("(multicrop-bench tune finds out which CPU backend is the fastest here; auto takes that one then)")
    tuned = stored(name)
    if tuned:
        log.info("settings found by multicrop-bench tune, used where no option is given: %s", tuned)
    workers = max(1, (tuned.get("workers") or usable_cores()) // processes.local_world)
    return replace(
        loading,
        data_backend=name,
        workers=loading.workers or workers,
        prefetch=loading.prefetch or tuned.get("prefetch", DEFAULT_PREFETCH),
        hw_load=tuned.get("hw_load", DEFAULT_HW_LOAD) if loading.hw_load is None else loading.hw_load,
        max_batch_images=loading.max_batch_images or tuned.get("batch_images"),
        hybrid_huffman_threshold=loading.hybrid_huffman_threshold or tuned.get("hybrid_huffman_threshold"),
        crop_operator=unusual_crop_operator(name, device, tuned.get("crop_operator")),
    )


def unusual_crop_operator(backend: str, device: str, tuned: str | None) -> str | None:
    """DALI's operator for the crops where it is not the usual one: because it was found faster on this machine, or
    because the usual one is wrong on this GPU, which is then logged."""
    from pipelines.backends import BACKENDS

    if not BACKENDS[backend].on_gpu:
        return None
    import torch

    from pipelines.backends.crop_ops import working_crop_operator
    from pipelines.batch import CROP_OPERATOR_NAMES

    usual = CROP_OPERATOR_NAMES[0]
    chosen = tuned or working_crop_operator(torch.device(device).index or 0).name
    if chosen != usual and not tuned:
        log.warning("crops are made by DALI's %s: its %s makes wrong ones on this GPU", chosen, usual)
    return chosen if chosen != usual else None


def find_images(config: RunConfig) -> Scan:
    """Scan `data`, or make the demo images and scan those."""
    from pipelines.data import demo, scanning
    from pipelines.data.dataset import left_out_lines
    from pipelines.data.limits import ImageLimits
    from pipelines.text import visible

    root = config.data.data if config.data.data is not None else demo.ensure("val")
    if config.measure.accuracy and not (config.data.labels_file or config.data.class_map):
        scanning.refuse_several_sets(root)
    scan = scanning.scan(
        root,
        workers=config.loading.workers or 1,
        limits=ImageLimits(config.data.max_megapixels, config.data.max_megabytes),
    )
    if len(scan.unreadable):
        log.warning(
            "%d files cannot be read as images and are left out; unreadable.csv lists them", len(scan.unreadable)
        )
        for line in left_out_lines(zip(scan.unreadable["name"], scan.unreadable["reason"], strict=True)):
            log.warning("  %s", line)
    if scan.other_files:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in scan.other_files.items())
        log.info("files that are not images: %s", visible(kinds))
    return scan


def make_job(
    case: ModelCase,
    scan: Scan,
    config: RunConfig,
    processes: Processes = ALONE,
    plan: NetworkPlan | None = None,
    new_classes: tuple[str, ...] | None = None,
) -> Job:
    """Load a network, match the labels, choose how it is run (`preset`) and adapt it if asked. ``config`` is a resolved
    one (``resolve``); ``plan`` holds what was settled when the run began; ``new_classes`` get a new last layer, to be
    trained. Raises UserError for weights that cannot be had."""
    from bench.job import Job
    from bench.measure import preset
    from bench.measure.adapt import adapt
    from models.checkpoints import WeightsError

    chosen = plan.preset if plan else None
    try:
        if config.network.preset:
            chosen = chosen or asdict(preset.choose(case, scan, config))
            config = replace(config, network=replace(config.network, preset=None, **chosen["options"]))
        job = Job(case, scan, config, processes, plan, new_classes)
    except WeightsError as error:
        raise UserError(str(error)) from error
    job.preset = chosen
    if config.network.adapt:
        adapt(job, config.network.adapt)
    return job
