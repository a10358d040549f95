"""The papers' claims tested on runs and experiments; the verdicts: holds, does not hold, undecided, not measured.

    multicrop-bench claims FOLDER... [--out DIR]     # default: the first folder

Takes folders of runs and, for the claims of FixRes and FixEfficientNet, of experiments: finetune, activations,
train-low-test-high. Writes claims.md and claims.csv. They are derived from the folders; writing them again replaces
them. Claims about policies are tested on each image's predictions (``predictions-*.npz``), always two policies on the
same images. Runs on different images are judged separately. CLAIMS is the table; RULES explains the verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd

from analysis.adapted_tests import EQUAL_MARGIN, smaller_with_crops_equals_larger
from analysis.cheap_tests import KEPT_ANSWERS, KEPT_GAIN, dense_keeps_gain, stopping_keeps_answers
from analysis.claim import Claim, counted, not_printed
from analysis.claim_tests import (
    ALPHA,
    DENIED,
    HOLDS,
    LEVEL,
    MOST_CROPS,
    UNDECIDED,
    Finding,
    Findings,
    adaptive_suffices,
    at_level,
    between_levels,
    corrected,
    essentially_free,
    essentially_free_latency,
    gain_with_slack_across,
    gain_with_slack_of_one_network,
    rank_correlation,
    same_answers,
    saturates,
    smaller_gain_more,
)
from analysis.claims_fixres import CLAIMS_FIXRES
from analysis.commands import command, command_parser
from analysis.evidence import Evidence, evidence
from analysis.experiments import split
from analysis.published import load_all
from analysis.published.checks import MID_GAIN_TABLES, indexed, with_gains
from analysis.runs import read
from analysis.text import markdown_table, markdown_text, visible, write_csv
from pipelines.files import write_whole

RULES = (
    "Two policies are compared on the same images. The effect is the difference of their top-1 accuracies, its p value "
    "the exact McNemar test's, its 95 % interval Newcombe's. Where a row is about several policies or networks, each "
    "image has the sum of their differences, and the exact test over all changes of sign of these sums takes McNemar's "
    "place (for one comparison they are the same test); the interval is Student's over images.",
    f"The verdict is `{HOLDS}` where the p value, corrected by Holm's method, is below {ALPHA:.2f} and the effect has "
    f"the claimed direction, `{DENIED}` where it is below {ALPHA:.2f} and the effect has the other, else "
    f"`{UNDECIDED}`. Holm's correction runs over all claims with a p value; in the table by network over all its "
    "lines. Intervals are not corrected.",
    "A claim that something stays the same has a margin instead of a p value; it is given in the claim's row.",
    f"Policies are averaged at the {LEVEL} level where the claim names none. Claims about gains use the largest number "
    f"of random crops up to {MOST_CROPS} that their networks share.",
)


# ---- what MID's own tables show


@cache
def published_saturation() -> str:
    frame = with_gains("mid_table1", "mid_table8")
    cells = indexed(frame, "model", "level", "policy")
    steps = []
    for (model, level, policy), value in cells.items():
        for fewer, more in (("15RC+15MRC", "20RC+20MRC"), ("5FC+5MFC+15RC+15MRC", "5FC+5MFC+20RC+20MRC")):
            if policy == more:
                steps.append(value - cells[model, level, fewer])
    span = f"{min(steps):+.2f} to {max(steps):+.2f} points"
    return f"from 30 to 40 random crops {span} (Tables I and VIII, {len(steps)} comparisons)"


@cache
def published_slack_trend() -> str:
    frame = with_gains(*MID_GAIN_TABLES)
    frame = frame[(frame["policy"] == "20RC") & (frame["level"] == "softmax")]
    slack = (1 - frame["K"].astype(float) / frame["S"].astype(float)).tolist()
    rho, low, high, p_value = rank_correlation(slack, frame["gain"].tolist())
    return (
        f"rank correlation of slack and gain {rho:.2f} ({low:.2f} to {high:.2f}), p {p_text(p_value)} "
        f"(20RC, softmax, the {len(frame)} networks of Tables I to VII)"
    )


@cache
def published_single_crops() -> str:
    policies = set(load_all(*(f"mid_table{n}" for n in range(1, 9)))["policy"])
    assert not policies & {"1RC", "2RC", "CC+1RC"}
    return not_printed("Figures 3 and 7 only")


# ---- the claims


FIGURES_ONLY = partial(not_printed, "Figures 3 and 7 only")
BELOW_FIVE = (1, 2, 3, 4)

CLAIMS_MID: dict[str, Claim] = {
    "average_beats_centre": Claim(
        "averaging 10 or 20 random crops beats the centre crop",
        "Abstract",
        "such averaging results in better validation accuracy compared to using a single central crop per image",
        at_level(("10RC", "CC"), ("20RC", "CC")),
        partial(counted, "average_over_centre"),
    ),
    "two_beat_centre": Claim(
        "two random crops beat the centre crop",
        "Figures 3 and 7",
        "as the number of random crops being averaged increases (even average of two random crops), the performance "
        "increases",
        at_level(("2RC", "CC")),
        published_single_crops,
    ),
    "one_worse_than_centre": Claim(
        "one random crop is worse than the centre crop",
        "Figures 3 and 7",
        "when only a single crop is used per image, on average using central crop (CC) is better than random crop (RC)",
        at_level(("CC", "1RC")),
        published_single_crops,
    ),
    "centre_and_one_beat_centre": Claim(
        "one random crop beside the centre crop beats the centre crop",
        "Figures 3 and 7",
        "using even a single random crop in addition to the central crop results in better performance than using just "
        "the central one",
        at_level(("CC+1RC", "CC")),
        published_single_crops,
    ),
    "centre_added_below_five": Claim(
        "the centre crop helps below five random crops",
        "Section V.B, Figures 3 and 7",
        "including central crop in averaging definitely helps when the number of random crops is less than 5",
        at_level(*((f"CC+{n}RC", f"{n}RC") for n in BELOW_FIVE)),
        FIGURES_ONLY,
    ),
    "centre_instead_below_five": Claim(
        "below five crops, the centre crop helps in place of a random one (the same number of crops)",
        "Section V.B, Figures 3 and 7; under control",
        "including central crop in averaging definitely helps when the number of random crops is less than 5",
        at_level(*((f"CC+{n}RC", f"{n + 1}RC") for n in BELOW_FIVE[:-1])),
        FIGURES_ONLY,
    ),
    "twenty_beat_ten": Claim(
        "twenty random crops beat ten",
        "Section V.B",
        "as seen in almost all results where irrespective of the underlying architecture, averaging of 20 crops "
        "resulted in better performance than averaging of 10",
        at_level(("20RC", "10RC")),
        partial(counted, "more_crops"),
    ),
    "saturates_at_twenty": Claim(
        "accuracy saturates at about twenty random crops",
        "Section V.B, Figures 3 and 7",
        "performance saturates after about 20 random crops",
        saturates,
        published_saturation,
    ),
    "adaptive_suffices": Claim(
        "crops chosen by the image's size do as well as a fixed number",
        "Figure 4",
        "a strategy to choose number of crops as a function of image size is effective both computationally and "
        "performancewise",
        adaptive_suffices,
        partial(not_printed, "suggested, not tried"),
    ),
    "softmax_beats_feature": Claim(
        "softmax averaging beats feature averaging",
        "Section V.B, Tables I to VII",
        "averaging at the softmax level results in better performance than that of feature averaging as can be seen "
        "throughout the results",
        between_levels("softmax", "feature", "10RC", "20RC"),
        partial(counted, "softmax_over_feature"),
    ),
    "feature_equals_logit": Claim(
        "feature and logit averaging are identical (exact for a linear head only)",
        "Sections I, IV.B and V.B",
        "Averaging at the logit level results into identical performance as that of averaging at the deep feature "
        "level",
        same_answers,
        partial(not_printed, "no table has the logit level ('not reported for brevity')"),
    ),
    "mirrored_help": Claim(
        "mirrored random crops help (the same number of crops)",
        "Section V.B, Table I",
        "keeping the number of total crops fixed to 10 or 20, and comparing (i) using only RCs versus (ii) using a "
        "combination of RCs and MRCs, the lateral always results in better performance",
        at_level(("5RC+5MRC", "10RC"), ("10RC+10MRC", "20RC")),
        partial(counted, "mirrored_over_plain"),
    ),
    "random_beat_fixed": Claim(
        "ten random crops beat the ten fixed ones",
        "Section I",
        "central or simple fixed crops at inference are sub-optimal and that our novel Matched Inference Distribution "
        "(MID) approach which uses the same sampling process for data augmentation in both training and inference, "
        "results in better performance",
        at_level(("10RC", "5FC+5MFC"), ("5RC+5MRC", "5FC+5MFC")),
        partial(counted, "random_over_fixed"),
    ),
    "random_added_to_fixed": Claim(
        "random crops added to fixed ones help",
        "Table VIII",
        "Compared to fixed crops (FCs) and mirrored fixed crops (MFCs), adding RCs and MRCs into the average results "
        "in enhanced performance",
        at_level(
            *((f"5FC+{n}RC", "5FC") for n in (5, 10, 15, 20)),
            *((f"5FC+5MFC+{n}RC+{n}MRC", "5FC+5MFC") for n in (5, 10, 15, 20)),
        ),
        partial(counted, "random_added_to_fixed"),
    ),
    "gain_falls_with_ratio": Claim(
        "the gain falls with the crop ratio, nothing else varied",
        "Section V.B; under control",
        "When this ratio is smaller, there is more space for the selection of random crop, and selecting more random "
        "crops provides better coverage of the underlying object",
        gain_with_slack_of_one_network,
        partial(not_printed, "every network has one ratio"),
    ),
    "gain_falls_with_ratio_across": Claim(
        "the gain falls with the crop ratio, from network to network",
        "Section V.B",
        "we can see comparatively larger gains for EfficientNet due to relatively smaller crop to image ratios",
        gain_with_slack_across,
        published_slack_trend,
    ),
    "smaller_gain_more": Claim(
        "smaller networks of a family gain more",
        "Section V.B",
        "Overall the performance gain is higher for smaller models than for the larger ones. This is true regardless "
        "of the network family",
        smaller_gain_more,
        partial(counted, "smaller_gains_more"),
    ),
    "essentially_free": Claim(
        "more crops are essentially free",
        "Abstract",
        "On modern GPUs with batch processing, the paper’s approach to inference of pre-trained networks, is "
        "essentially free as all images in a batch can all be processed at once",
        essentially_free,
        partial(not_printed, "the paper has no speed"),
    ),
    "essentially_free_latency": Claim(
        "more crops are essentially free, for the latency of one image",
        "Abstract",
        "On modern GPUs with batch processing, the paper’s approach to inference of pre-trained networks, is "
        "essentially free as all images in a batch can all be processed at once",
        essentially_free_latency,
        partial(not_printed, "the paper has no speed"),
    ),
    "smaller_with_crops_equals_larger": Claim(
        f"a smaller network with 20 random crops equals the next larger one (not worse by {EQUAL_MARGIN} points)",
        "Section VI, Figure 8",
        "a smaller model like F1 or F3 can be used to squeeze the performance equivalent to a larger model like F2 or "
        "F4/F5",
        smaller_with_crops_equals_larger,
        partial(counted, "smaller_with_crops_equals_larger"),
    ),
    "mix_is_best": Claim(
        "fixed, random and mirrored crops together beat random crops with their mirrors, and fixed crops",
        "Section V.B, Table VIII",
        "an average of fixed, random, mirrored-fixed, and mirrored-random crops have resulted in the best numbers",
        at_level(
            *(("5FC+5MFC+20RC+20MRC", other) for other in ("20RC+20MRC", "5FC+5MFC", "20RC", "5FC+20RC")),
        ),
        partial(counted, "mix_is_best"),
    ),
}
CLAIMS_CHEAP: dict[str, Claim] = {
    "dense_keeps_gain": Claim(
        f"dense crops give at least {KEPT_GAIN:.0%} of twenty crops' gain",
        "README",
        "one pass over the image, each window of its map a crop",
        dense_keeps_gain,
        partial(not_printed, "the papers have no dense crops"),
        paper="this project",
    ),
    "stopping_keeps_answers": Claim(
        f"stopping early at a risk of 1 % keeps {KEPT_ANSWERS:.0%} of twenty crops' answers",
        "README",
        "images stop early, views in the order written: another answer at a risk of 1 %",
        stopping_keeps_answers,
        partial(not_printed, "the papers do not stop early"),
        paper="this project",
    ),
}
CLAIMS: dict[str, Claim] = CLAIMS_MID | CLAIMS_FIXRES | CLAIMS_CHEAP


# ---- all of it


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Every claim against one body of evidence, in the order of CLAIMS."""

    evidence: Evidence
    findings: dict[str, Findings]


