"""How one model wants to be fed: the only thing that the pipelines know of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

INTERPOLATIONS = ("bilinear", "bicubic")  # always antialiased: without it top-1 falls by 1 to 1.5 points
CROP_MODES = ("center", "squash")  # timm's words: keep the aspect ratio, or resize to S x S


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Resize the short side to ``S``, cut ``K`` x ``K`` windows, normalise with ``mean`` and ``std``.

    ``S`` and ``K`` are integers, not a ratio: the papers' sizes are not always ``floor(K / crop_pct)``
    (EfficientNet-B3 332, B6 562, NFNet-F3 443: MID Tables III and IV).

    Raises ValueError when a crop would not fit into the resized image or a word is unknown.
    """

    S: int  # short side after resizing, pixels
    K: int  # side of the square crop, pixels
    interpolation: str = "bilinear"  # one of INTERPOLATIONS
    crop_mode: str = "center"  # one of CROP_MODES
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # RGB, on the scale 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not (isinstance(self.S, int) and isinstance(self.K, int)):
            raise ValueError(f"S and K are whole numbers of pixels, not S={self.S!r}, K={self.K!r}")
        if self.K < 1 or self.S < self.K:
            raise ValueError(
                f"a crop of K={self.K} does not fit into a short side of S={self.S}: lower `img_size` or `crop_pct`"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop mode {self.crop_mode!r} is not one of {', '.join(CROP_MODES)}")

    @property
    def slack(self) -> float:
        """``1 - K/S``: the room in which random windows differ, the last size row of MID's tables."""
        return 1 - self.K / self.S

    def at(self, K: int) -> InputSpec:
        """Another crop size with the same ratio: ``S = floor(K S / K_own)``."""
        return replace(self, S=K * self.S // self.K, K=K)
