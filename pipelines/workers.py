"""Starting Python processes that import nothing from the folder in which the user happens to be."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHORT = Path("/tmp")
MOST_BYTES = 70  # of the folder's name: a socket's address has 107, of which multiprocessing needs 33
SAFE_PATH = "PYTHONSAFEPATH"  # Python 3.11 and newer: no current folder in front of the path


@contextmanager
def safe_start() -> Iterator[None]:
    """Processes that are started in the block do not search the current folder for modules, in which a ``random.py``
    would be run in place of Python's own. multiprocessing starts them by ``python -c``, which does."""
    with _short_temporary_folder(), _no_current_folder():
        yield


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Where TMPDIR's name is too long for the sockets through which processes send tensors, those are in SHORT."""
    own, cached = os.environ.get("TMPDIR"), tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) <= MOST_BYTES or not os.access(SHORT, os.W_OK | os.X_OK):
        yield
        return
    os.environ["TMPDIR"] = tempfile.tempdir = str(SHORT)
    try:
        yield
    finally:
        tempfile.tempdir = cached
        del os.environ["TMPDIR"]
        if own is not None:
            os.environ["TMPDIR"] = own


@contextmanager
def _no_current_folder() -> Iterator[None]:
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
