"""The papers' numbers as tidy CSV files, and where they contradict one another (see README.md)."""

from analysis.published.report import contradictions, markdown
from analysis.published.rival_checks import accuracies_on_both
from analysis.published.sentence_checks import claims, claims_denied
from analysis.published.tables import COLUMNS, FOLDER, TABLES, TableInfo, load, load_all
from analysis.published.text_checks import statements

__all__ = [
    "COLUMNS",
    "FOLDER",
    "TABLES",
    "TableInfo",
    "accuracies_on_both",
    "claims",
    "claims_denied",
    "contradictions",
    "load",
    "load_all",
    "markdown",
    "statements",
]
