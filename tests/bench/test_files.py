"""One writer for each folder, and tables that several processes add to at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Callable
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path
from typing import Any

import pytest

from bench import records
from bench.errors import UserError
from bench.files import LOCK, WRITER, locked, new_folder
from bench.measure import tuned
from bench.records import FailedModel
from pipelines.files import sole_writer, write_whole

ATTEMPTS = 50
spawn = multiprocessing.get_context("fork")


def together(work: Callable[..., Any], *arguments: Any, processes: int = 2) -> list[Any]:
    """What each of several processes, which start at one moment, returned or raised (as text)."""
    barrier, results = spawn.Barrier(processes), spawn.SimpleQueue()

    def run(number: int) -> None:
        barrier.wait()
        try:
            results.put((number, work(number, *arguments)))
        except UserError as error:
            results.put((number, f"refused: {error}"))

    started = [spawn.Process(target=run, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    found = dict(results.get() for _ in started)
    for process in started:
        process.join()
    return [found[number] for number in range(processes)]


def write_run(number: int, out: Path | None, done: BarrierType | None = None) -> str:
    """As a run does: a folder, its description, two lines."""
    with new_folder(out, "nfnet") as folder:
        write_whole(folder / "run.json", json.dumps({"seed": number}))
        for line in range(2):
            records.extend(folder, [FailedModel(f"network {line}", "load", f"of run {number}")])
        if done:
            done.wait(30)
        return str(folder)


def lines_of(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "results.jsonl").read_text().splitlines()]


def test_of_two_runs_into_one_folder_one_writes_and_the_other_is_refused(tmp_path: Path) -> None:
    for attempt in range(ATTEMPTS):
        out = tmp_path / f"{attempt}"
        ends = together(write_run, out)
        (winner,) = [number for number, end in enumerate(ends) if not end.startswith("refused")]
        assert "exists" in ends[1 - winner] or "another process is writing" in ends[1 - winner]
        assert json.loads((out / "run.json").read_text()) == {"seed": winner}
        assert lines_of(out) == [f"of run {winner}"] * 2
        there = sorted(path.name for path in out.iterdir())
        assert [name for name in there if not name.startswith(".")] == ["results.jsonl", "run.json"]


def test_runs_that_start_together_have_default_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.files.time.strftime", lambda *form: "20261121-120000")
    for _ in range(ATTEMPTS // 5):
        folders = together(write_run, None, processes=5)
        assert len(set(folders)) == 5
        for number, folder in enumerate(folders):
            assert lines_of(Path(folder)) == [f"of run {number}"] * 2


def resume_run(number: int, out: Path, both: BarrierType) -> str:
    try:
        with locked(out):
            lines = len(lines_of(out))
            records.extend(out, [FailedModel(f"network {lines}", "load", f"resumed by {number}")])
            both.wait(30)  # alive until the other has been refused
            return "resumed"
    except UserError:
        both.wait(30)
        raise


def test_of_two_continuations_one_is_refused_by_process_and_host(tmp_path: Path) -> None:
    write_run(0, tmp_path / "run")
    for attempt in range(ATTEMPTS):
        ends = together(resume_run, tmp_path / "run", spawn.Barrier(2))
        (refused,) = [end for end in ends if end != "resumed"]
        assert "another process is writing" in refused
        assert len(lines_of(tmp_path / "run")) == 2 + attempt + 1
    with locked(tmp_path / "run"), pytest.raises(UserError) as error, locked(tmp_path / "run"):
        pass
    assert f"process {os.getpid()} on host {platform.node()}" in str(error.value)


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", "") as folder:
        assert {path.name for path in folder.iterdir()} == {LOCK, WRITER}
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_before_it_wrote_anything_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed(number: int) -> None:
        with new_folder(out, ""):
            os._exit(9)

    process = spawn.Process(target=killed, args=(0,))
    process.start()
    process.join()
    assert {path.name for path in out.iterdir()} == {LOCK, WRITER}
    write_run(1, out)
    assert lines_of(out) == ["of run 1"] * 2
    with pytest.raises(UserError, match="exists; results are never"):
        write_run(2, out)


def test_a_folder_that_another_process_has_just_made_is_named_with_its_writer(tmp_path: Path) -> None:
    both = spawn.Barrier(2)
    process = spawn.Process(target=write_run, args=(0, tmp_path / "out", both))
    process.start()
    while not (tmp_path / "out/results.jsonl").exists():
        pass
    with pytest.raises(UserError, match=f"exists, and process {process.pid} on host .* is writing to it"):
        write_run(1, tmp_path / "out")
    both.wait(30)
    process.join()


def test_settings_of_several_writers_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path))

    def store(number: int) -> None:
        for entry in range(20):
            tuned.add({f"machine {number}-{entry}": {"workers": 2}})

    together(store, processes=4)
    assert len(json.loads((tmp_path / tuned.FILE).read_text())) == 80
    with sole_writer(tmp_path / tuned.FILE):  # released
        pass


def test_temporary_names_do_not_depend_on_the_process_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.files import whole_path

    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with whole_path(tmp_path / "figure.png") as one, whole_path(tmp_path / "figure.png") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    long = tmp_path / ("é" * 120 + ".csv")  # 245 bytes
    write_whole(long, "text")
    assert long.read_text() == "text"
