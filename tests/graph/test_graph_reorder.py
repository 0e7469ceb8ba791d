"""Pooling before a concatenation: where it may go there, where it stays, and that every tensor that is told exists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fold_nets import C, a_norm, folded_and_held
from torch import Tensor, nn
from torch.nn import functional as F


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
        return torch.cat([torch.cat([self.left(x), self.right(x).relu()], 1), torch.ones(len(x), 8, 8, 3)], 3)


class WithConstant(Joined):
    """One of the parts is no image."""

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), torch.arange(5.0)[None, :, None, None].expand(len(x), 5, 8, 8)], 1)


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


def test_a_norm_that_was_proved_on_the_whole_tensor_is_proved_on_its_parts() -> None:
    class Behind(Joined):
        def joined(self, x: Tensor) -> Tensor:
            return self.norms[1](super().joined(x))

    folded, operators = folded_and_held(Behind("avg_pool2d", kernel_size=2))
    assert "BatchNormalization" not in operators
    assert _kinds(folded)[-2:] == ["Concat", "Conv"]
    assert [fold.rule for fold in folded.folds] == ["into-producer", "into-readers"]
    names = {name for node in folded.after.graph for name in (value.name for value in node.outputs)}
    assert all(set(fold.same) <= names for fold in folded.folds)


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
    torch.set_default_dtype(torch.float64)
    try:
        folded, operators = folded_and_held(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert operators["AveragePool"] == 1
    kinds = _kinds(folded)
    assert kinds.index("AveragePool") > kinds.index("Concat")
