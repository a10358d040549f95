"""Sentences about every cell of a table, counted; and sentences denied on reading.

claims_counted.csv holds the sentences that can be counted, with the cells each speaks of; CELLS has one function for
each. The ones that hold are counted too: they are what makes "not so in n of N" honest. claims_denied.csv is kept by
hand, for what needs reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product

import pandas as pd

from analysis.published import resolution_checks, rival_checks
from analysis.published.cells import columns, table_name, unless
from analysis.published.checks import FIXRES, MID_GAIN_TABLES, PAPERS, indexed, row_of, with_gains
from analysis.published.tables import FOLDER, TABLES, load, load_all

# From the smallest network to the largest; the columns of Table II have V2 before V3-Small.
MOBILENETS = ("mobilenet_v3_small", "mobilenet_v2", "mobilenet_v3_large")
SMALL_RESNETS = ("resnet18", "resnet34")

MIXES = tuple(f"5FC+5MFC+{n}RC+{n}MRC" for n in (5, 10, 15, 20))
FIXED_PLUS_RANDOM = tuple(f"5FC+{n}RC" for n in (5, 10, 15, 20))
RANDOM_PAIRS = tuple(f"{n}RC+{n}MRC" for n in (5, 10, 15, 20))
FIXED = "5FC+5MFC"


def _pairs(tables: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """For each model and level that prints both policies of a pair: an exception where the second is not better."""
    cells = indexed(with_gains(*tables), "source", "model", "level", "policy")
    for (source, model, level), values in columns(cells):
        for one, other in pairs:
            if one in values and other in values:
                text = f"{table_name(source)} {model} {level}: {one} {values[one]:.2f}, {other} {values[other]:.2f}"
                yield unless(values[other] > values[one], text)


def _more_crops() -> Iterator[str]:
    return _pairs(MID_GAIN_TABLES, (("10RC", "20RC"),))


def _resnet_more_crops() -> Iterator[str]:
    return _pairs(("mid_table1",), (("10RC", "20RC"),))


def _more_mixed_crops() -> Iterator[str]:
    yield from _pairs(("mid_table1",), (*pairwise(RANDOM_PAIRS), ("5FC", FIXED)))
    yield from _pairs(("mid_table8",), (*pairwise(FIXED_PLUS_RANDOM), *pairwise(MIXES)))


def _mirrored_over_plain() -> Iterator[str]:
    return _pairs(("mid_table1",), (("10RC", "5RC+5MRC"), ("20RC", "10RC+10MRC")))


def _random_over_fixed() -> Iterator[str]:
    return _pairs(("mid_table1",), ((FIXED, "10RC"), (FIXED, "5RC+5MRC")))


def _many_random_over_fixed() -> Iterator[str]:
    return _pairs(("mid_table1",), tuple((FIXED, policy) for policy in ("20RC", *RANDOM_PAIRS[1:])))


def _random_added_to_fixed() -> Iterator[str]:
    yield from _pairs(("mid_table8",), tuple(("5FC", policy) for policy in FIXED_PLUS_RANDOM))
    yield from _pairs(("mid_table8",), tuple((FIXED, policy) for policy in MIXES))


def _average_over_centre() -> Iterator[str]:
    for line in with_gains(*MID_GAIN_TABLES, "mid_table8").to_dict("records"):
        which = f"{line['place']} {line['model']} {line['policy']} {line['level']}"
        yield unless(line["gain"] > 0, f"{which}: {line['value']:.2f}, centre {line['base']:.2f}")


def _softmax_over_feature() -> Iterator[str]:
    cells = indexed(with_gains(*MID_GAIN_TABLES), "source", "model", "policy", "level")
    for (source, model, policy), values in columns(cells):
        text = (
            f"{table_name(source)} {model} {policy}: feature {values['feature']:.2f}, softmax {values['softmax']:.2f}"
        )
        yield unless(values["softmax"] > values["feature"], text)


def _smaller_gains_more(*tables: str) -> Callable[[], Iterator[str]]:
    def cells() -> Iterator[str]:
        found = indexed(with_gains(*tables), "source", "policy", "level", "model", value="gain")
        for (source, policy, level), gains in columns(found):
            where = f"{table_name(source)} {policy} {level}"
            for small, large in combinations(MOBILENETS if source == "mid_table2" else gains, 2):
                text = f"{where}: {small} +{gains[small]:.2f}, {large} +{gains[large]:.2f}"
                yield unless(gains[small] > gains[large], text)

    return cells


def _resnet_smaller_gains_more() -> Iterator[str]:
    frame = with_gains("mid_table1")
    cells = indexed(frame[frame["policy"].isin(("10RC", "20RC"))], "policy", "level", "model", value="gain")
    for (policy, level), gains in columns(cells):
        for small, large in product(SMALL_RESNETS, [model for model in gains if model not in SMALL_RESNETS]):
            text = f"{policy} {level}: {small} +{gains[small]:.2f}, {large} +{gains[large]:.2f}"
            yield unless(gains[small] > gains[large], text)


def _mix_is_best() -> Iterator[str]:
    cells = indexed(with_gains("mid_table1", "mid_table8"), "model", "policy", "level")
    for model in dict.fromkeys(key[0] for key in cells):
        best = max((key for key in cells if key[0] == model), key=lambda key: cells[key])
        yield unless(best[1] in MIXES, f"{' '.join(best)} {cells[best]:.2f}")


def _no_slack_gains_less() -> Iterator[str]:
    frame = with_gains("mid_table3", "mid_table5", "mid_table6")
    frame = frame[frame["variant"].isin(("B1", "B2", "B3", "B4"))]
    for (variant, policy, level), gains in columns(
        indexed(frame, "variant", "policy", "level", "source", value="gain")
    ):
        for other in ("mid_table3", "mid_table5"):
            here = f"Table VI +{gains['mid_table6']:.2f}, {table_name(other)} +{gains[other]:.2f}"
            yield unless(gains["mid_table6"] < gains[other], f"{variant} {policy} {level}: {here}")


def _baselines_higher() -> Iterator[str]:
    frame = load("mid_table1")
    frame = frame[(frame["method"] == "baseline") & (frame["policy"] == "CC")]
    pytorch = indexed(frame[frame["K"].notna()], "model")
    for model, value in indexed(frame[frame["K"].isna()], "model").items():
        yield unless(value > pytorch[model], f"{model}: {value:.2f}, PyTorch {pytorch[model]:.2f}")


def _lower_train_resolution() -> Iterator[str]:
    frame = load_all("fixres_table5", "fixres_table7")  # Table 7 alone has 160 fine-tuned and tested at 224
    frame = frame[frame["metric"] == "top1"].sort_values("test_res", kind="stable")
    for (adaptation, test_res), values in columns(indexed(frame, "adaptation", "test_res", "train_res")):
        lower = [values[train_res] for train_res in values if train_res < test_res]
        if test_res in values and lower:
            side = "not adapted" if adaptation == "none" else "adapted"
            text = f"{side}, tested at {test_res}: trained at {test_res} {values[test_res]}, lower {max(lower)}"
            yield unless(max(lower) > values[test_res], text)


def _higher_test_resolution() -> Iterator[str]:
    frame = load("fixres_table5")
    cells = indexed(frame[frame["adaptation"] == "none"], "train_res", "test_res")
    for train_res in dict.fromkeys(key[0] for key in cells):
        best = max((key for key in cells if key[0] == train_res), key=lambda key: cells[key])
        yield unless(best[1] > train_res, f"trained at {train_res}: best at {best[1]}")


def _transfer_improves() -> Iterator[str]:
    for (dataset,), values in columns(indexed(load("fixres_table3"), "dataset", "method")):
        text = f"{dataset}: {values['fixres']}, baseline {values['baseline']}"
        yield unless(values["fixres"] > values["baseline"], text)


def _multiples_of_32() -> Iterator[str]:
    own = [name for name in FIXRES if name not in ("fixres_table2", "fixres_table3", "fixres_text")]
    frame = load_all(*own).drop_duplicates(["source", "model", "dataset", "test_res"])
    for line in frame[frame["test_res"].notna()].to_dict("records"):
        yield unless(line["test_res"] % 32 == 0, f"{line['place']} {line['model']}: {line['test_res']}")


def _fixed_beats_original(*tables: str) -> Callable[[], Iterator[str]]:
    def cells() -> Iterator[str]:
        for (source, model, metric), values in columns(
            indexed(load_all(*tables), "source", "model", "metric", "method")
        ):
            text = (
                f"{table_name(source)} {model} {metric}: {values['fixres']:.1f}, EfficientNet {values['baseline']:.1f}"
            )
            yield unless(values["fixres"] > values["baseline"], text)

    return cells


def _sorted_by_top1() -> Iterator[str]:
    frame = load("fixeff_table6")
    rows = frame[frame["metric"] == "top1"].to_dict("records")
    for above, below in pairwise(rows):
        text = f"{above['row']} {above['printed']}, then {below['row']} {below['printed']}"
        yield unless(above["value"] <= below["value"], text)


# By the id of claims_counted.csv.
CELLS: dict[str, Callable[[], Iterator[str]]] = {
    "average_over_centre": _average_over_centre,
    "random_over_fixed": _random_over_fixed,
    "many_random_over_fixed": _many_random_over_fixed,
    "resnet_more_crops": _resnet_more_crops,
    "resnet_smaller_gains_more": _resnet_smaller_gains_more,
    "more_crops": _more_crops,
    "more_mixed_crops": _more_mixed_crops,
    "softmax_over_feature": _softmax_over_feature,
    "mirrored_over_plain": _mirrored_over_plain,
    "smaller_gains_more": _smaller_gains_more(*MID_GAIN_TABLES),
    "smaller_gains_more_mixed": _smaller_gains_more("mid_table8"),
    "no_slack_gains_less": _no_slack_gains_less,
    "baselines_higher": _baselines_higher,
    "random_added_to_fixed": _random_added_to_fixed,
    "mix_is_best": _mix_is_best,
    "lower_train_resolution": _lower_train_resolution,
    "higher_test_resolution": _higher_test_resolution,
    "transfer_improves": _transfer_improves,
    "multiples_of_32": _multiples_of_32,
    "fixed_beats_original": _fixed_beats_original("fixeff_table1", "fixeff_table2"),
    "fixed_beats_original_elsewhere": _fixed_beats_original("fixeff_table3", "fixeff_table4", "fixeff_table5"),
    "sorted_by_top1": _sorted_by_top1,
    **rival_checks.CELLS,
    **resolution_checks.CELLS,
}


def claims() -> pd.DataFrame:
    """Every sentence that can be counted: id, paper, place, quote, scope, cells (how many), exceptions (a list)."""
    frame = pd.read_csv(FOLDER / "claims_counted.csv", dtype=str, keep_default_na=False)
    counted = [list(CELLS[name]()) for name in frame["id"]]
    frame["cells"] = [len(cells) for cells in counted]
    frame["exceptions"] = [[cell for cell in cells if cell] for cells in counted]
    return frame


def wrong_claims() -> Iterator[dict[str, str]]:
    for line in claims().to_dict("records"):
        if exceptions := line["exceptions"]:
            count = f"not so in {len(exceptions)} of {line['cells']}"
            subject = f"{line['quote']} ({line['scope']})"
            yield row_of("claim", line["paper"], line["place"], subject, count, "; ".join(exceptions))


def claims_denied() -> pd.DataFrame:
    """The hand-kept list: paper, place, quote, tables (files, `;` between them), says (what those tables print)."""
    return pd.read_csv(FOLDER / "claims_denied.csv", dtype=str, keep_default_na=False)


def denied_claims() -> Iterator[dict[str, str]]:
    for line in claims_denied().to_dict("records"):
        see = ", ".join(map(_title, line["tables"].split(";")))
        yield row_of("denied", line["paper"], line["place"], line["quote"], line["quote"], line["says"], see)


def _title(name: str) -> str:
    return f"{PAPERS[TABLES[name].paper]} {'text' if TABLES[name].number == 'text' else table_name(name)}"
