"""FixRes: fine-tune the last layers of a network at the resolution at which it will be tested. Or train a new head for
your own classes.

    multicrop-bench finetune --family resnet --img-size 128 --out tuned          # the demo network, on the demo data
    multicrop-bench finetune --models resnet:50 --data imagenet/train --img-size 320 --out tuned
    multicrop-bench finetune --resume tuned                                      # continues where it was stopped

Your own classes, one folder each: a new head on frozen features, in minutes. With ``--tune last-block``, ``from:NAME``
or ``all`` the last block, the module of this name and all behind it, or the whole network is then trained too, at a
lower rate. FixRes at the test size can follow:

    multicrop-bench finetune --model tf_efficientnet_lite0 --weights pip --new-head --data mine/train --img-size 224 \\
        --out head
    multicrop-bench finetune --model tf_efficientnet_lite0 --weights pip --new-head --tune all --augmentation train \\
        --epochs 20 --data mine/train --img-size 224 --out all
    multicrop-bench finetune --model tf_efficientnet_lite0 --checkpoint all/model.safetensors --val-split 0.2 -b 32 \\
        --data mine/train --img-size 288 --out tuned
    multicrop-bench predict --model tf_efficientnet_lite0 --checkpoint tuned/model.safetensors --img-size 288 photos/

Writes ``model.safetensors`` (all weights; ``run --checkpoint`` reads it), ``finetune.json`` (how it was made:
command, hashes of the base weights and of the data, recipe, versions, every epoch, every step's times) and
``state.safetensors`` (what ``--resume`` needs, renewed after each epoch). On a CPU, with the same number of threads, a
resumed run's weights are bit for bit those of a run that was never stopped. ``--new-head --tune all`` or ``last-block``
keeps its first part, the classifier alone, as a folder of the same kind, ``head``.

What is trained in which family, and what the papers say of it: LAYERS and Recipe in models/fixres/finetune.py.

The times of a step are those of FixRes Table 7. A whole forward is ``trunk`` (the frozen part) and ``forward`` (the
tuned part and the loss); ``backward`` includes the update. Where the trunk is run once an image and its output kept,
its time for a batch is taken from that pass (``keep-trunk``), and is paid once.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench import cases, logs, options, values
from bench.config import DataConfig, RunConfig, from_plain, option, switch, to_plain
from bench.errors import UserError, exit_status
from bench.experiments.seeds import SEEDS, run_each
from bench.files import locked, new_folder
from bench.setup import make_job, resolve
from models.fixres.tunes import FROM, TUNES
from pipelines.schemas import DamagedFile, checked_fields, read_json_object

if TYPE_CHECKING:
    from bench.job import Job
    from models.fixres.finetune import Epoch, FineTuning
    from models.fixres.kept import ActivationStore
    from models.fixres.recipe import Recipe
    from pipelines.data.dataset import Scan
    from pipelines.training_crops import TrainingCrops

SCHEMA = 3
NOTE, STATE, MODEL = "finetune.json", "state.safetensors", "model.safetensors"
HEAD = "head"  # folder of the first part of `new_head` with `tune` last-block, from:NAME or all
DEFAULT_EPOCHS, DEFAULT_MOMENTUM, DEFAULT_WEIGHT_DECAY = 60, 0.9, 1e-4  # of sgd
CHECKED_IMAGES = 4  # their crops are compared with the reference before any is trained on
# Options of a run that mean nothing here, and those that this program has in its own way.
NOT_HERE = (
    "crops", "policies", "accuracy", "throughput", "dry_run", "rounds", "round_seconds", "num_warm_iter",
    "latency_queries", "yes", "figures", "real_labels", "valid_labels", "fold", "strict", "amp", "amp_dtype",
    "channels_last",
    "torchcompile", "tf32", "cudnn_benchmark", "preset", "timeout", "model_list", "out", "resume", "img_size",
    "batch_size",
)  # fmt: skip
REPEATED = ("model_kwargs", "num_classes", "interpolation", "crop_mode", "adapt")  # scoring needs them again
log = logging.getLogger(__name__)


def tuned_layers(text: str) -> str:
    """One of TUNES, or from:NAME. Raises ValueError for anything else."""
    named = text.startswith(FROM) and len(text) > len(FROM)
    if text not in TUNES and not named:
        raise ValueError(f"{text!r} is not one of {', '.join(TUNES)}, {FROM}NAME")
    return text


def comes_after_head(tune: str | None) -> bool:
    """Whether a new head is first trained alone."""
    return tune in ("last-block", "all") or (tune or "").startswith(FROM)


@dataclass(frozen=True, slots=True)
class FineTuneConfig:
    """The options of fine-tuning beside those of networks and data, which are a run's."""

    title: ClassVar[str] = "fine-tuning"
    out: Path | None = option("--out", metavar="DIR", parse=values.path, help="a new folder")
    resume: Path | None = option(
        "--resume", metavar="DIR", parse=values.path, help="continue in this folder; takes no other option"
    )
    img_size: int | None = option(
        "--img-size", metavar="K", parse=values.pixels, help="side of the crops at which to tune, pixels"
    )
    tune: str | None = option(
        "--tune",
        metavar="LAYERS",
        parse=tuned_layers,
        help="classifier, classifier+bn, last-block, from:NAME or all (default: classifier+bn where there is a "
        "BatchNorm before the pooling, else classifier; with --new-head classifier). last-block, from:NAME, all: the "
        "last block, the module of this name and what runs after it (from:layer4), or the whole network; with "
        "--new-head after the classifier alone",
    )
    opt: str | None = option(
        "--opt",
        choices=("sgd", "lbfgs"),
        help="lbfgs: one step to the best classifier on fixed features (default with --new-head, where the head is one "
        "linear layer and no option of sgd is given); sgd: as in the papers (default otherwise)",
    )
    new_head: bool = switch(
        "--new-head", help="a new last layer for your own classes: the folders of --data, whose names the weights keep"
    )
    val_split: float | None = option(
        "--val-split",
        metavar="X",
        parse=values.below_one,
        help="share of each class that is held out: scored after each epoch, never trained on; the weights of the best "
        "epoch are the result (default: 0.2 with --new-head, else 0: all are trained on)",
    )
    patience: int | None = option(
        "--patience",
        metavar="N",
        parse=values.positive,
        help="stop after N epochs without a lower loss on the held-out images (default: 10 with --new-head and sgd)",
    )
    augmentation: str = option(
        "--augmentation",
        default="test",
        choices=("test", "test2", "train"),
        help="test: resize and centre crop (default); test2: shifted sideways at random, flipped, colour jitter; "
        "train: RandomResizedCrop, flip, colour jitter",
    )
    epochs: int | None = option(
        "--epochs", metavar="N", parse=values.rounds, help="of sgd (default: 60); the learning rate falls half way"
    )
    seeds: int = option(
        "--seeds",
        default=1,
        metavar="N",
        parse=values.rounds,
        help="do it N times, from --seed on: other orders, other held-out images, other first weights of a new head; "
        "seeds.json says how far the scores spread; what is frozen is run once (default: 1)",
    )
    train_batch: int | None = option(
        "--batch-size",
        "-b",
        metavar="N",
        parse=values.batch,
        help="images per step (default: 512; 32 with --new-head)",
    )
    lr: float | None = option(
        "--lr",
        metavar="X",
        parse=values.above_zero,
        help="default: 0.008 for 512 images, for a new head alone 0.1 for 256; in proportion for others",
    )
    momentum: float | None = option("--momentum", metavar="X", parse=values.below_one, help="of sgd (default: 0.9)")
    weight_decay: float | None = option(
        "--weight-decay",
        metavar="X",
        parse=values.from_zero,
        help="default: 0.0001; with lbfgs 1 / images, as scikit-learn's LogisticRegression",
    )
    label_smoothing: float = option(
        "--label-smoothing",
        default=0.0,
        metavar="X",
        parse=values.below_one,
        help="0.1 is usual with EfficientNet (default: 0)",
    )
    jitter: float = option(
        "--jitter", default=0.4, metavar="X", parse=values.share, help="of colours; not in test (default: 0.4)"
    )
    min_area: float = option(
        "--min-area",
        default=0.08,
        metavar="X",
        parse=values.ratio,
        help="of RandomResizedCrop; the demo's networks: 0.25",
    )
    trunk_batch: int | None = option(
        "--trunk-batch-size",
        metavar="N",
        parse=values.batch,
        help="crops per forward pass of the frozen trunk (default: by size)",
    )
    keep_gib: float = option(
        "--keep-gib",
        default=4.0,
        metavar="X",
        parse=values.from_zero,
        help="memory for the trunk's outputs; 0: none (default: 4)",
    )


