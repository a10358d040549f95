"""The command line of bench/run.py. Names are timm's where timm has one."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from bench.cases import int_list
from pipelines import BACKENDS
from pipelines.crops import GRAMMAR
from pipelines.inputspec import INTERPOLATIONS

EXAMPLES = """examples:
  python bench/run.py --family nfnet --crops 1,2,5,10,20
      the demo network of the family on generated demo images: nothing is downloaded
  python bench/run.py --family nfnet --crops 1,2,5,10,20 --data imagenet/val
      the family's smallest published network on your images; --variants 0,3 or all for more
  python bench/run.py --models resnet50.a1_in1k,torchvision:squeezenet1_0 --policies CC,10RC+10MRC --data imagenet/val
      any timm or torchvision network
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed and checked options; ``argv`` is kept as given. Exits with status 2 on a bad command line."""
    import sys

    parser = build_parser()
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if not args.crops and not args.policies:
        args.crops = [1, 2, 5, 10, 20]
    if args.amp and args.amp_dtype == "float32":
        args.amp_dtype = "float16"
    if args.no_accuracy and args.no_throughput:
        parser.error("--no-accuracy and --no-throughput together leave nothing to do")
    if args.model_list:
        args.models = ",".join(filter(None, [args.models, *_listed(parser, args.model_list)]))
    if args.data is None and (args.labels_file or args.class_map or args.synsets_file):
        parser.error("--labels-file, --synsets-file and --class-map go with --data DIR")
    if args.real_labels and args.no_accuracy:
        parser.error("--real-labels and --no-accuracy contradict each other: labels are for scoring")
    return args


def _listed(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--model-list {path} cannot be read: {error}")
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        parser.error(f"--model-list {path} names no network: write one name a line")
    return names


def given(argv: list[str]) -> dict[str, Any]:
    """The flags that a command line names, with their values, and no defaults."""
    parser, unset = build_parser(), object()
    names = vars(parser.parse_args([]))
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset))))
    return {name: value for name, value in found.items() if value is not unset}


def build_parser() -> argparse.ArgumentParser:
    """All flags, by what they are about."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description="Accuracy and images per second of an image classifier asked about several crops of each image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _what(parser.add_argument_group("what to run"))
    _models(parser.add_argument_group("networks"))
    _data(parser.add_argument_group("data"))
    _speed(parser.add_argument_group("speed"))
    _run(parser.add_argument_group("the run"))
    return parser


def _what(group: Any) -> None:
    group.add_argument("--family", help="resnet, mobilenet, efficientnet or nfnet")
    group.add_argument(
        "--variants",
        metavar="LIST",
        help="members of the family, such as 0,3 or ns:l2 or all (default: the smallest; the demo has one)",
    )
    group.add_argument("--models", "--model", "-m", metavar="NAMES", help="timm names or torchvision:NAME, by commas")
    group.add_argument(
        "--model-list", type=Path, metavar="FILE", help="such names in a text file, one a line; # begins a comment"
    )
    group.add_argument(
        "--crops",
        type=_ints,
        metavar="LIST",
        help="crop counts: throughput is timed at each; accuracy is scored for CC, nRC and CC+(n-1)RC at every n up to "
        "the largest, which costs no more (default: 1,2,5,10,20 unless --policies is given)",
    )
    group.add_argument(
        "--policies", metavar="LIST", help=f"{GRAMMAR}; table1 and table8: all rows of that table of the MID paper"
    )
    group.add_argument("--no-accuracy", action="store_true", help="measure speed only; needs no labels")
    group.add_argument("--no-throughput", action="store_true", help="measure accuracy only")
    group.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")


