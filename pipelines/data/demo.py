"""The demo data: a generated, labelled, photographic-looking JPEG set, so that everything runs with nothing downloaded.

    python -m pipelines.data.demo                 # 1,000 val images, about a minute on two cores
    python -m pipelines.data.demo train --images 8000
    python -m pipelines.data.demo fresh-7         # 1,000 other images like those of val: any number after fresh-

It is a stand-in for the ImageNet validation set in the two respects that matter here:

* **Cost.** Sizes, aspect ratios, bytes per pixel, chroma subsampling and the share of greyscale files follow ImageNet
  (the tables below), because decoding and resizing speed depend on them.
* **The causes of the multi-crop effect.** Objects lie off centre, vary in size, are sometimes elongated along the
  image's long side, and stand among clutter, decoys and occluders. How much the n-th crop then buys is whatever the
  networks trained on it give: no number here was chosen for it.

A class is a shape and a texture (``star-striped``). Accuracy on these images says nothing about ImageNet accuracy.

Every image is a function of (VERSION, SEED, split, index) alone: the first 50 of ``val`` are the same files whether 50
or 1,000 are asked for, by however many workers. (The bytes also depend on the installed NumPy, SciPy and JPEG encoder,
the labels and boxes on NumPy and SciPy only.) ``train`` has the composition of ``val`` at a short side of 160 pixels,
quality 95, 4:4:4, with the grain scaled down as resizing would have done: training reads it at about 110.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from pipelines import surroundings
from pipelines.files import PART, whole_path, write_whole

# Part of every folder name and random key: raise it with any change that alters a file.
# 1: 8 shapes x 2 textures; small networks told 99 % of the textures but only half of the shapes. 2: 4 x 4.
VERSION = 2
SEED = 0
SPLITS = {"train": 8000, "val": 1000}  # split -> images written when no number is asked for
# Any other number gives other images of val's composition: to check a choice that was made on val.
FRESH = re.compile(r"fresh-(0|[1-9][0-9]{0,8})")
STORED_SHORT_SIDE = {"train": 160}  # pixels; a split not named here is stored at the size drawn
TRAIN_QUALITY = 95

SHAPES = ("disc", "triangle", "square", "star")
TEXTURES = ("striped", "spotted", "checked", "ringed")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)

WORTH_PROCESSES = 32  # images: fewer are written sooner than processes start
TABLE_NAME = "demo.csv"  # written last, so that it marks a complete set
COLUMNS = (
    "name",  # POSIX path relative to the root
    "label",  # index into CLASSES
    "class",
    "width",  # of the file, pixels
    "height",
    "box_x",  # the object's bounding box, pixels: left, top, width, height
    "box_y",
    "box_w",
    "box_h",
    "object_size",  # square root of the box's area, in short sides
    "elongation",  # the box's side along the image's long side, divided by its other side
    "offset_x",  # box centre minus image centre, in short sides
    "offset_y",
    "offset",  # length of (offset_x, offset_y)
    "subsampling",  # 444, 422, 420 or grey
    "bytes",  # of the file
)

# ImageNet's statistics as (share of images below, value): straight lines between knots, flat where a size is common.
LONG_SIDE_KNOTS = ((0, 180), (0.13, 499), (0.13, 500), (0.94, 500), (0.985, 800), (0.995, 1024), (1, 1600))  # pixels
RATIO_KNOTS = (  # long side / short side; the first 4 % are square
    *((0.0, 1.0), (0.04, 1.0), (0.05, 1.03), (0.22, 4 / 3), (0.62, 4 / 3), (0.68, 1.5)),
    *((0.85, 1.5), (0.945, 1.58), (0.955, 1.6), (0.98, 1.85), (1.0, 2.6)),
)
PORTRAIT_SHARE = 0.26
BYTES_PER_PIXEL_KNOTS = ((0.0, 0.08), (0.05, 0.15), (0.25, 0.32), (0.5, 0.58), (0.75, 0.79), (0.95, 1.10), (1.0, 1.5))
SUBSAMPLING_KNOTS = ((0.02, "grey"), (0.22, "420"), (0.97, "444"), (1.0, "422"))  # cumulative shares
PILLOW_SUBSAMPLING = {"444": 0, "422": 1, "420": 2, "grey": 0}

# The scene, in short sides. The object's share of the short side and its place are uniform and normal, nothing finer.
OBJECT_SHARE = (0.35, 0.9)  # object's extent across the image / short side
CENTRE_SIGMA = 0.18  # standard deviation of the object's centre, in widths and heights of the image
ELONGATED_SHARE = 0.3
ELONGATION = (1.2, 1.9)

ANY_HUE, EARTH_HUE, SKY_HUE = (0.0, 6.2832), (0.3, 2.2), (3.3, 4.3)  # radians, see _colour

_ANGLES = np.linspace(-np.pi, np.pi, 1024, endpoint=False)

Float = np.ndarray[Any, np.dtype[np.floating[Any]]]


def ensure(
    split: str = "val", images: int | None = None, cache: Path | None = None, workers: int | None = None
) -> Path:
    """Return the root folder of a complete demo set, writing what is missing of it.

    The root holds ``<class>/<index>.jpg`` and ``demo.csv`` (COLUMNS). ``images`` asks for the first so many (default:
    SPLITS). ``cache`` is the parent folder; default: the environment variable MULTICROP_CACHE, else
    ``~/.cache/multicrop-bench``. ``workers`` processes render (default: the cores this process may use, 16 at most).

    Files found are trusted when their size agrees with ``demo.csv`` or, in a set that was interrupted, when they are
    whole JPEGs of the planned size; all others are written anew.

    Raises ValueError for an unknown split or a number below one, OSError when the folder cannot be written.
    """
    default = default_images(split)  # raises, whatever number is asked for
    images = default if images is None else images
    if images < 1:
        raise ValueError(f"images={images}: ask the demo set for at least one image")
    root = _cache_folder(cache) / f"demo-v{VERSION}-seed{SEED}-{split}-{images}"
    recorded = _recorded_bytes(root)
    if recorded and all(_bytes_of(root / name) == size for name, size in recorded.items()):
        return root
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
    plans = [plan(split, index) for index in range(images)]
    _write_all(root, [one for one in plans if not _is_whole(root, one, recorded)], workers or _usable_cores())
    _sweep_leftovers(root)
    write_whole(root / TABLE_NAME, _table(root, plans).to_csv(index=False))
    return root


def default_images(split: str) -> int:
    """Images written when no number is asked for. Raises ValueError for an unknown split."""
    if FRESH.fullmatch(split):
        return SPLITS["val"]
    if split not in SPLITS:
        raise ValueError(f"demo split {split!r} is not {', '.join(SPLITS)} or fresh-NUMBER, such as fresh-1")
    return SPLITS[split]


def is_demo(root: Path | str) -> bool:
    """Whether ``root`` is a complete folder written by ``ensure``, of this or another version."""
    table = Path(root) / TABLE_NAME
    if not table.is_file():
        return False
    with table.open(encoding="utf-8") as lines:
        return lines.readline().startswith(",".join(COLUMNS[:5]))


def read_table(root: Path | str) -> pd.DataFrame:
    """The set's ``demo.csv``: one row an image, COLUMNS, in the order of the index."""
    return pd.read_csv(Path(root) / TABLE_NAME, dtype={"subsampling": str})


