"""``preset`` fast: the fastest way of running a network on this machine that gives the plain network's answers.

Plain is float32 (without TF32), NCHW, eager. Every candidate of ``models.variants`` classifies the same few hundred
crops. It is accepted where its top-1 is plain's for at least MIN_AGREEMENT of them and no logit differs by more than
MAX_DIFFERENCE of the largest; of the accepted ones, timed in turn, the fastest is taken. A candidate that cannot run
here (no compiler, no memory) is left out with its reason, as are those for which MOST_SECONDS leave no time: compiling
a network takes minutes on a CPU. ``preset`` eager is the same without what would have to be compiled.
"""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.predict import GpuModes, Network, Queue
from models.variants import PLAIN, Variant, default_variant, preset_candidates
from pipelines.batch import CropBatch
from pipelines.surroundings import computes_bfloat16

log = logging.getLogger(__name__)
PRESETS = ("fast", "eager")
CROPS = 300  # whose answers are compared: at an agreement of 0.995, one of them may differ
MIN_AGREEMENT = 0.995
MAX_DIFFERENCE = 0.05  # of the largest logit; bfloat16 differs by about 0.01
ROUNDS, ROUND_SECONDS, WARMUP = 3, 0.5, 2
MOST_SECONDS = 240.0  # after which no further candidate is begun

Make = Callable[[Variant], Network]


