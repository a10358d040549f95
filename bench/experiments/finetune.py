"""FixRes: fine-tune the last layers of a network at the resolution at which it will be asked.

    python bench/experiments/finetune.py --family resnet --img-size 128 --out tuned          # the demo network, on the demo data
    python bench/experiments/finetune.py --models resnet:50 --data imagenet/train --img-size 320 --out tuned
    python bench/experiments/finetune.py --resume tuned                                      # goes on where it was stopped

Writes ``model.safetensors`` (all weights; ``bench/run.py --checkpoint`` reads it), ``finetune.json`` (how it was made:
command, hashes of the base weights and of the data, recipe, versions, every epoch, every step's times) and
``state.safetensors`` (what ``--resume`` needs, renewed after each epoch). On a CPU, with the same number of threads, a
resumed run's weights are bit for bit those of a run that was never stopped.

What is trained in which family, and what the papers say of it: LAYERS and Recipe in models/fixres/finetune.py.

The times of a step are those of FixRes Table 7. A whole forward is ``trunk`` (the frozen part) and ``forward`` (the
tuned part and the loss); ``backward`` includes the update. Where the trunk is run once an image and its output kept,
its time for a batch is taken from that pass (``keep-trunk``), and is paid once.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from bench import cases, options
from bench.setup import UserError, default_weights, make_job, make_options, say
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from bench.job import Job
    from models.fixres.finetune import FineTuning, Recipe, TrainingCrops

SCHEMA = 1
NOTE, STATE, MODEL = "finetune.json", "state.safetensors", "model.safetensors"
CHECKED_IMAGES = 4  # their crops are compared with the reference before any is trained on
PATHS = ("data", "checkpoint", "labels_file", "synsets_file", "class_map")
FOREIGN = (  # bench/run.py's flags that mean nothing here
    "crops", "policies", "no_accuracy", "no_throughput", "dry_run", "rounds", "round_seconds", "num_warm_iter", "yes",
    "no_figures", "real_labels", "adapt", "train_size", "fold", "strict", "amp", "amp_dtype",
    "channels_last", "torchcompile",
)  # fmt: skip
REPEATED = ("--model-kwargs", "--num-classes", "--interpolation", "--crop-mode")  # scoring needs them again
SHARED = """flags shared with bench/run.py (see its --help):
  --family --variants --models --weights --checkpoint --num-classes --model-kwargs --crop-pct --crop-mode
  --interpolation --data --labels-file --synsets-file --class-map --limit --seed --data-backend --workers
  --batch-images --hw-load --device"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    args = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        return run(args)
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: python bench/experiments/finetune.py --resume {args.out}", file=sys.stderr)
        return 130


# ---- the command line


