"""Exported graphs hold what they should and nothing else, repeat themselves to the byte, and compute the same."""

from __future__ import annotations

import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import NORMS
from msn_deploy.graph.export import to_onnx
from msn_deploy.model.feeds import fixed_input
from msn_deploy.msn import fold

pytestmark = pytest.mark.slow

CONVS = {"cnn3": 3, "vgg7": 7}
PLAIN = {
    "cnn3": {"Conv": 3, "LeakyRelu": 3, "Reshape": 1, "Gemm": 1},
    "vgg7": {"Conv": 7, "Relu": 7, "MaxPool": 4, "Reshape": 1, "Gemm": 1},
}
BOTH = pytest.mark.parametrize("net", CONVS)


@BOTH
@pytest.mark.parametrize("norm", [norm for norm in NORMS if not norm.startswith("gn")])
def test_a_folded_graph_holds_nothing_of_its_norm(
    exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any], net: str, norm: str
) -> None:
    made = exported(net, norm)
    graph = made.graph.graph
    onnx.checker.check_model(made.graph, full_check=True)
    assert Counter(node.op_type for node in graph.node) == PLAIN[net]
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert not weights.issuperset(node.input), node.name  # else it could have been computed once and for all
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["logits"]
    assert made.graph.opset_import[0].version == 17
    batch = digits(6, made.input_shape[-1])
    expected = made.logits(batch)
    assert np.ptp(expected, axis=0).min() > 1e-4
    np.testing.assert_allclose(run(made.graph, batch)["logits"], expected, atol=1e-5 * np.abs(expected).max())


@BOTH
def test_two_exports_are_the_same_bytes(exported: Callable[..., Any], net: str) -> None:
    made = exported(net, "msn")
    again = to_onnx(fold(made.model), input_shape=made.input_shape)
    assert again.SerializeToString(deterministic=True) == made.graph.SerializeToString(deterministic=True)


@BOTH
def test_an_unfolded_graph_keeps_every_batch_norm(
    exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any], net: str
) -> None:
    made = exported(net, "bn", folded=False)
    counts = Counter(node.op_type for node in made.graph.graph.node)
    assert counts["BatchNormalization"] == counts["Conv"] == CONVS[net]
    assert not counts.keys() & {"Shape", "Expand", "ConstantOfShape", "Gather", "Cast"}
    assert counts.keys() <= PLAIN[net].keys() | {"BatchNormalization", "Constant", "Concat"}
    by_output = {output: node for node in made.graph.graph.node for output in node.output}
    for node in made.graph.graph.node:
        if node.op_type == "BatchNormalization":
            assert by_output[node.input[0]].op_type == "Conv"
            assert len(by_output[node.input[0]].input) == 3  # with a bias of zeros
    batch = digits(4, made.input_shape[-1])
    expected = made.logits(batch)
    np.testing.assert_allclose(run(made.graph, batch)["logits"], expected, atol=1e-5 * np.abs(expected).max())


def test_the_zero_biases_are_not_left_in_the_network(exported: Callable[..., Any]) -> None:
    made = exported("cnn3", "bn", folded=False)
    assert all(module.bias is None for module in made.model if isinstance(module, nn.Conv2d))


def test_a_dynamic_batch(exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any]) -> None:
    made = exported("cnn3", "msn", dynamic=True)
    sizes = made.graph.graph.input[0].type.tensor_type.shape.dim
    assert not sizes[0].HasField("dim_value")
    assert [size.dim_value for size in sizes[1:]] == [1, 28, 28]
    assert Counter(node.op_type for node in made.graph.graph.node) == PLAIN["cnn3"]
    batch = digits(7)
    expected = made.logits(batch)
    for count in (1, 2, 7):
        np.testing.assert_allclose(run(made.graph, batch[:count])["logits"], expected[:count], atol=1e-5)


def test_a_fixed_batch_of_several(small_net: Callable[..., nn.Module]) -> None:
    graph = to_onnx(fold(small_net("cnn3", "bn")), input_shape=(4, 1, 28, 28)).graph
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [4, 1, 28, 28]
    assert [size.dim_value for size in graph.output[0].type.tensor_type.shape.dim] == [4, 10]


@pytest.mark.parametrize("opset", [11, 16, 20])
def test_the_opset_is_the_one_asked_for(small_net: Callable[..., nn.Module], opset: int) -> None:
    graph = to_onnx(fold(small_net()), input_shape=(1, 1, 28, 28), opset=opset)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]


def test_an_opset_that_cannot_be_had_is_refused(small_net: Callable[..., nn.Module]) -> None:
    with pytest.raises(InputError, match=r"opset 11 at least, not in 9[\s\S]*--opset 11"):
        to_onnx(fold(small_net()), input_shape=(1, 1, 28, 28), opset=9)


