"""What PIL reads and the other decoders do not is refused, with PIL's pixels for all else."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.decode import READS, decode, decode_error

SIZE = (30, 40)  # height, width


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_pixels_are_pils_from_a_path_and_from_bytes(form: str, picture: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    picture(*SIZE, 0).save(path, form)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert decode_error(path) == READS
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(decode(source), expected)


@pytest.mark.parametrize("form", ["GIF", "TGA"])
def test_a_format_that_not_every_backend_reads_is_refused(
    form: str, picture: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    picture(*SIZE, 0).save(path, form)
    with pytest.raises(OSError, match=f"{form} images are not read by every backend: convert"):
        decode(path)


@pytest.mark.parametrize("lost", [1, 4, 12, 30])
def test_a_png_without_its_end_is_truncated(lost: int, picture: Callable[..., Any]) -> None:
    """Pillow reads the first three; what follows the end chunk does not matter."""
    data = io.BytesIO()
    picture(*SIZE, 0).save(data, "PNG")
    whole = data.getvalue()
    assert decode(io.BytesIO(whole + b"garbage")).shape == (*SIZE, 3)
    with pytest.raises(OSError, match="truncated"):
        decode(io.BytesIO(whole[:-lost]))
