"""One network on one data set: load it, check the pipeline, estimate, score, time; yields records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import accuracy, auto_batch, machine, records, throughput
from bench.cases import ModelCase
from bench.plan import DataLost, Plan
from bench.processes import ALONE, Processes
from bench.shards import FOLDER, Shards, fill, said_already
from models import classifier as classifiers
from models import families
from models.classifier import Classifier
from models.predict import Network
from pipelines import backend
from pipelines.backends import reference
from pipelines.batch import DEFAULT_PREFETCH, Backend, CropBatch, Failure, LoadConfig, default_batch_images, split
from pipelines.crops import Planner, Policy, union
from pipelines.data import real_labels
from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.decode import READS, complaint
from pipelines.data.labels import label, unlabelled

PHASES = ("accuracy", "throughput")
MOST_TIMED = 2000  # images, where no accuracy pass has read them all: they are read once before the clock
CHECKED_IMAGES = 4  # compared with the reference before anything is timed
BATCH_SECONDS = 0.5  # a pipeline batch should not keep the network busy for longer, or a timed round takes minutes


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of every network alike."""

    policies: list[Policy]
    crops: list[int]
    weights: str
    checkpoint: Path | None
    load_arguments: dict[str, Any]  # for models.classifier.load
    labels_file: Path | None
    class_map: Path | None
    synsets_file: Path | None
    real_labels: Path | None
    limit: int | None
    seed: int
    backend: str
    workers: int
    batch_images: int | None
    hw_load: float
    batch_size: int | str | None  # crops per forward; "auto": the largest that fits
    device: str
    amp_dtype: str
    channels_last: bool
    torchcompile: bool
    score: bool
    time: bool
    rounds: int
    round_seconds: float
    num_warm_iter: int
    adapt: str | None = None
    train_size: int | None = None
    fold: bool = False
    prefetch: int = DEFAULT_PREFETCH
    processes: Processes = ALONE
    mmap: bool = True
    cut: str | None = None  # as in bench.setup.unusual_cut


def default_batch_size(K: int, device: str) -> int:
    """Crops per forward: 256 on a GPU; on a CPU about the pixels of 64 crops of 100 x 100, at least 8."""
    if device.startswith("cuda"):
        return 256
    return int(np.clip(2 ** round(np.log2(64 * (100 / K) ** 2)), 8, 64))


