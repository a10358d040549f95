"""predict and Network against the same network run on each crop by itself, in an input batch of noise.

An image's outputs must be bit for bit the same whatever else is in the input batch, the batch and the run: that is what
makes two runs comparable image by image. Tried on small networks of every family with random weights; crops are noise.

On a CPU this takes an input batch that is a multiple of 16. Otherwise the last few numbers of a tensor may go through
scalar code where the others go through vectors (SiLU of test_efficientnet in batches of 3), or rows through different
matrix kernels (SqueezeNet's 11 classes in batches of 8), and the place in the input batch shows in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import predict as predict_module
from models.loading import load
from models.predict import GpuModes, Network, OutOfMemory, Predicted, predict
from pipelines.batch import CropBatch, Failure, Group
from pipelines.crops import Views, parse_policy, union

MODELS = ["test_resnet", "test_efficientnet", "test_nfnet", "mobilenetv3_small_050", "torchvision:squeezenet1_0"]
K, BATCH_SIZE, IMAGES = 48, 16, 7
VIEWS = union([parse_policy("CC+2RC")])


def network_of(model: str, **arguments: Any) -> Network:
    classifier = load(model, weights="random", num_classes=11, img_size=K, crop_pct=0.875, seed=3)
    return Network(classifier, **{"batch_size": BATCH_SIZE, **arguments})


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> Network:
    return network_of(request.param)


@pytest.fixture(scope="module")
def resnet() -> Network:
    return network_of("test_resnet")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


CROPS = noise(IMAGES, VIEWS.total, K, K, 3)  # [b, v, K, K, 3]: what a backend would have made; row b is image b


def batch_of(rows: list[int], views: Views = VIEWS, padding: int = 0, failed: list[Failure] | None = None) -> CropBatch:
    """A backend's batch: image-major, then ``padding`` crops that count for nothing."""
    image = np.repeat(np.array(rows, dtype=np.int64), views.total)
    view = np.tile(np.arange(views.total, dtype=np.int32), len(rows))
    crops = torch.cat([CROPS[image, view], noise(padding, K, K, 3, seed=9)])
    pad = np.full(padding, -1)
    group = Group(crops, np.concatenate([image, pad]), np.concatenate([view, pad]).astype(np.int32))
    return CropBatch([group], np.array(rows, dtype=np.int64), failed or [])


def one_by_one(network: Network) -> tuple[Tensor | None, Tensor]:
    """Features [b, v, f] and logits [b, v, n], each crop at another place of an input batch of noise."""
    features, logits = [], []
    for i, crop in enumerate(CROPS.flatten(0, 1)):
        place = (5 * i + 3) % network.batch_size
        network.buffer.copy_(noise(*network.buffer.shape, seed=100 + i))
        network.buffer[place] = crop
        of_features, of_logits = network.forward()
        logits.append(of_logits[place].clone())
        if of_features is not None:
            features.append(of_features[place].clone())
    shape = (IMAGES, VIEWS.total)
    return torch.stack(features).unflatten(0, shape) if features else None, torch.stack(logits).unflatten(0, shape)


def gathered(network: Network, batches: list[CropBatch]) -> tuple[Tensor | None, Tensor]:
    """Features and logits [b, v, ...] of a pass, by image; every image must have come once."""
    features: dict[int, Tensor] = {}
    logits: dict[int, Tensor] = {}
    for predicted in predict(iter(batches), network, VIEWS):
        assert predicted.outputs is not None
        assert predicted.outputs.logits.shape[:2] == (len(predicted.rows), VIEWS.total)
        for i, row in enumerate(predicted.rows.tolist()):
            assert row not in logits
            logits[row] = predicted.outputs.logits[i]
            if predicted.outputs.features is not None:
                features[row] = predicted.outputs.features[i]
    assert sorted(logits) == list(range(IMAGES))
    together = torch.stack([features[row] for row in range(IMAGES)]) if features else None
    return together, torch.stack([logits[row] for row in range(IMAGES)])


def equal(a: tuple[Tensor | None, Tensor], b: tuple[Tensor | None, Tensor]) -> bool:
    if a[0] is None or b[0] is None:
        return a[0] is b[0] and torch.equal(a[1], b[1])
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# ------------------------------------------------------------------------------------------------- the same bits always