@dataclass(frozen=True, slots=True)
class Command:
    """What is asked for: the fine-tuning, and the network and data of a run."""

    own: FineTuneConfig
    run: RunConfig
    argv: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    command = parse(list(sys.argv[1:] if argv is None else argv))
    logs.set_up(command.run.output.verbose, command.run.output.quiet)
    out = command.own.resume or command.own.out
    return exit_status(
        lambda: run(command), flags(), f"interrupted; continue with: multicrop-bench finetune --resume {out}"
    )


# ---- the command line


def parse(argv: list[str]) -> Command:
    """This program's options and a run's in one. Exits with status 2 on a bad command line."""
    parser = options.build_parser("multicrop-bench finetune", __doc__, epilog=None, leave_out=NOT_HERE)
    options.add_options(parser, FineTuneConfig)
    line = options.parse(argv, parser, FineTuneConfig)
    own = FineTuneConfig(**line.own)
    if own.resume is not None:
        if line.given or line.own.keys() != {"resume"}:
            parser.error("--resume DIR takes no other option: the run continues as it was begun")
    elif own.img_size is None or own.out is None:
        parser.error("--img-size K and --out DIR are needed (or --resume DIR)")
    return Command(own, line.config, argv)


def flags() -> dict[str, str]:
    """Parameter -> flag, for error messages."""
    return {**options.flag_names(), **options.group_flags(FineTuneConfig)}


