"""Loader (c): timm's own evaluation loader, as its validate.py sets it up: create_loader with the prefetcher.

It cuts one centre crop; its workers send uint8, the prefetcher moves and normalises whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.data import create_loader
from timm.data.dataset import ImageDataset
from timm.data.readers.reader import Reader
from torch import Tensor

from pipelines.baselines import UINT8, Paths, Request


class Listed(Reader):
    """These files in this order, opened as timm's own folder reader opens them."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return open(self.paths[index], "rb"), 0  # noqa: PTH123  as timm does

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.paths[index]


def timm_loader(request: Request) -> Iterator[Tensor]:
    """One centre crop of each image; the caller counts N passes as one image with N crops.

    Raises ValueError for uint8: timm's loader ends in normalised tensors.
    """
    if request.output == UINT8:
        raise ValueError("timm's create_loader delivers normalised tensors, not uint8")
    spec = request.spec
    loader = create_loader(
        ImageDataset(request.files.root, reader=Listed(request.paths)),
        input_size=(3, spec.K, spec.K),
        batch_size=request.batch_images,
        use_prefetcher=True,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        num_workers=request.workers,
        crop_pct=spec.K / (spec.S + 0.5),  # timm floors K / crop_pct; the half keeps rounding from giving S - 1
        crop_mode="center",
        pin_memory=torch.cuda.is_available(),
        img_dtype=getattr(torch, request.output),
        device=torch.device(request.device),
    )
    for crops, _ in loader:
        yield crops
