"""Train low, test high: is a network more accurate above the resolution at which it was trained, and does FixRes help?

    python bench/experiments/train_low_test_high.py --out runs/low-high                 # demo data; half an hour on two cores
    python bench/experiments/train_low_test_high.py --out runs/quick --train-sizes 48,64 --test-sizes 48,64,96 --epochs 2

FixRes Tables 5 and 9 in small, on the generated demo data. A demo network is trained from scratch at each train size,
once with RandomResizedCrop (Table 5) and once with random crops of a fixed size (Table 9), which show objects at the
size at which the test shows them, so that a higher test resolution should help less. Every network is then scored with
the centre crop at each test size, as it is and after fine-tuning its classifier and last BatchNorm there (test DA).

Writes ``results.csv`` (a row for each network, test size and adaptation), ``results.json`` (settings, environment, the
training and fine-tuning logs, where each network peaks), ``networks/*.safetensors`` and a figure beside the published
one. The same command goes on in a folder where it was stopped: networks and rows that are there are kept.

Regime: short training, small networks, 16 classes. It says whether the effect is there, not how large it is on
ImageNet. What differs from the paper is in ``about`` of results.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import UserError
from bench.values import int_list

if TYPE_CHECKING:
    import torch
    from torch import nn

    from models.fixres.finetune import MakeBackend
    from pipelines.data.dataset import Dataset
    from pipelines.inputspec import InputSpec

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
CROPS = {"train": "RandomResizedCrop", "fixed": "random crop of a fixed size"}  # augmentation -> words
ABOUT = (
    "Not as in the paper: demo data and small networks; RandomResizedCrop's smallest region (settings.min_area, 0.08 "
    "in the paper); AdamW and one cycle in place of SGD and steps; no repeated augmentation and no colour jitter in "
    "training; train images are stored at a short side of 160 pixels, so that fine-tuning above about 140 pixels "
    "enlarges them, while test images are larger than any test size."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    args = parse(argv)
    try:
        return run(args)
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options. Exits with status 2 on a bad command line."""
    parser = argparse.ArgumentParser(
        prog="bench/experiments/train_low_test_high.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one to go on in")
    parser.add_argument("--family", default="resnet", help="whose demo network (default: resnet)")
    parser.add_argument("--train-sizes", type=_sizes, default=[48, 64, 96], metavar="K,...", help="default: 48,64,96")
    parser.add_argument(
        "--test-sizes",
        type=_sizes,
        default=[32, 48, 64, 80, 96, 112, 128],
        metavar="K,...",
        help="default: 32,48,64,80,96,112,128",
    )
    parser.add_argument("--images", type=int, default=8000, metavar="N", help="trained on (default: 8000)")
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="of training (default: 8)")
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.25,
        metavar="X",
        help="RandomResizedCrop's smallest region, a share of the image (default: 0.25, as the demo networks are "
        "trained; 0.08 is the paper's, for longer training)",
    )
    parser.add_argument("--val-images", type=int, default=1000, metavar="N", help="scored (default: 1000)")
    parser.add_argument("--adapt-images", type=int, default=4000, metavar="N", help="of the same set (default: 4000)")
    parser.add_argument("--adapt-epochs", type=int, default=30, metavar="N", help="of fine-tuning (default: 30)")
    parser.add_argument("--adapt-batch", type=int, default=64, metavar="N", help="of fine-tuning (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--data-backend", default="auto", metavar="NAME", help="default: the first that works")
    parser.add_argument("--workers", "-j", type=int, default=1, metavar="N", help="decoding threads (default: 1)")
    parser.add_argument("--no-figures", action="store_true", help="write the numbers only")
    args = parser.parse_args(argv)
    for name in ("images", "epochs", "val_images", "adapt_images", "adapt_epochs", "adapt_batch", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return args


def _sizes(text: str) -> list[int]:
    try:
        return int_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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


class Held:
    """A backend whose crops are in memory, cut once by a real one: row i is crop i. No plan, no images."""

    name, device = "held", "cpu"

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


def run(args: argparse.Namespace) -> int:
    """Train what is missing, score what is missing, write, draw."""
    log.info("loading torch, timm and the data backend ...")
    started = time.monotonic()
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("out", "workers", "no_figures", "data_backend")
    }
    sets, backend_name = Sets(args), choose_backend(args)
    done = open_folder(args.out, {**settings, "backend": backend_name, "data_hashes": sets.hashes()})
    networks = [Trained(crop, K) for crop in CROPS for K in args.train_sizes]
    make = backend_maker(backend_name, args.workers)
    for trained in networks:
        if not weights_path(args.out, trained).exists():
            train(args, trained, sets.train, make)
    for K in args.test_sizes:
        missing = [t for t in networks if (t.name, K) not in done]
        if missing:
            score_at(args, K, missing, sets, make)
    return finish(args, time.monotonic() - started)


