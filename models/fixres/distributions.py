"""Distributions of activations: counts of the pooled ones, the Fréchet fit, a Gaussian's sums by channel.

FixRes Section 3.2 (what is counted) and its supplement, A.1 (Fréchet) and A.2 (Gaussian).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

ABOVE = 2.0  # the value that Section 3.2 counts above

# A bin holds the float32 numbers that agree in sign, exponent and the first 10 bits of the mantissa: 0.1 % wide at
# every size, so that no range is chosen beforehand and nothing falls outside. Counts are integers: the order of the
# images, their batches and the number of workers change no bit.
BITS_DROPPED = 13
BINS = 1 << (32 - BITS_DROPPED)
ZERO_BIN = BINS // 2


def bin_of(values: Tensor) -> Tensor:
    """Number of the bin of each value, int64 in 0..BINS-1, ascending with the values. float32, finite."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: minus zero becomes zero
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ascending >> BITS_DROPPED).long() + ZERO_BIN


def lower_edges(bins: np.ndarray) -> np.ndarray:
    """The least value of each bin, float64; bin b holds [lower_edges(b), lower_edges(b + 1))."""
    ascending = (np.asarray(bins, dtype=np.int64) - ZERO_BIN) << BITS_DROPPED
    bits = np.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).astype(np.int32)
    return bits.view(np.float32).astype(np.float64)


def _no_counts() -> np.ndarray:
    return np.zeros(BINS, dtype=np.int64)


@dataclass(slots=True)
class Pooled:
    """How often each size of pooled activation occurs, over all images and features together (FixRes Section 3.2).

    ``counts`` int64 [BINS] is of the finite values; zeros and values above ABOVE are counted exactly beside it.
    """

    counts: np.ndarray = field(default_factory=_no_counts)
    zeros: int = 0
    above: int = 0
    not_finite: int = 0  # infinite or NaN, as float16 gives in some networks; in no share

    def add(self, features: Tensor) -> None:
        """Count float [n, f]."""
        values = features.detach().float().flatten()
        finite = values[values.isfinite()]
        self.not_finite += len(values) - len(finite)
        self.zeros += int((finite == 0).sum())
        self.above += int((finite > ABOVE).sum())
        self.counts += torch.bincount(bin_of(finite), minlength=BINS).cpu().numpy()

    def merge(self, other: Pooled) -> None:
        """Add what another part of the images gave."""
        self.counts += other.counts
        self.zeros += other.zeros
        self.above += other.above
        self.not_finite += other.not_finite

    @property
    def values(self) -> int:
        """Finite values counted."""
        return int(self.counts.sum())

    @property
    def zero_share(self) -> float:
        """0..1, exact. Raises ValueError when nothing was counted, as all shares do."""
        return self.zeros / self._some()

    @property
    def above_share(self) -> float:
        """Share above ABOVE, 0..1, exact."""
        return self.above / self._some()

    def cdf(self, points: np.ndarray) -> np.ndarray:
        """Share of values at or below each point, float64 in 0..1: exact at the bins' edges, straight between them."""
        whole = self._some()
        edges, below = _cumulative(self._without_zeros())
        return (np.interp(points, edges, below) + self.zeros * (np.asarray(points) >= 0)) / whole

    def positive(self) -> tuple[np.ndarray, np.ndarray]:
        """(number [m], count [m]) of the bins that hold positive values."""
        counts = self._without_zeros()
        bins = np.flatnonzero(counts[ZERO_BIN:]) + ZERO_BIN
        return bins, counts[bins]

    @property
    def negative(self) -> int:
        """Values below zero: none behind a rectifier."""
        return int(self.counts[:ZERO_BIN].sum())

    def _without_zeros(self) -> np.ndarray:
        counts = self.counts.copy()
        counts[ZERO_BIN] -= self.zeros
        return counts

    def _some(self) -> int:
        if not self.values:
            raise ValueError("no finite activation was counted: give images whose crops reach the network")
        return self.values


