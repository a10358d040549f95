"""Really stopping early: images leave the network's batches as soon as their answer is sure.

The batches stay full and of one shape: each takes the next view of the oldest images without an answer. Where images
run out, it takes several views of one image; those that come too late are discarded, and counted as cost. On a GPU
decisions are read one forward pass behind, so that the host never waits for the last one.

An answer is the mean over the views seen, summed as ``models.averaging`` sums them: the bits of the scored policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.averaging import LEVELS, ViewOutputs, log_probabilities, margins
from models.predict import FRAME_AGE, Network, predict
from models.stopping import may_stop, rule_of, stage_columns, stage_weights, stages_of
from models.transfer import to_device
from pipelines.batch import CropBatch, Failure, Group
from pipelines.crops import Planner, Policy, stream_of

SizesOf = Callable[[np.ndarray], np.ndarray]
Key = tuple[int, ...]  # (K,) of crops, (height, width, whole) of frames


@dataclass(frozen=True, slots=True)
class Stopping:
    """A stopped policy at one level; ``threshold``: of the margin, for a policy with a risk (``models.thresholds``)."""

    policy: Policy
    level: str
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of one batch of images, in its order."""

    rows: np.ndarray  # int64 [b]
    log_p: Tensor | None  # float64 [b, n]; None where no image could be read
    forwards: np.ndarray  # float64 [b]: forward passes used, discarded ones among them
    failed: list[Failure]
    work: float  # forward passes that were run since the answers before, for any image


