"""InputSpec: what it refuses and with which words; its slack against the last size row of MID's tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pipelines.inputspec import CROP_MODES, INTERPOLATIONS, InputSpec


@pytest.mark.parametrize(
    ("S", "K", "percent"),
    # MID Tables II to IV: B3, B6 and F3 are those whose S is not floor(K / crop_pct).
    [(256, 224, 12.5), (332, 300, 9.6), (562, 528, 6.0), (443, 416, 6.1), (224, 224, 0.0)],
)
def test_slack_is_that_of_the_papers_tables(S: int, K: int, percent: float) -> None:
    assert round(100 * InputSpec(S, K).slack, 1) == percent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"S": 223, "K": 224}, ["K=224", "S=223", "`crop_pct`"]),
        ({"S": 256, "K": 0}, ["K=0"]),
        ({"S": -1, "K": -1}, ["K=-1"]),
        ({"S": 256.0, "K": 224}, ["256.0", "whole numbers"]),
        ({"S": 256, "K": 223.9}, ["223.9", "whole numbers"]),
        ({"S": "256", "K": 224}, ["'256'", "whole numbers"]),
        ({"S": 256, "K": 224, "interpolation": "lanczos"}, ["'lanczos'", *INTERPOLATIONS]),
        ({"S": 256, "K": 224, "crop_mode": "border"}, ["'border'", *CROP_MODES]),
    ],
)
def test_what_cannot_be_fed_is_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        InputSpec(**arguments)
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_every_listed_word_is_taken(interpolation: str, crop_mode: str) -> None:
    spec = InputSpec(256, 256, interpolation, crop_mode)
    assert (spec.interpolation, spec.crop_mode) == (interpolation, crop_mode)


def test_a_spec_is_a_value() -> None:
    """Pipelines are built once for each spec: it must hash, compare, and not change under them."""
    assert {InputSpec(256, 224): 1}[InputSpec(256, 224)] == 1
    assert InputSpec(256, 224) != InputSpec(256, 224, "bicubic")
    with pytest.raises(dataclasses.FrozenInstanceError):
        InputSpec(256, 224).S = 1  # type: ignore[misc]


def test_the_default_normalisation_is_imagenets() -> None:
    spec = InputSpec(256, 224)
    np.testing.assert_allclose(np.array(spec.mean) * 255, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(np.array(spec.std) * 255, [58.395, 57.12, 57.375])
