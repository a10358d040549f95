"""A network's activation statistics from files, and its parametric adaptation to another resolution (FixRes, A.1, A.2).

Statistics need no labels. ``bench/run.py --adapt`` takes them of the very images that it scores, which a deployed
network could do too; ``bench/experiments/activations.py`` takes them of training images, as the paper does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.fixres.activations import ADAPTATIONS, FrechetAdaptation, GaussianAdaptation, Statistics, measure
from models.predict import Network
from pipelines.batch import default_batch_images
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from bench.job import Job

MOST_IMAGES = 2000  # that a fit looks at: its few numbers are known to a percent by then


def statistics(job: Job, images: int = MOST_IMAGES) -> Statistics:
    """Of the centre crops of a job's images, at most so many, at the job's crop size, unadapted and not compiled."""
    options = job.options
    network = Network(
        job.classifier,
        chunk=job.batch_size,
        device=options.device,
        amp_dtype=options.amp_dtype,
        channels_last=options.channels_last,
    )
    # Of a settled size, as sums of another order differ in the last digit: each continuation must adapt alike.
    batch_images = options.batch_images or default_batch_images(1, job.classifier.spec.K)
    config = replace(job.config(1), batch_images=batch_images)
    source = job.make_backend(options.backend, job.planner(parse_policy("CC")), config)
    try:
        return measure(network, source.batches(np.arange(min(images, len(job.data)))))
    finally:
        source.close()


def at_size(job: Job, K: int) -> Job:
    """The same network and images with crops of K pixels, unadapted."""
    from bench.job import Job

    asked = job.options.batch_size  # never searched for: another chunk would be another last digit
    options = replace(job.options, adapt=None, batch_size=None if asked == "auto" else asked)
    return Job(replace(job.case, img_size=K), job.scan, options)


def fit(job: Job, name: str, train_K: int) -> FrechetAdaptation | GaussianAdaptation:
    """Adapt the job's crop size to ``train_K``, by statistics of the job's own images at both.

    Raises models.fixres.activations.NotAdaptable, with the reason, for a network that cannot have it.
    """
    return ADAPTATIONS[name].fit(statistics(at_size(job, train_K)), statistics(job))
