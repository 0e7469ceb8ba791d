"""The live display of `bench`: what it shows, and that it shows it between blocks only."""

from __future__ import annotations

import io
import threading
from array import array
from dataclasses import replace

import pytest
from rich.console import Console

from msn_deploy.bench import Arm, MeasureOptions, Samples, measure
from msn_deploy.bench.compare import standings
from msn_deploy.bench.measure import ArmFacts, ArmSamples
from msn_deploy.cli import output
from msn_deploy.cli.bench_show import live_bench
from msn_deploy.machine.state import Reading

MS = 1_000_000
OPTIONS = MeasureOptions(seconds=1.0, block_ms=25, warmup_seconds=0.1, warmup_queries=3, settle_queries=0)


class Terminal(io.StringIO):
    """A terminal that keeps what was drawn, and when, by the clock of the measured machine."""

    def __init__(self, machine):
        super().__init__()
        self.machine, self.drawn = machine, []

    def isatty(self):
        return True

    def write(self, text):
        assert not self.machine.busy, "drawn while a query ran"
        self.drawn.append((self.machine.queries, text))
        return super().write(text)


class Machine:
    """Queries move the clock; one throttle event is counted while the third block runs."""

    def __init__(self):
        self.now, self.queries, self.busy, self.readings = 0, 0, False, 0

    def clock(self):
        return self.now

    def seconds(self):
        return self.now / 1e9

    def arm(self, name, ns):
        def run():
            self.busy = True
            self.now += ns
            self.queries += 1
            self.busy = False

        return Arm(name=name, run=run)

    def probe(self):
        self.readings += 1
        return Reading(
            throttled={"cpu0": int(self.readings > 3)}, clocks_mhz={}, temperatures_c={}, cooling={}, load=None
        )


def run(machine, console, **arms):
    with live_bench(console=console, clock=machine.seconds) as (progress, watch):
        return measure(
            [machine.arm(name, ns) for name, ns in arms.items()],
            options=OPTIONS,
            clock=machine.clock,
            probe=machine.probe,
            progress=progress,
            watch=watch,
        )


def test_a_table_of_how_the_arms_stand_under_the_bar():
    machine = Machine()
    terminal = Terminal(machine)
    console = Console(file=terminal, force_terminal=True, width=80, height=30, color_system=None)
    samples = run(machine, console, bn=2 * MS, a_name_that_is_too_long_for_the_table=3 * MS)
    shown = terminal.getvalue()
    assert "model" in shown
    last = shown[shown.rindex("model") :]
    rows = [line.split() for line in last.splitlines() if line.strip()]
    (bn,) = [row for row in rows if row[0] == "bn"]
    (msn,) = [row for row in rows if row[0].startswith("a_name_that_is")]
    assert bn[1:3] == ["2.000", "1.000"]
    assert msn[1:3] == ["3.000", "1.500"]
    blocks = len(samples.arms[0].blocks)
    assert 0.6 * blocks < int(bn[3]) < blocks
    assert int(bn[4]) + int(msn[4]) == 1  # the block after which the counter had risen
    assert "round" in shown
    # Each drawing falls between blocks: what had run by then is a whole number of blocks of either arm.
    sizes = [len(arm.blocks[0]) for arm in samples.arms]
    warm = machine.queries - sum(sizes) * blocks
    measured = sorted({queries - warm for queries, _ in terminal.drawn if queries > warm})
    assert len(measured) >= 3
    edges, order = {0}, sorted((slot, at) for at, arm in enumerate(samples.arms) for slot in arm.slots)
    total = 0
    for _, at in order:
        total += sizes[at]
        edges.add(total)
    assert edges.issuperset(measured)


def test_no_thread_draws_and_not_more_than_twice_a_second():
    machine = Machine()
    terminal = Terminal(machine)
    console = Console(file=terminal, force_terminal=True, width=80, color_system=None)
    before = threading.active_count()
    with live_bench(console=console, clock=machine.seconds) as (progress, watch):
        assert threading.active_count() == before
        start = len(terminal.drawn)
        progress(1, 10, "one")
        one = len(terminal.drawn)
        assert one > start
        machine.now += 499 * MS
        watch(pytest.fail)  # not even looked at
        progress(2, 10, "two")
        assert len(terminal.drawn) == one
        machine.now += 2 * MS
        progress(3, 10, "three")
        assert len(terminal.drawn) > one
    assert "three" in terminal.getvalue()


