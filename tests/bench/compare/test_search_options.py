"""The command lines of the runs that a search consists of."""

from __future__ import annotations

import pytest

from bench.compare import search_options
from bench.compare.search_options import Case, expected_s, final_options, screen_options, with_policies, without
from bench.options import parse

CASE = Case("resnet:demo", 64, 0.875, 100.0, 50.0)
OPTIONS = ["--models", "a,b", "--img-size=64,96", "--data", "images", "--limit=500", "-j", "2"]


def test_options_are_taken_apart() -> None:
    assert without(OPTIONS, search_options.CASE_FLAGS) == ["--data", "images", "--limit=500", "-j", "2"]
    assert search_options.limit_of(OPTIONS) == 500 and search_options.limit_of(["--data", "x"]) is None
    assert search_options.image_flags(0, 20) == ["--limit", "20"]
    assert search_options.image_flags(20, 30) == ["--skip", "20", "--limit", "30"]
    assert CASE.flags == ["--models", "resnet:demo", "--img-size", "64", "--crop-pct", "0.875"]


def test_every_kind_of_policy_is_searched_unless_some_are_named() -> None:
    from bench.cases import policies

    names = {policy.name for policy in policies(parse(with_policies(OPTIONS)).config.measure)}
    assert {"CC", "20RC", "5FC", "5FC+5MFC", "DC", "CC+3DC", "20RC~exact", "20RC~1%"} <= names
    for named in (["--crops", "1,2"], ["--policies=CC,5FC"]):
        assert with_policies([*OPTIONS, *named]) == [*OPTIONS, *named]


@pytest.mark.parametrize(
    ("given", "few"),
    [
        (["--crops", "1,2,5,10,20", "--policies", "5FC"], ["--crops", "1,2,5"]),
        (["--crops", "10,20"], ["--crops", "10"]),
        (["--policies", "CC,5FC,10RC"], ["--policies", "CC,5FC"]),
        (["--policies", "10RC"], ["--policies", "CC"]),
    ],
)
def test_screening_takes_few_crops(given: list[str], few: list[str]) -> None:
    found = screen_options([*OPTIONS, *given, "--preset", "fast", "--no-throughput"], [])
    assert found == ["--models", "a,b", "--img-size=64,96", "--data", "images", "-j", "2", *few, "--no-throughput"]


def test_screening_times_only_what_no_estimate_tells() -> None:
    options = with_policies(OPTIONS)
    for metrics in ([], ["forwards", "top1"], ["images_per_sec"]):
        assert not parse(screen_options(options, metrics)).config.measure.throughput
    memory, latency = (
        parse(screen_options(options, [one])).config.measure for one in ("peak_mem_gb", "latency_p99_ms")
    )
    assert memory.throughput and memory.stages == ["end_to_end"] and memory.latency_queries == 0
    assert latency.throughput and latency.latency_queries == search_options.SCREEN_QUERIES


def test_the_last_step_tries_speed_settings_times_end_to_end_and_obeys_the_user() -> None:
    found = parse(final_options(with_policies(OPTIONS), ["forwards"]) + CASE.flags).config
    assert (found.network.preset, found.network.models, found.network.img_size) == ("eager", ["resnet:demo"], [64])
    assert found.measure.stages == ["end_to_end"] and found.measure.latency_queries == 0
    assert found.data.limit is None
    own = parse(final_options([*OPTIONS, "--fold", "--rounds", "7"], ["latency_p99_ms"])).config
    assert own.network.preset is None and own.network.fold
    assert own.measure.rounds == 7 and own.measure.latency_queries == 100


def test_more_images_crops_and_networks_take_longer() -> None:
    options = ["--models", "a", "--no-throughput", "--policies", "10RC", "--no-cheap"]  # CC is scored too
    assert CASE.seconds_per_image(10) == pytest.approx(10 / 100 + 1 / 50)
    assert Case("a", None, None, 100.0, 50.0, shared=False).seconds_per_image(10) == pytest.approx(0.1)
    assert Case("a", None, None, None, None).seconds_per_image(10) == 0
    alone = expected_s([CASE], 0, options)
    assert expected_s([CASE], 1000, options) - alone == pytest.approx(1000 * CASE.seconds_per_image(11))
    assert expected_s([CASE, CASE], 1000, options) == pytest.approx(2 * expected_s([CASE], 1000, options))
    assert expected_s([CASE], 1000, options, pace=2) > expected_s([CASE], 1000, options)
    assert expected_s([CASE], 0, options[:2]) > alone
