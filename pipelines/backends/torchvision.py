"""The same contract on torchvision and a DataLoader: what one gets without DALI, as fast as that library allows.

A worker process decodes (libjpeg-turbo) and resizes a whole batch with torchvision's uint8 kernels; what travels
through the queue is the resized frames or the crops, whichever is fewer bytes: one tensor a batch, so one piece of
shared memory. JPEGs that libjpeg-turbo decodes to RGB go through it (``pipelines.backends.jpeg``); anything else under
an image's name (PNG, CMYK ...) goes through PIL, as timm loads it.

At 20 crops of 224 pixels each crop's bytes are copied once, into memory that is taken anew: 695 images/s on two cores,
against 385 when crops were stacked and joined (with half of them mirrored 655, against 175). Of the rate of decoding
alone (1,430 images/s since headers are read by libjpeg-turbo) resizing too leaves 0.79, one crop 0.71, 20 crops 0.59.

Tried and not taken: a worker that fills the shared memory which it sends, instead of copying into it. In three
alternating pairs of runs 1.04 times as fast at one crop, 1.00 times at 20, by a private function of torch.

Workers come from a fork server and stay: forking a process in which DALI's or OpenMP's threads run hangs (it did), and
a spawned worker imports torch anew for every pass.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.queues
import os
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from pipelines.backends.jpeg import decode_rgb, header_of
from pipelines.batch import CropBatch, Failure, Group, LoadConfig, Source, dense_groups
from pipelines.bounds import bounded, fitting, pieces
from pipelines.crops import Plan, Planner
from pipelines.data.decode import changed, decode_error
from pipelines.data.faults import MachineFault, fault, is_of_machine
from pipelines.data.spans import Span
from pipelines.workers import safe_start

log = logging.getLogger(__name__)


class Torchvision:
    """See ``pipelines.batch.Backend`` for the contract."""

    name = "torchvision"
    device = "cpu"

    def __init__(self, source: Source, planner: Planner, config: LoadConfig) -> None:
        self.source, self.planner, self.config = source, planner, config
        self._upcoming = _Upcoming(source)
        self._memory = BufferPool()
        self._loader: DataLoader | None = None

    @staticmethod
    def probe(device: str) -> str | None:
        """None: importing this module has shown that torchvision works."""
        return None

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        """One CropBatch for each ``batch_images`` rows, in order."""
        yield from bounded(self.source, self.planner, rows, self.config, self._batches, self.device)

    def _batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        for plan, loaded in self._load(rows, ship_frames=None):
            groups = []
            for g, group in enumerate(plan.groups):
                kept = np.isin(group.image, loaded.good)
                crops = loaded.crops[g] if loaded.crops else self._cut(plan, loaded, g)
                groups.append(Group(crops, plan.rows[group.image[kept]], group.view[kept]))
            yield CropBatch(groups, plan.rows[loaded.good], loaded.failures(plan), self._dense(plan, loaded))

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(row, resized frame uint8 [H, W, 3]) of each readable image, for one of the plan's groups."""
        for plan, loaded in self._load(self._fitting(rows), ship_frames=True):
            for i, frame in zip(loaded.good, loaded.frames(plan, group), strict=True):
                yield int(plan.rows[i]), frame

    def stage(self, what: str, rows: np.ndarray) -> Iterator[int]:
        """The workers' work only as far as ``what`` (``read``, ``decode``, ``resize``); yields images, by batch."""
        for _, loaded in self._load(self._fitting(rows), ship_frames=None, until=what):
            yield len(loaded.good)

    def on(self, source: Source) -> Any:
        """The same backend on other images."""
        return type(self)(source, self.planner, self.config)

    def _fitting(self, rows: np.ndarray) -> np.ndarray:
        return fitting(self.source, self.planner, rows, self.config)

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None
        self._memory = BufferPool()

    def _load(
        self, rows: np.ndarray, *, ship_frames: bool | None, until: str = "crops"
    ) -> Iterator[tuple[Plan, _Loaded]]:
        left = _Left(pieces(self.source, self.planner, rows, self.config, gpu=False))
        self._upcoming.ship_frames, self._upcoming.until = ship_frames, until
        lost = 0  # times that a worker was lost since the last batch that came
        while left.first() is not None:
            self._upcoming.left = left
            try:
                for batch in self._from_workers():
                    left.given.popleft()
                    lost = 0
                    yield batch
            except RuntimeError as error:
                if not is_lost_worker(error):
                    raise
                self._loader = None  # its other workers may wait for what the lost one held
                lost += 1
                if lost == MOST_LOST:
                    raise worker_lost(self.source.names(left.given[0][:1])[0]) from None
                log.warning("a worker process ended (out of memory?): its batch is read again by new workers")

    def _from_workers(self) -> Iterator[tuple[Plan, _Loaded]]:
        """The upcoming pieces, loaded, in order. The workers are started where there are none."""
        if self._loader is None:
            workers = self.config.workers
            self._loader = DataLoader(
                _Batches(self.planner, _context().Lock() if workers > 1 else None),
                sampler=self._upcoming,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=self.config.prefetch if workers else None,
                persistent_workers=workers > 0,
                multiprocessing_context=_context() if workers else None,
                worker_init_fn=_set_up_worker,
                collate_fn=sendable,
            )
        try:
            with safe_start():
                batches = iter(self._loader)
            yield from batches
        except MachineFault as error:  # a worker's, whose traceback the loader puts around the message
            raise MachineFault(str(error).strip().rpartition("MachineFault: ")[2]) from None
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            raise MachineFault(
                f"the name of the folder for temporary files, {tempfile.gettempdir()}, is too long for the workers' "
                "sockets: set TMPDIR to one with a short name"
            ) from None

    def _dense(self, plan: Plan, loaded: _Loaded) -> list[Group]:
        if not plan.dense:
            return []
        frames = zip(loaded.good.tolist(), loaded.frames(plan, 0), strict=True)
        groups = dense_groups(plan, {i: torch.from_numpy(frame) for i, frame in frames})
        pinned = torch.cuda.is_available()
        return [replace(group, crops=group.crops.pin_memory()) for group in groups] if pinned else groups

    def _cut(self, plan: Plan, loaded: _Loaded, g: int) -> torch.Tensor:
        frames = dict(zip(loaded.good.tolist(), loaded.frames(plan, g), strict=True))
        crops = cut_all(plan, g, frames, self._memory.take)
        return crops.pin_memory() if torch.cuda.is_available() else crops


