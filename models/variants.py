"""Ways of running one network, and which of them ``preset`` fast chooses from.

One table for ``multicrop-bench compare network``, which measures them, and for the preset, which takes the fastest one
whose answers are those of the plain network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """How a network is run. ``as_timm``: as timm's benchmark.py runs it, on a resident, normalised input."""

    channels_last: bool = False
    fold: bool = False
    amp_dtype: str = "float32"
    compiled: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False
    as_timm: bool = False

    def options(self) -> dict[str, Any]:
        """The options of a run, and keywords of ``models.MultiCrop``, that say the same."""
        return {
            "channels_last": self.channels_last,
            "fold": self.fold,
            "amp_dtype": self.amp_dtype,
            "torchcompile": self.compiled,
            "tf32": self.tf32,
            "cudnn_benchmark": self.cudnn_benchmark,
        }

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Variant:
        """The variant whose ``options`` these are."""
        renamed = {"compiled" if name == "torchcompile" else name: value for name, value in options.items()}
        return cls(**renamed)


PLAIN, TIMM = "plain", "timm's benchmark"
CHANNELS_LAST, BFLOAT16 = "channels-last", "bfloat16, channels-last"
FOLDED, COMPILED = "channels-last, fold", "channels-last, fold, compiled"
EAGER = {
    PLAIN: Variant(),
    CHANNELS_LAST: Variant(channels_last=True),
    "fold": Variant(fold=True),
    FOLDED: Variant(channels_last=True, fold=True),
    BFLOAT16: Variant(channels_last=True, amp_dtype="bfloat16"),
}
GPU_EAGER = {f"float16, {FOLDED}": Variant(channels_last=True, fold=True, amp_dtype="float16", cudnn_benchmark=True)}


def compiled(amp_dtype: str = "float32", *, on_gpu: bool, tf32: bool = False) -> dict[str, Variant]:
    """One compiled variant, by its name."""
    variant = Variant(True, True, amp_dtype, compiled=True, tf32=tf32, cudnn_benchmark=on_gpu)
    return {f"{'TF32' if tf32 else amp_dtype}, {COMPILED}": variant}


def variants(device: str, with_compiled: bool) -> dict[str, Variant]:
    """Those that are compared on a device, the one that is expected to be the fastest last."""
    gpu = device.startswith("cuda")
    dtype = "float16" if gpu else "float32"
    timm = {TIMM: Variant(True, False, dtype, with_compiled, cudnn_benchmark=gpu, as_timm=True)}
    if with_compiled and gpu:
        on_gpu = compiled(on_gpu=True, tf32=True) | compiled("bfloat16", on_gpu=True) | compiled("float16", on_gpu=True)
        return {**EAGER, **GPU_EAGER, **timm, **on_gpu}
    if with_compiled:
        return {**EAGER, **timm, **compiled(on_gpu=False)}
    eager = dict(EAGER)
    last = {} if gpu else {FOLDED: eager.pop(FOLDED)}
    return {**eager, **timm, **(GPU_EAGER if gpu else last)}


def preset_candidates(device: str, *, bfloat16_on_cpu: bool) -> dict[str, Variant]:
    """What the preset chooses from, in the order in which it is tried: ``plain``, then what needs no compiler, then
    what is compiled, the one that is expected to be the fastest first. ``bfloat16_on_cpu``: the processor computes with
    it; emulated, one forward pass may take a minute."""
    if device.startswith("cuda"):
        first = {PLAIN: EAGER[PLAIN], FOLDED: EAGER[FOLDED], **GPU_EAGER}
        types = compiled("float16", on_gpu=True) | compiled("bfloat16", on_gpu=True)
        return {**first, **types, **compiled(on_gpu=True, tf32=True)}
    first = {name: EAGER[name] for name in (PLAIN, CHANNELS_LAST, "fold", FOLDED)}
    if not bfloat16_on_cpu:
        return {**first, **compiled(on_gpu=False)}
    return {**first, BFLOAT16: EAGER[BFLOAT16], **compiled("bfloat16", on_gpu=False), **compiled(on_gpu=False)}


def default_variant(device: str) -> Variant:
    """How a network is run where nothing is asked for."""
    return Variant(channels_last=not device.startswith("cuda"))
