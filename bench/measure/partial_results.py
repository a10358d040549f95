"""Partial results of the accuracy pass: what an interrupted run keeps, and how several processes divide the work.

Each piece covers consecutive rows of the table. Its size depends only on the image count, never on the number of
processes: a run that one process began may be finished by three. A piece's file exists whole or not at all, and an
image's predictions do not depend on what shares its batch: in whatever order the pieces were made, they join to the
same predictions.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.predictions import Predictions, check_complete, joined
from pipelines.batch import split
from pipelines.schemas import DamagedFile

log = logging.getLogger(__name__)
PIECES = 64  # about so many: eight processes get nearly equal shares, and a crash costs little
MIN_IMAGES, MAX_IMAGES = 8, 256  # of a piece
FITTING = "fitting-"  # begins the name of an empty file, which ends with the batch size that fitted into memory
DAMAGED = ".damaged"  # ends the name of a piece that is set aside
VISIBLE_S = 60  # how long a network file system may take to show what another machine has written


@dataclass(frozen=True)
class PartialResults:
    """The pieces of one network's pass over ``rows`` (int64 [b]), as files in ``folder``."""

    folder: Path
    rows: np.ndarray

    @cached_property
    def pieces(self) -> list[np.ndarray]:
        """The rows of each."""
        return split(self.rows, int(np.clip(-(-len(self.rows) // PIECES), MIN_IMAGES, MAX_IMAGES)))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def note_batch_size(self, fitting: int) -> None:
        """Remember that memory ran out and that this batch size fitted: a continuation may have more memory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{FITTING}{fitting}").touch()

    def smallest_batch_size(self, batch_size: int) -> int:
        """``batch_size``, or the smallest that was noted."""
        return min([batch_size, *(int(path.name.removeprefix(FITTING)) for path in self.folder.glob(f"{FITTING}*"))])

    def set_aside_damaged(self) -> None:
        """Rename the pieces that cannot be read, or are of other images, so that these are scored again; with a
        warning."""
        for number, rows in enumerate(self.pieces):
            path = self.path(number)
            try:
                if path.exists():
                    check_complete(rows, Predictions.load(path))
            except (DamagedFile, RuntimeError) as error:
                aside = path.with_name(f"{path.name}{DAMAGED}")
                path.replace(aside)
                log.warning("%s; it is set aside as %s, and its images are scored again", error, aside.name)

    def missing(self) -> list[int]:
        """Numbers of the pieces that have no file yet."""
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
                    "must see the same run folder; name one on a shared file system as `out`"
                )
            time.sleep(0.5)
        predictions = joined([empty, *(self._read(number) for number in range(len(self.pieces)))])
        check_complete(self.rows, predictions)
        return predictions

    def _read(self, number: int) -> Predictions:
        path = self.path(number)
        try:
            return Predictions.load(path)
        except ValueError as error:
            path.unlink()
            raise ValueError(f"{error}; it was removed, and `resume` scores its images again") from error

    def remove(self) -> None:
        """Called when the results are in the run's files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # those of other networks are there
            self.folder.parent.rmdir()


def fill(
    partial: PartialResults,
    numbers: Sequence[int],
    parts: Iterable[Predictions],
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Write the pieces of these numbers as soon as ``parts``, which come in the order of their rows, complete them."""
    partial.folder.mkdir(parents=True, exist_ok=True)
    waiting = list(numbers)
    held: list[Predictions] = []
    for part in parts:
        progress(len(part))
        held.append(part)
        while waiting and sum(map(len, held)) >= len(partial.pieces[waiting[0]]):
            rows = partial.pieces[waiting[0]]
            together = joined(held)
            done = together.only(rows)
            check_complete(rows, done)
            done.save(partial.path(waiting.pop(0)), names=[], compress=False)
            held = [together.only(np.setdiff1d(together.seen(), rows))]
    if waiting:
        raise RuntimeError(f"the backend ended before piece {waiting[0]} was complete. This is a bug")
    if left := sum(map(len, held)):
        raise RuntimeError(f"the backend delivered {left} images more than were requested. This is a bug")


def log_kept(partial: PartialResults) -> None:
    """Log what need not be scored again."""
    done = [number for number in range(len(partial.pieces)) if partial.path(number).exists()]
    if done:
        images = sum(len(partial.pieces[number]) for number in done)
        log.info("%s of %s images were scored before and are kept", f"{images:,}", f"{len(partial.rows):,}")
