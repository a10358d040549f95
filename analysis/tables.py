"""The papers' tables: published and measured numbers beside each other.

    multicrop-bench tables FOLDER... [--out DIR]     # default: FOLDER/tables, of the first folder

Takes folders of runs and of experiments (finetune, activations, train-low-test-high). Writes ``mid_table1`` to
``mid_table8``, FixRes's and FixEfficientNet's tables (analysis/tables_fixres.py) and, for the demo data, ``demo`` and
``demo_fixres``, each as Markdown and CSV, with the rows and columns of the printed table. They are derived from the
folders; writing them again replaces them.

A measured accuracy is compared with a published one only where network, weights, S, K, interpolation, policy and level
agree, the aspect ratio was kept, and the images are not the demo's. A number that was not measured is empty, with the
reason in a note. The demo's accuracies have a table of their own, because they say nothing about ImageNet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from analysis import tables_fixres
from analysis.commands import command, command_parser
from analysis.demo_fixres import demo_fixres_frame, demo_fixres_grid
from analysis.evidence import NO_EXPERIMENTS, evidence
from analysis.experiments import Experiments, split
from analysis.grids import Grid, letters, markdown
from analysis.names import distinct_names
from analysis.published import TABLES, load
from analysis.runs import is_shown, read
from analysis.summary import derived, top1_interval
from analysis.text import visible, write_csv
from bench.records import Accuracy, Run, Setting
from pipelines.crops import parse_policy
from pipelines.files import write_whole

MID = {number: f"mid_table{number}" for number in range(1, 9)}
HOME = {"VIII": "I"}  # Table VIII has Table I's networks, which the records file under Table I
IMAGENET_IMAGES = 50_000  # the validation split: MID, Section IV.A
INTERPOLATION = {  # MID, Section IV.B
    "resnet": "bilinear",
    "mobilenet": "bilinear",
    "efficientnet": "bicubic",
    "nfnet": "bicubic",
}
NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})
POLICY_TABLES = (1, 8)  # multicrop-bench run has them as --policies table1 and table8

INTERVAL_NOTE = (
    "Inside: the published value is in Wilson's 95 % interval of the measured one. That interval is for a new sample "
    "of images; the paper scored the same 50,000, so a faithful reproduction is closer than the interval is wide."
)


@dataclass(frozen=True, slots=True)
class Column:
    """One network of a table."""

    model: str  # as in analysis/published: tf_efficientnet_b0_ap
    variant: str  # the printed heading: B0
    family: str
    S: int
    K: int
    slack: float
    feature_dim: int
    home: str  # the table that the records name: "MID Table I"

    @property
    def architecture(self) -> str:
        """The name without the suffix for the variant of the weights, which ``home`` tells."""
        return self.model.removesuffix("_ap").removesuffix("_ns")


@dataclass(frozen=True, slots=True)
class Found:
    """A measured accuracy, and the run it is of."""

    run: str
    record: Accuracy


@dataclass(frozen=True, slots=True)
class Comparison:
    """One printed number, the measurements of the same quantity, and why there is none."""

    published: str  # as printed; "" where a dash is printed
    value: float | None
    measured: tuple[Found, ...]
    why_not: str  # "" where measured, and in rows of other people's networks
    test_res: int | None = None

    @property
    def difference(self) -> float | None:
        """Measured less published, points."""
        if not self.measured or self.value is None:
            return None
        return self.measured[0].record.top1 - self.value

    @property
    def inside(self) -> bool | None:
        """Whether the published value is in the measured 95 % interval."""
        if not self.measured or self.value is None:
            return None
        low, high = top1_interval(self.measured[0].record)
        return low <= self.value <= high


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table. ``own``: MID's averages; the other rows are baselines, networks that no run has."""

    approach: str  # as printed
    policy: str
    level: str
    own: bool
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One of the paper's tables with what the runs measured."""

    number: int
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        info = TABLES[MID[self.number]]
        return f"MID Table {info.number}: {info.title}"

    @property
    def is_measured(self) -> bool:
        return any(comparison.measured for line in self.lines for comparison in line.comparisons)


# ---- policies


def table_policies(number: int) -> list[str]:
    """The policies that MID's Table ``number`` (1 to 8) scores, in the printed order, the centre crop first.

    Raises ValueError for another number.
    """
    _require_table(number)
    return list(dict.fromkeys(policy for _, policy, _, own in _print(number).rows if own))


