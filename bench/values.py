"""Text from a command line -> checked values. Each parser raises ValueError with what was expected."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any


def int_list(text: str) -> list[int]:
    """``1,2,5``, ``90..110`` (each of them), ``128:448:32`` (in steps) -> sorted, each once; both ends included."""
    try:
        numbers = sorted({number for part in text.split(",") for number in _range(part)})
    except ValueError:
        raise ValueError(
            f"{text!r} is not a list of whole numbers such as 1,2,5,10,20 or 90..110 or 128:448:32 (from:to:step)"
        ) from None
    if numbers[0] < 1:
        raise ValueError(f"{text!r}: a number of crops or pixels is at least 1")
    return numbers


def _range(part: str) -> range:
    """``7``, ``90..110``, ``128:448:32``. Raises ValueError for anything else, and for an empty range."""
    if ":" in part:
        first, last, step = map(int, part.split(":"))
    else:
        ends = [int(end) for end in part.split("..")]
        (first, last), step = (ends * 2 if len(ends) == 1 else ends), 1
    if last < first or step < 1:
        raise ValueError(part)
    return range(first, last + 1, step)


def ratios(text: str) -> list[float]:
    """``0.8,0.875`` -> [0.8, 0.875]: crop ratios, above 0 and at most 1."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of ratios such as 0.8,0.875") from None
    if not all(0 < ratio <= 1 for ratio in found):
        raise ValueError(f"{text!r}: a crop ratio is above 0 and at most 1")
    return found


def number_between(low: float, high: float, what: str) -> Callable[[str], float]:
    """A parser for numbers from ``low`` to ``high``; ``what`` describes them in the error."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # not true of nan either
            raise ValueError(f"{text!r} is not {what}")
        return value

    return parse


seconds = number_between(1e-3, 3600.0, "a number of seconds, at most an hour")
minutes = number_between(0.01, 1e5, "a number of minutes")
long_seconds = number_between(1e-3, 1e7, "a number of seconds")
ratio = number_between(1e-3, 1.0, "a ratio above 0 and at most 1")
above_zero = number_between(1e-6, 1e9, "a number above 0")
share = number_between(0.0, 1.0, "a share from 0 to 1")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a positive integer")
    return int(text)


def positive_or_auto(text: str) -> int | str:
    """A whole number of at least 1, or the word ``auto``."""
    return text if text == "auto" else positive(text)


def names(text: str) -> list[str]:
    """``a, b`` -> ["a", "b"], each once."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise ValueError(f"{text!r} names nothing")
    return found


def key_value(text: str) -> tuple[str, Any]:
    """``key=value``; the value is read as a Python literal where it is one."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def path(text: str) -> Path:
    return Path(text)
