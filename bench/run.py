"""The benchmark: accuracy and images per second of multi-crop inference.

    python bench/run.py --family nfnet --crops 1,2,5,10,20                    # demo data, nothing downloaded
    python bench/run.py --family nfnet --crops 1,2,5,10,20 --data imagenet/val
    python bench/run.py --models resnet50.a1_in1k --policies CC,10RC+10MRC --data imagenet/val

Accuracy: every readable image once, the views of all policies evaluated in one pass, every policy averaged at the
feature, logit and softmax level. Throughput: the pipeline alone, the network alone, both together, at each crop count.

A run that was interrupted goes on with ``--resume``; several processes share it under ``torchrun``; a network of a
sweep that fails is recorded, and the others go on.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:  # run as `python bench/run.py`: search the repo root, not bench/ (which could shadow stdlib names)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import cases, plan, processes
from bench.options import build_parser, given, parse
from bench.setup import UserError, default_weights, find_images, make_job, make_options, say
from pipelines.crops import Policy, union

if TYPE_CHECKING:
    from bench.job import Job, Options
    from bench.plan import Plan
    from bench.records import FailedModel, Ledger, Run
    from pipelines.data.dataset import Scan

ROOT = Path(__file__).resolve().parents[1]
ASK_ABOVE_S = 30 * 60
LOAD_FIELDS = ("backend", "workers", "prefetch", "hw_load", "mmap", "cut")
# Exit statuses beside 0; 130 and 143 are a shell's for the two signals.
UNREADABLE, USERS, FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143
PATH_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
EXPECTED_ERRORS = (UserError, ValueError, *PATH_ERRORS)  # their text is enough
EXPECTED_FAILURES = (*EXPECTED_ERRORS, RuntimeError, TimeoutError)


class Terminated(BaseException):
    """SIGTERM: torchrun's, when another process died, or a batch system's."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 for --strict and unreadable images, or a run that had to stop; 2 for what the user
    can mend; 3 when a network of the run failed; 130 after Ctrl-C, 143 after SIGTERM."""
    args = parse(argv)
    began: list[Path] = []  # the run's folder, from when it is there

    def hint() -> str:
        program = "torchrun ... bench/run.py" if "RANK" in os.environ else "python bench/run.py"
        return f"; what is done is kept: {program} --resume {shlex.quote(str(began[0]))}" if began else ""

    try:
        with stoppable():
            return run(args, began)
    except EXPECTED_ERRORS as error:
        tell(f"error: {error}")
        return USERS
    except Exception as error:
        if not plan.is_fatal(error):
            raise
        tell(f"error: {plan.reason(error)}{hint()}")
        return 1
    except KeyboardInterrupt:
        tell(f"\ninterrupted{hint()}")
        return INTERRUPTED
    except Terminated:
        why = " (another process of the run may have died: its message is above)" if "RANK" in os.environ else ""
        tell(f"\nstopped by SIGTERM{why}{hint()}")
        return TERMINATED


def tell(text: str) -> None:
    """On standard error, by every process, as whole lines: ``print`` would let another's come between text and end."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


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


def run(args: argparse.Namespace, began: list[Path]) -> int:
    """Expand, load, estimate; then for each network score, time and write. Returns the exit status."""
    started = time.monotonic()
    earlier = None
    if args.resume:
        args, earlier = continued(args)
    weights = default_weights(args)
    model_cases = cases.model_cases(args, demo=weights == "demo")
    policies = cases.policies(crops=args.crops, named=args.policies)
    if earlier:
        plan.require_same_networks([case.label for case in model_cases], earlier.info)
    if args.dry_run:
        return dry_run(args, model_cases, policies)
    everyone = processes.join()
    out = everyone.share(lambda: earlier.folder if earlier else new_folder(args).resolve())
    say("loading torch, timm and the data backend ...")
    options = make_options(args, weights, policies, everyone)
    if earlier:
        began.append(out)
        options = as_before(options, earlier)
    scan = scanned(args, options)
    if args.strict and len(scan.unreadable):
        lost = scan.unreadable[["name", "reason"]].to_numpy().tolist()
        print(f"error: --strict: {unreadable_text(lost)}", file=sys.stderr)
        return UNREADABLE
    kept: list[Job] = []  # the only network need not be loaded twice
    plans, failed = everyone.share(lambda: planned(model_cases, scan, options, earlier, kept, args.timeout))
    with ExitStack() as while_writing:
        with everyone.agreed():
            if everyone.first:
                if not earlier:
                    ask_about(sum(one.expected_s for one in plans.values()), args, scan)
                labels = [case.label for case in model_cases]
                begin(out, args, labels, policies, list(plans.values()), failed, scan, options, earlier, while_writing)
        began[:] = [out]
        for case in model_cases:
            if case.label in plans:
                run_case(case, plans[case.label], out, scan, options, args.timeout, earlier, kept)
        # Of the others always 0: torchrun ends all processes when one fails, and the first is still writing.
        status = finish(out, args, started, scan) if everyone.first else 0
    everyone.leave()
    return status


