"""The crops that training sees: plans like those of ``pipelines.crops``, which every backend obeys unchanged.

    crops = TrainingCrops(dataset, len(dataset), settings, spec, make_backend)
    for rows, batch in crops.epoch(3, epoch_order(settings.seed, 3, len(dataset))):    # int64 [n], uint8 [n, K, K, 3]
        ...
    crops.close()

The augmentations are those of FixRes (Touvron, Vedaldi, Douze, Jegou, NeurIPS 2019), Section 5 and supplement D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import Backend, Failure, Source
from pipelines.crops import GroupPlan, Plan, Planner, Sizes, centre_offset, parse_policy, uniforms, union
from pipelines.data.spans import Span
from pipelines.inputspec import InputSpec

ONE_VIEW = union([parse_policy("1MRC")])  # a view that may be mirrored: DALI prepares mirrored frames only when told
CENTRE_VIEW = union([parse_policy("CC")])

ASPECT, ATTEMPTS = (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop, "the default PyTorch data augmentation"


class ShiftPlanner(Planner):
    """Test DA2: "random horizontal shift of the center crop, horizontal flip". Every offset is equally likely; how far
    the paper shifts is not printed."""

    def windows(self, names: Sequence[str], resized: Sizes) -> np.ndarray:
        room = np.asarray(resized, dtype=np.int64) - self.spec.K
        u = np.array([uniforms(self.seed, name, "DA2", 1)[0] for name in names]).reshape(len(names), 2)
        out = np.empty((len(room), 1, 3), dtype=np.int64)
        out[:, 0, 0] = centre_offset(room[:, 0])
        out[:, 0, 1] = np.floor(u[:, 0] * (room[:, 1] + 1))
        out[:, 0, 2] = u[:, 1] < 0.5
        return out


@dataclass(frozen=True, slots=True)
class ResizedCropPlanner(Planner):
    """Train DA: RandomResizedCrop and flip, as a plan. The whole image is resized so that the drawn region becomes
    K x K, then the window is cropped: pixels beyond the region's border take part in its resampling, and both are
    rounded to whole pixels. It costs the pixels that are resized and thrown away."""

    min_area: float = 0.08

    def plan(self, rows: np.ndarray, names: Sequence[str], sizes: Sizes) -> Plan:
        sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        boxes = [
            resized_crop_box(self.seed, name, height, width, self.min_area)
            for name, (height, width) in zip(names, sizes.tolist(), strict=True)
        ]
        drawn = np.array(boxes, dtype=np.float64).reshape(-1, 5)  # top, left, height, width, mirror
        K, scale = self.spec.K, self.spec.K / drawn[:, 2:4]
        resized = np.maximum(np.rint(sizes * scale), K).astype(np.int64)
        corner = np.minimum(np.rint(drawn[:, :2] * scale).astype(np.int64), resized - K)
        windows = np.column_stack([corner, drawn[:, 4].astype(np.int64)])
        group = GroupPlan(K, resized, np.arange(len(rows)), np.zeros(len(rows), np.int32), windows)
        return Plan(np.asarray(rows, dtype=np.int64), sizes, (group,))


class FixedSizePlanner(Planner):
    """FixRes Section D, in place of RandomResizedCrop: "a Resize followed by a random crop with a fixed size", flip."""

    def windows(self, names: Sequence[str], resized: Sizes) -> np.ndarray:
        room = np.asarray(resized, dtype=np.int64) - self.spec.K
        u = np.array([uniforms(self.seed, name, "fixed", 2) for name in names]).reshape(len(names), 2, 2)
        out = np.empty((len(room), 1, 3), dtype=np.int64)
        out[:, 0, :2] = np.floor(u[:, 0] * (room + 1))
        out[:, 0, 2] = u[:, 1, 0] < 0.5
        return out


def resized_crop_box(
    seed: int, name: str, height: int, width: int, min_area: float = 0.08
) -> tuple[int, int, int, int, bool]:
    """(top, left, height, width, mirrored) of a RandomResizedCrop, by torchvision's algorithm from counter-based
    numbers: a function of (seed, name), the image's size and the smallest region, a share of its area."""
    u = uniforms(seed, name, "RandomResizedCrop", ATTEMPTS + 2)
    mirror = bool(u[-1, 0] < 0.5)
    log_aspect = np.log(ASPECT)
    for area_u, aspect_u in u[:ATTEMPTS].tolist():
        area = height * width * (min_area + area_u * (1 - min_area))
        aspect = math.exp(log_aspect[0] + aspect_u * (log_aspect[1] - log_aspect[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(place * (room + 1)) for place, room in zip(u[-2], (height - h, width - w), strict=True))
            return top, left, h, w, mirror
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w, mirror


class CropSettings(Protocol):
    """What decides the training crops; ``models.fixres.recipe.Recipe`` is one."""

    @property
    def augmentation(self) -> str: ...  # one of AUGMENTATIONS

    @property
    def jitter(self) -> float: ...  # strength of brightness, contrast and saturation, 0 to below 1

    @property
    def min_area(self) -> float: ...  # of RandomResizedCrop's region, a share of the image

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Augmentation:
    """``new_each_epoch``: an image is another crop in every epoch, so that nothing can be kept."""

    what: str
    planner: Callable[[InputSpec, CropSettings], Planner]
    new_each_epoch: bool
    jittered: bool


# FixRes Section 5, "Fine-tuning data-augmentation"
AUGMENTATIONS: dict[str, Augmentation] = {
    "test": Augmentation(
        "test DA: resize, centre crop", lambda spec, settings: Planner(spec, CENTRE_VIEW, settings.seed), False, False
    ),
    "test2": Augmentation(
        "test DA2: resize, centre crop shifted sideways at random, flip, colour jitter",
        lambda spec, settings: ShiftPlanner(spec, ONE_VIEW, settings.seed),
        True,
        True,
    ),
    "train": Augmentation(
        "train DA: RandomResizedCrop, flip, colour jitter",
        lambda spec, settings: ResizedCropPlanner(spec, ONE_VIEW, settings.seed, min_area=settings.min_area),
        True,
        True,
    ),
    "fixed": Augmentation(
        "resize, random crop of a fixed size, flip (Section D; no fine-tuning of the paper)",
        lambda spec, settings: FixedSizePlanner(spec, ONE_VIEW, settings.seed),
        True,
        False,
    ),
}

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, torchvision's and PIL's


def colour_jitter(crops: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation, in this order: uint8 [n, K, K, 3], factors float [n, 3] -> uint8 [n, K, K, 3].

    torchvision's ColorJitter (a factor of 1 changes nothing), but for its random order and its rounding in between.
    """
    brightness, contrast, saturation = factors.to(crops.device, torch.float32)[:, :, None, None, None].unbind(1)
    weights = torch.tensor(GREY, device=crops.device)
    x = (crops.float() * brightness).clamp(0, 255)
    mean = (x @ weights).mean((1, 2))[:, None, None, None]
    x = (mean + contrast * (x - mean)).clamp(0, 255)
    grey = (x @ weights)[..., None]
    return (grey + saturation * (x - grey)).clamp(0, 255).round().byte()


class EpochSource:
    """A data set whose row ``e * images + i`` is image i in epoch e: the name tells the epoch, and random windows are a
    function of the name (DESIGN rule 2). So one backend serves all epochs, and draws nothing itself."""

    def __init__(self, source: Source, images: int) -> None:
        self.source, self.images = source, images

    def names(self, rows: np.ndarray) -> list[str]:
        """``cat/1.jpg in epoch 3``."""
        own = self.source.names(rows % self.images)
        return [f"{name} in epoch {e}" for name, e in zip(own, (rows // self.images).tolist(), strict=True)]

    def spans(self, rows: np.ndarray) -> list[Span]:
        return self.source.spans(rows % self.images)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.source.sizes(rows % self.images)


MakeBackend = Callable[[Source, Planner], Backend]


class TrainingCrops:
    """One crop an image and epoch, under the settings' augmentation, through any backend. ``close`` it.

    ``failed`` collects the images that could not be read, each once.
    """

    def __init__(
        self, source: Source, images: int, settings: CropSettings, spec: InputSpec, make_backend: MakeBackend
    ) -> None:
        self.images, self.settings = images, settings
        self.augmentation = AUGMENTATIONS[settings.augmentation]
        self.source = EpochSource(source, images)
        self.planner = self.augmentation.planner(spec, settings)
        self.backend = make_backend(self.source, self.planner)
        self.failed: dict[int, Failure] = {}

    def epoch(self, epoch: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows int64 [n], crops uint8 [n, K, K, 3] on the backend's device), batch by batch, in the order of ``rows``;
        images that cannot be read are passed over and listed. ``epoch`` matters where the augmentation draws."""
        shown = epoch if self.augmentation.new_each_epoch else 0
        for batch in self.backend.batches(shown * self.images + np.asarray(rows, dtype=np.int64)):
            for failure in batch.failed:
                row = failure.row % self.images
                self.failed[row] = Failure(row, failure.reason, failure.stage)
            for group in batch.groups:
                real = np.flatnonzero(group.image >= 0)
                if len(real):
                    found = group.image[real]
                    yield found % self.images, self._jittered(found, group.crops[torch.from_numpy(real)])

    def _jittered(self, rows: np.ndarray, crops: Tensor) -> Tensor:
        if not (self.augmentation.jittered and self.settings.jitter):
            return crops
        u = [uniforms(self.settings.seed, name, "jitter", 2).ravel()[:3] for name in self.source.names(rows)]
        return colour_jitter(crops, 1 + self.settings.jitter * (2 * torch.from_numpy(np.array(u)) - 1))

    def close(self) -> None:
        self.backend.close()


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """All rows in an order that is a function of (seed, epoch), int64 [images]."""
    return np.argsort(uniforms(seed, f"epoch {epoch}", "order", images)[:, 0], kind="stable")