class Sets:
    """The demo's training and test images, labelled."""

    def __init__(self, args: argparse.Namespace) -> None:
        from models.families import family_named
        from pipelines.data import demo

        family_named(args.family)
        classes = len(demo.CLASSES)
        self.train = _labelled(demo.ensure("train"), args.images, args, classes)
        self.adapt = self.train.subset(min(args.adapt_images, len(self.train)), args.seed)
        self.val = _labelled(demo.ensure("val"), args.val_images, args, classes)

    def hashes(self) -> dict[str, str]:
        from bench.job import data_hash

        return {name: data_hash(data) for name, data in vars(self).items()}


def _labelled(root: Path, images: int, args: argparse.Namespace, classes: int) -> Dataset:
    from pipelines.data.labels import label
    from pipelines.data.scanning import scan

    return label(scan(root, workers=args.workers), num_classes=classes).subset(images, args.seed)


def choose_backend(args: argparse.Namespace) -> str:
    import pipelines

    try:
        name, why = pipelines.choose(args.data_backend, device="cpu")
    except RuntimeError as error:
        raise UserError(str(error)) from error
    log.info(why)
    return name


def backend_maker(name: str, workers: int) -> MakeBackend:
    """What TrainingCrops asks for a backend."""
    from pipelines import backend
    from pipelines.batch import LoadConfig

    return lambda source, planner: backend(name)(source, planner, LoadConfig(workers=workers))


def open_folder(out: Path, settings: dict[str, Any]) -> set[tuple[str, int]]:
    """(network, test size) pairs that are done. Raises UserError for a folder of another experiment."""
    path = out / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name in settings if before.get(name) != settings[name]]:
            raise UserError(
                f"--out {out} holds another experiment ({other[0]} is {before.get(other[0])!r} there, "
                f"{settings[other[0]]!r} here): name a new folder"
            )
        return {(entry["network"], entry["test_res"]) for entry in read_log(out)}
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} holds other files: name a new folder")
    (out / "networks").mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return set()


def read_log(out: Path) -> list[dict[str, Any]]:
    """scored.jsonl: a line for each network and test size."""
    path = out / "scored.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def weights_path(out: Path, trained: Trained) -> Path:
    return out / "networks" / f"{trained.name}.safetensors"


