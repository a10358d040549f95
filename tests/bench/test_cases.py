"""What a configuration means: networks and policies against lists written by hand and the papers' printed tables."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from analysis.published import load
from bench import cases, values
from bench.cases import ModelCase
from bench.config import MeasureConfig, NetworkConfig
from models import families
from pipelines.crops import PolicyError, curve_policies, parse_policy


def model_cases(*, demo: bool = False, models: str | None = None, **given: Any) -> list[ModelCase]:
    listed = None if models is None else values.names(models)
    return cases.model_cases(NetworkConfig(models=listed, **given), demo=demo)


def names(crops: list[int] | None = None, named: str | None = None) -> list[str]:
    return [policy.name for policy in cases.policies(MeasureConfig(crops=crops, policies=named, cheap=False))]


# ----------------------------------------------------------------------------------------------------------- policies


def test_the_curve_is_scored_at_every_number_of_crops_up_to_the_largest() -> None:
    assert names(crops=[1, 4]) == ["CC", "1RC", "2RC", "CC+1RC", "3RC", "CC+2RC", "4RC", "CC+3RC"]
    forty = [f"{n}RC" for n in range(1, 41)] + [f"CC+{n}RC" for n in range(1, 40)]
    assert set(names(crops=[40])) == {"CC", *forty}
    assert names(crops=[2, 40]) == names(crops=[40])


def test_a_curve_has_what_costs_less_beside_it() -> None:
    with_cheap = [policy.name for policy in cases.policies(MeasureConfig(crops=[1, 4]))]
    assert with_cheap == [*names(crops=[1, 4]), "DC", "CC+3DC", "CC+3DC~1%", "4RC~exact", "4RC~1%"]
    assert [policy.name for policy in cases.policies(MeasureConfig(crops=[1]))] == names(crops=[1])
    named = [policy.name for policy in cases.policies(MeasureConfig(policies="3RC+CC~exact"))]
    assert named == ["CC", "CC+3RC", "3RC+CC~exact"]  # the whole policy too, which it is compared with


@pytest.mark.parametrize("named", ["20RC", "5FC+5MFC, 10rc + 10mrc", "cc", "4ARC"])
def test_the_baseline_is_always_among_the_policies_and_first(named: str) -> None:
    found = names(named=named)
    assert found[0] == "CC"
    assert found[1:] == [parse_policy(text).name for text in named.split(",") if text != "cc"]


def test_curve_and_named_policies_are_united_each_once() -> None:
    found = names(crops=[2], named="2RC,5FC+5MFC,RC+CC,CC")
    assert found == ["CC", "1RC", "2RC", "CC+1RC", "5FC+5MFC"]


def printed(table: str) -> set[str]:
    """The policies of a table's rows of the paper's own method."""
    frame = load(table)
    return {parse_policy(text).name for text in frame[frame["method"] == "baseline"]["policy"]}


@pytest.mark.parametrize("name", cases.POLICY_SETS)
def test_a_tables_policies_are_those_of_its_printed_rows(name: str) -> None:
    found = names(named=name)
    assert set(found) == printed(f"mid_{name}")
    assert len(found) == len(set(found))


def test_tables_may_be_joined_with_one_another_and_with_policies() -> None:
    found = names(named="Table1, table8,CC+4RC")
    assert set(found) == printed("mid_table1") | printed("mid_table8") | {"CC+4RC"}


@pytest.mark.parametrize("named", ["table2", "7FC", "5RC+5RC", "CC,,20RC", "20RC;CC", "0RC", ","])
def test_what_is_no_policy_is_refused_with_the_grammar(named: str) -> None:
    with pytest.raises(PolicyError, match="a policy is a sum of terms such as CC"):
        names(named=named)


def test_throughput_is_timed_where_crops_say_or_at_the_policies_numbers_of_views() -> None:
    measure = MeasureConfig(policies="5FC+5MFC,10RC,CC+4RC")
    scored = cases.policies(measure)
    assert cases.crop_counts(measure, scored) == [1, 5, 10]
    assert cases.crop_counts(MeasureConfig(crops=[2, 3]), scored) == [2, 3]
    assert cases.crop_counts(MeasureConfig(), curve_policies([3])) == [1, 3]


# ----------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("family", "smallest"),
    [("resnet", "18"), ("mobilenet", "v3-small"), ("efficientnet", "ap:b0"), ("nfnet", "f0")],
)
def test_a_family_is_its_smallest_member_and_on_the_demo_its_demo_network(family: str, smallest: str) -> None:
    assert model_cases(family=family) == [ModelCase(f"{family}:{smallest}", family, smallest)]
    assert model_cases(family=family, demo=True) == [ModelCase(f"{family}:demo", family, "demo")]


def test_the_families_here_are_all_families() -> None:
    assert set(families.DEMOS) == {"resnet", "mobilenet", "efficientnet", "nfnet"}
    assert set(families.FAMILIES) == {*families.DEMOS, "efficientnet-lite", "pnasnet", "senet", "resnext-wsl"}
    assert model_cases(family="efficientnet-lite") == [ModelCase("efficientnet-lite:0", "efficientnet-lite", "0")]


@pytest.mark.parametrize(
    ("family", "variants", "expected"),
    [
        ("nfnet", "0,3", ["f0", "f3"]),
        ("nfnet", "3,0,F3", ["f3", "f0"]),
        ("nfnet", "all", [f"f{i}" for i in range(7)]),
        ("resnet", "152,18", ["152", "18"]),
        ("efficientnet", "0", ["ap:b0"]),
        ("efficientnet", "ns:l2,tf:0", ["ns:l2", "tf:b0"]),
    ],
)
def test_variants_are_members_in_the_order_named_each_once(family: str, variants: str, expected: list[str]) -> None:
    found = model_cases(family=family, variants=variants)
    assert [case.variant for case in found] == expected
    assert [case.name for case in found] == [f"{family}:{variant}" for variant in expected]


def test_models_are_taken_as_named_and_known_rows_are_recognised() -> None:
    found = model_cases(models="vit_tiny_patch16_224 , torchvision:squeezenet1_0,resnet18.tv_in1k,nfnet:demo,nfnet:1")
    assert found == [
        ModelCase("vit_tiny_patch16_224"),
        ModelCase("torchvision:squeezenet1_0"),
        ModelCase("resnet:18", "resnet", "18"),
        ModelCase("nfnet:demo", "nfnet", "demo"),
        ModelCase("nfnet:f1", "nfnet", "f1"),
    ]


def test_every_size_is_a_case_of_its_own() -> None:
    found = model_cases(models="a,b", img_size=[64, 96], crop_pct=[0.8, 0.875])
    expected = product(["a", "b"], [64, 96], [0.8, 0.875])
    assert found == [ModelCase(name, img_size=size, crop_pct=ratio) for name, size, ratio in expected]
    assert len({case.label for case in found}) == 8  # files are named by it
    assert found[0].label == "a img-size 64 crop-pct 0.8"


@pytest.mark.parametrize(
    "given",
    [
        {"models": "resnet18,resnet18"},
        {"models": "resnet:18,resnet18.tv_in1k"},
        {"models": "resnet:18", "crop_pct": [0.8, 0.8]},
    ],
)
def test_each_case_comes_once(given: dict[str, Any]) -> None:
    assert len(model_cases(**given)) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "either `family` .*nfnet.* or `models`"),
        ({"family": "resnet", "models": "resnet18"}, "either `family`"),
        ({"family": "resnets"}, "'resnets' is unknown; known: resnet, mobilenet, efficientnet, nfnet"),
        ({"family": "nfnet", "variants": "9"}, "known for nfnet: f0, f1"),
        ({"family": "nfnet", "variants": ","}, "names nothing"),
        ({"models": "resnet18", "variants": "18"}, "`variants` goes with `family`"),
        ({"models": " , "}, "names nothing"),
        ({"models": "nfnet:9"}, "'9' is unknown"),
        ({"family": "nfnet", "variants": "0", "demo": True}, "`variants` needs `data`"),
    ],
)
def test_what_means_nothing_is_refused_with_the_remedy(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model_cases(**given)


def test_networks_whose_files_would_have_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hf-hub:a/b-c and hf-hub:a-b/c .*run them separately"):
        model_cases(models="hf-hub:a/b-c,hf-hub:a-b/c")
    with pytest.raises(ValueError, match="the same name"):
        model_cases(models="x", crop_pct=[0.9, 0.9000001])