def judge(evidence: Evidence) -> Verdicts:
    """Test every claim and correct the p values, those of the claims and those by network apart."""
    raw = {name: claim.test(evidence) for name, claim in CLAIMS.items()}
    together = corrected([found.together for found in raw.values()])
    apart = corrected([finding for found in raw.values() for finding in found.apart])
    out, start = {}, 0
    for one, (name, found) in zip(together, raw.items(), strict=True):
        stop = start + len(found.apart)
        out[name] = Findings(one, tuple(apart[start:stop]))
        start = stop
    return Verdicts(evidence, out)


def p_text(p_value: float | None) -> str:
    """Two significant digits; below 1e-12 only ``<1e-12``."""
    if p_value is None:
        return ""
    return "<1e-12" if p_value < 1e-12 else f"{p_value:.2g}"


def number(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.2f}" if sign else f"{value:.2f}"


def effect_text(finding: Finding) -> str:
    """``+0.52 points (+0.11 to +0.93)``."""
    if finding.effect is None:
        return ""
    sign = not finding.unit.startswith(("%", "of the rate"))
    text = f"{number(finding.effect, sign=sign)} {finding.unit}"
    if finding.low is None:
        return text
    return f"{text} ({number(finding.low, sign=sign)} to {number(finding.high, sign=sign)})"


