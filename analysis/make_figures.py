"""Draw every figure that some runs, or the papers' numbers, allow.

    multicrop-bench figures runs/resnet-20261121-120000             # into the run's own folder
    multicrop-bench figures runs/a runs/b --out figures             # several runs, side by side
    multicrop-bench figures runs/low-high                           # the folder of an experiment: its own figure
    multicrop-bench figures --published --out figures               # the papers' figures; needs no run
    multicrop-bench figures --data DIR --only longer_side           # from a folder of images; needs no run
    multicrop-bench figures RUN --only accuracy_vs_crops,throughput_vs_crops

Also runs as `python analysis/make_figures.py`. Prints the paths, then every figure that was not drawn, with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python analysis/make_figures.py`: search the repo root, not analysis/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis.commands import command, command_parser
from analysis.drawing import make_figures
from analysis.figures import FIGURES, NOT_PRINTED

__all__ = ["main", "make_figures"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    args = parse(argv)
    only = [name.strip() for name in args.only.split(",")] if args.only else []
    drawn = make_figures(args.runs, args.out, only=only, published=args.published, data=args.data)
    for path in drawn.paths:
        print(path)
    not_drawn = dict(drawn.not_drawn)
    if args.published and not only:
        not_drawn |= {f"the papers' figure {number}": reason for number, reason in NOT_PRINTED.items()}
    if not_drawn:
        print("\nnot drawn:")
        for name, reason in not_drawn.items():
            print(f"  {name}: {reason}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked options. Exits with status 2 on a bad command line."""
    parser = command_parser("figures", __doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs and of experiments")
    parser.add_argument("--published", action="store_true", help="the papers' figures, from their printed numbers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the only folder given, else figures/")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of images, where the run's own has moved")
    args = parser.parse_args(argv)
    if args.published and args.runs:
        parser.error(
            "--published draws the papers' figures and takes no runs; figures of runs show the printed numbers"
        )
    if not (args.published or args.runs or args.data):
        parser.error("give folders of runs, or --published, or --data DIR")
    return args


if __name__ == "__main__":
    sys.exit(main())
