"""Tables and names as text: aligned columns for a terminal, Markdown, and names from data made safe to show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from pipelines.files import write_whole
from pipelines.text import csv_text, visible

LONGEST_NAME = 60  # characters of a name in a figure


def name_text(name: str, longest: int = LONGEST_NAME) -> str:
    """A name from data for a figure: ``visible``, and shortened in its middle to at most ``longest`` characters.

    ``$``, ``_`` and ``^`` stay as they are: figures are drawn without mathtext (analysis/style.py).
    """
    text = visible(name)
    if len(text) > longest:
        head = (longest - 1) // 2
        text = f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves labels out that begin with an underscore


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV, whole or not at all; what is missing is empty. Returns the absolute path."""
    write_whole(path, csv_text(frame))
    return path.resolve()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns separated by two spaces; one line per row. The first row is the heading."""
    shown = [[visible(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)).rstrip() for row in shown]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table. Characters that Markdown or HTML would interpret are escaped."""
    return [_markdown_line(headings), _markdown_line(["---"] * len(headings)), *map(_markdown_line, rows)]


def _markdown_line(row: Iterable[str]) -> str:
    return "| " + " | ".join(markdown_text(text).replace("|", "\\|") for text in row) + " |"


def markdown_text(text: str) -> str:
    """On one line, with ``&`` and ``<`` as entities: a name cannot become a tag."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
