"""How common functions of torch and methods of tensors are called behind Conv-BN-ReLU.

`y` is never negative, `z` has both signs and no two equal values; defaults are shapes of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sweep_nets import named

_UNARY = (
    "abs neg sign square exp exp2 expm1 sin cos tan sinh cosh tanh asinh atan erf floor ceil round trunc frac isnan "
    "isinf isfinite signbit sinc logical_not nan_to_num clone zeros_like ones_like fliplr msort"
)
_POSITIVE = "log log2 log10 log1p sqrt rsqrt reciprocal acosh"  # of y + 1
_WITHIN = "asin acos atanh logit"  # of values between 0 and 1
_BINARY = "add sub mul maximum minimum fmax atan2 eq ne lt le gt ge hypot logaddexp logical_and logical_or copysign"
_REDUCE = "sum mean prod amax amin std var norm nansum count_nonzero argmax argmin all any"


def _ints(z: torch.Tensor) -> torch.Tensor:
    return (z * 10).to(torch.int32)


RECIPES: dict[str, Callable[..., Any]] = {
    **named(_UNARY, torch, lambda f: lambda z: f(z)),
    **named(_POSITIVE, torch, lambda f: lambda y: f(y + 1)),
    **named(_WITHIN, torch, lambda f: lambda z: f(torch.sigmoid(z))),
    **named(_BINARY, torch, lambda f: lambda y, z: f(y, z)),
    **{f"{name} all": call for name, call in named("sum mean std norm amax", torch, lambda f: lambda z: f(z)).items()},
    **{
        f"{name} dim": call
        for name, call in named(f"{_REDUCE} logsumexp", torch, lambda f: lambda z: f(z, dim=1)).items()
    },
    "mean keepdim": lambda y: y - y.mean((2, 3), keepdim=True),
    "std dims": lambda y: y.std((2, 3)),
    "var dims": lambda y: y.var((1, 2)),
    "std_mean": lambda y: torch.std_mean(y, 1),
    "var_mean": lambda y: torch.var_mean(y, (2, 3), correction=0),
    "norm p1": lambda z: torch.norm(z, 1, 1),
    "linalg.norm": lambda z: torch.linalg.norm(z, dim=1),
    "max dim": lambda z: z.max(1),
    "min dim": lambda z: z.min(2, keepdim=True),
    "aminmax": lambda z: torch.aminmax(z, dim=1),
    "median": lambda z: z.flatten(2).median(2),
    "cumsum": lambda z: z.cumsum(1),
    "cumprod": lambda z: z.cumprod(1),
    "diff": lambda z: z.diff(dim=3),
    "topk": lambda z: z.topk(3, 1),
    "sort": lambda z: z.sort(1),
    "sort descending": lambda z: z.sort(3, descending=True).values,
    "argsort": lambda z: z.argsort(1),
    "unique": lambda z: torch.unique(z.round()),
    "nonzero": lambda z: (z > 0.5).nonzero(),
    "masked_select": lambda z: z.masked_select(z > 0.5),
    "searchsorted": lambda z: torch.searchsorted(torch.linspace(-1, 1, 7, dtype=z.dtype), z),
    "bucketize": lambda z: torch.bucketize(z, torch.linspace(-1, 1, 7, dtype=z.dtype)),
    # arithmetic with constants
    "add scalar": lambda z: torch.add(z, z.flip(3), alpha=0.5),
    "mul scalar": lambda y: y * 0.3,
    "div scalar": lambda y: y / 7,
    "div": lambda y, z: y / (z.abs() + 0.5),
    "div floor": lambda z: torch.div(z, 0.3, rounding_mode="floor"),
    "floor_divide": lambda z: z // 0.3,
    "remainder": lambda z: z % 0.37,
    "pow": lambda z: z**2,
    "pow half": lambda y: (y + 1) ** 0.5,
    "pow fraction": lambda y: y**1.7,
    "pow tensor": lambda y, z: (y + 1) ** z,
    "pow base": lambda z: 2**z,
    "clamp": lambda z: z.clamp(-0.2, 0.3),
    "clamp ints": lambda z: z.clamp(-1, 1),
    "clamp mixed": lambda z: z.clamp(0.1, 2),
    "clamp tensors": lambda z, low=(8, 1, 1): torch.clamp(z, low, low + 0.4),
    "clamp_min": lambda z: z.clamp(min=0.1),
    "clamp_min int": lambda z: z.clamp(min=0),
    "clip": lambda z: z.clip(0, 6) / 6,
    "lerp": lambda y, z: torch.lerp(y, z, 0.3),
    "addcmul": lambda y, z: torch.addcmul(y, z, z, value=0.5),
    "addcdiv": lambda y, z: torch.addcdiv(z, y, y + 1, value=2.0),
    "nan_to_num inf": lambda z: torch.nan_to_num(torch.log(z.relu()), neginf=-9.0),
    "special.expit": lambda z: torch.special.expit(z),
    # bits and types
    "bitwise_and": lambda z: torch.bitwise_and(_ints(z), 6),
    "bitwise_not": lambda z: torch.bitwise_not(z > 0),
    "to int64": lambda z: (z * 10).to(torch.int64),
    "to uint8": lambda y: (y * 10).clamp(0, 255).to(torch.uint8),
    "to bool": lambda z: (z > 0.1).bool(),
    "int floor_divide": lambda z: _ints(z) // 3,
    "int remainder": lambda z: _ints(z) % 3,
    "int clamp": lambda z: _ints(z).clamp(-2, 3),
    "int sum": lambda z: _ints(z).sum(1),
    # shapes
    "chunk": lambda y: (lambda a, b: a * torch.sigmoid(b))(*y.chunk(2, 1)),
    "chunk uneven": lambda y: y.chunk(3, 1),
    "split": lambda y: y.split(3, 1),
    "split sizes": lambda y: torch.cat(y.split([1, 5, 2], 1)[::-1], 1),
    "tensor_split": lambda y: y.tensor_split(3, 1),
    "unbind all": lambda y: torch.stack(y.unbind(1)[::2], 1),
    "cat": lambda y, z: torch.cat((y, z, y), 1),
    "stack": lambda y, z: torch.stack((y, z), 1),
    "reshape": lambda y: y.reshape(2, 4, -1),
    "view": lambda y: y.view(y.size(0), -1),
    "view shuffled": lambda y: y.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8),
    "flatten": lambda y: y.flatten(1, 2),
    "unflatten": lambda y: y.unflatten(1, (2, -1)),
    "squeeze": lambda y: y.mean(2, keepdim=True).squeeze(2),
    "squeeze all": lambda y: y[:, :, :1].squeeze(),
    "unsqueeze": lambda y: y.unsqueeze(-1).expand(-1, -1, -1, -1, 2),
    "transpose": lambda y: y.transpose(1, 3),
    "permute": lambda y: y.permute(0, 2, 3, 1),
    "expand": lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 5),
    "expand_as": lambda y: y.mean(1, keepdim=True).expand_as(y),
    "repeat": lambda y: y.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda y: y.repeat_interleave(2, 1),
    "tile": lambda y: y.tile(2, 1, 1),
    "flip": lambda y: y.flip(2, 3),
    "flip channels": lambda y: y.flip(1),
    "roll": lambda y: y.roll((2, -3), (2, 3)),
    "narrow": lambda y: y.narrow(1, 2, 3),
    "unfold": lambda y: y.unfold(2, 3, 2),
    "as_strided": lambda y: y.contiguous().as_strided((2, 4), (512, 3)),
    "diagonal": lambda y: y.diagonal(0, 2, 3),
    "tril": lambda y: y.tril(),
    "triu": lambda y: y.triu(1),
    "pixel cat": lambda y: torch.cat((y[..., ::2, ::2], y[..., 1::2, ::2]), 1),
    "meshgrid": lambda y: (
        torch.stack(torch.meshgrid(torch.arange(8, dtype=y.dtype), torch.arange(8, dtype=y.dtype), indexing="ij"))
        + y[:, :2]
    ),
    "arange": lambda y: y + torch.arange(y.shape[-1], dtype=y.dtype),
    "full_like": lambda y: y + torch.full_like(y, 0.3),
    "eye": lambda y: y @ torch.eye(8, dtype=y.dtype),
    # indexing
    "slice": lambda y: y[:, 1:-1:2, ::3, -4:],
    "slice ellipsis": lambda y: y[..., 0],
    "index list": lambda y: y[:, [3, 0, 5, 5]],
    "index tensor": lambda y, z: y.flatten(2)[0][:, z.flatten(2).argmax(2)[0]],
    "index mask": lambda y, z: torch.where(z > 0, y, y.new_zeros(())),
    "index_select": lambda y: y.index_select(1, torch.tensor([2, 0, 7])),
    "gather": lambda y, z: y.gather(1, z.argsort(1)[:, :3]),
    "take_along_dim": lambda y, z: torch.take_along_dim(y, z.argmax(1, keepdim=True), 1),
    "scatter": lambda y, z: torch.zeros_like(y).scatter(1, z.argmax(1, keepdim=True), 1.0),
    "scatter tensor": lambda y, z: y.scatter(1, z.argsort(1)[:, :4], z[:, :4]),
    "scatter_add": lambda y, z: y.scatter_add(1, z.argsort(1), z),
    "scatter_reduce": lambda y, z: y.scatter_reduce(1, z.argsort(1), z, "amax"),
    "index_add": lambda y, z: y.index_add(1, torch.tensor([0, 2]), z[:, :2]),
    "index_put": lambda y, z: y.index_put((torch.tensor([1]), torch.tensor([4])), z[0, 0]),
    "masked_fill": lambda y, z: y.masked_fill(z > 0, -1e4),
    "masked_fill inf": lambda z: z.masked_fill(z > 0.2, float("-inf")).softmax(1),
    "where": lambda y, z: torch.where(z > 0, y, z * 0.1),
    "slice_scatter": lambda y, z: y.slice_scatter(z[:, :3], 1, 2, 5),
    "select_scatter": lambda y, z: y.select_scatter(z[:, 0], 1, 2),
    "setitem": lambda y, z: _with_corner(y, z),
    "setitem channel": lambda y: _with_channel(y),
    # products
    "matmul": lambda y, z: y @ z,
    "matmul weight": lambda y, w=(8, 5): y @ w,
    "matmul vector": lambda y, w=(8,): y @ w,
    "bmm": lambda y, z: torch.bmm(y.flatten(2), z.flatten(2).transpose(1, 2)),
    "baddbmm": lambda y, z: torch.baddbmm(y[:, 0], y[:, 1], z[:, 0], beta=0.5, alpha=2.0),
    "addmm": lambda y, w=(8, 5), b=(5,): torch.addmm(b, y.mean((2, 3)), w, beta=0.5),
    "einsum": lambda y, z: torch.einsum("nchw,ncgw->nhg", y, z),
    "einsum weight": lambda y, w=(8, 5): torch.einsum("nchw,cd->nhwd", y, w),
    "cdist": lambda y, z: torch.cdist(y[:, 0], z[:, 0]),
    "cross": lambda y, z: torch.linalg.cross(y[:, :3], z[:, :3], dim=1),
    "bilinear attention": lambda y, z: (y.flatten(2).transpose(1, 2) @ z.flatten(2)).softmax(-1),
    # windows and spectra
    "stft": lambda y: torch.view_as_real(
        torch.stft(y.flatten(2)[:, 0], 16, 8, window=torch.hann_window(16, dtype=y.dtype), return_complex=True)
    ),
    "fft.rfft": lambda y: torch.view_as_real(torch.fft.rfft(y)),
    "view_as_complex": lambda y, z: torch.view_as_real(
        torch.view_as_complex(torch.stack((y, z), -1)) * torch.view_as_complex(torch.stack((z, y), -1))
    ),
}


def _with_corner(y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[:, :, :2, :3] = z[:, :, :2, :3] * 2
    return y


def _with_channel(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[:, 0] = y[:, 0] * 0.5 - 1
    y[:, 3:5] += 2.0
    return y
