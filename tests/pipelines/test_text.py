"""Names from data never reach a terminal or a spreadsheet as code."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from pipelines.text import csv_text, visible, visible_lines


def test_whatever_a_terminal_obeys_is_spelled_out() -> None:
    assert visible("a\x1b[31mb\u202ec\r\n\udcffd") == "a\\x1b[31mb\\u202ec\\x0d\\x0a\\udcffd"
    assert visible("größer — 日本 Ångström 🐈") == "größer — 日本 Ångström 🐈"
    assert visible_lines("one\x07\ntwo\x1b]0;title\x07") == "one\\x07\ntwo\\x1b]0;title\\x07"


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", "-", "--x.jpg"])
def test_a_cell_that_begins_like_a_formula_is_marked_as_text(name: str) -> None:
    (_, row) = csv.reader(io.StringIO(csv_text(pd.DataFrame({"name": [name], "n": [1]})), newline=""))
    assert row == [f"'{name}", "1"]


def test_everything_else_is_as_pandas_writes_it() -> None:
    frame = pd.DataFrame(
        {"text": ["a=b", "-1.5", None], "gaps": pd.Series([1, None, -3], dtype=object), "x": [0.5] * 3}
    )
    assert csv_text(frame) == frame.to_csv(index=False, lineterminator="\n")
    frame["twice"] = ["=a", None, "b"]
    assert csv_text(frame, "\r\n").split("\r\n")[1:3] == ["a=b,1,0.5,'=a", "-1.5,,0.5,"]
    assert frame["twice"].tolist()[0] == "=a"  # the caller's table stays