# ---------------------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True, slots=True)
class Solid:
    """One thing in the scene. Lengths in short sides, the origin at the image's centre, y down.

    Its outline in its own frame is ``radius_at`` over _ANGLES; it is turned by ``rotation``, scaled by ``scale_x`` and
    ``scale_y`` along the image's axes, and moved to ``x``, ``y``.
    """

    x: float
    y: float
    scale_x: float
    scale_y: float
    rotation: float  # radians
    radius_at: Float  # [1024], at most about 1

    def outline(self) -> tuple[Float, Float]:
        """x and y of the outline's 1024 points, in short sides."""
        angles = _ANGLES + self.rotation
        return (
            self.x + self.scale_x * self.radius_at * np.cos(angles),
            self.y + self.scale_y * self.radius_at * np.sin(angles),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known of an image before it is rendered."""

    split: str
    index: int
    label: int
    width: int  # of the file, pixels
    height: int
    reduction: float  # stored size / size drawn; 1 except in train
    subsampling: str  # key of PILLOW_SUBSAMPLING
    bytes_per_pixel: float  # aimed at, except in train
    solid: Solid  # the object

    @property
    def name(self) -> str:
        """POSIX path relative to the root."""
        return f"{CLASSES[self.label]}/{self.index:06d}.jpg"

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width, height of the object in pixels: the smallest whole-pixel box round its outline."""
        x, y = self.solid.outline()
        left, top = (int(np.floor(v.min() * self.short_side + side / 2)) for v, side in self._axes(x, y))
        right, bottom = (int(np.ceil(v.max() * self.short_side + side / 2)) for v, side in self._axes(x, y))
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
        return left, top, right - left, bottom - top

    def _axes(self, x: Float, y: Float) -> tuple[tuple[Float, int], tuple[Float, int]]:
        return (x, self.width), (y, self.height)


def _between(knots: tuple[tuple[float, float], ...], at: float | Float) -> Any:
    """The straight line through the knots."""
    return np.interp(at, [knot[0] for knot in knots], [knot[1] for knot in knots])


def plan(split: str, index: int) -> Plan:
    """Draw size, file format, class and object of one image; cheap (a fraction of a millisecond), renders nothing."""
    rng = _generator(split, index, "plan")
    drawn = _draw_size(rng)
    subsampling = _draw_subsampling(rng.random())
    bytes_per_pixel = float(_between(BYTES_PER_PIXEL_KNOTS, rng.random()))
    label = index % len(CLASSES)
    solid = _draw_object(rng, SHAPES[label // len(TEXTURES)], *(side / min(drawn) for side in drawn))
    stored_short = STORED_SHORT_SIDE.get(split, min(drawn))
    width, height = (round(side * stored_short / min(drawn)) for side in drawn)
    if split in STORED_SHORT_SIDE:
        subsampling = "grey" if subsampling == "grey" else "444"
    return Plan(split, index, label, width, height, stored_short / min(drawn), subsampling, bytes_per_pixel, solid)


def _generator(split: str, index: int, purpose: str) -> np.random.Generator:
    """Philox keyed by a hash, so that no image's numbers depend on another's."""
    digest = hashlib.blake2b(f"demo/{VERSION}/{SEED}/{split}/{index}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels."""
    long_side = round(float(_between(LONG_SIDE_KNOTS, rng.random())))
    short_side = round(long_side / float(_between(RATIO_KNOTS, rng.random())))
    portrait = rng.random() < PORTRAIT_SHARE / (1 - RATIO_KNOTS[1][0])  # squares are neither
    return (short_side, long_side) if portrait else (long_side, short_side)


def _draw_subsampling(u: float) -> str:
    return next(name for share, name in SUBSAMPLING_KNOTS if u < share)


def _draw_object(rng: np.random.Generator, shape: str, width: float, height: float) -> Solid:
    """The labelled object, wholly inside an image of ``width`` x ``height`` short sides (one of them is 1)."""
    radius_at = _outline(rng, shape)
    rotation = float(rng.normal(0, np.radians(20)))
    stretch = float(rng.uniform(*ELONGATION)) if rng.random() < ELONGATED_SHARE else 1.0
    share = float(rng.uniform(*OBJECT_SHARE))
    stretch_x, stretch_y = (stretch, 1.0) if width >= height else (1.0, stretch)
    x, y = Solid(0, 0, stretch_x, stretch_y, rotation, radius_at).outline()
    across, along = (np.ptp(y), np.ptp(x)) if width >= height else (np.ptp(x), np.ptp(y))
    scale = min(share / across, 0.96 * max(width, height) / along)
    centre_x, centre_y = rng.normal(0, CENTRE_SIGMA, 2) * (width, height)
    return Solid(
        _clip_inside(centre_x, x * scale, width),
        _clip_inside(centre_y, y * scale, height),
        float(scale * stretch_x),
        float(scale * stretch_y),
        rotation,
        radius_at,
    )


def _clip_inside(centre: float, outline: Float, side: float) -> float:
    """Where the outline's origin goes so that its box lies in an image's side of this length, near ``centre``."""
    low, high = float(outline.min()), float(outline.max())
    middle = (low + high) / 2
    room = (side - (high - low)) / 2
    return float(np.clip(centre, -room, room)) - middle


# ------------------------------------------------------------------------------------------------- outlines, textures


def _polygon(corners: int) -> Float:
    sector = 2 * np.pi / corners
    return np.cos(sector / 2) / np.cos((_ANGLES + np.pi / 2) % sector - sector / 2)


def _star(rng: np.random.Generator) -> Float:
    phase = ((_ANGLES + np.pi / 2) * 5 / (2 * np.pi)) % 1
    return 1 / (1 + rng.uniform(0.9, 1.3) * (1 - np.abs(2 * phase - 1)))


OUTLINES: dict[str, Callable[[np.random.Generator], Float]] = {
    "disc": lambda rng: np.ones_like(_ANGLES),
    "triangle": lambda rng: _polygon(3),
    "square": lambda rng: _polygon(4)[(np.arange(1024) + 128) % 1024],
    "star": _star,
}


def _outline(rng: np.random.Generator, shape: str) -> Float:
    """The shape's radius over _ANGLES, corners rounded, wobbling by some percent as no two real things agree."""
    rounded = gaussian_filter1d(OUTLINES[shape](rng), sigma=rng.uniform(3, 9), mode="wrap")
    return rounded * (1 + _wobble(rng, amplitude=0.012))


def _wobble(rng: np.random.Generator, amplitude: float) -> Float:
    """Four slow waves round the outline, each of this standard deviation."""
    waves = np.arange(2, 6)[:, None]
    phases = waves * _ANGLES + rng.uniform(0, 2 * np.pi, (4, 1))
    return (rng.normal(0, amplitude, (4, 1)) * np.cos(phases)).sum(axis=0)


def _lump(rng: np.random.Generator, aspect: float) -> Float:
    """A rod, a pebble or a leaf of length 1 and width ``aspect``."""
    power = rng.uniform(1.6, 5)
    body = (np.abs(np.cos(_ANGLES)) ** power + np.abs(np.sin(_ANGLES) / aspect) ** power) ** (-1 / power)
    return body * np.maximum(1 + _wobble(rng, amplitude=0.05), 0.3)


def _stripes(u: Float, v: Float) -> Float:
    return np.sin(2 * np.pi * u)


def _spots(u: Float, v: Float) -> Float:
    """Dots on a hexagonal lattice: three plane waves, 120 degrees apart."""
    half, rise = 0.5 * u, np.float32(0.8660254) * v
    waves = np.cos(2 * np.pi * u) + np.cos(2 * np.pi * (half + rise)) + np.cos(2 * np.pi * (half - rise))
    return waves - np.float32(0.6)


PATTERNS: dict[str, Callable[[Float, Float], Float]] = {
    "striped": _stripes,
    "spotted": _spots,
    "checked": lambda u, v: 2 * np.sin(np.pi * u) * np.sin(np.pi * v),
    "ringed": lambda u, v: np.sin(2 * np.pi * np.hypot(u, v)),
}


# ---------------------------------------------------------------------------------------------------------- rendering


def render(one: Plan) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture, uint8 [height, width, 3]."""
    rng = _generator(one.split, one.index, "pixels")
    x = ((np.arange(one.width, dtype=np.float32) + 0.5) - one.width / 2)[None, :] / np.float32(one.short_side)
    y = ((np.arange(one.height, dtype=np.float32) + 0.5) - one.height / 2)[:, None] / np.float32(one.short_side)
    light = rng.uniform(0, 2 * np.pi)
    detail = fractal(rng, one.height, one.width, exponent=rng.uniform(0.85, 1.35))
    canvas = _background(rng, x, y, detail)
    scene = _Scene(canvas, x, y, detail, float(np.cos(light)), float(np.sin(light)))
    _paint_clutter(rng, scene)
    _paint_decoys(rng, scene, one)
    _paint_textured(rng, scene, one.solid, TEXTURES[one.label % len(TEXTURES)], blur=rng.uniform(0.003, 0.008))
    _paint_occluders(rng, scene)
    return _develop(rng, canvas, x, y, one)


@dataclass(frozen=True, slots=True)
class _Scene:
    canvas: Float  # [3, h, w], 0..1, painted in place
    x: Float  # [1, w], short sides
    y: Float  # [h, 1]
    detail: Float  # [h, w], fractal, about unit variance
    light_x: float
    light_y: float


@lru_cache(maxsize=8)
def _log_frequency(height: int, width: int) -> Float:
    """Natural logarithm of the radial frequency in cycles per short side, float32 [h, w // 2 + 1]."""
    short_side = min(height, width)
    radial = np.hypot(fft.fftfreq(height)[:, None] * short_side, fft.rfftfreq(width)[None, :] * short_side)
    radial[0, 0] = 1.0  # the mean is removed, not scaled
    return np.log(radial).astype(np.float32)


def fractal(rng: np.random.Generator, height: int, width: int, exponent: float, finest: float = np.inf) -> Float:
    """Noise with amplitude ~ 1 / frequency**exponent, float32 [height, width].

    Frequencies are in cycles per short side and the variance below 64 of them is one, so that a picture and its
    reduction have the same statistics. ``finest`` cuts higher frequencies off softly: a picture out of focus.
    """
    log_frequency = _log_frequency(height, width)
    amplitude = np.exp(np.float32(-exponent) * log_frequency)
    if np.isfinite(finest):
        amplitude *= np.exp(-0.5 * np.exp(2 * log_frequency) / np.float32(finest**2))
    amplitude[0, 0] = 0
    below = (amplitude * (log_frequency < np.log(64))).ravel()
    gain = np.sqrt(height * width / (2 * float(np.dot(below, below))))  # rfft2 holds half of the plane
    spectrum = fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    return fft.irfft2(spectrum * (amplitude * np.float32(gain)), s=(height, width))


def _soft_fractal(rng: np.random.Generator, height: int, width: int, exponent: float, finest: float) -> Float:
    """A fractal without fine parts, made at a short side of 96 and enlarged: a fraction of the cost."""
    short_side = min(height, width)
    small_height, small_width = (round(side * 96 / short_side) for side in (height, width))
    noise = Image.fromarray(fractal(rng, small_height, small_width, exponent, finest))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def _colour(
    rng: np.random.Generator,
    lightness: tuple[float, float],
    saturation: tuple[float, float],
    hue: tuple[float, float] = ANY_HUE,
) -> Float:
    """An RGB colour as float32 [3, 1, 1]; hues in radians, red 0, green 2.1, blue 4.2."""
    phases = rng.uniform(*hue) - np.array([0, 2.0944, 4.1888])
    value = rng.uniform(*lightness) * (1 + rng.uniform(*saturation) * np.cos(phases))
    return value.astype(np.float32)[:, None, None]


def _background(rng: np.random.Generator, x: Float, y: Float, detail: Float) -> Float:
    """Sky and ground, wall and floor, or one surface close up: float32 [3, h, w]."""
    height, width = detail.shape
    shapes = _soft_fractal(rng, height, width, exponent=rng.uniform(1.2, 1.7), finest=rng.uniform(6, 40))
    tints = _soft_fractal(rng, height, width, exponent=1.4, finest=12)
    roughness = np.float32(rng.uniform(0.02, 0.13))
    outdoors = rng.random() < 0.65
    near, tint = (_colour(rng, (0.12, 0.7), (0.03, 0.35), EARTH_HUE if outdoors else ANY_HUE) for _ in range(2))
    far = _colour(rng, (0.35, 0.85), (0.03, 0.35), SKY_HUE if outdoors else ANY_HUE)
    surface = near + (tint - near) * np.clip(0.35 * tints + 0.3, 0, 1)
    surface = surface * (1 + np.float32(rng.uniform(0.1, 0.35)) * shapes + 2 * roughness * detail)
    if rng.random() < 0.35:
        return surface
    horizon = rng.normal(-0.1, 0.15) + rng.normal(0, 0.06) * x + 0.03 * shapes
    above = np.clip((horizon - y) / np.float32(rng.uniform(0.004, 0.06)) + 0.5, 0, 1)
    sky = far * (1 + np.float32(rng.uniform(0.1, 0.5)) * (y + 0.5)) + np.float32(rng.uniform(0.0, 0.12)) * tints
    sky = sky + roughness * np.float32(rng.uniform(0.02, 0.4)) * detail
    nearness = 1 - np.float32(rng.uniform(0, 0.35)) * np.clip(1 - 2.5 * (y - horizon), 0, 1)
    return surface * nearness * (1 - above) + sky * above


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of the canvas that a solid covers, and its own coordinates there."""

    rows: slice
    columns: slice
    cover: Float  # [h, w], 0..1
    u: Float  # turned back into the solid's frame, in its own size
    v: Float
    rim: Float  # 0 at the origin, 1 on the outline

    @property
    def area(self) -> tuple[slice, slice, slice]:
        return slice(None), self.rows, self.columns


def _window(scene: _Scene, solid: Solid, blur: float) -> _Window | None:
    """``blur`` is the width of the solid's edge, in short sides. None where it lies outside the picture."""
    outline_x, outline_y = solid.outline()
    columns = _covered(scene.x[0], outline_x, blur)
    rows = _covered(scene.y[:, 0], outline_y, blur)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    across = (scene.x[:, columns] - np.float32(solid.x)) / np.float32(solid.scale_x)
    down = (scene.y[rows] - np.float32(solid.y)) / np.float32(solid.scale_y)
    cosine, sine = np.float32(np.cos(solid.rotation)), np.float32(np.sin(solid.rotation))
    u, v = across * cosine + down * sine, down * cosine - across * sine
    position = (np.arctan2(v, u) + np.float32(np.pi)) * np.float32(len(_ANGLES) / (2 * np.pi))
    reach = solid.radius_at.astype(np.float32)[position.astype(np.int32) % len(_ANGLES)]
    distance = np.hypot(u, v)
    size = np.float32(np.sqrt(solid.scale_x * solid.scale_y))
    cover = np.clip((reach - distance) * (size / np.float32(blur)) + 0.5, 0, 1)
    return _Window(rows, columns, cover, u, v, np.minimum(distance / reach, 1))


def _covered(grid: Float, outline: Float, margin: float) -> slice:
    start, stop = np.searchsorted(grid, (outline.min() - margin, outline.max() + margin))
    return slice(int(start), int(stop))


def _blend(scene: _Scene, window: _Window, colour: Float, cover: Float) -> None:
    behind = scene.canvas[window.area]
    behind += (colour - behind) * cover


def _shade(scene: _Scene, window: _Window) -> Float:
    """Light from one side on a rounded body."""
    side = scene.light_x * window.u + scene.light_y * window.v
    return 0.72 + 0.3 * side * window.rim + 0.28 * np.sqrt(np.maximum(1 - window.rim**2, 0))


def _paint_plain(rng: np.random.Generator, scene: _Scene, solid: Solid, blur: float) -> None:
    window = _window(scene, solid, blur)
    if window is None:
        return
    colour = _colour(rng, (0.08, 0.8), (0.0, 0.4)) * _shade(scene, window)
    grainy = np.float32(rng.uniform(0, 0.12)) * scene.detail[window.rows, window.columns]
    _blend(scene, window, colour * (1 + grainy), window.cover)


def _paint_textured(rng: np.random.Generator, scene: _Scene, solid: Solid, texture: str, blur: float) -> None:
    """A solid with one of PATTERNS and its shadow."""
    drop = rng.uniform(0.02, 0.08)
    shadow = Solid(
        solid.x - drop * scene.light_x,
        solid.y - drop * scene.light_y + 0.03,
        solid.scale_x,
        solid.scale_y,
        solid.rotation,
        solid.radius_at,
    )
    darkness = np.float32(rng.uniform(0.15, 0.6))
    fallen = _window(scene, shadow, blur=rng.uniform(0.04, 0.12))
    if fallen is not None:
        scene.canvas[fallen.area] *= 1 - darkness * fallen.cover
    window = _window(scene, solid, blur)
    base, mark = _two_tones(rng)
    cycles, direction, phase_u, phase_v = rng.uniform(1.8, 3.0), rng.uniform(0, np.pi), rng.random(), rng.random()
    height, width = scene.detail.shape
    warp = _soft_fractal(rng, height, width, exponent=1.6, finest=8) * np.float32(rng.uniform(0, 0.12))
    if window is None:
        return
    turned_u = np.float32(np.cos(direction)) * window.u + np.float32(np.sin(direction)) * window.v
    turned_v = np.float32(np.cos(direction)) * window.v - np.float32(np.sin(direction)) * window.u
    bent = warp[window.rows, window.columns]
    pattern = PATTERNS[texture](
        np.float32(cycles) * turned_u + bent + np.float32(phase_u), np.float32(cycles) * turned_v + np.float32(phase_v)
    )
    marked = np.clip(pattern * np.float32(rng.uniform(1.0, 3.0)) + 0.5, 0, 1)
    worn = 1 + np.float32(rng.uniform(0.03, 0.2)) * scene.detail[window.rows, window.columns]
    _blend(scene, window, (base + (mark - base) * marked) * _shade(scene, window) * worn, window.cover)


def _two_tones(rng: np.random.Generator) -> tuple[Float, Float]:
    """Two colours that differ in lightness, either one the lighter."""
    middle, difference = rng.uniform(0.3, 0.65), rng.uniform(0.2, 0.5)
    tones = tuple(
        _colour(rng, (max(middle + sign * difference / 2, 0.06),) * 2, (0.05, 0.6)) for sign in rng.permutation([-1, 1])
    )
    return tones[0], tones[1]


def _pose(rng: np.random.Generator, scene: _Scene, size: float) -> tuple[float, float, float, float, float]:
    """Where a solid of this size may lie, its origin in the picture: Solid's fields up to the rotation."""
    half_width, half_height = -float(scene.x[0, 0]), -float(scene.y[0, 0])
    x, y = float(rng.uniform(-half_width, half_width)), float(rng.uniform(-half_height, half_height))
    return x, y, size, size, float(rng.uniform(-np.pi, np.pi))


def _paint_clutter(rng: np.random.Generator, scene: _Scene) -> None:
    """Untextured lumps and rods behind the object, in and out of focus."""
    blur = rng.uniform(0.004, 0.06)
    for _ in range(rng.integers(3, 15)):
        size, aspect = float(np.exp(rng.uniform(np.log(0.03), np.log(0.35)))), rng.uniform(0.08, 1.0)
        _paint_plain(rng, scene, Solid(*_pose(rng, scene, size), _lump(rng, aspect)), blur)


def _paint_decoys(rng: np.random.Generator, scene: _Scene, one: Plan) -> None:
    """Up to two smaller things of any class behind the object, the labelled one being the largest."""
    largest = 0.4 * min(one.solid.scale_x, one.solid.scale_y)
    for _ in range(rng.integers(0, 3)):
        radius_at = _outline(rng, SHAPES[rng.integers(len(SHAPES))])
        solid = Solid(*_pose(rng, scene, float(rng.uniform(0.4, 1.0)) * largest), radius_at)
        _paint_textured(rng, scene, solid, TEXTURES[rng.integers(len(TEXTURES))], blur=0.01)


def _paint_occluders(rng: np.random.Generator, scene: _Scene) -> None:
    """In three images of ten one or two things stand before the object, mostly out of focus."""
    if rng.random() > 0.3:
        return
    for _ in range(rng.integers(1, 3)):
        size, aspect = float(rng.uniform(0.06, 0.25)), rng.uniform(0.1, 1.0)
        solid = Solid(*_pose(rng, scene, size), _lump(rng, aspect))
        _paint_plain(rng, scene, solid, blur=rng.uniform(0.01, 0.08))


def _develop(rng: np.random.Generator, canvas: Float, x: Float, y: Float, one: Plan) -> np.ndarray[Any, Any]:
    """Light fall-off, exposure, a film-like curve, grain: float [3, h, w] -> uint8 [h, w, 3]."""
    lamp_x, lamp_y = rng.uniform(-0.3, 0.3, 2)
    lighting = 1 + np.float32(lamp_x) * x + np.float32(lamp_y) * y
    lighting *= 1 - np.float32(rng.uniform(0, 0.35)) * (x * x + y * y)
    warmth = np.array([1, 0, -1], dtype=np.float32)[:, None, None] * np.float32(rng.normal(0, 0.06))
    exposure = np.float32(np.exp(rng.normal(0.1, 0.2)))
    canvas = np.maximum(canvas, 0) * (lighting * exposure) * (1 + warmth)
    canvas = canvas / (1 + 0.25 * canvas**2)  # highlights roll off instead of clipping
    # More bytes per pixel need more grain at any plausible quality: 0.15 is a smooth studio shot, 1.1 high ISO.
    grain = np.float32(16 * one.bytes_per_pixel * np.exp(rng.normal(0, 0.25)) / 255 * min(one.reduction, 1))
    canvas += grain * rng.standard_normal(canvas.shape[1:], dtype=np.float32)
    canvas += 0.4 * grain * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)


# ------------------------------------------------------------------------------------------------------ encode, write


def encode(one: Plan, pixels: np.ndarray[Any, Any]) -> bytes:
    """JPEG bytes. The quality is set so that the planned bytes per pixel are about met: two or three encodings."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if one.subsampling == "grey":
        picture = picture.convert("L")
    if one.split in STORED_SHORT_SIDE:
        return _jpeg(picture, TRAIN_QUALITY, one.subsampling)
    quality = 90
    data = _jpeg(picture, quality, one.subsampling)
    for _ in range(2):
        miss = len(data) / (one.bytes_per_pixel * one.width * one.height)
        # File size goes about as (102 - quality) ** -0.7 on these pictures.
        better = int(np.clip(round(102 - (102 - quality) * miss ** (1 / 0.7)), 30, 100))
        if abs(miss - 1) < 0.06 or better == quality:
            break
        quality = better
        data = _jpeg(picture, quality, one.subsampling)
    return data


def _jpeg(picture: Image.Image, quality: int, subsampling: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=PILLOW_SUBSAMPLING[subsampling])
    return buffer.getvalue()


def _cache_folder(cache: Path | None) -> Path:
    return surroundings.cache_folder(cache)


def _usable_cores() -> int:
    return min(surroundings.usable_cores(), 16)


def _write_all(root: Path, plans: list[Plan], workers: int) -> None:
    with tqdm(total=len(plans), desc=f"writing {root.name}", unit="image") as bar:
        if workers > 1 and len(plans) >= WORTH_PROCESSES:
            _write_in_processes(root, plans, workers, bar)
        else:
            for one in plans:
                _write_one(root, one)
                bar.update()


def _write_in_processes(root: Path, plans: list[Plan], workers: int, bar: tqdm[NoReturn]) -> None:
    """Deal the images to children that run this file.

    Not threads: two were not faster than one. Not multiprocessing: a fork copies the caller's CUDA state and locks, a
    spawn runs the caller's main module again, which may lack a guard or be no file.
    """
    command = [sys.executable, "-m", "pipelines.data.demo", plans[0].split, "--write-into", str(root.resolve())]
    children = []
    with ThreadPoolExecutor(workers) as readers:
        try:
            for part in range(workers):
                child = subprocess.Popen(
                    command,
                    cwd=Path(__file__).resolve().parents[2],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches this process only, which then stops its children
                )
                children.append(child)
                assert child.stdin
                child.stdin.write(" ".join(str(one.index) for one in plans[part::workers]))
                child.stdin.close()
            codes = list(readers.map(partial(_follow, bar), children))
        finally:
            for child in children:
                child.kill()
    if any(codes):
        raise RuntimeError(f"a process writing {root} failed (its message is above); run again to continue there")


def _follow(bar: tqdm[NoReturn], child: subprocess.Popen[str]) -> int:
    """Count the child's lines, one an image, to its end; return its exit status."""
    assert child.stdout
    for _ in child.stdout:
        bar.update()
    return child.wait()


def _write_listed(root: Path, split: str) -> None:
    """What a child does: render the images whose indices stand on standard input, print each when it is written."""
    for index in sys.stdin.read().split():
        _write_one(root, plan(split, int(index)))
        print(index, flush=True)


def _write_one(root: Path, one: Plan) -> None:
    with whole_path(root / one.name) as part:
        part.write_bytes(encode(one, render(one)))


def _sweep_leftovers(root: Path) -> None:
    """Remove what killed runs left half-written; an hour's grace, for another run may be writing now."""
    for leftover in root.glob(f"*/.*{PART}"):
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)


def _recorded_bytes(root: Path) -> dict[str, int]:
    """name -> bytes of a complete set; empty while there is none."""
    if not is_demo(root):
        return {}
    table = read_table(root)
    return dict(zip(table["name"], table["bytes"].astype(int), strict=True))


def _bytes_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_whole(root: Path, one: Plan, recorded: dict[str, int]) -> bool:
    """As many bytes as recorded; if none are, a header of the planned size and the end marker that a cut file lacks."""
    path = root / one.name
    if one.name in recorded:
        return _bytes_of(path) == recorded[one.name]
    try:
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            ends = file.read() == b"\xff\xd9"
        with Image.open(path) as header:
            return ends and header.size == (one.width, one.height)
    except OSError:  # absent, too short for the end marker, or no image at all
        return False


def _table(root: Path, plans: list[Plan]) -> pd.DataFrame:
    return pd.DataFrame([_row(root, one) for one in plans], columns=list(COLUMNS))


def _row(root: Path, one: Plan) -> dict[str, Any]:
    left, top, box_width, box_height = one.box
    along, across = (box_width, box_height) if one.width >= one.height else (box_height, box_width)
    offset_x = (left + box_width / 2 - one.width / 2) / one.short_side
    offset_y = (top + box_height / 2 - one.height / 2) / one.short_side
    return {
        "name": one.name,
        "label": one.label,
        "class": CLASSES[one.label],
        "width": one.width,
        "height": one.height,
        "box_x": left,
        "box_y": top,
        "box_w": box_width,
        "box_h": box_height,
        "object_size": round(float(np.sqrt(box_width * box_height)) / one.short_side, 4),
        "elongation": round(along / across, 4),
        "offset_x": round(offset_x, 4),
        "offset_y": round(offset_y, 4),
        "offset": round(float(np.hypot(offset_x, offset_y)), 4),
        "subsampling": one.subsampling,
        "bytes": (root / one.name).stat().st_size,
    }


def main() -> int:
    """Print the folder. Returns the exit status: 2 for what the user can correct, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Write the demo data set and print its folder.")
    parser.add_argument("split", nargs="?", default="val", help="train, val (default) or fresh-NUMBER, such as fresh-1")
    parser.add_argument("--images", type=int, help="the first so many; default 8000 (train) or 1000")
    parser.add_argument(
        "--cache", type=Path, help="parent folder; default $MULTICROP_CACHE, else ~/.cache/multicrop-bench"
    )
    parser.add_argument("--workers", type=int, help="processes; default: the usable cores")
    parser.add_argument("--write-into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write_into:
        _write_listed(args.write_into, args.split)
        return 0
    try:
        root = ensure(args.split, args.images, args.cache, args.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"{len(read_table(root))} images of {len(CLASSES)} classes", file=sys.stderr)
    print(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