def resumed(folder: Path, name: str = NOTE) -> tuple[Command, dict[str, Any]]:
    """The options with which a folder was begun, and its note. Raises UserError when there is nothing left to do."""
    note = read_note(folder, name)
    if note["status"] == "finished":
        raise UserError(f"`resume` {folder}: this fine-tuning has finished; {MODEL} is there")
    own = replace(from_plain(FineTuneConfig, note["finetune"]), out=folder)
    config = from_plain(RunConfig, note["config"])
    started_in = Path(note["started_in"])  # relative paths began there
    data: dict[str, Any] = {
        name: started_in / value if isinstance(value := getattr(config.data, name), Path) else value
        for name in (one.name for one in fields(config.data))
    }
    checkpoint = config.network.checkpoint and started_in / config.network.checkpoint
    config = replace(config, data=DataConfig(**data), network=replace(config.network, checkpoint=checkpoint))
    return Command(own, config, note["argv"]), note


NOTE_TYPES: dict[str, Any] = {
    "status": str, "finetune": dict[str, Any], "config": dict[str, Any], "started_in": str, "argv": list[str],
}  # fmt: skip


def read_note(folder: Path, name: str = NOTE) -> dict[str, Any]:
    """finetune.json. Raises UserError for a folder without one that this version reads."""
    try:
        note = read_json_object(folder / name)
    except DamagedFile as error:
        raise UserError(
            f"{folder} holds no {name} of a fine-tuning ({error}): name the folder given as `out`"
        ) from error
    if note.get("schema") != SCHEMA:
        raise UserError(
            f"{folder / name} has schema {note.get('schema')!r}; this version reads {SCHEMA}: start a new one"
        )
    try:
        note = checked_fields(note, NOTE_TYPES, str(folder / name))
    except DamagedFile as error:
        raise UserError(f"{error}: start a new one") from error
    if missing := sorted(NOTE_TYPES.keys() - note.keys()):
        raise UserError(f"{folder / name} lacks `{missing[0]}`: start a new one")
    return note


