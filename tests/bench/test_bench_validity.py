from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sysfs import CONTAINER_GPUS, MHZ, MODELS, NODE, OFFLINE, FakeHeat, FakeJetson

from msn_deploy.bench import MeasureOptions, Profile, compare, measure
from msn_deploy.bench.measure import Arm
from msn_deploy.bench.result import BenchResult
from msn_deploy.bench.validity import block_causes, judge
from msn_deploy.core.errors import InvalidMeasurement
from msn_deploy.machine.checks import Host, checks
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.state import Probe, clocks_pinned, pinned_mhz, read_power_mode

OPTIONS = MeasureOptions(seconds=0.5, block_ms=10, warmup_seconds=0.01, warmup_queries=5, settle_queries=0)
KINDS = sorted(MODELS)


def bench_on(board: FakeJetson, script: Callable[[float], None]) -> BenchResult:
    """Measure two arms on a board to which `script` happens, called with the share of blocks begun."""
    begun = [0]
    blocks = 2 * 2 * 25

    def progress(done: float, total: float, note: str = "") -> None:
        if note.startswith("round"):
            script(begun[0] / blocks)
            begun[0] += 1

    arms = [board.arm("a", ms=1.0, watts=9), board.arm("b", ms=2.0, watts=9)]
    samples = measure(arms, options=OPTIONS, clock=board.clock, probe=Probe(board.root), progress=progress)
    assert begun[0] == blocks
    return compare(
        samples,
        baseline="a",
        environment=read_environment(board.root),
        profile=Profile(provider="cpu"),
        pinned_mhz=pinned_mhz(board.root),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_calm_board_is_valid_and_described(kind: str, tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, kind)
    result = bench_on(board, lambda share: None)
    assert result.validity.valid
    assert result.validity.dirty_blocks == 0
    found = result.environment
    assert found.machine == MODELS[kind]
    assert found.power_mode == "MAXN_SUPER (id 2)"
    assert found.clocks_pinned is True
    assert found.gpu_limits_mhz == (1020, 1020)
    assert found.l4t == "36.4.3"
    assert found.gpu == NODE[kind] or found.gpu == "gpu-gpc-0"
    before = result.states["before"]
    zones = {zone for zone in board.heat.zones if zone != OFFLINE}
    assert set(before) == {f"{zone} °C" for zone in zones} | {
        "cpu_mhz",
        "gpu_mhz",
        "emc_mhz",
        "throttle events",
        "load",
    }
    assert (before["gpu_mhz"], before["emc_mhz"], before["cpu_mhz"]) == (1020, 3199, 1728)
    assert result.states["during"]["cpu-thermal °C"] == [55.5, 55.5]


def at_one_time(set_to: Callable[[bool], None], start: float, end: float) -> Callable[[float], None]:
    return lambda share: set_to(start <= share < end)


THROTTLES = {
    "gpu clock below 75% of 1020 MHz": lambda board: lambda on: board.set_gpu((306 if on else 1020) * MHZ),
    "gpu-thermal at its throttling trip point": lambda board: (
        lambda on: board.heat.set_celsius("gpu-thermal", 110 if on else 52)
    ),
    "gpu-throttle-alert is cooling by slowing down": lambda board: (
        lambda on: board.heat.set_state("gpu-throttle-alert", int(on))
    ),
}


@pytest.mark.parametrize("kind", ["agx-orin", "orin-nano", "thor"])
@pytest.mark.parametrize("cause", THROTTLES)
def test_a_throttled_board_loses_whole_blocks_and_says_why(kind: str, cause: str, tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, kind)
    result = bench_on(board, at_one_time(THROTTLES[cause](board), 0.5, 0.55))
    assert result.validity.causes == {cause: 6}  # five blocks, and one before that ended in it
    assert result.validity.valid
    assert sum(sum(why is not None for why in arm.block_causes) for arm in result.arms) == 6
    assert all(why in (None, cause) for arm in result.arms for why in arm.block_causes)
    assert result.arms[1].ratio == pytest.approx(2.0, rel=0.02)
    board = FakeJetson(tmp_path / "longer", kind)
    result = bench_on(board, at_one_time(THROTTLES[cause](board), 0.5, 0.7))
    assert (result.validity.valid, result.validity.dirty_blocks, result.validity.blocks) == (False, 21, 100)
    for word in ("21 of 100 blocks", "10%", cause, "jetson_clocks"):
        assert word in result.validity.message
    assert len(result.validity.message.splitlines()) <= 3


def test_over_current_events_are_counted_where_they_happen(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    result = bench_on(board, lambda share: board.set_events(4 + (share >= 0.3) + (share >= 0.6)))
    assert result.validity.causes == {"oc1_event_cnt: throttle events counted": 2}


def test_a_dirty_block_touches_no_number(tmp_path: Path) -> None:
    """Queries take ten times as long while the GPU is throttled; nothing of that is left."""
    board = FakeJetson(tmp_path, "agx-orin")
    slow = [False]

    def set_to(on: bool) -> None:
        slow[0] = on
        board.set_gpu((306 if on else 1020) * MHZ)

    def arm(name: str, ms: float) -> Arm:
        def run() -> None:
            board.now += round(1e6 * ms * (10 if slow[0] else 1))

        return Arm(name=name, run=run)

    board.arm = lambda name, ms, watts: arm(name, ms)
    result = bench_on(board, at_one_time(set_to, 0.2, 0.28))
    first, second = result.arms
    assert (first.median_ms, first.p90_ms, first.p99_ms) == (1.0, 1.0, None)
    assert max(max(block) for block in first.samples_ns) == 10_000_000
    assert (second.ratio, *second.ratio_interval) == pytest.approx((2.0, 2.0, 2.0))


def test_clocks_that_float_are_held_against_their_own_median(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor", pinned=False)
    assert clocks_pinned(board.root) is False
    assert pinned_mhz(board.root) == {}
    board.set_gpu(600 * MHZ)
    result = bench_on(board, at_one_time(lambda on: board.set_gpu((400 if on else 600) * MHZ), 0.5, 0.55))
    assert result.validity.causes == {"gpu clock below 75% of 600 MHz": 6}


def test_pinned_clocks_that_are_low_from_the_start_are_not_taken_for_usual(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    board.set_gpu(306 * MHZ)
    with pytest.raises(InvalidMeasurement, match=r"0 of 25 rounds.*throttled"):
        bench_on(board, lambda share: None)


def test_a_fan_that_runs_and_a_device_that_was_cooling_before_are_no_cause(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    board.heat.set_state("gpu-throttle-alert", 1)
    assert bench_on(board, lambda share: None).validity.dirty_blocks == 0


# Heat that slows nothing down


@pytest.mark.parametrize("kind", ["agx-orin", "orin-nano"])
def test_an_orin_at_75_degrees_whose_case_is_hot_is_valid(kind: str, tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, kind)
    for zone in ("cpu-thermal", "gpu-thermal", "tj-thermal"):
        board.heat.set_celsius(zone, 75)
    begun = [0]

    def toggle(share: float) -> None:
        board.heat.set_state("hot-surface-alert", begun[0] % 2)  # as it does all the time at that heat
        begun[0] += 1

    result = bench_on(board, toggle)
    assert (result.validity.valid, result.validity.dirty_blocks, result.validity.causes) == (True, 0, {})
    assert result.states["during"]["cpu-thermal °C"] == [75, 75]


# Kind of machine; what is hot; which devices work; what of it slows the machine down.
WARM = {
    "a warm Nano": ("nano", {"AO-therm": 72, "CPU-therm": 90, "PLL-therm": 75}, {"gpu-scaling": 4, "GPU-cap": 1}, None),
    "a Nano whose DRAM is refreshed more often": ("nano", {"PLL-therm": 71}, {"tegra-dram": 1}, None),
    "a Nano that throttles": ("nano", {"CPU-therm": 97}, {}, "CPU-therm at its throttling trip point"),
    "a Nano that throttles its GPU": ("nano", {}, {"gpu-balanced": 1}, "gpu-balanced is cooling by slowing down"),
    "a Nano throttled by the chip": ("nano", {}, {"tegra_heavy": 1}, "tegra_heavy is cooling by slowing down"),
    "a Xavier whose fan runs": ("xavier-nx", {"cpu-thermal": 80}, {"pwm-fan": 3}, None),
    "an Orin below its trip point": ("agx-orin", {"cpu-thermal": 98.5, "tj-thermal": 98.5}, {"pwm-fan": 3}, None),
    "an Orin that throttles": ("agx-orin", {"cpu-thermal": 99}, {}, "cpu-thermal at its throttling trip point"),
    "an Orin whose clock is held": ("agx-orin", {}, {"cpufreq-cpu4": 3}, "cpufreq-cpu4 is cooling by slowing down"),
    "a Thor at 108 degrees": ("thor", {"tj-thermal": 108.9, "gpu-thermal": 108.9}, {"pwm-fan": 4}, None),
    "a Thor that throttles": ("thor", {"gpu-thermal": 109}, {}, "gpu-thermal at its throttling trip point"),
    "a Thor whose clock is held": (
        "thor", {}, {"devfreq-gpu-gpc-0": 18}, "devfreq-gpu-gpc-0 is cooling by slowing down"
    ),
    "a laptop with fans and a screen": (
        "laptop", {"acpitz": 75, "x86_pkg_temp": 90, "iwlwifi_1": 60}, {"Fan": 1, "LCD": 20, "TCC Offset": 10}, None
    ),
    "a laptop that throttles": ("laptop", {"acpitz": 80}, {}, "acpitz at its throttling trip point"),
    "a laptop slowed by thermald": (
        "laptop", {}, {"intel_powerclamp": 20}, "intel_powerclamp is cooling by slowing down"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WARM)
def test_heat_counts_by_the_devices_that_a_trip_point_drives(case: str, tmp_path: Path) -> None:
    kind, zones, devices, cause = WARM[case]
    heat = FakeHeat(tmp_path, kind)
    probe = Probe(tmp_path)
    before = probe()
    for zone, celsius in zones.items():
        heat.set_celsius(zone, celsius)
    for device, state in devices.items():
        heat.set_state(device, state)
    assert block_causes([before, probe()]) == [cause]


def test_a_trip_point_without_a_device_slows_nothing_down(tmp_path: Path) -> None:
    heat = FakeHeat(tmp_path, "agx-orin")
    for link in heat.root.glob("thermal_zone*/cdev*"):
        link.unlink()
    heat.set_celsius("cpu-thermal", 103)
    heat.set_state("hot-surface-alert", 1)
    assert (Probe(tmp_path)().trips, set(Probe(tmp_path)().cooling.values())) == ((), {0})


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    reading = Probe(tmp_path)()
    assert (reading.clocks_mhz, reading.temperatures_c, reading.throttled, reading.load) == ({}, {}, {}, None)
    assert block_causes([reading, reading]) == [None]
    assert (read_power_mode(tmp_path).title, clocks_pinned(tmp_path)) == (None, None)


def test_damaged_files_never_raise(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    probe = Probe(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00nonsense")
    assert probe().clocks_mhz == {}
    assert Probe(board.root)().temperatures_c == {}
    assert read_power_mode(tmp_path).title is None
    read_environment(tmp_path)


def test_one_tenth_is_allowed_and_no_more() -> None:
    assert judge(["hot"] * 10 + [None] * 90).valid
    assert not judge(["hot"] * 11 + [None] * 89).valid


def test_counters_of_a_workstation(tmp_path: Path) -> None:
    core = tmp_path / "sys/devices/system/cpu/cpu0"
    (core / "thermal_throttle").mkdir(parents=True)
    (core / "thermal_throttle/package_throttle_count").write_text("7\n")
    before = Probe(tmp_path)()
    (core / "thermal_throttle/package_throttle_count").write_text("9\n")
    assert block_causes([before, before, Probe(tmp_path)()]) == [None, "cpu0 package_throttle: throttle events counted"]


@pytest.mark.parametrize("gpu", sorted(CONTAINER_GPUS))
def test_a_container_that_hides_the_device_tree_is_judged_alike(gpu: str, tmp_path: Path) -> None:
    """In most containers `device/of_node` leads nowhere; throttling has to be seen there too."""
    board = FakeJetson(tmp_path, "agx-orin", gpu=gpu, gpu_mhz=918)
    doctor = {each.name: each for each in checks(Host(root=tmp_path, installed=lambda name: None))}
    assert doctor["clocks"].found == "pinned, GPU at 918 MHz"
    result = bench_on(board, at_one_time(lambda on: board.set_gpu((306 if on else 918) * MHZ), 0.5, 0.55))
    assert result.validity.causes == {"gpu clock below 75% of 918 MHz": 6}
    found = result.environment
    assert (found.gpu, found.clocks_pinned, found.gpu_limits_mhz) == (CONTAINER_GPUS[gpu], True, (918, 918))
    assert result.states["before"]["gpu_mhz"] == 918
    assert pinned_mhz(tmp_path) == {"gpu": 918}
