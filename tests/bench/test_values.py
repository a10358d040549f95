"""Text from a command line, read as numbers: lists and ranges against lists written by hand."""

from __future__ import annotations

import pytest

from bench import values


@pytest.mark.parametrize(
    ("text", "numbers"), [("20,1, 5", [1, 5, 20]), ("3", [3]), ("2,2,2", [2]), (" 7 ", [7]), ("+4", [4])]
)
def test_lists_of_numbers_are_sorted_each_once(text: str, numbers: list[int]) -> None:
    assert values.int_list(text) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("90..93", [90, 91, 92, 93]),
        ("128:224:32", [128, 160, 192, 224]),
        ("128:225:32", [128, 160, 192, 224]),
        ("5..5", [5]),
        ("96, 90..92,91", [90, 91, 92, 96]),
    ],
)
def test_ranges_hold_both_ends(text: str, numbers: list[int]) -> None:
    assert values.int_list(text) == numbers


@pytest.mark.parametrize(
    "text",
    ["", "1,,2", "a", "1.5", "1;2", "0", "-1,3", "1e3", "5..3", "1..", "1..2..3", "1:5", "1:5:0", "5:1:2", "0..3"],
)
def test_what_is_no_list_of_numbers_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text)):
        values.int_list(text)
