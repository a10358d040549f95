"""Files that were written earlier, checked on reading: JSON and CSV against types and ranges, and .npz archives.

One schema for each file: a dataclass (``typed``), or a table field name -> type (``checked_fields``). A file that does
not fit raises ``DamagedFile``, which names the file, the line and the field.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import types
import typing
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipelines.data.faults import raise_if_of_machine

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
MOST_WHOLE = 1 << 63  # a whole number beyond this is not a count: NumPy's int64 cannot hold it
MOST_ARRAY_BYTES = 1 << 36  # of one array of an .npz: the answers for 14 million images take less


class DamagedFile(ValueError):
    """A file is not what it should be; the message names it, the place in it, and what is wrong there."""


# ----------------------------------------------------------------------------------------------------------------- JSON


def read_text(path: Path) -> str:
    """UTF-8 text. Raises DamagedFile."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise_if_of_machine(error)
        raise DamagedFile(f"{path} cannot be read: {_reason(error)}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DamagedFile."""
    return parse_json(read_text(path), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The same for a file that holds an object."""
    return as_object(read_json(path), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, of which there may be none. Raises DamagedFile, naming the line."""
    lines = read_text(path).splitlines() if path.is_file() else []
    return [parse_json_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def parse_json_line(line: str, where: str) -> dict[str, Any]:
    """One JSON object. ``where`` names the place in messages. Raises DamagedFile."""
    return as_object(parse_json(line, where), where)


def parse_json(text: str | bytes, where: str) -> Any:
    """Stricter than ``json.loads``: NaN, Infinity, numbers that a float cannot hold, and a key that comes twice are
    refused. Raises DamagedFile."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{where}: its text is damaged ({_reason(error)})") from error


def as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedFile(f"{where}: {shown(value)} is not a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{shown(next(key for key in keys if keys.count(key) > 1))} comes twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(shown(text))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its values lie too deep within each other"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())[:300]


def shown(value: Any) -> str:
    """A value for a message: short, on one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a whole number of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


# ---------------------------------------------------------------------------------------------------------------- types


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


@lru_cache(maxsize=64)
def _required(kind: Any) -> frozenset[str]:
    return frozenset(one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING)


def typed(kind: type[T], values: Any, where: str, least: Mapping[str, float] | None = None) -> T:
    """``kind(**values)``, where ``values`` are the fields of that dataclass, of its types.

    ``least``: the smallest value of a field of numbers, or of each number in it. Raises DamagedFile, naming the field.
    """
    given = as_object(values, where)
    hints = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(given.keys() - hints.keys()):
        raise DamagedFile(f"{where}: unknown fields in a {kind.__name__}: {shown_names(unknown)}")
    if missing := sorted(_required(kind) - given.keys()):  # type: ignore[arg-type]
        raise DamagedFile(f"{where}: missing fields in a {kind.__name__}: {shown_names(missing)}")
    return kind(**checked_fields(given, hints, where, least))


def checked_fields(
    values: Any, hints: Mapping[str, Any], where: str, least: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """``values`` with those that ``hints`` names brought to their types; others are left as they are, and a missing one
    is left out. Raises DamagedFile, naming the field."""
    out = dict(as_object(values, where))
    for name, hint in hints.items():
        if name in out:
            out[name] = as_type(out[name], hint, f"{where}: `{name}`")
            if least and name in least:
                _at_least(out[name], least[name], f"{where}: `{name}`")
    return out


def required_fields(
    values: Any, hints: Mapping[str, Any], where: str, least: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """``checked_fields`` of an object that must have all of these fields. Raises DamagedFile, naming the field."""
    if missing := sorted(hints.keys() - as_object(values, where).keys()):
        raise DamagedFile(f"{where}: missing fields: {shown_names(missing)}")
    return checked_fields(values, hints, where, least)


def as_type(value: Any, hint: Any, where: str) -> Any:
    """``value``, when it is of the type: dataclasses are made, whole numbers become floats where those are wanted.
    Numbers must be finite. Raises DamagedFile."""
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _as_one_of(value, typing.get_args(hint), hint, where)
    if is_dataclass(hint):
        if type(value) is hint:
            return value
        return typed(hint, value, where)  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        (inner,) = typing.get_args(hint)
        return [as_type(one, inner, where) for one in value]
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(hint)[1]
        return {name: as_type(one, inner, where) for name, one in value.items()}
    if hint is float and type(value) is int and abs(value) < MOST_WHOLE:
        return float(value)
    is_right = type(value) is (origin or hint)
    if isinstance(value, float):
        is_right &= math.isfinite(value)
    elif isinstance(value, int):
        is_right &= abs(value) < MOST_WHOLE
    if not is_right:
        raise DamagedFile(f"{where} is {shown(value)}, and should be {words(hint)}")
    return value


def _as_one_of(value: Any, kinds: tuple[Any, ...], hint: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    left = [kind for kind in kinds if kind is not types.NoneType]
    if len(left) == 1:
        return as_type(value, left[0], where)
    for kind in left:
        try:
            return as_type(value, kind, where)
        except DamagedFile:
            continue
    raise DamagedFile(f"{where} is {shown(value)}, and should be {words(hint)}")


def _at_least(value: Any, least: float, where: str) -> None:
    if isinstance(value, list):
        for one in value:
            _at_least(one, least, where)
    elif isinstance(value, int | float) and value < least:
        raise DamagedFile(f"{where} is {shown(value)}, and must be at least {least:g}")


WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def words(hint: Any) -> str:
    """A type for a message."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("null" if kind is types.NoneType else words(kind) for kind in typing.get_args(hint))
    plain = typing.get_origin(hint) or hint
    inner = typing.get_args(hint)
    of = f", each {words(inner[0])}" if plain is list and inner else ""
    return WORDS.get(plain, "an object") + of


def shown_names(names: list[str]) -> str:
    return ", ".join(name if len(name) <= 40 else shown(name) for name in names[:5])


# ------------------------------------------------------------------------------------------------------------------ CSV

MOST_DIGITS = 18  # of a whole number in a cell: NumPy's int64 holds it


def read_csv(path: Path, columns: Mapping[str, Any], encoding_errors: str = "strict") -> pd.DataFrame:
    """A table with a header that names at least ``columns``: name -> ``str``, ``int``, ``float`` or ``bool``, or one of
    them ``| None`` where a cell may be empty. Other columns hold numbers where each of their cells is one, else text.

    Raises DamagedFile, naming the line and the column.
    """
    import pandas as pd

    rows = _csv_rows(path, encoding_errors)
    header = next(rows, (1, []))[1]
    if missing := [name for name in columns if name not in header]:
        raise DamagedFile(f"{path}, line 1: missing columns: {shown_names(missing)}")
    if len(set(header)) < len(header):
        raise DamagedFile(f"{path}, line 1: a column comes twice")
    cells: list[list[str]] = []
    numbers: list[int] = []
    for number, row in rows:
        if len(row) != len(header):
            raise DamagedFile(f"{path}, line {number}: {len(row)} fields, and the header has {len(header)}")
        cells.append(row)
        numbers.append(number)
    table: dict[str, Any] = {}
    for i, name in enumerate(header):
        texts = [row[i] for row in cells]
        places = [f"{path}, line {number}: `{name}`" for number in numbers]
        hint = columns.get(name) or (float | None if all(map(_may_be_number, texts)) else str)
        values = [_cell(text, hint, place) for text, place in zip(texts, places, strict=True)]
        table[name] = pd.Series(values, dtype=_dtype(hint))
    return pd.DataFrame(table)


def _dtype(hint: Any) -> str:
    """Text as objects: pandas' own type of text holds no bytes of names that are not UTF-8."""
    kinds = typing.get_args(hint) or (hint,)
    if str in kinds:
        return "object"
    return "float64" if float in kinds or types.NoneType in kinds else "int64" if int in kinds else "bool"


def _csv_rows(path: Path, encoding_errors: str) -> typing.Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each row that is not blank. Raises DamagedFile for what is not CSV."""
    try:
        text = path.read_bytes().decode("utf-8", encoding_errors)
    except (OSError, ValueError) as error:
        raise_if_of_machine(error)
        raise DamagedFile(f"{path} cannot be read: {_reason(error)}") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise DamagedFile(f"{path}, line {rows.line_num}: it is not CSV ({error})") from error


def _may_be_number(text: str) -> bool:
    return text == "" or _number(text) is not None


def _number(text: str) -> float | None:
    """What a cell says, if it is a finite number."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _cell(text: str, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if text == "" and types.NoneType in kinds:
        return None
    if str in kinds:
        return text
    if bool in kinds and text in ("True", "False"):
        return text == "True"
    if int in kinds and re.fullmatch(rf"[+-]?\d{{1,{MOST_DIGITS}}}(\.0*)?", text, re.ASCII):
        return int(text.partition(".")[0])
    if float in kinds and (value := _number(text)) is not None:
        return value
    raise DamagedFile(f"{where} is {shown(text)}, and should be {words(hint)}")


# ----------------------------------------------------------------------------------------------------------------- .npz


def read_npz(path: Path, only: tuple[str, ...] = (), perhaps: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; ``only``: of these names, and of the names ``perhaps`` where they are there. Runs no
    code from it.

    Raises DamagedFile, naming the file, where it is damaged or one of ``only`` is not in it.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if missing := sorted(set(only) - set(names)):
                raise ValueError(f"it holds no array {missing[0]!r}")
            wanted = [*only, *(name for name in perhaps if name in names)] if only else names
            return {name: _array(archive, name) for name in wanted}
    except MemoryError as error:
        raise DamagedFile(f"{path} is damaged: it holds an array that does not fit into memory") from error
    except FileNotFoundError:
        raise
    except DAMAGES as error:
        raise_if_of_machine(error)
        raise DamagedFile(f"{path} is damaged: {_reason(error)}") from error


# What zipfile and numpy.lib.format raise for damaged bytes.
DAMAGES = (
    OSError, ValueError, TypeError, KeyError, IndexError, EOFError, SyntaxError, RuntimeError, NotImplementedError,
    OverflowError, AttributeError, AssertionError, zipfile.BadZipFile, zlib.error, RecursionError,
)  # fmt: skip


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One member, of which the header is read first: a damaged one may ask for more memory than there is."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"the array {name!r} is of NumPy's format {version}")
        shape, _, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ValueError(f"the array {name!r} holds objects, which could run code when read")
        size_bytes = math.prod(shape) * dtype.itemsize
        stored = archive.getinfo(f"{name}.npy").file_size
        if any(side < 0 for side in shape) or size_bytes > min(stored, MOST_ARRAY_BYTES):
            raise ValueError(f"the array {name!r} says that it is of shape {shown(shape)}, and its bytes are fewer")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
