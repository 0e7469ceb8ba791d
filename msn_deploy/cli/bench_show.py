"""What `bench` prints, in 80 columns, and what it shows on a terminal while it measures: a bar and how the arms stand.

The latter is drawn only when it is called, which `measure` does between blocks: no thread draws while a block is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msn_deploy.cli import output
from msn_deploy.core.errors import tamed
from msn_deploy.core.progress import Progress, bars_on, plain_console, silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from msn_deploy.bench import ArmResult, BenchResult, Samples
    from msn_deploy.bench.compare import Standing
    from msn_deploy.bench.measure import Watch
    from msn_deploy.bench.power import Energy
    from msn_deploy.bench.rates import Soak

_GAP = 2  # between columns of a table
_HALF = 40  # of a line, for a name
_LAYERS = 5  # of each model
_LEAST_NAME = 12
_EVERY_S = 0.5
_SHARE = 20  # a drawing that takes long is made rarer, so that it takes at most 1/20 of the time
_LIVE_NAME = 30


def show(result: BenchResult) -> None:
    """Print one row per model, what else was measured, and the conditions."""
    from msn_deploy.bench.profile import in_words

    if result.profile.measures == "rate":
        show_rates(result)
        return
    head = ("model", "median ms", "p90", "p99", "ratio", "95 % interval", "verdict")
    rows = [_row(arm, result) for arm in result.arms]
    # Names that leave no room for the column heads take it from the longest of these.
    if output.room_for_names(rows, head, gap=_GAP) < max(len(arm.name) for arm in result.arms):
        head = ("model", "ms", *head[2:])
    output.show_table(rows, head=head, right=(1, 2, 3, 4), gap=_GAP, spare=(2, 5), least_name=_LEAST_NAME)
    groups: list[list[ArmResult]] = []
    for arm in result.arms:
        group = next((each for each in groups if arm.facts.same_graph(each[0].facts)), None)
        if group is None:
            groups.append([arm])
        else:
            group.append(arm)
    for group in groups:
        if group[1:]:
            names = [output.shortened(arm.name, _HALF) for arm in group]
            output.say_wrapped(f"same graph: {', '.join(names)}; a difference between them is noise, not the network")
    for arm in result.arms:
        if arm.facts.note is not None:
            output.say_wrapped(f"{output.shortened(arm.name, _HALF)}: {arm.facts.note}")
    for arm in result.arms:
        if arm.energy is not None:
            output.say_wrapped(f"{output.shortened(arm.name, _HALF)}: {energy_text(arm.energy)}")
    _show_steadiness(result)
    output.say_wrapped(
        f"{result.profile.name}: {in_words(result.profile, result.environment)}; ratio below 1 is faster; p90 and p99 "
        "are 99 % upper bounds, in ms"
    )
    for arm in result.arms:
        _show_layers(arm)


def _show_steadiness(result: BenchResult) -> None:
    """Say which blocks were dropped, and if this machine is too unsteady."""
    if result.validity.dirty_blocks:
        counted = ", ".join(f"{count} {cause}" for cause, count in result.validity.causes.items())
        output.say_wrapped(f"{result.validity.dirty_blocks} of {result.validity.blocks} blocks dropped: {counted}")
    if result.control is not None and result.control.verdict in ("FASTER", "SLOWER"):
        output.say_wrapped(
            f"control: {output.shortened(result.baseline, _HALF)} against itself came out {result.control.verdict} "
            f"({result.control.ratio:.3f}); this machine is too unsteady for these verdicts"
        )


def show_rates(result: BenchResult) -> None:
    """Print what each model does under load, and the conditions."""
    from msn_deploy.bench.profile import in_words

    head: tuple[str, ...] = ("model", "images/s", "95 % interval", "p50", "p95", "p99", "ratio", "verdict")
    rows = [_rate_row(arm, result) for arm in result.arms]
    if len(rows) == 1:
        rows, head = [row[:-2] for row in rows], head[:-2]
    output.show_table(rows, head=head, right=(1, 2, 3, 4, 5, 6), gap=_GAP, spare=(2, 4, 5), least_name=_LEAST_NAME)
    for arm in result.arms:
        name = output.shortened(arm.name, _HALF)
        for said in rate_parts(arm, batch=result.profile.batch):
            output.say_wrapped(f"{name}: {said}")
    _show_steadiness(result)
    output.say_wrapped(
        f"{result.profile.name}: {in_words(result.profile, result.environment)}; p50 is the median latency under load, "
        "p95 and p99 are 99 % upper bounds, in ms; ratio of times per image: below 1 is faster"
    )


def _rate_row(arm: ArmResult, result: BenchResult) -> tuple[str, ...]:
    assert arm.throughput is not None
    low, high = arm.throughput.rate.interval
    return (
        arm.name,
        _figures(arm.throughput.rate.per_s),
        f"{_figures(low)} to {_figures(high)}",
        *(_figures(ms) for ms in (arm.median_ms, arm.p95_ms, arm.p99_ms)),
        "1" if arm.name == result.baseline else _figures(arm.ratio),
        _verdict(arm, result),
    )


def rate_parts(arm: ArmResult, *, batch: int) -> list[str]:
    """Say what else is known of a model under load, a sentence each."""
    found = arm.throughput
    assert found is not None
    said = []
    if found.alone is not None:
        low, high = found.alone.gain_interval
        said.append(
            f"one at a time {_figures(found.alone.rate.per_s)} images/s ({_figures(found.alone.median_ms)} ms a query, "
            f"{found.alone.threads} threads); {found.in_flight} in flight give {found.alone.gain:.3f} times as many "
            f"({low:.3f} to {high:.3f})"
        )
    if found.usage is not None:
        used = found.usage
        parts = [f"{used.cores:.2f} cores busy", None if used.gpu is None else f"GPU {used.gpu:.0%} busy"]
        memory = (("this process", used.host_mib), ("the GPU", used.device_mib), ("the board", used.shared_mib))
        parts += [f"at most {mib:.0f} MiB of {what}" for what, mib in memory if mib is not None]
        said.append(", ".join(part for part in parts if part))
    if found.stages is not None:
        each = found.stages
        said.append(
            f"copy in {_figures(each.copy_in_ms)}, compute {_figures(each.compute_ms)}, copy out "
            f"{_figures(each.copy_out_ms)}, together {_figures(each.sum_ms)} ms of the GPU for one query alone"
        )
    if arm.energy is not None:
        said.append(f"{arm.energy.mj / batch:.3g} mJ per image; {energy_text(arm.energy)}")
    if found.soak is not None:
        said.append(_soak_text(found.soak))
    return said


def _soak_text(soak: Soak) -> str:
    low, high = soak.sustained.interval
    mode = f" in power mode {soak.power_mode}" if soak.power_mode else ""
    parts = [
        f"soak of {soak.seconds / 60:.3g} min{mode}: {_figures(soak.at_first)} images/s at first, "
        f"{_figures(soak.sustained.per_s)} sustained ({_figures(low)} to {_figures(high)})",
        "the machine told of no throttling"
        if soak.throttled_after_s is None
        else f"throttled from {soak.throttled_after_s / 60:.3g} min on ({soak.throttled_by})",
        None if soak.slower_after_s is None else f"slower by 5 % from {soak.slower_after_s / 60:.3g} min on",
        None if soak.hottest_c is None else f"at most {soak.hottest_c:.0f} \N{DEGREE SIGN}C",
    ]
    for name in sorted({name for each in soak.points for name in each.clocks_mhz}):
        found = [each.clocks_mhz[name] for each in soak.points if name in each.clocks_mhz]
        parts.append(f"{name} {min(found):.0f} to {max(found):.0f} MHz")
    return "; ".join(part for part in parts if part)


def energy_text(energy: Energy) -> str:
    """Say what a query costs, and where that was read."""
    low, high = energy.interval_mj
    return (
        f"{energy.mj:.3g} mJ per query ({low:.3g} to {high:.3g}) above {energy.idle_w:.2f} W idle; {energy.rail}, a "
        f"value per {energy.sensor_period_ms:g} ms; {energy.source}"
    )


def _row(arm: ArmResult, result: BenchResult) -> tuple[str, ...]:
    low, high = arm.ratio_interval
    return (
        arm.name,
        *(_figures(ms) for ms in (arm.median_ms, arm.p90_ms, arm.p99_ms)),
        "1" if arm.name == result.baseline else _figures(arm.ratio),
        "" if arm.name == result.baseline else f"{_figures(low)} to {_figures(high)}",
        _verdict(arm, result),
    )


def _verdict(arm: ArmResult, result: BenchResult) -> str:
    if arm.name == result.baseline:
        return "baseline"
    baseline = next(each for each in result.arms if each.name == result.baseline)
    return "same graph" if arm.facts.same_graph(baseline.facts) else arm.verdict


def _show_layers(arm: ArmResult) -> None:
    from msn_deploy.bench.layers import roofline_parts

    profile = arm.layers
    if profile is None:
        return
    output.say("")
    name = output.shortened(arm.name, _HALF)
    output.say_wrapped(", ".join([f"{name}: {len(profile.layers)} layers", *roofline_parts(profile, arm.median_ms)]))
    shown = profile.slowest(_LAYERS)
    rows = [
        (
            layer.name,
            output.shortened(layer.operator, 20),
            f"{layer.us:.1f}",
            f"{layer.share:.1%}",
            layer.precision or "-",
            str(max(1, len(layer.fused_from))),
        )
        for layer in shown
    ]
    rest = len(profile.layers) - len(shown)
    if rest:
        us, share = profile.total_us - sum(layer.us for layer in shown), 1 - sum(layer.share for layer in shown)
        rows.append((f"{rest} others", "", f"{us:.1f}", f"{share:.1%}", "", ""))
    head = ("layer", "operator", "us", "share", "reads", "nodes")
    output.show_table(rows, head=head, right=(2, 3, 5), gap=_GAP, spare=(5, 4), least_name=_LEAST_NAME)


def _figures(value: float | None) -> str:
    """Write a number with three decimals, fewer where it is large: at most six characters up to 10,000."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 100 else 2 if value < 1000 else 1}f}"


