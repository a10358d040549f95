"""Every loader that can be compared: our backends as loaders, and other people's (pipelines.baselines)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.backends import BACKENDS
from pipelines.baselines import BASELINES, UINT8, Loader, Request

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.batch import Backend
    from pipelines.crops import Planner

DALI_PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Ours:
    """One of pipelines.backends.BACKENDS, from files to the normalised tensors of the network's first layer.

    Graphs and workers are built once for each number of crops and kept, as a run of the benchmark keeps them.
    """

    backend: str
    batch_size: int  # crops per forward
    hw_load: float
    crop_operator: str | None = None
    hybrid_huffman_threshold: int | None = None
    kept: dict[int, Backend] = field(default_factory=dict)

    def __call__(self, request: Request) -> Iterator[Tensor]:
        """Tensors [m, 3, K, K]: normalised by models.normalization.Normalize, or uint8."""
        import torch

        pieces = self._crops(request)
        if request.output == UINT8:
            return (crops.to(request.device, non_blocking=True).permute(0, 3, 1, 2) for crops in pieces)
        return self._normalized(pieces, request, getattr(torch, request.output))

    def _crops(self, request: Request) -> Iterator[Tensor]:
        """uint8 [n, K, K, 3], without padding, on the backend's device."""
        if request.crops not in self.kept:
            self.kept[request.crops] = self.build(request)
        for batch in self.kept[request.crops].batches(request.rows):
            if batch.failed:
                one = batch.failed[0]
                raise RuntimeError(f"{request.files.listed[one.row]} cannot be read: {one.reason}")
            for group in batch.groups:
                yield group.crops  # without padding: every image has as many views

    def _normalized(self, pieces: Iterator[Tensor], request: Request, dtype: Any) -> Iterator[Tensor]:
        import torch

        from models.normalization import Normalize

        # As models.predict does it: a batch is filled, and normalised into memory that stays.
        on_cpu = request.device == "cpu"
        normalize = Normalize(request.spec, dtype=dtype, channels_last=on_cpu).to(request.device)
        K = request.spec.K
        buffer = torch.zeros((self.batch_size, K, K, 3), dtype=torch.uint8, device=request.device)
        out = torch.zeros((self.batch_size, K, K, 3)) if on_cpu else None
        for crops in pieces:
            for piece in crops.split(self.batch_size):
                with torch.inference_mode():
                    buffer[: len(piece)].copy_(piece, non_blocking=True)
                    normalized = normalize(buffer, out)[: len(piece)]
                yield normalized

    def build(self, request: Request) -> Backend:
        from pipelines.backends import backend
        from pipelines.batch import LoadConfig, size_hint

        gpu = BACKENDS[self.backend].on_gpu
        config = LoadConfig(
            batch_images=request.batch_images,
            workers=request.workers,
            prefetch=DALI_PREFETCH,
            hw_load=self.hw_load,
            crop_operator=self.crop_operator,
            hybrid_huffman_threshold=self.hybrid_huffman_threshold,
            size_hint=size_hint(request.files.sizes(np.unique(request.rows))) if gpu else None,
        )
        return backend(self.backend)(request.files, planner(request), config)


def planner(request: Request) -> Planner:
    """Our windows for a request: its number of random crops."""
    from pipelines.crops import Planner, parse_policy, union

    return Planner(request.spec, union([parse_policy(f"{request.crops}RC")]), request.seed)


OURS: dict[str, Loader] = {
    "dali-gpu": Loader(
        "f",
        "ours: DALI on the GPU, decode once, all windows in one operator, Normalize",
        None,
        needs="an NVIDIA GPU with a working driver, and `device` cuda",
        in_flight=DALI_PREFETCH + 1,
        tolerance_levels=1.5,
        gpu_only=True,
    ),
    "dali-cpu": Loader(
        "f",
        "ours: DALI on the CPU, decode once, all windows in one operator, Normalize",
        None,
        in_flight=DALI_PREFETCH + 1,
    ),
    "torchvision": Loader("f", "ours: torchvision's kernels in a DataLoader of whole planned batches, Normalize", None),
}


LOADERS: dict[str, Loader] = {**OURS, **BASELINES}


assert set(OURS) == set(BACKENDS), "every backend is a loader: add it to OURS"


def chosen(text: str | None) -> list[str]:
    """``a,dali-cpu``: names or letters of LOADERS, in the table's order. Raises ValueError for an unknown one."""
    if not text:
        return list(LOADERS)
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    letters = {loader.letter for loader in LOADERS.values()}
    if unknown := sorted(wanted - letters - set(LOADERS)):
        known = ", ".join(f"{loader.letter} {name}" for name, loader in LOADERS.items())
        raise ValueError(f"`only` {', '.join(unknown)}: no such loader; known are {known}")
    return [name for name, loader in LOADERS.items() if name in wanted or loader.letter in wanted]
