"""Pieces of an interrupted accuracy pass that cannot be read, or are not of these images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bench.measure.partial_results import PartialResults
from bench.predictions import Predictions


def answers(rows: np.ndarray) -> Predictions:
    shape = (1, 1, len(rows))
    return Predictions(
        rows=rows, labels=rows, policies=["CC"], levels=["softmax"], top1=np.zeros(shape, np.int32),
        in_top5=np.zeros(shape, bool), nll=np.zeros(shape, np.float32), view_top1=np.zeros((len(rows), 1), np.int32),
        failed=[],
    )  # fmt: skip


def test_damaged_pieces_are_set_aside_and_scored_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = PartialResults(tmp_path, np.arange(40))
    for number, rows in enumerate(partial.pieces):
        answers(rows).save(partial.path(number), names=[], compress=False)
    path = partial.path(1)
    path.write_bytes(path.read_bytes()[:200])
    answers(partial.pieces[0]).save(partial.path(3), names=[], compress=False)  # whole, but of other images
    with caplog.at_level(logging.WARNING):
        partial.set_aside_damaged()
    assert partial.missing() == [1, 3]
    assert {one.name for one in tmp_path.glob("*.damaged")} == {"000001.npz.damaged", "000003.npz.damaged"}
    assert "000001.npz is damaged" in caplog.text
