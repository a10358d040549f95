"""Tables written earlier: types, and errors that name the line and the column. JSON and .npz: see the fuzz test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.schemas import DamagedFile, read_csv, required_fields

COLUMNS = {"name": str, "images": int, "top1": float, "gain": float | None, "is_demo": bool}
HEADER = "name,images,top1,gain,is_demo,note,more\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_cells_have_the_types_that_were_asked_for(tmp_path: Path) -> None:
    text = HEADER + '"a, ""b""\nc",5,1e2,,True,,1\nd,6.0,2,-0.5,False,x,\n'
    table = read_csv(written(tmp_path, text), COLUMNS)
    assert table["name"].tolist() == ['a, "b"\nc', "d"]
    assert table["images"].tolist() == [5, 6] and table["images"].dtype == np.int64
    assert table["top1"].tolist() == [100.0, 2.0]
    assert pd.isna(table["gain"][0]) and table["gain"][1] == -0.5
    assert table["is_demo"].tolist() == [True, False] and table["is_demo"].dtype == bool
    assert table["note"].tolist() == ["", "x"]  # not asked for: text, and numbers where all cells are
    assert table["more"][0] == 1.0 and pd.isna(table["more"][1])


def test_names_that_are_no_utf8_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "name\ncaf\udce9.jpg\n")
    assert read_csv(path, {"name": str}, encoding_errors="surrogateescape")["name"].tolist() == ["caf\udce9.jpg"]
    with pytest.raises(DamagedFile, match=r"table\.csv cannot be read: .*utf-8"):
        read_csv(path, {"name": str})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: missing columns: name, images, top1, gain, is_demo"),
        ("name,top1,name\n", "line 1: missing columns: images, gain"),
        (f"{HEADER[:-1]},name\n", "line 1: a column comes twice"),
        (f"{HEADER}a,5,1,,True,,\nb,6\n", "line 3: 2 fields, and the header has 7"),
        (f"{HEADER}a,5.5,1,,True,,\n", "line 2: `images` is '5.5', and should be a whole number"),
        (f"{HEADER}a,,1,,True,,\n", "line 2: `images` is '', and should be a whole number"),
        (f"{HEADER}a,{'9' * 19},1,,True,,\n", "line 2: `images` is '9999"),
        (f"{HEADER}a,5,nan,,True,,\n", "line 2: `top1` is 'nan', and should be a number"),
        (f"{HEADER}a,5,1_0,,True,,\n", "line 2: `top1` is '1_0'"),
        (f"{HEADER}a,5,1,x,True,,\n", "line 2: `gain` is 'x', and should be a number or null"),
        (f"{HEADER}a,5,1,,yes,,\n", "line 2: `is_demo` is 'yes', and should be true or false"),
        (f'{HEADER}"a\nb,5,1,,True,,\n', r"line 3: it is not CSV \(unexpected end of data\)"),
    ],
)
def test_errors_name_the_line_and_the_column(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=rf"table\.csv, {said}"):
        read_csv(written(tmp_path, text), COLUMNS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=r"none\.csv cannot be read: No such file"):
        read_csv(tmp_path / "none.csv", {})


def test_fields_that_are_needed_are_named_where_they_are_missing() -> None:
    assert required_fields({"a": 1, "b": "x"}, {"a": float}, "here") == {"a": 1.0, "b": "x"}
    with pytest.raises(DamagedFile, match="here: missing fields: a, c"):
        required_fields({"b": "x"}, {"a": float, "b": str, "c": int}, "here")
    with pytest.raises(DamagedFile, match=r"here: \[\] is not a JSON object"):
        required_fields([], {}, "here")
