"""What stops a network, or the whole run: a time limit, a full disk, lost data, a lost process."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from bench.distributed import PeerLost, exchange
from bench.errors import DataLost, UserError

RETRY_ALARM_S = 5.0  # the alarm comes again, in case the first one was swallowed (in an exchange, in a destructor)
STORAGE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN,
}  # fmt: skip


class _TimeIsUp(BaseException):
    """Not an Exception: code that reads images takes every Exception for the fault of an image."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError when the block takes longer. (A call into a library that never returns is not ended.)

    Never during an exchange between processes: a process that left one half way would not understand the others again.
    Raises UserError where the system has no such timer (Windows).
    """
    if seconds is None:
        yield
        return
    if not hasattr(signal, "setitimer"):
        raise UserError("`timeout`: this system has no interval timer; run without it")

    def stop(number: int, frame: object) -> None:
        if not exchange.underway:
            raise _TimeIsUp

    exchange.underway = False
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, RETRY_ALARM_S)
    try:
        yield
    except _TimeIsUp:
        raise TimeoutError(f"it took longer than `timeout` {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_fatal(error: BaseException) -> bool:
    """Whether the next network would meet the same error: a full disk, lost data, a lost process."""
    return isinstance(error, (DataLost, PeerLost)) or (isinstance(error, OSError) and error.errno in STORAGE_ERRORS)
