"""Folders with one writer, and what a killed writer leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from bench.errors import UserError
from pipelines.files import PART

LOCK = ".lock"  # name of the lock file in a run's folder


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed while writing has left."""
    for left in [*folder.glob(f".*{PART}"), *folder.glob(f"*/*/.*{PART}")]:
        left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone until the block ends, or the process does, however it ends.

    Raises UserError when another process holds it.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another process is writing to {folder}: wait for it, or stop it first") from None
    except (NotImplementedError, OSError):  # some network file systems have no locks
        yield
        return
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before the release: whoever locks it next makes a new one
        lock.release()
