"""The sides of a comparison: other people's loaders and ours, each checked and timed in a process of its own.

A process of its own, because people's loaders fork their workers (the default), and forking after DALI has started its
threads hangs; because one side's memory, threads and caches must not be another's; and because a side that crashes or
hangs then costs itself only. The parent says `check` or `segment`, the child answers; nothing else travels.

Every segment begins with new workers, so that no side starts with batches made ahead, and its time is taken over whole
cycles: with W workers, W batches arrive together and then none for a while. When it ends, the child stops its workers
and waits until all is quiet before it answers, so that nothing of it runs during the next side's turn.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from bench.compare.loader_records import Cell
from pipelines import BACKENDS
from pipelines.baselines import BATCH_IMAGES, RIVALS, UINT8, Files, Load, Order, Rival
from pipelines.inputspec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from bench.measure.clocks import Segment
    from pipelines.batch import Backend
    from pipelines.crops import Planner

CHECKED_IMAGES = 4  # compared with the reference before anything is timed
STREAM_IMAGES = 1_000_000  # of one segment's stream; it ends long before
QUIET_SHARE = 0.05  # of one core: below it a side's processes count as idle
QUIET_LIMIT_S = 20.0
DALI_PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Ours:
    """One of pipelines.BACKENDS, from files to what enters the network's first layer: crops, chunk, Normalize.

    Graphs and workers are built once for each number of crops and kept, as a run of the benchmark keeps them.
    """

    backend: str
    chunk: int  # crops per forward
    hw_load: float
    cut: str | None = None
    kept: dict[int, Backend] = field(default_factory=dict)

    def __call__(self, order: Order) -> Iterator[Tensor]:
        """Tensors [m, 3, K, K]: chunk by chunk, normalised by models.classifier.Normalize; uint8 batch by batch."""
        import torch

        pieces = self._crops(order)
        if order.output == UINT8:
            return (crops.to(order.device, non_blocking=True).permute(0, 3, 1, 2) for crops in pieces)
        return self._normalized(pieces, order, getattr(torch, order.output))

    def _crops(self, order: Order) -> Iterator[Tensor]:
        """uint8 [n, K, K, 3], without padding, on the backend's device."""
        if order.crops not in self.kept:
            self.kept[order.crops] = self.build(order)
        for batch in self.kept[order.crops].batches(order.rows):
            if batch.failed:
                one = batch.failed[0]
                raise RuntimeError(f"{order.files.listed[one.row]} cannot be read: {one.reason}")
            for group in batch.groups:
                yield group.crops  # without padding: every image has as many views

    def _normalized(self, pieces: Iterator[Tensor], order: Order, dtype: Any) -> Iterator[Tensor]:
        import torch

        from models.classifier import Normalize

        # As models.predict does it: a chunk is filled, and normalised into memory that stays.
        on_cpu = order.device == "cpu"
        normalize = Normalize(order.spec, dtype=dtype, channels_last=on_cpu).to(order.device)
        K = order.spec.K
        buffer = torch.zeros((self.chunk, K, K, 3), dtype=torch.uint8, device=order.device)
        out = torch.zeros((self.chunk, K, K, 3)) if on_cpu else None
        for crops in pieces:
            for piece in crops.split(self.chunk):
                with torch.inference_mode():
                    buffer[: len(piece)].copy_(piece, non_blocking=True)
                    normalized = normalize(buffer, out)[: len(piece)]
                yield normalized

    def build(self, order: Order) -> Backend:
        from pipelines import backend
        from pipelines.batch import LoadConfig, default_batch_images

        gpu = self.backend == "dali-gpu"
        config = LoadConfig(
            batch_images=default_batch_images(order.crops, order.spec.K, gpu=gpu),
            workers=order.workers,
            prefetch=DALI_PREFETCH,
            hw_decoder_load=self.hw_load,
            cut=self.cut,
        )
        return backend(self.backend)(order.files, planner(order), config)


def planner(order: Order) -> Planner:
    """Our windows for an order: so many random crops."""
    from pipelines.crops import Planner, parse_policy, union

    return Planner(order.spec, union([parse_policy(f"{order.crops}RC")]), order.seed)


