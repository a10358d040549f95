"""Policies with several crop sizes: grammar, plans, and both backends against PIL, torchvision and NumPy slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pipelines
from pipelines.backends import reference
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, PolicyError, parse_policy, uniforms, union
from pipelines.data.decode import decode
from pipelines.inputspec import InputSpec

SPEC = InputSpec(S=55, K=48)
SIZES = np.array([[100, 150], [150, 100], [80, 80]])
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cc@192 + CC@256", "CC@192+CC@256"),
        ("5rc@256+CC+3RC", "CC+3RC+5RC@256"),
        ("1MRC@64+5FC@32", "5FC@32+1MRC@64"),
        ("20arc@64", "20ARC@64"),
    ],
)
def test_names_are_canonical(text: str, name: str) -> None:
    assert parse_policy(text).name == name
    assert parse_policy(name) == parse_policy(text)


@pytest.mark.parametrize("text", ["CC@", "CC@0", "CC@-5", "RC@64@32", "2CC@64", "RC@64+ARC@64", "CC@64+CC@64", "CC@x"])
def test_what_means_nothing_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(PolicyError, match="@K after a term"):
        parse_policy(text)


def test_cost_is_in_pixels() -> None:
    policy = parse_policy("CC+2RC@96")
    assert policy.sizes == [96] and policy.n_views == 3
    planner = Planner(SPEC, union([policy]))
    assert (planner.forwards(SIZES).sum(axis=1) == (48**2 + 2 * 96**2) / SPEC.K**2).all() and SPEC.K == 48
    assert union([policy]).cost(48) == 9
    assert union([parse_policy("20RC"), parse_policy("CC")]).cost(48) == 21


def test_views_of_the_own_size_keep_their_columns() -> None:
    """Whatever else is in the run: predictions of old policies do not move."""
    few = union([parse_policy("CC+5FC+3RC")])
    many = union([parse_policy("CC+5FC+3RC"), parse_policy("5FC@64+CC@64+2RC@32")])
    assert all(many.columns[stream] == columns for stream, columns in few.columns.items())
    assert many.sizes == [None, 32, 64]
    assert many.columns["FC@64"][4] == many.columns["CC@64"][0] != many.columns["CC"][0]


def test_each_size_has_its_own_frame_and_the_same_u() -> None:
    planner = Planner(SPEC, union([parse_policy("2RC+2MRC@96+2RC@96")]), seed=3)
    own, other = planner.plan(np.arange(3), NAMES, SIZES).groups
    assert (own.K, other.K) == (48, 96)
    S = 96 * 55 // 48
    for i, (h, w) in enumerate(SIZES.tolist()):
        assert other.sizes[i].tolist() == [S * h // min(h, w), S * w // min(h, w)]
        room = other.sizes[i] - 96
        for name, columns, mirror in (("RC", planner.views.columns["RC@96"], 0), ("MRC", (4, 5), 1)):
            expected = np.floor(uniforms(3, NAMES[i], name, 2) * (room + 1)).astype(int)
            mine = other.windows[(other.image == i) & np.isin(other.view, columns)]
            assert mine.tolist() == [[*yx, mirror] for yx in expected.tolist()]
    alone = Planner(SPEC, union([parse_policy("2RC")]), seed=3).plan(np.arange(3), NAMES, SIZES).groups[0]
    assert np.array_equal(own.windows, alone.windows)


def test_a_given_spec_takes_the_place_of_the_ratio() -> None:
    planner = Planner(SPEC, union([parse_policy("CC+CC@96")]), sized=(InputSpec(S=111, K=96),))
    assert planner.plan(np.arange(3), NAMES, SIZES).groups[1].sizes.min(axis=1).tolist() == [111] * 3


def test_adaptive_terms_follow_the_shape_at_any_size() -> None:
    planner = Planner(SPEC, union([parse_policy("10ARC+10ARC@96")]))
    own, other = planner.plan(np.arange(3), NAMES, SIZES).groups
    assert np.bincount(own.image).tolist() == np.bincount(other.image).tolist()
    assert np.bincount(own.image)[2] < np.bincount(own.image)[0]  # the square image needs fewer


@pytest.mark.parametrize("name", ["dali-cpu", "torchvision"])
def test_crops_of_every_size_are_slices_of_the_references_frames(name: str, random_images: Any) -> None:
    if reason := pipelines.unusable(name):
        pytest.skip(reason)
    source = random_images
    planner = Planner(SPEC, union([parse_policy("CC+2RC+CC@64+2MRC@96")]))
    backend = pipelines.backend(name)(source, planner, LoadConfig(batch_images=3, workers=1))
    try:
        assert reference.check(backend, source, planner, source.rows) <= pipelines.BACKENDS[name].tolerance_levels
        seen = {}
        for batch in backend.batches(source.rows):
            assert [group.crops.shape[1] for group in batch.groups] == [48, 64, 96]
            for group in batch.groups:
                for crop, row, view in zip(group.crops.numpy(), group.image, group.view, strict=True):
                    seen[int(row), int(view)] = crop
    finally:
        backend.close()
    assert len(seen) == len(source.rows) * planner.views.total
    for row in source.rows[:3].tolist():  # an independent path: PIL, torchvision's resize in float, a centre slice
        pixels = decode(source.paths(np.array([row]))[0])
        h, w = pixels.shape[:2]
        S = 64 * 55 // 48
        frame = reference.resize_frame(pixels, (S * h // min(h, w), S * w // min(h, w)), "bilinear")
        y, x = (round((side - 64) / 2) for side in frame.shape[:2])
        column = planner.views.columns["CC@64"][0]
        difference = np.abs(seen[row, column].astype(int) - frame[y : y + 64, x : x + 64]).mean()
        assert difference <= pipelines.BACKENDS[name].tolerance_levels


def test_wrong_pixels_of_the_second_size_are_noticed(random_images: Any) -> None:
    """Rule 7 holds for every size: a backend that resizes only the first one rightly is not timed."""
    if reason := pipelines.unusable("torchvision"):
        pytest.skip(reason)
    planner = Planner(SPEC, union([parse_policy("CC+CC@64")]))
    backend: Any = pipelines.backend("torchvision")(random_images, planner, LoadConfig(batch_images=4, workers=0))
    right: Callable[..., Any] = backend.frames
    backend.frames = lambda rows, group=0: (
        (row, frame if group == 0 else frame[:, ::-1]) for row, frame in right(rows, group)
    )
    with pytest.raises(reference.WrongPixels):
        reference.check(backend, random_images, planner, random_images.rows)
