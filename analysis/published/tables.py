"""The papers' numbers, one tidy CSV a table: one line is one printed number with everything that says what it is of.

    from analysis.published import TABLES, load
    load("mid_table1").query("model == 'resnet18' and policy == '20RC'")

The CSV files hold what is printed, misprints included; what disagrees is listed in `contradictions.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One CSV file: `cells` counts the numbers printed in the table's body (values, gains in brackets, +- spreads)."""

    paper: str
    """mid, fixres or fixefficientnet."""
    number: str
    """As printed: I to VIII, 1 to 10; `text` for the numbers of the running text."""
    title: str
    cells: int


# Titles are the printed ones, shortened. Cells were counted in the print: rows times columns less dashes.
TABLES: dict[str, TableInfo] = {
    "mid_table1": TableInfo("mid", "I", "Top-1 on ImageNet, ResNet family, and training-based rivals", 182),
    "mid_table2": TableInfo("mid", "II", "Top-1 on ImageNet, MobileNet family", 31),
    "mid_table3": TableInfo("mid", "III", "Top-1 on ImageNet, EfficientNet family, tf_efficientnet_bx_ap variant", 99),
    "mid_table4": TableInfo("mid", "IV", "Top-1 on ImageNet, NFNet family", 63),
    "mid_table5": TableInfo("mid", "V", "Top-1 on ImageNet, EfficientNet family, tf_efficientnet_bx_ns variant", 99),
    "mid_table6": TableInfo("mid", "VI", "Top-1 on ImageNet, EfficientNet family, efficientnet_bx variant", 45),
    "mid_table7": TableInfo("mid", "VII", "Top-1 on ImageNet, EfficientNet family, tf_efficientnet_bx variant", 82),
    "mid_table8": TableInfo("mid", "VIII", "Top-1 on ImageNet, ResNet family: fixed and random crops mixed", 105),
    "mid_text": TableInfo("mid", "text", "Numbers of the running text", 35),
    "fixres_table1": TableInfo("fixres", "1", "Application to larger networks", 21),
    "fixres_table2": TableInfo("fixres", "2", "State of the art on ImageNet, single crop", 40),
    "fixres_table3": TableInfo("fixres", "3", "Transfer learning", 21),
    "fixres_table4": TableInfo("fixres", "4", "Matching the distribution before the last ReLU", 25),
    "fixres_table5": TableInfo("fixres", "5", "Top-1 against train and test resolution, not adapted and adapted", 63),
    "fixres_table6": TableInfo("fixres", "6", "Ablation of the fine-tuning", 60),
    "fixres_table7": TableInfo("fixres", "7", "Execution time of the training", 66),
    "fixres_table8": TableInfo("fixres", "8", "Fine-tuning augmentation: test DA against test DA2", 8),
    "fixres_table9": TableInfo("fixres", "9", "As Table 5, trained with random crops of a fixed size", 32),
    "fixres_table10": TableInfo("fixres", "10", "Ensembles for the Herbarium and iNaturalist competitions", 12),
    "fixres_text": TableInfo("fixres", "text", "Numbers of the running text and of the tables without a number", 121),
    "fixeff_table1": TableInfo("fixefficientnet", "1", "ImageNet with extra training data", 36),
    "fixeff_table2": TableInfo("fixefficientnet", "2", "ImageNet without external data", 36),
    "fixeff_table3": TableInfo("fixefficientnet", "3", "ImageNet with the clean labels (ImageNet-Real)", 72),
    "fixeff_table4": TableInfo("fixefficientnet", "4", "ImageNet-V2 matched frequency with extra training data", 36),
    "fixeff_table5": TableInfo("fixefficientnet", "5", "ImageNet-V2 matched frequency without external data", 36),
    "fixeff_table6": TableInfo("fixefficientnet", "6", "State of the art on ImageNet-V2", 54),
    "fixeff_text": TableInfo("fixefficientnet", "text", "Numbers of the running text", 20),
}

TEXT_COLUMNS = (
    "paper", "table", "id", "place", "row", "model", "family", "variant", "dataset", "method", "policy", "level",
    "adaptation", "augmentation", "metric", "printed", "source_note",
)  # fmt: skip
INTEGER_COLUMNS = ("train_res", "test_res", "S", "K", "feature_dim")
DECIMAL_COLUMNS = ("slack", "parameters_millions", "value", "printed_gain", "spread")
YES_NO_COLUMNS = ("training_required", "extra_data")

# A CSV holds only the columns that its table needs; load() gives every frame all of these, in this order.
COLUMNS = (
    "paper", "table", "id", "place", "row", "model", "family", "variant", "dataset", "method", "policy", "level",
    "train_res", "test_res", "S", "K", "slack", "feature_dim", "parameters_millions", "adaptation", "augmentation",
    "metric", "printed", "value", "printed_gain", "spread", "training_required", "extra_data", "source_note",
)  # fmt: skip


def load(table: str) -> pd.DataFrame:
    """One line per printed number, all COLUMNS in order; README.md says what each column holds.

    `printed` is the number as printed ("87.0"), `value` the same as a float; accuracies, gains and spreads are in
    percent or percentage points, sizes in pixels. What the table does not print is "" or a missing number.
    Raises KeyError for a name that is not in TABLES and ValueError for a column that is not in COLUMNS.
    """
    if table not in TABLES:
        raise KeyError(f"no published table {table!r}; known: {', '.join(TABLES)}")
    return _read(table).copy()


@cache
def _read(table: str) -> pd.DataFrame:
    path = FOLDER / f"{table}.csv"
    # dtype=str: "87.0" and "88.40" keep their digits, which say how far a comparison may go.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if unknown := sorted(set(frame.columns) - set(COLUMNS)):
        raise ValueError(f"{path.name} has unknown columns {unknown}; add them to COLUMNS in tables.py or rename them")
    frame["printed"] = frame["value"]
    if "place" not in frame:
        frame["place"] = f"Table {TABLES[table].number}"
    for column in COLUMNS:
        if column not in frame:
            frame[column] = ""
    for column in INTEGER_COLUMNS:
        frame[column] = pd.to_numeric(frame[column]).astype("Int64")
    for column in DECIMAL_COLUMNS:
        # "50,000" is printed with its comma.
        frame[column] = pd.to_numeric(frame[column].str.replace(",", "")).astype("float64")
    for column in YES_NO_COLUMNS:
        frame[column] = frame[column].map({"yes": True, "no": False}).astype("boolean")
    return frame[list(COLUMNS)]


def load_all(*tables: str) -> pd.DataFrame:
    """Several tables under one another (all of TABLES by default), with the file's name in the column `source`."""
    return pd.concat([load(name).assign(source=name) for name in tables or TABLES], ignore_index=True)
