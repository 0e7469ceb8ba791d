"""Random networks, exported and folded, equal torch in float64, or the norm is kept with a reason. Never wrong."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_nets import CHANNELS, SIDE, Program, RandomNet, programs
from torch import Tensor, nn

from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.export import to_onnx
from msn_deploy.graph.fold import fold_graph
from msn_deploy.msn import fold_layers

pytestmark = pytest.mark.slow

PER_EXPORT = 10  # programs that one call of torch's exporter takes, which is most of the time
EXPORTS = int(os.environ.get("MSN_DEPLOY_RANDOM_GRAPHS", "70")) // PER_EXPORT
_MANY = 300  # programs, among which every reason is met
_seen: Counter[str] = Counter()


class _Many(nn.Module):
    """Several networks on the same input, their outputs side by side."""

    def __init__(self, drawn: list[Program]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(RandomNet(program) for program in drawn)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x).flatten(1) for net in self.nets], 1)


# Not shrunk: a failure names its program, and shrinking would take an export per step.
@settings(max_examples=EXPORTS, deadline=None, derandomize=True, phases=[Phase.generate], database=None)
@given(drawn=st.lists(programs(), min_size=PER_EXPORT, max_size=PER_EXPORT))
def _check(drawn: list[Program]) -> None:
    model = _Many(drawn).eval()
    x = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = [net(x).flatten(1).numpy() for net in model.nets]
    plain, layers = fold_layers(model)
    folded = fold_graph(to_onnx(plain, input_shape=tuple(x.shape), opset=18, optimize=False))
    got = run_float64(folded.model, x.numpy())
    for program, truth in zip(drawn, expected, strict=True):
        own, got = got[:, : truth.shape[1]], got[:, truth.shape[1] :]
        worst = float(np.abs(own - truth).max()) / max(1.0, float(np.abs(truth).max()))
        assert worst <= 1e-9, program
    assert got.shape[1] == 0
    assert certify(folded).is_exact, drawn
    assert all(bool(each.code) == bool(each.why) == (each.rule == "kept") for each in folded.folds)
    left = sum(node.op_type == "BatchNormalization" for node in folded.model.graph.node)
    assert left <= sum(each.rule == "kept" for each in folded.folds)
    _seen.update(each.code or each.rule for each in folded.folds)
    _seen.update("layer" for _ in layers)


def test_folded_equals_torch_or_is_kept_with_a_reason() -> None:
    _seen.clear()
    _check()
    graphs = EXPORTS * PER_EXPORT
    assert _seen["into-producer"] > graphs / 4
    assert _seen["into-readers"] > graphs / 10
    assert _seen["layer"] > graphs / 4
    assert _seen["into-branch"] > graphs / 20
    reasons = {"NEGATIVE_GAIN", "PADDED_BORDER", "NONLINEAR_BETWEEN", "GRAPH_OUTPUT"} & _seen.keys()
    assert len(reasons) >= (4 if graphs >= _MANY else 2), _seen  # which are drawn depends on hypothesis's version
