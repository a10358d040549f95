"""Names and words from data as text that nothing executes: terminals and spreadsheets."""

from __future__ import annotations

import csv
import unicodedata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # Unicode categories: control, format, surrogates, private, separators
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so (OWASP, CSV injection)


def visible(text: str) -> str:
    """``text`` on one line for a terminal: every control character, escape sequence, text-direction mark and stray
    byte of a file name is spelled out, as ``\\x1b`` or ``\\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(c) if unicodedata.category(c) in HIDDEN else c for c in text)


def visible_lines(text: str) -> str:
    """``visible``, but for the line ends of a message of several lines."""
    return "\n".join(map(visible, text.split("\n")))


def _spelled(c: str) -> str:
    number = ord(c)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def csv_text(frame: pd.DataFrame, lineterminator: str = "\n") -> str:
    """A table as CSV, whose cells no spreadsheet runs as a formula: text that begins like one gets an apostrophe, by
    which spreadsheets mark text. What is missing is empty."""
    unsafe = [i for i in range(frame.shape[1]) if any(map(is_formula, frame.iloc[:, i]))]
    if unsafe:
        frame = frame.astype(dict.fromkeys(frame.columns[unsafe], object))
        for i in unsafe:
            frame.isetitem(i, [f"'{value}" if is_formula(value) else value for value in frame.iloc[:, i]])
    # Python's csv quotes the line end that it writes, not the others, which readers take for one all the same.
    any_breaks = any(map(_breaks_lines, frame.to_numpy().ravel()))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if any_breaks else csv.QUOTE_MINIMAL
    return frame.to_csv(index=False, lineterminator=lineterminator, quoting=quoting)


def _breaks_lines(value: object) -> bool:
    return isinstance(value, str) and ("\r" in value or "\n" in value)


def is_formula(value: object) -> bool:
    """Whether a spreadsheet would run a cell: text that begins like a formula and is not a number."""
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
