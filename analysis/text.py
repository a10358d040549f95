"""Tables and names as text: aligned columns for a terminal, Markdown, and names from data made safe to show."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns separated by two spaces; one line per row. The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]