def test_a_look_that_takes_long_makes_the_next_ones_rarer():
    machine = Machine()
    console = Console(file=Terminal(machine), force_terminal=True, width=80, color_system=None)
    looks = []
    samples = measure([machine.arm("only", MS)], options=OPTIONS, clock=machine.clock)

    def slow():
        looks.append(machine.now)
        machine.now += 100 * MS
        return samples

    with live_bench(console=console, clock=machine.seconds) as (progress, watch):
        start = machine.now
        while machine.now < start + 10_000 * MS:
            watch(slow)
            progress(1, 2)
            machine.now += 25 * MS
    assert 4 <= len(looks) <= 6  # 0.1 s each in 10 s: a twentieth


@pytest.mark.parametrize("why", ["no terminal", "quiet", "json"])
def test_off_where_nobody_would_see_it(monkeypatch, why):
    terminal = Terminal(Machine())
    console = Console(file=terminal, force_terminal=why != "no terminal", width=80)
    monkeypatch.setattr(output._state, "quiet", why == "quiet")
    with live_bench(console=console, shown=why != "json") as (progress, watch):
        progress(1, 2, "note")
        assert watch is None
    assert terminal.getvalue() == ""


def test_standings_over_builds_leave_dropped_blocks_out():
    machine = Machine()
    arms = [machine.arm("a", MS), machine.arm("b", 3 * MS)]
    samples = measure(arms, options=OPTIONS, clock=machine.clock, probe=machine.probe)
    a, b = standings(samples)
    assert (a.median_ms, a.ratio, b.median_ms, b.ratio) == (1.0, 1.0, 3.0, 3.0)
    assert (a.blocks, b.blocks, a.dirty + b.dirty) == (len(samples.arms[0].blocks), len(samples.arms[1].blocks), 1)


def test_a_dropped_block_does_not_move_the_median():
    blocks = tuple(array("q", [ns]) for ns in (MS, 9 * MS, 9 * MS))
    arm = ArmSamples(name="a", facts=ArmFacts(), blocks=blocks, block_starts_ns=(0, 1, 2), slots=(0, 1, 2))
    quiet = Reading(throttled={"cpu0": 0}, clocks_mhz={}, temperatures_c={}, cooling={})
    readings = tuple(replace(quiet, throttled={"cpu0": count}) for count in (0, 0, 1, 2))
    (a,) = standings(Samples(arms=(arm,), options=OPTIONS, readings=readings))
    assert (a.median_ms, a.blocks, a.dirty) == (1.0, 3, 2)
    (a,) = standings(
        Samples(arms=(replace(arm, slots=(1, 2, 3)),), options=OPTIONS, readings=(*readings, readings[-1]))
    )
    assert (a.median_ms, a.dirty) == (9.0, 2)
    none = standings(Samples(arms=(replace(arm, blocks=(), block_starts_ns=(), slots=()),), options=OPTIONS))
    assert none[0].median_ms is None


def test_measuring_with_a_display_takes_the_same_samples():
    quiet, shown = Machine(), Machine()
    plain = measure([quiet.arm("a", MS), quiet.arm("b", 2 * MS)], options=OPTIONS, clock=quiet.clock, probe=quiet.probe)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    assert run(shown, console, a=MS, b=2 * MS) == plain


def test_off_a_terminal_the_time_is_said_once(capsys):
    output.start(quiet=False)
    machine = Machine()
    with live_bench() as (progress, watch):
        measure(
            [machine.arm("a", MS), machine.arm("b", 2 * MS)], options=OPTIONS, progress=progress, clock=machine.clock
        )
    assert watch is None
    assert capsys.readouterr().err == "measuring takes about 2 s\n"
    output.start(quiet=True)
    with live_bench() as (progress, _):
        progress(0, 16)
    assert capsys.readouterr().err == ""
