"""What a claim is, and how the papers' own tables are quoted beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from analysis.claim_tests import Test
from analysis.published import claims as counted_sentences


@cache
def _counted() -> dict[str, dict[Any, Any]]:
    return {line["id"]: line for line in counted_sentences().to_dict("records")}


def counted(name: str) -> str:
    """How many comparisons within the tables agree with a sentence of analysis/published/claims_counted.csv."""
    line = _counted()[name]
    return f"{line['cells'] - len(line['exceptions'])} of {line['cells']} comparisons agree ({line['scope']})"


def not_printed(what: str) -> str:
    return f"not printed: {what}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of a paper, how runs test it, and what the paper's own tables show."""

    says: str
    place: str
    quote: str
    test: Test
    published: Callable[[], str]
    paper: str = "MID"

    @property
    def where(self) -> str:
        return f"{self.paper} {self.place}"
