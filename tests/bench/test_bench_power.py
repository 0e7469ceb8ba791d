from __future__ import annotations

from pathlib import Path

import pytest
from fake_sysfs import WHOLE, FakeJetson
from test_bench_load import Server, ServerLane

from msn_deploy.bench.load import QueuedLoad
from msn_deploy.bench.measure import Arm
from msn_deploy.bench.power import MIN_UPDATES, measure_energy
from msn_deploy.core.errors import InvalidMeasurement, MissingDevice
from msn_deploy.machine.state import find_sensor


def energies(board: FakeJetson, seconds: float = 3.0, **arms: tuple[float, float]) -> dict:
    sensor = find_sensor(board.root)
    made = [board.arm(name, ms=ms, watts=watts) for name, (ms, watts) in arms.items()]
    return dict(measure_energy(made, sensor, seconds=seconds, clock=board.clock, sleep=board.sleep))


@pytest.mark.parametrize("kind", WHOLE)
def test_a_known_wattage_gives_known_millijoules_above_idle(kind: str, tmp_path: Path) -> None:
    found = energies(FakeJetson(tmp_path, kind), light=(2.0, 7.0), heavy=(5.0, 14.0))
    # Every third query takes 1 % more; idle is 4 W.
    assert found["light"].mj == pytest.approx((7 - 4) * 2.0 * (1 + 0.01 / 3), rel=0.01)
    assert found["heavy"].mj == pytest.approx((14 - 4) * 5.0 * (1 + 0.01 / 3), rel=0.01)
    for each in found.values():
        assert each.interval_mj[0] <= each.mj <= each.interval_mj[1]
        assert each.interval_mj[1] - each.interval_mj[0] < 0.02 * each.mj
        assert each.rail == " + ".join(WHOLE[kind])
        # The INA3221 tells its period, the INA238 averages for 16 x 3 x 1.052 ms.
        assert (each.sensor_period_ms, each.idle_w) == (50.496 if kind == "thor" else 20, pytest.approx(4.0))
        assert MIN_UPDATES <= each.updates <= 3.0 / 0.020  # each update is read once, however short a query
        assert each.source == "on-module sensor, indicative"


def test_under_load_the_energy_is_that_of_a_query_among_several(tmp_path: Path) -> None:
    """Two at a time take 8 ms each, and 10 W: a query is 4 ms of that."""
    board = FakeJetson(tmp_path, "orin-nano")
    server = Server(8_000_000, at_once=2)

    class BoardLane(ServerLane):
        def collect(self) -> None:
            board.set_watts(10.0)
            server.now = max(server.now, board.now)
            super().collect()
            board.now = server.now

    load = QueuedLoad([BoardLane(server) for _ in range(2)])
    sensor = find_sensor(board.root)

    def sleep(seconds: float) -> None:
        board.sleep(seconds)
        server.now = board.now

    arm = Arm(name="a", run=lambda: None, load=load)
    found = measure_energy([arm], sensor, seconds=3.0, clock=board.clock, sleep=sleep)["a"]
    assert found.mj == pytest.approx((10 - 4) * 4.0, rel=0.02)


