"""Classifiers against the networks they wrap: features against what a hook sees inside the whole network, linear heads
against averaging on both sides of them, normalisation against torchvision's, weights against what was saved.
"""

import argparse
import json
import math
import os
import pickle
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from models import families, libraries, loading, splitting
from models.checkpoints import WeightsError, read_checkpoint
from models.classifier import Classifier, weight_hash
from models.families import FAMILIES
from models.loading import load
from models.normalization import Normalize
from models.splitting import TORCHVISION_SPLITS, NoFeatureLevel, Split
from pipelines.inputspec import InputSpec

SPEC = InputSpec(36, 32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On batches as small as these, threads cost more than they bring, and much more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_net(model: str, **arguments) -> Classifier:
    return load(model, weights="random", **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation


@pytest.mark.parametrize("mean_std", [families.IMAGENET, families.INCEPTION])
@pytest.mark.parametrize("channels_last", [False, True])
def test_normalisation_is_torchvisions(mean_std, channels_last):
    mean, std = mean_std
    crops = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    crops[0], crops[1] = 0, 255
    reference = torch.stack(
        [v2.functional.normalize(torchvision.transforms.functional.to_tensor(crop), mean, std) for crop in crops]
    )
    got = Normalize(InputSpec(20, 20, mean=mean, std=std), channels_last=channels_last)(torch.from_numpy(crops))
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(got, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalisation_into_memory_that_stays_gives_the_same_bits(channels_last):
    normalize = Normalize(SPEC, channels_last=channels_last)
    out = torch.full((3, 8, 8, 3), 7.0)
    for seed in range(2):  # what the first pass left does not show in the second
        crops = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        got, expected = normalize(crops, out), normalize(crops)
        assert torch.equal(got, expected) and got.stride() == expected.stride()
        assert torch.equal(out.permute(0, 3, 1, 2), expected)


def test_normalisation_computes_in_float32_and_then_casts():
    crops = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    exact = Normalize(SPEC)(crops)
    half = Normalize(SPEC, dtype=torch.bfloat16)(crops)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.to(torch.bfloat16))


# ---------------------------------------------------------------------------------------------------------------------
# Features and heads

# model, width of the features, is the head linear, the module that receives the features when the whole network runs
CASES = [
    ("test_resnet", 96, True, "fc"),
    ("test_efficientnet", 256, True, "classifier"),
    ("test_nfnet", 192, True, "head.fc"),
    ("mobilenetv3_small_050", 288, False, "conv_head"),
    ("mobilenetv3_large_100", 960, False, "conv_head"),
    ("convnext_atto", 320, False, "head.norm"),
    ("regnetx_002", 368, True, "head.fc"),
    ("resnet:18", 512, True, "fc"),
    ("mobilenet:v2", 1280, True, "classifier"),
    ("mobilenet:v3-small", 576, False, "classifier"),
    ("mobilenet:v3-large", 960, False, "classifier"),
    ("torchvision:resnet18", 512, True, "fc"),
    ("torchvision:efficientnet_b0", 1280, True, "classifier"),
    ("torchvision:densenet121", 1024, True, "classifier"),
    ("torchvision:regnet_y_400mf", 440, True, "fc"),
    ("torchvision:mnasnet0_5", 1280, True, "classifier"),
    ("torchvision:shufflenet_v2_x0_5", 1024, True, "fc"),
    ("torchvision:convnext_tiny", 768, False, "classifier"),
]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize(("model", "feature_dim", "linear", "receiver"), CASES, ids=[case[0] for case in CASES])
def test_features_head_and_linearity(model, feature_dim, linear, receiver):
    found = random_net(model, num_classes=7, img_size=64)
    assert (found.feature_dim, found.num_classes, found.head_is_linear) == (feature_dim, 7, linear)
    assert found.has_feature_level and found.feature_absent_reason is None

    seen = []
    hook = found.net.get_submodule(receiver).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(1)))
    x = torch.randn(5, 3, 64, 64)
    expected = found.net(x)
    hook.remove()
    features, logits = found.outputs(x)
    close(features, seen[0])
    close(found.features(x), seen[0])
    close(logits, expected)
    close(found.head(features), expected)
    close(found.logits(x), expected)

    # Large features, apart from one another: what a trained network gives, and where a bend in the head shows.
    features = 10 * torch.randn(40, feature_dim)
    of_mean, mean_of = found.head(features.mean(0, keepdim=True))[0], found.head(features).mean(0)
    difference = (of_mean - mean_of).abs().max() / found.head(features).abs().max()
    assert difference < 1e-5 if linear else difference > 1e-2


