"""One HTML file about runs: figures, accuracy, throughput, the papers' tables and claims, and what was not measured.

    multicrop-bench report RUN... [--out report.html]        # default: report.html, in the first run's folder

The file holds everything: figures as data, style and script inline. Opening it loads nothing from the internet; its
Content-Security-Policy forbids that. Click on a heading to sort a table. The report is derived from the runs; writing
it again replaces it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if not __package__:  # run as `multicrop-bench report`: search the repo root, not analysis/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis import claims
from analysis.ceilings import crossover, policy_rows, rate_rows
from analysis.commands import command, command_parser
from analysis.drawing import draw, names
from analysis.evidence import evidence
from analysis.published import contradictions as find_contradictions
from analysis.published.checks import PAPERS
from analysis.published.report import KINDS, SHOWN_EXCEPTIONS
from analysis.runs import Inputs, is_shown, read
from analysis.summary import derived, gain_interval, p_value, top1_interval
from analysis.tables import (
    MID,
    Grid,
    Table,
    demo_columns,
    demo_grid,
    distinct_names,
    grid,
    table,
    unmatched,
)
from analysis.timing_notes import latency_notes, timing_notes
from bench.records import DECODE, READ, RESIZE, Accuracy, Latency, Run, Setting, Throughput
from pipelines.files import write_whole
from pipelines.schemas import read_csv

HERE = Path(__file__).parent
TEMPLATE, SCRIPT = "report_template.html", "report.js"
SECTIONS = (
    ("headline", "Headline"),
    ("accuracy", "Accuracy"),
    ("throughput", "Throughput"),
    ("latency", "Latency of one image"),
    ("figures", "Figures"),
    ("claims", "Claims"),
    ("tables", "The paper's tables"),
    ("contradictions", "Contradictions"),
    ("unreadable", "Unreadable images"),
    ("absent", "Not measured"),
    ("environment", "Environment"),
)
LONG, SHORT = 60, 32  # characters: longer than LONG is text; a number with its interval up to SHORT stays on one line


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG as the page holds it."""

    caption: str
    uri: str
    width: int  # pixels
    height: int


def printable(value: Any) -> Any:
    """Text that UTF-8 can hold: a file name's stray bytes become ``\\udcff``. Markup stays as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


# ---- the networks


@dataclass(frozen=True, slots=True)
class Network:
    """One setting of one run."""

    name: str
    run: Run
    setting: Setting

    @property
    def accuracies(self) -> list[Accuracy]:
        return [r for r in self.run.accuracies if r.setting == self.setting]

    @property
    def throughputs(self) -> list[Throughput]:
        return [r for r in self.run.throughputs if r.setting == self.setting]

    @property
    def latencies(self) -> list[Latency]:
        return [r for r in self.run.latencies if r.setting == self.setting]

    @property
    def heading(self) -> str:
        s = self.setting
        demo = ", DEMO DATA" if s.is_demo else f", {s.data}"
        return (
            f"{self.name}: {s.weights} weights, crops of {s.K} from {s.S} pixels, {s.backend}, {s.device}, "
            f"{s.amp_dtype}, batch size {s.batch_size}{demo}"
        )


def networks(runs: Sequence[Run]) -> list[Network]:
    """Every setting of every run, in order."""
    pairs = [(run, setting) for run in runs for setting in dict.fromkeys(record.setting for record in run.records)]
    names = distinct_names([(run.folder.name, setting) for run, setting in pairs])
    return [Network(name, run, setting) for name, (run, setting) in zip(names, pairs, strict=True)]


def headline(found: Sequence[Network]) -> Grid:
    """One line for each network: what averaging gains, and what it costs."""
    headings = ("Network", "Images", "Centre crop, top-1 %", "Best policy", "Top-1 %", "Gain (95 % interval)",
                "Crops", "Images/s", "At one crop, images/s", "Machine")  # fmt: skip
    rows = []
    for network in found:
        rates = {row["crops"]: row["images_per_sec"] for row in rate_rows(network.throughputs)}
        most = max(rates, default=None)
        rows.append(
            (
                network.name,
                *_accuracy_headline(network.accuracies),
                *((str(most), f"{rates[most]:.1f}") if most is not None else ("", "")),
                f"{rates[1]:.1f}" if 1 in rates else "",
                f"{network.setting.device}, {network.setting.machine_id}",
            )
        )
    notes = (
        "Images per second: end to end, at the largest number of crops.",
        "Best of all that were scored, chosen after seeing the answers: its interval does not know of the choice.",
    )
    return Grid("Headline", headings, tuple(rows), notes)


def _accuracy_headline(accuracies: Sequence[Accuracy]) -> tuple[str, ...]:
    centre = next((r for r in accuracies if r.policy == "CC" and r.level == "softmax"), None)
    if centre is None:
        return ("",) * 5
    best = max(accuracies, key=lambda r: (r.top1_correct, -r.n_views))
    low, high = gain_interval(best)
    gain = f"{best.gain:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{centre.images:,}", f"{centre.top1:.2f}", f"{best.policy}, {best.level}", f"{best.top1:.2f}", gain


def accuracy_grid(network: Network) -> Grid:
    """Policies by level; of a curve's crop counts a few."""
    headings = ("Policy", "Crops", "Level", "Top-1 %", "95 % interval", "Gain", "95 % interval, paired",
                "Newly correct", "Newly wrong", "p", "Top-5 %", "NLL")  # fmt: skip
    shown = [r for r in network.accuracies if is_shown(r.policy, r.n_views)]
    first = network.accuracies[0]
    notes = (
        f"{first.images:,} images, {first.unreadable} unreadable. Newly correct, newly wrong: images that the "
        "centre crop got wrong and the policy right, and the other way round; p: exact McNemar test of these two.",
        f"{len(shown)} of {len(network.accuracies)} lines; summary.csv in the run's folder has all.",
    )
    return Grid(network.heading, headings, tuple(map(_accuracy_row, shown)), notes)


