"""`--tune latency`: slow layers are found on a simulated machine, where the truth is known, and let out of files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from trt_standin import Release

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import GateError, InputError, InvalidMeasurement, MissingDependency, MissingDevice
from msn_deploy.core.progress import silent
from msn_deploy.engine import BuildOptions, what_machine
from msn_deploy.engine.build import choose_site
from msn_deploy.engine.cuda import Wait
from msn_deploy.machine.state import Reading
from msn_deploy.machine.targets import find_target
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline import build, tune
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.calibrate import CalibrationOptions, calibrate
from msn_deploy.pipeline.fp16 import cast, cast_to_fp16
from msn_deploy.pipeline.tune import EngineSite, engines_for, find_slow

GAINS = {"a": -0.3, "b": 0.06, "c": -0.02, "d": 0.0, "e": 0.09, "f": -0.1}


class Machine:
    """A clock that queries move on. gains: what leaving a layer out saves, as a share of the whole time.

    Each query has noise of its own; spells of seconds slow all down; the machine drifts; each load is a bit faster or
    slower than others, for good. together: what is saved with all layers of `gains` out, if that is not the sum.
    """

    def __init__(
        self,
        gains: Mapping[str, float],
        *,
        seed: int = 0,
        load: float = 0.01,
        query_ms: float = 4.0,
        together: Any = None,
    ) -> None:
        self.gains, self.spread, self.query_ns, self.together = gains, load, 1e6 * query_ms, together
        self.draw = random.Random(seed)
        self.now, self.until, self.spell = 0.0, 0.0, 1.0
        self.loads = self.open = self.most_open = 0

    def clock(self) -> int:
        return int(self.now)

    @contextmanager
    def load(self, left_out: Sequence[str]) -> Iterator[Callable[[], object]]:
        saved = sum(self.gains[each] for each in left_out)
        if self.together is not None and len(left_out) > 1:
            saved = self.together
        level = self.query_ns * (1 - saved) * math.exp(self.draw.gauss(0, self.spread))

        def query() -> None:
            if self.now >= self.until:
                self.until = self.now + 1e9 * self.draw.expovariate(2)
                self.spell = self.draw.choice([1.0, 1.0, self.draw.uniform(1.05, 1.6)])
            drift = 1 + 0.2 * math.sin(self.now / 2e10)
            self.now += level * self.spell * drift * math.exp(self.draw.gauss(0, 0.03))

        self.loads += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        yield query
        self.open -= 1

    def find(self, **options: Any) -> tune.SlowLayers:
        return find_slow(list(self.gains), self.load, clock=self.clock, **options)


@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_layers_that_are_slow_in_int8_are_let_out(seed: int) -> None:
    machine = Machine(GAINS, seed=seed)
    found = machine.find(seed=seed)
    assert found.let_out == found.slow == ("b", "e")
    assert found.together is not None
    assert found.together.ratio == pytest.approx(0.85, abs=0.03)
    assert {name: ratio.verdict for name, ratio in found.times.items() if name in "abe"} == {
        "a": "SLOWER", "b": "FASTER", "e": "FASTER",
    }  # fmt: skip
    assert found.times["a"].ratio == pytest.approx(1.3, abs=0.05)


def test_twenty_runs_in_which_no_layer_matters_let_out_nothing() -> None:
    looked_again = 0
    for seed in range(20):
        machine = Machine(dict.fromkeys("abcde", 0.0), seed=seed, load=0.02, query_ms=10.0)
        assert machine.find(seed=seed).let_out == ()
        looked_again += machine.loads > 6
    assert looked_again > 10  # the first step alone would have let out layers


def test_every_step_loads_its_models_anew_and_few_at_a_time() -> None:
    machine = Machine({**GAINS, "c": -0.1, "d": -0.1})
    machine.find()
    assert machine.loads == 7 + 5 * 3 + 5 * 2
    assert machine.open == 0
    many = Machine({f"layer {at}": -0.1 for at in range(40)})
    assert many.find().slow == ()
    assert (many.most_open, many.loads) == (20, 40 + 3)


def test_layers_that_are_slow_alone_and_not_together_stay() -> None:
    found = Machine(GAINS, together=-0.1).find()
    assert (found.slow, found.let_out) == (("b", "e"), ())
    assert found.together is not None
    assert found.together.verdict == "SLOWER"


def test_layers_that_the_budget_of_accuracy_needs_stay() -> None:
    asked: list[tuple[str, ...]] = []
    found = Machine(GAINS).find(fits=lambda layers: bool(asked.append(layers)))
    assert (found.slow, found.let_out, asked) == (("b", "e"), (), [("b", "e")])


def test_slow_networks_are_measured_longer() -> None:
    assert Machine({"a": 0.1, "b": -0.1}, query_ms=300.0).find().let_out == ("a",)


def test_a_throttled_machine_is_not_believed() -> None:
    events = iter(range(100_000))

    def probe() -> Reading:
        return Reading(throttled={"cpu": next(events)}, clocks_mhz={}, temperatures_c={}, cooling={})

    with pytest.raises(InvalidMeasurement, match="throttled"):
        Machine(GAINS).find(probe=probe)


NET = """(float[N,4,16,16] x) => (float[N,4,16,16] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    c = Conv<pads=[1,1,1,1]>(s, w2) t = Relu(c) y = Conv<pads=[1,1,1,1]>(t, w3) }"""
WEIGHTS = dict(zip("abcy", ("w0", "w1", "w2", "w3"), strict=True))


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four convolutions a, b, c and y, with feeds beside them."""
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(1)
    model: ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {NET}')
    for name in WEIGHTS.values():
        weight = rng.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "feeds.npz", x=rng.normal(size=(40, 4, 16, 16)).astype(np.float32))
    return tmp_path / "net.onnx"


