"""Print the table of apparent object sizes and draw its figure (analysis/apparent_size.py explains them).

multicrop-bench object-size                       # images of usual shapes
multicrop-bench object-size --data DIR            # the shapes of the images in a folder (only headers are read)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis import style
from analysis.apparent_size import PAPER_K, PAPER_RATIO, PAPER_S, PAPER_SIGMA, Row, scale_factor
from analysis.commands import command, command_parser
from analysis.figures import object_size as figure
from analysis.runs import Inputs
from analysis.text import aligned
from bench import values

HEADINGS = (
    "images", "Eq. 5", "Eq. 5, area 0.08", "drawn again", "by integration", "sampled", "short side to S", "test area",
)  # fmt: skip
COLUMNS = ("paper", "exact_range", "refused", "integrated", "sampled", "as_resized", "test_area")  # fields of Row


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and draw the figure; return the exit status: 0, or 2 for what the user can correct."""
    args = _parse(argv)
    K_test = args.img_size or PAPER_K
    S = args.short_side or PAPER_S * K_test // PAPER_K
    data = figure.made_of(Inputs((), args.data), S, K_test, args.train_size or K_test)
    args.out.mkdir(parents=True, exist_ok=True)
    print(text(data.rows, data.S, data.K_test, data.K_train))
    print(style.save(figure.draw(data), args.out / "object_size.png").resolve())
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("object-size", __doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of images, whose sizes are read")
    parser.add_argument(
        "--img-size",
        type=values.for_argparse(values.pixels),
        metavar="K",
        help="side of the test crop, pixels; default: 224",
    )
    parser.add_argument(
        "--short-side",
        type=values.for_argparse(values.pixels),
        metavar="S",
        help="short side after resizing; default: K x 256 / 224",
    )
    parser.add_argument(
        "--train-size",
        type=values.for_argparse(values.pixels),
        metavar="K",
        help="side of the training crop; default: --img-size",
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    return parser.parse_args(argv)


def text(rows: Sequence[Row], S: int, K_test: int, K_train: int) -> str:
    """The table for the terminal, and what its columns are."""
    lines = [list(HEADINGS)]
    for row in rows:
        values = [getattr(row, column) for column in COLUMNS]
        lines.append([row.images, *("" if value is None else f"{value:.4f}" for value in values)])
    return "\n".join(
        [
            f"apparent size of an object, test / train; short side resized to S = {S}, crops of {K_test} at test time "
            f"and of {K_train} in training",
            *aligned(lines),
            f"Eq. 5: F x S / K_train, F = {scale_factor(*PAPER_SIGMA):.4f} for sigma in {list(PAPER_SIGMA)}; "
            f"the paper prints {PAPER_RATIO:.2f} for 256/224",
            "drawn again: share of RandomResizedCrop's draws that do not fit into the image; most of these are large",
            "by integration, sampled: Eq. 5 with only the windows that fit; below Eq. 5 where windows are refused",
            "short side to S: the same windows, with the short side of the test image resized to S; Eq. 3 assumes a "
            "square image",
            "test area: share of the image that the centre crop covers",
        ]
    )
