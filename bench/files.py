"""Files that appear whole or not at all, and folders with one writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import filelock

from bench.errors import UserError

PART = ".part"  # ending of a file that is being written
LOCK = ".lock"  # name of the lock file in a run's folder


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when all of it is on the disk, or not at all.

    The temporary name is unique to the process, so that two writers never mix their bytes.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed while writing has left."""
    for left in [*folder.glob(f"*{PART}"), *folder.glob(f"*/*/*{PART}")]:
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
