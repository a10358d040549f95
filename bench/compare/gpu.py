"""Everything that only a machine with an NVIDIA GPU can show, step by step, with nothing downloaded.

    multicrop-bench compare gpu                      # or: make gpu; 25 minutes
    multicrop-bench compare gpu --minutes 120        # goes on where the last call stopped
    multicrop-bench compare gpu --dry-run            # the steps, which are done, and how long the others take
    multicrop-bench compare gpu --device cpu --quick # every step in miniature on a CPU: does the command work?

Steps are ordered by value: the network alone first, which needs no DALI. A step that fails is noted with its reason and
the others go on; one that the time ran out for is begun again in the next call. One that a whole call was too short for
is given up. To repeat a step, remove its line from steps.jsonl.

Results lie in ``results/<gpu>/``: network/, tune/, preset/, parity/, runs/ (random weights, generated JPEGs with
ImageNet's distribution of sizes), kernels.csv, loaders/, logs/ with each step's messages, steps.jsonl (what each took
and how it ended) and targets.csv: what was wanted, what was measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.compare.gpu_steps import ROOT, GpuConfig, Step, require_gpu, steps
from bench.errors import exit_status
from bench.files import locked
from bench.options import group_flags, parse_group
from pipelines.schemas import DamagedFile, checked_fields, read_json_lines
from pipelines.workers import safe_start

MIN_SECONDS = 20.0  # with less left, no step is begun
ALL_DONE, FAILED, UNFINISHED = 0, 1, 3  # exit statuses
OK, STEP_FAILED, CUT_OFF, TOO_LONG = "ok", "failed", "cut off", "too long"  # how a step ended

Ends = dict[str, dict[str, Any]]  # step -> its line in steps.jsonl: end, took_s, reason where it is not ok


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is done, 3 when steps are left, 1 when steps failed, 2 for what the user can mend."""
    config = parse_group(argv, "multicrop-bench compare gpu", __doc__, GpuConfig)
    return exit_status(lambda: compare(config), group_flags(GpuConfig))


def compare(config: GpuConfig) -> int:
    """Do what is not done while there is time. Raises UserError without a GPU."""
    out = config.out or ROOT / "results" / gpu_folder(config.device)
    todo, ends = steps(config), finished(out)
    if config.dry_run:
        print("\n".join(overview(todo, ends)))
        return ALL_DONE
    require_gpu(config)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with locked(out):
        return compare_locked(out, config, todo)


