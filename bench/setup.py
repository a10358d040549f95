"""From the command line to networks and images: what every program of this room begins with.

Heavy imports (torch, timm, DALI) happen inside the functions, so that ``--help`` and errors come at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from bench import cases

if TYPE_CHECKING:
    from bench.job import Job, Options
    from bench.plan import Plan
    from bench.processes import Processes
    from pipelines.crops import Policy
    from pipelines.data.dataset import Scan


class UserError(Exception):
    """Something that the user can mend; the message says how."""


def say(text: str) -> None:
    """A line for the person who waits; standard output is for results. Of several processes, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def default_weights(args: argparse.Namespace) -> str:
    """``--weights``; unless given, demo where a family is asked for on the demo data, else pretrained."""
    from pipelines.data import demo

    if args.weights:
        return args.weights

    on_demo = args.data is None or demo.is_demo(args.data)
    named_demo = bool(args.models) and all(name.strip().endswith(":demo") for name in args.models.split(","))
    return "demo" if on_demo and (args.family or named_demo) and not args.checkpoint else "pretrained"


def make_options(
    args: argparse.Namespace, weights: str, policies: list[Policy], processes: Processes | None = None
) -> Options:
    """Settle what depends on the machine: device, backend, workers. Several processes share its cores and its GPUs."""
    import torch

    import pipelines
    from bench.compare.tune import stored
    from bench.job import Options
    from bench.machine import usable_cores
    from bench.processes import ALONE
    from pipelines.batch import DEFAULT_HW_LOAD, DEFAULT_PREFETCH

    processes = processes or ALONE
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: torch finds no NVIDIA GPU with a working driver; use --device cpu")
        device = device if ":" in device else f"cuda:{processes.local_rank}"
        if (index := torch.device(device).index) >= (there := torch.cuda.device_count()):
            raise UserError(f"--device {device}: this machine has {there} GPUs; GPU {index} (counted from 0) is none")
    elif device != "cpu":
        raise UserError(f"--device {device} is not supported: cpu or cuda")
    try:
        backend, why = pipelines.choose(args.data_backend, device=device)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    say(why)
    tuned = stored(backend)
    if tuned:
        say(f"tuned for this machine by bench/compare/tune.py, where no flag says otherwise: {tuned}")
    return Options(
        policies=policies,
        crops=cases.crop_counts(args.crops, policies),
        weights=weights,
        checkpoint=args.checkpoint,
        load_arguments={
            "num_classes": args.num_classes,
            "model_kwargs": dict(args.model_kwargs),
            "crop_mode": args.crop_mode,
            "interpolation": args.interpolation,
        },
        labels_file=args.labels_file,
        class_map=args.class_map,
        synsets_file=args.synsets_file,
        real_labels=args.real_labels,
        limit=args.limit,
        seed=args.seed,
        backend=backend,
        workers=args.workers or max(1, (tuned.get("workers") or usable_cores()) // processes.local_world),
        prefetch=tuned.get("prefetch", DEFAULT_PREFETCH),
        batch_images=args.batch_images,
        hw_load=tuned.get("hw_decoder_load", DEFAULT_HW_LOAD) if args.hw_load is None else args.hw_load,
        batch_size=args.batch_size,
        device=device,
        amp_dtype=args.amp_dtype,
        channels_last=device == "cpu" if args.channels_last is None else args.channels_last,
        torchcompile=args.torchcompile,
        score=not args.no_accuracy,
        time=not args.no_throughput,
        rounds=args.rounds,
        round_seconds=args.round_seconds,
        num_warm_iter=args.num_warm_iter,
        adapt=args.adapt,
        train_size=args.train_size,
        fold=args.fold,
        processes=processes,
        mmap=not args.no_mmap,
        cut=unusual_cut(backend, device, tuned.get("cut")),
    )


def unusual_cut(backend: str, device: str, tuned: str | None) -> str | None:
    """DALI's operator for the crops where it is not the usual one: by bench/compare/tune.py, or because that is wrong on this
    GPU, which is then said."""
    if backend != "dali-gpu":
        return None
    import torch

    from pipelines.backends.crop_ops import right_cut
    from pipelines.batch import CUT_NAMES

    usual = CUT_NAMES[0]
    chosen = tuned or right_cut(torch.device(device).index or 0).name
    if chosen != usual and not tuned:
        say(f"crops are cut by {chosen}: DALI's {usual} cuts them wrongly on this GPU")
    return chosen if chosen != usual else None


def find_images(args: argparse.Namespace, workers: int) -> Scan:
    """Scan ``--data``, or make the demo images and scan those."""
    from pipelines.data import dataset, demo

    root = args.data if args.data is not None else demo.ensure("val")
    scan = dataset.scan(root, workers=workers)
    if len(scan.unreadable):
        say(f"{len(scan.unreadable)} files are no readable image and are left out; unreadable.csv will list them")
    return scan


def make_job(case: cases.ModelCase, scan: Scan, options: Options, plan: Plan | None = None) -> Job:
    """Load a network and match the labels; as ``plan`` says, where the run was begun before."""
    from bench.job import Job
    from models.classifier import WeightsError

    try:
        return Job(case, scan, options, plan)
    except WeightsError as error:
        raise UserError(str(error)) from error
