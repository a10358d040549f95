"""Loader (e): SPDL's pipeline of threads, after its ImageNet example, with the aspect ratio kept and N random crops.

FFmpeg decodes and scales in one filter graph that holds no Python lock; the crops are views of the frame until they are
stacked; a batch is normalised at once, on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import spdl.io
import torch
from spdl.io.utils import get_ffmpeg_versions
from spdl.pipeline import PipelineBuilder
from torch import Tensor
from torchvision.transforms import v2

from pipelines.baselines import UINT8, Request
from pipelines.baselines.dataloaders import arrive

try:
    get_ffmpeg_versions()
except RuntimeError as error:  # it loads them when they are first used
    raise ImportError("SPDL finds no libraries of FFmpeg") from error


def spdl_loader(request: Request) -> Iterator[Tensor]:
    """Tensors [m, 3, K, K]. An image that cannot be decoded ends the stream with an error."""
    spec = request.spec
    scaled = scale_filter(spec.S, spec.interpolation)
    random_crop = v2.RandomCrop(spec.K)

    def load(path: str) -> Tensor:
        frame = spdl.io.to_torch(spdl.io.load_image(path, filter_desc=scaled)).permute(2, 0, 1)
        return torch.stack([random_crop(frame) for _ in range(request.crops)])

    builder: Any = PipelineBuilder()  # its type parameters change with every step, and without SPDL there are none
    pipeline = (
        builder.add_source(request.paths)
        .pipe(load, concurrency=max(request.workers, 1), output_order="input")
        .aggregate(request.batch_images)
        .pipe(torch.cat)
        .add_sink(buffer_size=1)
        .build(num_threads=max(request.workers, 1) + 1, max_failures=0)  # by default it drops what fails
    )
    mean = 255 * torch.tensor(spec.mean, device=request.device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(spec.std, device=request.device).view(1, 3, 1, 1)
    with pipeline.auto_stop():
        for batch in pipeline:
            crops = batch.to(request.device, non_blocking=True)
            if request.output == UINT8:
                yield crops
            else:
                yield arrive(crops.float().sub_(mean).div_(std), request)


def scale_filter(S: int, interpolation: str) -> str:
    """FFmpeg's filter for a short side of S with the long side floored, as torchvision has it; RGB out."""
    short, long = str(S), f"trunc({S}*max(iw,ih)/min(iw,ih))"
    width, height = f"if(lt(iw,ih),{short},{long})", f"if(lt(iw,ih),{long},{short})"
    return f"scale=w='{width}':h='{height}':flags={interpolation},format=rgb24"
