"""A network's activation statistics from files, and its parametric adaptation to another resolution (FixRes, A.1, A.2).

Statistics need no labels. A run with `adapt` takes them from the images that it scores, which a deployed network could
do too; ``multicrop-bench activations`` takes them from training images, as the paper does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.job import Job, sizes
from models.fixres.activations import Statistics, measure
from models.fixres.adaptation import ADAPTATIONS, FrechetAdaptation, GaussianAdaptation, attach, require_adaptable
from pipelines.batch import default_batch_images
from pipelines.crops import parse_policy

MAX_IMAGES = 2000  # for a fit: its few numbers are known to a percent by then


def statistics(job: Job, images: int = MAX_IMAGES) -> Statistics:
    """Of the centre crops of a job's images, at most so many, at the job's crop size, unadapted and not compiled."""
    network = job.make_network(job.batch_size)
    # A fixed size, as sums in another order differ in the last digit: each continuation must adapt alike.
    batch_images = job.config.loading.batch_images or default_batch_images(1, job.classifier.spec.K)
    config = replace(job.load_config(1), batch_images=batch_images)
    source = job.make_backend(job.planner(parse_policy("CC")), config)
    try:
        return measure(network, source.batches(np.arange(min(images, len(job.data)))))
    finally:
        source.close()


def at_size(job: Job, K: int) -> Job:
    """The same network and images with crops of K pixels, unadapted."""
    asked = job.config.network.batch_size  # never searched for: another batch size would change the last digit
    network = replace(job.config.network, adapt=None, batch_size=None if asked == "auto" else asked)
    return Job(replace(job.case, img_size=K), job.scan, replace(job.config, network=network))


def fit(job: Job, name: str, train_K: int) -> FrechetAdaptation | GaussianAdaptation:
    """Adapt the job's crop size to ``train_K``, by statistics of the job's own images at both.

    Raises models.fixres.activations.NotAdaptable, with the reason, for a network that cannot have it.
    """
    return ADAPTATIONS[name].fit(statistics(at_size(job, train_K)), statistics(job))


def adapt(job: Job, name: str) -> None:
    """Adapt the job's network to its crop size; nothing at the size at which it was trained (``notes`` say so).

    Raises ValueError where the training size is not known, and for policies with several crop sizes.
    """
    train_K = job.config.network.train_size or sizes(job.classifier)["train_K"]
    if train_K is None:
        raise ValueError(f"`adapt`: nothing says at which size {job.classifier.name} was trained: add `train_size`")
    if train_K == job.classifier.spec.K:
        job.classifier.notes.append(f"`adapt` {name}: nothing to do at {train_K} pixels, where it was trained")
        return
    require_adaptable(job.classifier, name)
    if job.views.sizes != [None]:
        raise ValueError(f"`adapt` {name} is for one crop size: leave policies with @K out")
    found = fit(job, name, train_K)
    attach(job.classifier, found)
    job.classifier.notes.append(f"adapted, by the scored images without their labels: {found.words()}")
    job.adapted = True