OURS: dict[str, Rival] = {
    "dali-gpu": Rival(
        "f",
        "ours: DALI on the GPU, decode once, all windows in one operator, Normalize",
        None,
        needs="an NVIDIA GPU with a working driver, and --device cuda",
        in_flight=DALI_PREFETCH + 1,
        tolerance_levels=1.5,
        gpu_only=True,
    ),
    "dali-cpu": Rival(
        "f",
        "ours: DALI on the CPU, decode once, all windows in one operator, Normalize",
        None,
        in_flight=DALI_PREFETCH + 1,
    ),
    "torchvision": Rival("f", "ours: torchvision's kernels in a DataLoader of whole planned batches, Normalize", None),
}
SIDES: dict[str, Rival] = {**OURS, **RIVALS}
assert set(OURS) == set(BACKENDS), "every backend is a side: add it to OURS"


def chosen(text: str | None) -> list[str]:
    """``--only a,dali-cpu``: names or letters of SIDES, in the table's order. Raises ValueError for an unknown one."""
    if not text:
        return list(SIDES)
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    letters = {side.letter for side in SIDES.values()}
    if unknown := sorted(wanted - letters - set(SIDES)):
        known = ", ".join(f"{side.letter} {name}" for name, side in SIDES.items())
        raise ValueError(f"--only {', '.join(unknown)}: no such side; known are {known}")
    return [name for name, side in SIDES.items() if name in wanted or side.letter in wanted]


@dataclass(frozen=True, slots=True)
class Job:
    """What all sides share."""

    files: Files
    spec: InputSpec
    device: str
    workers: int
    chunk: int
    seed: int
    hw_load: float
    warmup: int  # cycles before each timed segment
    budget_bytes: int  # memory that a loader's batches in flight may take
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)  # of our backends' LoadConfig


def batch_images(side: Rival, cell: Cell, job: Job) -> int:
    """Images per batch of a rival: what people ask for, halved until its batches in flight fit into the budget."""
    views = 1 if side.passes else cell.crops
    crop_bytes = 3 * job.spec.K**2 * (1 if cell.output == UINT8 else 4)
    in_flight = 2 * max(job.workers, side.in_flight or 1)  # DataLoader prefetches two batches for each worker
    images = BATCH_IMAGES
    while images > 1 and images * views * crop_bytes * in_flight > job.budget_bytes:
        images //= 2
    return images


def order_of(name: str, cell: Cell, job: Job, rows: np.ndarray) -> Order:
    """What a side is asked for in a cell."""
    side = SIDES[name]
    crops = 1 if side.passes else cell.crops
    size = batch_images(side, cell, job)
    if name in OURS:
        from pipelines.batch import default_batch_images

        size = default_batch_images(crops, job.spec.K, gpu=name == "dali-gpu")
    workers = int(job.tuned.get(name, {}).get("workers", job.workers))
    return Order(job.files, rows, job.spec, crops, cell.output, job.device, workers, size, job.seed)


@dataclass(frozen=True, slots=True)
class Took:
    """One timed segment, and the memory of the side's processes at its end."""

    crops: int
    duration_s: float
    batch_images: int
    peak_mem_bytes: int


class Player:
    """One side, in its own process."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.side, self.job = name, SIDES[name], job
        tuned = job.tuned.get(name, {})
        ours = Ours(name, job.chunk, tuned.get("hw_decoder_load", job.hw_load), tuned.get("cut"))
        self.load: Load = ours if name in OURS else self.side.load()

    def check(self, cell: Cell) -> float:
        """Compare a few images' crops with the reference; the worst mean difference of a crop, grey levels.

        Raises pipelines.backends.reference.WrongPixels.
        """
        rows = np.arange(min(CHECKED_IMAGES, len(self.job.files)))
        order = order_of(self.name, cell, self.job, rows)
        worst = 0.0
        if isinstance(self.load, Ours):
            from pipelines.backends import reference

            backend = self.load.build(order)
            try:
                worst = reference.check(backend, self.job.files, planner(order), rows)  # windows bit for bit
            finally:
                backend.close()
        return max(worst, check_crops(self.name, self.side, order, [piece.clone() for piece in self.load(order)]))

    def segment(self, cell: Cell, start: int, seconds: float) -> Took:
        """Time one segment of an endless stream that begins with image ``start``."""
        from bench.machine import resident_bytes
        from bench.measure.clocks import segment

        images = len(self.job.files)
        rows = np.resize(np.roll(np.arange(images), -start), max(images, STREAM_IMAGES // images * images))
        order = order_of(self.name, cell, self.job, rows)
        cycle = order.batch_images * order.crops * (self.side.in_flight or max(order.workers, 1))
        source = self.load(order)
        stream = grouped((len(crops) for crops in source), cycle)
        done: Segment = segment(stream, seconds=seconds, warmup_items=self.job.warmup, device=self.job.device)
        memory = resident_bytes()  # before the stream is dropped: its buffers still stand
        stream.close()
        if isinstance(source, Iterator) and hasattr(source, "close"):
            source.close()
        del source, stream
        gc.collect()  # DataLoader stops its workers when it is collected
        settle()
        return Took(done.count, done.duration_s, order.batch_images, memory)


def grouped(stream: Iterable[int], least: int) -> Generator[int, None, None]:
    """Sums of successive items, each of at least ``least``; what is left at the end is one more."""
    total = 0
    for count in stream:
        total += count
        if total >= least:
            yield total
            total = 0
    if total:
        yield total


def settle() -> None:
    """Wait until this process and its children do nothing, or QUIET_LIMIT_S have passed."""
    before, start = cpu_seconds(), time.perf_counter()
    while time.perf_counter() - start < QUIET_LIMIT_S:
        time.sleep(0.1)
        now = cpu_seconds()
        if now - before < 0.1 * QUIET_SHARE:
            return
        before = now


def cpu_seconds() -> float:
    """Processor time of this process and its children, those that have gone not counted."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


