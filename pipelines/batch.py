"""What flows from the pipelines to the models (``CropBatch``), and the contract of every backend.

A batch is flat, not ``[b, v, c, h, w]``: images may have different numbers of views, views different sizes, and the
last batch is short. Crops stay uint8 until the network's own first step normalises them on its device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from pipelines.crops import Plan, Planner
    from pipelines.data.spans import Span


@dataclass(frozen=True, slots=True)
class Group:
    """Crops of one size, image-major: all views of an image are consecutive, in the plan's order."""

    crops: torch.Tensor  # uint8 [n, K, K, 3], on the backend's device
    image: np.ndarray  # int64 [n]: the data set's row; -1 marks padding
    view: np.ndarray  # int32 [n]: column of the planner's views; -1 marks padding


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that costs itself only."""

    row: int
    reason: str
    stage: str = "decode"
    facts: tuple[int, ...] = field(default=(), compare=False)  # pipelines.data.identity.FACTS of the file, where known


@dataclass(frozen=True, slots=True)
class CropBatch:
    """All crops of some images, in one group for each crop size, and their dense views. Every planned row is in
    ``rows`` or in ``failed``."""

    groups: list[Group]
    rows: np.ndarray  # int64 [b]: the images whose crops are here
    failed: list[Failure] = field(default_factory=list)
    frames: list[Group] = field(default_factory=list)  # dense views, uint8 [n, h, w, 3]: one group for each shape


class Source(Protocol):
    """What a backend needs of a data set. ``pipelines.data.dataset.Dataset`` is one."""

    def names(self, rows: np.ndarray) -> list[str]: ...
    def spans(self, rows: np.ndarray) -> list[Span]:
        """Where each image's bytes lie; either all are files or none is."""
        ...

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Stored height and width, int64 [b, 2]."""
        ...


DEFAULT_PREFETCH, DEFAULT_HW_LOAD = 2, 0.65
DEFAULT_MAX_RESIZED = 50.0  # megapixels; resizing takes up to 15 bytes for each of them
CROP_OPERATOR_NAMES = (
    "multi_paste",
    "warp_affine",
)  # DALI's operators for the crops (pipelines.backends.crop_ops); the first is the usual one


PASTE_BLOCK, PASTE_THREADS, CHANNELS = 256, 32, 3  # values of an output row for each CUDA block, and its threads


def paste_reads_out_of_bounds(K: int) -> bool:
    """Whether ``multi_paste`` on a GPU reads beyond its list of patches for crops of K x K pixels.

    Each thread of the last block in a row first searches the patch of its own first value, without a bound. Where the
    block is narrower than its threads, some of them start behind the row and find no patch. The pixels are right, so
    comparing them does not show it. Source: PasteKernel in dali/kernels/imgproc/paste/paste_gpu.h, the public source
    (not compared with the installed version).
    """
    return 0 < CHANNELS * K % PASTE_BLOCK < PASTE_THREADS


def crop_operator_at(K: int, usual: str | None, *, on_gpu: bool) -> str | None:
    """The name of the operator that makes crops of K x K pixels: ``usual``, unless it may read out of bounds there.

    ``usual``: one of CROP_OPERATOR_NAMES; None is the first of them.
    """
    paste, warp = CROP_OPERATOR_NAMES
    return warp if on_gpu and usual in (None, paste) and paste_reads_out_of_bounds(K) else usual


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """How a backend works; nothing in here changes a pixel on one backend (but see ``hw_load``)."""

    batch_images: int = 32
    workers: int = 2  # decoding threads or processes
    prefetch: int = DEFAULT_PREFETCH  # batches in flight
    device_id: int = 0  # of dali-gpu
    hw_load: float = (
        DEFAULT_HW_LOAD  # share of a GPU batch that the JPEG engine takes; its pixels may differ from CUDA's
    )
    # Of one image's frame. The windows of a larger one are cut one by one; with dense views it is not read.
    max_resized_megapixels: float = DEFAULT_MAX_RESIZED
    read_ahead: bool = True  # plan and read later batches while the consumer works; latency is measured without it
    mmap: bool = True  # DALI may map image files into memory: of no use on most network file systems, it says itself
    crop_operator: str | None = None  # one of CROP_OPERATOR_NAMES; None: the first that is right here
    # For dali-gpu. nvJPEG decodes images of more pixels with its hybrid Huffman decoder, the others on the CPU; None:
    # DALI's default, 1,000,000.
    hybrid_huffman_threshold: int | None = None
    # For dali-gpu: height and width for which memory is taken before the first image; larger ones take more later.
    size_hint: tuple[int, int] | None = None


def dense_groups(plan: Plan, frames: dict[int, torch.Tensor]) -> list[Group]:
    """The dense views of the images (by position in the batch) that have a resized frame, uint8 [H, W, 3]; stacked by
    shape, image by image."""
    import torch

    found: dict[tuple[int, int], list[tuple[int, int, torch.Tensor]]] = {}
    for i, frame in sorted(frames.items()):
        for dense in plan.dense:
            top, left, height, width = dense.frames[i].tolist()
            view = frame[top : top + height, left : left + width]
            view = view.flip(1) if dense.mirror else view
            found.setdefault((height, width), []).append((int(plan.rows[i]), dense.view, view))
    return [
        Group(
            torch.stack([view for _, _, view in each]),
            np.array([row for row, _, _ in each], dtype=np.int64),
            np.array([column for _, column, _ in each], dtype=np.int32),
        )
        for each in found.values()
    ]


STAGES = ("read", "decode", "resize")  # what a backend does before it cuts crops; each includes those before it


class Backend(Protocol):
    """Obeys the plan, decodes each image once, draws no numbers of its own.

    ``batches(rows)`` yields one CropBatch for each ``batch_images`` rows, in order; the last is short, and those of
    large images are (pipelines.bounds). An image that cannot be read, or would be too large, is in ``failed`` with its
    reason, and the others are bit for bit what they would have been.
    """

    name: str
    device: str  # where the crops lie: "cpu" or "cuda:0"
    config: LoadConfig

    def __init__(self, source: Source, planner: Planner, config: LoadConfig) -> None: ...

    @staticmethod
    def probe(device: str) -> str | None:
        """Why the backend cannot run on this machine, or None. ``device``: the GPU to try, for one that uses it."""
        ...

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]: ...

    def stage(self, what: str, rows: np.ndarray) -> Iterator[int]:
        """Do only the work up to ``what``, one of STAGES; yields the images done, batch by batch. For ceilings.

        A batch with an unreadable image may count as none.
        """
        ...

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(row, resized frame uint8 [H, W, 3]) of each readable image: what the crops of one of the plan's groups are
        cut from, for checks."""
        ...

    def on(self, source: Source) -> Backend:
        """The same backend on other images."""
        ...

    def close(self) -> None: ...


MOST_BATCH_IMAGES = {True: 256, False: 32}  # on a GPU, on a CPU; multicrop-bench tune tries others
HINTED_SHARE = 0.99  # of the images are no higher, and no wider, than the size hint


def size_hint(sizes: np.ndarray) -> tuple[int, int] | None:
    """(height, width) for LoadConfig from stored sizes [n, 2]: of nearly all images, as one panorama would multiply the
    memory that every decoding thread takes. None without images."""
    if not len(sizes):
        return None
    height, width = np.quantile(sizes, HINTED_SHARE, axis=0, method="higher").tolist()
    return int(height), int(width)


def default_batch_images(views: int, K: int, *, gpu: bool = False, most: int | None = None) -> int:
    """Images per batch, so that a batch of crops stays small whatever the number of views (128 MiB; 1 GiB on a GPU).
    ``most``: instead of MOST_BATCH_IMAGES."""
    budget_bytes = (1 << 30) if gpu else (128 << 20)
    most = most or MOST_BATCH_IMAGES[gpu]
    return int(np.clip(budget_bytes // (views * K * K * 3), 1, most))


def split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive pieces of at most ``size`` rows."""
    rows = np.asarray(rows, dtype=np.int64)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