MOST_LOST = 2  # workers lost in a row, without a batch in between, that end the reading


def is_lost_worker(error: RuntimeError) -> bool:
    """Whether the loader says that one of its processes is gone."""
    return str(error).startswith("DataLoader worker")


def worker_lost(name: str) -> MachineFault:
    """The error to raise after MOST_LOST tries; ``name``: the first image of the batch that was read."""
    return MachineFault(
        f"a worker process ended {MOST_LOST} times while the batch from {name} on was read: the system may have killed "
        "it for want of memory (its log says so); free memory, or use fewer `workers` or a smaller `batch_images`"
    )


class BufferPool:
    """Memory for crops, taken anew when nobody holds the crops any more: 20 crops of 32 images are 96 MB, and fresh
    pages for them cost a tenth of the rate."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def take(self, shape: Shape) -> np.ndarray:
        """uint8, not initialised. What is to live longer than the array that is returned must hold that array itself,
        as a tensor made of it does: NumPy's slices hold only the memory behind it."""
        size = int(np.prod(shape))
        behind = self.free.pop() if self.free else np.empty(size, np.uint8)
        if len(behind) < size:
            behind = np.empty(size, np.uint8)
        array = behind[:size].reshape(shape)
        weakref.finalize(array, self.free.append, behind).atexit = False
        return array


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a worker sends of one batch: for each group the crops, or the frames' pixels end to end."""

    good: np.ndarray  # positions in the batch that could be read
    failed: list[tuple[int, str]]
    crops: list[torch.Tensor]  # uint8 [n, K, K, 3], one a group, or empty
    pixels: list[torch.Tensor]  # uint8 [bytes], one a group, or empty

    def frames(self, plan: Plan, g: int) -> Iterator[np.ndarray]:
        """The good images' frames of group ``g``, uint8 [H, W, 3]."""
        start, flat = 0, self.pixels[g].numpy()
        for h, w in plan.groups[g].sizes[self.good].tolist():
            yield flat[start : start + h * w * 3].reshape(h, w, 3)
            start += h * w * 3

    def failures(self, plan: Plan) -> list[Failure]:
        return [Failure(int(plan.rows[i]), reason) for i, reason in self.failed]


