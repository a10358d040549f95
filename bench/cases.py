"""What a command line means: which models, which policies, on which data."""

from __future__ import annotations

from dataclasses import dataclass

from models import families
from pipelines.crops import Policy, curve_policies, parse_policy, unique


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One network to run."""

    name: str  # as `models.classifier.load` takes it
    family: str | None
    variant: str | None


def model_cases(*, family: str | None, models: str | None, variants: str | None, demo: bool) -> list[ModelCase]:
    """``--family``, ``--variants`` and ``--models`` -> the networks, in order, each once.

    With demo weights a family is its demo network. Else it is its smallest member, or the ``variants``.
    Raises ValueError for unknown names and combinations that mean nothing.
    """
    if bool(family) == bool(models):
        raise ValueError("name either --family (resnet, mobilenet, efficientnet, nfnet) or --models NAME,...")
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
    family, colon, variant = name.partition(":")
    return ModelCase(name, family if colon and variant == "demo" else None, "demo" if variant == "demo" else None)


def policies(*, crops: list[int] | None, named: str | None) -> list[Policy]:
    """The policies to score. CC is always among them: it is the baseline.

    ``crops``: the whole curve up to the largest, ``nRC`` and ``CC+(n-1)RC`` at every n, because one pass yields every
    prefix for nothing. ``named``: the policies of ``--policies`` outright. Both: the union.
    """
    curve = curve_policies(range(1, max(crops) + 1)) if crops else []
    outright = [parse_policy(text) for text in named.split(",")] if named else []
    return unique([parse_policy("CC"), *curve, *outright])


def int_list(text: str) -> list[int]:
    """``1,2,5`` -> sorted, each once. Raises ValueError for what is no positive whole number."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{text!r} is no list of whole numbers such as 1,2,5,10,20") from None
    if numbers[0] < 1:
        raise ValueError(f"{text!r}: a number of crops is at least 1")
    return numbers
