"""The command ``multicrop-bench``, in a module that nobody else's is called like.

Packages of a user's own that are called bench, models, pipelines or analysis are not taken for ours, wherever they lie:
in the current folder, or in one that PYTHONPATH names.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("analysis", "bench", "models", "pipelines")


def main() -> int:
    """Returns the exit status."""
    sys.path[:] = ours_first(sys.path, Path(__file__).resolve().parent)
    from bench.cli import main as command

    return command()


def ours_first(places: list[str], home: Path) -> list[str]:
    """The search path with folders that hold packages of our names behind all others. ``home``: where ours lie."""
    theirs = [place for place in places if _holds_packages(Path(place or ".")) and Path(place).resolve() != home]
    return [place for place in places if place not in theirs] + theirs


def _holds_packages(folder: Path) -> bool:
    return any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for name in PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
