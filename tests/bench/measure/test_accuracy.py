"""The accuracy pass against a slow loop: one crop at a time through the network, averages in plain Python.

The frames are the backend's own. Fixed windows are torchvision's ``center_crop`` and ``five_crop``; random ones are the
definition, ``floor(u * (D + 1))``. The networks are the demo's: their answers differ from image to image and view to
view, and one of them (mobilenet) has a head that is not linear.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop, five_crop

from bench import predictions as predictions_module
from bench.measure.scoring import Scoring, evaluate
from bench.predictions import Predictions, counts
from models import loading
from models.classifier import Classifier
from models.predict import Network
from pipelines import BACKENDS, backend, unusable
from pipelines.backends.torchvision import Torchvision
from pipelines.batch import CropBatch, Failure, LoadConfig
from pipelines.crops import Planner, parse_policy, uniforms, union
from pipelines.data.dataset import Dataset

SEED = 3
BATCH_SIZE = 8
POLICIES = ["CC", "1RC", "3RC", "CC+2RC", "5FC", "5FC+5MFC", "CC+5FC+2RC+2MRC", "4ARC"]
LEVELS = ["feature", "logit", "softmax"]
ON_A_CPU = [name for name in BACKENDS if name != "dali-gpu"]


@dataclass(frozen=True)
class Setup:
    """One network on one data set."""

    classifier: Classifier
    network: Network
    data: Dataset

    def planner(self, policies: list[str]) -> Planner:
        return Planner(self.classifier.spec, union([parse_policy(p) for p in policies]), SEED)

    def backend(
        self, policies: list[str], name: str = "torchvision", *, workers: int = 0, batch_images: int = 7
    ) -> Any:
        if reason := unusable(name):
            pytest.skip(reason)
        config = LoadConfig(batch_images=batch_images, workers=workers or int(name != "torchvision"))
        return backend(name)(self.data, self.planner(policies), config)

    def evaluate(
        self, source: Any, policies: list[str], rows: np.ndarray | None = None, *, progress: Any = lambda images: None
    ) -> Predictions:
        parsed = [parse_policy(p) for p in policies]
        planner = self.planner(policies)

        def uncovered(of: np.ndarray) -> np.ndarray:
            return planner.uncovered(self.data.sizes(of))

        def forwards(of: np.ndarray) -> np.ndarray:
            return planner.forwards(self.data.sizes(of))

        rows = np.arange(len(self.data)) if rows is None else rows
        labels = self.data.table["label"].to_numpy(np.int64)
        try:
            return evaluate(
                source, self.network, rows, Scoring(labels, planner.views, parsed, uncovered, forwards), progress
            )
        finally:
            source.close()


# Family -> images: odd, so that the last batch of images and the last batch of crops are short.
SCORED = {"resnet": 15, "mobilenet": 11}


@pytest.fixture(scope="module", params=SCORED)
def setup(request: pytest.FixtureRequest, data: Dataset) -> Setup:
    return make_setup(request.param, data.subset(SCORED[request.param], seed=0))


@pytest.fixture(scope="module")
def resnet(data: Dataset) -> Setup:
    return make_setup("resnet", data)


def make_setup(family: str, data: Dataset) -> Setup:
    net = loading.load(f"{family}:demo", weights="demo")
    return Setup(net, Network(net, batch_size=BATCH_SIZE), data)


def counted(images: int, top1: int, top5: int, nll_mean: float, newly_correct: int, newly_wrong: int) -> dict[str, Any]:
    """What ``counts`` gives."""
    return {
        "images": images, "top1_correct": top1, "top5_correct": top5, "nll_mean": nll_mean,
        "newly_correct": newly_correct, "newly_wrong": newly_wrong,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the slow loop


def crops_of(stream: str, n: int, frame: np.ndarray, name: str, K: int) -> Iterator[np.ndarray]:
    """The first ``n`` crops of a stream, uint8 [K, K, 3] each, from one resized frame [H, W, 3]."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)
    if stream == "CC":
        yield center_crop(pixels, [K, K]).permute(1, 2, 0).numpy()
    elif stream in ("FC", "MFC"):
        for crop in five_crop(pixels, [K, K]):
            yield (crop.flip(-1) if stream == "MFC" else crop).permute(1, 2, 0).numpy()
    else:
        height, width, _ = frame.shape
        for u, v in uniforms(SEED, name, stream, n).tolist():
            y, x = int(u * (height - K + 1)), int(v * (width - K + 1))
            window = frame[y : y + K, x : x + K]
            yield window[:, ::-1] if stream == "MRC" else window


