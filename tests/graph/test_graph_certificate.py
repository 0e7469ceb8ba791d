"""What the folds of a network are proved on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils import parametrizations

from msn_deploy.graph.certificate import INPUTS, Certificate, CertifiedNorm, certify, certify_layers, edge_feeds
from msn_deploy.graph.fold import fold_graph
from msn_deploy.model.feeds import fixed_input, with_open_batch
from msn_deploy.msn import MSNConv2d, MSNConvTranspose2d, SNLinear, fold_layers

# layer, and where the output channels of its weight are
LAYERS = {
    "msn": (lambda: MSNConv2d(4, 6, 3, groups=2), 0),
    "msn-transposed": (lambda: MSNConvTranspose2d(4, 6, 3, stride=2), 1),
    "sn-linear": (lambda: SNLinear(7, 5), 0),
    "torch": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), 0),
    "torch-transposed": (lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 3)), 1),
    "torch-hook": (lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)), 0),
}


@pytest.mark.parametrize(("batch", "runs"), [(None, 1), (1, 2), (2, 1), (3, 1)])
def test_numbers_and_ones_with_lit_corners_in_runs_that_the_graph_takes(batch: int | None, runs: int) -> None:
    shape = fixed_input("x", "float32", (batch or 1, 2, 4, 5))
    found = edge_feeds([shape] if batch else with_open_batch([shape]))
    assert len(found) == runs
    assert {len(each["x"]) for each in found} == {len(INPUTS) if batch is None else batch}
    images = np.concatenate([each["x"] for each in found])
    assert images[0].std() > 0.5
    np.testing.assert_array_equal(images[1][:, 0], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 3], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 1:3], np.ones((2, 2, 5)))


@pytest.mark.parametrize("shape", [(1, 3, 200, 201), (2, 3, 200, 201), (None, 70_000)])
def test_large_inputs_have_all_of_it_in_each_row_of_one_run(shape: tuple[int | None, ...]) -> None:
    given = fixed_input("x", "float32", (shape[0] or 1, *shape[1:]))
    (found,) = edge_feeds([given] if shape[0] else with_open_batch([given]))
    half = shape[-1] // 2
    for row in found["x"]:
        assert row[..., 1:half].std() > 0.5
        np.testing.assert_array_equal(np.unique(row[..., half:]), [1, 100])
        assert (row == 100).sum() == (2 if row.ndim == 1 else 3 * 4)


def test_every_input_is_fed_by_its_own_type_and_shape() -> None:
    inputs = [fixed_input("left", "float32", (2, 3, 8, 8)), fixed_input("t", "float32", (2,)),
              fixed_input("frames", "uint8", (2, 8, 8, 3)), fixed_input("scale", "float32", ())]  # fmt: skip
    (found,) = edge_feeds(inputs)
    assert {name: each.shape for name, each in found.items()} == {each.name: each.shape for each in inputs}
    assert found["left"][1].max() == 100 == found["t"][1]
    assert found["frames"].dtype == np.uint8


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.:FutureWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_sigma_is_what_is_used_beside_the_true_one(name: str) -> None:
    torch.manual_seed(2)
    make, axis = LAYERS[name]
    model = nn.Sequential(make()).eval()
    layer = model[0]
    chain = getattr(layer, "parametrizations", None)
    raw = chain["weight"].original if chain else getattr(layer, "weight_orig", layer.weight)
    _, layers = fold_layers(model)
    (told,) = certify_layers(layers)
    largest = torch.linalg.svdvals(raw.detach().double().transpose(0, axis).flatten(1))[0].item()
    assert told.sigma_svd == pytest.approx(largest, rel=1e-9)
    assert told.sigma is not None
    assert told.sigma <= largest * (1 + 1e-6)
    used = raw.detach().double().norm() / layers[0].after.weight.double().norm()
    assert told.sigma == pytest.approx(used.item(), rel=1e-5)
    assert told.difference is not None
    assert told.of is not None
    assert told.difference < 1e-13 * told.of
    assert (told.norm, told.rule) == ("0", "into-weight")
    assert told.sigma_error == pytest.approx(1 - told.sigma / largest, abs=1e-12)


def test_the_worst_sigma_is_named() -> None:
    def norm(name: str, sigma: float | None) -> CertifiedNorm:
        return CertifiedNorm(norm=name, operator="", rule="into-weight", sigma=sigma, sigma_svd=sigma and 2.0)

    output, norms = norm("y", None), [norm("a", 1.9), norm("none", None), norm("b", 2.4), norm("c", 2.0)]
    assert Certificate(norms=tuple(norms), output=output).worst_sigma is norms[2]
    assert norms[2].sigma_error == pytest.approx(0.2)
    assert Certificate(norms=(norms[1],), output=output).worst_sigma is None


def test_weight_norm_has_no_sigma() -> None:
    _, layers = fold_layers(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))).eval())
    (told,) = certify_layers(layers)
    assert (told.operator, told.sigma, told.sigma_svd) == ("WeightNorm", None, None)


def _file(opset: int, *more: NodeProto, batch: int = 1, **constants: np.ndarray) -> ModelProto:
    """Return x -> convolution -> norm -> r -> what else there is, of which the last output is that of the graph."""
    rng = np.random.default_rng(6)
    weights = {
        "w": rng.standard_normal((6, 3, 3, 3)),
        "gain": rng.uniform(0.5, 1.5, 6),
        "shift": rng.standard_normal(6),
        "mean": rng.standard_normal(6),
        "var": rng.uniform(0.5, 2, 6),
        **constants,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        *more,
    ]
    graph = helper.make_graph(
        nodes,
        "file",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 9, 8])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 14, 15, 17, 20])
def test_a_batch_norm_is_proved_in_every_opset(opset: int) -> None:
    told = certify(fold_graph(_file(opset)))
    assert [norm.rule for norm in told.norms] == ["into-producer"]
    assert told.is_exact
    assert told.worst.of is not None
    assert told.worst.of > 10


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_0_or_less_is_an_open_one(batch: int) -> None:
    told = certify(fold_graph(_file(13, batch=batch)))
    assert told.is_exact
    assert told.output.difference is not None
    assert 0 < told.output.difference < 1e-12


_GRID = np.random.default_rng(7).uniform(-1.1, 1.1, (1, 5, 4, 2))
INNOCENT = {
    "grid-16": (16, [helper.make_node("GridSample", ["r", "grid"], ["y"], mode="bilinear")], {"grid": _GRID}),
    "grid-20": (20, [helper.make_node("GridSample", ["r", "grid"], ["y"], mode="linear")], {"grid": _GRID}),
    "resize-11": (11, [helper.make_node("Resize", ["r", "roi", "s"], ["y"], mode="cubic")],
                  {"roi": np.zeros(0), "s": np.array([1, 1, 1.5, 2])}),
    "resize-19": (19, [helper.make_node("Resize", ["r", "", "s"], ["y"], mode="linear", antialias=1)],
                  {"s": np.array([1, 1, 0.4, 0.6])}),
    "upsample-9": (9, [helper.make_node("Upsample", ["r", "s"], ["y"])], {"s": np.array([1, 1, 2, 2])}),
    "softmax-12": (12, [helper.make_node("Softmax", ["r"], ["y"])], {}),
    "ties": (17, [helper.make_node("ReduceMean", ["r"], ["p"], axes=[1], keepdims=0),
                  helper.make_node("ArgMax", ["p"], ["a"], axis=2), helper.make_node("Cast", ["a"], ["y"], to=1)], {}),
    "celu": (17, [helper.make_node("Celu", ["r"], ["y"], name="odd", alpha=0.6)], {}),
    "theirs": (17, [helper.make_node("Gelu", ["r"], ["y"], name="odd", domain="com.microsoft")], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", INNOCENT)
def test_an_operator_behind_a_fold_does_not_accuse_it(name: str) -> None:
    opset, nodes, constants = INNOCENT[name]
    folded = fold_graph(_file(opset, *nodes, **constants))
    told = certify(folded)
    assert [norm.rule for norm in told.norms] == ["into-producer"]
    assert told.is_exact
    assert not told.output.coarse
    assert told.in_float32 == (("odd",) if name in ("celu", "theirs") else ())
    kinds = [node.op_type for node in folded.model.graph.node]
    assert kinds == ["Conv", "Relu", *(node.op_type for node in nodes)]
    assert {tensor.data_type for tensor in folded.model.graph.initializer} == {TensorProto.FLOAT}


def test_a_wrong_fold_is_still_told_behind_an_operator_in_float32() -> None:
    _, nodes, _ = INNOCENT["theirs"]
    folded = fold_graph(_file(17, *nodes))
    bias = next(value for value in folded.after.graph.initializers.values() if value.shape == ir.Shape([6]))
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + 1e-2)
    told = certify(folded)
    assert not told.is_exact
    assert told.output.coarse
    assert (told.worst.norm, told.worst.coarse) == ("norm", False)
