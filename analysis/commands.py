"""What the commands of this package share: their parser, and how they report an error."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

from bench import values
from bench.errors import exit_status


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``multicrop-bench NAME``, with a module's docstring as its help."""
    return values.Parser(
        prog=f"multicrop-bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """``main``, which ends with a sentence and an exit status on Ctrl-C and on what the user can correct
    (bench.errors.exit_status)."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        return exit_status(lambda: main(argv), {})

    return run