# ---- the run


def run(command: Command, store: ActivationStore | None = None) -> int:
    """Load, check, train epoch by epoch, save after each. ``store``: activations that other seeds kept."""
    if folder := command.own.resume:
        if (folder / SEEDS).is_file():
            with locked(folder):
                return run_seeds(folder, resumed(folder, SEEDS)[0])
        read_note(folder)  # whether it is such a folder
        with locked(folder):
            command, note = resumed(folder)
            return run_into(folder, command, note, store)
    assert command.own.out is not None
    with new_folder(command.own.out, "") as out:
        return run_seeds(out, command) if command.own.seeds > 1 else run_into(out, command, None, store)


def run_seeds(out: Path, command: Command) -> int:
    """One fine-tuning for each seed; those that are finished stay as they are, one that was stopped goes on."""
    from models.fixres.kept import ActivationStore

    first, store = command.run.data.seed, ActivationStore()
    note = command_note(command) | {"seeds": list(range(first, first + command.own.seeds))}

    def one(seed: int, folder: Path) -> dict[str, Any]:
        own, config = replace(command.own, out=folder, seeds=1), command.run
        if not (folder / NOTE).is_file():
            run(Command(own, replace(config, data=replace(config.data, seed=seed)), command.argv), store)
        elif read_note(folder)["status"] != "finished":
            run(Command(FineTuneConfig(resume=folder), RunConfig(), []), store)
        done = read_note(folder)
        return {"loss": done["epochs"][-1]["loss"], **done["result"]}

    done = run_each(out, note, one)
    print(out / SEEDS)
    print(json.dumps({"out": str(out.resolve()), "seeds": done["seeds"], "spread": done["spread"]}))
    return 0


def run_into(out: Path, command: Command, note: dict[str, Any] | None, store: ActivationStore | None) -> int:
    """``run`` in a folder that is locked; ``note``: of the run that is continued."""
    started = time.monotonic()
    if command.own.new_head and comes_after_head(command.own.tune):
        command, note = after_head(out, command, note, store)
    log.info("loading torch, timm and the data backend ...")
    job = load(command)
    watch = Watch(job.device)
    recipe = make_recipe(command.own, job)
    with ExitStack() as opened:
        crops = opened.enter_context(closing(make_crops(job, recipe)))
        tuning = make_tuning(command.own, job, crops, recipe, watch)
        if store is not None:
            from bench.job import data_hash

            tuning.share(store, f"{data_hash(job.data)} {job.config.loading.data_backend}")
        if recipe.val_split:
            centre = opened.enter_context(closing(make_crops(job, replace(recipe, augmentation="test"))))
            tuning.hold_out(held_out_rows(job, recipe), centre)
        fresh = begin(command, job, tuning)
        if note is not None:
            require_same(note, fresh)
        train(out, tuning, watch, note or fresh)
    return finish(out, job, tuning, started)


def after_head(
    out: Path, command: Command, note: dict[str, Any] | None, store: ActivationStore | None
) -> tuple[Command, dict[str, Any] | None]:
    """Train the new classifier alone, unless that is done; what is then trained beginning from it, and the note of the
    latter where it has begun."""
    own, config, head = command.own, command.run, out / HEAD
    if note is None:
        write_note(out, command_note(command))
    if not (head / NOTE).is_file():
        first = FineTuneConfig(
            out=head, img_size=own.img_size, tune="classifier", new_head=True, val_split=own.val_split,
            trunk_batch=own.trunk_batch, keep_gib=own.keep_gib,
        )  # fmt: skip
        shutil.rmtree(head, ignore_errors=True)  # it may have been stopped before its note was written
        run(Command(first, config, command.argv), store)
    elif read_note(head)["status"] != "finished":
        run(Command(FineTuneConfig(resume=head), RunConfig(), []), store)
    network = replace(config.network, weights=None, checkpoint=head / MODEL)
    has_begun = note is not None and "base" in note
    return Command(own, replace(config, network=network), command.argv), note if has_begun else None


