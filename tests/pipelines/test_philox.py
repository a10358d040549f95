"""Many keys at once against NumPy's own generator, one object a key."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.crops import VECTOR_IMAGES, uniforms, uniforms_of
from pipelines.philox import random_raw

ONES = 2**64 - 1


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 40, 401])
def test_each_row_is_numpys_generator(count: int) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, ONES, (50, 2), dtype=np.uint64, endpoint=True)
    keys[:4] = [[0, 0], [ONES, ONES], [0, ONES], [ONES, 0]]
    expected = [np.random.Philox(key=key).random_raw(count) for key in keys]
    assert np.array_equal(random_raw(keys, count), expected)


@pytest.mark.parametrize("images", [0, 1, VECTOR_IMAGES - 1, VECTOR_IMAGES, 300])
@pytest.mark.parametrize("stream", ["RC", "MRC"])
def test_the_draws_of_a_batch_are_those_of_each_name(images: int, stream: str) -> None:
    names = [f"Ordner {i % 7}/größe {i}\udcff.jpg" for i in range(images)]
    for seed, n in ((0, 1), (12345, 20)):
        expected = np.array([uniforms(seed, name, stream, n) for name in names]).reshape(images, n, 2)
        assert np.array_equal(uniforms_of(seed, names, stream, n), expected)
