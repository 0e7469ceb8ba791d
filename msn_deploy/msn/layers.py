"""Convolution and linear layers with Spectral Normalization (SN) and Mean Spectral Normalization (MSN).

Beside them stands a convolution with weight standardisation (WS), a baseline that folds as well.

SN    y = layer(x, W / sigma) + bias
MSN   y = gain * (layer(x, W / sigma) - mean) + shift            (arXiv 1907.04003; the paper has no gain)

mean is the batch mean per output channel in training, a running mean in evaluation. A bias of the layer itself would
cancel against the mean; `bias=True` therefore gives the shift. gain exists with `affine=True` only ("msn-affine", as
the paper's authors have it in their repository): it is folded into the weight, so that it costs no pass over y.

W / sigma makes activations smaller from layer to layer, so that a shift of some size means more in each, and the
logits are tiny at first. `init_gain` multiplies W / sigma by one constant per layer, `scale`, with which it starts at
the deviation init_gain / sqrt(columns of the matrix), as `torch.nn.init.kaiming_normal_` would: sqrt(2) before a ReLU.
Between layers that are positively homogeneous (ReLU, max pooling) this is the paper's function, with shifts and
classifier in other units; None, the default, is the paper's form. Lipschitz networks want None.

Autocast, torch.compile, torch.func and double backward work as with torch's own layers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from msn_deploy.msn.algebra import scale_channels
from msn_deploy.msn.centring import Centring, in_backward
from msn_deploy.msn.spectral import (
    as_matrix,
    born_pair,
    by_rows,
    conv_over_sigma,
    largest_singular_value,
    over_sigma,
    power_iterate,
    sigma_of,
    traced,
    widened,
)

_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class SpectralLayer(nn.Module):
    """The part that SN and MSN layers share: the buffers u and v, and W / sigma."""

    weight: Tensor
    u: Tensor
    v: Tensor
    scale: Tensor | None
    power_iterations: int
    _twin: ClassVar[inspect.Signature]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        """Give a layer the signature of its twin in torch.nn, and the keywords that it adds."""
        super().__init_subclass__()
        twins = [
            each for each in cls.__mro__ if each.__module__.startswith("torch.nn.modules") and each is not nn.Module
        ]
        if not twins:
            return
        cls._twin = inspect.signature(twins[0])
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if "__init__" not in vars(cls):
            own = [*cls._twin.parameters.values(), *(each for each in own if each.kind is each.KEYWORD_ONLY)]
        cls.__signature__ = inspect.Signature(own)

    def _start_spectral(self, power_iterations: int, init_gain: float | None) -> None:
        if power_iterations < 1:
            raise ValueError(f"power_iterations must be at least 1, got {power_iterations}")
        self.power_iterations = power_iterations
        u, v = born_pair(self._matrix())
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self.register_buffer("scale", None)
        if init_gain is not None:
            # W / sigma has the deviation norm(W) / sigma / sqrt(rows * columns); wanted is init_gain / sqrt(columns).
            matrix = self._matrix().detach()
            self.scale = init_gain * self.sigma().detach() * math.sqrt(len(matrix)) / torch.linalg.vector_norm(matrix)

    @property
    def is_transposed(self) -> bool:
        """Whether output channels are dim 1 of the weight."""
        return isinstance(self, _ConvTransposeNd)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.weight.shape[1] * int(getattr(self, "groups", 1)) if self.is_transposed else self.weight.shape[0]

    def _matrix(self) -> Tensor:
        return as_matrix(self.weight, transposed=self.is_transposed)

    def sigma(self) -> Tensor:
        """Return the tracked spectral norm of the weight, shape (), without moving u and v."""
        return sigma_of(self._matrix(), self.u, self.v)

    @torch.no_grad()
    def sigma_error(self) -> float:
        """Return sigma / largest singular value - 1, by a decomposition: below 0 where sigma lags behind the weight."""
        return float(self.sigma()) / max(largest_singular_value(self._matrix()), 1e-30) - 1

    @torch.no_grad()
    def settle(self, steps: int = 100) -> None:
        """Move u and v to the first singular vectors of a weight that was set from elsewhere, such as an average."""
        power_iterate(self._matrix(), self.u, self.v, steps=steps)

    def _normalised_weight(self) -> Tensor:
        """Return scale * W / sigma, after a power iteration in training."""
        weight = self._channels_first()
        rows = by_rows(weight)
        quotient = over_sigma(rows, *self._pair())
        if self.scale is not None:
            quotient = quotient * self.scale
        if rows is not weight:
            quotient = quotient.movedim(-1, 1)
        return quotient.transpose(0, 1) if self.is_transposed else quotient

    def _pair(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return u, v and sigma, detached and no buffers, after a power iteration in training.

        v is a vector, in the order in which memory holds a row of the weight.
        """
        weight = self._channels_first()
        rows, v = by_rows(weight), self.v
        if rows is not weight:
            v = v.view(weight.shape[1:]).movedim(0, -1)
        matrix = rows.detach().flatten(1)
        if self.training and self.power_iterations > 0 and not in_backward():
            return power_iterate(matrix, self.u, v, steps=self.power_iterations)
        # Copies, because a second forward before the backward moves the buffers that autograd would have saved.
        # Widened as those that moved: gradient checkpointing compares the two forwards.
        u, v = widened(self.u.clone()), widened(v.clone(memory_format=torch.contiguous_format).flatten())
        return u, v, sigma_of(matrix, u, v)

    def _channels_first(self) -> Tensor:
        return self.weight.transpose(0, 1) if self.is_transposed else self.weight

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        if isinstance(self, nn.Linear):
            return F.linear(x, weight, bias)
        assert isinstance(self, _ConvNd)
        if not isinstance(self, _ConvTransposeNd):
            return self._conv_forward(x, weight, bias)
        spatial = weight.dim() - 2
        padding = self._output_padding(
            x,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            spatial,
            self.dilation,
        )
        function: Any = _CONV_TRANSPOSE[spatial]
        y: Tensor = function(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)
        return y