def test_the_interval_is_as_wide_as_the_windows_differ(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor")
    calm = energies(board, a=(2.0, 10.0))["a"]

    def restless() -> None:
        watts = 10.0 + board.now // 10**9 % 3
        if board.drawing != watts:
            board.set_watts(watts)
        board.now += 2_000_000

    sensor = find_sensor(board.root)
    wild = measure_energy([Arm(name="a", run=restless)], sensor, seconds=3.0, clock=board.clock, sleep=board.sleep)["a"]
    assert wild.interval_mj[1] - wild.interval_mj[0] > 20 * (calm.interval_mj[1] - calm.interval_mj[0])


def test_what_a_sensor_that_averages_still_holds_of_the_time_before_is_left_out(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor")
    rested = [0]

    def sleep(seconds: float) -> None:
        board.sleep(seconds)
        rested[0] = board.now

    def run() -> None:
        if board.drawing == 4.0 and board.now - rested[0] > 40_000_000:  # seen two updates late
            board.set_watts(10.0)
        board.now += 2_000_000

    sensor = find_sensor(board.root)
    found = measure_energy([Arm(name="a", run=run)], sensor, seconds=3.0, clock=board.clock, sleep=sleep)["a"]
    assert found.busy_w == pytest.approx(10.0)
    assert found.mj == pytest.approx(12.0, rel=0.001)


@pytest.mark.parametrize(
    ("kind", "without"),
    [("orin-nano", "VDD_IN"), ("agx-orin", "VIN_SYS_5V0"), ("agx-orin", "VDD_GPU_SOC"), ("thor", "VIN")],
)
def test_a_missing_rail_is_named_and_no_part_is_sold_as_the_whole(kind: str, without: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDevice, match=rf"rail {without} is missing among .*VDD") as caught:
        find_sensor(FakeJetson(tmp_path, kind, without=without).root)
    assert "--energy" in str(caught.value)


def test_a_machine_without_a_sensor(tmp_path: Path) -> None:
    with pytest.raises(MissingDevice, match="INA3221"):
        find_sensor(tmp_path)


def test_a_driver_that_hides_its_period(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "agx-orin")
    for path in board.root.rglob("update_interval"):
        path.unlink()
    with pytest.raises(MissingDevice, match="update_interval"):
        find_sensor(board.root)


# Thor: an INA238 beside the INA3221


def hwmon_of(board: FakeJetson, chip: str) -> Path:
    return next(path.parent for path in board.root.glob("sys/bus/i2c/devices/*/name") if chip in path.read_text())


def test_vin_of_thor_is_read_in_microwatts_from_its_own_chip(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor")
    board.set_watts(61.25)
    sensor = find_sensor(board.root)
    assert (sensor.rail, sensor.watts()) == ("VIN", 61.25)
    assert [path.name for files in sensor.files for path in files] == ["power1_input"]


def test_the_period_is_that_of_the_chip_that_is_read(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor", update_ms=400)  # of the INA3221, which energy does not need there
    assert find_sensor(board.root).period_s == pytest.approx(0.0505, abs=1e-4)
    (next(board.root.glob("sys/bus/i2c/devices/1-0041/hwmon/hwmon*")) / "update_interval").write_text("131\n")
    assert find_sensor(board.root).period_s == 0.131  # later kernels tell it


def test_a_label_of_the_channel_serves_where_the_chip_has_none(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor")
    hwmon = next(board.root.glob("sys/bus/i2c/devices/1-0041/hwmon/hwmon*"))
    (hwmon / "label").rename(hwmon / "in1_label")
    assert find_sensor(board.root).rail == "VIN"


@pytest.mark.parametrize("chip", ["ina3221", "ina238"])
def test_a_thor_that_shows_one_of_its_chips_alone(chip: str, tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "thor")
    (hwmon_of(board, "ina238" if chip == "ina3221" else "ina3221") / "name").write_text("tmp451\n")
    if chip == "ina238":
        assert find_sensor(board.root).rail == "VIN"
        return
    with pytest.raises(MissingDevice, match="rail VIN is missing among VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0"):
        find_sensor(board.root)


def test_the_sensor_of_jetpack_4_has_other_files(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/i2c/devices/6-0040"
    (device / "iio:device0").mkdir(parents=True)
    (device / "name").write_text("ina3221x\n")
    for name, content in {"rail_name_0": "POM_5V_IN", "in_voltage0_input": "4976", "in_current0_input": "600"}.items():
        (device / "iio:device0" / name).write_text(f"{content}\n")
    with pytest.raises(MissingDevice, match=r"shows no rail of one\.\n.*JetPack 4"):
        find_sensor(tmp_path)


def test_a_run_too_short_for_the_sensor_is_refused_before_it_and_says_how_long_is_enough(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano", update_ms=100)
    with pytest.raises(InvalidMeasurement, match=r"one per 100 ms.*needs 30") as caught:
        energies(board, seconds=2.0, a=(2.0, 7.0))
    assert board.now == 0
    enough = float(str(caught.value).split("--seconds ")[1].rstrip("`."))
    assert energies(board, seconds=enough, a=(2.0, 7.0))["a"].updates >= MIN_UPDATES


@pytest.mark.parametrize("ms", [120.0, 900.0])
def test_queries_longer_than_an_update_are_refused_if_too_few_updates_are_seen(ms: float, tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    with pytest.raises(InvalidMeasurement, match=r"(?s)query takes.*--seconds"):
        energies(board, seconds=3.0, a=(ms, 7.0))


def test_a_sensor_that_vanishes_meanwhile(tmp_path: Path) -> None:
    board = FakeJetson(tmp_path, "orin-nano")
    sensor = find_sensor(board.root)
    sensor.files[0][1].unlink()
    with pytest.raises(MissingDevice, match="stopped answering"):
        sensor.watts()


def test_bench_of_a_file_on_a_board_has_energy_validity_and_a_machine(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from msn_deploy.bench import MeasureOptions, from_json, to_json
    from msn_deploy.pipeline.bench import bench

    given, made = (onnx.helper.make_tensor_value_info(name, 1, [1, 1, 8, 8]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "tiny", [given], [made])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "tiny.onnx")
    board = FakeJetson(tmp_path / "root", "orin-nano", update_ms=5)
    options = MeasureOptions(seconds=0.5, block_ms=5, warmup_seconds=0.01)
    result = bench([tmp_path / "tiny.onnx"], threads=1, builds=2, energy=True, options=options, root=board.root)
    assert result.environment.power_mode == "MAXN_SUPER (id 2)"
    assert (result.validity.valid, result.arms[0].builds) == (True, 2)
    assert result.validity.blocks == result.arms[0].blocks
    energy = result.arms[0].energy
    assert energy.rail == "VDD_IN"
    assert energy.busy_w == pytest.approx(4.0)
    assert energy.mj == pytest.approx(0.0, abs=1e-6)  # the board draws the same at work and at rest
    assert from_json(to_json(result)).arms[0].energy == energy
