"""Several processes of one run, as ``torchrun`` starts them: which one this is, and the small objects they exchange.

    torchrun --nproc-per-node 4 bench/run.py --family resnet --data imagenet/val

Every process scores its own part of the images and times its own pipeline and network. They exchange a few small Python
objects over gloo, on GPU machines too: NCCL would not be faster for these, and needs a GPU for each process.
When a process dies its connections close, and every process that waits for it gets ``PeerLost``; torchrun ends the
others.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
TIMEOUT = timedelta(hours=6)  # how long a finished process waits for the slowest
AGREED = "known_to_all"  # an attribute of an error that every process has raised


class PeerLost(RuntimeError):
    """Another process of the run is gone."""


@dataclass(slots=True)
class ExchangeState:
    """What a signal handler must know (bench.measure.limits.time_limit).

    ``underway`` from the start of an exchange to its end. If the exchange ends with an error, it stays set until the
    time limit's block is left: all processes have agreed on that error, and none may raise another.
    """

    underway: bool = False


exchange = ExchangeState()


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among ``world``; ``local``: among those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints, and writes the run's files."""
        return self.rank == 0

    def own_share(self, numbers: Sequence[T]) -> list[T]:
        """Every ``world``-th of the numbers, so that each process gets images from all parts of the data set."""
        return list(numbers[self.rank :: self.world])

    def all_gather(self, value: T) -> list[T]:
        """Every process's value, by rank. Raises PeerLost, or the error with which another process came here."""
        return self._exchange(value, None)

    def broadcast(self, make: Callable[[], T]) -> T:
        """The result of ``make`` in the main process. If it fails there, every process raises its error."""
        with self.agreed():
            value = make() if self.is_main else None
        return self.all_gather(value)[0]  # type: ignore[return-value]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """All processes leave the block together: without an error, or all with the error of the one that had it. So no
        process waits for one that has given up, and none continues with the next network alone."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if error is not None and (self.world == 1 or isinstance(error, PeerLost) or getattr(error, AGREED, False)):
            raise error
        self._exchange(None, error)

    def _exchange(self, value: T, error: Exception | None) -> list[T]:
        """One exchange: each process's value, and its error if it has one."""
        if self.world == 1:
            if error is not None:
                raise error
            return [value]
        import torch.distributed as dist

        received: list[Any] = [None] * self.world
        exchange.underway = True
        try:
            dist.all_gather_object(received, (value, _sendable(error)))
        except RuntimeError as lost:
            raise PeerLost(
                f"process {self.rank} of {self.world}: another process of this run stopped or cannot be reached "
                f"({str(lost).splitlines()[0][:120]})"
            ) from (error or lost)
        for rank, (_, other) in enumerate(received):
            if other is not None:
                theirs = error if rank == self.rank and error is not None else other
                setattr(theirs, AGREED, True)
                raise theirs
        exchange.underway = False
        return [value for value, _ in received]

    def leave(self) -> None:
        """At the end of the run."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def _sendable(error: Exception | None) -> Exception | None:
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class of its own making
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


ALONE = Processes()


def is_main() -> bool:
    """Whether this process is the run's only one or its main one; known before it is connected to the others."""
    return os.environ.get("RANK", "0") == "0"


def join() -> Processes:
    """Connect to the other processes if torchrun (or anything that sets its variables) started this one; else ALONE.

    Raises ValueError when they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch.distributed as dist

    log.info("connecting to the other processes (WORLD_SIZE %s) ...", os.environ["WORLD_SIZE"])
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and the other processes cannot be reached ({error}): start the "
            "run with torchrun, or unset WORLD_SIZE"
        ) from error
    rank, world = dist.get_rank(), dist.get_world_size()
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Processes(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
