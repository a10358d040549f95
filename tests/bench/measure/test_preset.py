"""--preset fast: the fastest way of running a network that gives plain's answers; what does not is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import predict
from bench.compare import network as compare_network
from bench.config import NetworkConfig, RunConfig
from bench.job import Job
from models import MultiCrop, preset
from models.loading import load
from models.predict import Network
from models.preset import Candidate, compare
from models.variants import (
    BFLOAT16,
    CHANNELS_LAST,
    FOLDED,
    PLAIN,
    Variant,
    default_variant,
    preset_candidates,
    variants,
)
from pipelines.crops import parse_policy


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
    order = [one.compiled for one in found.values()]
    assert order == sorted(order)  # what needs no compiler comes first: time may run out


def test_on_a_cpu_the_default_settings_are_among_what_is_tried() -> None:
    """So that the preset is never slower than what is run without it."""
    found = preset_candidates("cpu", bfloat16_on_cpu=True)
    assert default_variant("cpu") in found.values() and found[CHANNELS_LAST] == default_variant("cpu")
    assert BFLOAT16 in found and "fold" in found and FOLDED in found


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
        (logits(*MANY[:-4], 3, 0, 1, 2), False, 0.99, 1.0, "top-1 agrees with plain's for 99.0% of 400 crops only"),
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
    real_answers = preset.answers
    names: dict[int, str] = {}

    def answers(network: Network, crops: torch.Tensor) -> torch.Tensor:
        name = names[id(network)] = list(tried.rates)[len(tried.answered)]
        tried.answered.append(name)
        if name == "no compiler":
            raise RuntimeError("Failed to find a C++ compiler")
        logits = real_answers(network, crops)
        return logits.roll(1, 1) if name == "wrong" else logits

    def crops_per_sec(network: Network) -> float:
        tried.timed.append(names[id(network)])
        return float(tried.rates[tried.timed[-1]])

    monkeypatch.setattr(preset, "preset_candidates", lambda device, bfloat16_on_cpu: found)
    monkeypatch.setattr(preset, "answers", answers)
    monkeypatch.setattr(preset, "CROPS", 48)
    monkeypatch.setattr(preset, "crops_per_sec", crops_per_sec)
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
    assert (choice["variant"], choice["images"], choice["crops"], choice["batch_size"]) == (FOLDED, 24, 48, 8)
    by_name = {one["variant"]: one for one in choice["candidates"]}
    assert by_name[PLAIN]["logit_difference"] == 0 and by_name[PLAIN]["crops_per_sec"] == [100.0] * 3
    assert 0 < by_name[FOLDED]["logit_difference"] < 1e-4 and by_name[FOLDED]["top1_agreement"] == 1
    assert by_name["no compiler"]["refused"] == "it cannot run here: RuntimeError: Failed to find a C++ compiler"
    assert (
        by_name["wrong"]["refused"].startswith("top-1 agrees with plain's for")
        and not by_name["wrong"]["crops_per_sec"]
    )
    said = f"preset: {FOLDED}: 130 crops/s, 1.30 times plain; top-1 agrees for 100.0% of 48 crops of 24 images"
    assert said in done.stderr
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


# ------------------------------------------------------------------------------------------------ time, and few images


def test_no_candidate_is_compiled_that_there_is_no_time_for(
    tried: Tried, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first compiled one takes 200 of 240 seconds; a second one would take as long."""
    tried.rates = {PLAIN: 100, "first": 110, "second": 120}
    found = dict(zip(tried.rates, [Variant(), Variant(compiled=True), Variant(fold=True, compiled=True)], strict=True))
    monkeypatch.setattr(preset, "preset_candidates", lambda device, bfloat16_on_cpu: found)
    now = [0.0]
    real = preset.answers

    def slow(network: Network, crops: torch.Tensor) -> torch.Tensor:
        now[0] += 200.0
        return real(network, crops)

    monkeypatch.setattr(preset, "answers", slow)
    monkeypatch.setattr(Network, "get_ready", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda step, **how: step)
    monkeypatch.setattr(preset.time, "monotonic", lambda: now[0])
    chosen = make_job("--preset", "fast").preset
    assert chosen is not None and chosen["variant"] == "first"
    by_name = {one["variant"]: one for one in chosen["candidates"]}
    assert by_name["first"]["ready_s"] == 200 and by_name["second"]["crops_per_sec"] == []
    assert by_name["second"]["refused"] == "not tried: the others took 200 of the 240 s that are meant for all"


