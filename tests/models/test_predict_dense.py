"""Frames through predict, mixed with crops and shapes, against each frame evaluated alone by models.dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import predict as predict_module
from models.averaging import log_probabilities
from models.dense import Dense
from models.loading import load
from models.predict import Network, OutOfMemory, Predicted, predict
from pipelines.batch import CropBatch, Group
from pipelines.crops import parse_policy, union

K, STRIDE = 48, 32
POLICIES = [parse_policy(text) for text in ("CC", "DC", "CC+3DC", "MDC+2DC", "WI")]
VIEWS = union(POLICIES)
SHAPES = [(48, 48), (48, 80), (48, 80), (80, 48), (48, 112), (48, 80), (48, 48)]
IMAGES = len(SHAPES)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


CROPS = noise(IMAGES, K, K, 3, seed=0)
FRAMES = {
    (image, view): noise(*shape, 3, seed=10 * image + view)
    for image, shape in enumerate(SHAPES)
    for view in VIEWS.dense.values()
}


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet", "test_nfnet", "torchvision:squeezenet1_0"])
def network(request: pytest.FixtureRequest) -> Network:
    classifier = load(request.param, weights="random", num_classes=11, img_size=K, crop_pct=0.875, seed=3)
    return Network(classifier, batch_size=16, dense=Dense(classifier))


def batch_of(rows: list[int]) -> CropBatch:
    """As a backend makes it: one group of crops, and one group of frames for each shape."""
    image = np.array(rows, dtype=np.int64)
    groups = [Group(CROPS[image], image, np.zeros(len(rows), np.int32))]
    by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for key in sorted(key for key in FRAMES if key[0] in rows):
        by_shape.setdefault(tuple(FRAMES[key].shape), []).append(key)
    frames = [
        Group(
            torch.stack([FRAMES[key] for key in keys]),
            np.array([row for row, _ in keys]),
            np.array([view for _, view in keys], dtype=np.int32),
        )
        for keys in by_shape.values()
    ]
    return CropBatch(groups, image, frames=frames)


def by_image(found: list[Predicted]) -> dict[int, list[Tensor]]:
    """For each image: log-probabilities [p, n] at each level."""
    answers: dict[int, list[Tensor]] = {}
    for one in found:
        assert one.outputs is not None
        for level in ("softmax", "logit"):
            log_p = log_probabilities(level, one.outputs, VIEWS, POLICIES, lambda features: features)
            assert log_p is not None
            for i, row in enumerate(one.rows.tolist()):
                answers.setdefault(row, []).append(log_p[:, i])
    return answers


def test_frames_equal_each_frame_alone(network: Network) -> None:
    found = list(predict([batch_of([0, 1, 2]), batch_of([3, 4]), batch_of([5, 6])], network, VIEWS))
    assert [one.rows.tolist() for one in found] == [[0, 1, 2], [3, 4], [5, 6]]
    for one in found:
        assert one.outputs is not None
        for i, row in enumerate(one.rows.tolist()):
            for stream, view in VIEWS.dense.items():
                assert network.dense is not None
                x = network.classifier.prepare(FRAMES[row, view][None])
                alone = network.dense.whole(x) if stream == "WI" else network.dense.windows(x)
                largest = alone.logits.abs().max().item()
                torch.testing.assert_close(
                    one.outputs.logits[i, view].double(), alone.logits[0], rtol=0, atol=1e-5 * largest
                )
                torch.testing.assert_close(one.outputs.window_scores[view][i], alone.softmax[0], rtol=0, atol=1e-5)
                if one.outputs.features is not None:
                    assert alone.features is not None
                    torch.testing.assert_close(
                        one.outputs.features[i, view].double(),
                        alone.features[0],
                        rtol=0,
                        atol=1e-5 * alone.features.abs().max().item(),
                    )


def test_a_prediction_does_not_depend_on_what_shares_its_batch(network: Network) -> None:
    """Bit for bit: other batches of images, other companions, another order."""
    together = by_image(list(predict([batch_of(list(range(IMAGES)))], network, VIEWS)))
    apart = by_image(list(predict([batch_of([row]) for row in reversed(range(IMAGES))], network, VIEWS)))
    for row in range(IMAGES):
        for one, other in zip(together[row], apart[row], strict=True):
            assert torch.equal(one, other)


def test_weights_and_a_frame_of_one_crop(network: Network) -> None:
    """CC+3DC weighs the dense mean as three views; the DC of a K x K frame that is the crop equals CC."""
    batch = batch_of([0])
    plain = [torch.from_numpy(group.view == VIEWS.dense["DC"])[:, None, None, None] for group in batch.frames]
    frames = [
        Group(torch.where(is_plain, CROPS[:1], group.crops), group.image, group.view)
        for is_plain, group in zip(plain, batch.frames, strict=True)
    ]
    (found,) = predict([CropBatch(batch.groups, batch.rows, frames=frames)], network, VIEWS)
    assert found.outputs is not None
    log_p = log_probabilities("softmax", found.outputs, VIEWS, POLICIES, network.head)
    assert log_p is not None
    torch.testing.assert_close(log_p[1, 0], log_p[0, 0], rtol=0, atol=1e-5)
    other = VIEWS.dense["MDC"]
    scores = found.outputs.window_scores
    expected = (scores[other][0] + 2 * scores[VIEWS.dense["DC"]][0]) / 3
    torch.testing.assert_close(log_p[3, 0].exp(), expected, rtol=0, atol=1e-12)


def test_a_frame_waits_for_four_batches_of_images_at_most(network: Network) -> None:
    waited, dense_alone = 0, union([parse_policy("DC")])

    def batches():
        nonlocal waited
        for i in range(20):
            waited = i
            row = np.array([i % IMAGES])
            group = Group(FRAMES[i % IMAGES, VIEWS.dense["DC"]][None], row, np.zeros(1, np.int32))
            yield CropBatch([], row, frames=[group])

    behind = [waited - i for i, _ in enumerate(predict(batches(), network, dense_alone))]
    assert max(behind) == predict_module.FRAME_AGE - 1


def test_running_out_of_memory_falls_back_to_single_frames(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.dense is not None
    whole, windows = by_image(list(predict([batch_of([1, 2])], network, VIEWS))), network.dense.compilable_windows

    def no_two(x: Tensor):
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return windows(x)

    monkeypatch.setattr(network.dense, "compilable_windows", no_two)
    try:
        again = by_image(list(predict([batch_of([1, 2])], network, VIEWS)))
        assert network.one_frame_at_once
        for row in (1, 2):
            torch.testing.assert_close(torch.stack(again[row]), torch.stack(whole[row]), rtol=0, atol=1e-4)
        monkeypatch.setattr(network.dense, "compilable_windows", lambda x: no_two(torch.cat([x, x])))
        with pytest.raises(OutOfMemory, match="frame of 48 x 80"):
            list(predict([batch_of([1])], network, VIEWS))
    finally:
        network.one_frame_at_once = False


def test_without_a_dense_evaluator_frames_are_refused(network: Network) -> None:
    plain = Network(network.classifier, batch_size=16)
    with pytest.raises(ValueError, match="not prepared for dense views"):
        list(predict([batch_of([0])], plain, VIEWS))


def test_only_the_chosen_shapes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only counts: the chosen shape goes through it, once before any image; others do not."""
    compiled: list[tuple[int, ...]] = []

    def counting(function: Any, **_: Any) -> Any:
        def run(frames: Tensor) -> Any:
            compiled.append(tuple(frames.shape[1:3]))
            return function(frames)

        return run

    monkeypatch.setattr(torch, "compile", counting)
    classifier = load("test_resnet", weights="random", num_classes=11, img_size=K, crop_pct=0.875, seed=3)
    dense = Dense(classifier)
    dense.compiled_frames = frozenset({(K, K + STRIDE)})
    network = Network(classifier, batch_size=16, dense=dense, compiled=True)
    network.get_ready()
    network.get_ready()
    assert compiled == [(K, K), (K, K + STRIDE)], "a batch of crops, and one of frames"
    compiled.clear()
    plain = Network(classifier, batch_size=16, dense=dense)
    for shape in ((K, K), (K, K + STRIDE), (K + STRIDE, K)):
        frames = noise(2, *shape, 3, seed=5)
        for one, other in zip(network.forward_frames(frames), plain.forward_frames(frames), strict=True):
            assert one is not None and other is not None and torch.equal(one, other)
    assert compiled == [(K, K + STRIDE)]


@pytest.mark.slow
def test_compiled_frames_give_the_answers_of_plain_ones() -> None:
    classifier = load("test_resnet", weights="random", num_classes=11, img_size=K, crop_pct=0.875, seed=3)
    dense = Dense(classifier)
    dense.compiled_frames = frozenset({(K, K + STRIDE)})
    network, plain = (Network(classifier, batch_size=16, dense=dense, compiled=c) for c in (True, False))
    frames = noise(2, K, K + STRIDE, 3, seed=5)
    for one, other in zip(network.forward_frames(frames), plain.forward_frames(frames), strict=True):
        assert one is not None and other is not None
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