def title(evidence: Evidence) -> str:
    demo = "DEMO DATA, says nothing about ImageNet: " if evidence.is_demo else ""
    return f"{demo}{evidence.data}"


TOGETHER_HEADINGS = ("Claim", "Place", "Quote", "Its own tables", "Verdict", "Effect (95 % interval)", "p",
                     "p, Holm", "From", "Test and remarks")  # fmt: skip
APART_HEADINGS = ("Claim", "Network", "Verdict", "Effect (95 % interval)", "p", "p, Holm", "Images", "Test and remarks")


def together_rows(verdicts: Verdicts) -> list[tuple[str, ...]]:
    """A line for each claim, TOGETHER_HEADINGS."""
    rows: list[tuple[str, ...]] = []
    for name, found in verdicts.findings.items():
        claim, one = CLAIMS[name], found.together
        images = f"{one.images:,} images" if one.images else ""
        rows.append(
            (
                claim.says, claim.where, claim.quote, claim.published(), one.verdict, effect_text(one),
                p_text(one.p_value), p_text(one.p_holm), ", ".join(filter(None, [one.subject, images])), remarks(one),
            )
        )  # fmt: skip
    return rows


def apart_rows(verdicts: Verdicts) -> list[tuple[str, ...]]:
    """A line for each claim and network, APART_HEADINGS."""
    return [
        (
            CLAIMS[name].says, one.subject, one.verdict, effect_text(one), p_text(one.p_value), p_text(one.p_holm),
            f"{one.images:,}" if one.images else "", remarks(one),
        )
        for name, found in verdicts.findings.items()
        for one in found.apart
    ]  # fmt: skip


