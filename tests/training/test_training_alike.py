"""What was trained under INT8 is what ONNX Runtime computes, bit for bit, whatever stands between two pairs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper

from msn_deploy.quant.placement import place
from msn_deploy.quant.quantize import quantize
from msn_deploy.training.alike import spelled_out, with_biases_apart
from msn_deploy.training.graph_net import GraphNet, quantised_net

CONV = "a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)"
LAST = "y = Conv({}, wb, bb)"
BETWEEN: dict[str, str] = {
    "nothing": LAST.format("a"),
    "nothing, without a bias": "c = Conv(a, w1) " + LAST.format("c"),
    "a reshape": "f = Reshape(a, rows) y = Gemm<transB = 1>(f, wf, bf)",
    "a transposition": "t = Transpose<perm = [0, 1, 3, 2]>(a) " + LAST.format("t"),
    "a product in a row": "p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(f, wg, bg) y = Gemm(g, wg, bg)",
    "a norm": "n = BatchNormalization(a, gain, shift, mean, var) r = Relu(n) " + LAST.format("r"),
    "a norm of a concatenation": (
        "b = Conv<pads = [1, 1, 1, 1]>(x, wa, ba) c = Concat<axis = 1>(a, b) "
        "n = BatchNormalization(c, gain2, shift2, mean2, var2) r = Relu(n) y = Conv(r, w2, bb)"
    ),
    "HardSwish": "h = HardSwish(a) " + LAST.format("h"),
    "a product whose name is taken": "c_product = Relu(a) c = Conv(c_product, w1) " + LAST.format("c"),
    "a step whose name is taken": "h_step0 = Relu(a) h = HardSwish(h_step0) " + LAST.format("h"),
    "a gate": "h = HardSigmoid(a) g = Mul(a, h) " + LAST.format("g"),
    "an average by 3": "m = Add(a, bound) p = AveragePool<kernel_shape = [3, 3]>(m) " + LAST.format("p"),
    "a residual": "r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, wr, br) s = Add(c, r) q = Relu(s) " + LAST.format("q"),
}
SUMS: dict[str, str] = {
    "a wide layer": "y = Relu(a)",
    "averages of bounded values": "m = Max(a, bound) y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(m)",
    "averages of 9": "m = Add(a, bound) y = AveragePool<kernel_shape = [3, 3]>(m)",
    "the mean of a picture": "m = Max(a, bound) y = ReduceMean<axes = [2, 3]>(m)",
    "the mean of a sum": "m = Add(a, bound) r = Relu(m) y = GlobalAveragePool(r)",
}
SIZES: dict[str, tuple[int, ...]] = {
    **{"wa": (16, 48, 3, 3), "ba": (16,), "wb": (8, 16, 1, 1), "bb": (8,), "w1": (16, 16, 1, 1), "w2": (8, 32, 1, 1)},
    **{"wf": (4, 16 * 144), "bf": (4,), "wg": (16, 16), "bg": (16,), "wr": (16, 16, 3, 3), "br": (16,)},
    **{"bound": (16, 1, 1), **dict.fromkeys(("gain", "shift", "mean", "var"), (16,))},
    **dict.fromkeys(("gain2", "shift2", "mean2", "var2"), (32,)),
}


def _model(text: str, seed: int) -> ModelProto:
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g (float[N, 48, 12, 12] x) => (float[N, C, H, W] y) {{ {CONV} {text} }}"
    )
    if "Gemm" in text:
        del model.graph.output[0].type.tensor_type.shape.dim[2:]
    read = {name for node in model.graph.node for name in node.input}
    for name, size in SIZES.items():
        value = rng.standard_normal(size) / np.sqrt(np.prod(size[1:]) if name.startswith("w") else 4)
        value = np.abs(value) + 0.1 if name.startswith("var") else value
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    if "rows" in read:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), "rows"))
    return model


def _run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {"x": x})[0]
    return made


def _both(net: GraphNet, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy(), _run(net.to_onnx(), x)


@pytest.mark.parametrize("kind", [*BETWEEN, *SUMS])
def test_onnx_runtime_gives_the_bits_of_the_training(kind: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        model = _model({**BETWEEN, **SUMS}[kind], seed)
        net = quantised_net(model, {name: float(rng.uniform(1, 4)) for name in place(model).tensors})
        for step in range(2):
            ours, theirs = _both(net, rng.standard_normal((64, 48, 12, 12)).astype(np.float32))
            np.testing.assert_array_equal(ours, theirs, err_msg=f"seed {seed}, step {step}")
            with torch.no_grad():  # as a training moves them
                for each in net.parameters():
                    each.add_(0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(seed)))


def test_a_rewritten_graph_computes_what_the_graph_does() -> None:
    x = np.random.default_rng(0).standard_normal((8, 48, 12, 12)).astype(np.float32)
    for kind in ("a norm", "a norm of a concatenation", "HardSwish", "a gate"):
        model = _model(BETWEEN[kind], 0)
        np.testing.assert_allclose(_run(spelled_out(model), x), _run(model, x), rtol=1e-4, atol=1e-5)
    for kind in ("nothing", "nothing, without a bias", "a reshape", "a product in a row"):
        model = _model(BETWEEN[kind], 0)
        int8 = quantize(model, dict.fromkeys(place(model).tensors, 4.0))
        apart = with_biases_apart(int8)
        assert [node.op_type for node in apart.graph.node].count("Add") == 1 + (kind == "nothing, without a bias")
        np.testing.assert_allclose(_run(apart, x), _run(int8, x), rtol=1e-5, atol=0.05)
