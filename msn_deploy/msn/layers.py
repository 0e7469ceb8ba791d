"""Convolution and linear layers with Spectral Normalization (SN) and Mean Spectral Normalization (MSN).

SN    y = layer(x, W / sigma) + bias
MSN   y = gain * (layer(x, W / sigma) - mean) + shift            (arXiv 1907.04003; the paper has no gain)

mean is the batch mean per output channel in training, a running mean in evaluation. A bias of the layer itself would
cancel against the mean; `bias=True` therefore gives the shift. gain exists with `affine=True` only ("msn-affine", as
the paper's authors have it in their repository): it is folded into the weight, so that it costs no pass over y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msn_deploy.msn.centring import centre_
from msn_deploy.msn.spectral import born_pair, power_iterate, sigma_of


class _Spectral(nn.Module):
    """The part that SN and MSN layers share: the buffers u and v, and W / sigma."""

    weight: Tensor
    bias: Tensor | None
    u: Tensor
    v: Tensor
    power_iterations: int

    def _start_spectral(self, power_iterations: int) -> None:
        if power_iterations < 1:
            raise ValueError(f"power_iterations must be at least 1, got {power_iterations}")
        self.power_iterations = power_iterations
        u, v = born_pair(self.weight.detach())
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def sigma(self) -> Tensor:
        """Return the tracked spectral norm of the weight, shape (), without moving u and v."""
        return sigma_of(self.weight, self.u, self.v)

    def _scaled_weight(self) -> Tensor:
        if not self.training:
            return self.weight / self.sigma()
        power_iterate(self.weight, self.u, self.v, steps=self.power_iterations)
        # Copies, because a second forward before the backward moves the buffers that autograd would have saved.
        return self.weight / sigma_of(self.weight, self.u.clone(), self.v.clone())

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return,operator]


class _SN(_Spectral):
    def __init__(self, *args: Any, power_iterations: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start_spectral(power_iterations)

    def forward(self, x: Tensor) -> Tensor:
        """Return layer(x, W / sigma) + bias."""
        return self._apply_weight(x, self._scaled_weight(), self.bias)


class _MSN(_Spectral):
    running_mean: Tensor
    gain: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        bias: bool = True,
        affine: bool = False,
        momentum: float = 0.1,
        power_iterations: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, bias=False, **kwargs)
        self.momentum = momentum
        self._start_spectral(power_iterations)
        channels = self.weight.shape[0]
        zeros = self.weight.detach().new_zeros(channels)
        self.shift = nn.Parameter(zeros.clone()) if bias else None
        self.gain = nn.Parameter(torch.ones_like(zeros)) if affine else None
        self.register_buffer("running_mean", zeros)

    def forward(self, x: Tensor) -> Tensor:
        """Return gain * (layer(x, W / sigma) - mean) + shift."""
        weight = self._scaled_weight()
        if self.gain is not None:
            weight = weight * self.gain.view(-1, *[1] * (weight.dim() - 1))
        shift = self.shift if self.shift is not None else torch.zeros_like(self.running_mean)
        if not self.training:
            mean = self.running_mean if self.gain is None else self.running_mean * self.gain
            return self._apply_weight(x, weight, shift - mean)
        y = self._apply_weight(x, weight, None)
        channel_dim = y.dim() - 1 if isinstance(self, nn.Linear) else y.dim() - (weight.dim() - 1)
        y, mean = centre_(y, shift, channel_dim=channel_dim)
        self._track(mean)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor) -> None:
        if self.gain is not None:
            # The running mean is that of layer(x, W / sigma); a channel whose gain is zero keeps its last one.
            mean = torch.where(self.gain == 0, self.running_mean, mean / self.gain)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)

    def extra_repr(self) -> str:
        """Return the arguments of the torch twin, then those of MSN."""
        return f"{super().extra_repr()}, affine={self.gain is not None}, momentum={self.momentum}"


class SNConv1d(_SN, nn.Conv1d):
    """`torch.nn.Conv1d` with its weight divided by its spectral norm."""


class SNConv2d(_SN, nn.Conv2d):
    """`torch.nn.Conv2d` with its weight divided by its spectral norm."""


class SNConv3d(_SN, nn.Conv3d):
    """`torch.nn.Conv3d` with its weight divided by its spectral norm."""


class SNLinear(_SN, nn.Linear):  # type: ignore[misc]  # torch declares no None for its bias
    """`torch.nn.Linear` with its weight divided by its spectral norm."""


class MSNConv1d(_MSN, nn.Conv1d):
    """`torch.nn.Conv1d` with its weight divided by its spectral norm and its output centred."""


class MSNConv2d(_MSN, nn.Conv2d):
    """`torch.nn.Conv2d` with its weight divided by its spectral norm and its output centred."""


class MSNConv3d(_MSN, nn.Conv3d):
    """`torch.nn.Conv3d` with its weight divided by its spectral norm and its output centred."""


class MSNLinear(_MSN, nn.Linear):  # type: ignore[misc]  # as above
    """`torch.nn.Linear` with its weight divided by its spectral norm and its output centred."""
