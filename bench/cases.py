"""What a command line means: which networks at which sizes, and which policies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from models import families
from pipelines.crops import Policy, curve_policies, parse_policy, unique

# The rows of the MID paper's tables, as policies: `--policies table1`. A test compares them with the published CSV.
POLICY_SETS: dict[str, str] = {
    "table1": "CC,10RC,20RC,5RC+5MRC,10RC+10MRC,15RC+15MRC,20RC+20MRC,5FC,5FC+5MFC",
    "table8": "CC,5FC,5FC+5MFC,5FC+5RC,5FC+10RC,5FC+15RC,5FC+20RC,5FC+5MFC+5RC+5MRC,5FC+5MFC+10RC+10MRC,"
    "5FC+5MFC+15RC+15MRC,5FC+5MFC+20RC+20MRC",
}


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One network at one size. ``img_size`` and ``crop_pct`` are None for the network's own."""

    name: str  # as `models.classifier.load` takes it
    family: str | None = None
    variant: str | None = None
    img_size: int | None = None
    crop_pct: float | None = None

    @property
    def label(self) -> str:
        """Name and size, for a person."""
        size = f" img-size {self.img_size}" if self.img_size else ""
        return self.name + size + (f" crop-pct {self.crop_pct:g}" if self.crop_pct else "")

    @property
    def file_name(self) -> str:
        """The label, for file names."""
        return "".join(c if c.isalnum() or c in ".-_" else "-" for c in self.label)


def model_cases(args: argparse.Namespace, *, demo: bool) -> list[ModelCase]:
    """``--family``, ``--variants``, ``--models``, ``--img-size``, ``--crop-pct`` -> the cases, in order, each once.

    With demo weights a family is its demo network. Else it is its smallest member, or the ``variants``.
    Raises ValueError for unknown names, combinations that mean nothing, and cases whose files would have one name.
    """
    networks = _networks(args.family, args.models, args.variants, demo)
    sizes = product(networks, args.img_size or [None], args.crop_pct or [None])
    found = (replace(case, img_size=img_size, crop_pct=crop_pct) for case, img_size, crop_pct in sizes)
    by_file_name: dict[str, ModelCase] = {}
    for case in found:
        first = by_file_name.setdefault(case.file_name, case)
        if first != case:
            raise ValueError(
                f"{first.label} and {case.label} would write to files of one name, {case.file_name}: run them apart"
            )
    return list(by_file_name.values())


def _networks(family: str | None, models: str | None, variants: str | None, demo: bool) -> list[ModelCase]:
    if bool(family) == bool(models):
        raise ValueError(f"name either --family ({', '.join(families.FAMILIES)}) or --models NAME,...")
    if models:
        if variants:
            raise ValueError("--variants goes with --family, not with --models")
        names = list(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
        if not names:
            raise ValueError(f"--models {models!r} names nothing")
        return [_named(name) for name in names]
    assert family is not None
    families.family_named(family)
    if demo:
        if variants:
            raise ValueError("--variants needs --data (or --weights random): the demo has one network in each family")
        return [ModelCase(f"{family}:demo", family, "demo")]
    chosen = families.members(family, variants) if variants else [families.smallest(family)]
    return [ModelCase(member.key, member.family, member.variant) for member in chosen]


def _named(name: str) -> ModelCase:
    member = families.find(name)
    if member:
        return ModelCase(member.key, member.family, member.variant)
    family, _, variant = name.partition(":")
    return ModelCase(name, family, "demo") if variant == "demo" else ModelCase(name)


def policies(*, crops: list[int] | None, named: str | None) -> list[Policy]:
    """The policies to score. CC is always among them: it is the baseline.

    ``crops``: the whole curve up to the largest, ``nRC`` and ``CC+(n-1)RC`` at every n, because one pass yields every
    prefix for nothing. ``named``: the policies of ``--policies`` outright. Both: the union.
    """
    curve = curve_policies(range(1, max(crops) + 1)) if crops else []
    texts = [POLICY_SETS.get(text.strip().lower(), text) for text in named.split(",")] if named else []
    outright = [parse_policy(text) for texts_of_set in texts for text in texts_of_set.split(",")]
    return unique([parse_policy("CC"), *curve, *outright])


def crop_counts(crops: list[int] | None, scored: Sequence[Policy]) -> list[int]:
    """Where throughput is timed: ``--crops``, or else the numbers of views of the policies (of the own size only)."""
    return crops or sorted({policy.n_views for policy in scored if not policy.sizes})


def int_list(text: str) -> list[int]:
    """``1,2,5``, ``90..110`` (each of them), ``128:448:32`` (in steps) -> sorted, each once; both ends are in the list.

    Raises ValueError for what is no positive whole number, and for a range that runs backwards.
    """
    try:
        numbers = sorted({number for part in text.split(",") for number in _range(part)})
    except ValueError:
        raise ValueError(
            f"{text!r} is no list of whole numbers such as 1,2,5,10,20 or 90..110 or 128:448:32 (from:to:step)"
        ) from None
    if numbers[0] < 1:
        raise ValueError(f"{text!r}: a number of crops or pixels is at least 1")
    return numbers


def _range(part: str) -> range:
    """``7``, ``90..110``, ``128:448:32``. Raises ValueError for all else, and where nothing lies between the ends."""
    if ":" in part:
        first, last, step = map(int, part.split(":"))
    else:
        ends = [int(end) for end in part.split("..")]
        (first, last), step = (ends * 2 if len(ends) == 1 else ends), 1
    if last < first or step < 1:
        raise ValueError(part)
    return range(first, last + 1, step)
