"""The crops of training against torchvision's RandomResizedCrop, resizing and colour functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvF

from pipelines.backends.torchvision import Torchvision
from pipelines.batch import LoadConfig
from pipelines.crops import Planner
from pipelines.inputspec import InputSpec
from pipelines.training_crops import (
    AUGMENTATIONS,
    ONE_VIEW,
    EpochSource,
    FixedSizePlanner,
    ResizedCropPlanner,
    ShiftPlanner,
    TrainingCrops,
    colour_jitter,
    epoch_order,
    resized_crop_box,
)

IMAGES, K = 24, 32


@dataclass(frozen=True)
class Settings:
    """The least that decides training crops (``pipelines.training_crops.CropSettings``)."""

    augmentation: str = "test"
    jitter: float = 0.4
    min_area: float = 0.08
    seed: int = 0


QUICK = Settings()


@pytest.fixture(scope="module")
def images(colours: Any) -> Any:
    return colours


def crops_of(images: Any, settings: Settings, spec: InputSpec) -> TrainingCrops:
    config = LoadConfig(batch_images=5, workers=0)
    return TrainingCrops(
        images, len(images), settings, spec, lambda source, planner: Torchvision(source, planner, config)
    )


def test_test_da_is_the_centre_crop_of_evaluation(images: Any) -> None:
    spec = InputSpec(36, K)
    crops = crops_of(images, QUICK, spec)
    assert type(crops.planner) is Planner and not AUGMENTATIONS["test"].new_each_epoch
    for rows, found in crops.epoch(3, np.arange(IMAGES)):  # the epoch plays no part
        for row, crop in zip(rows.tolist(), found, strict=True):
            picture = tvF.pil_to_tensor(Image.open(images.paths([row])[0]))
            h, w = picture.shape[1:]
            resized = tvF.resize(picture, [36 * h // min(h, w), 36 * w // min(h, w)], antialias=True)
            expected = tvF.center_crop(resized, [K, K]).permute(1, 2, 0)
            assert (expected.int() - crop.int()).abs().max() <= 1  # its kernel for this memory layout rounds otherwise


def test_test_da2_shifts_sideways_only() -> None:
    planner = ShiftPlanner(InputSpec(40, 32), ONE_VIEW, 0)
    names = [f"{i}.jpg" for i in range(4000)]
    sizes = np.tile([[80, 100]], (4000, 1))  # resized to 40 x 50: offsets 0..18
    (group,) = planner.plan(np.arange(4000), names, sizes).groups
    y, x, mirror = group.windows.T
    assert set(y) == {4}
    counts = np.bincount(x, minlength=19)
    assert len(counts) == 19 and counts.min() > 150 and counts.max() < 280  # 210 each; six standard deviations
    assert abs(mirror.mean() - 0.5) < 0.05


def test_fixed_size_crops_lie_anywhere() -> None:
    planner = FixedSizePlanner(InputSpec(40, 32), ONE_VIEW, 0)
    names = [f"{i}.jpg" for i in range(4000)]
    (group,) = planner.plan(np.arange(4000), names, np.tile([[80, 100]], (4000, 1))).groups
    assert set(map(tuple, group.sizes)) == {(40, 50)}
    for offsets, room in ((group.windows[:, 0], 8), (group.windows[:, 1], 18)):
        counts = np.bincount(offsets, minlength=room + 1)
        assert len(counts) == room + 1
        expected = 4000 / (room + 1)
        assert abs(counts - expected).max() < 6 * expected**0.5
    assert abs(group.windows[:, 2].mean() - 0.5) < 0.05
    assert abs(np.corrcoef(group.windows.T)[np.triu_indices(3, 1)]).max() < 0.1  # the three are independent


def test_train_da_is_torchvisions_random_resized_crop(images: Any) -> None:
    """The regions' pixels, against resized_crop; border pixels see more of the image, sizes are whole."""
    spec = InputSpec(36, K)
    settings = replace(QUICK, augmentation="train", jitter=0.0)
    crops = crops_of(images, settings, spec)
    for rows, found in crops.epoch(2, np.arange(IMAGES)):
        for row, crop in zip(rows.tolist(), found, strict=True):
            picture = tvF.pil_to_tensor(Image.open(images.paths([row])[0]))
            top, left, h, w, mirror = resized_crop_box(0, f"{row:02d}.png in epoch 2", *picture.shape[1:])
            expected = tvF.resized_crop(picture, top, left, h, w, [K, K], antialias=True)
            expected = expected.flip(-1) if mirror else expected
            difference = (crop.permute(2, 0, 1).float() - expected.float()).abs().mean()
            assert difference < 6, (row, h, w)  # rounded sizes shift it by half a pixel at most; its mirror image: 20