def build_parser() -> argparse.ArgumentParser:
    """The flags of fine-tuning; those of networks and data are bench/run.py's."""
    parser = argparse.ArgumentParser(
        prog="bench/experiments/finetune.py",
        description=__doc__,
        epilog=SHARED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on in this folder; takes no other flag")
    parser.add_argument("--img-size", type=int, metavar="K", help="side of the crops at which to tune, pixels")
    parser.add_argument(
        "--tune",
        choices=("classifier", "classifier+bn"),
        help="default: classifier+bn where there is a BatchNorm before the pooling, else classifier",
    )
    parser.add_argument(
        "--augmentation",
        choices=("test", "test2", "train"),
        default="test",
        help="test: resize and centre crop (default); test2: shifted sideways at random, flipped, colour jitter; "
        "train: RandomResizedCrop, flip, colour jitter",
    )
    parser.add_argument("--epochs", type=int, default=60, metavar="N", help="default: 60; the rate falls at the half")
    parser.add_argument("--batch-size", "-b", type=int, metavar="N", help="images per step (default: 512)")
    parser.add_argument("--lr", type=float, metavar="X", help="default: 0.008 for 512 images, in proportion for others")
    parser.add_argument("--momentum", type=float, default=0.9, metavar="X", help="of SGD (default: 0.9)")
    parser.add_argument("--weight-decay", type=float, default=1e-4, metavar="X", help="default: 0.0001")
    parser.add_argument(
        "--label-smoothing", type=float, default=0.0, metavar="X", help="0.1 is usual with EfficientNet (default: 0)"
    )
    parser.add_argument("--jitter", type=float, default=0.4, metavar="X", help="of colours; not in test (default: 0.4)")
    parser.add_argument(
        "--min-area", type=float, default=0.08, metavar="X", help="of RandomResizedCrop; the demo's networks: 0.25"
    )
    parser.add_argument("--chunk", type=int, metavar="N", help="crops per run of the frozen trunk (default: by size)")
    parser.add_argument(
        "--keep-gib", type=float, default=4.0, metavar="X", help="memory for the trunk's outputs; 0: none (default: 4)"
    )
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """This program's options and bench/run.py's in one; ``argv`` is kept. Exits with status 2 on a bad command line.

    ``train_batch`` is --batch-size; ``batch_size`` is --chunk, as bench.setup understands it.
    """
    parser = build_parser()
    own, rest = parser.parse_known_args(argv)
    if own.resume is not None:
        if len(argv) != (1 if argv[0].startswith("--resume=") else 2):
            parser.error("--resume DIR takes no other flag: the run goes on as it was begun")
        return argparse.Namespace(resume=own.resume, out=own.resume, argv=argv)
    if own.img_size is None or own.out is None:
        parser.error("--img-size K and --out DIR are needed (or --resume DIR)")
    shared, default = options.parse(rest), options.parse([])
    if foreign := [name for name in FOREIGN if getattr(shared, name) != getattr(default, name)]:
        parser.error(
            f"flags of bench/run.py that mean nothing here: {', '.join('--' + n.replace('_', '-') for n in foreign)}"
        )
    for flag, value in (("--chunk", own.chunk), ("--batch-size", own.batch_size), ("--img-size", own.img_size)):
        if value is not None and value < 1:
            parser.error(f"{flag} {value} must be 1 or more")
    merged = {**vars(shared), **vars(own), "img_size": [own.img_size], "train_batch": own.batch_size, "argv": argv}
    return argparse.Namespace(**{**merged, "batch_size": own.chunk})


def resumed(folder: Path) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options with which a folder was begun, and its note. Raises UserError when there is nothing to go on with."""
    note = read_note(folder)
    if note["status"] == "finished":
        raise UserError(f"--resume {folder}: this fine-tuning has finished; {MODEL} is there")
    args = parse(note["argv"])
    for name in PATHS:  # as they were meant in the folder where the run was begun
        if getattr(args, name) is not None:
            setattr(args, name, Path(note["started_in"]) / getattr(args, name))
    args.out = folder
    return args, note


def read_note(folder: Path) -> dict[str, Any]:
    """finetune.json. Raises UserError for a folder without one that this version reads."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no {NOTE} of bench/experiments/finetune.py ({error}): name the folder given as --out"
        ) from error
    if note.get("schema") != SCHEMA:
        raise UserError(f"{folder / NOTE} has schema {note.get('schema')!r}; this version reads {SCHEMA}: start anew")
    return note


# ---- the run


def run(args: argparse.Namespace) -> int:
    """Load, check, train epoch by epoch, save after each."""
    note = None
    if getattr(args, "resume", None):
        args, note = resumed(args.resume)
    elif args.out.exists():
        raise UserError(f"--out {args.out} exists; results are never written over others: name a new folder")
    started = time.monotonic()
    say("loading torch, timm and the data backend ...")
    job = load(args)
    watch = Watch(job.options.device)
    recipe = make_recipe(args, job)
    crops = make_crops(job, recipe)
    try:
        tuning = make_tuning(args, job, crops, recipe, watch)
        fresh = begin(args, job, tuning)
        if note is not None:
            require_same(note, fresh)
        train(args.out, tuning, watch, note or fresh)
    finally:
        crops.close()
    return finish(args, job, tuning, started)


def load(args: argparse.Namespace) -> Job:
    """The network at the new size, the training images with labels, the machine's settings."""
    from pipelines.data import dataset, demo

    weights = default_weights(args)
    found = cases.model_cases(args, demo=weights == "demo")
    if len(found) != 1:
        raise UserError(f"one network at a time is fine-tuned, not {len(found)}: {', '.join(c.label for c in found)}")
    settings = make_options(args, weights, [parse_policy("CC")])
    root = args.data if args.data is not None else demo.ensure("train")
    scan = dataset.scan(root, workers=settings.workers)
    if len(scan.unreadable):
        say(f"{len(scan.unreadable)} files are no readable image and are left out; {NOTE} will list them")
    return make_job(found[0], scan, settings)


def make_recipe(args: argparse.Namespace, job: Job) -> Recipe:
    """The options, with the paper's rate in proportion to the batch and the tuned layers that the network has."""
    from models.fixres.finetune import PAPER_BATCH, Recipe, default_tune, scaled_lr

    batch_size = args.train_batch or PAPER_BATCH
    return Recipe(
        tune=args.tune or default_tune(job.classifier),
        augmentation=args.augmentation,
        epochs=args.epochs,
        batch_size=batch_size,
        lr=scaled_lr(batch_size) if args.lr is None else args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        jitter=args.jitter,
        min_area=args.min_area,
        seed=args.seed,
    )