def out_of_int8(graph: ModelProto) -> list[str]:
    """Return the layers whose weights are floats."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    return [layer for layer, weight in WEIGHTS.items() if f"{weight}_quantized" not in stored]


def out_of_fp16(graph: ModelProto) -> list[str]:
    """Return the layers whose weights are FP32."""
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    return [layer for layer, weight in WEIGHTS.items() if types[weight] == onnx.TensorProto.FLOAT]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Let candidates be timed on a simulated machine, by what is left out in their graphs."""

    def on(left_out: Callable[[ModelProto], list[str]] = out_of_int8, **gains: float) -> Machine:
        machine = Machine(gains)
        monkeypatch.setattr(tune, "loaded", lambda graph, feeds, engines: machine.load(left_out(graph)))
        monkeypatch.setitem(find_slow.__kwdefaults__, "clock", machine.clock)
        return machine

    return on


def tuned(net: Path, **options: Any) -> Any:
    data = str(net.with_name("feeds.npz"))
    return calibrate(net, net.with_name("net.int8.onnx"), data=data, runtime="onnxruntime", tune="latency", **options)


def test_the_file_has_the_slow_layers_in_floats_and_its_table_says_why(
    net: Path, timed: Callable[..., Machine]
) -> None:
    timed(a=-0.2, b=0.1, c=-0.1, y=0.0)
    report = tuned(net)
    assert report.left_out == ("b",)
    assert out_of_int8(onnx.load(report.path)) == ["b"]
    rows = {each.layer: each for each in report.tuning.layers}
    assert [(name, row.precision) for name, row in rows.items()] == [
        ("a", "int8"), ("b", "fp32"), ("c", "int8"), ("y", "int8"),
    ]  # fmt: skip
    assert all(10 < row.sqnr_db < 80 for row in rows.values())
    assert rows["b"].time.ratio == pytest.approx(0.9, abs=0.03)
    assert (report.tuning.slow, report.tuning.let_out) == (("b",), ("b",))
    side = read_sidecar(report.path)
    assert (side.config["tune"], side.facts["left_out"]) == ("latency", ["b"])
    assert side.facts["tuning"]["layers"][1]["time"]["verdict"] == "FASTER"
    assert report.to_dict()["tuning"]["timed_by"].startswith("ONNX Runtime on the CPU, ")


def test_what_is_fast_in_int8_stays_as_a_whole(net: Path, timed: Callable[..., Machine]) -> None:
    timed(a=-0.2, b=-0.1, c=-0.1, y=0.0)
    report = tuned(net)
    plain = calibrate(net, net.with_name("plain.onnx"), data=str(net.with_name("feeds.npz")), runtime="onnxruntime")
    assert (report.left_out, report.tuning.together) == ((), None)
    assert report.path.read_bytes() == plain.path.read_bytes()


