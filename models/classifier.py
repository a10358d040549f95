"""One network for the whole suite: crops -> pooled features -> logits, whichever library built it.

    classifier = load("resnet:18", weights="random", seed=0)
    x = classifier.prepare(crops)                  # uint8 [n, K, K, 3] -> float [n, 3, K, K], normalised
    features, logits = classifier.outputs(x)       # [n, f] or None, [n, classes]

``features`` is the pooled output of the convolutional trunk (DESIGN rule 13); where a network is split is
``models.splitting``'s. ``models.loading.load`` makes a Classifier from a name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import timm
import torch
from torch import Tensor, nn

from models import families
from models.normalization import Normalize
from models.splitting import TIMM_SPLITS, NoFeatureLevel, Split, Way, first_split, is_linear, probe
from pipelines.inputspec import InputSpec

# Exactly these: what is derived from them may compute with its weights before it casts them (weight standardisation).
_ROUNDED_ONCE = (nn.Conv2d, nn.Linear, timm.layers.Conv2dSame)


class Classifier:
    """A network in evaluation mode, without gradients, that says how it is fed and where its views can be averaged.

    ``feature_dim``, and ``features`` in ``outputs``, are None where the network has no feature level
    (``has_feature_level`` False, ``feature_absent_reason`` says why). ``head_is_linear``: averaging features and
    averaging logits are the same thing; False where there is no feature level or where it could not be shown.
    ``weights`` is "pretrained", "pip", "random", "demo" or the checkpoint's path. ``notes`` belong into the record.

    Raises ValueError when the network does not take ``spec.K`` or gives no [n, classes].
    """

    def __init__(
        self,
        net: nn.Module,
        spec: InputSpec,
        *,
        name: str,
        weights: str,
        split: Way | tuple[Way, ...] = TIMM_SPLITS,
        member: families.Member | None = None,
        notes: list[str] | None = None,
        crop_pct: float | None = None,
    ) -> None:
        self.crop_pct = crop_pct
        self.class_names: tuple[str, ...] | None = None  # set by who knows what these weights call their classes
        self.valid_labels: tuple[int, ...] | None = None  # outputs among which answers are; None: all (``restrict``)
        self._outside: Tensor | None = None  # bool [classes]: the others
        self.net = net.eval().requires_grad_(False)
        self.spec = spec
        self.name = name
        self.weights = weights
        self.member = member  # the paper's row, when these are the paper's weights
        self.notes = list(notes or [])
        self.normalize = Normalize(spec)
        self.param_count = sum(parameter.numel() for parameter in net.parameters())
        self.weight_hash = weight_hash(net)
        self.feature_dim: int | None = None
        self.feature_absent_reason: str | None = None
        self.head_is_linear = False
        self.folded = False
        self._split: Split | None = None
        with torch.inference_mode():
            x, logits = probe(net, spec.K)
            if logits.ndim != 2:
                raise ValueError(
                    f"{name} gives an output of shape {list(logits.shape)}, not [n, classes]: not a classifier"
                )
            self.num_classes = logits.shape[1]
            try:
                ways = split if isinstance(split, tuple) else (split,)
                candidate, features = first_split(net, x, logits, ways)
            except NoFeatureLevel as absent:
                self.feature_absent_reason = str(absent)
            else:
                self._split = candidate
                self.feature_dim = features.shape[1]
                self.head_is_linear = is_linear(net, candidate.head, features)

    @property
    def has_feature_level(self) -> bool:
        return self._split is not None

    @property
    def is_demo(self) -> bool:
        return self.weights == "demo"

    def place(
        self, device: torch.device | str, *, channels_last: bool = False, dtype: torch.dtype = torch.float32
    ) -> Classifier:
        """Move to ``device``. ``dtype`` is what ``prepare`` hands over (autocast's type).

        Autocast rounds the weights of each convolution and linear layer to that type at every forward (it remembers
        them only where gradients are wanted). They are rounded here once, to the same bits; other layers keep float32.
        """
        self.net.to(device)
        if dtype != torch.float32:
            for module in self.net.modules():
                if type(module) in _ROUNDED_ONCE:
                    module.to(dtype)
        self.net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        self.normalize = Normalize(self.spec, dtype=dtype, channels_last=channels_last).to(device)
        self._outside = None if self._outside is None else self._outside.to(device)
        return self

    def restrict(self, outputs: Sequence[int]) -> None:
        """Answer with one of these outputs only, as with timm's --valid-labels: the logits of the others are -inf, so
        that softmax is over these."""
        self.valid_labels = tuple(outputs)
        self._outside = torch.ones(self.num_classes, dtype=torch.bool)
        self._outside[list(outputs)] = False

    def among_valid(self, logits: Tensor) -> Tensor:
        """[n, classes] -> the same, -inf for outputs that are not answers (``restrict``)."""
        return logits if self._outside is None else logits.masked_fill(self._outside, -math.inf)

    def fold(self) -> None:
        """Compute once what inference computes anew at every forward (``models.folding``); ``notes`` say what, and
        ``folded`` whether there was anything.

        ``weight_hash`` stays that of the weights as they were loaded.
        """
        from models import folding

        with torch.inference_mode():
            x, _ = probe(self.net, self.spec.K)
        try:
            done = folding.fold(self.net, x.clone())
        except ValueError as error:
            self.notes.append(str(error))
        else:
            self.folded = bool(done.batch_norms or done.standardised)
            self.notes.append(done.words())

    def prepare(self, crops: Tensor, out: Tensor | None = None) -> Tensor:
        """uint8 [n, h, w, 3] -> normalised [n, 3, h, w]; the network's own first step, on its device.

        ``out``: see ``Normalize``.
        """
        return self.normalize(crops, out)

    def spec_at(self, K: int) -> InputSpec:
        """Another crop size, as ``--img-size`` would set it. Raises ValueError for a network that takes no other."""
        if K == self.spec.K:
            return self.spec
        try:
            with torch.inference_mode():
                probe(self.net, K)
        except ValueError as error:
            raise ValueError(f"{self.name}: a policy asks for crops @{K}, and {error}") from error
        return resized_spec(self.spec, K, self.crop_pct)

    def features(self, x: Tensor) -> Tensor | None:
        """[n, 3, K, K] -> [n, f], or None where there is no feature level."""
        return None if self._split is None else self._split.trunk(x)

    def head(self, features: Tensor) -> Tensor:
        """[n, f] -> [n, classes]. Raises ValueError where there is no feature level."""
        if self._split is None:
            raise ValueError(f"{self.name} has no feature level: {self.feature_absent_reason}")
        return self.among_valid(self._split.head(features))

    def outputs(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """[n, 3, K, K] -> (features [n, f] or None, logits [n, classes]) from one run of the trunk."""
        if self._split is None:
            return None, self.among_valid(self.net(x))
        features = self._split.trunk(x)
        return features, self.among_valid(self._split.head(features))

    def logits(self, x: Tensor) -> Tensor:
        """[n, 3, K, K] -> [n, classes]."""
        return self.outputs(x)[1]


def weight_hash(net: nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over the state dict: name, type, shape, bytes; in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def resized_spec(spec: InputSpec, K: int, crop_pct: float | None) -> InputSpec:
    """``S = floor(K / crop_pct)``, as timm has it; without a ratio that of the spec's own sizes."""
    return spec.at(K) if crop_pct is None else replace(spec, S=math.floor(K / crop_pct), K=K)
