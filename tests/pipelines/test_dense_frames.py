"""Dense frames: their geometry against plain Python, and what each backend delivers against NumPy slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.backends import backend, reference
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, PolicyError, parse_policy, union
from pipelines.dense_frames import dense_frame, network_pixels, tiles
from pipelines.inputspec import InputSpec

SPEC = InputSpec(S=91, K=80)
BACKENDS = ("dali-cpu", "torchvision")


def planner(text: str, stride: int | None = 16) -> Planner:
    return Planner(SPEC, union([parse_policy(one) for one in text.split(",")]), seed=3, stride=stride)


def test_the_dense_frame_is_centred_and_on_the_grid() -> None:
    for height, width in [(80, 80), (91, 200), (95, 96), (300, 91), (111, 112)]:
        top, left, h, w = dense_frame(np.array([[height, width]]), 80, 16)[0].tolist()
        assert (h, w) == (max(s for s in range(80, height + 1, 16)), max(s for s in range(80, width + 1, 16)))
        assert top == (height - h) // 2 and left == (width - w) // 2


def test_an_image_smaller_than_a_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="70 x 90 holds no crop of 80 x 80"):
        dense_frame(np.array([[90, 90], [70, 90]]), 80, 16)


@pytest.mark.parametrize("side", [80, 96, 160, 400, 416])
def test_tiles_hold_each_window_once_and_their_pixels_are_counted(side: int) -> None:
    found = list(tiles(side, 80, 16, max_side=160))
    windows = [first + i for first, count in found for i in range(count)]
    assert windows == list(range((side - 80) // 16 + 1))
    sides = [80 + 16 * (count - 1) for _, count in found]
    assert max(sides) <= 160
    assert network_pixels(np.array([[side, 80]]), 80, 16, max_side=160)[0] == sum(sides) * 80


def test_cost_counts_the_frames_pixels() -> None:
    """A 2:1 image: S 91, long side 182, dense frame 80 x 176."""
    forwards = planner("CC+3DC+2RC+WI").forwards(np.array([[500, 1000]]))
    assert forwards.tolist() == [[1, 1, 1, 80 * 176 / 6400, 91 * 182 / 6400]]


def test_a_dense_number_is_a_weight() -> None:
    policy = parse_policy("3dc+CC")
    assert (policy.name, policy.n_views, policy.weight) == ("CC+3DC", 2, 4)
    assert parse_policy("20DC") == parse_policy("DC") and parse_policy("20DC").name == "DC"
    assert union([policy, parse_policy("5DC+2RC")]).total == 4


def test_a_suffix_keeps_the_written_order() -> None:
    policy = parse_policy(" 3DC + cc + 16RC ~ 1.0 % ")
    assert policy.name == "3DC+CC+16RC~1%" and policy.whole.name == "CC+16RC+3DC"
    assert parse_policy(policy.name) == policy
    for wrong in ("20RC~", "20RC~0%", "20RC~100%", "20RC~maybe", "CC+5FC~exact", "DC@96", "20RC~1%~exact"):
        with pytest.raises(PolicyError):
            parse_policy(wrong)


def test_dense_crops_without_a_stride_are_refused() -> None:
    with pytest.raises(ValueError, match="`stride`"):
        planner("DC", stride=None).forwards(np.array([[100, 100]]))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("policy", ["DC", "CC+3DC+2MRC", "MDC+WI", "CC@48+DC+MDC", "4RC+WI"])
def test_dense_views_are_slices_of_the_frame(random_images: Any, name: str, policy: str) -> None:
    one = planner(policy)
    rows = np.arange(len(random_images))
    source = backend(name)(random_images, one, LoadConfig(batch_images=7, workers=1))
    try:
        reference.check(source, random_images, one, rows)
        frames = dict(source.frames(rows))
        seen = {
            (int(row), int(view)): pixels.numpy()
            for batch in source.batches(rows)
            for group in batch.frames
            for pixels, row, view in zip(group.crops, group.image, group.view, strict=True)
        }
    finally:
        source.close()
    assert len(seen) == len(rows) * len(one.views.dense)
    for (row, view), pixels in seen.items():
        (stream,) = (stream for stream, column in one.views.dense.items() if column == view)
        height, width = frames[row].shape[:2]
        h, w = (height, width) if stream == "WI" else (80 + (s - 80) // 16 * 16 for s in (height, width))
        expected = frames[row][(height - h) // 2 :, (width - w) // 2 :][:h, :w]
        assert np.array_equal(pixels, expected[:, ::-1] if stream == "MDC" else expected)
