"""The benchmark: accuracy and images per second of multi-crop inference.

    multicrop-bench run --family nfnet --crops 1,2,5,10,20                    # demo data, nothing downloaded
    multicrop-bench run --family nfnet --crops 1,2,5,10,20 --data imagenet/val
    multicrop-bench run --models resnet50.a1_in1k --policies CC,10RC+10MRC --data imagenet/val

The same as ``python bench/run.py``, which torchrun takes.

Accuracy: every readable image once, the views of all policies evaluated in one pass, every policy averaged at the
feature, logit and softmax level. Throughput: the pipeline alone, the network alone, both together, at each crop count.
Latency: one image at a time.

An interrupted run is continued with ``--resume``; several processes share one under ``torchrun``; a network of a sweep
that fails is recorded, and the others go on.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if not __package__:  # run as `python bench/run.py`: search the repo root, not bench/ (which could shadow stdlib names)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import cases, distributed, logs, resume
from bench.config import RunConfig, to_plain
from bench.distributed import ALONE, Processes, is_main
from bench.errors import Different, UserError, is_of_a_path, one_line, sentence, with_flags
from bench.files import locked, new_folder, remove_parts
from bench.measure import limits, scores
from bench.options import CommandLine, flag_names, parse
from bench.resume import NetworkPlan
from bench.setup import default_weights, find_images, make_job, resolve
from pipelines.crops import union
from pipelines.data.faults import is_of_machine, told
from pipelines.files import write_whole
from pipelines.text import csv_text

if TYPE_CHECKING:
    from analysis.known_answers import Comparison
    from bench.cases import ModelCase
    from bench.job import Job
    from bench.records import FailedModel, ImageAccounting, Run
    from pipelines.data.dataset import Scan

log = logging.getLogger("bench.run")
ASK_ABOVE_S = 30 * 60
# Exit statuses beside 0; 130 and 143 are a shell's for the two signals.
UNREADABLE, USERS, FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143
EXPECTED_ERRORS = (UserError, ValueError)  # their text is enough, as that of errors of a path
EXPECTED_FAILURES = (*EXPECTED_ERRORS, OSError, RuntimeError)


# What may be tuned anew, or divided among another number of processes, between a run and its continuation.
KEPT_LOADING = (
    "data_backend", "workers", "prefetch", "hw_load", "crop_operator", "max_batch_images", "hybrid_huffman_threshold",
)  # fmt: skip


class Terminated(BaseException):
    """SIGTERM: torchrun's, when another process died, or a batch system's."""


@dataclass
class Session:
    """One run while it runs: what was asked for, and what is known so far."""

    config: RunConfig  # as asked; `resolved` once the machine has been looked at
    argv: list[str]
    started_s: float = field(default_factory=time.monotonic)
    processes: Processes = ALONE
    earlier: Run | None = None  # the run that is continued
    cases: list[ModelCase] = field(default_factory=list)
    out: Path = Path()
    began: bool = False  # whether there is something in the folder to go on with
    resolved: RunConfig = field(default_factory=RunConfig)
    scan: Scan | None = None
    plans: dict[str, NetworkPlan] = field(default_factory=dict)  # by label
    failed: list[FailedModel] = field(default_factory=list)  # networks that cannot be loaded
    kept: list[Job] = field(default_factory=list)  # the only network need not be loaded twice


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 for --strict and unreadable images, or a run that had to stop; 2 for what the user
    can mend; 3 when a network of the run failed; 130 after Ctrl-C, 143 after SIGTERM."""
    line = parse(argv)
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    session = Session(line.config, list(sys.argv[1:] if argv is None else argv))
    try:
        with stoppable():
            return run(session, line)
    except EXPECTED_ERRORS as error:
        tell(f"error: {error}")
        return USERS
    except Exception as error:
        if is_of_a_path(error) and not limits.is_fatal(error):
            tell(f"error: {sentence(error)}")
            return USERS
        if not limits.is_fatal(error) and not is_of_machine(error):
            raise
        tell(f"error: {reason_of(error)}{hint(session)}")
        return 1
    except KeyboardInterrupt:
        tell(f"\ninterrupted{hint(session)}")
        return INTERRUPTED
    except Terminated:
        why = " (another process of the run may have died: its message is above)" if "RANK" in os.environ else ""
        tell(f"\nstopped by SIGTERM{why}{hint(session)}")
        return TERMINATED


