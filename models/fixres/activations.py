"""Activation statistics at each test resolution, and the two parametric adaptations to a resolution (FixRes).

    train = measure(Network(load("resnet:50"), batch_size=64), batches)                  # at K_train: the reference
    network = Network(load("resnet:50", img_size=320), batch_size=64)                    # the same weights at K_test
    test = measure(network, batches_at_320)
    test.pooled.zero_share, test.pooled.cdf(points)                                 # Figures 3 and 4
    adaptation = ADAPTATIONS["frechet"].fit(train, test)
    detach = attach(network.classifier, adaptation)                                 # until detach(): adapted outputs

Touvron, Vedaldi, Douze, Jegou: Fixing the train-test resolution discrepancy (NeurIPS 2019), Sections 3.2 and 4.2, and
its supplement, A.1 (Fréchet) and A.2 (Gaussian). Written from these texts. No label is used anywhere: statistics may
come from any images. The paper fits on training images; its Figure 3 is of the validation images.

What its texts leave open, and what is done here, stands at ``Frechet.fit``, ``FrechetAdaptation`` and
``GaussianAdaptation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from models.classifier import Classifier
from models.predict import Network
from pipelines.batch import CropBatch

ABOVE = 2.0  # the value that Section 3.2 counts above

# ---------------------------------------------------------------------------------------------------------------------
# The distribution of the pooled activations

# A bin holds the float32 numbers that agree in sign, exponent and the first 10 bits of the mantissa: 0.1 % wide at
# every size, so that no range is chosen beforehand and nothing falls outside. Counts are integers: the order of the
# images, their batches and the number of workers change no bit.
BITS_LEFT_OUT = 13
BINS = 1 << (32 - BITS_LEFT_OUT)
ZERO_BIN = BINS // 2


def bin_of(values: Tensor) -> Tensor:
    """Number of the bin of each value, int64 in 0..BINS-1, ascending with the values. float32, finite."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: minus zero becomes zero
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ascending >> BITS_LEFT_OUT).long() + ZERO_BIN


def lower_edges(bins: np.ndarray) -> np.ndarray:
    """The least value of each bin, float64; bin b holds [lower_edges(b), lower_edges(b + 1))."""
    ascending = (np.asarray(bins, dtype=np.int64) - ZERO_BIN) << BITS_LEFT_OUT
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


# ---------------------------------------------------------------------------------------------------------------------
# The two fitted distributions

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


# ---------------------------------------------------------------------------------------------------------------------
# The last activation before the pooling


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function. ``rectifier``: it gives exact zeros and nothing negative, as the paper's ReLU."""

    rectifier: bool
    what: str


# Class of the module -> what it is. timm and torch use the same names for the same function.
ACTIVATIONS: dict[str, Activation] = {
    "ReLU": Activation(True, "ReLU"),
    "ReLU6": Activation(True, "ReLU cut off at 6"),
    "SiLU": Activation(False, "SiLU"),
    "Swish": Activation(False, "SiLU"),
    "GELU": Activation(False, "GELU"),
    "GELUTanh": Activation(False, "GELU"),
    "GammaAct": Activation(False, "GELU or SiLU times a constant (timm's DeepMind NFNets)"),
    "Hardswish": Activation(False, "hard-swish"),
    "HardSwish": Activation(False, "hard-swish"),
    "Mish": Activation(False, "Mish"),
}

# Family -> (regular expression of the module's name, what it is), stated for people and checked by tests; the code
# finds the module by trying, so that any network can be measured.
LAST_ACTIVATION: dict[str, tuple[str, str]] = {
    "resnet": (r"layer4\.\d+\.(act[23]|relu)", "ReLU, behind the last block's sum with its shortcut"),
    "mobilenet": (
        r"features\.(12|16|18)\.2|blocks\.\d+\.\d+\.bn1\.act",
        "of the last 1x1 convolution: V2 ReLU6, V3 hard-swish",
    ),
    "efficientnet": (r"bn2\.act", "SiLU, of the last 1x1 convolution"),
    "nfnet": (r"final_act", "GELU (timm's small ones SiLU), behind the last 1x1 convolution"),
}

NOT_RECTIFIED = (
    "its last activation before the pooling, {name}, is {what}, which rounds nothing to zero: the Fréchet model is of "
    "the pooled positive parts of a Gaussian, the zeros left out (FixRes supplement A.1). Use gaussian, which matches "
    "what goes into the activation, whichever it is"
)


class NotAdaptable(ValueError):
    """An adaptation that a network cannot have; the message says why."""


@dataclass(frozen=True, slots=True)
class LastActivation:
    """The ``call``-th run (from 0) of the module ``name`` in a forward pass: torchvision's blocks share one ReLU."""

    name: str
    kind: Activation
    call: int
    first: str  # the module that runs first of all: a new pass begins


