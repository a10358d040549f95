"""Train low, test high: is a network more accurate above the resolution at which it was trained, and does FixRes help?

    multicrop-bench train-low-test-high --out runs/low-high          # demo data; half an hour on two cores
    multicrop-bench train-low-test-high --out runs/quick --train-sizes 48,64 --test-sizes 48,64,96 --epochs 2

FixRes Tables 5 and 9 in small, on the generated demo data. A demo network is trained from scratch at each train size,
once with RandomResizedCrop (Table 5) and once with random crops of a fixed size (Table 9), which show objects at the
size at which the test shows them, so that a higher test resolution should help less. Every network is then scored with
the centre crop at each test size, as it is and after fine-tuning its classifier and last BatchNorm there (test DA).

Writes ``results.csv`` (a row for each network, test size and adaptation), ``answers/*.npz`` (which images are right,
for ``multicrop-bench claims``), ``results.json`` (settings, environment, the training and fine-tuning logs, where each
network peaks), ``networks/*.safetensors`` and a figure beside the published one. The same command continues in a folder
where it was stopped: networks and rows that are there are kept.

Regime: short training, small networks, 16 classes. It says whether the effect is there, not how large it is on
ImageNet. What differs from the paper is in ``about`` of results.json.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench import logs, values
from bench.config import DataConfig, LoadingConfig, OutputConfig, option, to_plain
from bench.errors import UserError, exit_status
from bench.files import LOCK, WRITER, locked
from bench.options import group_flags, parse_group, shared
from pipelines.schemas import DamagedFile, read_json, read_json_lines, read_json_object, required_fields


def count(flag: str, default: int, what: str) -> Any:
    """An option for a positive integer."""
    return option(flag, default=default, metavar="N", parse=values.positive, help=f"{what} (default: {default})")


if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipelines.data.dataset import Dataset
    from pipelines.inputspec import InputSpec
    from pipelines.training_crops import MakeBackend

log = logging.getLogger(__name__)
CROPS = {"train": "RandomResizedCrop", "fixed": "random crop of a fixed size"}  # augmentation -> words
ABOUT = (
    "Not as in the paper: demo data and small networks; RandomResizedCrop's smallest region (settings.min_area, 0.08 "
    "in the paper); AdamW and one cycle in place of SGD and steps; no repeated augmentation and no colour jitter in "
    "training; train images are stored at a short side of 160 pixels, so that fine-tuning above about 140 pixels "
    "enlarges them, while test images are larger than any test size."
)


@dataclass(frozen=True, slots=True)
class TrainLowTestHigh:
    """The options of the experiment."""

    title: ClassVar[str] = "experiment"
    out: Path = option(
        "--out", metavar="DIR", parse=values.path, required=True, help="a new folder, or one to continue in"
    )
    family: str = option("--family", default="resnet", help="whose demo network (default: resnet)")
    train_sizes: list[int] = option(
        "--train-sizes", default=[48, 64, 96], metavar="K,...", parse=values.sizes, help="default: 48,64,96"
    )
    test_sizes: list[int] = option(
        "--test-sizes",
        default=[32, 48, 64, 80, 96, 112, 128],
        metavar="K,...",
        parse=values.sizes,
        help="default: 32,48,64,80,96,112,128",
    )
    images: int = count("--images", 8000, "trained on")
    epochs: int = count("--epochs", 8, "of training")
    min_area: float = option(
        "--min-area",
        default=0.25,
        metavar="X",
        parse=values.ratio,
        help="RandomResizedCrop's smallest region, a share of the image (default: 0.25, as the demo networks are "
        "trained; 0.08 is the paper's, for longer training)",
    )
    val_images: int = count("--val-images", 1000, "scored")
    adapt_images: int = count("--adapt-images", 4000, "of the training set, for fine-tuning")
    adapt_epochs: int = count("--adapt-epochs", 30, "of fine-tuning")
    adapt_batch: int = count("--adapt-batch", 64, "images per step of fine-tuning")
    seed: int = shared(DataConfig, "seed", help="of weights, order and windows (default: 0)")
    data_backend: str = shared(LoadingConfig, "data_backend")
    workers: int = shared(LoadingConfig, "workers", default=1, help="decoding threads (default: 1)")
    figures: bool = shared(OutputConfig, "figures")


OUTSIDE = ("out", "workers", "figures", "data_backend")  # of the options: they change no result on one backend


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    config = parse_group(argv, "multicrop-bench train-low-test-high", __doc__, TrainLowTestHigh)
    logs.set_up()
    interrupted = "interrupted; the same command continues from here"
    return exit_status(lambda: run(config), group_flags(TrainLowTestHigh), interrupted)


# ---- what is trained and scored


@dataclass(frozen=True, slots=True)
class Trained:
    """One network of the experiment, from scratch."""

    crop: str  # a key of CROPS
    train_res: int

    @property
    def name(self) -> str:
        return f"{self.crop}-{self.train_res}"


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one test size. ``newly_correct``, ``newly_wrong``: images that the adaptation changed."""

    family: str
    crop: str  # words of CROPS
    train_res: int
    test_res: int
    S: int
    adaptation: str  # none, or classifier+bn
    images: int
    top1_correct: int
    newly_correct: int
    newly_wrong: int

    @property
    def is_possible(self) -> bool:
        """Whether the counts can be those of ``images``."""
        wrong = self.images - self.top1_correct
        return (
            self.images > 0
            and 0 <= self.newly_correct <= self.top1_correct <= self.images
            and 0 <= self.newly_wrong <= wrong
        )

    def derived(self) -> dict[str, float]:
        """Percent and points, with 95 % intervals (Wilson; Newcombe for the paired gain over no adaptation)."""
        from analysis.stats import paired_difference, wilson

        low, high = wilson(self.top1_correct, self.images)
        gain_low, gain_high = paired_difference(self.newly_correct, self.newly_wrong, self.top1_correct, self.images)
        return {
            "top1": 100 * self.top1_correct / self.images,
            "top1_low": low,
            "top1_high": high,
            "gain": 100 * (self.newly_correct - self.newly_wrong) / self.images,
            "gain_low": gain_low,
            "gain_high": gain_high,
        }


