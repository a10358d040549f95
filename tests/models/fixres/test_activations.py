"""Activation statistics and adaptations against NumPy on all values at once, scipy.stats and hand-made hooks.

Counts are compared with sorting; fits with scipy's distributions, with samples drawn from them, and with
``curve_fit`` on the sorted values; what is hooked with networks taken apart by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from models.classifier import Classifier
from models.fixres.activations import Statistics, measure
from models.fixres.adaptation import ADAPTATIONS, FrechetAdaptation, GaussianAdaptation, attach, require_adaptable
from models.fixres.distributions import BINS, SHAPE, Frechet, Moments, Pooled, bin_of, lower_edges
from models.fixres.last_activation import ACTIVATIONS, LAST_ACTIVATION, NotAdaptable, hook_last, last_activation
from models.loading import load
from models.predict import Network
from pipelines.batch import CropBatch, Group

K = 64


def classifier_of(model: str, img_size: int = K, seed: int = 3) -> Classifier:
    return load(model, weights="random", num_classes=7, img_size=img_size, crop_pct=0.875, seed=seed)


def pooled_of(values: np.ndarray) -> Pooled:
    pooled = Pooled()
    pooled.add(torch.from_numpy(np.atleast_2d(values).astype(np.float32)))
    return pooled


def skewed(n: int, seed: int = 0) -> np.ndarray:
    """float32 values as pooled rectified ones are: some zeros, many small, few large."""
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.normal(0, 1, (n, 4)), 0).mean(1) * rng.lognormal(0, 0.7, n)
    return values.astype(np.float32)


# ---- bins and counts


def test_bins_ascend_with_the_values_and_hold_them():
    special = [0.0, -0.0, 2.0, -2.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, 65504.0, np.nextafter(np.float32(2), 3)]
    values = np.concatenate([np.random.default_rng(0).normal(0, 10, 5000), special]).astype(np.float32)
    bins = bin_of(torch.from_numpy(values)).numpy()
    assert bins.min() >= 0 and bins.max() < BINS
    order = np.argsort(values, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    low, high = lower_edges(bins), lower_edges(bins + 1)
    assert (low <= values).all() and (values < high).all()
    normal = np.abs(values) > 1e-37
    assert ((high - low)[normal] <= 2**-10 * np.abs(values[normal])).all()


def test_counts_are_those_of_sorting():
    values = np.concatenate([skewed(20000), [2.0, 2.0, np.float32(2.0000002)]]).astype(np.float32)
    pooled = pooled_of(values)
    assert pooled.values == len(values) and pooled.negative == 0
    assert pooled.zero_share == np.mean(values == 0) and pooled.zeros > 500
    assert pooled.above_share == np.mean(values > 2)  # 2.0 itself is not above
    assert pooled.above == np.sum(values > 2) > 0


def test_the_cdf_is_exact_at_the_edges_and_near_between():
    values = skewed(20000)
    pooled = pooled_of(values)
    edges = lower_edges(np.unique(bin_of(torch.from_numpy(values)).numpy()) + 1)
    below = np.searchsorted(np.sort(values), edges, side="left") / len(values)  # values equal to an edge lie above it
    assert np.allclose(pooled.cdf(edges), below, atol=1e-12)
    points = np.linspace(0, 4, 401)
    exact = np.searchsorted(np.sort(values), points, side="right") / len(values)
    assert np.abs(pooled.cdf(points) - exact).max() < 0.001
    assert pooled.cdf(np.array([0.0]))[0] == pytest.approx(pooled.zero_share)
    assert pooled.cdf(np.array([-1.0]))[0] == 0 and pooled.cdf(np.array([1e6]))[0] == 1


def test_the_cdf_with_negative_values():
    values = np.random.default_rng(1).normal(0, 1, 30000).astype(np.float32)
    pooled = pooled_of(values)
    assert pooled.negative == (values < 0).sum()
    points = np.linspace(-3, 3, 61)
    exact = np.searchsorted(np.sort(values), points, side="right") / len(values)
    assert np.abs(pooled.cdf(points) - exact).max() < 0.001


def test_neither_order_nor_batches_change_a_bit():
    values = torch.from_numpy(skewed(6000)).reshape(60, 100)
    whole, pieces, merged = Pooled(), Pooled(), Pooled()
    whole.add(values)
    for piece in values[torch.randperm(60, generator=torch.Generator().manual_seed(0))].split(7):
        pieces.add(piece)
        part = Pooled()
        part.add(piece)
        merged.merge(part)
    for other in (pieces, merged):
        assert np.array_equal(whole.counts, other.counts)
        assert (whole.zeros, whole.above, whole.not_finite) == (other.zeros, other.above, other.not_finite)
        assert Frechet.fit(whole) == Frechet.fit(other)


def test_what_is_not_finite_is_counted_apart():
    pooled = pooled_of(np.array([0.0, 1.0, 3.0, np.nan, np.inf, -np.inf]))
    assert (pooled.values, pooled.not_finite) == (3, 3)
    assert pooled.zero_share == pooled.above_share == pytest.approx(1 / 3)


def test_nothing_counted_is_an_error_and_not_a_share():
    with pytest.raises(ValueError, match="no finite activation was counted: give images"):
        _ = Pooled().zero_share
    with pytest.raises(ValueError, match="no feature map was seen: give images"):
        _ = Moments().mean


# ---- the Frechet fit

MU, SIGMA = 0.42, 0.2


def scipys(mu: float, sigma: float, xi: float = SHAPE):
    """The same distribution by scipy's inverse Weibull."""
    return stats.invweibull(1 / xi, loc=mu - sigma / xi, scale=sigma / xi)


