"""Messages on standard error: through ``logging``, from the main process of a run only. And standard streams that a
command can write to whatever they are: closed, a broken pipe, a terminal of ASCII only."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import sys
import warnings
from typing import Any

from bench.distributed import is_main
from pipelines import decoder_messages
from pipelines.text import visible_lines

LAST_WORDS_S = 2.0  # that the end of a command waits for the last messages of its libraries
LOGGERS = ("pipelines", "models", "bench", "analysis")


class _Stderr(logging.Handler):
    """Writes whole lines to the present ``sys.stderr``: print would let another process's text come between."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{visible_lines(self.format(record))}\n")
        sys.stderr.flush()


def _is_main(record: logging.LogRecord) -> bool:
    """Whether the message is shown: errors of every process, all else of the main process only."""
    return record.levelno >= logging.ERROR or is_main()


def set_up(verbose: int = 0, quiet: bool = False) -> None:
    """Show this project's messages: warnings only if ``quiet``, debugging messages if ``verbose``."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = _Stderr()
    handler.addFilter(_is_main)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # torch's advice, with a line of code, on a number of workers that was asked for (--workers) or is tried (tune)
    warnings.filterwarnings("ignore", message="This DataLoader will create")


class Tolerant:
    """A text stream to which writing never fails because its reader is gone: from then on nothing is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (BrokenPipeError, ConnectionResetError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._give_up()

    def _give_up(self) -> None:
        """What is buffered goes nowhere: Python would complain at its end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Called once when a command starts.

    File descriptors 0 to 2 that are closed lead to nothing: the next file that is opened would take such a number, and
    a library's messages would be written into it. Characters that a terminal lacks are spelled out.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as we do
        if isinstance(stream, Tolerant):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Tolerant(stream))


def without_decoder_messages() -> None:
    """From now on, what image decoders write to standard error themselves is not shown (pipelines.decoder_messages).

    File descriptor 2 leads to a process that passes all else on; our own messages go past it. Worker processes inherit
    it. Where no process can be started, all is shown. Called once, by a command, after ``prepare_streams``.
    """
    terminal = os.dup(2)
    reader, writer = os.pipe()
    try:
        passing = subprocess.Popen(
            [sys.executable, "-I", "-S", decoder_messages.__file__],
            stdin=reader,
            stdout=terminal,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it: it ends when nobody can write any more
        )
    except (OSError, ValueError):
        for number in (terminal, reader, writer):
            os.close(number)
        return
    own = os.fdopen(terminal, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    sys.stderr.flush()
    sys.stderr = Tolerant(own)  # type: ignore[assignment]
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)
    warnings.filterwarnings("ignore", module="PIL")
    atexit.register(_as_before, passing, terminal)


def _as_before(passing: subprocess.Popen[bytes], terminal: int) -> None:
    """Standard error itself again, once all that was said is shown."""
    os.dup2(terminal, 2)
    with contextlib.suppress(subprocess.TimeoutExpired):
        passing.wait(timeout=LAST_WORDS_S)