def continued(args: argparse.Namespace) -> tuple[argparse.Namespace, Run]:
    """``--resume``: the flags with which the run was begun, and what it has written. Raises UserError, naming the flag,
    when the command line asks for another run."""
    folder = args.resume.resolve()
    earlier = plan.read_resumable(folder)
    if args.out and args.out.resolve() != folder:
        raise UserError(f"--resume {args.resume} goes on in that folder: leave --out {args.out} out")
    command = earlier.info["command"][2:]
    here = given(args.argv)
    plan.require_same_flags(here, vars(build_parser().parse_args(command)))
    directory = Path(earlier.info["directory"])
    if directory != Path.cwd() and directory.is_dir():
        os.chdir(directory)  # the command's relative paths began there
    again = parse(command)
    for name in plan.FREE_FLAGS & here.keys():
        setattr(again, name, here[name])
    return again, earlier


def as_before(options: Options, earlier: Run) -> Options:
    """What may have been tuned since, or divided among another number of processes."""
    load = earlier.info["load"]
    again = {name: load[name] for name in ("workers", "prefetch", "hw_load")}
    return replace(options, cut=load.get("cut"), **again)  # `cut` came later


def scanned(args: argparse.Namespace, options: Options) -> Scan:
    """The first process reads the images' headers; the others find them in the cache."""
    scan = None
    with options.processes.agreed():
        if options.processes.first:
            scan = find_images(args, options.workers)
    with options.processes.agreed():
        scan = scan or find_images(args, options.workers)
    assert scan is not None
    return scan


def planned(
    model_cases: Sequence[cases.ModelCase],
    scan: Scan,
    options: Options,
    earlier: Run | None,
    kept: list[Job],
    timeout: float | None,
) -> tuple[dict[str, Plan], list[FailedModel]]:
    """What each network will do, by label, and those that cannot be loaded."""
    plans = plan.read_plans(earlier.info) if earlier else {}
    new = [case for case in model_cases if case.label not in plans]
    made, failed, job = plan.make_plans(new, lambda case: make_job(case, scan, options), bool(plans), timeout)
    kept += [job] if job else []
    return plans | {one.label: one for one in made}, failed


def begin(
    out: Path,
    args: argparse.Namespace,
    networks: list[str],
    policies: list[Policy],
    plans: list[Plan],
    failed: list[FailedModel],
    scan: Scan,
    options: Options,
    earlier: Run | None,
    while_writing: ExitStack,
) -> None:
    """run.json, and what is known to have failed. From here on the folder is this process's alone."""
    from bench import machine, records

    environment = machine.environment()
    if earlier:
        plan.require_same_packages(earlier.info["environment"], environment)
        info = earlier.info
        info["resumed"].append(now())
    else:
        info = {
            "schema": records.SCHEMA,
            "command": ["python", "bench/run.py", *args.argv],
            "directory": str(Path.cwd()),
            "started": now(),
            "resumed": [],
            "expected_s": round(sum(one.expected_s for one in plans), 1),
            "networks": networks,  # all that were asked for
            "policies": [policy.name for policy in policies],
            "data": str(scan.root),
            "images_unreadable_at_scan": len(scan.unreadable),
            "load": {name: getattr(options, name) for name in LOAD_FIELDS},
            "environment": environment,
        }
    info["models"] = [one.stored() for one in plans]
    if not earlier:
        plan.write_info(out, info)
    while_writing.enter_context(plan.locked(out))
    if earlier:
        plan.sweep(out)
        plan.write_info(out, info)
        records.drop_failures(out)
    if failed:
        records.extend(out, failed)


