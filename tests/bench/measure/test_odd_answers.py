"""Networks that give NaN, or one class for every image: said in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.predictions import Predictions, nan_note, odd_answers


def answers(top1: list[int], labels: list[int]) -> Predictions:
    shape = (1, 1, len(top1))
    return Predictions(
        rows=np.arange(len(top1)), labels=np.array(labels), policies=["CC"], levels=["softmax"],
        top1=np.array(top1, np.int32).reshape(shape), in_top5=np.zeros(shape, bool), nll=np.zeros(shape, np.float32),
        view_top1=np.zeros((len(top1), 1), np.int32), failed=[],
    )  # fmt: skip


def test_nan_is_counted_and_said() -> None:
    some = answers([-1, -1, *range(10)], [0] * 12)
    assert nan_note(some, "softmax", "CC") == "the network gave NaN on 2 of 12 images, which count as wrong"
    assert odd_answers(some)[0].startswith("the network gave NaN on 2 of 12 images")
    assert odd_answers(answers([-1] * 12, [0] * 12)) == [odd_answers(answers([-1] * 12, [0] * 12))[0]]


def test_one_class_for_all_images_is_said() -> None:
    (line,) = odd_answers(answers([3] * 12, [0, 1] * 6))
    assert line.startswith("the network answers class 3 for all 12 images")


def test_sound_answers_are_not_spoken_of() -> None:
    assert odd_answers(answers(list(range(12)), [0, 1] * 6)) == []
    assert odd_answers(answers([3] * 12, [3] * 12)) == []  # the images are of one class
    assert odd_answers(answers([3] * 5, [0, 1, 2, 3, 4])) == []  # too few to say
    assert odd_answers(answers([], [])) == []
    assert odd_answers(replace(answers([3] * 12, [0, 1] * 6), policies=["2RC"])) == []
