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
