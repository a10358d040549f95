"""Networks that timm takes beside its own: model folders, the hub's copies of them, NumPy files, halves of a file.

pytest tests/models/test_model_sources.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint
from timm.models._hub import save_for_hf

from models.checkpoints import WeightsError
from models.loading import load

CLASSES = 5
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
MEAN = [0.1, 0.2, 0.3]


def network(name: str = "test_resnet", **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model(name, **{"num_classes": CLASSES, **kwargs})


def answers(net: Any) -> torch.Tensor:
    with torch.inference_mode():
        return net.eval()(X)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """As timm itself writes one, with its own mean and names of classes."""
    net = network()
    config = {
        "mean": MEAN,
        "input_size": (3, 96, 96),
        "crop_pct": 0.875,
        "label_names": list("abcde"),
        "num_classes": CLASSES,
    }
    net.pretrained_cfg.update(config)  # type: ignore[union-attr]
    save_for_hf(net, tmp_path / "my model", model_config=config, safe_serialization=True)
    return tmp_path / "my model"


def test_a_model_folder_is_timms(model_folder: Path) -> None:
    ours = load(f"local-dir:{model_folder}")
    theirs = timm.create_model(f"local-dir:{model_folder}", pretrained=True)
    assert torch.equal(answers(ours.net), answers(theirs))
    assert torch.equal(answers(ours.net), answers(network()))
    assert list(ours.spec.mean) == MEAN and (ours.spec.S, ours.spec.K) == (109, 96)
    assert ours.class_names == tuple("abcde")
    assert load(f"local-dir:{model_folder}", weights="random").num_classes == CLASSES


def test_a_folder_without_timms_configuration_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no config\.json in .*nowhere"):
        load(f"local-dir:{tmp_path / 'nowhere'}")
    (model_folder / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ValueError, match="is not a configuration of timm's"):
        load(f"local-dir:{model_folder}")
    (model_folder / "config.json").write_text(json.dumps({"architecture": "no_such_net", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match=r"names 'no_such_net', which timm .* has not"):
        load(f"local-dir:{model_folder}")


def test_a_folder_without_its_weights_is_refused(model_folder: Path) -> None:
    for path in model_folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(WeightsError, match="cannot be loaded: No suitable checkpoints"):
        load(f"local-dir:{model_folder}")


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_the_hubs_copy_in_the_cache_is_used_without_the_network(
    prefix: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def cached(repository: str, name: str, revision: str | None = None) -> str | None:
        path = model_folder / name
        return str(path) if (repository, revision) == ("me/mine", "v1") and path.exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    ours = load(f"{prefix}me/mine@v1")
    assert ours.name == f"{prefix}me/mine@v1" and list(ours.spec.mean) == MEAN
    assert torch.equal(answers(ours.net), answers(network()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"hf-hub:me/other cannot be downloaded .*`checkpoint` FILE"):
        load("hf-hub:me/other")


def jax_vit(net: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a published ViT file, from timm's network: the other way round from how timm reads one."""
    D, heads = net.embed_dim, net.blocks[0].attn.num_heads

    def dense(layer: Any) -> dict[str, Any]:
        return {"kernel": layer.weight.T, "bias": layer.bias}

    def norm(layer: Any) -> dict[str, Any]:
        return {"scale": layer.weight, "bias": layer.bias}

    parts: dict[str, dict[str, Any]] = {
        "embedding": {"kernel": net.patch_embed.proj.weight.permute(2, 3, 1, 0), "bias": net.patch_embed.proj.bias},
        "Transformer/posembed_input": {"pos_embedding": net.pos_embed},
        "Transformer/encoder_norm": norm(net.norm),
        "head": dense(net.head),
    }
    for i, block in enumerate(net.blocks):
        before = f"Transformer/encoderblock_{i}"
        qkv_w, qkv_b = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        for name, w, b in zip(("query", "key", "value"), qkv_w, qkv_b, strict=True):
            parts[f"{before}/MultiHeadDotProductAttention_1/{name}"] = {
                "kernel": w.T.reshape(D, heads, -1),
                "bias": b.reshape(heads, -1),
            }
        out = block.attn.proj
        parts[f"{before}/MultiHeadDotProductAttention_1/out"] = {
            "kernel": out.weight.T.reshape(heads, -1, D),
            "bias": out.bias,
        }
        parts |= {
            f"{before}/LayerNorm_0": norm(block.norm1),
            f"{before}/LayerNorm_2": norm(block.norm2),
            f"{before}/MlpBlock_3/Dense_0": dense(block.mlp.fc1),
            f"{before}/MlpBlock_3/Dense_1": dense(block.mlp.fc2),
        }
    arrays = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return {f"{prefix}{name}": v.detach().numpy() for name, v in (arrays | {"cls": net.cls_token}).items()}


VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_numpy_file_is_read_as_timm_reads_it(prefix: str, tmp_path: Path) -> None:
    net: Any = network("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    np.savez(tmp_path / "vit.npz", **jax_vit(net, prefix))  # type: ignore[arg-type]
    how = {"img_size": 64, "model_kwargs": {name: value for name, value in VIT.items() if name != "img_size"}}
    ours = load("vit_tiny_patch16_224", checkpoint=tmp_path / "vit.npz", **how)  # type: ignore[arg-type]
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **VIT)
    load_checkpoint(theirs, str(tmp_path / "vit.npz"))
    assert ours.num_classes == CLASSES
    assert torch.equal(answers(ours.net), answers(theirs)) and torch.equal(answers(ours.net), answers(net))