def _cumulative(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the occupied stretch of bins, ascending, and how many values lie below each."""
    bins = np.flatnonzero(counts)
    if not len(bins):
        return np.zeros(1), np.zeros(1)
    stretch = np.arange(bins[0], bins[-1] + 2)
    return lower_edges(stretch), np.concatenate([[0], np.cumsum(counts[stretch[:-1]])])


SHAPE = 0.3  # the paper's xi: "can be kept constant at 0.3 to fit the distributions"


@dataclass(frozen=True, slots=True)
class Frechet:
    """``P(x) = exp(-(1 + xi (x - mu) / sigma) ** (-1 / xi))``, 0 below ``mu - sigma / xi`` (supplement A.1).

    SciPy calls it ``genextreme(-xi, mu, sigma)``, or ``invweibull(1 / xi, mu - sigma / xi, sigma / xi)``.
    """

    mu: float
    sigma: float
    xi: float = SHAPE

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """P(x), float64 in 0..1."""
        base = np.maximum(1 + self.xi * (np.asarray(x, dtype=np.float64) - self.mu) / self.sigma, 0)
        with np.errstate(divide="ignore"):
            return np.exp(-(base ** (-1 / self.xi)))

    @classmethod
    def fit(cls, pooled: Pooled, xi: float = SHAPE) -> Frechet:
        """mu and sigma "estimated using least-squares minimization, excluding the zeros" (A.1), ``xi`` kept.

        The text does not say of which differences, nor what excluding does to the shares. Here: the difference between
        P and the empirical CDF of the positive values alone, each value counting once (not each point of an axis), so
        that the result does not depend on a range that is drawn. The other reading, shares of all values with only the
        point at zero left out, would let P(0) stand for the zeros; where zeros are as rare as the paper's 0.5 % at 224
        the two agree, at its 29.8 % at 64 they do not.

        Raises ValueError with fewer than two different positive values, and where values are negative.
        """
        if pooled.negative:
            raise ValueError(
                f"{pooled.negative} of {pooled.values} pooled activations are negative, so that no rectifier stands "
                "before the pooling, and the Fréchet model is of rectified values (FixRes supplement A.1); use gaussian"
            )
        bins, counts = pooled.positive()
        if len(bins) < 2:
            raise ValueError(
                f"the Fréchet model needs different positive activations; {counts.sum()} of {pooled.values} are "
                "positive and no two of them differ: give more images, or another network"
            )
        edges, share = lower_edges(bins + 1), np.cumsum(counts) / counts.sum()
        weight = np.sqrt(counts / counts.sum())
        start = cls._from_quartiles(edges, share, xi)

        def differences(parameters: np.ndarray) -> np.ndarray:
            mu, sigma = start.mu + parameters[0] * start.sigma, start.sigma * math.exp(parameters[1])
            return weight * (cls(mu, sigma, xi).cdf(edges) - share)

        found = least_squares(differences, np.zeros(2), xtol=1e-12, ftol=1e-12, gtol=1e-12).x
        return cls(start.mu + float(found[0]) * start.sigma, start.sigma * math.exp(found[1]), xi)

    @classmethod
    def _from_quartiles(cls, edges: np.ndarray, share: np.ndarray, xi: float) -> Frechet:
        """The distribution with this median and this distance between the quartiles: where the search starts."""
        low, middle, high = edges[np.searchsorted(share, (0.25, 0.5, 0.75))]
        standard = ((-np.log([0.25, 0.5, 0.75])) ** -xi - 1) / xi
        sigma = float(max(high - low, 1e-3 * middle) / (standard[2] - standard[0]))
        return cls(float(middle) - sigma * float(standard[1]), sigma, xi)

    def distance(self, pooled: Pooled) -> float:
        """The largest difference between P and the positive values' CDF, 0..1 (Kolmogorov and Smirnov's)."""
        bins, counts = pooled.positive()
        share = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        above, below = (self.cdf(lower_edges(edge)) for edge in (bins + 1, bins))
        return float(max(np.abs(above - share[1:]).max(), np.abs(below - share[:-1]).max()))


@dataclass(slots=True)
class Moments:
    """Sums of a feature map's values by channel, over images and places: all that a Gaussian's fit needs.

    float64; another order of the images changes the last digits only.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [c]
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # [c]

    def add(self, feature_map: Tensor) -> None:
        """Take in float [n, c, h, w]."""
        values = feature_map.detach().double()
        self.count += values[:, 0].numel()
        self.total = self.total + values.sum((0, 2, 3)).cpu()
        self.squares = self.squares + values.square().sum((0, 2, 3)).cpu()

    @property
    def mean(self) -> Tensor:
        """float64 [c]."""
        return self.total / self._some()

    @property
    def std(self) -> Tensor:
        """float64 [c], with n in the denominator: the Gaussian of greatest likelihood, as ``scipy.stats.norm.fit``."""
        return (self.squares / self._some() - self.mean.square()).clamp(min=0).sqrt()

    def _some(self) -> int:
        if not self.count:
            raise ValueError("no feature map was seen: give images whose crops reach the network")
        return self.count
