"""Rates of a backend and a network whose every batch takes a known time, and what happens inside a timed segment."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tqdm
from torch import nn

from analysis.ceilings import rate_rows
from bench.measure import throughput
from bench.measure.clocks import Segment
from bench.measure.throughput import Bench, Measurement, Rounds, Timed, measure
from bench.records import END_TO_END, LOAD, MODEL, Setting, Throughput
from models import averaging
from models.classifier import Classifier
from models.predict import Network
from pipelines.batch import STAGES, CropBatch, Failure, Group, LoadConfig
from pipelines.crops import Planner, Policy, union
from pipelines.inputspec import InputSpec

SPEC = InputSpec(S=8, K=6)
BATCH_IMAGES, BATCH_SIZE, CLASSES = 4, 8, 5
# What each thing takes. No sleep is shorter than asked for, so no rate may be above the one that follows from it.
BATCH_MS = {"read": 2, "decode": 4, "resize": 6}
CROP_MS = 1.0  # of the pipeline
FORWARD_MS = 4.0
ROWS = np.array([3, 5, 9, 10, 14, 15])
CROPS = [1, 4]


class Sleeping:
    """A backend whose crops hold their image's row and view in their first pixel."""

    name = "sleeping"
    device = "cpu"
    unreadable: frozenset[int] = frozenset()

    def __init__(self, source: Any, planner: Planner, config: LoadConfig) -> None:
        self.views, self.config = planner.views.total, config
        self.rows_seen: list[int] = []
        self.closed = False

    def _pieces(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(rows), self.config.batch_images):
            yield rows[start : start + self.config.batch_images]

    def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
        for piece in self._pieces(rows):
            time.sleep(CROP_MS * len(piece) * self.views / 1e3)
            self.rows_seen += piece.tolist()
            good = piece[~np.isin(piece, list(self.unreadable))]
            image, view = np.repeat(good, self.views), np.tile(np.arange(self.views, dtype=np.int32), len(good))
            crops = torch.zeros(len(image), SPEC.K, SPEC.K, 3, dtype=torch.uint8)
            crops[:, 0, 0, 0], crops[:, 0, 0, 1] = torch.from_numpy(image), torch.from_numpy(view)
            failed = [Failure(int(row), "unreadable") for row in np.setdiff1d(piece, good)]
            yield CropBatch([Group(crops, image, view)], good, failed)

    def stage(self, what: str, rows: np.ndarray) -> Iterator[int]:
        for piece in self._pieces(rows):
            time.sleep(BATCH_MS[what] / 1e3)
            self.rows_seen += piece.tolist()
            yield len(piece)

    def frames(self, rows: np.ndarray, group: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        raise AssertionError("frames are for checks, which come before the clock")

    def close(self) -> None:
        self.closed = True


class Slow(nn.Module):
    """A tiny network that takes FORWARD_MS for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(FORWARD_MS / 1e3)
        return self.layers(x)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(Classifier(Slow(), SPEC, name="slow", weights="random"), batch_size=BATCH_SIZE)


def make_planner(policy: Policy) -> Planner:
    return Planner(SPEC, union([policy]), seed=0)


def bench_of(network: Network, backend: Any = Sleeping, rows: np.ndarray = ROWS) -> Bench:
    config = LoadConfig(batch_images=BATCH_IMAGES)
    job: Any = SimpleNamespace(
        network=network,
        crops=CROPS,
        planner=make_planner,
        load_config=lambda n: config,
        make_backend=lambda planner, load_config: backend(None, planner, load_config),
        is_timed=lambda stage: True,
    )
    return Bench(job, rows)


MEASUREMENTS = [
    *(Measurement(stage, None) for stage in STAGES),
    Measurement(MODEL, None),
    *(Measurement(stage, n) for n in CROPS for stage in (LOAD, END_TO_END)),
]


def known_rate(measurement: Measurement) -> float:
    """Per second, from the sleeps alone."""
    if measurement.stage in BATCH_MS:
        return 1e3 * BATCH_IMAGES / BATCH_MS[measurement.stage]
    if measurement.stage == MODEL:
        return 1e3 * BATCH_SIZE / FORWARD_MS
    assert measurement.crops is not None
    image_ms = CROP_MS * measurement.crops + (
        FORWARD_MS * measurement.crops / BATCH_SIZE if measurement.stage == END_TO_END else 0
    )
    return 1e3 / image_ms


def rate(one: Timed) -> float:
    return float(np.median([s.count / s.duration_s for s in one.segments]))


@pytest.fixture(scope="module")
def measured(network: Network) -> dict[Measurement, Timed]:
    found = measure(bench_of(network), Rounds(3, 0.06, 1))
    return {one.measurement: one for one in found}


def test_every_rate_is_that_of_the_work_done(measured: dict[Measurement, Timed]) -> None:
    assert list(measured) == MEASUREMENTS
    for measurement, one in measured.items():
        # Slower than the sleeps by the machine's load and the real work; faster only where a segment begins with a
        # batch whose crops were computed in the warm-up.
        assert 0.3 < rate(one) / known_rate(measurement) < 1.25, measurement
        for segment in one.segments:
            unit = BATCH_SIZE if measurement.stage == MODEL else BATCH_IMAGES
            assert segment.count % unit == 0 and segment.count >= 2 * unit
            assert len(segment.interval_ms) == segment.count / unit
            assert sum(segment.interval_ms) / 1e3 <= segment.duration_s
        assert len(one.segments) >= 3  # more where other programs disturbed one
        assert one.peak_mem_bytes > 10e6  # a Python process with torch in it
        assert one.gpu_used_bytes == 0


def test_four_times_the_crops_are_a_quarter_of_the_rate(measured: dict[Measurement, Timed]) -> None:
    for stage in (LOAD, END_TO_END):
        ratio = rate(measured[Measurement(stage, 1)]) / rate(measured[Measurement(stage, 4)])
        assert 2.4 < ratio < 6


def test_end_to_end_reaches_its_ceiling_and_does_not_pass_it(measured: dict[Measurement, Timed]) -> None:
    """The backend and the network of this test wait for one another, as on shared cores."""
    rows = rate_rows([record_of(one) for one in measured.values()])
    assert [row["crops"] for row in rows] == CROPS
    for row in rows:
        assert 0.5 < row["efficiency"] < 1.6


def record_of(one: Timed) -> Throughput:
    setting: dict[str, Any] = dict.fromkeys(Setting.__dataclass_fields__)
    return Throughput(
        Setting(**{**setting, "device": "cpu"}),
        one.measurement.stage,
        one.measurement.crops,
        BATCH_IMAGES,
        [s.count for s in one.segments],
        [s.duration_s for s in one.segments],
        [ms for s in one.segments for ms in s.interval_ms],
        one.peak_mem_bytes,
        None,
        0.0,
    )


# ---------------------------------------------------------------------------------------------- the order of the work


@pytest.fixture
def seen_segments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every segment, in order; each takes two items, untimed."""
    seen: list[dict[str, Any]] = []

    def segment(stream: Iterator[int], **arguments: Any) -> Segment:
        seen.append(arguments)
        arguments["ready"]()
        return Segment(next(stream) + next(stream), 1.0, [1.0, 1.0])

    monkeypatch.setattr(throughput, "segment", segment)
    monkeypatch.setattr(throughput.PeakMemory, "sample", lambda memory: None)  # takes a tenth of a second
    monkeypatch.setattr(throughput, "disturbances", lambda used, intervals: [""] * len(used))  # whatever else runs here
    return seen


def test_rounds_alternate_the_cells_and_only_the_first_warms_up_twice_as_long(
    network: Network, seen_segments: list[dict[str, Any]]
) -> None:
    told: list[Measurement] = []
    bench = bench_of(network)
    taken: list[int] = []

    def counted(measurement: Measurement) -> Iterator[int]:
        taken.append(0)
        while True:
            taken[-1] += 1
            yield 1

    bench.stream = counted  # type: ignore[assignment]
    measure(bench, Rounds(3, 7.0, 5, progress=told.append))
    assert told == MEASUREMENTS * 3
    # Five here and five in the segment, which this test replaces by two items.
    assert taken == [5 + 2] * len(MEASUREMENTS) + [2] * 2 * len(MEASUREMENTS)
    waited = [segment.pop("ready") for segment in seen_segments]
    assert len(waited) == len(taken)
    assert seen_segments == [{"seconds": 7.0, "warmup_items": 5, "device": "cpu"}] * len(taken)


def test_only_disturbed_measurements_are_timed_again_within_a_budget(
    network: Network, seen_segments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round of the network alone is disturbed, and its first repetition too."""
    bad = {1: "a stop", 3: "another"}

    def found(self: Timed) -> list[str]:
        of_model = self.measurement.stage == MODEL
        return [bad.get(i, "") if of_model else "" for i in range(len(self.segments))]

    monkeypatch.setattr(Timed, "disturbed", property(found))
    monkeypatch.setattr(throughput, "REPEAT_SHARE", 1000.0)
    measured = measure(bench_of(network), Rounds(3, 7.0, 1))
    assert {one.measurement: len(one.segments) for one in measured} == {
        one: 5 if one.stage == MODEL else 3 for one in MEASUREMENTS
    }
    assert all(len(one.used) == len(one.segments) for one in measured)
    monkeypatch.setattr(throughput, "REPEAT_SHARE", 0.0)
    assert {len(one.segments) for one in measure(bench_of(network), Rounds(3, 7.0, 1))} == {3}


def test_processes_agree_on_what_is_timed_again(
    network: Network, seen_segments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process asks for the first measurement; this one has room for three, the other for one."""
    monkeypatch.setattr(throughput, "REPEAT_SHARE", 1000.0)
    asked: list[Any] = []

    def share(value: Any) -> list[Any]:
        asked.append(value[0])
        return [value, ([(1, 2), (0, 0)], 1)]

    measured = measure(bench_of(network), Rounds(2, 7.0, 1, share=share))
    assert [len(one.segments) for one in measured] == [2 + throughput.REPEAT_PASSES, *[2] * (len(MEASUREMENTS) - 1)]
    assert asked == [[]] * throughput.REPEAT_PASSES


def test_images_are_read_in_the_order_of_the_table_again_and_again(
    network: Network, seen_segments: list[dict[str, Any]]
) -> None:
    bench = bench_of(network)
    for measurement in MEASUREMENTS:
        for backend in bench.backends.values():
            backend.rows_seen.clear()  # type: ignore[attr-defined]
        stream = bench.stream(measurement)
        total = sum(next(stream) for _ in range(5))
        seen = [row for backend in bench.backends.values() for row in backend.rows_seen]  # type: ignore[attr-defined]
        if measurement.stage == MODEL:
            assert seen == [] and total == 5 * BATCH_SIZE
        else:
            assert total == 5 * BATCH_IMAGES <= len(seen)
            assert seen == np.resize(ROWS, len(seen)).tolist()


def test_each_crop_count_has_a_pipeline_of_its_own_and_all_are_closed(network: Network) -> None:
    bench = bench_of(network)
    assert {n: backend.views for n, backend in bench.backends.items()} == {1: 1, 4: 4}  # type: ignore[attr-defined]
    assert {n: planner.views.counts for n, planner in bench.planners.items()} == {1: {"RC": 1}, 4: {"RC": 4}}
    bench.close()
    assert all(backend.closed for backend in bench.backends.values())  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------- inside the timed loop


FORBIDDEN = {
    "item": (torch.Tensor, "item"),
    "tolist": (torch.Tensor, "tolist"),
    "float": (torch.Tensor, "__float__"),
    "bool": (torch.Tensor, "__bool__"),
    "progress bar": (tqdm.tqdm, "update"),
    "new progress bar": (tqdm.tqdm, "__init__"),
    "print": (builtins, "print"),
    "scoring": (averaging, "score"),
    "memory sampling": (throughput.PeakMemory, "sample"),
}


def test_nothing_but_the_work_happens_in_a_timed_segment(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = False
    broken: list[str] = []
    calls: dict[str, int] = dict.fromkeys(FORBIDDEN, 0)

    def guard(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            if timing:
                broken.append(name)
            return original(*args, **kwargs)

        return call

    real = throughput.segment

    def segment(*args: Any, **kwargs: Any) -> Segment:
        nonlocal timing
        timing = True
        try:
            return real(*args, **kwargs)
        finally:
            timing = False

    for name, (owner, attribute) in FORBIDDEN.items():
        monkeypatch.setattr(owner, attribute, guard(name, getattr(owner, attribute)))
    monkeypatch.setattr(throughput, "segment", segment)
    with tqdm.tqdm(total=len(MEASUREMENTS), disable=False) as bar:

        def progress(measurement: Measurement) -> None:
            bar.update()

        measure(bench_of(network), Rounds(1, 0.0, 1, progress=progress))
    assert broken == []
    assert calls["progress bar"] == len(MEASUREMENTS) and calls["memory sampling"] >= len(
        MEASUREMENTS
    )  # the guard works


# ---------------------------------------------------------------------------------------------- what the network sees


def test_the_network_alone_is_timed_on_real_crops(network: Network) -> None:
    bench = bench_of(network)
    network.buffer.fill_(255)
    bench.fill()
    expected = [(row, view) for row in ROWS.tolist() for view in range(max(CROPS))][:BATCH_SIZE]
    assert list(map(tuple, network.buffer[:, 0, 0, :2].tolist())) == expected


def test_a_batch_of_images_below_the_batch_size_is_filled_with_the_next(network: Network) -> None:
    bench = bench_of(network, rows=ROWS[:1])
    network.buffer.fill_(255)
    bench.fill()
    assert network.buffer[:, 0, 0, :2].tolist() == [[3, view] for view in range(4)] * 2


def test_end_to_end_answers_every_image_with_the_average_of_its_crops(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(network)
    asked: list[tuple[str, list[str], tuple[int, ...]]] = []
    real = throughput.log_probabilities

    def log_probabilities(level: str, outputs: Any, views: Any, policies: list[Policy], head: Any) -> Any:
        asked.append((level, [policy.name for policy in policies], tuple(outputs.logits.shape)))
        return real(level, outputs, views, policies, head)

    monkeypatch.setattr(throughput, "log_probabilities", log_probabilities)
    stream = bench.stream(Measurement(END_TO_END, 4))
    assert [next(stream) for _ in range(3)] == [BATCH_IMAGES] * 3
    assert asked == [("softmax", ["4RC"], (BATCH_IMAGES, 4, CLASSES))] * 3


@pytest.mark.parametrize("stage", [LOAD, END_TO_END])
def test_unreadable_images_are_not_counted(stage: str, network: Network) -> None:
    class Failing(Sleeping):
        unreadable = frozenset({5, 14, 15})

    stream = bench_of(network, Failing).stream(Measurement(stage, 4))
    assert [next(stream) for _ in range(3)] == [3, 1, 2]  # of rows 3 5 9 10, 14 15 3 5, 9 10 14 15
