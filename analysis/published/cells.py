"""What the functions that count a sentence's comparisons share.

Each such function yields one string per comparison that its sentence speaks of: "" where the sentence holds, else the
exception in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis.published.tables import TABLES


def unless(holds: bool, exception: str) -> str:
    return "" if holds else exception


def table_name(source: str) -> str:
    return f"Table {TABLES[source].number}"


def columns(values: dict[Any, float]) -> Iterator[tuple[Any, dict[Any, float]]]:
    """Values keyed (..., x) as one {x: value} per (...), in the order of the print."""
    found: dict[Any, dict[Any, float]] = {}
    for (*column, x), value in values.items():
        found.setdefault(tuple(column), {})[x] = value
    yield from found.items()
