"""DenseNet, whose norms stand between a concatenation and a convolution: what is left of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from fold_nets import C, a_norm, folded_and_held
from torch import nn

from msn_deploy.msn import fold_layers
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.registry import NETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("norm", ["bn", "msn", "msn-affine"])
def test_densenet_has_nothing_left_between_convolutions_but_one_max(norm: str) -> None:
    torch.manual_seed(1)
    net = NETS["densenet_bc_22"](Norm(name=norm), in_channels=C, height_px=8, width_px=8, width=4, classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict({**a_norm(module.num_features).state_dict()})
    for name, parameter in net.named_parameters():
        if name.endswith("shift"):
            nn.init.normal_(parameter)
    plain, _ = fold_layers(net.eval())
    folded, operators = folded_and_held(plain)
    # One entry per norm, also where it is written as several operators, by the name of its module.
    before = [fold.norm for fold in folded.folds if fold.rule == "into-readers"]
    assert before == list(dict.fromkeys(before))
    assert len(before) == 12
    assert all(name.endswith((".before.0", "last.0")) for name in before)
    assert not operators.keys() & {"Add", "Mul", "Sub", "Div", "BatchNormalization"}
    assert operators["Max"] == 12  # one before each of 9 layers, 2 transitions and the classifier
    assert operators["Relu"] == 9


def test_densenet_in_producer_form_reads_its_concatenations_directly() -> None:
    torch.manual_seed(1)
    net = NETS["densenet_bc_22_producer"](Norm(name="msn"), in_channels=C, height_px=8, width_px=8, width=4, classes=3)
    plain, _ = fold_layers(net.eval())
    folded, operators = folded_and_held(plain)
    assert operators.keys() == {"Conv", "Relu", "Concat", "AveragePool", "ReduceMean", "Gemm"}
    readers = Counter()
    for node in folded.model.graph.node:
        if node.op_type == "Concat":
            readers.update(each.op_type for each in folded.model.graph.node if node.output[0] in each.input)
    # A transition's average pooling commutes with its 1x1 convolution and with the concatenation, and goes first.
    assert readers == {"Conv": 8, "ReduceMean": 1}
    assert operators["AveragePool"] == 8  # parts of the first two blocks
