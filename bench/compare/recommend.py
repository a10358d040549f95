"""Search networks, sizes and crops on this machine, and recommend one: from images to a recipe in one command.

    multicrop-bench recommend --data DIR --models resnet50.a1_in1k,resnet18.a1_in1k --img-size 160,224 \\
        --target 'images_per_sec>=500' --minutes 60
    multicrop-bench recommend RUN... --target 'images_per_sec>=500'     # from runs that are there (analysis.recommend)

Two steps. Every network at every size is screened on a few images with short timings, and dropped where none of its
policies can be the answer: all significantly worse than the best, or far from a target. Those that are left are
measured on all images. One pass scores all policies of a size. The screened images take part in the choice only;
accuracy is reported on others. An interrupted search goes on when the same command is given again.

All options of multicrop-bench run say what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import choosing, recommend
from analysis.candidates import METRICS, Candidate, Candidates, candidates
from analysis.commands import failed
from analysis.recommend import TOP1, Target, parse_target
from analysis.stats import wilson
from analysis.text import write_csv
from bench import run, values
from bench.records import Run, read_run
from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, checked_fields, read_json

log = logging.getLogger(__name__)
# Any of these asks for a search; without them the command takes runs that are there.
NETWORK_FLAGS = ("--models", "--model", "-m", "--model-list", "--family")
# Of the options of a run, those that say which networks at which sizes: the second step names each outright.
CASE_FLAGS = (*NETWORK_FLAGS, "--variants", "--img-size", "--crop-pct")
OWN_FLAGS = ("--out", "--resume", "--dry-run", "--results-file", "--recipe", "--no-accuracy")  # that the search settles
SCREEN_IMAGES = 200
SHORT = ["--rounds", "1", "--round-seconds", "0.3", "--num-warm-iter", "1", "--latency-queries", "0"]
ALWAYS = ["--no-figures", "--yes"]
NEAR = 0.7  # a short timing may be wrong by so much: nearer to a target than this is not dropped
TIMING_S = 36.0  # loading and timing one network at one size, roughly


@dataclass(frozen=True, slots=True)
class Case:
    """One network at one size, as a run is asked for it."""

    model: str
    img_size: int | None
    crop_pct: float | None
    seconds_per_image: float  # of the accuracy pass, roughly

    @property
    def flags(self) -> list[str]:
        size = ["--img-size", str(self.img_size)] if self.img_size else []
        return ["--models", self.model, *size, *(["--crop-pct", str(self.crop_pct)] if self.crop_pct else [])]

    @property
    def name(self) -> str:
        return " ".join(self.flags[1:])


@dataclass(frozen=True, slots=True)
class Search:
    """What was asked for, and where it is kept."""

    options: list[str]  # of multicrop-bench run
    targets: list[Target]
    out: Path
    minutes: float | None
    screen_images: int
    started_s: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self.started_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: that of ``analysis.recommend`` for runs; of a search 0, or 2 for what the user can
    correct, or that of a run that failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(one.partition("=")[0] in NETWORK_FLAGS for one in arguments):
        return recommend.main(arguments)
    own, options = parse(arguments)
    try:
        if settled := [one for one in options if one.partition("=")[0] in OWN_FLAGS]:
            raise ValueError(f"{settled[0].partition('=')[0]} is settled by the search: leave it out")
        if own.out.exists():
            raise ValueError(f"--out {own.out} exists; recipes are never written over others: name a new file")
        targets = [parse_target(text) for text in own.target]
        found = Search(options, targets, own.folder, own.minutes, own.screen_images)
        return search(found, own)
    except run.EXPECTED_ERRORS as error:
        return failed(error)


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
        metavar="M",
        help="take about so long: fewer images where needed",
    )
    parser.add_argument(
        "--screen-images",
        type=values.for_argparse(values.positive),
        default=SCREEN_IMAGES,
        metavar="N",
        help="default: %(default)s",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/search"), help="of the runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("recipe.json"), metavar="FILE", help="default: recipe.json")
    return parser.parse_known_args(list(arguments))


def search(asked: Search, own: argparse.Namespace) -> int:
    """Screen (what is dropped stands in dropped.csv), measure what is left, choose, write the recipe."""
    begin(asked)
    status = measure(asked, "screen", [*asked.options, *limited(asked.options, asked.screen_images), *SHORT])
    if status:
        return status
    screened_run = read_run(asked.out / "screen")
    screened = candidates([screened_run])
    alive, dropped = survivors(screened, asked.targets, cases_of(screened_run))
    write_csv(asked.out / "dropped.csv", pd.DataFrame(dropped, columns=["setting", "reason"]))
    for name, reason in dropped:
        print(f"dropped: {name}: {reason}")
    total = images_of(screened_run)
    print(f"screened on {len(screened.names)} images: {len(alive)} of {len(alive) + len(dropped)} are left")
    images = settled_images(asked, alive, total)
    runs = []
    for number, case in enumerate(alive):
        rest = run.duration(expected_s(alive[number:], images))
        print(f"measuring {number + 1} of {len(alive)}: {case.name}, {images:,} of {total:,} images, about {rest} left")
        fewer = limited(asked.options, images) if images < total else []
        status = measure(asked, f"final-{number}", [*without(asked.options, CASE_FLAGS), *case.flags, *fewer])
        if status:
            return status
        runs.append(read_run(asked.out / f"final-{number}"))
    return recommend.conclude(runs, asked.targets, own.out, frozenset(screened.names))


def begin(asked: Search) -> None:
    """The folder, with what was asked for. Raises ValueError where it holds another search."""
    note = asked.out / "search.json"
    text = json.dumps({"options": asked.options, "targets": [str(one) for one in asked.targets]})
    if note.is_file() and note.read_text(encoding="utf-8") != text:
        raise ValueError(f"{asked.out} holds another search: give --folder a new name, or the same options again")
    asked.out.mkdir(parents=True, exist_ok=True)
    write_whole(note, text)


def measure(asked: Search, name: str, options: Sequence[str]) -> int:
    """One run, its table in log-NAME.txt; what is complete is not repeated. Returns the exit status, 0 also where some
    networks failed and others did not."""
    folder = asked.out / name
    if folder.is_dir() and is_complete(read_run(folder)):
        return 0
    place = ["--resume", str(folder)] if folder.is_dir() else ["--out", str(folder)]
    arguments = [*place, *ALWAYS] if folder.is_dir() else [*options, *place, *ALWAYS]
    with (asked.out / f"log-{name}.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = run.main(arguments)
    return 0 if status == run.FAILED and read_run(folder).accuracies else status


def is_complete(found: Run) -> bool:
    """Whether every network of a run has been scored and timed, or has failed."""
    timed = {(t.setting.model, t.setting.S, t.setting.K) for t in found.throughputs}
    return len(timed) + len(found.failed) >= len(found.info["networks"])


def limited(options: Sequence[str], images: int) -> list[str]:
    """``--limit`` for a run of fewer images; the user's own where that is smaller."""
    given = [int(value) for flag, value in pairs(options) if flag == "--limit"]
    return ["--limit", str(min([images, *given]))]


def pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    """(flag, value) of ``--flag value`` and ``--flag=value``."""
    found = []
    for i, one in enumerate(options):
        flag, equals, value = one.partition("=")
        if flag.startswith("-"):
            found.append((flag, value if equals else (options[i + 1] if i + 1 < len(options) else "")))
    return found


def without(options: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The options without these flags and their values."""
    kept: list[str] = []
    skip = False
    for one in options:
        if skip:
            skip = False
        elif one in flags:
            skip = True
        elif one.partition("=")[0] not in flags:
            kept.append(one)
    return kept


def cases_of(screened: Run) -> dict[tuple[str, int, int], Case]:
    """(weights' hash, S, K) -> how a run is asked for that network at that size."""
    views = max(record.n_views for record in screened.accuracies)
    found = {}
    for model in screened.info["models"]:
        setting = model["setting"]
        seconds = 1.3 * views / (model["crops_per_sec"] or float("inf"))  # decoding and averaging beside the network
        found[setting["weight_hash"], setting["S"], setting["K"]] = Case(**model["asked"], seconds_per_image=seconds)
    return found


def survivors(
    screened: Candidates, targets: Sequence[Target], cases: dict[tuple[str, int, int], Case]
) -> tuple[list[Case], list[tuple[str, str]]]:
    """The networks at their sizes that may be the answer, and (name, reason) of the others."""
    near = np.array([all(is_near(one, target) for target in targets) for one in screened.found])
    if not near.any():
        raise ValueError(
            f"nothing comes near {', '.join(map(str, targets))}: lower the targets or add smaller networks"
        )
    alive = near.copy()
    wanted = [target for target in targets if target.metric == TOP1]
    if wanted:
        n = len(screened.names)
        confidence = 1 - 2 * choosing.LEVEL / len(screened.found)
        highest = [wilson(int(one.right.sum()), n, confidence)[1] for one in screened.found]
        alive &= np.array(highest) >= wanted[0].value
    else:
        alive[near] = choosing.not_worse(screened.right[near])[1]
    kept, dropped = [], []
    for key, case in cases.items():
        own = np.array([key_of(one) == key for one in screened.found])
        if (alive & own).any():
            kept.append(case)
        elif own.any():
            why = (
                "every policy is significantly worse than the best" if not wanted else f"no policy reaches {wanted[0]}"
            )
            dropped.append((case.name, why if (near & own).any() else f"far from {', '.join(map(str, targets))}"))
    if not kept:
        raise ValueError(f"nothing reaches {wanted[0]} on the screened images: lower it or add larger networks")
    return kept, dropped


def key_of(one: Candidate) -> tuple[str, int, int]:
    return one.setting.weight_hash, one.setting.S, one.setting.K


def is_near(one: Candidate, target: Target) -> bool:
    """Whether a setting may meet a target for cost, given how rough a short timing is; also where it was not timed."""
    value = None if target.metric == TOP1 else METRICS[target.metric].of(one)
    if value is None:
        return True
    if target.metric == "forwards":  # counted, not timed
        return target.is_met(value)
    return target.is_met(value / NEAR if target.at_least else value * NEAR)


def images_of(screened: Run) -> int:
    """How many images the second step has: all that the folder holds, or the user's --limit."""
    given = [int(value) for flag, value in pairs(screened.info["command"]) if flag == "--limit"]
    return min([screened.info["images_found"], *given[:-1]])  # the last one is the screen's own


def settled_images(asked: Search, alive: Sequence[Case], total: int) -> int:
    """How many images all cases get: settled once, also for a continuation, for they are compared on the same ones."""
    note = asked.out / "images.json"
    if note.is_file():
        images = checked_fields(read_json(note), {"images": int}, str(note), {"images": 1}).get("images")
        if images is None:
            raise DamagedFile(f"{note} lacks `images`: remove it, and the number of images is settled again")
        return int(images)
    images = affordable(asked, alive, total)
    write_whole(note, json.dumps({"images": images}))
    return images


def affordable(asked: Search, cases: Sequence[Case], total: int) -> int:
    """Images with which these cases fit into the time that is left; never fewer than twice those that were screened."""
    seconds = asked.seconds_left - expected_s(cases, 0)
    per_image = sum(case.seconds_per_image for case in cases)
    fits = total if seconds == float("inf") or per_image == 0 else int(seconds / per_image)
    return min(total, max(fits, 2 * asked.screen_images))


def expected_s(cases: Sequence[Case], images: int) -> float:
    """Seconds that these cases take, roughly."""
    return sum(case.seconds_per_image * images + TIMING_S for case in cases)


if __name__ == "__main__":
    sys.exit(main())