def _require_table(number: int) -> None:
    if number not in MID:
        raise ValueError(f"MID has no Table {number}: give a number from 1 to 8")


# ---- matching


def architecture(setting: Setting) -> str:
    """``torchvision:mobilenet_v2.IMAGENET1K_V1`` -> ``mobilenet_v2``."""
    return setting.model.removeprefix("torchvision:").partition(".")[0]


def _other_weights(setting: Setting, column: Column) -> str:
    if setting.weights != "pretrained":
        return f"weights {setting.weights}, not pretrained"
    if setting.published_in != column.home:
        return f"{setting.model} is not the paper's choice of weights"
    return ""


def _other_data(setting: Setting, column: Column) -> str:
    return "demo data, which says nothing about ImageNet" if setting.is_demo else ""


def _other_sizes(setting: Setting, column: Column) -> str:
    if (setting.S, setting.K) == (column.S, column.K):
        return ""
    return f"crops of {setting.K} from {setting.S} pixels, the paper's are of {column.K} from {column.S}"


def _other_preparation(setting: Setting, column: Column) -> str:
    if setting.crop_mode != "center":
        return f"resized with crop mode {setting.crop_mode}, which does not keep the aspect ratio as the paper does"
    wanted = INTERPOLATION[column.family]
    return "" if setting.interpolation == wanted else f"resized {setting.interpolation}, the paper {wanted}"


# Each returns in what a setting differs from the paper's, or "". The first difference is the reason that is shown.
DIFFERS: tuple[Callable[[Setting, Column], str], ...] = (_other_weights, _other_data, _other_sizes, _other_preparation)


def difference_from(setting: Setting, column: Column) -> str:
    """How a run's setting differs from the paper's, or "" where its accuracies may be compared with printed ones."""
    return next((why for differs in DIFFERS if (why := differs(setting, column))), "")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A run's results of a column's network, whatever its weights and sizes."""

    run: str
    setting: Setting
    accuracies: dict[tuple[str, str], Accuracy]  # (policy, level) ->
    absent: dict[str, str]  # what -> reason


def _candidates(runs: Sequence[Run], column: Column) -> list[_Candidate]:
    found = []
    for run in runs:
        for setting in dict.fromkeys(record.setting for record in run.records):
            if architecture(setting) != column.architecture or setting.published_in not in (None, column.home):
                continue
            accuracies = {(r.policy, r.level): r for r in run.accuracies if r.setting == setting}
            absent = {r.what: r.reason for r in run.absents if r.setting == setting}
            found.append(_Candidate(run.folder.name, setting, accuracies, absent))
    return found


def _why_not(candidate: _Candidate, column: Column, number: int, policy: str, level: str) -> str:
    if why := difference_from(candidate.setting, column):
        return why
    if not candidate.accuracies:
        return f"no accuracy: {candidate.absent.get('accuracy', 'the run did not finish')}"
    if f"accuracy at level {level}" in candidate.absent:
        return candidate.absent[f"accuracy at level {level}"]
    record = candidate.accuracies.get((policy, level))
    if record is None:
        flags = f"--policies table{number}" if number in POLICY_TABLES else "--crops 10,20"
        return f"policy or level not among those of the run; multicrop-bench run {flags} scores the table's"
    if record.images > IMAGENET_IMAGES:
        return f"{record.images:,} images, more than the {IMAGENET_IMAGES:,} of ImageNet's validation set"
    return ""


def _comparison(
    line: dict[Any, Any], column: Column, candidates: list[_Candidate], number: int, any_run: bool
) -> Comparison:
    policy = line["policy"]
    level = "softmax" if policy == "CC" else line["level"]  # one view is its own mean: all levels predict the same
    measured: list[Found] = []
    reasons: list[str] = []
    for candidate in candidates:
        if why := _why_not(candidate, column, number, policy, level):
            reasons.append(f"{candidate.run}: {why}")
        else:
            measured.append(Found(candidate.run, candidate.accuracies[policy, level]))
    if not candidates:
        reasons = [f"no run of {column.model}" if any_run else "no run was given"]
    why_not = "" if measured else "; ".join(dict.fromkeys(reasons))
    return Comparison(line["printed"], line["value"], tuple(measured), why_not)


@dataclass(frozen=True, slots=True)
class _Print:
    """A table of the paper as it is printed: (approach, policy, level, own) -> model -> line of the CSV."""

    columns: tuple[Column, ...]
    rows: dict[tuple[str, str, str, bool], dict[str, dict[Any, Any]]]


@cache
def _print(number: int) -> _Print:
    home = TABLES[MID[number]].number
    columns: dict[str, Column] = {}
    rows: dict[tuple[str, str, str, bool], dict[str, dict[Any, Any]]] = {}
    for line in load(MID[number]).to_dict("records"):
        own = not pd.isna(line["K"])  # baselines have no K: MID did not crop their images
        rows.setdefault((line["row"], line["policy"], line["level"], own), {})[line["model"]] = line
        if own and line["model"] not in columns:
            names = ("model", "variant", "family", "S", "K", "slack", "feature_dim")
            values = {name: line[name] for name in names}
            columns[line["model"]] = Column(**values, home=f"MID Table {HOME.get(home, home)}")
    return _Print(tuple(columns.values()), rows)


def table(number: int, runs: Sequence[Run]) -> Table:
    """MID's Table ``number`` with what ``runs`` measured. Raises ValueError for a number that is not 1 to 8."""
    _require_table(number)
    printed = _print(number)
    candidates = {column.model: _candidates(runs, column) for column in printed.columns}
    lines = []
    for (approach, policy, level, own), by_model in printed.rows.items():
        comparisons = []
        for column in printed.columns:
            line = by_model.get(column.model)
            if line is None:
                comparisons.append(Comparison("", None, (), ""))
            elif own:
                comparisons.append(_comparison(line, column, candidates[column.model], number, bool(runs)))
            else:
                comparisons.append(Comparison(line["printed"], line["value"], (), "", int(line["test_res"])))
        lines.append(Line(approach, policy, level, own, tuple(comparisons)))
    return Table(number, printed.columns, tuple(lines))


