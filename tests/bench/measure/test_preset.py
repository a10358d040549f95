"""--preset fast: the fastest way of running a network that gives plain's answers; what does not is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from bench.compare import network as compare_network
from bench.config import NetworkConfig, RunConfig
from bench.job import Job
from bench.measure import preset
from bench.measure.clocks import Segment
from bench.measure.preset import Candidate, compare
from bench.measure.variants import FOLDED, PLAIN, Variant, preset_candidates, variants
from models.loading import load
from models.predict import Network


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_candidate_of_the_preset_is_one_that_compare_network_measures(device: str) -> None:
    compared = variants(device, with_compiled=True)
    found = preset_candidates(device, bfloat16_on_cpu=False)
    assert next(iter(found)) == PLAIN
    assert {name: compared[name] for name in found} == found
    assert compare_network.variants is variants
    kinds = {(one.amp_dtype, one.tf32, one.compiled) for one in found.values()}
    gpu = {("float16", False, True), ("bfloat16", False, True), ("float32", True, True), ("float16", False, False)}
    assert kinds == {("float32", False, False)} | ({("float32", False, True)} if device == "cpu" else gpu)


def test_bfloat16_is_tried_on_a_cpu_that_computes_with_it_only() -> None:
    dtypes = [
        {one.amp_dtype for one in preset_candidates("cpu", bfloat16_on_cpu=yes).values()} for yes in (False, True)
    ]
    assert dtypes == [{"float32"}, {"float32", "bfloat16"}]


def logits(*winners: int) -> torch.Tensor:
    found = torch.zeros(len(winners), 4)
    found[range(len(winners)), winners] = 10.0
    return found


MANY = [0, 1, 2, 3] * 100


@pytest.mark.parametrize(
    ("theirs", "random_weights", "agreement", "difference", "refused"),
    [
        (logits(*MANY) + 0.1, False, 1.0, 0.01, None),
        (logits(*MANY) + 0.6, False, 1.0, 0.06, "logits differ from plain's by 6.0e-02 of the largest"),
        (logits(*MANY[:-1], 0), False, 0.9975, 1.0, "logits differ from plain's by 1.0e+00 of the largest"),
        (logits(*MANY[:-4], 3, 0, 1, 2), False, 0.99, 1.0, "top-1 agrees with plain's for 99.0% of 400 images only"),
        (logits(*MANY) * float("inf"), False, None, None, "some logits are not finite numbers"),
    ],
)  # fmt: skip
def test_what_is_too_far_from_plains_answers_is_refused(
    theirs: torch.Tensor, random_weights: bool, agreement: float | None, difference: float | None, refused: str | None
) -> None:
    one = Candidate("any", {})
    compare(one, theirs, logits(*MANY), random_weights=random_weights)
    assert one.refused == refused
    assert agreement is None or one.top1_agreement == pytest.approx(agreement)
    assert one.logit_difference == (difference and pytest.approx(difference, rel=1e-4))


def test_of_random_weights_only_the_logits_are_compared() -> None:
    """Their classes are all but equal, so that a rounding changes the first."""
    plain, theirs = torch.tensor([[1.0, 1.001]] * 9), torch.tensor([[1.001, 1.0]] * 9)
    for random_weights, refused in ((True, False), (False, True)):
        one = Candidate("any", {})
        compare(one, theirs, plain, random_weights=random_weights)
        assert one.top1_agreement == 0 and (one.refused is not None) == refused


@pytest.mark.parametrize("name", ["amp_dtype", "channels_last", "fold", "torchcompile", "tf32", "cudnn_benchmark"])
def test_what_the_preset_decides_is_not_given_beside_it(name: str) -> None:
    value = "bfloat16" if name == "amp_dtype" else True
    with pytest.raises(ValueError, match=f"`preset` fast decides `{name}`"):
        RunConfig(network=NetworkConfig(preset="fast", **{name: value}))  # type: ignore[arg-type]


@dataclass
class Tried:
    """Candidates of known speeds, which do not depend on this machine: one cannot run, one gives wrong answers."""

    rates: dict[str, int] = field(default_factory=lambda: {PLAIN: 100, FOLDED: 130, "no compiler": 9, "wrong": 900})
    answered: list[str] = field(default_factory=list)  # in order
    timed: list[str] = field(default_factory=list)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    tried = Tried()
    variants = [Variant(), Variant(channels_last=True, fold=True), Variant(compiled=True), Variant(tf32=True)]
    found = dict(zip(tried.rates, variants, strict=True))
    real_answers, real_forwards = preset.answers, preset.forwards
    names: dict[int, str] = {}

    def answers(network: Network, crops: torch.Tensor) -> torch.Tensor:
        name = names[id(network)] = list(tried.rates)[len(tried.answered)]
        tried.answered.append(name)
        if name == "no compiler":
            raise RuntimeError("Failed to find a C++ compiler")
        logits = real_answers(network, crops)
        return logits.roll(1, 1) if name == "wrong" else logits

    def forwards(network: Network) -> Iterator[int]:
        tried.timed.append(names[id(network)])
        return real_forwards(network)

    def segment(stream: Iterator[int], **other: Any) -> Segment:
        next(stream)
        return Segment(tried.rates[tried.timed[-1]], 1.0, [])

    monkeypatch.setattr(preset, "preset_candidates", lambda device, bfloat16_on_cpu: found)
    monkeypatch.setattr(preset, "answers", answers)
    monkeypatch.setattr(preset, "forwards", forwards)
    monkeypatch.setattr(preset, "segment", segment)
    return tried


def test_a_run_takes_the_fastest_that_is_right_records_it_and_keeps_it(
    tried: Tried, small_run: Callable[..., Any]
) -> None:
    done = small_run("--preset", "fast", "--policies", "CC")
    assert done.status == 0
    assert tried.answered == list(tried.rates)
    assert tried.timed == [PLAIN, FOLDED, FOLDED, PLAIN, PLAIN, FOLDED]  # in turn, and only what is right
    settings = {(r.setting.channels_last, r.setting.folded, r.setting.amp_dtype) for r in done.run.records}
    assert settings == {(True, True, "float32")}
    (stored,) = json.loads((done.out / "run.json").read_text())["models"]
    choice = stored["preset"]
    assert (choice["variant"], choice["images"], choice["batch_size"]) == (FOLDED, 24, 8)
    by_name = {one["variant"]: one for one in choice["candidates"]}
    assert by_name[PLAIN]["logit_difference"] == 0 and by_name[PLAIN]["crops_per_sec"] == [100.0] * 3
    assert 0 < by_name[FOLDED]["logit_difference"] < 1e-4 and by_name[FOLDED]["top1_agreement"] == 1
    assert by_name["no compiler"]["refused"] == "it cannot run here: RuntimeError: Failed to find a C++ compiler"
    assert (
        by_name["wrong"]["refused"].startswith("top-1 agrees with plain's for")
        and not by_name["wrong"]["crops_per_sec"]
    )
    assert f"preset: {FOLDED}: 130 crops/s, 1.30 times plain; top-1 agrees for 100.0% of 24 images" in done.stderr
    assert json.loads((done.out / "run.json").read_text())["config"]["network"]["preset"] == "fast"
    tried.answered.clear()
    again = small_run("--resume", str(done.out), out="out")
    assert again.status == 2 or not tried.answered  # what was chosen stays, and is not measured again


def test_eager_compiles_nothing(tried: Tried, make_job: Callable[..., Job]) -> None:
    del tried.rates["no compiler"]  # the compiled one
    job = make_job("--preset", "eager")
    assert job.preset is not None and job.preset["variant"] == FOLDED
    assert not any(one["options"]["torchcompile"] for one in job.preset["candidates"])


def test_plain_is_taken_where_nothing_right_is_faster(tried: Tried, make_job: Callable[..., Job]) -> None:
    tried.rates[FOLDED] = 99
    job = make_job("--preset", "fast")
    assert job.preset is not None and job.preset["variant"] == PLAIN
    asked = job.config.network
    assert (asked.preset, asked.channels_last, asked.fold, asked.torchcompile) == (None, False, False, False)


def test_a_compiled_network_has_a_graph_of_each_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would go on without compiling after the eighth, with a warning only."""
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, dynamic, mode: real(step, dynamic=dynamic, backend=count))
    classifier = load("test_resnet", weights="random", num_classes=3, img_size=32, crop_pct=0.875, seed=0)
    network = Network(classifier, batch_size=1, compiled=True)
    for K in range(32, 32 + 8 * 10, 8):
        network.forward(K)
    assert len(graphs) == 10
