"""Starting Python processes that import nothing from the folder in which the user happens to be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"  # Python 3.11 and newer: no current folder in front of the path


@contextmanager
def safe_start() -> Iterator[None]:
    """Processes that are started in the block do not search the current folder for modules, in which a ``random.py``
    would be run in place of Python's own. multiprocessing starts them by ``python -c``, which does."""
    before, folder = os.environ.get(SAFE_PATH), None
    os.environ[SAFE_PATH] = "1"
    if sys.version_info < (3, 11):
        folder = Path.cwd()
        os.chdir(Path(__file__).resolve().parents[1])
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
        if folder:
            os.chdir(folder)