def compare_locked(out: Path, config: GpuConfig, todo: Sequence[Step]) -> int:
    """``compare`` in a folder that is locked."""
    ends = finished(out)
    if not config.quick:
        restore_tuning(out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running step is ended too
    status = work(out, config, todo, ends)
    report(out, ends)
    return status


def gpu_folder(device: str) -> str:
    """``nvidia-h100-80gb-hbm3``."""
    from bench.machine import gpu_name

    text = (gpu_name() if device == "cuda" else None) or device
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def restore_tuning(out: Path) -> None:
    """Settings that an earlier call found, where this machine's cache lacks them."""
    from bench.measure import tuned

    if (out / "tune" / tuned.FILE).is_file():
        tuned.restore(out / "tune")


STEP_END: dict[str, Any] = {"step": str, "took_s": float, "end": str}


def finished(out: Path) -> Ends:
    """The steps that no further call will do."""
    path = out / "steps.jsonl"
    ends = {}
    for number, line in enumerate(read_json_lines(path), 1):
        end = checked_fields(line, STEP_END, f"{path}, line {number}")
        if missing := sorted(STEP_END.keys() - end.keys()):
            raise DamagedFile(f"{path}, line {number}: `{missing[0]}` is missing")
        ends[end["step"]] = end
    return ends


def overview(todo: Sequence[Step], ends: Ends) -> list[str]:
    """The steps in order, what the finished ones took, and when each of the others is expected to end."""
    lines, minutes = [], 0.0
    for step in todo:
        if step.name in ends:
            lines.append(f"{ends[step.name]['took_s']:6.0f} s  {ends[step.name]['end']:8s}  {step.name}")
        else:
            minutes += step.expected_s / 60
            lines.append(f"{step.expected_s:6.0f} s  to do     {step.name}  (after {minutes:.0f} minutes)")
    return [*lines, f"about {minutes:.0f} minutes are left, on an H100"]


Attempt = Callable[[Step, Path, GpuConfig, float], str]


def work(
    out: Path,
    config: GpuConfig,
    todo: Sequence[Step],
    ends: Ends,
    attempt: Attempt | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Do the steps whose expected time is left, in order; the first is begun in any case. Adds to ``ends``."""
    attempt = attempt or in_process
    deadline, is_first = clock() + 60 * config.minutes, True
    for step in todo:
        left_s = deadline - clock()
        if step.name in ends or not (is_first or left_s >= max(MIN_SECONDS, step.expected_s)):
            continue
        if missing := [name for name in step.needs if not importable(name)]:
            print(f"{step.name}: not begun: {', '.join(missing)} is not installed", flush=True)
            continue
        print(f"{step.name} ...", flush=True)
        remove(step, out)
        start = clock()
        end = attempt(step, out, config, left_s)
        if end == CUT_OFF and not is_first:
            print(f"{step.name} was cut off after {left_s:.0f} s; it is begun again in the next call", flush=True)
            remove(step, out)
            break
        ends[step.name] = note(step, out, TOO_LONG if end == CUT_OFF else end, clock() - start)
        is_first = False
    return conclusion(todo, ends)


def conclusion(todo: Sequence[Step], ends: Ends) -> int:
    """Print what is left or failed; the exit status."""
    if left := [step.name for step in todo if step.name not in ends]:
        print(f"{len(left)} steps are left, {left[0]} first: run the command again")
        return UNFINISHED
    failed = [step.name for step in todo if ends[step.name]["end"] != OK]
    print(f"all is done; failed: {', '.join(failed)} (their messages are in logs/)" if failed else "all is done")
    return FAILED if failed else ALL_DONE


def note(step: Step, out: Path, end: str, took_s: float) -> dict[str, Any]:
    """Add a line to steps.jsonl."""
    line: dict[str, Any] = {"step": step.name, "end": end, "took_s": round(took_s, 1)}
    if end != OK:
        line["reason"] = f"not done after {took_s:.0f} s" if end == TOO_LONG else last_line(log_of(step, out))
        print(f"{step.name}: {end}: {line['reason']}", flush=True)
    with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line


def importable(name: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False


def remove(step: Step, out: Path) -> None:
    """Remove what an earlier attempt wrote."""
    path = out / step.writes
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def in_process(step: Step, out: Path, config: GpuConfig, left_s: float) -> str:
    """Run a step in a process of its own: how it ended. Its messages go into logs/."""
    log = log_of(step, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    child = get_context("spawn").Process(target=run_step, args=(step, out, config, log))
    with safe_start():
        child.start()
    try:
        child.join(left_s)
        if child.is_alive():
            return CUT_OFF
        return OK if child.exitcode == 0 else STEP_FAILED
    finally:
        if child.is_alive() and child.pid is not None:  # too long, or Ctrl-C: ended with the processes it started
            end_group(child.pid)
            child.join()


def end_group(pid: int) -> None:
    """Kill a process group; the process alone where it has not made its own group yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


def run_step(step: Step, out: Path, config: GpuConfig, log: Path) -> None:
    """The child's side: a process group of its own, output into the log."""
    os.setsid()
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    from bench import logs

    logs.set_up()
    sys.exit(exit_status(lambda: step.function(out, config, **step.arguments), {}))


def log_of(step: Step, out: Path) -> Path:
    return out / "logs" / f"{step.name.replace(':', '-')}.txt"


def last_line(log: Path) -> str:
    """The last message of a failed step; of a progress bar its last state."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def report(out: Path, ends: Ends) -> None:
    """Write and print the table of targets."""
    from analysis import gpu_targets

    def why(name: str) -> str:
        """Why a step, or the first of several whose names begin so, left no figure."""
        mine = [line for step, line in ends.items() if step == name or step.startswith(f"{name}-")]
        bad = [f"{line['end']}: {line['reason']}" for line in mine if line["end"] != OK]
        return bad[0] if bad else f"{name} left no figure of it" if mine else f"{name} is still to do"

    found = gpu_targets.targets(out, why)
    gpu_targets.write(out / "targets.csv", found)
    print("\n".join(gpu_targets.text(found)))
    took_s = {name: line["took_s"] for name, line in ends.items()}
    print(json.dumps({"out": str(out.resolve()), "steps_s": took_s}))