def hint(session: Session) -> str:
    """How to continue, once there is a folder."""
    program = "torchrun ... bench/run.py" if "RANK" in os.environ else "multicrop-bench run"
    return f"; results so far are kept: {program} --resume {shlex.quote(str(session.out))}" if session.began else ""


def tell(text: str) -> None:
    """An error, by every process. Parameters in backticks are shown as flags."""
    log.error("%s", with_flags(text, flag_names()))


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the block with Terminated, so that nothing is left half done."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: its program decides what signals do
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(session: Session, line: CommandLine) -> int:
    """Expand, load, estimate; then for each network score, time and write. Returns the exit status."""
    with ExitStack() as while_writing:
        return run_locked(session, line, while_writing)


def run_locked(session: Session, line: CommandLine, while_writing: ExitStack) -> int:
    """``run``; ``while_writing`` keeps the run's folder locked, from before anything in it is read."""
    if session.config.output.resume:
        continue_earlier(session, line, while_writing)
    config = session.config
    weights = default_weights(config)
    session.cases = cases.model_cases(config.network, demo=weights == "demo")
    cases.score_policies(config.measure)  # so that a mistake in a policy is reported before anything is loaded
    if session.earlier:
        resume.require_same_networks([case.label for case in session.cases], session.earlier.info)
    if config.output.dry_run:
        return dry_run(session)
    processes = session.processes = distributed.join()
    earlier = session.earlier
    session.out = processes.broadcast(lambda: earlier.folder if earlier else make_folder(config, while_writing))
    session.began = earlier is not None
    log.info("loading torch, timm and the data backend ...")
    session.resolved = resolved_for(session)
    session.scan = scan_images(session)
    if config.output.strict and len(session.scan.unreadable):
        lost = session.scan.unreadable[["name", "reason"]].to_numpy().tolist()
        tell(f"error: `strict`: {unreadable_text(lost)}")
        return UNREADABLE
    session.plans, session.failed = processes.broadcast(lambda: make_plans(session))
    with processes.agreed():
        if processes.is_main:
            if not earlier:
                ask_about(session)
            scores.require_space(session.out, list(session.plans.values()), config.measure)
            begin(session)
    session.began = True
    for case in session.cases:
        if case.label in session.plans:
            run_case(session, case)
    # Of the others always 0: torchrun ends all processes when one fails, and the main one is still writing.
    status = finish(session) if processes.is_main else 0
    processes.leave()
    return status


def make_folder(config: RunConfig, while_writing: ExitStack) -> Path:
    """The new run's folder, which is this process's alone. Raises UserError for files that exist."""
    results_file = config.output.results_file
    if results_file and results_file.exists():
        raise UserError(f"`results_file` {results_file} exists; results are never written over others: name a new file")
    return while_writing.enter_context(new_folder(config.output.out, config.network.family or "models")).resolve()


def continue_earlier(session: Session, line: CommandLine, while_writing: ExitStack) -> None:
    """``--resume``: take the configuration from the run's folder, which the main process locks first. Raises UserError,
    naming the option, when the command line asks for another run."""
    asked = session.config.output
    assert asked.resume is not None
    folder = asked.resume.resolve()
    if is_main() and (folder / "run.json").is_file() and not asked.dry_run:
        while_writing.enter_context(locked(folder))
    session.earlier, stored = resume.read_resumable(folder)
    if asked.out and asked.out.resolve() != folder:
        raise UserError(f"`resume` {asked.resume} continues in that folder: leave `out` {asked.out} out")
    config = line.applied_to(stored)
    resume.require_same_config(stored, config)
    directory = Path(session.earlier.info["directory"])
    if directory != Path.cwd() and directory.is_dir():
        os.chdir(directory)  # the run's relative paths began there
    session.config = config
    session.out = folder


def resolved_for(session: Session) -> RunConfig:
    """The configuration for this machine. A continuation keeps what may have been tuned since, or divided among another
    number of processes."""
    config = session.config
    if session.earlier:
        stored = session.earlier.info["load"]
        again = {name: stored[name] for name in KEPT_LOADING if name in stored}
        config = replace(config, loading=replace(config.loading, **again))
        resolved = resolve(config, session.processes)
        return replace(resolved, loading=replace(resolved.loading, **again))
    return resolve(config, session.processes)


