"""MultiCrop beside a run on the same images: equal to the last bit; and everything that people hand over as images."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.measure import scoring
from bench.predictions import Predictions
from models import MultiCrop
from models.averaging import LEVELS
from models.multicrop import BLOCK_IMAGES, ImageResult
from pipelines import unusable
from pipelines.data import demo
from pipelines.data.dataset import DatasetError

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"img_size": 64, "batch_size": 8, "backend": "torchvision"}
POLICY = "CC+2RC"


@pytest.fixture(scope="module")
def classify(weights_file: Path) -> MultiCrop:
    return MultiCrop("test_resnet", checkpoint=weights_file, policy=POLICY, **SMALL)


@pytest.fixture
def folder(demo_root: Path, tmp_path: Path) -> Path:
    """Five images, and a broken one between them."""
    for number, path in enumerate(sorted(demo_root.rglob("*.jpg"))[:5]):
        shutil.copy(path, tmp_path / f"{number}.jpg")
    (tmp_path / "2-broken.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:2000])
    (tmp_path / "3-text.jpg").write_text("no image")
    return tmp_path


def equal(a: ImageResult, b: ImageResult) -> bool:
    return a.error is b.error is None and np.array_equal(a.probabilities, b.probabilities)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torchvision", "dali-cpu"])
def test_predictions_are_those_of_a_run(
    backend: str, small_run: Callable[..., Any], demo_root: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also where the run evaluates more views: what a run scores is kept, as float64, while it scores."""
    if reason := unusable(backend):
        pytest.skip(reason)
    averaged: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    real = scoring.log_probabilities

    def kept(level: str, *arguments: Any) -> Any:
        log_p = real(level, *arguments)
        averaged[level].append(log_p.exp().numpy())  # [p, b, n]
        return log_p

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "log_probabilities", kept)
        finished = small_run("--policies", f"{POLICY},4RC", "--no-throughput", "--data-backend", backend)
    (path,) = finished.out.glob("predictions-*.npz")
    scored = Predictions.load(path)
    p = scored.policies.index(POLICY)
    for i, level in enumerate(scored.levels):
        ours = MultiCrop(
            "test_resnet", checkpoint=weights_file, policy=POLICY, level=level, **{**SMALL, "backend": backend}
        )
        found = list(ours(demo_root))
        assert [image.name for image in found] == finished.predictions()["names"].tolist()
        assert np.array_equal([image.probabilities for image in found], np.concatenate(averaged[level], axis=1)[p])
        assert [image.top(1)[0][0] for image in found] == scored.top1[i, p].tolist()
        own = [np.float32(-np.log(image.probabilities[n])) for image, n in zip(found, scored.labels, strict=True)]
        # The file holds -log p as float32: equal but for the rounding of exp and log.
        assert np.allclose(own, scored.nll[i, p], rtol=3e-7, atol=1e-7)
        assert all(image.probabilities.sum() == pytest.approx(1) for image in found)


def test_an_unreadable_image_comes_in_its_place_with_its_error(classify: MultiCrop, folder: Path) -> None:
    found = list(classify(folder))
    assert [image.name for image in found] == sorted(path.name for path in folder.iterdir())
    errors = {image.name: image.error for image in found if image.error}
    assert set(errors) == {"2-broken.jpg", "3-text.jpg"} and "no image that Pillow knows" in str(errors["3-text.jpg"])
    with pytest.raises(ValueError, match=r"2-broken.jpg has no answer"):
        next(image for image in found if image.name == "2-broken.jpg").top()
    (folder / "2-broken.jpg").unlink()
    (folder / "3-text.jpg").unlink()
    alone = {image.name: image for image in classify(folder)}
    assert all(equal(image, alone[image.name]) for image in found if image.error is None)


def test_a_network_that_gives_nan_has_no_answer_and_says_why(folder: Path, weights_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(weights_file)
    save_file(state | {"fc.weight": state["fc.weight"] * float("nan")}, tmp_path / "nan.safetensors")
    (folder / "2-broken.jpg").unlink()
    (folder / "3-text.jpg").unlink()
    found = list(
        MultiCrop("test_resnet", checkpoint=tmp_path / "nan.safetensors", **SMALL)(sorted(folder.glob("*.jpg")))
    )
    assert len(found) == 5 and all(image.probabilities is None for image in found)
    assert all("the network gave NaN" in str(image.error) for image in found)


def test_one_class_for_all_images_is_noted(
    demo_root: Path, weights_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(weights_file)
    save_file(state | {"fc.weight": state["fc.weight"] * 0}, tmp_path / "zero.safetensors")
    paths = sorted(demo_root.rglob("*.jpg"))[:10]
    constant = MultiCrop("test_resnet", checkpoint=tmp_path / "zero.safetensors", policy="CC", **SMALL)
    assert len(list(constant(paths[:9]))) == 9 and not caplog.records  # so few may well be of one class
    (answer,) = {image.top(1)[0][0] for image in constant(paths)}
    assert f"answers class {answer}" in caplog.text and "for all 10 images" in caplog.text


def test_every_kind_of_image_gives_the_same_pixels(weights_file: Path, folder: Path) -> None:
    """At the centre crop, which does not depend on the name. JPEGs are decoded by PIL for PIL images and arrays."""
    centre = MultiCrop("test_resnet", checkpoint=weights_file, policy="CC", **SMALL)
    path = folder / "0.jpg"
    picture = Image.open(path)
    pixels = np.asarray(picture.convert("RGB"))
    png = io.BytesIO()
    picture.convert("RGB").save(png, "PNG")
    items = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), picture, pixels, png.getvalue()]
    found = list(centre(items))
    assert [image.name for image in found] == [path.as_posix()] * 2 + [f"image {n}" for n in range(2, 7)]
    assert all(equal(image, found[0]) for image in found)
    assert equal(next(centre(path)), found[0]) and equal(next(centre(pixels)), found[0])
    grey = next(centre([np.asarray(picture.convert("L"))]))
    assert equal(grey, next(centre([picture.convert("L")]))) and not equal(grey, found[0])


