"""Is what a search recommends as good as it says, and as good as what an exhaustive search would have chosen?

    python -m tests.stress.search                       # five fresh splits of the demo images; two hours on two cores
    python -m tests.stress.search --seeds 1 --exhaustive RUN

One exhaustive run scores every demo network at every size with every policy on all images of the demo set, untimed, and
its best setting is chosen from that (analysis.recommend). Then for each seed:

1. ``multicrop-bench recommend`` searches the same networks and sizes, with that seed, in a process of its own.
2. Demo images of another seed of the generator are made, ``fresh-SEED``, and both choices are scored on them.
3. Top-1 on the fresh images is compared with what was reported (Fisher's exact test), and the two choices with each
   other on the same fresh images (exact McNemar test, one-sided: is the search's choice worse?), both at the 1 % level.

Exit status 1 when a test rejects or a search took longer than MOST_MINUTES. Runs are kept in ``--folder``; what is
there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from analysis import recommend
from analysis.candidates import candidates
from analysis.recommend import parse_target
from analysis.text import aligned
from bench import run
from bench.compare.search_options import FIXED
from bench.config import DEFAULT_CROPS
from bench.records import read_run
from models.recipe import read_recipe
from pipelines.data import demo

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ["--models", "resnet:demo,mobilenet:demo,nfnet:demo,efficientnet:demo", "--img-size", "64,96,128,160"]
POLICIES = ["--crops", ",".join(map(str, DEFAULT_CROPS)), "--policies", FIXED]
MOST_MINUTES, LEVEL = 8.0, 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed. ``p_reported``: of the fresh top-1 against the reported one; ``p_worse``: of the choice against the
    exhaustive one."""

    seed: int
    minutes: float
    cpu_minutes: float
    chosen: str
    reported: tuple[int, int]  # right answers, images
    fresh: tuple[int, int]
    exhaustive: str
    exhaustive_fresh: tuple[int, int]
    p_reported: float
    p_worse: float

    @property
    def missed(self) -> list[str]:
        """What went wrong, in words."""
        return [
            what
            for what, is_so in (
                (f"took longer than {MOST_MINUTES:g} min", self.minutes > MOST_MINUTES),
                ("another top-1 than reported", self.p_reported < LEVEL),
                ("worse than the exhaustive choice", self.p_worse < LEVEL),
            )
            if is_so
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and, as the last line, JSON."""
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    exhaustive = exhaustive_recipe(args)
    found = [outcome_of(seed, exhaustive, args) for seed in args.seeds]
    print("\n".join(aligned(rows(found))))
    missed = {one.seed: one.missed for one in found if one.missed}
    print(json.dumps({"outcomes": [asdict(one) for one in found], "missed": missed}))
    return int(bool(missed))


def exhaustive_recipe(args: argparse.Namespace) -> Path:
    """The best of every setting on all images, by the halves of these."""
    out: Path = args.folder / "exhaustive.json"
    if out.is_file():
        return out
    folder: Path = args.exhaustive or args.folder / "exhaustive"
    if not folder.is_dir():
        require_success(
            run.main([*POLICIES, *args.networks, "--no-throughput", "--no-figures", "--yes", "--out", str(folder)])
        )
    recommend.conclude([read_run(folder)], [parse_target(text) for text in args.target], out)
    return out


def outcome_of(seed: int, exhaustive: Path, args: argparse.Namespace) -> Outcome:
    folder = args.folder / f"seed-{seed}"
    minutes, cpu_minutes = searched(seed, folder, args)
    images = demo.ensure(f"fresh-{seed}", images=args.images)
    ours, name = scored(folder / "recipe.json", images, folder / "fresh")
    theirs, other = scored(exhaustive, images, folder / "fresh-exhaustive")
    measured = read_recipe(folder / "recipe.json").measured
    reported = (round(measured["top1"] * measured["images"] / 100), int(measured["images"]))
    fresh = (int(ours.sum()), len(ours))
    return Outcome(
        seed, minutes, cpu_minutes, name, reported, fresh, other, (int(theirs.sum()), len(theirs)),
        p_reported=same_share(reported, fresh), p_worse=worse(ours, theirs),
    )  # fmt: skip


def searched(seed: int, folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Search in a process of its own, where that was not done yet; minutes by the clock and of the processor."""
    note = folder / "minutes.json"
    if not note.is_file():
        folder.mkdir(exist_ok=True)
        targets = [word for text in args.target for word in ("--target", text)]
        command = [sys.executable, "-m", "bench", "recommend", *args.networks, "--seed", str(seed), *targets]
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        place = {**os.environ, "PYTHONPATH": str(ROOT)}
        require_success(subprocess.run([*command, *args.search], cwd=folder, env=place, check=False).returncode)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        note.write_text(json.dumps([(time.monotonic() - started) / 60, cpu / 60]), encoding="utf-8")
    minutes, cpu_minutes = json.loads(note.read_text(encoding="utf-8"))
    return minutes, cpu_minutes


def scored(recipe: Path, images: Path, folder: Path) -> tuple[np.ndarray, str]:
    """bool [b]: which of the images a recipe gets right, in the order of their names; and the name of its setting."""
    if not folder.is_dir():
        words = ["--recipe", str(recipe), "--data", str(images), "--no-throughput", "--no-figures", "--yes"]
        require_success(run.main([*words, "--out", str(folder)]))
    use = read_recipe(recipe).use
    found = candidates([read_run(folder)])
    own = [one for one in found.found if one.record.policy == use.policy]
    one = next((one for one in own if one.record.level == use.level), own[0])  # of one view all levels are the same
    order = np.argsort(found.names)
    return one.right[order], one.name


def same_share(one: tuple[int, int], other: tuple[int, int]) -> float:
    """p value of Fisher's exact test that two shares of right answers, on other images, are the same."""
    table = [[right, images - right] for right, images in (one, other)]
    return float(stats.fisher_exact(table)[1])


def worse(ours: np.ndarray, theirs: np.ndarray) -> float:
    """One-sided p value of the exact McNemar test that ``ours`` is not worse on the same images."""
    lost, won = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    return float(stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0


def require_success(status: int) -> None:
    if status:
        raise SystemExit(status)


def rows(found: Sequence[Outcome]) -> list[list[str]]:
    heading = [
        "seed",
        "min",
        "CPU min",
        "chosen",
        "reported",
        "fresh",
        "p",
        "exhaustive choice",
        "fresh",
        "p worse",
        "",
    ]
    return [heading, *map(row, found)]


def row(one: Outcome) -> list[str]:
    shares = [f"{100 * right / images:.2f} of {images}" for right, images in (one.reported, one.fresh)]
    right, images = one.exhaustive_fresh
    return [
        str(one.seed), f"{one.minutes:.1f}", f"{one.cpu_minutes:.1f}", one.chosen, *shares, f"{one.p_reported:.3f}",
        one.exhaustive, f"{100 * right / images:.2f}", f"{one.p_worse:.3f}", "; ".join(one.missed) or "holds",
    ]  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2, 3, 4, 5])
    parser.add_argument("--images", type=int, default=2000, help="fresh ones for each seed (default: %(default)s)")
    parser.add_argument("--exhaustive", type=Path, metavar="RUN", help="an exhaustive run that is there")
    parser.add_argument("--folder", type=Path, default=Path("runs/search-stress"), help="default: %(default)s")
    parser.add_argument(
        "--target", action="append", default=[], help="of cost that needs no timing, such as forwards<=2"
    )
    parser.add_argument("--networks", type=str.split, default=NETWORKS, metavar="OPTIONS", help="in one word")
    parser.add_argument(
        "--search", type=str.split, default=[], metavar="OPTIONS", help="more for the search, in one word"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