def test_every_cut_of_torchvision_is_tried():
    models = [getattr(families.find(model), "model_id", model) for model, *_ in CASES]
    archs = [m.removeprefix("torchvision:").split(".")[0] for m in models if m.startswith("torchvision:")]
    tried = {type(torchvision.models.get_model(arch, weights=None)).__name__ for arch in archs}
    assert tried == {name for name, entry in TORCHVISION_SPLITS.items() if not isinstance(entry, str)}


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("squeezenet1_1", "pools no feature"),
        ("alexnet", "AlexNet flattens"),
        ("vgg11", "VGG flattens"),
        ("vit_b_32", "add it to TORCHVISION_SPLITS"),
    ],
)
def test_torchvision_networks_without_the_level_say_why(arch, reason):
    with torch.device("meta"):
        net = torchvision.models.get_model(arch, weights=None)
    with pytest.raises(NoFeatureLevel, match=reason):
        splitting.torchvision_split(net)


ABSENT = [
    ("torchvision:squeezenet1_0", "pools no feature"),
    ("volo_d1_224", "differs from the network's own logits"),
]


@torch.inference_mode()
@pytest.mark.parametrize(("model", "reason"), ABSENT, ids=[case[0] for case in ABSENT])
def test_an_absent_level_has_its_reason_and_the_logits_remain(model, reason):
    found = random_net(model, num_classes=7)
    assert not found.has_feature_level and found.feature_dim is None and not found.head_is_linear
    assert reason in found.feature_absent_reason
    x = torch.randn(2, 3, 224, 224)
    features, logits = found.outputs(x)
    assert features is None and found.features(x) is None
    assert torch.equal(logits, found.net(x)) and torch.equal(found.logits(x), logits)
    with pytest.raises(ValueError, match="has no feature level"):
        found.head(torch.zeros(1, 512))