def unmatched(runs: Sequence[Run]) -> list[str]:
    """What was scored and is in no table: one sentence for each network, with the reason."""
    columns = [column for number in MID if number != 8 for column in _print(number).columns]
    out = []
    for run in runs:
        for setting in dict.fromkeys(record.setting for record in run.accuracies):
            if setting.is_demo:
                continue
            near = _near(columns, setting)
            reasons = [difference_from(setting, column) for column in near]
            if not near:
                out.append(f"{run.folder.name}: {setting.model}: not a network of MID's tables")
            elif all(reasons):
                out.append(f"{run.folder.name}: {setting.model}: {reasons[0]}")
    return out


def _near(columns: list[Column], setting: Setting) -> list[Column]:
    same = [column for column in columns if column.architecture == architecture(setting)]
    return [column for column in same if column.home == setting.published_in] or same


# ---- as Markdown and HTML show it


def grid(one: Table) -> Grid:
    """The table with the printed rows and columns. A row that could be measured has three lines if anything was."""
    marks: dict[str, str] = {}
    rows = [*_heads(one)]
    for line in one.lines:
        rows.append(
            (line.approach, "published", *(_published(comparison, column) for comparison, column in _pairs(one, line)))
        )
        if line.own and one.is_measured:
            rows.append(("", "measured", *(_measured(comparison, marks) for comparison in line.comparisons)))
            rows.append(("", "difference", *(_difference(comparison) for comparison in line.comparisons)))
    headings = ("Approach", "", *(column.variant for column in one.columns))
    return Grid(one.title, headings, tuple(rows), tuple(_notes(one, marks)))


def _pairs(one: Table, line: Line) -> list[tuple[Comparison, Column]]:
    return list(zip(line.comparisons, one.columns, strict=True))


def _heads(one: Table) -> list[tuple[str, ...]]:
    return [
        ("Feature Dimension", "", *(str(column.feature_dim) for column in one.columns)),
        ("Image Resized To", "", *(str(column.S) for column in one.columns)),
        ("Input Crop Size", "", *(f"{column.K} × {column.K}" for column in one.columns)),
        ("1.0 - (Crop to Image Ratio)", "", *(f"{column.slack:.3f}" for column in one.columns)),
    ]