def last_activation(classifier: Classifier) -> LastActivation:
    """The elementwise activation whose output is what is pooled, found by running a small batch.

    It is checked by putting noise in the place of its output: the features must become the mean of the noise.

    Raises NotAdaptable where there is none: no feature level, layers or a sum behind the last activation, a function
    in place of a module, a pooling that is not the average.
    """
    net, x = classifier.net, _small_batch(classifier)
    ran: list[str] = []
    leaves = {name: module for name, module in net.named_modules() if not list(module.children())}
    hooks = [leaf.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, leaf in leaves.items()]
    with _removed_after(hooks), torch.inference_mode():
        features = classifier.features(x)
    if features is None:
        raise NotAdaptable(f"{classifier.name} cannot be adapted: {classifier.feature_absent_reason}")
    known = [name for name in ran if type(leaves[name]).__name__ in ACTIVATIONS]
    if known:
        name = known[-1]
        found = LastActivation(name, ACTIVATIONS[type(leaves[name]).__name__], ran.count(name) - 1, ran[0])
        if _is_pooled(classifier, found, x):
            return found
    raise NotAdaptable(
        f"{classifier.name} cannot be adapted: no activation function known here "
        f"({', '.join(dict.fromkeys(known[-1:])) or 'none runs'}) gives what is averaged into its features. FixRes "
        "works on the last ReLU before the average pooling; name a network that ends so, such as resnet:50"
    )