def test_outputs_do_not_depend_on_the_company(network: Network) -> None:
    """Batch split, order of images, padding in a batch, what lay in the buffer before, how full the last one is."""
    expected = one_by_one(network)
    assert len(expected[1].flatten(0, 1).unique(dim=0)) == IMAGES * VIEWS.total  # else equality would say little
    assert (expected[0] is None) == (not network.classifier.has_feature_level)
    for split in ([7], [1] * 7, [3, 3, 1], [2, 5]):
        stops = np.cumsum(split).tolist()
        for order, padding in ((list(range(IMAGES)), 0), ([4, 0, 6, 5, 1, 3, 2], 2)):
            pieces = [order[stop - size : stop] for size, stop in zip(split, stops, strict=True)]
            network.buffer.fill_(stops[0])
            got = gathered(network, [batch_of(rows, padding=padding * (i % 3)) for i, rows in enumerate(pieces, 1)])
            assert equal(got, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 21, 25])
def test_any_batch_size_serves_every_crop(batch_size: int) -> None:
    """A size that divides the crops, one that does not, and one larger than the run; equal but for the last bits."""
    network = network_of("test_efficientnet", batch_size=batch_size)
    expected = one_by_one(network)[1]
    got = gathered(network, [batch_of([0, 1, 2]), batch_of([3, 4, 5]), batch_of([6])])[1]
    apart = (expected[:, None] - expected[None]).abs().amax((2, 3)) + torch.eye(IMAGES)
    assert (got - expected).abs().max() < 1e-5 * apart.min()


@pytest.mark.parametrize("amp_dtype", ["bfloat16"])
def test_reduced_precision_keeps_rows_apart(amp_dtype: str) -> None:
    network = network_of("test_efficientnet", amp_dtype=amp_dtype, channels_last=True)
    expected = one_by_one(network)
    assert equal(gathered(network, [batch_of([5, 2]), batch_of([0, 1, 3, 4, 6])]), expected)
    exact = one_by_one(network_of("test_efficientnet"))[1]
    assert expected[1].dtype == torch.float32
    assert 0 < (expected[1] - exact).abs().max() < 0.1 * exact.abs().max()  # autocast did run


def test_an_image_that_comes_twice_in_a_batch_is_refused(resnet: Network) -> None:
    """Rows of a batch are told apart by number: one of the two would be lost."""
    with pytest.raises(ValueError, match="came twice"):
        list(predict([batch_of([0, 1, 0])], resnet, VIEWS))


def test_padding_and_views_may_lie_anywhere_in_a_batch(resnet: Network) -> None:
    """A backend that loses an image leaves a hole in the middle; two groups may share an image's views."""
    expected = one_by_one(resnet)
    whole = batch_of(list(range(IMAGES)), padding=4)
    shuffled = np.random.default_rng(0).permutation(len(whole.groups[0].image))
    group = whole.groups[0]
    mixed = Group(group.crops[shuffled], group.image[shuffled], group.view[shuffled])
    assert equal(gathered(resnet, [CropBatch([mixed], whole.rows)]), expected)
    parts = [Group(mixed.crops[part], mixed.image[part], mixed.view[part]) for part in (slice(0, 9), slice(9, None))]
    assert equal(gathered(resnet, [CropBatch(parts, whole.rows)]), expected)


def test_the_crops_of_the_caller_are_left_alone(resnet: Network) -> None:
    batch = batch_of([0, 1, 2], padding=2)
    before = batch.groups[0].crops.clone()
    list(predict([batch], resnet, VIEWS))
    assert torch.equal(batch.groups[0].crops, before)


def test_outputs_handed_over_stay_as_they_are(resnet: Network) -> None:
    """Some compiled networks reuse their output buffers; the first batch's outputs must survive the second's."""
    expected = one_by_one(resnet)[1]
    done = list(predict([batch_of([row]) for row in range(IMAGES)], resnet, VIEWS))
    for row, predicted in enumerate(done):
        assert predicted.outputs is not None
        assert torch.equal(predicted.outputs.logits[0], expected[row])