def _published(comparison: Comparison, column: Column) -> str:
    if comparison.test_res is not None and comparison.test_res != column.K:
        return f"{comparison.published} (at {comparison.test_res})"
    return comparison.published


def _measured(comparison: Comparison, marks: dict[str, str]) -> str:
    if not comparison.measured:
        return f"[{marks.setdefault(comparison.why_not, letters(len(marks)))}]" if comparison.why_not else ""
    record = comparison.measured[0].record
    low, high = top1_interval(record)
    return f"{record.top1:.2f} ({low:.2f} to {high:.2f})"


def _difference(comparison: Comparison) -> str:
    if comparison.difference is None:
        return ""
    return f"{comparison.difference:+.2f} {'inside' if comparison.inside else 'outside'}"


def _notes(one: Table, marks: dict[str, str]) -> list[str]:
    if not one.is_measured:
        reasons: dict[str, list[str]] = {}
        for column, comparison in zip(one.columns, one.lines[0].comparisons, strict=True):
            reasons.setdefault(comparison.why_not, []).append(column.variant)
        return ["Nothing of this table was measured.", *(f"{', '.join(v)}: {why}." for why, v in reasons.items())]
    notes = [INTERVAL_NOTE, *_image_notes(one), *_repetitions(one)]
    return notes + [f"[{mark}] not measured: {why}." for why, mark in marks.items()]


def _image_notes(one: Table) -> list[str]:
    """How many images each measured column is of, and of which folder, where it is not the whole validation set."""
    notes = {}
    for line in one.lines:
        for comparison, column in _pairs(one, line):
            for found in comparison.measured[:1]:
                record = found.record
                if record.images < IMAGENET_IMAGES:
                    notes[column.variant, found.run] = (
                        f"{column.variant}: measured on {record.images:,} images of the folder {record.setting.data} "
                        f"({record.unreadable} unreadable), not on ImageNet's {IMAGENET_IMAGES:,} ({found.run})."
                    )
    return list(notes.values())


def _repetitions(one: Table) -> list[str]:
    """Where several runs measured the same number: the first is shown, the others are named."""
    return [
        f"{column.variant}, {line.policy}, {line.level}: shown is {comparison.measured[0].run}; also "
        + ", ".join(f"{found.record.top1:.2f} ({found.run})" for found in comparison.measured[1:])
        + "."
        for line in one.lines
        for comparison, column in _pairs(one, line)
        if len(comparison.measured) > 1
    ]


def frame(one: Table) -> pd.DataFrame:
    """The table with the printed rows: a row per approach, nine columns per network."""
    rows = []
    for line in one.lines:
        row: dict[str, object] = {"approach": line.approach, "policy": line.policy, "level": line.level}
        for comparison, column in _pairs(one, line):
            row |= {f"{column.variant} {name}": value for name, value in _values(comparison).items()}
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _values(comparison: Comparison) -> dict[str, object]:
    if not comparison.measured:
        names = ("measured", "low", "high", "difference", "inside", "images", "run")
        return {"published": comparison.published, **dict.fromkeys(names, ""), "why_not": comparison.why_not}
    found = comparison.measured[0]
    low, high = top1_interval(found.record)
    assert comparison.difference is not None
    return {
        "published": comparison.published,
        "measured": f"{found.record.top1:.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "difference": f"{comparison.difference:.4f}",
        "inside": "yes" if comparison.inside else "no",
        "images": found.record.images,
        "run": found.run,
        "why_not": "",
    }


# ---- the demo's own table


def demo_columns(runs: Sequence[Run]) -> dict[str, list[Accuracy]]:
    """Heading -> accuracies, for each network that was scored on the demo data."""
    found = []
    for run in runs:
        for setting in dict.fromkeys(r.setting for r in run.accuracies if r.setting.is_demo):
            found.append((run.folder.name, setting, [r for r in run.accuracies if r.setting == setting]))
    names = distinct_names([(run, setting) for run, setting, _ in found])
    return dict(zip(names, (accuracies for _, _, accuracies in found), strict=True))


