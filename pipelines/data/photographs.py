"""Seven real photographs that Python packages ship, in folders named by their ImageNet class.

    python -m pipelines.data.photographs photos      # writes them below photos/ and prints the folder

They come from scikit-image and scikit-learn, which must be installed. Seven photographs measure no accuracy: they show
that a network trained on ImageNet gets the crops that it should, and what its crops agree on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipelines.data.folder_command import folder_command

# Photograph -> package, file below it, wnid of what it shows (a cat between tabby, tiger and Egyptian, for one).
PHOTOGRAPHS = {
    "china.jpg": ("sklearn", "datasets/images/china.jpg", "n03877845"),  # palace
    "flower.jpg": ("sklearn", "datasets/images/flower.jpg", "n11939491"),  # daisy
    "coffee.png": ("skimage", "data/coffee.png", "n07920052"),  # espresso
    "chelsea.png": ("skimage", "data/chelsea.png", "n02124075"),  # Egyptian cat
    "camera.png": ("skimage", "data/camera.png", "n04485082"),  # tripod; grey
    "rocket.jpg": ("skimage", "data/rocket.jpg", "n03773504"),  # missile
    "motorcycle.png": ("skimage", "data/motorcycle_left.png", "n03785016"),  # moped
}
PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


def package_file(package: str, file: str) -> Path:
    """Where a file of an installed package is. Raises FileNotFoundError, naming what to install, where it is not."""
    found = find_spec(package)
    folders = found.submodule_search_locations if found else None
    path = Path(next(iter(folders))) / file if folders else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{file} of {package} is not there: pip install {PACKAGES.get(package, package)}")
    return path


def write(root: Path) -> None:
    """``root/<wnid>/<photograph>``, for each that is not there yet."""
    for name, (package, file, wnid) in PHOTOGRAPHS.items():
        source = package_file(package, file)
        (root / wnid).mkdir(parents=True, exist_ok=True)
        if not (root / wnid / name).exists():
            shutil.copy(source, root / wnid / name)


def main(argv: Sequence[str] | None = None) -> int:
    return folder_command(argv, "photographs", __doc__, "written if it is not there", write)


if __name__ == "__main__":
    sys.exit(main())