def scan_images(session: Session) -> Scan:
    """The main process reads the images' headers; the others find them in the cache."""
    scan = None
    with session.processes.agreed():
        if session.processes.is_main:
            scan = find_images(session.resolved)
    with session.processes.agreed():
        scan = scan or find_images(session.resolved)
    assert scan is not None
    return scan


def load_job(session: Session, case: ModelCase, plan: NetworkPlan | None = None) -> Job:
    assert session.scan is not None
    return make_job(case, session.scan, session.resolved, session.processes, plan)


def make_plans(session: Session) -> tuple[dict[str, NetworkPlan], list[FailedModel]]:
    """What each network will do, by label, and those that cannot be loaded.

    Each network is loaded once and measured for some seconds; it is kept where there is only one. One that cannot be
    loaded, or takes longer than the time limit, is an error where it is the only one; else it is listed and left out.
    """
    from bench.measure.estimate import plan_of
    from bench.records import FailedModel

    plans = resume.read_plans(session.earlier.info) if session.earlier else {}
    new = [case for case in session.cases if case.label not in plans]
    only = len(session.cases) == 1
    failed: list[FailedModel] = []
    for case in new:
        try:
            with limits.time_limit(session.config.output.timeout):
                job = load_job(session, case)
                if note := job.note_on_classes():
                    log.info("%s", with_flags(note, flag_names()))
                plans[case.label] = plan_of(job)
        except Exception as error:
            raise_if_fatal(error, only)
            failed.append(FailedModel(case.label, "load", with_flags(reason_of(error), flag_names())))
            log.warning("%s is left out: %s", case.label, failed[-1].reason)
            continue
        if only:
            session.kept.append(job)
        del job
        if not only:
            free_memory()  # forty networks would not fit
    if not plans:
        raise UserError(
            f"none of the {len(failed)} networks can be run; {failed[0].label}, for example: {failed[0].reason}"
        )
    return plans, failed


def raise_if_fatal(error: Exception, only: bool) -> None:
    """Raise the error if the run cannot go on after it: ``only``, where there is no other network."""
    from models.predict import OutOfMemory

    if only and isinstance(error, (OutOfMemory, TimeoutError)):
        raise UserError(one_line(error)) from error
    if only or limits.is_fatal(error):
        raise error


def free_memory() -> None:
    """Of networks that are no longer needed: they refer to themselves, and torch keeps a GPU's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin(session: Session) -> None:
    """Write run.json, and what is known to have failed."""
    from bench import machine, records

    out, earlier = session.out, session.earlier
    environment = machine.environment()
    if earlier:
        resume.require_same_packages(earlier.info["environment"], environment)
        info = earlier.info
        info["resumed"].append(now())
    else:
        info = new_info(session, environment)
    info["models"] = [one.stored() for one in session.plans.values()]
    if earlier:
        remove_parts(out)
    resume.write_info(out, info)
    if earlier:
        records.drop_failures(out)
    if session.failed:
        records.extend(out, session.failed)


def new_info(session: Session, environment: dict[str, Any]) -> dict[str, Any]:
    """run.json of a new run, without its networks."""
    from bench import records

    assert session.scan is not None
    loading = session.resolved.loading
    return {
        "schema": records.SCHEMA,
        "command": ["multicrop-bench", "run", *session.argv],
        "directory": str(Path.cwd()),
        "started": now(),
        "resumed": [],
        "expected_s": round(sum(one.expected_s for one in session.plans.values()), 1),
        "networks": [case.label for case in session.cases],  # all that were asked for
        "policies": [policy.name for policy in cases.policies(session.config.measure)],
        "data": str(session.scan.root),
        "images_found": len(session.scan.table),
        "images_unreadable_at_scan": len(session.scan.unreadable),
        "other_files": dict(session.scan.other_files),
        "config": to_plain(session.config),
        "load": {"backend": loading.data_backend, **to_plain(loading)},
        "environment": environment,
    }


def now() -> str:
    """For people; no duration is ever a difference of two of them: that clock may jump."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def run_case(session: Session, case: ModelCase) -> None:
    """Score and time one network; phases that the folder already holds are skipped. A failure is recorded."""
    from bench import records
    from bench.measure.accuracy import accuracy_phase, partial_results
    from bench.measure.latency import latency_phase
    from bench.measure.same_images import require_same_images
    from bench.measure.throughput import throughput_phase

    plan, processes = session.plans[case.label], session.processes
    done = resume.finished_phases(session.earlier, records.Setting(**plan.setting)) if session.earlier else set()
    phases = {"accuracy": accuracy_phase, "throughput": throughput_phase, "latency": latency_phase}
    if done.issuperset(phases):
        return
    stage = "load"
    free_memory()  # not at the end: this function's own variables still hold its network there
    try:
        with processes.agreed(), limits.time_limit(session.config.output.timeout):
            job = session.kept.pop() if session.kept else load_job(session, case, plan)
            setting = job.setting()
            resume.require_same_setting(setting, plan, processes)
            resume.require_same_real_labels(job.real.file_hash if job.real else None, plan)
            if processes.is_main:
                require_same_images(job, partial_results(job, session.out).folder, session.out)
            for stage, phase in phases.items():
                if stage not in done:
                    found = list(phase(job, setting, session.out))
                    if processes.is_main:
                        records.extend(session.out, found)
            if processes.is_main:
                partial_results(job, session.out).remove()
    except Exception as error:
        if limits.is_fatal(error) or isinstance(error, Different):
            raise
        if not isinstance(error, EXPECTED_FAILURES) and not is_of_machine(error):
            traceback.print_exc()
        failed = records.FailedModel(case.label, stage, with_flags(reason_of(error), flag_names()))
        log.warning("%s failed: %s", case.label, failed.reason)
        if processes.is_main:
            records.extend(session.out, [failed])


