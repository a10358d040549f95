"""What is said of disturbed rounds, of rounds that differ, and of rates above their ceiling, on made records."""

from __future__ import annotations

from dataclasses import replace

from analysis import console
from analysis.report import throughput_grid
from analysis.timing_notes import timing_notes
from bench.records import Throughput
from tests.analysis.test_console import rates

STOP = "nothing came for 3.0 s (usually 50 ms)"
STEADY = [
    rates("read", None, 900, 900, 900),
    rates("model", None, 1000, 1000, 1000),
    rates("load", 1, 400, 400, 400),
    rates("end_to_end", 1, 250, 250, 250),
]


def with_one(i: int, changed: Throughput) -> list[Throughput]:
    return [*STEADY[:i], changed, *STEADY[i + 1 :]]


def test_steady_undisturbed_rates_need_no_words() -> None:
    assert timing_notes(STEADY) == []


def test_a_disturbed_round_is_left_out_and_said() -> None:
    hit = replace(rates("load", 1, 400, 100, 400, 420), disturbed=["", STOP, "", ""])
    assert (hit.kept, hit.rates, hit.rate) == ([0, 2, 3], [400, 400, 420], 400)
    (line,) = timing_notes(with_one(2, hit))
    assert line == f"pipeline alone at 1 crop: 1 of 4 rounds were disturbed and are left out: {STOP}"


def test_where_every_round_was_disturbed_all_are_used_and_the_rate_is_not_to_be_trusted() -> None:
    hit = replace(rates("model", None, 950, 1000, 900), disturbed=["a limit", "a limit", STOP])
    assert hit.rate == 950
    line, remedy = timing_notes(with_one(1, hit))
    assert "3 of 3 rounds were disturbed and are used all the same, so this rate is not to be trusted" in line
    assert line.endswith(f"; the slowest: {STOP}") and "stop other programs" in remedy


def test_many_disturbed_measurements_are_summed_up() -> None:
    hit = [replace(rates("load", n, 400, 400), disturbed=["", STOP]) for n in range(1, 8)]
    lines = timing_notes(hit)
    assert len(lines) == 5 and lines[-1].startswith("rounds of 3 more measurements were disturbed")


def test_the_spread_of_every_stage_is_checked() -> None:
    (line,) = timing_notes(with_one(0, rates("read", None, 900, 500, 900)))
    assert line.startswith("the rounds differ by more than 20%: read (44%); ")
    (line,) = timing_notes(with_one(2, rates("load", 1, 400, 300, 500)))
    assert "pipeline alone at 1 crop (50%)" in line
    policy = replace(rates("end_to_end", None, 100, 130, 70), policy="CC+3DC~1%", forwards=2.0)
    (line,) = timing_notes([*STEADY, policy])
    assert "end to end of CC+3DC~1% (60%)" in line


def test_more_than_the_ceiling_is_said_to_be_impossible() -> None:
    """The ceiling is 1 / (1/400 + 1/1000) = 285.7 images/s."""
    assert timing_notes(with_one(3, rates("end_to_end", 1, 328, 328, 328))) == []  # 114.8 %
    (line,) = timing_notes(with_one(3, rates("end_to_end", 1, 1632, 1632, 1632)))
    assert line.startswith("more than 115% of the ceiling was reached: end to end at 1 crop (571%)")


def test_screen_json_and_report_say_the_same() -> None:
    hit = with_one(2, replace(rates("load", 1, 400, 100), disturbed=["", STOP]))
    (note,) = timing_notes(hit)
    assert note in console.text(hit).splitlines()
    (one,) = console.headline(hit)
    assert one["timing_notes"] == [note]
    network = type("Network", (), {"heading": "", "throughputs": hit})
    grid = throughput_grid(network)  # type: ignore[arg-type]
    assert grid is not None and f"{note[0].upper()}{note[1:]}." in grid.notes
    only_load = console.text(hit[2:3])
    assert note in only_load.splitlines()
