"""Faults of the machine, which no image is to blame for: no memory, no file descriptors."""

from __future__ import annotations

import errno

MACHINE_ERRNOS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# How libraries spell the same in messages of other errors, in lower case. torch, the standard C++ library, libc, CUDA.
MACHINE_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate",
    "memoryerror",
    "bad_alloc",
    "out of memory",
    "resource temporarily unavailable",
    "too many open files",
    "unable to allocate",
    "failed to map segment",
    "unable to open shared memory",
    "cudaerrormemoryallocation",
)


class MachineFault(RuntimeError):
    """The machine ran out of something while an image was read; the image itself may be good."""


def is_of_machine(error: BaseException) -> bool:
    """Whether an error that came while an image was read is the machine's fault."""
    if isinstance(error, (MemoryError, MachineFault)):
        return True
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        return True
    return any(words in str(error).lower() for words in MACHINE_WORDS)


def told(error: BaseException) -> str:
    """An error of the machine's, in a sentence with the remedy."""
    if isinstance(error, MachineFault):
        return str(error)
    text = " ".join(str(error).split())[-200:]
    return (
        f"memory or file descriptors ran out ({type(error).__name__}{f': {text}' if text else ''}): free memory, or "
        "raise the limits of this process (ulimit)"
    )


def fault(name: str, error: BaseException) -> MachineFault:
    """The error to raise for it; ``name``: what was being read."""
    text = " ".join(str(error).split())[-200:] or "no message"
    return MachineFault(
        f"the machine, not an image, failed while {name} was read ({type(error).__name__}: {text}): free memory or "
        "raise its limits (ulimit), or use fewer `workers` or a smaller `batch_images`"
    )
