"""The command line of modules that write images into a folder: ``python -m pipelines.data.photographs photos``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def folder_command(
    argv: Sequence[str] | None, prog: str, description: str | None, help: str, write: Callable[[Path], object]
) -> int:
    """Call ``write`` with the folder that is named, and print it. Returns the exit status: 2 for an OSError,
    130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.data.{prog}", description=description)
    parser.add_argument("folder", type=Path, help=help)
    folder = parser.parse_args(argv).folder
    try:
        write(folder)
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(folder)
    return 0