def load(command: Command) -> Job:
    """The network at the new size, the training images with labels, the machine's settings."""
    from pipelines.data import demo, scanning

    own, asked = command.own, command.run
    assert own.img_size is not None
    network = replace(asked.network, img_size=[own.img_size], batch_size=own.trunk_batch)
    config = resolve(replace(asked, network=network, measure=replace(asked.measure, crops=None, policies="CC")))
    if network.adapt and (own.tune not in (None, "classifier") or own.new_head):
        raise UserError(
            f"`adapt` {network.adapt} adapts what goes into the classifier, which is then tuned alone (FixRes Table "
            "4): use `tune` classifier without `new_head`"
        )
    found = cases.model_cases(config.network, demo=config.network.weights == "demo")
    if len(found) != 1:
        raise UserError(f"one network at a time is fine-tuned, not {len(found)}: {', '.join(c.label for c in found)}")
    root = config.data.data if config.data.data is not None else demo.ensure("train")
    scan = scanning.scan(root, workers=config.loading.workers or 1)
    if len(scan.unreadable):
        log.warning("%d files cannot be read as images and are left out; %s lists them", len(scan.unreadable), NOTE)
    first_part = own.new_head and not comes_after_head(own.tune)  # the second part's network has these classes already
    return make_job(found[0], scan, config, new_classes=new_classes(scan, config) if first_part else None)


def new_classes(scan: Scan, config: RunConfig) -> tuple[str, ...]:
    """The class folders' names, sorted. Raises UserError where there are none, or another option names the classes."""
    data = config.data
    if data.labels_file or data.class_map or data.label_order or config.network.num_classes:
        raise UserError(
            "`new_head` takes its classes from the folders of `data`: leave out `labels_file`, `class_map`, "
            "`label_order` and `num_classes`"
        )
    folders = {name.split("/")[0] for name in scan.table["name"] if "/" in name}
    if not folders or "tar_label" in scan.table:
        raise UserError(f"`new_head` needs a folder for each class in {scan.root}; there are none")
    return tuple(sorted(folders))


def make_recipe(own: FineTuneConfig, job: Job) -> Recipe:
    """The options, with the paper's rate in proportion to the batch and the tuned layers that the network has."""
    from models.fixres.layers import default_tune
    from models.fixres.recipe import NEW_HEAD_BATCH, PAPER_BATCH, Recipe, new_head_lr, scaled_lr

    tune = own.tune or ("classifier" if own.new_head or job.adapted else default_tune(job.classifier))
    val_split = (0.2 if own.new_head else 0.0) if own.val_split is None else own.val_split
    shared: dict[str, Any] = {
        "tune": tune,
        "augmentation": own.augmentation,
        "label_smoothing": own.label_smoothing,
        "jitter": own.jitter,
        "min_area": own.min_area,
        "val_split": val_split,
        "seed": job.config.data.seed,
    }
    if (own.opt or default_opt(own, job)) == "lbfgs":
        if given := of_sgd(own):
            raise UserError(f"`{given[0]}` is an option of sgd, and `opt` lbfgs has no such thing: leave it out")
        return Recipe(**shared, opt="lbfgs", epochs=1, batch_size=1, weight_decay=own.weight_decay)
    batch_size = own.train_batch or (NEW_HEAD_BATCH if own.new_head else PAPER_BATCH)
    usual_lr = new_head_lr if own.new_head and not comes_after_head(tune) else scaled_lr
    return Recipe(
        **shared,
        epochs=own.epochs or DEFAULT_EPOCHS,
        batch_size=batch_size,
        lr=usual_lr(batch_size) if own.lr is None else own.lr,
        momentum=DEFAULT_MOMENTUM if own.momentum is None else own.momentum,
        weight_decay=DEFAULT_WEIGHT_DECAY if own.weight_decay is None else own.weight_decay,
        patience=own.patience or (10 if own.new_head and val_split else None),
    )


