"""Printed gains that are not the difference, printed slacks that are not 1 - K/S, and quantities with two values.

Each function yields the lines of `contradictions()` of one kind; the CSV files themselves are never corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.published.tables import TABLES, load, load_all

PAPERS = {"mid": "MID", "fixres": "FixRes", "fixefficientnet": "FixEfficientNet"}
CONTRADICTION_COLUMNS = ("kind", "paper", "place", "subject", "printed", "against", "note")

MID_GAIN_TABLES = tuple(f"mid_table{n}" for n in range(1, 8))


def with_gains(*tables: str) -> pd.DataFrame:
    """MID's own averages, with `base` (the centre crop of the column) and `gain` = value - base, to 2 decimals."""
    frame = load_all(*tables)
    own = frame[frame["K"].notna()]  # rivals have no K: their crops were not cut by MID
    base = indexed(own[own["policy"] == "CC"], "source", "model")
    rows = own[own["policy"] != "CC"].copy()
    rows["base"] = [base[key] for key in zip(rows["source"], rows["model"], strict=True)]
    rows["gain"] = (rows["value"] - rows["base"]).round(2)
    return rows


def indexed(frame: pd.DataFrame, *keys: str, value: str = "value") -> dict[Any, float]:
    """{(the cells of `keys`): the cell of `value`}, in the order of the frame; one key gives plain, not tuple, keys."""
    columns = [frame[key] for key in keys]
    return dict(zip(columns[0] if len(keys) == 1 else zip(*columns, strict=True), frame[value], strict=True))


def lookup(table: str, **where: object) -> float:
    """The one value of a table that matches; raises LookupError when none or several do."""
    frame = load(table)
    for column, wanted in where.items():
        frame = frame[(frame[column] == wanted).fillna(False)]
    if frame["printed"].nunique() != 1:
        raise LookupError(f"{table} has {len(frame)} lines for {where}; name one")
    return float(frame["value"].iloc[0])


def decimals(printed: str) -> int:
    """Digits after the point."""
    return len(printed.partition(".")[2])


def disagree(one: str, other: str) -> bool:
    """Two printed numbers that cannot be roundings of one value (88.35 and 88.4 can, 77.09 and 77.6 cannot).

    With equally many decimals they must be equal; otherwise the finer one must lie within half a unit of the coarser
    one's last digit, ends included, since nobody says how they rounded.
    """
    a, b = float(one.replace(",", "")), float(other.replace(",", ""))
    coarse = min(decimals(one), decimals(other))
    allowed = 0.0 if decimals(one) == decimals(other) else 0.5 * 10.0**-coarse
    return abs(a - b) > allowed + 1e-9


def row_of(
    kind: str, paper: str, place: str, subject: str, printed: str, against: str, note: str = ""
) -> dict[str, str]:
    """One line of contradictions()."""
    return dict(zip(CONTRADICTION_COLUMNS, (kind, paper, place, subject, printed, against, note), strict=True))


# ---- gains and slacks


def wrong_gains() -> Iterator[dict[str, str]]:
    rows = with_gains(*MID_GAIN_TABLES)
    for _, line in rows[(rows["gain"] - rows["printed_gain"]).abs() > 1e-6].iterrows():
        yield row_of(
            "gain", line["paper"], line["place"],
            f"{line['model']} {line['policy']} {line['level']}",
            f"{line['printed']} (+{line['printed_gain']:.2f})",
            f"{line['printed']} - {line['base']:.2f} = {line['gain']:.2f}",
            f"the printed gain fits a centre crop of {line['value'] - line['printed_gain']:.2f}",
        )  # fmt: skip


def wrong_slacks() -> Iterator[dict[str, str]]:
    frame = load_all(*(name for name, info in TABLES.items() if info.paper == "mid"))
    columns = frame[frame["K"].notna()].drop_duplicates(["source", "model"])
    for _, line in columns.iterrows():
        slack = round(1 - int(line["K"]) / int(line["S"]), 3)
        if abs(slack - line["slack"]) > 1e-6:
            size = f"S {line['S']}, K {line['K']}"
            yield row_of(
                "slack", line["paper"], line["place"], f"{line['model']}: {size}", f"{line['slack']:.3f}",
                f"1 - K/S = {slack:.3f}",
            )  # fmt: skip


# ---- one quantity, two values


@dataclass(frozen=True, slots=True)
class Comparison:
    """Lines of `tables` that `keep` leaves and that agree in `key` are the same quantity."""

    title: str
    tables: tuple[str, ...]
    key: tuple[str, ...]
    keep: Callable[[pd.DataFrame], pd.Series]


EVERY = tuple(TABLES)
FIXRES = tuple(name for name, info in TABLES.items() if info.paper == "fixres")
FIXEFF = tuple(name for name, info in TABLES.items() if info.paper == "fixefficientnet")
ACCURACY = ("top1", "top5")


