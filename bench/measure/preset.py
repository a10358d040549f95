"""``preset`` fast: the fastest way of running a network on this machine that gives the plain network's answers.

Plain is float32 (without TF32), NCHW, eager. Every candidate of ``bench.measure.variants`` classifies the centre crops
of a few hundred images. It is accepted where its top-1 is plain's for at least MIN_AGREEMENT of them and no logit
differs by more than MAX_DIFFERENCE of the largest; of the accepted ones, timed in turn, the fastest is taken. What was
measured is stored in run.json. A candidate that cannot run here (no compiler, no memory) is left out with its reason.

``preset`` eager is the same without what would have to be compiled.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.config import RunConfig
from bench.errors import one_line
from bench.job import Job
from bench.machine import computes_bfloat16
from bench.measure.clocks import segment
from bench.measure.limits import is_fatal
from bench.measure.variants import PLAIN, Variant, preset_candidates
from models.predict import Network
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from bench.cases import ModelCase
    from pipelines.data.dataset import Scan

log = logging.getLogger(__name__)
IMAGES = 300  # whose answers are compared: at an agreement of 0.995, one of them may differ
MIN_AGREEMENT = 0.995
MAX_DIFFERENCE = 0.05  # of the largest logit; bfloat16 differs by about 0.01
ROUNDS, ROUND_SECONDS, WARMUP = 3, 0.5, 2


@dataclass(slots=True)
class Candidate:
    """One way of running the network, and what was measured of it."""

    variant: str
    options: dict[str, Any]  # fields of bench.config.NetworkConfig
    top1_agreement: float | None = None  # with plain, on the images; None where it could not run
    logit_difference: float | None = None  # the largest, as a share of plain's largest logit
    crops_per_sec: list[float] = field(default_factory=list)  # one a round; empty where it was not accepted
    refused: str | None = None  # why

    @property
    def median_rate(self) -> float:
        return sorted(self.crops_per_sec)[len(self.crops_per_sec) // 2] if self.crops_per_sec else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What the preset took, and why."""

    variant: str
    options: dict[str, Any]
    images: int
    batch_size: int
    candidates: list[dict[str, Any]]

    def words(self) -> str:
        """For the log."""
        found = {one["variant"]: one for one in self.candidates}
        mine = found[self.variant]
        rates = [sorted(one["crops_per_sec"])[len(one["crops_per_sec"]) // 2] for one in (mine, found[PLAIN])]
        difference = "unknown" if mine["logit_difference"] is None else f"{mine['logit_difference']:.1e}"
        return (
            f"preset: {self.variant}: {rates[0]:.0f} crops/s, {rates[0] / rates[1]:.2f} times plain; top-1 "
            f"agrees for {mine['top1_agreement']:.1%} of {self.images} images, largest difference of a logit "
            f"{difference} of the largest"
        )


def choose(case: ModelCase, scan: Scan, config: RunConfig) -> Choice:
    """Measure the candidates on this machine. ``config`` is a resolved one."""
    job = variant_job(case, scan, config, Variant())
    crops = centre_crops(job)
    found = [
        Candidate(name, variant.options())
        for name, variant in preset_candidates(job.device, bfloat16_on_cpu=computes_bfloat16()).items()
        if not (variant.compiled and config.network.preset == "eager")
    ]
    log.info("preset: %d ways of running %s are tried ...", len(found), case.label)
    networks: dict[str, Network] = {}
    plain: Tensor | None = None
    for one in found:
        try:
            network = network_of(one, case, scan, config, job.batch_size)
            logits = answers(network, crops)
        except Exception as error:  # a compiler raises anything; what cannot run here is not taken
            if one.variant == PLAIN or is_fatal(error) or isinstance(error, TimeoutError):
                raise
            one.refused = f"it cannot run here: {one_line(error)}"
            continue
        plain = logits if plain is None else plain
        compare(one, logits, plain, random_weights=job.classifier.weights == "random")
        if network.fitting_batch_size < network.batch_size and one.variant != PLAIN:
            one.refused = "memory runs out at this batch size"
        if one.refused is None:
            networks[one.variant] = network
    time_in_turn([one for one in found if one.refused is None], networks, crops)
    for one in found:
        log.info("  %s: %s", one.variant, one.refused or f"{one.median_rate:.0f} crops/s")
    best = max(found, key=lambda one: one.median_rate)
    choice = Choice(best.variant, best.options, len(crops), job.batch_size, [asdict(one) for one in found])
    log.info("%s", choice.words())
    networks.clear()
    gc.collect()
    return choice


def variant_job(case: ModelCase, scan: Scan, config: RunConfig, variant: Variant) -> Job:
    """A job of its own, so that no variant changes another's weights."""
    return Job(case, scan, replace(config, network=variant.applied_to(config.network)))


def network_of(one: Candidate, case: ModelCase, scan: Scan, config: RunConfig, batch_size: int) -> Network:
    """The candidate's network, compiled where it says so."""
    options = replace(config.network, preset=None, batch_size=batch_size, **one.options)
    job = Job(case, scan, replace(config, network=options))
    return job.make_network(batch_size, compiled=options.torchcompile)


def centre_crops(job: Job) -> Tensor:
    """uint8 [m, K, K, 3] of at most IMAGES readable images from all parts of the data set, on the CPU. Raises
    ValueError where none can be read."""
    rows = np.unique(np.linspace(0, len(job.rows) - 1, min(IMAGES, len(job.rows))).astype(np.int64))
    source = job.make_backend(job.planner(parse_policy("CC")), job.load_config(1))
    try:
        pieces = [group.crops[group.image >= 0].cpu() for batch in source.batches(rows) for group in batch.groups]
    finally:
        source.close()
    if not sum(map(len, pieces)):
        raise ValueError("`preset` compares answers, and none of the images can be read")
    gc.collect()
    if job.device != "cpu":
        torch.cuda.synchronize(job.device)  # DALI has freed its tensors before a graph is captured
    return torch.cat(pieces)


def answers(network: Network, crops: Tensor) -> Tensor:
    """float32 [m, n]: the logits of each crop, on the CPU."""
    network.get_ready()
    found = []
    for piece in crops.split(network.batch_size):
        network.buffer[: len(piece)].copy_(piece)
        found.append(network.forward()[1][: len(piece)].float().cpu().clone())
    return torch.cat(found)


def compare(one: Candidate, logits: Tensor, plain: Tensor, *, random_weights: bool) -> None:
    """Note how far the candidate's answers are from plain's, and refuse it where that is too far. Random weights give
    classes that are all but equal: of those only the logits are compared."""
    valid = ~plain.isneginf().all(0)  # others are no answers (Classifier.restrict)
    logits, plain = logits[:, valid], plain[:, valid]
    one.top1_agreement = float((logits.argmax(1) == plain.argmax(1)).double().mean())
    difference = float((logits - plain).abs().max() / plain.abs().max())
    one.logit_difference = difference if math.isfinite(difference) else None
    if one.variant == PLAIN:
        return
    if one.logit_difference is None:
        one.refused = "some logits are not finite numbers"
    elif one.top1_agreement < MIN_AGREEMENT and not random_weights:
        one.refused = f"top-1 agrees with plain's for {one.top1_agreement:.1%} of {len(plain)} images only"
    elif one.logit_difference > MAX_DIFFERENCE:
        one.refused = f"logits differ from plain's by {one.logit_difference:.1e} of the largest"


def time_in_turn(candidates: list[Candidate], networks: dict[str, Network], crops: Tensor) -> None:
    """Crops per second of each; another one begins each round."""
    for number in range(ROUNDS):
        first = number % len(candidates)
        for one in candidates[first:] + candidates[:first]:
            network = networks[one.variant]
            device = str(network.device)
            done = segment(forwards(network), seconds=ROUND_SECONDS, warmup_items=WARMUP, device=device)
            one.crops_per_sec.append(done.count / done.duration_s)


def forwards(network: Network) -> Iterator[int]:
    """Endless forward passes; each item is the number of crops."""
    while True:
        network.forward()
        yield network.batch_size