def test_the_cdf_is_scipys_inverse_weibull_and_extreme_value():
    x = np.linspace(-2, 8, 501)
    ours = Frechet(MU, SIGMA).cdf(x)
    assert np.allclose(ours, scipys(MU, SIGMA).cdf(x), atol=1e-13)
    assert np.allclose(ours, stats.genextreme(-SHAPE, MU, SIGMA).cdf(x), atol=1e-13)
    assert (ours[x < MU - SIGMA / SHAPE] == 0).all() and ours[-1] > 0.999


def test_the_fit_finds_the_distribution_that_samples_come_from():
    drawn = scipys(MU, SIGMA).rvs(200_000, random_state=np.random.default_rng(0))
    assert (drawn <= 0).mean() < 0.001
    values = np.concatenate([drawn[drawn > 0], np.zeros(60_000)])  # a quarter of zeros changes nothing
    fit = Frechet.fit(pooled_of(values))
    assert fit.mu == pytest.approx(MU, abs=0.002) and fit.sigma == pytest.approx(SIGMA, abs=0.002)
    assert fit.distance(pooled_of(values)) < 0.006
    assert Frechet.fit(pooled_of(drawn[drawn > 0])) == fit


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_fit_is_scipys_least_squares_on_the_sorted_values(scale):
    values = np.sort(skewed(4000, seed=2) * np.float32(scale))
    values = values[values > 0]
    share = np.arange(1, len(values) + 1) / len(values)

    def model(x, mu, sigma):
        return stats.genextreme(-SHAPE, mu, sigma).cdf(x)

    start = (np.median(values), values.std() / 2)
    (mu, sigma), _ = optimize.curve_fit(model, values, share, p0=start)
    fit = Frechet.fit(pooled_of(values))
    assert fit.mu == pytest.approx(mu, rel=0.003) and fit.sigma == pytest.approx(sigma, rel=0.003)
    largest = max(np.abs(fit.cdf(values) - share).max(), np.abs(fit.cdf(values) - share + 1 / len(values)).max())
    assert fit.distance(pooled_of(values)) == pytest.approx(largest, abs=0.002)
    assert fit.distance(pooled_of(values)) > 0.02  # these values are not quite of that kind


