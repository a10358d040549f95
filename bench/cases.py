"""What a configuration means: which networks at which sizes, and which policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.config import MeasureConfig, NetworkConfig
from models import families
from pipelines.crops import Policy, curve_policies, parse_policy, unique

# The rows of the MID paper's tables, as policies: `policies` table1. A test compares them with the published CSV.
POLICY_SETS: dict[str, str] = {
    "table1": "CC,10RC,20RC,5RC+5MRC,10RC+10MRC,15RC+15MRC,20RC+20MRC,5FC,5FC+5MFC",
    "table8": "CC,5FC,5FC+5MFC,5FC+5RC,5FC+10RC,5FC+15RC,5FC+20RC,5FC+5MFC+5RC+5MRC,5FC+5MFC+10RC+10MRC,"
    "5FC+5MFC+15RC+15MRC,5FC+5MFC+20RC+20MRC",
}


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One network at one size. ``img_size`` and ``crop_pct`` are None for the network's own."""

    name: str  # as `models.loading.load` takes it
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


def model_cases(network: NetworkConfig, *, demo: bool) -> list[ModelCase]:
    """The networks of a configuration at each of its sizes, in order, each once.

    With demo weights a family is its demo network. Else it is its smallest member, or the ``variants``.
    Raises ValueError for unknown names, combinations that mean nothing, and cases whose files would have one name.
    """
    networks = _networks(network, demo)
    img_sizes: Sequence[int | None] = network.img_size or [None]
    crop_pcts: Sequence[float | None] = network.crop_pct or [None]
    sizes = product(networks, img_sizes, crop_pcts)
    found = (replace(case, img_size=img_size, crop_pct=crop_pct) for case, img_size, crop_pct in sizes)
    by_file_name: dict[str, ModelCase] = {}
    for case in found:
        first = by_file_name.setdefault(case.file_name, case)
        if first != case:
            raise ValueError(
                f"{first.label} and {case.label} would write to files of the same name, {case.file_name}: run them "
                "separately"
            )
    return list(by_file_name.values())


def _networks(network: NetworkConfig, demo: bool) -> list[ModelCase]:
    family, variants = network.family, network.variants
    if bool(family) == bool(network.models):
        raise ValueError(f"give either `family` ({', '.join(families.FAMILIES)}) or `models` NAME,...")
    if network.models:
        if variants:
            raise ValueError("`variants` goes with `family`, not with `models`")
        return [_named(name) for name in network.models]
    assert family is not None
    families.family_named(family)
    if demo:
        if variants:
            raise ValueError("`variants` needs `data` (or `weights` random): the demo has one network in each family")
        return [ModelCase(f"{family}:demo", family, "demo")]
    chosen = families.members(family, variants) if variants else [families.smallest(family)]
    return [ModelCase(member.key, member.family, member.variant) for member in chosen]


def _named(name: str) -> ModelCase:
    member = families.find(name)
    if member:
        return ModelCase(member.key, member.family, member.variant)
    family, _, variant = name.partition(":")
    return ModelCase(name, family, "demo") if variant == "demo" else ModelCase(name)


# Beside a curve of random crops: what reaches its accuracy for fewer forward passes, where the network has it.
CHEAP = ("DC", "CC+3DC", "CC+3DC~1%", "{most}RC~exact", "{most}RC~1%")


def policies(measure: MeasureConfig) -> list[Policy]:
    """The policies to score. CC is always among them: it is the baseline.

    ``crops``: the whole curve up to the largest, ``nRC`` and ``CC+(n-1)RC`` at every n, because one pass yields every
    prefix for nothing; unless ``cheap`` is off, beside it what costs fewer forward passes (CHEAP). ``policies``: those
    outright. Both: the union. Of each stopped policy the whole one too, which it is compared with.
    """
    crops, named = measure.crops, measure.policies
    curve = curve_policies(range(1, max(crops) + 1)) if crops else []
    texts = [POLICY_SETS.get(text.strip().lower(), text) for text in named.split(",")] if named else []
    outright = [parse_policy(text) for texts_of_set in texts for text in texts_of_set.split(",")]
    most = max(crops or [1])
    if measure.cheap and most > 1:
        outright = [parse_policy(text.format(most=most)) for text in CHEAP] + outright
    wholes = [policy.whole for policy in outright]
    return unique([parse_policy("CC"), *curve, *wholes, *(policy for policy in outright if policy.suffix)])


def score_policies(measure: MeasureConfig) -> list[Policy]:
    """The policies of which every image's softmax scores are kept (``save_scores``).

    Raises ValueError for one that the run does not score, and for one that stops early.
    """
    scored = policies(measure)
    kept = unique([parse_policy(text) for text in measure.save_scores or []])
    for policy in kept:
        if policy.suffix:
            raise ValueError(
                f"`save_scores`: {policy} stops early, and only its answers are known; scores are kept of policies "
                f"that do not stop, such as {policy.whole}"
            )
        if policy not in scored:
            raise ValueError(
                f"`save_scores`: {policy} is not a policy of this run, which scores "
                f"{', '.join(one.name for one in scored if not one.suffix)}: add it to `policies`"
            )
    return kept


def crop_counts(measure: MeasureConfig, scored: Sequence[Policy]) -> list[int]:
    """Where throughput is timed: at ``crops``, else at the policies' numbers of views (of the network's own size)."""
    plain = (policy for policy in scored if not (policy.sizes or policy.dense or policy.suffix))
    return measure.crops or sorted({policy.n_views for policy in plain})
