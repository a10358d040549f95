"""What does one very large image cost? Peak memory over the libraries, for panoramas, padded files and huge pictures.

python tests/stress/large_images.py          # a minute or two on two cores
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from PIL import Image

from tests.stress.memory import BOUND_BYTES, alone


def panorama(folder: Path) -> None:
    """One pixel high: 65,000 x 1."""
    Image.fromarray(np.zeros((1, 65000, 3), np.uint8)).save(folder / "panorama.jpg")


def padded(folder: Path) -> None:
    """A small PNG, its file 3 GiB of which nearly all are zeros (sparse on the disk)."""
    path = folder / "padded.png"
    Image.new("RGB", (64, 64)).save(path)
    with path.open("r+b") as file:
        file.truncate(3 << 30)


def huge(folder: Path) -> None:
    """24 PNGs of 144 megapixels in one colour."""
    Image.new("RGB", (12000, 12000), (90, 120, 30)).save(folder / "huge.png", compress_level=1)
    for number in range(23):
        (folder / f"huge-{number}.png").hardlink_to(folder / "huge.png")


def huge_jpegs(folder: Path) -> None:
    """24 JPEGs of 144 megapixels in one colour: plain ones, which the torchvision backend gives to simplejpeg."""
    Image.new("RGB", (12000, 12000), (90, 120, 30)).save(folder / "huge.jpg")
    for number in range(23):
        (folder / f"huge-{number}.jpg").hardlink_to(folder / "huge.jpg")


CASES: dict[str, tuple[Callable[[Path], None], int]] = {
    "65000 x 1 at 96 pixels": (panorama, 96),
    "65000 x 1 at 224 pixels": (panorama, 224),
    "a PNG padded to 3 GiB": (padded, 96),
    "24 PNGs of 12000 x 12000": (huge, 96),
    "24 JPEGs of 12000 x 12000": (huge_jpegs, 96),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a case takes more than the bound."""
    parser = argparse.ArgumentParser(prog="tests/stress/large_images.py", description=__doc__)
    parser.add_argument("--data-backend", default="dali-cpu,torchvision", metavar="NAMES", help="by commas")
    names: list[str] = parser.parse_args(argv).data_backend.split(",")
    good = True
    print("peak memory over the libraries, MiB".ljust(40) + "".join(name.rjust(14) for name in names))
    for case, (make, K) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="large-images-") as folder:
            make(Path(folder))
            Image.new("RGB", (500, 400)).save(Path(folder) / "photo.jpg")
            images = len(list(Path(folder).iterdir()))
            peaks = [alone(name, folder, images, 20, K, 2) for name in names]
        good &= max(peaks) < BOUND_BYTES
        print(case.ljust(40) + "".join(f"{peak / 2**20:14.0f}" for peak in peaks), flush=True)
    print(f"the bound is {BOUND_BYTES >> 20} MiB: {'kept' if good else 'BROKEN'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