def _models(group: Any) -> None:
    group.add_argument(
        "--weights",
        choices=("pretrained", "random", "demo"),
        help="default: demo on the demo data with --family, else pretrained (downloaded once); random: speed only",
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights from a .safetensors, .pt or .pth file")
    group.add_argument("--num-classes", type=int, metavar="N", help="default: the weights' own number")
    group.add_argument("--model-kwargs", nargs="*", type=_pair, default=[], metavar="KEY=VALUE", help="for the network")
    group.add_argument(
        "--img-size",
        type=_ints,
        metavar="K,...",
        help="side of the square crop, pixels; several: each is a case of its own; a..b: each from a to b, a:b:step: "
        "in steps, both ends included",
    )
    group.add_argument(
        "--crop-pct", type=_ratios, metavar="K/S,...", help="crop side over the resized short side; several: likewise"
    )
    group.add_argument(
        "--crop-mode", choices=("center", "squash", "border"), help="center keeps the aspect ratio (default)"
    )
    group.add_argument(
        "--adapt",
        choices=("frechet", "gaussian"),
        help="map the activations at another --img-size back to what they were in training, by their statistics on the "
        "scored images (FixRes, supplement A.1, A.2); no training, no labels",
    )
    group.add_argument("--train-size", type=_positive, metavar="K", help="of --adapt, where the weights do not say it")
    group.add_argument("--interpolation", metavar="NAME", help=f"of the resize: {' or '.join(INTERPOLATIONS)}")


def _data(group: Any) -> None:
    group.add_argument(
        "--data",
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="a folder of images, or tar shards, which are not unpacked: val.tar, 'shards-{000..099}.tar', 'val/*.tar' "
        "(default: the demo set)",
    )
    group.add_argument("--labels-file", type=Path, metavar="FILE", help="labels of a flat folder: devkit, text or CSV")
    group.add_argument("--synsets-file", type=Path, metavar="FILE", help="the devkit's wnids in the devkit's order")
    group.add_argument("--class-map", type=Path, metavar="FILE", help="class names in the model's order, as in timm")
    group.add_argument(
        "--real-labels",
        type=Path,
        metavar="FILE",
        help="score a second set of labels too, several classes an image: ImageNet's real.json, as in timm, or {name: "
        "[classes]}; images without any are left out of that score",
    )
    group.add_argument("--limit", type=int, metavar="N", help="only N images, chosen by --seed and their names")
    group.add_argument(
        "--seed", type=int, default=0, help="of the random windows, of --limit, of random weights (default: 0)"
    )
    group.add_argument(
        "--data-backend", default="auto", choices=("auto", *BACKENDS), help="default: the first of these that works"
    )
    group.add_argument(
        "--workers",
        "-j",
        type=_positive,
        metavar="N",
        help="decoding threads (default: bench/compare/tune.py's, or all)",
    )
    group.add_argument(
        "--batch-images", type=_positive, metavar="N", help="images per pipeline batch (default: by memory)"
    )
    group.add_argument(
        "--no-mmap",
        action="store_true",
        help="read image files plainly, for network file systems (DALI maps them into memory; tar shards never are)",
    )
    group.add_argument(
        "--hw-load",
        type=_share,
        metavar="X",
        help="share of a batch for the GPU's JPEG engine (default: bench/compare/tune.py's, or 0.65)",
    )


def _speed(group: Any) -> None:
    group.add_argument(
        "--batch-size",
        "-b",
        type=_positive_or_auto,
        metavar="N",
        help="crops per forward, the network's fixed chunk; auto: the largest that fits; halved when memory gives out "
        "(default: by size)",
    )
    group.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    group.add_argument("--amp", action="store_true", help="run the network under autocast")
    group.add_argument(
        "--amp-dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="implies --amp"
    )
    group.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="NHWC memory format (default: on a CPU, where crops lie so already and most networks run faster)",
    )
    group.add_argument(
        "--fold",
        action="store_true",
        help="fold BatchNorm into convolutions and NFNet's weight standardisation into weights; answers move by less "
        "than 1e-4 of the largest logit (bench/compare/network.py shows the gain)",
    )
    group.add_argument("--torchcompile", action="store_true", help="torch.compile the network")
    group.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="repetitions of every timing (default: 5)"
    )
    group.add_argument(
        "--round-seconds", type=_seconds, default=1.0, metavar="S", help="length of a timed segment (default: 1.0)"
    )
    group.add_argument(
        "--num-warm-iter", type=_positive, default=2, metavar="N", help="batches before each timed segment (default: 2)"
    )


def _run(group: Any) -> None:
    group.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: runs/<name>-<time>)")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with an interrupted run: its folder says all that it needs; what is done is not repeated",
    )
    group.add_argument(
        "--timeout", type=_seconds_long, metavar="S", help="give up on a network after so long, and go on to the next"
    )
    group.add_argument(
        "--yes", action="store_true", help="go on although the run is expected to take over half an hour"
    )
    group.add_argument(
        "--strict", action="store_true", help="an image that cannot be read is an error (default: listed and left out)"
    )
    group.add_argument("--no-figures", action="store_true", help="write the numbers only")


def _ints(text: str) -> list[int]:
    try:
        return int_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ratios such as 0.8,0.875") from None
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise argparse.ArgumentTypeError(f"{text!r}: a crop ratio is above 0 and at most 1")
    return ratios


def _seconds(text: str) -> float:
    return _between(text, 1e-3, 3600.0, "a number of seconds, at most an hour")


def _seconds_long(text: str) -> float:
    return _between(text, 1e-3, 1e7, "a number of seconds")


def _share(text: str) -> float:
    return _between(text, 0.0, 1.0, "a share from 0 to 1")


def _between(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:  # nan is neither
        raise argparse.ArgumentTypeError(f"{text!r} is no {what.removeprefix('a ')}")
    return value


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _positive_or_auto(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