def _published_network(frame: pd.DataFrame) -> pd.Series:
    return (frame["method"] == "baseline") & (frame["policy"] == "CC") & frame["metric"].isin(ACCURACY)


def _measured(frame: pd.DataFrame) -> pd.Series:
    return frame["metric"].isin((*ACCURACY, "total_time_hours")) & ~frame["method"].isin(("", "baseline"))


def _accuracy_of_a_network(frame: pd.DataFrame) -> pd.Series:
    return frame["metric"].isin(ACCURACY) & (frame["method"] != "")


COMPARISONS = (
    # Two papers, or a paper and its source, about one published network at its own resolution.
    Comparison("published network, centre crop", EVERY, ("dataset", "model", "test_res", "metric"), _published_network),
    Comparison(
        "rival as MID quotes it",
        ("mid_table1", "mid_table3", "mid_table5", "fixres_table2", "fixeff_table1", "fixeff_table2"),
        ("model", "method", "test_res", "metric"),
        lambda frame: ~frame["method"].isin(("", "baseline")) & frame["metric"].isin(ACCURACY),
    ),
    Comparison(
        "MID, the same average in two places",
        ("mid_table1", "mid_table8", "mid_text"),
        ("model", "policy", "level", "metric"),
        lambda frame: (frame["method"] == "baseline") & (frame["policy"] != "CC") & (frame["metric"] == "top1"),
    ),
    Comparison(
        "FixRes, the same setting in two places",
        FIXRES,
        ("dataset", "model", "method", "policy", "train_res", "test_res", "adaptation", "augmentation", "metric"),
        lambda frame: _measured(frame) & frame["test_res"].notna(),
    ),
    # Tables 1 and 2 against the text, 4 and 5 against 6: Table 6 and the text print no test resolution.
    Comparison(
        "FixEfficientNet, the same network in two places",
        FIXEFF,
        ("dataset", "model", "method", "metric"),
        _accuracy_of_a_network,
    ),
)


def _two_values(
    title: str, frame: pd.DataFrame, key: tuple[str, ...], what: str = "printed"
) -> Iterator[dict[str, str]]:
    groups: dict[tuple[str, ...], list[dict[Any, Any]]] = {}
    for line in frame.to_dict("records"):
        groups.setdefault(tuple("" if pd.isna(line[column]) else str(line[column]) for column in key), []).append(line)
    for quantity, lines in sorted(groups.items()):
        places: dict[str, dict[str, None]] = {}  # value -> places, both in the order of the print
        for line in lines:
            places.setdefault(str(line[what]), {})[f"{PAPERS[line['paper']]} {line['place']}"] = None
        if any(disagree(one, other) for one, other in combinations(places, 2)):
            said = [f"{value} ({', '.join(where)})" for value, where in places.items()]
            subject = ", ".join(filter(None, quantity))
            yield row_of("values", lines[0]["paper"], lines[0]["place"], subject, said[0], "; ".join(said[1:]), title)


def two_values() -> Iterator[dict[str, str]]:
    for comparison in COMPARISONS:
        frame = load_all(*comparison.tables)
        yield from _two_values(comparison.title, frame[comparison.keep(frame)], comparison.key)
    yield from _two_values("parameters, in millions", _side_column("parameters_millions", EVERY), ("model",))
    yield from _two_values("train resolution", _side_column("train_res", FIXEFF), ("model",))
    # Tables 2 and 8 print the same accuracies of the same networks, fine-tuned alike, at different test resolutions.
    # So do Tables 4 to 6 and 8, of test DA.
    for augmentation, tables in (("test_da2", (2,)), ("test_da", (4, 5, 6))):
        frame = load_all(*(f"fixres_table{number}" for number in (*tables, 8)))
        frame = frame[(frame["augmentation"] == augmentation) & (frame["metric"] == "top1")]
        frame = frame[(frame["adaptation"] == "classifier+batch_norm") & (frame["train_res"] == 224)]
        in_table_8 = set(frame.loc[frame["table"] == "8", "printed"])
        key = ("model", "method", "augmentation", "printed")
        yield from _two_values(
            "test resolution of one accuracy", frame[frame["printed"].isin(in_table_8)], key, what="test_res"
        )


def _side_column(column: str, tables: tuple[str, ...]) -> pd.DataFrame:
    """A side column of the tables and the text's lines about it, as lines with `printed`."""
    frame = load_all(*tables)
    side = frame[frame[column].notna() & frame["metric"].isin(ACCURACY)].copy()
    side["printed"] = side[column].map(lambda number: f"{number:g}")
    return pd.concat([side, frame[frame["metric"] == column]], ignore_index=True)
