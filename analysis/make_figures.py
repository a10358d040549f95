"""Draw every figure that some runs, or the papers' numbers, allow.

    python analysis/make_figures.py runs/resnet-20261121-120000             # into the run's own folder
    python analysis/make_figures.py runs/a runs/b --out figures             # several runs, side by side
    python analysis/make_figures.py --published --out figures               # the papers' figures; needs no run
    python analysis/make_figures.py --data DIR --only longer_side           # from a folder of images; needs no run
    python analysis/make_figures.py RUN --only accuracy_vs_crops,throughput_vs_crops

The paths are printed; then every figure that could not be drawn, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python analysis/make_figures.py`: search the repo root, not analysis/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis import runs, style
from analysis.figures import FIGURES, NOT_PRINTED
from bench.records import Incomparable


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend."""
    args = parse(argv)
    try:
        source = runs.Source(runs.read(args.runs), args.data)
        drawn, undrawn = make(source, names(args), folder(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(path)
    if args.published and not args.only:
        undrawn |= {f"the papers' figure {number}": reason for number, reason in NOT_PRINTED.items()}
    if undrawn:
        print("\nnot drawn:")
        for name, reason in undrawn.items():
            print(f"  {name}: {reason}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked options. Exits with status 2 on a bad command line."""
    parser = argparse.ArgumentParser(
        prog="analysis/make_figures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders that bench/run.py wrote")
    parser.add_argument("--published", action="store_true", help="the papers' figures, from their printed numbers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the folder of the only run, else figures/")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of images, where the run's own has moved")
    args = parser.parse_args(argv)
    if args.published and args.runs:
        parser.error("--published draws the papers' figures without runs; with runs, published numbers stand beside")
    if not (args.published or args.runs or args.data):
        parser.error("give folders that bench/run.py wrote, or --published, or --data DIR")
    return args


def names(args: argparse.Namespace) -> list[str]:
    """The figures asked for. Raises ValueError, listing them, for an unknown name."""
    if not args.only:
        wanted = "published" if args.published else "run"
        return [name for name, entry in FIGURES.items() if wanted in entry.sources]
    asked = [name.strip() for name in args.only.split(",")]
    if unknown := [name for name in asked if name not in FIGURES]:
        raise ValueError(f"no figure {', '.join(unknown)}; known: {', '.join(FIGURES)}")
    return asked


def folder(args: argparse.Namespace) -> Path:
    """Where the figures go; made if it is not there."""
    out = args.out or (args.runs[0] if len(args.runs) == 1 else Path("figures"))
    out.mkdir(parents=True, exist_ok=True)
    return out


def make(source: runs.Source, wanted: Sequence[str], out: Path) -> tuple[list[Path], dict[str, str]]:
    """Draw into ``out``. Returns the PNGs' absolute paths, and for each figure not drawn the reason."""
    drawn: list[Path] = []
    undrawn: dict[str, str] = {}
    for name in wanted:
        module = importlib.import_module(FIGURES[name].module)
        try:
            found = module.parts(source)
        except (runs.NotDrawable, Incomparable) as reason:
            undrawn[name] = str(reason)
            continue
        for ending, data in found.items():
            picture = f"{name}-{ending}" if ending else name
            if isinstance(data, runs.NotDrawable):
                undrawn[picture] = str(data)
                continue
            path = out / f"{picture}.png"
            drawn.append(style.save(module.draw(data), path).resolve())
    return drawn, undrawn


if __name__ == "__main__":
    sys.exit(main())
