"""Reading text files of labels and class names."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.data.dataset import DatasetError

MOST_FILE_BYTES = 1_000_000_000  # of labels: those of 14 million images take half of it


def refuse_absurd(path: Path, flag: str) -> None:
    """Raises DatasetError for a file of labels that is too large to be one, before it fills the memory."""
    if path.is_file() and (size_bytes := path.stat().st_size) > MOST_FILE_BYTES:
        raise DatasetError(
            f"{path} has {size_bytes / 1e9:.1f} GB, and a file of labels at most {MOST_FILE_BYTES / 1e9:.0f}: check "
            f"the path given as {flag}"
        )


def read_text(path: Path, flag: str) -> str:
    """The whole text. A byte-order mark, as of Windows editors, does not count. Raises DatasetError."""
    refuse_absurd(path, flag)
    try:
        stored = path.read_bytes()
        text = stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = stored.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}): give a text file as {flag}"
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check the path given as {flag}") from error
    if not text.strip():
        raise DatasetError(f"{path} is empty: give a file with lines as {flag}")
    return text


def read_lines(path: Path, flag: str) -> list[str]:
    """``read_text`` line by line, without the blank ones at the end."""
    # Not splitlines: names may hold the other signs that it splits at, such as U+2028.
    lines = re.split(r"\r\n|\n|\r", read_text(path, flag))
    while not lines[-1].strip():
        lines.pop()
    return lines
