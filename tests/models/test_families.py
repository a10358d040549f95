"""Every row of FAMILIES against the configuration that timm or torchvision ships with the same weights.

What differs must be listed in DIFFERENCES, and what is listed must still differ. Sizes are recomputed here from timm's
crop ratio, and the paper's printed slack and torchvision's own accuracies are written down a second time.
"""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import timm
import torchvision

from models import families
from models.families import DIFFERENCES, FAMILIES, Member, find, members, smallest

ROWS = [member for family in FAMILIES.values() for member in family.members]
PUBLISHED = Path(__file__).parents[2] / "analysis" / "published"
IDS = [member.key for member in ROWS]


def shipped_by_timm(name: str) -> dict:
    cfg = timm.get_pretrained_cfg(name)
    K = (cfg.test_input_size or cfg.input_size)[-1]
    return {
        "S": math.floor(K / (cfg.test_crop_pct or cfg.crop_pct)),
        "K": K,
        "interpolation": cfg.interpolation,
        "crop_mode": cfg.crop_mode,
        "mean": tuple(cfg.mean),
        "std": tuple(cfg.std),
    }


def shipped_by_torchvision(name: str) -> dict:
    arch, weights = name.removeprefix("torchvision:").split(".")
    transforms = torchvision.models.get_model_weights(arch)[weights].transforms()
    return {
        "S": transforms.resize_size[0],
        "K": transforms.crop_size[0],
        "interpolation": transforms.interpolation.value,
        "crop_mode": "center",
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }


def differences_of(member: Member) -> set[tuple]:
    shipped = (shipped_by_torchvision if member.model_id.startswith("torchvision:") else shipped_by_timm)(
        member.model_id
    )
    return {
        (member.key, field, getattr(member.spec, field), theirs)
        for field, theirs in shipped.items()
        if getattr(member.spec, field) != theirs
    }


@pytest.mark.parametrize("member", ROWS, ids=IDS)
def test_row_differs_from_its_shipped_configuration_exactly_as_listed(member):
    listed = {(d.key, d.field, d.ours, d.theirs) for d in DIFFERENCES if d.key == member.key}
    assert differences_of(member) == listed


def test_every_difference_names_a_row_and_a_reason_once():
    assert {d.key for d in DIFFERENCES} <= set(IDS)
    assert all(d.reason.strip() for d in DIFFERENCES)
    assert len({(d.key, d.field) for d in DIFFERENCES}) == len(DIFFERENCES)


@pytest.mark.parametrize(
    ("variant", "squashed", "printed", "more"),
    [  # timm's results-imagenet.csv, MID Table IV, their difference
        ("f0", "83.49", "83.34", "0.15"),
        ("f1", "84.70", "84.60", "0.10"),
        ("f2", "85.19", "84.99", "0.20"),
        ("f3", "85.69", "85.56", "0.13"),
        ("f4", "85.84", "85.66", "0.18"),
        ("f5", "86.10", "85.71", "0.39"),
        ("f6", "86.36", "86.30", "0.06"),
    ],
)
def test_the_note_on_nfnet_gives_both_accuracies(variant, squashed, printed, more):
    (found,) = [d for d in DIFFERENCES if d.key == f"nfnet:{variant}" and d.field == "crop_mode"]
    assert f"gives {squashed} where MID prints {printed}: {more} more" in found.reason
    assert "inferred" in found.reason and "largest for F5 (0.39)" in found.reason


def test_an_unlisted_difference_is_noticed():
    member = replace(find("resnet:50"), S=255)
    assert differences_of(member) == {("resnet:50", "S", 255, 256)}


