"""Names and tables as text: what a terminal, a figure and Markdown may not interpret is spelled out."""

from __future__ import annotations

import pytest

from analysis.text import LONGEST_NAME, aligned, markdown_table, name_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 日本.jpg", "größe 日本.jpg"),
        ("US$ or A$ a_b^c", "US$ or A$ a_b^c"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\tand\r", "two\\x0alines\\x09and\\x0d"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_long_names_are_shortened_in_the_middle() -> None:
    name = "".join(chr(ord("a") + i % 26) for i in range(100))
    short = name_text(name)
    head, tail = short.split("…")
    assert len(short) == LONGEST_NAME and name.startswith(head) and name.endswith(tail)
    assert name_text("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    assert name_text("abcdefgh", 5) == "ab…gh"


def test_columns_are_as_wide_as_their_widest_text() -> None:
    assert aligned([["a", "bcd"], ["12", "3"]]) == [" a  bcd", "12    3"]
    assert aligned([["a"], ["\x1b"]]) == ["   a", "\\x1b"]


def test_markdown_shows_what_it_would_interpret() -> None:
    assert markdown_table(["a|b"], [["<i>"], ["x\ny"]]) == ["| a\\|b |", "| --- |", "| &lt;i> |", "| x y |"]
