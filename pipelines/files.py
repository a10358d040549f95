"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import filelock

PART = ".part"  # ending of a file that is being written
MOST_NAME = 50  # characters of its name that the temporary name repeats: a file system allows 255 bytes in all
LOCK_WAIT_S = 60.0  # for others who change the same small file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when all of it is on the disk, or not at all.

    The temporary name is unique, so that two writers never mix their bytes: not the process's number, which two
    containers that share a folder may have in common.
    """
    with whole_path(path) as part, part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, for libraries that open files themselves; renamed to ``path`` at the end, or
    removed when the block fails."""
    part = path.with_name(f".{path.name[:MOST_NAME]}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` to write into; renamed to ``path`` at the end, or removed with all that is in it
    when the block fails. Raises OSError where ``path`` has files in it by then."""
    part = path.with_name(f".{path.name[:MOST_NAME]}.{uuid.uuid4().hex}{PART}")
    part.mkdir()
    try:
        yield part
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Other processes wait until the block ends: for a small file that is read, changed and written again.

    Where there are no locks, and when others take longer than LOCK_WAIT_S, the block runs all the same.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_WAIT_S)
    with suppress(filelock.Timeout, NotImplementedError, OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release(force=True)
