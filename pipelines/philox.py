"""NumPy's Philox4x64-10 for many keys in one computation: bit for bit what ``np.random.Philox(key=...)`` gives.

A bit generator object costs 13 to 20 us; a batch of images needs one for each image and stream. Source: Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, and numpy/random/src/philox/philox.h, whose counter is 1 for the
first block.
"""

from __future__ import annotations

import numpy as np

MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)  # added to the key after each round
ROUNDS = 10
BLOCK = 4  # numbers for each value of the counter
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def random_raw(keys: np.ndarray, count: int) -> np.ndarray:
    """uint64 [b, count]: row i is ``np.random.Philox(key=keys[i]).random_raw(count)``. ``keys``: uint64 [b, 2]."""
    blocks = -(-count // BLOCK)
    shape = (len(keys), blocks)
    zero = np.zeros(shape, dtype=np.uint64)
    words = [zero + np.arange(1, blocks + 1, dtype=np.uint64), zero, zero, zero]
    key = keys.astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        for number in range(ROUNDS):
            if number:
                key = key + WEYL
            high0, low0 = _multiply(MULTIPLIERS[0], words[0])
            high1, low1 = _multiply(MULTIPLIERS[1], words[2])
            words = [high1 ^ words[1] ^ key[:, :1], low1, high0 ^ words[3] ^ key[:, 1:], low0]
    return np.stack(words, axis=-1).reshape(len(keys), blocks * BLOCK)[:, :count]


def _multiply(factor: np.uint64, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and lower 64 bits of a 128-bit product, from four products of 32 bits."""
    a1, a0, b1, b0 = factor >> HALF, factor & LOW, x >> HALF, x & LOW
    low, cross = a0 * b0, a1 * b0
    middle = a0 * b1 + (cross & LOW) + (low >> HALF)
    return a1 * b1 + (cross >> HALF) + (middle >> HALF), factor * x
