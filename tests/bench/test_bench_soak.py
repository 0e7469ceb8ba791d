"""A soak of a board whose heat is scripted: what it keeps up, and when it began to slow down."""

from __future__ import annotations

import pytest
from test_bench_load import MS, Server

from msn_deploy.bench.load import QueuedLoad
from msn_deploy.bench.soak import parse_duration, soak
from msn_deploy.core.errors import InputError
from msn_deploy.machine.state import Reading


def board(server, throttles_at_s):
    """A probe of a device that works at two thirds of its speed from then on, and tells by its clock."""

    def probe():
        hot = server.now >= throttles_at_s * 1e9
        server.ns = 15 * MS if hot else 10 * MS
        return Reading(
            throttled={},
            clocks_mhz={"gpu": 600.0 if hot else 900.0},
            temperatures_c={"gpu-thermal": 50 + min(45, server.now / 1e9), "cpu-thermal": 40.0},
            cooling={},
        )

    return probe


def soaked(server, throttles_at_s, seconds=120.0):
    load = QueuedLoad([server.lane() for _ in range(2)])
    return soak(
        load, seconds=seconds, batch=4, probe=board(server, throttles_at_s), power_mode="25W (id 1)", clock=server.clock
    )


def test_a_board_that_throttles_says_when_and_what_it_keeps_up():
    found = soaked(Server(10 * MS), throttles_at_s=40)
    assert found.at_first == pytest.approx(400, rel=0.01)
    assert found.sustained.per_s == pytest.approx(400 / 1.5, rel=0.01)
    assert found.throttled_after_s == pytest.approx(41, abs=2)
    assert "gpu clock below 75 % of 900 MHz" in found.throttled_by.replace("75%", "75 %")
    assert found.slower_after_s == pytest.approx(40, abs=4)
    assert (found.power_mode, found.hottest_c) == ("25W (id 1)", 95)
    assert found.points[-1].clocks_mhz == {"gpu": 600.0}
    assert found.seconds == pytest.approx(120, abs=2)


def test_a_board_that_keeps_up_tells_of_nothing():
    found = soaked(Server(10 * MS), throttles_at_s=10**6)
    assert found.sustained.per_s == pytest.approx(found.at_first, rel=0.01)
    assert (found.throttled_after_s, found.throttled_by, found.slower_after_s) == (None, None, None)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "5s", "-1m", "m", "1e3s", "30 m"])
def test_what_is_not_a_duration(text):
    with pytest.raises(InputError, match="at least 60 s"):
        parse_duration(text)
