"""The accuracy pass of a run: every readable image exactly once, every policy at every level.

The views of all policies together are evaluated once. Results so far are kept in files (bench.measure.partial_results),
so that an interrupted pass continues and several processes can share one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench import records
from bench.errors import DataLost
from bench.job import Job, folder_identity
from bench.measure.partial_results import PartialResults, fill, log_kept
from bench.measure.same_images import require_one_data_set
from bench.measure.scores import SavedScores
from bench.measure.scoring import no_predictions, scored
from bench.measure.stopped import Outcome, stop_all, write_thresholds
from bench.predictions import Predictions, counts, deployed_correct, mean_forwards, nan_note, odd_answers
from pipelines.backends import reference
from pipelines.batch import CropBatch, Failure
from pipelines.data.decode import READS, decode_error
from pipelines.data.identity import FACTS, Identifier

log = logging.getLogger(__name__)
CHECKED_IMAGES = 4  # compared with the reference before anything is scored or timed
LOST_IMAGES = 10  # that the scan found and whose files are gone: more of them stop the run
LOOKED_AT = 2000  # images among which readable ones are looked for


def accuracy_phase(job: Job, setting: records.Setting, out: Path) -> Iterator[records.Record]:
    """Score the job's images. All processes call it; the records of the main process are the run's."""
    if reason := job.why_no_accuracy:
        yield records.Absent(setting, "accuracy", reason)
        return
    partial = partial_results(job, out)
    _score_missing(job, partial)
    # After the exchange, all partial results are on the disk.
    fitting = partial.smallest_batch_size(min(job.processes.all_gather(job.network.fitting_batch_size)))
    kept: list[
        tuple[Predictions, list[Outcome]]
    ] = []  # in the main process only: a million images' are not sent around

    def whole() -> list[Failure]:
        kept.append(_whole(job, partial, out))
        return kept[0][0].failed

    job.failed = job.processes.broadcast(whole)
    if not kept:
        return
    ((predictions, outcomes),) = kept
    yield image_accounting(job, setting, len(predictions.rows))
    if len(predictions.rows) == 0:
        yield records.Absent(setting, "accuracy", "no image could be read; see unreadable.csv")
        return
    for labels_of in records.LABELS if job.real else (records.ORIGINAL,):
        yield from _accuracies(job, setting, predictions, outcomes, labels_of, fitting)
    if absent := job.classifier.feature_absent_reason:
        yield records.Absent(setting, "accuracy at level feature", absent)
    for policy, reason in job.absent_policies.items():
        yield records.Absent(setting, f"accuracy of {policy}", reason)
    for one in outcomes:
        if one.stopped is None:
            yield records.Absent(setting, f"accuracy of {one.policy} at level {one.level}", one.note or "")


def partial_results(job: Job, out: Path) -> PartialResults:
    """Where the job keeps what is scored so far."""
    return PartialResults(out / records.PARTIAL_RESULTS / job.predictions_name.removesuffix(".npz"), job.rows)


def _score_missing(job: Job, partial: PartialResults) -> None:
    """Score this process's share of what is not yet scored."""
    processes = job.processes
    if processes.is_main:
        partial.set_aside_damaged()
        log_kept(partial)
    own = processes.own_share(processes.broadcast(partial.missing))
    if not own:
        return
    planner = job.planner(*job.policies)
    # Without the JPEG engine, whose pixels may differ: which images it would take depends on the batch (rule 10).
    config = replace(job.load_config(job.view_cost), hw_load=0.0)
    job.network.get_ready(job.views.sizes)  # before any pipeline starts
    source = job.make_backend(planner, config)
    identifier = Identifier(config.workers)
    rows = np.concatenate([partial.pieces[number] for number in own])
    try:
        reference.check(source, job.data, planner, checked_rows(job, rows))
        batches = identified_beside(job, identifier, while_data_is_there(job, source.batches(rows)))
        parts = (with_facts(part, identifier) for part in scored(batches, job.network, job.scoring()))
        label = f"accuracy {job.case.label}"
        with tqdm(total=len(rows), desc=label, unit="image", disable=not processes.is_main) as bar:

            def progress(images: int) -> None:
                bar.update(images)
                if job.network.fitting_batch_size < job.batch_size:
                    partial.note_batch_size(job.network.fitting_batch_size)

            fill(partial, own, parts, progress)
    finally:
        source.close()
        identifier.close()


def _whole(job: Job, partial: PartialResults, out: Path) -> tuple[Predictions, list[Outcome]]:
    """The whole pass, joined from its parts, with the stopped policies; also as the run's file."""
    empty = replace(no_predictions(job.network, job.scoring()), facts=np.zeros(0, FACTS))
    predictions = partial.whole(empty)
    require_one_data_set(out, predictions, job)
    for line in odd_answers(predictions):
        log.warning("%s: %s", job.case.label, line)
    SavedScores.of(predictions, job.data.names(predictions.rows)).save(out / job.predictions_name)
    predictions, outcomes = stop_all(replace(predictions, scores=None, score_policies=[]), job)
    predictions.save(out / job.predictions_name, job.data.names(predictions.rows))
    write_thresholds(out, job, outcomes, len(predictions.rows))
    return predictions, outcomes


