"""ImageNet's development kit, made: its own order of the classes, and 50,000 lines of ground truth."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from pipelines.data.labels.classes import synset_index

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def write_devkit(folder: Path, numbers: Iterable[int]) -> dict[str, int]:
    """The devkit's folder in ``folder``; the output of each of the images, by name."""
    rng = random.Random(3)
    wnids = sorted(synset_index(1000))
    order = rng.sample(wnids, 1000)
    ids = [rng.randint(1, 1000) for _ in range(50_000)]
    data = folder / DEVKIT / "data"
    data.mkdir(parents=True)
    (data / TRUTH).write_text("".join(f"{number}\n" for number in ids))
    synsets: Any = np.zeros((1860, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for k in range(1860):
        synsets[k, 0] = (float(k + 1), order[k] if k < 1000 else f"n9{k:07d}", f"word {k}")
    savemat(data / "meta.mat", {"synsets": synsets}, do_compression=True)
    return {name_of(number): wnids.index(order[ids[number - 1] - 1]) for number in numbers}
