"""Which part of a resized image a dense view shows, and what it costs; integers, planned on the host.

A dense view is one run of the network's trunk over more than one crop of K x K pixels (``models.dense``):

    DC   the dense frame: centred, sides K + stride * floor((side - K) / stride); each K x K window of it whose corner
         lies on the grid of the stride is one crop
    MDC  the dense frame, mirrored
    WI   the whole resized image
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MAX_SIDE = 4096  # pixels; larger frames are split into tiles


def dense_frame(resized: np.ndarray, K: int, stride: int) -> np.ndarray:
    """top, left, height, width of the dense frame, int64 [b, 4], in images resized to these heights and widths [b, 2].

    ``stride``: pixels between neighbouring places of the network's last map. Raises ValueError for an image that is
    smaller than a crop.
    """
    resized = np.asarray(resized, dtype=np.int64)
    if (resized < K).any():
        height, width = resized[(resized < K).any(axis=1)][0]
        raise ValueError(f"a frame of {height} x {width} holds no crop of {K} x {K}")
    size = K + stride * ((resized - K) // stride)
    return np.concatenate([(resized - size) // 2, size], axis=1)


def whole_frame(resized: np.ndarray) -> np.ndarray:
    """top, left, height, width of the whole resized image, int64 [b, 4]."""
    resized = np.asarray(resized, dtype=np.int64)
    return np.concatenate([np.zeros_like(resized), resized], axis=1)


def tiles(side: int, K: int, stride: int, max_side: int = MAX_SIDE) -> Iterator[tuple[int, int]]:
    """(first window, number of windows) along a side of a dense frame; neighbouring tiles overlap by K - stride pixels,
    so that no window repeats."""
    windows = (side - K) // stride + 1
    most = (max_side - K) // stride + 1
    for first in range(0, windows, most):
        yield first, min(most, windows - first)


def network_pixels(frames: np.ndarray, K: int, stride: int, max_side: int = MAX_SIDE) -> np.ndarray:
    """int64 [b]: the pixels that the network sees of dense frames of these heights and widths [b, 2], all tiles."""
    windows = (np.asarray(frames, dtype=np.int64) - K) // stride + 1
    most = (max_side - K) // stride + 1
    count = -(-windows // most)
    return (count * (K - stride) + windows * stride).prod(axis=1)