def remarks(finding: Finding) -> str:
    return "; ".join(filter(None, [finding.note, finding.test]))


def markdown(judged: Sequence[Verdicts]) -> str:
    """The whole of claims.md."""
    lines = ["# The papers' claims tested on these runs", ""]
    for verdicts in judged:
        lines += [f"## {markdown_text(title(verdicts.evidence))}", ""]
        lines += markdown_table(TOGETHER_HEADINGS, together_rows(verdicts))
        if apart := apart_rows(verdicts):
            lines += ["", "By network:", "", *markdown_table(APART_HEADINGS, apart)]
        lines += [""]
    return "\n".join([*lines, "## Rules", "", *(f"- {rule}" for rule in RULES), ""])


def findings_frame(judged: Sequence[Verdicts]) -> pd.DataFrame:
    """One row per finding with every field; ``scope`` tells a claim's own row from those by network."""
    rows = []
    for verdicts in judged:
        data, demo = verdicts.evidence.data, "yes" if verdicts.evidence.is_demo else "no"
        for name, found in verdicts.findings.items():
            claim = CLAIMS[name]
            head = {"data": data, "demo": demo, "claim": name, "place": claim.where, "quote": claim.quote}
            head["published"] = claim.published()
            rows.append({**head, "scope": "claim", **asdict(found.together)})
            rows += [{**head, "scope": "network", **asdict(one)} for one in found.apart]
    return pd.DataFrame(rows, dtype=object)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("claims", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders of runs and of experiments")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the first folder")
    args = parser.parse_args(argv)
    out = args.out or args.folders[0]
    runs, experiments = split(args.folders)
    judged = [judge(one) for one in evidence(read(runs), experiments)]
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "claims.md", markdown(judged))
    write_csv(out / "claims.csv", findings_frame(judged))
    for path in (out / "claims.md", out / "claims.csv"):
        print(path.resolve())
    for verdicts in judged:
        print(f"\n{visible(title(verdicts.evidence))}")
        for name, found in verdicts.findings.items():
            one = found.together
            print(f"  {one.verdict:<14}{CLAIMS[name].says}: {effect_text(one) or visible(one.note)}")
    return 0
