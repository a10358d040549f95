"""Messages on standard error: through ``logging``, from the main process of a run only."""

from __future__ import annotations

import logging
import sys

from bench.distributed import is_main

LOGGERS = ("pipelines", "models", "bench", "analysis")


class _Stderr(logging.Handler):
    """Writes whole lines to the present ``sys.stderr``: print would let another process's text come between."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")
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