@dataclass(eq=False)
class _Images:
    """A batch of images, some of them without an answer. ``weight``, ``cost`` float64 [b, t]; t: stages."""

    batch: CropBatch
    number: int  # of the batch of images
    weight: np.ndarray
    cost: np.ndarray
    place: np.ndarray  # int64 [b, t, 2]: the group (crops first, then frames) that holds the view, and where
    seen: np.ndarray  # float64 [b]: weight of the views seen
    used: np.ndarray  # float64 [b]: forward passes
    answered: np.ndarray  # bool [b]
    sums: Tensor | None = None  # float64 [b, streams, d]
    log_p: Tensor | None = None  # float64 [b, n]

    def next_stage(self, i: int, after: int) -> int | None:
        """The image's first stage from ``after`` on that it takes (adaptive policies leave some out)."""
        left = np.flatnonzero(self.weight[i, after:] > 0)
        return after + int(left[0]) if len(left) else None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One view in a batch of the network."""

    images: _Images
    i: int
    stage: int


@dataclass(slots=True)
class _Round:
    """At most one view of each image: the running answers after it, on their way to the host."""

    entries: list[_Entry]
    log_p: Tensor
    margin: Tensor  # float64 [m]: between the two most probable classes, on the CPU once ``arrived``
    arrived: torch.cuda.Event | None


class EarlyStopping:
    """Runs a stopped policy. ``planner``: that of the batches (its views must hold the policy's).

    Raises ValueError for a policy without a suffix, or with a risk and no threshold.
    """

    def __init__(self, network: Network, planner: Planner, stopping: Stopping) -> None:
        self.network, self.planner, self.policy = network, planner, stopping.policy
        self.rule, self.threshold = rule_of(stopping.policy), stopping.threshold
        if self.rule.tolerance is not None and self.threshold is None:
            raise ValueError(f"policy {self.policy} needs a threshold")
        self.level = LEVELS[stopping.level]
        self.columns = stage_columns(self.policy, planner.views)
        streams = [stream_of(term) for term, _ in self.policy.terms]  # canonical order, in which they are summed
        self.stream = [streams.index(stream_of(stage.term)) for stage in stages_of(self.policy)]
        self.streams = len(streams)
        self.whole_view = planner.views.dense.get("WI")
        self.ready: dict[Key, deque[_Entry]] = {}
        self.in_flight: deque[list[_Round]] = deque()
        self.behind = 1 if network.device.type == "cuda" else 0
        self.number = 0  # batches of images taken
        self.work = 0.0  # forward passes since the last answers

    def run(self, batches: Iterable[CropBatch], sizes: SizesOf) -> Iterator[Answered]:
        """The answers of each batch of images, in order. ``sizes``: rows int64 [b] -> height and width [b, 2]."""
        self.network.get_ready(self.planner.views.sizes)
        waiting: deque[_Images] = deque()
        source = iter(batches)
        ended = False
        while True:
            key = self._chosen(ended)
            if key is not None:
                self._forward(key)
            elif not ended:
                batch = next(source, None)
                ended = batch is None
                if batch is not None:
                    waiting.append(self._taken(batch, sizes))
            while len(self.in_flight) > (0 if key is None and ended else self.behind):
                self._decide(self.in_flight.popleft())
            while waiting and waiting[0].answered.all():
                images, work, self.work = waiting.popleft(), self.work, 0.0
                yield Answered(images.batch.rows, images.log_p, images.used, images.batch.failed, work)
            if ended and key is None and not waiting:
                return

    def _taken(self, batch: CropBatch, sizes: SizesOf) -> _Images:
        self.number += 1
        stored = sizes(batch.rows)
        weight = stage_weights(self.policy, self.planner.uncovered(stored))
        cost = self.planner.forwards(stored)[:, self.columns] * (weight > 0)
        n = len(batch.rows)
        images = _Images(
            batch, self.number, weight, cost, self._places(batch),
            np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool),
        )  # fmt: skip
        if ((images.place[..., 1] < 0) & (weight > 0)).any():
            raise ValueError("a view of the policy is missing in a batch; the backend broke its plan")
        for i in range(n):
            self._enqueue(images, i, 0, old=False)
        return images

    def _places(self, batch: CropBatch) -> np.ndarray:
        """int64 [b, t, 2]: the group that holds each stage's view and its place there; -1 where there is none."""
        order = np.argsort(batch.rows)
        place = np.full((len(batch.rows), self.planner.views.total, 2), -1, dtype=np.int64)
        for g, group in enumerate(batch.groups + batch.frames):
            there = np.flatnonzero(group.image >= 0)
            row = order[np.searchsorted(batch.rows[order], group.image[there])]
            place[row, group.view[there]] = np.stack([np.full(len(there), g), there], axis=1)
        return place[:, self.columns]

    def _enqueue(self, images: _Images, i: int, after: int, *, old: bool) -> None:
        """Let an image wait for its next stage; ``old`` ones before new ones."""
        stage = images.next_stage(i, after)
        assert stage is not None
        queue = self.ready.setdefault(self._key(images, i, stage), deque())
        (queue.appendleft if old else queue.append)(_Entry(images, i, stage))

    def _key(self, images: _Images, i: int, stage: int) -> Key:
        group, _ = images.place[i, stage]
        crops = _groups(images.batch)[group].crops
        if group < len(images.batch.groups):
            return (crops.shape[1],)
        return (crops.shape[1], crops.shape[2], int(self.columns[stage] == self.whole_view))

    def _capacity(self, key: Key) -> int:
        if len(key) == 1:
            return self.network.batch_size
        return self.network.frames_at_once(key[0], key[1], whole=bool(key[2]))

    def _chosen(self, ended: bool) -> Key | None:
        """What to run next: frames that have waited for long, a full batch, at the end the fullest; None to wait."""
        waiting = {key: queue for key, queue in self.ready.items() if queue}
        for key, queue in waiting.items():
            if len(key) == 3 and self.number - min(entry.images.number for entry in queue) >= FRAME_AGE:
                return key
        full = [key for key, queue in waiting.items() if len(queue) >= self._capacity(key)]
        if full:
            return full[0]
        if not ended or not waiting or self.in_flight:
            return None
        return max(waiting, key=lambda key: len(waiting[key]) / self._capacity(key))

    def _take(self, key: Key) -> list[_Entry]:
        """The entries of one batch; where images run out, more views of those that are there."""
        queue, capacity = self.ready[key], self._capacity(key)
        taken = [queue.popleft() for _ in range(min(capacity, len(queue)))]
        if not queue and len(key) == 3:
            del self.ready[key]  # there may be many shapes
        first = taken
        while len(taken) < capacity and first and len(key) == 1:
            after = ((entry, entry.images.next_stage(entry.i, entry.stage + 1)) for entry in first)
            first = [
                _Entry(entry.images, entry.i, stage)
                for entry, stage in after
                if stage is not None and self._key(entry.images, entry.i, stage) == key
            ][: capacity - len(taken)]
            taken = taken + first
        return taken

    @torch.inference_mode()
    def _forward(self, key: Key) -> None:
        entries = self._take(key)
        values = self._values(key, entries)
        rounds: list[_Round] = []
        rest = list(enumerate(entries))
        while rest:  # each image once in a round: its views are added one after the other
            once: dict[tuple[int, int], tuple[int, _Entry]] = {}
            later = []
            for at, entry in rest:
                if (name := (id(entry.images), entry.i)) in once:
                    later.append((at, entry))
                else:
                    once[name] = (at, entry)
            now = list(once.values())
            chosen = to_device([at for at, _ in now], values.device)
            rounds.append(self._added([entry for _, entry in now], values[chosen]))
            rest = later
        self.in_flight.append(rounds)

    def _values(self, key: Key, entries: list[_Entry]) -> Tensor:
        """float64 [m, d]: what the level takes the mean of, for each entry."""
        m, dense = len(entries), len(key) == 3
        if dense:
            shape = (self._capacity(key), *key[:2], 3)
            buffer = torch.zeros(shape, dtype=torch.uint8, device=self.network.device)
        else:
            buffer = self.network.buffer_of(key[0])
        for (images, group), at in _by_group(entries).items():
            places = [int(entries[a].images.place[entries[a].i, entries[a].stage, 1]) for a in at]
            crops = _groups(images.batch)[group].crops
            chosen = crops[to_device(places, crops.device)].to(buffer.device, non_blocking=True)
            buffer[to_device(at, buffer.device)] = chosen
        if dense:
            features, logits, scores = self.network.forward_frames(buffer, whole=bool(key[2]))
            outputs = ViewOutputs(_view(features, m), logits[:m, None], {0: scores[:m]})
        else:
            features, logits = self.network.forward(key[0])
            outputs = ViewOutputs(_view(features, m), logits[:m, None])
        values = self.level.of(outputs)
        assert values is not None, "the network has the level"
        return values[:, 0].double()

    def _added(self, entries: list[_Entry], values: Tensor) -> _Round:
        """Add one view of each image, and compute the running answers."""
        means = torch.empty_like(values)
        at_of: dict[_Images, list[int]] = {}
        for at, entry in enumerate(entries):
            at_of.setdefault(entry.images, []).append(at)
        for images, places in at_of.items():
            own = [entries[a] for a in places]
            if images.sums is None:
                n = len(images.batch.rows)
                images.sums = torch.zeros(n, self.streams, values.shape[1], dtype=torch.float64, device=values.device)
            i, stage = [entry.i for entry in own], [entry.stage for entry in own]
            weight = images.weight[i, stage]
            images.seen[i] += weight
            images.used[i] += images.cost[i, stage]
            self.work += float(images.cost[i, stage].sum())
            streams = [self.stream[s] for s in stage]
            here, rows, columns = (to_device(index, values.device) for index in (places, i, streams))
            images.sums[rows, columns] += values[here] * to_device(weight, values.device)[:, None]
            total = torch.zeros_like(values[here])
            for stream in range(self.streams):  # in canonical order, as they are scored
                total = total + images.sums[rows, stream]
            means[here] = total / to_device(images.seen[i], values.device)[:, None]
        log_p = self.level.finish(means, self.network.head)
        margin, arrived = margins(log_p), None
        if margin.is_cuda:
            margin = margin.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return _Round(entries, log_p, margin, arrived)

    def _decide(self, rounds: list[_Round]) -> None:
        """Who has an answer; the others wait for their next stage. Views after an image's answer are discarded."""
        last: dict[tuple[int, int], _Entry] = {}
        for one in rounds:
            if one.arrived is not None:
                one.arrived.synchronize()
            for margin, at, entry in zip(one.margin.tolist(), range(len(one.entries)), one.entries, strict=True):
                images, i = entry.images, entry.i
                if images.answered[i]:
                    continue
                seen = images.weight[i, : entry.stage + 1].sum()
                left = images.weight[i, entry.stage + 1 :].sum()
                if left == 0 or may_stop(self.rule, margin, seen, left, self.threshold):
                    images.answered[i] = True
                    if images.log_p is None:
                        shape = (len(images.batch.rows), one.log_p.shape[1])
                        images.log_p = one.log_p.new_zeros(shape)
                    images.log_p[i] = one.log_p[at]
                else:
                    last[id(images), i] = entry
        for entry in reversed(last.values()):
            if not entry.images.answered[entry.i]:
                self._enqueue(entry.images, entry.i, entry.stage + 1, old=True)


def answers(
    batches: Iterable[CropBatch],
    network: Network,
    planner: Planner,
    policy: Policy,
    level: str,
    sizes: SizesOf,
    threshold: float | None = None,
) -> Iterator[Answered]:
    """A policy's answers, stopped early where it has a suffix, for each batch of images in order.

    ``planner``: that of the batches; ``sizes``: rows int64 [b] -> height and width [b, 2]; ``threshold``: of a policy
    with a risk. Raises as ``EarlyStopping``.
    """
    if policy.suffix:
        yield from EarlyStopping(network, planner, Stopping(policy, level, threshold)).run(batches, sizes)
        return
    for one in predict(batches, network, planner.views):
        stored = sizes(one.rows)
        forwards = planner.forwards(stored).sum(axis=1)
        log_p = None
        if one.outputs is not None and len(one.rows):
            shapes = planner.uncovered(stored)
            log_p = log_probabilities(level, one.outputs, planner.views, [policy], network.head, shapes)
        yield Answered(one.rows, None if log_p is None else log_p[0], forwards, one.failed, float(forwards.sum()))


def _groups(batch: CropBatch) -> list[Group]:
    return batch.groups + batch.frames


def _view(features: Tensor | None, m: int) -> Tensor | None:
    """Features of the first m rows, [m, 1, f]."""
    return None if features is None else features[:m, None]


def _by_group(entries: list[_Entry]) -> dict[tuple[_Images, int], list[int]]:
    """The entries' numbers, by the group that holds their pixels."""
    found: dict[tuple[_Images, int], list[int]] = {}
    for at, entry in enumerate(entries):
        found.setdefault((entry.images, int(entry.images.place[entry.i, entry.stage, 0])), []).append(at)
    return found
