"""The two parametric adaptations of a network to a test resolution: Fréchet and Gaussian (FixRes Section 4.2).

    adaptation = ADAPTATIONS["frechet"].fit(train, test)                  # models.fixres.activations.measure's
    detach = attach(network.classifier, adaptation)                       # until detach(): adapted outputs

The supplement's A.1 (Fréchet) and A.2 (Gaussian); what its texts leave open, and what is done here, stands at
``FrechetAdaptation`` and ``GaussianAdaptation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from models.classifier import Classifier
from models.fixres.activations import Statistics
from models.fixres.distributions import Frechet
from models.fixres.last_activation import (
    NOT_RECTIFIED,
    LastActivation,
    NotAdaptable,
    hook_last,
    last_activation,
)


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
    split = classifier._split
    assert split is not None  # it has a feature level: last_activation saw to it
    classifier._split = replace(split, trunk=lambda x: adaptation.apply(split.trunk(x)))

    def detach() -> None:
        classifier._split = split

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