def while_data_is_there(job: Job, batches: Iterable[CropBatch]) -> Iterator[CropBatch]:
    """Pass the batches on. Raises DataLost instead of a batch with failures once the data set's folder is gone, or
    another one stands in its place, or more than LOST_IMAGES files are gone that the scan found: a file system that
    went away would make every image unreadable."""
    gone: list[str] = []
    for batch in batches:
        failed = np.array([failure.row for failure in batch.failed], dtype=np.int64)
        if len(failed) and folder_identity(job.home) != job.home_identity:
            raise DataLost(
                f"the data set {job.data.root} is no longer there (a lost mount?); from "
                f"{job.data.names(failed[:1])[0]} on no image can be read"
            )
        spans = job.data.spans(failed)
        gone += [name for name, span in zip(job.data.names(failed), spans, strict=True) if not Path(span.path).exists()]
        if len(gone) > LOST_IMAGES:
            raise DataLost(
                f"{len(gone)} images of {job.data.root} are gone since the run began, {gone[0]} for one (a class "
                f"folder, a mount?): more than {LOST_IMAGES} stop a run; restore them"
            )
        yield batch


def identified_beside(job: Job, identifier: Identifier, batches: Iterable[CropBatch]) -> Iterator[CropBatch]:
    """Pass the batches on, and have their images identified on other threads meanwhile."""
    for batch in batches:
        rows = np.concatenate([batch.rows, np.array([failure.row for failure in batch.failed], dtype=np.int64)])
        identifier.begin(rows.tolist(), job.data.spans(rows))
        yield batch


def with_facts(part: Predictions, identifier: Identifier) -> Predictions:
    """The predictions with the facts by which their images can be recognised, those that could not be decoded too."""
    of_failed = identifier.take(np.array([failure.row for failure in part.failed], dtype=np.int64))
    failed = [replace(failure, facts=facts.item()) for failure, facts in zip(part.failed, of_failed, strict=True)]
    return replace(part, facts=identifier.take(part.rows), failed=failed)


def checked_rows(job: Job, rows: np.ndarray) -> np.ndarray:
    """A few of the rows, of images that PIL reads where there are any: an unreadable one would show nothing."""
    spans = job.data.spans(rows[:LOOKED_AT])
    readable = (row for row, span in zip(rows.tolist(), spans, strict=False) if decode_error(span) == READS)
    return np.array(list(islice(readable, CHECKED_IMAGES)) or rows[:CHECKED_IMAGES].tolist(), dtype=np.int64)


def image_accounting(job: Job, setting: records.Setting, scored: int) -> records.ImageAccounting:
    """What became of every image."""
    at_scan = len(job.data.unreadable)
    names = job.data.names(np.array([f.row for f in job.failed], dtype=np.int64))
    return records.ImageAccounting(
        setting,
        expected=len(job.data) + at_scan,
        scored=scored,
        unreadable_at_scan=at_scan,
        unreadable_when_decoded=len(job.failed),
        failed=[[name, f.stage, f.reason] for name, f in zip(names, job.failed, strict=True)],
    )


def _accuracies(
    job: Job, setting: records.Setting, predictions: Predictions, outcomes: list[Outcome], labels: str, fitting: int
) -> Iterator[records.Record]:
    """Of every policy at every level; the stopped ones last."""
    stopped = {(one.policy.name, one.level): one for one in outcomes if one.stopped is not None}
    plain = [(policy, level) for policy in job.plain for level in predictions.levels]
    for policy, level in [*plain, *((one.policy, one.level) for one in stopped.values())]:
        counted = counts(predictions, level, policy.name, labels)
        if counted["images"] == 0:
            yield records.Absent(setting, f"accuracy with {labels} labels", "no image that was read has one")
            return
        outcome = stopped.get((policy.name, level))
        fields = outcome.fields() if outcome else {}
        if outcome and outcome.deployed is not None and labels == records.ORIGINAL:
            fields["deployed_correct"] = deployed_correct(predictions, level, policy.name)
        if note := nan_note(predictions, level, policy.name):
            fields["note"] = note
        yield records.Accuracy(
            setting,
            policy=policy.name,
            n_views=policy.n_views,
            level=level,
            unreadable=len(job.data.unreadable) + len(predictions.failed),
            mean_views=outcome.mean_views if outcome else job.mean_views(policy, predictions.rows),
            labels=labels,
            fitting_batch_size=fitting if fitting < job.batch_size else None,
            forwards=mean_forwards(predictions, level, policy.name),
            **fields,
            **counted,
        )
