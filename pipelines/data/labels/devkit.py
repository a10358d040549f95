"""ImageNet's development kit: the validation labels, as numbers that follow an order of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.data.dataset import DatasetError
from pipelines.data.faults import raise_if_of_machine
from pipelines.data.labels.classes import kind_of, some, synset_index
from pipelines.data.labels.text import read_lines
from pipelines.schemas import as_type, parse_json

DEVKIT_CLASSES = 1000  # ILSVRC2012_ID 1 to 1000; higher IDs in meta.mat are inner nodes of the hierarchy
DEVKIT_LISTS = ("meta.mat", "meta.txt", "synsets.txt", "synset_words.txt")  # looked for beside the ground truth
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
FOLDERS = ("", "data", "ILSVRC2012_devkit_t12/data")  # where it lies: in the folder given, or below it
ARCHIVES = (".tar", ".tar.gz", ".tgz")
DEVKIT_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.ASCII)
MOST_MEMBER_BYTES = 100_000_000  # of an archive's file; meta.mat has 0.6 MB


def read_devkit(path: Path, synsets_file: Path | None = None) -> list[str] | None:
    """The wnid of each validation image, by its number, from the devkit's folder or from its archive as downloaded
    (``ILSVRC2012_devkit_t12.tar.gz``). None: ``path`` is neither a folder nor an archive. Raises DatasetError."""
    if path.is_dir():
        truth = next(
            (path / folder / GROUND_TRUTH for folder in FOLDERS if (path / folder / GROUND_TRUTH).is_file()), None
        )
        if truth is None:
            raise DatasetError(
                f"{path} is a folder without {GROUND_TRUTH}: give the devkit's folder, or a text file, as `labels_file`"
            )
        return devkit_wnids(truth, read_lines(truth, "`labels_file`"), synsets_file)[0]
    if not path.name.lower().endswith(ARCHIVES) or not path.is_file():
        return None
    files = _members(path)
    if GROUND_TRUTH not in files:
        raise DatasetError(
            f"{path} holds no {GROUND_TRUTH}: give ILSVRC2012_devkit_t12.tar.gz, or a text file, as `labels_file`"
        )
    ids = files[GROUND_TRUTH].decode("utf-8", "replace").split()
    if synsets_file is None and "meta.mat" not in files:
        raise DatasetError(f"{path} holds no meta.mat, the order of its numbers: give `synsets_file` too")
    wnids = read_devkit_synsets(synsets_file) if synsets_file else _checked(_mat(files["meta.mat"], path), path)
    return _of_ids(ids, wnids, path)


def _members(path: Path) -> dict[str, bytes]:
    """The ground truth and meta.mat of an archive, by name. Raises DatasetError."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in (GROUND_TRUTH, "meta.mat") and member.isreg() and member.size <= MOST_MEMBER_BYTES:
                    opened = archive.extractfile(member)
                    found[name] = opened.read() if opened else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise_if_of_machine(error)
        raise DatasetError(f"{path} cannot be read as an archive ({error}): download it again") from error
    return found


def devkit_wnids(path: Path, ids: list[str], synsets_file: Path | None) -> tuple[list[str], str]:
    beside = [path.with_name(name) for name in DEVKIT_LISTS if path.with_name(name).is_file()]
    source = synsets_file or next(iter(beside), None)
    if source is None:
        raise DatasetError(
            f"{path} has one number a line: an ILSVRC2012_ID, which follows the devkit's own order of the classes and "
            "not that of the wnids. Put the devkit's meta.mat beside it (or a text list of the wnids in that order, as "
            f"one of {', '.join(DEVKIT_LISTS[1:])}), or name it with `synsets_file`"
        )
    return _of_ids(ids, read_devkit_synsets(source), path), f" through the ILSVRC2012_IDs of {source.name}"


def _of_ids(ids: list[str], wnids: list[str], path: Path) -> list[str]:
    outside = [number for number in ids if kind_of(number) != "number" or not 1 <= int(number[:9]) <= DEVKIT_CLASSES]
    if outside:
        lines = {number: line for line, number in reversed(list(enumerate(ids, 1)))}
        raise DatasetError(
            f"{path} has {len(outside)} numbers that are not ILSVRC2012_ID, 1 to {DEVKIT_CLASSES} "
            f"({some(outside, lines=lines)}): "
            "for class indices counted from 0, write 'name label' lines"
        )
    return [wnids[int(number) - 1] for number in ids]


def read_devkit_synsets(path: Path) -> list[str]:
    """The wnids of ILSVRC2012_ID 1 to 1000, in that order.

    From the devkit's ``meta.mat``, or from text whose lines begin with a wnid (the line number is the ID) or with
    ``ID wnid``. Raises DatasetError when they are not ImageNet-1k's wnids, or when they are sorted: then the list is
    of Caffe's kind, whose line numbers are class indices and not the devkit's IDs.
    """
    return _checked(_mat(path, path) if path.suffix.lower() == ".mat" else _read_id_lines(path), path)


def _checked(by_id: dict[int, str], path: Path) -> list[str]:
    wnids = [by_id.get(number, "") for number in range(1, DEVKIT_CLASSES + 1)]
    known = sorted(synset_index(DEVKIT_CLASSES))
    remedy = "give the devkit's own meta.mat, or a list in its order, as `synsets_file`"
    if sorted(wnids) != known:
        strange = sorted(set(wnids) - set(known) - {""})
        raise DatasetError(
            f"{path} does not give the {DEVKIT_CLASSES} wnids of ImageNet-1k for ILSVRC2012_ID 1 to {DEVKIT_CLASSES} "
            f"({len(set(wnids) & set(known))} of them are there; others: {some(strange) or 'none'}): {remedy}"
        )
    if wnids == known:
        raise DatasetError(
            f"{path} lists the wnids in sorted order, as Caffe's synset_words.txt does, and the devkit's IDs follow "
            f"another one: {remedy}"
        )
    return wnids


# SciPy's reader may crash on a damaged file (2.0 does), so that it has a process of its own. The current folder is no
# place for modules.
READ_MAT = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import io, json
from scipy.io import loadmat
synsets = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
ids, wnids = (synsets[field] for field in synsets.dtype.names[:2])
print(json.dumps([(int(number), str(wnid)) for number, wnid in zip(ids, wnids, strict=True)]))
"""
MAT_S = 120


def _mat(source: Path | bytes, shown: Path) -> dict[int, str]:
    """ILSVRC2012_ID and WNID are the first two fields of the devkit's ``synsets`` (its readme.txt)."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        answer = subprocess.run(
            [sys.executable, "-c", READ_MAT], input=content, capture_output=True, timeout=MAT_S, check=True
        )
        pairs = as_type(parse_json(answer.stdout.decode(), str(shown)), list[list[Any]], str(shown))
        return {int(number): str(wnid) for number, wnid in pairs}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"SciPy ended with status {error.returncode}"
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
        raise_if_of_machine(error)
        reason = str(error)
    raise DatasetError(f"{shown} is not the devkit's meta.mat ({reason[:300]}): give that as `synsets_file`")


def _read_id_lines(path: Path) -> dict[int, str]:
    wnids = {}
    for line, text in enumerate(read_lines(path, "`synsets_file`"), start=1):
        words = text.split()
        if len(words) > 1 and kind_of(words[0]) == "number" and kind_of(words[1]) == "wnid":
            wnids[int(words[0])] = words[1]
        elif words and kind_of(words[0]) == "wnid":
            wnids[line] = words[0]
        else:
            raise DatasetError(
                f"{path}, line {line}, begins with no wnid ({text!r}): give one a line, in the devkit's order"
            )
    return wnids
