"""Images are recognised by their bytes; only files whose size or times differ are read again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import identity
from pipelines.data.identity import FACTS, Identifier, changed, facts_of
from pipelines.data.spans import Span


@pytest.fixture
def spans(tmp_path: Path) -> list[Span]:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * 1000)
    (tmp_path / "all.tar").write_bytes(bytes(range(200)))
    tar = str(tmp_path / "all.tar")
    return [*(Span(str(tmp_path / f"{number}.jpg")) for number in range(3)), Span(tar, 0, 100), Span(tar, 100, 100)]


def facts(spans: list[Span]) -> np.ndarray:
    return np.array([facts_of(span) for span in spans], dtype=FACTS)


def test_unchanged_files_are_not_read(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> None:
    then = facts(spans)
    assert len(set(then["content_crc32"].tolist())) == 5 and then["bytes"].tolist() == [1000] * 3 + [100] * 2
    monkeypatch.setattr(identity, "facts_of", None)
    assert list(changed(spans, then)) == []


def test_other_bytes_under_the_same_size_and_time_are_noticed(spans: list[Span]) -> None:
    then = facts(spans)
    path = Path(spans[1].path)
    info = path.stat()
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    tar = bytearray(Path(spans[4].path).read_bytes())
    tar[150] = 0
    Path(spans[4].path).write_bytes(tar)  # its first member is what it was
    assert list(changed(spans, then)) == [1, 4]
    Path(spans[0].path).unlink()
    assert list(changed(spans, then)) == [0, 1, 4]


def test_touched_and_copied_files_are_the_same(spans: list[Span], tmp_path: Path) -> None:
    then = facts(spans)
    (tmp_path / "copy").mkdir()
    for span in {span.path for span in spans}:
        (tmp_path / "copy" / Path(span).name).write_bytes(Path(span).read_bytes())
    copies = [span._replace(path=str(tmp_path / "copy" / Path(span.path).name)) for span in spans]
    assert list(changed(copies, then)) == []


def test_what_could_not_be_read_then_is_not_held_against_it(spans: list[Span], tmp_path: Path) -> None:
    missing = Span(str(tmp_path / "none.jpg"))
    then = facts([missing])
    (tmp_path / "none.jpg").write_bytes(b"here")
    assert list(changed([missing], then)) == []


def test_rows_are_identified_on_threads(spans: list[Span]) -> None:
    identifier = Identifier(2)
    identifier.begin(range(5), spans)
    assert identifier.take(np.array([4, 0])).tolist() == facts([spans[4], spans[0]]).tolist()
    identifier.close()
