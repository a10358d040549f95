"""Text from a command line -> checked values. Each parser raises ValueError with what was expected."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipelines.text import visible_lines


class Parser(argparse.ArgumentParser):
    """Its errors show what was typed so that no terminal obeys it."""

    def error(self, message: str) -> NoReturn:
        super().error(visible_lines(message))


def for_argparse(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The parser, whose ValueError argparse then shows in its own words."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


MOST_PIXELS = 16_384  # of a crop's side
MOST_CROPS = 100_000  # of an image
MOST = 1_000_000_000  # of anything that is counted


def int_list(text: str, most: int = MOST_CROPS) -> list[int]:
    """``1,2,5``, ``90..110`` (each of them), ``128:448:32`` (in steps) -> sorted, each once; both ends included."""
    try:
        ranges = [_range(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{text!r} is not a list of whole numbers such as 1,2,5,10,20 or 90..110 or 128:448:32 (from:to:step)"
        ) from None
    if any(one[0] < 1 for one in ranges):
        raise ValueError(f"{text!r}: a number of crops or pixels is at least 1")
    if any(one[-1] > most for one in ranges):
        raise ValueError(f"{text!r}: the numbers are at most {most:,}")
    return sorted({number for one in ranges for number in one})


def sizes(text: str) -> list[int]:
    """``int_list`` for sides of crops, pixels."""
    return int_list(text, MOST_PIXELS)


def _range(part: str) -> range:
    """``7``, ``90..110``, ``128:448:32``. Raises ValueError for anything else, and for an empty range."""
    if ":" in part:
        first, last, step = map(_digits, part.split(":"))
    else:
        ends = [_digits(end) for end in part.split("..")]
        (first, last), step = (ends * 2 if len(ends) == 1 else ends), 1
    if last < first or step < 1:
        raise ValueError(part)
    return range(first, last + 1, step)


def _digits(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d{1,30}\s*", text, re.ASCII):
        raise ValueError(text)
    return int(text)


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
            value = float(text) if "_" not in text and text.isascii() else float("nan")
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # not true of nan either
            raise ValueError(f"{text[:40]!r} is not {what}")
        return value

    return parse


def whole(low: int, high: int, what: str = "") -> Callable[[str], int]:
    """A parser for whole numbers from ``low`` to ``high``; ``what`` describes them in the error."""
    wanted = what or f"a whole number from {low:,} to {high:,}"

    def parse(text: str) -> int:
        digits = text.strip()
        if not re.fullmatch(r"[+-]?\d{1,30}", digits, re.ASCII):
            raise ValueError(f"{text[:40]!r} is not {wanted}")
        if int(digits) > high:
            raise ValueError(f"{text!r} is too large: at most {high:,}")
        if int(digits) < low:
            raise ValueError(f"{text!r} is not {wanted}")
        return int(digits)

    return parse


def stages(text: str) -> list[str]:
    """``load,end_to_end`` -> the stages of the throughput pass, each once, in their order."""
    from bench.records import STAGES  # late: with NumPy, which no --help waits for

    names = {name.strip() for name in text.split(",")}
    if not names <= set(STAGES):
        raise ValueError(f"{text!r} is not a list of {', '.join(STAGES)}")
    return [name for name in STAGES if name in names]


# The range of every numeric option, for all commands.
seconds = number_between(1e-3, 3600.0, "a number of seconds, at most an hour")
minutes = number_between(0.01, 1e5, "a number of minutes")
long_seconds = number_between(1e-3, 1e7, "a number of seconds")
ratio = number_between(1e-3, 1.0, "a ratio above 0 and at most 1")
above_zero = number_between(1e-6, 1e9, "a number above 0")
share = number_between(0.0, 1.0, "a share from 0 to 1")
from_zero = number_between(0.0, 1e9, "a number of at least 0")
below_one = number_between(0.0, 0.999, "a number from 0 to below 1")
channel_mean = number_between(-1e3, 1e3, "a channel's mean, of pixels from 0 to 1")
channel_std = number_between(1e-6, 1e3, "a channel's standard deviation, above 0")
positive = whole(1, MOST, "a positive integer")
skip = whole(0, MOST, "a whole number of at least 0")
pixels = whole(1, MOST_PIXELS, "a positive integer")
crops = whole(1, MOST_CROPS, "a positive integer")
workers = whole(1, 4096, "a positive integer")
batch = whole(1, 1_000_000, "a positive integer")
rounds = whole(1, 10_000, "a positive integer")
queries = whole(0, 1_000_000, "a whole number of at least 0")
folds = whole(2, 10_000)
seed = whole(-(1 << 63), (1 << 63) - 1, "a whole number")
seed_from_zero = whole(0, (1 << 63) - 1, "a whole number of at least 0")


def positive_or_auto(text: str) -> int | str:
    """A whole number of at least 1, or the word ``auto``."""
    return text if text == "auto" else batch(text)


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
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # of literals that lie deep within each other
        return key, value


def path(text: str) -> Path:
    return Path(text)