class Job:
    """One network's part of a run. Making one loads the weights and matches the labels, so that errors come early."""

    def __init__(self, case: ModelCase, scan: Scan, options: Options, plan: Plan | None = None) -> None:
        """``plan``: what was settled when the run began, for its continuations and other processes."""
        self.case, self.scan, self.options = case, scan, options
        self.classifier = self._load()
        self.data = self._label(scan)
        self.real: real_labels.RealLabels | None = None
        if options.real_labels is not None:
            if not self.data.has_labels:
                raise DatasetError(
                    f"--real-labels {options.real_labels} are scored beside the original labels, and the images have "
                    f"none ({self.data.label_rule}): give --labels-file"
                )
            self.real = real_labels.read(options.real_labels, self.data, self.classifier.num_classes)
        self.rows = np.arange(len(self.data))
        self.views = union(options.policies)
        self.specs = {K: self.classifier.spec_at(K) for policy in options.policies for K in policy.sizes}
        self.view_cost = self.views.cost(self.classifier.spec.K)  # in crops of the network's own size
        self.batch_size = plan.batch_size if plan else self._batch_size()
        self.crops_per_sec = (plan.crops_per_sec if plan else None) or float("nan")
        self.failed: list[Failure] = []
        first = Path(self.data.spans(self.rows[:1])[0].path)
        self.home = self.data.root if self.data.root.is_dir() else first.parent  # of tars
        self.home_identity = identity(self.home)
        self.adapted = options.adapt is not None and self._adapt(options.adapt)

    def _adapt(self, name: str) -> bool:
        """Adapt the network to its crop size (``--adapt``); False at the size at which it was trained."""
        from bench.adapt import fit
        from models.fixres.activations import attach, require_adaptable

        train_K = self.options.train_size or sizes(self.classifier)["train_K"]
        if train_K is None:
            raise ValueError(
                f"--adapt: nothing says at which size {self.classifier.name} was trained: add --train-size K"
            )
        if train_K == self.classifier.spec.K:
            self.classifier.notes.append(f"--adapt {name}: nothing to do at {train_K} pixels, where it was trained")
            return False
        require_adaptable(self.classifier, name)
        if self.views.sizes != [None]:
            raise ValueError(f"--adapt {name} is for one crop size: leave policies with @K out")
        found = fit(self, name, train_K)
        attach(self.classifier, found)
        self.classifier.notes.append(f"adapted, by the scored images without their labels: {found.words()}")
        return True

    def _load(self) -> Classifier:
        options = self.options
        loaded = classifiers.load(
            self.case.name,
            weights=options.weights,
            checkpoint=options.checkpoint,
            seed=options.seed,
            img_size=self.case.img_size,
            crop_pct=self.case.crop_pct,
            **options.load_arguments,
        )
        if options.fold:
            loaded.fold()
        return loaded

    def _label(self, scan: Scan) -> Dataset:
        options = self.options
        try:
            data = label(
                scan,
                num_classes=self.classifier.num_classes,
                labels_file=options.labels_file,
                class_map=options.class_map,
                synsets_file=options.synsets_file,
            )
        except DatasetError as error:
            if self.why_no_accuracy is None:
                raise
            data = unlabelled(scan, str(error))
        return data.subset(options.limit, options.seed) if options.limit is not None else data

    @property
    def why_no_accuracy(self) -> str | None:
        """Why this network is not scored, or None."""
        if not self.options.score:
            return "not asked for (--no-accuracy)"
        if self.options.weights == "random" and self.options.checkpoint is None:
            return "the weights are random (--weights random): accuracy would mean nothing"
        if hasattr(self, "data") and not self.data.has_labels:
            return f"the images have no labels ({self.data.label_rule})"
        return None

    def _batch_size(self) -> int:
        K, asked = self.classifier.spec.K, self.options.batch_size
        if asked == "auto":
            # Uncompiled: a graph for each chunk that is tried would take minutes. One that then does not fit is halved.
            return auto_batch.largest(partial(self._network, compiled=False), max([K, *self.specs]))
        return int(asked) if asked else default_batch_size(K, self.options.device)

    @cached_property
    def network(self) -> Network:
        return self._network(self.batch_size, compiled=self.options.torchcompile)

    def _network(self, batch_size: int, *, compiled: bool) -> Network:
        options = self.options
        return Network(
            self.classifier,
            chunk=batch_size,
            device=options.device,
            amp_dtype=options.amp_dtype,
            channels_last=options.channels_last,
            compiled=compiled,
        )

    def planner(self, *policies: Policy) -> Planner:
        sized = tuple(self.specs[K] for K in sorted({K for policy in policies for K in policy.sizes}))
        return Planner(self.classifier.spec, union(policies), self.options.seed, sized)

    def config(self, n_views: int) -> LoadConfig:
        """Images per batch by memory, and so that a slow network is not given minutes of work at once."""
        options = self.options
        gpu = options.backend == "dali-gpu"
        images = default_batch_images(n_views, self.classifier.spec.K, gpu=gpu)
        if np.isfinite(self.crops_per_sec):
            images = int(np.clip(BATCH_SECONDS * self.crops_per_sec / n_views, min(options.workers, images), images))
        # Timing reads the rows again and again; a batch no longer than they are holds none of them twice.
        readable = max(len(self.rows) - len(self.failed), 1)
        return LoadConfig(
            batch_images=min(options.batch_images or images, readable),
            workers=options.workers,
            prefetch=options.prefetch,
            device_id=torch.device(options.device).index or 0,
            hw_decoder_load=options.hw_load,
            mmap=options.mmap,
            cut=options.cut,
        )

    def make_backend(self, name: str, planner: Planner, config: LoadConfig) -> Backend:
        return backend(name)(self.data, planner, config)

    def left_out(self, rows: np.ndarray) -> np.ndarray:
        """int64 [b, 2]: what the centre crop leaves out of each image, for policies that depend on it."""
        return self.planner(*self.options.policies).left_out(self.data.sizes(rows))

    def mean_views(self, policy: Policy, rows: np.ndarray) -> float:
        """Views per image, averaged over ``rows``."""
        if not policy.adaptive:
            return float(policy.n_views)
        return float(sum(count for _, count in policy.view_counts(self.left_out(rows))).mean())  # type: ignore[union-attr]

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        data, network = self.data, self.classifier
        return {
            "model": network.name,
            "feature_dim": network.feature_dim,
            "feature_absent_reason": network.feature_absent_reason,
            "head_is_linear": network.head_is_linear,
            "num_classes": network.num_classes,
            "notes": network.notes,
            "images": len(data),
            "label_rule": data.label_rule,
            "real_label_rule": self.real and self.real.rule,
            "real_label_hash": self.real and self.real.file_hash,
            "S": network.spec.S,
            "K": network.spec.K,
            **sizes(network),
            "predictions": self.predictions_name,
        }

    @property
    def predictions_name(self) -> str:
        return f"predictions-{self.case.file_name}.npz"

    def expected_s(self) -> float:
        """How long this job will take, from a few seconds of measuring the pipeline and the network."""
        options = self.options
        network = self.network
        network.forward()
        start, n = time.perf_counter(), 0
        while n < 2 or (time.perf_counter() - start < 0.5 and n < 20):
            n += len(network.forward()[1]) // self.batch_size
        float(network.forward()[1][0, 0])  # waits for a GPU
        self.crops_per_sec = (n + 1) * self.batch_size / (time.perf_counter() - start)
        pipeline = self._pipeline_rate()
        total = 0.0
        if self.why_no_accuracy is None:
            share = len(self.rows) / options.processes.world
            total += share * (1 / pipeline + self.view_cost / self.crops_per_sec)
        if options.time:
            batches_s = [self._batch_s(n, pipeline) for n in options.crops]
            warm, seconds = options.num_warm_iter, options.round_seconds
            chunk_s = self.batch_size / self.crops_per_sec
            for batch_s in [chunk_s, *batches_s, *(self.config(n).batch_images / pipeline for n in options.crops)]:
                total += options.rounds * max(seconds, 2 * batch_s) + (options.rounds + 1) * warm * batch_s
        return total

    def _batch_s(self, n: int, pipeline: float) -> float:
        return self.config(n).batch_images * (1 / pipeline + n / self.crops_per_sec)

    def _pipeline_rate(self) -> float:
        """Images per second of the pipeline, roughly: a second or three batches, whichever is longer."""
        config = self.config(self.view_cost)
        source = self.make_backend(self.options.backend, self.planner(*self.options.policies), config)
        rows = np.resize(self.rows, config.batch_images * 40)
        start, images, last = None, 0, 0.0
        for i, batch in enumerate(source.batches(rows)):
            if start is None:
                start = time.perf_counter()  # the first batch pays for starting threads
                continue
            images += len(batch.rows)
            last = time.perf_counter()
            if i >= 3 and last - start > 1.0:
                break
        source.close()
        assert start is not None
        return max(images, 1) / max(last - start, 1e-6)

    def setting(self) -> records.Setting:
        """What the results depend on."""
        options, network, spec = self.options, self.classifier, self.classifier.spec
        member = network.member
        return records.Setting(
            model=network.name,
            family=self.case.family,
            variant=self.case.variant,
            weights=network.weights,
            weight_hash=network.weight_hash,
            param_count=network.param_count,
            published_top1=member.top1 if member else None,
            published_in=member.table if member else None,
            S=spec.S,
            K=spec.K,
            interpolation=spec.interpolation,
            crop_mode=spec.crop_mode,
            data=self.data.root.name,
            data_hash=data_hash(self.data),
            is_demo=self.data.is_demo,
            backend=options.backend,
            batch_size=self.batch_size,
            batch_images=self.config(self.view_cost).batch_images,
            workers=options.workers,
            device=options.device,
            machine_id=machine.machine_id(),
            amp_dtype=options.amp_dtype,
            channels_last=options.channels_last,
            torchcompile=options.torchcompile,
            seed=options.seed,
            adapt=options.adapt if self.adapted else None,
            folded=self.classifier.folded,
            processes=options.processes.world if options.time else 1,
            prefetch=options.prefetch,
            mmap=options.mmap,
            hw_load=options.hw_load if options.backend == "dali-gpu" else None,
            cut=options.cut,
        )

    def run(self, out: Path) -> Iterator[records.Record]:
        """Both phases; each record as soon as it is there."""
        setting = self.setting()
        for phase in PHASES:
            yield from self.phase(phase, setting, out)
        self.tidy(out)

    def phase(self, name: str, setting: records.Setting, out: Path) -> Iterator[records.Record]:
        """Check, then score (``accuracy``) or time (``throughput``). Several processes all call it; the records of the
        first are the run's."""
        yield from (self._accuracy if name == "accuracy" else self._throughput)(setting, out)

    def tidy(self, out: Path) -> None:
        """Remove the shards, when the records are written."""
        if self.options.processes.first:
            self._shards(out).remove()
            with suppress(OSError):  # the shards of other networks are there
                (out / FOLDER).rmdir()

    def _shards(self, out: Path) -> Shards:
        return Shards(out / FOLDER / self.predictions_name.removesuffix(".npz"), self.rows)

    def _accuracy(self, setting: records.Setting, out: Path) -> Iterator[records.Record]:
        if reason := self.why_no_accuracy:
            yield records.Absent(setting, "accuracy", reason)
            return
        processes = self.options.processes
        shards = self._shards(out)
        self._fill(shards)
        rows = shards.least_rows(min(processes.gather(self.network.rows)))  # and all shards are on the disk
        kept: list[accuracy.Predictions] = []  # by the first process: those of a million images are not sent about

        def whole() -> list[Failure]:
            kept.append(self._whole(shards, out))
            return kept[0].failed

        self.failed = processes.share(whole)
        if not kept:
            return
        (predictions,) = kept
        yield self._ledger(setting, len(predictions.rows))
        if len(predictions.rows) == 0:
            yield records.Absent(setting, "accuracy", "no image could be read; see unreadable.csv")
            return
        for labels_of in records.LABELS if self.real else (records.ORIGINAL,):
            yield from self._scores(setting, predictions, labels_of, rows if rows < self.batch_size else None)
        if absent := self.classifier.feature_absent_reason:
            yield records.Absent(setting, "accuracy at level feature", absent)

    def _fill(self, shards: Shards) -> None:
        """Score this process's share of what is not yet scored."""
        options, processes = self.options, self.options.processes
        if processes.first:
            said_already(shards)
        mine = processes.mine(processes.share(shards.missing))
        if not mine:
            return
        planner = self.planner(*options.policies)
        # Without the JPEG engine, whose pixels may differ: which images it would take depends on the batch (rule 10).
        config = replace(self.config(self.view_cost), hw_decoder_load=0.0)
        source = self.make_backend(options.backend, planner, config)
        rows = np.concatenate([shards.pieces[number] for number in mine])
        labels = self.data.table["label"].to_numpy(np.int64)
        sets = self.real.sets if self.real else None
        try:
            reference.check(source, self.data, planner, self.checked_rows(rows))
            batches = self._while_there(source.batches(rows))
            parts = accuracy.scored(
                batches, self.network, labels, self.views, options.policies, self.left_out, sets
            )  # fmt: skip
            label = f"accuracy {self.case.label}"
            with tqdm(total=len(rows), desc=label, unit="image", disable=not processes.first) as bar:

                def scored(images: int) -> None:
                    bar.update(images)
                    if self.network.rows < self.batch_size:
                        shards.note_rows(self.network.rows)

                fill(shards, mine, parts, scored)
        finally:
            source.close()

    def _whole(self, shards: Shards, out: Path) -> accuracy.Predictions:
        """The whole pass, from its shards, also as the run's file."""
        real = self.real is not None
        empty = accuracy.nothing(self.network, self.views, self.options.policies, real)
        predictions = shards.whole(empty)
        predictions.save(out / self.predictions_name, self.data.names(predictions.rows))
        return predictions

    def _while_there(self, batches: Iterable[CropBatch]) -> Iterator[CropBatch]:
        """Pass the batches on. Raises DataLost instead of a batch with failures once the data set's folder is gone, or
        another one stands in its place: a file system that went away would make every image unreadable."""
        for batch in batches:
            if batch.failed and identity(self.home) != self.home_identity:
                raise DataLost(
                    f"the data set {self.data.root} is no longer there (a lost mount?); images are unreadable since "
                    f"{self.data.names([batch.failed[0].row])[0]}"  # type: ignore[arg-type]
                )
            yield batch

    def _ledger(self, setting: records.Setting, scored: int) -> records.Ledger:
        at_scan = len(self.data.unreadable)
        names = self.data.names(np.array([f.row for f in self.failed], dtype=np.int64))
        return records.Ledger(
            setting,
            expected=len(self.data) + at_scan,
            scored=scored,
            unreadable_at_scan=at_scan,
            unreadable_when_decoded=len(self.failed),
            failed=[[name, f.stage, f.reason] for name, f in zip(names, self.failed, strict=True)],
        )

    def _scores(
        self, setting: records.Setting, predictions: accuracy.Predictions, labels: str, fitting: int | None
    ) -> Iterator[records.Record]:
        unreadable = len(self.data.unreadable) + len(predictions.failed)
        for policy in self.options.policies:
            for level in predictions.levels:
                counts = accuracy.counts(predictions, level, policy.name, labels)
                if counts.images == 0:
                    yield records.Absent(setting, f"accuracy with {labels} labels", "no image that was read has one")
                    return
                yield records.Accuracy(
                    setting,
                    policy=policy.name,
                    n_views=policy.n_views,
                    level=level,
                    images=counts.images,
                    unreadable=unreadable,
                    top1_correct=counts.top1_correct,
                    top5_correct=counts.top5_correct,
                    nll_mean=counts.nll_mean,
                    fixed=counts.fixed,
                    broken=counts.broken,
                    mean_views=self.mean_views(policy, predictions.rows),
                    labels=labels,
                    fitting_batch_size=fitting,
                )

    def checked_rows(self, rows: np.ndarray) -> np.ndarray:
        """A few of the rows, of images that PIL reads where there are such: an unreadable one would show nothing."""
        spans = self.data.spans(rows[:MOST_TIMED])
        readable = (row for row, span in zip(rows.tolist(), spans, strict=False) if complaint(span) == READS)
        return np.array(list(islice(readable, CHECKED_IMAGES)) or rows[:CHECKED_IMAGES].tolist(), dtype=np.int64)

    def _look_for_unreadable(self, rows: np.ndarray) -> None:
        """Where nothing was scored: an unreadable image inside a timed segment would cost its whole batch."""
        source = self.make_backend(self.options.backend, self.planner(self.options.policies[0]), self.config(1))
        try:
            self.failed = [failure for batch in self._while_there(source.batches(rows)) for failure in batch.failed]
        finally:
            source.close()

    def _throughput(self, setting: records.Setting, out: Path) -> Iterator[records.Record]:
        options = self.options
        if not options.time:
            yield records.Absent(setting, "throughput", "not asked for (--no-throughput)")
            return
        if self.why_no_accuracy is not None:
            self._look_for_unreadable(self.rows[:MOST_TIMED])
            yield self._ledger(setting, 0)
            readable = np.setdiff1d(self.rows[:MOST_TIMED], [failure.row for failure in self.failed])
        else:
            stored = out / self.predictions_name  # of the process that scored, before an interruption
            # By the first: on another machine the file may not be seen yet.
            self.failed = options.processes.share(lambda: self.failed or accuracy.Predictions.load(stored).failed)
            readable = np.setdiff1d(self.rows, [failure.row for failure in self.failed])
        if len(readable) == 0:
            yield records.Absent(setting, "throughput", "no image could be read; see unreadable.csv")
            return
        yield from self._timed(setting, readable)
        if sized := [policy.name for policy in options.policies if policy.sizes]:
            why = "only random crops of the network's own size are timed"
            yield records.Absent(setting, f"throughput of {', '.join(sized)}", why)

    def _timed(self, setting: records.Setting, readable: np.ndarray) -> Iterator[records.Record]:
        options, processes = self.options, self.options.processes
        checked = self.checked_rows(readable)
        bench = throughput.Bench(
            backend(options.backend), self.data, readable, self.planner, self.config, self.network, options.crops
        )
        try:
            errors = {
                n: reference.check(source, self.data, bench.planners[n], checked)
                for n, source in bench.backends.items()
            }
            cells = len(bench.cells()) * options.rounds
            label = f"throughput {self.case.label}"
            with tqdm(total=cells, desc=label, unit="round", disable=not processes.first) as bar:
                measured = throughput.measure(
                    bench,
                    rounds=options.rounds,
                    seconds=options.round_seconds,
                    warmup_items=options.num_warm_iter,
                    progress=partial(_tick, bar),
                    ready=lambda: processes.gather(None),
                )
        finally:
            bench.close()
        rows = min(processes.gather(self.network.rows))
        for everyone in zip(*processes.gather(measured), strict=True):  # the same cell of each process
            one, n = everyone[0], everyone[0].cell.crops
            rounds = list(zip(*(each.segments for each in everyone), strict=True))
            rates = [[s.count / s.duration_s for s in segments] for segments in rounds]
            yield records.Throughput(
                setting,
                stage=one.cell.stage,
                crops=n,
                batch_images=self.config(n).batch_images if n else None,
                counts=[sum(s.count for s in segments) for segments in rounds],
                durations_s=[max(s.duration_s for s in segments) for segments in rounds],
                interval_ms=[round(ms, 3) for segments in rounds for s in segments for ms in s.interval_ms],
                peak_mem_bytes=sum(each.peak_mem_bytes for each in everyone),
                gpu_used_bytes=max(each.gpu_used_bytes for each in everyone) or None,
                frame_error_levels=max(errors.values()),
                fitting_batch_size=rows if rows < self.batch_size else None,
                rank_rates=rates if processes.world > 1 else [],
            )


