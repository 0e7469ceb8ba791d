"""Networks that torch.fx cannot follow are converted and folded by an example of what they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fold_cases import loosen
from torch import Tensor, nn

from msn_deploy.core.errors import FoldError, InputError
from msn_deploy.msn import convert, fold

C = 4


class Net(nn.Module):
    """Layers of every kind with their norms; `steps` joins them, in a way that a proxy of fx does not survive."""

    def __init__(self, steps: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, C, 3, padding="same"), nn.BatchNorm2d(C)
        self.up, self.up_bn = nn.ConvTranspose2d(C, C, 2, 2), nn.BatchNorm2d(C)
        self.mirror = nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect", groups=2)
        self.mirror_bn = nn.BatchNorm2d(C, affine=False)
        self.linear, self.linear_bn = nn.Linear(C, 3), nn.BatchNorm1d(3)
        self.steps = steps
        loosen(self)

    def forward(self, x: Tensor) -> Any:
        for _ in x.shape:  # which a proxy cannot be iterated over
            pass
        return self.steps(self, x)


def _all(net: Any, x: Tensor) -> dict[str, Tensor]:
    y = net.bn(net.conv(x)).relu()
    y = net.mirror_bn(net.mirror(net.up_bn(net.up(y)).relu())).relu()
    return {"scores": net.linear_bn(net.linear(y.mean((2, 3)))), "map": y}


def _x() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _close(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        for one, other in zip(*(list(net.eval()(_x()).values()) for net in (a, b)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["msn", "none"])
def test_every_layer_and_norm_is_found(norm: str, training: bool) -> None:
    model = Net(_all).double().train(training)
    assert convert(model, norm).converted == {}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new, converted, kept = convert(model, norm, example=_x())
    assert kept == {}
    assert list(converted) == ["conv", "up", "mirror", "linear"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert new.training == training
    _close(new, model)


def test_it_folds_and_the_example_may_be_all_inputs() -> None:
    model = Net(_all).double().eval()
    with pytest.raises(FoldError, match=r"could not be traced \(TraceError.*with an `example`, torch.export is asked"):
        fold(model)
    plain = fold(model, example=(_x()[:1],))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plain.modules())
    _close(plain, model)


def _read_twice(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.bn(y) + y


REASONS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "read-twice": (_read_twice, "the output of conv is also used without the norm"),
    "called-twice": (lambda net, x: net.bn(net.conv(x)) + net.conv(x * 2), "conv or the norm itself is used more"),
    "norm-called-twice": (lambda net, x: net.bn(net.bn(net.conv(x)) * 2), "no layer feeds it directly"),
    "behind-relu": (lambda net, x: net.bn(net.conv(x).relu()), "no layer feeds it directly"),
    "weight-read": (lambda net, x: net.bn(net.conv(x)) + net.conv.weight.sum(), "the weights of conv or of the norm"),
    "gain-read": (lambda net, x: net.bn(net.conv(x)) * net.bn.weight.sum(), "the weights of conv or of the norm"),
    "changed-in-place": (lambda net, x: net.bn(net.conv(x).mul_(2)), "no layer feeds it directly"),
    "never-reached": (lambda net, x: net.conv(x), "the data flow never reaches it"),
    "not-exported-either": (lambda net, x: 1 / int(x.sum()), "nor by torch.export"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REASONS)
def test_the_data_flow_decides(case: str) -> None:
    steps, reason = REASONS[case]
    model = Net(steps).double().eval()
    _, converted, kept = convert(model, "none", example=_x())
    assert converted == {}
    assert reason in kept["bn"]


class Listed(nn.Module):
    """Calls its layers from a plain list, which a copy of the model takes along and nothing replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)
        self.listed = [self.conv, self.bn]

    def forward(self, x: Tensor) -> Tensor:
        for _ in x.shape:
            pass
        return self.listed[1](self.listed[0](x))  # type: ignore[no-any-return]


def test_layers_that_are_called_from_elsewhere_are_refused() -> None:
    model = Listed().double().eval()
    with pytest.raises(InputError, match="does not hold as submodules"):
        convert(model, "msn", example=_x())
    with pytest.raises(FoldError, match="does not hold as submodules"):
        fold(model, example=_x())
