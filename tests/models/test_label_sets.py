"""Several labels an image, against timm's evaluator of ImageNet-ReaL and against a loop over sorted classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.real_labels import RealLabelsImagenet

from models.averaging import score
from models.label_sets import nearest_label

IMAGES, CLASSES = 200, 12


def made(seed: int, ties: bool) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    """log_p [2, b, n], each image's labels (none for some), and these as sets [b, m]."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, IMAGES, CLASSES))
    log_p = torch.from_numpy(np.round(scores) if ties else scores).log_softmax(-1)
    labels = [sorted(rng.choice(CLASSES, rng.integers(0, 4), replace=False).tolist()) for _ in range(IMAGES)]
    sets = torch.tensor([own + [-1] * (3 - len(own)) for own in labels])
    return log_p, labels, sets


def test_top1_and_top5_are_timms(tmp_path: Path) -> None:
    log_p, labels, sets = made(0, ties=False)
    path = tmp_path / "real.json"
    path.write_text(json.dumps(labels))
    nearest = nearest_label(log_p, sets)
    found = score(log_p, nearest)
    known = torch.tensor([bool(own) for own in labels])
    assert 0.1 < 1 - known.float().mean() < 0.5
    for p in range(2):
        reference = RealLabelsImagenet([f"x/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(IMAGES)], str(path))
        reference.add_result(log_p[p])
        assert ((found.top1[p] == nearest[p])[known]).tolist() == reference.is_correct[1]
        assert found.in_top5[p][known].tolist() == reference.is_correct[5]
        assert 10 < 100 * np.mean(reference.is_correct[1]) < 60


@pytest.mark.parametrize("seed", range(3))
def test_of_equals_the_lowest_class_counts(seed: int) -> None:
    log_p, labels, sets = made(seed, ties=True)
    nearest = nearest_label(log_p, sets)
    found = score(log_p, nearest)
    for p, image in np.ndindex(2, IMAGES):
        order = sorted(range(CLASSES), key=lambda n: (-float(log_p[p, image, n]), n))
        expected = next((n for n in order if n in labels[image]), -1)
        assert nearest[p, image] == expected
        assert found.in_top5[p, image] == (expected in order[:5])
        assert (found.top1[p, image] == nearest[p, image]) == (order[0] in labels[image])


def test_an_image_without_labels_is_never_right_and_a_nan_neither() -> None:
    log_p = torch.tensor([[[0.0, -1.0], [float("nan"), 0.0], [-float("inf"), 0.0]]]).double()
    nearest = nearest_label(log_p, torch.tensor([[-1], [1], [0]]))
    assert nearest.tolist() == [[-1, 1, 0]]
    found = score(log_p, nearest)
    assert found.in_top5.tolist() == [[False, False, True]]
    assert (found.top1 == nearest).tolist() == [[False, False, False]]