class _Piped:
    """A tensor that travels through the queue's pipe as bytes, and not by shared memory; it arrives as a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.array = tensor.numpy()

    def __reduce__(self) -> tuple[Callable[[np.ndarray], torch.Tensor], tuple[np.ndarray]]:
        return torch.from_numpy, (self.array,)


def sendable(item: Any) -> tuple[Plan, _Loaded]:
    """What a worker sends, in shared memory as far as there is room.

    Without this step PyTorch asks for the memory in a thread of the worker, where a refusal (a container's /dev/shm has
    64 MB) loses the batch, and the main process waits for it for ever.
    """
    if get_worker_info() is None:
        return item
    plan, loaded = item
    crops, pixels = ([_in_shared_memory(tensor) for tensor in part] for part in (loaded.crops, loaded.pixels))
    return plan, replace(loaded, crops=crops, pixels=pixels)


def _in_shared_memory(tensor: torch.Tensor) -> Any:
    try:
        return tensor.share_memory_()
    except (RuntimeError, OSError):
        return _Piped(tensor)


def _set_up_worker(worker: int) -> None:
    # A private hook of CPython's, which concurrent.futures uses too.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_without_room)  # type: ignore[attr-defined]
    _end_with_parent()


def _end_without_room(error: Exception, item: Any) -> None:
    """End this worker process when what it read cannot be sent, most likely for want of memory.

    Python would drop the batch, and the main process would wait for it for ever. A worker that ends is replaced.
    """
    print(f"a worker process could not send what it read: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_with_parent() -> None:
    """End this worker process when the one that it loads for is killed.

    torch's own watchdog looks at the process's parent, which here is the fork server; and that one waits for its
    children: both stayed for ever.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end with parent").start()


def _context() -> Any:
    """Worker processes from a server that has imported this module once and runs no threads."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["pipelines.backends.torchvision"])
    return context


class _Left:
    """The rows of the batches that have not come yet. They are looked at as they are needed: timing asks for a million
    rows, of which a round reads a few thousand."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self.given: deque[np.ndarray] = deque()  # to workers; their batches have not come
        self.rest = pieces

    def first(self) -> np.ndarray | None:
        """Those of the next batch; None: every batch has come."""
        if not self.given:
            self.given.extend(islice(self.rest, 1))
        return self.given[0] if self.given else None

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from list(self.given)  # once more, where workers were lost
        for rows in self.rest:
            self.given.append(rows)
            yield rows


