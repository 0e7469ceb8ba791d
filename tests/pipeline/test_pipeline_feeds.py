"""Networks that take no images, or more than one thing, are calibrated, cast and judged on arrays from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.engine import load_runner
from msn_deploy.model.opened import with_info
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.fp16 import cast_to_fp16
from msn_deploy.pipeline.verify import verify_folder

F = np.float32


def drawn(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.1, 0.3, shape).astype(F)


def saved(folder: Path, text: str, opset: int = 17, **constants: Any) -> Path:
    model: ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model, full_check=True)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


AUDIO = """(float[1,2,64] wave) => (float[1,5] y) {
    c = Conv(wave, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, v) }"""
POINTS = (
    "(float[32,3] points) => (float[8] y) { h = MatMul(points, w) r = Relu(h) y = ReduceMax<axes=[0], keepdims=0>(r) }"
)
STEREO = """(float[1,3,8,8] left, uint8[1,3,8,8] right)
        => (float[1,4,8,8] cost, int64[1,8,8] best, float[1,4,8,8] gate) {
    b = Cast<to=1>(right) d = Div(b, k) s = Add(left, d) cost = Conv<pads=[1,1,1,1]>(s, w)
    best = ArgMax<axis=1, keepdims=0>(cost) gate = Sigmoid(cost) }"""
CAMERA = """(uint8[N,8,8,3] frames) => (float[N,4,8,8] y, int64[N,8,8] best) {
    b = Cast<to=1>(frames) t = Transpose<perm=[0,3,1,2]>(b) d = Div(t, k) y = Conv<pads=[1,1,1,1]>(d, w)
    best = ArgMax<axis=1, keepdims=0>(y) }"""
BYTES = np.random.default_rng(1).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "audio": (AUDIO, {"w": drawn(6, 2, 5), "v": drawn(6, 5)}, {"wave": drawn(24, 2, 64)}),
    "points, without a batch": (POINTS, {"w": drawn(3, 8)}, {"points": drawn(24, 32, 3)}),
    "volume": (
        "(float[1,1,6,6,6] x) => (float[1,2,4,4,4] y) { y = Conv(x, w) }", {"w": drawn(2, 1, 3, 3, 3)},
        {"x": drawn(24, 1, 6, 6, 6)},
    ),
    "MLP": (
        "(float[N,7] x) => (float[N,3] y) { y = Gemm(x, w, b) }", {"w": drawn(7, 3), "b": drawn(3)},
        {"x": drawn(24, 7)},
    ),
    "two inputs of two types, three outputs": (
        STEREO, {"w": drawn(4, 3, 3, 3), "k": F(255)}, {"left": drawn(24, 3, 8, 8), "right": BYTES},
    ),
    "a camera's bytes": (CAMERA, {"w": drawn(4, 3, 3, 3), "k": F(255)}, {"frames": BYTES.transpose(0, 2, 3, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["npz", "folder"])
def test_any_network_is_calibrated_and_cast_on_feeds(tmp_path: Path, kind: str, form: str) -> None:
    text, constants, feeds = KINDS[kind]
    path = saved(tmp_path, text, **constants)
    data = tmp_path / ("feeds.npz" if form == "npz" else "feeds")
    if form == "npz":
        np.savez(data, **feeds)
    else:
        data.mkdir()
        for at in range(24):
            np.savez(data / f"{at:02}.npz", **{name: array[at : at + 1] for name, array in feeds.items()})
    int8 = calibrate(path, tmp_path / "net.int8.onnx", data=str(data), use_cache=False)
    half = cast_to_fp16(path, tmp_path / "net.fp16.onnx", data=str(data))
    assert int8.samples == half.samples == 24
    names = [value.name for value in onnx.load(path).graph.output]
    for report, least in ((int8, 20), (half, 50)):
        assert report.parity is not None
        assert report.parity.same_class is None
        assert [each.name for each in report.parity.outputs] == names
        for each in report.parity.outputs:
            assert each.sqnr_db > least if each.floats else each.equal > 0.8
        parents = read_sidecar(report.path).parents
        assert [(parent.role, parent.file) for parent in parents[1:]] == [("data:feeds", str(data))]
        runner = load_runner(report.path)
        assert runner.inputs == load_runner(path).inputs
        assert [each.dtype for each in runner.outputs] == [each.dtype for each in load_runner(path).outputs]
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(int8.path).graph.node)


def test_a_single_array_is_enough_for_a_single_input_and_verify_knows_it(tmp_path: Path) -> None:
    from msn_deploy.data.sources import is_as_recorded

    text, constants, feeds = KINDS["audio"]
    path = saved(tmp_path, text, **constants)
    np.save(tmp_path / "wave.npy", feeds["wave"])
    calibrate(path, tmp_path / "net.int8.onnx", data=str(tmp_path / "wave.npy"), use_cache=False)
    found = {each.file: each for each in verify_folder(tmp_path, data=is_as_recorded)}
    assert found["net.int8.onnx"].verdict == "ok"
    assert found["net.int8.onnx"].parents[1].state == "as recorded"


def test_images_go_into_a_camera_network_as_bytes(tmp_path: Path) -> None:
    text, constants, _ = KINDS["a camera's bytes"]
    bare = saved(tmp_path, text, **constants)
    prep = Preprocess(height_px=8, width_px=8, channels=3, mean=(0.0,) * 3, std=(1 / 255,) * 3, layout="NHWC")
    path = tmp_path / "prepared.onnx"
    path.write_bytes(with_info(onnx.load(bare), ModelInfo(net="custom", norm="custom", preprocess=prep)))
    report = calibrate(path, tmp_path / "net.int8.onnx", data="digits", samples=100, use_cache=False)
    ranges = read_sidecar(report.path).facts["ranges"]
    assert ranges == {"d": pytest.approx(1.0, rel=0.1)}  # 0 to 255 over 255


@pytest.mark.parametrize("kind", ["audio", "two inputs of two types, three outputs", "MLP"])
def test_without_feeds_the_error_says_what_to_give_before_any_work(tmp_path: Path, kind: str) -> None:
    text, constants, feeds = KINDS[kind]
    path = saved(tmp_path, text, **constants)
    for data in (None, "digits"):
        with pytest.raises(InputError, match=r"not images\.\nGive arrays: `--data FEEDS\.npz`") as caught:
            calibrate(path, tmp_path / "net.int8.onnx", data=data)
        assert all(f"{name}=..." in str(caught.value) for name in feeds)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_feeds_that_cannot_calibrate_are_refused(tmp_path: Path) -> None:
    text, constants, feeds = KINDS["audio"]
    path, out, data = saved(tmp_path, text, **constants), tmp_path / "o.onnx", tmp_path / "f.npy"
    np.save(data, feeds["wave"][:15])
    with pytest.raises(InputError, match="15 samples are too few to calibrate on; 16 are needed"):
        calibrate(path, out, data=str(data))
    np.save(data, np.repeat(feeds["wave"][:1], 20, axis=0))
    with pytest.raises(InputError, match=r"all 20 samples of .* are the same"):
        calibrate(path, out, data=str(data))
    with pytest.raises(InputError, match=r"holds no labels.*\nGive `--min-sqnr 30dB`"):
        calibrate(path, out, data=str(data), max_drop=0.01)
    assert not out.exists()


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_opset_below_13_is_raised(tmp_path: Path, opset: int) -> None:
    clip = "Clip<min=0.0, max=6.0>(c)" if opset < 11 else "Clip(c, lo, hi)"
    text = (
        f"(float[1,3,8,8] x) => (float[1,4] y) {{ c = Conv(x, w) r = {clip} p = GlobalAveragePool(r) y = Flatten(p) }}"
    )
    bounds = {} if opset < 11 else {"lo": F(0), "hi": F(6)}
    path = saved(tmp_path, text, opset, w=drawn(4, 3, 3, 3), **bounds)
    np.save(tmp_path / "x.npy", drawn(20, 3, 8, 8))
    report = calibrate(path, tmp_path / "net.int8.onnx", data=str(tmp_path / "x.npy"), use_cache=False)
    assert report.parity is not None
    assert report.parity.sqnr_db > 25
    assert onnx.load(report.path).opset_import[0].version == 13


DEAD = """(float[1,3,8,8] x) => (float[1,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) d = Conv<pads=[1,1,1,1]>(x, w, off) z = Relu(d)
    e = Conv<pads=[1,1,1,1]>(z, v) f = Conv<pads=[1,1,1,1]>(r, v) y = Add(e, f) }"""


def test_a_dead_branch_does_not_forbid_int8_and_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, DEAD, w=drawn(4, 3, 3, 3), v=drawn(4, 4, 3, 3), off=np.full(4, -100, F))
    np.save(tmp_path / "x.npy", drawn(20, 3, 8, 8))
    data = str(tmp_path / "x.npy")
    report = calibrate(path, tmp_path / "net.int8.onnx", data=data)
    assert report.dead == ("z",)
    assert report.parity is not None
    assert report.parity.sqnr_db > 25
    made = {each.name: numpy_helper.to_array(each) for each in onnx.load(report.path).graph.initializer}
    assert made["z_scale"] == pytest.approx(1 / 127)
    assert calibrate(path, tmp_path / "net.int8.onnx", data=data).cache.startswith("scales from cache")
    left = calibrate(path, tmp_path / "net.int8.onnx", data=data, leave_out=("e",), use_cache=False)
    assert (left.dead, left.left_out) == ((), ("e",))
    assert "z" not in read_sidecar(left.path).facts["ranges"]  # what nothing reads in INT8 is not measured
    table = calibrate(path, tmp_path / "net.int8.onnx", data=data, table="trt-8.6", use_cache=False).table
    assert table is not None
    assert "z: " not in table.read_text()


def test_a_transposed_convolution_has_one_scale_and_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, """(float[1,3,8,8] x) => (float[1,2,16,16] y) {
                 c = Conv<pads=[1,1,1,1]>(x, w) y = ConvTranspose<strides=[2,2]>(c, u) }""",
                 w=drawn(4, 3, 3, 3), u=drawn(4, 2, 2, 2))  # fmt: skip
    np.save(tmp_path / "x.npy", drawn(20, 3, 8, 8))
    report = calibrate(path, tmp_path / "net.int8.onnx", data=str(tmp_path / "x.npy"), use_cache=False)
    assert report.transposed == ("y",)
    made = {each.name: each.dims for each in onnx.load(report.path).graph.initializer}
    assert (list(made["w_scale"]), list(made["u_scale"])) == ([4], [])
    left = calibrate(path, tmp_path / "n.onnx", data=str(tmp_path / "x.npy"), leave_out=("y",), use_cache=False)
    assert left.transposed == ()


def test_a_weight_that_is_computed_from_constants_is_quantised_too(tmp_path: Path) -> None:
    path = saved(
        tmp_path, "(float[N,7] x) => (float[N,3] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }", w=drawn(3, 7)
    )
    np.save(tmp_path / "x.npy", drawn(20, 7))
    report = calibrate(path, tmp_path / "net.int8.onnx", data=str(tmp_path / "x.npy"), use_cache=False)
    assert [node.op_type for node in onnx.load(report.path).graph.node][-1] == "MatMul"


def test_a_budget_of_sqnr_for_every_output(tmp_path: Path) -> None:
    text, constants, feeds = KINDS["two inputs of two types, three outputs"]
    path, out = saved(tmp_path, text, **constants), tmp_path / "net.int8.onnx"
    np.savez(tmp_path / "f.npz", **feeds)
    report = calibrate(path, out, data=str(tmp_path / "f.npz"), min_sqnr=15.0, use_cache=False)
    assert report.verdict is not None
    assert (report.verdict.kind, report.verdict.samples) == ("INT8", 24)
    assert report.parity is not None
    assert report.verdict.sqnr_db == pytest.approx(min(each.sqnr_db for each in report.parity.outputs if each.floats))
    before = out.read_bytes()
    with pytest.raises(GateError, match="150 dB is asked for"):
        calibrate(path, out, data=str(tmp_path / "f.npz"), min_sqnr=150.0, use_cache=False)
    assert out.read_bytes() == before
    with pytest.raises(InputError, match="does not say its task, and so has no metric"):
        calibrate(path, out, max_drop=0.01)
    for both in ({"max_drop": 0.1}, {"leave_out": ("cost",)}):
        with pytest.raises(InputError, match="not both"):
            calibrate(path, out, data=str(tmp_path / "f.npz"), min_sqnr=15.0, **both)


def test_an_output_that_is_not_finite_is_a_failed_gate(tmp_path: Path) -> None:
    path = saved(tmp_path, "(float[N,7] x) => (float[N,3] y) { m = MatMul(x, w) y = Log(m) }", w=-np.abs(drawn(7, 3)))
    np.save(tmp_path / "x.npy", np.abs(drawn(20, 7)) + 1)
    with pytest.raises(GateError, match="60 of the 60 numbers of its output y are not finite"):
        calibrate(path, tmp_path / "o.onnx", data=str(tmp_path / "x.npy"))
    assert not (tmp_path / "o.onnx").exists()


def test_a_divisor_that_fp16_would_lose_stays_in_fp32(tmp_path: Path) -> None:
    path = saved(tmp_path, "(float[N,7] x) => (float[N,7] y) { a = Mul(x, c) b = Mul(a, c) y = Div(x, b) }", c=F(1e-3))
    np.save(tmp_path / "x.npy", np.abs(drawn(20, 7)) * 1e-2 + 1e-3)
    report = cast_to_fp16(path, tmp_path / "o.onnx", data=str(tmp_path / "x.npy"))
    assert set(report.in_fp32 or ()) == {"y", "b"}
    assert "by which it divides" in (report.in_fp32 or {})["y"]


def test_fp16_that_is_not_finite_is_a_failed_gate_that_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msn_deploy.quant import fp32_nodes

    text = """(float[N,7] x) => (float[N,7] y, int64[N] i) {
        r = Relu(x) m = Max(r, e) y = Div(r, m) i = ArgMax<axis=1, keepdims=0>(y) }"""
    path = saved(tmp_path, text, e=F(1e-12))
    np.save(tmp_path / "x.npy", -np.abs(drawn(20, 7)))
    monkeypatch.setattr(fp32_nodes, "needs_fp32", lambda *facts: {})
    with pytest.raises(GateError, match=r"output y is not finite in FP16.* of y_fp16 \(Div\)"):
        cast_to_fp16(path, tmp_path / "o.onnx", data=str(tmp_path / "x.npy"))
    assert not (tmp_path / "o.onnx").exists()


RECURRENT = """(float[1,5] x, float[1,5] h0, int64 rate) => (float[1,2] y, float[1,5] h1) {
    s = Cast<to=1>(rate) i = Mul(x, s) j = MatMul(i, w) k = MatMul(h0, u)
    z = Add(j, k) h1 = Tanh(z) y = MatMul(h1, v) }"""
STATE = {"h1": "h0"}


def test_state_is_fed_back_in_order_and_begins_anew_with_each_file(tmp_path: Path) -> None:
    w, u, v = drawn(5, 5, seed=1), drawn(5, 5, seed=2) * 4, drawn(5, 2, seed=3)
    path = saved(tmp_path, RECURRENT, w=w, u=u, v=v)
    x = [drawn(20, 5, seed=at) * 9 for at in (7, 8)]
    (tmp_path / "f").mkdir()
    for at, each in enumerate(x):
        np.savez(tmp_path / "f" / f"{at}.npz", x=each, rate=np.full(20, 2))
    report = calibrate(path, tmp_path / "i.onnx", data=str(tmp_path / "f"), state=STATE, method="minmax", samples=30)
    assert report.samples == 30
    h, seen = np.zeros(5), []
    for sequence, count in zip(x, (20, 10), strict=True):
        h = np.zeros(5)
        for row in sequence[:count]:
            seen.append(np.abs(h).max())
            h = np.tanh(2 * row @ w + h @ u)
    ranges = read_sidecar(report.path).facts["ranges"]
    assert ranges["h0"] == pytest.approx(max(seen), rel=1e-5)
    assert report.parity is not None
    assert report.parity.sqnr_db > 20
    half = cast_to_fp16(path, tmp_path / "h.onnx", data=str(tmp_path / "f"), state=STATE)
    assert read_sidecar(half.path).facts["maxima"]["h0"] > 0.5
    other = calibrate(path, tmp_path / "i.onnx", data=str(tmp_path / "f"), state=STATE, method="minmax", samples=30)
    assert other.cache.startswith("scales from cache")


def test_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, out = saved(tmp_path, RECURRENT, w=drawn(5, 5), u=drawn(5, 5), v=drawn(5, 2)), tmp_path / "o.onnx"
    np.savez(tmp_path / "f.npz", x=drawn(20, 5), rate=np.full(20, 2))
    data = str(tmp_path / "f.npz")
    with pytest.raises(InputError, match="has no output h2; known are: y, h1"):
        calibrate(path, out, data=data, state={"h2": "h0"})
    with pytest.raises(InputError, match="makes y as float32 of 1x2; its input h0 takes float32 of 1x5"):
        calibrate(path, out, data=data, state={"y": "h0"})
    with pytest.raises(InputError, match=r"takes samples in order\.\nGive them as .*x=\.\.\., rate=\.\.\."):
        calibrate(path, out, state=STATE)
    with pytest.raises(InputError, match="Leave out `--seed`"):
        calibrate(path, out, data=data, state=STATE, seed=3)
    with pytest.raises(InputError, match="holds x, rate; the inputs are x, h0, rate"):
        calibrate(path, out, data=data)


def test_a_channel_far_larger_than_the_others_does_not_cost_int8_its_steps(tmp_path: Path) -> None:
    w, v = drawn(6, 2, 5), drawn(6, 5, seed=6)
    w[1] *= 1000
    v[1] /= 1000
    path = saved(tmp_path, AUDIO.replace("y = MatMul(f, v)", "y = Gemm(f, v)"), w=w, v=v)
    np.savez(tmp_path / "feeds.npz", wave=drawn(24, 2, 64))
    data = str(tmp_path / "feeds.npz")
    as_it_is = calibrate(path, tmp_path / "table.onnx", data=data, table="trt-8.6")
    found = calibrate(path, tmp_path / "net.int8.onnx", data=data)  # the scales in the cache are those of a table
    assert (len(found.equalized), as_it_is.equalized) == (1, {})
    assert found.parity is not None
    assert as_it_is.parity is not None
    assert found.parity.sqnr_db > 30 > as_it_is.parity.sqnr_db


def test_a_network_without_a_layer_for_fp8_says_why(tmp_path: Path) -> None:
    path = saved(tmp_path, "(float[1,2,8,8] x) => (float[1,3,2,2] y) { y = Conv(x, w) }", w=drawn(3, 2, 7, 7))
    np.savez(tmp_path / "feeds.npz", x=drawn(24, 2, 8, 8))
    with pytest.raises(InputError, match="49 taps"):
        calibrate(path, data=str(tmp_path / "feeds.npz"), precision="fp8")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["feeds.npz", "net.onnx"]
