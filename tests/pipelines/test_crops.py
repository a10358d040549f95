"""Policies and windows, against references written another way.

Grammar: a round trip of random policies. Sizes, centre, five and ten crops: torchvision's transforms, on images whose
pixels hold their own coordinates. Random windows: Philox and the floor rule in plain Python integers, NumPy's own
``Generator.random``, a chi-square test, and golden_windows.json, which was written once by the plain Python below and
must never change: a changed window changes every published number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torchvision.transforms import functional

from pipelines.crops import (
    ADAPTIVE,
    GRAMMAR,
    MAX_VIEWS,
    STREAMS,
    TERMS,
    Planner,
    Policy,
    PolicyError,
    centre_offset,
    crop_windows,
    curve_policies,
    parse_policy,
    resized_sizes,
    uniforms,
    union,
    unique,
    view_count,
)
from pipelines.inputspec import InputSpec

GOLDEN = json.loads((Path(__file__).parent / "golden_windows.json").read_text(encoding="utf-8"))


def policies(*texts: str) -> list[Policy]:
    return [parse_policy(text) for text in texts]


def planner(policy: str, S: int = 256, K: int = 224, seed: int = 0, crop_mode: str = "center") -> Planner:
    return Planner(InputSpec(S, K, crop_mode=crop_mode), union(policies(*policy.split(","))), seed)


def windows_of(one: Planner, name: str, size: tuple[int, int]) -> np.ndarray:
    """Windows [total, 3] of one image of this stored height and width."""
    return one.plan(np.array([0]), [name], np.array([size])).groups[0].windows


# --------------------------------------------------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    ("text", "name", "n_views"),
    [
        ("CC", "CC", 1),
        ("1CC", "CC", 1),
        ("RC", "1RC", 1),
        ("20RC", "20RC", 20),
        ("mrc", "1MRC", 1),
        ("7MRC", "7MRC", 7),
        ("5FC", "5FC", 5),
        ("5mfc", "5MFC", 5),
        ("10RC+10MRC", "10RC+10MRC", 20),
        (" 4rc +  cc ", "CC+4RC", 5),
        ("CC+5FC", "CC+5FC", 6),  # the centre twice: it has twice the weight
        ("15MRC+15RC+5MFC+5FC", "5FC+5MFC+15RC+15MRC", 40),
        ("20arc", "20ARC", 20),  # at most
        ("amrc + 5mfc + 3RC", "5MFC+3RC+1AMRC", 9),
        (f"{MAX_VIEWS}RC", f"{MAX_VIEWS}RC", MAX_VIEWS),
    ],
)
def test_a_policy_has_one_canonical_name(text: str, name: str, n_views: int) -> None:
    policy = parse_policy(text)
    assert (policy.name, str(policy), policy.n_views) == (name, name, n_views)
    assert parse_policy(policy.name) == policy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a term is empty"),
        ("CC+", "a term is empty"),
        ("+CC", "a term is empty"),
        ("CC++4RC", "a term is empty"),
        ("4XC", "'4XC' is not a term"),
        ("RC4", "'RC4' is not a term"),
        ("4", "'4' is not a term"),
        ("-4RC", "'-4RC' is not a term"),
        ("4.5RC", "'4.5RC' is not a term"),
        ("4 RC", "'4 RC' is not a term"),
        ("4RC,CC", "'4RC,CC' is not a term"),
        ("10FC", "FC comes in fives"),
        ("FC", "FC comes in fives"),
        ("4MFC", "MFC comes in fives"),
        ("2CC", "CC comes in ones"),
        ("0RC", "0RC asks for 0 views"),
        ("00MRC", "asks for 0 views"),
        (f"{MAX_VIEWS + 1}RC", f"asks for {MAX_VIEWS + 1} views"),
        ("2RC+3RC", "RC is named twice"),
        ("CC+4RC+CC", "CC is named twice"),
        ("5FC+RC+5fc", "FC is named twice"),
        ("3RC+20ARC", "RC is named twice"),  # which of the two windows would the third be?
        ("AMRC+MRC", "MRC is named twice"),
        ("0ARC", "0ARC asks for 0 views"),
        ("5AFC", "'5AFC' is not a term"),
    ],
)
def test_an_error_says_why_and_shows_the_grammar(text: str, why: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse_policy(text)
    message = str(refused.value)
    assert repr(text) in message
    assert why in message
    assert GRAMMAR in message


def test_the_grammar_names_every_term_and_its_examples_are_policies() -> None:
    assert [term for term in TERMS if term not in GRAMMAR] == []
    assert set(TERMS) == {*STREAMS, *ADAPTIVE}
    for example in ("CC", "20RC", "10RC+10MRC", "CC+4RC", "5FC+5MFC+15RC+15MRC"):
        assert example in GRAMMAR
        assert parse_policy(example).name == example


def test_random_policies_survive_any_spelling() -> None:
    rng = random.Random(1)
    for _ in range(500):
        streams = rng.sample(list(STREAMS), rng.randint(1, len(STREAMS)))
        adaptive = {"RC": "ARC", "MRC": "AMRC"}
        chosen = [adaptive.get(stream, stream) if rng.random() < 0.3 else stream for stream in streams]
        counts = {t: {"CC": 1, "FC": 5, "MFC": 5}.get(t, rng.randint(1, 40)) for t in chosen}
        spelled = [f"{' ' * rng.randint(0, 2)}{counts[t]}{rng.choice([t, t.lower()])}" for t in chosen]
        policy = parse_policy("+".join(spelled))
        if len(counts) == 1 and chosen[0] in ("DC", "MDC", "WI"):
            counts[chosen[0]] = 1  # a weight alone means nothing
        assert dict(policy.terms) == counts
        assert [term for term, _ in policy.terms] == [term for term in TERMS if term in counts]
        assert policy.adaptive == any(term in ("ARC", "AMRC") for term in chosen)
        assert policy.weight == sum(counts.values())
        assert policy.n_views == sum(1 if t in ("DC", "MDC", "WI") else n for t, n in counts.items())
        assert parse_policy(policy.name) == policy


def test_random_text_is_a_policy_or_an_error_that_shows_the_grammar() -> None:
    rng = random.Random(2)
    taken = 0
    for _ in range(3000):
        text = "".join(rng.choices("0125ACFRM+ x", k=rng.randint(0, 8)))
        try:
            policy = parse_policy(text)
        except PolicyError as error:
            assert GRAMMAR in str(error)
        else:
            taken += 1
            assert parse_policy(policy.name) == policy
    assert 0 < taken < 1000


def test_curves_are_random_crops_with_and_without_the_centre() -> None:
    names = [policy.name for policy in curve_policies([1, 2, 5, 2])]
    assert names == ["CC", "1RC", "2RC", "CC+1RC", "5RC", "CC+4RC"]
    assert [policy.name for policy in curve_policies([])] == ["CC"]
    with pytest.raises(PolicyError, match="asks for 0 views"):
        curve_policies([0])
    with pytest.raises(PolicyError):
        curve_policies([-1])


def test_unique_keeps_the_first_of_each() -> None:
    assert unique(policies("2RC", "CC", "2rc", "CC", "1RC")) == policies("2RC", "CC", "1RC")


# ------------------------------------------------------------------------------------------------- the union of views


def test_a_union_takes_the_most_of_each_stream_and_shares_the_centre() -> None:
    views = union(policies("3RC", "CC+5FC", "5MFC+2RC", "4MRC", "CC"))
    assert views.counts == {"CC": 1, "FC": 5, "MFC": 5, "RC": 3, "MRC": 4}
    assert views.total == 17
    assert views.mirrored
    assert views.columns["FC"][4] == views.columns["CC"][0]
    own = [column for stream, columns in views.columns.items() for column in columns]
    assert sorted(set(own)) == list(range(17))
    assert len(own) == 18  # the centre is the only shared column


@pytest.mark.parametrize(("texts", "mirrored"), [(["CC", "3RC"], False), (["5MFC"], True), (["CC", "1MRC"], True)])
def test_a_union_knows_whether_it_mirrors(texts: list[str], mirrored: bool) -> None:
    assert union(policies(*texts)).mirrored is mirrored


def test_without_the_centre_crop_the_fifth_fixed_crop_is_its_own() -> None:
    views = union(policies("5FC+2RC"))
    assert views.columns == {"FC": (0, 1, 2, 3, 4), "RC": (5, 6)}
    assert views.total == 7


def test_a_union_does_not_depend_on_the_order_of_policies() -> None:
    texts = ["CC", "5FC+3RC", "10MRC", "5MFC", "CC+7RC"]
    assert union(policies(*texts)) == union(policies(*reversed(texts))) == union(policies(*texts, *texts))


def test_an_empty_union_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        union([])


def test_take_names_the_columns_in_the_order_of_the_policy() -> None:
    views = union(policies("CC", "5FC+4RC", "6RC+2MRC"))
    assert views.columns == {"CC": (0,), "FC": (1, 2, 3, 4, 0), "RC": (5, 6, 7, 8, 9, 10), "MRC": (11, 12)}
    assert views.take(parse_policy("2RC+CC")) == [0, 5, 6]
    assert views.take(parse_policy("5FC+1MRC")) == [1, 2, 3, 4, 0, 11]


def test_an_adaptive_term_takes_from_its_stream() -> None:
    views = union(policies("CC", "3RC", "20ARC+2AMRC", "10ARC", "4AMRC+1RC"))
    assert views.counts == {"CC": 1, "RC": 20, "MRC": 4}
    assert views.always == {"CC": 1, "RC": 3}
    assert views.adaptive == {"RC": 20, "MRC": 4}
    assert views.total == 25
    assert views.mirrored
    assert views.take(parse_policy("10ARC+2AMRC")) == [*range(1, 11), 21, 22]
    few = union(policies("20RC", "10ARC"))
    assert (few.counts, few.always, few.adaptive) == ({"RC": 20}, {"RC": 20}, {"RC": 10})


def test_adaptive_counts_follow_the_area_that_the_centre_crop_leaves_out() -> None:
    """At 256 and 224: a square leaves out 23.4 % (12 of 50 in whole parts), 4:3 42.5 %, 2:1 61.7 %."""
    sizes = np.array([[500, 500], [375, 500], [500, 375], [250, 500], [100, 10000]])
    uncovered = planner("CC").uncovered(sizes)
    assert uncovered.tolist()[0] == [256 * 256 - 224 * 224, 256 * 256]
    assert view_count("ARC", 50, uncovered).tolist() == [12, 22, 22, 31, 50]
    assert view_count("AMRC", 20, uncovered).tolist() == [5, 9, 9, 13, 20]
    assert view_count("RC", 20, uncovered).tolist() == [20] * 5
    assert view_count("ARC", 1, uncovered).tolist() == [1] * 5
    full = planner("CC", 224, 224).uncovered(np.array([[500, 500]]))
    assert view_count("ARC", 20, full).tolist() == [1]


def test_adaptive_counts_are_exact_and_grow_with_the_share() -> None:
    rng = np.random.default_rng(7)
    uncovered = planner("CC", 332, 300).uncovered(rng.integers(1, 3000, (300, 2)))
    shares = [Fraction(out, whole) for out, whole in uncovered.tolist()]
    for n in (1, 2, 7, 20, 1000):
        counts = view_count("ARC", n, uncovered)
        assert counts.tolist() == [min(1 + int(n * share), n) for share in shares]
        by_share = sorted(zip(shares, counts.tolist(), strict=True))
        assert [count for _, count in by_share] == sorted(counts.tolist())


def test_a_plan_holds_the_views_that_some_policy_needs_and_no_other() -> None:
    texts = ["CC", "2RC", "9ARC+6AMRC", "5ARC"]
    one = planner(",".join(texts), 64, 48)
    sizes = np.array([[64, 64], [64, 96], [64, 640], [128, 65]])
    names = ["a", "b", "c", "d"]
    group = one.plan(np.arange(4), names, sizes).groups[0]
    full = planner("CC,9RC+6MRC", 64, 48).plan(np.arange(4), names, sizes).groups[0].windows.reshape(4, 16, 3)
    for i, (out, whole) in enumerate(one.uncovered(sizes).tolist()):
        share = Fraction(out, whole)
        plain, mirrored = max(2, min(1 + int(9 * share), 9)), min(1 + int(6 * share), 6)
        expected = [0, *range(1, 1 + plain), *range(10, 10 + mirrored)]
        assert group.view[group.image == i].tolist() == expected
        assert group.windows[group.image == i].tolist() == full[i, expected].tolist()
    assert len({int((group.image == i).sum()) for i in range(4)}) > 2  # else nothing was adaptive here


def test_take_refuses_a_policy_that_was_not_evaluated() -> None:
    with pytest.raises((KeyError, ValueError)):
        union(policies("3RC")).take(parse_policy("20RC"))


# ----------------------------------------------------------------------------------------------------- sizes and centre


def test_sizes_are_torchvisions() -> None:
    rng = random.Random(3)
    cases = [(rng.randint(1, 3000), rng.randint(1, 3000), rng.randint(1, 900)) for _ in range(3000)]
    cases += [(375, 500, 256), (500, 375, 256), (500, 500, 256), (3, 4, 3), (1, 1, 1), (1, 999, 7), (333, 1000, 333)]
    for height, width, S in cases:
        image = torch.empty((1, height, width), device="meta")
        expected = functional.resize(image, [S], antialias=True).shape[1:]
        assert tuple(resized_sizes(np.array([(height, width)]), InputSpec(S, 1))[0]) == tuple(expected)


def test_a_whole_batch_is_resized_at_once() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 2000, (500, 2))
    got = resized_sizes(sizes, InputSpec(332, 300))
    assert got.dtype == np.int64
    for (height, width), resized in zip(sizes.tolist(), got.tolist(), strict=True):
        scale = Fraction(332, min(height, width))
        assert resized == [int(height * scale), int(width * scale)]


def test_squash_is_a_square_whatever_came() -> None:
    got = resized_sizes(np.array([[100, 300], [70, 20], [64, 64]]), InputSpec(48, 32, crop_mode="squash"))
    assert got.tolist() == [[48, 48]] * 3


def coordinates(height: int, width: int) -> torch.Tensor:
    """[2, height, width]: each pixel holds its own y and x."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))


