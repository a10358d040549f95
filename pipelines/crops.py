"""Which windows to cut: the policy grammar, the view streams and the integer plan. NumPy only.

A **policy** is a sum of terms, ``5FC+5MFC+15RC+15MRC``; a **view** is one crop of an image, the j-th of a **stream**:

    CC   the centre crop                       (one)
    FC   four corners and the centre           (five: top-left, top-right, bottom-left, bottom-right, centre)
    MFC  mirror images of those five windows   (five)
    RC   random windows                        (any number)
    MRC  random windows, mirrored, drawn independently of RC's
    DC   dense crops: one run of the trunk over a frame, each K x K window of it a crop (``pipelines.dense_frames``)
    MDC  dense crops of the mirrored frame
    WI   the whole resized image

A dense view (DC, MDC, WI) is one view whatever stands before it: the number is its weight, ``CC+3DC`` counts the dense
crops' mean as three views.

A term ``20ARC`` or ``20AMRC`` takes from RC or MRC as many views as the image's shape asks for: of the area that the
centre crop leaves out, the 20th part for each view beyond the first (MID, Section I: "an adaptive strategy where the
number of random crops are pre-determined as function of input resolution").

``@K`` after a term is another crop size: ``CC@192+CC@256`` averages the centre crops of two resolutions (FixRes,
Section 5; FixEfficientNet, Section 4). The image is decoded once and resized for each, with the network's own crop
ratio. The u of RC@192's j-th window are those of RC's: the same place in the image, as far as pixels allow.

Streams nest: the first n views of a stream are the n-crop policy, so one pass over the longest serves all of them.
The fifth fixed crop *is* the centre crop; it is evaluated once when both are asked for.

A **suffix** stops early: ``CC+3DC+16RC~1%`` evaluates its views in the order in which they are written until the
answer is sure enough (``models.stopping``): ``~exact``, ``~sqrt``, or the risk of another answer than the whole
policy's.

All geometry is integers, planned on the host; every backend obeys it. Source of the streams: MID, Section V.B and
Tables I and VIII ("the flipped versions in our approach are not necessarily of the same random crops").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from pipelines.dense_frames import dense_frame, network_pixels, whole_frame
from pipelines.inputspec import InputSpec
from pipelines.philox import random_raw

Sizes = np.ndarray  # int64 [b, 2]: height, width


@dataclass(frozen=True, slots=True)
class Stream:
    """One sequence of views. ``count`` is the only number of views it may have, or None for any."""

    count: int | None
    mirror: bool
    random: bool
    what: str
    dense: bool = False  # one run over a frame larger than a crop; a term's number is then its weight


# In canonical order: sums over views run in it, so that an average never depends on which other policies are there.
STREAMS: dict[str, Stream] = {
    "CC": Stream(1, False, False, "the centre crop"),
    "FC": Stream(5, False, False, "four corners and the centre"),
    "MFC": Stream(5, True, False, "the fixed crops, mirrored"),
    "RC": Stream(None, False, True, "random crops"),
    "MRC": Stream(None, True, True, "random crops, mirrored"),
    "DC": Stream(None, False, False, "dense crops", dense=True),
    "MDC": Stream(None, True, False, "dense crops, mirrored", dense=True),
    "WI": Stream(None, False, False, "the whole image", dense=True),
}
ADAPTIVE = {"ARC": "RC", "AMRC": "MRC"}  # a term whose number of views depends on the image -> the stream it takes from
TERMS = ("CC", "FC", "MFC", "RC", "ARC", "MRC", "AMRC", "DC", "MDC", "WI")  # canonical order
RULES = ("exact", "sqrt")  # stopping rules that need no number (models.stopping)
# Of the room (y, x), the share that each corner takes: torchvision's five_crop order.
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int64)
MAX_SIZE = 10_000  # pixels
VECTOR_IMAGES = 24  # from so many on, drawing all of a batch together is faster
DENSE_COST = 2  # crops' pixels that a dense view has, roughly (1.8 at S = 256, K = 224 on photographs)
MAX_VIEWS = 1000  # of one stream: a typing error of a few zeros would plan terabytes

COMES_IN = {1: "ones, as CC", 5: "fives, as 5FC or 5MFC"}
GRAMMAR = (
    "a policy is a sum of terms such as CC, 20RC, 10RC+10MRC, CC+4RC or 5FC+5MFC+15RC+15MRC, where CC is the centre "
    "crop, 5FC the four corners and the centre, 5MFC their mirror images, nRC and nMRC n random crops, plain and "
    f"mirrored (n from 1 to {MAX_VIEWS}), nARC and nAMRC up to n, more for elongated images; nDC and nMDC dense "
    "crops, plain and mirrored, and nWI the whole image, each weighing as n views; each stream once; @K after a term, "
    "as in CC@192+5RC@256: crops of K pixels instead of the network's own size; ~exact, ~sqrt or a risk such as ~1% at "
    "the end: stop each image early, its views evaluated in the order written"
)


def parted(term: str) -> tuple[str, int | None]:
    """``"RC@192"`` -> ``("RC", 192)``; None is the network's own size."""
    name, _, size = term.partition("@")
    return name, int(size) if size else None


