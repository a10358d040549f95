"""Generated pictures of six textures, for trying ``finetune --new-head``: classes that no pre-trained network has.

    python -m pipelines.data.textures textures      # writes textures/train and textures/test, and prints the folder

Each picture shows one pattern at a random scale and angle, in two random colours, with noise: checks, dots, noise,
rings, stripes or triangles. They say nothing about the accuracy on anybody's photographs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.folder_command import folder_command

TEXTURES = ("checks", "dots", "noise", "rings", "stripes", "triangles")
SIZES = (240, 340)  # pixels of either side, the second one excluded
TRAIN, TEST = 60, 50  # pictures of each texture
TRAIN_SEED, TEST_SEED = 0, 1


def texture(name: str, rng: np.random.Generator) -> Image.Image:
    """A picture of one of TEXTURES."""
    width, height = rng.integers(*SIZES, 2)
    y, x = np.mgrid[:height, :width]
    step, angle = rng.integers(14, 44), rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    blocks = rng.random((height // step + 1, width // step + 1)) > 0.5
    mask = {
        "checks": (u // step + v // step) % 2,
        "dots": (u % step - step / 2) ** 2 + (v % step - step / 2) ** 2 < (step / 3) ** 2,
        "noise": np.kron(blocks, np.ones((step, step)))[:height, :width],
        "rings": np.hypot(x - width / 2, y - height / 2) // step % 2,
        "stripes": u // step % 2,
        "triangles": u % step > v % step,
    }[name].astype(float)[..., None]
    ground, figure = rng.integers(0, 256, (2, 3))
    pixels = ground * (1 - mask) + figure * mask + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(root: Path, count: int, seed: int) -> Path:
    """``root/<texture>/<number>.png``, ``count`` of each; raises FileExistsError where one is there. Returns root."""
    rng = np.random.default_rng(seed)
    for name in TEXTURES:
        (root / name).mkdir(parents=True)
        for i in range(count):
            texture(name, rng).save(root / name / f"{i}.png")
    return root


def write_both(folder: Path) -> None:
    """``folder/train`` and ``folder/test``."""
    write(folder / "train", TRAIN, TRAIN_SEED)
    write(folder / "test", TEST, TEST_SEED)


def main(argv: Sequence[str] | None = None) -> int:
    return folder_command(argv, "textures", __doc__, "a new folder", write_both)


if __name__ == "__main__":
    sys.exit(main())