def test_values_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match=r"1 of 3 pooled activations are negative.*use gaussian"):
        Frechet.fit(pooled_of(np.array([-0.1, 0.2, 0.3])))
    with pytest.raises(ValueError, match="2 of 4 are positive and no two of them differ: give more images"):
        Frechet.fit(pooled_of(np.array([0, 0, 0.3, 0.3])))


# ---- the Gaussian fit


def test_moments_are_scipys_normal_fit_by_channel():
    maps = (
        torch.randn(40, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 0.1])[:, None, None]
    )
    maps = maps + torch.tensor([0, -3, 7.0])[:, None, None]
    moments = Moments()
    for piece in maps.split(7):
        moments.add(piece)
    for c in range(3):
        mean, std = stats.norm.fit(maps[:, c].double().numpy().ravel())
        assert moments.mean[c].item() == pytest.approx(mean, rel=1e-9)
        assert moments.std[c].item() == pytest.approx(std, rel=1e-9)
    assert moments.count == 40 * 5 * 6


# ---- the maps


def statistics(pooled: Pooled, before: Moments | None = None, K: int = 64, weight_hash: str = "aa") -> Statistics:
    reason = None if before else "there is none"
    return Statistics("m", weight_hash, K + 8, K, 1, pooled, before, reason)


def test_the_frechet_map_is_the_quantile_map_and_leaves_zeros():
    train, test = (
        np.maximum(scipys(mu, sigma).rvs(50_000, random_state=np.random.default_rng(seed)), 1e-6)
        for mu, sigma, seed in ((0.4, 0.2, 1), (0.7, 0.5, 2))
    )
    adaptation = FrechetAdaptation.fit(statistics(pooled_of(train)), statistics(pooled_of(test), K=32))
    old, new = adaptation.reference, adaptation.found
    x = np.linspace(0.05, 5, 200)
    expected = scipys(old.mu, old.sigma).ppf(scipys(new.mu, new.sigma).cdf(x))
    assert np.allclose(adaptation.apply(torch.from_numpy(x)[None]).numpy()[0], expected, atol=1e-5)
    mapped = adaptation.apply(torch.from_numpy(test.astype(np.float32))[None]).numpy()[0]
    assert stats.ks_2samp(mapped, train).statistic < 0.01 < stats.ks_2samp(test, train).statistic
    assert adaptation.apply(torch.zeros(2, 3)).eq(0).all()
    assert "32 -> 64" in adaptation.words()


