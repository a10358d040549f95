"""DataLoader, as in every tutorial: (a) PIL, (b) PIL once for each crop, (d) torchvision's decoder and v2 transforms.

Start method, prefetching and collation are DataLoader's defaults. Pinned memory where there is a GPU to send it to:
elsewhere DataLoader would only warn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from pipelines.baselines import UINT8, Order


class PilCrops(Dataset):
    """Item: [crops, 3, K, K] of one image."""

    def __init__(self, order: Order, crops: int) -> None:
        spec = order.spec
        self.paths = order.paths
        self.crops = crops
        self.resize = transforms.Resize(spec.S, InterpolationMode(spec.interpolation))
        finish: list[Any] = [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        if order.output == UINT8:
            finish = [transforms.PILToTensor()]
        self.crop = transforms.Compose([transforms.RandomCrop(spec.K), *finish])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self.resize(Image.open(self.paths[index]).convert("RGB"))
        return torch.stack([self.crop(image) for _ in range(self.crops)])


class TensorCrops(Dataset):
    """Item: [crops, 3, K, K] of one image."""

    def __init__(self, order: Order) -> None:
        spec = order.spec
        self.paths = order.paths
        self.crops = order.crops
        self.resize = v2.Resize(spec.S, InterpolationMode(spec.interpolation), antialias=True)
        finish: list[Any] = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
        if order.output == UINT8:
            finish = []
        self.crop = v2.Compose([v2.RandomCrop(spec.K), *finish])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self.resize(decode_image(self.paths[index], mode=ImageReadMode.RGB))
        return torch.stack([self.crop(image) for _ in range(self.crops)])


def pil(order: Order) -> Iterator[Tensor]:
    """Rival (a)."""
    return batches(PilCrops(order, order.crops), order)


def pil_per_crop(order: Order) -> Iterator[Tensor]:
    """Rival (b): one crop of each image; the caller counts N passes as one image with N crops."""
    return batches(PilCrops(order, 1), order)


def tensor_v2(order: Order) -> Iterator[Tensor]:
    """Rival (d)."""
    return batches(TensorCrops(order), order)


def batches(dataset: Dataset, order: Order) -> Iterator[Tensor]:
    """[m, 3, K, K] of the order's type, where it wants them."""
    loader = DataLoader(
        dataset, batch_size=order.batch_images, num_workers=order.workers, pin_memory=torch.cuda.is_available()
    )
    for batch in loader:
        yield arrive(batch.flatten(0, 1), order)


def arrive(crops: Tensor, order: Order) -> Tensor:
    """To the order's device, and there to its type."""
    return crops.to(order.device, non_blocking=True).to(getattr(torch, order.output))
