"""The loaders of a comparison: other people's loaders and ours, each checked and timed in a process of its own.

A process of its own, because people's loaders fork their workers (the default), and forking after DALI has started its
threads hangs; because one loader's memory, threads and caches must not be another's; and because a loader that crashes
or hangs costs only itself. The parent sends `check` or `segment`, the child answers; nothing else is exchanged.

Every segment begins with new workers, so that no loader starts with batches made ahead, and its time is taken over
whole cycles: with W workers, W batches arrive together and then none for a while. When it ends, the child stops its
workers and waits until they are idle before it answers, so that nothing of it runs during the next loader's turn.
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

from bench.compare.loader_check import check_crops
from bench.compare.loader_records import Workload
from bench.compare.loader_table import LOADERS, OURS, Ours, planner
from pipelines.backends import BACKENDS
from pipelines.baselines import BATCH_IMAGES, UINT8, Files, Load, Loader, Request
from pipelines.inputspec import InputSpec
from pipelines.workers import safe_start

if TYPE_CHECKING:
    from bench.measure.clocks import Segment

CHECKED_IMAGES = 4  # compared with the reference before anything is timed
STREAM_IMAGES = 1_000_000  # of one segment's stream; it ends long before
QUIET_SHARE = 0.05  # of one core: below it a loader's processes count as idle
QUIET_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all loaders of a comparison share."""

    files: Files
    spec: InputSpec
    device: str
    workers: int
    batch_size: int  # crops per forward pass
    seed: int
    hw_load: float
    warmup: int  # cycles before each timed segment
    budget_bytes: int  # memory that a loader's batches in flight may take
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)  # of our backends' LoadConfig


def batch_images(loader: Loader, workload: Workload, comparison: Comparison) -> int:
    """Images per batch of a baseline: the usual number, halved until its batches in flight fit into the budget."""
    views = 1 if loader.passes else workload.crops
    crop_bytes = 3 * comparison.spec.K**2 * (1 if workload.output == UINT8 else 4)
    in_flight = 2 * max(comparison.workers, loader.in_flight or 1)  # DataLoader prefetches two batches for each worker
    images = BATCH_IMAGES
    while images > 1 and images * views * crop_bytes * in_flight > comparison.budget_bytes:
        images //= 2
    return images


def request_for(name: str, workload: Workload, comparison: Comparison, rows: np.ndarray) -> Request:
    """What a loader is asked for."""
    loader = LOADERS[name]
    crops = 1 if loader.passes else workload.crops
    size = batch_images(loader, workload, comparison)
    if name in OURS:
        from pipelines.batch import default_batch_images

        most = comparison.tuned.get(name, {}).get("batch_images")
        size = default_batch_images(crops, comparison.spec.K, gpu=BACKENDS[name].on_gpu, most=most)
    workers = int(comparison.tuned.get(name, {}).get("workers", comparison.workers))
    return Request(
        comparison.files,
        rows,
        comparison.spec,
        crops,
        workload.output,
        comparison.device,
        workers,
        size,
        comparison.seed,
    )


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """One timed segment, and the memory of the loader's processes at its end."""

    crops: int
    duration_s: float
    batch_images: int
    peak_mem_bytes: int


