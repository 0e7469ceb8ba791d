"""Norms that are not neutral, and a network folded and held against torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.export import to_onnx
from msn_deploy.graph.fold import fold_graph

C = 4


def a_norm(channels: int = C, gains: str = "positive") -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels) + 0.5)
        if gains == "mixed":
            norm.weight[1] = -0.7
        if gains == "zero":
            norm.weight[1] = 0.0
        norm.bias.copy_(torch.randn(channels))
        if gains == "zero":
            norm.bias[1] = -0.6  # behind a ReLU such a channel is zero, and not its shift
        norm.running_mean.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.2)
    return norm


def folded_and_held(model: nn.Module, side: int = 8) -> tuple[Any, Counter[str]]:
    """Fold a network, hold it against torch in float64, and count its operators."""
    model = model.double().eval()
    x = torch.randn(2, C, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    folded = fold_graph(to_onnx(model, input_shape=tuple(x.shape), opset=18, optimize=False))
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(run_float64(folded.model, x.numpy()), expected, rtol=0, atol=1e-11)
    assert certify(folded).is_exact
    return folded, Counter(node.op_type for node in folded.model.graph.node)
