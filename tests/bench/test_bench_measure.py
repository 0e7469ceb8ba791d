from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from msn_deploy.bench.measure import (
    MAX_ARM_QUERIES,
    MAX_BLOCK_QUERIES,
    MIN_ROUNDS,
    Arm,
    ArmFacts,
    MeasureOptions,
    measure,
)
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.machine.state import Reading

MS = 1_000_000


class FakeMachine:
    """A clock that only queries move, and a log of who ran when."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def arm(self, name: str, ns: int) -> Arm:
        def run() -> None:
            self.log.append(name)
            self.now += ns

        return Arm(name=name, run=run, facts=ArmFacts(file=f"{name}.onnx"))


def short(**changes: float) -> MeasureOptions:
    values = {"seconds": 1.0, "block_ms": 40.0, "warmup_seconds": 0.1, "warmup_queries": 5, "settle_queries": 0}
    return MeasureOptions(**{**values, **changes})


def blocks_in_time_order(samples) -> list[str]:
    starts = [(start, arm.name) for arm in samples.arms for start in arm.block_starts_ns]
    return [name for _, name in sorted(starts)]


def test_every_round_is_a_permutation_followed_by_its_mirror():
    machine = FakeMachine()
    samples = measure([machine.arm(n, 2 * MS) for n in "abcd"], options=short(seed=3), clock=machine.clock)
    order = blocks_in_time_order(samples)
    rounds = [order[at : at + 8] for at in range(0, len(order), 8)]
    assert len(rounds) >= MIN_ROUNDS
    for one in rounds:
        assert sorted(one[:4]) == list("abcd")
        assert one[4:] == one[:4][::-1]
    assert len({tuple(one) for one in rounds}) > 3, "the order of the arms must change from round to round"


def test_order_follows_the_seed():
    def order(seed: int) -> list[str]:
        machine = FakeMachine()
        return blocks_in_time_order(
            measure([machine.arm(n, MS) for n in "abc"], options=short(seed=seed), clock=machine.clock)
        )

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_samples_are_exact_and_blocks_have_equal_length_in_time():
    machine = FakeMachine()
    samples = measure([machine.arm("fast", MS), machine.arm("slow", 8 * MS)], options=short(), clock=machine.clock)
    fast, slow = samples.arms
    assert {len(block) for block in fast.blocks} == {40}
    assert {len(block) for block in slow.blocks} == {5}
    assert {ns for block in fast.blocks for ns in block} == {MS}
    assert {ns for block in slow.blocks for ns in block} == {8 * MS}
    assert len(fast.blocks) == len(slow.blocks) == 2 * 12  # 1 s per arm / 80 ms per arm and round = 12.5 rounds
    assert fast.facts == ArmFacts(file="fast.onnx")


def test_warm_up_is_at_least_the_time_and_at_least_the_count_for_every_arm():
    machine = FakeMachine()
    options = short(warmup_seconds=0.1, warmup_queries=7)
    samples = measure([machine.arm("fast", MS), machine.arm("slow", 30 * MS)], options=options, clock=machine.clock)
    measured = {arm.name: sum(map(len, arm.blocks)) for arm in samples.arms}
    warm = {name: count - measured[name] for name, count in Counter(machine.log).items()}
    assert warm == {"fast": 100, "slow": 7}


def test_settling_queries_are_run_before_each_block_and_dropped():
    machine = FakeMachine()
    count = {"runs": 0, "last": ""}

    def switching_arm(name: str) -> Arm:
        def run() -> None:
            cold = count["last"] != name
            count["last"] = name
            machine.now += 50 * MS if cold else MS

        return Arm(name=name, run=run)

    arms = [switching_arm("a"), switching_arm("b")]
    settled = measure(arms, options=short(settle_queries=1), clock=machine.clock)
    assert {ns for arm in settled.arms for block in arm.blocks for ns in block} == {MS}
    bare = measure(arms, options=short(settle_queries=0), clock=machine.clock)
    assert 50 * MS in {ns for arm in bare.arms for block in arm.blocks for ns in block}


def test_steady_drift_cancels_within_each_round():
    machine = FakeMachine()

    def drifting(name: str) -> Arm:
        def run() -> None:
            machine.now += MS + machine.now // 10_000

        return Arm(name=name, run=run)

    samples = measure([drifting("a"), drifting("b")], options=short(), clock=machine.clock)
    a, b = ([sum(block) / len(block) for block in arm.blocks] for arm in samples.arms)
    for at in range(0, len(a), 2):
        assert a[at] + a[at + 1] == pytest.approx(b[at] + b[at + 1], rel=1e-4)
        assert abs(a[at] - b[at]) > 2e-3 * a[at], "without the mirror the drift must show, or this proves nothing"


def test_too_short_a_run_is_refused_before_measuring_and_says_how_long_is_enough():
    machine = FakeMachine()
    arms = [machine.arm("slow", 300 * MS)]
    with pytest.raises(InvalidMeasurement, match=r"--seconds (\d+)") as caught:
        measure(arms, options=short(seconds=1.0), clock=machine.clock)
    assert len(machine.log) == 5, "only the warm-up ran"
    enough = float(str(caught.value).split("--seconds ")[1].rstrip("`."))
    assert len(measure(arms, options=short(seconds=enough), clock=machine.clock).arms[0].blocks) >= 2 * MIN_ROUNDS


def test_sample_counts_stay_bounded_for_very_fast_queries():
    machine = FakeMachine()
    options = short(seconds=100.0, warmup_seconds=0.0)
    samples = measure([machine.arm("tiny", 100)], options=options, clock=machine.clock)
    assert {len(block) for block in samples.arms[0].blocks} == {MAX_BLOCK_QUERIES}
    assert sum(map(len, samples.arms[0].blocks)) == MAX_ARM_QUERIES


def test_a_quick_arm_ends_at_its_limit_of_queries_with_many_rounds_and_a_slow_one_at_its_seconds():
    machine = FakeMachine()
    arms = [machine.arm("quick", 20_000), machine.arm("slow", 2 * MS)]
    options = MeasureOptions(seconds=2, block_ms=4, warmup_seconds=0, warmup_queries=2, max_queries=1000)
    quick, slow = measure(arms, options=options, clock=machine.clock).arms
    assert {len(block) for block in quick.blocks} == {10}  # not 200: fifty rounds have to fit into the limit
    assert len(quick.blocks) == len(slow.blocks) == 100
    alone = measure(arms[1:], options=options, clock=machine.clock).arms[0]
    assert (len(alone.blocks), {len(block) for block in alone.blocks}) == (500, {2})


def test_progress_rises_to_the_total_and_is_never_called_inside_a_block():
    machine = FakeMachine()
    calls: list[tuple[float, float]] = []
    calls_at: list[int] = []

    def progress(done: float, total: float, note: str = "") -> None:
        calls.append((done, total))
        calls_at.append(len(machine.log))

    samples = measure([machine.arm(n, 2 * MS) for n in "ab"], options=short(), progress=progress, clock=machine.clock)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1] for call in calls} == {2 * 1.1}
    assert done[-1] == calls[-1][1]
    blocks = sum(len(arm.blocks) for arm in samples.arms)
    assert len(calls) == 2 + blocks + 1  # warm-ups, blocks, the end
    gaps = {b - a for a, b in pairwise(calls_at[2:])}
    assert gaps == {20}, "exactly one block of 20 queries between two calls"


@pytest.mark.parametrize("ending", [KeyboardInterrupt, RuntimeError, None])
def test_garbage_collection_is_off_while_measuring_and_on_again_afterwards(ending):
    machine = FakeMachine()
    seen: set[bool] = set()

    def run() -> None:
        seen.add(gc.isenabled())
        machine.now += MS
        if ending is not None and machine.now > 300 * MS:
            raise ending("stop")

    arms = [Arm(name="a", run=run)]
    assert gc.isenabled()
    if ending is None:
        measure(arms, options=short(), clock=machine.clock)
    else:
        with pytest.raises(ending):
            measure(arms, options=short(), clock=machine.clock)
    assert seen == {False}
    assert gc.isenabled()


def test_collection_that_was_off_before_stays_off():
    machine = FakeMachine()
    gc.disable()
    try:
        measure([machine.arm("a", MS)], options=short(), clock=machine.clock)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_arms_need_names_of_their_own():
    machine = FakeMachine()
    with pytest.raises(InputError, match="'x'"):
        measure([machine.arm("x", MS), machine.arm("x", MS)], options=short(), clock=machine.clock)
    with pytest.raises(InputError, match="nothing to measure"):
        measure([], options=short(), clock=machine.clock)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", 0.0),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("block_ms", -1.0),
        ("warmup_seconds", -0.1),
        ("warmup_queries", 0),
        ("settle_queries", -1),
        ("max_queries", 99),
        ("max_queries", MAX_ARM_QUERIES + 1),
    ],
)
def test_options_refuse_what_cannot_be_used_and_name_it(name, value):
    with pytest.raises(InputError, match=name):
        MeasureOptions(**{name: value})


def test_builds_of_one_model_share_its_time_and_are_told_apart():
    machine = FakeMachine()
    arms = [replace(machine.arm(name, MS), build=build) for name in "ab" for build in range(3)]
    samples = measure(arms, options=short(seconds=3.0), clock=machine.clock)
    assert [(arm.name, arm.build) for arm in samples.arms] == [(name, build) for name in "ab" for build in range(3)]
    for arm in samples.arms:
        assert sum(map(sum, arm.blocks)) == pytest.approx(1e9, rel=0.05)


def test_unequal_numbers_of_builds_are_refused():
    machine = FakeMachine()
    arms = [machine.arm("a", MS), machine.arm("b", MS), replace(machine.arm("b", MS), build=1)]
    with pytest.raises(InputError, match="equal numbers of builds"):
        measure(arms, options=short(), clock=machine.clock)


def test_the_machine_is_probed_around_every_block_and_never_within():
    machine = FakeMachine()
    at: list[int] = []

    def probe() -> Reading:
        at.append(len(machine.log))
        return Reading(throttled={}, clocks_mhz={"gpu": float(machine.now)}, temperatures_c={}, cooling={})

    samples = measure([machine.arm(n, 2 * MS) for n in "ab"], options=short(), clock=machine.clock, probe=probe)
    blocks = sum(len(arm.blocks) for arm in samples.arms)
    assert len(samples.readings) == blocks + 1
    assert {after - before for before, after in pairwise(at)} == {20}
    assert sorted(slot for arm in samples.arms for slot in arm.slots) == list(range(blocks))
    by_start = sorted(
        (start, slot) for arm in samples.arms for start, slot in zip(arm.block_starts_ns, arm.slots, strict=True)
    )
    assert [slot for _, slot in by_start] == list(range(blocks))


def test_no_time_of_the_probe_is_in_a_sample():
    machine = FakeMachine()

    def probe() -> Reading:
        machine.now += 500 * MS
        return Reading(throttled={}, clocks_mhz={}, temperatures_c={}, cooling={})

    samples = measure([machine.arm("a", MS)], options=short(), clock=machine.clock, probe=probe)
    assert {ns for block in samples.arms[0].blocks for ns in block} == {MS}
