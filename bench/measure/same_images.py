"""Whether all results of a run are of the same images: those that were scored, and those that lie there now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import Different
from bench.predictions import Predictions, read_facts
from pipelines.data.identity import changed

if TYPE_CHECKING:
    from bench.job import Job

REMEDY = "restore them, or start another run"


def require_same_images(job: Job, partial: Path, out: Path) -> None:
    """Raises Different, naming an image, when files that the run has scored hold other bytes now.

    ``partial``: the folder of the network's partial results. Files whose size and times are unchanged are not read.
    """
    for path in [*scored_files(out), *sorted(partial.glob("*.npz"))]:
        found = read_facts(path)
        if found is None or not len(found[0]) or found[0].max() >= len(job.data):
            continue
        rows, then = found
        others = rows[list(changed(job.data.spans(rows), then, job.config.loading.workers or 1))]
        if len(others):
            raise Different(
                f"{len(others)} of the {len(rows)} images read for {path.name} are no longer the same files, "
                f"{job.data.names(others[:1])[0]} for one: {REMEDY}"
            )


def require_one_data_set(out: Path, predictions: Predictions, job: Job) -> None:
    """Raises Different when an earlier network of the run was scored on other bytes: the images changed in between."""
    if predictions.facts is None:
        return
    own = dict(zip(predictions.rows.tolist(), predictions.facts["content_crc32"].tolist(), strict=True))
    for path in scored_files(out):
        if path.name == job.predictions_name or (found := read_facts(path)) is None:
            continue
        pairs = zip(found[0].tolist(), found[1]["content_crc32"].tolist(), strict=True)
        differ = [row for row, theirs in pairs if theirs and (mine := own.get(row, 0)) and mine != theirs]
        if differ:
            raise Different(
                f"{len(differ)} images have changed since {path.name} was written, "
                f"{job.data.names(np.array(differ[:1]))[0]} for one: {REMEDY}"
            )


def scored_files(out: Path) -> list[Path]:
    """The predictions of the run's networks."""
    return sorted(out.glob("predictions-*.npz"))
