"""Several processes of one run, as ``torchrun`` starts them: who this one is, and the few words that they exchange.

    torchrun --nproc-per-node 4 bench/run.py --family resnet --data imagenet/val

Every process scores shards of its own and times its own pipeline and network; what travels is a few small Python
objects, over gloo also where there are GPUs: NCCL would carry them no better, and needs a GPU for each process.
When a process dies its connections close, and whoever waits for it gets ``PeerLost``; torchrun ends the others.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # of those that are done, for the slowest
AGREED = "known_to_all"  # an attribute of an error that every process has raised


class PeerLost(RuntimeError):
    """Another process of the run is gone."""


@dataclass(slots=True)
class Conversation:
    """What a signal's handler must know (bench.plan.time_limit).

    ``underway`` from the start of an exchange to its end; where it ends with an error, until the limit is left: all
    have agreed on that error, and nobody may come with another.
    """

    underway: bool = False


conversation = Conversation()


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among ``world``; ``local``: among those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this one speaks, and writes the run's files."""
        return self.rank == 0

    def mine(self, numbers: Sequence[T]) -> list[T]:
        """This process's share: every ``world``-th, so that no part of the data set falls to one of them."""
        return list(numbers[self.rank :: self.world])

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank. Raises PeerLost; and where another process came here with an error, that one."""
        return self._exchange(value, None)

    def share(self, make: Callable[[], T]) -> T:
        """What the first process makes; where that fails, everyone raises its error."""
        with self.agreed():
            value = make() if self.first else None
        return self.gather(value)[0]  # type: ignore[return-value]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Everyone leaves the block together: without an error, or all with the error of the one that had it. So nobody
        waits for a process that has given up, and none goes on to the next network alone."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if error is not None and (self.world == 1 or isinstance(error, PeerLost) or getattr(error, AGREED, False)):
            raise error
        self._exchange(None, error)

    def _exchange(self, value: T, error: Exception | None) -> list[T]:
        """One step of the conversation. Every step carries each process's error beside its value."""
        if self.world == 1:
            if error is not None:
                raise error
            return [value]
        import torch.distributed as dist

        said: list[Any] = [None] * self.world
        conversation.underway = True
        try:
            dist.all_gather_object(said, (value, _sendable(error)))
        except RuntimeError as lost:
            raise PeerLost(
                f"process {self.rank} of {self.world}: another process of this run stopped or cannot be reached "
                f"({str(lost).splitlines()[0][:120]})"
            ) from (error or lost)
        for rank, (_, other) in enumerate(said):
            if other is not None:
                theirs = error if rank == self.rank and error is not None else other
                setattr(theirs, AGREED, True)
                raise theirs
        conversation.underway = False
        return [value for value, _ in said]

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


def join() -> Processes:
    """Meet the others, when torchrun (or anything that sets its variables) has started this process; else ALONE.

    Raises ValueError when they cannot be met.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch.distributed as dist

    from bench.setup import say

    say(f"meeting the other processes of {os.environ['WORLD_SIZE']} (WORLD_SIZE) ...")
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and the other processes cannot be met ({error}): start the run "
            "with torchrun, or unset WORLD_SIZE"
        ) from error
    rank, world = dist.get_rank(), dist.get_world_size()
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Processes(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
