"""What the commands of this package share: their parser, and how they report an error."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import values
from bench.errors import exit_status

FLAGS = {"most": "--most"}  # parameters that messages name in backticks, and their flags


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``multicrop-bench NAME``, with a module's docstring as its help."""
    return values.Parser(
        prog=f"multicrop-bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def halves_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The same for a command over runs on the same images, one half of which chooses and the other reports."""
    parser = command_parser(name, description)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs on the same images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the first run's folder")
    parser.add_argument(
        "--seed", type=values.for_argparse(values.seed_from_zero), default=0, help="of the halves (default: 0)"
    )
    return parser


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """``main``, which ends with a sentence and an exit status on Ctrl-C and on what the user can correct
    (bench.errors.exit_status)."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        return exit_status(lambda: main(argv), FLAGS)

    return run