@pytest.mark.parametrize("least", [0.08, 0.25])
def test_regions_are_distributed_as_torchvisions(least: float) -> None:
    torch.manual_seed(0)
    picture = torch.zeros(3, 75, 100)
    theirs = np.array([RandomResizedCrop.get_params(picture, [least, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([resized_crop_box(0, f"{i}", 75, 100, least)[:4] for i in range(4000)])
    for a, b in ((theirs[:, 2] * theirs[:, 3], ours[:, 2] * ours[:, 3]), *zip(theirs.T, ours.T, strict=True)):
        spread = a.std() * (2 / 4000) ** 0.5
        assert abs(a.mean() - b.mean()) < 4 * spread
        assert abs(a.std() - b.std()) < 4 * spread
    assert (ours[:, 0] + ours[:, 2]).max() == 75 and (ours[:, 1] + ours[:, 3]).max() == 100
    assert ours.min() == 0


@pytest.mark.parametrize(("height", "width"), [(20, 2000), (2000, 20)])
def test_shapes_without_a_region_get_the_centre(height: int, width: int) -> None:
    picture = torch.zeros(3, height, width)
    expected = RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])
    assert resized_crop_box(0, "x", height, width)[:4] == tuple(expected)
    planner = ResizedCropPlanner(InputSpec(32, 32), ONE_VIEW, 0)
    (group,) = planner.plan(np.arange(1), ["x"], np.array([[height, width]])).groups
    assert (group.windows[0, :2] + 32 <= group.sizes[0]).all() and (group.windows >= 0).all()


def test_epochs_differ_and_repeat(images: Any) -> None:
    settings = replace(QUICK, augmentation="train")

    def epoch(number: int, seed: int = 0, step: int = 1) -> torch.Tensor:
        rows = np.arange(IMAGES)[::step]
        crops = crops_of(images, replace(settings, seed=seed), InputSpec(36, K))
        found = list(crops.epoch(number, rows))
        assert np.array_equal(np.concatenate([r for r, _ in found]), rows)
        return torch.cat([c for _, c in found])

    first = epoch(0)
    assert torch.equal(first, epoch(0))
    assert torch.equal(first.flip(0), epoch(0, step=-1))
    for other in (epoch(1), epoch(0, seed=1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_epoch_source_numbers_rows_by_epoch(images: Any) -> None:
    source = EpochSource(images, IMAGES)
    rows = np.array([3, IMAGES + 3, 2 * IMAGES])
    assert source.names(rows) == ["03.png in epoch 0", "03.png in epoch 1", "00.png in epoch 2"]
    assert source.spans(rows) == images.spans(np.array([3, 3, 0]))
    assert np.array_equal(source.sizes(rows), images.sizes(np.array([3, 3, 0])))


def test_order_is_a_permutation_of_its_own_each_epoch() -> None:
    orders = [epoch_order(0, epoch, 100) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert np.array_equal(orders[1], epoch_order(0, 1, 100))
    assert not np.array_equal(orders[1], epoch_order(1, 1, 100))


@pytest.mark.parametrize(
    ("place", "theirs"), [(0, tvF.adjust_brightness), (1, tvF.adjust_contrast), (2, tvF.adjust_saturation)]
)
def test_colour_jitter_is_torchvisions(place: int, theirs: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    crops = torch.randint(0, 256, (3, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    amounts = torch.tensor([0.6, 1.0, 1.4])
    factors = torch.ones(3, 3)
    factors[:, place] = amounts
    found = colour_jitter(crops, factors)
    for crop, amount, ours in zip(crops, amounts.tolist(), found, strict=True):
        expected = theirs(crop.permute(2, 0, 1), amount).permute(1, 2, 0)
        assert (ours.int() - expected.int()).abs().max() <= 1  # it cuts off fractions, ours rounds
    assert torch.equal(found[1], crops[1])
    assert not torch.equal(found[0], crops[0])
