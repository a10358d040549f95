"""Dense crops: one run of the trunk over a whole frame, every window of its map a crop (Simonyan and Zisserman,
arXiv 1409.1556, "dense evaluation"; Sermanet et al., arXiv 1312.6229).

    dense = Dense(classifier)                      # raises DenseAbsent with the reason
    top, left, height, width = dense.frame(S_height, S_width)
    outputs = dense.windows(x)                     # DC: normalised [n, 3, height, width]
    outputs = dense.whole(x)                       # WI: any frame of at least K x K

A window is k x k places of the map, k the map's side for a K x K crop; windows follow each other at one place, which is
s pixels of the frame (the network's reduction). Each window is pooled by the network's own pooling. For a trunk
without padding, windows equal real crops at the same places; padding makes them differ at the crops' edges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.classifier import Classifier
from models.splitting import TORCHVISION_SPLITS, timm_pool
from pipelines.data.faults import raise_if_of_machine
from pipelines.dense_frames import MAX_SIDE, dense_frame, network_pixels, tiles

_LONG = 4096  # pixels that a probe is longer than a crop: far more than any reduction, so that it is found exactly
HEAD_ROWS = 16  # the head sees a multiple of it: elsewhere a row's last bit depends on its place (CPU matrix kernels)
_POOL_TOLERANCE = 1e-6  # of the largest number: two ways to sum the same numbers in float32


class DenseAbsent(Exception):
    """A network's map cannot be pooled window by window; the message says why."""


@dataclass(frozen=True, slots=True)
class DenseOutputs:
    """Means over the windows of each frame, float64: ``features`` [n, f] or None where the network has no feature
    level, ``logits`` and ``softmax`` [n, classes]. ``count``: windows per frame."""

    features: Tensor | None
    logits: Tensor
    softmax: Tensor
    count: int


@dataclass(frozen=True)
class Parts:
    """``trunk``: [n, 3, H, W] -> map [n, c, h, w]; ``pool``: map -> [n, c]; ``head``: [n, c] -> logits [n, classes]."""

    trunk: Callable[[Tensor], Tensor]
    pool: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    has_features: bool = True


def _parts(net: nn.Module, classifier: Classifier) -> Parts:
    """Raises DenseAbsent. ``net`` is the classifier's own network or a copy of it."""
    module: Any = net
    name = type(net).__name__
    if type(net).__module__.startswith("torchvision.") and name == "SqueezeNet":
        return Parts(
            trunk=lambda x: module.classifier[:-1](module.features(x)),
            pool=lambda scores: module.classifier[-1](scores).flatten(1),
            head=classifier.among_valid,  # the class scores are what is pooled
            has_features=False,
        )
    if not classifier.has_feature_level:
        raise DenseAbsent(f"{classifier.name}: {classifier.feature_absent_reason}")
    if type(net).__module__.startswith("torchvision."):
        entry = TORCHVISION_SPLITS[name]
        assert not isinstance(entry, str), "a classifier with a feature level has a split"
        trunk = entry[0]
        return Parts(
            trunk=lambda x: trunk(net, x),
            pool=lambda feature_map: functional.adaptive_avg_pool2d(feature_map, 1).flatten(1),
            head=classifier.head,
        )
    pool = timm_pool(net)
    if pool is None or not hasattr(module, "forward_features"):
        raise DenseAbsent(f"{classifier.name}: no feature map before the pooling is known here")
    own_pool = pool
    return Parts(module.forward_features, lambda feature_map: own_pool(feature_map).flatten(1), classifier.head)