# ------------------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("model", [model for model in MODELS if "squeezenet" not in model])
def test_the_heads_rows_do_not_depend_on_their_number(model: str) -> None:
    network = network_of(model)
    assert network.classifier.feature_dim is not None
    features = torch.randn(
        3 * BATCH_SIZE + 5, network.classifier.feature_dim, generator=torch.Generator().manual_seed(1)
    )
    everything = network.head(features)
    assert everything.shape == (len(features), 11)
    assert len(everything.unique(dim=0)) == len(features)
    for m in (1, 2, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 3 * BATCH_SIZE):
        assert torch.equal(network.head(features[:m]), everything[:m])
        assert torch.equal(network.head(features[-m:]), everything[-m:])
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(2))
    assert torch.equal(network.head(features[order]), everything[order])
    np.testing.assert_allclose(everything.numpy(), network.classifier.head(features).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [model for model in MODELS if "squeezenet" not in model])
def test_the_head_of_a_views_features_is_its_logits(model: str) -> None:
    """So that one view averaged at the feature level is that view's own answer."""
    network = network_of(model)
    features, logits = one_by_one(network)
    assert features is not None
    np.testing.assert_allclose(
        network.head(features.flatten(0, 1)).numpy(), logits.flatten(0, 1).numpy(), rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------------------------------------------ what is missing


def test_failures_pass_through_in_order(resnet: Network) -> None:
    failures = [[Failure(70, "truncated")], [], [Failure(71, "empty"), Failure(72, "text")]]
    batches = [batch_of(rows, failed=failed) for rows, failed in zip([[0, 1], [2], [3]], failures, strict=True)]
    done = list(predict(batches, resnet, VIEWS))
    assert [predicted.failed for predicted in done] == failures
    assert [predicted.rows.tolist() for predicted in done] == [[0, 1], [2], [3]]


def nothing_readable(groups: bool) -> CropBatch:
    pad = np.full(4, -1)
    padding = Group(noise(4, K, K, 3), pad, pad.astype(np.int32))
    return CropBatch([padding] if groups else [], np.zeros(0, np.int64), [Failure(50, "empty"), Failure(51, "text")])


@pytest.mark.parametrize("groups", [False, True], ids=["no group", "padding only"])
def test_a_batch_without_a_readable_image_passes_through(resnet: Network, groups: bool) -> None:
    """First, last, between others, and alone: in its place, with its failures, without outputs."""
    expected = one_by_one(resnet)[1]
    batches = [
        nothing_readable(groups),
        batch_of([0, 1]),
        nothing_readable(groups),
        batch_of([2]),
        nothing_readable(groups),
    ]
    done = list(predict(batches, resnet, VIEWS))
    assert [predicted.rows.tolist() for predicted in done] == [[], [0, 1], [], [2], []]
    assert [len(predicted.failed) for predicted in done] == [2, 0, 2, 0, 2]
    assert [predicted.outputs is None for predicted in done] == [True, False, True, False, True]
    assert done[3].outputs is not None and torch.equal(done[3].outputs.logits[0], expected[2])
    (alone,) = predict([nothing_readable(groups)], resnet, VIEWS)
    assert alone.outputs is None and len(alone.failed) == 2


def test_an_empty_run_is_empty(resnet: Network) -> None:
    assert list(predict([], resnet, VIEWS)) == []


def with_rows(batch: CropBatch, keep: np.ndarray) -> CropBatch:
    group = batch.groups[0]
    return CropBatch([Group(group.crops[keep], group.image[keep], group.view[keep])], batch.rows)


@pytest.mark.parametrize("keep", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0]], ids=["one too few", "one too many"])
def test_a_wrong_number_of_crops_is_an_error(resnet: Network, keep: list[int]) -> None:
    with pytest.raises(ValueError, match=f"2 images came with {len(keep)} crops, not 3"):
        list(predict([with_rows(batch_of([0, 1]), np.array(keep))], resnet, VIEWS))


def test_a_view_twice_and_another_missing_is_an_error(resnet: Network) -> None:
    with pytest.raises(ValueError):
        list(predict([with_rows(batch_of([0, 1]), np.array([0, 1, 1, 3, 4, 5]))], resnet, VIEWS))