def make_crops(job: Job, recipe: Recipe) -> TrainingCrops:
    """The training pipeline, its crops checked against the reference on a few images (DESIGN rule 7)."""
    from models.fixres.finetune import TrainingCrops
    from pipelines import backend
    from pipelines.backends import reference

    config = job.config(1)
    crops = TrainingCrops(
        job.data,
        len(job.data),
        recipe,
        job.classifier.spec,
        lambda source, planner: backend(job.options.backend)(source, planner, config),
    )
    try:
        reference.check(crops.backend, crops.source, crops.planner, job.rows[:CHECKED_IMAGES])
    except BaseException:
        crops.close()
        raise
    return crops


def make_tuning(args: argparse.Namespace, job: Job, crops: TrainingCrops, recipe: Recipe, watch: Watch) -> FineTuning:
    from models.fixres.finetune import FineTuning

    return FineTuning(
        job.classifier,
        crops,
        job.data.table["label"].to_numpy(np.int64),
        recipe,
        chunk=job.batch_size,
        device=job.options.device,
        keep_bytes=int(args.keep_gib * 2**30),
        lap=watch.lap,
    )


def begin(args: argparse.Namespace, job: Job, tuning: FineTuning) -> dict[str, Any]:
    """What is known before the first step: all of the note but its epochs."""
    from bench import machine
    from bench.job import data_hash

    data, network, spec = job.data, job.classifier, job.classifier.spec
    return {
        "schema": SCHEMA,
        "what": "FixRes fine-tuning",
        "status": "running",
        "command": shlex.join(["python", "bench/experiments/finetune.py", *args.argv]),
        "argv": args.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "started_in": str(Path.cwd()),
        "model": job.case.name,
        "base": {"model": network.name, "weights": network.weights, "weight_hash": network.weight_hash},
        "input": {"S": spec.S, "K": spec.K, "interpolation": spec.interpolation, "crop_mode": spec.crop_mode},
        "data": {
            "root": str(data.root),
            "images": len(data),
            "data_hash": data_hash(data),
            "label_rule": data.label_rule,
            "is_demo": data.is_demo,
            "unreadable_at_scan": data.unreadable[["name", "reason"]].to_dict("records"),
            "backend": job.options.backend,
        },
        "recipe": asdict(tuning.recipe),
        "tuned": {
            "classifier": tuning.classifier_names,
            "batch_norm": tuning.batch_norm,
            "parameters": sum(parameter.numel() for parameter in tuning.parameters.values()),
            "of_parameters": network.param_count,
            "split": tuning.split.where,
        },
        "chunk": tuning.chunk,
        "device": job.options.device,
        "notes": network.notes,
        "environment": machine.environment(),
    }