def views_taken(term: str, n: int, frame: np.ndarray, K: int) -> tuple[str, int]:
    """Stream and number of views; an adaptive term takes more, the more the centre crop leaves out."""
    if "A" not in term:
        return term, n
    height, width, _ = frame.shape
    return term.replace("A", ""), min(1 + n * (height * width - K * K) // (height * width), n)


class SlowLoop:
    """Answers of one image, view by view."""

    def __init__(self, classifier: Classifier, frame: np.ndarray, name: str) -> None:
        self.net: Any = classifier.net
        self.spec, self.frame, self.name = classifier.spec, frame, name
        self.heads = {"ResNet": self.net_fc, "MobileNetV3": self.two_layers}
        self.known: dict[bytes, tuple[Tensor, Tensor]] = {}

    def net_fc(self, features: Tensor) -> Tensor:
        return self.net.fc(features)

    def two_layers(self, features: Tensor) -> Tensor:
        hidden = self.net.act2(self.net.norm_head(self.net.conv_head(features[:, :, None, None])))
        return self.net.classifier(hidden.flatten(1))

    def head(self, features: Tensor) -> Tensor:
        return self.heads[type(self.net).__name__](features[None].float())[0].double()

    def view(self, crop: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pooled features and logits of one crop, float64."""
        key = np.ascontiguousarray(crop).tobytes()
        if key not in self.known:
            normal = (crop / 255 - np.array(self.spec.mean)) / np.array(self.spec.std)
            x = torch.from_numpy(normal.astype(np.float32)).permute(2, 0, 1)[None]
            pooled = self.net.forward_features(x).mean((2, 3))[0]
            self.known[key] = pooled.double(), self.head(pooled)
        return self.known[key]

    def probabilities(self, policy: str) -> dict[str, list[float]]:
        """Level -> the averaged prediction."""
        views = []
        for term, n in parse_policy(policy).terms:
            stream, taken = views_taken(term, n, self.frame, self.spec.K)
            views += [self.view(crop) for crop in crops_of(stream, taken, self.frame, self.name, self.spec.K)]
        features, logits = zip(*views, strict=True)
        softmaxes = [softmax(one.tolist()) for one in logits]
        return {
            "feature": softmax(self.head(torch.tensor(mean([f.tolist() for f in features]))).tolist()),
            "logit": softmax(mean([one.tolist() for one in logits])),
            "softmax": mean(softmaxes),
        }


def mean(vectors: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [e / math.fsum(exponentials) for e in exponentials]


@pytest.fixture(scope="module")
def expected(setup: Setup) -> dict[tuple[int, str], dict[str, list[float]]]:
    """(row, policy) -> level -> probabilities."""
    source = setup.backend(POLICIES)
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    with torch.inference_mode():
        for row, frame in source.frames(np.arange(len(setup.data))):
            one = SlowLoop(setup.classifier, frame, setup.data.names(np.array([row]))[0])
            found |= {(row, policy): one.probabilities(policy) for policy in POLICIES}
    source.close()
    return found


@pytest.fixture(scope="module")
def predictions(setup: Setup) -> Predictions:
    return setup.evaluate(setup.backend(POLICIES), POLICIES)


def test_every_policy_at_every_level_is_what_the_slow_loop_says(
    setup: Setup, predictions: Predictions, expected: dict[tuple[int, str], dict[str, list[float]]]
) -> None:
    assert (predictions.levels, predictions.policies) == (LEVELS, POLICIES)
    assert predictions.rows.tolist() == list(range(len(setup.data)))
    labels = setup.data.table["label"].tolist()
    for (row, policy), by_level in expected.items():
        p = POLICIES.index(policy)
        for i, level in enumerate(LEVELS):
            probability, truth = by_level[level], labels[row]
            ranked = sorted(range(len(probability)), key=lambda n: -probability[n])
            assert predictions.top1[i, p, row] == ranked[0]
            assert predictions.in_top5[i, p, row] == (truth in ranked[:5])
            assert predictions.nll[i, p, row] == pytest.approx(-math.log(probability[truth]), abs=1e-4)


def test_the_answers_differ_enough_to_tell_a_mistake(predictions: Predictions) -> None:
    assert len(set(predictions.top1[0, 0].tolist())) > 4
    for p in range(1, len(POLICIES)):
        assert np.abs(predictions.nll[:, p] - predictions.nll[:, 0]).max() > 1e-2
    assert 0 < predictions.in_top5.mean() < 1


def test_the_levels_differ_where_the_head_is_not_linear(setup: Setup, predictions: Predictions) -> None:
    feature, logit, softmaxes = predictions.nll[:, POLICIES.index("5FC+5MFC")]
    assert np.abs(softmaxes - logit).max() > 1e-3
    if setup.classifier.head_is_linear:
        assert np.abs(feature - logit).max() < 1e-4
    else:
        assert np.abs(feature - logit).max() > 1e-3


def test_each_view_alone_is_kept(
    setup: Setup, predictions: Predictions, expected: dict[tuple[int, str], dict[str, list[float]]]
) -> None:
    views = setup.planner(POLICIES).views
    assert predictions.view_top1.shape == (len(setup.data), views.total)
    centre, first = views.columns["CC"][0], views.columns["RC"][0]
    for row in range(len(setup.data)):
        for policy, column in (("CC", centre), ("1RC", first)):
            alone = expected[row, policy]["logit"]
            assert predictions.view_top1[row, column] == max(range(len(alone)), key=alone.__getitem__)


def test_counts_are_those_of_a_plain_loop(
    setup: Setup, predictions: Predictions, expected: dict[tuple[int, str], dict[str, list[float]]]
) -> None:
    labels = setup.data.table["label"].tolist()
    for level in LEVELS:
        for policy in POLICIES:
            own = [
                (expected[row, policy][level], expected[row, "CC"][level], label) for row, label in enumerate(labels)
            ]
            right = [max(range(len(p)), key=p.__getitem__) == label for p, _, label in own]
            before = [max(range(len(p)), key=p.__getitem__) == label for _, p, label in own]
            found = counts(predictions, level, policy)
            nll = math.fsum(-math.log(p[label]) for p, _, label in own) / len(own)
            assert found["nll_mean"] == pytest.approx(nll, abs=1e-5)
            assert {**found, "nll_mean": None} == {
                "images": len(labels),
                "top1_correct": sum(right),
                "top5_correct": sum(sum(q > p[label] for q in p) < 5 for p, _, label in own),
                "nll_mean": None,
                "newly_correct": sum(r and not b for r, b in zip(right, before, strict=True)),
                "newly_wrong": sum(b and not r for r, b in zip(right, before, strict=True)),
            }


# ---------------------------------------------------------------------------------- what an answer must not depend on


def assert_same(some: Predictions, whole: Predictions, policies: list[str]) -> None:
    """Bit for bit, for each image of ``some``, which may be a part of ``whole``."""
    place = {row: i for i, row in enumerate(whole.rows.tolist())}
    images = [place[row] for row in some.rows.tolist()]
    for policy in policies:
        p, q = some.policies.index(policy), whole.policies.index(policy)
        for field in ("top1", "in_top5", "nll"):
            assert np.array_equal(getattr(some, field)[:, p], getattr(whole, field)[:, q][:, images]), (policy, field)


FEW = ["CC", "3RC", "5FC"]


@pytest.fixture(scope="module")
def whole(resnet: Setup) -> dict[str, Predictions]:
    """Each backend's answers, made when asked for."""

    class Kept(dict[str, Predictions]):
        def __missing__(self, name: str) -> Predictions:
            self[name] = resnet.evaluate(resnet.backend(FEW, name), FEW)
            return self[name]

    return Kept()


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.parametrize(
    "rows",
    [[5], [2, 3, 4], [0, 7, 9, 11, 20, 21, 23], list(range(24))[::-1]],
    ids=["one", "three", "seven", "reversed"],
)
def test_the_other_images_and_their_order_change_nothing(
    name: str, rows: list[int], resnet: Setup, whole: dict[str, Predictions]
) -> None:
    some = resnet.evaluate(resnet.backend(FEW, name, batch_images=5), FEW, np.array(rows))
    assert some.rows.tolist() == rows
    assert_same(some, whole[name], FEW)


@pytest.mark.parametrize("limit", [1, 9])
def test_a_limit_changes_no_answer(limit: int, resnet: Setup, whole: dict[str, Predictions]) -> None:
    part = resnet.data.subset(limit, seed=1)
    some = replace(resnet, data=part).evaluate(replace(resnet, data=part).backend(FEW), FEW)
    assert len(some.rows) == limit
    place = {name: row for row, name in enumerate(resnet.data.table["name"])}
    rows = np.array([place[name] for name in part.names(some.rows)])
    assert_same(replace(some, rows=rows), whole["torchvision"], FEW)


@pytest.mark.parametrize("name", ON_A_CPU)
def test_other_policies_in_the_run_change_nothing(name: str, resnet: Setup, whole: dict[str, Predictions]) -> None:
    more, some = ["6RC", "3RC", "5FC+5MFC", "CC", "2MRC", "CC+4RC", "5FC", "7ARC"], np.arange(0, 24, 2)
    assert_same(resnet.evaluate(resnet.backend(more, name), more, some), whole[name], FEW)
    alone = ["CC", "3RC"]
    assert_same(resnet.evaluate(resnet.backend(alone, name), alone, some), whole[name], alone)


@pytest.mark.parametrize(("name", "workers"), [("dali-cpu", 1), ("dali-cpu", 2), ("torchvision", 2)])
def test_workers_and_the_size_of_batches_change_nothing(
    name: str, workers: int, resnet: Setup, whole: dict[str, Predictions]
) -> None:
    source = resnet.backend(FEW, name, workers=workers, batch_images=5 + workers)
    assert_same(resnet.evaluate(source, FEW, np.arange(19)), whole[name], FEW)


# --------------------------------------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_unreadable_image_is_in_the_ledger_and_the_others_are_what_they_were(
    name: str, resnet: Setup, whole: dict[str, Predictions], tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(resnet.data.root, root)
    broken = {4: "cut", 23: "gone", 11: "no JPEG any more"}
    paths = [root / name for name in resnet.data.table["name"]]
    paths[4].write_bytes(paths[4].read_bytes()[:3000])
    paths[11].write_bytes(b"\xff\xd8\xff" + b"nothing" * 50)
    paths[23].unlink()
    damaged = replace(resnet, data=replace(resnet.data, root=root))
    told: list[int] = []
    found = damaged.evaluate(damaged.backend(FEW, name), FEW, progress=told.append)
    assert sorted(failure.row for failure in found.failed) == sorted(broken)
    assert all(failure.reason for failure in found.failed)
    assert found.rows.tolist() == [row for row in range(24) if row not in broken]
    assert sum(told) == 24
    assert_same(found, whole[name], FEW)
    assert counts(found, "softmax", "CC")["images"] == 21


@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_data_set_without_a_readable_image_gives_empty_predictions(name: str, resnet: Setup, tmp_path: Path) -> None:
    nothing = replace(resnet, data=replace(resnet.data, root=tmp_path))
    found = nothing.evaluate(nothing.backend(FEW, name), FEW)
    assert len(found.failed) == 24 and len(found.rows) == 0
    assert found.top1.shape == found.nll.shape == found.in_top5.shape == (3, len(FEW), 0)
    assert (found.top1.dtype, found.in_top5.dtype, found.nll.dtype) == (np.int32, np.bool_, np.float32)
    assert found.view_top1.shape == (0, resnet.planner(FEW).views.total)


def without_the_tail(batches: list[CropBatch]) -> list[CropBatch]:
    return batches[:-1]


def one_batch_twice(batches: list[CropBatch]) -> list[CropBatch]:
    return [*batches, batches[0]]


def one_image_for_another(batches: list[CropBatch]) -> list[CropBatch]:
    return [batches[0], batches[0], *batches[2:]]


def scored_and_failed(batches: list[CropBatch]) -> list[CropBatch]:
    return [replace(batches[0], failed=[Failure(3, "it came all the same")]), *batches[1:]]


def failed_twice(batches: list[CropBatch]) -> list[CropBatch]:
    return [*batches[:-1], CropBatch([], np.zeros(0, np.int64), [Failure(int(r), "no") for r in batches[-1].rows] * 2)]


def silently_short(batches: list[CropBatch]) -> list[CropBatch]:
    first = batches[0]
    kept = first.groups[0].image != first.rows[2]
    (group,) = first.groups
    group = replace(group, crops=group.crops[torch.from_numpy(kept)], image=group.image[kept], view=group.view[kept])
    return [replace(first, groups=[group], rows=np.delete(first.rows, 2)), *batches[1:]]


@pytest.mark.parametrize(
    "change",
    [without_the_tail, one_batch_twice, one_image_for_another, scored_and_failed, failed_twice, silently_short],
)
def test_lost_and_doubled_images_are_an_error(
    change: Callable[[list[CropBatch]], list[CropBatch]], resnet: Setup
) -> None:
    class Changed(Torchvision):
        def batches(self, rows: np.ndarray) -> Iterator[CropBatch]:
            yield from change(list(super().batches(rows)))

    source = Changed(resnet.data, resnet.planner(["CC"]), LoadConfig(batch_images=7, workers=0))
    with pytest.raises(RuntimeError, match=r"of 24 images, \d+ were scored and \d+ failed.* no result is written"):
        resnet.evaluate(source, ["CC"])


# ------------------------------------------------------------------------------------------------------ counts, files


def hand_made(**changes: Any) -> Predictions:
    """Five images, two policies, one level; image 3 has no label."""
    values: dict[str, Any] = {
        "rows": np.arange(5),
        "labels": np.array([0, 1, 2, -1, 4]),
        "policies": ["CC", "2RC"],
        "levels": ["softmax"],
        "top1": np.array([[[0, 9, 2, 0, 9], [0, 1, 9, 0, -1]]], np.int32),
        "in_top5": np.array([[[True, False, True, False, True], [True, True, False, False, False]]]),
        "nll": np.array([[[0.5, 3.0, 0.25, np.nan, 2.0], [0.25, 0.5, 4.0, np.nan, 1.25]]], np.float32),
        "view_top1": np.zeros((5, 3), np.int32),
        "failed": [Failure(7, "unreadable")],
    }
    return Predictions(**{**values, **changes})


def test_images_without_a_label_are_not_counted() -> None:
    assert counts(hand_made(), "softmax", "CC") == counted(4, 2, 3, 5.75 / 4, 0, 0)
    assert counts(hand_made(), "softmax", "2RC") == counted(4, 2, 2, 6.0 / 4, 1, 1)


def test_a_prediction_that_is_no_number_is_wrong_also_for_images_without_a_class() -> None:
    nothing = hand_made(top1=np.full((1, 2, 5), -1, np.int32), in_top5=np.zeros((1, 2, 5), bool))
    found = counts(nothing, "softmax", "2RC")
    assert (found["top1_correct"], found["top5_correct"], found["newly_correct"], found["newly_wrong"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mean_that_is_no_number_is_absent(value: float) -> None:
    wild = hand_made()
    wild.nll[0, 1, 1] = value
    assert counts(wild, "softmax", "2RC")["nll_mean"] is None


def test_predictions_are_saved_with_their_names_and_read_back(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/größe 2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]
    path = tmp_path / "predictions-torchvision-squeezenet1_0.IMAGENET1K_V1.npz"
    hand_made().save(path, names)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with np.load(path, allow_pickle=False) as file:
        saved = dict(file)
    assert saved.pop("names").tolist() == names
    assert saved.pop("failed_rows").tolist() == [7]
    assert saved.pop("failed_reasons").tolist() == [failure.reason for failure in hand_made().failed]
    assert saved.pop("failed_stages").tolist() == ["decode"]
    assert saved.pop("failed_facts").tolist() == [(0, 0, 0, 0)]  # not known of what is made by hand
    for name, values in saved.items():
        assert np.array_equal(values, np.array(getattr(hand_made(), name)), equal_nan=values.dtype.kind == "f"), name
    assert set(saved) == {"rows", "labels", "policies", "levels", "top1", "in_top5", "nll", "view_top1"}
    again = Predictions.load(path)
    for name in saved:
        assert np.array_equal(np.array(getattr(again, name)), saved[name], equal_nan=saved[name].dtype.kind == "f")
    assert again.failed == hand_made().failed


def test_images_that_could_not_be_decoded_keep_their_identity_when_pieces_are_joined(tmp_path: Path) -> None:
    """Else a file that was mended before a run went on would not be noticed."""
    facts = (1234, 5, 6, 789)
    one = replace(hand_made(), failed=[Failure(7, "cut short", facts=facts)])
    one.save(tmp_path / "piece.npz", [])
    joined = predictions_module.joined([Predictions.load(tmp_path / "piece.npz")])
    joined.save(tmp_path / "whole.npz", [])
    with np.load(tmp_path / "whole.npz", allow_pickle=False) as file:
        assert file["failed_facts"].tolist() == [facts]


def test_the_baseline_is_the_centre_crop() -> None:
    assert predictions_module.BASELINE == "CC"


def test_predictions_of_runs_that_identified_images_by_another_hash_are_read_without_it(tmp_path: Path) -> None:
    path = tmp_path / "old.npz"
    hand_made().save(path, [])
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    old = np.dtype([("bytes", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("content_hash", "<u8")])
    arrays |= {"facts": np.zeros(len(arrays["rows"]), old), "failed_facts": np.zeros(1, old)}
    np.savez(path, **arrays)
    again = Predictions.load(path)
    assert again.facts is None and again.failed == hand_made().failed
    assert predictions_module.read_facts(path) is None
