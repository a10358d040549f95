"""How large does an object look to a network at test time, compared with training? FixRes Section 3, recomputed.

RandomResizedCrop zooms in at training time and the centre crop does not, so objects look smaller at test time. The
paper gives the expected ratio of an object's apparent sizes (test / train) as ``F x S / K_train`` (Equation 5), 0.8086
for S = 256, K_train = 224 and sigma in [0.28, 1]; it prints 0.80. torchvision's code gives another number, for three
reasons that the table shows one by one:

* **Windows that do not fit are drawn again** (at most ten times). Equation 5 takes every sigma in its range, but of the
  large windows only those of nearly the image's own shape fit, so large ones are refused more often. The mean of sigma
  falls from 0.708 to 0.667 for a square image, and the ratio to 0.762; for images that are not square it falls more.
* **The range.** torchvision's smallest area is 0.08, and sqrt(0.08) is 0.2828, printed as 0.28.
* **The image's shape.** Equation 3 assumes a square. At test time the *short* side becomes S, so objects in an image of
  ratio a (long / short) are larger by sqrt(a) than Equation 3 says. This works against the first point: at 4:3 the
  ratio is 0.725 by the paper's own definition, but 0.837 as images are in fact resized.

The ratio here is of geometric means: RandomResizedCrop also stretches by the drawn aspect, which leaves areas as they
are. (The paper's text prints the window as sqrt(sigma alpha H W) x sqrt(sigma H W / alpha); its Equation 1 holds for
sigma squared, which is what is drawn from a uniform distribution.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad

from pipelines.crops import resized_sizes
from pipelines.inputspec import InputSpec

PAPER_SIGMA = (0.28, 1.0)  # Section 3.1.2
PAPER_S, PAPER_K = 256, 224
PAPER_RATIO = 0.80  # printed after Equation 5
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop: share, width / height

SHAPES = {  # name -> height and width, pixels; 4:3 and 3:2 at 500 are the usual ones in ImageNet
    "1:1": (500, 500),
    "4:3": (375, 500),
    "3:4": (500, 375),
    "3:2": (333, 500),
    "16:9": (281, 500),
    "2:1": (250, 500),
    "3:1": (167, 500),
}
WINDOWS = 200_000  # drawn for each line of the table: the mean of sigma is then known to 0.0005


# ---- by formula


def scale_factor(low: float, high: float) -> float:
    """F of Equation 5, the mean of sigma where sigma squared is uniform in [low^2, high^2].

    Raises ValueError unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f"sigma from {low} to {high}: the lower end must be 0 or more and below the upper")
    return 2 / 3 * (high**3 - low**3) / (high**2 - low**2)


def expected_ratio(S: int, K_train: int, sigma: tuple[float, float] = PAPER_SIGMA) -> float:
    """Equation 5: the expected apparent size at test time over that at training time, for square images."""
    return scale_factor(*sigma) * S / K_train


@dataclass(frozen=True, slots=True)
class Fitting:
    """What drawing again does, for images of one shape, pixels not counted."""

    refused: float  # share of single draws that do not fit, 0..1
    mean_sigma: float  # of the windows that are cut
    fallback: float  # share of windows for which all attempts failed: then the middle of the image is cut


def fitting(image_aspect: float) -> Fitting:
    """RandomResizedCrop's rule by integration; ``image_aspect`` is width / height.

    With the aspect's logarithm t uniform in +-ln(4/3), an area x fits while x <= min(1, a / e^t, e^t / a).
    Raises ValueError for an aspect that is not positive.
    """
    if not image_aspect > 0:
        raise ValueError(f"image aspect {image_aspect}: width / height must be above 0")
    low, high, tilt = math.log(ASPECT[0]), math.log(ASPECT[1]), math.log(image_aspect)

    def largest(t: float) -> float:
        return min(AREA[1], math.exp(tilt - t), math.exp(t - tilt))

    def integral(of: float) -> float:
        """Of area^(of - 1) over the windows that fit, times ``of``."""
        kinks = [t for t in (tilt, tilt + math.log(AREA[0]), tilt - math.log(AREA[0])) if low < t < high]
        return float(quad(lambda t: max(largest(t) ** of - AREA[0] ** of, 0.0), low, high, points=kinks or None)[0])

    accepted = integral(1) / ((high - low) * (AREA[1] - AREA[0]))
    given_up = (1 - accepted) ** ATTEMPTS
    mean = 2 / 3 * integral(1.5) / integral(1) if accepted else 0.0
    middle = math.sqrt(min(1.0, image_aspect / ASPECT[0], ASPECT[1] / image_aspect))
    return Fitting(1 - accepted, (1 - given_up) * mean + given_up * middle, given_up)


# ---- by sampling


