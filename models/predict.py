"""CropBatches -> the network, one batch of fixed shape at a time -> each image's view outputs.

The network always sees ``[batch_size, 3, K, K]``, one batch for each crop size; the last ones are padded. So one
compiled graph a size serves the whole run, and an image's outputs do not depend on what shares its batch: rows are
bit-equal under permutation, padding and the number of workers (shown by tests/models/test_predict.py).

When memory gives out, the forward is halved, again and again down to one crop, and the run goes on. Another shape may
round otherwise: outputs then differ by less than 1e-5 of the largest, and ``Network.fitting_batch_size`` says what
fitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.averaging import ViewOutputs
from models.classifier import Classifier
from models.dense import Dense, DenseOutputs
from models.transfer import to_device
from pipelines.batch import CropBatch, Failure, Group
from pipelines.crops import Views
from pipelines.data.faults import MachineFault, is_out_of_memory

AMP_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_QUEUED = 2  # forward passes that may wait on a GPU while the host prepares the next
MAX_GRAPHS = 4096  # of all networks and crop sizes of one process
GRAPH_FORWARDS = 3  # before a pipeline starts: the first compiles, the second captures a CUDA graph, the third replays


class OutOfMemory(MachineFault):
    """Not even one crop fits."""


@dataclass(frozen=True, slots=True)
class GpuModes:
    """torch's switches for a whole process; without effect on a CPU.

    ``tf32``: float32 convolutions and matrix products may round their inputs to TF32's 10 bits of mantissa, as cuDNN
    does by default. Without it, float32 means float32. ``cudnn_benchmark``: cuDNN times its algorithms on each new
    shape and takes the fastest; another process may take another one, whose last bits differ.
    """

    tf32: bool = False
    cudnn_benchmark: bool = False

    def set(self) -> None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = self.cudnn_benchmark


def allow_many_graphs() -> None:
    """torch compiles a function at most eight times and then runs it uncompiled, with a warning only. Here each network
    and each crop size of a run is one more time."""
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MAX_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def default_batch_size(K: int, device: str) -> int:
    """Crops per forward: 256 on a GPU; on a CPU about the pixels of 64 crops of 100 x 100, at least 8."""
    if device.startswith("cuda"):
        return 256
    return int(np.clip(2 ** round(np.log2(64 * (100 / K) ** 2)), 8, 64))


MAX_FRAMES = {"cpu": 8, "cuda": 32}  # of a dense batch: it waits for frames of one shape, and the rest is padding


class Network:
    """A classifier on its device, fed with whole batches of uint8 crops, or of frames for dense views.

    ``dense``: how frames are evaluated; without it none are.

    ``fitting_batch_size``: crops per forward pass; ``batch_size``, until memory runs out.

    ``amp_dtype`` float16 or bfloat16 runs under autocast; the averages are float64 all the same.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        batch_size: int,
        device: str = "cpu",
        amp_dtype: str = "float32",
        channels_last: bool = False,
        compiled: bool = False,
        modes: GpuModes | None = None,
        dense: Dense | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` {batch_size}: the number of crops per forward must be at least 1")
        dtype = AMP_DTYPES[amp_dtype]
        self.modes = modes or GpuModes()
        self.classifier = classifier.place(device, channels_last=channels_last, dtype=dtype)
        self.batch_size, self.device, self.dtype = batch_size, torch.device(device), dtype
        self.fitting_batch_size = batch_size
        # A compiler fuses the first step by itself, and a GPU does not mind new memory.
        self.keep_normalized = self.device.type == "cpu" and not compiled
        self.buffers: dict[int, Tensor] = {}  # by crop size, uint8 [batch_size, K, K, 3]
        self.normalized: dict[int, Tensor | None] = {}
        self.buffer = self.buffer_of(classifier.spec.K)
        step: Callable[[Tensor], tuple[Tensor | None, Tensor]] = self._step
        # Not dynamic: each crop size has a graph of its own, as it has one batch shape. "reduce-overhead" replays CUDA
        # graphs: the next forward overwrites the outputs of this one, so ``predict`` copies them before it (_store).
        self.graphs = compiled and self.device.type == "cuda"
        mode = "reduce-overhead" if self.graphs else None
        if compiled:
            allow_many_graphs()
        self._forward = torch.compile(step, dynamic=False, mode=mode) if compiled else step
        self.first_forwards = GRAPH_FORWARDS if self.device.type == "cuda" else int(compiled)
        self.ready: set[int] = set()  # crop sizes that ``get_ready`` is done with
        self.dense = dense
        self.ready_frames: set[tuple[int, int]] = set()
        self.compiled_frames = dense.compiled_frames if dense and compiled else frozenset()
        self.one_frame_at_once = False  # after running out of memory
        self._compiled_windows = torch.compile(self._windows, dynamic=False) if self.compiled_frames else self._windows

    def buffer_of(self, K: int) -> Tensor:
        """The input batch of crops of this size."""
        if K not in self.buffers:
            shape = (self.batch_size, K, K, 3)
            self.buffers[K] = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            self.normalized[K] = torch.zeros(shape) if self.keep_normalized else None
        return self.buffers[K]

    def _step(self, crops: Tensor) -> tuple[Tensor | None, Tensor]:
        kept = self.normalized[crops.shape[1]]
        with self._autocast():
            normalized = self.classifier.prepare(crops, None if kept is None else kept[: len(crops)])
            features, logits = self.classifier.outputs(normalized)
        return None if features is None else features.float(), logits.float()

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def get_ready(self, sizes: Iterable[int | None] = (None,)) -> None:
        """Compile, and capture CUDA graphs, for crops of these sizes (None: the network's own); once for each size.

        To be called before a data pipeline starts: DALI frees tensors on a thread that waits for the whole GPU
        (cudaDeviceSynchronize), and CUDA ends every graph capture, on any thread, that runs at that moment.
        """
        for K in {self.classifier.spec.K if K is None else K for K in sizes} - self.ready:
            for _ in range(self.first_forwards):
                self.forward(K)
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            self.ready.add(K)
        for height, width in sorted(self.compiled_frames - self.ready_frames):
            shape = (self.frames_at_once(height, width), height, width, 3)
            self.forward_frames(torch.zeros(shape, dtype=torch.uint8, device=self.device))
            self.ready_frames.add((height, width))

    @torch.inference_mode()
    def forward(self, K: int | None = None) -> tuple[Tensor | None, Tensor]:
        """Run the batch of crops of K pixels, by default the network's own: features float [batch_size, f] or None,
        logits float [batch_size, n]; good until the next call. Raises OutOfMemory when not even one crop fits."""
        buffer = self.buffer if K is None else self.buffer_of(K)
        self.modes.set()  # another network may have set them
        while True:
            try:
                return self._forward(buffer) if self.fitting_batch_size == self.batch_size else self._in_pieces(buffer)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(buffer.shape[1])  # not above: there the exception still holds the failed forward's tensors

    def _halve(self, K: int) -> None:
        if self.fitting_batch_size == 1:
            raise OutOfMemory(
                f"{self.classifier.name} runs out of memory on {self.device} with a single crop of {K} pixels: "
                "use `amp_dtype` bfloat16, a smaller `img_size`, or a machine with more memory"
            )
        self.fitting_batch_size = -(-self.fitting_batch_size // 2)
        if self.graphs and self.ready:  # a pipeline may run by now: the smaller batch gets no graph (see get_ready)
            self._forward = self._step
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _in_pieces(self, buffer: Tensor) -> tuple[Tensor | None, Tensor]:
        """Forward passes of ``fitting_batch_size`` crops each, the last one padded: the shape is still one."""
        padded = torch.nn.functional.pad(buffer, (0, 0, 0, 0, 0, 0, 0, -self.batch_size % self.fitting_batch_size))
        done: list[tuple[Tensor | None, Tensor]] = []
        for piece in padded.split(self.fitting_batch_size):
            features, logits = self._forward(piece)
            # A CUDA graph's next replay overwrites its outputs.
            done.append((None if features is None else features.clone(), logits.clone()))
        logits = torch.cat([logits for _, logits in done])[: self.batch_size]
        features = None if done[0][0] is None else torch.cat([f for f, _ in done if f is not None])[: self.batch_size]
        return features, logits

    def frames_at_once(self, height: int, width: int, *, whole: bool = False) -> int:
        """Frames of this shape in a batch: about the pixels of a batch of crops, and not so many that most of it is
        padding. Whole images have many shapes: one at once."""
        pixels = self.batch_size * self.classifier.spec.K**2
        fitting = int(np.clip(pixels // (height * width), 1, MAX_FRAMES[self.device.type]))
        return 1 if whole else 1 << (fitting.bit_length() - 1)  # a power of two, so that all of them go through vectors

    @torch.inference_mode()
    def forward_frames(self, frames: Tensor, *, whole: bool = False) -> tuple[Tensor | None, Tensor, Tensor]:
        """Dense outputs of uint8 frames [n, h, w, 3]: means over the windows of the features float [n, f] or None, of
        the logits float [n, classes], of the softmax scores float64 [n, classes]; of ``whole`` frames, the outputs of
        their map pooled once. Raises OutOfMemory when not even one frame fits."""
        pieces = frames.split(1) if self.one_frame_at_once else (frames,)
        try:
            done = [self._evaluated(piece, whole) for piece in pieces]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.one_frame_at_once or len(frames) == 1:
                raise OutOfMemory(
                    f"{self.classifier.name} runs out of memory on {self.device} with a frame of {frames.shape[1]} x "
                    f"{frames.shape[2]} pixels: leave dense views (DC, MDC, WI) out of the policies"
                ) from error
            done = []
        if not done:  # not above: there the exception still holds the failed forward's tensors
            self.one_frame_at_once = True
            return self.forward_frames(frames, whole=whole)
        logits, scores = (torch.cat([getattr(one, name) for one in done]) for name in ("logits", "softmax"))
        features = None if done[0].features is None else torch.cat([one.features for one in done]).float()  # type: ignore[misc]
        return features, logits.float(), scores

    def _evaluated(self, frames: Tensor, whole: bool) -> DenseOutputs:
        if whole:
            with self._autocast():
                return self._dense.whole(self._prepared(frames))
        run = self._compiled_windows if tuple(frames.shape[1:3]) in self.compiled_frames else self._windows
        return run(frames)

    def _windows(self, frames: Tensor) -> DenseOutputs:
        with self._autocast():
            return self._dense.compilable_windows(self._prepared(frames))

    def _prepared(self, frames: Tensor) -> Tensor:
        out = torch.empty(frames.shape, device=self.device) if self.keep_normalized else None
        return self.classifier.prepare(frames, out)

    @property
    def _dense(self) -> Dense:
        if self.dense is None:
            raise ValueError(f"{self.classifier.name} was not prepared for dense views")
        return self.dense

    @torch.inference_mode()
    def head(self, features: Tensor) -> Tensor:
        """[m, f] -> [m, n] in padded pieces of ``fitting_batch_size`` rows: other shapes round otherwise."""
        m = len(features)
        padded = torch.nn.functional.pad(features, (0, 0, 0, -m % self.fitting_batch_size))
        with self._autocast():
            return torch.cat([self.classifier.head(piece).float() for piece in padded.split(self.fitting_batch_size)])[
                :m
            ]


@dataclass(slots=True)
class _Pending:
    """Images whose views are not all through the network yet."""

    batch: CropBatch
    positions: list[np.ndarray]  # for each group, the flat place [b * v] of each row, -1 for padding
    n_views: int
    missing: int
    features: Tensor | None = None
    logits: Tensor | None = None
    window_scores: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Predicted:
    """The outputs of one batch of images: ``rows`` int64 [b], and what could not be read."""

    rows: np.ndarray
    outputs: ViewOutputs | None  # None when no image of the batch could be read
    failed: list[Failure]


def predict(batches: Iterable[CropBatch], network: Network, views: Views) -> Iterator[Predicted]:
    """Run all crops and frames of the batches; yields each batch, in order, as soon as its last view is through. Views
    that an image does not need (adaptive policies) have outputs of zero, which no policy reads.

    Input batches fill across batches of images, so that of crops only the run's very last one (of each size) is padded;
    a batch of frames is run, padded, when its oldest frame is FRAME_AGE batches of images old. The network is ready
    (``Network.get_ready``) before the first batch is asked for.
    """
    network.get_ready(views.sizes)
    waiting: list[_Pending] = []
    inputs = _Inputs(network, views)
    for batch in batches:
        pending = _pending(batch, views)
        waiting.append(pending)
        for group, places in zip(batch.groups + batch.frames, pending.positions, strict=True):
            for start, stop in _runs(places):
                inputs.add(pending, group.crops[start:stop], places[start:stop])
        inputs.flush_old()
        while waiting and waiting[0].missing == 0:
            yield _done(waiting.pop(0))
    inputs.flush_all()
    for pending in waiting:
        yield _done(pending)


FRAME_AGE = 4  # batches of images that a frame may wait for others of its shape


class _Inputs:
    """The network's input batches: one for each crop size, one for each shape of frames."""

    def __init__(self, network: Network, views: Views) -> None:
        self.network, self.views, self.queue = network, views, Queue()
        self.whole_view = views.dense.get("WI")
        self.batches: dict[tuple[int, ...], _InputBatch] = {}
        self.number = 0  # of the batch of images

    def add(self, pending: _Pending, crops: Tensor, places: np.ndarray) -> None:
        """``crops``: uint8 [n, h, w, 3], crops or frames; ``places`` int64 [n] in the pending outputs [b * v]."""
        height, width = crops.shape[1:3]
        views = places % self.views.total
        if views[0] not in self.views.dense.values():
            self._batch((height,)).add(pending, crops, places, self.number)
            return
        for whole in (False, True):
            here = (views == self.whole_view) == whole
            if here.any():
                self._batch((height, width, whole)).add(
                    pending, crops[_index_of(np.flatnonzero(here), crops.device)], places[here], self.number
                )

    def _batch(self, key: tuple[int, ...]) -> _InputBatch:
        if key not in self.batches:
            kind = _CropInput if len(key) == 1 else _FrameInput
            self.batches[key] = kind(self.network, key, self.queue)
        return self.batches[key]

    def flush_old(self) -> None:
        """Run the batches of frames that have waited for long; forget them, for there may be many shapes."""
        self.number += 1
        for key, batch in list(self.batches.items()):
            if len(key) == 3 and self.number - batch.since >= FRAME_AGE:
                batch.flush()
                del self.batches[key]

    def flush_all(self) -> None:
        for batch in self.batches.values():
            batch.flush()


class Queue:
    """Bounds how far the host runs ahead of a GPU: it waits for the forward pass MAX_QUEUED passes back, whose end lies
    behind it as a rule. Unbounded, crops and outputs of many batches would wait in the GPU's memory."""

    def __init__(self) -> None:
        self.events: deque[torch.cuda.Event] = deque()

    def passed(self, device: torch.device) -> None:
        """Call after each forward pass on ``device`` and the copies of its outputs."""
        if device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self.events.append(event)
        if len(self.events) > MAX_QUEUED:
            self.events.popleft().synchronize()


class _InputBatch:
    """A batch of the network, filled as its pixels come and run when it is full."""

    buffer: Tensor

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.filled: list[tuple[_Pending, np.ndarray]] = []  # what lies in it, in order: whose, and where it belongs
        self.used = 0
        self.since = 0  # the batch of images that brought the first

    def run(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Features [n, f], logits [n, classes], and the mean softmax scores of a frame's windows [n, classes]."""
        raise NotImplementedError

    def add(self, pending: _Pending, pixels: Tensor, places: np.ndarray, now: int) -> None:
        """``now``: the number of the batch of images."""
        start, size = 0, len(self.buffer)
        while start < len(pixels):
            self.since = self.since if self.used else now
            take = min(len(pixels) - start, size - self.used)
            self.buffer[self.used : self.used + take].copy_(pixels[start : start + take], non_blocking=True)
            self.filled.append((pending, places[start : start + take]))
            self.used, start = self.used + take, start + take
            if self.used == size:
                self.flush()

    def flush(self) -> None:
        if not self.used:
            return
        features, logits, scores = self.run()
        start = 0
        for pending, places in self.filled:
            end = start + len(places)
            _store(pending, places, None if features is None else features[start:end], logits[start:end])
            if scores is not None:
                _store_scores(pending, places, scores[start:end])
            start = end
        self.filled.clear()
        self.used = 0
        self.queue.passed(self.buffer.device)


class _CropInput(_InputBatch):
    def __init__(self, network: Network, key: tuple[int, ...], queue: Queue) -> None:
        super().__init__(queue)
        self.network, (self.K,) = network, key
        self.buffer = network.buffer_of(self.K)

    def run(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return (*self.network.forward(self.K), None)


class _FrameInput(_InputBatch):
    def __init__(self, network: Network, key: tuple[int, ...], queue: Queue) -> None:
        super().__init__(queue)
        height, width, whole = key
        self.network, self.whole = network, bool(whole)
        frames = network.frames_at_once(height, width, whole=self.whole)
        self.buffer = torch.zeros((frames, height, width, 3), dtype=torch.uint8, device=network.device)

    def run(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return self.network.forward_frames(self.buffer, whole=self.whole)


def _pending(batch: CropBatch, views: Views) -> _Pending:
    order = {row: i for i, row in enumerate(batch.rows.tolist())}
    positions = [_positions(group, order, views.total) for group in batch.groups + batch.frames]
    came = np.concatenate([places[places >= 0] for places in positions] or [np.zeros(0, np.int64)])
    times = np.bincount(came, minlength=len(batch.rows) * views.total).reshape(len(batch.rows), views.total)
    # No image needs fewer views than one whose centre crop leaves nothing out.
    lacking = (times == 0) & views.needed(np.array([[0, 1]]))
    if lacking.any() or (times > 1).any():
        row = int(batch.rows[np.flatnonzero((lacking | (times > 1)).any(axis=1))[0]])
        raise ValueError(
            f"a batch of {len(batch.rows)} images came with {len(came)} crops, not {views.total} for each image: a "
            f"view of image {row} is missing or came twice; the backend broke its plan"
        )
    return _Pending(batch, positions, views.total, len(came))


def _positions(group: Group, order: dict[int, int], n_views: int) -> np.ndarray:
    stray = set(group.image[group.image >= 0].tolist()) - set(order)
    if stray:
        raise ValueError(f"crops came of images {sorted(stray)[:3]}, which are not among the batch's rows")
    image = np.array([order.get(row, -1) for row in group.image.tolist()], dtype=np.int64)
    return np.where(image < 0, -1, image * n_views + group.view)


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each stretch without padding."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], places >= 0, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _store(pending: _Pending, places: np.ndarray, features: Tensor | None, logits: Tensor) -> None:
    """Keep the outputs [n, ...] of the views at these places."""
    total = len(pending.batch.rows) * pending.n_views
    if pending.logits is None:
        pending.logits = logits.new_zeros((total, logits.shape[1]))
        pending.features = None if features is None else features.new_zeros((total, features.shape[1]))
    index = _index_of(places, logits.device)
    pending.logits[index] = logits
    if features is not None and pending.features is not None:
        pending.features[index] = features
    pending.missing -= len(places)


def _store_scores(pending: _Pending, places: np.ndarray, scores: Tensor) -> None:
    """Keep the mean softmax scores float64 [n, classes] of the dense views at these places."""
    images, views = np.divmod(places, pending.n_views)
    for view in np.unique(views).tolist():
        if view not in pending.window_scores:
            pending.window_scores[view] = scores.new_zeros((len(pending.batch.rows), scores.shape[1]))
        own = np.flatnonzero(views == view)
        pending.window_scores[view][_index_of(images[own], scores.device)] = scores[_index_of(own, scores.device)]


def _index_of(places: np.ndarray, device: torch.device) -> slice | Tensor:
    """A slice where the places are consecutive, as they nearly always are: it needs no copy to the device."""
    if len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return to_device(places, device)


def _done(pending: _Pending) -> Predicted:
    rows, failed = pending.batch.rows, pending.batch.failed
    if pending.logits is None:
        return Predicted(rows, None, failed)
    shape = (len(rows), pending.n_views)
    features = None if pending.features is None else pending.features.unflatten(0, shape)
    outputs = ViewOutputs(features, pending.logits.unflatten(0, shape), pending.window_scores)
    return Predicted(rows, outputs, failed)