@pytest.mark.parametrize(("images", "views"), [(1, 300), (7, 43), (299, 2), (300, 1), (50_000, 1)])
def test_of_few_images_more_crops_are_compared(images: int, views: int) -> None:
    policy = parse_policy(preset.policy_for(images))
    assert policy.n_views == views and min(images, 300) * views >= 300


def test_multicrop_takes_the_fastest_that_is_right_and_keeps_it(
    tried: Tried, demo_root: Path, weights_file: Path, fast_backend: object
) -> None:
    keywords: dict[str, Any] = {"checkpoint": weights_file, "policy": "CC+2RC", "img_size": 64, "batch_size": 8}
    classify = MultiCrop("test_resnet", preset="fast", backend="torchvision", **keywords)
    assert classify.preset is None
    found = list(classify(demo_root))
    assert classify.preset is not None and classify.preset.variant == FOLDED and classify.preset.images == 24
    expected = list(
        MultiCrop("test_resnet", backend="torchvision", channels_last=True, fold=True, **keywords)(demo_root)
    )
    assert [image.name for image in found] == [image.name for image in expected]
    assert all((a.probabilities == b.probabilities).all() for a, b in zip(found, expected, strict=True))
    assert tried.answered == list(tried.rates)
    list(classify(demo_root))
    assert tried.answered == list(tried.rates)  # once


def test_multicrop_chooses_by_the_first_images_that_can_be_read(
    tried: Tried, demo_root: Path, weights_file: Path
) -> None:
    keywords: dict[str, Any] = {"checkpoint": weights_file, "policy": "CC", "img_size": 64, "batch_size": 8}
    classify = MultiCrop("test_resnet", preset="fast", backend="torchvision", **keywords)
    (broken,) = classify([b"no image"])
    assert broken.error and classify.preset is None and not tried.answered
    (one,) = classify(sorted(demo_root.rglob("*.jpg"))[0])
    assert one.error is None and classify.preset is not None
    assert (classify.preset.images, classify.preset.crops) == (1, 48)


@pytest.mark.parametrize("name", Variant().options())
def test_multicrop_refuses_a_setting_beside_the_preset(name: str) -> None:
    value: Any = "bfloat16" if name == "amp_dtype" else True
    with pytest.raises(ValueError, match=f"`preset` fast decides `{name}`"):
        MultiCrop("test_resnet", weights="random", preset="fast", **{name: value})
    with pytest.raises(ValueError, match="`preset` 'fastest' is not known: fast and eager are"):
        MultiCrop("test_resnet", weights="random", preset="fastest")


def test_predict_records_what_the_preset_took_and_continues_with_it(
    tried: Tried, demo_root: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--model", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64", "-b", "8", "-q"]
    how = ["--policy", "CC+2RC", "--data-backend", "torchvision", "--preset", "fast"]
    seen: list[str] = []
    real = predict.row_of

    def interrupted(image: Any, k: int) -> dict[str, Any]:
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(image.name)
        return real(image, k)

    def command(out: str) -> int:
        return predict.main([str(demo_root), *model, *how, "--out", str(tmp_path / out)])

    assert command("whole.csv") == 0
    stored = json.loads((tmp_path / "whole.csv.preset.json").read_text())
    assert stored["variant"] == FOLDED and {one["variant"] for one in stored["candidates"]} == set(tried.rates)
    tried.answered.clear()
    with monkeypatch.context() as patch:
        patch.setattr(predict, "row_of", interrupted)
        assert command("out.csv") == 130
    tried.answered.clear()
    tried.rates[FOLDED] = 1  # measured again, another setting would be taken
    assert command("out.csv") == 0 and not tried.answered
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert json.loads((tmp_path / "out.csv.preset.json").read_text())["variant"] == FOLDED