def _tick(bar: tqdm, cell: throughput.Cell) -> None:
    bar.set_postfix_str(f"{cell.stage} {cell.crops or ''}", refresh=False)
    bar.update()


def sizes(classifier: Classifier) -> dict[str, int | None]:
    """``own_K``, at which these weights are meant to be asked, and ``train_K``, at which they were trained; None where
    nothing says so. timm's configurations hold both."""
    if classifier.weights == "demo":
        K = families.demo(classifier.name.partition(":")[0]).spec.K
        return {"own_K": K, "train_K": K}
    own, trained = (classifier.member.spec.K if classifier.member else None), None
    if classifier.weights == "pretrained" and (config := getattr(classifier.net, "pretrained_cfg", None)):
        own = own or (config.get("test_input_size") or config["input_size"])[-1]
        trained = config["input_size"][-1]
    return {"own_K": own, "train_K": trained}


def identity(folder: Path) -> tuple[int, int] | None:
    """Which folder of which file system this is; None where it cannot be reached."""
    try:
        info = folder.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def data_hash(data: Dataset) -> str:
    """16 hexadecimal digits over names and labels: equal means the same images with the same labels."""
    digest = hashlib.sha256()
    numbers = data.table["label"].to_numpy()
    for rows in split(np.arange(len(data)), 1 << 16):  # piece by piece: a million updates take seconds
        lines = (f"{name}\0{number}\n" for name, number in zip(data.names(rows), numbers[rows].tolist(), strict=True))
        digest.update("".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