class InMemory:
    """A backend whose crops were made once by another and stay in memory: row i is crop i."""

    name, device = "in-memory", "cpu"

    def __init__(self, crops: torch.Tensor) -> None:
        self.crops = crops  # uint8 [images, K, K, 3]

    def batches(self, rows: np.ndarray) -> Iterator[Any]:
        import torch

        from pipelines.batch import CropBatch, Group, split

        for piece in split(rows, 256):
            crops = self.crops[torch.from_numpy(piece)]
            yield CropBatch([Group(crops, piece, np.zeros(len(piece), np.int32))], piece)

    def close(self) -> None: ...


# ---- the run


def run(config: TrainLowTestHigh) -> int:
    """Train what is missing, score what is missing, write, draw."""
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        return run_locked(config)


def run_locked(config: TrainLowTestHigh) -> int:
    """``run`` in a folder that is locked."""
    log.info("loading torch, timm and the data backend ...")
    started = time.monotonic()
    settings = {name: value for name, value in to_plain(config).items() if name not in OUTSIDE}
    sets, backend_name = Sets(config), choose_backend(config)
    done = open_folder(config.out, {**settings, "backend": backend_name, "data_hashes": sets.hashes()})
    networks = [Trained(crop, K) for crop in CROPS for K in config.train_sizes]
    make = backend_maker(backend_name, config.workers)
    for trained in networks:
        if not weights_path(config.out, trained).exists():
            train(config, trained, sets.train, make)
    for K in config.test_sizes:
        missing = [t for t in networks if (t.name, K) not in done]
        if missing:
            score_at(config, K, missing, sets, make)
    return finish(config, time.monotonic() - started)


class Sets:
    """The demo's training and test images, labelled."""

    def __init__(self, config: TrainLowTestHigh) -> None:
        from models.families import family_named
        from pipelines.data import demo

        family_named(config.family)
        classes = len(demo.CLASSES)
        self.train = _labelled(demo.ensure("train"), config.images, config, classes)
        self.adapt = self.train.subset(min(config.adapt_images, len(self.train)), config.seed)
        self.val = _labelled(demo.ensure("val"), config.val_images, config, classes)

    def hashes(self) -> dict[str, str]:
        from bench.job import data_hash

        return {name: data_hash(data) for name, data in vars(self).items()}