# The last size row of MID's tables, "1.0 - (Crop to Image Ratio)": a check of S and K against a third printed number.
SLACK = {
    "MID Table I": [0.125] * 5,
    "MID Table II": [0.125] * 3,
    "MID Table III": [0.125, 0.118, 0.110, 0.096, 0.078, 0.066, 0.060, 0.051, 0.046],
    "MID Table IV": [0.099, 0.088, 0.079, 0.061, 0.048, 0.046, 0.043],
    # L2 is printed as 0.038, which is 832's; the table prints 833 (and timm's ratio gives 833), whose slack is 0.040.
    "MID Table V": [0.125, 0.118, 0.110, 0.096, 0.078, 0.066, 0.060, 0.051, 0.040],
    "MID Table VI": [0.125, 0, 0, 0, 0],
    "MID Table VII": [0.125, 0.118, 0.110, 0.096, 0.078, 0.066, 0.060, 0.051, 0.046],
}


@pytest.mark.parametrize("table", SLACK)
def test_sizes_give_the_slack_that_the_paper_prints(table):
    rows = [member for member in ROWS if member.table == table]
    assert len(rows) == len(SLACK[table])
    # One unit of the last printed digit: the paper rounds some of these and truncates others.
    assert [m.spec.slack for m in rows] == pytest.approx(SLACK[table], abs=1e-3)


# timm's resnet*.tv_in1k are torchvision's IMAGENET1K_V1 files, so torchvision's accuracies apply to both.
TORCHVISION_NAMES = {f"resnet:{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)} | {
    "mobilenet:v2": "mobilenet_v2",
    "mobilenet:v3-small": "mobilenet_v3_small",
    "mobilenet:v3-large": "mobilenet_v3_large",
}


@pytest.mark.parametrize("key", TORCHVISION_NAMES)
def test_published_top1_is_the_one_torchvision_gives(key):
    weights = torchvision.models.get_model_weights(TORCHVISION_NAMES[key])["IMAGENET1K_V1"]
    assert find(key).top1 == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.006)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_timm_resnets_are_the_files_of_torchvision(depth):
    weights = torchvision.models.get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
    assert timm.get_pretrained_cfg(f"resnet{depth}.tv_in1k").url == weights.url


def test_keys_and_weights_are_unique_and_tagged():
    assert len(set(IDS)) == len(ROWS)
    assert len({member.model_id for member in ROWS}) == len(ROWS)
    assert all("." in member.model_id for member in ROWS)  # a bare timm name means whatever timm's default is today


def test_known_counts():
    assert {name: len(family.members) for name, family in FAMILIES.items()} == {
        "resnet": 5,
        "mobilenet": 3,
        "efficientnet": 9 + 9 + 5 + 9,
        "nfnet": 7,
        "efficientnet-lite": 5,
        "pnasnet": 1,
        "senet": 1,
        "resnext-wsl": 3,
    }