def test_globs_lists_and_what_is_done_already(classify: MultiCrop, folder: Path) -> None:
    globbed = list(classify(str(folder / "[0-4].jpg")))
    assert [Path(image.name).name for image in globbed] == [f"{n}.jpg" for n in range(5)]
    listed = list(classify([folder / f"{n}.jpg" for n in (3, 1)]))
    assert equal(listed[0], globbed[3]) and equal(listed[1], globbed[1])
    for images in (folder, str(folder / "*.jpg")):
        whole = list(classify(images))
        for done in (whole[:1], whole[:3], whole[2:5:2], whole):
            rest = list(classify(images, done={image.name for image in done}))
            expected = [image for image in whole if image not in done]
            assert [image.name for image in rest] == [image.name for image in expected]
            assert all(a.error or equal(a, b) for a, b in zip(rest, expected, strict=True))
    pictures = [np.asarray(Image.open(folder / f"{n}.jpg").convert("RGB")) for n in range(3)]
    by_number = list(classify(pictures))
    (last,) = classify(pictures, done={"image 0", "image 1"})
    assert last.name == "image 2" and equal(last, by_number[2])  # its random crops are those of its name


@pytest.mark.parametrize("item", [5, np.zeros((4, 4, 4), np.uint8), np.zeros((8, 8, 3)), "no such.jpg", b"text"])
def test_what_is_not_an_image_is_an_error_of_its_own_row(item: Any, classify: MultiCrop, folder: Path) -> None:
    before, wrong, after = classify([folder / "0.jpg", item, folder / "1.jpg"])
    assert wrong.error and wrong.probabilities is None
    assert before.error is after.error is None


@pytest.mark.parametrize("images", ["no such folder", "no such*.jpg", "no-such.tar"])
def test_a_path_that_is_not_there_is_an_error(images: str, classify: MultiCrop, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no"):
        classify(tmp_path / images) and list(classify(tmp_path / images))


def test_an_empty_folder_is_an_error(classify: MultiCrop, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images"):
        list(classify(tmp_path))


def test_an_iterator_is_read_a_few_hundred_ahead(classify: MultiCrop) -> None:
    taken = 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(10 * BLOCK_IMAGES):
            taken += 1
            yield np.full((64, 64, 3), taken % 256, np.uint8)

    results = classify(pictures())
    for _ in range(3):
        next(results)
    assert taken <= BLOCK_IMAGES
    results.close()  # type: ignore[attr-defined]


def test_two_threads_and_two_open_iterators_do_not_disturb_each_other(classify: MultiCrop, demo_root: Path) -> None:
    expected = list(classify(demo_root))
    found: dict[int, list[ImageResult]] = {}

    def work(number: int) -> None:
        found[number] = list(classify(demo_root))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    interleaved = list(zip(classify(demo_root), classify(demo_root), strict=True))
    for thread in threads:
        thread.join()
    for results in (*found.values(), [a for a, _ in interleaved], [b for _, b in interleaved]):
        assert all(equal(a, b) for a, b in zip(results, expected, strict=True))


def test_classes_have_names(classify: MultiCrop, folder: Path, weights_file: Path) -> None:
    names = [f"kind {n}" for n in range(16)]
    named = MultiCrop("test_resnet", checkpoint=weights_file, policy="CC", class_names=names, **SMALL)
    (index, wnid, name, probability), *others = next(named(folder / "0.jpg")).top(16)
    assert (wnid, name) == (None, f"kind {index}") and probability >= others[0][3] and len(others) == 15
    assert next(classify(folder / "0.jpg")).top(1)[0][1:3] == (None, None)
    with pytest.raises(ValueError, match="`class_names` has 2 names"):
        MultiCrop("test_resnet", checkpoint=weights_file, class_names=["a", "b"], **SMALL)
    assert MultiCrop("resnet:demo", policy="CC").classes.name(0) == demo.CLASSES[0]
    imagenet = MultiCrop("test_resnet", weights="random", policy="CC", **SMALL).classes
    assert (imagenet.wnid(0), imagenet.wnid(999)) == ("n01440764", "n15075141") and "tench" in str(imagenet.name(0))


@pytest.mark.parametrize(
    ("keywords", "says"),
    [({"level": "votes"}, "`level`"), ({"policy": "7FC"}, "a policy is a sum"), ({"weights": "good"}, "`weights`")],
)
def test_settings_that_mean_nothing_are_refused(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MultiCrop("test_resnet", **{**SMALL, **keywords})


def test_a_script_of_ten_lines_runs_anywhere(folder: Path, tmp_path: Path) -> None:
    """In a fresh interpreter, in another folder, without a main guard; one image of the folder is broken."""
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from models import MultiCrop\n"
        'classify = MultiCrop("resnet:demo", policy="CC+2RC")\n'
        f"for image in classify({str(folder)!r}):\n"
        "    print(image.name, image.error or image.top(1)[0][2])\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=script.parent, capture_output=True, text=True, check=False)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert len(lines) == 7 and lines["0.jpg"] in demo.CLASSES and "no image" in lines["3-text.jpg"]


def test_another_package_called_pipelines_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from models import MultiCrop"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and str(tmp_path / "pipelines" / "__init__.py") in done.stderr.splitlines()[-1]
