"""Faults of the machine, which no image, file or network is to blame for: no memory, no file descriptors."""

from __future__ import annotations

import errno

MACHINE_ERRNOS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# How libraries spell the same in messages of other errors, in lower case: torch on a CPU and on a GPU, the standard C++
# library, libc, NumPy, CUDA, cuDNN, cuBLAS, and oneDNN. oneDNN gives no reason: a layer that it does not support
# fails at its "primitive descriptor", and the steps behind that fail where memory runs out.
MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate",
    "memoryerror",
    "bad_alloc",
    "out of memory",
    "not enough memory",
    "insufficient memory",
    "insufficient shared memory",
    "unable to allocate",
    "unable to mmap",
    "failed to map segment",
    "unable to open shared memory",
    "cudaerrormemoryallocation",
    "status_alloc_failed",
    "could not create a primitive",
    "could not create a memory",
    "could not initialize a memory",
    "could not execute a primitive",
)
NOT_MEMORY = "could not create a primitive descriptor"
MACHINE_WORDS = ("resource temporarily unavailable", "can't start new thread", "too many open files")


class MachineFault(RuntimeError):
    """The machine ran out of something, and the message says what to do; what was worked on may be good."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: less work at once might have gone through."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower().replace(NOT_MEMORY, "")
    return any(words in text for words in MEMORY_WORDS)


def is_of_machine(error: BaseException) -> bool:
    """Whether an error is the machine's fault, and not that of the image, file or network that was worked on."""
    if isinstance(error, MachineFault) or is_out_of_memory(error):
        return True
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        return True
    return any(words in str(error).lower() for words in MACHINE_WORDS)


def raise_if_of_machine(error: BaseException) -> None:
    """Raise it again if it is. For code that takes any other error as a property of a file or a network."""
    if is_of_machine(error):
        raise error


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