def test_a_crop_of_no_image_of_the_batch_is_an_error(resnet: Network) -> None:
    stray = batch_of([0, 1, 2])
    with pytest.raises(ValueError):
        list(predict([CropBatch(stray.groups, stray.rows[:2])], resnet, VIEWS))


def test_an_adaptive_run_misses_no_view_that_every_image_needs(resnet: Network) -> None:
    """The centre crop of the second image is lost; the first has more random crops than the fewest."""
    views = union([parse_policy("CC"), parse_policy("2ARC")])
    assert views.columns == VIEWS.columns
    with pytest.raises(ValueError):
        list(predict([with_rows(batch_of([0, 1]), np.array([0, 1, 2, 4, 5]))], resnet, views))


def test_views_that_an_image_does_not_need_are_zero(resnet: Network) -> None:
    """Adaptive policies: the second image takes one random crop of two."""
    views = union([parse_policy("CC"), parse_policy("2ARC")])
    expected = one_by_one(resnet)[1]
    (done,) = predict([with_rows(batch_of([0, 1]), np.array([0, 1, 2, 3, 4]))], resnet, views)
    assert done.outputs is not None
    assert torch.equal(done.outputs.logits[0], expected[0])
    assert torch.equal(done.outputs.logits[1, :2], expected[1, :2])
    assert not done.outputs.logits[1, 2].any()


# -------------------------------------------------------------------------------------------------------------- the run


def test_a_batch_is_handed_over_as_soon_as_it_is_through() -> None:
    """Not at the end of the run: 1.3 million images' outputs would be waiting."""
    taken: list[int] = []

    def coming() -> Iterator[CropBatch]:
        for row in range(IMAGES):
            taken.append(row)
            yield batch_of([row])

    # Image 0's three crops wait for the input batch of eight, which image 2's second crop completes.
    first = next(predict(coming(), network_of("test_resnet", batch_size=8), VIEWS))
    assert first.rows.tolist() == [0]
    assert taken == [0, 1, 2]


def test_batches_fill_across_batches_of_images() -> None:
    """21 crops in batches of 8 are three forwards, however they were batched."""
    network, forwards = network_of("test_resnet", batch_size=8), 0

    class Counting:
        batch_size, buffer_of, get_ready = network.batch_size, network.buffer_of, network.get_ready

        def forward(self, K: int) -> tuple[Tensor | None, Tensor]:
            nonlocal forwards
            forwards += 1
            return network.forward(K)

    counting: Any = Counting()
    done: list[Predicted] = list(predict([batch_of([row], padding=2) for row in range(IMAGES)], counting, VIEWS))
    assert len(done) == IMAGES
    assert forwards == 3


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"`batch_size` {batch_size}"):
        network_of("test_resnet", batch_size=batch_size)


def test_nothing_remembers_gradients(resnet: Network) -> None:
    features, logits = resnet.forward()
    assert features is not None
    assert not logits.requires_grad and not features.requires_grad
    assert not resnet.head(features).requires_grad