def _labelled(root: Path, images: int, config: TrainLowTestHigh, classes: int) -> Dataset:
    from pipelines.data.labels import label
    from pipelines.data.scanning import scan

    return label(scan(root, workers=config.workers), num_classes=classes).subset(images, config.seed)


def choose_backend(config: TrainLowTestHigh) -> str:
    from pipelines.backends import choose

    try:
        name, why = choose(config.data_backend, device="cpu")
    except RuntimeError as error:
        raise UserError(str(error)) from error
    log.info(why)
    return name


def backend_maker(name: str, workers: int) -> MakeBackend:
    """How TrainingCrops makes its backend."""
    from pipelines.backends import backend
    from pipelines.batch import LoadConfig

    return lambda source, planner: backend(name)(source, planner, LoadConfig(workers=workers))


def open_folder(out: Path, settings: dict[str, Any]) -> set[tuple[str, int]]:
    """(network, test size) pairs that are done. Raises UserError for a folder of another experiment."""
    from pipelines.files import write_whole

    path = out / "settings.json"
    if path.is_file():
        before = read_json_object(path)
        if other := [name for name in settings if before.get(name) != settings[name]]:
            raise UserError(
                f"`out` {out} holds another experiment ({other[0]} is {before.get(other[0])!r} there, "
                f"{settings[other[0]]!r} here): name a new folder"
            )
        return {(entry["network"], entry["test_res"]) for entry in read_log(out)}
    if out.exists() and any(path.name not in (LOCK, WRITER) for path in out.iterdir()):
        raise UserError(f"`out` {out} holds other files: name a new folder")
    (out / "networks").mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=1) + "\n")
    return set()


SCORED = {"network": str, "test_res": int, "rows": list[Row], "fine_tuning": list[dict[str, Any]]}  # a line's fields


def read_log(out: Path) -> list[dict[str, Any]]:
    """scored.jsonl: a line for each network and test size."""
    path = out / "scored.jsonl"
    lines = []
    for number, line in enumerate(read_json_lines(path), 1):
        where = f"{path}, line {number}"
        lines.append(required_fields(line, SCORED, where))
        if not all(row.is_possible for row in lines[-1]["rows"]):
            raise DamagedFile(f"{where}: the counts of `rows` are more than there are images, or below 0")
    return lines


def weights_path(out: Path, trained: Trained) -> Path:
    return out / "networks" / f"{trained.name}.safetensors"


