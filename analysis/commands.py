"""What the commands of this package share: their parser, and how they report an error."""

from __future__ import annotations

import argparse
import sys

from analysis.text import visible
from bench import values


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``multicrop-bench NAME``, with a module's docstring as its help."""
    return values.Parser(
        prog=f"multicrop-bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def failed(error: Exception) -> int:
    """Print what the user can correct; return the exit status 2."""
    print(f"error: {visible(str(error))}", file=sys.stderr)
    return 2