def _accuracy_row(r: Accuracy) -> tuple[str, ...]:
    low, high = top1_interval(r)
    gain_low, gain_high = gain_interval(r)
    against_centre = ("",) * 5
    if r.policy != "CC":
        gain = f"{gain_low:+.2f} to {gain_high:+.2f}"
        against_centre = (f"{r.gain:+.2f}", gain, str(r.newly_correct), str(r.newly_wrong), claims.p_text(p_value(r)))
    nll = "" if r.nll_mean is None else f"{r.nll_mean:.3f}"
    interval = f"{low:.2f} to {high:.2f}"
    adaptive = r.mean_views is not None and r.mean_views < r.n_views
    views = f"{r.mean_views:.1f}" if adaptive else str(r.n_views)
    return (r.policy, views, r.level, f"{r.top1:.2f}", interval, *against_centre, f"{r.top5:.2f}", nll)


def throughput_grid(network: Network) -> Grid | None:
    """End to end by number of crops, with its parts and its ceiling; None where a stage is missing."""
    headings = ("Crops", "Images/s", "Crops/s", "Spread %", "Pipeline alone, images/s", "Network alone, crops/s",
                "Ceiling, images/s", "Reached %", "Slower part", "Between batches, median ms", "95th percentile ms",
                "Peak memory GB")  # fmt: skip
    found = rate_rows(network.throughputs)
    if not found:
        return None
    rounds = len(found[0]["rates"])
    notes = [f"Medians of {rounds} rounds. Spread: the largest round less the smallest, over the median."]
    notes += _stage_notes(network.throughputs)
    notes += [f"{note[0].upper()}{note[1:]}." for note in timing_notes(network.throughputs)]
    return Grid(network.heading, headings, tuple(map(_throughput_row, found)), tuple(notes))


def _stage_notes(throughputs: Sequence[Throughput]) -> list[str]:
    """What does not depend on the number of crops, and where pipeline and network take equal time."""
    stages = [f"{t.stage} {t.rate:.0f}" for t in throughputs if t.stage in (READ, DECODE, RESIZE)]
    notes = [f"The pipeline's parts, images/s, each with those before it: {', '.join(stages)}."] if stages else []
    if found := crossover(throughputs):
        notes.append(
            f"By the ceilings, network and pipeline take equal time at {found.predicted:.1f} crops; {found.text}."
        )
    return notes