class TimedLoader:
    """One loader, in its own process."""

    def __init__(self, name: str, comparison: Comparison) -> None:
        self.name, self.loader, self.comparison = name, LOADERS[name], comparison
        tuned = comparison.tuned.get(name, {})
        ours = Ours(
            name,
            comparison.batch_size,
            tuned.get("hw_load", comparison.hw_load),
            tuned.get("crop_operator"),
            tuned.get("hybrid_huffman_threshold"),
        )
        self.load: Load = ours if name in OURS else self.loader.load()

    def check(self, workload: Workload) -> float:
        """Compare a few images' crops with the reference; the worst mean difference of a crop, grey levels.

        Raises pipelines.backends.reference.WrongPixels.
        """
        rows = np.arange(min(CHECKED_IMAGES, len(self.comparison.files)))
        request = request_for(self.name, workload, self.comparison, rows)
        worst = 0.0
        if isinstance(self.load, Ours):
            from pipelines.backends import reference

            backend = self.load.build(request)
            try:
                worst = reference.check(backend, self.comparison.files, planner(request), rows)  # windows bit for bit
            finally:
                backend.close()
        return max(worst, check_crops(self.name, self.loader, request, [piece.clone() for piece in self.load(request)]))

    def segment(self, workload: Workload, start: int, seconds: float) -> SegmentResult:
        """Time one segment of an endless stream that begins with image ``start``."""
        from bench.machine import resident_bytes
        from bench.measure.clocks import segment

        images = len(self.comparison.files)
        rows = np.resize(np.roll(np.arange(images), -start), max(images, STREAM_IMAGES // images * images))
        request = request_for(self.name, workload, self.comparison, rows)
        cycle = request.batch_images * request.crops * (self.loader.in_flight or max(request.workers, 1))
        source = self.load(request)
        stream = grouped((len(crops) for crops in source), cycle)
        done: Segment = segment(
            stream, seconds=seconds, warmup_items=self.comparison.warmup, device=self.comparison.device
        )
        memory = resident_bytes()  # before the stream is dropped: its buffers still stand
        stream.close()
        if isinstance(source, Iterator) and hasattr(source, "close"):
            source.close()
        del source, stream
        gc.collect()  # DataLoader stops its workers when it is collected
        settle()
        return SegmentResult(int(done.count), done.duration_s, request.batch_images, memory)


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


class LoaderFailed(RuntimeError):
    """A loader could not do what it was asked; the message is the reason. ``wrong``: its pixels are not the images'."""

    def __init__(self, reason: str, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.wrong = wrong


class LoaderProcess:
    """The parent's end of one loader's process."""

    def __init__(self, name: str, comparison: Comparison) -> None:
        context = get_context("spawn")  # whatever the parent has imported or started, the child has not
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, comparison), name=f"loader {name}")
        with safe_start():
            self.process.start()
        theirs.close()

    def check(self, workload: Workload, *, limit_s: float) -> float:
        return self._call(("check", workload), limit_s)

    def segment(self, workload: Workload, start: int, seconds: float, *, limit_s: float) -> SegmentResult:
        return self._call(("segment", workload, start, seconds), limit_s)

    def _call(self, question: tuple[Any, ...], limit_s: float) -> Any:
        """The answer. Raises LoaderFailed with the child's reason, or when it died or kept silent for ``limit_s``."""
        try:
            self.pipe.send(question)
            if not self.pipe.poll(limit_s):
                raise LoaderFailed(f"no answer to {question[0]} within {limit_s:.0f} s")
            good, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise LoaderFailed(f"its process ended with status {self.process.exitcode}") from None
        if good:
            return answer
        reason, wrong = answer
        raise LoaderFailed(reason, wrong=wrong)

    def kill(self, patience_s: float = 0.0) -> None:
        """End the loader's process and all that it started. With patience it first may end by itself, which spares the
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


def serve(pipe: Connection, name: str, comparison: Comparison) -> None:
    """The child: answers until the parent's end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    os.dup2(sys.stderr.fileno(), 1)  # standard output is the parent's, and its last line is JSON
    timed_loader: TimedLoader | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            question, *arguments = pipe.recv()
            try:
                timed_loader = timed_loader or TimedLoader(name, comparison)
                answer = getattr(timed_loader, question)(*arguments)
            except Exception as error:
                pipe.send((False, (reason_of(error, LOADERS[name]), type(error).__name__ == "WrongPixels")))
            else:
                pipe.send((True, answer))


def reason_of(error: Exception, loader: Loader) -> str:
    """One line for the list of what was not timed, with what the loader needs, if that may be the cause."""
    if type(error).__name__ == "WrongPixels" or str(error) == loader.needs:
        return str(error)
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return f"{text}; it needs {loader.needs}" if loader.needs and loader.needs not in text else text


def shared_memory_free() -> int:
    """Bytes that DataLoader's workers may fill; without a /dev/shm of its own, the machine's free memory."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):
        free = min(free, psutil.disk_usage("/dev/shm").free)
    return free


def with_budget(comparison: Comparison) -> Comparison:
    """A quarter of what is free: loaders in turn hold their batches, idle ones hold none."""
    return replace(comparison, budget_bytes=shared_memory_free() // 4)
