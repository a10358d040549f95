"""Search networks, sizes and crops on this machine, and recommend one: from images to a recipe in one command.

    multicrop-bench recommend --data DIR --models resnet50.a1_in1k,resnet18.a1_in1k --img-size 160,224 \\
        --target 'images_per_sec>=500' --minutes 60
    multicrop-bench recommend RUN... --target 'images_per_sec>=500'     # from runs that are there (analysis.recommend)

Every network at every size is screened on a few images with few crops, first on a third of them, those that are left on
the others too, and dropped where it cannot be the answer: it is significantly worse than the best, or far from a target
(analysis.screening). Those that are left are measured on all images: with the fastest setting that gives the plain
network's answers, every policy in one pass, and timed end to end. The screened images and half of the others choose;
the rest reports. Where time is short there are fewer images, and the least promising networks are left out, which is
said. An interrupted search goes on when the same command is given again.

Beside the options below, all of multicrop-bench run say what is measured; without --crops and --policies every kind of
policy is: random, fixed and dense crops, and early stopping.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import recommend
from analysis.candidates import METRICS, Candidate, Candidates, candidates
from analysis.recommend import FEWEST_IMAGES, TOP1, Target, parse_target
from analysis.screening import LEVEL, Key, Verdict, joined, key_of, promising_first, verdicts
from analysis.screening_figure import write_screening
from bench import run, values
from bench.compare.search_options import (
    NETWORK_FLAGS,
    OWN_FLAGS,
    Case,
    cases_of,
    expected_s,
    final_options,
    image_flags,
    limit_of,
    screen_options,
    with_policies,
)
from bench.errors import exit_status
from bench.options import flag_names
from bench.records import Run, Setting, read_run
from bench.resume import finished_phases
from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, checked_fields, read_json

log = logging.getLogger(__name__)
SCREEN_IMAGES = 300
MINUTES = 7.0
LOOKS = 2
ALWAYS = ["--no-figures", "--yes"]
FEWEST = 3 * FEWEST_IMAGES  # that choose and report: halves are of chance
MOST = 0.75  # a choice among fewer networks on so many images is better than one among more on fewer
SECOND_LOOK = 0.4  # of the time that is left may be spent on it
GOES_ON = "the search goes on when the same command is given again"


class Stopped(Exception):
    """A run of the search ended with another exit status than 0."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Search:
    """What was asked for, where it is kept, and how time goes by."""

    options: list[str]  # of multicrop-bench run
    targets: list[Target]
    out: Path
    minutes: float
    screen_images: int
    started_s: float = field(default_factory=time.monotonic)
    pace: float = 1.3  # of the passes, over their estimates: decoding and averaging beside the network

    @property
    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.started_s)

    @property
    def metrics(self) -> list[str]:
        return [target.metric for target in self.targets]

    @property
    def first_look(self) -> int:
        """Images."""
        return max(1, self.screen_images // 3)

    def say(self, text: str) -> None:
        used_min = (time.monotonic() - self.started_s) / 60
        print(f"[{used_min:.1f} of {self.minutes:g} min] {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: that of ``analysis.recommend`` for runs; of a search 0, or 2 for what the user can
    correct, 130 after Ctrl-C, or that of a run that failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = {one.partition("=")[0] for one in arguments}
    if not flags & set(NETWORK_FLAGS):
        if "--data" in flags:
            print("error: --data DIR is searched with networks: add --models NAMES, by commas", file=sys.stderr)
            return 2
        return recommend.main(arguments)
    own, options = parse(arguments)
    try:
        return exit_status(lambda: searched(own, options), flag_names(), f"interrupted; {GOES_ON}")
    except Stopped as stopped:
        if stopped.status == run.INTERRUPTED:
            print(GOES_ON, file=sys.stderr)
        return stopped.status


def searched(own: argparse.Namespace, options: list[str]) -> int:
    """The search that the command line asks for. Raises ValueError for what it cannot be, Stopped where a run fails."""
    if settled := [one for one in options if one.partition("=")[0] in OWN_FLAGS]:
        raise ValueError(f"{settled[0].partition('=')[0]} is settled by the search: leave it out")
    if own.out.exists():
        raise ValueError(f"--out {own.out} exists; recipes are never written over others: name a new file")
    targets = [parse_target(text) for text in own.target]
    return search(Search(with_policies(options), targets, own.folder, own.minutes, own.screen_images), own)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The search's own options, and those of a run."""
    parser = values.Parser(
        prog="multicrop-bench recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join((TOP1, *METRICS))
    parser.add_argument("--target", action="append", default=[], metavar="NAME>=X", help=f"of {names}; repeatable")
    parser.add_argument(
        "--minutes",
        type=values.for_argparse(values.minutes),
        default=MINUTES,
        metavar="M",
        help="take about so long: fewer images where needed (default: %(default)g)",
    )
    parser.add_argument(
        "--screen-images",
        type=values.for_argparse(values.positive),
        default=SCREEN_IMAGES,
        metavar="N",
        help="that screen and choose, and never report (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/search"), help="of the runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("recipe.json"), metavar="FILE", help="default: recipe.json")
    return parser.parse_known_args(list(arguments))


def search(asked: Search, own: argparse.Namespace) -> int:
    """Screen, measure what is left, choose, write the recipe; what was dropped, when and why is in screening.csv and
    screening.png."""
    begin(asked)
    first = first_look(asked)
    cases, total = cases_of(first), images_of(first, asked)
    found, judged = judge(asked, [candidates([first])], cases)
    used = asked.first_look
    alive = {key: cases[key] for key, verdict in judged.items() if verdict.kept}
    if len(alive) > 1 and (more := second_look_images(asked, list(alive.values()), total)):
        looks = [candidates([first]), candidates(look(asked, alive, used, more))]
        found, again = judge(asked, looks, alive)
        used, judged = used + more, judged | again
        alive = {key: case for key, case in alive.items() if judged[key].kept}
    ranked = dict(sorted(alive.items(), key=lambda item: promising_first(judged[item[0]], asked.targets)))
    runs, left_out = finals(asked, ranked, used, total)
    judged |= {key: replace(judged[key], kept=False, step="final", reason=why) for key, why in left_out.items()}
    picture = write_screening(asked.out, list(judged.values()), demo=found.found[0].setting.is_demo)
    status = recommend.conclude(runs, asked.targets, own.out, frozenset(found.names))
    print(f"what was dropped, when and why: {(asked.out / 'screening.csv').resolve()}, {picture.name}")
    return status


def begin(asked: Search) -> None:
    """The folder, with what was asked for. Raises ValueError where it holds the runs of another search."""
    note = asked.out / "search.json"
    targets = [str(one) for one in asked.targets]
    text = json.dumps({"options": asked.options, "targets": targets, "screen_images": asked.screen_images})
    has_runs = any(asked.out.glob("*/run.json"))  # else a mistake ended it before anything was measured
    if has_runs and note.is_file() and note.read_text(encoding="utf-8") != text:
        raise ValueError(f"{asked.out} holds another search: give --folder a new name, or the same options again")
    asked.out.mkdir(parents=True, exist_ok=True)
    write_whole(note, text)


def first_look(asked: Search) -> Run:
    """All networks at all sizes on the first images."""
    images = min([asked.first_look, *filter(None, [limit_of(asked.options)])])
    asked.say(f"screening 1 of {LOOKS}: every network at every size, {images} images, few crops")
    started = time.monotonic()
    found = measure(asked, "screen-1", [*screen_options(asked.options, asked.metrics), *image_flags(0, images)])
    predicted = expected_s(list(cases_of(found).values()), images, screen_options(asked.options, asked.metrics))
    if (took := time.monotonic() - started) > 1:  # it was not there already
        asked.pace = min(4.0, max(1.0, took / predicted))
    return found


def look(asked: Search, alive: Mapping[Key, Case], skip: int, images: int) -> list[Run]:
    """Those that are left, on the next images."""
    asked.say(f"screening 2 of {LOOKS}: {len(alive)} on {images} more images")
    options = screen_options(asked.options, asked.metrics, of_case=True)
    return [
        measure(asked, f"screen-2-{file_name(case)}", [*options, *case.flags, *image_flags(skip, images)])
        for case in alive.values()
    ]


def judge(
    asked: Search, looks: Sequence[Candidates], cases: Mapping[Key, Case]
) -> tuple[Candidates, dict[Key, Verdict]]:
    """What is dropped after these looks, and what is left; both are said."""
    found = joined(looks)
    names = {key: case.name for key, case in cases.items()}
    judged = verdicts(found, names, asked.targets, rate_of(cases), f"screening {len(looks)}", LEVEL / LOOKS)
    for verdict in judged.values():
        if not verdict.kept:
            print(f"  dropped: {verdict.name}: {verdict.reason}")
    left = [f"{one.name} ({one.top1:.1f})" for one in judged.values() if one.kept]
    asked.say(f"{len(left)} of {len(judged)} are left after {len(found.names)} images (top-1, %): {', '.join(left)}")
    return found, judged


def rate_of(cases: Mapping[Key, Case]) -> Callable[[Candidate], float | None]:
    """Images per second of a setting: as timed, or else from what its network and its pipeline seemed to do."""

    def rate(one: Candidate) -> float | None:
        seconds = cases[key_of(one)].seconds_per_image(one.forwards) if key_of(one) in cases else 0.0
        return one.images_per_sec or (1 / seconds if seconds else None)

    return rate


def finals(asked: Search, alive: Mapping[Key, Case], used: int, total: int) -> tuple[list[Run], dict[Key, str]]:
    """Each of those that are left, the most promising first: on the ``used`` images, which choose, and on those after
    them. And which were left out for want of time, with the reason."""
    options = final_options(asked.options, asked.metrics)
    if total - used < FEWEST:
        raise ValueError(
            f"{total} images, {used} of them for screening, leave too few to choose and to report on: give "
            f"--screen-images a smaller number, or more images"
        )
    images = settled(asked, "final", lambda: affordable(asked, list(alive.values()), options, total, used))
    runs: list[Run] = []
    for number, case in enumerate(alive.values()):
        rest = list(alive.values())[number:]
        needs = expected_s([case], used + images, options, asked.pace)
        if runs and needs > asked.seconds_left and not (asked.out / final_name(case)).is_dir():
            asked.say(f"no time is left for {len(rest)} of {len(alive)} networks (--minutes)")
            return runs, dict.fromkeys(list(alive)[number:], "no time was left to measure it (--minutes)")
        left = run.duration(expected_s(rest, used + images, options, asked.pace))
        asked.say(
            f"measuring {number + 1} of {len(alive)}: {case.name}, {used + images:,} of {total:,} images, about {left} "
            "left"
        )
        runs.append(measure(asked, final_name(case), [*options, *case.flags, *image_flags(0, used + images)]))
    return runs, {}


def final_name(case: Case) -> str:
    return f"final-{file_name(case)}"


def file_name(case: Case) -> str:
    """For folders."""
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in case.name)


def measure(asked: Search, name: str, options: Sequence[str]) -> Run:
    """One run, its table in log-NAME.txt; what is complete is not repeated. Raises Stopped where it failed, but not
    where some networks failed and others did not."""
    folder = asked.out / name
    has_begun = (folder / "run.json").is_file()
    if has_begun and is_complete(read_run(folder)):
        return read_run(folder)
    place = ["--resume", str(folder)] if has_begun else ["--out", str(folder)]
    arguments = [*([] if has_begun else options), *place, *ALWAYS]
    with (asked.out / f"log-{name}.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = run.main(arguments)
    if status and not (status == run.FAILED and read_run(folder).accuracies):
        raise Stopped(status)
    return read_run(folder)


def is_complete(found: Run) -> bool:
    """Whether every network of a run has been scored and timed, or has failed."""
    phases = {"accuracy", "throughput", "latency"}
    done = [phases <= finished_phases(found, Setting(**model["setting"])) for model in found.info["models"]]
    return sum(done) + len(found.failed) >= len(found.info["networks"])


def images_of(first: Run, asked: Search) -> int:
    """How many images the search has: all that the folder holds, or the user's --limit."""
    return min([int(first.info["images_found"]), *filter(None, [limit_of(asked.options)])])


def second_look_images(asked: Search, alive: Sequence[Case], total: int) -> int:
    """How many images the second look takes, settled once; 0 for none: at most half of what is left is screened."""
    wanted = min(asked.screen_images - asked.first_look, (total - asked.first_look) // 2)

    def fitting() -> int:
        options = screen_options(asked.options, asked.metrics, of_case=True)
        seconds = SECOND_LOOK * asked.seconds_left - expected_s(alive, 0, options)
        each = expected_s(alive, 1, options, asked.pace) - expected_s(alive, 0, options)
        return max(0, min(wanted, int(seconds / each) if each else wanted))

    return settled(asked, "screen-2", fitting)


def settled(asked: Search, name: str, decide: Callable[[], int]) -> int:
    """A number of images that depended on the time: settled once, also for a continuation, for networks are compared
    on the same ones."""
    note = asked.out / "images.json"
    kinds = {"screen-2": int, "final": int}
    known = checked_fields(read_json(note), kinds, str(note), dict.fromkeys(kinds, 0)) if note.is_file() else {}
    if note.is_file() and not known:
        raise DamagedFile(f"{note} holds no number of images: remove it, and they are settled again")
    if name not in known:
        known |= {name: decide()}
        write_whole(note, json.dumps(known))
    return int(known[name])


def affordable(asked: Search, cases: Sequence[Case], options: Sequence[str], total: int, used: int) -> int:
    """Images beside the ``used`` ones with which these cases fit into the time that is left.

    At least MOST of them, where the last cases may have to be left out for it; what the best one alone gets where that
    is less; all where nothing was estimated.
    """
    others = images = total - used
    for count in range(len(cases), 0, -1):
        some = cases[:count]
        seconds = asked.seconds_left - expected_s(some, used, options, asked.pace)
        each = expected_s(some, 1, options, asked.pace) - expected_s(some, 0, options)
        images = int(seconds / each) if each else others
        if images >= MOST * others:
            return min(others, images)
    return min(others, max(images, FEWEST))


if __name__ == "__main__":
    sys.exit(main())