def spec_at(K: int) -> InputSpec:
    """The demo's ratio of S to K at another K."""
    from models.demo.train import SPEC
    from pipelines.inputspec import InputSpec

    return InputSpec(SPEC.S * K // SPEC.K, K, SPEC.interpolation)


# ---- training from scratch


def train(config: TrainLowTestHigh, trained: Trained, data: Dataset, make: MakeBackend) -> None:
    """One network: the demo networks' optimiser and schedule, crops of one size; saved with its log."""
    import torch

    from models.demo import train as demo_train
    from models.fixres import finetune
    from models.fixres.recipe import Recipe
    from models.normalization import Normalize
    from pipelines.files import write_whole
    from pipelines.training_crops import TrainingCrops, epoch_order

    batch_size = demo_train.BATCH
    if len(data) < batch_size:
        raise UserError(f"`images` {len(data)}: training takes batches of {batch_size}")
    recipe = Recipe(
        "classifier", trained.crop, config.epochs, batch_size, jitter=0.0, min_area=config.min_area, seed=config.seed
    )
    crops = TrainingCrops(data, len(data), recipe, spec_at(trained.train_res), make)
    normalise = Normalize(spec_at(trained.train_res), channels_last=True)
    labels = torch.from_numpy(data.table["label"].to_numpy(np.int64).copy())
    net = fresh(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = config.epochs * (len(data) // batch_size)
    training = demo_train.Training(net, demo_train.RECIPES[config.family]["peak_lr"], steps)
    epochs_log = []
    for epoch in range(config.epochs):
        start = time.perf_counter()
        order = epoch_order(config.seed, epoch, len(data))
        batches = finetune.regroup(crops.epoch(epoch, order), batch_size)
        loss = training.epoch((normalise(batch), labels[torch.from_numpy(rows)]) for rows, batch in batches)
        wall_s = round(time.perf_counter() - start, 2)
        epochs_log.append({"epoch": epoch, "loss": loss, "wall_s": wall_s})
        log.info("%s: epoch %d/%d, loss %.3f, %.0f s", trained.name, epoch + 1, config.epochs, loss, wall_s)
    crops.close()
    write_whole(weights_path(config.out, trained).with_suffix(".json"), json.dumps(epochs_log) + "\n")
    finetune.save_weights(net, weights_path(config.out, trained))  # last: it marks a network that is done


def fresh(config: TrainLowTestHigh) -> nn.Module:
    """The untrained demo network: the same numbers for every train size."""
    import torch

    from models.demo import train as demo_train

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return demo_train.build(config.family)


# ---- scoring


def score_at(config: TrainLowTestHigh, K: int, networks: list[Trained], sets: Sets, make: MakeBackend) -> None:
    """All networks at one test size, as they are and adapted there; images are decoded once for all of them."""
    import torch

    from models.fixres import finetune
    from models.fixres.layers import default_tune
    from models.fixres.recipe import Recipe, scaled_lr
    from pipelines.training_crops import TrainingCrops

    adapt_crops, val_crops = (centre_crops(data, K, config.seed, make) for data in (sets.adapt, sets.val))
    val_labels = torch.from_numpy(sets.val.table["label"].to_numpy(np.int64).copy())
    for trained in networks:
        classifier = load(config, trained, K)
        before = right(classifier, val_crops, val_labels)
        recipe = Recipe(
            tune=default_tune(classifier),
            epochs=config.adapt_epochs,
            batch_size=config.adapt_batch,
            lr=scaled_lr(config.adapt_batch),
            seed=config.seed,
        )
        in_memory = TrainingCrops(
            sets.adapt,
            len(sets.adapt),
            recipe,
            classifier.spec,
            lambda *_: InMemory(adapt_crops),  # type: ignore[arg-type,return-value]
        )
        labels = sets.adapt.table["label"].to_numpy(np.int64)
        tuning = finetune.FineTuning(classifier, in_memory, labels, recipe, trunk_batch_size=BATCH_SIZE)
        epochs = [asdict(epoch) for epoch in tuning.run()]
        after = right(classifier, val_crops, val_labels)
        common = (config.family, CROPS[trained.crop], trained.train_res, K, classifier.spec.S)
        rows = [
            Row(*common, "none", len(before), int(before.sum()), 0, 0),
            Row(
                *common, recipe.tune, len(after), int(after.sum()), int((after & ~before).sum()),
                int((before & ~after).sum()),
            ),
        ]  # fmt: skip
        save_answers(config.out, trained, K, sets.val, {"none": before, recipe.tune: after})
        entry = {"network": trained.name, "test_res": K, "rows": [asdict(row) for row in rows], "fine_tuning": epochs}
        with (config.out / "scored.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        log.info(f"{trained.name} at {K}: {100 * before.mean():.1f} %, adapted {100 * after.mean():.1f} %")


def save_answers(out: Path, trained: Trained, K: int, data: Dataset, right: dict[str, np.ndarray]) -> None:
    """answers/NETWORK-K.npz: the images' names, and for each adaptation which of them are right (bool [images])."""
    from pipelines.files import whole_file

    (out / "answers").mkdir(exist_ok=True)
    with whole_file(out / "answers" / f"{trained.name}-{K}.npz") as file:
        np.savez_compressed(file, names=np.array(data.names(np.arange(len(data)))), **right)  # type: ignore[arg-type]


BATCH_SIZE = 64  # crops per forward pass


def centre_crops(data: Dataset, K: int, seed: int, make: MakeBackend) -> torch.Tensor:
    """uint8 [images, K, K, 3], in the order of the rows. Raises UserError when one cannot be read."""
    import torch

    from models.fixres.recipe import Recipe
    from pipelines.training_crops import TrainingCrops

    crops = TrainingCrops(data, len(data), Recipe(seed=seed), spec_at(K), make)
    found = [batch for _, batch in crops.epoch(0, np.arange(len(data)))]
    crops.close()
    if crops.failed:
        raise UserError(f"{len(crops.failed)} demo images in {data.root} cannot be read: remove the folder, run again")
    return torch.cat(found)


def load(config: TrainLowTestHigh, trained: Trained, K: int) -> Any:
    """The trained network, fed at K."""
    from models.checkpoints import read_checkpoint
    from models.classifier import Classifier

    net = fresh(config)
    net.load_state_dict(read_checkpoint(weights_path(config.out, trained))[0])
    return Classifier(net, spec_at(K), name=trained.name, weights=str(weights_path(config.out, trained)))


def right(classifier: Any, crops: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """bool [images]: the network's answer to the centre crop is the label. Batches of one shape, the last padded."""
    import torch

    answers = []
    with torch.inference_mode():
        for piece in crops.split(BATCH_SIZE):
            padded = torch.nn.functional.pad(piece, (0, 0, 0, 0, 0, 0, 0, BATCH_SIZE - len(piece)))
            answers.append(classifier.logits(classifier.prepare(padded))[: len(piece)].argmax(1))
    return (torch.cat(answers) == labels).numpy()


# ---- what is written


def finish(config: TrainLowTestHigh, elapsed_s: float) -> int:
    """results.csv, results.json, the figure, a table; the last line of standard output is JSON."""
    from bench import machine
    from pipelines.files import write_whole

    entries = read_log(config.out)
    rows = sorted(
        (row for entry in entries for row in entry["rows"]),
        key=lambda r: (r.crop != CROPS["train"], r.train_res, r.test_res, r.adaptation != "none"),
    )
    write_csv(config.out / "results.csv", rows)
    info = {
        "about": ABOUT,
        "settings": read_json_object(config.out / "settings.json"),
        "environment": machine.environment(),
        "peaks": peaks(rows),
        "training": {path.stem: read_json(path) for path in sorted((config.out / "networks").glob("*.json"))},
        "fine_tuning": {f"{entry['network']} at {entry['test_res']}": entry["fine_tuning"] for entry in entries},
    }
    write_whole(config.out / "results.json", json.dumps(info, indent=1, allow_nan=False) + "\n")
    print("\n".join(table(rows)))
    figures = [] if not config.figures else draw(config.out)
    result = {
        "out": str(config.out.resolve()),
        "figures": figures,
        "peaks": info["peaks"],
        "elapsed_s": round(elapsed_s),
    }
    print(json.dumps(result))
    return 0


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line for each row, with the derived figures."""
    import pandas as pd

    from pipelines.files import write_whole
    from pipelines.text import csv_text

    write_whole(path, csv_text(pd.DataFrame([{**asdict(row), **row.derived()} for row in rows])))


def peaks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each network, as it is and adapted: top-1 at the train size (None if it was not tested), where it is best."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.crop, row.train_res, row.adaptation), []).append(row)
    found = []
    for (crop, train_res, adaptation), members in groups.items():
        best = max(members, key=lambda row: row.top1_correct)
        own = [row for row in members if row.test_res == train_res]
        found.append(
            {
                "crop": crop,
                "train_res": train_res,
                "adaptation": adaptation,
                "top1_at_train_res": own[0].derived()["top1"] if own else None,
                "best_test_res": best.test_res,
                "best_top1": best.derived()["top1"],
            }
        )
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """Tables 5 and 9 in small, as lines of text: a line a test size, a column a train size."""
    lines = []
    for crop, adaptation in dict.fromkeys((row.crop, row.adaptation) for row in rows):
        cells = {
            (row.test_res, row.train_res): row.derived()["top1"]
            for row in rows
            if (row.crop, row.adaptation) == (crop, adaptation)
        }
        trained = sorted({train for _, train in cells})
        lines += ["", f"{crop}, adaptation: {adaptation}; top-1 on demo data, %", _line("test \\ train", trained)]
        for test in sorted({test for test, _ in cells}):
            lines.append(_line(str(test), [f"{cells[test, train]:.1f}" for train in trained]))
    return lines


def _line(head: str, cells: Sequence[object]) -> str:
    return f"{head:>12}" + "".join(f"{cell!s:>8}" for cell in cells)


def draw(out: Path) -> list[str]:
    """The figure. If it cannot be drawn the numbers are safe: a warning is logged."""
    from analysis.make_figures import make_figures

    try:
        return [str(path) for path in make_figures([out], only=["train_low_test_high"]).paths]
    except Exception as error:
        log.warning("the figure could not be drawn: %s; the numbers are complete", error)
        return []