@pytest.mark.parametrize(
    ("family", "variants", "expected"),
    [
        ("resnet", "18,50", ["18", "50"]),
        ("resnet", "50, 18,50", ["50", "18"]),
        ("nfnet", "0,3", ["f0", "f3"]),
        ("nfnet", "F6", ["f6"]),
        ("efficientnet", "0,3", ["ap:b0", "ap:b3"]),
        ("efficientnet", "b0,ap:0", ["ap:b0"]),
        ("efficientnet", "ns:l2,tf:4,timm:b0", ["ns:l2", "tf:b4", "timm:b0"]),
        ("efficientnet", "timm:all", ["timm:b0", "timm:b1", "timm:b2", "timm:b3", "timm:b4"]),
        ("mobilenet", "all", ["v2", "v3-small", "v3-large"]),
    ],
)
def test_variants(family, variants, expected):
    assert [member.variant for member in members(family, variants)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_all_means_every_row_and_each_row_is_found_by_key_and_model_id(family):
    assert members(family) == members(family, "all") == list(FAMILIES[family].members)
    for member in members(family):
        assert members(family, member.variant) == [member]
        assert find(member.key) is find(member.model_id) is member


@pytest.mark.parametrize(
    ("family", "variants", "words"),
    [
        ("resnext", "50", ["resnext", "resnet", "mobilenet", "efficientnet", "nfnet"]),
        ("resnet", "0", ["'0'", "18", "152", "all"]),
        ("mobilenet", "v3", ["'v3'", "v2", "v3-small", "v3-large"]),
        ("efficientnet", "l2", ["'l2'", "b0", "ns:l2", "timm:b4"]),
        ("nfnet", "ap:0", ["'ap:0'", "f0"]),
        ("nfnet", "ap:all", ["'ap:all'", "f0"]),
        ("nfnet", " , ", ["names nothing", "f0"]),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(family, variants, words):
    with pytest.raises(ValueError) as caught:
        members(family, variants)
    assert all(word in str(caught.value) for word in words)


def test_find_leaves_other_models_alone():
    assert find("resnet50.a1_in1k") is None
    assert find("torchvision:squeezenet1_0.IMAGENET1K_V1") is None
    assert find("resnet:demo") is None
    assert find("efficientnet:3").variant == "ap:b3"
    with pytest.raises(ValueError, match="means 5 networks"):
        find("resnet:all")


def parameters_on_meta(member: Member) -> int:
    import torch

    with torch.device("meta"):
        if member.model_id.startswith("torchvision:"):
            net = torchvision.models.get_model(member.model_id.removeprefix("torchvision:").split(".")[0], weights=None)
        else:
            net = timm.create_model(member.model_id)
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "efficientnet-lite", "resnext-wsl"])
def test_smallest_has_the_fewest_parameters(family):
    assert smallest(family) == min(members(family), key=parameters_on_meta)


@pytest.mark.parametrize("family", ["efficientnet", "nfnet"])
def test_smallest_is_the_first_of_its_scaling_series(family):
    # Building the 480 million parameters of L2 to count them is not worth it: within a series, size grows with K.
    series = [m for m in members(family) if m.table == smallest(family).table]
    assert smallest(family) == min(series, key=lambda m: m.K)


def test_plain_data_imports_neither_torch_nor_timm():
    code = (
        "import sys, models.families; print([m for m in ('torch', 'timm', 'torchvision', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_lite_is_marked_as_not_the_papers_and_has_no_demo_network():
    assert families.DEMOS == ("resnet", "mobilenet", "efficientnet", "nfnet")
    assert not FAMILIES["efficientnet-lite"].in_paper
    assert {m.table for m in members("efficientnet-lite")} == {"EfficientNet-Lite's README"}
    with pytest.raises(ValueError, match=r"efficientnet-lite has no demo network; resnet, .*`weights` pip"):
        families.demo("efficientnet-lite")


def test_what_fixres_does_not_print_of_its_networks_is_timms():
    printed = pd.read_csv(PUBLISHED / "fixres_table1.csv").query("test_res == 331 and method == 'baseline'")
    timms = pd.read_csv(PUBLISHED / "timm" / "results-imagenet.csv").set_index("model")["top1"]
    for member in (m for family in ("pnasnet", "senet", "resnext-wsl") for m in members(family)):
        known = printed["value"].item() if member.table == "FixRes Table 1" else timms[member.model_id]
        assert member.top1 == known


@pytest.mark.parametrize(
    "key", ["efficientnet-lite:0", "efficientnet-lite:4", "senet:154", "resnext-wsl:32x8d", "pnasnet:5-large"]
)
def test_rows_without_a_printed_feature_dimension_have_the_networks(key):
    import torch

    member = find(key)
    with torch.device("meta"):
        assert timm.create_model(member.model_id).num_features == member.feature_dim


def test_demo_reads_its_description(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "DEMO_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"resnet\.json"):
        families.demo("resnet")
    (tmp_path / "resnet.json").write_text(
        '{"model": "test_resnet", "model_kwargs": {}, "num_classes": 16, "S": 110, "K": 96, '
        '"interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "epochs": 12}'
    )
    with pytest.raises(FileNotFoundError, match=r"resnet\.safetensors"):
        families.demo("resnet")
    (tmp_path / "resnet.safetensors").write_bytes(b"")
    found = families.demo("resnet")
    assert (found.key, found.model_id, found.num_classes) == ("resnet:demo", "test_resnet", 16)
    assert (found.spec.S, found.spec.K, found.spec.interpolation, found.spec.std) == (110, 96, "bicubic", (0.25,) * 3)