@contextmanager
def live_bench(
    *, shown: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[Progress, Watch | None]]:
    """Yield what `measure` calls with its progress and with its samples.

    Off a terminal only the time that it takes is said; with `--quiet` nothing is. shown: False shows nothing anyway.
    console: to draw on, stderr's if None. clock: in seconds.
    """
    on_terminal = sys.stderr.isatty() if console is None else console.is_terminal
    if not shown or output.is_quiet():
        yield silent, None
        return
    if not on_terminal:
        yield _time_told(), None
        return
    from rich.console import Group
    from rich.live import Live

    from msn_deploy.bench.compare import standings

    console = console or plain_console(stderr=True)
    bars = bars_on(console, auto_refresh=False)
    task = bars.add_task("", total=None)
    table: list[Table] = []
    due, looking_s = clock(), 0.0

    def watch(taken: Callable[[], Samples]) -> None:
        """Look at the samples if it is time; `progress`, which is called right after, draws."""
        nonlocal looking_s
        start = clock()
        if start >= due:
            table[:] = [_live_table(standings(taken()))]
            looking_s = clock() - start

    def progress(done: float, total: float, note: str = "") -> None:
        nonlocal due, looking_s
        bars.update(task, completed=done, total=total, description=tamed(note))
        start = clock()
        if start >= due:
            live.update(Group(bars.get_renderable(), *table), refresh=True)
            due = start + max(_EVERY_S, _SHARE * (looking_s + clock() - start))
            looking_s = 0.0

    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield progress, watch


def _time_told() -> Progress:
    """Return a Progress that says once, at the start, how long it takes."""
    said = False

    def progress(done: float, total: float, note: str = "") -> None:
        nonlocal said
        if not said:
            said = True
            output.note(f"measuring takes about {total:.0f} s")

    return progress


def _live_table(rows: list[Standing]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for at, title in enumerate(("model", "median ms", "ratio", "blocks", "dropped")):
        table.add_column(title, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            tamed(output.shortened(row.name, _LIVE_NAME)),
            "-" if row.median_ms is None else f"{row.median_ms:.3f}",
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            str(row.blocks),
            str(row.dirty),
        )
    return table