@pytest.mark.parametrize("optimize", [True, False])
def test_nothing_is_printed_logged_or_warned(
    small_net: Callable[..., nn.Module],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    optimize: bool,
) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    level, disabled = logging.getLogger("onnxscript").level, logging.root.manager.disable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_onnx(small_net("cnn3", "bn"), input_shape=(1, 1, 28, 28), optimize=optimize)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert caught == []
    assert (logging.getLogger("onnxscript").level, logging.root.manager.disable) == (level, disabled)


@pytest.mark.parametrize("opset", [17, 18])
def test_no_path_of_this_machine_is_left_in_the_file(small_net: Callable[..., nn.Module], opset: int) -> None:
    raw = to_onnx(fold(small_net()), input_shape=(1, 1, 28, 28), opset=opset).SerializeToString()
    for trace in (b"site-packages", b".py", b"forward(", b"stack_trace"):
        assert trace not in raw


def test_the_network_is_untouched(small_net: Callable[..., nn.Module]) -> None:
    model = small_net("cnn3", "bn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_onnx(model, input_shape=(1, 1, 28, 28), optimize=False)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_training_mode_is_refused_wherever_it_hides(small_net: Callable[..., nn.Module]) -> None:
    model = small_net("cnn3", "bn")
    model[1].train()
    with pytest.raises(InputError, match=r"training mode; call eval\(\)"):
        to_onnx(model, input_shape=(1, 1, 28, 28))


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 1, 40, 28), (1, 1, 28), (1, 1, 0, 28)])
def test_an_input_that_does_not_suit_the_network(small_net: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"does not run on input \([\s\S]*--input-shape") as caught:
        to_onnx(small_net(), input_shape=shape)
    assert len(str(caught.value).splitlines()) <= 3


class _Returns(nn.Module):
    def __init__(self, of: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: torch.Tensor) -> Any:
        return self.of(x + 1)


class _Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if x.sum() > 0 else x.tanh()


class _Pair(NamedTuple):
    near: torch.Tensor
    far: torch.Tensor


@dataclass
class _Found:
    boxes: torch.Tensor
    scores: list[torch.Tensor]
    count: int = 3


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("of", "names"), [
    (lambda x: x, ["logits"]),
    (lambda x: (x,), ["output"]),
    (lambda x: (x, x + 1), ["output_0", "output_1"]),
    (lambda x: [x, None, x * 2], ["output_0", "output_2"]),
    (lambda x: {"out": x}, ["out"]),
    (lambda x: OrderedDict(b=x, a=[x + 1, x > 0]), ["b", "a.0", "a.1"]),
    (lambda x: _Pair(x, x.argmax(1)), ["near", "far"]),
    (lambda x: _Found(x, [x + 1, x + 2]), ["boxes", "scores.0", "scores.1"]),
    (lambda x: (x, (x + 1, x + 2), 3.5), ["output_0", "output_1.0", "output_1.1"]),
    (lambda x: (x, x), ["output_0", "output_1"]),
], ids=["bare", "tuple", "pair", "list", "dict", "nested", "named", "dataclass", "tree", "same"])  # fmt: skip
def test_whatever_holds_tensors_is_returned_as_named_outputs(
    of: Callable[[torch.Tensor], Any], names: list[str], opset: int
) -> None:
    made = to_onnx(_Returns(of).eval(), input_shape=(1, 2, 4, 4), opset=opset, optimize=False)
    assert [value.name for value in made.graph.output] == names
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize("of", [lambda x: None, lambda x: 3.5, lambda x: {"none": []}])
def test_a_network_that_returns_no_tensor_is_refused(of: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(InputError, match="there is no tensor"):
        to_onnx(_Returns(of).eval(), input_shape=(1, 1, 4, 4), optimize=False)


class _Named(nn.Module):
    """Buffers, parameters, input and outputs called like what the exporter itself makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(3, 4, 3)
        for at, name in enumerate(("mean", "mul", "input", "logits", "sub", "out_mean")):
            self.register_buffer(name, torch.full((1, 1, 1, 1), 0.5 + at))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        shifted = (x - self.mean) * self.mul + self.input
        pooled = (self.conv2d(shifted) * self.logits).mean((2, 3), keepdim=True) - self.sub
        return {"mean": pooled, "conv2d": pooled + self.out_mean, "x": pooled * 2}


def test_tensors_may_be_called_anything() -> None:
    net, x = _Named().eval(), np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    made = to_onnx(net, inputs=(fixed_input("x", "float32", x.shape),), optimize=False, opset=18)
    onnx.checker.check_model(made, full_check=True)
    got = ReferenceEvaluator(made).run(None, {"x": x})
    for want, each in zip(net(torch.from_numpy(x)).values(), got, strict=True):
        np.testing.assert_allclose(each, want.detach(), atol=1e-5)


def test_a_network_that_torch_cannot_export_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="torch could not export the network") as caught:
        to_onnx(_Undecided().eval(), input_shape=(1, 1, 4, 4))
    assert len(str(caught.value).splitlines()) <= 3
    assert capfd.readouterr() == ("", "")