class _SN(SpectralLayer):
    bias: Tensor | None

    def __init__(self, *args: Any, power_iterations: int = 1, init_gain: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start_spectral(power_iterations, init_gain)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return layer(input, scale * W / sigma) + bias."""
        return self._apply_weight(input, self._normalised_weight(), self.bias, output_size)


class _MSN(SpectralLayer, Centring):
    gain: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        affine: bool = False,
        momentum: float | None = 0.1,
        power_iterations: int = 1,
        init_gain: float | None = None,
        track_running_stats: bool = True,
        sync_mean: bool = False,
        **kwargs: Any,
    ) -> None:
        given = self._twin.bind(*args, **kwargs).arguments
        bias = given.pop("bias", True)
        super().__init__(**given, bias=False)
        self._start_spectral(power_iterations, init_gain)
        zeros = self.weight.detach().new_zeros(self.channels)
        self._start_centring(
            zeros,
            shift=bias,
            momentum=momentum,
            track_running_stats=track_running_stats,
            sync_mean=sync_mean,
        )
        self.gain = nn.Parameter(torch.ones_like(zeros)) if affine else None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return gain * (layer(input, scale * W / sigma) - mean) + shift."""
        if self.running_mean is not None and not self.training:
            weight = self._with_gain(self._normalised_weight())
            mean = self.running_mean if self.gain is None else self.running_mean * self.gain
            return self._apply_weight(input, weight, self._offset(mean), output_size)
        if not input.numel() and not self.sync_mean:  # without a mean, and none to follow
            return self._apply_weight(input, self._with_gain(self._normalised_weight()), self.shift, output_size)
        if self._divides_later(input):
            assert isinstance(self, _ConvNd)
            assert not isinstance(self.padding, str)
            y = conv_over_sigma(
                input,
                self.weight,
                self._pair(),
                self.scale,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        else:
            y = self._apply_weight(input, self._with_gain(self._normalised_weight()), None, output_size)
        channel_dim = y.dim() - 1 if isinstance(self, nn.Linear) else y.dim() - (self.weight.dim() - 1)
        return self._centre_(y, channel_dim=channel_dim, gain=self.gain)

    def _with_gain(self, weight: Tensor) -> Tensor:
        if self.gain is None:
            return weight
        groups = getattr(self, "groups", 1)
        return scale_channels(weight, self.gain, transposed=self.is_transposed, groups=groups)

    def _offset(self, mean: Tensor) -> Tensor:
        """Return the bias that takes a mean off."""
        return -mean if self.shift is None else self.shift - mean

    def _divides_later(self, input: Tensor) -> bool:
        """Tell whether the output is divided by sigma in place of the weight: where that is larger, and it can be."""
        if not isinstance(self, _ConvNd) or self.is_transposed or self.padding_mode != "zeros" or self.gain is not None:
            return False
        output = input.numel() // self.in_channels * self.out_channels // math.prod(self.stride)  # but for borders
        if self.weight.numel() <= output or input.dim() != self.weight.dim():
            return False
        return not isinstance(self.padding, str) and not traced()

    def extra_repr(self) -> str:
        """Return the arguments of the torch twin, then those of MSN."""
        return f"{super().extra_repr()}, affine={self.gain is not None}, momentum={self.momentum}"


class SNConv1d(_SN, nn.Conv1d):
    """`torch.nn.Conv1d` with its weight divided by its spectral norm."""


class SNConv2d(_SN, nn.Conv2d):
    """`torch.nn.Conv2d` with its weight divided by its spectral norm."""


class SNConv3d(_SN, nn.Conv3d):
    """`torch.nn.Conv3d` with its weight divided by its spectral norm."""


class SNConvTranspose1d(_SN, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with its weight divided by its spectral norm."""


class SNConvTranspose2d(_SN, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with its weight divided by its spectral norm."""


class SNConvTranspose3d(_SN, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with its weight divided by its spectral norm."""


class SNLinear(_SN, nn.Linear):  # type: ignore[misc]  # torch declares no None for its bias
    """`torch.nn.Linear` with its weight divided by its spectral norm."""


class MSNConv1d(_MSN, nn.Conv1d):
    """`torch.nn.Conv1d` with its weight divided by its spectral norm and its output centred."""


class MSNConv2d(_MSN, nn.Conv2d):
    """`torch.nn.Conv2d` with its weight divided by its spectral norm and its output centred.

    y = gain * (conv(x, W / sigma(W)) - mean) + bias, with the mean of each channel over batch and positions in training
    and its running mean in evaluation (arXiv 1907.04003). Input and output are (N, C, H, W), the arguments those of the
    twin, and more. The other MSN layers take these keywords, too.

    Args:
        affine: Learn a gain per channel; the paper has none.
        momentum: Of the running mean, as in BatchNorm; None averages all batches.
        power_iterations: Per training step, for sigma.
        init_gain: W / sigma starts at the deviation init_gain / sqrt(columns), such as sqrt(2) before a ReLU; None, the
            paper's form, leaves it as it is.
        track_running_stats: False takes each batch's mean in evaluation, too.
        sync_mean: Take the mean over all processes of a distributed training.

    Examples:
        >>> import msn_deploy, torch
        >>> layer = msn_deploy.MSNConv2d(3, 8, kernel_size=3)
        >>> layer(torch.rand(2, 3, 6, 6)).mean((0, 2, 3)).abs().max() < 1e-5
        tensor(True)
    """


class MSNConv3d(_MSN, nn.Conv3d):
    """`torch.nn.Conv3d` with its weight divided by its spectral norm and its output centred."""


class MSNConvTranspose1d(_MSN, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with its weight divided by its spectral norm and its output centred."""


class MSNConvTranspose2d(_MSN, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with its weight divided by its spectral norm and its output centred."""


class MSNConvTranspose3d(_MSN, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with its weight divided by its spectral norm and its output centred."""


class MSNLinear(_MSN, nn.Linear):
    """`torch.nn.Linear` with its weight divided by its spectral norm and its output centred."""


def sigma_errors(model: nn.Module) -> dict[str, float]:
    """Return by how much sigma is off in each SN and MSN layer of a model, see `SpectralLayer.sigma_error`.

    A residual such as ||W^T u - sigma v|| would be cheaper, but is small wherever u and v are near any singular pair,
    and so does not show the direction that has overtaken theirs; the decomposition of all layers takes milliseconds.
    """
    return {name: layer.sigma_error() for name, layer in model.named_modules() if isinstance(layer, SpectralLayer)}


class WSConv2d(nn.Conv2d):
    """y = conv(x, gain * (W - mean) / sqrt(norm(W - mean)^2 + eps)) + bias, mean and norm per output channel.

    Weight standardisation (Qiao et al., 2019, arXiv 1903.10520) with the unit that keeps the deviation of activations:
    the published form divides by the deviation of the weights, which is larger by the square root of the inputs, and
    leaves it to the norm behind to take that out. Without such a norm, each channel has a gain (`affine`), which
    starts at `init_gain`: sqrt(2) before a ReLU. Nothing is tracked: training and evaluation are the same function.
    """

    def __init__(
        self, *args: Any, affine: bool = True, init_gain: float = 1.0, eps: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eps = eps
        self.gain = nn.Parameter(torch.full_like(self.weight[:, 0, 0, 0], init_gain)) if affine else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of input (N, C_in, H, W) with the standardised weight."""
        y: Tensor = self._conv_forward(input, standardised(self.weight, self.gain, self.eps), self.bias)
        return y


def standardised(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Return weight (C_out, ...) with rows of mean 0 and length 1 (0 for one that is constant), times gain (C_out,)."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    scale = torch.rsqrt(centred.square().sum((1, 2, 3)) + eps)
    return scale_channels(centred, scale if gain is None else gain * scale, transposed=False, groups=1)


def constructor_arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments that give a torch layer of the same shape, without bias, dtype and device."""
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    if isinstance(layer, _ConvTransposeNd):
        names.append("output_padding")
    return {name: getattr(layer, name) for name in names}
