"""Activation statistics at each test resolution (FixRes Section 3.2).

    train = measure(Network(load("resnet:50"), batch_size=64), batches)                  # at K_train: the reference
    network = Network(load("resnet:50", img_size=320), batch_size=64)                    # the same weights at K_test
    test = measure(network, batches_at_320)
    test.pooled.zero_share, test.pooled.cdf(points)                                      # Figures 3 and 4

Touvron, Vedaldi, Douze, Jegou: Fixing the train-test resolution discrepancy (NeurIPS 2019), Sections 3.2 and 4.2, and
its supplement, A.1 (Fréchet) and A.2 (Gaussian). Written from these texts. No label is used anywhere: statistics may
come from any images. The paper fits on training images; its Figure 3 is of the validation images.
``models.fixres.distributions`` counts and fits, ``models.fixres.adaptation`` maps one resolution's statistics to
another's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.fixres.distributions import Frechet, Moments, Pooled
from models.fixres.last_activation import NotAdaptable, hook_last, last_activation, removed_after
from models.predict import Network
from pipelines.batch import CropBatch


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
    with removed_after(handles):
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