def spec_at(K: int) -> InputSpec:
    """The demo's ratio of S to K at another K."""
    from models.demo.train import SPEC
    from pipelines.inputspec import InputSpec

    return InputSpec(SPEC.S * K // SPEC.K, K, SPEC.interpolation)


# ---- training from scratch


def train(args: argparse.Namespace, trained: Trained, data: Dataset, make: MakeBackend) -> None:
    """One network: the demo networks' optimiser and schedule, crops of one size; saved with its log."""
    import torch
    from torch.nn import functional
    from torch.optim.lr_scheduler import OneCycleLR

    from bench.files import write_whole
    from models.demo import train as demo_train
    from models.fixres import finetune
    from models.normalization import Normalize

    K, epochs, batch_size = trained.train_res, args.epochs, demo_train.BATCH
    if len(data) < batch_size:
        raise UserError(f"--images {len(data)}: training takes batches of {batch_size}")
    recipe = finetune.Recipe(
        "classifier", trained.crop, epochs, batch_size, jitter=0.0, min_area=args.min_area, seed=args.seed
    )
    crops = finetune.TrainingCrops(data, len(data), recipe, spec_at(K), make)
    normalise, labels = (
        Normalize(spec_at(K), channels_last=True),
        torch.from_numpy(data.table["label"].to_numpy(np.int64).copy()),
    )
    net = fresh(args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(demo_train.parameter_groups(net))
    steps = epochs * (len(data) // batch_size)
    peak = demo_train.RECIPES[args.family]["peak_lr"]
    schedule = OneCycleLR(optimizer, max_lr=peak, total_steps=steps, pct_start=0.1, div_factor=10)
    epochs_log = []
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        order = finetune.epoch_order(args.seed, epoch, len(data))
        net.train()
        for rows, batch in finetune.regroup(crops.epoch(epoch, order), batch_size):
            loss = functional.cross_entropy(
                net(normalise(batch)), labels[torch.from_numpy(rows)], label_smoothing=demo_train.LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), demo_train.CLIP_NORM)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        epochs_log.append(
            {"epoch": epoch, "loss": float(np.mean(losses)), "wall_s": round(time.perf_counter() - start, 2)}
        )
        log.info(
            f"{trained.name}: epoch {epoch + 1}/{epochs}, loss {epochs_log[-1]['loss']:.3f}, {epochs_log[-1]['wall_s']:.0f} s"
        )
    crops.close()
    write_whole(weights_path(args.out, trained).with_suffix(".json"), json.dumps(epochs_log) + "\n")
    finetune.save_weights(net, weights_path(args.out, trained))  # last: it marks a network that is done


def fresh(args: argparse.Namespace) -> nn.Module:
    """The untrained demo network: the same numbers for every train size."""
    import torch

    from models.demo import train as demo_train

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(args.seed)
        return demo_train.build(args.family)


# ---- scoring


def score_at(args: argparse.Namespace, K: int, networks: list[Trained], sets: Sets, make: MakeBackend) -> None:
    """All networks at one test size, as they are and adapted there; images are decoded once for all of them."""
    import torch

    from models.fixres import finetune

    adapt_crops, val_crops = (centre_crops(data, K, args.seed, make) for data in (sets.adapt, sets.val))
    val_labels = torch.from_numpy(sets.val.table["label"].to_numpy(np.int64).copy())
    for trained in networks:
        classifier = load(args, trained, K)
        before = right(classifier, val_crops, val_labels)
        recipe = finetune.Recipe(
            tune=finetune.default_tune(classifier),
            epochs=args.adapt_epochs,
            batch_size=args.adapt_batch,
            lr=finetune.scaled_lr(args.adapt_batch),
            seed=args.seed,
        )
        held = finetune.TrainingCrops(
            sets.adapt,
            len(sets.adapt),
            recipe,
            classifier.spec,
            lambda *_: Held(adapt_crops),  # type: ignore[arg-type,return-value]
        )
        labels = sets.adapt.table["label"].to_numpy(np.int64)
        tuning = finetune.FineTuning(classifier, held, labels, recipe, chunk=CHUNK)
        epochs = [asdict(epoch) for epoch in tuning.run()]
        after = right(classifier, val_crops, val_labels)
        common = (args.family, CROPS[trained.crop], trained.train_res, K, classifier.spec.S)
        rows = [
            Row(*common, "none", len(before), int(before.sum()), 0, 0),
            Row(
                *common, recipe.tune, len(after), int(after.sum()), int((after & ~before).sum()),
                int((before & ~after).sum()),
            ),
        ]  # fmt: skip
        entry = {"network": trained.name, "test_res": K, "rows": [asdict(row) for row in rows], "fine_tuning": epochs}
        with (args.out / "scored.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        log.info(f"{trained.name} at {K}: {100 * before.mean():.1f} %, adapted {100 * after.mean():.1f} %")


CHUNK = 64  # crops per run of a network


def centre_crops(data: Dataset, K: int, seed: int, make: MakeBackend) -> torch.Tensor:
    """uint8 [images, K, K, 3], in the order of the rows. Raises UserError when one cannot be read."""
    import torch

    from models.fixres import finetune

    crops = finetune.TrainingCrops(data, len(data), finetune.Recipe(seed=seed), spec_at(K), make)
    found = [batch for _, batch in crops.epoch(0, np.arange(len(data)))]
    crops.close()
    if crops.failed:
        raise UserError(f"{len(crops.failed)} demo images in {data.root} cannot be read: remove the folder, run again")
    return torch.cat(found)


def load(args: argparse.Namespace, trained: Trained, K: int) -> Any:
    """The trained network, fed at K."""
    from models.checkpoints import read_checkpoint
    from models.classifier import Classifier

    net = fresh(args)
    net.load_state_dict(read_checkpoint(weights_path(args.out, trained))[0])
    return Classifier(net, spec_at(K), name=trained.name, weights=str(weights_path(args.out, trained)))


def right(classifier: Any, crops: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """bool [images]: the network's answer to the centre crop is the label. Chunks of one shape, the last padded."""
    import torch

    answers = []
    with torch.inference_mode():
        for piece in crops.split(CHUNK):
            padded = torch.nn.functional.pad(piece, (0, 0, 0, 0, 0, 0, 0, CHUNK - len(piece)))
            answers.append(classifier.logits(classifier.prepare(padded))[: len(piece)].argmax(1))
    return (torch.cat(answers) == labels).numpy()


# ---- what is written


def finish(args: argparse.Namespace, elapsed_s: float) -> int:
    """results.csv, results.json, the figure, a table; the last line of standard output is JSON."""
    from bench import machine
    from bench.files import write_whole

    log = read_log(args.out)
    rows = sorted(
        (Row(**row) for entry in log for row in entry["rows"]),
        key=lambda r: (r.crop != CROPS["train"], r.train_res, r.test_res, r.adaptation != "none"),
    )
    write_csv(args.out / "results.csv", rows)
    info = {
        "about": ABOUT,
        "settings": json.loads((args.out / "settings.json").read_text(encoding="utf-8")),
        "environment": machine.environment(),
        "peaks": peaks(rows),
        "training": {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((args.out / "networks").glob("*.json"))
        },
        "fine_tuning": {f"{entry['network']} at {entry['test_res']}": entry["fine_tuning"] for entry in log},
    }
    write_whole(args.out / "results.json", json.dumps(info, indent=1, allow_nan=False) + "\n")
    print("\n".join(table(rows)))
    figures = [] if args.no_figures else draw(args.out)
    result = {"out": str(args.out.resolve()), "figures": figures, "peaks": info["peaks"], "elapsed_s": round(elapsed_s)}
    print(json.dumps(result))
    return 0


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        records = [{**asdict(row), **row.derived()} for row in rows]
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    part.replace(path)


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