def _is_pooled(classifier: Classifier, at: LastActivation, x: Tensor) -> bool:
    noise: list[Tensor] = []

    def replace_by_noise(output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise.append(torch.rand(output.shape, generator=generator).to(output))
        return noise[-1]

    with _removed_after(hook_last(classifier, at, after=replace_by_noise)), torch.inference_mode():
        features = classifier.features(x)
    if features is None or len(noise) != 1 or noise[0].ndim != 4:
        return False
    pooled = noise[0].mean((2, 3))
    return features.shape == pooled.shape and bool(torch.allclose(features, pooled, rtol=1e-4, atol=1e-5))


def hook_last(
    classifier: Classifier,
    at: LastActivation,
    *,
    before: Callable[[Tensor], Tensor] | None = None,
    after: Callable[[Tensor], Tensor] | None = None,
) -> list[Any]:
    """Put ``before(input)`` for the activation's input, or ``after(output)`` for its output, [n, c, h, w] each.

    Returns the hooks' handles, each with ``remove()``.
    """
    modules = dict(classifier.net.named_modules())
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def on_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor | None:
        return before(arguments[0]) if before and calls == at.call else None

    def on_output(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        return after(output) if after and calls == at.call + 1 else None

    return [
        modules[at.first].register_forward_pre_hook(begin),
        modules[at.name].register_forward_pre_hook(on_input),
        modules[at.name].register_forward_hook(on_output),
    ]


@contextmanager
def _removed_after(handles: Iterable[Any]) -> Any:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _small_batch(classifier: Classifier) -> Tensor:
    parameter = next(classifier.net.parameters())
    K = classifier.spec.K
    x = torch.randn(2, 3, K, K, generator=torch.Generator().manual_seed(0))
    return x.to(parameter.device, parameter.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a network's last layers see of some crops at one resolution."""

    model: str
    weight_hash: str
    S: int
    K: int
    crops: int
    pooled: Pooled
    before: Moments | None  # of the last activation's input; None where there is no such activation
    before_absent_reason: str | None

    def summary(self) -> dict[str, float | int | str | None]:
        """The plain numbers for a record: shares in percent (Section 3.2), the Fréchet fit (Figure 6).

        A number that there is not is None, and ``frechet_absent_reason`` says why.
        """
        out: dict[str, float | int | str | None] = {
            "S": self.S,
            "K": self.K,
            "crops": self.crops,
            "values": self.pooled.values,
            "zero_percent": 100 * self.pooled.zero_share,
            "above_2_percent": 100 * self.pooled.above_share,
            "negative": self.pooled.negative,
            "not_finite": self.pooled.not_finite,
            "frechet_mu": None,
            "frechet_sigma": None,
            "frechet_distance": None,
            "frechet_absent_reason": None,
            "before_mean": None if self.before is None else float(self.before.mean.mean()),
            "before_std": None if self.before is None else float(self.before.std.mean()),
            "before_absent_reason": self.before_absent_reason,
        }
        try:
            fit = Frechet.fit(self.pooled)
        except ValueError as absent:
            return {**out, "frechet_absent_reason": str(absent)}
        return {
            **out,
            "frechet_mu": fit.mu,
            "frechet_sigma": fit.sigma,
            "frechet_distance": fit.distance(self.pooled),
        }


def measure(network: Network, batches: Iterable[CropBatch]) -> Statistics:
    """Run all crops of the batches and count; nothing of them is kept. Every view counts once.

    Not for a compiled network: the hook that reads the last activation's input changes what it holds in every pass.

    Raises ValueError where the network has no feature level, or no crop came.
    """
    classifier = network.classifier
    if not classifier.has_feature_level:
        raise ValueError(f"{classifier.name} has no pooled activations: {classifier.feature_absent_reason}")
    pooled, before, crops, rows = Pooled(), Moments(), 0, 0
    absent: str | None = None

    def take(feature_map: Tensor) -> Tensor:
        before.add(feature_map[:rows])
        return feature_map

    handles: list[Any] = []
    try:
        handles = hook_last(classifier, last_activation(classifier), before=take)
    except NotAdaptable as reason:
        absent = str(reason)
    with _removed_after(handles):
        for piece in _pieces(batches, network.batch_size):
            rows = len(piece)
            network.buffer[:rows].copy_(piece)  # what lies behind is padding, as in predict
            features, _ = network.forward()
            assert features is not None
            pooled.add(features[:rows])
            crops += rows
    if not crops:
        raise ValueError(f"no crop reached {classifier.name}: give images that can be read")
    spec = classifier.spec
    return Statistics(
        classifier.name, classifier.weight_hash, spec.S, spec.K, crops, pooled, None if absent else before, absent
    )


def _pieces(batches: Iterable[CropBatch], most: int) -> Iterable[Tensor]:
    """The crops without padding, uint8 [m, K, K, 3], at most ``most`` at a time."""
    for batch in batches:
        for group in batch.groups:
            real = torch.from_numpy(np.flatnonzero(group.image >= 0)).to(group.crops.device)
            yield from (group.crops[part] for part in real.split(most) if len(part))


# ---------------------------------------------------------------------------------------------------------------------
# The adaptations


class Adaptation(Protocol):
    """A transform that makes a network's activations at the test resolution look as at its training resolution."""

    name: ClassVar[str]
    where: ClassVar[str]  # what ``apply`` takes

    @classmethod
    def fit(cls, train: Statistics, test: Statistics) -> Adaptation:
        """From statistics of one network at K_train and at K_test. Raises ValueError for those of two networks."""
        ...

    def apply(self, values: Tensor) -> Tensor: ...

    def words(self) -> str:
        """For a record."""
        ...


def _require_same_network(train: Statistics, test: Statistics) -> None:
    if train.weight_hash != test.weight_hash:
        raise ValueError(
            f"the statistics are of two networks, {train.model} ({train.weight_hash}) at {train.K} and {test.model} "
            f"({test.weight_hash}) at {test.K}: measure one network at both resolutions"
        )


@dataclass(frozen=True, slots=True)
class FrechetAdaptation:
    """Supplement A.1 and Section 4.2: the pooled activations mapped "back to the old" distribution.

    With one shape, the quantile map from Fréchet(mu_0, sigma_0) at the test resolution to Fréchet(mu_ref, sigma_ref) at
    the training resolution is ``x -> mu_ref + sigma_ref / sigma_0 (x - mu_0)``: "the transformation is just an affine
    scaling, still ignoring zeros". One map for all features ("a scalar transformation"); zeros stay zeros. The text
    does not say what happens to a positive value that lands below zero: nothing does, here.
    """

    name: ClassVar[str] = "frechet"
    where: ClassVar[str] = "the pooled features"
    reference: Frechet  # mu_ref, sigma_ref
    found: Frechet  # mu_0, sigma_0
    K_train: int
    K_test: int

    @classmethod
    def fit(cls, train: Statistics, test: Statistics) -> FrechetAdaptation:
        """Raises ValueError for statistics of two networks or of activations that are not rectified."""
        _require_same_network(train, test)
        return cls(Frechet.fit(train.pooled), Frechet.fit(test.pooled), train.K, test.K)

    @property
    def scale(self) -> float:
        return self.reference.sigma / self.found.sigma

    @property
    def shift(self) -> float:
        return self.reference.mu - self.scale * self.found.mu

    def apply(self, values: Tensor) -> Tensor:
        """float [n, f] -> [n, f], of the same type."""
        wide = values.float()
        return torch.where(wide == 0, wide, self.scale * wide + self.shift).to(values.dtype)

    def words(self) -> str:
        return f"frechet {self.K_test} -> {self.K_train}: x -> {self.scale:.4f} x + {self.shift:.4f}, zeros kept"


@dataclass(frozen=True, slots=True)
class GaussianAdaptation:
    """Supplement A.2: "matching the distribution before the last ReLU with the distribution of training data at lower
    resolution", "by channel".

    No formula is printed. "Following the same idea" as A.1, it is the quantile map between the two Gaussians of each
    channel c: ``x -> mean_ref[c] + std_ref[c] / std_0[c] (x - mean_0[c])``, with means and deviations over all images
    and places of the map. What goes into ResNet's last ReLU is the sum of the last block and its shortcut. A channel
    without variance at the test resolution is only shifted; the text does not speak of it.

    The paper tries it before a ReLU. The map does not know what follows: two equal inputs of any elementwise function
    are equal behind it, so that it is applied before SiLU, GELU and hard-swish too, which is beyond the paper; only the
    reason that the paper gives, the sparsity behind the pooling, is a ReLU's.
    """

    name: ClassVar[str] = "gaussian"
    where: ClassVar[str] = "the feature map that goes into the last activation before the pooling"
    scale: Tensor  # float32 [c]
    shift: Tensor  # float32 [c]
    K_train: int
    K_test: int

    @classmethod
    def fit(cls, train: Statistics, test: Statistics) -> GaussianAdaptation:
        """Raises ValueError for statistics of two networks, NotAdaptable without a last activation."""
        _require_same_network(train, test)
        if train.before is None or test.before is None:
            raise NotAdaptable(str(train.before_absent_reason or test.before_absent_reason))
        std = test.before.std
        scale = torch.where(std > 0, train.before.std / std, torch.ones_like(std))
        shift = train.before.mean - scale * test.before.mean
        return cls(scale.float(), shift.float(), train.K, test.K)

    def apply(self, values: Tensor) -> Tensor:
        """float [n, c, h, w] -> [n, c, h, w], of the same type."""
        scale, shift = (t.to(values.device).view(1, -1, 1, 1) for t in (self.scale, self.shift))
        return (scale * values.float() + shift).to(values.dtype)

    def words(self) -> str:
        return (
            f"gaussian {self.K_test} -> {self.K_train}: before the last activation, by channel, x -> a x + b, "
            f"mean a {self.scale.mean().item():.4f}, mean b {self.shift.mean().item():.4f}"
        )


ADAPTATIONS: dict[str, type[FrechetAdaptation] | type[GaussianAdaptation]] = {
    "frechet": FrechetAdaptation,
    "gaussian": GaussianAdaptation,
}


def require_adaptable(classifier: Classifier, adaptation: str) -> LastActivation:
    """Raise NotAdaptable, with the reason, where the network cannot have it; before anything is measured."""
    if adaptation not in ADAPTATIONS:
        raise ValueError(f"`adapt` {adaptation!r} is not one of {', '.join(ADAPTATIONS)}")
    found = last_activation(classifier)
    if adaptation == "frechet" and not found.kind.rectifier:
        why = NOT_RECTIFIED.format(name=found.name, what=found.kind.what)
        raise NotAdaptable(f"{classifier.name} cannot be adapted with frechet: {why}")
    return found


def attach(classifier: Classifier, adaptation: FrechetAdaptation | GaussianAdaptation) -> Callable[[], None]:
    """Adapt all that ``classifier`` gives (features, and logits made of them) until the returned function is called.

    Attach before a Network is compiled. The weights and ``weight_hash`` stay what they are: whoever records a result
    must record ``adaptation.words()`` beside it.

    Raises NotAdaptable as ``require_adaptable``; ValueError for another K than that of ``adaptation``.
    """
    at = require_adaptable(classifier, adaptation.name)
    if adaptation.K_test != classifier.spec.K:
        raise ValueError(
            f"this adaptation is for crops of {adaptation.K_test}, and {classifier.name} takes {classifier.spec.K}: "
            "fit one for this size"
        )
    return ATTACH[adaptation.name](classifier, adaptation, at)


def _attach_behind_pooling(classifier: Classifier, adaptation: Adaptation, at: LastActivation) -> Callable[[], None]:
    cut = classifier._split
    assert cut is not None  # it has a feature level: last_activation saw to it
    classifier._split = replace(cut, trunk=lambda x: adaptation.apply(cut.trunk(x)))

    def detach() -> None:
        classifier._split = cut

    return detach


def _attach_before_activation(classifier: Classifier, adaptation: Adaptation, at: LastActivation) -> Callable[[], None]:
    handles = hook_last(classifier, at, before=adaptation.apply)

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


ATTACH: dict[str, Callable[[Classifier, Any, LastActivation], Callable[[], None]]] = {
    "frechet": _attach_behind_pooling,
    "gaussian": _attach_before_activation,
}
