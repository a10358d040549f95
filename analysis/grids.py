"""A table of texts, as Markdown or HTML shows it."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.text import markdown_table, markdown_text


@dataclass(frozen=True, slots=True)
class Grid:
    """``notes`` stand below the table; a cell ``[a]`` refers to the note that begins with it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    head, last = divmod(index, 26)
    return (letters(head - 1) if head else "") + chr(ord("a") + last)


def markdown(one: Grid) -> str:
    notes = [f"- {markdown_text(note)}" for note in one.notes]
    return "\n".join([f"# {one.title}", "", *markdown_table(one.headings, one.rows), "", *notes, ""])