def require_same(note: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Raise UserError, naming it, when something on which the result depends is no longer what it was."""
    for group, field in (
        ("base", "weight_hash"),
        ("data", "data_hash"),
        ("data", "backend"),
        ("input", "S"),
        ("input", "K"),
        ("recipe", "tune"),
    ):
        was, found = note[group][field], fresh[group][field]
        if was != found:
            raise UserError(f"--resume: {group}.{field} was {was!r} when the run was begun and is {found!r} now")
    for field in ("chunk", "device"):
        if note[field] != fresh[field]:
            raise UserError(f"--resume: {field} was {note[field]!r} when the run was begun and is {fresh[field]!r} now")


def train(out: Path, tuning: FineTuning, watch: Watch, note: dict[str, Any]) -> None:
    """The epochs that are left. After each the state, then the note: it never says more than the state."""
    log: list[dict[str, Any]] = tuning.load_state(out / STATE) if (out / STATE).is_file() else []
    if log:
        say(f"goes on after epoch {len(log)} of {tuning.recipe.epochs}")
    out.mkdir(parents=True, exist_ok=True)
    write_note(out, {**note, "epochs": log})
    start = time.perf_counter()
    for epoch in tuning.run():
        wall_s = time.perf_counter() - start
        took = watch.take()
        log.append({**asdict(epoch), "wall_s": round(wall_s, 3), "ms": took})
        tuning.save_state(out / STATE, log)
        write_note(out, {**note, "epochs": log})
        once_s = sum(sum(ms) for stage, ms in took.items() if stage.startswith("keep-")) / 1e3
        left_s = (wall_s - once_s) * (tuning.recipe.epochs - epoch.epoch - 1)
        say(
            f"epoch {epoch.epoch + 1}/{tuning.recipe.epochs}: loss {epoch.loss:.4f}, top-1 of the training crops "
            f"{epoch.top1:.2f} %, {wall_s:.1f} s, at this pace {left_s:.0f} s more"
        )
        start = time.perf_counter()


def finish(args: argparse.Namespace, job: Job, tuning: FineTuning, started: float) -> int:
    """Write the weights, read them back, complete the note; the last line of standard output is JSON."""
    from models.classifier import weight_hash
    from models.fixres.finetune import save_weights

    path = args.out / MODEL
    save_weights(tuning.classifier.net, path)
    again = read_back(args, job, path)
    if again != weight_hash(tuning.classifier.net):
        raise RuntimeError(f"{path} does not hold the weights that were written: this is a bug, do not use it")
    note = read_note(args.out)
    score = score_command(args, job, path)
    note |= {
        "status": "finished",
        "result": {"file": MODEL, "weight_hash": again},
        "unreadable": [
            {"name": job.data.names([f.row])[0], "stage": f.stage, "reason": f.reason}  # type: ignore[arg-type]
            for f in tuning.crops.failed.values()
        ],
        "notes": note["notes"] + tuning.notes,
        "step_ms": step_ms(note["epochs"], note["recipe"]["batch_size"], note["chunk"]),
        "score_with": score,
    }
    write_note(args.out, note)
    for text in tuning.notes:
        say(text)
    print(f"{path}\n{args.out / NOTE}\nscore it with: {score}")
    last = note["epochs"][-1]
    result = {
        "out": str(args.out.resolve()),
        "checkpoint": str(path.resolve()),
        "weight_hash": again,
        "loss": last["loss"],
        "step_ms": {stage: values["median"] for stage, values in note["step_ms"].items()},
        "elapsed_s": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))
    return 0


def read_back(args: argparse.Namespace, job: Job, path: Path) -> str:
    """The hash of the weights as ``bench/run.py --checkpoint`` will see them."""
    from models import classifier

    spec = job.classifier.spec
    loaded = classifier.load(
        job.case.name, checkpoint=path, img_size=spec.K, crop_pct=job.case.crop_pct, **job.options.load_arguments
    )
    if loaded.spec != spec:
        raise RuntimeError(f"{path} would be fed with {loaded.spec}, tuned was {spec}: this is a bug")
    return loaded.weight_hash


def score_command(args: argparse.Namespace, job: Job, path: Path) -> str:
    """How bench/run.py scores the result, with the flags that decide how the network is built and fed."""
    command = ["python", "bench/run.py", "--models", job.case.name, "--checkpoint", str(path)]
    command += ["--img-size", str(job.classifier.spec.K)]
    if job.case.crop_pct is not None:
        command += ["--crop-pct", f"{job.case.crop_pct:g}"]
    for flag in REPEATED:
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value:
            text = [f"{k}={v}" for k, v in value] if isinstance(value, list) else [str(value)]
            command += [flag, *text]
    if not job.data.is_demo:
        command += ["--data", "VALIDATION_IMAGES"]
    return shlex.join(command)


def step_ms(epochs: list[dict[str, Any]], batch_size: int, chunk: int) -> dict[str, dict[str, float]]:
    """Median, least and most milliseconds of each stage of a step. A kept trunk's are scaled from chunk to batch."""
    took: dict[str, list[float]] = defaultdict(list)
    for epoch in epochs:
        for stage, values in epoch["ms"].items():
            took[stage] += values
    if kept := took.pop("keep-trunk", None):
        took["trunk"] = [ms * batch_size / chunk for ms in kept] if "trunk" not in took else took["trunk"]
    took.pop("keep-load", None)
    return {stage: _summary(ms) for stage, ms in sorted(took.items())}


def _summary(ms: list[float]) -> dict[str, float]:
    found = {"median": float(np.median(ms)), "min": min(ms), "max": max(ms)}
    return {**{name: round(value, 3) for name, value in found.items()}, "steps": len(ms)}


def write_note(out: Path, note: dict[str, Any]) -> None:
    """finetune.json, whole or not at all; never NaN, which is no JSON."""
    from bench.records import write_whole

    write_whole(out / NOTE, json.dumps(note, indent=1, allow_nan=False) + "\n")


class Watch:
    """Milliseconds of each stage; the device is waited for before the clock is read (DESIGN rule 5)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.took: dict[str, list[float]] = defaultdict(list)
        self.last = math.nan

    def lap(self, stage: str) -> None:
        """The stretch since the last lap was this stage; "" if it was none."""
        from bench.clocks import synchronize

        synchronize(self.device)
        now = time.perf_counter()
        if stage:
            self.took[stage].append(round((now - self.last) * 1e3, 3))
        self.last = time.perf_counter()

    def take(self) -> dict[str, list[float]]:
        """What has been collected, and begin anew."""
        took, self.took = dict(self.took), defaultdict(list)
        return took


if __name__ == "__main__":
    sys.exit(main())