def now() -> str:
    """For people; no duration is ever a difference of two of them: that clock may jump."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def run_case(
    case: cases.ModelCase,
    one: Plan,
    out: Path,
    scan: Scan,
    options: Options,
    timeout: float | None,
    earlier: Run | None,
    kept: list[Job],
) -> None:
    """Score and time one network; what stands in the folder already is not done again. How it fails is recorded."""
    from bench import records
    from bench.job import PHASES

    stage = "load"
    done = plan.finished_phases(earlier, records.Setting(**one.setting)) if earlier else set()
    if done.issuperset(PHASES):
        return
    plan.free_memory()  # not at the end: this function's own variables still hold its network there
    try:
        with options.processes.agreed(), plan.time_limit(timeout):
            job = kept.pop() if kept else make_job(case, scan, options, one)
            setting = job.setting()
            plan.require_same_setting(setting, one, options.processes)
            plan.require_same_real_labels(job.real.file_hash if job.real else None, one)
            for stage in PHASES:
                if stage not in done:
                    found = list(job.phase(stage, setting, out))
                    if options.processes.first:
                        records.extend(out, found)
            job.tidy(out)
    except Exception as error:
        if plan.is_fatal(error) or isinstance(error, plan.Different):
            raise
        if not isinstance(error, EXPECTED_FAILURES):
            traceback.print_exc()
        failed = records.FailedModel(case.label, stage, plan.reason(error))
        say(f"{case.label} failed: {failed.reason}")
        if options.processes.first:
            records.extend(out, [failed])


def unreadable_text(failed: Sequence[Sequence[str]]) -> str:
    """How many, and the first of them with the reason."""
    name, reason = failed[0]
    return f"{len(failed)} images cannot be read; {name}, for one: {reason}"


def dry_run(args: argparse.Namespace, model_cases: list[cases.ModelCase], policies: list[Policy]) -> int:
    """Print the cases and stop. Raises DatasetError for data that are not there."""
    from pipelines.data import dataset

    if args.data is not None:
        dataset.require(args.data)
    crops = cases.crop_counts(args.crops, policies)
    for case in model_cases:
        print(case.label)
        if not args.no_accuracy:
            print(f"  accuracy, in one pass of {union(policies).total} views: {', '.join(p.name for p in policies)}")
        if not args.no_throughput:
            print(f"  throughput at {', '.join(map(str, crops))} crops")
    return 0


def new_folder(args: argparse.Namespace) -> Path:
    """Where the results go; made only when the run begins. Never a folder that exists."""
    if args.out:
        if args.out.exists():
            raise UserError(f"--out {args.out} exists; results are never written over others: name a new folder")
        return args.out
    stem = args.family or "models"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{stem}-{stamp}"
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{stem}-{stamp}-{number}"
        number += 1
    return folder


def ask_about(expected_s: float, args: argparse.Namespace, scan: Scan) -> None:
    """Say how long it will take. Raises UserError above half an hour, unless ``--yes``."""
    say(f"expected to take about {duration(expected_s)}")
    if expected_s <= ASK_ABOVE_S or args.yes:
        return
    images = min(args.limit or len(scan.table), len(scan.table))
    fits = max(1, int(images * ASK_ABOVE_S / expected_s * 0.8))
    command = ["python", "bench/run.py", *args.argv]
    shorter = []
    if not args.no_accuracy:
        shorter.append([*command, *["--no-throughput"] * (not args.no_throughput), "--limit", str(fits)])
    if not args.no_throughput:
        shorter.append([*command, *["--no-accuracy"] * (not args.no_accuracy), "--rounds", "1"])
    raise UserError(
        f"this run would take about {duration(expected_s)} on this machine. Add --yes to go on, or run what fits:\n"
        + "\n".join(f"  {shlex.join(one)}" for one in shorter)
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_unreadable(out: Path, scan: Scan, ledgers: Sequence[Ledger]) -> None:
    """unreadable.csv: every image that was left out, once."""
    from bench import records

    rows = {
        (name, stage): reason
        for name, stage, reason in scan.unreadable[["name", "stage", "reason"]].itertuples(index=False)
    }
    rows |= {(name, stage): reason for one in ledgers for name, stage, reason in one.failed}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "stage", "reason"])
    writer.writerows([name, stage, reason] for (name, stage), reason in sorted(rows.items()))
    records.write_whole(out / "unreadable.csv", text.getvalue())


def finish(out: Path, args: argparse.Namespace, started: float, scan: Scan) -> int:
    """Summary, figures, table, paths; the last line of standard output is JSON. Returns the exit status."""
    from analysis import console
    from analysis.summary import write_summary
    from bench import records
    from bench.shards import FOLDER

    done = records.read_run(out)
    if not done.failed:  # left where a run was killed just before it removed them
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    write_unreadable(out, scan, done.ledgers)
    summary = write_summary(out, done.records, done.failed)
    figures = [] if args.no_figures else draw(out)
    print(console.text(done.records))
    for line in console.ledger_lines(done.ledgers) + console.failure_lines(done.failed):
        print(f"\n{line}")
    print("\nwritten:")
    for path in sorted(path.resolve() for path in out.iterdir()):
        print(f"  {path}")
    result = {
        "out": str(out.resolve()),
        "summary": str(summary.resolve()),
        "figures": [str(path) for path in figures],
        "elapsed_s": round(time.monotonic() - started, 1),
        "models": console.headline(done.records),
        "images": console.ledger_headline(done.ledgers),
        "failed": [{"model": one.label, "stage": one.stage, "reason": one.reason} for one in done.failed],
    }
    print(json.dumps(result))
    if args.strict and (lost := {name: why for one in done.ledgers for name, _, why in one.failed}):
        print(f"error: --strict: {unreadable_text(list(lost.items()))}", file=sys.stderr)
        return UNREADABLE
    return FAILED if done.failed else 0


def draw(out: Path) -> list[Path]:
    """The figures, by a program of their own: the room of drawing is below this one."""
    script = ROOT / "analysis" / "make_figures.py"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"the figures could not be drawn: {done.stderr.strip().splitlines()[-1:]}; the numbers are safe")
        return []
    return sorted(path.resolve() for path in out.glob("*.png"))


def end(status: int) -> NoReturn:
    """End the process. One of several goes without the interpreter's own end: there a process whose work was done and
    written was seen to abort ("terminate called without an active exception", exit status -6, once in some hundred
    ends), for which torchrun stops the others."""
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    end(main())