def _throughput_row(row: dict[str, Any]) -> tuple[str, ...]:
    figures = derived(row["record"])
    return (
        str(row["crops"]),
        f"{row['images_per_sec']:.1f}",
        f"{row['crops_per_sec']:.0f}",
        f"{100 * row['spread']:.0f}",
        f"{row['pipeline_images_per_sec']:.1f}",
        f"{row['network_crops_per_sec']:.0f}",
        f"{row['ceiling_images_per_sec']:.1f}",
        f"{100 * row['efficiency']:.0f}",
        row["binds"],
        *("" if figures[k] is None else f"{figures[k]:.0f}" for k in ("interval_p50_ms", "interval_p95_ms")),
        f"{row['record'].peak_mem_bytes / 1e9:.1f}",
    )


def policy_rate_grid(network: Network) -> Grid | None:
    """End to end of dense and stopped policies; None where none was timed."""
    headings = ("Dense crops, early stopping", "Images/s", "Forward passes", "Spread %", "Ceiling, images/s",
                "Reached %", "As scored %")  # fmt: skip
    found = policy_rows(network.throughputs)
    if not found:
        return None
    notes = ("End to end. As scored: answers of the timed pass that are those of the accuracy pass.",)
    return Grid(network.heading, headings, tuple(map(_policy_rate_row, found)), notes)


def _policy_rate_row(row: dict[str, Any]) -> tuple[str, ...]:
    known = row["efficiency"] is not None
    return (
        row["policy"],
        f"{row['images_per_sec']:.1f}",
        f"{row['forwards']:.2f}",
        f"{100 * row['spread']:.0f}",
        f"{row['ceiling_images_per_sec']:.1f}" if known else "",
        f"{100 * row['efficiency']:.0f}" if known else "",
        "" if row["agreement"] is None else f"{100 * row['agreement']:.2f}",
    )


def latency_grid(network: Network) -> Grid:
    """One image at a time: a line for each policy."""
    headings = ("Policy", "p50, ms", "p90, ms", "p99, ms", "Crops in a batch", "Forward passes", "Images",
                "As scored %")  # fmt: skip
    notes = (
        "One image at a time, nothing read ahead; a percentile is a latency that was measured, and empty where there "
        "are too few images for it. As scored: answers that are those of the accuracy pass.",
        *(f"{note[0].upper()}{note[1:]}." for note in latency_notes(network.latencies)),
    )
    return Grid(network.heading, headings, tuple(map(_latency_row, network.latencies)), notes)


def _latency_row(r: Latency) -> tuple[str, ...]:
    shown = ["" if (ms := r.percentile(percent)) is None else f"{ms:.1f}" for percent in (50, 90, 99)]
    as_scored = "" if r.agreement is None else f"{100 * r.agreement:.2f}"
    return (r.policy, *shown, str(r.crops_per_forward), f"{r.forwards:.2f}", str(len(r.latency_ms)), as_scored)


# ---- figures


def pictures(runs: Sequence[Run], drawn: Sequence[Path]) -> list[Picture]:
    """The drawn figures, then the PNGs in the runs' folders that are of none of their kinds."""
    kinds = {path.stem.partition("-")[0] for path in drawn}
    found = [(path, _caption(path)) for path in drawn]
    for run in runs:
        others = [p for p in sorted(run.folder.glob("*.png")) if p.stem.partition("-")[0] not in kinds]
        found += [(path, f"{_caption(path)} ({run.folder.name})") for path in others]
    return [picture(path, caption) for path, caption in found]


def _caption(path: Path) -> str:
    kind, _, ending = path.stem.partition("-")
    return kind.replace("_", " ").capitalize() + (f": {ending}" if ending else "")


def picture(path: Path, caption: str) -> Picture:
    """Raises ValueError for a file that is not a PNG file."""
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise ValueError(f"{path} is not a PNG file: draw the figures again with multicrop-bench figures, or remove it")
    width, height = struct.unpack(">II", data[16:24])  # the first chunk, IHDR, begins with them
    return Picture(caption, f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)


