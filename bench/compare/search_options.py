"""The runs that a search consists of: their command lines, and what they are expected to take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bench.cases import crop_counts, policies
from bench.config import DEFAULT_CROPS, MeasureConfig
from bench.options import parse
from bench.records import Run
from pipelines.crops import union

NETWORK_FLAGS = ("--models", "--model", "-m", "--model-list", "--family")
# Of the options of a run, those that say which networks at which sizes: later steps name each outright.
CASE_FLAGS = (*NETWORK_FLAGS, "--variants", "--img-size", "--crop-pct")
# That the search settles.
OWN_FLAGS = (
    "--out", "--resume", "--dry-run", "--results-file", "--recipe", "--no-accuracy", "--skip", "--stages",
)  # fmt: skip
MEASURE_FLAGS = ("--crops", "--policies", "--rounds", "--round-seconds", "--num-warm-iter", "--latency-queries")
SPEED_FLAGS = (
    "--preset", "--fold", "--channels-last", "--no-channels-last", "--torchcompile", "--amp", "--amp-dtype", "--tf32",
    "--cudnn-benchmark",
)  # fmt: skip
FIXED = "5FC,5FC+5MFC"  # beside random crops, dense crops and early stopping, where the user names no policies
ROUNDS, ROUND_SECONDS = 3, 0.5  # of the timings of those that are left
SCREEN_CROPS = 5  # at most, while networks are screened
# A rough timing, where a target asks for what no estimate tells.
SHORT = ["--rounds", "1", "--round-seconds", "0.3", "--num-warm-iter", "1"]
SCREEN_QUERIES = 20  # images that are classified one at a time
WARM_UP_S = 0.5  # of a timed segment
LOADED_S, PRESET_S = 3.0, 6.0  # loading a network and starting a run; finding out how it runs fastest


@dataclass(frozen=True, slots=True)
class Case:
    """One network at one size, as a run is asked for it, and how fast it seemed.

    ``crops_per_sec``: of the network; ``pipeline_images_per_sec``; both roughly. ``shared``: they share the cores.
    """

    model: str
    img_size: int | None
    crop_pct: float | None
    crops_per_sec: float | None
    pipeline_images_per_sec: float | None
    shared: bool = True

    @property
    def flags(self) -> list[str]:
        size = ["--img-size", str(self.img_size)] if self.img_size else []
        return ["--models", self.model, *size, *(["--crop-pct", str(self.crop_pct)] if self.crop_pct else [])]

    @property
    def name(self) -> str:
        return " ".join(self.flags[1:])

    def seconds_per_image(self, forwards: float) -> float:
        """Roughly, end to end with so many forward passes; 0 where nothing was measured."""
        network = forwards / self.crops_per_sec if self.crops_per_sec else 0.0
        pipeline = 1 / self.pipeline_images_per_sec if self.pipeline_images_per_sec else 0.0
        return network + pipeline if self.shared else max(network, pipeline)


def cases_of(found: Run) -> dict[tuple[str, int, int], Case]:
    """(weights' hash, S, K) -> how a run is asked for that network at that size."""
    cases = {}
    for model in found.info["models"]:
        setting = model["setting"]
        cases[setting["weight_hash"], setting["S"], setting["K"]] = Case(
            **model["asked"],
            crops_per_sec=model["crops_per_sec"],
            pipeline_images_per_sec=model.get("pipeline_images_per_sec"),
            shared=setting["device"] == "cpu",
        )
    return cases


def measured(options: Sequence[str]) -> MeasureConfig:
    """What a run with these options measures. Ends the program for options that are none, as the run would."""
    return parse(list(options)).config.measure


def with_policies(options: Sequence[str]) -> list[str]:
    """The options, with every kind of policy where they name none."""
    if any(flag in ("--crops", "--policies") for flag, _ in pairs(options)):
        return list(options)
    return [*options, "--crops", ",".join(map(str, DEFAULT_CROPS)), "--policies", FIXED]


def screen_options(options: Sequence[str], metrics: Collection[str], *, of_case: bool = False) -> list[str]:
    """Of a run that screens: few crops, nothing that only makes it faster, and timings only where the ``metrics`` of
    the targets ask for what the run's own estimate does not tell. ``of_case``: without the networks and sizes."""
    kept = without(options, (*MEASURE_FLAGS, "--preset", "--limit", *(CASE_FLAGS if of_case else ())))
    kept = [one for one in kept if one != "--no-throughput"]
    latency = any(metric.startswith("latency") for metric in metrics)
    timed = latency or "peak_mem_gb" in metrics
    queries = ["--latency-queries", str(SCREEN_QUERIES if latency else 0)]
    timing = [*SHORT, "--stages", "end_to_end", *queries] if timed else ["--no-throughput"]
    return [*kept, *_few_crops(measured(options)), *timing]


def _few_crops(measure: MeasureConfig) -> list[str]:
    """Those of the crop counts up to SCREEN_CROPS; of policies alone, those with so few views; at least the least."""
    if measure.crops:
        few = [n for n in measure.crops if n <= SCREEN_CROPS] or [min(measure.crops)]
        return ["--crops", ",".join(map(str, few))]
    named = [policy for policy in policies(replace(measure, cheap=False)) if not policy.suffix]
    few_views = [policy.name for policy in named if policy.n_views <= SCREEN_CROPS]
    return ["--policies", ",".join(few_views)]  # CC is always among them


def final_options(options: Sequence[str], metrics: Collection[str]) -> list[str]:
    """Of a run that measures one network at one size to the end, whose flags are still to be added: the fastest way of
    running it that needs no compiler, and end-to-end timings; the user's own options come last, and win."""
    given = {flag for flag, _ in pairs(options)}
    preset = [] if given & set(SPEED_FLAGS) or "--no-throughput" in given else ["--preset", "eager"]
    queries = [] if any(metric.startswith("latency") for metric in metrics) else ["--latency-queries", "0"]
    own = without(options, (*CASE_FLAGS, "--limit"))
    return [
        *preset,
        "--stages",
        "end_to_end",
        "--rounds",
        str(ROUNDS),
        "--round-seconds",
        str(ROUND_SECONDS),
        *queries,
        *own,
    ]


def expected_s(cases: Sequence[Case], images: int, options: Sequence[str], pace: float = 1.0) -> float:
    """Seconds that runs of these cases take, one each. ``pace``: how much longer the passes took so far than their
    estimates said."""
    measure = measured(options)
    asked = policies(measure)
    views = union(asked)
    passes = max(1, views.total)
    scoring = sum(case.seconds_per_image(passes) for case in cases) * images * pace
    preset = PRESET_S if any(flag == "--preset" for flag, _ in pairs(options)) else 0.0
    return scoring + len(cases) * (LOADED_S + preset + _timing_s(measure, cases))


def _timing_s(measure: MeasureConfig, cases: Sequence[Case]) -> float:
    if not measure.throughput:
        return 0.0
    asked = policies(measure)
    cheap = sum(1 for policy in asked if policy.dense or policy.suffix)
    timed = measure.rounds * (len(crop_counts(measure, asked)) + cheap) * (measure.round_seconds + WARM_UP_S)
    single = sum(case.seconds_per_image(n) for case in cases for n in crop_counts(measure, asked)) / len(cases)
    return timed + measure.latency_queries * 2 * single


def image_flags(skip: int, images: int) -> list[str]:
    """``--limit`` and ``--skip`` for the next ``images`` after ``skip``."""
    return [*(["--skip", str(skip)] if skip else []), "--limit", str(images)]


def limit_of(options: Sequence[str]) -> int | None:
    """The user's own ``--limit``: of all steps together."""
    return next((int(value) for flag, value in pairs(options) if flag == "--limit"), None)


def pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    """(flag, value) of ``--flag value`` and ``--flag=value``."""
    found = []
    for i, one in enumerate(options):
        flag, equals, value = one.partition("=")
        if flag.startswith("-"):
            found.append((flag, value if equals else (options[i + 1] if i + 1 < len(options) else "")))
    return found


def without(options: Sequence[str], flags: Collection[str]) -> list[str]:
    """The options without these flags and their values."""
    kept: list[str] = []
    skip = False
    for one in options:
        if skip:
            skip = False
        elif one in flags:
            skip = True
        elif one.partition("=")[0] not in flags:
            kept.append(one)
    return kept
