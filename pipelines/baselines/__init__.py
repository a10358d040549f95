"""Other people's loaders, written as people write them, to be timed beside the backends (bench.compare.loaders).

Every one is asked for the same: these images, so many windows of K x K pixels from the short side S of each, on so many
cores, as tensors of one type on one device. They draw their windows themselves; what they deliver is compared with the
reference before it is timed.

A loader is one function, ``load(request) -> iterator of tensors [m, 3, K, K]``, image-major, and one entry in
``BASELINES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipelines.data.spans import Span
from pipelines.inputspec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

UINT8 = "uint8"  # an output: the crops' own levels; the others are torch's names of float types, normalised
BATCH_IMAGES = 64  # what people ask a DataLoader for


@dataclass(frozen=True, slots=True)
class Files:
    """Names and stored sizes in plain lists: a look-up in a table costs a loader 0.1 ms an image."""

    root: str
    listed: list[str]
    stored: np.ndarray  # int64 [images, 2]: height, width

    def __len__(self) -> int:
        return len(self.listed)

    def names(self, rows: np.ndarray) -> list[str]:
        return [self.listed[row] for row in rows]

    def spans(self, rows: np.ndarray) -> list[Span]:
        return [Span(f"{self.root}/{self.listed[row]}") for row in rows]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.stored[rows]


@dataclass(frozen=True, slots=True)
class Paths(Sequence[str]):
    """The path of each row, made when it is asked for: a stream has a million rows."""

    files: Files
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return f"{self.files.root}/{self.files.listed[self.rows[index]]}"


@dataclass(frozen=True, slots=True)
class Request:
    """What every loader is asked for alike."""

    files: Files
    rows: np.ndarray  # int64: the images to load, in order; to the loader an image that comes twice is two images
    spec: InputSpec
    crops: int  # windows of each image
    output: str  # UINT8, or a float type of torch's: normalised
    device: str  # where the tensors must be
    workers: int
    batch_images: int
    seed: int = 0

    @property
    def paths(self) -> Paths:
        return Paths(self.files, self.rows)


class Load(Protocol):
    """Tensors [m, 3, K, K] of ``request.output`` on ``request.device``: all of an image's, then the next's."""

    def __call__(self, request: Request) -> Iterator[Tensor]: ...


@dataclass(frozen=True, slots=True)
class Loader:
    """One loader. ``factory`` is None where it cannot be had; then ``needs`` is the reason."""

    letter: str  # its place in the list of comparisons; several may share one
    what: str
    factory: str | None  # "module:function", a `Load`, imported on use
    needs: str = ""  # what must be installed for it, beyond the project's own requirements
    passes: bool = False  # has no multi-crop: N crops of an image are N passes of one
    centre: bool = False  # cuts the centre window, not random ones
    makes_uint8: bool = True
    in_flight: int | None = None  # batches that arrive together; None: one from each worker
    tolerance_levels: float = 0.4  # as in pipelines.backends.BACKENDS; PIL and torchvision quantise twice (0.16)
    gpu_only: bool = False

    def load(self) -> Load:
        """The loader. Raises ImportError, with what to install, where its library is missing."""
        if self.factory is None:
            raise ImportError(self.needs)
        module, function = self.factory.split(":")
        try:
            return getattr(import_module(module), function)
        except ImportError as error:
            raise ImportError(f"{error}; it needs {self.needs or 'the packages of this project'}") from error


BASELINES: dict[str, Loader] = {
    "pil": Loader(
        "a",
        "Dataset with PIL, Resize, N x RandomCrop, ToTensor, Normalize, stack; DataLoader(batch_size=64, num_workers)",
        "pipelines.baselines.dataloaders:pil",
    ),
    # gps-augment reads and decodes the whole set once for each crop, also in its five- and ten-crop modes.
    "pil-per-crop": Loader(
        "b",
        "the same, decoding once for each crop: N passes of one crop, as published crop-averaging code does",
        "pipelines.baselines.dataloaders:pil_per_crop",
        passes=True,
        makes_uint8=False,
    ),
    "timm": Loader(
        "c",
        "timm's create_loader with its prefetcher; it has no multi-crop: N passes of one centre crop",
        "pipelines.baselines.timm_loader:timm_loader",
        passes=True,
        centre=True,
        makes_uint8=False,
    ),
    "tensor-v2": Loader(
        "d",
        "torchvision's decode_image and v2 transforms on tensors; DataLoader(batch_size=64, num_workers)",
        "pipelines.baselines.dataloaders:tensor_v2",
    ),
    # FFmpeg's scaler works on YCbCr in fixed point, and its decoder repeats chroma where libjpeg-turbo interpolates it:
    # 0.3 levels in the mean over demo images, 1.2 in the worst.
    "spdl": Loader(
        "e",
        "SPDL: a thread pool, FFmpeg decodes and scales, RandomCrop on tensors, normalised batch by batch",
        "pipelines.baselines.spdl_loader:spdl_loader",
        needs="the optional extra: pip install -e '.[baselines]', and FFmpeg's shared libraries (4 to 9), "
        "on Debian: apt-get install libavdevice59 or its later versions",
        in_flight=3,
        tolerance_levels=2.0,
    ),
    "ffcv": Loader(
        "e",
        "FFCV",
        None,
        needs="ffcv 1.0.2 has no wheel: pip builds it from source and stops without the headers of OpenCV and "
        "libturbojpeg. It reads no JPEG files but a .beton file of its own, so it would not be the same work either",
    ),
    "torchvision-cuda": Loader(
        "g",
        "torchvision's decode_jpeg on the GPU, v2 transforms there",
        "pipelines.baselines.cuda_jpeg:cuda_jpeg",
        needs="an NVIDIA GPU with a working driver, and `device` cuda",
        in_flight=1,
        tolerance_levels=1.5,  # nvJPEG has another IDCT and other chroma filters, as dali-gpu
        gpu_only=True,
    ),
}