class Net(nn.Module):
    """[n, 3, K, K] -> mean over places -> head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def wrap(net: nn.Module, trunk, head) -> Classifier:
    return Classifier(net, SPEC, name="net", weights="random", split=lambda _: Split(trunk, head))


def test_a_cut_that_gives_other_logits_is_refused():
    net = Net(nn.Linear(3, 4))
    assert wrap(net, lambda x: x.mean((2, 3)), net.head).has_feature_level
    assert "differs" in wrap(net, lambda x: x.amax((2, 3)), net.head).feature_absent_reason
    assert "[2, 3]" in wrap(net, lambda x: x.mean((2, 3)), nn.Identity()).feature_absent_reason
    assert "in two parts" in wrap(net, lambda x: x.mean(3), net.head).feature_absent_reason
    assert "differs" in wrap(net, lambda x: x.mean((2, 3)) * float("nan"), net.head).feature_absent_reason


class HiddenBend(nn.Linear):
    """Affine to whoever looks at the modules."""

    def forward(self, x):
        return functional.relu(super().forward(x))


class FaintBend(nn.Module):
    """Affine, to float32, to whoever looks at small numbers."""

    def forward(self, x):
        return x + functional.relu(x - 1e6)


@pytest.mark.parametrize(
    ("head", "linear"),
    [
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4)), True),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)), True),
        (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), False),
        (nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)), False),
        (nn.Sequential(HiddenBend(3, 64), nn.Linear(64, 4)), False),
        (nn.Sequential(FaintBend(), nn.Linear(3, 4)), False),
    ],
    ids=["dropout", "batchnorm", "relu", "layernorm", "hidden", "faint"],
)
def test_linearity_needs_both_signs(head, linear):
    torch.manual_seed(0)
    net = Net(head)
    assert wrap(net, lambda x: x.mean((2, 3)), net.head).head_is_linear == linear


def test_a_network_that_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match="not a classifier"):
        Classifier(nn.Identity(), SPEC, name="net", weights="random")


def test_a_network_that_does_not_take_the_size_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 4))
    assert Classifier(net, InputSpec(40, 40), name="net", weights="random").num_classes == 4
    with pytest.raises(ValueError, match=r"does not take crops of 32 x 32.*`img_size`"):
        Classifier(net, SPEC, name="net", weights="random")


def test_a_network_that_takes_only_its_own_large_size_is_probed_there():
    side = splitting.PROBE_SIDE + 8
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 4))
    assert Classifier(net, InputSpec(side, side), name="net", weights="random").num_classes == 4


def test_evaluation_mode_without_gradients():
    found = random_net("test_resnet")
    assert not any(module.training for module in found.net.modules())
    assert not any(parameter.requires_grad for parameter in found.net.parameters())
    assert found.param_count == sum(p.numel() for p in timm.create_model("test_resnet").parameters())


@torch.inference_mode()
def test_place_changes_the_layout_and_not_the_answer():
    found = random_net("test_resnet")
    crops = torch.randint(0, 256, (2, 160, 160, 3), dtype=torch.uint8)
    before = found.logits(found.prepare(crops))
    digest = found.weight_hash
    x = found.place("cpu", channels_last=True).prepare(crops)
    assert x.is_contiguous(memory_format=torch.channels_last)
    close(found.logits(x), before)
    assert weight_hash(found.net) == digest
    assert found.place("cpu", dtype=torch.bfloat16).prepare(crops).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_random_weights_follow_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = random_net("test_resnet", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert random_net("test_resnet", seed=1).weight_hash == first.weight_hash
    assert random_net("test_resnet", seed=2).weight_hash != first.weight_hash
    assert first.weights == "random" and any("speed only" in note for note in first.notes)


def test_weight_hash_sees_one_bit_and_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    before = weight_hash(net)
    assert len(before) == 16
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nextafter(net[0].weight[0, 0].float(), torch.tensor(9.0)).bfloat16() + 0.01
    assert weight_hash(net) != before
    assert weight_hash(nn.Sequential(nn.Identity())) == weight_hash(nn.Identity())
    a = nn.Linear(2, 2)
    assert weight_hash(nn.ModuleDict({"a": a})) != weight_hash(nn.ModuleDict({"b": a}))


def saved_state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return timm.create_model("test_resnet", num_classes=10).state_dict()


def expected_hash() -> str:
    net = timm.create_model("test_resnet", num_classes=10)
    net.load_state_dict(saved_state())
    return weight_hash(net)


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def zeros(state: dict) -> dict:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


CHECKPOINTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "args": argparse.Namespace(lr=0.1)},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "ema preferred": lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
    "torchvision ema": lambda s: {
        "model": zeros(s),
        "model_ema": {"n_averaged": torch.tensor(4), **prefixed("module.", s)},
    },
    "module.": lambda s: prefixed("module.", s),
    "compiled": lambda s: {"state_dict": prefixed("module._orig_mod.", s)},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_round_trip_and_decide_the_number_of_classes(kind, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(CHECKPOINTS[kind](saved_state()), path)
    found = load("test_resnet", checkpoint=path)
    assert (found.num_classes, found.weights, found.weight_hash) == (10, str(path), expected_hash())
    assert any("ema" in note for note in found.notes) == ("ema" in kind)


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(prefixed("module.", saved_state()), path)
    found = load("test_resnet", checkpoint=path, num_classes=10)
    assert (found.num_classes, found.weight_hash) == (10, expected_hash())


def test_counters_may_be_missing(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({name: t for name, t in saved_state().items() if "num_batches" not in name}, path)
    assert load("test_resnet", checkpoint=path).weight_hash == expected_hash()


HEADS = [
    "torchvision:squeezenet1_0",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "mobilenet:v2",
    "mobilenet:v3-small",
    "mobilenetv3_small_050",
    "test_nfnet",
    "convnext_atto",
]


@pytest.mark.parametrize("model", HEADS)
def test_classes_are_read_from_the_head_of_every_library(model, tmp_path):
    path = tmp_path / "weights.safetensors"  # which sorts the names, so that their order says nothing
    saved = random_net(model, num_classes=12, seed=5)
    save_file(saved.net.state_dict(), path)
    found = load(model, checkpoint=path)
    assert (found.num_classes, found.weight_hash) == (12, saved.weight_hash)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(saved_state(), path)
    with pytest.raises(WeightsError, match="has 10 classes, not 1000"):
        load("test_resnet", checkpoint=path, num_classes=1000)


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    path = tmp_path / "weights.pth"
    state = saved_state()
    del state["layer1.0.conv1.weight"]
    torch.save({**state, "stranger": torch.zeros(2), "conv1.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError) as caught:
        load("test_resnet", checkpoint=path)
    words = [
        "1 missing: layer1.0.conv1.weight",
        "1 unexpected: stranger",
        "of another shape: conv1.0.weight",
        str(path),
    ]
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    path, target = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"state_dict": saved_state(), "extra": Evil(target)}, path)
    with pytest.raises(WeightsError, match=r"refused.*safetensors"):
        load("test_resnet", checkpoint=path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists()  # the trap was live


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors", "cut.pth"])
def test_damaged_files_are_refused(name, tmp_path):
    path = tmp_path / name
    torch.save(saved_state(), path)
    path.write_bytes(path.read_bytes()[:5000] if name.startswith("cut") else b"no weights at all")
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3, "optimizer": {}}, {"state_dict": {}}])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        load("test_resnet", checkpoint=tmp_path / "nowhere.pth")


@pytest.mark.parametrize("model", ["resnet:18", "test_nfnet", "torchvision:squeezenet1_0"])
def test_an_unreachable_hub_is_an_error_that_names_the_ways_out(model, monkeypatch, tmp_path):
    def no_network(request, timeout):
        assert timeout <= 5  # the hub's own client would try for most of a minute
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(WeightsError) as caught:
        load(model)
    words = ["cannot be downloaded", "Name or service not known", "`checkpoint` FILE", "`weights` random", "speed only"]
    assert all(word in str(caught.value) for word in words)


def no_network_at_all(*args, **kwargs):
    raise AssertionError("the network was asked")


def hub_cache(root: Path, repository: str) -> Path:
    """An empty snapshot folder, laid out as the hub's client lays it out."""
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    return snapshot


