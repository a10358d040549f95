"""Scoring against several labels an image (``pipelines.data.real_labels``)."""

from __future__ import annotations

from torch import Tensor


def nearest_label(log_p: Tensor, sets: Tensor) -> Tensor:
    """Of each image's labels the one that the prediction holds for the most probable: int64 [p, b], -1 without labels.

    ``log_p`` [p, b, n]; ``sets`` int64 [b, m], an image's labels ascending, then -1. Scored against this label
    (``averaging.score`` takes it), top-1 is right if the answer is among the labels, and the label is in the top five
    if any of them is. Of equally probable labels the lowest is taken, as ``averaging.score`` ranks.
    """
    sets = sets.to(log_p.device)
    index = sets.clamp(min=0).expand(log_p.shape[0], -1, -1)
    own = log_p.gather(-1, index).masked_fill(sets < 0, float("-inf"))
    nearest = index.gather(-1, own.argmax(-1, keepdim=True))[..., 0]  # argmax: the first of equals
    return nearest.masked_fill((sets < 0).all(-1), -1)