def demo_grid(runs: Sequence[Run]) -> Grid:
    """Top-1 and gain of every demo network, policy by level; a curve's crop counts thinned out."""
    columns = demo_columns(runs)
    keys = list(dict.fromkeys((r.policy, r.level) for found in columns.values() for r in found))
    by_key = {name: {(r.policy, r.level): r for r in found} for name, found in columns.items()}
    rows = [
        (policy, level, *(_demo_text(by_key[name].get((policy, level))) for name in columns))
        for policy, level in keys
        if is_shown(policy, parse_policy(policy).n_views)
    ]
    notes = ["Top-1, percent, and the gain over the centre crop, points. The CSV has the intervals and every policy."]
    notes += [
        f"{name}: {found[0].images:,} images, {found[0].unreadable} unreadable." for name, found in columns.items()
    ]
    notes += [
        f"{run.folder.name}: {r.setting.model}: {r.what} not measured: {r.reason}."
        for run in runs
        for r in run.absents
        if r.setting.is_demo and r.what.startswith("accuracy")
    ]
    return Grid(
        "DEMO DATA: says nothing about ImageNet",
        ("Policy", "Level", *columns),
        tuple(rows),
        tuple(dict.fromkeys(notes)),
    )


def _demo_text(record: Accuracy | None) -> str:
    if record is None:
        return ""
    return f"{record.top1:.2f}" if record.policy == "CC" else f"{record.top1:.2f} ({record.gain:+.2f})"


def demo_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """As ``demo_grid``, with every policy, and six columns for each network."""
    columns = demo_columns(runs)
    by_key = {name: {(r.policy, r.level): r for r in found} for name, found in columns.items()}
    names = ("top1", "top1_low", "top1_high", "gain", "gain_low", "gain_high")
    rows = []
    for policy, level in dict.fromkeys((r.policy, r.level) for found in columns.values() for r in found):
        row: dict[str, object] = {"data": "demo", "policy": policy, "level": level}
        for column in columns:
            record = by_key[column].get((policy, level))
            figures = derived(record) if record else {}
            row |= {f"{column} {name}": f"{figures[name]:.4f}" if figures else "" for name in names}
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


# ---- files


def write(
    runs: Sequence[Run],
    out: Path,
    experiments: Experiments = NO_EXPERIMENTS,
    known: Mapping[str, str] = NOTHING_KNOWN,
) -> list[Path]:
    """All tables into ``out``, made if it is not there. Returns the paths. ``known``: see tables_fixres.fill."""
    out.mkdir(parents=True, exist_ok=True)
    found = {name: (grid(one), frame(one)) for number, name in MID.items() for one in [table(number, runs)]}
    for name in tables_fixres.LAYOUTS:
        filled = tables_fixres.fill(name, runs, experiments, known)
        found[name] = tables_fixres.grid(filled), tables_fixres.frame(filled)
    if demo_columns(runs):
        found["demo"] = demo_grid(runs), demo_frame(runs)
    fixres = demo_fixres_frame(evidence(runs, experiments), runs)
    if len(fixres):
        found["demo_fixres"] = demo_fixres_grid(fixres, experiments), fixres
    paths = []
    for name, (shown, values) in found.items():
        write_whole(out / f"{name}.md", markdown(shown))
        paths += [(out / f"{name}.md").resolve(), write_csv(out / f"{name}.csv", values)]
    return paths


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    args = parse(argv)
    folders, experiments = split(args.folders)
    runs = read(folders)
    known = tables_fixres.known_weights(args.weights)
    paths = write(runs, args.out or args.folders[0] / "tables", experiments, known)
    for path in paths:
        print(path)
    measured = [f"MID Table {TABLES[MID[number]].number}" for number in MID if table(number, runs).is_measured]
    measured += [
        tables_fixres.name_of(name)
        for name in tables_fixres.LAYOUTS
        if tables_fixres.fill(name, runs, experiments, known).is_measured
    ]
    print(f"\nnumbers measured in: {', '.join(measured) or 'no table of the papers'}")
    for reason in unmatched(runs):
        print(f"in no table of MID: {visible(reason)}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with status 2 on a bad command line."""
    parser = command_parser("tables", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders of runs and of experiments")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: tables, in the first folder")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NETWORK/METHOD@TRAIN_SIZE=HASH",
        help="weights that no library ships and that you know to be the paper's, by the weight_hash of a run, such as "
        "resnet50/repeated_augmentation@224=aa12bb34cc56dd78",
    )
    return parser.parse_args(argv)