# ------------------------------------------------------------------------------------------------------------ the check


def check_crops(name: str, side: Rival, order: Order, tensors: list[Tensor]) -> float:
    """Compare what a side delivered for a few images with the reference; the worst mean difference, grey levels.

    Ours must have cut the planned windows, a centre crop the centre; random windows must be found somewhere in the
    reference's frame (so they lie in it whole, unmirrored, at its scale), and must not all be the same one.
    Raises WrongPixels, naming the image.
    """
    import torch

    from pipelines.backends import reference
    from pipelines.backends.reference import WrongPixels

    images, K = len(order.rows), order.spec.K
    found = torch.cat(tensors)
    expected = (images * order.crops, 3, K, K)
    dtype = getattr(torch, order.output)
    if tuple(found.shape) != expected or found.dtype != dtype or str(found.device) != order.device:
        raise WrongPixels(
            f"{name} delivered {tuple(found.shape)} {found.dtype} on {found.device}; asked for were {expected} {dtype} "
            f"on {order.device}"
        )
    crops = levels(found, order).reshape(images, order.crops, 3, K, K)
    plans = planner(order)
    worst, distinct, room = 0.0, set(), 0
    for i, row in enumerate(order.rows.tolist()):
        frame = reference.frame(order.files, plans, row).transpose(2, 0, 1).astype(np.float32)
        room = max(room, *(side_px - K for side_px in frame.shape[1:]))
        planned = planned_windows(name, side, order, row, frame)
        for j in range(order.crops):
            window, difference = nearest(frame, crops[i, j], None if planned is None else planned[j])
            distinct.add((i, window))
            worst = max(worst, difference)
            if difference > side.tolerance_levels:
                where = "of the reference's frame" if planned is None else f"(y, x) = {window} of the reference's frame"
                raise WrongPixels(
                    f"{name}: crop {j} of {order.files.listed[row]} differs from every window {where} by at least "
                    f"{difference:.2f} grey levels in the mean; at most {side.tolerance_levels} are allowed"
                )
    if planned is None and order.crops > 1 and room > 0 and len(distinct) == images:
        raise WrongPixels(f"{name}: the {order.crops} crops of each image are one and the same window")
    return worst


def levels(crops: Tensor, order: Order) -> np.ndarray:
    """float32 on the scale 0..255, normalisation undone."""
    import torch

    x = crops.to("cpu", torch.float32).numpy()
    if order.output == UINT8:
        return x
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (order.spec.mean, order.spec.std))
    return 255 * (x * std + mean)


def planned_windows(name: str, side: Rival, order: Order, row: int, frame: np.ndarray) -> list[tuple[int, int]] | None:
    """(y, x) of each crop of an image; None where a side draws its own."""
    from pipelines.crops import centre_offset

    if name in OURS:
        one = np.array([row])
        group = planner(order).plan(one, order.files.names(one), order.files.sizes(one)).groups[0]
        return [(int(y), int(x)) for y, x, _ in group.windows]
    if side.centre:
        y, x = centre_offset(np.array(frame.shape[1:]) - order.spec.K).tolist()
        return [(y, x)]
    return None