class _Upcoming(Sampler):
    """What the workers get for each batch: the names and sizes travel, so that no worker holds the data set's table."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.left = _Left(iter(()))
        self.ship_frames: bool | None = None
        self.until = "crops"

    def __iter__(self) -> Iterator[_Request]:
        for rows in self.left:
            source = self.source
            names, spans, sizes = source.names(rows), source.spans(rows), source.sizes(rows)
            yield _Request(rows, names, spans, sizes, self.ship_frames, self.until)


@dataclass(frozen=True, slots=True)
class _Request:
    """One batch to load. ``ship_frames``: send frames (True) or whichever is fewer bytes (None)."""

    rows: np.ndarray
    names: list[str]
    spans: list[Span]
    sizes: np.ndarray
    ship_frames: bool | None
    until: str  # "crops", or the stage at which to stop


class _Batches(Dataset):
    """Item ``request``: the batch's plan, and what became of it."""

    def __init__(self, planner: Planner, lock: Any) -> None:
        self.planner, self.lock = planner, lock

    def _turn(self, size: np.ndarray) -> AbstractContextManager[Any]:
        """Wait until no other worker holds a large image, if this one is large."""
        return self.lock if self.lock is not None and size.prod() > LARGE_PIXELS else nullcontext()

    def __getitem__(self, request: _Request) -> tuple[Plan, _Loaded]:
        plan = self.planner.plan(request.rows, request.names, request.sizes)
        frames: list[dict[int, np.ndarray]] = [{} for _ in plan.groups]
        failed: list[tuple[int, str]] = []
        for k, span in enumerate(request.spans):
            with self._turn(plan.source_sizes[k]):
                if reason := self._read(request, plan, k, span, frames):
                    failed.append((k, reason))
        good = np.setdiff1d(np.arange(len(request.rows)), [k for k, _ in failed])
        if request.until != "crops":
            return plan, _Loaded(good, failed, [], [])
        if request.ship_frames or plan.dense or frames_are_smaller(plan):
            pixels = [
                torch.from_numpy(np.concatenate([f.ravel() for f in done.values()] or [EMPTY])) for done in frames
            ]
            return plan, _Loaded(good, failed, [], pixels)
        return plan, _Loaded(good, failed, [cut_all(plan, g, done, fresh) for g, done in enumerate(frames)], [])

    def _read(self, request: _Request, plan: Plan, k: int, span: Span, frames: list[dict[int, np.ndarray]]) -> str:
        """Read image ``k`` as far as is asked for, its frames into ``frames``. Returns why it cannot be read, or "".

        Raises MachineFault when that is not the image's fault.
        """
        try:
            data = span.read()
            if request.until == "read":
                return ""
            header = header_of(data)
            if reason := changed(plan.source_sizes[k], np.array([header.height, header.width])):  # before it is decoded
                return reason
            image = decode_rgb(data)
        except Exception as error:  # whatever a decoder raises, the image costs itself only
            if is_of_machine(error):
                raise fault(request.names[k], error) from None
            return f"torchvision: {type(error).__name__}; PIL: {decode_error(span)}"
        if request.until != "decode":
            mode = InterpolationMode(self.planner.spec.interpolation)
            for group, done in zip(plan.groups, frames, strict=True):
                try:
                    done[k] = resize(image, group.sizes[k].tolist(), mode, antialias=True).permute(1, 2, 0).numpy()
                except (MemoryError, RuntimeError) as error:
                    raise fault(request.names[k], error) from None
        return ""


def frames_are_smaller(plan: Plan) -> bool:
    """Whether the resized frames are fewer bytes than the crops cut from them."""
    frames = sum(int(group.sizes.prod(axis=1).sum()) for group in plan.groups)
    crops = sum(len(group.image) * group.K**2 for group in plan.groups)
    return frames < crops


EMPTY = np.zeros(0, np.uint8)
LARGE_PIXELS = 32_000_000  # of an image that only one worker at a time may decode: each takes seven bytes a pixel
Shape = tuple[int, ...]


def fresh(shape: Shape) -> np.ndarray:
    return np.empty(shape, np.uint8)


def cut_all(plan: Plan, g: int, frames: dict[int, np.ndarray], take: Callable[[Shape], np.ndarray]) -> torch.Tensor:
    """Crops uint8 [n, K, K, 3] of group ``g``, of the images (by position in the batch) that have a frame; ``take``
    gives the memory for them.

    Each crop is copied once, to where it stays. A mirrored window (y, x) is the window (y, W - K - x) of the frame's
    mirror image, made once: NumPy copies backwards pixel by pixel, 30 times as slowly.
    """
    group, K = plan.groups[g], plan.groups[g].K
    kept = np.isin(group.image, list(frames))
    crops = take((int(kept.sum()), K, K, 3))
    mirrored: dict[int, np.ndarray] = {}
    for crop, i, (y, x, mirror) in zip(crops, group.image[kept].tolist(), group.windows[kept].tolist(), strict=True):
        frame = frames[i]
        if mirror:
            if i not in mirrored:
                mirrored[i] = torch.from_numpy(frame).flip(1).numpy()
            frame, x = mirrored[i], frame.shape[1] - K - x
        crop[:] = frame[y : y + K, x : x + K]
    return torch.from_numpy(crops)
