"""Stages at the same time: in order, few items under way, an end without threads left, whatever ends it."""

from __future__ import annotations

import _thread
import threading

import pytest

from msn_deploy.pipeline.flow import DEPTH, Meter, Stage, flow


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("Thread-") and each.is_alive()]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threads()
    yield
    assert [each for each in threads() if each not in before] == []


def tripled(here=1, source=range(50), **stages):
    works = {"a": lambda x: x, "b": lambda x: 3 * x, "c": lambda x: x} | stages
    return flow(iter(source), [Stage(name, work) for name, work in works.items()], here=here, meter=Meter())


@pytest.mark.parametrize("here", [0, 1, 2])
def test_all_items_come_in_order(here):
    assert list(tripled(here)) == [3 * each for each in range(50)]
    assert list(tripled(here, source=[])) == []


def test_one_stage_runs_where_the_results_are_asked_for_and_the_others_do_not():
    ran = {}

    def noted(name):
        def work(item):
            ran[name] = threading.get_ident()
            return item

        return work

    list(tripled(a=noted("a"), b=noted("b"), c=noted("c")))
    assert ran["b"] == threading.get_ident()
    assert len(set(ran.values())) == 3


def test_stages_work_at_the_same_time():
    """Each waits until all three are at work, on items that follow each other."""
    barrier = threading.Barrier(3, timeout=20)

    # Item n is in stage a while n - 1 is in b and n - 2 in c; the first and the last have nobody to meet.
    work = {
        "a": lambda item: (barrier.wait(), item)[1] if item >= 2 else item,
        "b": lambda item: (barrier.wait(), item)[1] if 1 <= item < 9 else item,
        "c": lambda item: (barrier.wait(), item)[1] if item < 8 else item,
    }
    assert list(tripled(source=range(10), **work)) == list(range(10))


def test_few_items_wait_when_a_stage_is_slow():
    given, most, gate = [], [], threading.Semaphore(0)

    def source():
        for item in range(200):
            given.append(item)
            yield item

    def slow(item):
        gate.acquire()
        return item

    found = flow(source(), [Stage("a", lambda x: x), Stage("b", lambda x: x), Stage("c", slow)], here=1, meter=Meter())
    taken = []
    for _ in range(60):
        gate.release()
        taken.append(next(found))
        most.append(len(given) - len(taken))
    gate.release(20)
    found.close()
    assert taken == list(range(60))
    assert max(most) <= 3 * (DEPTH + 1) + 3
    assert max(most[40:]) <= max(most[:40]) + 1, "it does not grow"


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_what_a_stage_raises_comes_after_the_results_before_it(stage):
    def fails(item):
        if item in (30, 90):
            raise ValueError(f"{item} is wrong")
        return item

    found, taken = tripled(**{"b": lambda x: x, stage: fails}), []
    with pytest.raises(ValueError, match="30 is wrong"):
        taken.extend(found)
    assert taken == list(range(30))[: len(taken)]
    if stage != "b":
        assert taken == list(range(30))


def test_a_source_that_fails_and_one_that_is_left_are_both_closed():
    closed = []

    def source(fails_at):
        try:
            for item in range(1000):
                if item == fails_at:
                    raise OSError("unplugged")
                yield item
        finally:
            closed.append(fails_at)

    taken = []
    with pytest.raises(OSError, match="unplugged"):
        taken.extend(tripled(source=source(7), b=lambda x: x))
    assert taken == list(range(7))
    found = tripled(source=source(-1))
    next(found)
    found.close()
    assert closed == [7, -1]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_all_stages_and_the_source():
    ended = []

    def camera():
        try:
            for item in range(10**6):
                if item == 20:
                    _thread.interrupt_main()  # as SIGINT: in the thread that asks
                yield item
        finally:
            ended.append(True)

    taken, found = [], tripled(source=camera(), b=lambda x: x)
    with pytest.raises(KeyboardInterrupt):
        taken.extend(found)
    found.close()
    assert taken == list(range(len(taken)))
    assert ended == [True]


def test_the_meter_says_how_fast_and_where_it_is_slow():
    now = [0.0]
    meter = Meter(clock=lambda: now[0])

    def takes(seconds):
        now[0] += seconds

    meter.begin()
    for _ in range(4):
        meter.timed("decode", lambda: takes(0.25))
        meter.timed("inference", lambda: takes(0.75))
        meter.count()
    now[0] += 100
    assert (meter.items, meter.seconds, meter.rate) == (4, 4.0, 1.0)
    assert meter.shares() == {"decode": 0.25, "inference": 0.75}
    meter.begin()
    meter.timed("decode", lambda: takes(6.0))
    meter.count()
    assert (meter.items, meter.seconds, meter.shares()["decode"]) == (5, 10.0, 0.7)
