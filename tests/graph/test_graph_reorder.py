"""Pooling before a concatenation: where it may go there, where it stays, and that every tensor that is told exists."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fold_nets import C, a_norm, folded_and_held
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.fold import fold_graph

pytestmark = pytest.mark.slow


class Joined(nn.Module):
    """Two branches that are joined, pooled, and read by a convolution."""

    def __init__(self, pool: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.left, self.right = nn.Conv2d(C, 3, 3, padding=1), nn.Conv2d(C, 5, 1)
        self.norms = nn.ModuleList([a_norm(3), a_norm(8)])
        self.last = nn.Conv2d(8, 2, 1)
        self.pool, self.options = getattr(F, pool), options

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([self.norms[0](self.left(x)), self.right(x).relu()], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.joined(x), **self.options))


class ReadTwice(Joined):
    """What is joined is also read as it is."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.joined(x)
        return self.last(self.pool(whole, **self.options)).mean((2, 3)) + whole.mean((2, 3))[:, :2]


class AlongWidth(Joined):
    """What is joined are columns, not channels."""

    def joined(self, x: Tensor) -> Tensor:
        whole = torch.cat([self.left(x), self.right(x).relu()], 1)
        return torch.cat([whole, whole[..., :3].sigmoid()], 3)


class WithConstant(Joined):
    """One of the parts is no image."""

    def __init__(self, pool: str, **options: Any) -> None:
        super().__init__(pool, **options)
        self.register_buffer("rest", torch.rand(2, 5, 8, 8))

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.rest], 1)


def _kinds(folded: Any) -> list[str]:
    return [node.op_type for node in folded.model.graph.node]


@pytest.mark.parametrize("pool", ["avg_pool2d", "max_pool2d"])
@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_each_part_is_pooled_and_nothing_is_left_between_concatenation_and_convolution(
    pool: str, options: dict[str, Any]
) -> None:
    folded, operators = folded_and_held(Joined(pool, **options))
    kind = "AveragePool" if pool == "avg_pool2d" else "MaxPool"
    assert operators == {"Conv": 3, "Relu": 1, kind: 2, "Concat": 1}
    assert _kinds(folded)[-2:] == ["Concat", "Conv"]


class Behind(Joined):
    """A norm of the whole tensor, which both parts can take."""

    def joined(self, x: Tensor) -> Tensor:
        return self.norms[1](torch.cat([self.left(x), self.right(x)], 1))


class BehindConvolution(Behind):
    """The pooling goes before a convolution first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.last(self.joined(x)), **self.options).sigmoid()


@pytest.mark.parametrize(("kind", "shown"), [(Behind, "avg_pool2d"), (BehindConvolution, "avg_pool2d")])
def test_a_norm_that_was_proved_on_the_whole_tensor_is_proved_behind_the_pooling(
    kind: type[Joined], shown: str
) -> None:
    folded, operators = folded_and_held(kind("avg_pool2d", kernel_size=2))
    assert {name: count for name, count in operators.items() if name != "Sigmoid"} == {
        "Conv": 3,
        "AveragePool": 2,
        "Concat": 1,
    }
    (fold,) = folded.folds
    assert (fold.rule, fold.same) == ("into-producer", (shown,))


@pytest.mark.parametrize(
    "model",
    [
        Joined("avg_pool2d", kernel_size=3, stride=1, padding=1),  # which makes nothing smaller
        ReadTwice("avg_pool2d", kernel_size=2),
        AlongWidth("avg_pool2d", kernel_size=2),
        WithConstant("avg_pool2d", kernel_size=2),
    ],
    ids=["stride 1", "read twice", "columns", "constant"],
)
def test_a_pooling_stays_where_it_would_gain_nothing_or_be_wrong(model: nn.Module) -> None:
    folded, operators = folded_and_held(model)
    assert operators["AveragePool"] == 1
    kinds = _kinds(folded)
    assert kinds.index("AveragePool") > kinds.index("Concat")


NAMES = """<ir_version: 3, opset_import: ["" : 17]>
one (float[N,2,8,8] input_1) => (float[Count,5,4,4] input)
<float[3,2,1,1] w = {1, 2, 3, 4, 5, 6}, float[2,2,1,1] input_0 = {-1, 2, -3, 1}> {
  a = Conv(input_1, w)
  b = Conv(input_1, input_0)
  whole = Concat<axis = 1>(a, b)
  input = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(whole)
}"""
TWICE = """<ir_version: 8, opset_import: ["" : 17]>
one (float[1,2,8,8] x) => (float[1,2,4,4] y)
<float[2,2,1,1] v = {1, 2, 3, 4}, float[2,2,1,1] w = {-1, 2, -3, 1}> {
  a = Conv(x, v)
  p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)
  b = Conv(x, w)
  q = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(b)
  y = Mul(p, q)
}"""


@pytest.mark.parametrize("text", [NAMES, TWICE], ids=["input.1", "two that pool one tensor"])
def test_new_tensors_get_names_that_nothing_has(text: str) -> None:
    spelled = onnx.parser.parse_model(text).SerializeToString().replace(b"input_", b"input.")  # it parses no dots
    model = onnx.load_from_string(spelled)
    if model.ir_version == 3:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in model.graph.initializer
        )
    folded = fold_graph(model)
    onnx.checker.check_model(folded.model, full_check=True)
    assert certify(folded).is_exact
    assert _kinds(folded).count("MaxPool" if text == NAMES else "AveragePool") == 2
    for old, new in zip(model.graph.output, folded.model.graph.output, strict=True):
        assert old.SerializeToString() == new.SerializeToString()
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 8))
    np.testing.assert_allclose(run_float64(folded.model, x), run_float64(model, x), rtol=0, atol=1e-12)