def of_sgd(own: FineTuneConfig) -> list[str]:
    """The options of sgd that were given."""
    names = ("epochs", "train_batch", "lr", "momentum", "patience")
    return [name for name in names if getattr(own, name) is not None]


def default_opt(own: FineTuneConfig, job: Job) -> str:
    """lbfgs for a new head, where it is one linear layer on features that do not change; else sgd."""
    from models.fixres.layers import classifier_parameters, pooled_features, probe_batch
    from models.fixres.linear_head import only_linear_layer

    if not own.new_head or own.tune not in (None, "classifier") or own.augmentation != "test" or of_sgd(own):
        return "sgd"
    network, x = job.classifier, probe_batch(job.classifier)
    found = only_linear_layer(network, classifier_parameters(network, x), pooled_features(network, x))
    return "sgd" if found is None else "lbfgs"


def make_crops(job: Job, recipe: Recipe) -> TrainingCrops:
    """The training pipeline, its crops checked against the reference on a few images (DESIGN rule 7)."""
    from pipelines.backends import backend, reference
    from pipelines.training_crops import TrainingCrops

    config = job.load_config(1)
    crops = TrainingCrops(
        job.data,
        len(job.data),
        recipe,
        job.classifier.spec,
        lambda source, planner: backend(job.config.loading.data_backend)(source, planner, config),
    )
    try:
        reference.check(crops.backend, crops.source, crops.planner, job.rows[:CHECKED_IMAGES])
    except BaseException:
        crops.close()
        raise
    return crops


def held_out_rows(job: Job, recipe: Recipe) -> np.ndarray:
    """bool [images]: those that are scored and not trained on."""
    from models.fixres.held_out import held_out

    names = job.data.names(job.rows)
    return held_out(names, job.data.table["label"].to_numpy(np.int64), recipe.val_split, recipe.seed)


def make_tuning(own: FineTuneConfig, job: Job, crops: TrainingCrops, recipe: Recipe, watch: Watch) -> FineTuning:
    from models.fixres.finetune import FineTuning

    return FineTuning(
        job.classifier,
        crops,
        job.data.table["label"].to_numpy(np.int64),
        recipe,
        trunk_batch_size=job.batch_size,
        device=job.device,
        keep_bytes=int(own.keep_gib * 2**30),
        lap=watch.lap,
    )


def command_note(command: Command) -> dict[str, Any]:
    """What was asked for: all that ``--resume`` needs to ask for it again."""
    return {
        "schema": SCHEMA,
        "what": "FixRes fine-tuning",
        "status": "running",
        "command": shlex.join(["multicrop-bench", "finetune", *command.argv]),
        "argv": command.argv,
        "finetune": to_plain(command.own),
        "config": to_plain(command.run),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "started_in": str(Path.cwd()),
    }