class Dense:
    """Dense evaluation of a classifier, on its device. ``K`` pixels, ``k`` places of the map, ``s`` pixels a place.

    ``compiled_frames``: heights and widths of the frames whose graphs a compiled network compiles; others run as they
    are, for torch compiles only a few shapes of one function.

    Raises DenseAbsent where the network has no map to pool, or takes no other sizes.
    """

    def __init__(self, classifier: Classifier, *, max_side: int = MAX_SIDE) -> None:
        self.name, self.K = classifier.name, classifier.spec.K
        self.compiled_frames: frozenset[tuple[int, int]] = frozenset()
        self.parts = _parts(classifier.net, classifier)
        self.has_features = self.parts.has_features
        self.k, self.s = _reduction(classifier)
        self.max_side = max_side
        if max_side < self.K:
            raise ValueError(f"tiles of {max_side} pixels are smaller than a crop of {self.K}")
        self.averages = self._averages(next(classifier.net.parameters()))

    def frame(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the dense frame, centred in a resized frame of this size: sides
        ``K + s * floor((side - K) / s)``. Raises ValueError for a frame smaller than a crop."""
        top, left, h, w = dense_frame(np.array([[height, width]]), self.K, self.s)[0].tolist()
        return top, left, h, w

    def forwards(self, height: int, width: int) -> float:
        """Forward passes that a frame costs: the pixels that the network sees, of all tiles, by those of a crop."""
        return float(network_pixels(np.array([[height, width]]), self.K, self.s, self.max_side)[0] / self.K**2)

    @torch.inference_mode()
    def windows(self, x: Tensor) -> DenseOutputs:
        """DC: the means over all windows of normalised frames [n, 3, H, W], whose sides are those of ``frame``.

        Raises ValueError for other sides, or where the map's size is not ``(side - K) / s + k``.
        """
        return self.compilable_windows(x)

    def compilable_windows(self, x: Tensor) -> DenseOutputs:
        """``windows`` without switching to inference mode, and in plain integers: what torch.compile can trace."""
        height, width = x.shape[2:]
        if any(side < self.K or (side - self.K) % self.s for side in (height, width)):
            raise ValueError(f"{height} x {width} is not a dense frame of {self.name}: K + {self.s} n is, K {self.K}")
        total: DenseOutputs | None = None
        for rows in self._tiles(height):
            for columns in self._tiles(width):
                tile = x[:, :, rows[0] * self.s :, columns[0] * self.s :]
                tile = tile[:, :, : self._pixels(rows), : self._pixels(columns)]
                pooled = self.pooled_windows(self.parts.trunk(tile), rows[1], columns[1])
                total = _add(total, self._outputs(pooled))
        assert total is not None
        features = None if total.features is None else total.features / total.count
        return DenseOutputs(features, total.logits / total.count, total.softmax / total.count, total.count)

    @torch.inference_mode()
    def whole(self, x: Tensor) -> DenseOutputs:
        """WI: the map of frames [n, 3, H, W], at least K x K, pooled once by the network's own pooling. Not tiled."""
        return self._outputs(self.parts.pool(self.parts.trunk(x))[:, None])

    def pooled_windows(self, feature_map: Tensor, rows: int, columns: int) -> Tensor:
        """[n, c, h, w] -> [n, rows * columns, c], windows in reading order. Raises ValueError for another map size."""
        expected = (rows - 1 + self.k, columns - 1 + self.k)
        if tuple(feature_map.shape[2:]) != expected:
            raise ValueError(f"{self.name} gives a map of {tuple(feature_map.shape[2:])} where {expected} was expected")
        if self.averages:
            return functional.avg_pool2d(feature_map, self.k, stride=1).flatten(2).transpose(1, 2)
        return torch.stack(
            [
                self.parts.pool(feature_map[:, :, i : i + self.k, j : j + self.k])
                for i in range(rows)
                for j in range(columns)
            ],
            dim=1,
        )

    def _outputs(self, pooled: Tensor) -> DenseOutputs:
        """Sums over the windows [n, windows, c], float64."""
        n, count = pooled.shape[:2]
        flat = pooled.flatten(0, 1)
        padded = functional.pad(flat, (0, 0, 0, -len(flat) % HEAD_ROWS))
        logits = self.parts.head(padded)[: len(flat)].unflatten(0, (n, count)).double()
        features = pooled.double().sum(1) if self.has_features else None
        return DenseOutputs(features, logits.sum(1), logits.softmax(-1).sum(1), count)

    def _pixels(self, tile: tuple[int, int]) -> int:
        return self.K + (tile[1] - 1) * self.s

    def _tiles(self, side: int) -> Iterator[tuple[int, int]]:
        return tiles(side, self.K, self.s, self.max_side)

    @torch.inference_mode()
    def _averages(self, like: Tensor) -> bool:
        """Whether the network's own pooling of a window is its mean, as a sliding mean computes it."""
        x = torch.zeros(1, 3, self.K, self.K, device=like.device, dtype=like.dtype)
        shape = self.parts.trunk(x).shape
        window = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(x) * 3
        own, mean = self.parts.pool(window), functional.avg_pool2d(window, self.k, stride=1).flatten(1)
        return own.shape == mean.shape and bool((own - mean).abs().max() <= _POOL_TOLERANCE * window.abs().max())


def _add(total: DenseOutputs | None, more: DenseOutputs) -> DenseOutputs:
    if total is None:
        return more
    features = None if total.features is None or more.features is None else total.features + more.features
    return DenseOutputs(features, total.logits + more.logits, total.softmax + more.softmax, total.count + more.count)


@torch.inference_mode()
def _reduction(classifier: Classifier) -> tuple[int, int]:
    """(k, s), from maps of shapes alone: torch's meta device computes no numbers. Raises DenseAbsent."""
    K = classifier.spec.K
    trunk = _parts(copy.deepcopy(classifier.net).to("meta"), classifier).trunk

    def sides(width: int) -> tuple[int, int]:
        feature_map = trunk(torch.empty(1, 3, K, width, device="meta"))
        return feature_map.shape[2], feature_map.shape[3]

    try:
        k, across = sides(K)
        steps = sides(K + _LONG)[1] - across
        s = round(_LONG / steps) if steps > 0 else 0
        regular = s > 0 and k == across and all(sides(K + i * s) == (k, k + i) for i in (1, 2, 3, 7, 50))
    except Exception as error:
        raise_if_of_machine(error)
        raise DenseAbsent(f"{classifier.name} takes no frames larger than {K} x {K}: {error}") from error
    if not regular:
        raise DenseAbsent(f"{classifier.name}: its map does not grow by one place for a fixed number of pixels")
    return k, s