def test_the_gaussian_map_gives_each_channel_the_reference_moments():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(50, 4, 3, 3, generator=generator) for _ in range(2))
    train = train * torch.tensor([1, 2, 0.5, 1])[:, None, None] + torch.tensor([0, 1, -1, 0.25])[:, None, None]
    test[:, 3] = 5.0  # a channel that never varies
    of_train, of_test, after = Moments(), Moments(), Moments()
    of_train.add(train)
    of_test.add(test)
    adaptation = GaussianAdaptation.fit(statistics(Pooled(), of_train), statistics(Pooled(), of_test, K=32))
    after.add(adaptation.apply(test))
    assert torch.allclose(after.mean, of_train.mean, atol=1e-5)
    assert torch.allclose(after.std[:3], of_train.std[:3], atol=1e-5) and after.std[3] < 1e-5
    x = torch.tensor(0.8).expand(1, 4, 1, 1)
    for c in range(3):
        quantile = stats.norm(of_test.mean[c], of_test.std[c]).cdf(0.8)
        expected = stats.norm(of_train.mean[c], of_train.std[c]).ppf(quantile)
        assert adaptation.apply(x)[0, c].item() == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_stays(dtype):
    frechet = FrechetAdaptation(Frechet(0.4, 0.2), Frechet(0.6, 0.3), 64, 96)
    gaussian = GaussianAdaptation(torch.ones(3), torch.zeros(3), 64, 96)
    assert frechet.apply(torch.ones(2, 3, dtype=dtype)).dtype == dtype
    assert gaussian.apply(torch.ones(2, 3, 1, 1, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_statistics_of_two_networks_are_refused(name):
    pooled, moments = pooled_of(skewed(100)), Moments()
    moments.add(torch.randn(2, 3, 2, 2))
    one, other = statistics(pooled, moments), statistics(pooled, moments, weight_hash="bb")
    with pytest.raises(ValueError, match=r"two networks, m \(aa\) at 64 and m \(bb\).*measure one network"):
        ADAPTATIONS[name].fit(one, other)


def test_a_gaussian_without_a_last_activation_is_refused():
    with pytest.raises(NotAdaptable, match="there is none"):
        GaussianAdaptation.fit(statistics(pooled_of(skewed(9))), statistics(pooled_of(skewed(9))))


# ---- the last activation

FAMILY_MODELS = [
    ("resnet", "resnet:18", "ReLU"),
    ("resnet", "resnet:50", "ReLU"),
    ("resnet", "test_resnet", "ReLU"),
    ("resnet", "torchvision:resnet18", "ReLU"),
    ("resnet", "torchvision:resnet50", "ReLU"),
    ("mobilenet", "mobilenet:v2", "ReLU6"),
    ("mobilenet", "mobilenet:v3-small", "Hardswish"),
    ("mobilenet", "mobilenetv3_small_050", "Hardswish"),
    ("efficientnet", "efficientnet:b0", "SiLU"),
    ("efficientnet-lite", "tf_efficientnet_lite0", "ReLU6"),
    ("pnasnet", "pnasnet5large", "ReLU"),
    ("senet", "legacy_seresnet18", "ReLU"),
    ("resnext-wsl", "resnext50_32x4d", "ReLU"),
    ("nfnet", "test_nfnet", "SiLU"),
    ("nfnet", "nfnet:f0", "GammaAct"),
]


@pytest.mark.parametrize("family, model, kind", FAMILY_MODELS)
def test_the_last_activation_of_every_family_is_the_one_in_the_table(family, model, kind):
    classifier = classifier_of(model)
    found = last_activation(classifier)
    assert re.fullmatch(LAST_ACTIVATION[family][0], found.name)
    module = classifier.net.get_submodule(found.name)
    assert type(module).__name__ == kind and found.kind == ACTIVATIONS[kind]
    if found.kind.rectifier:
        assert require_adaptable(classifier, "frechet") == found
    else:
        with pytest.raises(NotAdaptable, match=f"{re.escape(found.name)}, is .*rounds nothing to zero.*Use gaussian"):
            require_adaptable(classifier, "frechet")
    assert require_adaptable(classifier, "gaussian") == found


def test_every_family_has_an_entry():
    from models.families import FAMILIES

    assert set(LAST_ACTIVATION) == set(FAMILIES) == {family for family, _, _ in FAMILY_MODELS}


def test_a_shared_relu_is_met_at_its_last_run():
    assert last_activation(classifier_of("torchvision:resnet18")).call == 1
    assert last_activation(classifier_of("torchvision:resnet50")).call == 2


@pytest.mark.parametrize(
    "model, why",
    [
        ("convnext_atto", "no activation function known here"),  # a residual sum and nothing behind it
        ("inception_v3", "no activation function known here"),  # branches are joined behind their ReLUs
        ("torchvision:densenet121", "no activation function known here"),  # F.relu, no module
        ("torchvision:squeezenet1_0", "pools no feature"),
    ],
)
def test_networks_that_do_not_end_so_are_refused_with_the_reason(model, why):
    classifier = classifier_of(model, img_size=96)
    for name in ADAPTATIONS:
        with pytest.raises(NotAdaptable, match=f"cannot be adapted: .*{why}"):
            require_adaptable(classifier, name)


def test_an_unknown_adaptation_lists_the_known():
    with pytest.raises(ValueError, match="`adapt` 'weibull' is not one of frechet, gaussian"):
        require_adaptable(classifier_of("test_resnet"), "weibull")


# ---- measuring


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batches_of(crops: Tensor, images_per_batch: int, padding: int = 0) -> list[CropBatch]:
    """One view an image, and ``padding`` rows of noise behind each batch."""
    out = []
    for rows in torch.arange(len(crops)).split(images_per_batch):
        image = np.concatenate([rows.numpy(), np.full(padding, -1)])
        view = np.where(image < 0, -1, 0).astype(np.int32)
        group = Group(torch.cat([crops[rows], noise(padding, *crops.shape[1:], seed=9)]), image, view)
        out.append(CropBatch([group], rows.numpy()))
    return out


def by_hand(classifier: Classifier, crops: Tensor) -> tuple[np.ndarray, Tensor]:
    """(pooled features [n, f], what goes into the last activation [n, f, h, w]) of timm's test_resnet, crop by crop."""
    net, seen = classifier.net, []
    original = nn.ReLU.forward
    net.layer4[-1].act2.forward = lambda x: (seen.append(x.clone()), original(net.layer4[-1].act2, x))[1]
    with torch.inference_mode():
        features = torch.cat([net.forward_features(classifier.prepare(crop[None])).mean((2, 3)) for crop in crops])
    del net.layer4[-1].act2.forward
    return features.numpy(), torch.cat(seen)


def test_every_crop_counts_once_and_padding_never():
    crops = noise(11, K, K, 3)
    classifier = classifier_of("test_resnet")
    features, before = by_hand(classifier, crops)
    found = measure(Network(classifier, batch_size=4), batches_of(crops, 5, padding=3))
    assert (found.crops, found.K, found.S, found.weight_hash) == (11, K, 73, classifier.weight_hash)
    assert found.pooled.values == features.size
    assert found.pooled.zeros == (features == 0).sum() > 0 and found.pooled.above == (features > 2).sum()
    points = np.quantile(features, np.linspace(0.1, 0.9, 9)).astype(np.float64)
    exact = np.searchsorted(np.sort(features.ravel()), points, side="right") / features.size
    assert np.allclose(found.pooled.cdf(points), exact, atol=0.002)
    assert found.before is not None and found.before.count == 11 * before.shape[2] * before.shape[3]
    assert torch.allclose(found.before.mean, before.double().mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(found.before.std, before.double().std((0, 2, 3), correction=0), atol=1e-4)


def test_batches_and_order_change_no_count():
    crops = noise(9, K, K, 3)
    classifier = classifier_of("test_resnet")
    network = Network(classifier, batch_size=4)
    one = measure(network, batches_of(crops, 9))
    other = measure(network, batches_of(crops.flip(0), 2, padding=1))
    assert np.array_equal(one.pooled.counts, other.pooled.counts)
    assert one.before is not None and other.before is not None
    assert torch.allclose(one.before.total, other.before.total, rtol=1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.net.modules())


def test_a_network_without_a_last_activation_is_counted_all_the_same():
    classifier = classifier_of("convnext_atto")
    found = measure(Network(classifier, batch_size=2), batches_of(noise(2, K, K, 3), 2))
    assert found.before is None and "no activation function known here" in str(found.before_absent_reason)
    summary = found.summary()
    assert summary["negative"] and summary["frechet_mu"] is None and "negative" in str(summary["frechet_absent_reason"])
    assert summary["before_mean"] is None and summary["values"] == found.pooled.values > 0


def test_no_features_and_no_crops_are_refused():
    with pytest.raises(ValueError, match="has no pooled activations: SqueezeNet"):
        measure(Network(classifier_of("torchvision:squeezenet1_0"), batch_size=2), [])
    with pytest.raises(ValueError, match=r"no crop reached test_resnet.*give images that can be read"):
        measure(Network(classifier_of("test_resnet"), batch_size=2), [])


def test_the_summary_is_plain_numbers():
    found = measure(Network(classifier_of("test_resnet"), batch_size=4), batches_of(noise(4, K, K, 3), 4))
    summary = found.summary()
    assert summary["zero_percent"] == 100 * found.pooled.zero_share
    fit = Frechet.fit(found.pooled)
    assert (summary["frechet_mu"], summary["frechet_sigma"]) == (fit.mu, fit.sigma)
    assert all(value is None or isinstance(value, (int, float, str)) for value in summary.values())
    assert all(math.isfinite(value) for value in summary.values() if isinstance(value, float))


# ---- attaching


STRONG: dict[str, FrechetAdaptation | GaussianAdaptation] = {
    "frechet": FrechetAdaptation(Frechet(0.4, 0.4), Frechet(0.1, 0.1), 64, 96),
    "gaussian": GaussianAdaptation(torch.linspace(0.5, 3, 96), torch.linspace(-0.3, 0.5, 96), 64, 96),
}


def adapted_by_hand(classifier: Classifier, x: Tensor) -> dict[str, Callable[..., Tensor]]:
    net = classifier.net

    def trunk(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        block = net.layer4[-1]
        original = block.act2
        block.act2 = nn.Sequential(_Apply(change), original)
        try:
            return net.forward_features(x).mean((2, 3))
        finally:
            block.act2 = original

    return {
        "frechet": lambda a: a.apply(trunk(x, lambda values: values)),
        "gaussian": lambda a: trunk(x, a.apply),
    }


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_attached_outputs_are_those_made_by_hand_and_detach_gives_the_network_back(name):
    classifier = classifier_of("test_resnet", 96)
    adaptation = STRONG[name]
    x = classifier.prepare(noise(3, 96, 96, 3, seed=4))
    with torch.inference_mode():
        plain_features, plain_logits = classifier.outputs(x)
        detach = attach(classifier, adaptation)
        features, logits = classifier.outputs(x)
        again, _ = classifier.outputs(x)
        detach()
        back_features, back_logits = classifier.outputs(x)
        expected = adapted_by_hand(classifier, x)[name](adaptation)
        expected_logits = classifier.head(expected)
    assert torch.allclose(features, expected, atol=1e-5) and torch.allclose(logits, expected_logits, atol=1e-5)
    assert torch.equal(features, again)
    assert (features - plain_features).abs().max() > 0.1 and not torch.allclose(logits, plain_logits, atol=1e-2)
    assert torch.equal(back_features, plain_features) and torch.equal(back_logits, plain_logits)


@pytest.mark.parametrize("model", ["torchvision:resnet18", "torchvision:resnet50"])
def test_a_shared_relu_is_adapted_at_its_last_run_only(model):
    """The maps that go into the ReLU: all but the last are what they were, the last has the reference's moments."""
    classifier = classifier_of(model, 64)
    crops = noise(4, 64, 64, 3)
    found = measure(Network(classifier, batch_size=4), batches_of(crops, 4))
    wanted = Moments()
    wanted.count, wanted.total = found.before.count, found.before.total + 2 * found.before.count
    wanted.squares = found.before.squares + 4 * found.before.total + 4 * found.before.count  # of x + 2
    reference = Statistics(found.model, found.weight_hash, 73, 32, 4, found.pooled, wanted, None)
    adaptation = GaussianAdaptation.fit(reference, found)
    at = last_activation(classifier)
    relu = classifier.net.get_submodule(at.name)
    x = classifier.prepare(crops)

    def inputs() -> list[Tensor]:
        seen: list[Tensor] = []
        hook = relu.register_forward_hook(lambda module, arguments, output: seen.append(output.clone()))
        with torch.inference_mode():
            classifier.outputs(x)
        hook.remove()
        return seen

    before = inputs()
    detach = attach(classifier, adaptation)
    for _ in range(2):  # a second pass counts from the start again
        after = inputs()
        assert len(before) == len(after) == at.call + 1
        assert all(torch.equal(a, b) for a, b in zip(before[:-1], after[:-1], strict=True))
        assert after[-1].mean() > before[-1].mean() + 1
    with torch.inference_mode(), pytest.raises(RuntimeError):
        classifier.net(torch.zeros(1, 5, 64, 64))  # a pass that breaks off leaves no count behind
    again = inputs()
    assert torch.equal(again[-1], after[-1])
    detach()
    assert torch.equal(inputs()[-1], before[-1])


def test_an_adaptation_of_the_identity_changes_nothing():
    classifier = classifier_of("test_resnet", 64)
    network = Network(classifier, batch_size=4)
    found = measure(network, batches_of(noise(5, K, K, 3), 5))
    x = classifier.prepare(noise(4, K, K, 3, seed=2))
    with torch.inference_mode():
        plain = classifier.outputs(x)[1]
        for cls in ADAPTATIONS.values():
            detach = attach(classifier, cls.fit(found, found))
            assert torch.allclose(classifier.outputs(x)[1], plain, atol=1e-4)
            detach()


def test_before_silu_too():
    found = {}
    for size in (64, 96):
        network = Network(classifier_of("test_efficientnet", size), batch_size=4)
        found[size] = measure(network, batches_of(noise(4, size, size, 3), 4))
    classifier = classifier_of("test_efficientnet", 96)
    adaptation = GaussianAdaptation.fit(found[64], found[96])
    attach(classifier, adaptation)
    after = measure(Network(classifier, batch_size=4), batches_of(noise(4, 96, 96, 3), 4))
    # The measuring hook stands behind the adapting one, on the same input.
    assert torch.allclose(after.before.mean, found[64].before.mean, atol=1e-3)
    assert torch.allclose(after.before.std, found[64].before.std, atol=1e-3)


def test_the_wrong_size_is_refused():
    for adaptation in STRONG.values():
        with pytest.raises(ValueError, match=r"for crops of 96, and test_resnet.* takes 64: fit one for this size"):
            attach(classifier_of("test_resnet", 64), adaptation)


@pytest.mark.parametrize(
    "model, name", [("test_resnet", "frechet"), ("test_resnet", "gaussian"), ("torchvision:resnet18", "gaussian")]
)
def test_a_compiled_network_is_adapted_too(model, name):
    """Hooks survive tracing; compiled with dynamo's "eager" backend, which needs no C++ compiler."""
    torch.compiler.reset()
    classifier = classifier_of(model, 64)
    channels = classifier.feature_dim or 0
    gaussian = GaussianAdaptation(torch.full((channels,), 0.5), torch.full((channels,), 0.3), 64, 64)
    attach(classifier, {"frechet": replace(STRONG["frechet"], K_test=64), "gaussian": gaussian}[name])
    x = classifier.prepare(noise(2, 64, 64, 3))
    compiled = torch.compile(classifier.outputs, backend="eager")
    with torch.inference_mode():
        for _ in range(2):
            for ours, expected in zip(compiled(x), classifier.outputs(x), strict=True):
                assert torch.allclose(ours, expected, atol=1e-5)


def test_hooks_can_read_the_output():
    classifier = classifier_of("test_resnet")
    seen: list[Tensor] = []
    handles = hook_last(
        classifier, last_activation(classifier), after=lambda output: (seen.append(output), output * 2)[1]
    )
    x = classifier.prepare(noise(2, K, K, 3))
    with torch.inference_mode():
        doubled = classifier.features(x)
        for handle in handles:
            handle.remove()
        assert torch.allclose(doubled, 2 * classifier.features(x))
    assert len(seen) == 1
