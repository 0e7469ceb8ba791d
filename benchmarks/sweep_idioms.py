"""Idioms of real networks, each as small as it can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sweep_nets import CHANNELS, Stem
from torch import Tensor, nn

PICTURE = (2, 3, 8, 8)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, act: nn.Module | None = None, **options: Any) -> nn.Sequential:
    """Return Conv-BN-activation that keeps the size."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act or nn.ReLU(inplace=True))


class Net(nn.Module):
    """A network of parts by name, and of one function that is given the parts and the input."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif part.is_floating_point() and not name.startswith("buffer_"):
                self.register_parameter(name, nn.Parameter(part))
            else:
                self.register_buffer(name.removeprefix("buffer_"), part)
        self.function = forward

    def forward(self, *x: Tensor) -> Any:
        return self.function(self, *x)


def _net(forward: Callable[..., Any], **parts: Callable[[], nn.Module | Tensor]) -> Callable[[], nn.Module]:
    return lambda: Net(forward, stem=Stem(2), **{name: make() for name, make in parts.items()})


def _conv(outputs: int = CHANNELS, kernel: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(CHANNELS, outputs, kernel, padding=kernel // 2, **options)


def _block(outputs: int = CHANNELS, kernel: int = 3, act: type[nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    return lambda: conv_bn(CHANNELS, outputs, kernel, act())


def _bn(channels: int = CHANNELS) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(channels)


def _linear(inputs: int = CHANNELS, outputs: int = 5, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)


def _c2f(net: Any, x: Tensor) -> Tensor:
    parts = list(net.first(net.stem(x)).chunk(2, 1))
    parts += [block(parts[-1]) for block in (net.one,)]
    parts.append(net.two(parts[-1]))
    return net.last(torch.cat(parts, 1))


def _shuffle_unit(net: Any, x: Tensor) -> Tensor:
    a, b = net.stem(x).chunk(2, dim=1)
    y = torch.cat((a, net.one(b)), 1)
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def _attention(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).flatten(2).transpose(1, 2)
    n, t, c = y.shape
    q, k, v = net.qkv(y).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1)
    return net.out((weights @ v).transpose(1, 2).reshape(n, t, c))


def _windows(net: Any, x: Tensor) -> Tensor:
    y = torch.roll(net.stem(x), (-2, -2), (2, 3)).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    y = net.out((y @ y.transpose(1, 2) / math.sqrt(c)).softmax(-1) @ y)
    y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return torch.roll(y, (2, 2), (1, 2)).permute(0, 3, 1, 2)


def _grn(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).permute(0, 2, 3, 1)
    size = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
    return net.gain * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + net.shift + y


def _layer_scale(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    z = net.two(F.gelu(net.one(net.norm(net.depth(y).permute(0, 2, 3, 1)))))
    return y + (net.gamma * z).permute(0, 3, 1, 2)


def _channel_norm(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    mean = y.mean(1, keepdim=True)
    variance = (y - mean).pow(2).mean(1, keepdim=True)
    return net.gain[:, None, None] * ((y - mean) / torch.sqrt(variance + 1e-6)) + net.shift[:, None, None]


def _coordinates(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    rows = torch.linspace(-1, 1, y.shape[2], dtype=y.dtype).view(1, 1, -1, 1).expand(y.shape[0], -1, -1, y.shape[3])
    columns = torch.linspace(-1, 1, y.shape[3], dtype=y.dtype).view(1, 1, 1, -1).expand(y.shape[0], -1, y.shape[2], -1)
    return net.conv(torch.cat((y, rows, columns), 1))


def _focus(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    corners = (y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2])
    return net.conv(torch.cat(corners, 1))


def _space_to_depth(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    n, c, h, w = y.shape
    return net.conv(y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, c * 4, h // 2, w // 2))


def _dfl(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).flatten(2).view(2, 2, 4, 64).transpose(2, 1).softmax(1)
    return (y * net.bins.view(1, 4, 1, 1)).sum(1)


def _anchors(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    h, w = y.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=y.dtype) + 0.5, torch.arange(w, dtype=y.dtype) + 0.5, indexing="ij"
    )
    points = torch.stack((columns, rows)).view(2, -1)
    low, high = net.boxes(y).flatten(2).chunk(2, 1)
    centre = points + (high - low) / 2
    return torch.cat((centre, low + high, net.classes(y).flatten(2).sigmoid()), 1) * 8


def _aspp(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    pooled = F.interpolate(net.pooled(F.adaptive_avg_pool2d(y, 1)), size=y.shape[-2:], mode="bilinear")
    return net.last(torch.cat((net.near(y), net.far(y), pooled), 1))


def _fpn(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    fine = net.stem(x)
    coarse = net.down(fine)
    top = net.lateral(coarse)
    bottom = net.side(fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
    return net.out(bottom), top


def _unet(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    z = net.up(net.down(F.max_pool2d(y, 2)))
    return net.last(torch.cat((y, z), 1))


def _gru_head(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).mean(2).transpose(1, 2)
    return net.out(net.gru(y)[0])


def _memory(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    h, c = net.cell(y.mean((2, 3)))
    for _ in range(2):
        h, c = net.cell(y.mean((2, 3)), (h, c))
    return h


def _rope(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).flatten(2).transpose(1, 2)
    a, b = y[..., ::2], y[..., 1::2]
    angle = torch.arange(y.shape[1], dtype=y.dtype)[:, None] / (10.0 ** torch.arange(4, dtype=y.dtype))
    return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(2)


def _flow(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    n, _, h, w = y.shape
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, h, dtype=y.dtype), torch.linspace(-1, 1, w, dtype=y.dtype), indexing="ij"
    )
    grid = torch.stack((columns, rows), -1).expand(n, -1, -1, -1) + 0.2 * torch.tanh(net.flow(y)).permute(0, 2, 3, 1)
    return F.grid_sample(y, grid, align_corners=True, padding_mode="border")


def _cost_volume(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    z = net.one(y)
    volume = [(y * F.pad(z, (shift, 0, 0, 0))[..., : y.shape[3]]).mean(1) for shift in range(3)]
    return torch.stack(volume, 1)


def _soft_argmax(net: Any, x: Tensor) -> Tensor:
    y = net.heat(net.stem(x)).flatten(2).softmax(-1).view(2, 4, 8, 8)
    places = torch.arange(8, dtype=y.dtype)
    return torch.stack(((y.sum(2) * places).sum(-1), (y.sum(3) * places).sum(-1)), -1)


def _box_convert(net: Any, x: Tensor) -> Tensor:
    x1, y1, w, h = net.out(net.stem(x).mean((2, 3))).sigmoid().unbind(-1)
    return torch.stack((x1 - 0.5 * w, y1 - 0.5 * h, x1 + 0.5 * w, y1 + 0.5 * h), -1)


def _top_boxes(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.classes(net.stem(x)).flatten(2).transpose(1, 2)
    scores, index = y.amax(2).topk(5, 1)
    return scores, y.gather(1, index.unsqueeze(-1).expand(-1, -1, y.shape[2]))


def _ghost(net: Any, x: Tensor) -> Tensor:
    y = net.one(net.stem(x))
    return torch.cat((y, net.cheap(y)), 1)[:, :7]


def _residual_scaled(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return y + 0.1 * net.two(F.relu(net.one(y)))


def _drop_path(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    z = net.one(y)
    if net.training:
        z = z * torch.bernoulli(torch.full((z.shape[0], 1, 1, 1), 0.8)) / 0.8
    return y + z


def _in_place(net: Any, x: Tensor) -> Tensor:
    return net.stem(x.sub_(0.45).div_(0.22))


def _in_place_channel(net: Any, x: Tensor) -> Tensor:
    x[:, 0] *= 2.0
    return net.stem(x.clamp_(-1, 1))


def _remembers(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    if getattr(net, "size", None) != y.shape:
        net.size, net.places = y.shape, torch.arange(y.shape[3], dtype=y.dtype)
    return y + net.places


def _many_outputs(net: Any, x: Tensor) -> dict[str, Any]:
    y = net.stem(x)
    return {"boxes": net.one(y), "scores": [net.two(y).sigmoid(), y.mean((2, 3))], "none": None}


def _repeated(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return net.one(net.one(net.one(y))) + y


def _shared_norm(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return F.relu(net.norm(net.one(y))) + F.relu(net.norm(net.two(y)))


def _blur(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(net.stem(x), (1, 1, 1, 1), mode="reflect"), net.kernel, stride=2, groups=CHANNELS)


def _style(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    style = net.style(y.mean((2, 3)))
    weight = net.weight[None] * style[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    out = F.conv2d(y.reshape(1, -1, 8, 8), weight.reshape(-1, CHANNELS, 3, 3), padding=1, groups=2)
    return out.reshape(2, -1, 8, 8)


def _deep_supervision(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.stem(x)
    return net.one(y), F.interpolate(net.two(F.avg_pool2d(y, 2)), size=x.shape[-2:], mode="bilinear")


def _blur_kernel() -> Tensor:
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    return (row[:, None] * row).expand(CHANNELS, 1, 3, 3).clone()


def _grown(net: Any, x: Tensor) -> Tensor:
    features = [net.stem(x)]
    for norm, conv in ((net.norm1, net.conv1), (net.norm2, net.conv2)):
        features.append(conv(F.relu(norm(torch.cat(features, 1)))))
    return torch.cat(features, 1)


def _squeeze_excite(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return y * torch.sigmoid(net.two(F.relu(net.one(y.mean((2, 3), keepdim=True)))))


def _cbam(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    gate = net.one(torch.cat((y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]), 1))
    return y * gate.sigmoid()


def _eca(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    gate = net.one(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
    return y * gate.sigmoid().expand_as(y)


def _spp(net: Any, x: Tensor) -> Tensor:
    y = net.one(net.stem(x))
    return net.last(torch.cat([y, *(F.max_pool2d(y, k, 1, k // 2) for k in (3, 5, 7))], 1))


def _sppf(net: Any, x: Tensor) -> Tensor:
    y = [net.one(net.stem(x))]
    for _ in range(3):
        y.append(F.max_pool2d(y[-1], 5, 1, 2))
    return net.last(torch.cat(y, 1))


def _pyramid_pool(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    pooled = [
        F.interpolate(F.adaptive_avg_pool2d(y, k), y.shape[2:], mode="bilinear", align_corners=True) for k in (1, 2, 4)
    ]
    return net.last(torch.cat((y, *pooled), 1))


def _radix(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x).view(2, 2, 4, 8, 8)
    gate = net.one(y.sum(1).mean((2, 3), keepdim=True)).view(2, 2, 4, 1, 1).softmax(1)
    return (y * gate).sum(1)


def _involution(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    weight = net.one(y).view(2, 2, 9, 8, 8).unsqueeze(2)
    return (weight * F.unfold(y, 3, padding=1).view(2, 2, 4, 9, 8, 8)).sum(3).view(2, 8, 8, 8)


def _minibatch_std(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return torch.cat((y, torch.sqrt(y.var(0, unbiased=False) + 1e-8).mean().expand(2, 1, 8, 8)), 1)


def _vlad(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    assign = net.one(y).flatten(2).softmax(1)
    found = torch.einsum("nkt,nct->nkc", assign, y.flatten(2)) - assign.sum(-1, keepdim=True) * net.centres
    return F.normalize(F.normalize(found, p=2, dim=2).flatten(1), p=2, dim=1)


_NETS: dict[str, Callable[[], nn.Module]] = {
    # splitting and joining
    "C2f": _net(
        _c2f, first=_block(8), one=lambda: conv_bn(4, 4), two=lambda: conv_bn(4, 4), last=lambda: conv_bn(16, 6, 1)
    ),
    "shuffle unit": _net(_shuffle_unit, one=lambda: conv_bn(4, 4)),
    "ghost": _net(_ghost, one=_block(4, 1), cheap=lambda: conv_bn(4, 4, groups=4)),
    "dense block": _net(
        _grown,
        norm1=_bn(8),
        conv1=_conv(4, bias=False),
        norm2=_bn(12),
        conv2=lambda: nn.Conv2d(12, 4, 3, padding=1),
    ),
    "focus": _net(_focus, conv=lambda: conv_bn(32, 6)),
    "space to depth": _net(_space_to_depth, conv=lambda: conv_bn(32, 6, 1)),
    "radix": _net(_radix, one=lambda: nn.Conv2d(4, 8, 1)),
    # gates and attention
    "SE": _net(_squeeze_excite, one=_conv(4, 1), two=lambda: nn.Conv2d(4, 8, 1)),
    "CBAM": _net(_cbam, one=lambda: nn.Conv2d(2, 1, 7, padding=3)),
    "ECA": _net(_eca, one=lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "attention": _net(_attention, qkv=_linear(8, 24, bias=False), out=_linear(8, 8)),
    "window partition": _net(_windows, out=_linear(8, 8)),
    "rotary positions": _net(_rope),
    "position embedding": _net(
        lambda net, x: net.norm(torch.cat((net.token.expand(2, -1, -1), net.stem(x).flatten(2).mT), 1) + net.places),
        token=lambda: torch.rand(1, 1, 8),
        places=lambda: torch.rand(1, 65, 8),
        norm=lambda: nn.LayerNorm(8),
    ),
    "talking heads scale": _net(
        lambda net, x: (net.one(net.stem(x)).flatten(2) * net.heat.exp().clamp(max=100.0)).softmax(-1),
        one=_conv(4),
        heat=lambda: torch.rand(4, 1),
    ),
    "involution": _net(_involution, one=_conv(18, 1)),
    # norms of one's own
    "GRN": _net(_grn, gain=lambda: torch.rand(8), shift=lambda: torch.rand(8)),
    "layer scale": _net(
        _layer_scale,
        depth=_conv(8, 5, groups=8),
        norm=lambda: nn.LayerNorm(8, eps=1e-6),
        one=_linear(8, 12),
        two=_linear(12, 8),
        gamma=lambda: torch.rand(8) - 0.5,
    ),
    "channel norm": _net(_channel_norm, gain=lambda: torch.rand(8) + 0.5, shift=lambda: torch.rand(8)),
    "PixelNorm": _net(lambda net, x: (y := net.stem(x)) * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-8)),
    "FRN": _net(
        lambda net, x: torch.max(
            net.gain * ((y := net.stem(x)) * torch.rsqrt(y.pow(2).mean((2, 3), keepdim=True) + 1e-6)), net.threshold
        ),
        gain=lambda: torch.rand(1, 8, 1, 1),
        threshold=lambda: torch.rand(1, 8, 1, 1) - 0.5,
    ),
    "frozen norm": _net(
        lambda net, x: net.one(net.stem(x)) * net.scale[:, None, None] + net.shift.reshape(1, -1, 1, 1),
        one=_conv(8, bias=False),
        buffer_scale=lambda: torch.rand(8) - 0.3,
        buffer_shift=lambda: torch.rand(8),
    ),
    "weight norm": _net(
        lambda net, x: net.one(net.stem(x)), one=lambda: nn.utils.parametrizations.weight_norm(_conv(5)())
    ),
    "spectral norm": _net(
        lambda net, x: net.one(net.stem(x)), one=lambda: nn.utils.parametrizations.spectral_norm(_conv(5)())
    ),
    "instance norm behind norm": _net(
        lambda net, x: net.two(net.stem(x)), two=lambda: nn.InstanceNorm2d(8, affine=True)
    ),
    "BNNeck": _net(
        lambda net, x: net.out(net.neck(net.stem(x).mean((2, 3)))),
        neck=lambda: nn.BatchNorm1d(8),
        out=_linear(bias=False),
    ),
    "BNNeck normalised": _net(
        lambda net, x: F.normalize(net.neck(net.out(net.stem(x).flatten(1)))),
        out=_linear(512, 6, bias=False),
        neck=lambda: nn.BatchNorm1d(6, affine=False),
    ),
    "norm before conv": _net(lambda net, x: net.one(F.relu(net.norm(net.stem(x)))), norm=_bn(), one=_conv(5)),
    "norm before padded conv": _net(lambda net, x: net.one(net.norm(net.stem(x))), norm=_bn(), one=_conv(5)),
    "norm on the input": _net(lambda net, x: net.stem(net.first(x)), first=lambda: nn.BatchNorm2d(3)),
    "norm after pool": _net(lambda net, x: net.norm(F.avg_pool2d(net.one(net.stem(x)), 2)), one=_conv(8), norm=_bn()),
    "norm after upsampling": _net(
        lambda net, x: net.norm(F.interpolate(net.one(net.stem(x)), scale_factor=2.0)), one=_conv(8), norm=_bn()
    ),
    "norm after sum": _net(lambda net, x: net.norm((y := net.stem(x)) + net.one(y)).relu(), one=_conv(8), norm=_bn()),
    "norm after concatenation": _net(
        lambda net, x: net.norm(torch.cat((y := net.stem(x), net.one(y)), 1)), one=_conv(4), norm=_bn(12)
    ),
    "norm of transposed convolution": _net(
        lambda net, x: net.norm(net.up(net.stem(x))), up=lambda: nn.ConvTranspose2d(8, 6, 4, 2, 1), norm=_bn(6)
    ),
    "one norm for two": _net(_shared_norm, one=_conv(8), two=_conv(8), norm=_bn()),
    "one block three times": _net(_repeated, one=_block(8)),
    "RepVGG": _net(
        lambda net, x: F.relu(net.three(y := net.stem(x)) + net.one(y) + net.norm(y)),
        three=lambda: nn.Sequential(_conv(8, 3, bias=False)(), nn.BatchNorm2d(8)),
        one=lambda: nn.Sequential(_conv(8, 1, bias=False)(), nn.BatchNorm2d(8)),
        norm=_bn(),
    ),
    # scales
    "scaled activation": _net(lambda net, x: net.stem(x) * 0.5),
    "scaled residual": _net(_residual_scaled, one=_conv(), two=_conv()),
    "scaled residual norm": _net(lambda net, x: (y := net.stem(x)) + net.one(y) * 0.1, one=_block()),
    "temperature": _net(lambda net, x: net.out(net.stem(x).mean((2, 3))) / 0.07, out=_linear()),
    "learned scale": _net(
        lambda net, x: net.one(net.stem(x)) * net.scale, one=_conv(4), scale=lambda: torch.tensor(-1.7)
    ),
    "residual from zero": _net(
        lambda net, x: (y := net.stem(x)) + net.alpha * net.one(y), one=_conv(), alpha=lambda: torch.tensor(0.0)
    ),
    "pooled and scaled": _net(lambda net, x: F.max_pool2d(net.stem(x) * 2, 2) + 4 * F.avg_pool2d(net.stem(x), 2)),
    "ReLU6 gate": _net(lambda net, x: (y := net.one(net.stem(x))) * F.relu6(y + 3) / 6, one=_conv()),
    "DropPath": _net(_drop_path, one=_block()),
    # pads and pools
    "SPP": _net(_spp, one=_block(4, 1), last=lambda: conv_bn(16, 6, 1)),
    "SPPF": _net(_sppf, one=_block(4, 1), last=lambda: conv_bn(16, 6, 1)),
    "ASPP": _net(
        _aspp,
        near=_block(4, 1),
        far=lambda: nn.Sequential(nn.Conv2d(8, 4, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        pooled=_block(4, 1),
        last=lambda: conv_bn(12, 5, 1),
    ),
    "pyramid pool": _net(_pyramid_pool, last=lambda: conv_bn(32, 5, 1)),
    "GeM": _net(
        lambda net, x: F.avg_pool2d(net.stem(x).clamp(min=1e-6).pow(net.p), 8).pow(1.0 / net.p),
        p=lambda: torch.tensor([3.0]),
    ),
    "blur pool": _net(_blur, buffer_kernel=_blur_kernel),
    "same padding of TensorFlow": _net(
        lambda net, x: net.one(F.pad(net.stem(x), (0, 1, 0, 1))), one=lambda: nn.Conv2d(8, 6, 3, stride=2)
    ),
    "maximum and mean pool": _net(
        lambda net, x: torch.cat((F.adaptive_max_pool2d(y := net.stem(x), 1), F.adaptive_avg_pool2d(y, 1)), 1).flatten(
            1
        )
    ),
    "strip pooling": _net(lambda net, x: (y := net.stem(x)).mean(3, keepdim=True) + y.mean(2, keepdim=True)),
    # whole shapes
    "FPN": _net(
        _fpn,
        down=lambda: nn.Conv2d(8, 8, 3, 2, 1),
        lateral=_conv(6, 1),
        side=_conv(6, 1),
        out=lambda: conv_bn(6, 6),
    ),
    "U-Net": _net(
        _unet, down=_block(12), up=lambda: nn.ConvTranspose2d(12, 8, 2, stride=2), last=lambda: nn.Conv2d(16, 3, 1)
    ),
    "deep supervision": _net(_deep_supervision, one=_conv(2, 1), two=_conv(2, 1)),
    "CoordConv": _net(_coordinates, conv=lambda: conv_bn(10, 6)),
    "classifier": _net(lambda net, x: net.out(F.adaptive_avg_pool2d(net.stem(x), 1).flatten(1)), out=_linear()),
    "argmax mask": _net(lambda net, x: net.one(net.stem(x)).argmax(1), one=_conv(4)),
    "many outputs": _net(_many_outputs, one=_conv(4), two=_conv(1)),
    "detector": _net(_anchors, boxes=_conv(4), classes=_conv(3)),
    "DFL": _net(_dfl, buffer_bins=lambda: torch.arange(4.0)),
    "top boxes": _net(_top_boxes, classes=_conv(3)),
    "box corners": _net(_box_convert, out=_linear(8, 4)),
    "soft argmax": _net(_soft_argmax, heat=_conv(4)),
    "flow warp": _net(_flow, flow=_conv(2)),
    "cost volume": _net(_cost_volume, one=_block(8, 1)),
    "CRNN head": _net(_gru_head, gru=lambda: nn.GRU(8, 6, batch_first=True, bidirectional=True), out=_linear(12)),
    "cell in a loop": _net(_memory, cell=lambda: nn.LSTMCell(8, 5)),
    "NetVLAD": _net(_vlad, one=_conv(3, 1), centres=lambda: torch.rand(3, 8)),
    "modulated convolution": _net(_style, style=_linear(8, 8), weight=lambda: torch.rand(6, 8, 3, 3) - 0.5),
    "minibatch deviation": _net(_minibatch_std),
    "super resolution": _net(
        lambda net, x: net.up(net.one(net.stem(x))) + F.interpolate(x, scale_factor=2.0, mode="bicubic"),
        one=_conv(12),
        up=lambda: nn.PixelShuffle(2),
    ),
    "Fourier features": _net(
        lambda net, x: torch.cat(((y := net.stem(x) * 2 * math.pi).sin(), y.cos()), 1),
    ),
    # what forward does to its surroundings
    "in-place input": _net(_in_place),
    "in-place channel": _net(_in_place_channel),
    "in-place activations": _net(lambda net, x: F.relu_(net.one(net.stem(x))).add_(1), one=_conv()),
    "remembers a shape": _net(_remembers),
    "buffers called mean and std": _net(
        lambda net, x: net.stem((x - net.mean) / net.std).mean((2, 3)),
        buffer_mean=lambda: torch.rand(3, 1, 1),
        buffer_std=lambda: torch.rand(3, 1, 1) + 0.5,
    ),
    "buffer called mul": _net(lambda net, x: net.stem(x) * net.mul * 2, buffer_mul=lambda: torch.rand(8, 1, 1)),
    "parameter called conv2d": _net(lambda net, x: net.stem(x) + net.conv2d, conv2d=lambda: torch.rand(8, 1, 1)),
    "buffer called input": _net(lambda net, x: net.stem(x) + net.input, buffer_input=lambda: torch.rand(8, 1, 1)),
    "buffer called logits": _net(lambda net, x: net.stem(x) + net.logits, buffer_logits=lambda: torch.rand(8, 1, 1)),
    "shape in a condition": _net(lambda net, x: y[:, :, :4] if (y := net.stem(x)).shape[2] > 4 else y),
    "list comprehension": _net(lambda net, x: torch.stack([each.mean() for each in net.stem(x).unbind(1)])),
    "keyword outputs": _net(lambda net, x: (net.stem(x),)),
    "input is an output": _net(lambda net, x: (net.stem(x), x)),
    "one tensor twice": _net(lambda net, x: ((y := net.stem(x)), y)),
}

RECIPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    name: (build, PICTURE) for name, build in _NETS.items()
}