def begin(command: Command, job: Job, tuning: FineTuning) -> dict[str, Any]:
    """What is known before the first step: all of the note but its epochs."""
    from bench import machine
    from bench.job import data_hash, sizes

    data, network, spec = job.data, job.classifier, job.classifier.spec
    return command_note(command) | {
        "model": job.case.name,
        "base": {
            "model": network.name,
            "weights": network.weights,
            "weight_hash": network.weight_hash,
            "train_K": sizes(network)["train_K"],
        },
        "input": {"S": spec.S, "K": spec.K, "interpolation": spec.interpolation, "crop_mode": spec.crop_mode},
        "data": {
            "root": str(data.root),
            "images": len(data),
            "data_hash": data_hash(data),
            "label_rule": data.label_rule,
            "is_demo": data.is_demo,
            "held_out": int(held_out_rows(job, tuning.recipe).sum()) if tuning.recipe.val_split else 0,
            "unreadable_at_scan": data.unreadable[["name", "reason"]].to_dict("records"),
            "backend": job.config.loading.data_backend,
        },
        "recipe": asdict(tuning.recipe),
        "tuned": {
            "classifier": tuning.classifier_names,
            "batch_norm": tuning.batch_norm,
            "block": tuning.block.name if tuning.block else None,
            "parameters": sum(parameter.numel() for parameter in tuning.parameters.values()),
            "of_parameters": network.param_count,
            "split": tuning.split.where,
        },
        "class_names": network.class_names,
        "trunk_batch_size": tuning.trunk_batch_size,
        "device": job.device,
        "adapt": command.run.network.adapt if job.adapted else None,
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
            raise UserError(f"`resume`: {group}.{field} was {was!r} when the run was begun and is {found!r} now")
    for field in ("trunk_batch_size", "device"):
        if note[field] != fresh[field]:
            raise UserError(f"`resume`: {field} was {note[field]!r} when the run was begun and is {fresh[field]!r} now")


def train(out: Path, tuning: FineTuning, watch: Watch, note: dict[str, Any]) -> None:
    """The epochs that are left. After each the state, then the note: it never says more than the state."""
    epochs: list[dict[str, Any]] = tuning.load_state(out / STATE) if (out / STATE).is_file() else []
    if epochs:
        log.info("continuing after epoch %d of %d", len(epochs), tuning.recipe.epochs)
    write_note(out, {**note, "epochs": epochs})
    start = time.perf_counter()
    for epoch in tuning.run():
        wall_s = time.perf_counter() - start
        took = watch.take()
        epochs.append({**asdict(epoch), "wall_s": round(wall_s, 3), "ms": took, **optimum(tuning)})
        tuning.save_state(out / STATE, epochs)
        write_note(out, {**note, "epochs": epochs})
        once_s = sum(sum(ms) for stage, ms in took.items() if stage.startswith("keep-")) / 1e3
        left_s = (wall_s - once_s) * (tuning.recipe.epochs - epoch.epoch - 1)
        log.info(
            f"epoch {epoch.epoch + 1}/{tuning.recipe.epochs}: loss {epoch.loss:.4f}, top-1 of the training crops "
            f"{epoch.top1:.2f} %{held_out_text(epoch)}, {wall_s:.1f} s, at this pace {left_s:.0f} s more"
        )
        start = time.perf_counter()


def held_out_text(epoch: Epoch) -> str:
    if epoch.val_loss is None:
        return ""
    return f", of the held-out images {epoch.val_top1:.2f} % (loss {epoch.val_loss:.4f})"


def finish(out: Path, job: Job, tuning: FineTuning, started: float) -> int:
    """Write the weights, read them back, complete the note; the last line of standard output is JSON."""
    from models.classifier import weight_hash
    from models.fixres.finetune import save_weights

    path = out / MODEL
    save_weights(tuning.classifier.net, path, tuning.classifier.class_names)
    again = read_back(job, path)
    if again != weight_hash(tuning.classifier.net):
        raise RuntimeError(f"{path} does not hold the weights that were written: this is a bug, do not use it")
    note = read_note(out)
    score = score_command(job, path)
    note |= {
        "status": "finished",
        "result": {"file": MODEL, "weight_hash": again, **best_of(tuning, note["epochs"])},
        "unreadable": [
            {"name": job.data.names([f.row])[0], "stage": f.stage, "reason": f.reason}  # type: ignore[arg-type]
            for f in tuning.crops.failed.values()
        ],
        "notes": note["notes"] + tuning.notes,
        "step_ms": step_ms(note["epochs"], note["recipe"]["batch_size"], note["trunk_batch_size"]),
        "score_with": score,
    }
    write_note(out, note)
    for text in tuning.notes:
        log.info(text)
    print(f"{path}\n{out / NOTE}\nscore it with: {score}")
    last = note["epochs"][-1]
    result = {
        "out": str(out.resolve()),
        "checkpoint": str(path.resolve()),
        "weight_hash": again,
        "loss": last["loss"],
        **best_of(tuning, note["epochs"]),
        "step_ms": {stage: values["median"] for stage, values in note["step_ms"].items()},
        "elapsed_s": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))
    return 0


