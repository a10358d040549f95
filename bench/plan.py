"""What a run will do, settled before it begins and kept in run.json, and how a later ``--resume`` finds its place.

All that might come out otherwise a second time (how fast the network seemed, so how many images a batch takes; which
chunk fitted) is measured once, written down, and from then on the same for every process and every continuation.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cases import ModelCase
from bench.setup import UserError, say

if TYPE_CHECKING:
    from bench.job import Job
    from bench.processes import Processes
    from bench.records import FailedModel, Run, Setting

FLAGS = {"workers": " (-j N; unless given it follows each machine's cores)"}  # that a remedy should name
TIME_IS_UP_AGAIN_S = 5.0  # said again, where the first time was in an exchange or in a destructor, which goes on
# What a continuation may say anew; all else must be what it was.
FREE_FLAGS = frozenset({"argv", "resume", "out", "yes", "no_figures", "strict", "timeout"})


@dataclass(frozen=True, slots=True)
class Plan:
    """One network's part of a run."""

    label: str
    batch_size: int
    crops_per_sec: float | None  # roughly: for the size of a pipeline batch; None where it was not measured
    setting: dict[str, Any]
    expected_s: float
    description: dict[str, Any]  # for run.json

    def stored(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {**self.description, **{k: v for k, v in asdict(self).items() if k != "description"}}


def read_plans(info: dict[str, Any]) -> dict[str, Plan]:
    """Those of a run.json, by label."""
    names = [f.name for f in fields(Plan) if f.name != "description"]
    plans = {}
    for stored in info["models"]:
        rest = {k: v for k, v in stored.items() if k not in names}
        plans[stored["label"]] = Plan(**{name: stored[name] for name in names}, description=rest)
    return plans


def make_plans(
    cases: Sequence[ModelCase],
    make_job: Callable[[ModelCase], Job],
    has_others: bool = False,
    timeout: float | None = None,
) -> tuple[list[Plan], list[FailedModel], Job | None]:
    """Load each network once and measure it for some seconds; the job itself is kept where there is only one.

    A network that cannot be loaded, or takes longer than ``timeout`` seconds, is an error where it is the only one
    (``has_others``: it is not); among several it is listed and left out.
    """
    from bench.records import FailedModel
    from models.predict import OutOfMemory

    plans: list[Plan] = []
    failed: list[FailedModel] = []
    for case in cases:
        try:
            with time_limit(timeout):
                job = make_job(case)
                plans.append(plan_of(job))
        except Exception as error:
            if len(cases) == 1 and not has_others and isinstance(error, (OutOfMemory, TimeoutError)):
                raise UserError(reason(error)) from error
            if (len(cases) == 1 and not has_others) or is_fatal(error):
                raise
            failed.append(FailedModel(case.label, "load", reason(error)))
            say(f"{case.label} is left out: {failed[-1].reason}")
            continue
        if len(cases) == 1 and not has_others:
            return plans, failed, job
        del job
        free_memory()  # forty networks would not fit
    if not plans and not has_others:
        raise UserError(
            f"none of the {len(failed)} networks can be run; {failed[0].label}, for one: {failed[0].reason}"
        )
    return plans, failed, None


def free_memory() -> None:
    """Of networks that are no longer needed: they refer to themselves, and torch keeps a GPU's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan_of(job: Job) -> Plan:
    """Measures the pipeline and the network."""
    expected_s = job.expected_s()
    return Plan(
        label=job.case.label,
        batch_size=job.batch_size,
        crops_per_sec=job.crops_per_sec if math.isfinite(job.crops_per_sec) else None,
        setting=asdict(job.setting()),
        expected_s=round(expected_s, 1),
        description=job.describe(),
    )


# --------------------------------------------------------------------------------------------------- what stops the run


class _TimeIsUp(BaseException):
    """No Exception: those are taken for the fault of an image where images are read."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError when the block takes longer. (A call into a library that never returns is not ended.)

    Not while processes exchange words: one that left such an exchange half way would not understand the others again.
    Raises UserError where the system has no such timer (Windows).
    """
    from bench import processes

    if seconds is None:
        yield
        return
    if not hasattr(signal, "setitimer"):
        raise UserError("--timeout: this system has no interval timer; leave it out")

    def stop(number: int, frame: object) -> None:
        if not processes.conversation.underway:
            raise _TimeIsUp

    processes.conversation.underway = False
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, TIME_IS_UP_AGAIN_S)
    try:
        yield
    except _TimeIsUp:
        raise TimeoutError(f"it took longer than --timeout {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Different(UserError):
    """A run cannot go on as what it was."""


class DataLost(OSError):
    """The data set is gone: going on would call every image that is left unreadable."""


def is_fatal(error: BaseException) -> bool:
    """Whether the next network would meet the same: a full disk, lost data, a lost process."""
    from bench.processes import PeerLost

    storage = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}
    return isinstance(error, (DataLost, PeerLost)) or (isinstance(error, OSError) and error.errno in storage)


def reason(error: BaseException) -> str:
    """One line."""
    text = " ".join(str(error).split())
    known = isinstance(error, (UserError, ValueError, FileNotFoundError, TimeoutError)) or type(error).__name__ in text
    return text if known and text else f"{type(error).__name__}: {text}"


# ------------------------------------------------------------------------------------------------------ going on


def read_resumable(folder: Path) -> Run:
    """The run that ``--resume`` names. Raises UserError when it is none, or one of an earlier version."""
    from bench import records

    if not folder.is_dir():
        raise UserError(f"--resume {folder}: there is no such folder; give the folder of a run, such as runs/nfnet-...")
    try:
        run = records.read_run(folder)
    except ValueError as error:
        raise UserError(f"--resume {folder}: {error}") from error
    if not all("setting" in model for model in run.info.get("models", [])) or "directory" not in run.info:
        raise UserError(f"--resume {folder}: an earlier version wrote it, which kept no plan; start the run anew")
    try:
        for model in run.info["models"]:
            records.checked(records.Setting, model["setting"])
    except ValueError as error:
        raise UserError(f"--resume {folder}: another version wrote it ({error}); go on with that one") from error
    return run


def sweep(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    from bench.records import PART

    for left in [*folder.glob(f"*{PART}"), *folder.glob(f"shards/*/*{PART}")]:
        left.unlink()


def require_same_flags(given: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raises UserError, naming the flag, when a command line asks for another run than the folder's."""
    for name, value in given.items():
        if name not in FREE_FLAGS and value != stored[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--resume: {flag} is {stored[name]!r} in the run and {value!r} here; leave {flag} out, or start "
                "another run with it"
            )


def require_same_networks(labels: Sequence[str], info: dict[str, Any]) -> None:
    """Raises UserError, naming a network, when the command now means others: a --model-list that was edited, or a
    family that has grown."""
    then = info.get("networks", labels)
    if others := set(labels) ^ set(then):
        one = min(others)
        what = (
            "was one of the run's networks and is none" if one in then else "was none of the run's networks and is one"
        )
        raise UserError(f"--resume: {one} {what} now; restore --model-list, or start another run")


def require_same_setting(now: Setting, plan: Plan, processes: Processes) -> None:
    """Raises Different, naming the field, when what the results depend on is not what was planned: at a continuation,
    or in another process of the run (of which each has its own device, perhaps on another machine)."""
    from bench.records import Setting

    then = Setting(**plan.setting)
    own = () if processes.first else ("device", "machine_id")
    for one in fields(Setting):
        mine, theirs = getattr(now, one.name), getattr(then, one.name)
        if one.name not in own and mine != theirs:
            where = "" if processes.first else f" in process {processes.rank}"
            raise Different(
                f"{one.name} of {plan.label} was {theirs!r} when the run began and is {mine!r} now{where}: its results "
                f"would not be of one kind. Restore the old {one.name}{FLAGS.get(one.name, '')}, or start another run"
            )


def require_same_real_labels(file_hash: str | None, plan: Plan) -> None:
    """Raises Different when the file of ``--real-labels`` was edited: part of the images are scored by the former."""
    then = plan.description.get("real_label_hash")
    if file_hash != then:
        raise Different(
            f"the file of --real-labels was another when the run began (its hash is {file_hash} now and was {then}): "
            "restore it, or start another run"
        )


def require_same_packages(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Different, naming the package: predictions may differ in their last bits, and rates in more."""
    for name, version in then["packages"].items():
        if now["packages"].get(name) != version:
            raise Different(
                f"--resume: the run was begun with {name} {version}, and this is {now['packages'].get(name)}; install "
                "the former, or start the run anew"
            )


def finished_phases(run: Run, setting: Setting) -> set[str]:
    """Which of a network's phases (``accuracy``, ``throughput``) have their lines in results.jsonl."""
    from bench.records import Absent, Accuracy, Throughput

    found = set()
    for record in run.records:
        if record.setting != setting:
            continue
        if isinstance(record, (Accuracy, Throughput)):
            found.add(record.kind)
        elif isinstance(record, Absent):
            found.add(record.what.split()[0])
    return found


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """run.json; the folder appears with it, so that every run's folder can be resumed or was never there."""
    from bench.records import write_whole

    text = json.dumps(info, indent=2) + "\n"
    if folder.exists():
        write_whole(folder / "run.json", text)
        return
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        hidden.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made ({error}): name a folder that you may write") from error
    try:
        write_whole(hidden / "run.json", text)
        hidden.rename(folder)
    except BaseException:
        (hidden / "run.json").unlink(missing_ok=True)
        hidden.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone, until the block ends or the process does, however it ends.

    Raises UserError when it is another's. No lock where there are none: Windows, some network file systems.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to {folder}: wait for it, or stop it first") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                raise
        yield
    finally:
        os.close(handle)