@dataclass(slots=True)
class Candidate:
    """One way of running the network, and what was measured of it."""

    variant: str
    options: dict[str, Any]  # Variant.options
    top1_agreement: float | None = None  # with plain, on the crops; None where it could not run
    logit_difference: float | None = None  # the largest, as a share of plain's largest logit
    ready_s: float | None = None  # until it had classified the crops: loading, compiling
    crops_per_sec: list[float] = field(default_factory=list)  # one a round; empty where it was not accepted
    refused: str | None = None  # why

    @property
    def median_rate(self) -> float:
        return statistics.median_low(self.crops_per_sec) if self.crops_per_sec else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What the preset took, and why."""

    variant: str
    options: dict[str, Any]
    images: int
    crops: int
    batch_size: int
    candidates: list[dict[str, Any]]

    def words(self) -> str:
        """For the log."""
        mine, plain = (Candidate(**self._found(name)) for name in (self.variant, PLAIN))
        difference = "unknown" if mine.logit_difference is None else f"{mine.logit_difference:.1e}"
        rate = mine.median_rate
        times = [f"{rate / plain.median_rate:.2f} times plain"]
        if default := self.default_rate():
            times.append(f"{rate / default:.2f} times the default settings")
        return (
            f"preset: {self.variant}: {rate:.0f} crops/s, {', '.join(times)}; top-1 agrees for "
            f"{mine.top1_agreement:.1%} of {self.crops} crops of {self.images} images, largest difference of a logit "
            f"{difference} of the largest"
        )

    def default_rate(self) -> float | None:
        """Crops per second with the default settings of a CPU, where they were measured beside plain."""
        usual = default_variant("cpu").options()
        for one in self.candidates:
            if one["options"] == usual and one["crops_per_sec"]:
                return Candidate(**one).median_rate
        return None

    def table(self) -> list[str]:
        """A line for each candidate."""
        return ["  " + _line(Candidate(**one), one["variant"] == self.variant) for one in self.candidates]

    def _found(self, name: str) -> dict[str, Any]:
        return next(one for one in self.candidates if one["variant"] == name)


def _line(one: Candidate, taken: bool) -> str:
    if one.refused:
        return f"{one.variant:40} {one.refused}"
    difference = "" if one.logit_difference is None else f", logits differ by {one.logit_difference:.1e}"
    return (
        f"{one.variant:40} {one.median_rate:8.0f} crops/s  top-1 agrees for {one.top1_agreement:.1%}{difference}"
        f"  ready after {one.ready_s:.0f} s{'  <- taken' if taken else ''}"
    )


def choose(
    make: Make,
    crops: Tensor,
    *,
    images: int,
    label: str,
    eager: bool = False,
    stops: Callable[[BaseException], bool] = lambda error: False,
) -> tuple[Choice, Network]:
    """Measure the candidates on this machine: the choice, and its network, ready.

    ``make``: a network of its own for each variant, whose weights no other one changes. ``crops``: uint8 [m, K, K, 3],
    m at least 1, of so many ``images``. ``eager``: compile nothing. ``stops``: which errors are not
    a candidate's, and are raised.
    """
    plain_network = make(Variant())
    found = _candidates(str(plain_network.device), eager)
    compiled = sum(one.options["torchcompile"] for one in found)
    log.info(
        "preset: %d ways of running %s are tried, %d of them compiled, which takes from seconds to minutes each; none "
        "of those is begun after %d minutes ...", len(found), label, compiled, MOST_SECONDS / 60,
    )  # fmt: skip
    networks: dict[str, Network] = {}
    plain: Tensor | None = None
    budget = _Budget()
    for one in found:
        one.refused = budget.refusal(one)
        if one.refused:
            continue
        start = time.monotonic()
        try:
            network = plain_network if one.variant == PLAIN else make(Variant.of(one.options))
            logits = answers(network, crops)
        except Exception as error:  # a compiler raises anything; what cannot run here is not taken
            if one.variant == PLAIN or stops(error) or isinstance(error, TimeoutError):
                raise
            one.refused = f"it cannot run here: {type(error).__name__}: {' '.join(str(error).split())}"
            continue
        one.ready_s = round(time.monotonic() - start, 1)
        budget.took(one)
        plain = logits if plain is None else plain
        compare(one, logits, plain, random_weights=network.classifier.weights == "random")
        if network.fitting_batch_size < network.batch_size and one.variant != PLAIN:
            one.refused = "memory runs out at this batch size"
        if one.refused is None:
            networks[one.variant] = network
    time_in_turn([one for one in found if one.refused is None], networks)
    best = max(found, key=lambda one: one.median_rate)
    choice = Choice(
        best.variant, best.options, images, len(crops), plain_network.batch_size, [asdict(one) for one in found]
    )
    log.info("%s", "\n".join([*choice.table(), choice.words()]))
    taken = networks[best.variant]
    networks.clear()
    gc.collect()
    return choice, taken


def _candidates(device: str, eager: bool) -> list[Candidate]:
    variants = preset_candidates(device, bfloat16_on_cpu=computes_bfloat16())
    return [Candidate(name, one.options()) for name, one in variants.items() if not (one.compiled and eager)]


class _Budget:
    """MOST_SECONDS, from when plain has answered; a compiled candidate is expected to take what the last one took."""

    def __init__(self) -> None:
        self.start: float | None = None
        self.compiled_s = 0.0

    def took(self, one: Candidate) -> None:
        self.start = self.start or time.monotonic()
        if one.options["torchcompile"]:
            self.compiled_s = one.ready_s or 0.0

    def refusal(self, one: Candidate) -> str | None:
        """Why there is no time for it, or None."""
        if self.start is None or not one.options["torchcompile"]:
            return None
        spent = time.monotonic() - self.start
        if spent + self.compiled_s <= MOST_SECONDS:
            return None
        return f"not tried: the others took {spent:.0f} of the {MOST_SECONDS:.0f} s that are meant for all"


def network_arguments(variant: Variant) -> dict[str, Any]:
    """Keywords of ``Network`` that say the same, but for folding, which changes the classifier itself."""
    return {
        "amp_dtype": variant.amp_dtype,
        "channels_last": variant.channels_last,
        "compiled": variant.compiled,
        "modes": GpuModes(variant.tf32, variant.cudnn_benchmark),
    }


def policy_for(images: int) -> str:
    """The views of each image that make about CROPS crops: the centre crop; of few images random ones too."""
    more = math.ceil(CROPS / images) - 1
    return f"CC+{more}RC" if more else "CC"


def crops_of(batches: Iterable[CropBatch]) -> tuple[Tensor, int]:
    """uint8 [m, K, K, 3], at most CROPS, on the CPU, and the number of images that could be read. Once the pipeline is
    closed, call ``pipeline_gone`` before a network is made."""
    pieces, images = [], 0
    for batch in batches:
        pieces += [group.crops[group.image >= 0].cpu() for group in batch.groups]
        images += len(batch.rows)
    crops = torch.cat(pieces) if pieces else torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
    return crops[:CROPS], images


def pipeline_gone(device: str) -> None:
    """DALI has freed its tensors: a graph may be captured (see ``Network.get_ready``)."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize(device)


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
    valid = ~plain.isneginf().all(0)  # others are not answers (Classifier.restrict)
    logits, plain = logits[:, valid], plain[:, valid]
    one.top1_agreement = float((logits.argmax(1) == plain.argmax(1)).double().mean())
    difference = float((logits - plain).abs().max() / plain.abs().max())
    one.logit_difference = difference if math.isfinite(difference) else None
    if one.variant == PLAIN:
        return
    if one.logit_difference is None:
        one.refused = "some logits are not finite numbers"
    elif one.top1_agreement < MIN_AGREEMENT and not random_weights:
        one.refused = f"top-1 agrees with plain's for {one.top1_agreement:.1%} of {len(plain)} crops only"
    elif one.logit_difference > MAX_DIFFERENCE:
        one.refused = f"logits differ from plain's by {one.logit_difference:.1e} of the largest"


def time_in_turn(candidates: list[Candidate], networks: dict[str, Network]) -> None:
    """Crops per second of each; another one begins each round."""
    for number in range(ROUNDS):
        first = number % len(candidates)
        for one in candidates[first:] + candidates[:first]:
            one.crops_per_sec.append(crops_per_sec(networks[one.variant]))


def crops_per_sec(network: Network) -> float:
    """Of the network alone, on crops that lie on its device."""
    for _ in range(WARMUP):
        network.forward()
    _wait(network)
    queue, passes = Queue(), 0
    start = time.perf_counter()
    while passes < 2 or time.perf_counter() - start < ROUND_SECONDS:
        network.forward()
        queue.passed(network.device)
        passes += 1
    _wait(network)
    return passes * network.batch_size / (time.perf_counter() - start)


def _wait(network: Network) -> None:
    if network.device.type == "cuda":
        torch.cuda.current_stream(network.device).synchronize()
