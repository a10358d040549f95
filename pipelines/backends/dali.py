"""The DALI graph, on CPU and GPU: decode once, resize once, cut every crop in one operator, uint8 out.

The plan (integers, made on the host) enters the graph as data: DALI draws nothing. One operator cuts all views of a
batch (``pipelines.backends.crop_ops``), into an output that is dense whatever the
number of views and reaches torch without a copy.
On a CPU the 20th crop costs a copy of its pixels; one ``crop_mirror_normalize`` for each crop halves the rate at 20.

Four of DALI's defaults silently break parity with torchvision and timm, and are switched here:
``subpixel_scale`` (shifts the sampling grid), the long side rounded instead of floored (so sizes are given outright),
``adjust_orientation`` (timm does not rotate by EXIF), and on a GPU ``jpeg_fancy_upsampling``.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakMethod

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline
from nvidia.dali import types as dali_types

from pipelines.backends.crop_ops import CROP_OPERATORS, PASTE, CropOperator, working_crop_operator
from pipelines.batch import CropBatch, Failure, Group, LoadConfig, Source, crop_operator_at, dense_groups, split
from pipelines.bounds import bounded, fitting, pieces
from pipelines.crops import Plan, Planner
from pipelines.data.decode import changed, decode_error
from pipelines.data.faults import fault, is_of_machine
from pipelines.data.spans import Span

T = TypeVar("T")
log = logging.getLogger(__name__)
types: Any = dali_types  # its constants are made at run time; type checkers do not see them
INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
ENCODED_INPUT = ([types.UINT8], [1])  # the path's bytes, or the image's
REFUSED = np.zeros(1, np.uint8)  # fed for an image that could not be read: no decoder takes it
SIZES = ([types.FLOAT], [1])  # [H, W] to resize to
RESIZES = ("resize", "frames", "crops")  # the graphs that need the sizes

_Request = tuple[Plan, list[np.ndarray]]  # a batch's plan, and for each image ENCODED_INPUT


class _Dali:
    """Both devices; see ``pipelines.batch.Backend`` for the contract."""

    name: str
    mixed: bool

    def __init__(self, source: Source, planner: Planner, config: LoadConfig) -> None:
        self.source, self.planner, self.config = source, planner, config
        self.device = f"cuda:{config.device_id}" if self.mixed else "cpu"
        self.crop_operators = self._operators()
        self._pipes: dict[tuple[str, bool, bool], _Fed] = {}
        self._readers = self._new_readers()

    def _operators(self) -> tuple[CropOperator | None, ...]:
        """The operator of each of the plan's groups: the same, but for crop sizes that it cannot safely make; None for
        a group without crops, whose frames serve dense views alone."""
        usual = self.config.crop_operator
        if usual is None:
            usual = working_crop_operator(self.config.device_id).name if self.mixed else PASTE.name
        views, specs = self.planner.views, self.planner.specs()
        names = {size: crop_operator_at(spec.K, usual, on_gpu=self.mixed) or usual for size, spec in specs.items()}
        return tuple(CROP_OPERATORS[names[size]] if views.of_size(size).any() else None for size in specs)

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        """One CropBatch for each ``batch_images`` rows, in order."""
        yield from bounded(self.source, self.planner, rows, self.config, self._batches, self.device)

    def _batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        for plan, outputs in self._stream("crops", rows):
            if isinstance(outputs, Exception):
                yield self._one_by_one(plan, outputs)
            else:
                yield self._batch(plan, outputs)

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(row, resized frame uint8 [H, W, 3]) of each readable image, for one of the plan's groups."""
        for plan, outputs in self._stream("frames", self._fitting(rows)):
            if isinstance(outputs, Exception):
                for single, alone in self._alone("frames", plan.rows):
                    if not isinstance(alone, Exception):
                        yield from self._frames(single, alone, group)
            else:
                yield from self._frames(plan, outputs, group)

    def _frames(self, plan: Plan, outputs: Any, group: int) -> Iterator[tuple[int, np.ndarray]]:
        frames = outputs[1 + group].as_cpu() if self.mixed else outputs[1 + group]
        for i, row in enumerate(plan.rows.tolist()):
            if not _changed(plan, i, outputs[0]):
                yield row, np.array(frames.at(i))

    def stage(self, what: str, rows: np.ndarray) -> Iterator[int]:
        """Run the graph only as far as ``what`` (``read``, ``decode``, ``resize``); yields images, batch by batch."""
        for plan, outputs in self._stream(what, self._fitting(rows)):
            yield 0 if isinstance(outputs, Exception) else len(plan.rows)

    def on(self, source: Source) -> Any:
        """The same backend on other images."""
        return type(self)(source, self.planner, self.config)

    def _fitting(self, rows: np.ndarray) -> np.ndarray:
        return fitting(self.source, self.planner, rows, self.config)

    def close(self) -> None:
        """Free DALI's threads and memory, and the readers."""
        self._pipes.clear()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._readers = self._new_readers()

    def _new_readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.workers, "reader")  # without a thread until there is something to read

    def _stream(self, what: str, rows: np.ndarray) -> Iterator[tuple[Plan, Any]]:
        """(plan, outputs or the exception) for each batch. Whole batches are planned, and read where DALI cannot read
        them, ahead on a helper thread."""
        if not len(rows):
            return
        batches = pieces(self.source, self.planner, rows, self.config, gpu=self.mixed)
        if not self.config.read_ahead:
            yield from self._pipe(what, rows).run(map(self._request, batches))
            return
        with Prefetcher(map(self._request, batches), depth=self.config.prefetch + 1) as requests:
            yield from self._pipe(what, rows).run(requests)

    def _alone(self, what: str, rows: np.ndarray) -> Iterator[tuple[Plan, Any]]:
        return self._pipe(what, rows, alone=True).run(map(self._request, split(rows, 1)))

    def _request(self, rows: np.ndarray) -> _Request:
        plan = self.planner.plan(rows, self.source.names(rows), self.source.sizes(rows))
        spans = self.source.spans(rows)
        # A task for each image would cost more than to read it from memory; a network makes all of them wait.
        size = len(spans) if spans[0].is_file else -(-len(spans) // self.config.workers)
        pieces = [spans[i : i + size] for i in range(0, len(spans), size)]
        each = map if len(pieces) == 1 else self._readers.map
        return plan, [head for encoded_inputs in each(_encoded_inputs, pieces) for head in encoded_inputs]

    def _pipe(self, what: str, rows: np.ndarray, *, alone: bool = False) -> _Fed:
        by_path = all(span.is_file for span in self.source.spans(rows[:1]))
        key = (what, by_path, alone)
        if key not in self._pipes:
            config = replace(self.config, batch_images=1) if alone else self.config
            self._pipes[key] = _Fed(what, by_path, self.planner, config, self.crop_operators, self.mixed)
        return self._pipes[key]

    def _batch(self, plan: Plan, outputs: Any) -> CropBatch:
        changed = _changed_images(plan, outputs[0])
        groups = []
        crop_outputs = iter(outputs[1:])
        for group, operator in zip(plan.groups, self.crop_operators, strict=True):
            if operator is None:
                groups.append(_no_crops(group.K, self.device))
                continue
            output = next(crop_outputs)
            crops = torch.from_dlpack(output.as_tensor()).reshape(-1, group.K, group.K, 3)
            slots = operator.slots(group, len(plan.rows)).reshape(-1)
            empty = (slots < 0) | np.isin(group.image[slots], changed)
            image = np.where(empty, -1, plan.rows[group.image[slots]])
            groups.append(Group(crops, image, np.where(empty, -1, group.view[slots])))
        failed = [Failure(int(plan.rows[i]), _changed(plan, i, outputs[0]) or "") for i in changed]
        frames: list[Group] = []
        if plan.dense:
            good = np.setdiff1d(np.arange(len(plan.rows)), changed).tolist()
            frames = dense_groups(plan, {i: torch.from_dlpack(outputs[-1][i]) for i in good})
        return CropBatch(groups, np.delete(plan.rows, changed), failed, frames)

    def _one_by_one(self, plan: Plan, refusal: Exception) -> CropBatch:
        """A batch that DALI refused because of one image: each image alone, in a pipeline of its own.

        When each of them is good alone, no image was the cause: the refusal is raised, not hidden behind a slow path,
        unless memory ran out for the batch. Raises MachineFault where it runs out for a single image.
        """
        done: list[CropBatch] = []
        failed: list[Failure] = []
        for single, outputs in self._alone("crops", plan.rows):
            if isinstance(outputs, Exception):
                span = self.source.spans(single.rows)[0]
                if is_of_machine(outputs):
                    raise fault(self.source.names(single.rows)[0], RuntimeError(_short(outputs))) from outputs
                failed.append(Failure(int(single.rows[0]), f"{_short(outputs)}; PIL: {decode_error(span)}"))
            else:
                batch = self._batch(single, outputs)
                done.append(batch)
                failed += batch.failed
        if not failed and is_of_machine(refusal):
            log.warning("memory ran out for a batch of %d images; they were read one by one", len(plan.rows))
        elif not failed:
            raise RuntimeError("DALI refused a batch whose images are all good alone") from refusal
        groups = [
            Group(
                torch.cat([b.groups[g].crops for b in done]),
                np.concatenate([b.groups[g].image for b in done]),
                np.concatenate([b.groups[g].view for b in done]),
            )
            for g in range(len(plan.groups) if done else 0)
        ]
        rows = np.concatenate([b.rows for b in done]) if done else np.zeros(0, np.int64)
        return CropBatch(groups, rows, failed, [group for b in done for group in b.frames])


class DaliCpu(_Dali):
    name = "dali-cpu"
    mixed = False

    @staticmethod
    def probe(device: str) -> str | None:
        """None: importing this module has shown that DALI works."""
        return None


class DaliGpu(_Dali):
    name = "dali-gpu"
    mixed = True

    @staticmethod
    def probe(device: str) -> str | None:
        """Why there is no decoding on that GPU (``cpu``: on the first), or None."""
        index = torch.device(device).index or 0
        if not torch.cuda.is_available():
            return "no NVIDIA GPU with a working driver"
        try:
            pipe = Pipeline(batch_size=1, num_threads=1, device_id=index)
            pipe.set_outputs(types.Constant(np.zeros(1, np.uint8)))
            pipe.build()
            working_crop_operator(index)
        except RuntimeError as error:
            return _short(error)
        return None


class _Fed:
    """One built graph and what is in flight in it."""

    def __init__(
        self,
        what: str,
        by_path: bool,
        planner: Planner,
        config: LoadConfig,
        crop_operators: tuple[CropOperator | None, ...],  # one for each of the plan's groups
        mixed: bool,
    ) -> None:
        self.what, self.by_path, self.crop_operators = what, by_path, crop_operators
        self.requests: Iterator[_Request] = iter(())
        self.in_flight: deque[Plan] = deque()
        self.running = False  # a pass was begun and its end not reached
        self.stream = torch.cuda.current_stream(config.device_id) if mixed else None
        self.pipe = Pipeline(
            batch_size=config.batch_images,
            num_threads=config.workers,
            device_id=config.device_id if mixed else None,
            prefetch_queue_depth=config.prefetch,
            exec_dynamic=True,  # outputs are newly allocated: a tensor handed to torch stays intact
        )
        with self.pipe:
            self.pipe.set_outputs(*self._graph(planner, config, mixed))
        self.pipe.build()

    def _graph(self, planner: Planner, config: LoadConfig, mixed: bool) -> list[Any]:
        specs = list(planner.specs().values())
        parts = [ENCODED_INPUT]
        if self.what in RESIZES:
            parts += [SIZES] * len(specs)
        if self.what == "crops":
            parts += [(list(operator.dtypes), list(operator.ndims)) for operator in self.crop_operators if operator]
        dtypes = [d for part in parts for d in part[0]]
        ndims = [n for part in parts for n in part[1]]
        encoded, *planned = fn.external_source(
            _weakly(self._feed), num_outputs=len(dtypes), batch=True, dtype=dtypes, ndim=ndims
        )
        if self.by_path:
            encoded = fn.io.file.read(encoded, dont_use_mmap=not config.mmap)  # type: ignore[attr-defined]
        if self.what == "read":
            return [encoded]
        encoded = _parsed(encoded)
        decoder = _gpu_decoder(config) if mixed else {"device": "cpu"}
        image = fn.decoders.image(encoded, adjust_orientation=False, output_type=types.RGB, **decoder)
        outputs = [image.shape()]
        if self.what == "decode":
            return [*outputs, image]
        frames: list[Any] = []
        sizes, arguments = planned[: len(specs)], iter(planned[len(specs) :])
        for spec, size, operator in zip(specs, sizes, self.crop_operators, strict=True):
            frame = fn.resize(
                image,
                size=size,
                interp_type=INTERPOLATION[planner.spec.interpolation],
                antialias=True,
                subpixel_scale=False,
            )
            frames.append(frame)
            if self.what == "crops" and operator:
                own = islice(arguments, len(operator.dtypes))
                outputs.append(operator.operator(frame, *own, K=spec.K, mirrored=planner.views.mirrored))
        if self.what != "crops":
            return outputs + frames
        return outputs + frames[:1] if planner.views.dense else outputs

    def _feed(self) -> tuple[Any, ...]:
        """Called by DALI for each batch; StopIteration ends the epoch."""
        plan, encoded_inputs = next(self.requests)
        self.in_flight.append(plan)
        # In C order: DALI refuses arrays whose rows are not dense.
        sizes = [np.ascontiguousarray(group.sizes, dtype=np.float32) for group in plan.groups if self.what in RESIZES]
        windows = [
            operator.arguments(group, operator.slots(group, len(encoded_inputs)))
            for group, operator in zip(plan.groups, self.crop_operators, strict=True)
            if self.what == "crops" and operator
        ]
        return (encoded_inputs, *sizes, *(x for arguments in windows for x in arguments))

    def run(self, requests: Iterable[_Request]) -> Iterator[tuple[Plan, Any]]:
        """(plan, outputs, or the RuntimeError with which DALI refused the batch). Later batches come all the same."""
        if self.running:
            self._drain()
        self.running, self.requests = True, iter(requests)
        outputs: Any
        while True:
            try:
                outputs = self.pipe.run(self.stream) if self.stream is not None else self.pipe.run()
            except StopIteration:
                break
            except RuntimeError as error:
                if not self.in_flight:
                    raise
                outputs = error
            yield self.in_flight.popleft(), outputs
        self.pipe.reset()
        self.running = False

    def _drain(self) -> None:
        self.requests = iter(())
        while True:
            try:
                self.pipe.run(self.stream) if self.stream is not None else self.pipe.run()
            except StopIteration:
                break
            except RuntimeError:
                continue
        self.in_flight.clear()
        self.pipe.reset()


def _gpu_decoder(config: LoadConfig) -> dict[str, Any]:
    """Arguments of ``fn.decoders.image`` on a GPU. What is not set keeps DALI's default."""
    arguments: dict[str, Any] = {"device": "mixed", "hw_decoder_load": config.hw_load, "jpeg_fancy_upsampling": True}
    if config.hybrid_huffman_threshold is not None:
        arguments["hybrid_huffman_threshold"] = config.hybrid_huffman_threshold
    if config.size_hint is not None:
        arguments["preallocate_height_hint"], arguments["preallocate_width_hint"] = config.size_hint
    return arguments


def _encoded_inputs(spans: list[Span]) -> list[np.ndarray]:
    return [_encoded_input(span) for span in spans]


def _encoded_input(span: Span) -> np.ndarray:
    """What the graph is fed for an image, uint8: a file's path, which DALI reads, or the bytes of a span."""
    if span.is_file:
        return np.frombuffer(span.path.encode("utf-8", "surrogateescape"), np.uint8)
    try:
        return np.frombuffer(span.read() or bytes(REFUSED), np.uint8)
    except OSError:  # the reason is asked for when DALI has refused the image
        return REFUSED


def _weakly(method: Callable[[], T]) -> Callable[[], T]:
    """The method without a reference to its object: the pipeline must not keep alive what keeps the pipeline alive, or
    closing would free nothing until the garbage collector comes."""
    reference = WeakMethod(method)

    def call() -> T:
        bound = reference()
        if bound is None:
            raise StopIteration
        return bound()

    return call


def _parsed(encoded: Any) -> Any:
    """The same bytes, behind a look at their header.

    DALI 2.4.0's decoder ends the process (SIGSEGV, whatever the number of threads) where a batch of 32 images or more
    holds a file whose header it cannot parse: a GIF, a PNG cut short, some damaged JPEGs. ``peek_image_shape`` raises
    for the same headers, and the slice makes the decoder wait for it; the copy does not show in the rate.
    """
    height_and_width = fn.peek_image_shape(encoded, adjust_orientation=False)
    all_bytes = fn.cast(fn.stack(encoded.shape()[0] + 0 * height_and_width[0]), dtype=types.INT32)
    return fn.slice(encoded, start=[0], shape=all_bytes, axes=[0])


def _changed(plan: Plan, i: int, shapes: Any) -> str | None:
    """Why image ``i`` no longer fits its plan (DALI would silently squash it), or None."""
    return changed(plan.source_sizes[i], np.asarray(shapes.at(i))[:2])


def _changed_images(plan: Plan, shapes: Any) -> list[int]:
    """The images that no longer fit their plan; all shapes are read in one call."""
    found = np.asarray(shapes.as_array())[: len(plan.rows), :2]
    return np.flatnonzero((found != plan.source_sizes).any(axis=1)).tolist()


def _no_crops(K: int, device: str) -> Group:
    crops = torch.empty(0, K, K, 3, dtype=torch.uint8, device=device)
    return Group(crops, np.zeros(0, np.int64), np.zeros(0, np.int32))


def _short(error: Exception) -> str:
    """What DALI says after "encountered:", without its traceback."""
    text = str(error).split("encountered:")[-1].split("Current pipeline object")[0].split("C++ context")[0]
    return f"DALI: {' '.join(text.split())[:200].rstrip(' :')}"


class Prefetcher(Iterator[T]):
    """Computes the next ``depth`` items of an iterator on a helper thread. An exception there is raised here."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True, name="planner")
        self._thread.start()

    def _work(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put((True, item)):
                    return
            self._put((False, StopIteration()))
        except Exception as error:
            self._put((False, error))

    def _put(self, item: tuple[bool, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> T:
        good, item = self._queue.get()
        if good:
            return item
        self._queue.put((good, item))  # every later call ends the same way
        # Not the one in the queue: its traceback would hold the caller's frame, and in it the pass's last crops, until
        # the garbage collector comes by.
        raise StopIteration if isinstance(item, StopIteration) else item

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