def test_cached_timm_weights_are_used_without_the_network(monkeypatch, tmp_path):
    saved = random_net("test_resnet", seed=3)
    save_file(saved.net.state_dict(), hub_cache(tmp_path, "timm/test_resnet.r160_in1k") / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network_at_all)
    monkeypatch.setattr("urllib.request.urlopen", no_network_at_all)
    found = load("test_resnet")
    assert (found.weights, found.weight_hash) == ("pretrained", saved.weight_hash)


def test_the_hub_is_asked_for_the_second_file_when_there_is_no_first(monkeypatch, tmp_path):
    saved = random_net("test_resnet", seed=3)
    torch.save(saved.net.state_dict(), tmp_path / "pytorch_model.bin")

    def download(repository, name, revision):
        assert repository == "timm/test_resnet.r160_in1k"
        if name == "model.safetensors":
            raise EntryNotFoundError("no such file")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(libraries, "_require_reachable", lambda url, model: None)
    assert load("test_resnet").weight_hash == saved.weight_hash


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no answer"), RuntimeError("cut off"), TimeoutError("slow")])
def test_a_download_that_breaks_off_names_the_ways_out(error, monkeypatch, tmp_path):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(libraries, "_require_reachable", lambda url, model: None)
    with pytest.raises(WeightsError, match=rf"{error.args[0]}.*`checkpoint` FILE"):
        load("test_resnet")


