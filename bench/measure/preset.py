"""``preset`` fast in a run: on which crops of which images the candidates of ``models.preset`` are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from bench.config import RunConfig
from bench.job import Job
from bench.measure.limits import is_fatal
from models import preset
from models.predict import Network
from models.preset import Choice
from models.variants import Variant
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from bench.cases import ModelCase
    from pipelines.data.dataset import Scan


def choose(case: ModelCase, scan: Scan, config: RunConfig) -> Choice:
    """Measure the candidates on this machine, on images from all parts of the data set. ``config`` is a resolved one.
    Raises ValueError where none of the images can be read."""
    job = variant_job(case, scan, config, Variant())
    crops, images = sample_crops(job)
    batch_size = job.batch_size

    def make(variant: Variant) -> Network:
        if variant == Variant():
            return job.make_network(batch_size)
        own = variant_job(case, scan, with_batch_size(config, batch_size), variant)
        return own.make_network(batch_size, compiled=variant.compiled)

    return preset.choose(
        make, crops, images=images, label=case.label, eager=config.network.preset == "eager", stops=is_fatal
    )[0]


def variant_job(case: ModelCase, scan: Scan, config: RunConfig, variant: Variant) -> Job:
    """A job of its own, so that no variant changes another's weights."""
    return Job(case, scan, replace(config, network=replace(config.network, preset=None, **variant.options())))


def with_batch_size(config: RunConfig, batch_size: int) -> RunConfig:
    return replace(config, network=replace(config.network, batch_size=batch_size))


def sample_crops(job: Job) -> tuple[Tensor, int]:
    """Crops uint8 [m, K, K, 3] on the CPU, and of how many images."""
    rows = np.unique(np.linspace(0, len(job.rows) - 1, min(preset.CROPS, len(job.rows))).astype(np.int64))
    policy = parse_policy(preset.policy_for(len(rows)))
    source = job.make_backend(job.planner(policy), job.load_config(policy.n_views))
    try:
        crops, images = preset.crops_of(source.batches(rows))
    finally:
        source.close()
    if not images:
        raise ValueError("`preset` compares answers, and none of the images can be read")
    preset.pipeline_gone(job.device)
    return crops, images