def channels_last(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def test_the_centre_is_torchvisions() -> None:
    for K in (1, 2, 7, 8):
        for height in range(K, K + 12):
            for width in range(K, K + 12):
                crop = functional.center_crop(coordinates(height, width), [K, K])
                room = np.array([height - K, width - K])
                assert centre_offset(room).tolist() == crop[:, 0, 0].tolist()


@pytest.mark.parametrize("size", [(64, 64), (64, 91), (90, 64), (64, 81), (77, 64)])
@pytest.mark.parametrize("K", [33, 40, 63, 64])
def test_fixed_crops_are_torchvisions(size: tuple[int, int], K: int) -> None:
    """In five_crop's order, pixel for pixel, from frames of S = 64 with even and odd room."""
    image = coordinates(*size)
    got = crop_windows(channels_last(image), windows_of(planner("5FC+5MFC", 64, K), "a", size), K)
    five = [channels_last(crop) for crop in functional.five_crop(image, [K, K])]
    np.testing.assert_array_equal(got[:5], np.stack(five))
    np.testing.assert_array_equal(got[5:], np.stack(five)[:, :, ::-1])


@pytest.mark.parametrize("size", [(64, 64), (64, 98), (78, 64), (64, 81), (65, 64)])
def test_mirrored_fixed_crops_are_those_of_ten_crop(size: tuple[int, int]) -> None:
    """ten_crop cuts the flipped image, so its corners come left and right exchanged. Where the room is odd, its flipped
    centre is not the mirror image of its centre but of the window one pixel beside; ours is (MID: "flipped versions").
    """
    K = 40
    image = coordinates(*size)
    got = crop_windows(channels_last(image), windows_of(planner("5FC+5MFC", 64, K), "a", size), K)
    ten = functional.ten_crop(image, [K, K])
    expected = np.stack([channels_last(ten[i]) for i in (0, 1, 2, 3, 4, 6, 5, 8, 7, 9)])
    np.testing.assert_array_equal(got[:9], expected[:9])
    odd = (size[1] - K) % 2
    assert abs(got[9, :, :, 1] - expected[9, :, :, 1]).max() == odd
    np.testing.assert_array_equal(got[9, :, :, 0], expected[9, :, :, 0])


def test_when_the_crop_fills_the_frame_all_views_are_it() -> None:
    windows = windows_of(planner("CC,5FC+5MFC+3RC+3MRC", 64, 64), "a", (128, 128))
    assert windows[:, :2].max() == 0


@pytest.mark.parametrize("S,K", [(256, 224), (225, 224), (443, 416), (224, 224)])
def test_every_window_lies_inside_its_frame(S: int, K: int) -> None:
    rng = np.random.default_rng(5)
    one = planner("CC,5FC+5MFC+20RC+20MRC", S, K)
    sizes = rng.integers(30, 1500, (60, 2))
    plan = one.plan(np.arange(60), [f"{i}.jpg" for i in range(60)], sizes).groups[0]
    y, x, mirror = plan.windows.T
    assert y.min() >= 0 and x.min() >= 0
    assert (y + K <= plan.sizes[plan.image, 0]).all()
    assert (x + K <= plan.sizes[plan.image, 1]).all()
    by_stream = {s: {int(m) for m in mirror.reshape(60, -1)[:, list(c)].ravel()} for s, c in one.views.columns.items()}
    assert by_stream == {"CC": {0}, "FC": {0}, "MFC": {1}, "RC": {0}, "MRC": {1}}


# ------------------------------------------------------------------------------------------------------ random windows

MASK = 2**64 - 1


def philox_words(key: tuple[int, int], n: int) -> list[int]:
    """The first n 64-bit words of Philox4x64-10 (Salmon et al., SC 2011, Section 3.3), counters from 1 as in NumPy."""
    words: list[int] = []
    counter = 0
    while len(words) < n:
        counter += 1
        c, (k0, k1) = [counter & MASK, counter >> 64, 0, 0], key
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
        words += c
    return words[:n]


def stream_key(seed: int, name: str, stream: str) -> tuple[int, int]:
    text = b"\0".join([str(seed).encode(), stream.encode(), name.encode("utf-8", "surrogateescape")])
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def plain_windows(
    seed: int, name: str, policy: str, size: tuple[int, int], S: int, K: int, mode: str
) -> list[list[int]]:
    """The windows (y, x, mirror) of a policy's terms in canonical order, in Python integers and fractions."""
    height, width = size
    short = min(size)
    frame = (S, S) if mode == "squash" else (S * height // short, S * width // short)
    room_y, room_x = (side - K for side in frame)
    centre = (round(Fraction(room_y, 2)), round(Fraction(room_x, 2)))
    corners = [(0, 0), (0, room_x), (room_y, 0), (room_y, room_x), centre]
    windows: list[list[int]] = []
    for stream, n in parse_policy(policy).terms:
        mirror = int(stream.startswith("M"))
        places = [centre] if stream == "CC" else corners
        if stream.endswith("RC"):
            words = philox_words(stream_key(seed, name, stream), 2 * n)
            u = [Fraction(word >> 11, 2**53) for word in words]
            places = [(int(u[2 * j] * (room_y + 1)), int(u[2 * j + 1] * (room_x + 1))) for j in range(n)]
        windows += [[y, x, mirror] for y, x in places]
    return windows


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['seed']}-{case['policy']}-{case['name']!a}")
def test_golden_windows(case: dict) -> None:
    """The frozen file, the plan, and plain Python agree. Never regenerate the file to make this pass."""
    name, size, K = case["name"], (case["height"], case["width"]), case["K"]
    S, mode, seed = case["S"], case["crop_mode"], case["seed"]
    assert plain_windows(seed, name, case["policy"], size, S, K, mode) == case["windows"]
    one = planner(case["policy"], S, K, seed, mode)
    got = windows_of(one, name, size)[one.views.take(parse_policy(case["policy"]))]
    assert got.tolist() == case["windows"]


def test_the_golden_file_is_the_one_that_was_frozen() -> None:
    """What it must hold to be a guard: every stream of crops, odd names, many sizes, several seeds, both crop modes."""
    assert {case["name"] for case in GOLDEN} >= {"n01440764/ILSVRC2012_val_00000293.JPEG", "größe/\udcff.jpg", ""}
    assert len({case["name"] for case in GOLDEN}) >= 12
    assert {stream for case in GOLDEN for stream, _ in parse_policy(case["policy"]).terms} == {
        stream for stream in STREAMS if not STREAMS[stream].dense
    }
    assert len({(case["height"], case["width"]) for case in GOLDEN}) >= 12
    assert len({case["seed"] for case in GOLDEN}) >= 3
    assert {case["crop_mode"] for case in GOLDEN} == {"center", "squash"}
    digest = hashlib.sha256(json.dumps(GOLDEN, sort_keys=True).encode()).hexdigest()
    assert digest == "c217f83e34b027c83d609aa98a4d46dc15357e5eb0fc6f54b0d69ca369d35aec"


def test_uniforms_are_numpys_generator() -> None:
    for seed, name, stream in [(0, "a.jpg", "RC"), (0, "a.jpg", "MRC"), (-1, "", "RC"), (10**30, "größe/\udcff", "RC")]:
        k0, k1 = stream_key(seed, name, stream)
        generator = np.random.Generator(np.random.Philox(key=k0 + (k1 << 64)))
        got = uniforms(seed, name, stream, 25)
        np.testing.assert_array_equal(got, generator.random((25, 2)))
        assert got.dtype == np.float64
        assert got.min() >= 0
        assert got.max() < 1


def offsets(stream: str, rooms: tuple[int, int], images: int, n: int, seed: int = 0) -> np.ndarray:
    """(y, x) [images, n, 2] of a random stream in frames that leave this room."""
    K = 16
    one = planner(f"{n}{stream}", K, K, seed)
    frames = np.tile(np.array(rooms) + K, (images, 1))
    return one.windows([f"val/{i}.jpg" for i in range(images)], frames)[:, :, :2]


@pytest.mark.parametrize("stream", ["RC", "MRC"])
@pytest.mark.parametrize("rooms", [(32, 85), (1, 2), (6, 32)])
def test_every_offset_is_equally_likely(stream: str, rooms: tuple[int, int]) -> None:
    """Chi-square. ``round(u * room)`` would give the first and the last offset half the weight of the others."""
    drawn = offsets(stream, rooms, images=2000, n=5)
    for axis, room in enumerate(rooms):
        counts = np.bincount(drawn[..., axis].ravel(), minlength=room + 1)
        assert len(counts) == room + 1
        assert chisquare(counts).pvalue > 1e-3


def independent(a: np.ndarray, b: np.ndarray, values: int) -> float:
    """p-value of the chi-square test that all pairs of two variables in 0..values-1 are equally likely."""
    return float(chisquare(np.bincount((a * values + b).ravel(), minlength=values**2)).pvalue)


def test_random_windows_are_independent() -> None:
    """Of y and x, of one view and the next, of RC and MRC, of one image and the next, of one seed and the next."""
    rc, mrc = offsets("RC", (7, 7), 4000, 4), offsets("MRC", (7, 7), 4000, 4)
    other_seed = offsets("RC", (7, 7), 4000, 4, seed=1)
    assert independent(rc[..., 0], rc[..., 1], 8) > 1e-3
    assert independent(rc[:, :-1], rc[:, 1:], 8) > 1e-3
    assert independent(rc, mrc, 8) > 1e-3
    assert independent(rc[:-1], rc[1:], 8) > 1e-3
    assert independent(rc, other_seed, 8) > 1e-3
    assert independent(rc, rc, 8) < 1e-9  # the test can tell


def test_the_draw_does_not_depend_on_the_size() -> None:
    """With room for 2^k offsets an offset is the first k bits of the draw, so those of a small frame are the leading
    bits of a large one's: the same u whatever S, K and the picture's size."""
    large = offsets("RC", (2**20 - 1, 2**20 - 1), 50, 8)
    for bits in (1, 5, 13):
        small = offsets("RC", (2**bits - 1, 2**bits - 1), 50, 8)
        np.testing.assert_array_equal(small, large >> (20 - bits))
        wide = offsets("RC", (2**bits - 1, 2**20 - 1), 50, 8)
        np.testing.assert_array_equal(wide, np.stack([small[..., 0], large[..., 1]], axis=-1))


def test_the_draw_does_not_depend_on_the_spec() -> None:
    """The same room through other S, K and crop mode gives the same windows."""
    small = windows_of(planner("9RC+9MRC", 64, 32), "a/b.jpg", (64, 96))
    large = windows_of(planner("9RC+9MRC", 96, 64), "a/b.jpg", (192, 256))
    squashed = windows_of(planner("9RC+9MRC", 96, 64, crop_mode="squash"), "a/b.jpg", (192, 256))
    np.testing.assert_array_equal(small, large)  # room 32 x 64 both times
    np.testing.assert_array_equal(small[:, 0], squashed[:, 0])
    assert (small[:, 1] != squashed[:, 1]).any()


def test_streams_nest_and_do_not_depend_on_each_other() -> None:
    name, size = "n01440764/x.JPEG", (375, 500)
    many = planner("CC,5FC+5MFC+40RC+40MRC")
    all_windows = windows_of(many, name, size)
    for text in ("1RC", "7RC", "7MRC", "CC+4RC", "5FC+2MRC", "5MFC", "CC", "10RC+10MRC", "39RC+40MRC"):
        policy = parse_policy(text)
        few = planner(text)
        np.testing.assert_array_equal(
            windows_of(few, name, size)[few.views.take(policy)], all_windows[many.views.take(policy)]
        )


def test_windows_depend_on_the_name_and_the_seed_only() -> None:
    """Not on the order of a batch, on what shares it, on how it is split, or on the row number."""
    rng = np.random.default_rng(6)
    names = [f"class {i % 3}/{i}.jpg" for i in range(30)]
    sizes = rng.integers(40, 500, (30, 2))
    one = planner("CC,5FC+3RC+2MRC", 64, 48, seed=7)
    together = one.plan(np.arange(30), names, sizes).groups[0].windows.reshape(30, -1, 3)
    for _ in range(10):
        some = rng.permutation(30)[: rng.integers(1, 31)]
        plan = one.plan(some + 1000, [names[i] for i in some], sizes[some]).groups[0]
        np.testing.assert_array_equal(plan.windows.reshape(len(some), -1, 3), together[some])
    reseeded = planner("CC,5FC+3RC+2MRC", 64, 48, seed=8).plan(np.arange(30), names, sizes).groups[0]
    assert (reseeded.windows.reshape(30, -1, 3) != together).any(axis=(1, 2)).all()
    renamed = one.plan(np.array([0]), ["class 0/00.jpg"], sizes[:1]).groups[0].windows
    assert (renamed != together[0]).any()


def test_names_and_seeds_are_not_run_together() -> None:
    """Seed 1 of "2/a" is not seed 12 of "/a": the parts of the key are kept apart."""
    keys = {
        uniforms(seed, name, stream, 1).tobytes()
        for seed in (1, 12, 2)
        for name in ("a", "2/a", "/a", "RC", "\0RC\0a")
        for stream in ("RC", "MRC")
    }
    assert len(keys) == 30


# ---------------------------------------------------------------------------------------------------- plans and cutting


def test_a_plan_is_image_major_in_canonical_order() -> None:
    one = planner("5MFC,CC,2RC", 64, 48)
    rows, sizes = np.array([40, 7, 12]), np.array([[100, 150], [64, 64], [200, 90]])
    plan = one.plan(rows, ["a", "b", "c"], sizes)
    np.testing.assert_array_equal(plan.rows, rows)
    np.testing.assert_array_equal(plan.source_sizes, sizes)
    (group,) = plan.groups
    assert group.K == 48
    assert group.sizes.tolist() == [[64, 96], [64, 64], [142, 64]]
    assert group.image.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert group.view.tolist() == [*range(8)] * 3
    assert group.windows.shape == (24, 3)
    assert (plan.rows.dtype, group.image.dtype, group.view.dtype) == (np.int64, np.int64, np.int32)
    assert group.windows[:8].tolist() == windows_of(one, "a", (100, 150)).tolist()


def test_an_empty_plan_is_empty() -> None:
    plan = planner("CC,5FC+2RC").plan(np.zeros(0, int), [], np.zeros((0, 2), int))
    assert len(plan.rows) == len(plan.groups[0].windows) == len(plan.groups[0].image) == 0


def test_planning_changes_nothing_it_was_given() -> None:
    rows, sizes = np.array([3, 1]), np.array([[100, 150], [64, 64]])
    before = rows.copy(), sizes.copy()
    one = planner("CC,2RC", 64, 48)
    first = one.plan(rows, ["a", "b"], sizes)
    again = one.plan(rows, ["a", "b"], sizes)
    np.testing.assert_array_equal(rows, before[0])
    np.testing.assert_array_equal(sizes, before[1])
    for field in dataclasses.fields(first.groups[0]):
        np.testing.assert_array_equal(getattr(first.groups[0], field.name), getattr(again.groups[0], field.name))


def test_cut_reads_the_window_and_mirrors_it() -> None:
    """Pixel by pixel: crop[r, c] is frame[y + r, x + c], or frame[y + r, x + K - 1 - c] when mirrored."""
    frame = np.random.default_rng(8).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    windows = np.array([[0, 0, 0], [4, 8, 1], [2, 3, 1], [4, 0, 0]])
    crops = crop_windows(frame, windows, 5)
    assert crops.shape == (4, 5, 5, 3) and crops.dtype == np.uint8
    for crop, (y, x, mirror) in zip(crops, windows.tolist(), strict=True):
        for r in range(5):
            for c in range(5):
                np.testing.assert_array_equal(crop[r, c], frame[y + r, x + (4 - c if mirror else c)])