def jax_bit(net: Any) -> dict[str, np.ndarray]:
    """A ResNetV2's weights under the names of Big Transfer's files, convolutions as height, width, in, out."""
    parts: dict[str, Any] = {"root_block/standardized_conv2d/kernel": net.stem.conv.weight}
    parts |= {"group_norm/gamma": net.norm.weight, "group_norm/beta": net.norm.bias}
    parts |= {"head/conv2d/kernel": net.head.fc.weight, "head/conv2d/bias": net.head.fc.bias}
    for i, stage in enumerate(net.stages, 1):
        for j, block in enumerate(stage.blocks, 1):
            unit = f"block{i}/unit{j:02d}"
            for letter, number in zip("abc", (1, 2, 3), strict=True):
                norm = getattr(block, f"norm{number}")
                parts[f"{unit}/{letter}/standardized_conv2d/kernel"] = getattr(block, f"conv{number}").weight
                parts |= {f"{unit}/{letter}/group_norm/gamma": norm.weight}
                parts |= {f"{unit}/{letter}/group_norm/beta": norm.bias}
            if block.downsample is not None:
                parts[f"{unit}/a/proj/standardized_conv2d/kernel"] = block.downsample.conv.weight
    return {
        f"resnet/{name}": (v.permute(2, 3, 1, 0) if v.ndim == 4 else v).detach().numpy() for name, v in parts.items()
    }


def test_a_numpy_file_of_a_convolutional_network_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    net = network("resnetv2_50x1_bit")
    path = tmp_path / "BiT-M-R50x1.npz"
    np.savez(path, **jax_bit(net))  # type: ignore[arg-type]
    ours = load("resnetv2_50x1_bit", checkpoint=path, img_size=64)
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=CLASSES)
    load_checkpoint(theirs, str(path))
    assert ours.num_classes == CLASSES
    assert torch.equal(answers(ours.net), answers(theirs)) and torch.equal(answers(ours.net), answers(net))


def test_a_numpy_file_that_is_not_the_networks_is_refused(tmp_path: Path) -> None:
    net: Any = network("vit_tiny_patch16_224", **VIT)
    arrays = jax_vit(net)
    path = tmp_path / "vit.npz"
    how: dict[str, Any] = {"checkpoint": path, "img_size": 64}
    small = {name: value for name, value in VIT.items() if name != "img_size"}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    for model, said in (
        ("test_resnet", "reads for networks of JAX .* not for test_resnet"),
        ("torchvision:resnet18", "NumPy files are read for networks of timm"),
        ("vit_tiny_patch16_224", "does not fit vit_tiny_patch16_224"),  # of 12 blocks
    ):
        with pytest.raises(WeightsError, match=said):
            load(model, **how)
    del arrays["head/bias"], arrays["head/kernel"]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"2 weights are not in it: head\.weight, head\.bias"):
        load("vit_tiny_patch16_224", model_kwargs=small, **how)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(WeightsError, match="is not a NumPy archive"):
        load("vit_tiny_patch16_224", **how)
    np.savez(path, weights=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(WeightsError, match="does not fit"):
        load("vit_tiny_patch16_224", **how)


@pytest.mark.parametrize("nested", [True, False])
def test_of_student_and_teacher_none_is_guessed(nested: bool, tmp_path: Path) -> None:
    states = {"student": network().state_dict(), "teacher": network().state_dict()}
    flat = {f"{who}.{name}": tensor for who, state in states.items() for name, tensor in state.items()}
    torch.save(states if nested else flat, tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match=r"holds several .*student.*teacher.*save one of them alone"):
        load("test_resnet", checkpoint=tmp_path / "dino.pth")


def test_of_a_network_and_its_average_in_one_flat_file_the_average_is_used_with_a_note(tmp_path: Path) -> None:
    states = {
        "model": timm.create_model("test_resnet", num_classes=CLASSES).state_dict(),
        "model_ema": network().state_dict(),
    }
    flat = {f"{who}.{name}": tensor for who, state in states.items() for name, tensor in state.items()}
    torch.save(flat, tmp_path / "flat.pth")
    ours = load("test_resnet", checkpoint=tmp_path / "flat.pth")
    assert torch.equal(answers(ours.net), answers(network()))
    assert any("model_ema." in note for note in ours.notes) and any("outside model_ema." in note for note in ours.notes)


def test_a_file_without_the_classifier_says_so(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("fc.")}
    save_file(state, tmp_path / "backbone.safetensors")
    with pytest.raises(WeightsError, match=r"without its classifier \(fc\.bias and fc\.weight .*trained to classify"):
        load("test_resnet", checkpoint=tmp_path / "backbone.safetensors")


def test_a_network_that_is_shipped_without_a_classifier_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="shipped without a classifier: give `num_classes` with `checkpoint`"):
        load("vit_small_patch14_dinov2")
