"""Parallel linear branches are one convolution, as in the form that their authors deploy, or stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fold_nets import C, a_norm, folded_and_held
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.fold import fold_graph


def _branch(out: int, kernel: int, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(C, out, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, a_norm(out, "mixed"))


class Block(nn.Module):
    """Convolutions of several sizes beside each other, and the input itself with a norm where it fits."""

    def __init__(self, kernels: tuple[int, ...], *, out: int = C, identity: bool = True, **options: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(out, kernel, **options) for kernel in kernels)
        self.identity = a_norm(C, "mixed") if identity else None

    def forward(self, x: Tensor) -> Tensor:
        y = sum(branch(x) for branch in self.branches)
        return y if self.identity is None else y + self.identity(x)


class Mixer(nn.Module):
    """FastViT's: x + gamma * (mixer(x) - norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.norm = Block((3, 1), groups=C), a_norm()
        self.gamma = nn.Parameter(torch.randn(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


class Beside(nn.Module):
    """Whatever is given, each of the same input, added up."""

    def __init__(self, *branches: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return sum((branch(x) for branch in self.branches[1:]), self.branches[0](x))


MERGED: dict[str, Callable[[], nn.Module]] = {
    "RepVGG's": lambda: Block((3, 1)),
    "RepVGG's with a stride": lambda: Block((3, 1), out=6, identity=False, stride=2),
    "RepVGG's in groups": lambda: Block((3, 1), groups=2),
    "MobileOne's, depthwise": lambda: Block((3, 3, 3, 1), groups=C),
    "MobileOne's, of one pixel": lambda: Block((1, 1, 1)),
    "depthwise with a stride": lambda: Block((5, 3, 1), identity=False, groups=C, stride=2),
    "FastViT's": Mixer,
    "a convolution and its input": lambda: Beside(nn.Conv2d(C, C, 3, padding=1, groups=C), nn.Identity()),
    "dilated": lambda: Beside(nn.Conv2d(C, 5, 3, padding=2, dilation=2), nn.Conv2d(C, 5, 1)),
    "ACNet's": lambda: Beside(
        nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, (1, 3), padding=(0, 1)), nn.Conv2d(C, C, (3, 1), padding=(1, 0))
    ),
    "pixels that are padded": lambda: Beside(nn.Conv2d(C, 5, 3, padding=2), nn.Conv2d(C, 5, 1, padding=1)),
    "of even size": lambda: Beside(nn.Conv2d(C, 5, 4, padding=1, stride=2), nn.Conv2d(C, 5, 2, stride=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MERGED)
def test_branches_are_one_convolution(kind: str) -> None:
    torch.manual_seed(0)
    folded, operators = folded_and_held(nn.Sequential(nn.Sigmoid(), MERGED[kind](), nn.ReLU()))
    assert operators == {"Sigmoid": 1, "Conv": 1, "Relu": 1}
    assert [fold for fold in folded.folds if fold.rule == "kept"] == []


class Small(nn.Module):
    """Two stages of blocks that the authors of RepVGG write, as trained, or with one convolution each."""

    def __init__(self, *, deploy: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        if deploy:
            blocks = [nn.Conv2d(C, C, 3, 2, 1), *(nn.Conv2d(C, C, 3, padding=1) for _ in range(3))]
        else:
            blocks = [Block((3, 1), identity=False, stride=2), *(Block((3, 1)) for _ in range(3))]
        self.layers = nn.Sequential(*(layer for block in blocks for layer in (block, nn.ReLU())))
        self.head = nn.Linear(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def test_a_network_has_as_many_nodes_as_in_the_form_that_its_authors_deploy() -> None:
    trained, counts = folded_and_held(Small(deploy=False))
    _, fewest = folded_and_held(Small(deploy=True))
    assert counts == fewest
    assert sorted({fold.rule for fold in trained.folds}) == ["into-branch", "into-producer"]
    identities = [fold.norm for fold in trained.folds if fold.rule == "into-branch"]
    assert identities == [f"layers.{at}.identity" for at in (2, 4, 6)]
    assert sum(fold.operator == "BatchNormalization" for fold in trained.folds) == 11


KEPT: dict[str, Callable[[], nn.Module]] = {
    "two strides": lambda: Beside(nn.Conv2d(C, C, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 1))),
    "two numbers of groups": lambda: Beside(nn.Conv2d(C, C, 3, padding=1, groups=2), nn.Conv2d(C, C, 1)),
    "two dilations": lambda: Beside(nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=2, dilation=2)),
    "one channel and many": lambda: Beside(nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, 1, 1)),
    "long and thin, which together would be large": lambda: Beside(
        nn.Conv2d(C, C, (1, 7), padding=(0, 3)), nn.Conv2d(C, C, (7, 1), padding=(3, 0))
    ),
    "between the pixels of a dilated one": lambda: Beside(
        nn.Conv2d(C, C, 3, padding=3, dilation=2), nn.Conv2d(C, C, 3, padding=(2, 2), dilation=1)
    ),
    "nothing but the input": lambda: Beside(nn.Identity(), a_norm()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEPT)
def test_what_is_not_one_convolution_stays(kind: str) -> None:
    torch.manual_seed(0)
    _, operators = folded_and_held(nn.Sequential(nn.Sigmoid(), KEPT[kind](), nn.ReLU()))
    assert operators["Add"] + operators["Sub"] == 1


class ReadBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        return torch.relu(first + self.b(x)) * torch.sigmoid(first)


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    _, operators = folded_and_held(ReadBetween())
    assert operators["Conv"] == 2


def _file(size: int | str, **options: Any) -> ModelProto:
    """conv3x3(x) + conv1x1(x) with SAME padding."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((5, C, 3, 3)), "v": rng.standard_normal((5, C, 1, 1))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], **options),
            helper.make_node("Conv", ["x", "v"], ["b"], **options),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, C, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("size", "stride", "merges"), [(8, 1, True), (8, 2, True), (7, 2, True), ("n", 1, True), ("n", 2, False)]
)
def test_same_padding_is_written_out_where_it_is_known(
    auto_pad: str, size: int | str, stride: int, merges: bool
) -> None:
    model = _file(size, auto_pad=auto_pad, strides=[stride, stride])
    folded = fold_graph(model)
    assert [node.op_type for node in folded.model.graph.node] == (["Conv"] if merges else ["Conv", "Conv", "Add"])
    x = np.random.default_rng(1).standard_normal((1, C, *(2 * [size if isinstance(size, int) else 6])))
    np.testing.assert_allclose(run_float64(folded.model, x), run_float64(model, x), rtol=0, atol=1e-5)
    assert certify(folded).is_exact