# ---- the other sections


def environment_grid(run: Run) -> Grid:
    """run.json, but for the networks: one line a value."""
    info = {key: value for key, value in run.info.items() if key not in ("models", "command", "policies")}
    rows = tuple((key, str(value)) for key, value in _flat(info))
    notes = [f"{m['model']}: {note}" for m in run.info.get("models", []) for note in m.get("notes", [])]
    labels = [f"{m['model']}: labels: {m['label_rule']}" for m in run.info.get("models", []) if m.get("label_rule")]
    return Grid(run.folder.name, ("What", "Value"), rows, tuple(dict.fromkeys(notes + labels)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, "unknown" if value is None else value


UNREADABLE = ["name", "stage", "reason"]  # columns of unreadable.csv


def unreadable_grid(runs: Sequence[Run]) -> Grid:
    """Every run's unreadable.csv; without a row the title is shown alone."""
    rows = []
    for run in runs:
        path = run.folder / "unreadable.csv"
        if path.is_file():
            table = read_csv(path, dict.fromkeys(UNREADABLE, str), encoding_errors="surrogateescape")
            rows += [(run.folder.name, *row) for row in table[UNREADABLE].itertuples(index=False)]
    return Grid("Every image could be read.", ("Run", "Image", "Stage", "Reason"), tuple(rows), ())


def absent_grid(found: Sequence[Network], runs: Sequence[Run], not_drawn: dict[str, str]) -> Grid:
    """What was not measured, the figures that were not drawn, and networks that are in no table of the paper."""
    rows = [
        (network.name, record.what, record.reason)
        for network in found
        for record in network.run.absents
        if record.setting == network.setting
    ]
    rows += [(one.label, f"FAILED at {one.stage}", one.reason) for run in runs for one in run.failed]
    rows += [("", f"figure {name}", reason) for name, reason in not_drawn.items()]
    rows += [("", "comparison with the paper's tables", reason) for reason in unmatched(runs)]
    return Grid("Not measured", ("Network", "What", "Reason"), tuple(rows), ())


def overview(tables: Sequence[Table]) -> Grid:
    """One line for each of the paper's tables: how much was measured, and how it agrees."""
    rows = []
    for one in tables:
        comparisons = [comparison for line in one.lines if line.own for comparison in line.comparisons]
        measured = [comparison for comparison in comparisons if comparison.measured]
        inside = sum(comparison.inside is True for comparison in measured)
        largest = max((comparison.difference or 0.0 for comparison in measured), key=abs, default=None)
        rows.append(
            (
                one.title, f"{len(measured)} of {len(comparisons)}", str(inside) if measured else "",
                str(len(measured) - inside) if measured else "", "" if largest is None else f"{largest:+.2f}",
                _reasons(one),
            )
        )  # fmt: skip
    headings = ("Table", "Numbers measured", "Published value inside the 95 % interval", "Outside",
                "Largest difference, points", "Not measured because")  # fmt: skip
    notes = ("analysis/tables.py writes all of them as Markdown and CSV.",)
    return Grid("Overview", headings, tuple(rows), notes)


def _reasons(one: Table) -> str:
    """Why numbers of a table were not measured: each reason once, with the networks."""
    networks: dict[str, dict[str, None]] = {}
    for line in one.lines:
        for column, comparison in zip(one.columns, line.comparisons, strict=True):
            if comparison.why_not:
                why = "no run" if comparison.why_not.startswith("no run of") else comparison.why_not
                networks.setdefault(why, {})[column.variant] = None
    return "; ".join(f"{', '.join(variants)}: {why}" for why, variants in networks.items())


@cache
def contradiction_grids() -> list[Grid]:
    """analysis/published/contradictions.md, as tables."""
    frame = find_contradictions()
    frame["where"] = [f"{PAPERS[paper]} {place}" for paper, place in zip(frame["paper"], frame["place"], strict=True)]
    frame["against"] = frame["against"].where(frame["kind"] != "claim", frame["against"].map(_first_exceptions))
    out = []
    for name, kind in KINDS.items():
        part = frame[frame["kind"] == name]
        rows = tuple(tuple(row) for row in part[list(kind.shown.values())].to_numpy().tolist())
        title = f"{kind.title.replace('`', '')} ({len(part)})"
        out.append(Grid(title, tuple(kind.shown), rows, tuple(filter(None, [kind.remark()]))))
    return out


def _first_exceptions(text: str) -> str:
    exceptions = text.split("; ")
    rest = len(exceptions) - SHOWN_EXCEPTIONS
    return "; ".join([*exceptions[:SHOWN_EXCEPTIONS], *([f"and {rest} more"] if rest > 0 else [])])


CLAIM_HEADINGS = ("Claim", "Verdict", "Effect (95 % interval)", "p", "p, Holm", "From", "Test and remarks",
                  "MID's own tables")  # fmt: skip


def claim_part(verdicts: claims.Verdicts) -> dict[str, Any]:
    """One body of evidence: a line for each claim, and a grid by network."""
    names = ("says", "place", "quote", "published", "verdict", "effect", "p", "p_holm", "source", "remarks")
    together = [dict(zip(names, row, strict=True)) for row in claims.together_rows(verdicts)]
    apart = Grid("By network", claims.APART_HEADINGS, tuple(claims.apart_rows(verdicts)), ())
    return {"title": claims.title(verdicts.evidence), "together": together, "apart": apart}


# ---- the page


def kind(text: str) -> str:
    """The style of one text of a table: ``number`` does not wrap, ``text`` is long."""
    if len(text) > LONG:
        return "text"
    return "number" if len(text) <= SHORT and re.match(r"[<+-]?\d", text) else ""


def html(runs: Sequence[Run], drawn: Sequence[Path] = (), not_drawn: dict[str, str] | None = None) -> str:
    """The whole page. Every name and number is escaped by the template; only report.js is taken as it is."""
    found = networks(runs)
    script = (HERE / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    tables = [table(number, runs) for number in MID]
    demos = [network.name for network in found if network.setting.is_demo]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=printable
    )
    throughputs = [throughput_grid(network) for network in found]
    models = ", ".join(dict.fromkeys(network.setting.model for network in found))
    return environment.get_template(TEMPLATE).render(
        title=f"multicrop-bench: {models or 'no network'}",
        commands=[f"{run.folder.name}: {shlex.join(run.info.get('command', []))}" for run in runs],
        demo=f"DEMO DATA: says nothing about ImageNet ({', '.join(demos)})." if demos else "",
        sections=SECTIONS,
        headline=headline(found),
        accuracy=[accuracy_grid(network) for network in found if network.accuracies],
        throughput=[one for one in throughputs if one],
        policy_rates=[one for network in found if (one := policy_rate_grid(network))],
        latency=[latency_grid(network) for network in found if network.latencies],
        figures=pictures(runs, drawn),
        claims=[claim_part(claims.judge(one)) for one in evidence(runs)],
        claim_headings=CLAIM_HEADINGS,
        rules=[rule.replace("`", "") for rule in claims.RULES],
        overview=overview(tables),
        measured_tables=[grid(one) for one in tables if one.is_measured],
        other_tables=[grid(one) for one in tables if not one.is_measured],
        demo_tables=[demo_grid(runs)] if demo_columns(runs) else [],
        contradictions=contradiction_grids(),
        unreadable=unreadable_grid(runs),
        absent=absent_grid(found, runs, not_drawn or {}),
        environment=[environment_grid(run) for run in runs],
        kind=kind,
        script=Markup(script),  # trusted: a file of this package
        script_hash=f"sha256-{digest}",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html, in the first run's folder")
    args = parser.parse_args(argv)
    out = args.out or args.runs[0] / "report.html"
    runs = read(args.runs)
    inputs = Inputs(runs)
    with tempfile.TemporaryDirectory() as folder:
        # A fault in one figure must not cost the report: it is listed among those not drawn.
        drawn = draw(inputs, names(inputs), Path(folder), keep_going=True)
        errors = {name: f"failed: {error}" for name, error in drawn.failed.items()}
        text = html(runs, drawn.paths, drawn.not_drawn | errors)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text)
    print(out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