def optimum(tuning: FineTuning) -> dict[str, Any]:
    """What lbfgs found, for the epoch's entry; nothing with sgd."""
    kept = ("weight_decay", "iterations", "gradient", "converged")
    found = tuning.solution
    return {} if found is None else {"optimum": {name: getattr(found, name) for name in kept}}


def best_of(tuning: FineTuning, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores on the held-out images, if any, and the epoch (from 0) whose weights are the result."""
    best = tuning.best_epoch
    return (
        {} if best is None else {name: epochs[best][name] for name in ("val_loss", "val_top1")} | {"best_epoch": best}
    )


def read_back(job: Job, path: Path) -> str:
    """The hash of the weights as ``run --checkpoint`` will see them."""
    from models.loading import load

    spec = job.classifier.spec
    network = job.config.network
    loaded = load(
        job.case.name,
        checkpoint=path,
        img_size=spec.K,
        crop_pct=job.case.crop_pct,
        num_classes=network.num_classes,
        model_kwargs=dict(network.model_kwargs),
        crop_mode=network.crop_mode,
        interpolation=network.interpolation,
    )
    if loaded.spec != spec:
        raise RuntimeError(f"{path} would be fed with {loaded.spec}, tuned was {spec}: this is a bug")
    return loaded.weight_hash


def score_command(job: Job, path: Path) -> str:
    """The command that scores the result, with the options that decide how the network is built and fed."""
    from bench.job import sizes

    command = ["multicrop-bench", "run", "--models", job.case.name, "--checkpoint", str(path)]
    command += ["--img-size", str(job.classifier.spec.K)]
    if job.case.crop_pct is not None:
        command += ["--crop-pct", f"{job.case.crop_pct:g}"]
    names = options.flag_names()
    for name in REPEATED:
        value = getattr(job.config.network, name)
        if value:
            text = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
            command += [names[name], *text]
    if job.adapted:
        command += ["--train-size", str(job.config.network.train_size or sizes(job.classifier)["train_K"])]
    if not job.data.is_demo:
        command += ["--data", "VALIDATION_IMAGES"]
    return shlex.join(command)


def step_ms(epochs: list[dict[str, Any]], batch_size: int, trunk_batch_size: int) -> dict[str, dict[str, float]]:
    """Median, least and most milliseconds of each stage of a step. A kept trunk's are scaled to the batch."""
    took: dict[str, list[float]] = defaultdict(list)
    for epoch in epochs:
        for stage, ms in epoch["ms"].items():
            took[stage] += ms
    if kept := took.pop("keep-trunk", None):
        took["trunk"] = [ms * batch_size / trunk_batch_size for ms in kept] if "trunk" not in took else took["trunk"]
    took.pop("keep-load", None)
    return {stage: _summary(ms) for stage, ms in sorted(took.items())}


def _summary(ms: list[float]) -> dict[str, float]:
    found = {"median": float(np.median(ms)), "min": min(ms), "max": max(ms)}
    return {**{name: round(value, 3) for name, value in found.items()}, "steps": len(ms)}


def write_note(out: Path, note: dict[str, Any]) -> None:
    """finetune.json, whole or not at all; never NaN, which is not JSON."""
    from pipelines.files import write_whole

    write_whole(out / NOTE, json.dumps(note, indent=1, allow_nan=False) + "\n")


class Watch:
    """Milliseconds of each stage; the device is waited for before the clock is read (DESIGN rule 5)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.took: dict[str, list[float]] = defaultdict(list)
        self.last = math.nan

    def lap(self, stage: str) -> None:
        """The stretch since the last lap was this stage; "" if it was none."""
        from bench.measure.clocks import synchronize

        synchronize(self.device)
        now = time.perf_counter()
        if stage:
            self.took[stage].append(round((now - self.last) * 1e3, 3))
        self.last = time.perf_counter()

    def take(self) -> dict[str, list[float]]:
        """What has been collected, and begin anew."""
        took, self.took = dict(self.took), defaultdict(list)
        return took