def test_cached_torchvision_weights_are_used_without_the_network(monkeypatch, tmp_path):
    saved = random_net("torchvision:squeezenet1_0", seed=3)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(saved.net.state_dict(), folder / "squeezenet1_0-b66bff10.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network_at_all)
    found = load("torchvision:squeezenet1_0")
    assert (found.weights, found.weight_hash) == ("pretrained", saved.weight_hash)


# ---------------------------------------------------------------------------------------------------------------------
# How a network is fed


@pytest.mark.parametrize("member", [m for family in FAMILIES.values() for m in family.members], ids=lambda m: m.key)
def test_a_row_is_fed_as_the_paper_did_however_it_is_named(member, monkeypatch):
    monkeypatch.setattr(loading, "_build", lambda *_: Net(nn.Linear(3, 1000)))
    for model in (member.key, member.model_id):
        found = random_net(model)
        assert (found.name, found.spec) == (member.model_id, member.spec)
        assert found.member is None  # the published accuracy is not that of random weights
        assert load(model).member == member


def test_the_papers_odd_size_survives_unless_the_size_is_changed():
    described = libraries.describe("tf_efficientnet_b3.ap_in1k")
    assert described.spec.S == 331  # timm's
    base = replace(described, spec=families.find("efficientnet:ap:b3").spec, crop_pct=None)
    assert loading._with_overrides(base, loading.LoadRequest("x", img_size=None, crop_pct=None)).S == 332
    assert loading._with_overrides(base, loading.LoadRequest("x", img_size=300, crop_pct=None)).S == 332
    assert loading._with_overrides(base, loading.LoadRequest("x", img_size=150, crop_pct=None)).S == 166
    assert loading._with_overrides(base, loading.LoadRequest("x", img_size=None, crop_pct=0.904)).S == 331


def test_timm_networks_are_fed_at_their_test_size():
    found = random_net("convnext_atto")
    cfg = timm.get_pretrained_cfg("convnext_atto")
    assert (288, math.floor(288 / cfg.test_crop_pct)) == (found.spec.K, found.spec.S)
    assert found.name == "convnext_atto.d2_in1k"
    assert any("the bare name convnext_atto means convnext_atto.d2_in1k" in note for note in found.notes)


def test_torchvision_names():
    described = libraries.describe("torchvision:resnet50")
    assert (described.name, described.spec.S) == ("torchvision:resnet50.IMAGENET1K_V1", 256)
    assert any("IMAGENET1K_V2" in note for note in described.notes)
    newer = libraries.describe("torchvision:resnet50.IMAGENET1K_V2")
    assert (newer.spec.S, newer.spec.K, newer.notes) == (232, 224, [])
    assert libraries.describe("torchvision:mobilenet_v2").name == families.find("mobilenet:v2").model_id


@pytest.mark.parametrize(
    ("arguments", "S", "K"),
    [
        ({}, 168, 160),
        ({"img_size": 96}, 101, 96),
        ({"crop_pct": 0.875}, 182, 160),
        ({"img_size": 96, "crop_pct": 0.875}, 109, 96),
        ({"crop_pct": 1.0}, 160, 160),
    ],
)
def test_size_flags_are_timms(arguments, S, K):
    found = random_net("test_resnet", **arguments)
    assert (found.spec.S, found.spec.K) == (S, K)


def test_interpolation_and_crop_mode(monkeypatch):
    assert random_net("test_resnet", interpolation="bicubic").spec.interpolation == "bicubic"
    cfg = timm.get_pretrained_cfg("test_resnet")
    cfg.crop_mode = "squash"  # as timm says for NFNet
    monkeypatch.setattr(libraries.timm, "get_pretrained_cfg", lambda name: cfg)
    kept = random_net("test_resnet")
    assert kept.spec.crop_mode == "center" and any("crop_mode=squash" in note for note in kept.notes)
    squashed = random_net("test_resnet", crop_mode="squash")
    assert squashed.spec.crop_mode == "squash" and not any("crop_mode=squash" in note for note in squashed.notes)
    assert any("not kept" in note for note in squashed.notes)


def test_an_unknown_interpolation_of_timm_is_replaced_with_a_note(monkeypatch):
    cfg = timm.get_pretrained_cfg("test_resnet")
    cfg.interpolation = "lanczos"
    monkeypatch.setattr(libraries.timm, "get_pretrained_cfg", lambda name: cfg)
    described = libraries.describe("test_resnet")
    assert described.spec.interpolation == "bicubic"
    assert "timm resizes with lanczos; bicubic is used" in described.notes


def test_transformers_are_built_for_the_size_asked():
    assert random_net("test_vit", img_size=96).spec.K == 96


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "resnet5000"}, ["resnet5000", "unknown", "torchvision:NAME"]),
        ({"model": "resnet50.bogus"}, ["'bogus'", "tv_in1k"]),
        ({"model": "torchvision:resnet51"}, ["resnet51", "resnet50"]),
        ({"model": "torchvision:resnet50.V9"}, ["'V9'", "IMAGENET1K_V1"]),
        ({"model": "torchvision:fasterrcnn_resnet50_fpn"}, ["no classifier"]),
        ({"model": "resnet"}, ["is a family", "resnet:18"]),
        ({"model": "resnet:99"}, ["'99'", "152"]),
        ({"model": "test_resnet", "weights": "imagenet"}, ["'imagenet'", "pretrained, pip, random, demo"]),
        ({"model": "test_resnet", "weights": "demo"}, ["test_resnet", "resnet:demo", "`weights` pretrained"]),
        ({"model": "resnet:18", "weights": "demo"}, ["resnet:18", "resnet:demo"]),
        ({"model": "foo:demo", "weights": "random"}, ["foo:demo", "resnet:demo"]),
        ({"model": "resnet:demo"}, ["no pretrained weights", "`weights` demo"]),
        ({"model": "resnet:18", "num_classes": 10}, ["1000 classes", "untrained", "`checkpoint`"]),
        ({"model": "resnet:18", "weights": "random", "checkpoint": Path("x.pth")}, ["x.pth", "contradict"]),
        ({"model": "test_resnet", "weights": "random", "crop_mode": "border"}, ["border", "pads", "center"]),
        ({"model": "test_resnet", "weights": "random", "crop_mode": "fill"}, ["fill", "squash"]),
        ({"model": "test_resnet", "weights": "random", "interpolation": "lanczos"}, ["lanczos", "bicubic"]),
        ({"model": "test_resnet", "weights": "random", "crop_pct": 1.2}, ["`crop_pct` 1.2"]),
        ({"model": "test_resnet", "weights": "random", "crop_pct": 0.0}, ["`crop_pct` 0.0"]),
        ({"model": "test_resnet", "weights": "random", "img_size": 0}, ["`img_size` 0"]),
        ({"model": "test_resnet", "weights": "random", "num_classes": 0}, ["`num_classes` 0"]),
        ({"model": "test_resnet", "weights": "random", "model_kwargs": {"wings": 2}}, ["wings", "`model_kwargs`"]),
        ({"model": "torchvision:resnet18", "weights": "random", "model_kwargs": {"wings": 2}}, ["wings"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(arguments, words, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network_at_all)
    with pytest.raises(ValueError) as caught:
        load(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Demo networks


def test_demo_networks_are_described_by_their_file(monkeypatch, tmp_path):
    description = {
        "model": "test_resnet",
        "model_kwargs": {"drop_rate": 0.1},
        "num_classes": 16,
        "S": 110,
        "K": 96,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.25, 0.25],
    }
    saved = random_net("test_resnet", num_classes=16, seed=7)
    (tmp_path / "resnet.json").write_text(json.dumps(description))
    save_file(saved.net.state_dict(), tmp_path / "resnet.safetensors")
    monkeypatch.setattr(families, "DEMO_FOLDER", tmp_path)
    for model in ("resnet", "resnet:demo"):
        found = load(model, weights="demo")
        assert found.is_demo and found.weights == "demo" and found.name == "resnet:demo"
        assert (found.num_classes, found.weight_hash) == (16, saved.weight_hash)
        assert found.spec == InputSpec(110, 96, "bicubic", "center", (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
    assert load("resnet:demo", weights="random").num_classes == 16
    assert not load("resnet:demo", weights="random").is_demo
    assert load("resnet:demo", checkpoint=tmp_path / "resnet.safetensors").weight_hash == saved.weight_hash
    with pytest.raises(WeightsError, match="has 16 classes, not 1000"):
        load("resnet", weights="demo", num_classes=1000)
    with pytest.raises(FileNotFoundError, match=r"nfnet\.json"):
        load("nfnet", weights="demo")


@pytest.mark.parametrize("family", families.DEMOS)
def test_the_demo_network_in_the_repository_loads(family):
    if not (families.DEMO_FOLDER / f"{family}.json").is_file():
        pytest.skip(f"models/demo/{family}.json is not there yet")
    found = load(family, weights="demo")
    assert found.is_demo and found.has_feature_level
    assert families.demo(family).checkpoint.stat().st_size <= 2 * 2**20


def test_the_normalisation_may_be_given():
    found = load("test_resnet", weights="random", mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    assert (found.spec.mean, found.spec.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    with pytest.raises(ValueError, match="three numbers from 0 to 1"):
        load("test_resnet", weights="random", mean=[124.0, 116.0, 104.0])


def test_a_size_that_patches_do_not_fit_and_grey_networks_are_refused_with_the_option():
    with pytest.raises(ValueError, match="`img_size`"):
        load("test_vit", weights="random", img_size=100)
    with pytest.raises(ValueError, match="takes no RGB images"):
        load("test_resnet", weights="random", model_kwargs={"in_chans": 1})
