"""Errors that a user can mend, and how they are printed. No heavy imports."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping

from pipelines.data.faults import is_of_machine, told
from pipelines.text import visible_lines


class UserError(Exception):
    """Something that the user can mend; the message says how. Parameters stand in backticks: `img_size`."""


class Different(UserError):
    """A run cannot be continued: something it depends on has changed."""


class DataLost(OSError):
    """The data set is gone: continuing would count every remaining image as unreadable."""


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """The text with each known `parameter` in backticks replaced by its flag: for command-line programs."""
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def one_line(error: BaseException) -> str:
    """The error's text in one line, with its type where the text alone would not be understood."""
    text = " ".join(str(error).split())
    known = isinstance(error, (UserError, ValueError, FileNotFoundError, TimeoutError)) or type(error).__name__ in text
    return text if known and text else f"{type(error).__name__}: {text}"


def is_of_a_path(error: BaseException) -> bool:
    """Whether the system refuses a file that was named: not there, no permission, a name that is too long."""
    return isinstance(error, OSError) and error.filename is not None and not is_of_machine(error)


def sentence(error: BaseException) -> str:
    """The error for a user: of a file that the system refuses, its name first."""
    if isinstance(error, OSError) and is_of_a_path(error) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}: check the path"
    return str(error)


def exit_status(work: Callable[[], int], flags: Mapping[str, str], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit status: its own, 2 for an error that the user can mend, 1 where the machine
    ran out of memory or files, 130 after Ctrl-C."""
    try:
        return work()
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        of_user = isinstance(error, (UserError, ValueError))  # whose text may name a machine's fault, with the remedy
        if is_of_machine(error) and not of_user:
            text, status = told(error), 1
        elif of_user or isinstance(error, OSError):
            text, status = sentence(error), 2
        else:
            raise
        print(f"error: {visible_lines(with_flags(text, flags))}", file=sys.stderr)
        return status