def at_size(name: str, size: int | None) -> str:
    """The other way round."""
    return name if size is None else f"{name}@{size}"


def stream_of(term: str) -> str:
    """The stream that a term takes its views from: ``"ARC@192"`` -> ``"RC@192"``."""
    name, size = parted(term)
    return at_size(ADAPTIVE.get(name, name), size)


def is_dense(term: str) -> bool:
    """Whether a term or stream is one dense view, and its number a weight."""
    name = parted(stream_of(term))[0]
    return STREAMS[name].dense


def views_of(term: str, n: int) -> int:
    """How many views a term asks for, the most."""
    return 1 if is_dense(term) else n


def by_size(term: str, names: Sequence[str]) -> tuple[int, int]:
    """Sorts terms or streams into canonical order: the network's own size, then others; then as in ``names``."""
    name, size = parted(term)
    return size or 0, names.index(name)


class PolicyError(ValueError):
    """A policy that the grammar does not allow; the message shows the grammar."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"policy {text!r}: {why}; {GRAMMAR}")


@dataclass(frozen=True, slots=True)
class Policy:
    """Number of views taken from each stream, in canonical order: ``(("CC", 1), ("RC", 4))``; of a dense term, its
    weight.

    ``suffix``: the stopping rule, as in ``1%``, or empty; ``written``: with one, the terms in the order of evaluation.
    """

    terms: tuple[tuple[str, int], ...]
    suffix: str = ""
    written: tuple[tuple[str, int], ...] = ()

    @property
    def n_views(self) -> int:
        """Views per image, the most. A centre that is in both CC and FC counts twice: it has twice the weight."""
        return sum(views_of(term, n) for term, n in self.terms)

    @property
    def weight(self) -> int:
        """What the views weigh together, the most: each 1, a dense view its number."""
        return sum(n for _, n in self.terms)

    @property
    def adaptive(self) -> bool:
        """Whether the number of views depends on the image."""
        return any(parted(term)[0] in ADAPTIVE for term, _ in self.terms)

    @property
    def dense(self) -> bool:
        """Whether the network must be run over more than a crop."""
        return any(is_dense(term) for term, _ in self.terms)

    @property
    def sizes(self) -> list[int]:
        """The crop sizes beside the network's own."""
        return sorted({size for term, _ in self.terms if (size := parted(term)[1]) is not None})

    @property
    def whole(self) -> Policy:
        """The policy without its suffix: what a stopped one is compared with."""
        return Policy(self.terms)

    def view_counts(self, uncovered: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(stream, number of its views int64 [b]) for each term, for images with these ``uncovered`` areas [b, 2]."""
        return [(stream_of(term), view_count(term, views_of(term, n), uncovered)) for term, n in self.terms]

    @property
    def name(self) -> str:
        """The canonical text: ``CC+4RC``; with a suffix the order is that of evaluation."""
        text = "+".join(_term_text(term, n) for term, n in self.written or self.terms)
        return f"{text}~{self.suffix}" if self.suffix else text

    def __str__(self) -> str:
        return self.name


def _term_text(term: str, n: int) -> str:
    """``("RC", 4)`` -> ``4RC``; CC and a dense term of weight 1 stand alone."""
    return term if parted(term)[0] == "CC" or (n == 1 and is_dense(term)) else f"{n}{term}"


def parse_policy(text: str) -> Policy:
    """``"4rc + CC"`` -> ``Policy("CC+4RC")``. Raises PolicyError, which shows the grammar."""
    views, tilde, suffix = text.partition("~")
    counts: dict[str, int] = {}
    for raw in views.split("+"):
        name, n = _parse_term(text, raw)
        if any(stream_of(name) == stream_of(other) for other in counts):
            raise PolicyError(text, f"{stream_of(name)} is named twice")
        counts[name] = n
    if len(counts) == 1 and is_dense(name):
        counts[name] = 1  # a weight means nothing alone
    terms = tuple((name, counts[name]) for name in sorted(counts, key=lambda term: by_size(term, TERMS)))
    if not tilde:
        return Policy(terms)
    if any(at_size("FC", size) in counts and at_size("CC", size) in counts for size in [None, *Policy(terms).sizes]):
        raise PolicyError(text, "CC and 5FC share the centre crop, and a stopped policy evaluates each view once")
    return Policy(terms, _parse_suffix(text, suffix), tuple(counts.items()))


def _parse_term(text: str, raw: str) -> tuple[str, int]:
    """``"4rc"`` of the policy ``text`` -> ``("RC", 4)``. Raises PolicyError."""
    term = raw.strip().upper()
    match = re.fullmatch(r"(\d*)([A-Z]+)(?:@(\d+))?", term)
    if not match or match[2] not in TERMS:
        raise PolicyError(text, f"{raw.strip()!r} is not a term" if term else "a term is empty")
    n, size = int(match[1] or 1), int(match[3]) if match[3] else None
    stream = STREAMS[ADAPTIVE.get(match[2], match[2])]
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise PolicyError(text, f"{term} asks for crops of {size} pixels")
    if size is not None and stream.dense:
        raise PolicyError(text, f"{term} is not a term: dense crops are of the network's own size (set `img_size`)")
    if stream.count is not None and n != stream.count:
        raise PolicyError(text, f"{term} is not a term: {match[2]} comes in {COMES_IN[stream.count]}")
    if not 1 <= n <= MAX_VIEWS:
        raise PolicyError(text, f"{term} asks for {n} views" if not stream.dense else f"{term} has a weight of {n}")
    return at_size(match[2], size), n


def _parse_suffix(text: str, raw: str) -> str:
    """What follows ``~``, canonical: ``exact``, ``sqrt`` or ``1%``. Raises PolicyError."""
    suffix = raw.strip().lower()
    if suffix in RULES:
        return suffix
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", suffix)
    if not match or not 0 < float(match[1]) < 100:
        raise PolicyError(text, f"after ~ comes {', '.join(RULES)} or a risk between 0 and 100 such as 1%")
    return f"{float(match[1]):g}%"


def left_out_area(resized: Sizes, K: int) -> np.ndarray:
    """int64 [b, 2]: pixels that the centre crop leaves out, and all pixels, of frames with these sizes [b, 2]."""
    whole = np.asarray(resized, dtype=np.int64).prod(axis=1)
    return np.stack([whole - K * K, whole], axis=1)


def view_count(term: str, n: int, uncovered: np.ndarray) -> np.ndarray:
    """int64 [b]: how many views a term takes of images with these ``left_out_area`` [b, 2]; integers throughout.

    The area is that at the network's own size also for terms of another: the number follows the image's shape.
    """
    if parted(term)[0] not in ADAPTIVE:
        return np.full(len(uncovered), n, dtype=np.int64)
    return np.minimum(1 + n * uncovered[:, 0] // uncovered[:, 1], n)


def curve_policies(crops: Iterable[int]) -> list[Policy]:
    """``--crops``: CC, then ``nRC`` and ``CC+(n-1)RC`` for each n (MID Figures 3 and 7).

    Raises PolicyError for an n below 1.
    """
    policies = [parse_policy("CC")]
    for n in crops:
        policies.append(parse_policy(f"{n}RC"))
        if n > 1:
            policies.append(parse_policy(f"CC+{n - 1}RC"))
    return unique(policies)


def unique(policies: Iterable[Policy]) -> list[Policy]:
    """Without repetitions, in order of first appearance."""
    return list(dict.fromkeys(policies))


@dataclass(frozen=True, slots=True)
class Views:
    """The union of the views of some policies: what one pass evaluates.

    ``columns[stream][j]`` is the column (view number) of the stream's j-th view. Columns are numbered in canonical
    order; FC's fifth view shares CC's column of the same size.
    """

    counts: dict[str, int]  # of each stream, the most that any image needs
    always: dict[str, int]  # of each stream, what every image needs; beyond it, `adaptive` says
    adaptive: dict[str, int]  # of a stream, the largest adaptive term
    columns: dict[str, tuple[int, ...]]
    total: int
    mirrored: bool  # whether some crop is

    def take(self, policy: Policy) -> list[int]:
        """Columns of a policy's views, the most that it may take, in the order in which they are summed.

        Raises ValueError for a policy that needs views which are not here.
        """
        taken = [(stream_of(term), views_of(term, n)) for term, n in policy.terms]
        if any(n > self.counts.get(stream, 0) for stream, n in taken):
            raise ValueError(f"policy {policy} needs views that were not evaluated: name it among the run's policies")
        return [column for stream, n in taken for column in self.columns[stream][:n]]

    @property
    def sizes(self) -> list[int | None]:
        """The crop sizes, in the order of the columns; None is the network's own."""
        return list(dict.fromkeys(parted(stream)[1] for stream in self.counts))

    @property
    def dense(self) -> dict[str, int]:
        """Of each dense stream, its column."""
        return {stream: columns[0] for stream, columns in self.columns.items() if is_dense(stream)}

    def cost(self, K: int) -> int:
        """What the network does for an image: in crops of the network's own size K, by pixels, rounded up. The most
        that crops need; of a dense view, whose size depends on the image, DENSE_COST."""
        pixels = sum((size or K) ** 2 * int(self.of_size(size).sum()) for size in self.sizes)
        return -(-pixels // K**2) + DENSE_COST * len(self.dense)

    def of_size(self, size: int | None) -> np.ndarray:
        """bool [total]: which columns are crops of this size."""
        out = np.zeros(self.total, dtype=bool)
        for stream, columns in self.columns.items():
            if parted(stream)[1] == size and not is_dense(stream):
                out[list(columns)] = True
        return out

    def needed(self, uncovered: np.ndarray) -> np.ndarray:
        """bool [b, total]: which views images with these ``left_out_area`` [b, 2] need."""
        out = np.ones((len(uncovered), self.total), dtype=bool)
        for stream, n in self.adaptive.items():
            most = np.maximum(self.always.get(stream, 0), view_count(f"A{stream}", n, uncovered))
            out[:, list(self.columns[stream])] = np.arange(self.counts[stream]) < most[:, None]
        return out


def union(policies: Sequence[Policy]) -> Views:
    """The views that serve all policies: of each stream, as many as the largest asks for."""
    if not policies:
        raise ValueError("no policy was given: name at least one, such as CC")

    def most(wanted: Callable[[str], bool]) -> dict[str, int]:
        found: dict[str, int] = {}
        for policy in policies:
            for term, n in policy.terms:
                if wanted(parted(term)[0]):
                    found[stream_of(term)] = max(views_of(term, n), found.get(stream_of(term), 0))
        return found

    always, adaptive = most(lambda name: name in STREAMS), most(lambda name: name in ADAPTIVE)
    streams = sorted(always.keys() | adaptive.keys(), key=lambda stream: by_size(stream, list(STREAMS)))
    counts = {s: max(always.get(s, 0), adaptive.get(s, 0)) for s in streams}
    columns: dict[str, tuple[int, ...]] = {}
    total = 0
    for stream, n in counts.items():
        name, size = parted(stream)
        centre = columns.get(at_size("CC", size), ())
        own = n - 1 if name == "FC" and centre else n
        columns[stream] = tuple(range(total, total + own)) + (centre if own < n else ())
        total += own
    mirrored = any(STREAMS[parted(stream)[0]].mirror and not is_dense(stream) for stream in counts)
    return Views(counts, always, adaptive, columns, total, mirrored)


def used_views(policy: Policy, views: Views, uncovered: np.ndarray) -> np.ndarray:
    """bool [b, total]: which views a policy uses of images with these ``left_out_area`` [b, 2]; one that it counts
    twice (the centre in CC+5FC) is evaluated once."""
    used = np.zeros((len(uncovered), views.total), dtype=bool)
    for stream, count in policy.view_counts(uncovered):
        columns = list(views.columns[stream])
        used[:, columns] |= np.arange(len(columns)) < count[:, None]
    return used


def resized_sizes(sizes: Sizes, spec: InputSpec) -> Sizes:
    """Height and width after resizing, int64 [b, 2], from the stored pixels' height and width [b, 2].

    ``center``: torchvision's floor, ``int(S * long / short)`` for the long side. ``squash``: S x S.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if spec.crop_mode == "squash":
        return np.full_like(sizes, spec.S)
    return spec.S * sizes // sizes.min(axis=1, keepdims=True)


def centre_offset(room: np.ndarray) -> np.ndarray:
    """torchvision's ``center_crop``: ``int(round(room / 2.0))``, halves to the even neighbour, in integers."""
    half = room // 2
    return half + (room % 2) * (half % 2)


def uniforms(seed: int, name: str, stream: str, n: int) -> np.ndarray:
    """The first n pairs of the stream, float64 [n, 2] in [0, 1): a function of (seed, name, stream) alone.

    NumPy's Philox keyed by a hash. ``random_raw`` and the shift are spelled out because NumPy promises that its bit
    generators never change, and does not promise it of ``Generator.random``. Rows are drawn in order, so prefixes nest.
    """
    raw = np.random.Philox(key=np.frombuffer(_key(seed, name, stream), dtype="<u8")).random_raw(2 * n)
    return (raw >> np.uint64(11)).reshape(n, 2) * 2.0**-53


def uniforms_of(seed: int, names: Sequence[str], stream: str, n: int) -> np.ndarray:
    """``uniforms`` of each name, float64 [b, n, 2], the same bits: many images in one computation.

    Few images are drawn one by one: the computation has a fixed cost.
    """
    if len(names) < VECTOR_IMAGES:
        return np.array([uniforms(seed, name, stream, n) for name in names]).reshape(len(names), n, 2)
    keys = np.frombuffer(b"".join([_key(seed, name, stream) for name in names]), dtype="<u8").reshape(-1, 2)
    raw = random_raw(keys, 2 * n)
    return (raw >> np.uint64(11)).reshape(len(names), n, 2) * 2.0**-53


def _key(seed: int, name: str, stream: str) -> bytes:
    return blake2b(f"{seed}\0{stream}\0{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """All windows of one crop size in a batch. Rows are image-major, views in canonical order."""

    K: int
    sizes: np.ndarray  # int64 [b, 2]: height and width to resize each image to
    image: np.ndarray  # int64 [n]: position in the batch, 0..b-1
    view: np.ndarray  # int32 [n]: column of `Views`
    windows: np.ndarray  # int64 [n, 3]: y, x in resized pixels, and whether the crop is then mirrored


@dataclass(frozen=True, slots=True)
class DensePlan:
    """One dense view of each image of a batch, cut from the frame of the plan's first group."""

    view: int  # column of `Views`
    frames: np.ndarray  # int64 [b, 4]: top, left, height, width in resized pixels
    mirror: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backend must do for one batch of images."""

    rows: np.ndarray  # int64 [b]: the data set's rows
    source_sizes: np.ndarray  # int64 [b, 2]: stored height and width; a file that differs has changed since the scan
    groups: tuple[GroupPlan, ...]  # with dense views, the first is of the network's own size, if without windows
    dense: tuple[DensePlan, ...] = ()


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans batches: a pure function of the spec, the views, the seed and each image's name and size.

    ``sized``: the specs of other crop sizes, where they are not ``spec.at(K)``. ``stride``: of the network's last map,
    pixels (``models.dense.Dense.s``); needed for dense crops.

    Made batch by batch: random numbers for 1.3 million images would take too long at the start.
    """

    spec: InputSpec
    views: Views
    seed: int = 0
    sized: tuple[InputSpec, ...] = ()
    stride: int | None = None

    def specs(self) -> dict[int | None, InputSpec]:
        """Of each of the views' crop sizes: how it is fed. None is the network's own size."""
        given = {spec.K: spec for spec in self.sized}
        return {size: self.spec if size is None else given.get(size) or self.spec.at(size) for size in self.views.sizes}

    def windows(self, names: Sequence[str], resized: Sizes) -> np.ndarray:
        """Windows int64 [b, total, 3] by view column, of images with these names and resized sizes [b, 2].

        Of the views of the network's own size; the others' columns are 0.
        """
        return self._windows(None, self.spec.K, names, resized)

    def _windows(self, size: int | None, K: int, names: Sequence[str], resized: Sizes) -> np.ndarray:
        room = np.asarray(resized, dtype=np.int64)[:, None] - K  # [b, 1, 2]: offsets 0..room fit
        out = np.zeros((len(room), self.views.total, 3), dtype=np.int64)
        for stream, n in self.views.counts.items():
            name, of_size = parted(stream)
            if of_size == size and not STREAMS[name].dense:
                columns = list(self.views.columns[stream])
                out[:, columns, :2] = self._offsets(name, n, names, room)
                out[:, columns, 2] = STREAMS[name].mirror
        return out

    def uncovered(self, sizes: Sizes) -> np.ndarray:
        """``left_out_area`` int64 [b, 2] of images with these stored heights and widths [b, 2]."""
        return left_out_area(resized_sizes(sizes, self.spec), self.spec.K)

    def dense(self, resized: Sizes) -> tuple[DensePlan, ...]:
        """The dense views of images resized to these sizes [b, 2]. Raises ValueError for DC without a stride."""
        plans = []
        for stream, column in self.views.dense.items():
            if stream == "WI":
                frames = whole_frame(resized)
            elif self.stride is None:
                raise ValueError(f"dense crops ({stream}) need the `stride` of the network's last map")
            else:
                frames = dense_frame(resized, self.spec.K, self.stride)
            plans.append(DensePlan(column, frames, STREAMS[stream].mirror))
        return tuple(plans)

    def forwards(self, sizes: Sizes) -> np.ndarray:
        """What each view costs the network, float64 [b, total]: its pixels over K^2, 0 where an image does not need it.

        ``sizes``: stored height and width [b, 2].
        """
        sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        K = self.spec.K
        pixels = np.zeros((len(sizes), self.views.total))
        for size in self.views.sizes:
            pixels[:, self.views.of_size(size)] = (size or K) ** 2
        for plan in self.dense(resized_sizes(sizes, self.spec)):
            sides = plan.frames[:, 2:]
            whole = plan.view == self.views.dense.get("WI")
            pixels[:, plan.view] = sides.prod(axis=1) if whole else network_pixels(sides, K, self.stride or 1)
        return pixels / K**2 * self.views.needed(self.uncovered(sizes))

    def _offsets(self, stream: str, n: int, names: Sequence[str], room: np.ndarray) -> np.ndarray:
        """(y, x) int64 [b, n, 2] (or [b, 1, 2]) of a stream's first n views; ``room`` [b, 1, 2]."""
        if STREAMS[stream].random:
            u = uniforms_of(self.seed, names, stream, n)
            # Every offset is equally likely; u < 1 keeps the product below room + 1, also after rounding.
            return np.floor(u * (room + 1)).astype(np.int64)
        centre = centre_offset(room)
        return centre if stream == "CC" else np.concatenate([room * CORNERS, centre], axis=1)

    def plan(self, rows: np.ndarray, names: Sequence[str], sizes: Sizes) -> Plan:
        """Plan one batch. ``rows`` int [b], ``names`` of length b, ``sizes`` stored height and width [b, 2]."""
        sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        needed = self.views.needed(self.uncovered(sizes))
        groups = []
        for size, spec in self.specs().items():
            resized = resized_sizes(sizes, spec)
            windows = self.windows(names, resized) if size is None else self._windows(size, spec.K, names, resized)
            image, view = np.nonzero(needed & self.views.of_size(size))
            groups.append(GroupPlan(spec.K, resized, image, view.astype(np.int32), windows[image, view]))
        return Plan(np.asarray(rows, dtype=np.int64), sizes, tuple(groups), self.dense(resized_sizes(sizes, self.spec)))


def crop_windows(frame: np.ndarray, windows: np.ndarray, K: int) -> np.ndarray:
    """Crops uint8 [n, K, K, 3] from one resized frame [H, W, 3]: the meaning of a window, in NumPy slices."""
    out = np.empty((len(windows), K, K, frame.shape[2]), dtype=frame.dtype)
    for crop, (y, x, mirror) in zip(out, windows.tolist(), strict=True):
        window = frame[y : y + K, x : x + K]
        crop[:] = window[:, ::-1] if mirror else window
    return out
