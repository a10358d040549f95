"""The accuracy pass in shards: what an interrupted run keeps, and what several processes share out among them.

A shard is a stretch of the table's rows, its length a function of their number alone, never of the number of processes:
so a run that was begun by one may be finished by three. A shard's file is there whole or not at all, and an image's
predictions do not depend on what shares its batch: the shards of any history join to the same predictions.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.accuracy import Predictions, check_ledger, joined
from bench.setup import say
from pipelines.batch import split

FOLDER = "shards"  # of a run's folder; gone when the run is done
SHARDS = 64  # about as many, so that eight processes find nearly equal shares ...
LEAST_IMAGES, MOST_IMAGES = 8, 256  # ... but small enough that a crash costs little, and not a file an image
FITTING = "fitting-"  # begins the name of an empty file, which ends with the crops per forward that fitted
VISIBLE_S = 60  # how long a network file system may take to show what another machine has written


@dataclass(frozen=True)
class Shards:
    """The shards of one network's pass over ``rows`` (int64 [b]), as files below ``folder``."""

    folder: Path
    rows: np.ndarray

    @cached_property
    def pieces(self) -> list[np.ndarray]:
        """The rows of each."""
        return split(self.rows, int(np.clip(-(-len(self.rows) // SHARDS), LEAST_IMAGES, MOST_IMAGES)))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def note_rows(self, rows: int) -> None:
        """Remember that memory gave out and forwards of so many crops fitted: a continuation may have more of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{FITTING}{rows}").touch()

    def least_rows(self, rows: int) -> int:
        """``rows``, or the least that was noted."""
        return min([rows, *(int(path.name.removeprefix(FITTING)) for path in self.folder.glob(f"{FITTING}*"))])

    def missing(self) -> list[int]:
        """Those that have no file yet."""
        there = {path.name for path in self.folder.glob("*.npz")}
        return [number for number in range(len(self.pieces)) if self.path(number).name not in there]

    def whole(self, empty: Predictions) -> Predictions:
        """All of them, joined; ``empty`` where there is no row. Raises RuntimeError when rows are lost or doubled.

        Raises ValueError for a damaged file, which is then removed: the next ``--resume`` scores its images again.
        """
        deadline = time.monotonic() + VISIBLE_S
        while missing := self.missing():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{self.path(missing[0])} is not there, though a process has written it: all processes of a run "
                    "must see the same run folder; name one on a shared file system as --out"
                )
            time.sleep(0.5)
        predictions = joined([empty, *(self._read(number) for number in range(len(self.pieces)))])
        check_ledger(self.rows, predictions)
        return predictions

    def _read(self, number: int) -> Predictions:
        path = self.path(number)
        try:
            return Predictions.load(path)
        except ValueError as error:
            path.unlink()
            raise ValueError(f"{error}; it was removed, and --resume scores its images again") from error

    def remove(self) -> None:
        """When the results are in the run's files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fill(
    shards: Shards,
    numbers: Sequence[int],
    parts: Iterable[Predictions],
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Write the shards of these numbers as ``parts``, which come in the order of their rows, complete them."""
    shards.folder.mkdir(parents=True, exist_ok=True)
    waiting = list(numbers)
    held: list[Predictions] = []
    for part in parts:
        progress(len(part))
        held.append(part)
        while waiting and sum(map(len, held)) >= len(shards.pieces[waiting[0]]):
            rows = shards.pieces[waiting[0]]
            together = joined(held)
            done = together.only(rows)
            check_ledger(rows, done)
            done.save(shards.path(waiting.pop(0)), names=[], compress=False)
            held = [together.only(np.setdiff1d(together.seen(), rows))]
    if waiting:
        raise RuntimeError(f"the backend ended before shard {waiting[0]} was whole. This is a bug")
    if left := sum(map(len, held)):
        raise RuntimeError(f"the backend gave {left} images more than it was asked for. This is a bug")


def said_already(shards: Shards) -> None:
    """A word on what need not be done again."""
    done = len(shards.pieces) - len(shards.missing())
    if done:
        images = sum(len(shards.pieces[n]) for n in range(len(shards.pieces)) if shards.path(n).exists())
        say(f"{images:,} of {len(shards.rows):,} images were scored before and are kept")