def sample_windows(
    heights: np.ndarray, widths: np.ndarray, rng: np.random.Generator, uniforms: np.ndarray | None = None
) -> np.ndarray:
    """Height and width of one RandomResizedCrop window for each image, int64 [n, 2], from image sizes int [n].

    torchvision's ``get_params``, rounding and ten attempts included. ``uniforms`` float [ATTEMPTS, n, 2] in 0..1
    (area, aspect) takes the place of ``rng``.
    """
    heights, widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    u = rng.random((ATTEMPTS, len(heights), 2)) if uniforms is None else uniforms
    log_low, log_high = np.log(ASPECT)
    out = _middles(heights, widths)
    waiting = np.ones(len(heights), dtype=bool)
    for area_u, aspect_u in zip(u[..., 0], u[..., 1], strict=True):
        area = heights * widths * (AREA[0] + area_u * (AREA[1] - AREA[0]))
        aspect = np.exp(log_low + aspect_u * (log_high - log_low))
        w, h = np.rint(np.sqrt(area * aspect)).astype(np.int64), np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = waiting & (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
        out[fits] = np.column_stack([h, w])[fits]
        waiting &= ~fits
    return out


def _middles(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """What is cut when all attempts fail: the whole image, narrowed to an aspect in the range. int64 [n, 2]."""
    aspect = widths / heights
    h = np.where(aspect < ASPECT[0], np.rint(widths / ASPECT[0]), heights)
    w = np.where(aspect > ASPECT[1], np.rint(heights * ASPECT[1]), widths)
    return np.column_stack([h, w]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Windows drawn for some images; all lists have one number for each window, [n]."""

    train_area: np.ndarray  # of RandomResizedCrop's window, as a share of the image: sigma squared
    test_area: np.ndarray  # of the centre crop's, in the image before it is resized
    ratio: np.ndarray  # apparent size at test over that at training, with the short side resized to S

    @property
    def mean_sigma(self) -> float:
        return float(np.sqrt(self.train_area).mean())


def sample(sizes: np.ndarray, S: int, K_test: int, K_train: int, *, windows: int = WINDOWS, seed: int = 0) -> Sampled:
    """Draw ``windows`` windows, as evenly as can be over images with these stored heights and widths, int [b, 2].

    Raises ValueError without images.
    """
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    if not len(sizes):
        raise ValueError("no image sizes were given: name a folder that holds images with --data")
    each = np.resize(np.arange(len(sizes)), max(windows, len(sizes)))
    image = sizes[each]
    drawn = sample_windows(image[:, 0], image[:, 1], np.random.default_rng(seed))
    resized = resized_sizes(image, InputSpec(S, K_test))
    whole = image.prod(axis=1)
    train_zoom = K_train / np.sqrt(drawn.prod(axis=1))
    test_zoom = np.sqrt(resized.prod(axis=1) / whole)
    return Sampled(drawn.prod(axis=1) / whole, K_test**2 / resized.prod(axis=1), test_zoom / train_zoom)


# ---- one row for each set of images


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Ratios are of apparent sizes, test over train."""

    images: str
    paper: float  # Equation 5 with the paper's sigma: the same for all images
    exact_range: float  # Equation 5 with torchvision's smallest area
    refused: float | None  # share of draws that do not fit; None for images of several shapes
    integrated: float | None  # E[sigma] S / K_train with the windows that fit
    sampled: float  # the same, by drawing
    as_resized: float  # drawn, and with the short side resized to S, as is done
    test_area: float  # median share of the image that the centre crop covers
    windows: Sampled


def row(images: str, sizes: np.ndarray, S: int, K_test: int, K_train: int, *, windows: int = WINDOWS) -> Row:
    """``images`` names images with these stored heights and widths, int [b, 2]."""
    sampled = sample(sizes, S, K_test, K_train, windows=windows)
    shapes = np.unique(np.asarray(sizes).reshape(-1, 2), axis=0)
    rule = fitting(shapes[0, 1] / shapes[0, 0]) if len(shapes) == 1 else None
    return Row(
        images,
        expected_ratio(S, K_train),
        expected_ratio(S, K_train, (math.sqrt(AREA[0]), math.sqrt(AREA[1]))),
        None if rule is None else rule.refused,
        None if rule is None else rule.mean_sigma * S / K_train,
        sampled.mean_sigma * S / K_train,
        float(sampled.ratio.mean()),
        float(np.median(sampled.test_area)),
        sampled,
    )


def rows_of_shapes(S: int, K_test: int, K_train: int, *, windows: int = WINDOWS) -> list[Row]:
    """A row for each of SHAPES."""
    return [row(name, np.array([size]), S, K_test, K_train, windows=windows) for name, size in SHAPES.items()]
