"""Queries in flight: simulated runners of known service times give the known rates and latencies."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from msn_deploy.bench.load import QueuedLoad, ThreadedLoad
from msn_deploy.core.errors import InputError

MS = 1_000_000


class Server:
    """A device that works on `at_once` queries at a time, `ns` for each, in their order; its clock is ours."""

    def __init__(self, ns: int, *, at_once: int = 1) -> None:
        self.ns, self.now, self.free = ns, 0, [0] * at_once
        self.in_flight = self.most = 0

    def clock(self) -> int:
        return self.now

    def lane(self) -> ServerLane:
        return ServerLane(self)


class ServerLane:
    def __init__(self, server: Server) -> None:
        self.server, self.done = server, deque()

    def submit(self) -> None:
        assert not self.done, "one query on each lane"
        server = self.server
        server.in_flight += 1
        server.most = max(server.most, server.in_flight)
        first = server.free.index(min(server.free))
        server.free[first] = max(server.now, server.free[first]) + server.ns
        self.done.append(server.free[first])

    def collect(self) -> None:
        self.server.now = max(self.server.now, self.done.popleft())
        self.server.in_flight -= 1


@pytest.mark.parametrize(
    ("lanes", "at_once", "ns_per_query", "latency"),
    [
        (1, 1, 8 * MS, 8 * MS),
        (4, 1, 8 * MS, 4 * 8 * MS),  # all wait in one queue
        (4, 4, 2 * MS, 8 * MS),  # none waits
        (4, 2, 4 * MS, 2 * 8 * MS),
        (2, 4, 4 * MS, 8 * MS),  # half of it stands idle
    ],
)
def test_rate_and_latency_of_a_known_device(lanes, at_once, ns_per_query, latency):
    server = Server(8 * MS, at_once=at_once)
    load = QueuedLoad([server.lane() for _ in range(lanes)])
    for queries in (40, 41):
        block = load.block(queries, 1, server.clock)
        assert block.ns_per_query == pytest.approx(ns_per_query)
        assert set(block.samples) == {latency}
        assert len(block.samples) == lanes * -(-queries // lanes)
    assert server.most == lanes
    assert server.in_flight == 0, "what was begun is waited for"


def test_what_it_takes_to_start_is_in_no_number():
    server = Server(MS)
    lanes = [server.lane() for _ in range(3)]
    first = lanes[0].submit

    def slow_at_first() -> None:
        server.now += 500 * MS * (server.now == 0)
        first()

    lanes[0].submit = slow_at_first
    block = QueuedLoad(lanes).block(30, 1, server.clock)
    assert block.ns_per_query == pytest.approx(MS)
    assert max(block.samples) == 3 * MS


def test_an_answer_at_a_time_while_it_runs():
    server = Server(2 * MS, at_once=2)
    with QueuedLoad([server.lane() for _ in range(2)]).running() as next_answer:
        for _ in range(20):
            next_answer()
        assert server.now == pytest.approx(20 * MS, abs=2 * MS)
        assert server.in_flight == 2
    assert server.in_flight == 0


class Device:
    """A runtime whose calls wait, a little and for real. most: queries at a time."""

    def __init__(self) -> None:
        self.lock, self.in_flight, self.most = threading.Lock(), 0, 0

    def lane(self, ms: float, fails_at: int | None = None) -> CountedLane:
        return CountedLane(self, ms, fails_at)


class CountedLane:
    def __init__(self, device: Device, ms: float, fails_at: int | None) -> None:
        self.device, self.ms, self.fails_at, self.calls = device, ms, fails_at, 0
        self.never = threading.Event()

    def __call__(self) -> None:
        device = self.device
        with device.lock:
            device.in_flight += 1
            device.most = max(device.most, device.in_flight)
        self.calls += 1
        if self.fails_at is not None and self.calls > self.fails_at:
            raise InputError("it went wrong.")
        self.never.wait(self.ms / 1e3)
        with device.lock:
            device.in_flight -= 1


def test_a_thread_for_each_lane_keeps_all_in_flight():
    device = Device()
    lanes = [device.lane(2.0) for _ in range(4)]
    block = ThreadedLoad(lanes).block(40, 1)
    assert device.most == 4
    assert len(block.samples) == 40
    assert min(block.samples) >= 2 * MS
    assert block.ns_per_query == pytest.approx(sum(block.samples) / 40 / 4, rel=0.3)


def test_threads_are_spread_over_the_cores_before_anything_counts():
    now, taken = 0, []

    def query() -> None:
        nonlocal now
        taken.append(2 * MS if now < 20 * MS else MS)
        now += taken[-1]

    load = ThreadedLoad([query])
    block = load.block(30, 1, lambda: now)
    assert set(block.samples) == {MS}
    assert sum(taken) == load.spread_ns + 30 * MS


def test_fast_lanes_stay_busy_until_the_slowest_has_its_queries():
    device = Device()
    fast, slow = device.lane(0.5), device.lane(10.0)
    block = ThreadedLoad([fast, slow]).block(10, 1)
    assert len(block.samples) == 10
    assert slow.calls >= 6
    assert fast.calls > 2 * slow.calls
    # Each lane at its own rate, not ten queries in the time of the slowest.
    assert block.ns_per_query < 2 * MS


@pytest.mark.parametrize("fails_at", [0, 3])
def test_what_a_lane_raises_ends_the_block(fails_at):
    device = Device()
    lanes = [device.lane(0.5), device.lane(0.5, fails_at)]
    with pytest.raises(InputError, match="went wrong"):
        ThreadedLoad(lanes).block(1000, 1)
    assert lanes[0].calls < 900
    with ThreadedLoad(lanes).running() as next_answer, pytest.raises(InputError, match="went wrong"):
        deque(iter(next_answer, "never"))


def test_an_answer_at_a_time_from_threads():
    device = Device()
    lanes = [device.lane(0.2) for _ in range(3)]
    with ThreadedLoad(lanes).running() as next_answer:
        for _ in range(30):
            next_answer()
    assert sum(lane.calls for lane in lanes) >= 30
    assert device.in_flight == 0