def nearest(frame: np.ndarray, crop: np.ndarray, at: tuple[int, int] | None) -> tuple[tuple[int, int], float]:
    """The window of ``frame`` float32 [3, H, W] that is most like ``crop`` [3, K, K], and their mean difference.

    ``at``: look there only. All windows are compared on a grid of points, the best few of them whole.
    """
    K = crop.shape[-1]
    candidates = [at] if at is not None else _likely(frame, crop, K)
    differences = [float(np.abs(frame[:, y : y + K, x : x + K] - crop).mean()) for y, x in candidates]
    best = int(np.argmin(differences))
    return candidates[best], differences[best]


def _likely(frame: np.ndarray, crop: np.ndarray, K: int, points: int = 12, few: int = 8) -> list[tuple[int, int]]:
    grid = np.unique(np.linspace(0, K - 1, points).astype(int))
    height, width = frame.shape[1] - K + 1, frame.shape[2] - K + 1
    distance = np.zeros((height, width), np.float32)
    for y in grid:
        for x in grid:
            there = frame[:, y : y + height, x : x + width]
            distance += np.abs(there - crop[:, y, x, None, None]).sum(axis=0)
    best = np.argsort(distance, axis=None, kind="stable")[:few]
    return [(int(i) // width, int(i) % width) for i in best]


# ------------------------------------------------------------------------------------------------------- the processes


class SideFailed(RuntimeError):
    """A side could not do what it was asked; the message is the reason. ``wrong``: its pixels are not the images'."""

    def __init__(self, reason: str, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.wrong = wrong


class Child:
    """The parent's end of one side's process."""

    def __init__(self, name: str, job: Job) -> None:
        context = get_context("spawn")  # whatever the parent has imported or started, the child has not
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, job), name=f"side {name}")
        self.process.start()
        theirs.close()

    def check(self, cell: Cell, *, limit_s: float) -> float:
        return self._ask(("check", cell), limit_s)

    def segment(self, cell: Cell, start: int, seconds: float, *, limit_s: float) -> Took:
        return self._ask(("segment", cell, start, seconds), limit_s)

    def _ask(self, question: tuple[Any, ...], limit_s: float) -> Any:
        """The answer. Raises SideFailed with the child's reason, or when it died or kept silent for ``limit_s``."""
        try:
            self.pipe.send(question)
            if not self.pipe.poll(limit_s):
                raise SideFailed(f"no answer to {question[0]} within {limit_s:.0f} s")
            good, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise SideFailed(f"its process ended with status {self.process.exitcode}") from None
        if good:
            return answer
        reason, wrong = answer
        raise SideFailed(reason, wrong=wrong)

    def kill(self, patience_s: float = 0.0) -> None:
        """End the side's process and all that it started. With patience it first may end by itself, which spares the
        reader what multiprocessing says of semaphores that nobody gave back."""
        try:
            me = psutil.Process(self.process.pid)
            family = [*me.children(recursive=True), me]
        except psutil.Error:
            family = []
        self.pipe.close()
        self.process.join(patience_s)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.join()


def serve(pipe: Connection, name: str, job: Job) -> None:
    """The child: answers until the parent's end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    os.dup2(sys.stderr.fileno(), 1)  # standard output is the parent's, and its last line is JSON
    player: Player | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            question, *arguments = pipe.recv()
            try:
                player = player or Player(name, job)
                answer = getattr(player, question)(*arguments)
            except Exception as error:
                pipe.send((False, (reason_of(error, SIDES[name]), type(error).__name__ == "WrongPixels")))
            else:
                pipe.send((True, answer))


def reason_of(error: Exception, side: Rival) -> str:
    """One line for the list of what was not timed, with what the side needs, if that may be the cause."""
    if type(error).__name__ == "WrongPixels" or str(error) == side.needs:
        return str(error)
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return f"{text}; it needs {side.needs}" if side.needs and side.needs not in text else text


def shared_memory_free() -> int:
    """Bytes that DataLoader's workers may fill; without a /dev/shm of its own, the machine's free memory."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):
        free = min(free, psutil.disk_usage("/dev/shm").free)
    return free


def with_budget(job: Job) -> Job:
    """A quarter of what is free: sides in turn hold their batches, idle ones hold none."""
    return replace(job, budget_bytes=shared_memory_free() // 4)