def test_tuning_starts_from_the_layers_left_out_for_accuracy(net: Path, timed: Callable[..., Machine]) -> None:
    timed(a=0.1, b=-0.1, c=-0.1, y=0.0)
    by_hand = tuned(net, leave_out=["c"])
    assert by_hand.left_out == ("c", "a")
    rows = {each.layer: each for each in by_hand.tuning.layers}
    assert (rows["c"].time, rows["c"].sqnr_db) == (None, None)
    whole = calibrate(net, net.with_name("plain.onnx"), data=str(net.with_name("feeds.npz")), runtime="onnxruntime")
    within = tuned(net, min_sqnr=whole.parity.sqnr_db + 1)
    assert within.verdict.left_out == within.left_out
    assert within.verdict.kind == "MIXED"
    assert within.verdict.sqnr_db >= within.verdict.min_sqnr_db
    assert "a" in within.left_out
    assert out_of_int8(onnx.load(within.path)) == sorted(within.left_out)


def test_a_network_that_is_slower_in_int8_as_a_whole_is_a_failed_gate(net: Path, timed: Callable[..., Machine]) -> None:
    timed(a=0.1, b=0.1, c=0.1, y=0.1)
    with pytest.raises(GateError, match=r"without INT8 it takes 0\.[56]\d of the time"):
        tuned(net)
    assert not net.with_name("net.int8.onnx").exists()


def test_candidates_run_in_onnx_runtime(net: Path) -> None:
    feeds = [{"x": np.ones((1, 4, 16, 16), np.float32)}] * 2
    with tune.loaded(onnx.load(net), feeds, None) as query:
        (made,) = query()  # type: ignore[misc]
    assert made.shape == (1, 4, 16, 16)


def test_engines_are_built_for_what_is_timed_and_closed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    def build(model: Any, path: Path, *, options: Any, site: Any) -> None:
        path.write_bytes(b"plan")
        log.append(([each.range for each in options.shapes], options.workspace_mib, site))

    def runner(path: Path, wait: Wait) -> Any:
        assert path.read_bytes() == b"plan"
        return SimpleNamespace(run=lambda feeds: log.append((wait, feeds["x"][0])), close=lambda: log.append(path))

    monkeypatch.setattr(tune, "build_engine_file", build)
    monkeypatch.setattr(tune, "preflight", lambda path, plugins: path)
    monkeypatch.setattr(tune, "runner_of", runner)
    site: Any = SimpleNamespace()
    engines = EngineSite(site=site, options=BuildOptions(workspace_mib=64))
    model, shape = onnx.load(net), (1, 4, 16, 16)
    with tune.loaded(model, [{"x": np.full(shape, at)} for at in (0, 1)], engines) as query:
        for _ in range(3):
            query()
    *seen, path = log
    assert seen[0] == ([(shape,) * 3], 64, site)
    assert [(wait, int(given.max())) for wait, given in seen[1:]] == [("spin", 0), ("spin", 1), ("spin", 0)]
    assert not path.exists()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Release]:
    """Let this machine have a GPU and a release of TensorRT."""

    def with_tensorrt(release: str) -> Release:
        trt = Release(release)
        monkeypatch.setattr(tune, "what_machine", lambda: replace(what_machine(), gpu_nodes=("nvidia0",)))
        monkeypatch.setattr(tune, "choose_site", partial(choose_site, backend=trt.backend))
        return trt

    return with_tensorrt


