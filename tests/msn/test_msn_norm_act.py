"""A BatchNorm that holds its activation, as timm's, is taken apart where it is nothing more than that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fold_cases import IN, OUT, loosen, model_input
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import convert, fold


class NormAct(nn.BatchNorm2d):
    """Built as timm's BatchNormAct2d is: the norm's own arithmetic written out, then `drop` and `act`."""

    def __init__(
        self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None, **options: Any
    ) -> None:
        super().__init__(channels, **options)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, factor, self.eps
        )
        return self.act(self.drop(x))


class Other(NormAct):
    """Computes something else behind the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.25


class OtherInTraining(NormAct):
    """Is its activation in evaluation alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.5 if self.training else 0.0)


class More(NormAct):
    """Holds a third module, which nothing says the use of."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.extra = nn.Identity()


class Short(NormAct):
    """Takes images of 3 x 3 only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (3, 3):
            raise ValueError(x.shape)
        return super().forward(x)


KINDS: dict[str, Any] = {
    "relu": lambda: NormAct(OUT),
    "none": lambda: NormAct(OUT, nn.Identity()),
    "swish": lambda: NormAct(OUT, nn.SiLU(inplace=True)),
    "with parameters": lambda: NormAct(OUT, nn.PReLU(OUT, init=0.3)),
    "with dropout": lambda: NormAct(OUT, drop=nn.Dropout(0.5)),
    "averaged": lambda: NormAct(OUT, momentum=None),
    "without gain": lambda: NormAct(OUT, affine=False),
}


def _net(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return loosen(nn.Sequential(nn.Conv2d(IN, OUT, 3, padding=1), norm, nn.Conv2d(OUT, 3, 1)))


@pytest.mark.parametrize("norm", ["msn", "msn-affine", "sn", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_goes_and_the_activation_stays(kind: str, norm: str) -> None:
    model = _net(KINDS[kind]())
    new, converted, kept = convert(model, norm)
    assert (list(converted), kept) == (["0"], {})
    assert new[1].act is not model[1].act
    assert type(new[1].act) is type(model[1].act)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in new.modules())
    x = model_input()
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fold(new)(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_folds(kind: str) -> None:
    model = _net(KINDS[kind]())
    plain = fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    x = model_input()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)


def test_the_mode_is_kept_and_nothing_is_counted_or_drawn() -> None:
    model = _net(NormAct(OUT, drop=nn.Dropout(0.5))).train()
    state, random = {name: each.clone() for name, each in model.state_dict().items()}, torch.random.get_rng_state()
    new, _, _ = convert(model, "none")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert new[1].drop.training


@pytest.mark.parametrize("kind", [Other, OtherInTraining, More, Short])
def test_what_computes_something_else_stays(kind: Any) -> None:
    model = _net(kind(OUT))
    _, converted, kept = convert(model, "msn")
    assert (converted, kept) == ({}, {"1": f"it ({kind.__name__}) has a forward of its own"})
    with pytest.raises(FoldError, match=rf"1: it \({kind.__name__}\) has a forward of its own"):
        fold(model)


def test_all_that_a_fold_keeps_are_counted_and_it_goes_on_if_it_may(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(_net(NormAct(OUT)), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model = loosen(model)
    with pytest.raises(FoldError, match=r"2 norms can't be folded. `fold\(model, strict=False\)` keeps them"):
        fold(model)
    plain = fold(model, strict=False)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules()) == 2
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["3", "4"]
    x = model_input()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)
