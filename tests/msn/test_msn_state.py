"""The buffers of MSN and SN layers: training moves them, and a copy or a loaded state dict goes on with their bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layer_cases import conv_input, loosen
from torch import Tensor, nn

from msn_deploy.msn import MSNConv1d, MSNConv2d, MSNLinear, SNConv3d

LAYERS = [
    lambda: MSNConv2d(4, 8, 3, affine=True),
    lambda: MSNConv1d(4, 8, 3, bias=False),
    lambda: MSNLinear(4, 8),
    lambda: SNConv3d(4, 8, 2),
]


def _trained(make: Any, steps: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    layer = make().double()
    loosen(layer)
    rank = layer.weight.dim() - 2
    x = conv_input(rank) if rank else torch.randn(6, 4, dtype=torch.float64)
    for _ in range(steps):
        layer(x)
    return layer, x


@pytest.mark.parametrize("make", LAYERS)
def test_training_moves_the_buffers(make: Any) -> None:
    layer, x = _trained(make, steps=0)
    before = copy.deepcopy(layer.state_dict())
    layer(x)
    moved = {name for name, tensor in layer.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"u", "v"} | ({"running_mean", "num_batches_tracked"} if hasattr(layer, "running_mean") else set())


@pytest.mark.parametrize("make", LAYERS)
def test_state_dict_and_deepcopy_continue_bit_for_bit(make: Any) -> None:
    layer, x = _trained(make)
    copied = copy.deepcopy(layer)
    torch.manual_seed(99)
    loaded = make().double()
    loaded.load_state_dict(layer.state_dict())
    for _ in range(2):
        wanted = layer(x)
        for twin in (copied, loaded):
            assert torch.equal(twin(x), wanted)
            assert torch.equal(twin.u, layer.u)
    assert copied.u.data_ptr() != layer.u.data_ptr()
    assert torch.equal(loaded.eval()(x), layer.eval()(x))


def test_the_running_mean_of_a_channel_without_gain_stays() -> None:
    layer, x = _trained(lambda: MSNConv2d(4, 8, 3, affine=True))
    with torch.no_grad():
        layer.gain[2] = 0
    before = layer.running_mean.clone()
    layer(x)
    assert torch.isfinite(layer.running_mean).all()
    assert (layer.running_mean == before).tolist() == [at == 2 for at in range(8)]