def test_engines_need_a_gpu_and_tensorrt(
    net: Path, device: Callable[[str], Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    device("rtx-1.7.1")
    with pytest.raises(MissingDependency, match=r"here is TensorRT-RTX"):
        engines_for("int8", BuildOptions())
    monkeypatch.setattr(tune, "what_machine", lambda: SimpleNamespace(has_gpu=False))
    with pytest.raises(MissingDevice, match="no GPU is here"):
        calibrate(net, data=str(net.with_name("feeds.npz")), tune="latency")


def test_engines_are_built_as_asked_for_but_of_one_size_and_with_kernels_found_anew(
    net: Path, device: Callable[[str], Release]
) -> None:
    device("10.3.0")
    asked = BuildOptions(precision="fp16", batch=8, opt_batch=2, workspace_mib=64, timing_cache=net, dla=None)
    options = engines_for("fp16", asked).options
    assert options == BuildOptions(workspace_mib=64)


def test_fp16_is_not_tuned_where_tensorrt_chooses_itself_or_has_no_fp32(device: Callable[[str], Release]) -> None:
    device("8.6.1")
    assert engines_for("int8", BuildOptions()).site.backend.version == "8.6.1"
    with pytest.raises(InputError, match="by its own times"):
        engines_for("fp16", BuildOptions())
    device("10.3.0")
    with pytest.raises(InputError, match="a DLA has no FP32"):
        engines_for("fp16", BuildOptions(dla=0))


def tuned_in_fp16(net: Path) -> Any:
    model, data = open_model(net, step="test"), str(net.with_name("feeds.npz"))
    engines = engines_for("fp16", BuildOptions())
    return cast(model, net.with_name("net.fp16.onnx"), data=data, engines=engines, progress=silent)[0]


def test_what_is_slow_in_fp16_stays_in_fp32(
    net: Path, timed: Callable[..., Machine], device: Callable[[str], Release]
) -> None:
    device("10.3.0")
    timed(out_of_fp16, a=-0.2, b=0.1, c=0.08, y=0.0)
    report = tuned_in_fp16(net)
    assert sorted(report.in_fp32 or {}) == out_of_fp16(onnx.load(report.path)) == ["b", "c"]
    assert report.tuning is not None
    assert (report.tuning.precision, report.tuning.let_out) == ("fp16", ("b", "c"))
    assert [each.precision for each in report.tuning.layers] == ["fp16", "fp32", "fp32", "fp16"]
    side = read_sidecar(report.path)
    assert side.facts["tuning"]["slow"] == ["b", "c"]


def test_a_network_that_is_slower_in_fp16_as_a_whole_is_a_failed_gate(
    net: Path, timed: Callable[..., Machine], device: Callable[[str], Release]
) -> None:
    device("10.3.0")
    timed(out_of_fp16, a=0.1, b=0.1, c=0.1, y=0.1)
    with pytest.raises(GateError, match="--precision fp32"):
        tuned_in_fp16(net)
    assert not net.with_name("net.fp16.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_build_engine_hands_its_options_to_what_is_timed(
    net: Path, precision: str, device: Callable[[str], Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, timed = device("10.3.0"), list[EngineSite]()

    def loaded(graph: ModelProto, feeds: Any, engines: EngineSite) -> Any:
        timed.append(engines)
        raise InvalidMeasurement("seen")

    monkeypatch.setattr(tune, "loaded", loaded)
    monkeypatch.setattr(build, "choose_site", tune.choose_site)
    with pytest.raises(InvalidMeasurement, match="seen"):
        build_engine(
            net,
            precision=precision,
            options=BuildOptions(workspace_mib=64),
            data=str(net.with_name("feeds.npz")),
            tune="latency",
        )
    assert [(each.site.backend, each.options.workspace_mib) for each in timed] == [(trt.backend, 64)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "fp32"}, InputError, "`--tune` is for INT8 and FP16"),
        ({"precision": "int8", "options": BuildOptions(target=find_target("orin-nano"))}, MissingDevice, "Run it on"),
    ],
)
def test_an_engine_that_is_not_timed_here_is_not_tuned(
    net: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build_engine(net, tune="latency", **options)


@pytest.mark.parametrize(("precision", "options"), [("fp16", {"tune": "latency"}), ("int8", {"leave_out": ("b",)})])
def test_a_file_of_the_precision_is_as_it_is(
    net: Path,
    precision: str,
    options: dict[str, Any],
    device: Callable[[str], Release],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device("10.3.0")
    monkeypatch.setattr(build, "choose_site", tune.choose_site)
    made, data = net.with_name("typed.onnx"), str(net.with_name("feeds.npz"))
    if precision == "fp16":
        cast_to_fp16(net, made, data=data)
    else:
        calibrate(net, made, data=data)
    with pytest.raises(InputError, match=f"is {precision.upper()} already"):
        build_engine(made, precision=precision, **options)


def test_other_goals_are_refused() -> None:
    with pytest.raises(InputError, match="`--tune speed`"):
        CalibrationOptions(tune="speed")  # type: ignore[arg-type]


def test_the_report_is_json(net: Path, timed: Callable[..., Machine]) -> None:
    timed(a=-0.2, b=0.1, c=-0.1, y=0.0)
    assert json.loads(json.dumps(tuned(net).to_dict()))["tuning"]["let_out"] == ["b"]
