"""Folders with one writer, and what a killed writer leaves."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import filelock

from bench.errors import UserError
from pipelines.files import PART, write_whole
from pipelines.schemas import DamagedFile, read_json, required_fields

log = logging.getLogger(__name__)
LOCK, WRITER = ".lock", ".writer.json"  # in a folder that is being written: the lock, and whose it is
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of a file system without locks


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed while writing has left."""
    for left in [*folder.glob(f".*{PART}"), *folder.glob(f"*/*/.*{PART}")]:
        left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone until the block ends, or the process does, however it ends.

    Raises UserError when another process holds it, or when it cannot be locked.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        whose = f" ({writer(folder)})" if writer(folder) else ""
        raise UserError(f"another process is writing to {folder}{whose}: wait for it, or stop it first") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise UserError(
                f"{folder} cannot be locked ({error}): it must be a folder that you may write to"
            ) from error
        log.warning("the file system of %s has no locks: see to it that no second process writes there", folder)
        yield
        return
    try:
        note = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_whole(folder / WRITER, json.dumps(note) + "\n")
        yield
    finally:
        for name in (WRITER, LOCK):  # before the release: whoever locks it next makes a new one
            (folder / name).unlink(missing_ok=True)
        lock.release()


def writer(folder: Path) -> str:
    """Which process writes to a folder, or last did without coming to its end: ``process 12 on host ...``; or ""."""
    try:
        note = required_fields(read_json(folder / WRITER), {"process": int, "host": str, "since": str}, WRITER)
    except DamagedFile:  # none, or not ours
        return ""
    return f"process {note['process']} on host {note['host']}, since {note['since']}"


@contextmanager
def new_folder(out: Path | None, stem: str) -> Iterator[Path]:
    """Make a folder for new results and lock it; it is removed again if the block ends before anything is in it.

    ``out``: its path; None: ``runs/<stem>-<time>``, numbered where another process has just made that one.
    Raises UserError when ``out`` exists or cannot be made. What a process left that was killed before it wrote
    anything is taken over.
    """
    folder = _make(out) if out else _make_default(stem)
    try:
        with locked(folder):
            if out and not _holds_locks_only(folder):  # another process was faster
                raise _exists(folder)
            yield folder
    finally:
        with suppress(OSError):  # it holds results
            folder.rmdir()


@contextmanager
def new_folder_if(out: Path | None) -> Iterator[Path | None]:
    """``new_folder`` where a path was given, for programs that otherwise only print."""
    if out is None:
        yield None
        return
    with new_folder(out, "") as made:
        yield made


def _make(out: Path) -> Path:
    try:
        out.mkdir(parents=True)  # fails if another process has just made it
    except FileExistsError:
        if not (out.is_dir() and any(out.iterdir()) and _holds_locks_only(out)):
            raise _exists(out) from None
    except OSError as error:
        raise UserError(f"`out` {out} cannot be made ({error}): name a folder that you may write to") from error
    return out


def _make_default(stem: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = Path("runs") / f"{stem}-{stamp}{f'-{number}' * (number > 1)}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"`out` {folder} cannot be made, a file is in its place: give `out`") from None
        except OSError as error:
            raise UserError(f"`out` {folder} cannot be made ({error}): name a folder that you may write to") from error
    raise AssertionError


def _holds_locks_only(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {LOCK, WRITER}


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).is_file():
        return False
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


def _exists(out: Path) -> UserError:
    busy = f", and {writer(out)} is writing to it" if _is_locked(out) else ""
    return UserError(f"`out` {out} exists{busy}; results are never written over others: name a new folder")