def test_crops_of_two_sizes_are_what_each_size_alone_gives() -> None:
    """Views of 48 and of 64 pixels, batches split anyhow: bit for bit the outputs of a run of that size alone."""
    views = union([parse_policy("CC+1RC+CC@64")])
    assert views.sizes == [None, 64] and views.columns == {"CC": (0,), "RC": (1,), "CC@64": (2,)}
    small, large = noise(IMAGES, 2, 48, 48, 3, seed=1), noise(IMAGES, 1, 64, 64, 3, seed=2)

    def batch(rows: list[int]) -> CropBatch:
        own = Group(small[rows].flatten(0, 1), np.repeat(rows, 2), np.tile([0, 1], len(rows)).astype(np.int32))
        other = Group(large[rows].flatten(0, 1), np.array(rows), np.full(len(rows), 2, np.int32))
        return CropBatch([own, other], np.array(rows))

    network = network_of("test_resnet", batch_size=4)
    done = list(predict([batch([0, 1]), batch([2]), batch(list(range(3, IMAGES)))], network, views))
    assert np.concatenate([one.rows for one in done]).tolist() == list(range(IMAGES))
    got = torch.cat([one.outputs.logits for one in done if one.outputs])
    for crops, columns, K in ((small, [0, 1], 48), (large, [2], 64)):
        alone = network_of("test_resnet", batch_size=4)
        flat = crops.flatten(0, 1)
        for place, crop in enumerate(flat):
            alone.buffer_of(K).copy_(noise(4, K, K, 3, seed=place))
            alone.buffer_of(K)[place % 4] = crop
            expected = alone.forward(K)[1][place % 4]
            assert torch.equal(got[place // len(columns), columns[place % len(columns)]], expected)


# ------------------------------------------------------------------------------------------------ when memory gives out


def crowded(network: Network, room: int, error: Exception) -> list[int]:
    """Let forwards of more than ``room`` crops raise; returns the list of the sizes of those that do not."""
    went_through: list[int] = []
    real = network._forward

    def forward(crops: Tensor) -> tuple[Tensor | None, Tensor]:
        if len(crops) > room:
            raise error
        went_through.append(len(crops))
        return real(crops)

    network._forward = forward  # type: ignore[method-assign]
    return went_through


@pytest.mark.parametrize("model", ["test_resnet", "squeezenet"])
@pytest.mark.parametrize("room", range(1, BATCH_SIZE + 1))
def test_the_batch_is_halved_until_it_fits_and_the_outputs_stay(room: int, model: str) -> None:
    if model == "squeezenet":
        model = "torchvision:squeezenet1_0"  # no features
    expected = gathered(network_of(model), [batch_of(list(range(IMAGES)))])
    network = network_of(model)
    sizes = crowded(network, room, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    got = gathered(network, [batch_of([0, 1, 2]), batch_of([3]), batch_of([4, 5, 6])])
    halved = BATCH_SIZE
    while halved > room:
        halved = -(-halved // 2)
    assert set(sizes) == {halved} == {network.fitting_batch_size}
    for mine, theirs in zip(got, expected, strict=True):
        if theirs is None:
            assert mine is None
        else:
            assert mine is not None and (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()
    if got[0] is not None:
        head = network.head(got[0].flatten(0, 1)).unflatten(0, got[0].shape[:2])
        assert (head - expected[1]).abs().max() < 1e-4 * expected[1].abs().max()


def test_the_shape_that_fits_gives_the_same_bits_as_a_run_of_that_shape(resnet: Network) -> None:
    expected = gathered(network_of("test_resnet", batch_size=-(-BATCH_SIZE // 2)), [batch_of(list(range(IMAGES)))])
    network = network_of("test_resnet")
    crowded(network, BATCH_SIZE - 1, MemoryError())
    assert equal(gathered(network, [batch_of(list(range(IMAGES)))]), expected)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory of the author"), False),
    ],
)
def test_only_a_lack_of_memory_halves_the_batch(error: Exception, is_memory: bool) -> None:
    network = network_of("test_resnet")
    crowded(network, BATCH_SIZE - 1, error)
    if is_memory:
        network.forward()
        assert network.fitting_batch_size == -(-BATCH_SIZE // 2)
    else:
        with pytest.raises(type(error), match=str(error)):
            network.forward()
        assert network.fitting_batch_size == BATCH_SIZE


def test_without_room_for_one_crop_the_error_names_the_network_and_the_remedy() -> None:
    network = network_of("test_resnet")
    crowded(network, 0, MemoryError())
    with pytest.raises(OutOfMemory, match=f"test_resnet.*single crop of {K} pixels.*`img_size`"):
        network.forward()


@pytest.mark.gpu
@pytest.mark.parametrize("amp_dtype", ["float32", "float16"])
def test_replayed_graphs_give_each_crop_its_own_answer(amp_dtype: str) -> None:
    """CUDA graphs write every answer to one place: what is kept must have been copied before the next replay."""
    answers = {}
    for compiled in (False, True):
        network = network_of("test_resnet", device="cuda:0", compiled=compiled, amp_dtype=amp_dtype, channels_last=True)
        found = [one.outputs for one in predict(map(batch_of, ([0, 1, 2], [3, 4], [5, 6])), network, VIEWS)]
        answers[compiled] = torch.cat([outputs.logits.flatten(0, 1).cpu() for outputs in found if outputs is not None])
    distance = torch.cdist(answers[True], answers[False])
    assert distance.argmin(1).tolist() == list(range(IMAGES * VIEWS.total))


def test_consecutive_places_need_no_index_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index copied from ordinary memory makes the host wait for the GPU after every forward pass."""
    made: list[int] = []
    real = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: made.append(len(array)) or real(array))
    values = torch.arange(20)
    for places, expected in (([4, 5, 6], 0), ([7], 0), ([4, 6, 5], 1), ([4, 5, 7], 1)):
        made.clear()
        index = predict_module._index_of(np.array(places), torch.device("cpu"))
        assert values[index].tolist() == places and len(made) == expected


def test_the_host_runs_two_forward_passes_ahead_of_a_gpu_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With events that note what happens to them; a CPU has none and waits for nothing."""
    happened: list[tuple[str, int]] = []

    class Event:
        def __init__(self) -> None:
            self.number = sum(what == "record" for what, _ in happened)

        def record(self, stream: object) -> None:
            happened.append(("record", self.number))

        def synchronize(self) -> None:
            happened.append(("wait", self.number))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    list(predict(map(batch_of, ([0, 1], [2, 3])), network_of("test_resnet", batch_size=2), VIEWS))
    assert happened == []
    monkeypatch.setattr(predict_module.Queue, "passed", on_gpu(predict_module.Queue.passed))
    list(predict(map(batch_of, ([0, 1], [2, 3])), network_of("test_resnet", batch_size=2), VIEWS))
    forwards = -(-4 * VIEWS.total // 2)
    expected = [("record", n) for n in range(2)]
    for n in range(2, forwards):
        expected += [("record", n), ("wait", n - 2)]
    assert happened == expected and forwards > 4


def on_gpu(passed: Callable[[Any, torch.device], None]) -> Callable[[Any, torch.device], None]:
    return lambda queue, device: passed(queue, torch.device("cuda:0"))


@pytest.fixture
def gpu_modes() -> Iterator[None]:
    """torch's switches as they were, afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.usefixtures("gpu_modes")
def test_each_forward_has_its_own_networks_modes_and_float32_is_not_rounded_to_tf32() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = True
    plain = network_of("test_resnet")
    fast = network_of("test_resnet", modes=GpuModes(tf32=True, cudnn_benchmark=True))
    for network, expected in ((plain, False), (fast, True), (plain, False)):
        network.forward()
        assert {matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark} == {expected}


def noted(network: Network, happened: list[str]) -> None:
    """Let the network note its forward passes, as one on a GPU that needs three of each crop size."""
    real = network._forward

    def forward(crops: Tensor) -> tuple[Tensor | None, Tensor]:
        happened.append(f"forward {crops.shape[1]}")
        return real(crops)

    network._forward, network.first_forwards = forward, predict_module.GRAPH_FORWARDS


def test_three_forward_passes_of_each_crop_size_come_before_the_first_batch_is_asked_for() -> None:
    """A graph captured while DALI frees tensors on another thread is an error, so nothing may be left to capture."""
    happened: list[str] = []

    def batches() -> Iterator[CropBatch]:
        happened.append("pipeline")
        yield from ()

    network, views = network_of("test_resnet"), union([parse_policy("CC+2RC@32")])
    noted(network, happened)
    list(predict(batches(), network, views))
    assert sorted(happened[:-1]) == ["forward 32"] * 3 + [f"forward {K}"] * 3 and happened[-1] == "pipeline"
    happened.clear()
    list(predict(batches(), network, views))
    assert happened == ["pipeline"]  # once is enough


@pytest.mark.parametrize(("graphs", "stays"), [(True, False), (False, True)])
def test_no_graph_is_captured_of_a_batch_that_is_halved_while_a_pipeline_may_run(graphs: bool, stays: bool) -> None:
    network = network_of("test_resnet")
    noted(network, [])
    network.graphs = graphs
    network.get_ready()
    before = network._forward
    network._halve(K)
    assert (network._forward == before) == stays and network.fitting_batch_size == -(-BATCH_SIZE // 2)
