"""Loader (g): torchvision decodes a batch of JPEGs on the GPU, v2 transforms work there on each image.

The next batch's files are read by threads while the GPU decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode, v2

from pipelines.baselines import UINT8, Request
from pipelines.baselines.dataloaders import arrive


def cuda_jpeg(request: Request) -> Iterator[Tensor]:
    """Tensors [m, 3, K, K]. Raises RuntimeError without a GPU."""
    if not torch.cuda.is_available() or not request.device.startswith("cuda"):
        raise RuntimeError("torchvision's CUDA decoder needs an NVIDIA GPU with a working driver, and `device` cuda")
    spec = request.spec
    resize = v2.Resize(spec.S, InterpolationMode(spec.interpolation), antialias=True)
    random_crop = v2.RandomCrop(spec.K)
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)])
    for encoded in _read_ahead(request):
        frames = [resize(image) for image in decode_jpeg(encoded, mode=ImageReadMode.RGB, device=request.device)]
        crops = torch.stack([random_crop(frame) for frame in frames for _ in range(request.crops)])
        yield crops if request.output == UINT8 else arrive(normalize(crops), request)


def _read_ahead(request: Request) -> Iterator[list[Tensor]]:
    paths, size = request.paths, request.batch_images
    with ThreadPoolExecutor(max(request.workers, 1)) as pool:
        coming = None
        for start in range(0, len(paths), size):
            wanted = range(start, min(start + size, len(paths)))
            following = [pool.submit(read_file, paths[i]) for i in wanted]
            if coming is not None:
                yield [one.result() for one in coming]
            coming = following
        if coming is not None:
            yield [one.result() for one in coming]