def reason_of(error: Exception) -> str:
    """One line about what stopped a network, or the run."""
    return told(error) if is_of_machine(error) else one_line(error)


def unreadable_text(failed: Sequence[Sequence[str]]) -> str:
    """How many, and the first of them with the reason."""
    name, reason = failed[0]
    return f"{len(failed)} images cannot be read; {name}, for example: {reason}"


def dry_run(session: Session) -> int:
    """Print the cases and stop. Raises DatasetError for data that are not there."""
    from pipelines.data import scanning

    config = session.config
    if config.data.data is not None:
        scanning.require(config.data.data)
        if config.measure.accuracy and not (config.data.labels_file or config.data.class_map):
            scanning.refuse_several_sets(config.data.data)
    wanted = cases.policies(config.measure)
    for case in session.cases:
        print(case.label)
        if config.measure.accuracy:
            print(f"  accuracy, in one pass of {union(wanted).total} views: {', '.join(p.name for p in wanted)}")
        if config.measure.save_scores:
            print(f"  softmax scores kept of {', '.join(p.name for p in cases.score_policies(config.measure))}")
        if config.measure.throughput:
            print(f"  throughput at {', '.join(map(str, cases.crop_counts(config.measure, wanted)))} crops")
    return 0


def ask_about(session: Session) -> None:
    """Say how long the run will take. Raises UserError above half an hour, unless `yes`."""
    config, scan = session.config, session.scan
    assert scan is not None
    expected_s = sum(one.expected_s for one in session.plans.values())
    log.info("expected to take about %s", duration(expected_s))
    if expected_s <= ASK_ABOVE_S or config.output.yes:
        return
    images = max(1, min(config.data.limit or len(scan.table), len(scan.table) - config.data.skip))
    fits = max(1, int(images * ASK_ABOVE_S / expected_s * 0.8))
    measure, command = config.measure, ["multicrop-bench", "run", *session.argv]
    shorter = []
    if measure.accuracy:
        shorter.append([*command, *["--no-throughput"] * measure.throughput, "--limit", str(fits)])
    if measure.throughput:
        shorter.append([*command, *["--no-accuracy"] * measure.accuracy, "--rounds", "1"])
    raise UserError(
        f"this run would take about {duration(expected_s)} on this machine. Add `yes` to go on, or run a shorter one:\n"
        + "\n".join(f"  {shlex.join(one)}" for one in shorter)
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_unreadable(out: Path, scan: Scan, accounts: Sequence[ImageAccounting]) -> None:
    """unreadable.csv: every image that was left out, once."""
    import pandas as pd

    columns = ["name", "stage", "reason"]
    found = [*scan.unreadable[columns].to_numpy().tolist(), *(failed for one in accounts for failed in one.failed)]
    rows = {(name, stage): reason for name, stage, reason in found}
    table = pd.DataFrame([(*key, reason) for key, reason in sorted(rows.items())], columns=columns)
    write_whole(out / "unreadable.csv", csv_text(table, "\r\n"))


def finish(session: Session) -> int:
    """Summary, figures, table, paths; the last line of standard output is JSON. Returns the exit status."""
    from analysis import console
    from analysis.summary import write_summary
    from bench import records
    from pipelines.data.dataset import left_out_lines

    out, config = session.out, session.config
    assert session.scan is not None
    done = records.read_run(out)
    if not done.failed:  # left where a run was killed just before it removed them
        shutil.rmtree(out / records.PARTIAL_RESULTS, ignore_errors=True)
    write_unreadable(out, session.scan, done.image_accounts)
    summary = write_summary(out, done.records, done.failed)
    figures = draw(out) if config.output.figures else []
    known = published_beside(done)
    print(with_flags(console.text(done.records, known), flag_names()))
    for line in console.accounting_lines(done.image_accounts) + console.failure_lines(done.failed):
        print(f"\n{line}")
    when_decoded = {name: reason for one in done.image_accounts for name, _, reason in one.failed}
    for line in left_out_lines(when_decoded.items()):
        print(f"  {line}")
    models = console.headline(done.records, known)
    for one in models:
        one["not_measured"] = {what: with_flags(why, flag_names()) for what, why in one["not_measured"].items()}
    print("\nwritten:")
    for path in sorted(path.resolve() for path in out.iterdir() if not path.name.startswith(".")):
        print(f"  {path}")
    if config.output.results_file:
        print(f"  {write_timm_results(config.output.results_file, config.output.results_format, done)}")
    result = {
        "out": str(out.resolve()),
        "summary": str(summary.resolve()),
        "figures": [str(path) for path in figures],
        "elapsed_s": round(time.monotonic() - session.started_s, 1),
        "models": models,
        "images": console.accounting_headline(done.image_accounts),
        "failed": [{"model": one.label, "stage": one.stage, "reason": one.reason} for one in done.failed],
    }
    print(json.dumps(result))
    if config.output.strict:
        lost = {name: why for one in done.image_accounts for name, _, why in one.failed}
        if lost:
            tell(f"error: `strict`: {unreadable_text(list(lost.items()))}")
            return UNREADABLE
    if not any(isinstance(one, records.Accuracy | records.Throughput) for one in done.records):
        tell("error: nothing was measured: the reasons are above")
        return FAILED
    return FAILED if done.failed else 0


def published_beside(done: Run) -> list[Comparison]:
    """The published centre crops beside the measured ones. A damaged file of published figures costs these only."""
    from analysis import known_answers

    try:
        return known_answers.comparisons(done)
    except (ValueError, OSError) as error:
        log.warning("the published figures cannot be read: %s", one_line(error))
        return []


def write_timm_results(path: Path, form: str, done: Run) -> Path:
    """--results-file: the centre crops as timm's validate.py writes them. Returns the absolute path."""
    from analysis.known_answers import timm_rows

    rows = timm_rows(done)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, rows.to_json(orient="records", indent=4) if form == "json" else csv_text(rows))
    return path.resolve()


def draw(out: Path) -> list[Path]:
    """The run's figures. If they cannot be drawn the numbers are safe: a warning is logged."""
    try:
        from analysis.make_figures import make_figures

        drawn = make_figures([out], keep_going=True)
    except Exception as error:
        log.warning("the figures could not be drawn: %s; the numbers are complete", one_line(error))
        return []
    for name, reason in drawn.failed.items():
        log.warning("the figure %s could not be drawn: %s; the numbers are complete", name, reason)
    return sorted(drawn.paths)


def end(status: int) -> NoReturn:
    """End the process. One of several ends without the interpreter's own shutdown, in which a process that had finished
    its work was seen to abort ("terminate called without an active exception", exit status -6, once in some hundred
    ends); torchrun then stops the others."""
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    logs.prepare_streams()
    logs.without_decoder_messages()
    end(main())
