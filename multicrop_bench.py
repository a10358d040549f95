"""The command ``multicrop-bench``. This module has a name that no other package uses, so Python always finds it.

It then makes sure that ``import bench`` finds our package, and not a user's own package called bench, models, pipelines
or analysis in the current folder or in a folder of PYTHONPATH.
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
