"""How many parameters the papers' networks have, counted with timm and torchvision; params.csv beside this file.

The papers print few parameter counts. ``main`` writes params.csv again: it builds the networks without memory (torch's
meta device) and downloads nothing. Only ``count`` imports torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from analysis.published import load_all

TABLE = Path(__file__).with_name("params.csv")


def architecture(model: str) -> str:
    """The name without the suffix that says which weights: tf_efficientnet_b0_ap -> tf_efficientnet_b0."""
    return model.removesuffix("_ap").removesuffix("_ns")


def count(model: str) -> int:
    """Parameters of a network of the papers, buffers not counted."""
    import timm
    import torch
    import torchvision

    with torch.device("meta"):
        if model.startswith("mobilenet_"):  # MID took these three from torchvision; timm names them otherwise
            network = torchvision.models.get_model(model)
        else:
            network = timm.create_model(architecture(model))
    return sum(parameter.numel() for parameter in network.parameters())


def models() -> list[str]:
    """Architectures of MID's Tables I to VII, in their order."""
    frame = load_all(*(f"mid_table{n}" for n in range(1, 8)))
    return list(dict.fromkeys(architecture(name) for name in frame.loc[frame["K"].notna(), "model"]))


@cache
def param_counts() -> dict[str, int]:
    """Architecture -> parameters, from params.csv."""
    frame = pd.read_csv(TABLE)
    return dict(zip(frame["model"], frame["param_count"].astype(int), strict=True))


def main() -> int:
    """Count all networks again, write params.csv, return the exit status 0."""
    frame = pd.DataFrame([(model, count(model)) for model in models()], columns=["model", "param_count"])
    frame.to_csv(TABLE, index=False)
    print(frame.to_string(index=False))
    return 0
