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

from pipelines.baselines import UINT8, Request


class PilCrops(Dataset):
    """Item: [crops, 3, K, K] of one image."""

    def __init__(self, request: Request, crops: int) -> None:
        spec = request.spec
        self.paths = request.paths
        self.crops = crops
        self.resize = transforms.Resize(spec.S, InterpolationMode(spec.interpolation))
        finish: list[Any] = [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        if request.output == UINT8:
            finish = [transforms.PILToTensor()]
        self.crop = transforms.Compose([transforms.RandomCrop(spec.K), *finish])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self.resize(Image.open(self.paths[index]).convert("RGB"))
        return torch.stack([self.crop(image) for _ in range(self.crops)])


class TensorCrops(Dataset):
    """Item: [crops, 3, K, K] of one image."""

    def __init__(self, request: Request) -> None:
        spec = request.spec
        self.paths = request.paths
        self.crops = request.crops
        self.resize = v2.Resize(spec.S, InterpolationMode(spec.interpolation), antialias=True)
        finish: list[Any] = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
        if request.output == UINT8:
            finish = []
        self.crop = v2.Compose([v2.RandomCrop(spec.K), *finish])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self.resize(decode_image(self.paths[index], mode=ImageReadMode.RGB))
        return torch.stack([self.crop(image) for _ in range(self.crops)])


def pil(request: Request) -> Iterator[Tensor]:
    """Loader (a)."""
    return batches(PilCrops(request, request.crops), request)


def pil_per_crop(request: Request) -> Iterator[Tensor]:
    """Loader (b): one crop of each image; the caller counts N passes as one image with N crops."""
    return batches(PilCrops(request, 1), request)


def tensor_v2(request: Request) -> Iterator[Tensor]:
    """Loader (d)."""
    return batches(TensorCrops(request), request)


def batches(dataset: Dataset, request: Request) -> Iterator[Tensor]:
    """[m, 3, K, K] of the request's type, on its device."""
    loader = DataLoader(
        dataset, batch_size=request.batch_images, num_workers=request.workers, pin_memory=torch.cuda.is_available()
    )
    for batch in loader:
        yield arrive(batch.flatten(0, 1), request)


def arrive(crops: Tensor, request: Request) -> Tensor:
    """Move to the request's device, then convert to its type."""
    return crops.to(request.device, non_blocking=True).to(getattr(torch, request.output))
